#include "frontends/local/local_gateway.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <utility>

namespace fairway::local {
namespace {

base::Result<std::string> MakePrivateFolder() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  const bool usable = runtime != nullptr && *runtime == '/' && access(runtime, W_OK | X_OK) == 0;
  std::string path = std::string(usable ? runtime : "/tmp") + "/fairway-XXXXXX";
  if (mkdtemp(path.data()) == nullptr) {
    return base::Fail(base::ErrorCode::kIo, "cannot make " + path + ": " + std::strerror(errno));
  }
  return path;
}

// Envoy looks at a file when another is renamed onto it, and so never reads half of one.
base::Result<void> WriteFile(const std::string& path, const std::string& text) {
  const std::string fresh = path + ".new";
  std::ofstream file(fresh, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file || rename(fresh.c_str(), path.c_str()) != 0) {
    return base::Fail(base::ErrorCode::kIo, "cannot write " + path + ": " + std::strerror(errno));
  }
  return {};
}

std::string At(const net::HostPort& at) { return net::FormatHostPort(at.host, at.port); }

// Binds and lets go. Envoy shares its ports (SO_REUSEPORT), so that it would not notice another gateway on
// the same one. Returns the port, for port 0 a free one.
base::Result<uint16_t> CheckListen(const net::HostPort& at) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_PASSIVE;
  addrinfo* found = nullptr;
  if (getaddrinfo(at.host.c_str(), std::to_string(at.port).c_str(), &hints, &found) != 0) {
    return base::Fail(
        base::ErrorCode::kInvalidArgument,
        "cannot listen on " + At(at) + ": not an IP address, such as 127.0.0.1:8080 or [::1]:8080");
  }
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);  // connections of a gateway that just ended
  // Listening, because two sockets with SO_REUSEADDR may be bound to one port as long as neither does.
  const bool ok = fd >= 0 && bind(fd, found->ai_addr, found->ai_addrlen) == 0 && listen(fd, 1) == 0;
  const int error = errno;
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  if (ok) getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length);
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  if (ok) {
    char port[16] = "";
    getnameinfo(reinterpret_cast<sockaddr*>(&bound), length, nullptr, 0, port, sizeof port, NI_NUMERICSERV);
    return static_cast<uint16_t>(std::strtoul(port, nullptr, 10));
  }
  std::string hint;
  if (error == EACCES)
    hint = "; ports below 1024 need root: choose another with --listen, such as --listen 127.0.0.1:8080";
  if (error == EADDRINUSE) hint = "; something else listens there: choose another with --listen";
  return base::Fail(base::ErrorCode::kIo, "cannot listen on " + At(at) + ": " + std::strerror(error) + hint);
}

}  // namespace

base::Result<uint16_t> FreePort(const std::string& host) { return CheckListen({host, 0}); }

struct LocalGateway::Impl {
  Impl(LocalGatewayOptions options, const base::Log& log) : options(std::move(options)), log(log) {}
  ~Impl() {
    process.reset();
    std::error_code ignored;
    if (!options.envoy.directory.empty()) std::filesystem::remove_all(options.envoy.directory, ignored);
  }

  base::Result<void> Write(const EnvoyConfig& config) {
    for (const EnvoyFile& file : config.files) {
      auto& written = files[file.name];
      if (written == file.text) continue;
      if (auto result = WriteFile(options.envoy.directory + "/" + file.name, file.text); !result)
        return result;
      written = file.text;
    }
    return {};
  }

  // Files that neither this configuration nor the one before it names; Envoy may still be reading the
  // latter's.
  void RemoveStale(const EnvoyConfig& config) {
    std::set<std::string> named;
    for (const EnvoyFile& file : config.files) named.insert(file.name);
    std::erase_if(files, [&](const auto& file) {
      if (named.contains(file.first) || last_named.contains(file.first)) return false;
      unlink((options.envoy.directory + "/" + file.first).c_str());
      return true;
    });
    last_named = std::move(named);
  }

  void Warn(const EnvoyConfig& config) {
    for (const std::string& warning : config.warnings) {
      if (std::find(warned.begin(), warned.end(), warning) == warned.end()) log.Warn(warning);
    }
    warned = config.warnings;
  }

  LocalGatewayOptions options;
  const base::Log& log;
  std::map<std::string, std::string> files;  // as written
  std::set<std::string> last_named;
  std::vector<std::string> warned;
  std::vector<net::HostPort> listeners;
  std::unique_ptr<EnvoyProcess> process;
};

LocalGateway::LocalGateway(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LocalGateway::~LocalGateway() = default;

base::Result<std::unique_ptr<LocalGateway>> LocalGateway::Create(net::Loop& loop, LocalGatewayOptions options,
                                                                 const api::Manifests& manifests,
                                                                 const PoolEndpoints& endpoints,
                                                                 EnvoyProcessEvents events,
                                                                 const base::Log& log) {
  if (options.envoy.listen && options.envoy.listen->port == 0) {
    const auto port = CheckListen(*options.envoy.listen);
    if (!port) return tl::make_unexpected(port.error());
    options.envoy.listen->port = *port;
  }
  auto folder = MakePrivateFolder();
  if (!folder) return tl::make_unexpected(folder.error());
  options.envoy.directory = *folder;
  auto impl = std::make_unique<Impl>(std::move(options), log);  // removes the folder from here on
  auto config = MakeEnvoyConfig(manifests, endpoints, impl->options.envoy);
  if (!config) return tl::make_unexpected(config.error());
  for (const net::HostPort& at : config->listeners) {
    if (const auto port = CheckListen(at); !port) return tl::make_unexpected(port.error());
  }
  if (auto written = impl->Write(*config); !written) return tl::make_unexpected(written.error());
  impl->RemoveStale(*config);
  impl->Warn(*config);
  impl->listeners = config->listeners;
  impl->process =
      std::make_unique<EnvoyProcess>(loop,
                                     EnvoyProcessOptions{.binary = impl->options.binary,
                                                         .directory = impl->options.envoy.directory,
                                                         .listeners = config->listeners.size(),
                                                         .concurrency = impl->options.concurrency},
                                     std::move(events), log);
  return std::unique_ptr<LocalGateway>(new LocalGateway(std::move(impl)));
}

void LocalGateway::Start() { impl_->process->Start(); }

base::Result<void> LocalGateway::Update(const api::Manifests& manifests, const PoolEndpoints& endpoints) {
  auto config = MakeEnvoyConfig(manifests, endpoints, impl_->options.envoy);
  if (!config) return tl::make_unexpected(config.error());
  // Ports that Envoy holds already are its own.
  for (const net::HostPort& at : config->listeners) {
    const bool held =
        std::any_of(impl_->listeners.begin(), impl_->listeners.end(),
                    [&](const net::HostPort& old) { return old.host == at.host && old.port == at.port; });
    if (held) continue;
    if (const auto port = CheckListen(at); !port) return tl::make_unexpected(port.error());
  }
  if (auto written = impl_->Write(*config); !written) return written;
  impl_->RemoveStale(*config);
  impl_->Warn(*config);
  impl_->listeners = config->listeners;
  impl_->process->ExpectListeners(config->listeners.size());
  return {};
}

void LocalGateway::Stop(std::function<void()> done) { impl_->process->Stop(std::move(done)); }

const std::vector<net::HostPort>& LocalGateway::listeners() const { return impl_->listeners; }
const std::string& LocalGateway::directory() const { return impl_->options.envoy.directory; }
const EnvoyProcess& LocalGateway::process() const { return *impl_->process; }

}  // namespace fairway::local
