// The series of the ext_proc frontend itself (names: llm-d router, pkg/epp/metrics). Those of requests, pools
// and decisions are routing's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "net/grpc_server.h"

namespace fairway::ext_proc {

// Thread-safe: everything in it is. REQUIRES: the registry outlives it.
class Metrics {
 public:
  // `streams`: also the extproc_streams_* series (--enable-grpc-stream-metrics).
  Metrics(base::Registry& registry, bool streams);

  // From the last byte we needed to the answer to the gateway.
  void RequestProcessed(base::Nanos took) { request_processing_->Observe(base::ToSeconds(took)); }
  // All the time spent on the response's messages of one exchange.
  void ResponseProcessed(base::Nanos took) { response_processing_->Observe(base::ToSeconds(took)); }
  // From the request's headers to its last byte: the client's and the gateway's time, not ours.
  void BodyWaited(base::Nanos took) { body_wait_->Observe(base::ToSeconds(took)); }

  void MalformedMessage() { malformed_->Add(); }
  void ProtocolViolation() { violations_->Add(); }
  void TimedOut() { timeouts_->Add(); }
  void InternalFault() { faults_->Add(); }
  // Before the request was complete, because memory was short.
  void DecidedEarly() { decided_early_->Add(); }
  // A gateway that does not say its body modes and sent no body for a while.
  void ModeGuessed() { guesses_->Add(); }
  // A call before any pool was known.
  void NoPoolYet() { early_->Add(); }

  void StreamStarted();
  // `code`: the name of the gRPC status, "OK" or "Canceled" when the client ended it.
  void StreamEnded(std::string_view code, base::Nanos took);

 private:
  base::Histogram* request_processing_;
  base::Histogram* response_processing_;
  base::Histogram* body_wait_;
  base::Counter* malformed_;
  base::Counter* violations_;
  base::Counter* timeouts_;
  base::Counter* faults_;
  base::Counter* guesses_;
  base::Counter* early_;
  base::Counter* decided_early_;
  base::Gauge* streams_inflight_ = nullptr;  // null: no stream metrics
  base::Histogram* stream_duration_ = nullptr;
  base::CounterFamily* streams_total_ = nullptr;
};

// The fairway_grpc_* series: what the transport of each port holds, and whom it sent away. `ports` are their
// names, "ext_proc" say. Read when the page is written.
void AddTransportMetrics(
    base::Registry& registry,
    std::vector<std::pair<std::string, std::shared_ptr<const net::GrpcServerStats>>> ports);

// llm_d_epp_info and its older name: 1, with what was built.
void AddInfoMetric(base::Registry& registry, std::string_view commit, std::string_view build_ref);

}  // namespace fairway::ext_proc
