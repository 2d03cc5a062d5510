#include "cli/picker.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <future>
#include <initializer_list>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "api/manifests.h"
#include "frontends/ext_proc/metrics.h"
#include "net/memory_trim.h"

namespace fairway::cli {
namespace {

sigset_t Signals(std::initializer_list<int> numbers) {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : numbers) sigaddset(&set, number);
  return set;
}

// Who started us may ignore it (nohup): it would be delivered here all the same, since it is blocked.
bool IsIgnored(int number) {
  struct sigaction action{};
  return ::sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

int WaitFor(const sigset_t& set) {
  int signal = 0;
  sigwait(&set, &signal);
  return signal;
}

}  // namespace

void BlockStopSignals() {
  const sigset_t set = Signals({SIGINT, SIGTERM, SIGHUP});
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

int WaitForSignal() {
  return WaitFor(IsIgnored(SIGHUP) ? Signals({SIGINT, SIGTERM}) : Signals({SIGINT, SIGTERM, SIGHUP}));
}

void ExitOnSecondSignal(std::function<void()> last) {
  std::thread([last = std::move(last)] {
    WaitFor(Signals({SIGINT, SIGTERM}));
    if (last) last();
    _exit(0);
  }).detach();
}

void RaiseDescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

bool PrintProblems(const std::vector<api::Problem>& problems,
                   const std::function<void(std::string_view)>& print) {
  bool good = true;
  for (const auto& problem : problems) {
    print(api::ToString(problem) + "\n");
    good &= problem.severity != api::Severity::kError;
  }
  return good;
}

namespace {

// The ports that pools ask for. Of two pools with one port the older gets it.
class PoolPorts {
 public:
  explicit PoolPorts(const base::Log& log) : log_(log) {}

  // On the control loop.
  void Update(const api::Manifests& manifests) {
    std::vector<const api::InferencePool*> pools;
    for (const auto& pool : manifests.pools) {
      if (pool.picker && pool.picker->port) pools.push_back(&pool);
    }
    const auto age = [](const api::InferencePool& pool) {
      return std::make_pair(pool.meta.creation_timestamp, api::Key(pool.meta));
    };
    std::sort(pools.begin(), pools.end(), [&](const auto* a, const auto* b) { return age(*a) < age(*b); });
    std::map<uint16_t, std::string> ports;
    std::set<std::string> refused;
    for (const auto* pool : pools) {
      const auto [at, is_new] = ports.emplace(*pool->picker->port, api::Key(pool->meta));
      if (is_new) continue;
      refused.insert(api::Key(pool->meta));
      if (refused_.contains(api::Key(pool->meta))) continue;
      log_.Error(
          "two pools ask for one port: the older has it",
          {{"port", std::to_string(at->first)}, {"pool", at->second}, {"refused", api::Key(pool->meta)}});
    }
    refused_ = std::move(refused);
    const std::lock_guard lock(mutex_);
    if (ports == ports_) return;
    ports_ = std::move(ports);
    if (server_ != nullptr) server_->SetPorts(ports_);
  }

  // The server that listens from now on, or null.
  void SetServer(ext_proc::ExtProcServer* server) {
    const std::lock_guard lock(mutex_);
    server_ = server;
    if (server_ != nullptr && !ports_.empty()) server_->SetPorts(ports_);
  }

 private:
  const base::Log log_;
  std::set<std::string> refused_;
  std::mutex mutex_;  // the server comes and goes on another thread than pools do
  std::map<uint16_t, std::string> ports_;
  ext_proc::ExtProcServer* server_ = nullptr;
};

}  // namespace

struct Picker::Impl {
  std::shared_ptr<PoolPorts> ports;  // null: pools have no ports of their own
  std::unique_ptr<picker::Picker> core;
  std::vector<std::unique_ptr<net::LoopThread>> workers;
  std::unique_ptr<ext_proc::ExtProcServer> server;
  std::unique_ptr<net::LoopThread> trim_thread;  // one that nobody waits for
  std::unique_ptr<net::MemoryTrimmer> trimmer;
};

base::Result<std::unique_ptr<Picker>> Picker::Start(PickerOptions options, const base::Log& log,
                                                    picker::Picker::ManifestsChanged changed) {
  auto impl = std::make_unique<Impl>();
  options.wanted_pool = options.ext_proc.service.default_pool;
  if (options.listen_for_pools) {
    impl->ports = std::make_shared<PoolPorts>(log);
    changed = [ports = impl->ports, then = std::move(changed)](const auto& manifests, const auto& addresses) {
      ports->Update(manifests);
      if (then) then(manifests, addresses);
    };
  }
  auto core = picker::Picker::Start(
      options, log,
      [&options](const std::vector<api::Problem>& problems) { PrintProblems(problems, options.print); },
      std::move(changed));
  if (!core) return tl::make_unexpected(core.error());
  impl->core = std::move(*core);
  ext_proc::AddInfoMetric(impl->core->registry(), "", FAIRWAY_VERSION);
  if (options.serve_ext_proc) {
    const size_t count =
        options.workers != 0 ? options.workers : std::max(1u, std::thread::hardware_concurrency());
    std::vector<net::Loop*> loops;
    for (size_t i = 0; i < count; ++i) {
      impl->workers.push_back(std::make_unique<net::LoopThread>(("worker-" + std::to_string(i)).c_str()));
      loops.push_back(&impl->workers.back()->loop());
    }
    if (options.ext_proc.service.seed == 0) {
      options.ext_proc.service.seed = options.seed != 0 ? options.seed : picker::SystemSeed();
    }
    auto server = ext_proc::ExtProcServer::Start(std::move(options.ext_proc), impl->core->router(),
                                                 impl->core->clock(), impl->core->registry(), log, loops);
    if (!server) {
      for (auto& worker : impl->workers) worker->Join();
      return tl::make_unexpected(server.error());
    }
    impl->server = std::move(*server);
    impl->trim_thread = std::make_unique<net::LoopThread>("trim");
    impl->trim_thread->loop().Post([impl = impl.get()] {
      net::MemoryTrimmer::Options trim;
      trim.in_use = [&stats = impl->server->stats()] { return stats.buffered_bytes.load(); };
      impl->trimmer = std::make_unique<net::MemoryTrimmer>(impl->trim_thread->loop(), std::move(trim));
    });
    if (impl->ports != nullptr) impl->ports->SetServer(impl->server.get());
  }
  return std::unique_ptr<Picker>(new Picker(std::move(impl)));
}

Picker::Picker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Picker::~Picker() {
  if (impl_->ports != nullptr) impl_->ports->SetServer(nullptr);
  for (auto& worker : impl_->workers) worker->Join();
  if (impl_->trim_thread != nullptr) impl_->trim_thread->Join();
  impl_->trimmer.reset();  // it reads the server's figures
  impl_->server.reset();
}

void Picker::Reload() { impl_->core->Reload(); }

void Picker::Drain(base::Nanos grace) {
  if (impl_->server == nullptr) return;
  std::promise<void> done;
  // Half of the grace to serve on while health says no and gateways hear of it, half for open exchanges to
  // end. With nobody connected there is nobody to tell.
  const bool connected = impl_->server->stats().connections.load() > 0;
  impl_->server->Drain(connected ? grace / 2 : 0, grace - grace / 2, [&done] { done.set_value(); });
  impl_->core->StepDown();
  done.get_future().wait();
}

net::Loop& Picker::control_loop() { return impl_->core->control_loop(); }
uint16_t Picker::grpc_port() const { return impl_->server != nullptr ? impl_->server->grpc_port() : 0; }
uint16_t Picker::health_port() const { return impl_->server != nullptr ? impl_->server->health_port() : 0; }
uint16_t Picker::admin_port() const { return impl_->core->admin_port(); }
uint16_t Picker::peer_port() const { return impl_->core->peer_port(); }

}  // namespace fairway::cli
