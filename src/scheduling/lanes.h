// Four floats at a time, by the compilers' vector types: SSE2, NEON, or four floats. Spelled out, since at
// -O2 a compiler does not find these loops, and at -O3 it unrolls them into several times the code: inside a
// proxy a decision pays for every cache line of code that it touches.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

namespace fairway::scheduling {

using Lanes = float __attribute__((vector_size(16)));
using LaneCounts = int32_t __attribute__((vector_size(16)));  // what comparing Lanes gives: -1 or 0 each
using LaneWords = uint64_t __attribute__((vector_size(16)));  // two of them
inline constexpr size_t kLanes = 4;

inline Lanes Load(const float* from) noexcept {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
// Those of `from` from `at` on; past its end what is no number.
inline Lanes Load(std::span<const float> from, size_t at) noexcept {
  if (at + kLanes <= from.size()) [[likely]]
    return Load(from.data() + at);
  Lanes lanes = Lanes{} + std::numeric_limits<float>::quiet_NaN();
  for (size_t k = 0; at + k < from.size(); ++k) lanes[k] = from[at + k];
  return lanes;
}
template <typename Four, typename Number>
void Store(Four four, Number* to) noexcept {
  static_assert(sizeof four == kLanes * sizeof *to);
  std::memcpy(to, &four, sizeof four);
}

// As std::max(b, a) is, also where one is no number: then b.
inline Lanes Greatest(Lanes a, Lanes b) noexcept { return a > b ? a : b; }
inline Lanes Least(Lanes a, Lanes b) noexcept { return a < b ? a : b; }

inline Lanes ToFloats(LaneCounts counts) noexcept { return __builtin_convertvector(counts, Lanes); }
// Of uint32_t, rounded once as a cast is: the upper half is exact.
inline Lanes ToFloatsUnsigned(LaneCounts counts) noexcept {
  return ToFloats(counts >> 16 & 0xffff) * 65536.0f + ToFloats(counts & 0xffff);
}

// Of four words the halves, in their order.
static_assert(std::endian::native == std::endian::little);
inline LaneCounts LowHalves(LaneWords first, LaneWords second) noexcept {
  return __builtin_shufflevector(LaneCounts(first), LaneCounts(second), 0, 2, 4, 6);
}
inline LaneCounts HighHalves(LaneWords first, LaneWords second) noexcept {
  return __builtin_shufflevector(LaneCounts(first), LaneCounts(second), 1, 3, 5, 7);
}

// Of the four.
inline uint32_t Sum(LaneCounts counts) noexcept {
  return static_cast<uint32_t>(counts[0] + counts[1] + counts[2] + counts[3]);
}
inline bool All(LaneCounts masks) noexcept { return Sum(masks) == uint32_t(-4); }
inline float Greatest(Lanes lanes) noexcept {
  lanes = Greatest(lanes, __builtin_shufflevector(lanes, lanes, 2, 3, 0, 1));
  return Greatest(lanes, __builtin_shufflevector(lanes, lanes, 1, 0, 3, 2))[0];
}

}  // namespace fairway::scheduling
