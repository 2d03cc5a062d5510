// The sections dataLayer and flowControl, and how references to plugins are read.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "api/endpoint_picker_decode.h"
#include "api/scalars.h"

namespace fairway::api {
namespace {

using Config = EndpointPickerConfig;

constexpr size_t kMaxSources = 100;
constexpr size_t kMaxExtractors = 100;
constexpr size_t kMaxBands = 1000;

std::vector<Config::Source> ReadSources(const Node& node) {
  std::vector<Config::Source> sources;
  for (const Node& item : node.Items(0, kMaxSources)) {
    ObjectReader reader(item);
    Config::Source source;
    source.plugin = ReadRequiredRef(reader.Require("pluginRef"));
    for (const Node& extractor : reader.Get("extractors").Items(0, kMaxExtractors)) {
      ObjectReader one(extractor);
      source.extractors.push_back(ReadRequiredRef(one.Require("pluginRef")));
      one.Finish();
    }
    reader.Finish();
    sources.push_back(std::move(source));
  }
  return sources;
}

void ReadDiscovery(ObjectReader& layer, Config::DataLayer& read) {
  ObjectReader discovery(layer.Get("discovery"));
  read.discovery_endpoints = ReadRefMap(discovery.Get("endpoints"));
  read.discovery_peers = ReadRefMap(discovery.Get("peers"));
  const Node old_endpoints = discovery.Get("pluginRef");
  if (old_endpoints.present()) {
    const bool new_is_set = discovery.Get("endpoints").present();
    WarnMoved(old_endpoints, "dataLayer.discovery.endpoints.pluginRef", new_is_set);
    auto ref = ReadOptionalRef(old_endpoints);
    if (!new_is_set) read.discovery_endpoints = std::move(ref);
  }
  const Node old_peers = layer.Get("peerDiscovery");
  if (old_peers.present()) {
    const bool new_is_set = discovery.Get("peers").present();
    WarnMoved(old_peers, "dataLayer.discovery.peers", new_is_set);
    auto ref = ReadRefMap(old_peers);
    if (!new_is_set) read.discovery_peers = std::move(ref);
  }
  discovery.Finish();
}

// The new place of a field that moved, or the old one with a warning.
Node MovedField(ObjectReader& old_parent, std::string_view old_name, ObjectReader& new_parent,
                std::string_view new_name) {
  Node now = new_parent.Get(new_name);
  Node before = old_parent.Get(old_name);
  if (!before.present()) return now;
  WarnMoved(before, "dataLayer.crossReplica." + std::string(new_name), now.present());
  return now.present() ? now : before;
}

void ReadCrossReplica(ObjectReader& layer, Config::CrossReplica& read) {
  ObjectReader section(layer.Get("crossReplica"));
  read.syncer = ReadOptionalRef(MovedField(layer, "crossReplicaSyncerPluginRef", section, "syncerPluginRef"));
  read.sync_interval_ns =
      ReadDuration(MovedField(layer, "crossReplicaSyncInterval", section, "syncInterval"));
  const Node timeout = MovedField(layer, "crossReplicaPublishTimeout", section, "publishTimeout");
  read.publish_timeout_ns = ReadDuration(timeout);
  if (read.publish_timeout_ns == 0) timeout.Error("must be more than 0");
  section.Finish();
}

void Report(const Node& node, bool error, std::string message) {
  if (error) {
    node.Error(std::move(message));
  } else {
    node.Warn(std::move(message));
  }
}

// Never 0: that means "not set" in all places.
std::optional<uint64_t> ReadLimit(const Node& node, bool on) {
  const auto quantity = ReadQuantity(node);
  if (quantity && *quantity < 0) Report(node, on, "must not be negative, got " + Quote(node.value().text));
  if (!quantity || *quantity <= 0) return std::nullopt;
  return static_cast<uint64_t>(*quantity);
}

Config::Band ReadBand(const Node& node, bool on, bool is_default) {
  ObjectReader reader(node);
  Config::Band band;
  band.field = node.path();
  band.where = node.where();
  const Node priority = reader.Get("priority");
  constexpr int64_t kLowest = std::numeric_limits<int32_t>::min();
  constexpr int64_t kHighest = std::numeric_limits<int32_t>::max();
  band.priority = static_cast<int32_t>(priority.Integer(kLowest, kHighest).value_or(0));
  if (is_default && priority.present()) {
    priority.Warn("has no effect: this band is a template for priorities that have none of their own");
  } else if (reader.valid() && !is_default && !priority.present()) {
    priority.Warn("is not set, so the band is that of priority 0");
  }
  band.max_bytes = ReadLimit(reader.Get("maxBytes"), on);
  band.max_requests = ReadLimit(reader.Get("maxRequests"), on);
  band.default_request_ttl_ns = ReadDuration(reader.Get("defaultRequestTTL"));
  band.fairness_policy = ReadOptionalRef(reader.Get("fairnessPolicyRef"));
  band.ordering_policy = ReadOptionalRef(reader.Get("orderingPolicyRef"));
  reader.Mistaken("queue", "kinds of queues are gone: the ordering policy says all");
  reader.Finish();
  return band;
}

std::optional<Config::Band> ReadDefaultBand(const Node& node, bool on) {
  if (!node.present()) return std::nullopt;
  return ReadBand(node, on, true);
}

}  // namespace

std::optional<Config::Ref> ReadOptionalRef(const Node& node) {
  if (!node.present() || (node.Is(Value::Kind::kString) && node.value().text.empty())) return std::nullopt;
  std::string name = ReadText(node, CheckReferentName);
  if (name.empty()) return std::nullopt;
  return Config::Ref{std::move(name), node.path(), node.where()};
}

Config::Ref ReadRequiredRef(const Node& node) {
  return {ReadText(node, CheckReferentName), node.path(), node.where()};
}

void MistakenForPlugin(ObjectReader& reference) {
  if (!reference.valid()) return;
  for (const Value::Entry& entry : reference.node().value().entries) {
    if (entry.key.starts_with("plug") || entry.key.starts_with("ref")) continue;  // pluginRef, mistyped
    reference.Mistaken(
        entry.key,
        "here is pluginRef alone, the name of a plugin; its type and parameters stand under plugins");
  }
}

std::optional<Config::Ref> ReadRefMap(const Node& map) {
  if (!map.present()) return std::nullopt;
  ObjectReader reader(map);
  Config::Ref ref = ReadRequiredRef(reader.Require("pluginRef"));
  MistakenForPlugin(reader);
  reader.Finish();
  if (ref.name.empty()) return std::nullopt;
  return ref;
}

void WarnMoved(const Node& old_place, std::string_view new_place, bool new_is_set) {
  const std::string place(new_place);
  old_place.Warn(new_is_set ? "is deprecated and has no effect, because " + place + " is set, too"
                            : "is deprecated; it is " + place + " now");
}

Config::DataLayer ReadDataLayer(const Node& node) {
  Config::DataLayer layer;
  ObjectReader reader(node);
  layer.inject_defaults = ReadBoolean(reader.Get("injectDefaults")).value_or(true);
  layer.sources = ReadSources(reader.Get("sources"));
  ReadDiscovery(reader, layer);
  ReadCrossReplica(reader, layer.cross_replica);
  reader.Finish();
  return layer;
}

Config::FlowControl ReadFlowControl(const Node& node, bool on) {
  Config::FlowControl control;
  ObjectReader reader(node);
  control.max_bytes = ReadLimit(reader.Get("maxBytes"), on);
  control.max_requests = ReadLimit(reader.Get("maxRequests"), on);
  control.default_request_ttl_ns = ReadDuration(reader.Get("defaultRequestTTL"));
  control.no_endpoint_request_ttl_ns = ReadDuration(reader.Get("noEndpointRequestTTL"));
  control.default_band = ReadDefaultBand(reader.Get("defaultPriorityBand"), on);
  control.default_negative_band = ReadDefaultBand(reader.Get("defaultNegativePriorityBand"), on);
  for (const Node& band : reader.Get("priorityBands").Items(0, kMaxBands))
    control.bands.push_back(ReadBand(band, on, false));
  control.usage_limit_policy = ReadOptionalRef(reader.Get("usageLimitPolicyPluginRef"));
  ObjectReader detector(reader.Get("saturationDetector"));
  control.saturation_detector = ReadOptionalRef(detector.Get("pluginRef"));
  MistakenForPlugin(detector);
  detector.Finish();
  control.enable_eviction = ReadBoolean(reader.Get("enableEviction")).value_or(false);
  reader.Mistaken("usageLimitPolicyRef", "it is usageLimitPolicyPluginRef");
  reader.Finish();
  if (!reader.valid() || on) return control;
  const auto& entries = node.value().entries;
  const auto is_idle = [](const Value::Entry& entry) {
    return entry.key != "saturationDetector" && entry.value->kind != Value::Kind::kNull;
  };
  if (std::any_of(entries.begin(), entries.end(), is_idle)) {
    node.Warn(
        "has no effect but for saturationDetector: the feature gate flowControl is off (featureGates: "
        "[flowControl])");
  }
  return control;
}

}  // namespace fairway::api
