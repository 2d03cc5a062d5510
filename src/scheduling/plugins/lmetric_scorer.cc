// lmetric-scorer: 1 / (1 + v / 1000) of v = (ms of prompts still to be computed, this request's included)
// * (open requests + 1): the less both, the better. No parameters. Source: LMetric (OSDI 2026, arXiv
// 2603.15202), which multiplies uncached tokens and batch size; ours has milliseconds for tokens, so that
// engines of unequal rates can be compared.
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class LmetricScorer final : public Plugin, public Scorer {
 public:
  explicit LmetricScorer(Build& build)
      : work_(build.Reads("work")), prefill_(build.Reads("prefill")), requests_(build.Reads("requests")) {
    build.Reads(kCachedTokens);  // "prefill" is without them where somebody makes them
  }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const float* work = context.columns[work_];
    const float* prefill = context.columns[prefill_];
    const float* requests = context.columns[requests_];
    for (size_t i = 0; i < in.size(); ++i) {
      const uint32_t at = in[i];
      const float metric = (work[at] + prefill[at]) * (requests[at] + 1);
      out[i] = 1 / (1 + metric / 1000);
    }
  }

 private:
  Column work_, prefill_, requests_;
};

}  // namespace

std::unique_ptr<Plugin> MakeLmetricScorer(Build& build) { return std::make_unique<LmetricScorer>(build); }

}  // namespace fairway::scheduling
