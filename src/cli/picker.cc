#include "cli/picker.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <future>
#include <random>
#include <thread>
#include <utility>

#include "api/manifests.h"
#include "base/strings.h"
#include "fleet/fleet.h"
#include "frontends/admin/admin.h"
#include "frontends/ext_proc/metrics.h"
#include "net/address.h"
#include "sources/files/file_source.h"

namespace fairway::cli {
namespace {

using base::ErrorCode;
using base::Fail;

// What /debug/fleet shows.
std::string FleetJson(const fleet::Snapshot& snapshot, base::Nanos now) {
  std::string out = "{\"version\":" + std::to_string(snapshot.version) + ",\"pools\":[";
  for (const auto& [key, pool] : snapshot.pools) {
    if (out.back() != '[') out += ',';
    out += "{\"name\":" + base::JsonString(key) + ",\"models\":[";
    for (const auto& [name, model] : pool->models) {
      if (out.back() != '[') out += ',';
      base::AppendJsonString(out, name);
    }
    out += "],\"endpoints\":[";
    for (const auto& endpoint : pool->endpoints) {
      const fleet::EndpointCell& cell = *endpoint.cell;
      if (out.back() != '[') out += ',';
      out +=
          "{\"name\":" + base::JsonString(endpoint.name) +
          ",\"address\":" + base::JsonString(endpoint.address) +
          ",\"waiting\":" + std::to_string(cell.waiting()) +
          ",\"running\":" + std::to_string(cell.running()) +
          ",\"kvUsage\":" + std::to_string(cell.kv_usage()) +
          ",\"pending\":" + std::to_string(cell.pending()) +
          ",\"inflight\":" + std::to_string(cell.inflight()) + ",\"scrapeAgeMs\":" +
          (cell.scraped_at() == 0 ? "null" : std::to_string((now - cell.scraped_at()) / base::kMillisecond)) +
          ",\"adapters\":[";
      for (const auto& [name, id] : pool->adapters) {
        if (!cell.adapter_running(id)) continue;
        if (out.back() != '[') out += ',';
        base::AppendJsonString(out, name);
      }
      out += "]}";
    }
    out += "]}";
  }
  return out + "]}\n";
}

// Runs `task` on the loop and waits for it.
void RunOn(net::Loop& loop, const std::function<void()>& task) {
  std::promise<void> done;
  loop.Post([&] {
    task();
    done.set_value();
  });
  done.get_future().wait();
}

std::vector<std::string> HostNames(const api::Manifests& manifests) {
  std::vector<std::string> names;
  for (const auto& endpoint : manifests.endpoints) {
    if (!net::IsIpLiteral(endpoint.address)) names.push_back(endpoint.address);
  }
  return names;
}

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

// Members are destroyed from the last to the first: first who calls, then who is called, loops' threads
// having been joined before.
struct Picker::Impl {
  Impl(PickerOptions o, const base::Log& l, ManifestsChanged c)
      : options(std::move(o)), log(l), changed(std::move(c)) {}

  // On the control loop, with manifests that are good.
  void Apply() {
    fleet.Apply(manifests, resolver->addresses());
    if (changed) changed(manifests, resolver->addresses());
  }

  // On the control loop: a file changed.
  void OnFiles(const api::LoadResult& loaded) {
    for (const auto& problem : loaded.problems) {
      if (problem.severity == api::Severity::kError) {
        log.Error(api::ToString(problem));
      } else {
        log.Warn(api::ToString(problem));
      }
    }
    if (!loaded.ok()) {
      reload_failures->Add();
      log.Error("the changed manifests have errors: what was served before is served on");
      return;
    }
    reloads->Add();
    manifests = loaded.manifests;
    resolver->Watch(HostNames(manifests));
    Apply();
    log.Info("manifests changed", {{"pools", std::to_string(manifests.pools.size())},
                                   {"models", std::to_string(manifests.models.size())},
                                   {"routes", std::to_string(manifests.routes.size())},
                                   {"endpoints", std::to_string(manifests.endpoints.size())}});
  }

  PickerOptions options;
  const base::Log& log;
  ManifestsChanged changed;
  base::SystemClock clock;
  base::Registry registry;
  base::Counter* reloads = nullptr;
  base::Counter* reload_failures = nullptr;
  fleet::Fleet fleet;
  api::Manifests manifests;  // the last good ones; the control loop's
  std::unique_ptr<routing::Router> router;
  std::unique_ptr<net::LoopThread> control;
  std::vector<std::unique_ptr<net::LoopThread>> workers;
  std::unique_ptr<sources::NameResolver> resolver;
  std::unique_ptr<sources::FileSource> files;
  std::unique_ptr<sources::scrape::Scraper> scraper;
  std::unique_ptr<ext_proc::ExtProcServer> server;
  std::unique_ptr<admin::AdminServer> admin;
};

base::Result<std::unique_ptr<Picker>> Picker::Start(PickerOptions options, const base::Log& log,
                                                    ManifestsChanged changed) {
  if (auto checked = scheduling::CheckOptions(options.router.scheduling); !checked)
    return tl::make_unexpected(checked.error());
  auto impl = std::make_unique<Impl>(std::move(options), log, std::move(changed));
  const PickerOptions& o = impl->options;

  uint64_t known = 0;
  if (o.files.empty()) {
    impl->manifests = o.manifests;
  } else {
    const api::LoadResult loaded = api::LoadManifests(o.files);
    if (!PrintProblems(loaded.problems))
      return Fail(ErrorCode::kInvalidArgument, "the manifests have errors");
    impl->manifests = loaded.manifests;
    known = loaded.fingerprint;
  }
  if (impl->manifests.pools.empty())
    return Fail(ErrorCode::kInvalidArgument, "the manifests have no InferencePool");

  if (const std::string& wanted = o.ext_proc.service.default_pool; !wanted.empty()) {
    // Named but not there is a mistake at the start; later it is a pool that went away.
    std::vector<std::string> names;
    names.reserve(impl->manifests.pools.size());
    for (const auto& pool : impl->manifests.pools) names.push_back(api::Key(pool.meta));
    if (std::find(names.begin(), names.end(), wanted) == names.end()) {
      const auto near = base::Nearest(wanted, names);
      return Fail(ErrorCode::kInvalidArgument, "--pool-name: the manifests have no InferencePool " + wanted +
                                                   (near ? "; did you mean " + *near + "?" : ""));
    }
  }

  auto& reloads = impl->registry.AddCounter({.name = "fairway_config_reloads_total",
                                             .help = "Changes of the manifests, by outcome.",
                                             .labels = {"outcome"}});
  impl->reloads = &reloads.With({"applied"});
  impl->reload_failures = &reloads.With({"refused"});
  ext_proc::AddInfoMetric(impl->registry, "", FAIRWAY_VERSION);
  impl->router =
      std::make_unique<routing::Router>(impl->fleet.published(), impl->clock, impl->registry, o.router);
  impl->control = std::make_unique<net::LoopThread>("control");
  net::Loop& control = impl->control->loop();

  // From here on the destructor of Impl's owner must run on failure: it takes things down on their loops.
  std::unique_ptr<Picker> picker(new Picker(std::move(impl)));
  Impl& self = *picker->impl_;
  base::Result<void> outcome;
  RunOn(control, [&] {
    self.resolver = std::make_unique<sources::NameResolver>(
        control, log, [&self](const sources::NameResolver::Addresses&) { self.Apply(); });
    self.resolver->Watch(HostNames(self.manifests));
    self.Apply();
    auto scraper =
        sources::scrape::Scraper::Create(o.scrape, control, self.fleet, self.clock, log, self.registry);
    if (!scraper) {
      outcome = tl::make_unexpected(scraper.error());
      return;
    }
    self.scraper = std::move(*scraper);
    if (!o.files.empty()) {
      self.files = std::make_unique<sources::FileSource>(
          control, o.files, [&self](const api::LoadResult& loaded) { self.OnFiles(loaded); },
          50 * base::kMillisecond, known);
    }
    auto admin = admin::AdminServer::Listen(
        {.host = o.admin_host, .port = o.admin_port},
        {.registry = &self.registry,
         .ready = [&self] { return self.router->ready(); },
         .fleet = [&self] { return FleetJson(*self.fleet.published().Load(), self.clock.Now()); }},
        control, log);
    if (!admin) {
      outcome = tl::make_unexpected(admin.error());
      return;
    }
    self.admin = std::move(*admin);
  });
  if (!outcome) return tl::make_unexpected(outcome.error());

  if (o.serve_ext_proc) {
    const size_t count = o.workers != 0 ? o.workers : std::max(1u, std::thread::hardware_concurrency());
    std::vector<net::Loop*> loops;
    for (size_t i = 0; i < count; ++i) {
      self.workers.push_back(std::make_unique<net::LoopThread>(("worker-" + std::to_string(i)).c_str()));
      loops.push_back(&self.workers.back()->loop());
    }
    ext_proc::ServerOptions server_options = o.ext_proc;
    if (server_options.service.seed == 0) {
      server_options.service.seed =
          o.seed != 0 ? o.seed : (uint64_t{std::random_device{}()} << 32 | std::random_device{}());
    }
    auto server = ext_proc::ExtProcServer::Start(std::move(server_options), *self.router, self.clock,
                                                 self.registry, log, loops);
    if (!server) return tl::make_unexpected(server.error());
    self.server = std::move(*server);
  }
  return picker;
}

Picker::Picker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Picker::~Picker() {
  for (auto& worker : impl_->workers) worker->Join();
  impl_->server.reset();
  RunOn(impl_->control->loop(), [this] {
    impl_->admin.reset();
    impl_->files.reset();
    impl_->scraper.reset();
    impl_->resolver.reset();
  });
  impl_->control->Join();
}

void Picker::Drain(base::Nanos grace) {
  if (impl_->server == nullptr) return;
  std::promise<void> done;
  // Half of the grace to serve on while health says no and gateways hear of it, half for open exchanges to
  // end. With nobody connected there is nobody to tell.
  const bool connected = impl_->server->stats().connections.load() > 0;
  impl_->server->Drain(connected ? grace / 2 : 0, grace - grace / 2, [&done] { done.set_value(); });
  done.get_future().wait();
}

net::Loop& Picker::control_loop() { return impl_->control->loop(); }
uint16_t Picker::grpc_port() const { return impl_->server != nullptr ? impl_->server->grpc_port() : 0; }
uint16_t Picker::health_port() const { return impl_->server != nullptr ? impl_->server->health_port() : 0; }
uint16_t Picker::admin_port() const { return impl_->admin->port(); }

}  // namespace fairway::cli
