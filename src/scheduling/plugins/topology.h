// How near two endpoints are: whether they share a host, a rack, a zone or a region.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "api/text_rules.h"
#include "scheduling/build.h"
#include "scheduling/plugin.h"
#include "scheduling/plugins/keys.h"

namespace fairway::scheduling {

inline constexpr std::array<std::string_view, 4> kTopologyLevels{"host", "rack", "zone", "region"};
inline constexpr size_t kNoLevel = kTopologyLevels.size();

// What topology-extractor knows of endpoints, as other plugins ask it.
class Topology {
 public:
  virtual ~Topology() = default;
  // The nearest level that both have in common; kNoLevel: none.
  virtual size_t Common(const Columns& columns, uint32_t a, uint32_t b) const noexcept = 0;
};

// The extractor that `topologyProducerName` names. Null, with a warning: there is none.
inline const Topology* ReadTopology(Build& build) {
  constexpr std::string_view kName = "topologyProducerName";
  const std::string name = build.Text(kName, "topology-extractor", "Plugin that tells where endpoints are");
  const auto* topology = build.RefersOptional<Topology>(kName, name);
  if (topology == nullptr) build.Warn(kName, "no effect: there is no topology extractor " + api::Quote(name));
  return topology;
}

}  // namespace fairway::scheduling
