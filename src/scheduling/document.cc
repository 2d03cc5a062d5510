// From the document to a spec: names and numbers only; what they mean is the compiler's affair.
#include "scheduling/config.h"

namespace fairway::scheduling {

ConfigSpec FromDocument(const api::EndpointPickerConfig& document) {
  ConfigSpec spec{.fills_in = true};
  for (const auto& plugin : document.plugins)
    spec.plugins.push_back({plugin.type, plugin.name, plugin.parameters, plugin.where.line});
  for (const auto& profile : document.profiles) {
    ProfileSpec& out = spec.profiles.emplace_back();
    out.name = profile.name;
    out.line = profile.where.line;
    for (const auto& [plugin, weight, where] : profile.plugins)
      out.steps.push_back({plugin.name, weight, plugin.where.line});
  }
  if (document.flow_control.saturation_detector)
    spec.saturation = document.flow_control.saturation_detector->name;
  return spec;
}

}  // namespace fairway::scheduling
