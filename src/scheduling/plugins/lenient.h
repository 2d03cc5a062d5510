// Numbers that the reference puts right instead of refusing them: with a warning here.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "scheduling/build.h"
#include "scheduling/plugins/format.h"

namespace fairway::scheduling {

// What is not above 0 counts as the default.
inline float PositiveOr(Build& build, std::string_view parameter, int64_t otherwise, std::string_view help) {
  int64_t value = build.Integer(parameter, otherwise, std::numeric_limits<int64_t>::min(),
                                std::numeric_limits<int64_t>::max(), help);
  if (value <= 0) {
    build.Warn(parameter, "is not above 0 and counts as " + std::to_string(otherwise));
    value = otherwise;
  }
  return static_cast<float>(value);
}

// What is out of the range counts as the default.
inline float WithinOr(Build& build, std::string_view parameter, double otherwise, double min, double max,
                      std::string_view help) {
  double value = build.Number(parameter, otherwise, std::numeric_limits<double>::lowest(),
                              std::numeric_limits<double>::max(), help);
  if (!(value >= min && value <= max)) {
    build.Warn(parameter,
               "is not from " + Short(min) + " to " + Short(max) + " and counts as " + Short(otherwise));
    value = otherwise;
  }
  return static_cast<float>(value);
}

// The reference has several counters of what is under way, and names that choose among them.
inline constexpr std::string_view kOneLedger = "one ledger counts what is under way for all plugins";

}  // namespace fairway::scheduling
