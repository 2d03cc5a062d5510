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

  size_t Pick(const Context& context, std::span<const uint32_t> in, std::span<const float> scores,
              std::span<uint32_t> out) const noexcept override {
    // Numbers in `scores` until the end.
    const size_t n = scores.size();
    const float best = GreatestOf(scores);
    const uint64_t ties = Count(scores, best);
    uint64_t skip = ties > 1 ? context.random.Below(ties) : 0;
    size_t first = 0;
    if (ties > 0) {  // always, unless the scores are not numbers
      while (!(scores[first] >= best) || skip-- != 0) ++first;
    }
    out[0] = static_cast<uint32_t>(first);

    // The next ones by score; equal ones in the order after the first choice, so that fallbacks do not herd
    // either.
    const size_t wanted = std::min({out.size(), n, kMaxChoices});
    size_t found = 1;
    // What one more has to exceed once there are enough. Until then not a number: nothing is less or equal.
    float least = std::numeric_limits<float>::quiet_NaN();
    for (size_t begin = first + 1, end = n; found < wanted || least < best; begin = 0, end = first) {
      for (size_t i = begin; i < end; ++i) {
        const float score = scores[i];
        if (score <= least) continue;
        size_t at = found < wanted ? found++ : found - 1;
        for (; at > 1 && scores[out[at - 1]] < score; --at) out[at] = out[at - 1];
        out[at] = static_cast<uint32_t>(i);
        if (found < wanted) continue;
        least = scores[out[found - 1]];
        if (least == best) break;
      }
      if (begin == 0) break;
    }
    // Positions keep their order: as many as there are candidates are all of them.
    if (n != context.columns.size()) {
      for (uint32_t& number : out.first(found)) number = in[number];
    }
    return found;
  }

 private:
  static float GreatestOf(std::span<const float> scores) noexcept {
    Lanes most = Fill(scores[0]);
    size_t i = 0;
    for (; i + kLanes <= scores.size(); i += kLanes) most = Greatest(most, Load(scores.data() + i));
    float greatest = Greatest(most);
    for (; i < scores.size(); ++i) greatest = std::max(greatest, scores[i]);
    return greatest;
  }
  static uint64_t Count(std::span<const float> scores, float score) noexcept {
    LaneCounts counts{};
    size_t i = 0;
    for (; i + kLanes <= scores.size(); i += kLanes)
      counts -= Load(scores.data() + i) == Fill(score);  // -1 where so
    const int sum = counts[0] + counts[1] + counts[2] + counts[3];
    auto count = static_cast<uint64_t>(sum);
    for (; i < scores.size(); ++i) count += scores[i] == score ? 1 : 0;
    return count;
  }
};

}  // namespace

std::unique_ptr<Picker> MakeMaxScorePicker(Parameters&) { return std::make_unique<MaxScorePicker>(); }

}  // namespace fairway::scheduling
