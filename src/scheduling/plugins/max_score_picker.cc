// max-score-picker: the highest weighted total; among those within `tolerance` (0) of it uniformly at random,
// within `unseenTolerance` (as `tolerance`) where the request's answer will not be shown, which leaves loads
// known less well. Further choices follow by score, `maxNumOfEndpoints` in all (picker.h). Source: the
// reference's picker of this name (llm-d router), which has no tolerance. Ours is for several pickers that see
// one another late: they would all take the same best one.
#include <algorithm>
#include <limits>

#include "scheduling/lanes.h"
#include "scheduling/plugin.h"
#include "scheduling/plugins/picker.h"

namespace fairway::scheduling {
namespace {

class MaxScorePicker final : public Plugin, public Picker {
 public:
  explicit MaxScorePicker(Build& build) {
    const double tolerance =
        build.Number("tolerance", 0, 0, 1, "Scores that close to the best are drawn among");
    tolerance_ = static_cast<float>(tolerance);
    unseen_tolerance_ =
        build.Float("unseenTolerance", tolerance, 0, 1,
                    "The same for requests whose answers are not shown; as tolerance where not given");
    max_choices_ = ReadMaxChoices(build);
  }
  uint32_t max_choices() const noexcept override { return max_choices_; }

  [[gnu::hot]] size_t Pick(const Context& context, std::span<const uint32_t> in,
                           std::span<const float> scores, std::span<uint32_t> out) const noexcept override {
    const size_t n = scores.size();
    Lanes most = Lanes{} - std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < n; i += kLanes) most = Greatest(Load(scores, i), most);
    const float least = Greatest(most) - (context.request.shows_end ? tolerance_ : unseen_tolerance_);
    LaneCounts counts{};
    for (size_t i = 0; i < n; i += kLanes) counts -= Load(scores, i) >= Lanes{} + least;
    const uint32_t equals = Sum(counts);
    size_t first = 0;
    if (equals > 0) {  // else nothing here is a number
      uint64_t left = (equals > 1 ? context.random.Below(equals) : 0) + 1;
      while ((left -= scores[first] >= least ? 1 : 0) != 0) ++first;
    }
    // The others from `first` on, around the end, each sorted in among the best: equal ones stay in this
    // order, so that fallbacks do not herd either. Numbers in `scores` until the end.
    out[0] = static_cast<uint32_t>(first);
    const size_t wanted = std::min(out.size(), n);
    size_t found = 1;
    float worst = 0;  // of those found, once all are
    const auto sort_in = [&](size_t at, size_t end) {
      for (; at < end && wanted > 1; ++at) {
        if (found == wanted && !(scores[at] > worst)) [[likely]]
          continue;
        size_t to = found < wanted ? found++ : found - 1;
        for (; to > 1 && scores[at] > scores[out[to - 1]]; --to) out[to] = out[to - 1];
        out[to] = static_cast<uint32_t>(at);
        worst = scores[out[found - 1]];
      }
    };
    sort_in(first + 1, n);
    sort_in(0, first);
    for (uint32_t& number : out.first(found)) number = in[number];
    return found;
  }

 private:
  float tolerance_ = 0;
  float unseen_tolerance_ = 0;
  uint32_t max_choices_ = 1;
};

}  // namespace

std::unique_ptr<Plugin> MakeMaxScorePicker(Build& build) { return std::make_unique<MaxScorePicker>(build); }

}  // namespace fairway::scheduling
