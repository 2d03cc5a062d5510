// active-request-scorer: (max - v) / max of the open requests over the candidates; 1 for all where nobody has
// any. No parameters. Source: the reference's scorer of this name (llm-d router), with its defaults.
#include <algorithm>

#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class ActiveRequestScorer final : public Scorer {
 public:
  std::string_view type() const noexcept override { return "active-request-scorer"; }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const float* requests = context.columns.requests.data();
    float most = 0;
    for (const uint32_t position : in) most = std::max(most, requests[position]);
    for (size_t i = 0; i < in.size(); ++i) out[i] = most > 0 ? (most - requests[in[i]]) / most : 1.0f;
  }
};

}  // namespace

std::unique_ptr<Scorer> MakeActiveRequestScorer(Parameters&) {
  return std::make_unique<ActiveRequestScorer>();
}

}  // namespace fairway::scheduling
