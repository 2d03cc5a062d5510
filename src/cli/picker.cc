#include "cli/picker.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <future>
#include <thread>
#include <utility>

#include "api/manifests.h"
#include "frontends/ext_proc/metrics.h"

namespace fairway::cli {
namespace {

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

void BlockStopSignals() {
  const sigset_t set = StopSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

int WaitForStopSignal() {
  const sigset_t set = StopSignals();
  int signal = 0;
  sigwait(&set, &signal);
  return signal;
}

void ExitOnSecondSignal() {
  std::thread([] {
    WaitForStopSignal();
    _exit(0);
  }).detach();
}

bool PrintProblems(const std::vector<api::Problem>& problems) {
  bool good = true;
  for (const auto& problem : problems) {
    std::fprintf(stderr, "%s\n", api::ToString(problem).c_str());
    good &= problem.severity != api::Severity::kError;
  }
  return good;
}

struct Picker::Impl {
  std::unique_ptr<picker::Picker> core;
  std::vector<std::unique_ptr<net::LoopThread>> workers;
  std::unique_ptr<ext_proc::ExtProcServer> server;
};

base::Result<std::unique_ptr<Picker>> Picker::Start(PickerOptions options, const base::Log& log,
                                                    picker::Picker::ManifestsChanged changed) {
  auto impl = std::make_unique<Impl>();
  options.wanted_pool = options.ext_proc.service.default_pool;
  auto core = picker::Picker::Start(
      options, log, [](const std::vector<api::Problem>& problems) { PrintProblems(problems); },
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
  }
  return std::unique_ptr<Picker>(new Picker(std::move(impl)));
}

Picker::Picker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Picker::~Picker() {
  for (auto& worker : impl_->workers) worker->Join();
  impl_->server.reset();
}

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

}  // namespace fairway::cli
