// capacity-filter: keeps endpoints with room for work that may be dropped: the page's queue below
// `queueLimit` (5, strict) and KV use below `kvCacheLimit` (0.8, strict). Source: the introduction's rule for
// sheddable requests.
//
// Ours: and less work ahead than `workLimit` ms (default: no limit). A page is late by a step of the engine,
// so in overload five requests and more wait before it says so, and a critical request behind them.
#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"

namespace fairway::scheduling {
namespace {

class CapacityFilter final : public Filter {
 public:
  CapacityFilter(float queue_limit, float kv_limit, float work_limit)
      : queue_limit_(queue_limit), kv_limit_(kv_limit), work_limit_(work_limit) {}
  std::string_view type() const noexcept override { return "capacity-filter"; }
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    const Columns& columns = context.columns;
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      kept += columns.page_queue[position] < queue_limit_ && columns.kv_usage[position] < kv_limit_ &&
                      columns.work[position] < work_limit_
                  ? 1
                  : 0;
    }
    return kept;
  }
  std::string Why(const Context& context, uint32_t position) const override {
    const Columns& columns = context.columns;
    std::string why;
    const auto add = [&why](bool below, const std::string& what, const std::string& limit) {
      if (!below) why += (why.empty() ? "" : " and ") + what + " is not below " + limit;
    };
    add(columns.page_queue[position] < queue_limit_, "queue " + Short(columns.page_queue[position]),
        Short(queue_limit_));
    add(columns.kv_usage[position] < kv_limit_, "KV use " + Percent(columns.kv_usage[position]),
        Percent(kv_limit_));
    add(columns.work[position] < work_limit_, "work ahead of " + Short(columns.work[position]) + " ms",
        Short(work_limit_) + " ms");
    return why;
  }

 private:
  float queue_limit_;
  float kv_limit_;
  float work_limit_;
};

}  // namespace

std::unique_ptr<Filter> MakeCapacityFilter(Parameters& parameters) {
  const auto queue_limit = static_cast<float>(parameters.Number("queueLimit", 5, 0, 1e9));
  const auto kv_limit = static_cast<float>(parameters.Number("kvCacheLimit", 0.8, 0, 1));
  const auto work_limit = static_cast<float>(parameters.Number("workLimit", 1e9, 0, 1e9));
  return std::make_unique<CapacityFilter>(queue_limit, kv_limit, work_limit);
}

}  // namespace fairway::scheduling
