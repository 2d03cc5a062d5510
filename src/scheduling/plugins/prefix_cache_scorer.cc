// prefix-cache-scorer: (1 - w) * match + w * min(1, cached / scale)^2 of the share `match` of the request's
// blocks that are cached there and of `cached`, their tokens. `matchLengthWeight` w: 0 (0 to 1);
// `matchLengthScaleTokens`: 8192. Nothing known: 0. Source: the reference's scorer of this name (llm-d
// router).
#include <algorithm>

#include "scheduling/plugin.h"
#include "scheduling/plugins/prefix.h"

namespace fairway::scheduling {
namespace {

class PrefixCacheScorer final : public Plugin, public Scorer {
 public:
  explicit PrefixCacheScorer(Build& build)
      : weight_(
            build.Float("matchLengthWeight", 0, 0, 1, "Weight of the cached length beside the cached share")),
        scale_(build.Float("matchLengthScaleTokens", 8192, -1e9, 1e9,
                           "Cached tokens at which the length scores 1")) {
    const PrefixColumns prefix(build);
    match_ = prefix.Read(build, kPrefixMatch);
    cached_ = prefix.Read(build, kCachedTokens);
    if (weight_ > 0 && scale_ <= 0)
      build.Error("matchLengthScaleTokens", "must be above 0 where matchLengthWeight is");
  }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const float* match = context.columns[match_];
    for (size_t i = 0; i < in.size(); ++i) out[i] = (1 - weight_) * match[in[i]];
    if (weight_ == 0) return;
    const float* cached = context.columns[cached_];
    for (size_t i = 0; i < in.size(); ++i) {
      const float length = std::min(1.0f, cached[in[i]] / scale_);
      out[i] += weight_ * length * length;
    }
  }

 private:
  float weight_;
  float scale_;
  Column match_, cached_;
};

}  // namespace

std::unique_ptr<Plugin> MakePrefixCacheScorer(Build& build) {
  return std::make_unique<PrefixCacheScorer>(build);
}

}  // namespace fairway::scheduling
