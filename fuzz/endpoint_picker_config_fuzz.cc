// Any bytes as an EndpointPickerConfig. Whether the size is even chooses the name's ending.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <span>
#include <string_view>
#include <vector>

#include "api/decode.h"
#include "api/endpoint_picker_config.h"

namespace {

using fairway::api::EndpointPickerConfig;

void Require(bool promise) {
  if (!promise) std::abort();
}

bool Known(const EndpointPickerConfig& config, const EndpointPickerConfig::Ref& ref,
           std::span<const std::string_view> implied) {
  return config.Find(ref.name) != nullptr ||
         std::find(implied.begin(), implied.end(), ref.name) != implied.end();
}

// What passed the checks keeps the promises of the header.
void CheckPromises(const EndpointPickerConfig& config) {
  const auto implied = fairway::api::ImpliedPlugins();
  std::set<std::string_view> names;
  Require(config.plugins.size() <= fairway::api::kMaxPlugins && !config.api_version.empty());
  for (const auto& plugin : config.plugins) {
    Require(!plugin.type.empty() && !plugin.name.empty() && names.insert(plugin.name).second);
    std::vector<fairway::api::Problem> found;
    fairway::api::ProblemList problems("input", found);
    const fairway::api::ObjectContext context{&problems, "plugin"};
    fairway::api::ObjectReader reader(fairway::api::ParametersOf(context, plugin));
    Require(reader.valid() == (plugin.parameters != nullptr));
    reader.Finish();
    const size_t fields = plugin.parameters == nullptr ? 0 : plugin.parameters->entries.size();
    Require((fields == 0) == found.empty());
  }
  std::set<std::string_view> profiles;
  for (const auto& profile : config.profiles) {
    Require(!profile.name.empty() && profiles.insert(profile.name).second);
    for (const auto& plugin : profile.plugins)
      Require(Known(config, plugin.plugin, implied) && std::isfinite(plugin.weight.value_or(0)));
  }
  for (const auto& parser : config.parsers) Require(Known(config, parser, fairway::api::ImpliedParsers()));
  for (const auto& source : config.data_layer.sources) Require(Known(config, source.plugin, implied));
  const auto& control = config.flow_control;
  Require(control.max_bytes.value_or(1) > 0 && control.default_request_ttl_ns.value_or(0) >= 0);
  Require(config.data_layer.cross_replica.publish_timeout_ns.value_or(1) > 0);
  if (!config.feature_gates.flow_control) return;
  std::set<int32_t> priorities;
  for (const auto& band : control.bands) {
    Require(priorities.insert(band.priority).second);
    Require(!band.fairness_policy || Known(config, *band.fairness_policy, implied));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto result =
      fairway::api::ParseEndpointPickerConfig(text, size % 2 == 0 ? "input.yaml" : "input.json");
  int line = 0;
  for (const fairway::api::Problem& problem : result.problems) {
    Require(!problem.message.empty() && problem.where.line >= line);
    line = problem.where.line;
  }
  Require(!fairway::api::PrintSections(result.config, "on").empty());
  if (result.ok()) CheckPromises(result.config);
  return 0;
}
