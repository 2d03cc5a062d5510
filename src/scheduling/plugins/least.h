// "Least" as the classic scheduler has it (gateway-api-inference-extension v0.3.0, pkg/epp/scheduling), with
// real division: keeps values within min .. min + (max - min) / n of its n inputs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

namespace fairway::scheduling {

inline float LeastLimit(const float* column, std::span<const uint32_t> in) noexcept {
  float low = std::numeric_limits<float>::max();
  float high = std::numeric_limits<float>::lowest();
  for (const uint32_t position : in) {
    low = std::min(low, column[position]);
    high = std::max(high, column[position]);
  }
  return low + (high - low) / static_cast<float>(in.size());
}

// `more`: the limit is at least this.
inline size_t KeepLeast(const float* column, std::span<const uint32_t> in, float more,
                        uint32_t* out) noexcept {
  if (in.empty()) return 0;
  const float limit = std::max(LeastLimit(column, in), more);
  size_t kept = 0;
  for (const uint32_t position : in) {
    out[kept] = position;
    kept += column[position] <= limit ? 1 : 0;
  }
  return kept;
}

}  // namespace fairway::scheduling
