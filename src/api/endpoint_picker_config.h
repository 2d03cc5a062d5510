// EndpointPickerConfig, the reference picker's own configuration: which plugins there are, how profiles put
// them together, where data comes from, who waits how long. From YAML or JSON into plain structs; what a
// plugin makes of its parameters is its own affair.
//
// Accepted are llm-d.ai/v1 and, with a warning, llm-d.ai/v1alpha1 and inference.networking.x-k8s.io/v1alpha1.
// A field that moved between them may stand in either place in each version; the old place gets a warning,
// and the new one wins. docs/plugins.md lists the plugins.
//
// Threads: plain functions without state; structs are values, and what parameters point to never changes.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "api/load.h"
#include "api/manifests.h"
#include "api/value.h"

namespace fairway::api {

class Node;
struct ObjectContext;

struct EndpointPickerConfig {
  // A plugin by the name of its instance, and where that is said.
  struct Ref {
    std::string name;
    std::string field;  // "schedulingProfiles[0].plugins[2].pluginRef", for messages
    Position where;
  };
  struct Plugin {
    std::string type;
    std::string name;     // unique; the type where none is given
    ValuePtr parameters;  // a map, or null: none given. ParametersOf() reads it
    std::string field;    // "plugins[2]"
    Position where;
  };
  struct ProfilePlugin {
    Ref plugin;
    std::optional<double> weight;  // finite, of either sign; counts for scorers, where the default is 1
    Position weight_where;         // as far as there is one
  };
  struct Profile {
    std::string name;  // unique
    std::vector<ProfilePlugin> plugins;
    std::string field;
    Position where;
  };
  struct Source {
    Ref plugin;
    std::vector<Ref> extractors;
  };
  struct CrossReplica {
    std::optional<Ref> syncer;
    std::optional<int64_t> sync_interval_ns;
    std::optional<int64_t> publish_timeout_ns;  // above 0
  };
  struct DataLayer {
    bool inject_defaults =
        true;  // add metrics-data-source with core-metrics-extractor where it is not a source
    std::vector<Source> sources;
    std::optional<Ref> discovery_endpoints;  // set: endpoints come from this plugin, not from Kubernetes
    std::optional<Ref> discovery_peers;
    CrossReplica cross_replica;
  };
  // What is not set follows the default band, then the reference's defaults: 1 GB, 5000 requests,
  // global-strict-fairness-policy, fcfs-ordering-policy.
  struct Band {
    int32_t priority = 0;  // unique; without meaning in the two defaults
    std::optional<uint64_t> max_bytes;
    std::optional<uint64_t> max_requests;
    std::optional<int64_t> default_request_ttl_ns;
    std::optional<Ref> fairness_policy;
    std::optional<Ref> ordering_policy;
    std::string field;
    Position where;
  };
  struct FlowControl {
    std::optional<uint64_t> max_bytes;              // not set, or 0 in the file: no limit
    std::optional<uint64_t> max_requests;           // as above
    std::optional<int64_t> default_request_ttl_ns;  // 60 s where not set; 0: no end
    std::optional<int64_t> no_endpoint_request_ttl_ns;
    std::optional<Band> default_band;
    std::optional<Band> default_negative_band;  // for priorities below 0
    std::vector<Band> bands;
    std::optional<Ref> usage_limit_policy;
    std::optional<Ref> saturation_detector;  // counts with flow control off, too
    bool enable_eviction = false;
  };
  struct FeatureGates {
    bool flow_control = false;
    bool ha_populate_non_leader_datastore = true;
  };

  std::string api_version;  // as written
  FeatureGates feature_gates;
  std::vector<Plugin> plugins;
  std::vector<Profile> profiles;  // none: one that holds every filter, scorer and picker
  DataLayer data_layer;
  FlowControl flow_control;
  std::vector<Ref> parsers;  // none: the default ones
  bool propagate_priority = false;
  Position where;

  const Plugin* Find(std::string_view name) const;
};

// The names that may be referred to without an entry in `plugins`: of these the defaults consist, so they
// come into being where they are missing.
std::span<const std::string_view> ImpliedPlugins();
// The same, where a parser is wanted.
std::span<const std::string_view> ImpliedParsers();

struct EndpointPickerConfigResult {
  EndpointPickerConfig config;  // what could be read; keeps its promises only when ok()
  std::vector<Problem> problems;
  uint64_t fingerprint = 0;  // of the text: equal when nothing changed

  bool ok() const;  // no errors; warnings do not count
};

struct EndpointPickerConfigOptions {
  bool only_files = false;  // as LoadOptions has it
  std::vector<std::string>
      feature_gates;  // as flags give them: "name", "name=false"; they win over the text's
};

constexpr size_t kMaxConfigBytes = 1024 * 1024;  // what a ConfigMap can hold
constexpr size_t kMaxPlugins = 500;
constexpr size_t kMaxParameters = 1000;  // of one plugin

// A TextRule of one feature gate, as a flag or setting gives it.
std::string CheckFeatureGate(std::string_view text);

// One text. `name` stands for the file in messages: its path, or "--config-text". Never throws.
EndpointPickerConfigResult ParseEndpointPickerConfig(std::string_view text, std::string_view name,
                                                     const EndpointPickerConfigOptions& options = {});

// One file, or "-". Reads, so not for a thread that serves; a pipe without data is given up after 5 s.
EndpointPickerConfigResult LoadEndpointPickerConfig(const std::string& path,
                                                    const EndpointPickerConfigOptions& options = {});

// The parameters of `plugin` for an ObjectReader (api/decode.h), with their place in the file. `context` says
// where problems go, and has to outlive the node.
Node ParametersOf(const ObjectContext& context, const EndpointPickerConfig::Plugin& plugin);

// Parts of what `fairway config print` prints, YAML each: the gates, and the sections beside plugins and
// profiles with `saturation` as the detector.
std::string PrintFeatureGates(const EndpointPickerConfig& config);
std::string PrintSections(const EndpointPickerConfig& config, std::string_view saturation);

}  // namespace fairway::api
