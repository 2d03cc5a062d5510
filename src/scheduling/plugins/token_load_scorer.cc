// token-load-scorer: 1 - min(t, threshold) / threshold of the prompt tokens t that are to be computed there:
// those under way and the request's own without what is cached there. `queueThresholdTokens`: 4194304 (128
// requests of 32K). Source: the reference's scorer of this name (llm-d router); our tokens under way are the
// ledger's (fleet/load.h), which leave when the answer begins.
#include <algorithm>

#include "scheduling/plugin.h"
#include "scheduling/plugins/lenient.h"

namespace fairway::scheduling {
namespace {

class TokenLoadScorer final : public Plugin, public Scorer {
 public:
  explicit TokenLoadScorer(Build& build)
      : tokens_(build.Reads("tokens")),
        cached_(build.ReadsOptional(kCachedTokens, false)),
        threshold_(PositiveOr(build, "queueThresholdTokens", 4'194'304,
                              "Prompt tokens under way that score 0; below 1 counts as the default")) {
    build.NoEffect({"inFlightLoadProducerName"}, kOneLedger);
  }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const float* tokens = context.columns[tokens_];
    const float* cached = context.columns[cached_];
    const auto prompt = static_cast<float>(context.request.prompt_tokens);
    for (size_t i = 0; i < in.size(); ++i) {
      const float own = std::max(prompt - cached[in[i]], 0.0f);
      out[i] = 1 - std::clamp(tokens[in[i]] + own, 0.0f, threshold_) / threshold_;
    }
  }

 private:
  Column tokens_, cached_;
  float threshold_;
};

}  // namespace

std::unique_ptr<Plugin> MakeTokenLoadScorer(Build& build) { return std::make_unique<TokenLoadScorer>(build); }

}  // namespace fairway::scheduling
