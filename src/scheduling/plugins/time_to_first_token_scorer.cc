// time-to-first-token-scorer: 1 - t / horizon of the milliseconds t until the request's first token there, and
// of what computing its prompt there costs the others:
//
//   own = uncached tokens * ms per token
//   t = work ahead + own + open requests * (requestCost + interference * own)
//       + loadCost where the request's adapter is not loaded, twice that where there is no slot for it either
//
// An engine computes prompts first come first served, a chunk a step, so the first token comes when what is
// ahead and the own prompt are computed. Each open request lengthens a step and takes a slot of the batch:
// `requestCost`, 5 ms (replays: 1 ms leaves full batches unseen, 20 ms herds where several pickers see the
// same late pages). And each is held up while the own prompt is computed: `interference`, a tenth of that
// time. So the busier the engines, the more a prompt stays where it is cached; without it, copies of shared
// prompts fill all caches (replayed: 150 prefixes of 6,000 tokens, 20 requests a second: 10,621 ms, with it
// 153). Where ends are not seen, open requests are as late as the page, and a prompt's time would multiply
// that: four pickers that do not tell one another herd (unique prompts: 351 ms without, 468 with it). There
// only the difference between `own` and the least `own` of all endpoints counts, which is nothing where
// nothing is cached (4 pickers that tell one another, 150 tenants: 20,853 ms without, 175 with it; unique
// prompts 250 and 248). Where ends are seen, all of `own` is better: 100k-token prompts among short ones wait
// 235 ms, with the difference alone 363.
// `loadCost` 1000 ms is twice what the replayed engines need to load an adapter: loading
// stops the whole batch, and another adapter loses its slot. `horizon` 600,000 ms: longer waits are all
// alike. `prefixCache` true: what is believed to be cached need not be computed, and who knows it is there by
// default; false leaves that to a producer that the config names. Source: our own; docs/scheduling.md compares
// it with others.
#include <algorithm>
#include <array>
#include <limits>

#include "scheduling/lanes.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class TimeToFirstTokenScorer final : public Plugin, public Scorer {
 public:
  explicit TimeToFirstTokenScorer(Build& build)
      : work_(build.Reads("work")),
        prefill_(build.Reads("prefill")),
        requests_(build.Reads("requests")),
        adapter_(build.Reads("adapter")),
        request_cost_(
            build.Float("requestCost", 5, 0, 1e6, "What an open request costs the next one, in ms")),
        interference_(
            build.Float("interference", 0.1, 0, 1000,
                        "Share of the time of computing the own prompt that holds up each open request")) {
    // "prefill" is without them where somebody makes them.
    if (build.Flag("prefixCache", true, "What is cached of the prompt need not be computed"))
      build.Reads(kCachedTokens);
    const float load_cost = build.Float("loadCost", 1000, 0, 1e9, "What loading an adapter costs, in ms");
    const float free_slot_cost =
        build.Float("freeSlotCost", 100, 0, 1e9,
                    "What loading one into an empty slot costs, in ms: all requests that follow use it");
    scale_ = 1 / build.Float("horizon", 600'000, 1, 1e9, "Time to first token that scores 0, in ms");
    for (unsigned bits = 0; bits < loading_.size(); ++bits) {
      if ((bits & kAdapterHere) != 0) continue;
      loading_[bits] = scale_ * ((bits & kAdapterFree) != 0   ? std::min(free_slot_cost, load_cost)
                                 : (bits & kAdapterRoom) != 0 ? load_cost
                                                              : 2 * load_cost);
    }
  }

  [[gnu::hot]] void Score(const Context& context, std::span<const uint32_t> in,
                          float* out) const noexcept override {
    const float* work = context.columns[work_];
    const float* prefill = context.columns[prefill_];
    const float* requests = context.columns[requests_];
    float least = 0;
    if (!context.request.shows_end) {
      least = std::numeric_limits<float>::max();
      for (const uint32_t position : in) least = std::min(least, prefill[position]);
    }
    const auto score = [=, this](auto work_ahead, auto own, auto open) {
      return 1 - (work_ahead + own + open * (request_cost_ + interference_ * (own - least))) * scale_;
    };
    const size_t n = in.size();
    size_t i = 0;
    if (n == context.columns.size()) {  // positions keep their order: these are all
      for (; i + kLanes <= n; i += kLanes)
        Store(score(Load(work + i), Load(prefill + i), Load(requests + i)), out + i);
    }
    for (; i < n; ++i) out[i] = score(work[in[i]], prefill[in[i]], requests[in[i]]);
    if (context.request.adapter == fleet::kNoAdapter || !context.columns.adapters) return;
    const float* adapter = context.columns[adapter_];
    for (i = 0; i < n; ++i) out[i] -= loading_[AdapterBits(adapter[in[i]])];
  }

 private:
  Column work_, prefill_, requests_, adapter_;
  float request_cost_, interference_;
  float scale_ = 0;
  std::array<float, 2 * kAdapterFree> loading_{};  // by kAdapter* bits
};

}  // namespace

std::unique_ptr<Plugin> MakeTimeToFirstTokenScorer(Build& build) {
  return std::make_unique<TimeToFirstTokenScorer>(build);
}

}  // namespace fairway::scheduling
