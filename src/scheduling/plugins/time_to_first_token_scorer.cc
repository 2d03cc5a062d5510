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
#include <array>

#include "scheduling/lanes.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class TimeToFirstTokenScorer final : public Scorer {
 public:
  TimeToFirstTokenScorer(float request_cost, float load_cost, float horizon)
      : request_cost_(request_cost), scale_(1 / horizon) {
    for (size_t lora = 0; lora < loading_.size(); ++lora) {
      if ((lora & kLoraHere) == 0)
        loading_[lora] = load_cost * ((lora & kLoraRoom) != 0 ? 1.0f : 2.0f) * scale_;
    }
  }
  std::string_view type() const noexcept override { return "time-to-first-token-scorer"; }
  bool reads_pages() const noexcept override { return false; }

  [[gnu::hot]] void Score(const Context& context, std::span<const uint32_t> in,
                          float* out) const noexcept override {
    const float* work = context.columns.work.data();
    const float* prefill = context.columns.prefill.data();
    const float* requests = context.columns.requests.data();
    const auto score = [this](auto work_ahead, auto own_work, auto open) {
      return 1 - (work_ahead + own_work + open * request_cost_) * scale_;
    };
    const size_t n = in.size();
    size_t i = 0;
    if (n == context.columns.size()) {  // positions keep their order: these are all
      for (; i + kLanes <= n; i += kLanes)
        Store(score(Load(work + i), Load(prefill + i), Load(requests + i)), out + i);
    }
    for (; i < n; ++i) out[i] = score(work[in[i]], prefill[in[i]], requests[in[i]]);
    if (context.request.adapter == fleet::kNoAdapter || context.columns.lora_bits == 0) return;
    const uint8_t* lora = context.columns.lora.data();
    for (i = 0; i < n; ++i) out[i] -= loading_[lora[in[i]]];
  }

 private:
  float request_cost_;
  float scale_;
  std::array<float, 2 * kLoraResident> loading_{};  // by kLora* bits
};

}  // namespace

std::unique_ptr<Scorer> MakeTimeToFirstTokenScorer(Parameters& parameters) {
  const auto request_cost = static_cast<float>(parameters.Number("requestCost", 5, 0, 1e6));
  const auto load_cost = static_cast<float>(parameters.Number("loadCost", 1000, 0, 1e9));
  const auto horizon = static_cast<float>(parameters.Number("horizon", 600'000, 1, 1e9));
  return std::make_unique<TimeToFirstTokenScorer>(request_cost, load_cost, horizon);
}

}  // namespace fairway::scheduling
