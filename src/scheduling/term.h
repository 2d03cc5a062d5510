// Scorers that are a function of one column, as most are: a formula in one place, written once.
//
//   // queue-scorer: (max - v) / (max - min) of the queue over the candidates.
//   std::unique_ptr<Plugin> MakeQueueScorer(Build& build) { return
//   MakeTerm(InverseRange{build.Reads("queue")}); }
//
// A formula is a struct with the column, `Range`, what it wants to know of all candidates (NoRange: nothing),
// and `operator()`, the score of a value; it is called with a float and with Lanes (lanes.h), and what it
// calls has to do for both.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>

#include "scheduling/lanes.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {

struct MinMax {
  float min = std::numeric_limits<float>::max();
  float max = std::numeric_limits<float>::lowest();
};

inline MinMax RangeOf(const float* column, std::span<const uint32_t> in) noexcept {
  MinMax range;
  for (const uint32_t position : in) {
    range.min = std::min(range.min, column[position]);
    range.max = std::max(range.max, column[position]);
  }
  return range;
}

// offset + factor * v
struct Linear {
  Column column;
  float offset = 0;
  float factor = 1;
  auto Over(const MinMax&) const noexcept {
    return [*this](auto v) { return v * factor + offset; };
  }
  static constexpr bool kNeedsRange = false;
};

// (max - v) / (max - min): 1 for the least value, 0 for the greatest, 1 for all when they are equal.
struct InverseRange {
  Column column;
  auto Over(const MinMax& range) const noexcept {
    const float width = range.max - range.min;
    // Equal: (max - v) is 0 for all, so 0 / 1 + 1.
    return [high = range.max, width = width > 0 ? width : 1, add = width > 0 ? 0.0f : 1.0f](auto v) {
      return (high - v) / width + add;
    };
  }
  static constexpr bool kNeedsRange = true;
};

template <typename Formula>
class TermScorer final : public Plugin, public Scorer {
 public:
  explicit TermScorer(const Formula& formula) : formula_(formula) {}

  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const float* column = context.columns[formula_.column];
    const auto score = formula_.Over(Formula::kNeedsRange ? RangeOf(column, in) : MinMax{});
    const size_t n = in.size();
    size_t i = 0;
    if (n == context.columns.size()) {  // positions keep their order: these are all
      for (; i + kLanes <= n; i += kLanes) Store(Lanes(score(Load(column + i))), out + i);
    }
    for (; i < n; ++i) out[i] = score(column[in[i]]);
  }

 private:
  Formula formula_;
};

template <typename Formula>
std::unique_ptr<Plugin> MakeTerm(const Formula& formula) {
  return std::make_unique<TermScorer<Formula>>(formula);
}

}  // namespace fairway::scheduling
