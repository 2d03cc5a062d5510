// queue-limit-filter: keeps endpoints whose queue on the page is below `limit` (default 50, strict).
// Source: the introduction's "queue shorter than 50" for critical requests; the classic scheduler's
// low-queueing filter.
#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"

namespace fairway::scheduling {
namespace {

class QueueLimitFilter final : public Plugin, public Filter {
 public:
  explicit QueueLimitFilter(Build& build)
      : page_queue_(build.Reads("page-queue")),
        limit_(build.Float("limit", 50, 0, 1e9, "Keeps endpoints with a shorter queue")) {}
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    const float* page_queue = context.columns[page_queue_];
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      kept += page_queue[position] < limit_ ? 1 : 0;
    }
    return kept;
  }
  std::string Why(const Context& context, uint32_t position) const override {
    return "queue " + Short(context.columns[page_queue_][position]) + " is not below " + Short(limit_);
  }

 private:
  Column page_queue_;
  float limit_;
};

}  // namespace

std::unique_ptr<Plugin> MakeQueueLimitFilter(Build& build) {
  return std::make_unique<QueueLimitFilter>(build);
}

}  // namespace fairway::scheduling
