// What users write, as validated plain structs: Kubernetes manifests and the endpoints file, from YAML or
// JSON.
//
// Shapes, defaults and checks are those of the CRDs (docs/manifests.md lists them). A Problem names file,
// line, field, what is wrong and what would be right; all problems of all files are reported at once.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/meta.h"
#include "api/policies.h"

namespace fairway::api {

enum class Severity { kError, kWarning };

// examples/intro-route.yaml:12: HTTPRoute default/llm-route: spec.rules[0].backendRefs[0].name:
//   no InferencePool "vllm-llama2-7b" in namespace "default";
//   did you mean "vllm-llama2-7b-pool"?
struct Problem {
  Severity severity = Severity::kError;
  Position where;
  std::string object;   // "HTTPRoute default/llm-route", "" when it is about the file
  std::string field;    // "spec.rules[0].backendRefs[0].name", "" when it is about the object
  std::string message;  // what is wrong and what would be right
};
std::string ToString(const Problem& problem);
// More than warnings.
bool HasErrors(const std::vector<Problem>& problems);

enum class FailureMode { kFailClose, kFailOpen };
enum class AppProtocol { kHttp, kH2c };

// Both inference.networking.k8s.io/v1 and inference.networking.x-k8s.io/v1alpha2.
struct InferencePool {
  struct PickerRef {
    std::string group;  // "" is core
    std::string kind = "Service";
    std::string name;
    std::optional<uint16_t> port;  // v1alpha2 implies 9002 for a Service
    FailureMode failure_mode = FailureMode::kFailClose;
  };
  ObjectMeta meta;
  std::string group;  // "inference.networking.k8s.io" or "inference.networking.x-k8s.io"
  std::map<std::string, std::string> selector;  // matchLabels; every pair must match
  std::vector<uint16_t> target_ports;           // 1 to 8, distinct
  AppProtocol app_protocol = AppProtocol::kHttp;
  std::optional<PickerRef> picker;
};

enum class Criticality { kUnset, kCritical, kStandard, kSheddable };

// inference.networking.x-k8s.io/v1alpha2.
struct InferenceModel {
  struct Target {
    std::string name;
    std::optional<int32_t> weight;  // 1 to 1000000; set for all targets or for none
  };
  ObjectMeta meta;
  std::string model_name;  // what clients ask for
  Criticality criticality = Criticality::kUnset;
  std::string pool_name;  // in the namespace of the model
  std::string pool_group = "inference.networking.x-k8s.io";
  std::vector<Target> targets;  // empty: model_name itself
  Position pool_where;
};

// gateway.networking.k8s.io/v1, the part that local mode serves: HTTP listeners.
struct Gateway {
  struct Listener {
    std::string name;
    uint16_t port = 0;
    std::string protocol;  // HTTP is served; others are reported
    std::string hostname;  // "" matches all; "*.example.com"
    Position where;
  };
  ObjectMeta meta;
  std::string class_name;
  std::vector<Listener> listeners;
};

// gateway.networking.k8s.io/v1: path, header, query and method matches; backendRefs to InferencePools with
// weights.
struct HttpRoute {
  enum class PathType { kPrefix, kExact, kRegex };
  struct ValueMatch {
    std::string name;
    std::string value;
    bool regex = false;
  };
  struct Match {
    PathType path_type = PathType::kPrefix;
    std::string path = "/";
    std::vector<ValueMatch> headers;
    std::vector<ValueMatch> query;
    std::string method;  // "" is any
  };
  struct Backend {
    std::string group;
    std::string kind;  // InferencePool is served; others are reported
    std::string name;
    std::string namespace_name;
    int32_t weight = 1;  // 0 to 1000000; 0 gets nothing
    Position where;
  };
  struct Rule {
    std::vector<Match> matches;  // any of them; never empty after loading (default: prefix "/")
    std::vector<Backend> backends;
    int64_t request_timeout_ms = 0;  // timeouts.request; 0: none
    Position where;
  };
  struct ParentRef {
    std::string name;
    std::string namespace_name;
    std::string section_name;  // listener, "" is all
    std::optional<uint16_t> port;
    Position where;
  };
  ObjectMeta meta;
  std::vector<ParentRef> parents;  // Gateways only
  std::vector<std::string> hostnames;
  std::vector<Rule> rules;
};

// One model server of the endpoints file, beyond the reference's file discovery also IPv6, host names and
// where its metrics page is.
struct Endpoint {
  std::string name;
  std::string namespace_name = "default";
  std::string address;  // IPv4, IPv6 without brackets, or a host name
  uint16_t port = 0;
  // Of its metrics page; what is 0 or "" the settings for all or its engine say (sources/scrape). Text of
  // others: whoever uses it checks it.
  uint16_t metrics_port = 0;
  std::string metrics_scheme;
  std::string metrics_path;
  std::map<std::string, std::string> labels;
  std::string pool_key;  // set by sources that know it: belongs to this pool alone, whatever its labels
  std::string uid;       // of a Pod: tells it from its successor of the same name and address; "" elsewhere
  Position where;
};

// Names of labels and annotations that say where a model server's metrics page is.
inline constexpr std::string_view kMetricsPath = "fairway/metrics-path";
inline constexpr std::string_view kMetricsScheme = "fairway/metrics-scheme";
inline constexpr std::string_view kMetricsPort = "fairway/metrics-port";
inline constexpr size_t kMaxMetricsText = 1100;  // of their texts; more than can be right
// Takes what they say over into `endpoint`. A text that is cut here, or no port, is told later as one that
// cannot be.
void TakeMetricsPlace(const std::map<std::string, std::string>& texts, Endpoint& endpoint);

// Does `endpoint` belong to `pool`? By namespace and labels, or because its source says so.
bool BelongsTo(const Endpoint& endpoint, const InferencePool& pool);

// Everything that was read, in the order of files and documents.
struct Manifests {
  std::vector<InferencePool> pools;
  std::vector<InferenceModel> models;
  std::vector<InferenceObjective> objectives;
  std::vector<InferenceModelRewrite> rewrites;
  std::vector<Gateway> gateways;
  std::vector<HttpRoute> routes;
  std::vector<Endpoint> endpoints;

  const InferencePool* FindPool(std::string_view namespace_name, std::string_view name) const;
};

// The models of `pool` that count, in the order of reading: of several objects with one modelName the one
// that was created first; where creation times are missing or equal the one that was read first.
std::vector<const InferenceModel*> ModelsOf(const Manifests& manifests, const InferencePool& pool);

// The objectives and the rewrites that name `pool`, its group included, from the same namespace. Rewrites
// come in the order of precedence: the oldest first; those without a creation time last, in the order of
// reading.
std::vector<const InferenceObjective*> ObjectivesOf(const Manifests& manifests, const InferencePool& pool);
std::vector<const InferenceModelRewrite*> RewritesOf(const Manifests& manifests, const InferencePool& pool);

// Does `labels` have every pair of `selector`? An empty selector matches nothing.
bool Matches(const std::map<std::string, std::string>& selector,
             const std::map<std::string, std::string>& labels);

struct LoadResult {
  Manifests manifests;  // what could be read; complete only when there is no error among the problems
  std::vector<Problem> problems;
  std::vector<std::string> files;  // every file that was read, as named
  uint64_t fingerprint = 0;        // of names and bytes, set by LoadManifests: equal when nothing changed

  bool ok() const;  // no errors; warnings do not count
};

// One text with any number of YAML documents or JSON values (a List object counts as its items). Decodes and
// checks each object by itself. Never throws; a text of any bytes gives a result.
LoadResult ParseManifests(std::string_view text, std::string_view file_name);

// One object as an API server gives it, in JSON. The same decoding, but fields that this version does not
// know are left alone: the server has checked them against its own CRD. `source` takes the file's place in
// problems.
LoadResult ParseObject(std::string_view json, std::string_view source);

// Each of `paths`: a file, a folder (its *.yaml, *.yml, *.json by name, not deeper, no hidden ones, no
// kustomization.yaml) or "-". Then CheckReferences over all of it. Reads files, so not for a thread that
// serves; a pipe without data is given up after 5 s.
LoadResult LoadManifests(const std::vector<std::string>& paths);

// Is a file of this name read when its folder is named? *.yaml, *.yml and *.json are, hidden ones and
// kustomization files are not.
bool IsManifestName(std::string_view file_name);

// What only shows when all objects are there: references to pools, gateways and listeners that do not exist
// (with the nearest name), references to a pool of the other API group, objects of one name twice, models of
// one name (ModelsOf: a warning), rules of rewrites that others hide (a warning), pools that select no
// endpoint and endpoints that no pool selects (warnings). Gateways are looked up only when there is one at
// all.
void CheckReferences(const Manifests& manifests, std::vector<Problem>& problems);

}  // namespace fairway::api
