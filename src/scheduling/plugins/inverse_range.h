// (max - v) / (max - min): 1 for the least value, 0 for the greatest, 1 for all when they are equal.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

namespace fairway::scheduling {

// out[i] is that of column[in[i]], over the positions of `in`.
inline void InverseRange(std::span<const float> column, std::span<const uint32_t> in, float* out) noexcept {
  float low = std::numeric_limits<float>::max();
  float high = std::numeric_limits<float>::lowest();
  for (const uint32_t position : in) {
    low = std::min(low, column[position]);
    high = std::max(high, column[position]);
  }
  const float range = high - low;
  for (size_t i = 0; i < in.size(); ++i) out[i] = range > 0 ? (high - column[in[i]]) / range : 1.0f;
}

}  // namespace fairway::scheduling
