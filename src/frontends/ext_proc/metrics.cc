#include "frontends/ext_proc/metrics.h"

#include <atomic>
#include <utility>
#include <vector>

namespace fairway::ext_proc {

namespace {

std::vector<double> RequestBuckets() {
  return {.0005, .001, .002, .005, .01, .015, .025, .04, .06, .1, .25, .5, 1, 2.5, 5, 10};
}
std::vector<double> ResponseBuckets() {
  return {.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5};
}
std::vector<double> StreamBuckets() {
  return {.005, .025, .05, .1, .2, .4,  .6,  .8,  1,   1.25, 1.5, 2,   3,   4,    5,    6,    8,   10,
          15,   20,   30,  45, 60, 120, 180, 240, 300, 360,  480, 600, 900, 1200, 1800, 2700, 3600};
}

}  // namespace

Metrics::Metrics(base::Registry& registry, bool streams) {
  request_processing_ =
      &registry
           .AddHistogram(
               {.name = "llm_d_epp_request_processing_duration_seconds",
                .help = "[ALPHA] Time from the last needed byte of a request to the answer to the gateway.",
                .buckets = RequestBuckets()})
           .With({});
  response_processing_ =
      &registry
           .AddHistogram({.name = "llm_d_epp_response_processing_duration_seconds",
                          .help = "[ALPHA] Time spent on the response messages of one exchange.",
                          .buckets = ResponseBuckets()})
           .With({});
  body_wait_ = &registry
                    .AddHistogram({.name = "fairway_request_body_wait_seconds",
                                   .help = "Time from a request's headers to the last byte of its body.",
                                   .buckets = RequestBuckets()})
                    .With({});
  auto& events = registry.AddCounter({.name = "fairway_extproc_events_total",
                                      .help = "What went wrong on ext_proc streams: malformed_message, "
                                              "protocol_violation, timeout, internal_fault, mode_guessed, "
                                              "no_pool_yet, decided_early (memory was short).",
                                      .labels = {"event"}});
  malformed_ = &events.With({"malformed_message"});
  violations_ = &events.With({"protocol_violation"});
  timeouts_ = &events.With({"timeout"});
  faults_ = &events.With({"internal_fault"});
  guesses_ = &events.With({"mode_guessed"});
  early_ = &events.With({"no_pool_yet"});
  decided_early_ = &events.With({"decided_early"});
  if (!streams) return;
  streams_inflight_ =
      &registry
           .AddGauge({.name = "llm_d_epp_extproc_streams_inflight", .help = "[ALPHA] Open ext_proc streams."})
           .With({});
  stream_duration_ = &registry
                          .AddHistogram({.name = "llm_d_epp_extproc_stream_duration_seconds",
                                         .help = "[ALPHA] Time an ext_proc stream was open.",
                                         .buckets = StreamBuckets()})
                          .With({});
  streams_total_ = &registry.AddCounter({.name = "llm_d_epp_extproc_streams_total",
                                         .help = "[ALPHA] Ended ext_proc streams by gRPC status.",
                                         .labels = {"code"}});
}

void Metrics::StreamStarted() {
  if (streams_inflight_ != nullptr) streams_inflight_->Add(1);
}

void Metrics::StreamEnded(std::string_view code, base::Nanos took) {
  if (streams_inflight_ == nullptr) return;
  streams_inflight_->Add(-1);
  stream_duration_->Observe(base::ToSeconds(took));
  streams_total_->With({code}).Add();
}

namespace {

// One series that follows an atomic of the transport.
struct Followed {
  const std::atomic<uint64_t>* source;
  base::Counter* counter;  // or
  base::Gauge* gauge;
  uint64_t shown = 0;  // by the counter
};

struct Shown {
  const char* event;
  std::atomic<uint64_t> net::GrpcServerStats::* source;
};
constexpr Shown kCallEvents[] = {
    {"refused", &net::GrpcServerStats::refused_messages},
    {"decided_early", &net::GrpcServerStats::relieved_calls},
    {"shed", &net::GrpcServerStats::shed_calls},
    {"stalled", &net::GrpcServerStats::stalled_calls},
    {"silent", &net::GrpcServerStats::silent_calls},
};
constexpr Shown kConnectionEvents[] = {
    {"refused", &net::GrpcServerStats::refused_connections},
    {"evicted", &net::GrpcServerStats::evicted_connections},
    {"aborted", &net::GrpcServerStats::aborted_connections},
};

}  // namespace

void AddTransportMetrics(
    base::Registry& registry,
    std::vector<std::pair<std::string, std::shared_ptr<const net::GrpcServerStats>>> ports) {
  auto& connections = registry.AddGauge(
      {.name = "fairway_grpc_connections", .help = "Open connections of a gRPC port.", .labels = {"port"}});
  auto& calls = registry.AddGauge(
      {.name = "fairway_grpc_calls", .help = "Open calls of a gRPC port.", .labels = {"port"}});
  auto& held =
      registry.AddGauge({.name = "fairway_grpc_held_bytes",
                         .help = "What a gRPC port's connections and calls hold: bodies, answers, and "
                                 "what each costs.",
                         .labels = {"port"}});
  auto& begun = registry.AddCounter(
      {.name = "fairway_grpc_calls_total", .help = "Calls ever begun on a gRPC port.", .labels = {"port"}});
  auto& call_events = registry.AddCounter(
      {.name = "fairway_grpc_call_events_total",
       .help =
           "Calls that were refused (a message too large, no memory left), decided_early or shed (memory was "
           "short), stalled (nothing moved for 30 s) or silent (no first message).",
       .labels = {"port", "event"}});
  auto& connection_events = registry.AddCounter(
      {.name = "fairway_grpc_connection_events_total",
       .help = "Connections that were refused (too many), evicted (idle, or made room) or aborted (abuse, a "
               "client that does not read, silence).",
       .labels = {"port", "event"}});
  auto followed = std::make_shared<std::vector<Followed>>();
  for (const auto& [port, stats] : ports) {
    followed->push_back({&stats->connections, nullptr, &connections.With({port})});
    followed->push_back({&stats->streams, nullptr, &calls.With({port})});
    followed->push_back({&stats->buffered_bytes, nullptr, &held.With({port})});
    followed->push_back({&stats->calls, &begun.With({port}), nullptr});
    for (const Shown& shown : kCallEvents)
      followed->push_back({&((*stats).*shown.source), &call_events.With({port, shown.event}), nullptr});
    for (const Shown& shown : kConnectionEvents)
      followed->push_back({&((*stats).*shown.source), &connection_events.With({port, shown.event}), nullptr});
  }
  registry.AddCollector([followed, ports = std::move(ports)] {
    for (Followed& one : *followed) {
      const uint64_t now = one.source->load(std::memory_order_relaxed);
      if (one.gauge != nullptr) {
        one.gauge->Set(static_cast<double>(now));
      } else {
        one.counter->Add(now - std::exchange(one.shown, now));
      }
    }
  });
}

void AddInfoMetric(base::Registry& registry, std::string_view commit, std::string_view build_ref) {
  registry
      .AddGauge(
          {.name = "llm_d_epp_info",
           .help = "[ALPHA] Always 1; the labels say what was built.",
           .labels = {"commit", "build_ref"},
           .twins = {{.name = "inference_extension_info",
                      .help =
                          "[ALPHA] [Deprecated: Use llm_d_epp_info] Always 1; the labels say what was built.",
                      .labels = {{"commit", "commit"}, {"build_ref", "build_ref"}}}}})
      .With({commit, build_ref})
      .Set(1);
}

}  // namespace fairway::ext_proc
