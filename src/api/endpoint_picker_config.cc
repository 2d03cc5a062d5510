// The document itself: versions, feature gates, plugins and profiles.
#include "api/endpoint_picker_config.h"

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "api/endpoint_picker_decode.h"
#include "api/scalars.h"
#include "base/strings.h"

namespace fairway::api {
namespace {

using Config = EndpointPickerConfig;

constexpr std::string_view kV1 = "llm-d.ai/v1";
constexpr std::string_view kV1Alpha1 = "llm-d.ai/v1alpha1";
constexpr std::string_view kXV1Alpha1 = "inference.networking.x-k8s.io/v1alpha1";

constexpr size_t kMaxProfiles = 100;
constexpr size_t kMaxParsers = 50;
constexpr size_t kMaxGates = 100;

struct Gate {
  std::string_view name;
  bool Config::FeatureGates::* value;
};
constexpr std::array<Gate, 2> kGates{{
    {"flowControl", &Config::FeatureGates::flow_control},
    {"haPopulateNonLeaderDatastore", &Config::FeatureGates::ha_populate_non_leader_datastore},
}};
// Gates of older releases: the reference fails on them today.
constexpr std::array<std::string_view, 3> kGoneGates{"dataLayer", "enableLegacyMetrics",
                                                     "prepareDataPlugins"};

// Go's ParseBool, which the reference asks; it takes any case.
std::optional<bool> ToBoolean(std::string_view text) {
  const std::string lower = base::ToLower(base::Trim(text));
  if (lower == "1" || lower == "t" || lower == "true") return true;
  if (lower == "0" || lower == "f" || lower == "false") return false;
  return std::nullopt;
}

// What is wrong with one gate as written, "" when nothing is.
std::string ReadGate(std::string_view text, Config::FeatureGates& gates) {
  const size_t equals = text.find('=');
  const std::string_view name = text.substr(0, equals);
  const auto* const gate =
      std::find_if(kGates.begin(), kGates.end(), [&](const Gate& known) { return known.name == name; });
  if (gate == kGates.end()) {
    if (std::find(kGoneGates.begin(), kGoneGates.end(), name) != kGoneGates.end()) {
      return "feature gate " + Quote(name) + " is gone: nothing is left to switch; take it out";
    }
    const std::vector<std::string> names{std::string(kGates[0].name), std::string(kGates[1].name)};
    std::string hint = DidYouMean(name, names);
    if (hint.empty()) hint = "; there are " + base::Join(names, " and ");
    return "feature gate " + Quote(name) + " is unknown" + hint;
  }
  const auto value =
      equals == std::string_view::npos ? std::optional(true) : ToBoolean(text.substr(equals + 1));
  if (!value) {
    return "want " + std::string(name) + ", " + std::string(name) + "=true or " + std::string(name) +
           "=false, got " + Quote(text);
  }
  gates.*(gate->value) = *value;
  return "";
}

Config::FeatureGates ReadGates(const Node& node, const EndpointPickerConfigOptions& options) {
  Config::FeatureGates gates;
  for (const Node& item : node.Items(0, kMaxGates)) {
    const auto text = item.Text();
    if (!text) continue;
    if (std::string problem = ReadGate(*text, gates); !problem.empty()) item.Error(std::move(problem));
  }
  for (const std::string& text : options.feature_gates) {
    const std::string problem = text.empty() ? "" : ReadGate(text, gates);
    if (problem.empty()) continue;
    node.context().problems->Add(Severity::kError, 0, "", "--feature-gates", problem);
  }
  return gates;
}

std::vector<Config::Plugin> ReadPlugins(const Node& node) {
  std::vector<Config::Plugin> plugins;
  for (const Node& item : node.Items(0, kMaxPlugins)) {
    ObjectReader reader(item);
    Config::Plugin plugin;
    plugin.field = item.path();
    plugin.where = item.where();
    plugin.type = ReadText(reader.Require("type"), CheckReferentName);
    const Node name = reader.Get("name");
    const bool named = name.Is(Value::Kind::kString) ? !name.value().text.empty() : name.present();
    plugin.name = named ? ReadText(name, CheckReferentName) : plugin.type;
    const Node parameters = reader.Get("parameters");
    if (parameters.present() && !parameters.Is(Value::Kind::kMap)) {
      parameters.WrongType("a map");
    } else if (parameters.present() && parameters.value().entries.size() > kMaxParameters) {
      parameters.Error("at most " + std::to_string(kMaxParameters) + " entries, not " +
                       std::to_string(parameters.value().entries.size()));
    } else if (parameters.present()) {
      // Values are shared: the one in the list of entries is the one that the node shows.
      for (const Value::Entry& entry : item.value().entries) {
        if (entry.key == "parameters") plugin.parameters = entry.value;
      }
    }
    reader.Mistaken("pluginRef", "that refers to a plugin; here one is made, by type and name");
    reader.Mistaken("weight", "weights stand in schedulingProfiles");
    reader.Finish();
    plugins.push_back(std::move(plugin));
  }
  return plugins;
}

Config::ProfilePlugin ReadProfilePlugin(const Node& item) {
  ObjectReader reader(item);
  Config::ProfilePlugin plugin;
  plugin.plugin = ReadRequiredRef(reader.Require("pluginRef"));
  const Node weight = reader.Get("weight");
  plugin.weight = ReadNumber(weight);
  plugin.weight_where = weight.where();
  reader.Mistaken("type", "plugins are made under plugins; here is pluginRef, the name of one");
  reader.Mistaken("name", "the name of a plugin stands in pluginRef");
  reader.Mistaken("parameters", "parameters stand where the plugin is made, under plugins");
  reader.Finish();
  return plugin;
}

std::vector<Config::Profile> ReadProfiles(const Node& node) {
  std::vector<Config::Profile> profiles;
  for (const Node& item : node.Items(0, kMaxProfiles)) {
    ObjectReader reader(item);
    Config::Profile profile;
    profile.field = item.path();
    profile.where = item.where();
    profile.name = ReadText(reader.Require("name"), CheckReferentName);
    for (const Node& plugin : reader.Get("plugins").Items(0, kMaxPlugins))
      profile.plugins.push_back(ReadProfilePlugin(plugin));
    reader.Finish();
    profiles.push_back(std::move(profile));
  }
  return profiles;
}

void ReadRequestHandler(const Node& node, Config& config) {
  ObjectReader reader(node);
  for (const Node& item : reader.Get("parsers").Items(0, kMaxParsers)) {
    ObjectReader parser(item);
    config.parsers.push_back(ReadRequiredRef(parser.Require("pluginRef")));
    parser.Finish();
  }
  config.propagate_priority = ReadBoolean(reader.Get("propagatePriority")).value_or(false);
  reader.Mistaken("parser", "it is parsers, a list");
  reader.Finish();
}

// The two sections that stood at the top before they moved.
void ReadMovedSections(ObjectReader& root, Config& config) {
  const Node detector = root.Get("saturationDetector");
  if (detector.present()) {
    const bool new_is_set = root.node().Child("flowControl").Child("saturationDetector").present();
    WarnMoved(detector, "flowControl.saturationDetector", new_is_set);
    ObjectReader reader(detector);
    auto ref = ReadOptionalRef(reader.Get("pluginRef"));
    MistakenForPlugin(reader);
    reader.Finish();
    if (!new_is_set) config.flow_control.saturation_detector = std::move(ref);
  }
  const Node parser = root.Get("parser");
  if (parser.present()) {
    const bool new_is_set = !config.parsers.empty();
    WarnMoved(parser, "requestHandler.parsers", new_is_set);
    auto ref = ReadRefMap(parser);
    if (!new_is_set && ref) config.parsers.push_back(std::move(*ref));
  }
}

void ReadVersion(const Node& node, Config& config) {
  const auto version = ReadChoice(node, {kV1, kV1Alpha1, kXV1Alpha1});
  if (!version) return;
  config.api_version = node.value().text;
  if (*version != 0) node.Warn(Quote(config.api_version) + " is deprecated; use " + Quote(kV1));
}

// False when the document is none of ours, so that its fields say nothing.
bool ReadKind(const Node& node) {
  const auto kind = node.Text();
  if (!kind || *kind == kEndpointPickerConfig) return true;
  std::string hint;
  if (*kind == "ConfigMap") {
    hint = "; the config is what stands under a name in its data";
  } else {
    const std::vector<std::string> right{std::string(kEndpointPickerConfig)};
    hint = DidYouMean(*kind, right);
    if (hint.empty()) hint = "; manifests are given by -f";
  }
  node.Error("want " + std::string(kEndpointPickerConfig) + ", got " + Quote(*kind) + hint);
  return false;
}

void ReadConfig(const Node& root, const EndpointPickerConfigOptions& options, Config& config) {
  if (!root.Is(Value::Kind::kMap)) return root.WrongType("an EndpointPickerConfig");
  ObjectReader reader(root);
  config.where = root.where();
  const Node version = reader.Require("apiVersion");
  if (!ReadKind(reader.Require("kind"))) return;  // whose versions are others
  ReadVersion(version, config);
  config.feature_gates = ReadGates(reader.Get("featureGates"), options);
  config.plugins = ReadPlugins(reader.Get("plugins"));
  config.profiles = ReadProfiles(reader.Get("schedulingProfiles"));
  config.data_layer = ReadDataLayer(reader.Get("dataLayer"));
  config.flow_control = ReadFlowControl(reader.Get("flowControl"), config.feature_gates.flow_control);
  ReadRequestHandler(reader.Get("requestHandler"), config);
  ReadMovedSections(reader, config);
  reader.Mistaken("metadata", "the config looks like an object of Kubernetes and is none: it has no name");
  reader.Mistaken("spec", "its fields stand at the top");
  reader.Mistaken("parsers", "it is requestHandler.parsers");
  reader.Finish();
  CheckEndpointPickerReferences(config, *root.context().problems);
}

void SortByLine(std::vector<Problem>& problems) {
  std::stable_sort(problems.begin(), problems.end(),
                   [](const Problem& a, const Problem& b) { return a.where.line < b.where.line; });
}

EndpointPickerConfigResult Failed(std::string_view name, std::string message) {
  EndpointPickerConfigResult result;
  result.fingerprint = std::hash<std::string_view>{}(message);
  result.problems.push_back({Severity::kError, {std::string(name), 0}, "", "", std::move(message)});
  return result;
}

}  // namespace

const Config::Plugin* Config::Find(std::string_view name) const {
  const auto found =
      std::find_if(plugins.begin(), plugins.end(), [&](const Plugin& plugin) { return plugin.name == name; });
  return found == plugins.end() ? nullptr : &*found;
}

bool EndpointPickerConfigResult::ok() const { return !HasErrors(problems); }

std::string CheckFeatureGate(std::string_view text) {
  Config::FeatureGates gates;
  if (ReadGate(text, gates).empty()) return "";
  return "want " + std::string(kGates[0].name) + " or " + std::string(kGates[1].name) +
         ", each alone or with =true or =false";
}

EndpointPickerConfigResult ParseEndpointPickerConfig(std::string_view text, std::string_view name,
                                                     const EndpointPickerConfigOptions& options) {
  if (text.size() > kMaxConfigBytes) return Failed(name, "larger than 1 MiB");
  EndpointPickerConfigResult result;
  result.fingerprint = std::hash<std::string_view>{}(text);
  ProblemList problems{std::string(name), result.problems};
  const ParsedText parsed = ParseText(text, name);
  for (const SyntaxProblem& problem : parsed.problems)
    problems.Add(Severity::kError, problem.line, "", "", problem.message);
  const ObjectContext context{&problems, std::string(kEndpointPickerConfig)};
  bool found = false;
  for (const ValuePtr& document : parsed.documents) {
    if (document->kind == Value::Kind::kNull) continue;
    if (found) {
      problems.Add(Severity::kError, document->line, "", "", "a second document; one config is all there is");
      break;
    }
    found = true;
    ReadConfig(Node(&context, document.get(), "", document->line), options, result.config);
  }
  // A file that is being written is empty for a moment, which must not mean the defaults.
  if (!found && parsed.problems.empty())
    problems.Add(Severity::kError, 0, "", "", "is empty; leave the flag away for the defaults");
  SortByLine(result.problems);
  return result;
}

EndpointPickerConfigResult LoadEndpointPickerConfig(const std::string& path,
                                                    const EndpointPickerConfigOptions& options) {
  const auto text = ReadFile(path, {.only_files = options.only_files, .max_bytes = kMaxConfigBytes});
  if (!text) return Failed(path, text.error().message);
  return ParseEndpointPickerConfig(*text, path, options);
}

Node ParametersOf(const ObjectContext& context, const Config::Plugin& plugin) {
  const int line = plugin.parameters != nullptr ? plugin.parameters->line : plugin.where.line;
  return {&context, plugin.parameters.get(), plugin.field + ".parameters", line};
}

}  // namespace fairway::api
