// lora-affinity-filter: keeps endpoints that have the request's adapter (running, waited for and so about to
// be loaded, or believed to be loaded); where there are none, those with room to load it; where there are
// none either, fails. Where both kinds exist, a share `exploration` (0.001) of picks goes to those with room,
// so that a hot adapter spreads. Source: the classic scheduler's LoRA soft affinity
// (gateway-api-inference-extension v0.3.0, pkg/epp/scheduling).
//
// Ours: affinity costs no more than loading does. As soon as the least loaded endpoint that has the adapter
// has more work ahead than the least loaded one with room by `loadCost` ms (1000), both kinds stay. Without
// that bound an adapter's requests pile up where it happens to be until 50 wait there. Where a slot is empty,
// loading takes nobody's place and is paid once for all requests that follow: there both stay as soon as the
// difference is more than `freeSlotRequests` (32) open requests; and where nobody has the adapter, those with
// room that is another adapter's stay only when it saves `loadCost`.
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
        requests_(build.Reads("requests")),
        exploration_(build.Number("exploration", 0.001, 0, 1,
                                  "Share of picks that load an adapter on a further endpoint")),
        load_cost_(build.Float("loadCost", 1000, 0, 1e9, "What loading an adapter costs, in ms")),
        free_slot_requests_(build.Float("freeSlotRequests", 32, 0, 1e9,
                                        "So many open requests more than on an endpoint with an empty slot, "
                                        "and the adapter is loaded there, too")) {}

  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    const float* adapter = context.columns[adapter_];
    Least here, free, room;
    for (const uint32_t position : in) {
      const unsigned bits = AdapterBits(adapter[position]);
      if (!Here(bits) && !Room(bits)) continue;
      (Here(bits)   ? here
       : Free(bits) ? free
                    : room)
          .Take(context.columns[work_][position], context.columns[requests_][position]);
    }
    if (!here.any() && !free.any() && !room.any()) return 0;
    const bool other = free.any() || room.any();
    const bool explore =
        here.any() && other && exploration_ > 0 && context.random.NextDouble() < exploration_;
    const bool take_here = here.any() && !explore;
    const bool take_free = !take_here || here.work > free.work + load_cost_ ||
                           here.requests > free.requests + free_slot_requests_;
    const float work = take_here ? here.work : free.work;
    const bool take_room = (!take_here && !free.any()) || work > room.work + load_cost_;
    size_t kept = 0;
    for (const uint32_t position : in) {
      const unsigned bits = AdapterBits(adapter[position]);
      out[kept] = position;
      kept += Here(bits) ? take_here : Free(bits) ? take_free : Room(bits) ? take_room : 0;
    }
    return kept;
  }

  std::string Why(const Context& context, uint32_t position) const override {
    const unsigned bits = AdapterBits(context.columns[adapter_][position]);
    if (Here(bits)) return "has the adapter, but this pick explores an endpoint with room";
    if (Free(bits)) return "the adapter is not loaded here, but elsewhere";
    if (Room(bits)) return "the adapter is not loaded here; elsewhere it is, or a slot is empty";
    return "the adapter is not loaded and there is no room for it";
  }

 private:
  // The least loaded of one kind.
  struct Least {
    float work = std::numeric_limits<float>::infinity();
    float requests = std::numeric_limits<float>::infinity();
    bool any() const { return work < std::numeric_limits<float>::infinity(); }
    void Take(float its_work, float its_requests) {
      work = std::min(work, its_work);
      requests = std::min(requests, its_requests);
    }
  };
  static bool Here(unsigned bits) { return (bits & kAdapterHere) != 0; }
  static bool Free(unsigned bits) { return (bits & kAdapterFree) != 0; }
  static bool Room(unsigned bits) { return (bits & kAdapterRoom) != 0; }

  Column adapter_, work_, requests_;
  double exploration_;
  float load_cost_, free_slot_requests_;
};

}  // namespace

std::unique_ptr<Plugin> MakeLoraAffinityFilter(Build& build) {
  return std::make_unique<LoraAffinityFilter>(build);
}

}  // namespace fairway::scheduling
