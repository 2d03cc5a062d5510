// lora-affinity-scorer: 1.0 where the adapter runs, 0.8 where there is room to load it, 0.6 where requests
// wait for it, else 0, all as on the page. No parameters. Source: the reference's scorer of this name (llm-d
// router).
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class LoraAffinityScorer final : public Plugin, public Scorer {
 public:
  explicit LoraAffinityScorer(Build& build) : adapter_(build.Reads("adapter")) {}
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const float* adapter = context.columns[adapter_];
    for (size_t i = 0; i < in.size(); ++i) {
      const unsigned bits = AdapterBits(adapter[in[i]]);
      out[i] = (bits & kAdapterRunning) != 0   ? 1.0f
               : (bits & kAdapterRoom) != 0    ? 0.8f
               : (bits & kAdapterWaiting) != 0 ? 0.6f
                                               : 0.0f;
    }
  }

 private:
  Column adapter_;
};

}  // namespace

std::unique_ptr<Plugin> MakeLoraAffinityScorer(Build& build) {
  return std::make_unique<LoraAffinityScorer>(build);
}

}  // namespace fairway::scheduling
