// (max - v) / (max - min): 1 for the least value, 0 for the greatest, 1 for all when they are equal.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

namespace fairway::scheduling {

// Four ways at once, so that no comparison waits for the one before it. Which of equal values is found first
// makes no difference.
template <typename At>
inline std::pair<float, float> RangeOf(size_t size, At at) noexcept {
  float low[4];
  float high[4];
  std::fill_n(low, 4, std::numeric_limits<float>::max());
  std::fill_n(high, 4, std::numeric_limits<float>::lowest());
  size_t i = 0;
  for (; i + 4 <= size; i += 4) {
    for (size_t k = 0; k < 4; ++k) {
      const float value = at(i + k);
      low[k] = std::min(low[k], value);
      high[k] = std::max(high[k], value);
    }
  }
  for (; i < size; ++i) {
    low[0] = std::min(low[0], at(i));
    high[0] = std::max(high[0], at(i));
  }
  return {std::min(std::min(low[0], low[1]), std::min(low[2], low[3])),
          std::max(std::max(high[0], high[1]), std::max(high[2], high[3]))};
}

template <typename At>
inline void ScoreInverseRange(size_t size, At at, float* out) noexcept {
  const auto [low, high] = RangeOf(size, at);
  const float range = high - low;
  if (!(range > 0)) {
    std::fill_n(out, size, 1.0f);
    return;
  }
  for (size_t i = 0; i < size; ++i) out[i] = (high - at(i)) / range;
}

inline void ScoreInverseRange(std::span<const float> column, std::span<const uint32_t> in,
                              float* out) noexcept {
  // Positions keep their order: as many as there are candidates are all of them.
  if (in.size() == column.size())
    return ScoreInverseRange(in.size(), [data = column.data()](size_t i) { return data[i]; }, out);
  ScoreInverseRange(in.size(), [&](size_t i) { return column[in[i]]; }, out);
}

}  // namespace fairway::scheduling
