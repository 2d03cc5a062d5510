// The sections beside plugins and profiles, as a text that is read as the same again.
#include <string>

#include "api/endpoint_picker_config.h"
#include "api/print.h"
#include "api/scalars.h"
#include "base/json_writer.h"

namespace fairway::api {
namespace {

using Config = EndpointPickerConfig;

void Member(base::JsonWriter& json, std::string_view key, const std::optional<Config::Ref>& ref) {
  if (ref) json.Member(key, ref->name);
}
void Member(base::JsonWriter& json, std::string_view key, const std::optional<uint64_t>& limit) {
  if (limit) json.Member(key, *limit);
}
void Duration(base::JsonWriter& json, std::string_view key, const std::optional<int64_t>& nanos) {
  if (nanos) json.Member(key, ShowDuration(*nanos));
}
void RefMap(base::JsonWriter& json, std::string_view key, const std::optional<Config::Ref>& ref) {
  if (ref) json.Key(key).BeginObject().Member("pluginRef", ref->name).EndObject();
}

void WriteBand(const Config::Band& band, bool is_default, base::JsonWriter& json) {
  json.BeginObject();
  if (!is_default) json.Member("priority", band.priority);
  Member(json, "maxBytes", band.max_bytes);
  Member(json, "maxRequests", band.max_requests);
  Duration(json, "defaultRequestTTL", band.default_request_ttl_ns);
  Member(json, "fairnessPolicyRef", band.fairness_policy);
  Member(json, "orderingPolicyRef", band.ordering_policy);
  json.EndObject();
}

void WriteFlowControl(const Config::FlowControl& control, std::string_view saturation,
                      base::JsonWriter& json) {
  json.BeginObject();
  Member(json, "maxBytes", control.max_bytes);
  Member(json, "maxRequests", control.max_requests);
  Duration(json, "defaultRequestTTL", control.default_request_ttl_ns);
  Duration(json, "noEndpointRequestTTL", control.no_endpoint_request_ttl_ns);
  if (control.default_band) WriteBand(*control.default_band, true, json.Key("defaultPriorityBand"));
  if (control.default_negative_band)
    WriteBand(*control.default_negative_band, true, json.Key("defaultNegativePriorityBand"));
  if (!control.bands.empty()) {
    json.Key("priorityBands").BeginList();
    for (const Config::Band& band : control.bands) WriteBand(band, false, json);
    json.EndList();
  }
  Member(json, "usageLimitPolicyPluginRef", control.usage_limit_policy);
  if (control.enable_eviction) json.Member("enableEviction", true);
  json.Key("saturationDetector").BeginObject().Member("pluginRef", saturation).EndObject();
  json.EndObject();
}

void WriteDataLayer(const Config::DataLayer& layer, base::JsonWriter& json) {
  json.BeginObject().Member("injectDefaults", layer.inject_defaults);
  if (!layer.sources.empty()) {
    json.Key("sources").BeginList();
    for (const Config::Source& source : layer.sources) {
      json.BeginObject().Member("pluginRef", source.plugin.name).Key("extractors").BeginList();
      for (const Config::Ref& extractor : source.extractors)
        json.BeginObject().Member("pluginRef", extractor.name).EndObject();
      json.EndList().EndObject();
    }
    json.EndList();
  }
  if (layer.discovery_endpoints || layer.discovery_peers) {
    json.Key("discovery").BeginObject();
    RefMap(json, "endpoints", layer.discovery_endpoints);
    RefMap(json, "peers", layer.discovery_peers);
    json.EndObject();
  }
  const Config::CrossReplica& replica = layer.cross_replica;
  if (replica.syncer || replica.sync_interval_ns || replica.publish_timeout_ns) {
    json.Key("crossReplica").BeginObject();
    Member(json, "syncerPluginRef", replica.syncer);
    Duration(json, "syncInterval", replica.sync_interval_ns);
    Duration(json, "publishTimeout", replica.publish_timeout_ns);
    json.EndObject();
  }
  json.EndObject();
}

void WriteRequestHandler(const Config& config, base::JsonWriter& json) {
  json.BeginObject().Member("propagatePriority", config.propagate_priority);
  if (!config.parsers.empty()) {  // none listed: what is on then is known to who reads bodies
    json.Key("parsers").BeginList();
    for (const Config::Ref& parser : config.parsers)
      json.BeginObject().Member("pluginRef", parser.name).EndObject();
    json.EndList();
  }
  json.EndObject();
}

}  // namespace

std::string PrintFeatureGates(const EndpointPickerConfig& config) {
  const auto gate = [](std::string_view name, bool on) {
    return "- " + std::string(name) + (on ? "=true\n" : "=false\n");
  };
  return "featureGates:\n" + gate("flowControl", config.feature_gates.flow_control) +
         gate("haPopulateNonLeaderDatastore", config.feature_gates.ha_populate_non_leader_datastore);
}

std::string PrintSections(const EndpointPickerConfig& config, std::string_view saturation) {
  std::string text;
  base::JsonWriter json(text);
  json.BeginObject();
  WriteDataLayer(config.data_layer, json.Key("dataLayer"));
  WriteFlowControl(config.flow_control, saturation, json.Key("flowControl"));
  WriteRequestHandler(config, json.Key("requestHandler"));
  json.EndObject();
  std::string out;
  AppendYaml(*ParseJson(text).documents.at(0), 0, out);
  return out.substr(1);  // the line's end that a map begins with
}

}  // namespace fairway::api
