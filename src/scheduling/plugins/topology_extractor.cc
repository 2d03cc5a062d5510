// topology-extractor: host, rack, zone and region of endpoints, by their labels `hostname`
// (kubernetes.io/hostname), `rack` (topology.kubernetes.io/rack), `zone` and `region`
// (topology.kubernetes.io/zone and /region). Source: the reference's extractor of this name (llm-d router),
// which takes a Pod's spec.hostname where it has no label; Fairway knows labels only.
#include "scheduling/plugins/topology.h"

namespace fairway::scheduling {
namespace {

class TopologyExtractor final : public Plugin, public EndpointProducer, public Topology {
 public:
  explicit TopologyExtractor(Build& build)
      : labels_{build.Text("hostname", "kubernetes.io/hostname", "Label that names the host"),
                build.Text("rack", "topology.kubernetes.io/rack", "Label that names the rack"),
                build.Text("zone", "topology.kubernetes.io/zone", "Label that names the zone"),
                build.Text("region", "topology.kubernetes.io/region", "Label that names the region")} {
    for (size_t level = 0; level < kNoLevel; ++level)
      keys_[level] = KeyColumns(build, kTopologyLevels[level]);
  }
  float Value(Column column, const fleet::Endpoint& endpoint) const override {
    for (size_t level = 0; level < kNoLevel; ++level) {
      if (!keys_[level].Has(column)) continue;
      const auto found = endpoint.labels.find(labels_[level]);
      return keys_[level].Value(column, found == endpoint.labels.end() ? 0 : KeyOf(found->second));
    }
    return 0;
  }
  size_t Common(const Columns& columns, uint32_t a, uint32_t b) const noexcept override {
    for (size_t level = 0; level < kNoLevel; ++level) {
      const uint64_t key = keys_[level].At(columns, a);
      if (key != 0 && key == keys_[level].At(columns, b)) return level;
    }
    return kNoLevel;
  }

 private:
  std::array<std::string, kNoLevel> labels_;
  std::array<KeyColumns, kNoLevel> keys_;
};

}  // namespace

std::unique_ptr<Plugin> MakeTopologyExtractor(Build& build) {
  return std::make_unique<TopologyExtractor>(build);
}

}  // namespace fairway::scheduling
