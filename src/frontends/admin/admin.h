// The admin pages: metrics for Prometheus, health for probes, and a look inside.
//
//   /metrics          Prometheus text
//   /healthz          200 while the process runs
//   /readyz           200 when it can route, else 503
//   /debug/fleet      JSON of pools, endpoints and what is known of them
//   /debug/decisions  the last decisions, where they are kept: why that endpoint. ?request-id=ID: of that
//                     request; ?format=json, text or html, else html for browsers and json for others
//   /debug/prefix     what requests hit, of decisions that are kept (?request-id=ID); without an id, where KV
//                     events are followed: how each engine stands
//   /debug/pprof/...  404: profiles are taken from outside (perf)
//
// HTTP, or HTTPS with a certificate that is followed when it changes, and client certificates if wanted. It
// binds to loopback unless told otherwise; who comes from elsewhere may be asked for a bearer token. Who need
// not say a token must know the server's address: a web page that makes a name of its own lead here (DNS
// rebinding) gets nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/result.h"
#include "net/http_server.h"
#include "net/loop.h"
#include "net/tls.h"
#include "net/tls_files.h"

namespace fairway::admin {

struct Options {
  std::string host = "127.0.0.1";
  uint16_t port = 9090;  // 0: a free one
  // Further names by which the pages may be asked for without a token, such as "picker.example.com"; "*":
  // any. IP addresses, "localhost", names without a dot or of a cluster (.svc, .cluster.local, .internal)
  // always are.
  std::vector<std::string> hosts;
  std::string cert_dir;  // folder with tls.crt and tls.key, looked at each second; "": plain text
  net::TlsOptions tls;   // with client_ca_file nobody without a certificate of theirs gets anything
  size_t max_connections = 64;
  base::Nanos request_timeout = 5 * base::kSecond;  // for a request's head in all, and for the TLS handshake
  base::Nanos answer_timeout = 30 * base::kSecond;  // for a client to read an answer
};

// What the pages show. Called on the server's loop, one at a time: a thread of its own, so what it reads is
// published or atomic.
struct Content {
  const base::Registry* registry = nullptr;  // REQUIRES: set, outlives the server
  std::function<bool()> ready;               // empty: always ready
  // Text in pieces, "" after the last (net::HttpResponse::next); empty: no such page.
  using Pages = std::function<std::string()>;
  std::function<Pages()> fleet;
  std::function<Pages()> engines;  // gives none where none is followed
  enum class Format { kJson, kText, kHtml, kPrefixes };
  // `request_id`: "" is all. Gives none where there is no decision of that request.
  std::function<Pages(const std::string& request_id, Format format)> decisions;

  // Whether the bearer of a token may read a page: `done` is called once, on the loop, with 200, 403
  // (somebody who may not), 401 (nobody) or 503 (not known now). Asked for all pages but health, and not
  // about requests over loopback. `from`: the client's IP address. Empty: everybody may.
  using Allowed = std::function<void(int status)>;
  std::function<void(const std::string& token, const std::string& path, const std::string& from,
                     Allowed done)>
      authorize;
};

// Owned by any thread; destroyed on the loop, or after it stopped.
class AdminServer {
 public:
  // The error names the address and the reason.
  static base::Result<std::unique_ptr<AdminServer>> Listen(const Options& options, Content content,
                                                           net::Loop& loop, const base::Log& log);
  uint16_t port() const { return server_->port(); }
  std::shared_ptr<const net::HttpServerStats> stats() const { return server_->stats(); }

 private:
  AdminServer(std::unique_ptr<net::HttpServer> server, std::unique_ptr<net::TlsFiles> certificates)
      : server_(std::move(server)), certificates_(std::move(certificates)) {}
  std::unique_ptr<net::HttpServer> server_;
  std::unique_ptr<net::TlsFiles> certificates_;  // null: plain text
};

// The answer to one request, without the network, to somebody who may have it.
net::HttpResponse Answer(const net::HttpRequest& request, const Content& content);
// The same, to somebody of whom that is not known yet.
void Serve(const net::HttpRequest& request, const std::shared_ptr<net::HttpResponder>& responder,
           const std::shared_ptr<const Content>& content, const std::vector<std::string>& hosts = {});
// Puts the server's counters on the page.
void AddMetrics(base::Registry& registry, std::shared_ptr<const net::HttpServerStats> stats);

}  // namespace fairway::admin
