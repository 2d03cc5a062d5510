// endpoint-attribute-filter: keeps who has `attribute` (of `producer`; endpoint_attribute.h) on the right
// side: `algorithm` {type: threshold, threshold: {operator, value}} with LessThan, LessThanOrEqual,
// GreaterThan, GreaterThanOrEqual, Equal, NotEqual. `onMissing`: Pass (the default) or Fail;
// `fallbackOnEmpty` (false): all stay where none would. Source: the reference's filter of this name (llm-d
// router).
#include <algorithm>
#include <cmath>

#include "api/decode.h"
#include "api/scalars.h"
#include "scheduling/plugin.h"
#include "scheduling/plugins/endpoint_attribute.h"
#include "scheduling/plugins/format.h"

namespace fairway::scheduling {
namespace {

enum Operator : size_t { kLess, kLessOrEqual, kGreater, kGreaterOrEqual, kEqual, kNotEqual };

class EndpointAttributeFilter final : public Plugin, public Filter {
 public:
  explicit EndpointAttributeFilter(Build& build)
      : value_(ReadsAttribute(build, "attribute")),
        passes_missing_(build.Choice("onMissing", {"Pass", "Fail"}, 0,
                                     "What happens to endpoints without the attribute") == 0),
        falls_back_(build.Flag("fallbackOnEmpty", false, "All are kept where none would be")) {
    const api::Node node =
        build.Object("algorithm", "{type: threshold, threshold: {operator, value}}, required");
    if (!node.present()) {
      build.Error("algorithm", "must be set");
      return;
    }
    api::ObjectReader algorithm(node);
    api::ReadChoice(algorithm.Require("type"), {"threshold"});
    api::ObjectReader threshold(algorithm.Require("threshold"));
    algorithm.Finish();
    if (!threshold.valid()) return;
    operator_ = api::ReadChoice(threshold.Require("operator"), {"LessThan", "LessThanOrEqual", "GreaterThan",
                                                                "GreaterThanOrEqual", "Equal", "NotEqual"})
                    .value_or(kLess);
    limit_ = static_cast<float>(api::ReadNumber(threshold.Get("value"), -1e30, 1e30).value_or(0));
    threshold.Finish();
  }
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    const float* value = context.columns[value_];
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      const bool keeps = std::isnan(value[position]) ? passes_missing_ : Matches(value[position]);
      kept += keeps ? 1 : 0;
    }
    if (kept > 0 || !falls_back_) return kept;
    std::copy(in.begin(), in.end(), out);
    return in.size();
  }
  std::string Why(const Context& context, uint32_t position) const override {
    const float value = context.columns[value_][position];
    return std::isnan(value) ? "the attribute is missing"
                             : "the attribute is " + Short(value) + ", limit " + Short(limit_);
  }

 private:
  bool Matches(float value) const noexcept {
    switch (operator_) {
      case kLess:
        return value < limit_;
      case kLessOrEqual:
        return value <= limit_;
      case kGreater:
        return value > limit_;
      case kGreaterOrEqual:
        return value >= limit_;
      case kEqual:
        return value == limit_;
      default:
        return value != limit_;
    }
  }

  Column value_;
  bool passes_missing_;
  bool falls_back_;
  size_t operator_ = kLess;
  float limit_ = 0;
};

}  // namespace

std::unique_ptr<Plugin> MakeEndpointAttributeFilter(Build& build) {
  return std::make_unique<EndpointAttributeFilter>(build);
}

}  // namespace fairway::scheduling
