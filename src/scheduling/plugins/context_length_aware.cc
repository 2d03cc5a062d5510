// context-length-aware: filter and scorer by how long a prompt an endpoint is for, which its label `label`
// (llm-d.ai/context-length-range) says as "min-max", in tokens. With n prompt tokens:
//
//   filter   with `enableFiltering` (false) keeps min <= n <= max and who has no label; a label that is no
//            range keeps nothing
//   score    no label 0.5; no range 0; min <= n <= max: 0.3 + 0.7 * (0.7 / (1 + width / 10000) + 0.3 * (max -
//            n) / width) with width = max - min, and 1 where it is 0; else 0.3 / (1 + distance / 1000)
//
// Source: the reference's plugin of this name (llm-d router).
#include <optional>

#include "base/strings.h"
#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"

namespace fairway::scheduling {
namespace {

// In the column of the lower end.
constexpr float kNoLabel = -1;
constexpr float kNoRange = -2;

struct Range {
  float min = kNoRange;
  float max = kNoRange;
};

std::optional<int64_t> ToTokens(std::string_view text) {
  const auto number = base::ParseInteger<int64_t>(base::Trim(text));
  return number && *number >= 0 ? number : std::nullopt;
}

Range Parse(std::string_view text) {
  const auto ends = base::Split(text, '-');
  if (ends.size() != 2) return {};
  const auto min = ToTokens(ends[0]);
  const auto max = ToTokens(ends[1]);
  if (!min || !max || *min > *max) return {};
  return {static_cast<float>(*min), static_cast<float>(*max)};
}

class ContextLengthAware final : public Plugin, public Filter, public Scorer, public EndpointProducer {
 public:
  explicit ContextLengthAware(Build& build)
      : label_(build.Text(
            "label", "llm-d.ai/context-length-range",
            "Label of endpoints with the range of prompt tokens that they are for, such as 0-8192")),
        filters_(build.Flag("enableFiltering", false,
                            "Endpoints whose range does not fit are dropped, not only scored lower")),
        min_(build.Makes(build.Own("min"), Lifetime::kSnapshot, Unit::kTokens)),
        max_(build.Makes(build.Own("max"), Lifetime::kSnapshot, Unit::kTokens)) {
    if (label_.empty()) build.Error("label", "must be set");
  }
  float Value(Column column, const fleet::Endpoint& endpoint) const override {
    const auto found = endpoint.labels.find(label_);
    if (found == endpoint.labels.end()) return kNoLabel;
    const Range range = Parse(found->second);
    return column == min_ ? range.min : range.max;
  }

  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      kept += Keeps(context, position) ? 1 : 0;
    }
    return kept;
  }
  std::string Why(const Context& context, uint32_t position) const override {
    const float min = context.columns[min_][position];
    if (min == kNoRange) return "its label " + label_ + " is no range";
    return Short(context.request.prompt_tokens) + " prompt tokens are not from " + Short(min) + " to " +
           Short(context.columns[max_][position]);
  }

  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    for (size_t i = 0; i < in.size(); ++i)
      out[i] = ScoreOf(context.columns[min_][in[i]], context.columns[max_][in[i]],
                       static_cast<float>(context.request.prompt_tokens));
  }

 private:
  bool Keeps(const Context& context, uint32_t position) const noexcept {
    const float min = context.columns[min_][position];
    const auto tokens = static_cast<float>(context.request.prompt_tokens);
    if (!filters_ || min == kNoLabel) return true;
    return min != kNoRange && tokens >= min && tokens <= context.columns[max_][position];
  }
  static float ScoreOf(float min, float max, float tokens) noexcept {
    if (min == kNoLabel) return 0.5f;
    if (min == kNoRange) return 0;
    if (tokens > max) return 0.3f / (1 + (tokens - max) / 1000);
    if (tokens < min) return 0.3f / (1 + (min - tokens) / 1000);
    const float width = max - min;
    if (width == 0) return 1;
    return 0.3f + 0.7f * (0.7f / (1 + width / 10'000) + 0.3f * (max - tokens) / width);
  }

  std::string label_;
  bool filters_;
  Column min_, max_;
};

}  // namespace

std::unique_ptr<Plugin> MakeContextLengthAware(Build& build) {
  return std::make_unique<ContextLengthAware>(build);
}

}  // namespace fairway::scheduling
