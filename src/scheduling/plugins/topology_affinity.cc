// How near a candidate is to what the profile before this one chose: prefill beside decode. No profile ran
// before: no effect.
//
//   topology-affinity-filter   keeps who shares at least `minAffinity` (host, rack, zone, region; host);
//                              nobody does: all stay
//   topology-affinity-scorer   same host 1, rack 0.2, zone 0.05, region 0.02, else 0
//
// `topologyProducerName`: an extractor (topology-extractor). Source: the reference's plugins of these names
// (llm-d router).
#include <algorithm>

#include "scheduling/plugins/topology.h"

namespace fairway::scheduling {
namespace {

class TopologyAffinityFilter final : public Plugin, public Filter {
 public:
  explicit TopologyAffinityFilter(Build& build)
      : topology_(ReadTopology(build)),
        farthest_(build.Choice("minAffinity", {"host", "rack", "zone", "region"}, 0,
                               "How near an endpoint must be to the one chosen before")) {}
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      const bool near = topology_ != nullptr && context.peer &&
                        topology_->Common(context.columns, *context.peer, position) <= farthest_;
      kept += near ? 1 : 0;
    }
    if (kept > 0) return kept;
    std::copy(in.begin(), in.end(), out);
    return in.size();
  }
  std::string Why(const Context&, uint32_t) const override {
    return "not on the same " + std::string(kTopologyLevels[farthest_]) + " as what was chosen before";
  }

 private:
  const Topology* topology_;
  size_t farthest_;
};

class TopologyAffinityScorer final : public Plugin, public Scorer {
 public:
  explicit TopologyAffinityScorer(Build& build) : topology_(ReadTopology(build)) {}
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    constexpr std::array<float, kNoLevel + 1> kScores{1, 0.2f, 0.05f, 0.02f, 0};
    const bool known = topology_ != nullptr && context.peer;
    for (size_t i = 0; i < in.size(); ++i)
      out[i] = known ? kScores[topology_->Common(context.columns, *context.peer, in[i])] : 0;
  }

 private:
  const Topology* topology_;
};

}  // namespace

std::unique_ptr<Plugin> MakeTopologyAffinityFilter(Build& build) {
  return std::make_unique<TopologyAffinityFilter>(build);
}
std::unique_ptr<Plugin> MakeTopologyAffinityScorer(Build& build) {
  return std::make_unique<TopologyAffinityScorer>(build);
}

}  // namespace fairway::scheduling
