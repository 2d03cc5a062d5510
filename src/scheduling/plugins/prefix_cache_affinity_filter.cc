// prefix-cache-affinity-filter: keeps the endpoints that have at least `affinityThreshold` (0.8) of the
// request's blocks, unless the best of them would answer more than `maxTTFTPenaltyMs` (18000; 0: never) later
// than the best of the others. Nobody has so many: all stay. With `explorationProbability` (0) all stay
// anyway. How soon an endpoint answers: prompt tokens to be computed there / `peakPrefillThroughput` (15928
// a second), without those of this request. Source: the reference's filter of this name (llm-d router) with
// `ttftSource` prefillThroughput; latencyPredictor wants a service beside the picker, which is not offered.
#include <algorithm>
#include <limits>

#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"
#include "scheduling/plugins/lenient.h"
#include "scheduling/plugins/prefix.h"

namespace fairway::scheduling {
namespace {

class PrefixCacheAffinityFilter final : public Plugin, public Filter {
 public:
  explicit PrefixCacheAffinityFilter(Build& build)
      : tokens_(build.Reads("tokens")),
        threshold_(
            build.Float("affinityThreshold", 0.8, -1e9, 1,
                        "Endpoints that have this share of the prompt cached are kept; 0 or less: all are")),
        exploration_(build.Number("explorationProbability", 0, 0, 1,
                                  "Share of requests for which all endpoints stay")),
        penalty_(build.Float("maxTTFTPenaltyMs", 18'000, 0, 1e12,
                             "How much later, in ms, the first token may come for affinity; 0: any")) {
    match_ = PrefixColumns(build).Read(build, kPrefixMatch);
    const double throughput = build.Number("peakPrefillThroughput", 15'928, 0, 1e12,
                                           "Prompt tokens that an endpoint computes in a second");
    if (throughput == 0 && penalty_ > 0) build.Error("peakPrefillThroughput", "must be above 0");
    ms_per_token_ = static_cast<float>(1000 / std::max(throughput, 1e-9));
    if (build.Choice("ttftSource", {"prefillThroughput", "latencyPredictor"}, 0,
                     "Where the estimate comes from; prefillThroughput is all there is") == 1)
      build.Error("ttftSource", "latencyPredictor is not offered; want prefillThroughput");
    build.NoEffect({"latencyPredictionInfoProducerName"}, "there is no latency predictor");
    build.NoEffect({"inFlightLoadProducerName"}, kOneLedger);
  }

  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    const auto all = [&] {
      std::copy(in.begin(), in.end(), out);
      return in.size();
    };
    if (in.size() <= 1 || threshold_ <= 0) return all();
    if (exploration_ > 0 && context.random.NextDouble() < exploration_) return all();
    const float* match = context.columns[match_];
    const float* tokens = context.columns[tokens_];
    constexpr float kNone = std::numeric_limits<float>::infinity();
    float sticky = kNone;
    float other = kNone;
    size_t kept = 0;
    for (const uint32_t position : in) {
      const bool keeps = match[position] >= threshold_;
      float& best = keeps ? sticky : other;
      best = std::min(best, tokens[position]);
      out[kept] = position;
      kept += keeps ? 1 : 0;
    }
    if (kept == 0) return all();
    if (penalty_ > 0 && kept < in.size() && (sticky - other) * ms_per_token_ > penalty_) return all();
    return kept;
  }
  std::string Why(const Context& context, uint32_t position) const override {
    return Percent(context.columns[match_][position]) + " of its blocks are cached there, less than " +
           Percent(threshold_);
  }

 private:
  Column tokens_, match_;
  float threshold_;
  double exploration_;
  float penalty_;
  float ms_per_token_ = 0;
};

}  // namespace

std::unique_ptr<Plugin> MakePrefixCacheAffinityFilter(Build& build) {
  return std::make_unique<PrefixCacheAffinityFilter>(build);
}

}  // namespace fairway::scheduling
