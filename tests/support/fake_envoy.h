// Envoy as a dynamic module sees it, without Envoy: streams, clusters and schedulers as plain data, and the
// functions of the interface over them. Streams behave as Envoy's filter manager does: what a filter holds
// back is buffered, local replies end the request.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "frontends/envoy_module/abi.h"

namespace fairway::tests {

using HeaderList = std::vector<std::pair<std::string, std::string>>;

struct LocalReply {
  uint32_t status = 0;
  HeaderList headers;
  std::string body;
  std::string details;
};

// One HTTP stream. The test fills in what came and looks at what the module did.
struct FakeStream {
  HeaderList request_headers;
  HeaderList response_headers;
  HeaderList response_trailers;
  // Bodies in pieces, as Envoy's buffers have them.
  std::vector<std::string> received, buffered, response_received;
  bool received_is_buffer = false;
  uint64_t buffer_limit = 1 << 20;
  std::string override_host;
  std::map<std::pair<std::string, std::string>, std::string> metadata;  // (namespace, key) -> text
  std::optional<std::vector<std::string>> subset_hint;                  // a list
  std::optional<std::string> subset_hint_text;                          // or a text
  std::string upstream_address;
  std::vector<std::string> ruled_out;  // hosts that its retry policy does not want
  uint32_t worker = 0;
  size_t cluster_hosts = 1;  // of its cluster, on its worker
  const void* route_config = nullptr;
  std::optional<LocalReply> reply;
  bool continued = false;
  std::map<size_t, uint64_t> counters;

  std::string request_header(std::string_view name) const;
  std::string response_header(std::string_view name) const;
  std::string body() const;  // what would go on: buffered, then received
};

struct FakeScheduler {
  FakeStream* stream = nullptr;
  uint64_t commits = 0;
};

struct FakeCluster {
  struct Host {
    std::string address;
    bool healthy = true;
    std::map<std::pair<std::string, std::string>, std::string> metadata;
  };
  std::string name;
  std::vector<std::vector<Host>> priorities = {{}};
};

// What the functions tell and count beyond streams. One for the process, as Envoy is.
struct FakeEnvoy {
  std::mutex mutex;
  std::vector<std::string> log;
  std::map<FakeScheduler*, uint64_t> schedulers;         // alive -> commits
  std::vector<std::pair<FakeStream*, uint64_t>> orders;  // what was committed, in order: stream, event
  bool validating = false;
  uint32_t concurrency = 2;
  bool throw_on_headers = false;  // a fault in the middle of a hook

  size_t live_schedulers();
  uint64_t commits();
  std::vector<std::pair<FakeStream*, uint64_t>> TakeOrders();  // since the last call
};
FakeEnvoy& TheFakeEnvoy();

}  // namespace fairway::tests
