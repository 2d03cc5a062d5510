#include "tests/support/fake_envoy.h"

#include <algorithm>
#include <stdexcept>

namespace fairway::tests {

namespace abi = envoy_module::abi;

namespace {

std::string Find(const HeaderList& headers, std::string_view name) {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return "";
}

FakeStream& Of(void* stream) { return *static_cast<FakeStream*>(stream); }
FakeCluster& ClusterOf(void* balancer) { return *static_cast<FakeCluster*>(balancer); }

HeaderList& HeadersOf(void* stream, abi::HeaderType type) {
  FakeStream& self = Of(stream);
  if (type == abi::HeaderType::kResponseTrailer) return self.response_trailers;
  return type == abi::HeaderType::kResponse ? self.response_headers : self.request_headers;
}

std::vector<std::string>& BodyOf(void* stream, abi::BodyType type) {
  FakeStream& self = Of(stream);
  switch (type) {
    case abi::BodyType::kRequestReceived:
      return self.received;
    case abi::BodyType::kRequestBuffered:
      return self.received_is_buffer ? self.received : self.buffered;
    default:
      return self.response_received;
  }
}

std::vector<const FakeCluster::Host*> HostsOf(void* balancer, uint32_t priority, bool healthy_only) {
  std::vector<const FakeCluster::Host*> hosts;
  const auto& priorities = ClusterOf(balancer).priorities;
  if (priority >= priorities.size()) return hosts;
  for (const auto& host : priorities[priority]) {
    if (host.healthy || !healthy_only) hosts.push_back(&host);
  }
  return hosts;
}

}  // namespace

std::string FakeStream::request_header(std::string_view name) const { return Find(request_headers, name); }
std::string FakeStream::response_header(std::string_view name) const { return Find(response_headers, name); }

std::string FakeStream::body() const {
  std::string all;
  if (!received_is_buffer) {
    for (const auto& piece : buffered) all += piece;
  }
  for (const auto& piece : received) all += piece;
  return all;
}

size_t FakeEnvoy::live_schedulers() {
  const std::lock_guard lock(mutex);
  return schedulers.size();
}

uint64_t FakeEnvoy::commits() {
  const std::lock_guard lock(mutex);
  uint64_t all = 0;
  for (const auto& [scheduler, count] : schedulers) all += count;
  return all;
}

std::vector<std::pair<FakeStream*, uint64_t>> FakeEnvoy::TakeOrders() {
  const std::lock_guard lock(mutex);
  return std::exchange(orders, {});
}

FakeEnvoy& TheFakeEnvoy() {
  static FakeEnvoy envoy;
  return envoy;
}

}  // namespace fairway::tests

// ---- The interface.

using fairway::tests::ClusterOf;
using fairway::tests::FakeScheduler;
using fairway::tests::FakeStream;
using fairway::tests::HeadersOf;
using fairway::tests::HostsOf;
using fairway::tests::Of;
using fairway::tests::TheFakeEnvoy;
namespace abi = fairway::envoy_module::abi;

void FAIRWAY_ENVOY(log)(abi::LogLevel, abi::Buffer message) {
  auto& envoy = TheFakeEnvoy();
  const std::lock_guard lock(envoy.mutex);
  envoy.log.emplace_back(message.view());
}
bool FAIRWAY_ENVOY(log_enabled)(abi::LogLevel) { return true; }
uint32_t FAIRWAY_ENVOY(get_concurrency)() { return TheFakeEnvoy().concurrency; }
bool FAIRWAY_ENVOY(is_validation_mode)() { return TheFakeEnvoy().validating; }

int FAIRWAY_ENVOY(http_filter_config_define_counter)(void*, abi::Buffer, abi::Buffer*, size_t, size_t* id) {
  static size_t last = 0;
  *id = ++last;
  return 0;
}
int FAIRWAY_ENVOY(http_filter_increment_counter)(void* stream, size_t id, abi::Buffer*, size_t, uint64_t by) {
  Of(stream).counters[id] += by;
  return 0;
}

bool FAIRWAY_ENVOY(http_get_header)(void* stream, abi::HeaderType type, abi::Buffer name, abi::Buffer* value,
                                    size_t, size_t*) {
  for (const auto& [key, text] : HeadersOf(stream, type)) {
    if (key != name.view()) continue;
    *value = abi::ToBuffer(text);
    return true;
  }
  return false;
}
bool FAIRWAY_ENVOY(http_set_header)(void* stream, abi::HeaderType type, abi::Buffer name, abi::Buffer value) {
  auto& headers = HeadersOf(stream, type);
  const std::string key(name.view());
  std::erase_if(headers, [&](const auto& header) { return header.first == key; });
  if (value.data != nullptr) headers.emplace_back(key, std::string(value.view()));
  return true;
}
bool FAIRWAY_ENVOY(http_add_header)(void* stream, abi::HeaderType type, abi::Buffer name, abi::Buffer value) {
  HeadersOf(stream, type).emplace_back(std::string(name.view()), std::string(value.view()));
  return true;
}
size_t FAIRWAY_ENVOY(http_get_headers_size)(void* stream, abi::HeaderType type) {
  if (TheFakeEnvoy().throw_on_headers) throw std::runtime_error("thrown by the test");
  return HeadersOf(stream, type).size();
}
bool FAIRWAY_ENVOY(http_get_headers)(void* stream, abi::HeaderType type, abi::Header* headers) {
  for (const auto& [name, value] : HeadersOf(stream, type)) {
    *headers++ = {name.data(), name.size(), value.data(), value.size()};
  }
  return true;
}

size_t FAIRWAY_ENVOY(http_get_body_size)(void* stream, abi::BodyType type) {
  size_t size = 0;
  for (const auto& piece : fairway::tests::BodyOf(stream, type)) size += piece.size();
  return size;
}
size_t FAIRWAY_ENVOY(http_get_body_chunks_size)(void* stream, abi::BodyType type) {
  return fairway::tests::BodyOf(stream, type).size();
}
bool FAIRWAY_ENVOY(http_get_body_chunks)(void* stream, abi::BodyType type, abi::Buffer* chunks) {
  for (const auto& piece : fairway::tests::BodyOf(stream, type)) *chunks++ = abi::ToBuffer(piece);
  return true;
}
bool FAIRWAY_ENVOY(http_append_body)(void* stream, abi::BodyType type, abi::Buffer data) {
  fairway::tests::BodyOf(stream, type).emplace_back(data.view());
  return true;
}
bool FAIRWAY_ENVOY(http_drain_body)(void* stream, abi::BodyType type, size_t bytes) {
  auto& pieces = fairway::tests::BodyOf(stream, type);
  while (bytes > 0 && !pieces.empty()) {
    const size_t take = std::min(bytes, pieces.front().size());
    pieces.front().erase(0, take);
    bytes -= take;
    if (pieces.front().empty()) pieces.erase(pieces.begin());
  }
  return bytes == 0;
}
bool FAIRWAY_ENVOY(http_received_buffered_request_body)(void* stream) {
  return Of(stream).received_is_buffer;
}
uint64_t FAIRWAY_ENVOY(http_get_buffer_limit)(void* stream) { return Of(stream).buffer_limit; }
void FAIRWAY_ENVOY(http_set_buffer_limit)(void* stream, uint64_t bytes) { Of(stream).buffer_limit = bytes; }

bool FAIRWAY_ENVOY(http_set_upstream_override_host)(void* stream, abi::Buffer host, bool) {
  Of(stream).override_host = host.view();
  return true;
}
void FAIRWAY_ENVOY(http_set_dynamic_metadata_string)(void* stream, abi::Buffer space, abi::Buffer key,
                                                     abi::Buffer value) {
  Of(stream).metadata[{std::string(space.view()), std::string(key.view())}] = value.view();
}
bool FAIRWAY_ENVOY(http_get_metadata_string)(void* stream, abi::MetadataSource, abi::Buffer, abi::Buffer,
                                             abi::Buffer* value) {
  const auto& hint = Of(stream).subset_hint_text;
  if (hint) *value = abi::ToBuffer(*hint);
  return hint.has_value();
}
bool FAIRWAY_ENVOY(http_get_metadata_list_size)(void* stream, abi::MetadataSource, abi::Buffer, abi::Buffer,
                                                size_t* size) {
  const auto& hint = Of(stream).subset_hint;
  if (hint) *size = hint->size();
  return hint.has_value();
}
bool FAIRWAY_ENVOY(http_get_metadata_list_string)(void* stream, abi::MetadataSource, abi::Buffer, abi::Buffer,
                                                  size_t index, abi::Buffer* value) {
  *value = abi::ToBuffer(Of(stream).subset_hint->at(index));
  return true;
}
bool FAIRWAY_ENVOY(http_filter_get_attribute_string)(void* stream, abi::Attribute which, abi::Buffer* value) {
  if (which == abi::Attribute::kRequestPath) {
    return FAIRWAY_ENVOY(http_get_header)(stream, abi::HeaderType::kRequest, abi::ToBuffer(":path"), value, 0,
                                          nullptr);
  }
  if (which != abi::Attribute::kUpstreamAddress || Of(stream).upstream_address.empty()) return false;
  *value = abi::ToBuffer(Of(stream).upstream_address);
  return true;
}
bool FAIRWAY_ENVOY(http_filter_get_attribute_int)(void* stream, abi::Attribute which, uint64_t* value) {
  const std::string status = Of(stream).response_header(":status");
  if (which != abi::Attribute::kResponseCode || status.empty()) return false;
  *value = std::stoull(status);
  return true;
}
bool FAIRWAY_ENVOY(http_get_cluster_host_count)(void* stream, uint32_t, size_t* total, size_t* healthy,
                                                size_t* degraded) {
  *total = *healthy = Of(stream).cluster_hosts;
  *degraded = 0;
  return true;
}
bool FAIRWAY_ENVOY(http_get_cluster_name)(void*, abi::Buffer* name) {
  *name = abi::ToBuffer("default/pool");
  return true;
}
uint32_t FAIRWAY_ENVOY(http_filter_get_worker_index)(void* stream) { return Of(stream).worker; }
const void* FAIRWAY_ENVOY(get_most_specific_route_config)(void* stream) { return Of(stream).route_config; }

void FAIRWAY_ENVOY(http_send_response)(void* stream, uint32_t status, const abi::Header* headers,
                                       size_t count, abi::Buffer body, abi::Buffer details) {
  fairway::tests::LocalReply reply{.status = status,
                                   .headers = {},
                                   .body = std::string(body.view()),
                                   .details = std::string(details.view())};
  for (size_t i = 0; i < count; ++i) {
    reply.headers.emplace_back(std::string(headers[i].name, headers[i].name_size),
                               std::string(headers[i].value, headers[i].value_size));
  }
  Of(stream).reply = std::move(reply);
}
void FAIRWAY_ENVOY(http_filter_continue_decoding)(void* stream) { Of(stream).continued = true; }

void* FAIRWAY_ENVOY(http_filter_scheduler_new)(void* stream) {
  auto* scheduler = new FakeScheduler{&Of(stream)};
  const std::lock_guard lock(TheFakeEnvoy().mutex);
  TheFakeEnvoy().schedulers[scheduler] = 0;
  return scheduler;
}
void FAIRWAY_ENVOY(http_filter_scheduler_commit)(void* scheduler, uint64_t event) {
  const std::lock_guard lock(TheFakeEnvoy().mutex);
  // A commit to one that was deleted would be a use after free in Envoy.
  ++TheFakeEnvoy().schedulers.at(static_cast<FakeScheduler*>(scheduler));
  TheFakeEnvoy().orders.emplace_back(static_cast<FakeScheduler*>(scheduler)->stream, event);
}
void FAIRWAY_ENVOY(http_filter_scheduler_delete)(void* scheduler) {
  auto* self = static_cast<FakeScheduler*>(scheduler);
  {
    const std::lock_guard lock(TheFakeEnvoy().mutex);
    TheFakeEnvoy().schedulers.erase(self);
  }
  delete self;
}

void FAIRWAY_ENVOY(lb_get_cluster_name)(void* balancer, abi::Buffer* name) {
  *name = abi::ToBuffer(ClusterOf(balancer).name);
}
size_t FAIRWAY_ENVOY(lb_get_priority_set_size)(void* balancer) {
  return ClusterOf(balancer).priorities.size();
}
size_t FAIRWAY_ENVOY(lb_get_healthy_hosts_count)(void* balancer, uint32_t priority) {
  return HostsOf(balancer, priority, true).size();
}
size_t FAIRWAY_ENVOY(lb_get_hosts_count)(void* balancer, uint32_t priority) {
  return HostsOf(balancer, priority, false).size();
}
bool FAIRWAY_ENVOY(lb_get_healthy_host_address)(void* balancer, uint32_t priority, size_t index,
                                                abi::Buffer* address) {
  *address = abi::ToBuffer(HostsOf(balancer, priority, true).at(index)->address);
  return true;
}
bool FAIRWAY_ENVOY(lb_get_host_address)(void* balancer, uint32_t priority, size_t index,
                                        abi::Buffer* address) {
  *address = abi::ToBuffer(HostsOf(balancer, priority, false).at(index)->address);
  return true;
}
bool FAIRWAY_ENVOY(lb_context_should_select_another_host)(void* balancer, void* context, uint32_t priority,
                                                          size_t index) {
  const auto& ruled_out = Of(context).ruled_out;
  return std::find(ruled_out.begin(), ruled_out.end(),
                   HostsOf(balancer, priority, false).at(index)->address) != ruled_out.end();
}
// A request is to a load balancer what it is to a filter.
bool FAIRWAY_ENVOY(lb_context_get_downstream_header)(void* context, abi::Buffer key, abi::Buffer* value,
                                                     size_t index, size_t* count) {
  return FAIRWAY_ENVOY(http_get_header)(context, abi::HeaderType::kRequest, key, value, index, count);
}
bool FAIRWAY_ENVOY(lb_get_host_metadata_string)(void* balancer, uint32_t priority, size_t index,
                                                abi::Buffer space, abi::Buffer key, abi::Buffer* value) {
  const auto& metadata = HostsOf(balancer, priority, false).at(index)->metadata;
  const auto found = metadata.find({std::string(space.view()), std::string(key.view())});
  if (found == metadata.end()) return false;
  *value = abi::ToBuffer(found->second);
  return true;
}
