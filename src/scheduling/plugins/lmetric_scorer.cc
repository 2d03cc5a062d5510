// lmetric-scorer: 1 / (1 + v / 1000) of v = (ms of prompts still to be computed, this request's included)
// * (open requests + 1): the less both, the better. No parameters. Source: LMetric (OSDI 2026, arXiv
// 2603.15202), which multiplies uncached tokens and batch size; ours has milliseconds for tokens, so that
// engines of unequal rates can be compared.
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class LmetricScorer final : public Scorer {
 public:
  std::string_view type() const noexcept override { return "lmetric-scorer"; }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const Columns& columns = context.columns;
    for (size_t i = 0; i < in.size(); ++i) {
      const uint32_t at = in[i];
      const float metric = (columns.work[at] + columns.prefill[at]) * (columns.requests[at] + 1);
      out[i] = 1 / (1 + metric / 1000);
    }
  }
};

}  // namespace

std::unique_ptr<Scorer> MakeLmetricScorer(Parameters&) { return std::make_unique<LmetricScorer>(); }

}  // namespace fairway::scheduling
