// concurrency-detector: the pool's saturation is its open requests over `maxConcurrency` (100) for each
// endpoint, or its tokens to be computed over `maxTokenConcurrency` (1000000), by `concurrencyMode`:
// requests, tokens, or hybrid, the mean of the endpoints' greater one of both. As a filter: keeps who is
// below its limit times (1 + `headroom`), cut to a whole number; nobody is: it fails. Source: the reference's
// detector of this name (llm-d router).
#include <algorithm>
#include <cmath>

#include "scheduling/plugin.h"
#include "scheduling/plugins/lenient.h"
#include "scheduling/plugins/saturation.h"

namespace fairway::scheduling {
namespace {

enum Mode : size_t { kByRequests, kByTokens, kHybrid };

class ConcurrencyDetector final : public Plugin, public Filter, public SaturationDetector {
 public:
  explicit ConcurrencyDetector(Build& build)
      : requests_(build.Reads("requests")),
        tokens_(build.Reads("tokens")),
        mode_(build.Choice("concurrencyMode", {"requests", "tokens", "hybrid"}, kByRequests,
                           "What is counted against the limits; hybrid: the greater of both")),
        max_requests_(static_cast<float>(build.Integer("maxConcurrency", 100, 1, kMost,
                                                       "Requests under way at which an endpoint is full"))),
        max_tokens_(static_cast<float>(build.Integer("maxTokenConcurrency", 1'000'000, 1, kMost,
                                                     "Tokens under way at which it is full"))) {
    const float more = ReadHeadroom(build);
    request_limit_ = std::floor(max_requests_ * more);
    token_limit_ = std::floor(max_tokens_ * more);
    build.NoEffect({"inFlightLoadProducerName"}, kOneLedger);
  }
  float Saturation(const Context& context) const noexcept override {
    const float* requests = context.columns[requests_];
    const float* tokens = context.columns[tokens_];
    const size_t n = context.columns.size();
    if (n == 0) return 1;
    float sum = 0;
    for (size_t i = 0; i < n; ++i) {
      const float by_requests = context.UnderWay(requests, static_cast<uint32_t>(i)) / max_requests_;
      const float by_tokens = tokens[i] / max_tokens_;
      sum += mode_ == kByRequests ? by_requests
             : mode_ == kByTokens ? by_tokens
                                  : std::max(by_requests, by_tokens);
    }
    return sum / static_cast<float>(n);
  }
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    const float* requests = context.columns[requests_];
    const float* tokens = context.columns[tokens_];
    size_t kept = 0;
    for (const uint32_t position : in) {
      const bool keeps = (mode_ == kByTokens || context.UnderWay(requests, position) < request_limit_) &&
                         (mode_ == kByRequests || tokens[position] < token_limit_);
      out[kept] = position;
      kept += keeps ? 1 : 0;
    }
    return kept;
  }
  std::string Why(const Context& context, uint32_t position) const override {
    const std::string by_requests = "open requests " +
                                    Short(context.UnderWay(context.columns[requests_], position)) +
                                    ", limit " + Short(request_limit_);
    const std::string by_tokens =
        "tokens " + Short(context.columns[tokens_][position]) + ", limit " + Short(token_limit_);
    return mode_ == kByRequests ? by_requests
           : mode_ == kByTokens ? by_tokens
                                : by_requests + "; " + by_tokens;
  }

 private:
  static constexpr int64_t kMost = 1'000'000'000'000;
  Column requests_, tokens_;
  size_t mode_;
  float max_requests_;
  float max_tokens_;
  float request_limit_ = 0;
  float token_limit_ = 0;
};

}  // namespace

std::unique_ptr<Plugin> MakeConcurrencyDetector(Build& build) {
  return std::make_unique<ConcurrencyDetector>(build);
}

}  // namespace fairway::scheduling
