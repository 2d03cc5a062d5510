// Whether a request's prefill or encoding is worth another server.
//
// prefix-based-pd-decider: prompt >= `promptTokens` (0) and prompt - cached at the chosen decode server >=
// `nonCachedTokens` (0: never).
// always-disagg-pd-decider: always. always-disagg-multimodal-decider: where there is more than text.
// Source: the reference's deciders of these names (llm-d router).
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class PrefixBasedDecider final : public Plugin, public Decider {
 public:
  explicit PrefixBasedDecider(Build& build)
      : uncached_(static_cast<float>(build.Integer(
            "nonCachedTokens", 0, 0, INT32_MAX,
            "Prompt tokens that are not cached from which prefill happens elsewhere; 0: never"))),
        prompt_(static_cast<float>(
            build.Integer("promptTokens", 0, 0, INT32_MAX, "Prompts must have as many tokens, too"))) {
    if (uncached_ > 0) cached_ = build.Reads(kCachedTokens);
  }
  bool Wants(const Context& context, uint32_t position) const noexcept override {
    const auto prompt = static_cast<float>(context.request.prompt_tokens);
    return uncached_ > 0 && prompt >= prompt_ && prompt - context.columns[cached_][position] >= uncached_;
  }

 private:
  float uncached_, prompt_;
  Column cached_;
};

class AlwaysDecider final : public Plugin, public Decider {
 public:
  bool Wants(const Context&, uint32_t) const noexcept override { return true; }
};

class MediaDecider final : public Plugin, public Decider {
 public:
  bool Wants(const Context& context, uint32_t) const noexcept override { return context.request.has_media; }
};

}  // namespace

std::unique_ptr<Plugin> MakePrefixBasedDecider(Build& build) {
  return std::make_unique<PrefixBasedDecider>(build);
}
std::unique_ptr<Plugin> MakeAlwaysDecider(Build&) { return std::make_unique<AlwaysDecider>(); }
std::unique_ptr<Plugin> MakeMediaDecider(Build&) { return std::make_unique<MediaDecider>(); }

}  // namespace fairway::scheduling
