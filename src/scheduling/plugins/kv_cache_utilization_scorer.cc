// kv-cache-utilization-scorer: 1 - KV use. No parameters. Source: the reference's scorer of this name
// (llm-d router).
#include <algorithm>

#include "scheduling/plugins/adding_scorer.h"
#include "scheduling/plugins/lanes.h"

namespace fairway::scheduling {
namespace {

class KvCacheUtilizationScorer final : public AddingScorer {
 public:
  std::string_view type() const noexcept override { return "kv-cache-utilization-scorer"; }
  void Add(const Context& context, std::span<const uint32_t> in, float weight, float* total,
           float*) const noexcept override {
    const float* used = context.columns.kv_usage.data();
    size_t i = 0;
    // Positions keep their order: as many as there are candidates are all of them.
    if (in.size() == context.columns.size()) {
      for (; i + kLanes <= in.size(); i += kLanes) {
        const Lanes free = Least(Greatest(1.0f - Load(used + i), Fill(0)), Fill(1));
        Store(Load(total + i) + free * weight, total + i);
      }
    }
    for (; i < in.size(); ++i) total[i] += std::clamp(1.0f - used[in[i]], 0.0f, 1.0f) * weight;
  }
};

}  // namespace

std::unique_ptr<Scorer> MakeKvCacheUtilizationScorer(Parameters&) {
  return std::make_unique<KvCacheUtilizationScorer>();
}

}  // namespace fairway::scheduling
