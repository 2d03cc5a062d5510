// The config as it decides, as a text that is a config again.
#include <algorithm>
#include <utility>

#include "api/print.h"
#include "api/scalars.h"
#include "base/strings.h"
#include "scheduling/config.h"

namespace fairway::scheduling {

namespace {

// "  # default, 0 to 1, old name of blockSizeTokens"
std::string Comment(const ParameterInfo& parameter) {
  std::vector<std::string> words;
  if (!parameter.given) words.emplace_back("default");
  if (!parameter.range.empty()) words.push_back(parameter.range);
  if (parameter.help.starts_with("Old ")) words.push_back("o" + parameter.help.substr(1));
  return words.empty() ? "" : "  # " + base::Join(words, ", ");
}

// "  # filled in", "  # deprecated, use label-selector-filter"
std::string CommentOfType(const std::string& type, bool listed) {
  std::string text = listed ? "" : "filled in";
  const auto types = BuiltinPlugins();
  const auto found = std::find_if(types.begin(), types.end(), [&](const auto& t) { return t.type == type; });
  if (found != types.end() && found->stability == Stability::kDeprecated)
    text += (text.empty() ? "" : ", ") + std::string("deprecated, use ") + std::string(found->successor);
  return text.empty() ? "" : "  # " + text;
}

void AppendPlugin(const Config::Instance& plugin, bool listed, std::string& out) {
  out += "- type: " + plugin.type + CommentOfType(plugin.type, listed) +
         "\n  name: " + api::YamlText(plugin.name) + "\n";
  bool any = false;
  for (const ParameterInfo& parameter : plugin.parameters) {
    if (parameter.value.empty()) continue;
    if (!std::exchange(any, true)) out += "  parameters:\n";
    out += "    " + parameter.name + ":";
    const api::ParsedText value = api::ParseJson(parameter.value);
    api::AppendYaml(*value.documents.at(0), 6, out);
    const std::string comment = Comment(parameter);
    if (comment.empty() || parameter.kind == "object" || parameter.kind == "list") continue;
    out.insert(out.size() - 1, comment);
  }
}

void AppendProfile(const Config& config, const ProfileSpec& profile, std::string& out) {
  out += "- name: " + api::YamlText(profile.name) + "\n  plugins:" + (profile.steps.empty() ? " []\n" : "\n");
  for (const ProfileSpec::Step& step : profile.steps) {
    out += "  - pluginRef: " + api::YamlText(step.plugin) + "\n";
    const auto is_it = [&step](const auto& plugin) { return plugin->name == step.plugin; };
    const auto plugin = std::find_if(config.plugins.begin(), config.plugins.end(), is_it);
    if (plugin != config.plugins.end() && (*plugin)->scorer != nullptr)
      out += "    weight: " + api::ShowNumber(step.weight.value_or(1)) + "\n";
  }
}

}  // namespace

std::string PrintConfig(const api::EndpointPickerConfig& document, const Config& config) {
  std::string out = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n";
  out += "# parsers: " + payload::ToString(config.parsers) + "\n";
  out += api::PrintFeatureGates(document) + "plugins:" + (config.plugins.empty() ? " []\n" : "\n");
  for (const auto& plugin : config.plugins)
    AppendPlugin(*plugin, document.Find(plugin->name) != nullptr, out);
  out += "schedulingProfiles:\n";
  for (const ProfileSpec& profile : config.profiles) AppendProfile(config, profile, out);
  return out +
         api::PrintSections(document, config.profiles.empty() ? "" : config.profiles.front().saturation);
}

}  // namespace fairway::scheduling
