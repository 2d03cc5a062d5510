// Randomness as a thing that is handed in: same seed, same picks.
#pragma once

#include <array>
#include <cstdint>

namespace fairway::base {

// splitmix64, the usual way to make a state out of one seed. Source: Steele, Lea, Flood, "Fast splittable
// pseudorandom number generators", OOPSLA 2014.
inline constexpr uint64_t SplitMix64(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

// xoshiro256++ (Blackman and Vigna 2019). Not for secrets. Owned by one thread; 1-2 ns a number.
class Random {
 public:
  explicit Random(uint64_t seed) {
    for (uint64_t& word : state_) word = SplitMix64(seed);
  }

  // Where it is, to go on from there another time.
  using State = std::array<uint64_t, 4>;
  State state() const noexcept { return {state_[0], state_[1], state_[2], state_[3]}; }
  static Random Of(const State& state) noexcept {
    Random random(0);
    for (size_t i = 0; i < state.size(); ++i) random.state_[i] = state[i];
    return random;
  }

  uint64_t Next() noexcept {
    const uint64_t result = Rotate(state_[0] + state_[3], 23) + state_[0];
    const uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = Rotate(state_[3], 45);
    return result;
  }

  // Uniform in [0, bound). REQUIRES: bound > 0. Lemire's multiply-shift; its bias is below bound / 2^64.
  uint64_t Below(uint64_t bound) noexcept { return MultiplyHigh(Next(), bound); }

  // Uniform in [0, 1).
  double NextDouble() noexcept { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }

 private:
  static uint64_t MultiplyHigh(uint64_t a, uint64_t b) noexcept {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((static_cast<Wide>(a) * b) >> 64);
  }
  static constexpr uint64_t Rotate(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }
  uint64_t state_[4];
};

}  // namespace fairway::base
