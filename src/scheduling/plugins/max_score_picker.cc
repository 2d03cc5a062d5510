// max-score-picker: the highest weighted total; among those within `tolerance` (0) of it uniformly at random.
// Further choices follow by score. Source: the reference's picker of this name (llm-d router), which has no
// tolerance. Ours is for several pickers that see one another late: they would all take the same best one.
#include <algorithm>
#include <limits>

#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class MaxScorePicker final : public Picker {
 public:
  explicit MaxScorePicker(float tolerance) : tolerance_(tolerance) {}
  std::string_view type() const noexcept override { return "max-score-picker"; }

  [[gnu::hot]] size_t Pick(const Context& context, std::span<const uint32_t> in,
                           std::span<const float> scores, std::span<uint32_t> out) const noexcept override {
    const size_t n = scores.size();
    float best = -std::numeric_limits<float>::infinity();
    for (const float score : scores) best = score > best ? score : best;
    const float least = best - tolerance_;
    size_t equals = 0;
    for (const float score : scores) equals += score >= least ? 1 : 0;
    size_t first = 0;
    if (equals > 0) {  // else nothing here is a number
      uint64_t skip = equals > 1 ? context.random.Below(equals) : 0;
      while (!(scores[first] >= least) || skip-- != 0) ++first;
    }
    // The others from `first` on, around the end, each sorted in among the best: equal ones stay in this
    // order, so that fallbacks do not herd either. Numbers in `scores` until the end.
    out[0] = static_cast<uint32_t>(first);
    const size_t wanted = std::min(out.size(), n);
    size_t found = 1;
    for (size_t step = 1; step < n && wanted > 1; ++step) {
      const size_t at = first + step < n ? first + step : first + step - n;
      if (found == wanted && !(scores[at] > scores[out[found - 1]])) continue;
      size_t to = found < wanted ? found++ : found - 1;
      for (; to > 1 && scores[at] > scores[out[to - 1]]; --to) out[to] = out[to - 1];
      out[to] = static_cast<uint32_t>(at);
    }
    for (uint32_t& number : out.first(found)) number = in[number];
    return found;
  }

 private:
  float tolerance_;
};

}  // namespace

std::unique_ptr<Picker> MakeMaxScorePicker(Parameters& parameters) {
  return std::make_unique<MaxScorePicker>(static_cast<float>(parameters.Number("tolerance", 0, 0, 1)));
}

}  // namespace fairway::scheduling
