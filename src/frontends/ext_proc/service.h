// The gRPC side of the ext_proc frontend: one call per exchange, its timers, and what the calls of a worker
// share.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/published.h"
#include "frontends/ext_proc/session.h"
#include "net/grpc_server.h"
#include "net/loop.h"
#include "routing/router.h"

namespace fairway::ext_proc {

// gRPC metadata of a call that names the pool it is for, "namespace/name": one server may serve many.
inline constexpr std::string_view kPoolMetadata = "x-fairway-pool";

struct ServiceOptions {
  SessionOptions session;
  std::string default_pool;  // of calls that name none; "" is the only pool there is
  bool stream_metrics = false;
  uint64_t seed = 0;  // of the workers' random numbers
};

// Makes the calls of "/envoy.service.ext_proc.v3.ExternalProcessor/Process".
class ExtProcService {
 public:
  // REQUIRES: router, clock, registry and loops outlive it.
  ExtProcService(ServiceOptions options, const routing::Router& router, const base::Clock& clock,
                 base::Registry& registry, const base::Log& log, const std::vector<net::Loop*>& loops);
  ~ExtProcService();  // REQUIRES: no call is left, and the loops are stopped or StopTimers has called `done`

  // What a call is for that comes in on a port of a pool's own and names none. Calls on `main_port` are for
  // the default pool as ever, those on a port that was a pool's once are for none. Thread-safe.
  void SetPorts(uint16_t main_port, std::map<uint16_t, std::string> pools);

  // Null: not ours. Until a pool was known for the first time each call ends with UNAVAILABLE, as if nobody
  // listened: an answer, be it a 503, would keep the gateway from what its failure mode says.
  std::unique_ptr<net::GrpcCall> NewCall(const net::GrpcRequest& request);

  // After the last call: takes down the loops' timers, each on its loop, then calls `done` on one of them.
  // Thread-safe.
  void StopTimers(std::function<void()> done);

 private:
  friend class ExtProcCall;
  struct Worker;

  struct Ports {
    uint16_t main = 0;
    std::map<uint16_t, std::string> pools;
  };

  ServiceOptions options_;
  base::Published<Ports> ports_{std::make_shared<const Ports>()};
  const base::Clock& clock_;
  base::Log log_;
  Metrics metrics_;
  request::TokenClient tokens_;
  base::LogLimit fault_limit_{base::kSecond};
  std::vector<std::unique_ptr<Worker>> workers_;  // one per loop, each used on its loop alone
};

}  // namespace fairway::ext_proc
