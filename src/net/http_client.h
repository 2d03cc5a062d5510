// A lean HTTP/1.1 client over one kept-alive connection: scraping metrics pages by the thousand a second.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "net/loop.h"
#include "net/tls.h"

namespace fairway::net {

struct HttpFetchOptions {
  std::string host;  // IPv4, IPv6 or a name (resolved off the loop, again after each failure to connect)
  uint16_t port = 0;
  std::string target = "/metrics";
  TlsContext tls;                       // tls_client.h; null: plain text
  std::string server_name;              // whose certificate it must be; "": host
  base::Nanos timeout = base::kSecond;  // for connect + request + whole answer
  size_t max_body = 8u << 20;           // larger: an error, the connection is closed
};

enum class HttpFailure {
  kNone,
  kOptions,  // the fetch could not be tried: bad path, host or port
  kConnect,  // no address for the name, refused, unreachable
  kTimeout,
  kClosed,    // closed or reset before the answer was whole
  kProtocol,  // the answer is no HTTP/1.1, or in an encoding that was not asked for
  kTooLarge,
  kStatus,  // not a 200
  kTls,     // the handshake failed, or the certificate is not accepted
};

// One endpoint's page. Owned by its loop's thread. The deadline is looked at every 20 ms: a fetch may end
// that much late.
//
// After a connection that was kept alive ends without a byte of answer the request is sent once more on a
// fresh one.
class HttpFetcher {
 public:
  // `body` is valid during the call only. On failure `error` says what happened ("connection refused",
  // "timeout while connecting", "HTTP 302 redirect to /x is not followed", "page larger than 8388608 bytes",
  // ...) and `status` is 0 where there was none.
  struct Outcome {
    bool ok = false;  // a 200 with a whole body
    int status = 0;
    std::string_view body;
    std::string_view error;
    HttpFailure failure = HttpFailure::kNone;
    std::string_view location;  // of a redirect; "" where there is none
    // The other side's system said no (connection refused or reset, host unreachable), which slowness never
    // is.
    bool refused = false;
  };
  using Done = std::function<void(const Outcome&)>;
  // Takes a piece of a 200's body as it comes, 256 KiB at most, on the loop; then nothing of it is kept and
  // Outcome::body is empty. False: the fetch fails, as no more of it is wanted. It may not end the fetcher.
  using Piece = std::function<bool(std::string_view)>;

  HttpFetcher(Loop& loop, HttpFetchOptions options);
  ~HttpFetcher();  // an open fetch is dropped, its Done never called
  HttpFetcher(const HttpFetcher&) = delete;
  HttpFetcher& operator=(const HttpFetcher&) = delete;

  // REQUIRES: no fetch under way. Done runs on the loop, never inside Fetch.
  void Fetch(Done done, Piece piece = nullptr);
  bool busy() const;
  // What further fetches ask for. REQUIRES: no fetch under way; inside Done there is none.
  void SetTarget(const std::string& target);
  // The same, by POST with a body in JSON.
  void SetPost(const std::string& target, std::string_view json);
  // Of further fetches, in place of the options'.
  void SetLimits(base::Nanos timeout, size_t max_body);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace fairway::net
