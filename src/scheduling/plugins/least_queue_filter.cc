// least-queue-filter: keeps the shortest queues by the ledger: values within min .. min + (max - min) / n, or
// min .. min + `slack` (0) where that is more. Source: gateway-api-inference-extension v0.3.0, filter.go,
// which has no slack; see least.h. Ours is for queues that several pickers see late.
#include <algorithm>
#include <limits>

#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"
#include "scheduling/plugins/least.h"

namespace fairway::scheduling {
namespace {

class LeastQueueFilter final : public Plugin, public Filter {
 public:
  explicit LeastQueueFilter(Build& build)
      : queue_(build.Reads("queue")),
        slack_(build.Float("slack", 0, 0, 1e9, "Requests more than the shortest queue that are all alike")) {}
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    const float* queue = context.columns[queue_];
    float low = std::numeric_limits<float>::max();
    for (const uint32_t position : in) low = std::min(low, queue[position]);
    return KeepLeast(queue, in, low + slack_, out);
  }
  std::string Why(const Context& context, uint32_t position) const override {
    return "queue " + Short(context.columns[queue_][position]) + " is not among the least";
  }

 private:
  Column queue_;
  float slack_;
};

}  // namespace

std::unique_ptr<Plugin> MakeLeastQueueFilter(Build& build) {
  return std::make_unique<LeastQueueFilter>(build);
}

}  // namespace fairway::scheduling
