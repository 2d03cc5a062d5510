#include "sources/kubernetes/objects.h"

#include <algorithm>

#include "api/manifests.h"
#include "base/strings.h"
#include "net/address.h"
#include "sources/json/json_view.h"

namespace fairway::sources::kubernetes {
namespace {

constexpr size_t kMaxMessage = 500;

constexpr std::string_view kActivePorts = "llm-d.ai/active-ports";
constexpr std::string_view kActivePortsLegacy = "inference.networking.k8s.io/active-ports";

constexpr size_t kMaxActivePorts = 256;  // a pool has 8
constexpr size_t kMaxQuoted = 64;

// "8000,8001"; an empty text is a list without ports.
void ReadActivePorts(std::string_view name, std::string_view text, Pod& pod) {
  auto& ports = pod.active_ports.emplace();
  pod.active_ports_problem.clear();
  for (const std::string_view piece : base::Split(text, ',')) {
    const std::string_view trimmed = base::Trim(piece).substr(0, kMaxQuoted);
    const auto port = base::ParseInteger<uint16_t>(trimmed);
    if (port && *port != 0 && ports.size() < kMaxActivePorts) {
      ports.push_back(*port);
    } else if (!trimmed.empty() && pod.active_ports_problem.empty()) {
      pod.active_ports_problem = std::string(name).append(": \"").append(trimmed).append(
          ports.size() < kMaxActivePorts ? "\" is no port; want a list like 8000,8001"
                                         : "\" is one too many");
    }
  }
}

// An annotation wins over a label of the same name: it may hold any text.
void TakeMetrics(std::string_view key, std::string_view value, Pod& pod) {
  if (key != api::kMetricsPath && key != api::kMetricsScheme && key != api::kMetricsPort) return;
  if (auto text = JsonString(value)) {
    text->resize(std::min(text->size(), api::kMaxMetricsText));
    pod.metrics.insert_or_assign(std::string(key), std::move(*text));
  }
}

void ReadAnnotations(std::string_view annotations, Pod& pod) {
  for (JsonMembers members(annotations); members.Next();) {
    TakeMetrics(members.key(), members.value(), pod);
    const bool newer = members.key() == kActivePorts;
    if (!newer && (members.key() != kActivePortsLegacy || pod.active_ports)) continue;
    if (const auto text = JsonString(members.value())) ReadActivePorts(members.key(), *text, pod);
  }
}

// True when the object is being deleted.
bool ReadPodMeta(std::string_view metadata, Pod& pod) {
  bool terminating = false;
  for (JsonMembers members(metadata); members.Next();) {
    const std::string_view key = members.key();
    if (key == "name") {
      pod.name = JsonString(members.value()).value_or("");
    } else if (key == "namespace") {
      pod.namespace_name = JsonString(members.value()).value_or("");
    } else if (key == "uid") {
      pod.uid = JsonString(members.value()).value_or("");
    } else if (key == "deletionTimestamp") {
      terminating = members.value() != "null";
    } else if (key == "annotations") {
      ReadAnnotations(members.value(), pod);
    } else if (key == "labels") {
      for (JsonMembers labels(members.value()); labels.Next();) {
        pod.labels.emplace(JsonUnescape(labels.key()), JsonString(labels.value()).value_or(""));
      }
    }
  }
  for (const std::string_view name : {api::kMetricsPath, api::kMetricsScheme, api::kMetricsPort}) {
    if (const auto label = pod.labels.find(std::string(name)); label != pod.labels.end())
      pod.metrics.insert(*label);
  }
  return terminating;
}

bool IsTrue(std::string_view condition, std::string_view wanted_type) {
  bool type = false;
  bool status = false;
  for (JsonMembers members(condition); members.Next();) {
    if (members.key() == "type") type = JsonString(members.value()) == wanted_type;
    if (members.key() == "status") status = members.value() == "\"True\"";
  }
  return type && status;
}

// True when the condition Ready is.
bool ReadPodStatus(std::string_view status, Pod& pod) {
  bool ready = false;
  for (JsonMembers members(status); members.Next();) {
    if (members.key() == "podIP") {
      pod.address = JsonString(members.value()).value_or("");
    } else if (members.key() == "conditions") {
      for (JsonItems items(members.value()); items.Next();) ready = ready || IsTrue(items.value(), "Ready");
    }
  }
  if (!net::IsIpLiteral(pod.address)) pod.address.clear();
  return ready;
}

}  // namespace

std::optional<Pod> ReadPod(std::string_view object) {
  Pod pod;
  bool terminating = false;
  bool ready = false;
  for (JsonMembers members(object); members.Next();) {
    if (members.key() == "metadata") terminating = ReadPodMeta(members.value(), pod);
    if (members.key() == "status") ready = ReadPodStatus(members.value(), pod);
  }
  if (pod.name.empty()) return std::nullopt;
  pod.eligible = ready && !terminating && !pod.address.empty();
  return pod;
}

bool PortIsActive(const Pod& pod, uint16_t port) {
  if (!pod.active_ports) return true;
  return std::find(pod.active_ports->begin(), pod.active_ports->end(), port) != pod.active_ports->end();
}

std::optional<ObjectId> ReadObjectId(std::string_view object) {
  ObjectId id;
  for (JsonMembers members(object); members.Next();) {
    if (members.key() != "metadata") continue;
    for (JsonMembers meta(members.value()); meta.Next();) {
      if (meta.key() == "name") id.name = JsonString(meta.value()).value_or("");
      if (meta.key() == "namespace") id.namespace_name = JsonString(meta.value()).value_or("");
      if (meta.key() == "resourceVersion") id.resource_version = JsonString(meta.value()).value_or("");
    }
  }
  // A bookmark has a version and no name.
  if (id.name.empty() && id.resource_version.empty()) return std::nullopt;
  return id;
}

ListMeta ReadListMeta(std::string_view envelope) {
  ListMeta meta;
  for (JsonMembers members(envelope); members.Next();) {
    if (members.key() != "metadata") continue;
    for (JsonMembers fields(members.value()); fields.Next();) {
      if (fields.key() == "resourceVersion") meta.resource_version = JsonString(fields.value()).value_or("");
      if (fields.key() == "continue") meta.continue_token = JsonString(fields.value()).value_or("");
    }
  }
  return meta;
}

WatchEvent ReadWatchEvent(std::string_view text) {
  WatchEvent event;
  for (JsonMembers members(text); members.Next();) {
    if (members.key() == "object") event.object = members.value();
    if (members.key() != "type") continue;
    const std::string_view type = members.value();
    if (type == "\"ADDED\"" || type == "\"MODIFIED\"") {
      event.type = WatchEvent::Type::kSet;
    } else if (type == "\"DELETED\"") {
      event.type = WatchEvent::Type::kDeleted;
    } else if (type == "\"BOOKMARK\"") {
      event.type = WatchEvent::Type::kBookmark;
    } else if (type == "\"ERROR\"") {
      event.type = WatchEvent::Type::kError;
    }
  }
  return event;
}

ApiStatus ReadApiStatus(std::string_view text) {
  ApiStatus status;
  for (JsonMembers members(text); members.Next();) {
    if (members.key() == "code") status.code = base::ParseInteger<int>(members.value()).value_or(0);
    if (members.key() == "reason") status.reason = JsonString(members.value()).value_or("");
    if (members.key() == "message") status.message = JsonString(members.value()).value_or("");
  }
  if (status.message.empty()) status.message = base::Trim(text.substr(0, kMaxMessage));
  if (status.message.size() > kMaxMessage) status.message.resize(kMaxMessage);
  return status;
}

}  // namespace fairway::sources::kubernetes
