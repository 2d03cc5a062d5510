// A small HTTP/1.1 server (Boost.Beast) for admin pages and the simulated model server. It is no proxy and no
// product: Envoy is the data plane.
#pragma once

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

namespace fairway::net {

struct HttpRequest {
  std::string method;
  std::string target;  // path and query, as sent
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  std::string local_address;  // "ip:port" the client connected to: which endpoint was meant, where one
                              // process serves many

  std::string_view path() const;                         // target without the query
  std::string_view header(std::string_view name) const;  // case-insensitive; "" when absent
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
};

// How a handler answers, now or later, on the connection's loop. Destroying it unanswered closes the
// connection. It may outlive the connection and the server: then its calls do nothing.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  virtual void Send(HttpResponse response) = 0;  // whole answer with content-length
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
  size_t max_connections = 4096;  // further ones are closed at once
  size_t max_unsent = 16u << 20;  // of a chunked answer whose client does not read: then it is gone
  // Silence between requests, a request head that does not end, a client that takes no bytes. Not while a
  // handler thinks.
  base::Nanos idle_timeout = 60 * base::kSecond;
};

// Owned by any thread; connections live on `loop`, which outlives the server. Pipelined requests are handled
// one after the other, so answers leave in order.
class HttpServer {
 public:
  // Binds and listens. The handler runs on the loop. Exceptions from it become 500.
  static base::Result<std::unique_ptr<HttpServer>> Listen(HttpServerOptions options, Loop& loop,
                                                          HttpHandler handler, const base::Log& log);
  virtual ~HttpServer() = default;  // closes everything. REQUIRES: called on the loop, or the loop is stopped
  virtual uint16_t port() const = 0;
  // Closes the listener and every connection; the port is free afterwards. On the loop.
  virtual void Close() = 0;
};

}  // namespace fairway::net
