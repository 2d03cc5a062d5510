// Four floats at a time, spelled out: at -O3 a compiler finds these, too, but unrolls them into several times
// the code, and inside a proxy a decision pays for every cache line of code that it touches. Plain SSE2 on
// x86-64, NEON on ARM.
#pragma once

#include <cstddef>
#include <cstring>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace fairway::scheduling {

using Lanes = float __attribute__((vector_size(16)));
using LaneCounts = int __attribute__((vector_size(16)));  // what comparing two of them gives: 0 or -1 each
inline constexpr size_t kLanes = 4;

inline Lanes Load(const float* from) noexcept {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
inline void Store(Lanes lanes, float* to) noexcept { std::memcpy(to, &lanes, sizeof lanes); }
inline Lanes Fill(float value) noexcept { return Lanes{value, value, value, value}; }

#ifdef __SSE__
// What the others are, too, but where one side is a constant.
inline Lanes Least(Lanes a, Lanes b) noexcept { return _mm_min_ps(a, b); }
inline Lanes Greatest(Lanes a, Lanes b) noexcept { return _mm_max_ps(a, b); }
#else
inline Lanes Least(Lanes a, Lanes b) noexcept { return a < b ? a : b; }
inline Lanes Greatest(Lanes a, Lanes b) noexcept { return a > b ? a : b; }
#endif
// Of the four.
inline float Least(Lanes lanes) noexcept {
  lanes = Least(lanes, __builtin_shufflevector(lanes, lanes, 2, 3, 0, 1));
  return Least(lanes, __builtin_shufflevector(lanes, lanes, 1, 0, 3, 2))[0];
}
inline float Greatest(Lanes lanes) noexcept {
  lanes = Greatest(lanes, __builtin_shufflevector(lanes, lanes, 2, 3, 0, 1));
  return Greatest(lanes, __builtin_shufflevector(lanes, lanes, 1, 0, 3, 2))[0];
}

}  // namespace fairway::scheduling
