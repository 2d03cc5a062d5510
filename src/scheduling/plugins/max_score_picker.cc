// max-score-picker: the highest weighted total; among equals uniformly at random. Further choices follow by
// score. No parameters. Source: the reference's picker of this name (llm-d router).
#include <algorithm>
#include <limits>

#include "scheduling/plugin.h"
#include "scheduling/plugins/lanes.h"

namespace fairway::scheduling {
namespace {

class MaxScorePicker final : public Picker {
 public:
  std::string_view type() const noexcept override { return "max-score-picker"; }

  [[gnu::hot]] size_t Pick(const Context& context, std::span<const uint32_t> in,
                           std::span<const float> scores, std::span<uint32_t> out) const noexcept override {
    // Numbers in `scores` until the end. Level by level, each in passes without a branch: to sort the best
    // ones in as they come is a mispredicted branch or two for each, and there are ever better ones.
    const size_t n = scores.size();
    const size_t wanted = std::min({out.size(), n, kMaxChoices});
    Level level = Below(scores, std::numeric_limits<float>::quiet_NaN());
    const size_t first =
        level.count > 1 ? Nth(scores, level.score, context.random.Below(level.count)) : level.sum;
    out[0] = static_cast<uint32_t>(first);
    size_t found = 1;
    size_t at = first;
    size_t left = std::max<size_t>(level.count, 1) - 1;
    for (; found < wanted; --left) {
      if (left == 0) {
        const Level next = Below(scores, level.score);
        if (!(next.score < level.score) || next.count == 0) break;  // the others are not numbers
        level = next;
        left = level.count;
        at = left == 1 ? level.sum : Next(scores, level.score, first);
      } else {
        // Equal ones in the order after the first choice, so that fallbacks do not herd either.
        at = Next(scores, level.score, at);
      }
      out[found++] = static_cast<uint32_t>(at);
    }
    // Positions keep their order: as many as there are candidates are all of them.
    if (n != context.columns.size()) {
      for (uint32_t& number : out.first(found)) number = in[number];
    }
    return found;
  }

 private:
  // Those that have the same score.
  struct Level {
    float score;
    size_t count;
    size_t sum;  // of their places: of one alone the place
  };
  // The highest one that is not `limit` or more. A function, so that from the second time on its code is
  // near.
  [[gnu::noinline]] static Level Below(std::span<const float> scores, float limit) noexcept {
    const size_t n = scores.size();
    const Lanes least = Fill(-std::numeric_limits<float>::infinity());
    Lanes most = least;
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      const Lanes four = Load(scores.data() + i);
      most = Greatest(most, four >= Fill(limit) ? least : four);
    }
    float score = Greatest(most);
    for (; i < n; ++i) score = std::max(score, scores[i] >= limit ? least[0] : scores[i]);
    LaneCounts counts{};
    LaneCounts sums{};
    LaneCounts places{0, 1, 2, 3};
    for (i = 0; i + kLanes <= n; i += kLanes) {
      const LaneCounts equal = Load(scores.data() + i) == Fill(score);  // -1 where so
      counts -= equal;
      sums += equal & places;
      places += static_cast<int>(kLanes);
    }
    Level level{score, Sum(counts), Sum(sums)};
    for (; i < n; ++i) {
      level.count += scores[i] == score ? 1 : 0;
      level.sum += scores[i] == score ? i : 0;
    }
    return level;
  }
  // REQUIRES: there are more than `skip` of them.
  static size_t Nth(std::span<const float> scores, float score, uint64_t skip) noexcept {
    size_t at = 0;
    while (scores[at] != score || skip-- != 0) ++at;
    return at;
  }
  // After `at`, and on from the beginning. REQUIRES: there is one.
  static size_t Next(std::span<const float> scores, float score, size_t at) noexcept {
    do {
      at = at + 1 == scores.size() ? 0 : at + 1;
    } while (scores[at] != score);
    return at;
  }
};

}  // namespace

std::unique_ptr<Picker> MakeMaxScorePicker(Parameters&) { return std::make_unique<MaxScorePicker>(); }

}  // namespace fairway::scheduling
