// running-requests-size-scorer: (max - v) / (max - min) of the running requests over the candidates; 1 for
// all when they are equal. No parameters. Source: the reference's scorer of this name (llm-d router).
#include "scheduling/plugin.h"
#include "scheduling/plugins/inverse_range.h"

namespace fairway::scheduling {
namespace {

class RunningRequestsScorer final : public Scorer {
 public:
  std::string_view type() const noexcept override { return "running-requests-size-scorer"; }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    InverseRange(context.columns.running, in, out);
  }
};

}  // namespace

std::unique_ptr<Scorer> MakeRunningRequestsScorer(Parameters&) {
  return std::make_unique<RunningRequestsScorer>();
}

}  // namespace fairway::scheduling
