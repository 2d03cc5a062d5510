#include "net/http_server.h"

#include <sys/socket.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/status.hpp>
#include <boost/beast/http/string_body.hpp>
#include <charconv>
#include <chrono>
#include <exception>
#include <optional>
#include <unordered_set>

#include "base/strings.h"
#include "net/address.h"

namespace fairway::net {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

std::string_view HttpRequest::path() const {
  const std::string_view text = target;
  return text.substr(0, text.find('?'));
}

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (base::EqualsIgnoreCase(key, name)) return value;
  }
  return {};
}

namespace {

constexpr size_t kReadPiece = 8 << 10;
constexpr size_t kBodyReadPiece = 64 << 10;
// Pipelined bytes taken in while an answer is open; reading goes on for as long, which is how a client's end
// is noticed.
constexpr size_t kReadAhead = 64 << 10;
// A closed connection's peer gets this long to read what we sent: closing at once, with bytes of it unread,
// would reset the connection and take the answer away (RFC 9112 section 9.6).
constexpr base::Nanos kLinger = 2 * base::kSecond;
constexpr size_t kKeepCapacity = 256 << 10;

base::Nanos Now() { return base::SystemClock().Now(); }

// A header's text can not end its line.
void AppendText(std::string& out, std::string_view text) {
  for (char c : text) out += c == '\r' || c == '\n' || c == '\0' ? ' ' : c;
}

void AppendHeader(std::string& out, std::string_view name, std::string_view value) {
  AppendText(out, name);
  out += ": ";
  AppendText(out, value);
  out += "\r\n";
}

class Connection;

struct Core {
  Core(HttpServerOptions o, Loop& l, HttpHandler h, const base::Log& lg)
      : options(std::move(o)), loop(l), handler(std::move(h)), log(lg), acceptor(l.io()), tick(l), retry(l) {}

  HttpServerOptions options;
  Loop& loop;
  HttpHandler handler;
  base::Log log;
  base::LogLimit accept_errors{10 * base::kSecond};
  tcp::acceptor acceptor;
  std::unordered_set<std::shared_ptr<Connection>> connections;
  Timer tick;   // looks for connections that wait too long; runs while there are any
  Timer retry;  // after a failed accept
  bool closed = false;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<Core> core, tcp::socket socket)
      : core_(std::move(core)), socket_(std::move(socket)) {}

  void Start();
  void Tick(base::Nanos now);
  void Close();  // tells an open answer that its client is gone

  // Of the responder of exchange `number`; false or nothing when that one is over.
  void Send(uint64_t number, const HttpResponse& response);
  bool StartStream(uint64_t number, const HttpResponse& head);
  bool WriteStream(uint64_t number, std::string_view chunk);
  void EndStream(uint64_t number);
  void OnGone(uint64_t number, std::function<void()> gone);
  void Abandon(uint64_t number);

 private:
  using Parser = http::request_parser<http::string_body>;

  bool IsOpen(uint64_t number) const { return !closed_ && answering_ && number == number_; }
  void StartRead();
  void OnReadable(ErrorCode error);
  void Process();
  bool ParseRequest();  // true: a whole request is in parser_
  void Dispatch();
  void Refuse(int status, std::string_view why);
  void AppendHead(const HttpResponse& head, std::optional<size_t> length);
  void Complete();
  void Flush();
  void Linger();

  std::shared_ptr<Core> core_;
  tcp::socket socket_;
  std::string local_address_;
  beast::flat_buffer buffer_;
  std::optional<Parser> parser_;
  std::string out_;
  size_t out_sent_ = 0;
  base::Nanos activity_ = 0;
  uint64_t number_ = 0;  // of the open or last exchange
  std::function<void()> gone_;
  bool answering_ = false;  // a handler has a request and has not completed its answer
  bool streaming_ = false;
  bool chunked_ = false;
  bool head_only_ = false;
  bool http10_ = false;
  bool keep_alive_ = true;
  bool continue_sent_ = false;
  bool processing_ = false;
  bool reading_ = false;
  bool writing_ = false;
  bool closing_ = false;  // no further request; close when all is sent
  bool lingering_ = false;
  bool closed_ = false;
};

class Responder final : public HttpResponder {
 public:
  Responder(std::weak_ptr<Connection> connection, uint64_t number)
      : connection_(std::move(connection)), number_(number) {}
  ~Responder() override {
    if (const auto connection = connection_.lock()) connection->Abandon(number_);
  }
  Responder(const Responder&) = delete;
  Responder& operator=(const Responder&) = delete;

  void Send(HttpResponse response) override {  // NOLINT(performance-unnecessary-value-param)
    if (const auto connection = connection_.lock()) connection->Send(number_, response);
  }
  bool Start(HttpResponse head) override {
    const auto connection = connection_.lock();
    return connection && connection->StartStream(number_, head);
  }
  bool Write(std::string_view chunk) override {
    const auto connection = connection_.lock();
    return connection && connection->WriteStream(number_, chunk);
  }
  void End() override {
    if (const auto connection = connection_.lock()) connection->EndStream(number_);
  }
  void OnGone(std::function<void()> gone) override {
    if (const auto connection = connection_.lock()) connection->OnGone(number_, std::move(gone));
  }

 private:
  // Weak: an answer that a handler forgot must not keep a socket beyond its loop.
  std::weak_ptr<Connection> connection_;
  uint64_t number_;
};

void Connection::Start() {
  ErrorCode error;
  socket_.set_option(tcp::no_delay(true), error);
  socket_.non_blocking(true, error);
  const auto local = socket_.local_endpoint(error);
  if (!error) local_address_ = FormatHostPort(local.address().to_string(), local.port());
  activity_ = Now();
  StartRead();
}

void Connection::StartRead() {
  if (reading_ || closed_) return;
  if (!lingering_ && (answering_ || closing_) && buffer_.size() >= kReadAhead) return;
  reading_ = true;
  // Only for bytes to be there, not into the buffer: an answer that completes while the read is open takes
  // the next request out of the buffer, which moves the place a read would have been given.
  socket_.async_wait(tcp::socket::wait_read,
                     [self = shared_from_this()](const ErrorCode& error) { self->OnReadable(error); });
}

void Connection::OnReadable(ErrorCode error) {
  reading_ = false;
  if (closed_) return;
  const bool in_body = parser_ && parser_->is_header_done();
  size_t size = 0;
  if (!error) size = socket_.read_some(buffer_.prepare(in_body ? kBodyReadPiece : kReadPiece), error);
  if (error == asio::error::would_block || error == asio::error::interrupted) return StartRead();
  if (error) {
    // What was answered before still goes out; an answer that is open has lost its client.
    if (!answering_ && !lingering_ && out_sent_ < out_.size() && error == asio::error::eof) {
      closing_ = true;
      return;
    }
    Close();
    return;
  }
  // A head that drips in does not count as activity: only its first byte does. Nor what is read only to be
  // dropped.
  if (!lingering_ && (buffer_.size() == 0 || (parser_ && parser_->is_header_done()))) activity_ = Now();
  buffer_.commit(size);
  if (lingering_ || closing_) {
    buffer_.consume(buffer_.size());
  } else {
    Process();
  }
  StartRead();
}

void Connection::Process() {
  if (processing_) return;  // a handler answered at once: the loop below goes on
  processing_ = true;
  while (!answering_ && !closing_ && !closed_ && ParseRequest()) Dispatch();
  processing_ = false;
  if (buffer_.size() == 0 && buffer_.capacity() > kKeepCapacity) buffer_.shrink_to_fit();
}

bool Connection::ParseRequest() {
  if (!parser_) {
    if (buffer_.size() == 0) return false;
    parser_.emplace();
    parser_->eager(true);
    parser_->header_limit(static_cast<uint32_t>(std::min<size_t>(core_->options.max_header, UINT32_MAX)));
    parser_->body_limit(core_->options.max_body);
    continue_sent_ = false;
  }
  ErrorCode error;
  while (!parser_->is_done() && buffer_.size() > 0) {
    const size_t used = parser_->put(buffer_.data(), error);
    buffer_.consume(used);
    if (error) break;
  }
  if (error && error != http::error::need_more) {
    if (error == http::error::body_limit) {
      Refuse(413, "the request body is larger than " + std::to_string(core_->options.max_body) + " bytes");
    } else if (error == http::error::header_limit) {
      Refuse(431, "the request head is larger than " + std::to_string(core_->options.max_header) + " bytes");
    } else {
      Refuse(400, "this is no HTTP/1.1 request: " + error.message());
    }
    return false;
  }
  if (parser_->is_done()) return true;
  if (parser_->is_header_done() && !continue_sent_) {
    continue_sent_ = true;
    const auto expect = parser_->get().find(http::field::expect);
    if (expect != parser_->get().end() && parser_->get().version() >= 11 &&
        base::EqualsIgnoreCase({expect->value().data(), expect->value().size()}, "100-continue")) {
      out_ += "HTTP/1.1 100 Continue\r\n\r\n";
      Flush();
    }
  }
  return false;
}

void Connection::Dispatch() {
  auto message = parser_->release();
  parser_.reset();
  HttpRequest request;
  request.method = std::string(message.method_string());
  request.target = std::string(message.target());
  for (const auto& field : message) {
    request.headers.emplace_back(std::string(field.name_string()), std::string(field.value()));
  }
  request.body = std::move(message.body());
  request.local_address = local_address_;
  answering_ = true;
  streaming_ = false;
  head_only_ = request.method == "HEAD";
  http10_ = message.version() < 11;
  keep_alive_ = message.keep_alive();
  const uint64_t number = ++number_;
  const auto responder = std::make_shared<Responder>(weak_from_this(), number);
  std::string failure;
  try {
    core_->handler(std::move(request), responder);
    return;
  } catch (const std::exception& error) {
    failure = error.what();
  } catch (...) {
    failure = "unknown exception";
  }
  core_->log.Error("http handler failed", {{"target", std::string(message.target())}, {"error", failure}});
  if (IsOpen(number) && !streaming_) {
    Send(number, {.status = 500, .content_type = "text/plain", .body = "internal error\n"});
  } else {
    Abandon(number);
  }
}

void Connection::Refuse(int status, std::string_view why) {
  parser_.reset();
  answering_ = true;
  streaming_ = head_only_ = http10_ = false;
  keep_alive_ = false;
  HttpResponse response{.status = status, .content_type = "application/json"};
  response.body =
      R"({"error":{"message":)" + base::JsonString(why) + R"(,"code":)" + std::to_string(status) + "}}\n";
  Send(++number_, response);
}

void Connection::AppendHead(const HttpResponse& head, std::optional<size_t> length) {
  const std::string_view reason = [&] {
    const auto text = http::obsolete_reason(static_cast<http::status>(head.status));
    return std::string_view(text.data(), text.size());
  }();
  out_ += "HTTP/1.1 ";
  out_ += std::to_string(head.status);
  out_ += ' ';
  out_ += reason;
  out_ += "\r\n";
  if (!head.content_type.empty()) AppendHeader(out_, "content-type", head.content_type);
  for (const auto& [name, value] : head.headers) {
    // How the body is framed is ours to say.
    if (base::EqualsIgnoreCase(name, "content-length") || base::EqualsIgnoreCase(name, "transfer-encoding"))
      continue;
    if (base::EqualsIgnoreCase(name, "connection")) {
      if (base::EqualsIgnoreCase(value, "close")) keep_alive_ = false;
      continue;
    }
    AppendHeader(out_, name, value);
  }
  const bool has_body = head.status >= 200 && head.status != 204 && head.status != 304;
  chunked_ = false;
  if (length) {
    if (has_body) AppendHeader(out_, "content-length", std::to_string(*length));
  } else if (http10_) {
    keep_alive_ = false;  // the end of the connection is the end of the body
  } else if (has_body) {
    chunked_ = true;
    out_ += "transfer-encoding: chunked\r\n";
  }
  if (!has_body) head_only_ = true;
  if (!keep_alive_) {
    out_ += "connection: close\r\n";
  } else if (http10_) {
    out_ += "connection: keep-alive\r\n";
  }
  out_ += "\r\n";
}

void Connection::Send(uint64_t number, const HttpResponse& response) {
  if (!IsOpen(number) || streaming_) return;
  const auto self = shared_from_this();
  AppendHead(response, response.body.size());
  if (!head_only_) out_ += response.body;
  Complete();
}

bool Connection::StartStream(uint64_t number, const HttpResponse& head) {
  if (!IsOpen(number) || streaming_) return false;
  const auto self = shared_from_this();
  AppendHead(head, std::nullopt);
  streaming_ = true;
  activity_ = Now();
  Flush();
  return !closed_;
}

bool Connection::WriteStream(uint64_t number, std::string_view chunk) {
  if (!IsOpen(number) || !streaming_) return false;
  if (head_only_ || chunk.empty()) return true;  // an empty chunk would end the body
  const auto self = shared_from_this();
  if (out_.size() == out_sent_) activity_ = Now();
  if (chunked_) {
    char size[20];
    const auto end = std::to_chars(size, size + sizeof size, chunk.size(), 16).ptr;
    out_.append(size, end);
    out_ += "\r\n";
    out_ += chunk;
    out_ += "\r\n";
  } else {
    out_ += chunk;
  }
  Flush();
  if (!closed_ && out_.size() - out_sent_ > core_->options.max_unsent) Close();
  return !closed_;
}

void Connection::EndStream(uint64_t number) {
  if (!IsOpen(number) || !streaming_) return;
  const auto self = shared_from_this();
  if (chunked_ && !head_only_) out_ += "0\r\n\r\n";
  Complete();
}

void Connection::OnGone(uint64_t number, std::function<void()> gone) {
  if (IsOpen(number)) {
    gone_ = std::move(gone);
  } else if (closed_ && answering_ && number == number_) {
    asio::post(core_->loop.io(), std::move(gone));
  }
}

void Connection::Abandon(uint64_t number) {
  if (!IsOpen(number)) return;
  gone_ = nullptr;  // the handler gave up, not the client
  answering_ = false;
  Close();
}

void Connection::Complete() {
  answering_ = false;
  streaming_ = false;
  // Freed later: what it holds may be the handler that is calling us.
  if (gone_) asio::post(core_->loop.io(), [dropped = std::move(gone_)] {});
  gone_ = nullptr;
  activity_ = Now();
  if (!keep_alive_) closing_ = true;
  Flush();
  if (closed_ || closing_ || processing_) return;
  Process();  // pipelined requests
  StartRead();
}

void Connection::Flush() {
  if (writing_ || closed_) return;
  while (out_sent_ < out_.size()) {
    const ssize_t sent = ::send(socket_.native_handle(), out_.data() + out_sent_, out_.size() - out_sent_,
                                MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      out_sent_ += static_cast<size_t>(sent);
      continue;
    }
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      // Else the sent part of a long stream would stay in memory.
      if (out_sent_ > (1u << 20)) {
        out_.erase(0, out_sent_);
        out_sent_ = 0;
      }
      writing_ = true;
      socket_.async_wait(tcp::socket::wait_write, [self = shared_from_this()](const ErrorCode& error) {
        self->writing_ = false;
        if (self->closed_) return;
        if (error) return self->Close();
        self->activity_ = Now();
        self->Flush();
      });
      return;
    }
    Close();
    return;
  }
  out_sent_ = 0;
  out_.clear();
  if (out_.capacity() > kKeepCapacity) out_.shrink_to_fit();
  if (closing_ && !answering_ && !lingering_) Linger();
}

void Connection::Linger() {
  ErrorCode error;
  socket_.shutdown(tcp::socket::shutdown_send, error);
  lingering_ = true;
  activity_ = Now();
  buffer_.consume(buffer_.size());
  StartRead();
}

void Connection::Tick(base::Nanos now) {
  if (closed_) return;
  const base::Nanos silence = now - activity_;
  const base::Nanos limit = core_->options.idle_timeout;
  if (lingering_) {
    if (silence > std::min(limit, kLinger)) Close();
    return;
  }
  const bool unsent = out_sent_ < out_.size();
  if ((!answering_ || unsent) && silence > limit) Close();
}

void Connection::Close() {
  if (closed_) return;
  closed_ = true;
  ErrorCode error;
  socket_.close(error);
  if (gone_) asio::post(core_->loop.io(), std::move(gone_));
  gone_ = nullptr;
  core_->connections.erase(shared_from_this());
}

void StartTick(const std::shared_ptr<Core>& core) {
  const base::Nanos period =
      std::clamp<base::Nanos>(core->options.idle_timeout / 4, 5 * base::kMillisecond, base::kSecond);
  core->tick.After(period, [weak = std::weak_ptr(core)] {
    const auto core = weak.lock();
    if (!core || core->closed) return;
    const base::Nanos now = Now();
    const std::vector<std::shared_ptr<Connection>> all(core->connections.begin(), core->connections.end());
    for (const auto& connection : all) connection->Tick(now);
    if (!core->connections.empty()) StartTick(core);
  });
}

void Accept(const std::shared_ptr<Core>& core) {
  if (core->closed) return;
  core->acceptor.async_accept([core](const ErrorCode& error, tcp::socket socket) {
    if (core->closed) return;
    if (error) {
      if (core->accept_errors.Allow(Now())) {
        core->log.Warn("cannot accept a connection",
                       {{"port", std::to_string(core->options.port)}, {"error", error.message()}});
      }
      // Out of descriptors: trying at once would spin.
      core->retry.After(100 * base::kMillisecond, [weak = std::weak_ptr(core)] {
        if (const auto again = weak.lock()) Accept(again);
      });
      return;
    }
    if (core->connections.size() < core->options.max_connections) {
      const auto connection = std::make_shared<Connection>(core, std::move(socket));
      if (core->connections.empty()) StartTick(core);
      core->connections.insert(connection);
      connection->Start();
    }
    Accept(core);
  });
}

class Server final : public HttpServer {
 public:
  explicit Server(std::shared_ptr<Core> core) : core_(std::move(core)) {}
  ~Server() override { CloseAll(); }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  uint16_t port() const override { return core_->options.port; }
  void Close() override { CloseAll(); }

 private:
  void CloseAll() {
    if (core_->closed) return;
    core_->closed = true;
    core_->tick.Cancel();
    core_->retry.Cancel();
    ErrorCode error;
    core_->acceptor.close(error);
    const std::vector<std::shared_ptr<Connection>> all(core_->connections.begin(), core_->connections.end());
    for (const auto& connection : all) connection->Close();
  }

  std::shared_ptr<Core> core_;
};

}  // namespace

base::Result<std::unique_ptr<HttpServer>> HttpServer::Listen(HttpServerOptions options, Loop& loop,
                                                             HttpHandler handler, const base::Log& log) {
  const auto fail = [&](const ErrorCode& error) {
    return base::Fail(base::ErrorCode::kIo, "cannot listen on " + FormatHostPort(options.host, options.port) +
                                                ": " + base::ToLower(error.message()));
  };
  ErrorCode error;
  auto address = asio::ip::make_address(options.host, error);
  if (error) {
    // Only at start, so waiting for the resolver is fine.
    tcp::resolver resolver(loop.io());
    ErrorCode unresolved;
    const auto found = resolver.resolve(options.host, "", unresolved);
    if (unresolved || found.empty()) return fail(unresolved ? unresolved : error);
    address = found.begin()->endpoint().address();
  }
  auto core = std::make_shared<Core>(options, loop, std::move(handler), log);
  auto& acceptor = core->acceptor;
  tcp::endpoint endpoint(address, options.port);
  acceptor.open(endpoint.protocol(), error);
  if (error == asio::error::address_family_not_supported && options.host == "::") {
    // A kernel without IPv6: "::" then means all there is.
    endpoint = tcp::endpoint(tcp::v4(), options.port);
    acceptor.open(endpoint.protocol(), error);
  }
  if (error) return fail(error);
  acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (endpoint.address().is_v6()) acceptor.set_option(asio::ip::v6_only(false), error);
  acceptor.bind(endpoint, error);
  if (error) return fail(error);
  acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) return fail(error);
  core->options.port = acceptor.local_endpoint(error).port();
  if (error) return fail(error);
  loop.Post([core] { Accept(core); });
  return std::make_unique<Server>(std::move(core));
}

}  // namespace fairway::net
