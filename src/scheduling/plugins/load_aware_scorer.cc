// load-aware-scorer: 0.5 * (1 - min(queue, threshold) / threshold); so at most 0.5, which weights in use
// count on. `threshold`: 128. Source: the reference's scorer of this name (llm-d router).
#include <algorithm>

#include "scheduling/plugin.h"
#include "scheduling/plugins/lenient.h"

namespace fairway::scheduling {
namespace {

class LoadAwareScorer final : public Plugin, public Scorer {
 public:
  explicit LoadAwareScorer(Build& build)
      : queue_(build.Reads("queue")),
        threshold_(PositiveOr(build, "threshold", 128, "Queue that scores 0; below 1 counts as 128")) {}
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const float* queue = context.columns[queue_];
    for (size_t i = 0; i < in.size(); ++i)
      out[i] = 0.5f * (1 - std::min(queue[in[i]], threshold_) / threshold_);
  }

 private:
  Column queue_;
  float threshold_;
};

}  // namespace

std::unique_ptr<Plugin> MakeLoadAwareScorer(Build& build) { return std::make_unique<LoadAwareScorer>(build); }

}  // namespace fairway::scheduling
