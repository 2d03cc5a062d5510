// (max - v) / (max - min): 1 for the least value, 0 for the greatest, 1 for all when they are equal.
#pragma once

#include <cstdint>
#include <span>

namespace fairway::scheduling {

// Adds weight times that for each position of `in`, over which the range is taken.
void AddInverseRange(std::span<const float> column, std::span<const uint32_t> in, float weight,
                     float* total) noexcept;

}  // namespace fairway::scheduling
