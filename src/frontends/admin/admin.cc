#include "frontends/admin/admin.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <string_view>
#include <utility>

#include "base/clean_lines.h"
#include "base/strings.h"
#include "net/address.h"

namespace fairway::admin {

namespace {

net::HttpResponse Text(int status, std::string_view body) {
  return {
      .status = status, .content_type = "text/plain; charset=utf-8", .body = base::CleanLines(body) + "\n"};
}

// Without the port and an IPv6 address's brackets.
std::string_view HostOf(std::string_view at) {
  if (at.starts_with('[')) return at.substr(1, at.find(']') - 1);
  return at.substr(0, at.find(':'));
}

// Who is inside this machine or Pod already (`kubectl port-forward` is). Not the sidecar of a mesh that hands
// on what came from elsewhere: it uses 127.0.0.6, or says in a header for whom it asks.
bool IsInside(const net::HttpRequest& request) {
  std::string_view peer = HostOf(request.peer_address);
  if (peer.starts_with("::ffff:")) peer.remove_prefix(7);
  if (peer != "127.0.0.1" && peer != "::1") return false;
  for (const auto& [name, value] : request.headers) {
    const std::string lower = base::ToLower(name);
    if (lower == "forwarded" || lower == "via" || lower.starts_with("x-forwarded-") ||
        lower.starts_with("x-envoy-") || lower.starts_with("l5d-"))
      return false;
  }
  return true;
}

// Whether a request without a token may ask under this name. A browser that follows a foreign page's script
// here says that page's name: no public name is without a dot or ends as these do.
bool IsOurName(std::string_view host_header, const std::vector<std::string>& hosts) {
  if (host_header.empty()) return true;  // no browser
  std::string name = base::ToLower(HostOf(host_header));
  if (name.ends_with('.')) name.pop_back();
  if (net::IsIpLiteral(name) || name.find('.') == std::string::npos) return true;
  for (const std::string_view end : {".localhost", ".svc", ".cluster.local", ".internal"}) {
    if (name.ends_with(end)) return true;
  }
  return std::any_of(hosts.begin(), hosts.end(), [&](const std::string& known) {
    return known == "*" || base::EqualsIgnoreCase(known, name);
  });
}

bool IsHealth(std::string_view path) { return path == "/healthz" || path == "/livez" || path == "/readyz"; }

// "" when there is none.
std::string BearerToken(std::string_view header) {
  constexpr std::string_view kScheme = "bearer ";
  if (header.size() <= kScheme.size() || base::ToLower(header.substr(0, kScheme.size())) != kScheme)
    return "";
  return std::string(base::Trim(header.substr(kScheme.size())));
}

net::HttpResponse Refusal(int status) {
  if (status == 403) return Text(403, "the bearer of this token may not get this path");
  if (status != 401) return Text(503, "the API server cannot be asked who may read this");
  net::HttpResponse response = Text(401, "a bearer token is needed that the API server knows");
  response.headers.emplace_back("www-authenticate", "Bearer");
  return response;
}

// The value of a query's parameter, decoded; nothing where it is not there.
std::optional<std::string> QueryValue(std::string_view target, std::string_view name) {
  const size_t query = target.find('?');
  if (query == std::string_view::npos) return std::nullopt;
  for (const std::string_view pair : base::Split(target.substr(query + 1), '&')) {
    const size_t equals = std::min(pair.find('='), pair.size());
    if (pair.substr(0, equals) != name) continue;
    const std::string_view text = pair.substr(std::min(equals + 1, pair.size()));
    std::string value(text);
    std::replace(value.begin(), value.end(), '+', ' ');
    return base::PercentDecoded(value);
  }
  return std::nullopt;
}

net::HttpResponse Decisions(const net::HttpRequest& request, const Content& content) {
  using Format = Content::Format;
  const std::string id = QueryValue(request.target, "request-id").value_or("");
  const std::optional<std::string> wanted = QueryValue(request.target, "format");
  const bool browser = request.header("accept").find("text/html") != std::string_view::npos;
  Format format = browser ? Format::kHtml : Format::kJson;
  if (wanted) {
    if (*wanted != "json" && *wanted != "text" && *wanted != "html")
      return Text(400, "format: want json, text or html");
    format = *wanted == "json" ? Format::kJson : *wanted == "text" ? Format::kText : Format::kHtml;
  }
  auto pages = content.decisions(id, format);
  if (!pages) return Text(404, "no decision of that request is kept: it was none of the last ones");
  net::HttpResponse response{.next = std::move(pages)};
  if (format == Format::kText) {
    response.next = [pieces = std::move(response.next)] { return base::CleanLines(pieces()); };
  }
  if (format == Format::kText) response.content_type = "text/plain; charset=utf-8";
  if (format == Format::kHtml) response.content_type = "text/html; charset=utf-8";
  response.headers.emplace_back("x-content-type-options", "nosniff");
  return response;
}

net::HttpResponse Prefixes(const net::HttpRequest& request, const Content& content) {
  const std::string id = QueryValue(request.target, "request-id").value_or("");
  auto pages = content.decisions(id, Content::Format::kPrefixes);
  if (!pages) return Text(404, "no decision of that request is kept: it was none of the last ones");
  return {.next = std::move(pages)};
}

constexpr std::string_view kPages =
    "pages: /metrics /healthz /readyz /debug/fleet /debug/decisions /debug/prefix";

// Each piece is made when the reader has taken the one before: a page that nobody reads costs one piece.
Content::Pages Metrics(const base::Registry& registry) {
  return [page = std::shared_ptr<base::Page>(registry.Open())] {
    std::string piece;
    while (page->Next(piece) && piece.empty()) {
    }
    return piece;
  };
}

}  // namespace

net::HttpResponse Answer(const net::HttpRequest& request, const Content& content) {
  const std::string_view path = request.path();
  if (request.method != "GET" && request.method != "HEAD") {
    net::HttpResponse response = Text(405, "only GET");
    response.headers.emplace_back("allow", "GET, HEAD");
    return response;
  }
  if (path == "/metrics") {
    return {.content_type = "text/plain; version=0.0.4; charset=utf-8", .next = Metrics(*content.registry)};
  }
  if (path == "/healthz" || path == "/livez") return Text(200, "ok");
  if (path == "/readyz") {
    return !content.ready || content.ready() ? Text(200, "ok")
                                             : Text(503, "no pool is known yet, or the server is draining");
  }
  if (path == "/debug/fleet" && content.fleet) return {.next = content.fleet()};
  if (path == "/debug/prefix" && content.engines && !QueryValue(request.target, "request-id")) {
    if (auto pages = content.engines()) return {.next = std::move(pages)};
  }
  if (path == "/debug/decisions" || path == "/debug/prefix") {
    if (content.decisions)
      return path == "/debug/prefix" ? Prefixes(request, content) : Decisions(request, content);
    return Text(404, "decisions are not kept: start with --debug-decisions N to see the last N here");
  }
  if (path == "/debug/pprof" || path.starts_with("/debug/pprof/")) {
    return Text(
        404, "there are no pprof pages: take a profile of the running process with `perf record -g -p PID`");
  }
  if (path == "/") return Text(200, std::string(kPages));
  return Text(404, "no such page; " + std::string(kPages));
}

void Serve(const net::HttpRequest& request, const std::shared_ptr<net::HttpResponder>& responder,
           const std::shared_ptr<const Content>& content, const std::vector<std::string>& hosts) {
  if (IsHealth(request.path())) return responder->Send(Answer(request, *content));
  if (!content->authorize || IsInside(request)) {
    if (IsOurName(request.header("host"), hosts)) return responder->Send(Answer(request, *content));
    return responder->Send(
        Text(421,
             "this server is not known by that name: ask for its IP address or for localhost, or start it "
             "with the name in --metrics-allowed-hosts"));
  }
  const std::string token = BearerToken(request.header("authorization"));
  if (token.empty()) return responder->Send(Refusal(401));
  content->authorize(token, std::string(request.path()), net::PeerShareOf(HostOf(request.peer_address)),
                     [request, responder, content](int status) {
                       responder->Send(status == 200 ? Answer(request, *content) : Refusal(status));
                     });
}

void AddMetrics(base::Registry& registry, std::shared_ptr<const net::HttpServerStats> stats) {
  auto& open =
      registry.AddGauge({.name = "fairway_admin_connections", .help = "Open connections of the admin pages."})
          .With({});
  auto& closed = registry.AddCounter(
      {.name = "fairway_admin_connections_closed_total",
       .help = "Connections of the admin pages that we closed on their clients, by reason.",
       .labels = {"reason"}});
  using Count = std::atomic<uint64_t> net::HttpServerStats::*;
  const std::pair<const char*, Count> reasons[] = {{"displaced", &net::HttpServerStats::displaced},
                                                   {"no room", &net::HttpServerStats::refused},
                                                   {"time", &net::HttpServerStats::timed_out},
                                                   {"unread answers", &net::HttpServerStats::unread},
                                                   {"tls", &net::HttpServerStats::tls_failed},
                                                   {"no descriptor", &net::HttpServerStats::accept_failed}};
  std::vector<std::pair<base::Counter*, Count>> counters;
  for (const auto& [reason, count] : reasons) counters.emplace_back(&closed.With({reason}), count);
  registry.AddCollector([&open, counters, stats = std::move(stats)] {
    open.Set(static_cast<double>((*stats).connections.load()));
    for (const auto& [counter, count] : counters) counter->Add(((*stats).*count).load() - counter->value());
  });
}

base::Result<std::unique_ptr<AdminServer>> AdminServer::Listen(const Options& options, Content content,
                                                               net::Loop& loop, const base::Log& log) {
  FAIRWAY_CHECK(content.registry != nullptr);
  net::HttpServerOptions http;
  http.host = options.host;
  http.port = options.port;
  http.max_body = 0;
  http.get_only = true;
  http.max_connections = options.max_connections;
  http.max_held = 64u << 20;
  http.request_timeout = options.request_timeout;
  http.answer_timeout = options.answer_timeout;
  http.spare_descriptors = 8;
  std::unique_ptr<net::TlsFiles> certificates;
  if (!options.cert_dir.empty()) {
    net::TlsOptions tls = options.tls;
    tls.alpn = {"http/1.1"};
    auto loaded =
        net::TlsFiles::Load(options.cert_dir + "/tls.crt", options.cert_dir + "/tls.key", std::move(tls));
    if (!loaded) return tl::make_unexpected(loaded.error());
    certificates = std::move(*loaded);
    http.tls = certificates->context();
  }
  auto server = net::HttpServer::Listen(
      std::move(http), loop,
      [content = std::make_shared<const Content>(std::move(content)), hosts = options.hosts](
          const net::HttpRequest& request, const std::shared_ptr<net::HttpResponder>& responder) {
        Serve(request, responder, content, hosts);
      },
      log);
  if (!server) return tl::make_unexpected(server.error());
  std::unique_ptr<AdminServer> admin(new AdminServer(std::move(*server), std::move(certificates)));
  if (admin->certificates_ != nullptr) {
    admin->certificates_->Follow(
        loop, log, [server = admin->server_.get()](const net::TlsContext& tls) { server->SetTls(tls); });
  }
  return admin;
}

}  // namespace fairway::admin
