// The series of pools and endpoints: read off the fleet when a page is written, so that what is gone is gone.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "routing/decision.h"
#include "routing/metric_families.h"
#include "routing/metrics.h"
#include "scheduling/scheduler.h"

namespace fairway::routing {
namespace {

using Step = base::SeriesReader::Step;
static_assert(scheduling::kRungs <= std::tuple_size_v<decltype(fleet::PoolTally::decisions)>);

double Round2(double v) { return std::round(v * 100) / 100; }

// A reader of numbered things: `read(i, series)` says what number i is.
template <typename Read>
class Numbered final : public base::SeriesReader {
 public:
  explicit Numbered(Read read) : read_(std::move(read)) {}
  Step Next(base::Series& out) override { return read_(next_++, out); }

 private:
  Read read_;
  size_t next_ = 0;
};

template <typename Read>
std::unique_ptr<base::SeriesReader> MakeReader(Read read) {
  return std::make_unique<Numbered<Read>>(std::move(read));
}

// The namespace is our own label: two pools of one name are two series.
base::MetricOptions PoolFamily(const std::string& name, const std::string& help, const std::string& twin) {
  return Named(name, help, {"name", "namespace"}, {}, twin, {{"name", "name"}, {"namespace", "namespace"}});
}

base::MetricOptions QueueFamily() {
  return Named("per_endpoint_queue_size", "Requests waiting in one model server.",
               {"name", "model_server_endpoint", "namespace"}, {}, "inference_pool_per_pod_queue_size",
               {{"name", "name"}, {"model_server_endpoint", "model_server_pod"}, {"namespace", "namespace"}});
}

base::MetricOptions AttemptsFamily() {
  return Named("scheduler_attempts_total", "Scheduling attempts by outcome and endpoint.",
               {"status", "target_model_name", "endpoint_name", "namespace", "port"}, {},
               "inference_extension_scheduler_attempts_total",
               {{"status", "status"},
                {"target_model_name", "target_model_name"},
                {"endpoint_name", "pod_name"},
                {"namespace", "namespace"},
                {"port", "port"}});
}

auto Identity(const fleet::Endpoint& e) { return std::tie(e.name, e.namespace_name, e.port); }

}  // namespace

// What the gauges of one page are read from.
struct RouterMetrics::Pools {
  static constexpr size_t kSignals = 3;  // KV use, waiting, running
  struct Pool {
    const fleet::PoolSnapshot* pool;
    uint32_t ready = 0;
    std::array<double, kSignals> average{};
    std::array<double, kSignals> deviation{};
  };
  struct Endpoint {
    const fleet::PoolSnapshot* pool;
    const fleet::Endpoint* endpoint;
  };
  std::shared_ptr<const fleet::Snapshot> snapshot;  // what the others point into
  std::vector<Pool> pools;
  // By name, namespace and port: one that is in two pools stands beside itself.
  std::shared_ptr<const std::vector<Endpoint>> endpoints;

  static Pool Summarize(const fleet::PoolSnapshot& pool, base::Nanos now, base::Nanos staleness) {
    Pool out{.pool = &pool};
    std::array<double, kSignals> sum{}, squares{};
    for (const fleet::EndpointCell* cell : pool.cells) {
      if (cell->scraped_at() == 0 || now - cell->scraped_at() > staleness) continue;
      ++out.ready;
      const std::array<double, kSignals> values{cell->kv_usage(), static_cast<double>(cell->waiting()),
                                                static_cast<double>(cell->running())};
      for (size_t i = 0; i < kSignals; ++i) {
        sum[i] += values[i];
        squares[i] += values[i] * values[i];
      }
    }
    const double n = out.ready;
    for (size_t i = 0; i < kSignals; ++i) {
      const double mean = n > 0 ? sum[i] / n : 0;
      // Of a sample (n - 1), as the reference has it.
      const double variance = n > 1 ? std::max(0.0, (squares[i] - mean * sum[i]) / (n - 1)) : 0;
      out.average[i] = Round2(mean);
      out.deviation[i] = Round2(std::sqrt(variance));
    }
    return out;
  }
  static std::vector<Endpoint> SortedEndpoints(const fleet::Snapshot& snapshot) {
    std::vector<Endpoint> all;
    for (const auto& [key, pool] : snapshot.pools) {
      for (const auto& endpoint : pool->endpoints) all.push_back({pool.get(), &endpoint});
    }
    std::sort(all.begin(), all.end(), [](const Endpoint& a, const Endpoint& b) {
      return Identity(*a.endpoint) < Identity(*b.endpoint);
    });
    return all;
  }
};

void RouterMetrics::Collect(std::shared_ptr<const fleet::Snapshot> snapshot, base::Nanos now,
                            base::Nanos staleness) {
  auto next = std::make_shared<Pools>();
  for (const auto& [key, pool] : snapshot->pools)
    next->pools.push_back(Pools::Summarize(*pool, now, staleness));
  const std::shared_ptr<const Pools> last = pools();
  next->endpoints =
      last != nullptr && last->snapshot == snapshot
          ? last->endpoints
          : std::make_shared<const std::vector<Pools::Endpoint>>(Pools::SortedEndpoints(*snapshot));
  next->snapshot = std::move(snapshot);
  const std::lock_guard lock(mutex_);
  if (snapshot_ != next->snapshot) Sort(*next->snapshot);
  snapshot_ = next->snapshot;
  pools_ = std::move(next);
  Sweep(now);
  FreeTargets(*snapshot_);
}

std::shared_ptr<const RouterMetrics::Pools> RouterMetrics::pools() const {
  const std::lock_guard lock(mutex_);
  return pools_;
}

// Picks by target model and endpoint. Most of the numbers are 0: they are looked through in small steps.
class RouterMetrics::AttemptsReader final : public base::SeriesReader {
 public:
  explicit AttemptsReader(const RouterMetrics& metrics) : metrics_(metrics), pools_(metrics.pools()) {
    targets_.emplace_back(kOther, 0);
    const std::lock_guard lock(metrics.mutex_);
    for (const auto& [name, target] : metrics.targets_) targets_.emplace_back(name, target.number);
  }

  Step Next(base::Series& out) override {
    for (int looked_at = 0; looked_at < 256; ++looked_at) {
      if (target_ == targets_.size() && !NextEndpoint()) return Step::kEnd;
      const auto& [name, number] = targets_[target_++];
      const uint64_t value = Value(number);
      if (value == 0) continue;
      out.value = static_cast<double>(value);
      if (failures_) {
        out.labels = {"failure", name, "", "", ""};
      } else {
        const fleet::Endpoint& e = *(*pools_->endpoints)[begin_].endpoint;
        out.labels = {"success", name, e.name, e.namespace_name, std::to_string(e.port)};
      }
      return Step::kSeries;
    }
    return Step::kNothing;
  }

 private:
  bool NextEndpoint() {
    if (pools_ == nullptr) return false;
    const auto& all = *pools_->endpoints;
    failures_ = false;
    begin_ = end_;
    if (begin_ == all.size()) return false;
    while (end_ < all.size() && Identity(*all[end_].endpoint) == Identity(*all[begin_].endpoint)) ++end_;
    target_ = 0;
    return true;
  }
  uint64_t Value(uint32_t number) const {
    if (failures_) return metrics_.failures_[number].value();
    uint64_t sum = 0;
    for (size_t i = begin_; i < end_; ++i) sum += (*pools_->endpoints)[i].endpoint->picks->Get(number);
    return sum;
  }

  const RouterMetrics& metrics_;
  const std::shared_ptr<const Pools> pools_;
  std::vector<std::pair<std::string, uint32_t>> targets_;
  bool failures_ = true;        // first, then the endpoints
  size_t begin_ = 0, end_ = 0;  // of endpoints: one, as often as it is there
  size_t target_ = 0;
};

void RouterMetrics::AddPoolGauges(base::Registry& registry) {
  // By pool; `value` says what of it.
  const auto add = [&](base::MetricOptions options, auto value) {
    registry.AddComputed(std::move(options), base::MetricType::kGauge, [this, value] {
      return MakeReader([pools = this->pools(), value](size_t i, base::Series& out) {
        if (pools == nullptr || i >= pools->pools.size()) return Step::kEnd;
        const Pools::Pool& pool = pools->pools[i];
        out.labels = {pool.pool->name, pool.pool->namespace_name};
        out.value = value(pool);
        return Step::kSeries;
      });
    });
  };
  struct Signal {
    const char* name;
    const char* help;
  };
  constexpr std::array<Signal, Pools::kSignals> kSignals{{{"kv_cache_utilization", "KV cache use"},
                                                          {"queue_size", "waiting requests"},
                                                          {"running_requests", "running requests"}}};
  for (size_t i = 0; i < kSignals.size(); ++i) {
    const std::string name = kSignals[i].name;
    const std::string help = std::string(kSignals[i].help) + " over the pool's ready endpoints.";
    add(PoolFamily("average_" + name, "Average of " + help, "inference_pool_average_" + name),
        [i](const Pools::Pool& pool) { return pool.average[i]; });
    add(PoolFamily("std_dev_" + name, "Standard deviation of " + help, ""),
        [i](const Pools::Pool& pool) { return pool.deviation[i]; });
  }
  add(PoolFamily("ready_endpoints", "Endpoints of the pool with fresh metrics.", "inference_pool_ready_pods"),
      [](const Pools::Pool& pool) { return static_cast<double>(pool.ready); });
}

void RouterMetrics::AddEndpointSeries(base::Registry& registry) {
  registry.AddComputed(QueueFamily(), base::MetricType::kGauge, [this] {
    return MakeReader([pools = this->pools()](size_t i, base::Series& out) {
      if (pools == nullptr || i >= pools->endpoints->size()) return Step::kEnd;
      const auto& [pool, endpoint] = (*pools->endpoints)[i];
      out.labels = {pool->name, endpoint->name, pool->namespace_name};
      out.value = endpoint->cell->waiting();
      return Step::kSeries;
    });
  });
  registry.AddComputed(AttemptsFamily(), base::MetricType::kCounter,
                       [this] { return std::make_unique<AttemptsReader>(*this); });
}

// What pools count themselves. A number that is 0 has no series: without a second config nothing of it is
// shown.
void RouterMetrics::AddTallies(base::Registry& registry) {
  static_assert(kShadowOutcomes == std::tuple_size_v<decltype(fleet::PoolTally::shadow)>);
  // `count` series of each pool; `read` says what `label` is of one of them, and its number.
  const auto add = [&](const char* name, const char* help, const char* label, size_t count, auto read) {
    std::vector<std::string> labels{"pool"};
    if (label != nullptr) labels.emplace_back(label);
    registry.AddComputed(
        {.name = name, .help = help, .labels = std::move(labels)}, base::MetricType::kCounter,
        [this, label, count, read] {
          return MakeReader([pools = this->pools(), label, count, read](size_t i, base::Series& out) {
            if (pools == nullptr || i / count >= pools->pools.size()) return Step::kEnd;
            const fleet::PoolSnapshot& pool = *pools->pools[i / count].pool;
            const auto& [text, number] = read(*pool.tally, i % count);
            const uint64_t value = number.load(std::memory_order_relaxed);
            out.labels = {pool.key};
            if (label != nullptr) out.labels.emplace_back(text);
            out.value = static_cast<double>(value);
            return value > 0 ? Step::kSeries : Step::kNothing;
          });
        });
  };
  using fleet::PoolTally;
  using Read = std::pair<std::string_view, const std::atomic<uint64_t>&>;
  add("fairway_decisions_total", "Picks by the rung of the degradation ladder that they were made on.",
      "rung", scheduling::kRungs, [](const PoolTally& tally, size_t i) {
        return Read{scheduling::ToString(static_cast<scheduling::Rung>(i)), tally.decisions[i]};
      });
  add("fairway_shadow_decisions_total", "Decisions that a second config made, too, by what came of it.",
      "outcome", kShadowOutcomes, [](const PoolTally& tally, size_t i) {
        return Read{ToString(static_cast<ShadowOutcome>(i)), tally.shadow[i]};
      });
  add("fairway_shadow_wait_milliseconds_total",
      "Estimated time to first token, summed up: of the second config's choices and of the real ones.",
      "choice", 2, [](const PoolTally& tally, size_t i) {
        return i == 0 ? Read{"shadow", tally.shadow_wait} : Read{"live", tally.live_wait};
      });
  add("fairway_served_elsewhere_total", "Requests that another endpoint answered than the one picked first.",
      nullptr, 1, [](const PoolTally& tally, size_t) { return Read{"", tally.served_elsewhere}; });
}

}  // namespace fairway::routing
