#include "sources/kubernetes/api_server.h"

#include "base/strings.h"
#include "net/address.h"
#include "net/small_file.h"
#include "net/tls_client.h"

namespace fairway::sources::kubernetes {

base::Result<std::unique_ptr<ApiServer>> ApiServer::Create(ClientConfig config, const base::Log* log) {
  const bool has_token = !config.token.empty() || !config.token_file.empty();
  const bool is_here = config.host == "localhost" || config.host.starts_with("127.") || config.host == "::1";
  if (has_token && !config.tls && !is_here) {
    return base::Fail(
        base::ErrorCode::kInvalidArgument,
        config.source + ": the token would go to http://" + net::FormatHostPort(config.host, config.port) +
            " in clear text, where everybody on the way can take it: use https://, or leave the "
            "token away");
  }
  std::unique_ptr<ApiServer> server(new ApiServer(std::move(config), log));
  server->connection_.host = server->config_.host;
  server->connection_.port = server->config_.port;
  server->connection_.server_name = server->config_.server_name;
  if (auto loaded = server->Reload(); !loaded) {
    return base::Fail(loaded.error().code, server->config_.source + ": " + loaded.error().message);
  }
  return server;
}

base::Result<void> ApiServer::Reload() {
  if (!config_.tls) return {};
  net::TlsClientOptions options{.ca_pem = config_.ca_pem,
                                .cert_pem = config_.cert_pem,
                                .key_pem = config_.key_pem,
                                .insecure = config_.insecure};
  const std::pair<const std::string*, std::string*> files[] = {{&config_.ca_file, &options.ca_pem},
                                                               {&config_.cert_file, &options.cert_pem},
                                                               {&config_.key_file, &options.key_pem}};
  for (const auto& [path, pem] : files) {
    if (path->empty()) continue;
    auto text = net::ReadSmallFile(*path);
    if (!text) return tl::make_unexpected(text.error());
    *pem = std::move(*text);
  }
  std::string all = options.ca_pem + '\n' + options.cert_pem + '\n' + options.key_pem;
  if (connection_.tls != nullptr && all == loaded_) return {};
  std::vector<std::string> skipped;
  auto context = net::MakeTlsClient(options, &skipped);
  if (!context) return tl::make_unexpected(context.error());
  for (std::string& one : skipped) {
    if (log_ == nullptr) break;
    log_->Warn(
        "a certificate of the API server's authorities is skipped",
        {{"file", config_.ca_file.empty() ? config_.source : config_.ca_file}, {"error", std::move(one)}});
  }
  connection_.tls = std::move(*context);
  loaded_ = std::move(all);
  ++generation_;
  return {};
}

const net::HttpStreamOptions& ApiServer::Connection(uint64_t& generation) {
  // A file that is being replaced may be gone or half for a moment: the last good state does until then.
  const auto loaded = Reload();
  problem_ = loaded ? "" : loaded.error().message;
  generation = generation_;
  return connection_;
}

std::vector<std::pair<std::string, std::string>> ApiServer::Headers() {
  if (!config_.token_file.empty()) {
    const auto text = net::ReadSmallFile(config_.token_file);
    if (text && !base::Trim(*text).empty()) {
      token_ = base::Trim(*text);
    } else {
      problem_ = text ? config_.token_file + " is empty" : text.error().message;
    }
  } else {
    token_ = config_.token;
  }
  std::vector<std::pair<std::string, std::string>> headers{{"Accept", "application/json"}};
  if (!token_.empty()) headers.emplace_back("Authorization", "Bearer " + token_);
  return headers;
}

std::string ApiServer::name() const { return net::FormatHostPort(config_.host, config_.port); }

}  // namespace fairway::sources::kubernetes
