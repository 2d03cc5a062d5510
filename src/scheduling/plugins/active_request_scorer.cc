// active-request-scorer: of the open requests n, 1 where n <= idleThreshold (0), else (max - n) / max *
// maxBusyScore (1), with the most of all candidates as max. Source: the reference's scorer of this name
// (llm-d router), which counts its own requests only; ours are the ledger's, with what others sent.
#include <algorithm>

#include "scheduling/plugin.h"
#include "scheduling/plugins/lenient.h"

namespace fairway::scheduling {
namespace {

class ActiveRequestScorer final : public Plugin, public Scorer {
 public:
  explicit ActiveRequestScorer(Build& build)
      : requests_(build.Reads("requests")),
        idle_(WithinOr(build, "idleThreshold", 0, 0, 1e9, "Up to so many open requests score 1")),
        busy_(WithinOr(build, "maxBusyScore", 1, 0, 1, "The best score beyond that, 0 to 1")) {
    build.NoEffect({"requestTimeout"}, "a request counts until it ends");
    build.NoEffect({"inFlightLoadProducerName"}, kOneLedger);
  }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const float* requests = context.columns[requests_];
    float most = 0;
    for (const uint32_t position : in) most = std::max(most, context.UnderWay(requests, position));
    for (size_t i = 0; i < in.size(); ++i) {
      const float open = context.UnderWay(requests, in[i]);
      out[i] = open > idle_ ? (most - open) / most * busy_ : 1.0f;
    }
  }

 private:
  Column requests_;
  float idle_;
  float busy_;
};

}  // namespace

std::unique_ptr<Plugin> MakeActiveRequestScorer(Build& build) {
  return std::make_unique<ActiveRequestScorer>(build);
}

}  // namespace fairway::scheduling
