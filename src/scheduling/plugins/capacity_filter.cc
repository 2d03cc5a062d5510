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

class CapacityFilter final : public Plugin, public Filter {
 public:
  explicit CapacityFilter(Build& build)
      : page_queue_(build.Reads("page-queue")),
        queue_(build.Reads("queue")),
        kv_usage_(build.Reads("kv-usage")),
        work_(build.Reads("work")),
        queue_limit_(build.Float("queueLimit", 5, 0, 1e9, "Keeps endpoints with a shorter queue")),
        kv_limit_(build.Float("kvCacheLimit", 0.8, 0, 1, "... and with less of their KV cache in use")),
        work_limit_(build.Float("workLimit", 700, 0, 1e9,
                                "... and less work ahead, in ms, where as many wait by the ledger")) {}
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    const float* work = context.columns[work_];
    size_t kept = 0;
    float sum = 0;
    for (const uint32_t position : in) {
      if (!HasRoom(context, position)) continue;
      out[kept++] = position;
      sum += work[position];
    }
    if (kept == in.size() || kept < 2 || !context.critical_traffic) return kept;
    const float mean = sum / static_cast<float>(kept);
    const uint32_t* end =
        std::remove_if(out, out + kept, [&](uint32_t position) { return work[position] < mean; });
    // None is left where rounding made the mean more than each of them.
    return end != out ? static_cast<size_t>(end - out) : kept;
  }
  std::string Why(const Context& context, uint32_t position) const override {
    const Columns& columns = context.columns;
    std::string why;
    const auto add = [&why](bool below, const std::string& what, const std::string& limit) {
      if (!below) why += (why.empty() ? "" : " and ") + what + " is not below " + limit;
    };
    if (columns[page_queue_][position] < queue_limit_) {
      add(!Waits(context, position),
          "the ledger's queue " + Short(columns[queue_][position]) + " with " +
              Short(columns[work_][position]) + " ms of work",
          Short(queue_limit_) + " with " + Short(work_limit_) + " ms");
    } else {
      add(false, "queue " + Short(columns[page_queue_][position]), Short(queue_limit_));
    }
    add(columns[kv_usage_][position] < kv_limit_, "KV use " + Percent(columns[kv_usage_][position]),
        Percent(kv_limit_));
    return why.empty() ? "left to requests that may not be shed" : why;
  }

 private:
  bool HasRoom(const Context& context, uint32_t position) const {
    const Columns& columns = context.columns;
    return columns[page_queue_][position] < queue_limit_ && columns[kv_usage_][position] < kv_limit_ &&
           !Waits(context, position);
  }
  bool Waits(const Context& context, uint32_t position) const {
    const Columns& columns = context.columns;
    return context.critical_traffic && columns[queue_][position] >= queue_limit_ &&
           columns[work_][position] >= work_limit_;
  }

  Column page_queue_, queue_, kv_usage_, work_;
  float queue_limit_;
  float kv_limit_;
  float work_limit_;
};

}  // namespace

std::unique_ptr<Plugin> MakeCapacityFilter(Build& build) { return std::make_unique<CapacityFilter>(build); }

}  // namespace fairway::scheduling
