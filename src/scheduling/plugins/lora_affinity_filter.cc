// lora-affinity-filter: keeps endpoints that have the request's adapter (running, or waited for and so about
// to be loaded); where there are none, those with room to load it; where there are none either, fails. Where
// both kinds exist, a share `exploration` (0.001) of picks goes to those with room, so that a hot adapter
// spreads. Source: the classic scheduler's LoRA soft affinity (gateway-api-inference-extension v0.3.0,
// pkg/epp/scheduling).
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

constexpr uint8_t kResident = kLoraRunning | kLoraWaiting;

class LoraAffinityFilter final : public Filter {
 public:
  explicit LoraAffinityFilter(double exploration) : exploration_(exploration) {}
  std::string_view type() const noexcept override { return "lora-affinity-filter"; }

  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    size_t resident = 0, room = 0;
    for (const uint32_t position : in) {
      const uint8_t lora = context.columns.lora[position];
      resident += (lora & kResident) != 0 ? 1 : 0;
      room += lora == kLoraRoom ? 1 : 0;
    }
    if (resident == 0 && room == 0) return 0;
    bool take_resident = resident > 0;
    if (resident > 0 && room > 0 && exploration_ > 0 && context.random.NextDouble() < exploration_)
      take_resident = false;
    size_t kept = 0;
    for (const uint32_t position : in) {
      const uint8_t lora = context.columns.lora[position];
      out[kept] = position;
      kept += (take_resident ? (lora & kResident) != 0 : lora == kLoraRoom) ? 1 : 0;
    }
    return kept;
  }

  std::string Why(const Context& context, uint32_t position) const override {
    const uint8_t lora = context.columns.lora[position];
    if ((lora & kResident) != 0) return "has the adapter, but this pick explores an endpoint with room";
    if (lora == kLoraRoom) return "the adapter is not loaded here, but elsewhere";
    return "the adapter is not loaded and there is no room for it";
  }

 private:
  double exploration_;
};

}  // namespace

std::unique_ptr<Filter> MakeLoraAffinityFilter(Parameters& parameters) {
  return std::make_unique<LoraAffinityFilter>(parameters.Number("exploration", 0.001, 0, 1));
}

}  // namespace fairway::scheduling
