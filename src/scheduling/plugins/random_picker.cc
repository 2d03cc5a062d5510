// random-picker: `maxNumOfEndpoints` (picker.h) uniformly at random, without repetition. Source: the
// reference's picker of this name.
#include <algorithm>

#include "scheduling/plugin.h"
#include "scheduling/plugins/picker.h"

namespace fairway::scheduling {
namespace {

class RandomPicker final : public Plugin, public Picker {
 public:
  explicit RandomPicker(Build& build) : max_choices_(ReadMaxChoices(build)) {}
  uint32_t max_choices() const noexcept override { return max_choices_; }
  size_t Pick(const Context& context, std::span<const uint32_t> in, std::span<const float>,
              std::span<uint32_t> out) const noexcept override {
    const size_t wanted = std::min(out.size(), in.size());
    size_t picked = 0;
    // Few are wanted, so drawing again on a repetition is cheaper than a shuffle; when nearly all are wanted,
    // so is the list short.
    while (picked < wanted) {
      const uint32_t position = in[context.random.Below(in.size())];
      if (std::find(out.begin(), out.begin() + static_cast<ptrdiff_t>(picked), position) !=
          out.begin() + static_cast<ptrdiff_t>(picked)) {
        continue;
      }
      out[picked++] = position;
    }
    return picked;
  }

 private:
  uint32_t max_choices_;
};

}  // namespace

std::unique_ptr<Plugin> MakeRandomPicker(Build& build) { return std::make_unique<RandomPicker>(build); }

}  // namespace fairway::scheduling
