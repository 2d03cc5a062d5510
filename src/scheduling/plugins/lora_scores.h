// How well an endpoint goes with the request's adapter: 1.0 where it runs, 0.8 where there is room to load
// it, 0.6 where requests wait for it, else 0.
#pragma once

#include <array>

#include "scheduling/plugin.h"

namespace fairway::scheduling {

constexpr float LoraScore(unsigned bits) noexcept {
  return (bits & kLoraRunning) != 0   ? 1.0f
         : (bits & kLoraRoom) != 0    ? 0.8f
         : (bits & kLoraWaiting) != 0 ? 0.6f
                                      : 0.0f;
}
// By all the bits: no branch that a mixed fleet would mispredict.
inline constexpr std::array kLoraScores{LoraScore(0), LoraScore(1), LoraScore(2), LoraScore(3),
                                        LoraScore(4), LoraScore(5), LoraScore(6), LoraScore(7)};
static_assert((kLoraRunning | kLoraWaiting | kLoraRoom) == 7);

}  // namespace fairway::scheduling
