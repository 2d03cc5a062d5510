// lora-affinity-scorer: 1.0 where the adapter runs, 0.8 where there is room to load it, 0.6 where requests
// wait for it, else 0. No parameters. Source: the reference's scorer of this name (llm-d router).
#include "scheduling/plugins/adding_scorer.h"
#include "scheduling/plugins/lora_scores.h"

namespace fairway::scheduling {
namespace {

class LoraAffinityScorer final : public AddingScorer {
 public:
  std::string_view type() const noexcept override { return "lora-affinity-scorer"; }
  void Add(const Context& context, std::span<const uint32_t> in, float weight, float* total,
           float*) const noexcept override {
    if (context.columns.lora_bits == 0) return;  // 0 for all
    const uint8_t* lora = context.columns.lora.data();
    if (in.size() == context.columns.size()) {
      for (size_t i = 0; i < in.size(); ++i) total[i] += kLoraScores[lora[i] & 7] * weight;
      return;
    }
    for (size_t i = 0; i < in.size(); ++i) total[i] += kLoraScores[lora[in[i]] & 7] * weight;
  }
};

}  // namespace

std::unique_ptr<Scorer> MakeLoraAffinityScorer(Parameters&) { return std::make_unique<LoraAffinityScorer>(); }

}  // namespace fairway::scheduling
