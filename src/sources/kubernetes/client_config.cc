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

// One kubeconfig, read.
struct File {
  std::string path;
  api::ParsedText text;
  const Value* root = nullptr;  // in `text`; null: an empty file, which says nothing

  std::filesystem::path folder() const { return std::filesystem::path(path).parent_path(); }
};
using Files = std::vector<File>;

// An entry of a file's list, by its name.
struct Entry {
  const File* file = nullptr;   // null: no file has it
  const Value* body = nullptr;  // null: it says nothing
};

// The first of the files that has it counts.
Entry Named(const Files& files, std::string_view list, const std::string& name, std::string_view key) {
  for (const File& file : files) {
    const Value* entries = file.root == nullptr ? nullptr : file.root->Find(list);
    if (entries == nullptr || entries->kind != Value::Kind::kList) continue;
    for (const api::ValuePtr& entry : entries->items) {
      if (Text(entry.get(), "name") == name) return {&file, entry->Find(key)};
    }
  }
  return {};
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

constexpr const char* kNoKubeConfig = "is no kubeconfig: want a map with clusters, users and contexts";

base::Result<File> ReadFile(const std::string& path) {
  auto text = ReadSmallFile(path);
  if (!text) return tl::make_unexpected(text.error());
  File file{.path = path, .text = api::ParseText(*text, path)};
  if (!file.text.problems.empty()) {
    return Bad(path + ":" + std::to_string(file.text.problems[0].line), file.text.problems[0].message);
  }
  if (file.text.documents.empty() || file.text.documents[0]->kind == Value::Kind::kNull) return file;
  if (file.text.documents[0]->kind != Value::Kind::kMap) return Bad(path, kNoKubeConfig);
  file.root = file.text.documents[0].get();
  return file;
}

// Where the API server is, as `cluster` says.
base::Result<void> ReadCluster(const Entry& cluster, const std::string& where, ClientConfig& config) {
  if (auto read = ReadServer(Text(cluster.body, "server"), where, config); !read) return read;
  if (!Text(cluster.body, "proxy-url").empty()) return Bad(where, "proxy-url is not supported");
  config.server_name = Text(cluster.body, "tls-server-name");
  config.insecure = Text(cluster.body, "insecure-skip-tls-verify") == "true";
  return ReadPem(cluster.body, "certificate-authority", where, cluster.file->folder(), config.ca_pem,
                 config.ca_file);
}

// What the context `wanted` ("": the current one) of the files makes. `names` is what they are called
// together.
base::Result<ClientConfig> Choose(const Files& files, const std::string& names, const std::string& wanted) {
  std::string name = wanted;
  for (const File& file : files) {
    if (name.empty()) name = Text(file.root, "current-context");
  }
  if (name.empty()) return Bad(names, "has no current-context");
  const Entry context = Named(files, "contexts", name, "context");
  if (context.file == nullptr) return Bad(names, "has no context \"" + name + "\"");
  const std::string cluster_name = Text(context.body, "cluster");
  const Entry cluster = Named(files, "clusters", cluster_name, "cluster");
  if (cluster.file == nullptr)
    return Bad(names, "has no cluster \"" + cluster_name + "\" (context \"" + name + "\")");
  const std::string user_name = Text(context.body, "user");
  const Entry user = Named(files, "users", user_name, "user");
  if (user.file == nullptr && !user_name.empty())
    return Bad(names, "has no user \"" + user_name + "\" (context \"" + name + "\")");

  ClientConfig config;
  config.source = names;
  config.namespace_name = Text(context.body, "namespace");
  const std::string where = cluster.file->path + ": cluster \"" + cluster_name + "\"";
  if (auto read = ReadCluster(cluster, where, config); !read) return tl::make_unexpected(read.error());
  if (user.file == nullptr) return config;
  auto read =
      ReadUser(user.body, user.file->path + ": user \"" + user_name + "\"", user.file->folder(), config);
  if (!read) return tl::make_unexpected(read.error());
  return config;
}

}  // namespace

base::Result<ClientConfig> ReadKubeConfig(const std::string& path, const std::string& context) {
  auto file = ReadFile(path);
  if (!file) return tl::make_unexpected(file.error());
  if (file->root == nullptr) return Bad(path, kNoKubeConfig);
  Files files;
  files.push_back(std::move(*file));
  return Choose(files, path, context);
}

base::Result<ClientConfig> ReadKubeConfigs(const std::vector<std::string>& paths,
                                           const std::string& context) {
  Files files;
  std::string names;
  for (const std::string& path : paths) {
    names.append(names.empty() ? "" : ":").append(path);
    if (::access(path.c_str(), F_OK) != 0) continue;
    auto file = ReadFile(path);
    if (!file) return tl::make_unexpected(file.error());
    files.push_back(std::move(*file));
  }
  if (files.empty()) return Bad(names, "there is no such file");
  return Choose(files, names, context);
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
  const std::string value = environment("KUBECONFIG");
  std::vector<std::string> listed;
  for (const std::string_view path : base::Split(value, ':')) {
    if (!path.empty()) listed.emplace_back(path);
  }
  if (!listed.empty()) {
    auto read = ReadKubeConfigs(listed);
    if (!read) return base::Fail(read.error().code, "$KUBECONFIG: " + read.error().message);
    return read;
  }
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
