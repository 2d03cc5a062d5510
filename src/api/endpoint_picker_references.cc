// What shows only when the whole config is read, and its summary.
#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "api/endpoint_picker_decode.h"
#include "base/strings.h"

namespace fairway::api {
namespace {

using Config = EndpointPickerConfig;

constexpr std::array<std::string_view, 12> kImplied{
    "single-profile-handler",    "max-score-picker",     "openai-parser",
    "anthropic-parser",          "vllmhttp-parser",      "passthrough-parser",
    "utilization-detector",      "fcfs-ordering-policy", "global-strict-fairness-policy",
    "static-usage-limit-policy", "metrics-data-source",  "core-metrics-extractor"};
constexpr std::array<std::string_view, 7> kImpliedParsers{
    "openai-parser",     "anthropic-parser", "vllmhttp-parser", "passthrough-parser",
    "sglanghttp-parser", "vllmgrpc-parser",  "vertexai-parser"};

class Checker {
 public:
  Checker(const Config& config, ProblemList& problems) : config_(config), problems_(problems) {}

  void Run() {
    CheckNames();
    CheckProfiles();
    CheckBands();
    for (const Config::Ref& parser : config_.parsers) CheckRef(parser, ImpliedParsers());
    CheckDataLayer();
    CheckFlowControl();
  }

 private:
  void Add(Severity severity, const Position& where, const std::string& field, std::string message) {
    problems_.Add(severity, where.line, std::string(kEndpointPickerConfig), field, std::move(message));
  }

  void CheckNames() {
    for (const Config::Plugin& plugin : config_.plugins) {
      if (plugin.name.empty()) continue;  // reported already
      const auto [at, is_new] = plugins_.emplace(plugin.name, &plugin);
      if (!is_new) {
        Add(Severity::kError, plugin.where, plugin.field + ".name",
            Quote(plugin.name) + " is taken by " + at->second->field + " in line " +
                std::to_string(at->second->where.line) +
                (plugin.name == plugin.type ? "; give one of the two another name" : ""));
      }
    }
    std::map<std::string_view, const Config::Profile*> profiles;
    for (const Config::Profile& profile : config_.profiles) {
      if (profile.name.empty()) continue;
      const auto [at, is_new] = profiles.emplace(profile.name, &profile);
      if (!is_new) {
        Add(Severity::kError, profile.where, profile.field + ".name",
            Quote(profile.name) + " is taken by " + at->second->field + " in line " +
                std::to_string(at->second->where.line));
      }
    }
  }

  // "; plugins[2] of that type is called "queue"" or the nearest name.
  std::string Hint(const std::string& name) const {
    for (const Config::Plugin& plugin : config_.plugins) {
      if (plugin.type == name && !plugin.name.empty())
        return "; " + plugin.field + " of that type is called " + Quote(plugin.name);
    }
    std::vector<std::string> names;
    names.reserve(plugins_.size());
    for (const auto& [known, plugin] : plugins_) names.emplace_back(known);
    if (const std::string hint = DidYouMean(name, names); !hint.empty()) return hint;
    return config_.plugins.empty() ? "; plugins is empty" : "";
  }

  void CheckRef(const Config::Ref& ref, std::span<const std::string_view> implied,
                Severity severity = Severity::kError) {
    if (ref.name.empty() || plugins_.contains(ref.name)) return;
    if (std::find(implied.begin(), implied.end(), ref.name) != implied.end()) return;
    Add(severity, ref.where, ref.field, "no " + Quote(ref.name) + " among plugins" + Hint(ref.name));
  }
  void CheckRef(const std::optional<Config::Ref>& ref, Severity severity = Severity::kError) {
    if (ref) CheckRef(*ref, ImpliedPlugins(), severity);
  }

  void CheckProfiles() {
    for (const Config::Profile& profile : config_.profiles) {
      std::set<std::string_view> seen;
      for (const Config::ProfilePlugin& plugin : profile.plugins) {
        CheckRef(plugin.plugin, ImpliedPlugins());
        if (!plugin.plugin.name.empty() && !seen.insert(plugin.plugin.name).second)
          Add(Severity::kWarning, plugin.plugin.where, plugin.plugin.field,
              Quote(plugin.plugin.name) + " is there twice in this profile, and counts twice");
      }
    }
  }

  // Off, flow control is a section without effect, whatever stands there.
  Severity OfFlowControl() const {
    return config_.feature_gates.flow_control ? Severity::kError : Severity::kWarning;
  }

  void CheckBands() {
    std::map<int32_t, const Config::Band*> bands;
    for (const Config::Band& band : config_.flow_control.bands) {
      const auto [at, is_new] = bands.emplace(band.priority, &band);
      if (!is_new) {
        Add(OfFlowControl(), band.where, band.field + ".priority",
            std::to_string(band.priority) + " is taken by " + at->second->field + " in line " +
                std::to_string(at->second->where.line));
      }
    }
  }

  void CheckPolicies(const Config::Band& band) {
    CheckRef(band.fairness_policy, OfFlowControl());
    CheckRef(band.ordering_policy, OfFlowControl());
  }

  void CheckFlowControl() {
    const Config::FlowControl& control = config_.flow_control;
    if (control.default_band) CheckPolicies(*control.default_band);
    if (control.default_negative_band) CheckPolicies(*control.default_negative_band);
    for (const Config::Band& band : control.bands) CheckPolicies(band);
    CheckRef(control.usage_limit_policy, OfFlowControl());
    CheckRef(control.saturation_detector);
  }

  void CheckDataLayer() {
    const Config::DataLayer& layer = config_.data_layer;
    for (const Config::Source& source : layer.sources) {
      CheckRef(source.plugin, ImpliedPlugins());
      for (const Config::Ref& extractor : source.extractors) CheckRef(extractor, ImpliedPlugins());
    }
    CheckRef(layer.discovery_endpoints);
    CheckRef(layer.discovery_peers);
    CheckRef(layer.cross_replica.syncer);
  }

  const Config& config_;
  ProblemList& problems_;
  std::map<std::string, const Config::Plugin*, std::less<>> plugins_;
};

}  // namespace

std::span<const std::string_view> ImpliedPlugins() { return kImplied; }
std::span<const std::string_view> ImpliedParsers() { return kImpliedParsers; }

void CheckEndpointPickerReferences(const EndpointPickerConfig& config, ProblemList& problems) {
  Checker(config, problems).Run();
}

}  // namespace fairway::api
