// utilization-detector: the pool's saturation is the mean of its endpoints' (saturation.h, with
// `queueDepthThreshold` and `kvCacheUtilThreshold`). As a filter: keeps who is below both limits times (1 +
// `headroom`); nobody is: all. Source: the reference's detector of this name (llm-d router).
#include "scheduling/plugin.h"
#include "scheduling/plugins/saturation.h"

namespace fairway::scheduling {
namespace {

class UtilizationDetector final : public Plugin, public Filter, public SaturationDetector {
 public:
  explicit UtilizationDetector(Build& build) : fullness_(build, 1), more_(ReadHeadroom(build)) {
    build.NoEffect({"metricsStalenessThreshold"},
                   "an endpoint whose page is stale counts as the average of the others, not as full");
  }
  float Saturation(const Context& context) const noexcept override { return fullness_.Mean(context.columns); }
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      kept += fullness_.Below(context.columns, position, more_) ? 1 : 0;
    }
    if (kept > 0) return kept;
    std::copy(in.begin(), in.end(), out);
    return in.size();
  }
  std::string Why(const Context& context, uint32_t position) const override {
    return fullness_.Why(context.columns, position, more_);
  }

 private:
  Fullness fullness_;
  float more_;
};

}  // namespace

std::unique_ptr<Plugin> MakeUtilizationDetector(Build& build) {
  return std::make_unique<UtilizationDetector>(build);
}

}  // namespace fairway::scheduling
