// How full endpoints are by queue and KV use: what detectors and admitters compare.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"

namespace fairway::scheduling {

// max(queue / queueDepthThreshold (5), KV use / kvCacheUtilThreshold (0.8)), as on the page: from 1 on an
// endpoint is full. One whose page is stale counts as the average of the others (gather.h); in the reference
// it is full, so that a slow scrape looks like overload.
class Fullness {
 public:
  Fullness(Build& build, double most_kv)
      : queue_(build.Reads("page-queue")),
        kv_usage_(build.Reads("kv-usage")),
        queue_limit_(
            static_cast<float>(build.Integer("queueDepthThreshold", 5, 1, std::numeric_limits<int32_t>::max(),
                                             "Queue at which an endpoint is full"))),
        kv_limit_(build.Float("kvCacheUtilThreshold", 0.8, 0, most_kv,
                              "Share of the KV cache in use at which it is full")) {
    if (kv_limit_ == 0) build.Error("kvCacheUtilThreshold", "must be above 0");
  }

  float Mean(const Columns& columns) const noexcept {
    float sum = 0;
    for (uint32_t i = 0; i < columns.size(); ++i)
      sum += std::max(columns[queue_][i] / queue_limit_, columns[kv_usage_][i] / kv_limit_);
    return columns.size() == 0 ? 1 : sum / static_cast<float>(columns.size());
  }
  // `more`: limits times this.
  bool Below(const Columns& columns, uint32_t position, float more) const noexcept {
    return columns[queue_][position] < queue_limit_ * more && columns[kv_usage_][position] < kv_limit_ * more;
  }
  std::string Why(const Columns& columns, uint32_t position, float more) const {
    return "queue " + Short(columns[queue_][position]) + " and KV use " +
           Percent(columns[kv_usage_][position]) + " are not both below " + Short(queue_limit_ * more) +
           " and " + Percent(kv_limit_ * more);
  }

 private:
  Column queue_, kv_usage_;
  float queue_limit_;
  float kv_limit_;
};

// `headroom` (0): so much more than its limit a filter lets through.
inline float ReadHeadroom(Build& build) {
  const float headroom =
      build.Float("headroom", 0, 0, 1e6, "Share beyond the limits that filters still let through");
  if (headroom > 1) build.Warn("headroom", "is a share, not percent");
  return 1 + headroom;
}

}  // namespace fairway::scheduling
