// least-queue-filter: keeps the shortest queues, own reservations since the last scrape counted in: values
// within min .. min + (max - min) / n. No parameters. Source: gateway-api-inference-extension v0.3.0,
// filter.go; see least.h.
#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"
#include "scheduling/plugins/least.h"

namespace fairway::scheduling {
namespace {

class LeastQueueFilter final : public Filter {
 public:
  std::string_view type() const noexcept override { return "least-queue-filter"; }
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    return KeepLeast(context.columns.queue, in, out);
  }
  std::string Why(const Context& context, uint32_t position) const override {
    return "queue " + Short(context.columns.queue[position]) + " is not among the least";
  }
};

}  // namespace

std::unique_ptr<Filter> MakeLeastQueueFilter(Parameters&) { return std::make_unique<LeastQueueFilter>(); }

}  // namespace fairway::scheduling
