// lora-affinity-scorer: 1.0 where the adapter runs, 0.8 where there is room to load it, 0.6 where requests
// wait for it, else 0, all as on the page. No parameters. Source: the reference's scorer of this name (llm-d
// router).
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class LoraAffinityScorer final : public Scorer {
 public:
  std::string_view type() const noexcept override { return "lora-affinity-scorer"; }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    for (size_t i = 0; i < in.size(); ++i) {
      const uint8_t lora = context.columns.lora[in[i]];
      out[i] = (lora & kLoraRunning) != 0   ? 1.0f
               : (lora & kLoraRoom) != 0    ? 0.8f
               : (lora & kLoraWaiting) != 0 ? 0.6f
                                            : 0.0f;
    }
  }
};

}  // namespace

std::unique_ptr<Scorer> MakeLoraAffinityScorer(Parameters&) { return std::make_unique<LoraAffinityScorer>(); }

}  // namespace fairway::scheduling
