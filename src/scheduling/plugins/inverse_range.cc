#include "scheduling/plugins/inverse_range.h"

#include <algorithm>
#include <limits>

#include "scheduling/plugins/lanes.h"

namespace fairway::scheduling {
namespace {

constexpr float kMax = std::numeric_limits<float>::max();

[[gnu::noinline]] void AddOfSome(const float* column, std::span<const uint32_t> in, float weight,
                                 float* total) noexcept {
  float low = kMax;
  float high = -kMax;
  for (const uint32_t position : in) {
    low = std::min(low, column[position]);
    high = std::max(high, column[position]);
  }
  const float range = high - low;
  for (size_t i = 0; i < in.size(); ++i)
    total[i] += range > 0 ? (high - column[in[i]]) / range * weight : weight;
}

}  // namespace

// One function for every scorer of this kind: the second one finds its code in the cache.
void AddInverseRange(std::span<const float> column, std::span<const uint32_t> in, float weight,
                     float* total) noexcept {
  const size_t n = column.size();
  const float* values = column.data();
  // Positions keep their order: as many as there are candidates are all of them.
  if (in.size() != n) return AddOfSome(values, in, weight, total);
  Lanes lows = Fill(kMax);
  Lanes highs = Fill(-kMax);
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Lanes four = Load(values + i);
    lows = Least(lows, four);
    highs = Greatest(highs, four);
  }
  float low = Least(lows);
  float high = Greatest(highs);
  for (; i < n; ++i) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  const float range = high - low;
  i = 0;
  if (range > 0) {
    for (; i + kLanes <= n; i += kLanes)
      Store(Load(total + i) + (high - Load(values + i)) / range * weight, total + i);
    for (; i < n; ++i) total[i] += (high - values[i]) / range * weight;
  } else {
    for (; i < n; ++i) total[i] += weight;
  }
}

}  // namespace fairway::scheduling
