#include "routing/prefix_metrics.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "routing/metric_families.h"
#include "scheduling/plugin.h"

namespace fairway::routing {
namespace {

using Step = base::SeriesReader::Step;
using scheduling::ExactBelief;
using scheduling::PrefixBelief;

const std::vector<double> kRatios{0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0};
const std::vector<double> kBytes{0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536};
// Prometheus' own, which the reference has, and what is below them.
const std::vector<double> kLookupTimes{1e-6, 2.5e-6, 5e-6,   1e-5,  2.5e-5, 5e-5,  1e-4, 2.5e-4,
                                       5e-4, 0.001,  0.0025, 0.005, 0.01,   0.025, 0.05, 0.1,
                                       0.25, 0.5,    1,      2.5,   5,      10};
const std::vector<std::string> kPlugin{"plugin_name", "plugin_type"};
const LabelPairs kNoTwinLabels;

base::MetricOptions ByPlugin(const std::string& name, const std::string& help, std::vector<double> buckets) {
  return Named(name, help, kPlugin, std::move(buckets), "inference_extension_" + name, kNoTwinLabels);
}

base::MetricOptions ByStage(const std::string& name, const std::string& help) {
  return Named(name, help, {"plugin_name", "plugin_type", "endpoint_role"}, kInputTokens);
}

// A plugin that believes something, of a config in use.
template <typename Belief>
struct Believer {
  std::string name, type;
  const Belief* belief = nullptr;
};

// Those of a config, each instance once.
template <typename Belief>
void AddBelievers(const scheduling::Config& config, std::vector<Believer<Belief>>& to) {
  for (const auto& instance : config.plugins) {
    const auto* belief = dynamic_cast<const Belief*>(instance->plugin.get());
    if (belief == nullptr) continue;
    const bool there = std::any_of(to.begin(), to.end(), [&](const Believer<Belief>& b) {
      return b.name == instance->name && b.type == instance->type;
    });
    if (!there) to.push_back({instance->name, instance->type, belief});
  }
}

template <typename Belief>
std::vector<Believer<Belief>> AllBelievers(const scheduling::ConfigSet& configs) {
  std::vector<Believer<Belief>> all;
  AddBelievers(*configs.common, all);
  for (const auto& [pool, config] : configs.of_pools) AddBelievers(*config, all);
  return all;
}

// Series by plugin: as many as there are plugins times values.
template <typename Belief>
class PluginReader final : public base::SeriesReader {
 public:
  using Value = uint64_t Belief::Totals::*;
  PluginReader(std::shared_ptr<const scheduling::ConfigSet> configs, Value value)
      : configs_(std::move(configs)), believers_(AllBelievers<Belief>(*configs_)), value_(value) {}
  Step Next(base::Series& out) override {
    if (next_ == believers_.size()) return Step::kEnd;
    const Believer<Belief>& b = believers_[next_++];
    out.labels = {b.name, b.type};
    out.value = static_cast<double>(b.belief->totals().*value_);
    return Step::kSeries;
  }

 private:
  const std::shared_ptr<const scheduling::ConfigSet> configs_;
  const std::vector<Believer<Belief>> believers_;
  const Value value_;
  size_t next_ = 0;
};

// One series: the sum over the plugins that have an index by tokens; none where nobody has.
class SumReader final : public base::SeriesReader {
 public:
  using Value = uint64_t ExactBelief::Totals::*;
  SumReader(std::shared_ptr<const scheduling::ConfigSet> configs, Value value)
      : configs_(std::move(configs)), value_(value) {}
  Step Next(base::Series& out) override {
    if (done_) return Step::kEnd;
    done_ = true;
    const auto believers = AllBelievers<ExactBelief>(*configs_);
    if (believers.empty()) return Step::kNothing;
    uint64_t sum = 0;
    for (const auto& believer : believers) sum += believer.belief->totals().*value_;
    out.labels.clear();
    out.value = static_cast<double>(sum);
    return Step::kSeries;
  }

 private:
  const std::shared_ptr<const scheduling::ConfigSet> configs_;
  const Value value_;
  bool done_ = false;
};

// Series by endpoint of every pool whose config believes something.
class EndpointReader final : public base::SeriesReader {
 public:
  using Value = uint64_t PrefixBelief::Size::*;
  EndpointReader(std::shared_ptr<const scheduling::ConfigSet> configs,
                 std::shared_ptr<const fleet::Snapshot> fleet, Value value)
      : configs_(std::move(configs)), fleet_(std::move(fleet)), value_(value) {
    pool_ = fleet_->pools.begin();
    Enter();
  }
  Step Next(base::Series& out) override {
    if (pool_ == fleet_->pools.end()) return Step::kEnd;
    const fleet::PoolSnapshot& pool = *pool_->second;
    if (next_ == pool.endpoints.size() || believers_.empty()) {
      ++pool_;
      Enter();
      return Step::kNothing;
    }
    const fleet::Endpoint& endpoint = pool.endpoints[next_++];
    const auto size = believers_.front().belief->SizeOf(*endpoint.cell);
    if (!size) return Step::kNothing;
    out.labels = {pool.key, endpoint.name, endpoint.address};
    out.value = static_cast<double>((*size).*value_);
    return Step::kSeries;
  }

 private:
  void Enter() {
    next_ = 0;
    believers_.clear();
    if (pool_ != fleet_->pools.end()) AddBelievers(configs_->Of(pool_->first), believers_);
  }

  const std::shared_ptr<const scheduling::ConfigSet> configs_;
  const std::shared_ptr<const fleet::Snapshot> fleet_;
  const Value value_;
  decltype(fleet::Snapshot::pools)::const_iterator pool_;
  std::vector<Believer<PrefixBelief>> believers_;
  size_t next_ = 0;
};

// Series by pool: `N` numbers of its tally, with the labels of each.
template <size_t N>
class TallyReader final : public base::SeriesReader {
 public:
  using Numbers = std::array<std::atomic<uint64_t>, N> fleet::PoolTally::*;
  using Labels = std::array<std::vector<std::string>, N>;
  TallyReader(std::shared_ptr<const fleet::Snapshot> fleet, Numbers numbers, const Labels& labels)
      : fleet_(std::move(fleet)), numbers_(numbers), labels_(labels), pool_(fleet_->pools.begin()) {}
  Step Next(base::Series& out) override {
    if (pool_ == fleet_->pools.end()) return Step::kEnd;
    const size_t i = next_;
    const fleet::PoolSnapshot& pool = *pool_->second;
    next_ = (next_ + 1) % N;
    if (next_ == 0) ++pool_;
    const auto& numbers = (*pool.tally).*numbers_;
    const bool any = std::any_of(numbers.begin(), numbers.end(), [](const auto& n) { return n != 0; });
    if (!any) return Step::kNothing;
    out.labels = {pool.key};
    out.labels.insert(out.labels.end(), labels_[i].begin(), labels_[i].end());
    out.value = static_cast<double>(numbers[i].load(std::memory_order_relaxed));
    return Step::kSeries;
  }

 private:
  const std::shared_ptr<const fleet::Snapshot> fleet_;
  const Numbers numbers_;
  const Labels& labels_;
  decltype(fleet::Snapshot::pools)::const_iterator pool_;
  size_t next_ = 0;
};

const TallyReader<2>::Labels kPredicted{{{"cached"}, {"uncached"}}};
const TallyReader<4>::Labels kTold{
    {{"predicted", "cached"}, {"predicted", "uncached"}, {"told", "cached"}, {"told", "uncached"}}};

}  // namespace

PrefixMetrics::PrefixMetrics(base::Registry& registry, Configs configs, Fleet fleet)
    : configs_(std::move(configs)),
      fleet_(std::move(fleet)),
      hit_ratio_(registry.AddHistogram(
          ByPlugin("prefix_indexer_hit_ratio",
                   "Ratio of prefix length matched to total prefix length in the cache lookup.", kRatios))),
      hit_bytes_(registry.AddHistogram(
          ByPlugin("prefix_indexer_hit_bytes",
                   "Length of the prefix match in number of bytes in the cache lookup.", kBytes))),
      predicted_tokens_(registry.AddHistogram(
          ByStage("prefix_predicted_cached_tokens",
                  "Prompt tokens that the chosen endpoint is predicted to hold in its prefix cache."))),
      prompt_tokens_(registry.AddHistogram(
          ByStage("prefix_prompt_tokens", "Prompt tokens of requests that were looked up."))),
      lookup_seconds_(registry
                          .AddHistogram(Named("kv_cache_index_lookup_latency_seconds",
                                              "How long looking for a prompt's blocks took, in seconds.", {},
                                              kLookupTimes))
                          .With({})) {
  AddByPlugin(registry);
  AddExact(registry);
  AddByEndpoint(registry);
  AddByPool(registry);
}

PrefixMetrics::Series PrefixMetrics::Of(std::string_view plugin, std::string_view type) {
  // Whoever computes the prompt without another profile also answers.
  constexpr std::string_view kStage = "decode";
  return {.hit_ratio = &hit_ratio_.With({plugin, type}),
          .hit_bytes = &hit_bytes_.With({plugin, type}),
          .predicted_tokens = &predicted_tokens_.With({plugin, type, kStage}),
          .prompt_tokens = &prompt_tokens_.With({plugin, type, kStage})};
}

void PrefixMetrics::AddByPlugin(base::Registry& registry) {
  using base::MetricType;
  const auto add = [&](base::MetricOptions options, MetricType type,
                       PluginReader<PrefixBelief>::Value value) {
    registry.AddComputed(std::move(options), type, [this, value] {
      return std::make_unique<PluginReader<PrefixBelief>>(configs_(), value);
    });
  };
  const auto ours = [](const char* name, const char* help) {
    return base::MetricOptions{.name = name, .help = help, .labels = kPlugin};
  };
  add(ByPlugin("prefix_indexer_size", "Size of the prefix indexer: blocks at endpoints.", {}),
      MetricType::kGauge, &PrefixBelief::Totals::entries);
  add(ours("fairway_prefix_index_blocks", "Different blocks of prompts that the index has."),
      MetricType::kGauge, &PrefixBelief::Totals::blocks);
  add(ours("fairway_prefix_index_bytes", "Memory that the index has taken."), MetricType::kGauge,
      &PrefixBelief::Totals::bytes);
  add(ours("fairway_prefix_index_max_bytes", "Memory that it may take."), MetricType::kGauge,
      &PrefixBelief::Totals::most_bytes);
  add(ours("fairway_prefix_index_inserted_total", "Blocks that endpoints got."), MetricType::kCounter,
      &PrefixBelief::Totals::inserted);
  add(ours("fairway_prefix_index_evicted_total", "Blocks that fell off an endpoint's end."),
      MetricType::kCounter, &PrefixBelief::Totals::evicted);
  add(ours("fairway_prefix_index_refused_total", "Blocks that found no room in the index."),
      MetricType::kCounter, &PrefixBelief::Totals::refused);
  add(ours("fairway_prefix_index_reads_given_up_total",
           "Blocks taken for absent, since they were being written whenever they were looked at."),
      MetricType::kCounter, &PrefixBelief::Totals::given_up);
}

// What the reference counts without a label.
void PrefixMetrics::AddExact(base::Registry& registry) {
  using base::MetricType;
  using Totals = ExactBelief::Totals;
  const auto add = [&](base::MetricOptions options, MetricType type, SumReader::Value value) {
    registry.AddComputed(std::move(options), type,
                         [this, value] { return std::make_unique<SumReader>(configs_(), value); });
  };
  const auto ours = [](const char* name, const char* help) {
    return base::MetricOptions{.name = name, .help = help};
  };
  add(Named("kv_cache_index_admissions_total", "Total number of KV-block admissions.", {}, {}),
      MetricType::kCounter, &Totals::admissions);
  add(Named("kv_cache_index_evictions_total", "Total number of KV-block evictions.", {}, {}),
      MetricType::kCounter, &Totals::evictions);
  add(Named("kv_cache_index_lookup_requests_total", "Total number of lookup calls.", {}, {}),
      MetricType::kCounter, &Totals::lookups);
  add(Named("kv_cache_index_lookup_hits_total",
            "Contiguous prefix blocks matched by the best pod per lookup.", {}, {}),
      MetricType::kCounter, &Totals::hits);
  add(Named("kv_cache_index_max_pod_hit_count_total",
            "Longest contiguous per-pod prefix chain observed per lookup.", {}, {}),
      MetricType::kCounter, &Totals::hits);
  add(ours("fairway_exact_index_blocks", "Different blocks that engines have told of."), MetricType::kGauge,
      &Totals::blocks);
  add(ours("fairway_exact_index_held_blocks", "Blocks at engines, as they have told."), MetricType::kGauge,
      &Totals::held);
  add(ours("fairway_exact_index_bytes", "Memory that the index by tokens has taken."), MetricType::kGauge,
      &Totals::bytes);
  add(ours("fairway_exact_index_max_bytes", "Memory that it may take."), MetricType::kGauge,
      &Totals::most_bytes);
  add(ours("fairway_exact_index_refused_total", "Blocks that found no room in it."), MetricType::kCounter,
      &Totals::refused);
}

void PrefixMetrics::AddByEndpoint(base::Registry& registry) {
  using Size = PrefixBelief::Size;
  const auto add = [&](const char* name, const char* help, EndpointReader::Value value) {
    registry.AddComputed(
        {.name = name, .help = help, .labels = {"pool", "endpoint", "address"}}, base::MetricType::kGauge,
        [this, value] { return std::make_unique<EndpointReader>(configs_(), fleet_(), value); });
  };
  add("fairway_prefix_endpoint_tokens", "Prompt tokens that the endpoint is believed to have cached.",
      &Size::tokens);
  add("fairway_prefix_endpoint_capacity_tokens",
      "How many it is believed to keep: as its page says, corrected by its answers.", &Size::capacity);
}

void PrefixMetrics::AddByPool(base::Registry& registry) {
  registry.AddComputed(
      {.name = "fairway_prefix_predicted_tokens_total",
       .help = "Prompt tokens by whether the chosen endpoint was believed to have them cached.",
       .labels = {"pool", "state"}},
      base::MetricType::kCounter, [this] {
        return std::make_unique<TallyReader<2>>(fleet_(), &fleet::PoolTally::predicted, kPredicted);
      });
  registry.AddComputed(
      {.name = "fairway_prefix_answered_tokens_total",
       .help =
           "Prompt tokens of requests whose answers tell of cached tokens, as predicted (estimated) and as "
           "told (the engine's).",
       .labels = {"pool", "source", "state"}},
      base::MetricType::kCounter,
      [this] { return std::make_unique<TallyReader<4>>(fleet_(), &fleet::PoolTally::told, kTold); });
}

}  // namespace fairway::routing
