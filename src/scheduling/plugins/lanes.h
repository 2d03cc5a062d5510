// Four floats at a time, spelled out: at -O3 a compiler finds these, too, but unrolls them into several times
// the code, and inside a proxy a decision pays for every cache line of code that it touches. Plain SSE2 on
// x86-64, NEON on ARM.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace fairway::scheduling {

using Lanes = float __attribute__((vector_size(16)));
using LaneCounts = int __attribute__((vector_size(16)));  // what comparing two of them gives: 0 or -1 each
using LaneWords = uint64_t __attribute__((vector_size(16)));  // two of them
inline constexpr size_t kLanes = 4;

inline Lanes Load(const float* from) noexcept {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
inline void Store(Lanes lanes, float* to) noexcept { std::memcpy(to, &lanes, sizeof lanes); }
inline Lanes Fill(float value) noexcept { return Lanes{value, value, value, value}; }

inline Lanes ToFloats(LaneCounts counts) noexcept { return __builtin_convertvector(counts, Lanes); }

// Of four words the halves, in their order.
inline LaneCounts LowHalves(LaneWords first, LaneWords second) noexcept {
  return __builtin_shufflevector(LaneCounts(first), LaneCounts(second), 0, 2, 4, 6);
}
inline LaneCounts HighHalves(LaneWords first, LaneWords second) noexcept {
  return __builtin_shufflevector(LaneCounts(first), LaneCounts(second), 1, 3, 5, 7);
}

#ifdef __SSE__
// What the others are, too, but where one side is a constant.
inline Lanes Least(Lanes a, Lanes b) noexcept { return _mm_min_ps(a, b); }
inline Lanes Greatest(Lanes a, Lanes b) noexcept { return _mm_max_ps(a, b); }
#else
inline Lanes Least(Lanes a, Lanes b) noexcept { return a < b ? a : b; }
inline Lanes Greatest(Lanes a, Lanes b) noexcept { return a > b ? a : b; }
#endif
// Of the four.
inline uint32_t Sum(LaneCounts counts) noexcept {
  const LaneCounts twos = counts + __builtin_shufflevector(counts, counts, 2, 3, 0, 1);
  return static_cast<uint32_t>(twos[0]) + static_cast<uint32_t>(twos[1]);
}
inline float Least(Lanes lanes) noexcept {
  lanes = Least(lanes, __builtin_shufflevector(lanes, lanes, 2, 3, 0, 1));
  return Least(lanes, __builtin_shufflevector(lanes, lanes, 1, 0, 3, 2))[0];
}
inline float Greatest(Lanes lanes) noexcept {
  lanes = Greatest(lanes, __builtin_shufflevector(lanes, lanes, 2, 3, 0, 1));
  return Greatest(lanes, __builtin_shufflevector(lanes, lanes, 1, 0, 3, 2))[0];
}

}  // namespace fairway::scheduling
