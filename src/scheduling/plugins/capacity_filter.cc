// capacity-filter: keeps endpoints with room for work that may be dropped: scraped queue below `queueLimit`
// (5, strict) and KV use below `kvCacheLimit` (0.8, strict). Source: the introduction's rule for sheddable
// requests.
#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"

namespace fairway::scheduling {
namespace {

class CapacityFilter final : public Filter {
 public:
  CapacityFilter(float queue_limit, float kv_limit) : queue_limit_(queue_limit), kv_limit_(kv_limit) {}
  std::string_view type() const noexcept override { return "capacity-filter"; }
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    const Columns& columns = context.columns;
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      kept +=
          columns.scraped_queue[position] < queue_limit_ && columns.kv_usage[position] < kv_limit_ ? 1 : 0;
    }
    return kept;
  }
  std::string Why(const Context& context, uint32_t position) const override {
    std::string why;
    if (!(context.columns.scraped_queue[position] < queue_limit_)) {
      why =
          "queue " + Short(context.columns.scraped_queue[position]) + " is not below " + Short(queue_limit_);
    }
    if (!(context.columns.kv_usage[position] < kv_limit_)) {
      if (!why.empty()) why += " and ";
      why += "KV use " + Percent(context.columns.kv_usage[position]) + " is not below " + Percent(kv_limit_);
    }
    return why;
  }

 private:
  float queue_limit_;
  float kv_limit_;
};

}  // namespace

std::unique_ptr<Filter> MakeCapacityFilter(Parameters& parameters) {
  const auto queue_limit = static_cast<float>(parameters.Number("queueLimit", 5, 0, 1e9));
  const auto kv_limit = static_cast<float>(parameters.Number("kvCacheLimit", 0.8, 0, 1));
  return std::make_unique<CapacityFilter>(queue_limit, kv_limit);
}

}  // namespace fairway::scheduling
