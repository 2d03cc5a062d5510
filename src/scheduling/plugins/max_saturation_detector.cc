// max-saturation-detector: the greatest saturation that one of its `detectors` tells. `stages` (the stages of
// prefill and decode that a detector looks at) has no effect: a decision looks at the pool as a whole, and
// then the reference asks all detectors, too. Source: the reference's detector of this name (llm-d router).
#include <algorithm>
#include <vector>

#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class MaxSaturationDetector final : public Plugin, public SaturationDetector {
 public:
  explicit MaxSaturationDetector(Build& build) {
    std::vector<std::string> names =
        build.Texts("detectors", "Names of the detectors whose highest value counts, at least one");
    if (names.empty()) build.Error("detectors", "want at least one");
    for (const std::string& name : names) {
      const auto* detector = build.Refers<SaturationDetector>("detectors", name, "saturation detector");
      if (detector != nullptr) detectors_.push_back(detector);
    }
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) build.Error("detectors", "name " + *twice + " twice");
    build.NoEffect({"stages"}, "all detectors look at the whole pool");
  }
  float Saturation(const Context& context) const noexcept override {
    float most = 0;
    for (const SaturationDetector* detector : detectors_)
      most = std::max(most, detector->Saturation(context));
    return most;
  }

 private:
  std::vector<const SaturationDetector*> detectors_;
};

}  // namespace

std::unique_ptr<Plugin> MakeMaxSaturationDetector(Build& build) {
  return std::make_unique<MaxSaturationDetector>(build);
}

}  // namespace fairway::scheduling
