#include "sources/kubernetes/client_config.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string_view>

#include "api/value.h"
#include "base/strings.h"
#include "net/address.h"
#include "net/small_file.h"

namespace fairway::sources::kubernetes {
namespace {

using api::Value;
using base::ErrorCode;
using net::ReadSmallFile;

tl::unexpected<base::Error> Bad(const std::string& where, const std::string& why) {
  return base::Fail(ErrorCode::kInvalidArgument, where + ": " + why);
}

std::string Text(const Value* map, std::string_view key) {
  const Value* value = map == nullptr ? nullptr : map->Find(key);
  return value == nullptr || value->kind == Value::Kind::kNull ? "" : value->text;
}

// The body `key` of the entry called `name` in the list `list`; null when there is none.
const Value* Named(const Value& root, std::string_view list, const std::string& name, std::string_view key) {
  const Value* entries = root.Find(list);
  if (entries == nullptr || entries->kind != Value::Kind::kList) return nullptr;
  for (const api::ValuePtr& entry : entries->items) {
    if (Text(entry.get(), "name") == name) return entry->Find(key);
  }
  return nullptr;
}

std::optional<std::string> DecodeBase64(std::string_view text) {
  static constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=' || c == '\n' || c == '\r' || c == ' ') continue;
    const size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(digit);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out += static_cast<char>(bits >> count & 0xff);
    }
  }
  return out;
}

// "https://host:6443/prefix"
base::Result<void> ReadServer(const std::string& url, const std::string& where, ClientConfig& config) {
  std::string_view rest = url;
  if (rest.starts_with("https://")) {
    rest.remove_prefix(8);
  } else if (rest.starts_with("http://")) {
    rest.remove_prefix(7);
    config.tls = false;
    config.port = 80;
  } else {
    return Bad(where, "server: want https://HOST:PORT, got \"" + url + "\"");
  }
  const size_t slash = rest.find('/');
  if (slash != std::string_view::npos) config.path_prefix = rest.substr(slash);
  while (config.path_prefix.ends_with('/')) config.path_prefix.pop_back();
  std::string authority(rest.substr(0, slash));
  const bool has_port =
      authority.find(':', authority.rfind(']') == std::string::npos ? 0 : authority.rfind(']')) !=
      std::string::npos;
  if (!has_port) authority += ":" + std::to_string(config.port);
  const auto address = net::ParseHostPort(authority);
  if (!address) return Bad(where, "server: " + address.error().message);
  config.host = address->host;
  config.port = address->port;
  return {};
}

// The field `name` as a file beside the kubeconfig, or `name`-data in base64.
base::Result<void> ReadPem(const Value* map, const std::string& name, const std::string& where,
                           const std::filesystem::path& folder, std::string& pem, std::string& file) {
  if (const std::string data = Text(map, name + "-data"); !data.empty()) {
    const auto decoded = DecodeBase64(data);
    if (!decoded) return Bad(where, name + "-data is no base64");
    pem = *decoded;
  } else if (const std::string path = Text(map, name); !path.empty()) {
    file = (folder / path).string();
    // Said now rather than with the first connection.
    if (auto read = ReadSmallFile(file); !read) return Bad(where, name + ": " + read.error().message);
  }
  return {};
}

base::Result<void> ReadUser(const Value* user, const std::string& where, const std::filesystem::path& folder,
                            ClientConfig& config) {
  if (user == nullptr) return {};
  const auto has = [&](std::string_view key) {
    const Value* value = user->Find(key);
    return value != nullptr && value->kind != Value::Kind::kNull;
  };
  if (has("exec")) {
    return Bad(where,
               "exec credential plugins are not run; give a token, a tokenFile or a client certificate, or "
               "run in the cluster with a service account");
  }
  if (has("auth-provider"))
    return Bad(where, "auth-provider is not supported; give a token or a client certificate");
  if (has("username"))
    return Bad(where, "basic authentication is no longer a part of Kubernetes; give a token");
  if (auto read = ReadPem(user, "client-certificate", where, folder, config.cert_pem, config.cert_file);
      !read)
    return read;
  if (auto read = ReadPem(user, "client-key", where, folder, config.key_pem, config.key_file); !read)
    return read;
  config.token = Text(user, "token");
  if (const std::string file = Text(user, "tokenFile"); !file.empty()) {
    config.token_file = (folder / file).string();
    if (auto read = ReadSmallFile(config.token_file); !read) return Bad(where, read.error().message);
  }
  return {};
}

}  // namespace

base::Result<ClientConfig> ReadKubeConfig(const std::string& path, const std::string& context) {
  auto text = ReadSmallFile(path);
  if (!text) return tl::make_unexpected(text.error());
  const api::ParsedText parsed = api::ParseText(*text, path);
  if (!parsed.problems.empty()) {
    return Bad(path + ":" + std::to_string(parsed.problems[0].line), parsed.problems[0].message);
  }
  if (parsed.documents.empty() || parsed.documents[0]->kind != Value::Kind::kMap) {
    return Bad(path, "is no kubeconfig: want a map with clusters, users and contexts");
  }
  const Value& root = *parsed.documents[0];
  const std::string name = context.empty() ? Text(&root, "current-context") : context;
  if (name.empty()) return Bad(path, "has no current-context");
  const Value* chosen = Named(root, "contexts", name, "context");
  if (chosen == nullptr) return Bad(path, "has no context \"" + name + "\"");
  const std::string cluster_name = Text(chosen, "cluster");
  const Value* cluster = Named(root, "clusters", cluster_name, "cluster");
  if (cluster == nullptr)
    return Bad(path, "has no cluster \"" + cluster_name + "\" (context \"" + name + "\")");
  const std::string user_name = Text(chosen, "user");
  const Value* user = Named(root, "users", user_name, "user");
  if (user == nullptr && !user_name.empty())
    return Bad(path, "has no user \"" + user_name + "\" (context \"" + name + "\")");

  ClientConfig config;
  config.source = path;
  config.namespace_name = Text(chosen, "namespace");
  const std::string where = path + ": cluster \"" + cluster_name + "\"";
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (auto read = ReadServer(Text(cluster, "server"), where, config); !read)
    return tl::make_unexpected(read.error());
  if (!Text(cluster, "proxy-url").empty()) return Bad(where, "proxy-url is not supported");
  config.server_name = Text(cluster, "tls-server-name");
  config.insecure = Text(cluster, "insecure-skip-tls-verify") == "true";
  if (auto read = ReadPem(cluster, "certificate-authority", where, folder, config.ca_pem, config.ca_file);
      !read)
    return tl::make_unexpected(read.error());
  if (auto read = ReadUser(user, path + ": user \"" + user_name + "\"", folder, config); !read)
    return tl::make_unexpected(read.error());
  return config;
}

base::Result<ClientConfig> InClusterConfig(const std::string& host, const std::string& port,
                                           const std::string& folder) {
  ClientConfig config;
  config.source = "in-cluster";
  config.host = host;
  const auto number = base::ParseInteger<uint16_t>(port);
  if (host.empty() || !number || *number == 0) {
    return Bad("in-cluster",
               "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT do not name the API server");
  }
  config.port = *number;
  config.token_file = folder + "/token";
  config.ca_file = folder + "/ca.crt";
  for (const std::string& file : {config.token_file, config.ca_file}) {
    if (auto read = ReadSmallFile(file); !read) return Bad("in-cluster", read.error().message);
  }
  if (auto read = ReadSmallFile(folder + "/namespace")) config.namespace_name = base::Trim(*read);
  return config;
}

base::Result<ClientConfig> FindClientConfig(const std::string& flag) {
  const auto environment = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  if (!flag.empty()) return ReadKubeConfig(flag);
  // kubectl merges the files of a list; here the first that exists is read.
  const std::string listed = environment("KUBECONFIG");
  for (const std::string_view path : base::Split(listed, ':')) {
    if (!path.empty() && ::access(std::string(path).c_str(), F_OK) == 0)
      return ReadKubeConfig(std::string(path));
  }
  if (!listed.empty()) return Bad("$KUBECONFIG", "there is no file " + listed);
  const std::string host = environment("KUBERNETES_SERVICE_HOST");
  if (!host.empty()) return InClusterConfig(host, environment("KUBERNETES_SERVICE_PORT"));
  const std::string home = environment("HOME") + "/.kube/config";
  if (::access(home.c_str(), F_OK) == 0) return ReadKubeConfig(home);
  return base::Fail(ErrorCode::kInvalidArgument,
                    "no way to the Kubernetes API: there is no --kubeconfig, no $KUBECONFIG, no "
                    "$KUBERNETES_SERVICE_HOST (which every Pod has) and no " +
                        home);
}

}  // namespace fairway::sources::kubernetes
