// probabilistic-admitter: a request that may be shed is refused with the probability min(1, k * s^power) of
// the pool's saturation s, the mean of its endpoints' (saturation.h, with `queueDepthThreshold` and
// `kvCacheUtilThreshold`). `power`: 5; `k`: 300. Source: the reference's admitter of this name (llm-d
// router). It is answered with 429; the reference's answer is 500, which its own plugin does not mean.
#include <algorithm>
#include <cmath>

#include "scheduling/plugin.h"
#include "scheduling/plugins/saturation.h"

namespace fairway::scheduling {
namespace {

class ProbabilisticAdmitter final : public Plugin, public Admitter {
 public:
  explicit ProbabilisticAdmitter(Build& build)
      : fullness_(build, 1e9),
        power_(build.Number("power", 5, 0, 1e6,
                            "What may be shed is refused with probability k * saturation ^ power")),
        factor_(build.Number("k", 300, 0, 1e12, "See power")) {
    if (power_ == 0) build.Error("power", "must be above 0");
    if (factor_ == 0) build.Error("k", "must be above 0");
  }
  bool Admit(const Context& context) const noexcept override {
    return context.request.critical || context.random.NextDouble() >= Probability(context);
  }
  std::string Why(const Context& context) const override {
    return "saturation " + Short(fullness_.Mean(context.columns)) + ", refused with probability " +
           Short(Probability(context));
  }

 private:
  double Probability(const Context& context) const noexcept {
    return std::min(1.0, factor_ * std::pow(static_cast<double>(fullness_.Mean(context.columns)), power_));
  }

  Fullness fullness_;
  double power_;
  double factor_;
};

}  // namespace

std::unique_ptr<Plugin> MakeProbabilisticAdmitter(Build& build) {
  return std::make_unique<ProbabilisticAdmitter>(build);
}

}  // namespace fairway::scheduling
