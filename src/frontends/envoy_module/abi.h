// The part of Envoy's C interface for dynamic modules that we use: declarations of our own, so that the
// module builds without Envoy's source. Only names, order of arguments and numbers of enums matter: linkage
// is C's, and nothing checks a signature at run time.
//
// Checked against Envoy 1.40.0 (interface "v0.2.0"); unchanged since the 1.38 that first had the version
// string "v0.1.0". Envoy's promise: what an X.Y.0 had is never changed in place, changes come under new
// names. tests/envoy/module_abi_test.py compares every name below with the symbols of the Envoy it finds.
//
// Threads: functions that take a stream, a filter's config or a load balancer are for the hook's thread and
// moment only. Others say so. Pointers that Envoy hands out end with the hook or at the next change of what
// they point into.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace fairway::envoy_module::abi {

// What program_init answers. Envoy writes one warning when it knows another version, and goes on.
inline constexpr const char* kVersion = "v0.2.0";

// Opaque to us.
using Stream = void*;        // one HTTP stream, in its filter
using FilterHandle = void*;  // a filter's config
using Balancer = void*;      // one worker's load balancer of a cluster
using Scheduler = void*;
using LbContext = void*;  // a request, as a load balancer sees it

struct Buffer {
  const char* data;
  size_t size;
  std::string_view view() const {
    return data == nullptr ? std::string_view() : std::string_view(data, size);
  }
};
inline Buffer ToBuffer(std::string_view text) { return {text.data(), text.size()}; }

struct Header {
  const char* name;
  size_t name_size;
  const char* value;
  size_t value_size;
};

enum class HeaderType : int { kRequest, kRequestTrailer, kResponse, kResponseTrailer };
enum class BodyType : int { kRequestReceived, kRequestBuffered, kResponseReceived, kResponseBuffered };
enum class MetadataSource : int { kDynamic, kRoute, kCluster, kHost, kHostLocality };
enum class LogLevel : int { kTrace, kDebug, kInfo, kWarn, kError, kCritical };
enum class Attribute : int {
  kRequestPath = 0,
  kResponseCode = 15,
  kResponseFlags = 17,
  kUpstreamAddress = 41
};

// What hooks answer.
enum class HeadersStatus : int { kContinue = 0, kStop = 1 };
enum class BodyStatus : int { kContinue = 0, kStopAndBuffer = 1 };
enum class TrailersStatus : int { kContinue = 0, kStop = 1 };

}  // namespace fairway::envoy_module::abi

// NOLINTBEGIN(readability-identifier-naming): Envoy's names
#define FAIRWAY_ENVOY(name) envoy_dynamic_module_callback_##name
extern "C" {
// Any thread.
void FAIRWAY_ENVOY(log)(fairway::envoy_module::abi::LogLevel level,
                        fairway::envoy_module::abi::Buffer message);
bool FAIRWAY_ENVOY(log_enabled)(fairway::envoy_module::abi::LogLevel level);
uint32_t FAIRWAY_ENVOY(get_concurrency)();  // worker threads
bool FAIRWAY_ENVOY(is_validation_mode)();

// Counters without labels, defined while the config is made.
int FAIRWAY_ENVOY(http_filter_config_define_counter)(void* config, fairway::envoy_module::abi::Buffer name,
                                                     fairway::envoy_module::abi::Buffer* labels, size_t count,
                                                     size_t* id);  // 0: done
int FAIRWAY_ENVOY(http_filter_increment_counter)(void* stream, size_t id,
                                                 fairway::envoy_module::abi::Buffer* values, size_t count,
                                                 uint64_t by);

// Headers. A value of {nullptr, 0} removes.
bool FAIRWAY_ENVOY(http_get_header)(void* stream, fairway::envoy_module::abi::HeaderType type,
                                    fairway::envoy_module::abi::Buffer name,
                                    fairway::envoy_module::abi::Buffer* value, size_t index, size_t* count);
bool FAIRWAY_ENVOY(http_set_header)(void* stream, fairway::envoy_module::abi::HeaderType type,
                                    fairway::envoy_module::abi::Buffer name,
                                    fairway::envoy_module::abi::Buffer value);
// Without a look for one of this name: cheaper than set where there is none.
bool FAIRWAY_ENVOY(http_add_header)(void* stream, fairway::envoy_module::abi::HeaderType type,
                                    fairway::envoy_module::abi::Buffer name,
                                    fairway::envoy_module::abi::Buffer value);
size_t FAIRWAY_ENVOY(http_get_headers_size)(void* stream, fairway::envoy_module::abi::HeaderType type);
bool FAIRWAY_ENVOY(http_get_headers)(void* stream, fairway::envoy_module::abi::HeaderType type,
                                     fairway::envoy_module::abi::Header* headers);

// Bodies, in the pieces that Envoy holds.
size_t FAIRWAY_ENVOY(http_get_body_size)(void* stream, fairway::envoy_module::abi::BodyType type);
size_t FAIRWAY_ENVOY(http_get_body_chunks_size)(void* stream, fairway::envoy_module::abi::BodyType type);
bool FAIRWAY_ENVOY(http_get_body_chunks)(void* stream, fairway::envoy_module::abi::BodyType type,
                                         fairway::envoy_module::abi::Buffer* chunks);
bool FAIRWAY_ENVOY(http_append_body)(void* stream, fairway::envoy_module::abi::BodyType type,
                                     fairway::envoy_module::abi::Buffer data);
bool FAIRWAY_ENVOY(http_drain_body)(void* stream, fairway::envoy_module::abi::BodyType type, size_t bytes);
// True: what was received is the buffer itself, collected by a filter before us.
bool FAIRWAY_ENVOY(http_received_buffered_request_body)(void* stream);
uint64_t FAIRWAY_ENVOY(http_get_buffer_limit)(void* stream);
void FAIRWAY_ENVOY(http_set_buffer_limit)(void* stream, uint64_t bytes);

// Where it goes. The host is one literal "ip:port"; not strict: another host when that one is not there.
bool FAIRWAY_ENVOY(http_set_upstream_override_host)(void* stream, fairway::envoy_module::abi::Buffer host,
                                                    bool strict);
void FAIRWAY_ENVOY(http_set_dynamic_metadata_string)(void* stream, fairway::envoy_module::abi::Buffer space,
                                                     fairway::envoy_module::abi::Buffer key,
                                                     fairway::envoy_module::abi::Buffer value);
bool FAIRWAY_ENVOY(http_get_metadata_string)(void* stream, fairway::envoy_module::abi::MetadataSource source,
                                             fairway::envoy_module::abi::Buffer space,
                                             fairway::envoy_module::abi::Buffer key,
                                             fairway::envoy_module::abi::Buffer* value);
bool FAIRWAY_ENVOY(http_get_metadata_list_size)(void* stream,
                                                fairway::envoy_module::abi::MetadataSource source,
                                                fairway::envoy_module::abi::Buffer space,
                                                fairway::envoy_module::abi::Buffer key, size_t* size);
bool FAIRWAY_ENVOY(http_get_metadata_list_string)(void* stream,
                                                  fairway::envoy_module::abi::MetadataSource source,
                                                  fairway::envoy_module::abi::Buffer space,
                                                  fairway::envoy_module::abi::Buffer key, size_t index,
                                                  fairway::envoy_module::abi::Buffer* value);
bool FAIRWAY_ENVOY(http_filter_get_attribute_string)(void* stream,
                                                     fairway::envoy_module::abi::Attribute which,
                                                     fairway::envoy_module::abi::Buffer* value);
bool FAIRWAY_ENVOY(http_filter_get_attribute_int)(void* stream, fairway::envoy_module::abi::Attribute which,
                                                  uint64_t* value);
// Of the route's cluster, as this worker knows it. False: there is none.
bool FAIRWAY_ENVOY(http_get_cluster_host_count)(void* stream, uint32_t priority, size_t* total,
                                                size_t* healthy, size_t* degraded);
bool FAIRWAY_ENVOY(http_get_cluster_name)(void* stream, fairway::envoy_module::abi::Buffer* name);
uint32_t FAIRWAY_ENVOY(http_filter_get_worker_index)(void* stream);
const void* FAIRWAY_ENVOY(get_most_specific_route_config)(void* stream);  // of per_route_config_new, or null

void FAIRWAY_ENVOY(http_send_response)(void* stream, uint32_t status,
                                       const fairway::envoy_module::abi::Header* headers, size_t count,
                                       fairway::envoy_module::abi::Buffer body,
                                       fairway::envoy_module::abi::Buffer details);
void FAIRWAY_ENVOY(http_filter_continue_decoding)(void* stream);

// A way back to a stream's thread: made and used up on the stream's thread; commit and delete from any. A
// commit for a stream that is gone does nothing.
void* FAIRWAY_ENVOY(http_filter_scheduler_new)(void* stream);
void FAIRWAY_ENVOY(http_filter_scheduler_commit)(void* scheduler, uint64_t event);
void FAIRWAY_ENVOY(http_filter_scheduler_delete)(void* scheduler);

// Load balancers.
void FAIRWAY_ENVOY(lb_get_cluster_name)(void* balancer, fairway::envoy_module::abi::Buffer* name);
size_t FAIRWAY_ENVOY(lb_get_priority_set_size)(void* balancer);
size_t FAIRWAY_ENVOY(lb_get_healthy_hosts_count)(void* balancer, uint32_t priority);
size_t FAIRWAY_ENVOY(lb_get_hosts_count)(void* balancer, uint32_t priority);
bool FAIRWAY_ENVOY(lb_get_host_address)(void* balancer, uint32_t priority, size_t index,
                                        fairway::envoy_module::abi::Buffer* address);
bool FAIRWAY_ENVOY(lb_get_healthy_host_address)(void* balancer, uint32_t priority, size_t index,
                                                fairway::envoy_module::abi::Buffer* address);
bool FAIRWAY_ENVOY(lb_get_host_metadata_string)(void* balancer, uint32_t priority, size_t index,
                                                fairway::envoy_module::abi::Buffer space,
                                                fairway::envoy_module::abi::Buffer key,
                                                fairway::envoy_module::abi::Buffer* value);
// Does the route's retry policy want another host for this try? `index` is among all hosts of the priority.
bool FAIRWAY_ENVOY(lb_context_should_select_another_host)(void* balancer, void* context, uint32_t priority,
                                                          size_t index);
bool FAIRWAY_ENVOY(lb_context_get_downstream_header)(void* context, fairway::envoy_module::abi::Buffer key,
                                                     fairway::envoy_module::abi::Buffer* value, size_t index,
                                                     size_t* count);
}
// NOLINTEND(readability-identifier-naming)
