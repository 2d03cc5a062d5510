#include "picker/picker.h"

#include <sys/random.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <map>
#include <utility>

#include "base/strings.h"
#include "fleet/fleet.h"
#include "frontends/admin/admin.h"
#include "net/address.h"
#include "picker/fleet_page.h"
#include "picker/kv_events_wiring.h"
#include "picker/peers_wiring.h"
#include "picker/recorder.h"
#include "routing/decision_log.h"
#include "scheduling/plugin.h"
#include "sources/files/file_source.h"
#include "sources/kubernetes/access_review.h"

namespace fairway::picker {
namespace {

using base::ErrorCode;
using base::Fail;

using Review = sources::kubernetes::AccessReview::Verdict;

int StatusOf(Review verdict) {
  switch (verdict) {
    case Review::kAllowed:
      return 200;
    case Review::kUnknown:
      return 401;
    case Review::kForbidden:
      return 403;
    case Review::kUnavailable:
      break;
  }
  return 503;
}

constexpr base::Nanos kAdminAgain = base::kSecond;

// What the config says of engines' pages; null: nothing.
std::shared_ptr<const api::EnginePages> PagesOf(const scheduling::Config& config) {
  return config.page_settings != nullptr ? config.page_settings->pages() : nullptr;
}

std::vector<std::string> HostNames(const api::Manifests& manifests) {
  std::vector<std::string> names;
  for (const auto& endpoint : manifests.endpoints) {
    if (!net::IsIpLiteral(endpoint.address)) names.push_back(endpoint.address);
  }
  return names;
}

}  // namespace

uint64_t SystemSeed() {
  uint64_t seed = 0;
  // Of 8 bytes it gives all or, interrupted before the system has any entropy, none.
  while (getrandom(&seed, sizeof seed, 0) != sizeof seed || seed == 0) {
  }
  return seed;
}

// Members are destroyed from the last to the first: first who calls, then who is called, the loop's thread
// having been joined before.
struct Picker::Impl {
  Impl(Options o, const base::Log& l, ManifestsChanged c)
      : options(std::move(o)), log(l), changed(std::move(c)) {}

  // On the control loop, with manifests that are good.
  void Apply() {
    if (given.empty()) {
      fleet.Apply(manifests, resolver->addresses());
    } else {
      api::Manifests all = manifests;
      for (const auto& [pool, endpoints] : given) {
        all.endpoints.insert(all.endpoints.end(), endpoints.begin(), endpoints.end());
      }
      fleet.Apply(all, resolver->addresses());
    }
    if (changed) changed(manifests, resolver->addresses());
  }

  // What decides from now on, for all pools.
  void SwapConfigs() {
    auto common = config->common();
    if (common == nullptr) common = router->configs()->common;  // the built-in one
    router->Swap(std::make_shared<scheduling::ConfigSet>(
        scheduling::ConfigSet{.common = std::move(common), .of_pools = config->of_pools()}));
    if (scraper != nullptr) scraper->PagesChanged();
  }

  // Of manifests in files: a pool whose config is there and which is not has another name.
  void WarnOfStrangers() const {
    if (options.kubernetes) return;
    for (const auto& [pool, of_pool] : config->of_pools()) {
      const auto is_it = [&key = pool](const api::InferencePool& known) {
        return api::Key(known.meta) == key;
      };
      if (std::none_of(manifests.pools.begin(), manifests.pools.end(), is_it))
        log.Warn("a config of a pool that is not there", {{"pool", pool}});
    }
  }

  // On the control loop: a file changed.
  void OnFiles(const api::LoadResult& loaded) {
    if (options.log_problems) LogProblems(log, loaded.problems);
    if (!loaded.ok()) {
      if (options.log_problems)
        log.Error("the changed manifests have errors: what was served before is served on");
      reload_failures->Add();
      return;
    }
    reloads->Add();
    manifests = loaded.manifests;
    resolver->Watch(HostNames(manifests));
    Apply();
    if (!options.log_problems) return;
    log.Info("manifests changed", {{"pools", std::to_string(manifests.pools.size())},
                                   {"models", std::to_string(manifests.models.size())},
                                   {"routes", std::to_string(manifests.routes.size())},
                                   {"endpoints", std::to_string(manifests.endpoints.size())}});
  }

  // On the admin loop.
  base::Result<void> ListenAdmin() {
    admin::Content content{
        .registry = &registry,
        .ready = [this] { return router->ready(); },
        .fleet =
            [this] {
              return FleetPage(fleet.published().Load(), clock.Now(),
                               [configs = router->configs()](const std::string& pool) {
                                 const auto pages = PagesOf(configs->Of(pool));
                                 return pages != nullptr ? api::AttributesOf(*pages)
                                                         : std::vector<std::string>();
                               });
            },
        .engines = [this] { return kv_events != nullptr ? kv_events->Page() : admin::Content::Pages(); }};
    if (options.admin_auth && options.kubernetes) {
      if (reviews == nullptr) {
        auto made = sources::kubernetes::AccessReview::Create(
            admin_thread->loop(), options.kubernetes->client, clock, log, registry);
        if (!made) return tl::make_unexpected(made.error());
        reviews = std::move(*made);
      }
      content.authorize = [this](const std::string& token, const std::string& path, const std::string& from,
                                 admin::Content::Allowed done) {
        reviews->MayGet(token, path, from,
                        [done = std::move(done)](Review verdict) { done(StatusOf(verdict)); });
      };
    }
    if (decisions != nullptr)
      content.decisions = [this](const std::string& request_id, auto format) {
        using Format = admin::Content::Format;
        return decisions->Pages(clock.Now(), request_id,
                                format == Format::kJson       ? routing::DecisionFormat::kJson
                                : format == Format::kText     ? routing::DecisionFormat::kText
                                : format == Format::kPrefixes ? routing::DecisionFormat::kPrefixes
                                                              : routing::DecisionFormat::kHtml);
      };
    auto listening = admin::AdminServer::Listen({.host = options.admin_host,
                                                 .port = options.admin_port,
                                                 .hosts = options.admin_hosts,
                                                 .cert_dir = options.admin_cert_dir,
                                                 .tls = options.admin_tls},
                                                std::move(content), admin_thread->loop(), log);
    if (!listening) return tl::make_unexpected(listening.error());
    admin = std::move(*listening);
    admin::AddMetrics(registry, admin->stats());
    admin_port.store(admin->port(), std::memory_order_relaxed);
    return {};
  }

  base::Result<void> StartAdmin() {
    admin_thread = std::make_unique<net::LoopThread>("admin");
    base::Result<void> outcome;
    RunOn(admin_thread->loop(), [&] {
      if (options.admin == Options::Admin::kRequired) outcome = ListenAdmin();
      if (options.admin == Options::Admin::kRetried) RetryAdmin();
    });
    return outcome;
  }

  void StopAdmin() {
    if (admin_thread == nullptr) return;
    RunOn(admin_thread->loop(), [this] {
      admin_again.reset();
      admin.reset();
      reviews.reset();
    });
    admin_thread->Join();
  }

  void RetryAdmin() {
    const auto listening = ListenAdmin();
    if (listening) return;
    if (admin_failures++ == 0) {
      log.Warn("no admin pages yet, trying again each second", {{"error", listening.error().message}});
    }
    admin_again = std::make_unique<net::Timer>(admin_thread->loop());
    admin_again->After(kAdminAgain, [this] { RetryAdmin(); });
  }

  Options options;
  const base::Log log;
  ManifestsChanged changed;
  base::SystemClock clock;
  base::Registry registry;
  base::Counter* reloads = nullptr;
  base::Counter* reload_failures = nullptr;
  fleet::Fleet fleet;
  api::Manifests manifests;                                 // the last good ones; the control loop's
  std::map<std::string, std::vector<api::Endpoint>> given;  // of SetEndpoints, by pool; the control loop's
  uint64_t admin_failures = 0;
  std::atomic<uint16_t> admin_port{0};
  std::unique_ptr<routing::DecisionLog> decisions;  // null: not kept
  std::unique_ptr<ConfigSource> config;             // null: the built-in profiles
  std::unique_ptr<DecisionRecorder> recorder;       // null: not written
  std::unique_ptr<routing::Router> router;
  std::unique_ptr<net::LoopThread> control;
  std::unique_ptr<sources::NameResolver> resolver;
  std::unique_ptr<sources::FileSource> files;
  std::unique_ptr<sources::kubernetes::KubernetesSource> kubernetes;
  std::unique_ptr<sources::scrape::Scraper> scraper;
  std::unique_ptr<KvEventsWiring> kv_events;
  std::unique_ptr<PeersWiring> peers;
  // Pages may be large and their readers many: what they cost must not make scraping late.
  std::unique_ptr<net::LoopThread> admin_thread;
  std::unique_ptr<sources::kubernetes::AccessReview> reviews;
  std::unique_ptr<admin::AdminServer> admin;
  std::unique_ptr<net::Timer> admin_again;
};

base::Result<std::unique_ptr<Picker>> Picker::Start(Options options, const base::Log& log,
                                                    const Problems& problems, ManifestsChanged changed) {
  if (auto checked = scheduling::CheckOptions(options.router.scheduling); !checked)
    return tl::make_unexpected(checked.error());
  auto impl = std::make_unique<Impl>(std::move(options), log, std::move(changed));
  const Options& o = impl->options;
  impl->registry.set_max_page_bytes(o.metrics_max_bytes);

  uint64_t known = 0;
  if (o.kubernetes) {
    // What is there shows when the API server answers, and may change until then.
  } else if (o.files.empty()) {
    impl->manifests = o.manifests;
  } else {
    const api::LoadResult loaded = api::LoadManifests(o.files, o.load);
    if (problems) problems(loaded.problems);
    if (!loaded.ok()) return Fail(ErrorCode::kInvalidArgument, "the manifests have errors");
    impl->manifests = loaded.manifests;
    known = loaded.fingerprint;
  }
  if (!o.kubernetes && impl->manifests.pools.empty())
    return Fail(ErrorCode::kInvalidArgument, "the manifests have no InferencePool");

  if (!o.kubernetes && !o.wanted_pool.empty()) {
    // Named but not there is a mistake at the start; later it is a pool that went away.
    std::vector<std::string> names;
    names.reserve(impl->manifests.pools.size());
    for (const auto& pool : impl->manifests.pools) names.push_back(api::Key(pool.meta));
    if (std::find(names.begin(), names.end(), o.wanted_pool) == names.end()) {
      const auto near = base::Nearest(o.wanted_pool, names);
      return Fail(ErrorCode::kInvalidArgument, "the manifests have no InferencePool " + o.wanted_pool +
                                                   (near ? "; did you mean " + *near + "?" : ""));
    }
  }

  auto& reloads = impl->registry.AddCounter({.name = "fairway_config_reloads_total",
                                             .help = "Changes of the manifests, by outcome.",
                                             .labels = {"outcome"}});
  auto& lost =
      impl->registry.AddCounter({.name = "fairway_log_lines_lost_total",
                                 .help = "Texts that were not written because nobody, or no disk, took them.",
                                 .labels = {"stream"}});
  for (const auto& [stream, count] : o.lost_lines) {
    impl->registry.AddCollector(
        [&counter = lost.With({stream}), count] { counter.Add(count() - counter.value()); });
  }
  impl->reloads = &reloads.With({"applied"});
  impl->reload_failures = &reloads.With({"refused"});
  routing::RouterOptions router_options = o.router;
  if (o.debug_decisions > 0) {
    impl->decisions = std::make_unique<routing::DecisionLog>(o.debug_decisions);
    router_options.decisions = impl->decisions.get();
  }
  if (o.config.given()) {
    impl->config = std::make_unique<ConfigSource>(o.config);
    std::vector<api::Problem> found;
    const bool good = impl->config->Load(found);
    if (problems) problems(found);
    if (!good) return Fail(ErrorCode::kInvalidArgument, "the scheduler config has errors");
    impl->WarnOfStrangers();
    router_options.config = impl->config->common();
    router_options.shadow = impl->config->shadow();
  }
  if (!o.record_file.empty()) {
    auto recorder = DecisionRecorder::Open({.file = o.record_file, .max_bytes = o.record_max_bytes},
                                           router_options.scheduling);
    if (!recorder) return tl::make_unexpected(recorder.error());
    impl->recorder = std::move(*recorder);
    router_options.record = impl->recorder.get();
    impl->registry.AddCollector([&counter = lost.With({"record"}), recorder = impl->recorder.get()] {
      counter.Add(recorder->lost() - counter.value());
    });
  }
  impl->router = std::make_unique<routing::Router>(impl->fleet.published(), impl->clock, impl->registry,
                                                   std::move(router_options));
  impl->fleet.set_before_publish(
      [router = impl->router.get()](const fleet::Snapshot& next) { router->Prepare(next); });
  if (impl->config != nullptr && !impl->config->of_pools().empty()) impl->SwapConfigs();
  impl->control = std::make_unique<net::LoopThread>("control");
  net::Loop& control = impl->control->loop();

  // From here on the destructor must run on failure: it takes things down on their loop.
  std::unique_ptr<Picker> picker(new Picker(std::move(impl)));
  Impl& self = *picker->impl_;
  base::Result<void> outcome;
  RunOn(control, [&] {
    self.resolver = std::make_unique<sources::NameResolver>(
        control, self.log, [&self](const sources::NameResolver::Addresses&) { self.Apply(); });
    self.resolver->Watch(HostNames(self.manifests));
    self.Apply();
    if (self.config != nullptr) {
      self.config->Watch(control, self.log, self.registry,
                         {.configs = [&self] { self.SwapConfigs(); },
                          .shadow = [&self] { self.router->SwapShadow(self.config->shadow()); },
                          .tidy = [&self] { self.router->FreeUnused(); }});
    }
    if (o.scrape_endpoints) {
      auto scrape = o.scrape;
      scrape.pages = [&self](const std::string& pool) { return PagesOf(self.router->configs()->Of(pool)); };
      auto scraper = sources::scrape::Scraper::Create(std::move(scrape), control, self.fleet, self.clock,
                                                      self.log, self.registry);
      if (!scraper) {
        outcome = tl::make_unexpected(scraper.error());
        return;
      }
      self.scraper = std::move(*scraper);
      self.kv_events = std::make_unique<KvEventsWiring>(control, self.fleet.published(), *self.router,
                                                        self.clock, self.log, self.registry);
    }
    if (o.kubernetes) {
      auto source = sources::kubernetes::KubernetesSource::Create(
          control, o.kubernetes->client, o.kubernetes->options, self.clock, self.log, self.registry,
          [&self](const api::Manifests& manifests) {
            self.manifests = manifests;
            self.Apply();
          });
      if (!source) {
        outcome = tl::make_unexpected(source.error());
        return;
      }
      self.kubernetes = std::move(*source);
    } else if (!o.files.empty()) {
      self.files = std::make_unique<sources::FileSource>(
          control, o.files, [&self](const api::LoadResult& loaded) { self.OnFiles(loaded); },
          50 * base::kMillisecond, known, o.load);
    }
  });
  if (outcome && o.peers) {
    auto peers = PeersWiring::Start(*o.peers, self.fleet.published(), *self.router, self.clock, self.log,
                                    self.registry);
    if (peers) {
      self.peers = std::move(*peers);
    } else {
      outcome = tl::make_unexpected(peers.error());
    }
  }
  if (outcome && o.admin != Options::Admin::kNone) outcome = self.StartAdmin();
  if (!outcome) return tl::make_unexpected(outcome.error());
  return picker;
}

Picker::Picker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Picker::~Picker() {
  impl_->StopAdmin();
  impl_->peers.reset();
  RunOn(impl_->control->loop(), [this] {
    impl_->files.reset();
    if (impl_->config != nullptr) impl_->config->Stop();
    impl_->kubernetes.reset();
    impl_->kv_events.reset();
    impl_->scraper.reset();
    impl_->resolver.reset();
  });
  impl_->control->Join();
}

void Picker::SetEndpoints(const std::string& pool_key, std::vector<api::Endpoint> endpoints) {
  for (auto& endpoint : endpoints) endpoint.pool_key = pool_key;
  impl_->control->loop().Post([impl = impl_.get(), pool_key, endpoints = std::move(endpoints)]() mutable {
    if (impl->resolver == nullptr) return;  // being taken down
    impl->given[pool_key] = std::move(endpoints);
    impl->Apply();
  });
}

void Picker::Reload() {
  impl_->control->loop().Post([impl = impl_.get()] {
    if (impl->files != nullptr) impl->files->LookAgain();
    if (impl->config != nullptr) impl->config->LookAgain();
  });
}

void Picker::StepDown() {
  std::promise<void> done;
  impl_->control->loop().Post([&] {
    if (impl_->kubernetes == nullptr) return done.set_value();
    impl_->kubernetes->StepDown([&done] { done.set_value(); });
  });
  done.get_future().wait();
}

const routing::Router& Picker::router() const { return *impl_->router; }
const base::Published<fleet::Snapshot>& Picker::fleet() const { return impl_->fleet.published(); }
const base::Clock& Picker::clock() const { return impl_->clock; }
base::Registry& Picker::registry() { return impl_->registry; }
net::Loop& Picker::control_loop() { return impl_->control->loop(); }
uint16_t Picker::admin_port() const { return impl_->admin_port.load(std::memory_order_relaxed); }

uint16_t Picker::peer_port() const { return impl_->peers != nullptr ? impl_->peers->port() : 0; }

}  // namespace fairway::picker
