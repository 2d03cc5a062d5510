// kv-cache-utilization-scorer: 1 - KV use. No parameters. Source: the reference's scorer of this name (llm-d
// router).
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class KvCacheUtilizationScorer final : public Scorer {
 public:
  std::string_view type() const noexcept override { return "kv-cache-utilization-scorer"; }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    for (size_t i = 0; i < in.size(); ++i) out[i] = 1.0f - context.columns.kv_usage[in[i]];
  }
};

}  // namespace

std::unique_ptr<Scorer> MakeKvCacheUtilizationScorer(Parameters&) {
  return std::make_unique<KvCacheUtilizationScorer>();
}

}  // namespace fairway::scheduling
