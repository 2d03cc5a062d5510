#include "net/http_client.h"

#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/strings.h"
#include "net/address.h"
#include "net/http_response.h"
#include "net/name_lookup.h"
#include "net/socket_stream.h"

namespace fairway::net {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

namespace {

// A timer per fetch would be two heap operations and often a system call each; a deadline that is looked at
// this often is one comparison.
constexpr base::Nanos kTick = 20 * base::kMillisecond;
constexpr size_t kReceiveSize = 256 << 10;
constexpr size_t kSpares = 8;
constexpr size_t kSpareCapacity = 1 << 20;

std::string ReasonOf(int error) { return base::ToLower(std::strerror(error)); }
std::string ReasonOf(const ErrorCode& error) { return base::ToLower(error.message()); }

bool IsSafeText(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c != 0x7f; });
}

bool IsRefusal(int error) {
  return error == ECONNREFUSED || error == ECONNRESET || error == EPIPE || error == EHOSTUNREACH ||
         error == ENETUNREACH || error == EHOSTDOWN;
}

// What the hub knows of an open fetch.
struct Watched {
  base::Nanos deadline = 0;
  size_t slot = 0;  // in the hub's list
  virtual void TimedOut() = 0;
  virtual std::shared_ptr<Watched> Share() = 0;

 protected:
  ~Watched() = default;
};

// What all fetchers of a loop share: the receive buffer (an answer that comes in one piece is read where it
// lies), a few strings for answers in more pieces, and the tick that watches deadlines. So a fetcher at rest
// holds a socket and little else.
class FetchHub final : public asio::execution_context::service {
 public:
  static inline asio::execution_context::id id;  // NOLINT: Asio's name

  explicit FetchHub(asio::execution_context& context)
      : service(context),
        timer_(static_cast<asio::io_context&>(context)),
        receive_(std::make_unique_for_overwrite<char[]>(kReceiveSize)) {}

  void shutdown() noexcept override { open_.clear(); }

  void Add(Watched* fetch) {
    fetch->slot = open_.size();
    open_.push_back(fetch);
    if (!ticking_) StartTick();
  }
  void Remove(Watched* fetch) {
    open_[fetch->slot] = open_.back();
    open_[fetch->slot]->slot = fetch->slot;
    open_.pop_back();
  }
  char* receive() { return receive_.get(); }

  std::string TakeSpare() {
    if (spares_.empty()) return {};
    std::string spare = std::move(spares_.back());
    spares_.pop_back();
    return spare;
  }
  void GiveSpare(std::string spare) {
    if (spare.capacity() > 64 && spare.capacity() <= kSpareCapacity && spares_.size() < kSpares) {
      spares_.push_back(std::move(spare));
    }
  }

 private:
  void StartTick() {
    ticking_ = true;
    timer_.expires_after(std::chrono::nanoseconds(kTick));
    timer_.async_wait([this](const ErrorCode& error) {
      if (error) return;
      ticking_ = false;
      Tick();
      if (!open_.empty() && !ticking_) StartTick();
    });
  }

  void Tick() {
    const base::Nanos now = base::SystemClock().Now();
    std::vector<std::shared_ptr<Watched>> late;  // what happens to one may change the list, or destroy others
    for (Watched* fetch : open_) {
      if (fetch->deadline <= now) late.push_back(fetch->Share());
    }
    for (const auto& fetch : late) fetch->TimedOut();
  }

  asio::steady_timer timer_;
  bool ticking_ = false;
  std::vector<Watched*> open_;
  std::unique_ptr<char[]> receive_;
  std::vector<std::string> spares_;
};

}  // namespace

struct HttpFetcher::Impl final : Watched, std::enable_shared_from_this<HttpFetcher::Impl> {
  Impl(Loop& l, HttpFetchOptions o)
      : options(std::move(o)),
        timeout(options.timeout),
        loop(l),
        io(l.io()),
        hub(asio::use_service<FetchHub>(io)),
        socket(io),
        reader(options.max_body) {
    MakeRequest(options.target);
    ErrorCode error;
    const auto literal = asio::ip::make_address(options.host, error);
    if (!error) {
      is_literal = true;
      addresses.emplace_back(literal, options.port);
    }
  }

  void MakeRequest(const std::string& target, std::optional<std::string_view> json = std::nullopt) {
    FAIRWAY_CHECK(!busy);
    invalid.clear();
    if (target.empty() || target.front() != '/' || !IsSafeText(target)) {
      invalid = "bad path: it must begin with / and hold no blanks";
    } else if (options.host.empty() || !IsSafeText(options.host)) {
      invalid = "bad host name";
    } else if (options.port == 0) {
      invalid = "bad port 0";
    }
    request = (json ? "POST " : "GET ") + target +
              " HTTP/1.1\r\nHost: " + FormatHostPort(options.host, options.port) +
              "\r\nUser-Agent: fairway/" FAIRWAY_VERSION "\r\nAccept-Encoding: identity\r\nAccept: ";
    if (!json) {
      request += "text/plain;version=0.0.4\r\n\r\n";
      return;
    }
    request += "application/json\r\nContent-Type: application/json\r\nContent-Length: " +
               std::to_string(json->size()) + "\r\n\r\n";
    request += *json;
  }

  void Begin(Done what, Piece of_body) {
    FAIRWAY_CHECK(!busy);
    busy = true;
    done = std::move(what);
    piece = std::move(of_body);
    ++fetch;
    retried = false;
    got_bytes = false;
    refused = false;
    deadline = base::SystemClock().Now() + timeout;
    hub.Add(this);
    beginning = true;
    if (!invalid.empty()) {
      FailLater(HttpFailure::kOptions, invalid);
    } else if (connected) {
      reused = true;
      SendRequest();
    } else {
      Connect();
    }
    beginning = false;
  }

  void Drop() {
    if (busy) hub.Remove(this);
    busy = false;
    done = nullptr;
    piece = nullptr;
    lookup.reset();  // what waits in the loop may keep this beyond it
    CloseSocket();
  }

  // ---- The connection. `connection` counts them: a handler of an older one does nothing.

  void CloseSocket() {
    ++connection;
    connected = false;
    waiting = false;
    tls.reset();
    ErrorCode error;
    socket.close(error);
  }

  void Connect() {
    CloseSocket();
    reused = false;
    next_address = 0;
    if (!addresses.empty()) return ConnectNext({});
    phase = "resolving the name";
    if (lookup == nullptr) lookup = std::make_unique<NameLookup>(loop);
    lookup->Find(options.host, [weak = weak_from_this(), mine = connection](const LookupResult& found) {
      const auto self = weak.lock();
      if (self == nullptr || self->connection != mine || !self->busy) return;
      if (found.addresses.empty())
        return self->Fail(HttpFailure::kConnect, "cannot resolve the name: " + base::ToLower(found.error));
      for (const std::string& address : found.addresses) {
        ErrorCode error;
        self->addresses.emplace_back(asio::ip::make_address(address, error), self->options.port);
      }
      self->ConnectNext({});
    });
  }

  void ConnectNext(const ErrorCode& last) {
    if (next_address == addresses.size()) {
      if (!is_literal) addresses.clear();  // the name may mean another address by now
      refused = IsRefusal(last.value());
      return Fail(HttpFailure::kConnect, ReasonOf(last));
    }
    CloseSocket();
    phase = "connecting";
    socket.async_connect(
        addresses[next_address++], [self = shared_from_this(), mine = connection](const ErrorCode& error) {
          if (self->connection != mine || !self->busy) return;
          if (error) return self->ConnectNext(error);
          self->connected = true;
          ErrorCode ignored;
          self->socket.set_option(tcp::no_delay(true), ignored);
          self->socket.non_blocking(true, ignored);
          if (self->options.tls == nullptr) return self->SendRequest();
          self->phase = "agreeing on TLS";
          self->tls = std::make_unique<SocketStream>(
              self->socket.native_handle(), self->options.tls,
              TlsPeer{self->options.server_name.empty() ? self->options.host : self->options.server_name});
          self->Handshake();
        });
  }

  void Handshake() {
    using Status = SocketStream::Status;
    switch (tls->Handshake()) {
      case Status::kOk:
        return SendRequest();
      case Status::kWantRead:
        return WaitTls(tcp::socket::wait_read, &Impl::Handshake);
      case Status::kWantWrite:
        return WaitTls(tcp::socket::wait_write, &Impl::Handshake);
      case Status::kClosed:
        return Fail(HttpFailure::kTls, "TLS: the connection was closed in the handshake");
      case Status::kFailed:
        break;
    }
    Fail(HttpFailure::kTls, "TLS: " + tls->error());
  }

  void WaitTls(tcp::socket::wait_type what, void (Impl::*then)()) {
    socket.async_wait(what, [self = shared_from_this(), mine = connection, then](const ErrorCode& error) {
      if (self->connection != mine || !self->busy) return;
      if (error) return self->Lost(ReasonOf(error), error.value());
      (self.get()->*then)();
    });
  }

  void SendRequest() {
    phase = "waiting for the answer";
    sent = 0;
    if (tls != nullptr) {
      SendTls();
    } else {
      SendMore();
    }
  }

  void SendTls() {
    using Status = SocketStream::Status;
    while (sent < request.size()) {
      const iovec piece{.iov_base = request.data() + sent, .iov_len = request.size() - sent};
      size_t written = 0;
      switch (tls->Write(&piece, 1, written)) {
        case Status::kOk:
          sent += written;
          continue;
        case Status::kWantRead:
          return WaitTls(tcp::socket::wait_read, &Impl::SendTls);
        case Status::kWantWrite:
          return WaitTls(tcp::socket::wait_write, &Impl::SendTls);
        case Status::kClosed:
          return Lost("connection closed without an answer");
        case Status::kFailed:
          return Lost(tls->error());
      }
    }
    // The answer may lie in TLS already.
    if (!waiting) ReceiveTls();
  }

  void SendMore() {
    while (sent < request.size()) {
      const ssize_t n = ::send(socket.native_handle(), request.data() + sent, request.size() - sent,
                               MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n >= 0) {
        sent += static_cast<size_t>(n);
      } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
        socket.async_wait(tcp::socket::wait_write,
                          [self = shared_from_this(), mine = connection](const ErrorCode& error) {
                            if (self->connection != mine || !self->busy || error) return;
                            self->SendMore();
                          });
        break;
      } else if (errno != EINTR) {
        return Lost(ReasonOf(errno), errno);
      }
    }
    WaitReadable();
  }

  // Always one wait while connected, also at rest: that is how the end of an idle connection is seen before
  // the next fetch would run into it.
  void WaitReadable() {
    if (waiting) return;
    waiting = true;
    socket.async_wait(tcp::socket::wait_read,
                      [self = shared_from_this(), mine = connection](const ErrorCode& error) {
                        if (self->connection != mine) return;
                        self->waiting = false;
                        if (error) return self->Lost(ReasonOf(error), error.value());
                        if (self->tls != nullptr) return self->ReceiveTls();
                        self->Receive();
                      });
  }

  // Reads what TLS has, also at rest: a server's session tickets come when it likes.
  void ReceiveTls() {
    using Status = SocketStream::Status;
    for (const uint64_t mine = connection; connection == mine;) {
      size_t n = 0;
      const Status status = tls->Read(hub.receive(), kReceiveSize, n);
      if (status == Status::kWantRead) return WaitReadable();
      if (status == Status::kWantWrite) {
        // Renegotiation is off, so this is rare: wait for both ways to be free again.
        return socket.async_wait(tcp::socket::wait_write,
                                 [self = shared_from_this(), mine](const ErrorCode& error) {
                                   if (self->connection != mine || self->waiting) return;
                                   if (error) return self->Lost(ReasonOf(error), error.value());
                                   self->ReceiveTls();
                                 });
      }
      if (!busy) return CloseSocket();
      if (status == Status::kFailed) return Lost(tls->error());
      if (!Take(status == Status::kClosed ? 0 : n)) return;
    }
  }

  void Receive() {
    if (!busy) return CloseSocket();  // the end of an idle connection, or bytes nobody asked for
    ssize_t n = 0;
    do {
      n = ::recv(socket.native_handle(), hub.receive(), kReceiveSize, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) return WaitReadable();
      return Lost(ReasonOf(errno), errno);
    }
    if (Take(static_cast<size_t>(n))) WaitReadable();
  }

  // The next `n` received bytes; 0 is the connection's end. True: there is more to come. False: the fetch is
  // over.
  bool Take(size_t n) {
    if (!got_bytes) {
      if (n == 0) {
        Lost("connection closed without an answer");
        return false;
      }
      got_bytes = true;
      reader.Reset(hub.TakeSpare(), piece ? &piece : nullptr);
    }
    const HttpParse parsed = n == 0 ? reader.FeedEnd() : reader.Feed({hub.receive(), n});
    if (parsed == HttpParse::kMore) return true;
    if (parsed == HttpParse::kBad) {
      CloseSocket();
      Fail(n == 0               ? HttpFailure::kClosed
           : reader.too_large() ? HttpFailure::kTooLarge
                                : HttpFailure::kProtocol,
           reader.error());
      return false;
    }
    // What is answered before all of it was sent is not sent on: the next request would be taken for its rest.
    if (n == 0 || !reader.keep_alive() || sent < request.size()) {
      CloseSocket();
    } else {
      WaitReadable();
    }
    Answered();
    return false;
  }

  // The connection failed before the answer was whole. On a kept-alive one that gave no byte this is most
  // likely the server's idle time-out crossing our request: once, silently, a fresh one (RFC 9110
  // section 9.2.2: GET may be repeated).
  void Lost(const std::string& why, int system_error = 0) {
    // NOLINTNEXTLINE(performance-unnecessary-copy-initialization): it may be the connection's
    const std::string kept = why;
    CloseSocket();
    if (!busy) return;
    if (reused && !retried && !got_bytes) {
      retried = true;
      return Connect();
    }
    refused = IsRefusal(system_error);
    Fail(HttpFailure::kClosed, kept);
  }

  // ---- The end of a fetch.

  void Answered() {
    const int status = reader.status();
    if (status == 200 && reader.content_encoding().empty()) return Finish({true, status, reader.body(), {}});
    if (status == 200) {
      const std::string why = "content-encoding " + reader.content_encoding() + " was not asked for";
      return Finish({false, status, {}, why, HttpFailure::kProtocol});
    }
    std::string why = "HTTP " + std::to_string(status);
    if (status >= 300 && status < 400 && !reader.location().empty()) {
      why += " redirect to " + reader.location() + " is not followed";
    }
    Finish({.status = status,
            .body = reader.body(),
            .error = why,
            .failure = HttpFailure::kStatus,
            .location = status >= 300 && status < 400 ? std::string_view(reader.location()) : ""});
  }

  void Fail(HttpFailure failure, const std::string& why) {
    // NOLINTNEXTLINE(performance-unnecessary-copy-initialization): it may be the connection's
    const std::string kept = why;
    CloseSocket();
    // Begin itself may fail, and Done never runs inside it.
    if (beginning) return FailLater(failure, kept);
    Finish({.error = kept, .failure = failure, .refused = refused});
  }

  void FailLater(HttpFailure failure, const std::string& why) {
    asio::post(io, [self = shared_from_this(), mine = fetch, failure, why] {
      if (self->busy && self->fetch == mine)
        self->Finish({.error = why, .failure = failure, .refused = self->refused});
    });
  }

  std::shared_ptr<Watched> Share() override { return shared_from_this(); }

  void TimedOut() override {
    if (!busy) return;
    CloseSocket();
    const std::string why = std::string("timeout while ") + phase;
    Finish({false, 0, {}, why, HttpFailure::kTimeout});
  }

  void Finish(const Outcome& outcome) {
    const auto self = shared_from_this();  // Done may destroy the fetcher
    hub.Remove(this);
    busy = false;
    const Done what = std::move(done);
    done = nullptr;
    piece = nullptr;
    what(outcome);
    // Done may have begun the next fetch, but that one has not read anything yet.
    hub.GiveSpare(reader.TakeStorage());
  }

  const HttpFetchOptions options;
  base::Nanos timeout;
  Loop& loop;
  asio::io_context& io;
  FetchHub& hub;
  tcp::socket socket;
  std::unique_ptr<SocketStream> tls;   // on the socket; null in plain text
  std::unique_ptr<NameLookup> lookup;  // null: there was no name
  HttpResponseReader reader;
  std::string request;
  std::string invalid;
  std::vector<tcp::endpoint> addresses;
  size_t next_address = 0;
  size_t sent = 0;
  Done done;
  Piece piece;  // null: the body is kept
  const char* phase = "";
  uint64_t connection = 0;
  uint64_t fetch = 0;
  bool is_literal = false;
  bool refused = false;
  bool busy = false;
  bool beginning = false;
  bool connected = false;
  bool waiting = false;
  bool reused = false;
  bool retried = false;
  bool got_bytes = false;
};

HttpFetcher::HttpFetcher(Loop& loop, HttpFetchOptions options)
    : impl_(std::make_shared<Impl>(loop, std::move(options))) {}

HttpFetcher::~HttpFetcher() { impl_->Drop(); }

void HttpFetcher::Fetch(Done done, Piece piece) { impl_->Begin(std::move(done), std::move(piece)); }

bool HttpFetcher::busy() const { return impl_->busy; }

void HttpFetcher::SetTarget(const std::string& target) { impl_->MakeRequest(target); }
void HttpFetcher::SetPost(const std::string& target, std::string_view json) {
  impl_->MakeRequest(target, json);
}
void HttpFetcher::SetLimits(base::Nanos timeout, size_t max_body) {
  FAIRWAY_CHECK(!impl_->busy);
  impl_->timeout = timeout;
  impl_->reader.SetMaxBody(max_body);
}

}  // namespace fairway::net
