// A small HTTP/1.1 server (Boost.Beast's parser) for admin pages and the simulated model server. It is no
// proxy and no product: Envoy is the data plane.
//
// Whatever clients do, memory and time are bounded: requests are taken one at a time and none while more than
// 64 KiB of earlier answers are unsent, all unsent answers together have `max_held`, and every wait for a
// client ends (the three timeouts).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "net/loop.h"
#include "net/tls.h"

namespace fairway::net {

struct HttpRequest {
  std::string method;
  std::string target;  // path and query, as sent
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  std::string local_address;  // "ip:port" the client connected to: which endpoint was meant, where one
                              // process serves many
  std::string peer_address;   // "ip:port" of the client

  std::string_view path() const;                         // target without the query
  std::string_view header(std::string_view name) const;  // case-insensitive; "" when absent
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  // Instead of `body`: its pieces, one for each call, "" after the last. Called on the loop when the client
  // has taken the piece before, so that a large answer costs one piece of memory for each reader.
  std::function<std::string()> next = {};
};

// How a handler answers, now or later, on the connection's loop. Destroying it unanswered closes the
// connection. It may outlive the connection and the server: then its calls do nothing.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  virtual void Send(HttpResponse response) = 0;  // the whole answer
  // A chunked answer: Start, any number of Write, End. Each Write leaves at once. False: the client is gone.
  virtual bool Start(HttpResponse head) = 0;  // head.body is ignored
  virtual bool Write(std::string_view chunk) = 0;
  virtual void End() = 0;
  // Called once, on the loop and never inside another call, when the client goes away before the answer is
  // complete. A client that shuts down its sending side while it waits counts as gone: the two look alike.
  virtual void OnGone(std::function<void()> gone) = 0;
};

using HttpHandler = std::function<void(HttpRequest, std::shared_ptr<HttpResponder>)>;

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;              // 0: a free one
  size_t max_body = 64u << 20;    // larger: 413
  size_t max_header = 64u << 10;  // larger: 431
  bool get_only = false;          // other methods than GET and HEAD: 405, without reading their body
  // Further ones take the place of another: of the address that has most, the one that is idle for longest,
  // or else reads slowest. Where that address has none of these the newcomer is closed if it is from there,
  // too, else the oldest.
  size_t max_connections = 4096;
  // Of one address (PeerShareOf): a further one takes the place of another of that address, as above; 0: as
  // many as there are.
  size_t max_of_address = 0;
  // IP addresses, as sockets say them, that count each for itself, whatever network they are of; null: none.
  std::function<bool(const std::string& ip)> counts_alone = nullptr;
  size_t max_unsent = 16u << 20;  // of a Start/Write answer whose client does not read: then it is gone
  size_t max_held = 256u << 20;   // of unsent answers together: then the connection that holds most is closed
  // Silence between requests, a head that does not end, silence within a body, a client that takes no bytes.
  // Not while a handler thinks.
  base::Nanos idle_timeout = 60 * base::kSecond;
  // From a request's first byte to its last; the same for the TLS handshake.
  base::Nanos request_timeout = 600 * base::kSecond;
  // From the first byte that a client did not take at once until it has taken all; not for Start/Write.
  base::Nanos answer_timeout = 600 * base::kSecond;
  // Descriptors kept back, so that clients are served when the process has no others left.
  size_t spare_descriptors = 0;
  TlsContext tls;  // null: plain text
};

// Counts since the start, but for `connections`. Thread-safe.
struct HttpServerStats {
  std::atomic<uint64_t> connections{0};  // open now
  std::atomic<uint64_t> accepted{0};
  std::atomic<uint64_t> displaced{0};      // closed to make room for others
  std::atomic<uint64_t> refused{0};        // closed because there was no room for them
  std::atomic<uint64_t> timed_out{0};      // closed: silent, or a request that did not end
  std::atomic<uint64_t> unread{0};         // closed: did not read their answers
  std::atomic<uint64_t> tls_failed{0};     // handshakes
  std::atomic<uint64_t> accept_failed{0};  // mostly: no descriptors
};

// Owned by any thread; connections live on `loop`, which outlives the server. Pipelined requests are handled
// one after the other, each in a turn of the loop of its own, so answers leave in order.
class HttpServer {
 public:
  // Binds and listens. The handler runs on the loop. Exceptions from it become 500.
  static base::Result<std::unique_ptr<HttpServer>> Listen(HttpServerOptions options, Loop& loop,
                                                          HttpHandler handler, const base::Log& log);
  virtual ~HttpServer() = default;  // closes everything. REQUIRES: called on the loop, or the loop is stopped
  virtual uint16_t port() const = 0;
  virtual std::shared_ptr<const HttpServerStats> stats() const = 0;  // outlives the server
  // For connections from now on. On the loop.
  virtual void SetTls(TlsContext tls) = 0;
  // Closes the listener and every connection; the port is free afterwards. On the loop.
  virtual void Close() = 0;
};

}  // namespace fairway::net
