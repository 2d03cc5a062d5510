// endpoint-attribute-scorer: `attributeKey` (of `producer`; endpoint_attribute.h) between two ends: (v - min)
// / (max - min), or 1 minus that, by `algorithm` {type: linear_higher_is_better or linear_lower_is_better,
// normalization: {adaptiveRange: {}} (the ends are those of the candidates; all equal: 1) or {fixedRange:
// {min, max}} (what is beyond counts as the end)}. Missing: 0. Source: the reference's scorer of this name
// (llm-d router).
#include <algorithm>
#include <cmath>
#include <optional>

#include "api/decode.h"
#include "api/scalars.h"
#include "scheduling/plugin.h"
#include "scheduling/plugins/endpoint_attribute.h"
#include "scheduling/term.h"

namespace fairway::scheduling {
namespace {

class EndpointAttributeScorer final : public Plugin, public Scorer {
 public:
  explicit EndpointAttributeScorer(Build& build) : value_(ReadsAttribute(build, "attributeKey")) {
    const api::Node node = build.Object(
        "algorithm", "{type: linear_lower_is_better or linear_higher_is_better, normalization}, required");
    if (!node.present()) {
      build.Error("algorithm", "must be set");
      return;
    }
    api::ObjectReader algorithm(node);
    const auto type =
        api::ReadChoice(algorithm.Require("type"), {"linear_lower_is_better", "linear_higher_is_better"});
    lower_is_better_ = type.value_or(0) == 0;
    ReadEnds(algorithm.Get("normalization"));
    algorithm.Finish();
  }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const float* value = context.columns[value_];
    const MinMax ends = fixed_ ? *fixed_ : RangeOf(value, in);  // passes over what is no number
    const float width = ends.max - ends.min;
    for (size_t i = 0; i < in.size(); ++i) {
      const float share = width > 0 ? std::clamp((value[in[i]] - ends.min) / width, 0.0f, 1.0f) : 1.0f;
      out[i] = std::isnan(value[in[i]]) ? 0 : lower_is_better_ && width > 0 ? 1 - share : share;
    }
  }

 private:
  void ReadEnds(const api::Node& node) {
    if (!node.present()) return;
    api::ObjectReader normalization(node);
    const api::Node adaptive = normalization.Get("adaptiveRange");
    const api::Node fixed = normalization.Get("fixedRange");
    normalization.Finish();
    if (adaptive.present() && fixed.present()) node.Error("want one of adaptiveRange and fixedRange");
    if (!fixed.present()) return;
    api::ObjectReader ends(fixed);
    fixed_ = MinMax{static_cast<float>(api::ReadNumber(ends.Get("min"), -1e30, 1e30).value_or(0)),
                    static_cast<float>(api::ReadNumber(ends.Get("max"), -1e30, 1e30).value_or(0))};
    ends.Finish();
    if (!(fixed_->min < fixed_->max)) fixed.Error("min must be below max");
  }

  Column value_;
  bool lower_is_better_ = true;
  std::optional<MinMax> fixed_;
};

}  // namespace

std::unique_ptr<Plugin> MakeEndpointAttributeScorer(Build& build) {
  return std::make_unique<EndpointAttributeScorer>(build);
}

}  // namespace fairway::scheduling
