// The admin pages: metrics for Prometheus, health for probes, and a look inside.
//
//   /metrics          Prometheus text
//   /healthz          200 while the process runs
//   /readyz           200 when it can route, else 503
//   /debug/fleet      JSON of pools, endpoints and what is known of them
//   /debug/decisions  JSON of the last decisions, where they are kept
//   /debug/pprof/...  404: profiles are taken from outside (perf)
//
// Plain HTTP. It binds to loopback unless told otherwise; who comes from elsewhere may be asked for a bearer
// token.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/log.h"
#include "base/metrics.h"
#include "base/result.h"
#include "net/http_server.h"
#include "net/loop.h"

namespace fairway::admin {

struct Options {
  std::string host = "127.0.0.1";
  uint16_t port = 9090;  // 0: a free one
};

// What the pages show. Called on the server's loop, one at a time: a thread of its own, so what it reads is
// published or atomic.
struct Content {
  const base::Registry* registry = nullptr;  // REQUIRES: set, outlives the server
  std::function<bool()> ready;               // empty: always ready
  std::function<std::string()> fleet;        // JSON; empty: no such page
  std::function<std::string()> decisions;    // JSON; empty: they are not kept

  // Whether the bearer of a token may read a page: `done` is called once, on the loop, with 200, 403
  // (somebody who may not), 401 (nobody) or 503 (not known now). Asked for all pages but health, and not
  // about requests over loopback. Empty: everybody may.
  using Allowed = std::function<void(int status)>;
  std::function<void(const std::string& token, const std::string& path, Allowed done)> authorize;
};

// Owned by any thread; destroyed on the loop, or after it stopped.
class AdminServer {
 public:
  // The error names the address and the reason.
  static base::Result<std::unique_ptr<AdminServer>> Listen(const Options& options, Content content,
                                                           net::Loop& loop, const base::Log& log);
  uint16_t port() const { return server_->port(); }

 private:
  explicit AdminServer(std::unique_ptr<net::HttpServer> server) : server_(std::move(server)) {}
  std::unique_ptr<net::HttpServer> server_;
};

// The answer to one request, without the network, to somebody who may have it.
net::HttpResponse Answer(const net::HttpRequest& request, const Content& content);
// The same, to somebody of whom that is not known yet.
void Serve(const net::HttpRequest& request, const std::shared_ptr<net::HttpResponder>& responder,
           const std::shared_ptr<const Content>& content);

}  // namespace fairway::admin
