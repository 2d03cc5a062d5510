// The whole ext_proc frontend: the gRPC port that gateways call, the health port that Kubernetes asks,
// certificates, drain.
//
//   auto server = ExtProcServer::Start(options, router, clock, registry, log, loops);
//   if (!server) -> server.error().message names the port or file
//   (*server)->Drain(30 * base::kSecond, 10 * base::kSecond, [] { ... });
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/result.h"
#include "frontends/ext_proc/service.h"
#include "net/grpc_server.h"
#include "net/loop.h"
#include "net/tls.h"
#include "routing/router.h"

namespace fairway::ext_proc {

// Names and defaults as the reference's flags.
struct ServerOptions {
  std::string host = "::";      // IPv4 and IPv6
  uint16_t grpc_port = 9002;    // 0: a free one
  uint16_t health_port = 9003;  // 0: a free one
  bool serve_health_port = true;
  bool health_checking = false;                      // the health service also on the gRPC port
  std::shared_ptr<const std::atomic<bool>> leading;  // null: no leader election. Only health heeds it
  bool secure_serving = true;
  std::string cert_path;  // folder with tls.crt and tls.key; "": a self-signed certificate
  bool enable_cert_reload = false;
  base::Nanos cert_poll = base::kSecond;
  net::TlsOptions tls;  // alpn is set to h2
  // A body in one message may be longer than transport.max_message, up to what a body may have.
  bool body_messages_of_any_size = true;
  net::GrpcServerOptions transport;  // limits and windows; host, port and tls are taken from above
  ServiceOptions service;
};

// Thread-safe. Calls run on `loops`.
class ExtProcServer {
 public:
  // Binds both ports. REQUIRES: router, clock, registry and loops outlive the server, and loops run or will
  // run.
  static base::Result<std::unique_ptr<ExtProcServer>> Start(ServerOptions options,
                                                            const routing::Router& router,
                                                            const base::Clock& clock,
                                                            base::Registry& registry, const base::Log& log,
                                                            std::vector<net::Loop*> loops);
  virtual ~ExtProcServer() = default;  // REQUIRES: the loops are stopped, or Drain has called `done`

  virtual uint16_t grpc_port() const = 0;
  virtual uint16_t health_port() const = 0;  // 0 when there is none
  virtual const net::GrpcServerStats& stats() const = 0;

  // Listens on these ports too, each a pool's own ("namespace/name"), and no more on those of before that are
  // not among them. One that cannot be listened on is logged and tried again each second. Thread-safe.
  virtual void SetPorts(std::map<uint16_t, std::string> pools) = 0;

  // The end, as the reference has it: health says NOT_SERVING at once; requests are served for `serve_for`
  // more, so that every gateway hears of it; then clients are sent away and open exchanges get `grace` to
  // end. `done` runs once, on one of the loops.
  virtual void Drain(base::Nanos serve_for, base::Nanos grace, std::function<void()> done) = 0;
};

}  // namespace fairway::ext_proc
