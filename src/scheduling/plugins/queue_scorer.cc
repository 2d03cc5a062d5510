// queue-scorer: (max - v) / (max - min) of the queue over the candidates; 1 for all when they are equal. No
// parameters. Source: the reference's scorer of this name (llm-d router).
#include "scheduling/plugin.h"
#include "scheduling/plugins/inverse_range.h"

namespace fairway::scheduling {
namespace {

class QueueScorer final : public Scorer {
 public:
  std::string_view type() const noexcept override { return "queue-scorer"; }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    InverseRange(context.columns.queue, in, out);
  }
};

}  // namespace

std::unique_ptr<Scorer> MakeQueueScorer(Parameters&) { return std::make_unique<QueueScorer>(); }

}  // namespace fairway::scheduling
