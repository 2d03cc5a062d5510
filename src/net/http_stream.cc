#include "net/http_stream.h"

#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>
#include <chrono>
#include <cstring>
#include <optional>

#include "base/result.h"
#include "base/strings.h"
#include "net/address.h"
#include "net/name_lookup.h"
#include "net/socket_stream.h"

namespace fairway::net {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

namespace {

constexpr size_t kReceiveSize = 64 << 10;
// After so many bytes the loop gets a turn: what else it serves must not wait for a long answer.
constexpr size_t kBytesPerTurn = 256 << 10;

std::string ReasonOf(const ErrorCode& error) { return base::ToLower(error.message()); }

std::string Seconds(base::Nanos time) {
  const int64_t tenths = time / (base::kSecond / 10);
  return std::to_string(tenths / 10) + (tenths % 10 != 0 ? "." + std::to_string(tenths % 10) : "") + " s";
}

// Beast's parser with the body handed on as it comes.
class Parser final : public http::basic_parser<false> {
 public:
  explicit Parser(size_t max_head) {
    header_limit(static_cast<uint32_t>(max_head));
    body_limit(boost::none);
    eager(true);
  }

  HttpStreamHead head;
  std::function<bool(std::string_view)> body;  // false: nobody listens any more

 private:
  using View = boost::beast::string_view;
  void on_request_impl(http::verb, View, View, int, ErrorCode&) override {}
  void on_response_impl(int code, View, int, ErrorCode&) override { head.status = code; }
  void on_field_impl(http::field name, View, View value, ErrorCode&) override {
    if (name == http::field::content_type) head.content_type = std::string(value.data(), value.size());
    if (name == http::field::retry_after) {
      head.retry_after = base::ParseInteger<uint32_t>({value.data(), value.size()}).value_or(0);
    }
  }
  void on_header_impl(ErrorCode&) override {}
  void on_body_init_impl(const boost::optional<uint64_t>&, ErrorCode&) override {}
  size_t on_body_impl(View bytes, ErrorCode& error) override { return Give(bytes, error); }
  void on_chunk_header_impl(uint64_t, View, ErrorCode&) override {}
  size_t on_chunk_body_impl(uint64_t, View bytes, ErrorCode& error) override { return Give(bytes, error); }
  void on_finish_impl(ErrorCode&) override {}

  size_t Give(View bytes, ErrorCode& error) {
    if (!body(std::string_view(bytes.data(), bytes.size()))) error = http::error::end_of_stream;
    return bytes.size();
  }
};

}  // namespace

struct HttpStream::Impl final : std::enable_shared_from_this<HttpStream::Impl> {
  Impl(Loop& l, HttpStreamOptions o) : options(std::move(o)), loop(l), io(l.io()), socket(io), timer(io) {
    if (options.server_name.empty()) options.server_name = options.host;
  }

  void Begin(HttpStreamRequest what, Handlers who) {
    FAIRWAY_CHECK(!busy);
    busy = true;
    begun = false;
    ++exchange;
    request = std::move(what);
    handlers = std::move(who);
    retried = false;
    end_at = Now() + request.total_timeout;
    text = request.method + " " + request.target +
           " HTTP/1.1\r\nHost: " + FormatHostPort(options.server_name, options.port) +
           "\r\nUser-Agent: fairway/" FAIRWAY_VERSION "\r\nAccept-Encoding: identity\r\n";
    for (const auto& [name, value] : request.headers)
      text.append(name).append(": ").append(value).append("\r\n");
    if (!request.body.empty() || request.method != "GET") {
      text += "Content-Length: " + std::to_string(request.body.size()) + "\r\n";
    }
    text += "\r\n" + request.body;
    asio::post(io, [self = shared_from_this(), mine = exchange] {
      if (!self->busy || self->exchange != mine) return;
      self->begun = true;
      if (self->stream) {
        self->reused = true;
        self->Send();
      } else {
        self->Connect();
      }
    });
  }

  void Drop() {
    ++exchange;
    busy = false;
    handlers = {};
    Close();
    lookup.reset();  // what waits in the loop may keep this beyond it
    timer.cancel();
  }

  // ---- The connection. `connection` counts them: a handler of an older one does nothing.

  void Close() {
    ++connection;
    waiting = false;
    stream.reset();
    ErrorCode error;
    socket.close(error);
  }

  void Connect() {
    Close();
    reused = false;
    addresses.clear();
    next_address = 0;
    Expect(options.connect_timeout, "not connected");
    ErrorCode error;
    const auto literal = asio::ip::make_address(options.host, error);
    if (!error) {
      addresses.emplace_back(literal, options.port);
      return ConnectNext({});
    }
    if (lookup == nullptr) lookup = std::make_unique<NameLookup>(loop);
    lookup->Find(options.host, [weak = weak_from_this(), mine = connection](const LookupResult& found) {
      const auto self = weak.lock();
      if (self == nullptr || self->connection != mine || !self->busy) return;
      if (found.addresses.empty())
        return self->Fail("cannot resolve " + self->options.host + ": " + base::ToLower(found.error));
      for (const std::string& address : found.addresses) {
        ErrorCode error;
        self->addresses.emplace_back(asio::ip::make_address(address, error), self->options.port);
      }
      self->ConnectNext({});
    });
  }

  void ConnectNext(const ErrorCode& last) {
    if (next_address == addresses.size()) return Fail(ReasonOf(last));
    Close();
    socket.async_connect(addresses[next_address++],
                         [self = shared_from_this(), mine = connection](const ErrorCode& error) {
                           if (self->connection != mine || !self->busy) return;
                           if (error) return self->ConnectNext(error);
                           self->Connected();
                         });
  }

  void Connected() {
    ErrorCode ignored;
    socket.set_option(tcp::no_delay(true), ignored);
    socket.set_option(tcp::socket::keep_alive(true), ignored);
    socket.non_blocking(true, ignored);
    // A watch may be silent for minutes: whether the other side is still there, TCP has to find out.
    const int descriptor = socket.native_handle();
    const auto set = [descriptor](int option, int value) {
      ::setsockopt(descriptor, IPPROTO_TCP, option, &value, sizeof value);
    };
    set(TCP_KEEPIDLE, 15);
    set(TCP_KEEPINTVL, 5);
    set(TCP_KEEPCNT, 3);
    set(TCP_USER_TIMEOUT, 30'000);
    stream.emplace(descriptor, options.tls, TlsPeer{options.server_name});
    Handshake();
  }

  void Handshake() {
    switch (stream->Handshake()) {
      case SocketStream::Status::kOk:
        return Send();
      case SocketStream::Status::kWantRead:
        return Wait(tcp::socket::wait_read, &Impl::Handshake);
      case SocketStream::Status::kWantWrite:
        return Wait(tcp::socket::wait_write, &Impl::Handshake);
      case SocketStream::Status::kClosed:
        return Fail("connection closed during the TLS handshake");
      case SocketStream::Status::kFailed:
        return Fail("TLS: " + stream->error());
    }
  }

  void Wait(tcp::socket::wait_type type, void (Impl::*next)()) {
    socket.async_wait(type, [self = shared_from_this(), mine = connection, next](const ErrorCode& error) {
      if (self->connection != mine || error) return;
      (self.get()->*next)();
    });
  }

  // ---- One exchange.

  void Send() {
    sent = 0;
    got_bytes = false;
    got_head = false;
    parser.emplace(options.max_head);
    parser->body = [this](std::string_view bytes) { return OnBody(bytes); };
    fill = 0;
    Expect(request.head_timeout, "no answer");
    SendMore();
  }

  void SendMore() {
    while (sent < text.size()) {
      const iovec piece{text.data() + sent, text.size() - sent};
      size_t n = 0;
      switch (stream->Write(&piece, 1, n)) {
        case SocketStream::Status::kOk:
          sent += n;
          continue;
        case SocketStream::Status::kWantRead:
          return Wait(tcp::socket::wait_read, &Impl::SendMore);
        case SocketStream::Status::kWantWrite:
          return Wait(tcp::socket::wait_write, &Impl::SendMore);
        default:
          return Lost(stream->error().empty() ? "connection closed" : stream->error());
      }
    }
    WaitReadable();
  }

  // One wait is open while connected, also between exchanges: so the end of an idle connection is seen.
  void WaitReadable() {
    if (waiting) return;
    waiting = true;
    Wait(tcp::socket::wait_read, &Impl::Readable);
  }

  void Readable() {
    waiting = false;
    // An idle connection came to its end, or said what nobody asked for; also where an exchange has begun
    // that is not sent yet: it finds no connection and makes one.
    if (!busy || !begun) return Close();
    const uint64_t mine = exchange;
    size_t turn = 0;
    while (turn < kBytesPerTurn) {
      size_t n = 0;
      const auto status = stream->Read(receive.data() + fill, receive.size() - fill, n);
      if (status == SocketStream::Status::kWantRead) return WaitReadable();
      if (status == SocketStream::Status::kWantWrite) return Wait(tcp::socket::wait_write, &Impl::Readable);
      if (status == SocketStream::Status::kFailed) return Lost(stream->error());
      if (status == SocketStream::Status::kClosed) return Ended();
      got_bytes = true;
      fill += n;
      turn += n;
      if (!Parse() || exchange != mine || !busy) return;
    }
    asio::post(io, [self = shared_from_this(), on = connection, mine] {
      if (self->connection == on && self->exchange == mine && self->busy) self->Readable();
    });
  }

  // False when the exchange is over, one way or the other.
  bool Parse() {
    const uint64_t mine = exchange;
    const auto self = shared_from_this();  // a handler may destroy the stream
    size_t at = 0;
    while (at < fill && !parser->is_done()) {
      ErrorCode error;
      const size_t used = parser->put(asio::buffer(receive.data() + at, fill - at), error);
      if (exchange != mine || !busy) return false;
      at += used;
      if (!GiveHead()) return false;
      if (error == http::error::need_more) break;
      if (error) {
        Fail("the answer is no HTTP/1.1: " + ReasonOf(error));
        return false;
      }
    }
    std::memmove(receive.data(), receive.data() + at, fill - at);
    fill -= at;
    if (parser->is_done()) {
      const bool keep = parser->keep_alive() && fill == 0;
      if (keep) {
        WaitReadable();
      } else {
        Close();
      }
      Finish("");
      return false;
    }
    if (fill == receive.size()) {
      Fail("the answer's head or a chunk's head is larger than " + std::to_string(receive.size()) + " bytes");
      return false;
    }
    return true;
  }

  // Also from within the parser, when head and body came in one piece. False: nobody listens any more.
  bool GiveHead() {
    if (got_head || !parser->is_header_done()) return true;
    got_head = true;
    Expect(request.idle_timeout, "silence");
    const uint64_t mine = exchange;
    if (handlers.head) {
      const auto give = handlers.head;
      give(parser->head);
    }
    return exchange == mine && busy;
  }

  bool OnBody(std::string_view bytes) {
    if (!GiveHead()) return false;
    Expect(request.idle_timeout, "silence");
    const uint64_t mine = exchange;
    if (handlers.data) {
      const auto give = handlers.data;
      give(bytes);
    }
    return exchange == mine && busy;
  }

  void Ended() {
    ErrorCode error;
    if (got_head && parser->need_eof()) {  // no length was told: the end is the end
      const auto self = shared_from_this();
      parser->put_eof(error);
      Close();
      return Finish(error ? ReasonOf(error) : "");
    }
    Lost(got_bytes ? "connection closed in the middle of the answer" : "connection closed without an answer");
  }

  // On a kept-alive connection that gave no byte this is most likely the server's idle time-out crossing our
  // request: once, silently, a fresh one (RFC 9110 section 9.2.2: GET may be repeated).
  void Lost(std::string why) {
    if (reused && !retried && !got_bytes && request.method == "GET") {
      retried = true;
      return Connect();
    }
    Fail(std::move(why));
  }

  // By value: the text may be the stream's, which Close takes down.
  void Fail(std::string why) {  // NOLINT(performance-unnecessary-value-param)
    Close();
    Finish(why.empty() ? "connection lost" : why);
  }

  void Finish(const std::string& error) {
    busy = false;
    timer.cancel();
    const Handlers who = std::move(handlers);
    handlers = {};
    if (who.end) who.end(error);
  }

  // ---- Time. One timer; a later deadline is only noted and looked at when the timer fires.

  static base::Nanos Now() { return base::SystemClock().Now(); }

  void Expect(base::Nanos within, const char* what) {
    limit = within;
    phase = what;
    deadline = std::min(Now() + within, end_at);
    if (!armed || timer_at > deadline) Arm();
  }

  void Arm() {
    armed = true;
    timer_at = deadline;
    timer.expires_after(std::chrono::nanoseconds(std::max<base::Nanos>(deadline - Now(), 0)));
    timer.async_wait([weak = weak_from_this(), mine = ++timer_round](const ErrorCode&) {
      const auto self = weak.lock();
      if (self == nullptr || self->timer_round != mine) return;
      self->armed = false;
      if (!self->busy) return;
      if (Now() < self->deadline) return self->Arm();
      self->Fail(self->deadline >= self->end_at
                     ? "not complete within " + Seconds(self->request.total_timeout)
                     : std::string(self->phase) + " within " + Seconds(self->limit));
    });
  }

  HttpStreamOptions options;
  Loop& loop;
  asio::io_context& io;
  tcp::socket socket;
  std::unique_ptr<NameLookup> lookup;  // null: nothing is looked up
  asio::steady_timer timer;
  std::optional<SocketStream> stream;  // there from the connection on
  std::optional<Parser> parser;
  std::vector<tcp::endpoint> addresses;
  size_t next_address = 0;
  HttpStreamRequest request;
  Handlers handlers;
  std::string text;
  size_t sent = 0;
  std::vector<char> receive = std::vector<char>(kReceiveSize);
  size_t fill = 0;
  uint64_t connection = 0;
  uint64_t exchange = 0;
  uint64_t timer_round = 0;
  base::Nanos deadline = 0;
  base::Nanos end_at = 0;
  base::Nanos timer_at = 0;
  base::Nanos limit = 0;
  const char* phase = "";
  bool armed = false;
  bool busy = false;
  bool begun = false;  // the exchange has left Begin
  bool reused = false;
  bool retried = false;
  bool waiting = false;
  bool got_bytes = false;
  bool got_head = false;
};

HttpStream::HttpStream(Loop& loop, HttpStreamOptions options)
    : impl_(std::make_shared<Impl>(loop, std::move(options))) {}

HttpStream::~HttpStream() { impl_->Drop(); }

void HttpStream::Start(HttpStreamRequest request, Handlers handlers) {
  impl_->Begin(std::move(request), std::move(handlers));
}

bool HttpStream::busy() const { return impl_->busy; }

}  // namespace fairway::net
