// grpc.health.v1.Health: Check, Watch and List
// (https://github.com/grpc/grpc/blob/master/doc/health-checking.md).
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "net/grpc_server.h"
#include "net/loop.h"
#include "routing/router.h"

namespace fairway::ext_proc {

inline constexpr std::string_view kExternalProcessor = "envoy.service.ext_proc.v3.ExternalProcessor";

// Thread-safe.
class HealthState {
 public:
  // `leading` null: there is no leader election.
  HealthState(const routing::Router& router, std::shared_ptr<const std::atomic<bool>> leading)
      : router_(router), leading_(std::move(leading)) {}
  // A pool is known and we are not on our way out.
  bool serving() const { return !draining_.load(std::memory_order_relaxed) && router_.ready(); }
  bool has_election() const { return leading_ != nullptr; }
  bool leading() const { return leading_ == nullptr || leading_->load(std::memory_order_relaxed); }
  // Another number whenever one of the above says something else.
  uint32_t version() const { return (serving() ? 1u : 0u) | (leading() ? 2u : 0u); }
  void SetDraining() { draining_.store(true, std::memory_order_relaxed); }

 private:
  const routing::Router& router_;
  const std::shared_ptr<const std::atomic<bool>> leading_;
  std::atomic<bool> draining_{false};
};

// Which names are known (docs/compatibility.md, Health).
enum class HealthNames {
  kAny,  // the health port: "liveness" always serves, every other name answers for the whole process; with
         // leader election as the reference: "readiness", "" and the ExternalProcessor where we lead, others
         // are unknown
  kExtProcOnly,  // the ext_proc port: "" and the ExternalProcessor
};

class HealthCall;

// Makes the calls of one server. Calls and watchers belong to the loop they came in on.
class HealthService {
 public:
  // REQUIRES: `state` and the loops outlive it.
  HealthService(const HealthState& state, HealthNames names, const std::vector<net::Loop*>& loops);
  ~HealthService();  // REQUIRES: no call is left

  // Null: not a method of ours.
  std::unique_ptr<net::GrpcCall> NewCall(const net::GrpcRequest& request);
  // Tells watchers now what is otherwise told within a tenth of a second. Thread-safe.
  void Announce();

 private:
  friend class HealthCall;
  struct Worker;

  enum class Status { kUnknown = 0, kServing = 1, kNotServing = 2, kServiceUnknown = 3 };
  Status StatusOf(std::string_view service) const;

  const HealthState& state_;
  HealthNames names_;
  std::vector<std::shared_ptr<Worker>> workers_;  // one per loop
};

}  // namespace fairway::ext_proc
