// time-to-first-token-scorer: 1 - t / horizon of the milliseconds t until the request's first token there:
//
//   t = work ahead + own uncached tokens * ms per token + requestCost * open requests
//       + loadCost where the request's adapter is not loaded, twice that where there is no slot for it either
//
// An engine computes prompts first come first served, a chunk a step, so the first token comes when what is
// ahead and the own prompt are computed. Each open request lengthens a step and takes a slot of the batch:
// `requestCost`, 5 ms (replays: 1 ms leaves full batches unseen, 20 ms herds where several pickers see the
// same late pages). `loadCost` 1000 ms is twice what the replayed engines need to load an adapter: loading
// stops the whole batch, and another adapter loses its slot. `horizon` 600,000 ms: longer waits are all
// alike. Source: our own; docs/scheduling.md compares it with others.
#include <algorithm>

#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class TimeToFirstTokenScorer final : public Scorer {
 public:
  TimeToFirstTokenScorer(float request_cost, float load_cost, float horizon)
      : request_cost_(request_cost), load_cost_(load_cost), horizon_(horizon) {}
  std::string_view type() const noexcept override { return "time-to-first-token-scorer"; }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const Columns& columns = context.columns;
    const float scale = 1 / horizon_;
    for (size_t i = 0; i < in.size(); ++i) {
      const uint32_t at = in[i];
      out[i] = 1 - (columns.work[at] + columns.prefill[at] + request_cost_ * columns.requests[at]) * scale;
    }
    if (context.request.adapter == fleet::kNoAdapter || columns.lora_bits == 0) return;
    for (size_t i = 0; i < in.size(); ++i) {
      const uint8_t lora = columns.lora[in[i]];
      if ((lora & kLoraHere) == 0) out[i] -= load_cost_ * ((lora & kLoraRoom) != 0 ? 1.0f : 2.0f) * scale;
    }
  }

 private:
  float request_cost_;
  float load_cost_;
  float horizon_;
};

}  // namespace

std::unique_ptr<Scorer> MakeTimeToFirstTokenScorer(Parameters& parameters) {
  const auto request_cost = static_cast<float>(parameters.Number("requestCost", 5, 0, 1e6));
  const auto load_cost = static_cast<float>(parameters.Number("loadCost", 1000, 0, 1e9));
  const auto horizon = static_cast<float>(parameters.Number("horizon", 600'000, 1, 1e9));
  return std::make_unique<TimeToFirstTokenScorer>(request_cost, load_cost, horizon);
}

}  // namespace fairway::scheduling
