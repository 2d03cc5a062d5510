// lora-affinity-filter: keeps endpoints that have the request's adapter (running, waited for and so about to
// be loaded, or believed to be loaded); where there are none, those with room to load it; where there are
// none either, fails. Where both kinds exist, a share `exploration` (0.001) of picks goes to those with room,
// so that a hot adapter spreads. Source: the classic scheduler's LoRA soft affinity
// (gateway-api-inference-extension v0.3.0, pkg/epp/scheduling).
//
// Ours: affinity costs no more than loading does. As soon as the least loaded endpoint that has the adapter
// has more work ahead than the least loaded one with room by `loadCost` ms (1000), both kinds stay. Without
// that bound an adapter's requests pile up where it happens to be until 50 wait there.
#include <algorithm>
#include <limits>

#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class LoraAffinityFilter final : public Plugin, public Filter {
 public:
  explicit LoraAffinityFilter(Build& build)
      : adapter_(build.Reads("adapter")),
        work_(build.Reads("work")),
        exploration_(build.Number("exploration", 0.001, 0, 1,
                                  "Share of picks that load the adapter on a further endpoint")),
        load_cost_(build.Float("loadCost", 1000, 0, 1e9, "What loading an adapter costs, in ms")) {}

  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    constexpr float kNone = std::numeric_limits<float>::infinity();
    const float* adapter = context.columns[adapter_];
    const float* work = context.columns[work_];
    float here = kNone;  // the least work of any of this kind
    float room = kNone;
    for (const uint32_t position : in) {
      float* least = Here(adapter[position]) ? &here : Room(adapter[position]) ? &room : nullptr;
      if (least != nullptr) *least = std::min(*least, work[position]);
    }
    if (here == kNone && room == kNone) return 0;
    const bool explore =
        here != kNone && room != kNone && exploration_ > 0 && context.random.NextDouble() < exploration_;
    const bool take_here = here != kNone && !explore;
    const bool take_room = here == kNone || explore || here > room + load_cost_;
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      kept += (take_here && Here(adapter[position])) || (take_room && Room(adapter[position])) ? 1 : 0;
    }
    return kept;
  }

  std::string Why(const Context& context, uint32_t position) const override {
    const float adapter = context.columns[adapter_][position];
    if (Here(adapter)) return "has the adapter, but this pick explores an endpoint with room";
    if (Room(adapter)) return "the adapter is not loaded here, but elsewhere";
    return "the adapter is not loaded and there is no room for it";
  }

 private:
  static bool Here(float adapter) { return (AdapterBits(adapter) & kAdapterHere) != 0; }
  static bool Room(float adapter) {
    return (AdapterBits(adapter) & (kAdapterHere | kAdapterRoom)) == kAdapterRoom;
  }

  Column adapter_, work_;
  double exploration_;
  float load_cost_;
};

}  // namespace

std::unique_ptr<Plugin> MakeLoraAffinityFilter(Build& build) {
  return std::make_unique<LoraAffinityFilter>(build);
}

}  // namespace fairway::scheduling
