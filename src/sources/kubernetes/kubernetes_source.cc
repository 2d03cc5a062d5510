#include "sources/kubernetes/kubernetes_source.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>

#include "sources/kubernetes/api_server.h"
#include "sources/kubernetes/cluster_state.h"
#include "sources/kubernetes/discovery.h"
#include "sources/kubernetes/leader_election.h"
#include "sources/kubernetes/reflector.h"

namespace fairway::sources::kubernetes {
namespace {

using base::ErrorCode;

enum class Role { kPods, kPools, kOther };

// What is read. A new kind is a line here, and its vector in ManifestStore::AppendTo.
struct Kind {
  std::string_view group;  // "" is core
  std::string_view version;
  std::string_view resource;
  Role role;

  std::string group_version() const { return std::string(group) + "/" + std::string(version); }
  // "inferencepools.inference.networking.k8s.io", as kubectl writes it; core has no group.
  std::string label() const {
    return std::string(resource) + (group.empty() ? "" : "." + std::string(group));
  }
};
constexpr std::string_view kGroup = "inference.networking.k8s.io";
constexpr std::string_view kGroupX = "inference.networking.x-k8s.io";
constexpr std::string_view kGroupLlmd = "llm-d.ai";
constexpr std::array<Kind, 8> kKinds{{
    {"", "v1", "pods", Role::kPods},
    {kGroup, "v1", "inferencepools", Role::kPools},
    {kGroupX, "v1alpha2", "inferencepools", Role::kPools},
    {kGroupX, "v1alpha2", "inferencemodels", Role::kOther},
    {kGroupLlmd, "v1alpha2", "inferenceobjectives", Role::kOther},
    {kGroupLlmd, "v1alpha2", "inferencemodelrewrites", Role::kOther},
    {kGroupX, "v1alpha2", "inferenceobjectives", Role::kOther},
    {kGroupX, "v1alpha2", "inferencemodelrewrites", Role::kOther},
}};

// Publishing takes at most a fifth of the loop's time, however large the fleet is.
constexpr base::Nanos kShare = 4;
constexpr base::Nanos kMaxInterval = base::kSecond / 2;

constexpr base::Nanos kSilentIntervals = 3;
constexpr base::Nanos kMetricsInterval = base::kSecond / 4;

struct Metrics {
  explicit Metrics(base::Registry& registry)
      : age(registry.AddGauge({.name = "fairway_kubernetes_sync_age_seconds",
                               .help = "How old what is known of the resource may be; 0 while it is watched",
                               .labels = {"resource"}})),
        objects(registry.AddGauge({.name = "fairway_kubernetes_objects",
                                   .help = "Objects of the resource that are known and usable",
                                   .labels = {"resource"}})),
        watches(registry.AddCounter(
            {.name = "fairway_kubernetes_watches_total", .help = "Watches begun", .labels = {"resource"}})),
        lists(registry.AddCounter(
            {.name = "fairway_kubernetes_lists_total",
             .help = "Complete lists read: the first, and one each time a watch fell behind",
             .labels = {"resource"}})),
        errors(registry.AddCounter({.name = "fairway_kubernetes_errors_total",
                                    .help = "Calls that failed or were refused",
                                    .labels = {"resource"}})),
        leading(registry.AddGauge({.name = "fairway_kubernetes_leading",
                                   .help = "1 where this replica leads; only with leader election"})),
        rejected(registry.AddCounter(
            {.name = "fairway_kubernetes_rejected_objects_total",
             .help = "Objects left out, or kept in their last good state, for an error in them",
             .labels = {"resource"}})),
        published(registry
                      .AddCounter({.name = "fairway_kubernetes_publications_total",
                                   .help = "States handed to the fleet"})
                      .With({})) {}

  base::GaugeFamily& age;
  base::GaugeFamily& objects;
  base::CounterFamily& watches;
  base::CounterFamily& lists;
  base::CounterFamily& errors;
  base::GaugeFamily& leading;
  base::CounterFamily& rejected;
  base::Counter& published;
};

}  // namespace

struct KubernetesSource::Impl {
  // One kind that is read.
  struct Watched final : ReflectorSink {
    Watched(Impl& impl, const Kind& k) : owner(impl), kind(k), label(k.label()) {
      if (kind.role == Role::kPods) {
        store = std::make_unique<PodStore>([this](const std::string& pod, const std::string& problem) {
          owner.metrics.rejected.With({label}).Add();
          owner.log.Warn("a Pod's annotation is malformed; only ports that can be read count",
                         {{"pod", pod}, {"problem", problem}});
        });
      } else {
        store = std::make_unique<ManifestStore>(
            [this](const api::Problem& problem) { owner.Report(*this, problem); });
      }
    }

    void BeginList() override { store->BeginList(); }
    void Listed(std::string_view object) override { store->Listed(object); }
    void EndList() override {
      store->EndList();
      owner.Changed();
    }
    void Set(std::string_view object) override {
      store->Set(object);
      owner.Changed();
    }
    void Deleted(std::string_view object) override {
      store->Deleted(object);
      owner.Changed();
    }
    void StateChanged() override {
      owner.Collect();
      owner.Changed();
    }

    bool synced() const { return reflector != nullptr && reflector->synced(); }
    // Nothing to wait for: it is there in full, or there is none, or we may not read it.
    bool settled() const {
      return known &&
             (reflector == nullptr || reflector->synced() || reflector->denied() || reflector->absent());
    }
    bool failing() const { return known && reflector != nullptr && reflector->failing(); }

    Impl& owner;
    const Kind kind;
    const std::string label;
    std::unique_ptr<ObjectStore> store;
    std::unique_ptr<Reflector> reflector;  // null: it is not read now
    bool known = false;                    // whether there is one,
    bool there = false;                    // and then, is there?
    ReflectorStats told;                   // what the counters have
  };

  Impl(net::Loop& l, KubernetesOptions o, const base::Clock& c, const base::Log& g, base::Registry& registry,
       KubernetesSource::Changed f)
      : loop(l),
        options(std::move(o)),
        clock(c),
        log(g),
        metrics(registry),
        changed(std::move(f)),
        metrics_timer(l),
        timer(l),
        started_at(c.Now()) {}

  const std::string& LeaseNamespace() const {
    return options.lease_namespace.empty() ? options.namespace_name : options.lease_namespace;
  }
  bool standalone() const { return !options.endpoint_selector.empty(); }

  void Start() {
    std::set<std::string> groups;
    for (const Kind& kind : kKinds) {
      if (standalone() && kind.role != Role::kPods) continue;
      if (kind.role == Role::kPools && !options.pool_group.empty() && kind.group != options.pool_group)
        continue;
      watched.push_back(std::make_unique<Watched>(*this, kind));
      if (kind.group.empty()) {
        Begin(*watched.back());
      } else {
        groups.insert(kind.group_version());
      }
    }
    Collect();
    if (options.leading != nullptr) {
      election = std::make_unique<LeaderElection>(
          loop, *server,
          LeaderElectionOptions{.namespace_name = LeaseNamespace(),
                                .name = "epp-" + LeaseNamespace() + "-" +
                                        (options.all_pools ? "all-pools" : options.pool_name) + ".llm-d.ai",
                                .identity = options.identity,
                                .seed = options.seed},
          clock, log, [this](bool leads) {
            options.leading->store(leads, std::memory_order_relaxed);
            metrics.leading.With({}).Set(leads ? 1 : 0);
          });
      metrics.leading.With({}).Set(0);
    }
    metrics_timer.Every(kMetricsInterval, [this] { Collect(); });
    discovery = std::make_unique<Discovery>(
        loop, *server, std::vector<std::string>(groups.begin(), groups.end()), options.discovery_interval,
        clock, log,
        [this](const std::string& group, const Discovery::Resources* resources) { Found(group, resources); });
  }

  void Begin(Watched& one) {
    one.known = one.there = true;
    if (one.reflector != nullptr) return;
    ReflectorOptions o;
    const std::string space = options.namespace_name.empty() ? "" : "/namespaces/" + options.namespace_name;
    o.path = (one.kind.group.empty() ? "/api/v1" : "/apis/" + one.kind.group_version()) + space + "/" +
             std::string(one.kind.resource);
    o.group = one.kind.group;
    o.resource = one.kind.resource;
    o.namespace_name = options.namespace_name;
    // Without a group given, the other one's pools are looked for without being asked for.
    o.optional = one.kind.role == Role::kOther ||
                 (one.kind.role == Role::kPools && options.pool_group.empty() && one.kind.group == kGroupX);
    o.seed = options.seed + watched.size();
    if (one.kind.role == Role::kPods) o.label_selector = options.endpoint_selector;
    if (one.kind.role == Role::kPools && options.all_pools) o.label_selector = options.pool_selector;
    if (one.kind.role == Role::kPools && !options.all_pools)
      o.field_selector = "metadata.name=" + options.pool_name;
    one.reflector = std::make_unique<Reflector>(loop, *server, std::move(o), one, clock, log);
  }

  void Found(const std::string& group, const Discovery::Resources* resources) {
    for (const auto& one : watched) {
      if (one->kind.group.empty() || one->kind.group_version() != group) continue;
      const bool there = resources == nullptr || resources->contains(one->kind.resource);
      if (one->known && there && !one->there) log.Info("a resource is there now", {{"resource", one->label}});
      if (one->known && !there && one->there) {
        log.Warn("a resource is gone, with all its objects", {{"resource", one->label}});
      }
      one->known = true;
      one->there = there;
    }
    // A kind that is there decides whether another is read.
    for (const auto& one : watched) {
      if (!one->known) continue;
      if (one->there && !Superseded(*one)) {
        Begin(*one);
      } else {
        one->reflector.reset();
        one->store->Clear();
      }
    }
    Changed();
  }

  // As the reference has it: where llm-d's own CRD is installed, that of the older group is not looked at.
  bool Superseded(const Watched& one) const {
    return one.kind.role == Role::kOther && one.kind.group == kGroupX &&
           std::any_of(watched.begin(), watched.end(), [&](const auto& other) {
             return other->there && other->kind.group == kGroupLlmd &&
                    other->kind.resource == one.kind.resource;
           });
  }

  void Report(const Watched& one, const api::Problem& problem) {
    if (problem.severity == api::Severity::kError) {
      metrics.rejected.With({one.label}).Add();
      log.Error(api::ToString(problem));
    } else {
      log.Debug(api::ToString(problem));
    }
  }

  // ---- When to publish.

  // Is enough known to serve? Asked until it is for the first time.
  bool Complete() {
    bool pods = false;
    bool pools = standalone();
    bool others = true;
    for (const auto& one : watched) {
      if (one->kind.role == Role::kPods) pods = one->synced();
      if (one->kind.role == Role::kPools) pools = pools || one->synced();
      if (one->kind.role != Role::kPods && !one->settled()) others = false;
    }
    if (!pods || !pools) return false;
    if (others) return true;
    // Something else has not come yet, and a request that was decided without it could go to the wrong model:
    // it is waited for, but not for ever.
    const base::Nanos now = clock.Now();
    if (patience_ends == 0) patience_ends = now + options.patience;
    if (now >= patience_ends) return true;
    timer.After(patience_ends - now, [this] { Changed(); });
    return false;
  }

  void Changed() {
    if (!complete) {
      if (!Complete()) return;
      complete = true;
    }
    if (due || Version() == published_version) return;
    due = true;
    const base::Nanos interval =
        std::max(options.publish_interval, std::min(last_cost * kShare, kMaxInterval));
    const base::Nanos since = clock.Now() - published_at;
    // What came in one piece with this change is taken along: the timer fires after the bytes at hand were
    // read.
    timer.After(published_at == 0 || since >= interval ? 0 : interval - since, [this] { Publish(); });
  }

  // Never 0.
  uint64_t Version() const {
    uint64_t version = 1;
    for (const auto& one : watched) version += one->store->version();
    return version;
  }

  void Publish() {
    due = false;
    const base::Nanos begin = clock.Now();
    published_version = Version();
    api::Manifests manifests;
    const PodStore* pods = nullptr;
    for (const auto& one : watched) {
      if (one->kind.role == Role::kPods) {
        pods = static_cast<const PodStore*>(one->store.get());
      } else {
        static_cast<const ManifestStore*>(one->store.get())->AppendTo(manifests);
      }
    }
    if (standalone()) manifests.pools.push_back(StandalonePool());
    DropShadowedPools(manifests.pools);
    if (!options.picker_service.empty()) {
      std::erase_if(manifests.pools, [this](const api::InferencePool& pool) {
        return !pool.picker || pool.picker->name != options.picker_service;
      });
    }
    if (standalone()) {
      AppendEndpoints(manifests.pools[0], pods->pods(), manifests.endpoints);
    } else {
      const PodIndex index(pods->pods());
      for (const api::InferencePool& pool : manifests.pools) {
        AppendEndpoints(pool, index.Matching(pool), manifests.endpoints);
      }
    }
    Tell(manifests);
    changed(manifests);
    metrics.published.Add();
    published_at = clock.Now();
    last_cost = published_at - begin;
    Collect();
  }

  api::InferencePool StandalonePool() const {
    api::InferencePool pool;
    pool.meta.name = options.pool_name;
    pool.meta.namespace_name = options.namespace_name;
    pool.group = kGroup;
    pool.target_ports = options.target_ports;
    return pool;
  }

  // What a user wants to know: once when all is there, and when the pool comes or goes.
  void Tell(const api::Manifests& manifests) {
    const bool has_pool = !manifests.pools.empty();
    const std::string name = options.all_pools ? std::to_string(manifests.pools.size())
                                               : options.namespace_name + "/" + options.pool_name;
    if (!told) {
      log.Info("synced with the API server",
               {{"server", server->name()},
                {"as", server->config().source},
                {options.all_pools ? "pools" : "pool", has_pool ? name : "none"},
                {"endpoints", std::to_string(manifests.endpoints.size())},
                {"models", std::to_string(manifests.models.size())},
                {"ms", std::to_string((clock.Now() - started_at) / base::kMillisecond)}});
    }
    if (options.all_pools) {
      // One of many: /debug/fleet and the metrics tell.
    } else if (!has_pool && (!told || had_pool)) {
      log.Warn("there is no such InferencePool; requests are refused until there is", {{"pool", name}});
    } else if (has_pool && told && !had_pool) {
      log.Info("the InferencePool is there", {{"pool", name}});
    }
    told = true;
    had_pool = has_pool;
  }

  // ---- Metrics. The page is written on another thread, perhaps, so they are kept up to date here.

  void Collect() {
    // A watch is silent when nothing happens, and when the server hangs. Whether it does, its answers to
    // discovery tell.
    base::Nanos silence = 0;
    if (discovery != nullptr && discovery->heard_at() != 0) silence = clock.Now() - discovery->heard_at();
    if (silence < kSilentIntervals * options.discovery_interval) silence = 0;
    for (const auto& one : watched) {
      metrics.objects.With({one->label}).Set(static_cast<double>(one->store->size()));
      if (one->reflector == nullptr) continue;
      metrics.age.With({one->label}).Set(base::ToSeconds(std::max(one->reflector->age(), silence)));
      const ReflectorStats& now = one->reflector->stats();
      ReflectorStats& told_stats = one->told;
      if (now.watches < told_stats.watches || now.errors < told_stats.errors) told_stats = {};
      metrics.watches.With({one->label}).Add(now.watches - told_stats.watches);
      metrics.lists.With({one->label}).Add(now.lists - told_stats.lists);
      metrics.errors.With({one->label}).Add(now.errors - told_stats.errors);
      told_stats = now;
    }
  }

  net::Loop& loop;
  const KubernetesOptions options;
  const base::Clock& clock;
  const base::Log& log;
  Metrics metrics;
  const KubernetesSource::Changed changed;
  std::unique_ptr<ApiServer> server;
  std::vector<std::unique_ptr<Watched>> watched;
  std::unique_ptr<Discovery> discovery;
  std::unique_ptr<LeaderElection> election;
  net::Timer metrics_timer;
  net::Timer timer;  // the first publication's patience, then the next publication
  const base::Nanos started_at;
  base::Nanos patience_ends = 0;
  base::Nanos published_at = 0;
  base::Nanos last_cost = 0;
  uint64_t published_version = 0;
  bool complete = false;
  bool due = false;
  bool told = false;
  bool had_pool = false;
};

base::Result<std::unique_ptr<KubernetesSource>> KubernetesSource::Create(
    net::Loop& loop, ClientConfig config, KubernetesOptions options, const base::Clock& clock,
    const base::Log& log, base::Registry& registry, Changed changed) {
  const auto bad = [](const std::string& why) { return base::Fail(ErrorCode::kInvalidArgument, why); };
  if (options.pool_name.empty() != options.all_pools)
    return bad(options.all_pools ? "one pool or many, not both" : "the InferencePool's name is missing");
  if (!options.pool_group.empty() && options.pool_group != kGroup && options.pool_group != kGroupX) {
    return bad("no InferencePool in group \"" + options.pool_group + "\"; want " + std::string(kGroup) +
               " or " + std::string(kGroupX));
  }
  if (options.endpoint_selector.empty() != options.target_ports.empty()) {
    return bad("an endpoint selector and target ports are given together or not at all");
  }
  if (options.target_ports.size() > 8) return bad("at most 8 target ports");
  auto server = ApiServer::Create(std::move(config), &log);
  if (!server) return tl::make_unexpected(server.error());
  auto impl = std::make_unique<Impl>(loop, std::move(options), clock, log, registry, std::move(changed));
  impl->server = std::move(*server);
  impl->Start();
  return std::unique_ptr<KubernetesSource>(new KubernetesSource(std::move(impl)));
}

KubernetesSource::KubernetesSource(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
KubernetesSource::~KubernetesSource() = default;
bool KubernetesSource::synced() const { return impl_->told; }

void KubernetesSource::StepDown(std::function<void()> done) {
  if (impl_->election == nullptr) return impl_->loop.Post(std::move(done));
  impl_->election->Release(std::move(done));
}

}  // namespace fairway::sources::kubernetes
