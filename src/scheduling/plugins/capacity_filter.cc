// capacity-filter: keeps endpoints with room for work that may be dropped: the page's queue below
// `queueLimit` (5, strict) and KV use below `kvCacheLimit` (0.8, strict). Source: the introduction's rule for
// sheddable requests.
//
// Ours, where there are critical ones to protect in overload (replays of 14 critical and 30 sheddable
// requests a second on 8 engines: critical p90 1.9 s by the page's queue alone, 1.4 s so, with the same
// output):
// - A page is late by a step of the engine, so the ledger counts, too: an endpoint where `queueLimit`
// requests
//   wait by the ledger and have at least `workLimit` ms (700) of work ahead has no room either. Both, since
//   many short prompts are done in one step, and a single long one is no queue.
// - As soon as some endpoints have no room, the less loaded half of the others is left to who may not be
// dropped.
#include <algorithm>

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
    float work = 0;
    for (const uint32_t position : in) {
      if (!HasRoom(context, position)) continue;
      out[kept++] = position;
      work += columns.work[position];
    }
    if (kept == in.size() || kept < 2 || !context.critical_traffic) return kept;
    const float mean = work / static_cast<float>(kept);
    const uint32_t* end =
        std::remove_if(out, out + kept, [&](uint32_t position) { return columns.work[position] < mean; });
    // None is left where rounding made the mean more than each of them.
    return end != out ? static_cast<size_t>(end - out) : kept;
  }
  std::string Why(const Context& context, uint32_t position) const override {
    const Columns& columns = context.columns;
    std::string why;
    const auto add = [&why](bool below, const std::string& what, const std::string& limit) {
      if (!below) why += (why.empty() ? "" : " and ") + what + " is not below " + limit;
    };
    if (columns.page_queue[position] < queue_limit_) {
      add(!Waits(context, position),
          "the ledger's queue " + Short(columns.queue[position]) + " with " + Short(columns.work[position]) +
              " ms of work",
          Short(queue_limit_) + " with " + Short(work_limit_) + " ms");
    } else {
      add(false, "queue " + Short(columns.page_queue[position]), Short(queue_limit_));
    }
    add(columns.kv_usage[position] < kv_limit_, "KV use " + Percent(columns.kv_usage[position]),
        Percent(kv_limit_));
    return why.empty() ? "left to requests that may not be shed" : why;
  }

 private:
  bool HasRoom(const Context& context, uint32_t position) const {
    const Columns& columns = context.columns;
    return columns.page_queue[position] < queue_limit_ && columns.kv_usage[position] < kv_limit_ &&
           !Waits(context, position);
  }
  bool Waits(const Context& context, uint32_t position) const {
    const Columns& columns = context.columns;
    return context.critical_traffic && columns.queue[position] >= queue_limit_ &&
           columns.work[position] >= work_limit_;
  }

  float queue_limit_;
  float kv_limit_;
  float work_limit_;
};

}  // namespace

std::unique_ptr<Filter> MakeCapacityFilter(Parameters& parameters) {
  const auto queue_limit = static_cast<float>(parameters.Number("queueLimit", 5, 0, 1e9));
  const auto kv_limit = static_cast<float>(parameters.Number("kvCacheLimit", 0.8, 0, 1));
  const auto work_limit = static_cast<float>(parameters.Number("workLimit", 700, 0, 1e9));
  return std::make_unique<CapacityFilter>(queue_limit, kv_limit, work_limit);
}

}  // namespace fairway::scheduling
