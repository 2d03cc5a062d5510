// queue-scorer: (max - v) / (max - min) of the queue with own reservations over the candidates; 1 for all
// when they are equal. No parameters. Source: the reference's scorer of this name (llm-d
// router).
#include "scheduling/plugins/adding_scorer.h"
#include "scheduling/plugins/inverse_range.h"

namespace fairway::scheduling {
namespace {

class QueueScorer final : public AddingScorer {
 public:
  std::string_view type() const noexcept override { return "queue-scorer"; }
  void Add(const Context& context, std::span<const uint32_t> in, float weight, float* total,
           float*) const noexcept override {
    AddInverseRange(context.columns.queue, in, weight, total);
  }
};

}  // namespace

std::unique_ptr<Scorer> MakeQueueScorer(Parameters&) { return std::make_unique<QueueScorer>(); }

}  // namespace fairway::scheduling
