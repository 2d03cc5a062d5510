// Numbers as reasons show them: "60", "0.85", "42.5".
#pragma once

#include <array>
#include <cstdio>
#include <string>

namespace fairway::scheduling {

inline std::string Short(double value) {
  std::array<char, 32> out{};
  std::snprintf(out.data(), out.size(), "%.4g", value);
  return out.data();
}

inline std::string Percent(double share) { return Short(share * 100) + " %"; }

}  // namespace fairway::scheduling
