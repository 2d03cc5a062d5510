// What pickers have in common.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "scheduling/build.h"
#include "scheduling/scheduler.h"

namespace fairway::scheduling {

// `maxNumOfEndpoints`: how many choices a request gets, the first one and those that follow when it fails; at
// most 8. Where it is not given: as many as the process says (SchedulerOptions::max_choices; the reference:
// 1). As in the reference, what is not above 0 counts as 1.
inline uint32_t ReadMaxChoices(Build& build) {
  constexpr std::string_view kName = "maxNumOfEndpoints";
  const int64_t given = build.Integer(kName, 1, INT32_MIN, INT32_MAX,
                                      "Endpoints that are given, 1 to 8; else as many as --max-endpoints");
  if (!build.Given(kName)) return 0;
  const int64_t used = std::clamp<int64_t>(given, 1, kMaxChoices);
  if (used != given) build.Warn(kName, "counts as " + std::to_string(used));
  return static_cast<uint32_t>(used);
}

}  // namespace fairway::scheduling
