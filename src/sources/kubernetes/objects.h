// What is read of Kubernetes' own objects and of the API's envelopes: the fields that are used, no more.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fairway::sources::kubernetes {

// A Pod's part in routing.
struct Pod {
  std::string name;
  std::string namespace_name;
  std::string uid;
  std::string address;  // an IP literal; "" when there is none or it is no address
  std::map<std::string, std::string> labels;
  std::map<std::string, std::string> metrics;  // annotations and labels that say where the metrics page is
  std::optional<std::vector<uint16_t>> active_ports;  // the annotation's; nothing: there is none
  std::string active_ports_problem;                   // what is wrong with it; "": nothing
  bool eligible = false;                              // Ready, not terminating, with an address

  bool operator==(const Pod&) const = default;
};

// Nothing when the text is no object with a name.
std::optional<Pod> ReadPod(std::string_view object);

// Does the annotation allow this port? No annotation allows all. Of a malformed one the ports that can be
// read count, and one without any allows none, as in the reference.
bool PortIsActive(const Pod& pod, uint16_t port);

struct ObjectId {
  std::string name;
  std::string namespace_name;
  std::string resource_version;
  std::string key() const { return namespace_name + "/" + name; }
};
std::optional<ObjectId> ReadObjectId(std::string_view object);

// A list's metadata.
struct ListMeta {
  std::string resource_version;
  std::string continue_token;  // "" on the last page
};
ListMeta ReadListMeta(std::string_view envelope);

struct WatchEvent {
  enum class Type { kSet, kDeleted, kBookmark, kError, kUnknown };
  Type type = Type::kUnknown;
  std::string_view object;  // in the text that was given
};
WatchEvent ReadWatchEvent(std::string_view text);

// A Status object: why a call failed. Other texts give code 0 and their first words as the message.
struct ApiStatus {
  int code = 0;
  std::string reason;
  std::string message;
};
ApiStatus ReadApiStatus(std::string_view text);

}  // namespace fairway::sources::kubernetes
