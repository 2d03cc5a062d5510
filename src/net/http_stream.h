// An HTTP/1.1 client for answers that come in pieces and may take their time: one connection, plain or TLS,
// one exchange at a time, kept alive between them. For API servers; metrics pages have http_client.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "net/loop.h"
#include "net/tls.h"

namespace fairway::net {

struct HttpStreamOptions {
  std::string host;  // IPv4, IPv6 without brackets or a name; names are resolved off the loop
  uint16_t port = 0;
  TlsContext tls;                                   // tls_client.h; null: plain text
  std::string server_name;                          // whose certificate it must be; "": host
  base::Nanos connect_timeout = 5 * base::kSecond;  // name, TCP and TLS together
  size_t max_head = 64 << 10;
};

struct HttpStreamRequest {
  std::string method = "GET";
  std::string target;                                        // path and query
  std::vector<std::pair<std::string, std::string>> headers;  // Host, Content-Length and User-Agent are made
  std::string body;
  base::Nanos head_timeout = 30 * base::kSecond;   // from the request's last byte to the answer's head
  base::Nanos idle_timeout = 30 * base::kSecond;   // silence within the body
  base::Nanos total_timeout = 60 * base::kSecond;  // of all
};

struct HttpStreamHead {
  int status = 0;
  std::string content_type;
  int64_t retry_after = -1;  // seconds; -1 when there is none
};

// Owned by its loop's thread. A peer that vanished without a word is noticed by TCP within about 30 s.
class HttpStream {
 public:
  // On the loop, in this order: head once, data any number of times, end once. `end` with an empty text is
  // the complete answer; else it says what happened ("connection refused", "no answer within 30 s",
  // "connection closed in the middle of the answer", "the certificate is not accepted: ..."), at any point.
  // Each may destroy the stream.
  struct Handlers {
    std::function<void(const HttpStreamHead&)> head;
    std::function<void(std::string_view)> data;
    std::function<void(const std::string& error)> end;
  };

  HttpStream(Loop& loop, HttpStreamOptions options);
  ~HttpStream();  // closes; no handler is called any more
  HttpStream(const HttpStream&) = delete;
  HttpStream& operator=(const HttpStream&) = delete;

  // REQUIRES: not busy(). No handler is called inside Start. A kept-alive connection that turns out to be
  // closed before a byte of the answer came is opened anew, once.
  void Start(HttpStreamRequest request, Handlers handlers);
  bool busy() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace fairway::net
