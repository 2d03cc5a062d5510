// random-picker: uniformly at random, without repetition. No parameters. Source: the reference's picker of
// this name.
#include <algorithm>

#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class RandomPicker final : public Picker {
 public:
  std::string_view type() const noexcept override { return "random-picker"; }

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
};

}  // namespace

std::unique_ptr<Picker> MakeRandomPicker(Parameters&) { return std::make_unique<RandomPicker>(); }

}  // namespace fairway::scheduling
