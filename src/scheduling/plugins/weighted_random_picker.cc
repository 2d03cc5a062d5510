// weighted-random-picker: `maxNumOfEndpoints` (picker.h) at random without repetition, each draw by the
// scores of who is left. A-Res (Efraimidis and Spirakis 2006): the highest keys U^(1/score) win, compared as
// log(U) / score, which does not underflow. A score that is not above 0 is drawn only when nothing else is
// left, and among its like uniformly. Source: the reference's picker of this name (llm-d router).
#include <algorithm>
#include <array>
#include <cmath>

#include "scheduling/plugin.h"
#include "scheduling/plugins/picker.h"

namespace fairway::scheduling {
namespace {

class WeightedRandomPicker final : public Plugin, public Picker {
 public:
  explicit WeightedRandomPicker(Build& build) : max_choices_(ReadMaxChoices(build)) {}
  uint32_t max_choices() const noexcept override { return max_choices_; }
  size_t Pick(const Context& context, std::span<const uint32_t> in, std::span<const float> scores,
              std::span<uint32_t> out) const noexcept override {
    const size_t wanted = std::min({out.size(), in.size(), kMaxChoices});
    std::array<double, kMaxChoices> keys{};  // of out[0 .. found), falling
    size_t found = 0;
    for (size_t i = 0; i < in.size(); ++i) {
      const double key = Key(scores[i], 1 - context.random.NextDouble());
      if (found == wanted && !(key > keys[found - 1])) continue;
      size_t at = found < wanted ? found++ : found - 1;
      for (; at > 0 && key > keys[at - 1]; --at) {
        keys[at] = keys[at - 1];
        out[at] = out[at - 1];
      }
      keys[at] = key;
      out[at] = in[i];
    }
    return found;
  }

 private:
  // `u`: uniform in (0, 1]. A float is at least 1e-45, so a key of a score above 0 is above -1e47.
  static double Key(float score, double u) noexcept {
    if (!(score > 0)) return -1e300 * u;
    return std::isinf(score) ? u : std::log(u) / static_cast<double>(score);
  }

  uint32_t max_choices_;
};

}  // namespace

std::unique_ptr<Plugin> MakeWeightedRandomPicker(Build& build) {
  return std::make_unique<WeightedRandomPicker>(build);
}

}  // namespace fairway::scheduling
