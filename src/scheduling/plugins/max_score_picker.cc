// max-score-picker: the highest weighted total; among equals uniformly at random. Further choices follow by
// score. No parameters. Source: the reference's picker of this name (llm-d router).
#include <algorithm>

#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

// Four ways at once, so that no comparison waits for the one before it. REQUIRES: not empty.
float Greatest(std::span<const float> scores) {
  float most[4] = {scores[0], scores[0], scores[0], scores[0]};
  size_t i = 0;
  for (; i + 4 <= scores.size(); i += 4) {
    for (size_t k = 0; k < 4; ++k) most[k] = std::max(most[k], scores[i + k]);
  }
  for (; i < scores.size(); ++i) most[0] = std::max(most[0], scores[i]);
  return std::max(std::max(most[0], most[1]), std::max(most[2], most[3]));
}

class MaxScorePicker final : public Picker {
 public:
  std::string_view type() const noexcept override { return "max-score-picker"; }

  size_t Pick(const Context& context, std::span<const uint32_t> in, std::span<const float> scores,
              std::span<uint32_t> out) const noexcept override {
    const float best = Greatest(scores);
    uint64_t ties = 0;
    for (const float score : scores) ties += score == best ? 1 : 0;
    uint64_t skip = ties > 1 ? context.random.Below(ties) : 0;
    size_t first = 0;
    for (size_t i = 0; i < in.size(); ++i) {
      if (scores[i] == best && skip-- == 0) {
        first = i;
        break;
      }
    }
    out[0] = in[first];
    if (out.size() == 1) return 1;

    // The next ones by score; equal ones in the order after the first choice, so that fallbacks do not herd
    // either.
    struct Entry {
      float score;
      uint32_t position;
    };
    Entry next[kMaxChoices];
    const size_t wanted = std::min(out.size(), kMaxChoices) - 1;
    size_t found = 0;
    const auto look = [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        if (found == wanted && scores[i] <= next[found - 1].score) continue;
        size_t at = found < wanted ? found++ : found - 1;
        for (; at > 0 && next[at - 1].score < scores[i]; --at) next[at] = next[at - 1];
        next[at] = {scores[i], in[i]};
      }
    };
    look(first + 1, in.size());
    look(0, first);
    for (size_t i = 0; i < found; ++i) out[i + 1] = next[i].position;
    return found + 1;
  }
};

}  // namespace

std::unique_ptr<Picker> MakeMaxScorePicker(Parameters&) { return std::make_unique<MaxScorePicker>(); }

}  // namespace fairway::scheduling
