// From the document to a spec: names and numbers only; what they mean is the compiler's affair.
#include <algorithm>

#include "scheduling/config.h"

namespace fairway::scheduling {

namespace {

// Names that the defaults bring may be referred to without an entry among the plugins: they come into being.
void AddImplied(const api::EndpointPickerConfig::Ref& ref, ConfigSpec& spec,
                std::span<const std::string_view> implied = api::ImpliedPlugins()) {
  const auto is_it = [&ref](const PluginSpec& plugin) { return plugin.name == ref.name; };
  if (std::find(implied.begin(), implied.end(), ref.name) != implied.end() &&
      std::none_of(spec.plugins.begin(), spec.plugins.end(), is_it))
    spec.plugins.push_back({ref.name, ref.name, nullptr, ref.where.line});
}

}  // namespace

ConfigSpec FromDocument(const api::EndpointPickerConfig& document) {
  ConfigSpec spec{.fills_in = true};
  for (const auto& plugin : document.plugins)
    spec.plugins.push_back({plugin.type, plugin.name, plugin.parameters, plugin.where.line});
  for (const auto& profile : document.profiles) {
    ProfileSpec& out = spec.profiles.emplace_back();
    out.name = profile.name;
    out.line = profile.where.line;
    for (const auto& [plugin, weight, where] : profile.plugins) {
      out.steps.push_back({plugin.name, weight, plugin.where.line});
      AddImplied(plugin, spec);
    }
  }
  if (document.flow_control.saturation_detector) {
    spec.saturation = document.flow_control.saturation_detector->name;
    spec.saturation_field = document.flow_control.saturation_detector->field;
    spec.saturation_line = document.flow_control.saturation_detector->where.line;
    AddImplied(*document.flow_control.saturation_detector, spec);
  }
  for (const auto& parser : document.parsers) {
    spec.parsers.push_back({parser.name, parser.where.line});
    AddImplied(parser, spec, api::ImpliedParsers());
  }
  return spec;
}

}  // namespace fairway::scheduling
