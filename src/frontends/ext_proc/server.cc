#include "frontends/ext_proc/server.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "frontends/ext_proc/health.h"
#include "frontends/ext_proc/metrics.h"
#include "net/address.h"

namespace fairway::ext_proc {

namespace {

// What tells one version of a file from the next. Kubernetes swaps a symbolic link: the inode changes.
struct FileVersion {
  ino_t inode = 0;
  off_t size = 0;
  int64_t modified_ns = 0;
  bool operator==(const FileVersion&) const = default;
};

FileVersion VersionOf(const std::string& path) {
  struct stat info{};
  if (stat(path.c_str(), &info) != 0) return {};
  return {info.st_ino, info.st_size, int64_t{info.st_mtim.tv_sec} * base::kSecond + info.st_mtim.tv_nsec};
}

class Server final : public ExtProcServer {
 public:
  Server(ServerOptions options, const routing::Router& router, const base::Clock& clock,
         base::Registry& registry, const base::Log& log, std::vector<net::Loop*> loops)
      : options_(std::move(options)),
        loops_(std::move(loops)),
        log_(log),
        registry_(registry),
        health_(router, options_.leading),
        any_names_(health_, HealthNames::kAny, loops_),
        ext_proc_names_(health_, HealthNames::kExtProcOnly, loops_),
        service_(options_.service, router, clock, registry, log, loops_) {
    options_.tls.alpn = {"h2"};
    cert_file_ = options_.cert_path + "/tls.crt";
    key_file_ = options_.cert_path + "/tls.key";
  }

  // What was posted to a loop that was stopped before it ran must find nothing.
  ~Server() override { alive_->store(false); }

  base::Result<void> Listen() {
    net::GrpcServerOptions grpc = options_.transport;
    grpc.host = options_.host;
    grpc.port = options_.grpc_port;
    grpc.tls = nullptr;
    // A body in one message (BUFFERED) is taken in pieces, and bounded by the session. The rest of its
    // message is little.
    if (options_.body_messages_of_any_size) {
      grpc.max_split_message = options_.service.session.max_body + (64u << 10);
    }
    if (options_.secure_serving) {
      cert_version_ = VersionOf(cert_file_);
      key_version_ = VersionOf(key_file_);
      clients_version_ = VersionOf(options_.tls.client_ca_file);
      auto tls = options_.cert_path.empty() ? net::SelfSignedTlsServer(options_.tls)
                                            : net::LoadTlsServer(cert_file_, key_file_, options_.tls);
      if (!tls) return tl::make_unexpected(tls.error());
      grpc.tls = *tls;
    }
    // Of what descriptors there are, half for gateways and an eighth for probes: the rest is for model
    // servers, the API server and the admin port.
    const size_t limit = net::DescriptorLimit();
    const size_t descriptors = std::max<size_t>(limit - std::min<size_t>(limit, grpc.spare_descriptors), 16);
    grpc.max_connections = static_cast<uint32_t>(std::min<size_t>(grpc.max_connections, descriptors / 2));
    auto listening = net::GrpcServer::Listen(
        std::move(grpc), loops_,
        [this](const net::GrpcRequest& request) {
          auto call = service_.NewCall(request);
          if (!call && options_.health_checking) call = ext_proc_names_.NewCall(request);
          return call;
        },
        log_);
    if (!listening) return tl::make_unexpected(listening.error());
    grpc_ = std::move(*listening);
    if (options_.serve_health_port) {
      // Kubernetes' probes speak plain text.
      net::GrpcServerOptions health;
      health.host = options_.host;
      health.port = options_.health_port;
      health.max_streams = 100;
      health.max_unanswered = 100;
      health.max_connections = static_cast<uint32_t>(std::min<size_t>(1000, descriptors / 8));
      health.max_message = 64u << 10;
      health.max_buffered_bytes = 64u << 20;
      health.idle_timeout = 15 * base::kSecond;
      auto health_listening = net::GrpcServer::Listen(
          std::move(health), loops_,
          [this](const net::GrpcRequest& request) { return any_names_.NewCall(request); }, log_);
      if (!health_listening) return tl::make_unexpected(health_listening.error());
      health_server_ = std::move(*health_listening);
    }
    std::vector<std::pair<std::string, std::shared_ptr<const net::GrpcServerStats>>> ports;
    ports.emplace_back("ext_proc", grpc_->shared_stats());
    if (health_server_) ports.emplace_back("health", health_server_->shared_stats());
    AddTransportMetrics(registry_, std::move(ports));
    return {};
  }

  void StartReload() {
    if (!options_.secure_serving || options_.cert_path.empty() || !options_.enable_cert_reload) return;
    OnFirstLoop([](Server& self) {
      self.reload_ = std::make_unique<net::Timer>(*self.loops_.front());
      self.reload_->Every(self.options_.cert_poll, [&self] { self.ReloadIfChanged(); });
    });
  }

  uint16_t grpc_port() const override { return grpc_->port(); }
  uint16_t health_port() const override { return health_server_ ? health_server_->port() : 0; }
  const net::GrpcServerStats& stats() const override { return grpc_->stats(); }

  void SetPorts(std::map<uint16_t, std::string> pools) override {
    OnFirstLoop([pools = std::move(pools)](Server& self) mutable {
      for (const auto& [port, pool] : self.ports_) {
        if (!pools.contains(port)) self.grpc_->RemovePort(port);
      }
      self.service_.SetPorts(self.grpc_->port(), pools);
      self.ports_ = std::move(pools);
      self.OpenPorts();
    });
  }

  void Drain(base::Nanos serve_for, base::Nanos grace, std::function<void()> done) override {
    health_.SetDraining();
    any_names_.Announce();
    ext_proc_names_.Announce();
    OnFirstLoop([serve_for, grace, done = std::move(done)](Server& self) mutable {
      if (std::exchange(self.draining_, true)) return;  // asked twice
      self.drain_ = std::make_unique<net::Timer>(*self.loops_.front());
      self.drain_->After(serve_for, [&self, grace, done = std::move(done)]() mutable {
        self.ShutDown(grace, std::move(done));
      });
    });
  }

 private:
  template <typename Task>
  void OnFirstLoop(Task task) {
    loops_.front()->Post([this, alive = alive_, task = std::move(task)]() mutable {
      if (alive->load()) task(*this);
    });
  }

  // On the first loop.
  void OpenPorts() {
    bool all = true;
    for (const auto& [port, pool] : ports_) {
      const auto opened = grpc_->AddPort(port);
      if (opened) {
        failed_ports_.erase(port);
        continue;
      }
      all = false;
      if (failed_ports_.insert(port).second) {
        log_.Error("a pool's port cannot be listened on, trying again each second",
                   {{"pool", pool}, {"error", opened.error().message}});
      }
    }
    ports_again_.reset();
    if (all || draining_) return;
    ports_again_ = std::make_unique<net::Timer>(*loops_.front());
    ports_again_->After(base::kSecond, [this] { OpenPorts(); });
  }

  void ShutDown(base::Nanos grace, std::function<void()> done) {
    reload_.reset();
    ports_again_.reset();
    // Health answers until the last exchange has ended.
    grpc_->Shutdown(grace, [this, done = std::move(done)]() mutable {
      drain_.reset();
      auto stop_timers = [this, done = std::move(done)]() mutable { service_.StopTimers(std::move(done)); };
      if (!health_server_) return stop_timers();
      health_server_->Shutdown(0, std::move(stop_timers));
    });
  }

  void ReloadIfChanged() {
    const FileVersion cert = VersionOf(cert_file_);
    const FileVersion key = VersionOf(key_file_);
    const FileVersion clients = VersionOf(options_.tls.client_ca_file);
    if (cert == cert_version_ && key == key_version_ && clients == clients_version_) return;
    // The two files may be written one after the other: a pair that does not match is tried again until it
    // does.
    auto tls = net::LoadTlsServer(cert_file_, key_file_, options_.tls);
    if (!tls) {
      if (!reload_failed_)
        log_.Warn("certificate not reloaded, the old one stays", {{"error", tls.error().message}});
      reload_failed_ = true;
      return;
    }
    reload_failed_ = false;
    cert_version_ = cert;
    key_version_ = key;
    clients_version_ = clients;
    grpc_->SetTls(*tls);
    log_.Info("certificate reloaded", {{"file", cert_file_}});
  }

  ServerOptions options_;
  const std::vector<net::Loop*> loops_;
  base::Log log_;
  base::Registry& registry_;
  std::map<uint16_t, std::string> ports_;  // of the pools; the first loop's, as the next two
  std::set<uint16_t> failed_ports_;
  std::unique_ptr<net::Timer> ports_again_;
  HealthState health_;
  HealthService any_names_;
  HealthService ext_proc_names_;
  ExtProcService service_;
  std::string cert_file_;
  std::string key_file_;
  const std::shared_ptr<std::atomic<bool>> alive_ = std::make_shared<std::atomic<bool>>(true);
  // Of the first loop.
  FileVersion cert_version_;
  FileVersion key_version_;
  FileVersion clients_version_;  // of the authorities of gateways
  bool reload_failed_ = false;
  bool draining_ = false;
  std::unique_ptr<net::Timer> reload_;
  std::unique_ptr<net::Timer> drain_;
  // Last: their calls use what is above.
  std::unique_ptr<net::GrpcServer> grpc_;
  std::unique_ptr<net::GrpcServer> health_server_;
};

}  // namespace

base::Result<std::unique_ptr<ExtProcServer>> ExtProcServer::Start(
    ServerOptions options, const routing::Router& router, const base::Clock& clock, base::Registry& registry,
    const base::Log& log, std::vector<net::Loop*> loops) {
  FAIRWAY_CHECK(!loops.empty());
  auto server = std::make_unique<Server>(std::move(options), router, clock, registry, log, std::move(loops));
  if (auto listening = server->Listen(); !listening) return tl::make_unexpected(listening.error());
  server->StartReload();
  return server;
}

}  // namespace fairway::ext_proc
