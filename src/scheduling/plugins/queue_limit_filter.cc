// queue-limit-filter: keeps endpoints whose queue on the page is below `limit` (default 50, strict).
// Source: the introduction's "queue shorter than 50" for critical requests; the classic scheduler's
// low-queueing filter.
#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"

namespace fairway::scheduling {
namespace {

class QueueLimitFilter final : public Filter {
 public:
  explicit QueueLimitFilter(float limit) : limit_(limit) {}
  std::string_view type() const noexcept override { return "queue-limit-filter"; }
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      kept += context.columns.page_queue[position] < limit_ ? 1 : 0;
    }
    return kept;
  }
  std::string Why(const Context& context, uint32_t position) const override {
    return "queue " + Short(context.columns.page_queue[position]) + " is not below " + Short(limit_);
  }

 private:
  float limit_;
};

}  // namespace

std::unique_ptr<Filter> MakeQueueLimitFilter(Parameters& parameters) {
  return std::make_unique<QueueLimitFilter>(static_cast<float>(parameters.Number("limit", 50, 0, 1e9)));
}

}  // namespace fairway::scheduling
