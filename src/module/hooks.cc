// What Envoy calls, by its names. Each hook only finds its object and guards it: no exception leaves the
// module, as that would end Envoy.
#include <exception>
#include <memory>
#include <string>

#include "base/strings.h"
#include "frontends/envoy_module/abi.h"
#include "frontends/envoy_module/balancer.h"
#include "frontends/envoy_module/config.h"
#include "frontends/envoy_module/filter.h"
#include "frontends/envoy_module/stream.h"
#include "module/host.h"

namespace {

using namespace fairway;  // NOLINT(google-build-using-namespace): one file of glue
namespace abi = envoy_module::abi;
using envoy_module::Balancer;
using envoy_module::EnvoyCounters;
using envoy_module::Filter;
using envoy_module::RouteConfig;
using envoy_module::Stream;

module::Process* process = nullptr;  // made by program_init, never destroyed

void Say(abi::LogLevel level, std::string_view text) {
  for (const std::string_view line : base::Split(text, '\n')) {
    const std::string said = "fairway: " + std::string(line);
    FAIRWAY_ENVOY(log)(level, abi::ToBuffer(said));
  }
}

// For handlers: without memory of its own.
void SayFault(std::string_view text) noexcept {
  FAIRWAY_ENVOY(log)(abi::LogLevel::kError, abi::ToBuffer(text));
}

// Runs `body`; `otherwise` makes the answer when it throws, and does not throw itself.
template <typename Body, typename Otherwise>
auto Guarded(Body body, Otherwise otherwise) noexcept -> decltype(body()) {
  try {
    return body();
  } catch (const std::exception& error) {
    return otherwise(std::string_view(error.what()));
  } catch (...) {
    return otherwise(std::string_view("unknown exception"));
  }
}

Stream& ToStream(const void* stream) {
  return *static_cast<Stream*>(const_cast<void*>(stream));  // Envoy hands back what we gave
}

// A hook of a stream's response or end: nothing to answer.
template <typename Body>
void GuardedStream(const void* stream, Body body) noexcept {
  Stream& self = ToStream(stream);
  Guarded([&] { body(self); }, [&](std::string_view what) { self.OnFault(what); });
}

// A hook of a stream's request: after a fault the request goes on or is answered.
template <typename Status, typename Body>
Status GuardedRequest(const void* stream, Status stop, Body body) noexcept {
  Stream& self = ToStream(stream);
  return Guarded([&] { return body(self); },
                 [&](std::string_view what) { return self.OnFault(what) ? Status::kContinue : stop; });
}

void DefineCounters(void* envoy, EnvoyCounters& counters) {
  const auto define = [&](std::string_view name, size_t& id) {
    return FAIRWAY_ENVOY(http_filter_config_define_counter)(envoy, abi::ToBuffer(name), nullptr, 0, &id) == 0;
  };
  counters.defined =
      define("fairway_faults", counters.faults) && define("fairway_failed_open", counters.failed_open) &&
      define("fairway_waited", counters.waited) && define("fairway_body_timeouts", counters.timeouts) &&
      define("fairway_bodies_dropped", counters.no_room);
}

const void* NewFilter(void* envoy, std::string_view text) {
  auto config = envoy_module::ParseConfig(text);
  if (!config) {
    Say(abi::LogLevel::kError, config.error().message);
    return nullptr;
  }
  if (FAIRWAY_ENVOY(is_validation_mode)()) {
    if (const auto checked = process->Check(config->picker); !checked) {
      Say(abi::LogLevel::kError, checked.error().message);
      return nullptr;
    }
  }
  auto filter = std::make_unique<Filter>();
  filter->config = config->filter;
  if (!FAIRWAY_ENVOY(is_validation_mode)()) {
    auto picker = process->PickerFor(config->picker);
    if (!picker) {
      Say(abi::LogLevel::kError, picker.error().message);
      return nullptr;
    }
    filter->picker = std::move(*picker);
  }
  DefineCounters(envoy, filter->counters);
  return filter.release();
}

}  // namespace

#define FAIRWAY_HOOK extern "C" __attribute__((visibility("default")))
#define FAIRWAY_HOT_HOOK extern "C" __attribute__((visibility("default"), hot))  // of each request
// NOLINTBEGIN(readability-identifier-naming, readability-named-parameter,
// cppcoreguidelines-pro-type-const-cast): Envoy's

FAIRWAY_HOOK const char* envoy_dynamic_module_on_program_init() {
  return Guarded(
      []() -> const char* {
        if (process == nullptr) process = new module::Process();
        Say(abi::LogLevel::kInfo, "version " FAIRWAY_VERSION);
        return abi::kVersion;
      },
      [](std::string_view) -> const char* { return nullptr; });
}

// ---- Filters.

FAIRWAY_HOOK const void* envoy_dynamic_module_on_http_filter_config_new(void* envoy, abi::Buffer,
                                                                        abi::Buffer config) {
  return Guarded([&] { return NewFilter(envoy, config.view()); },
                 [](std::string_view what) -> const void* {
                   SayFault("fairway: the configuration cannot be taken:");
                   SayFault(what);
                   return nullptr;
                 });
}

FAIRWAY_HOOK void envoy_dynamic_module_on_http_filter_config_destroy(const void* config) {
  Guarded([&] { delete static_cast<const Filter*>(config); }, [](std::string_view) {});
}

FAIRWAY_HOOK const void* envoy_dynamic_module_on_http_filter_per_route_config_new(abi::Buffer,
                                                                                  abi::Buffer config) {
  return Guarded(
      [&]() -> const void* {
        auto parsed = envoy_module::ParseRouteConfig(config.view());
        if (!parsed) {
          Say(abi::LogLevel::kError, parsed.error().message);
          return nullptr;
        }
        return new RouteConfig(std::move(*parsed));
      },
      [](std::string_view) -> const void* { return nullptr; });
}

FAIRWAY_HOOK void envoy_dynamic_module_on_http_filter_per_route_config_destroy(const void* config) {
  delete static_cast<const RouteConfig*>(config);
}

// ---- Streams.

FAIRWAY_HOT_HOOK const void* envoy_dynamic_module_on_http_filter_new(const void* config, void* envoy) {
  return Guarded(
      [&]() -> const void* {
        auto& filter = *static_cast<Filter*>(const_cast<void*>(config));
        return new Stream(filter, envoy);
      },
      [](std::string_view) -> const void* { return nullptr; });
}

FAIRWAY_HOT_HOOK void envoy_dynamic_module_on_http_filter_destroy(const void* stream) {
  Guarded([&] { delete static_cast<const Stream*>(stream); }, [](std::string_view) {});
}

FAIRWAY_HOT_HOOK abi::HeadersStatus envoy_dynamic_module_on_http_filter_request_headers(void*,
                                                                                        const void* stream,
                                                                                        bool end) {
  return GuardedRequest(stream, abi::HeadersStatus::kStop,
                        [&](Stream& s) { return s.OnRequestHeaders(end); });
}

FAIRWAY_HOT_HOOK abi::BodyStatus envoy_dynamic_module_on_http_filter_request_body(void*, const void* stream,
                                                                                  bool end) {
  return GuardedRequest(stream, abi::BodyStatus::kStopAndBuffer,
                        [&](Stream& s) { return s.OnRequestBody(end); });
}

FAIRWAY_HOOK abi::TrailersStatus envoy_dynamic_module_on_http_filter_request_trailers(void*,
                                                                                      const void* stream) {
  return GuardedRequest(stream, abi::TrailersStatus::kStop, [](Stream& s) { return s.OnRequestTrailers(); });
}

FAIRWAY_HOOK void envoy_dynamic_module_on_http_filter_scheduled(void* envoy, const void* stream,
                                                                uint64_t event) {
  Stream& self = ToStream(stream);
  Guarded([&] { self.OnScheduled(event); },
          [&](std::string_view what) {
            if (self.OnFault(what)) FAIRWAY_ENVOY(http_filter_continue_decoding)(envoy);
          });
}

FAIRWAY_HOT_HOOK abi::HeadersStatus envoy_dynamic_module_on_http_filter_response_headers(void*,
                                                                                         const void* stream,
                                                                                         bool end) {
  GuardedStream(stream, [&](Stream& s) { s.OnResponseHeaders(end); });
  return abi::HeadersStatus::kContinue;
}

FAIRWAY_HOT_HOOK abi::BodyStatus envoy_dynamic_module_on_http_filter_response_body(void*, const void* stream,
                                                                                   bool end) {
  GuardedStream(stream, [&](Stream& s) { s.OnResponseBody(end); });
  return abi::BodyStatus::kContinue;
}

FAIRWAY_HOOK abi::TrailersStatus envoy_dynamic_module_on_http_filter_response_trailers(void*,
                                                                                       const void* stream) {
  GuardedStream(stream, [](Stream& s) { s.OnResponseTrailers(); });
  return abi::TrailersStatus::kContinue;
}

FAIRWAY_HOT_HOOK void envoy_dynamic_module_on_http_filter_stream_complete(void*, const void* stream) {
  GuardedStream(stream, [](Stream& s) { s.OnComplete(); });
}

// ---- Load balancers.

FAIRWAY_HOOK const void* envoy_dynamic_module_on_lb_config_new(void*, abi::Buffer, abi::Buffer) {
  return process;  // nothing to configure, and null would be a refusal
}
FAIRWAY_HOOK void envoy_dynamic_module_on_lb_config_destroy(const void*) {}

FAIRWAY_HOOK const void* envoy_dynamic_module_on_lb_new(const void*, void* envoy) {
  return Guarded([&]() -> const void* { return new Balancer(process->directory(), envoy); },
                 [](std::string_view) -> const void* { return nullptr; });
}

FAIRWAY_HOOK void envoy_dynamic_module_on_lb_on_host_membership_update(void*, const void* balancer, size_t,
                                                                       size_t) {
  Guarded([&] { static_cast<Balancer*>(const_cast<void*>(balancer))->OnHostsChanged(); },
          [](std::string_view what) {
            SayFault("fairway: a change of hosts was lost:");
            SayFault(what);
          });
}

FAIRWAY_HOT_HOOK bool envoy_dynamic_module_on_lb_choose_host(void*, const void* balancer, void* context,
                                                             uint32_t* priority, uint32_t* index) {
  return Guarded(
      [&] { return static_cast<Balancer*>(const_cast<void*>(balancer))->Choose(context, *priority, *index); },
      [](std::string_view) { return false; });
}

FAIRWAY_HOOK void envoy_dynamic_module_on_lb_destroy(const void* balancer) {
  Guarded([&] { delete static_cast<const Balancer*>(balancer); }, [](std::string_view) {});
}

// ---- What the loader insists on and we have no use for.

FAIRWAY_HOOK void envoy_dynamic_module_on_http_filter_http_callout_done(void*, const void*, uint64_t, int,
                                                                        abi::Header*, size_t, abi::Buffer*,
                                                                        size_t) {}
FAIRWAY_HOOK void envoy_dynamic_module_on_http_filter_http_stream_headers(void*, const void*, uint64_t,
                                                                          abi::Header*, size_t, bool) {}
FAIRWAY_HOOK void envoy_dynamic_module_on_http_filter_http_stream_data(void*, const void*, uint64_t,
                                                                       const abi::Buffer*, size_t, bool) {}
FAIRWAY_HOOK void envoy_dynamic_module_on_http_filter_http_stream_trailers(void*, const void*, uint64_t,
                                                                           abi::Header*, size_t) {}
FAIRWAY_HOOK void envoy_dynamic_module_on_http_filter_http_stream_complete(void*, const void*, uint64_t) {}
FAIRWAY_HOOK void envoy_dynamic_module_on_http_filter_http_stream_reset(void*, const void*, uint64_t, int) {}
FAIRWAY_HOOK void envoy_dynamic_module_on_http_filter_downstream_above_write_buffer_high_watermark(
    void*, const void*) {}
FAIRWAY_HOOK void envoy_dynamic_module_on_http_filter_downstream_below_write_buffer_low_watermark(
    void*, const void*) {}
// NOLINTEND(readability-identifier-naming, readability-named-parameter,
// cppcoreguidelines-pro-type-const-cast)
