#include "net/http_connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/status.hpp>
#include <charconv>
#include <exception>
#include <utility>

#include "base/strings.h"
#include "net/address.h"

namespace fairway::net {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;
using Status = SocketStream::Status;

namespace {

constexpr size_t kReadPiece = 8 << 10;
constexpr size_t kBodyReadPiece = 64 << 10;
constexpr int kPiecesPerTurn = 8;
// Pipelined bytes taken in while an answer is open; reading goes on for as long, which is how a client's end
// is noticed.
constexpr size_t kReadAhead = 64 << 10;
// With more than this of its earlier answers unsent, a client's next request waits.
constexpr size_t kUnsentBeforeNext = 64 << 10;
// A closed connection's peer gets this long to read what we sent: closing at once, with bytes of it unread,
// would reset the connection and take the answer away (RFC 9112 section 9.6).
constexpr base::Nanos kLinger = 2 * base::kSecond;
constexpr size_t kKeepCapacity = 256 << 10;
// Texts up to here are put together, larger ones are kept as they were given.
constexpr size_t kSmall = 16 << 10;

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

void AppendChunkSize(std::string& out, size_t size) {
  char text[20];
  out.append(text, std::to_chars(text, text + sizeof text, size, 16).ptr);
  out += "\r\n";
}

std::string AddressText(const tcp::endpoint& endpoint) {
  return FormatHostPort(endpoint.address().to_string(), endpoint.port());
}

// Too much is unsent over all: who holds most goes, of two alike who takes longer.
void DropLargest(HttpCore& core) {
  while (core.held > core.options.max_held) {
    HttpConnection* largest = nullptr;
    for (const auto& connection : core.connections) {
      if (largest == nullptr || connection->unsent() > largest->unsent() ||
          (connection->unsent() == largest->unsent() &&
           connection->unsent_since() < largest->unsent_since())) {
        largest = connection.get();
      }
    }
    if (largest == nullptr || largest->unsent() == 0) return;
    largest->CloseFor(core.stats->unread);
  }
}

}  // namespace

HttpConnection::HttpConnection(std::shared_ptr<HttpCore> core, tcp::socket socket, std::string peer)
    : core_(std::move(core)),
      socket_(std::move(socket)),
      stream_(socket_.native_handle(), core_->options.tls),
      peer_(std::move(peer)) {}

HttpConnection::Use HttpConnection::use() const {
  if (unsent_ > 0 || next_) return Use::kUnread;
  return answering_ ? Use::kBusy : Use::kIdle;
}

bool HttpConnection::MayTake() const {
  return !answering_ && !closing_ && !closed_ && !handshaking_ && unsent_ <= kUnsentBeforeNext;
}

// ---- reading

void HttpConnection::Start() {
  ErrorCode error;
  socket_.set_option(tcp::no_delay(true), error);
  socket_.non_blocking(true, error);
  if (const auto local = socket_.local_endpoint(error); !error) local_address_ = AddressText(local);
  if (const auto remote = socket_.remote_endpoint(error); !error) peer_address_ = AddressText(remote);
  activity_ = Now();
  handshaking_ = stream_.tls();
  if (handshaking_) request_since_ = activity_;
  StartRead();
}

void HttpConnection::StartRead() {
  if (reading_ || closed_ || ended_) return;
  if (!lingering_ && !MayTake() && !handshaking_ && buffer_.size() >= kReadAhead) return;
  reading_ = true;
  // Only for bytes to be there, not into the buffer: an answer that completes while the read is open takes
  // the next request out of the buffer, which moves the place a read would have been given.
  const auto on_readable = [self = shared_from_this()](const ErrorCode& error) { self->OnReadable(error); };
  if (stream_.HasPending()) {
    asio::post(core_->loop.io(), [on_readable] { on_readable({}); });
  } else {
    socket_.async_wait(tcp::socket::wait_read, on_readable);
  }
}

void HttpConnection::OnReadable(const ErrorCode& error) {
  reading_ = false;
  if (closed_) return;
  if (error) return Close();
  if (handshaking_ && !ShakeHands()) return;
  for (int piece = 0; piece < kPiecesPerTurn; ++piece) {
    const bool in_body = parser_ && parser_->is_header_done();
    const auto area = buffer_.prepare(in_body ? kBodyReadPiece : kReadPiece);
    size_t got = 0;
    const Status status = stream_.Read(static_cast<char*>(area.data()), area.size(), got);
    if (status == Status::kWantWrite) return WaitToWrite();
    if (status == Status::kWantRead) break;
    if (status != Status::kOk) return OnEnd(status == Status::kClosed);
    // A head that drips in does not count as activity: only its first byte does. Nor what is read only to be
    // dropped.
    if (!lingering_ && (buffer_.size() == 0 || in_body)) activity_ = Now();
    buffer_.commit(got);
    if (lingering_ || closing_) {
      buffer_.consume(buffer_.size());
    } else if (!turn_posted_) {
      TakeRequest();
    }
    if (closed_) return;
    if (!stream_.HasPending() || buffer_.size() >= kReadAhead) break;
  }
  if (unsent_ > 0) Flush();  // TLS may have waited for the client's bytes
  StartRead();
}

// True when the connection is ready for requests.
bool HttpConnection::ShakeHands() {
  switch (stream_.Handshake()) {
    case Status::kOk:
      handshaking_ = false;
      request_since_ = 0;
      activity_ = Now();
      return true;
    case Status::kWantRead:
      StartRead();
      return false;
    case Status::kWantWrite:
      WaitToWrite();
      return false;
    default:
      if (uint64_t held = 0; core_->tls_errors.Allow(Now(), &held)) {
        core_->log.Warn(
            "a reader's TLS handshake failed",
            {{"peer", peer_address_}, {"error", stream_.error()}, {"others", std::to_string(held)}});
      }
      CloseFor(core_->stats->tls_failed);
      return false;
  }
}

// What was answered before still goes out, and what was sent before is still answered; an answer that a
// handler owes has lost its client.
void HttpConnection::OnEnd(bool in_order) {
  if (!in_order || answering_ || lingering_) return Close();
  if (unsent_ == 0 && buffer_.size() == 0) return Close();
  ended_ = true;
  NextTurn();
}

// ---- requests

void HttpConnection::NextTurn() {
  if (closed_ || turn_posted_ || (buffer_.size() == 0 && !ended_)) return;
  turn_posted_ = true;
  asio::post(core_->loop.io(), [self = shared_from_this()] {
    self->turn_posted_ = false;
    self->TakeRequest();
    self->StartRead();
  });
}

// One for each turn of the loop: a client that sends a thousand at once is not served before others.
void HttpConnection::TakeRequest() {
  if (!MayTake()) return;
  if (ParseRequest()) {
    Dispatch();
  } else if (ended_ && MayTake()) {
    closing_ = true;
    Flush();
  }
  if (buffer_.size() == 0 && buffer_.capacity() > kKeepCapacity) buffer_.shrink_to_fit();
}

bool HttpConnection::ParseRequest() {
  if (!parser_) {
    if (buffer_.size() == 0) return false;
    request_since_ = Now();
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
  const bool wrong = error && error != http::error::need_more;
  if (core_->options.get_only && (parser_->is_header_done() || error == http::error::body_limit)) {
    const http::verb method = parser_->get().method();
    if (method != http::verb::get && method != http::verb::head) {
      Refuse(405, "only GET and HEAD");
      return false;
    }
  }
  if (wrong) {
    RefuseFor(error);
    return false;
  }
  if (parser_->is_done()) return true;
  if (parser_->is_header_done() && !continue_sent_) {
    continue_sent_ = true;
    const auto expect = parser_->get().find(http::field::expect);
    if (expect != parser_->get().end() && parser_->get().version() >= 11 &&
        base::EqualsIgnoreCase({expect->value().data(), expect->value().size()}, "100-continue")) {
      Append("HTTP/1.1 100 Continue\r\n\r\n");
      Flush();
    }
  }
  return false;
}

void HttpConnection::RefuseFor(const ErrorCode& error) {
  if (error == http::error::body_limit) {
    Refuse(413, "the request body is larger than " + std::to_string(core_->options.max_body) + " bytes");
  } else if (error == http::error::header_limit) {
    Refuse(431, "the request head is larger than " + std::to_string(core_->options.max_header) + " bytes");
  } else {
    Refuse(400, "this is no HTTP/1.1 request: " + error.message());
  }
}

void HttpConnection::Dispatch() {
  auto message = parser_->release();
  parser_.reset();
  request_since_ = 0;
  HttpRequest request;
  request.method = std::string(message.method_string());
  request.target = std::string(message.target());
  for (const auto& field : message) {
    request.headers.emplace_back(std::string(field.name_string()), std::string(field.value()));
  }
  request.body = std::move(message.body());
  request.local_address = local_address_;
  request.peer_address = peer_address_;
  answering_ = true;
  streaming_ = false;
  head_only_ = request.method == "HEAD";
  http10_ = message.version() < 11;
  keep_alive_ = message.keep_alive();
  const uint64_t number = ++number_;
  const auto responder = MakeResponder(weak_from_this(), number);
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
  if (IsOpen(number) && !streaming_ && !next_) {
    Send(number, {.status = 500, .content_type = "text/plain", .body = "internal error\n"});
  } else {
    Abandon(number);
  }
}

// ---- answers

void HttpConnection::Refuse(int status, std::string_view why) {
  parser_.reset();
  request_since_ = 0;
  answering_ = true;
  streaming_ = head_only_ = http10_ = false;
  keep_alive_ = false;
  HttpResponse response{.status = status, .content_type = "application/json"};
  if (status == 405) response.headers.emplace_back("allow", "GET, HEAD");
  response.body =
      R"({"error":{"message":)" + base::JsonString(why) + R"(,"code":)" + std::to_string(status) + "}}\n";
  Send(++number_, std::move(response));
}

void HttpConnection::AppendHead(const HttpResponse& head, std::optional<size_t> length) {
  const auto reason = http::obsolete_reason(static_cast<http::status>(head.status));
  std::string out = "HTTP/1.1 " + std::to_string(head.status) + " ";
  out.append(reason.data(), reason.size());
  out += "\r\n";
  if (!head.content_type.empty()) AppendHeader(out, "content-type", head.content_type);
  for (const auto& [name, value] : head.headers) {
    // How the body is framed is ours to say.
    if (base::EqualsIgnoreCase(name, "content-length") || base::EqualsIgnoreCase(name, "transfer-encoding"))
      continue;
    if (base::EqualsIgnoreCase(name, "connection")) {
      if (base::EqualsIgnoreCase(value, "close")) keep_alive_ = false;
      continue;
    }
    AppendHeader(out, name, value);
  }
  const bool has_body = head.status >= 200 && head.status != 204 && head.status != 304;
  chunked_ = false;
  if (length) {
    if (has_body) AppendHeader(out, "content-length", std::to_string(*length));
  } else if (http10_) {
    keep_alive_ = false;  // the end of the connection is the end of the body
  } else if (has_body) {
    chunked_ = true;
    out += "transfer-encoding: chunked\r\n";
  }
  if (!has_body) head_only_ = true;
  if (!keep_alive_) {
    out += "connection: close\r\n";
  } else if (http10_) {
    out += "connection: keep-alive\r\n";
  }
  out += "\r\n";
  Append(out);
}

void HttpConnection::Count(size_t added) {
  unsent_ += added;
  core_->held += added;
  if (unsent_since_ == 0) unsent_since_ = Now();
}

void HttpConnection::Append(std::string_view text) {
  if (text.empty()) return;
  if (out_.empty() || out_.back().size() >= kSmall) out_.emplace_back();
  out_.back() += text;
  Count(text.size());
}

void HttpConnection::AppendOwned(std::string text) {
  if (text.size() < kSmall) return Append(text);
  const size_t size = text.size();
  out_.push_back(std::move(text));
  Count(size);
}

void HttpConnection::AppendChunk(std::string chunk) {
  if (!chunked_) return AppendOwned(std::move(chunk));
  std::string size;
  AppendChunkSize(size, chunk.size());
  Append(size);
  AppendOwned(std::move(chunk));
  Append("\r\n");
}

void HttpConnection::Send(uint64_t number, HttpResponse response) {
  if (!IsOpen(number) || streaming_ || next_) return;
  const auto self = shared_from_this();
  if (!response.next) {
    AppendHead(response, response.body.size());
    if (!head_only_) AppendOwned(std::move(response.body));
    return Complete();
  }
  AppendHead(response, std::nullopt);
  if (head_only_) return Complete();
  next_ = std::move(response.next);
  Flush();
}

// The next piece of an answer that is made piece by piece.
void HttpConnection::Fill() {
  if (closed_ || !next_) return;
  std::string piece;
  try {
    piece = next_();
  } catch (const std::exception& error) {
    core_->log.Error("http handler failed", {{"error", error.what()}});
    return Close();  // an answer that is cut does not look complete
  }
  if (!piece.empty()) {
    AppendChunk(std::move(piece));
    Flush();
    return DropLargest(*core_);
  }
  next_ = nullptr;
  if (chunked_) Append("0\r\n\r\n");
  Complete();
}

bool HttpConnection::StartStream(uint64_t number, const HttpResponse& head) {
  if (!IsOpen(number) || streaming_ || next_) return false;
  const auto self = shared_from_this();
  AppendHead(head, std::nullopt);
  streaming_ = true;
  activity_ = Now();
  Flush();
  return !closed_;
}

bool HttpConnection::WriteStream(uint64_t number, std::string_view chunk) {
  if (!IsOpen(number) || !streaming_) return false;
  if (head_only_ || chunk.empty()) return true;  // an empty chunk would end the body
  const auto self = shared_from_this();
  if (unsent_ == 0) activity_ = Now();
  if (chunked_) {
    std::string framed;
    framed.reserve(chunk.size() + 24);
    AppendChunkSize(framed, chunk.size());
    framed.append(chunk).append("\r\n");
    AppendOwned(std::move(framed));
  } else {
    Append(chunk);
  }
  Flush();
  if (!closed_ && unsent_ > core_->options.max_unsent) CloseFor(core_->stats->unread);
  if (!closed_) DropLargest(*core_);
  return !closed_;
}

void HttpConnection::EndStream(uint64_t number) {
  if (!IsOpen(number) || !streaming_) return;
  const auto self = shared_from_this();
  if (chunked_ && !head_only_) Append("0\r\n\r\n");
  Complete();
}

void HttpConnection::OnGone(uint64_t number, std::function<void()> gone) {
  if (IsOpen(number)) {
    gone_ = std::move(gone);
  } else if (closed_ && answering_ && number == number_) {
    asio::post(core_->loop.io(), std::move(gone));
  }
}

void HttpConnection::Abandon(uint64_t number) {
  if (!IsOpen(number) || next_) return;
  gone_ = nullptr;  // the handler gave up, not the client
  answering_ = false;
  Close();
}

void HttpConnection::Complete() {
  answering_ = false;
  streaming_ = false;
  // Freed later: what it holds may be the handler that is calling us.
  if (gone_) asio::post(core_->loop.io(), [dropped = std::move(gone_)] {});
  gone_ = nullptr;
  activity_ = Now();
  if (!keep_alive_) closing_ = true;
  Flush();
  if (!closed_) DropLargest(*core_);
  if (closed_ || closing_) return;
  NextTurn();  // pipelined requests
  StartRead();
}

// ---- writing

void HttpConnection::Flush() {
  if (writing_ || closed_ || handshaking_) return;
  while (unsent_ > 0) {
    iovec pieces[8];
    size_t count = 0;
    size_t offset = out_offset_;
    for (auto text = out_.begin(); text != out_.end() && count < std::size(pieces); ++text) {
      pieces[count++] = {text->data() + offset, text->size() - offset};
      offset = 0;
    }
    size_t sent = 0;
    const Status status = stream_.Write(pieces, count, sent);
    if (status == Status::kWantRead) return;  // goes on when the client's bytes are there
    if (status == Status::kWantWrite) return WaitToWrite();
    if (status != Status::kOk) return Close();
    Sent(sent);
  }
  if (next_) {
    asio::post(core_->loop.io(), [self = shared_from_this()] { self->Fill(); });
  } else if (closing_ && !answering_ && !lingering_) {
    Linger();
  }
}

void HttpConnection::Sent(size_t bytes) {
  unsent_ -= bytes;
  core_->held -= bytes;
  out_offset_ += bytes;
  while (out_.size() > 1 && out_offset_ >= out_.front().size()) {
    out_offset_ -= out_.front().size();
    out_.pop_front();
  }
  if (unsent_ > 0) return;
  out_offset_ = 0;
  if (out_.front().capacity() > kSmall) {
    out_.clear();
  } else {
    out_.front().clear();
  }
  if (!next_) unsent_since_ = 0;
}

void HttpConnection::WaitToWrite() {
  if (writing_) return;
  writing_ = true;
  socket_.async_wait(tcp::socket::wait_write, [self = shared_from_this()](const ErrorCode& error) {
    self->writing_ = false;
    if (self->closed_) return;
    if (error) return self->Close();
    if (self->handshaking_ && !self->ShakeHands()) return;
    self->activity_ = Now();
    self->Flush();
    self->NextTurn();
    self->StartRead();
  });
}

void HttpConnection::Linger() {
  stream_.CloseWrite();
  lingering_ = true;
  activity_ = Now();
  buffer_.consume(buffer_.size());
  if (ended_) return Close();
  StartRead();
}

// ---- the end

void HttpConnection::Tick(base::Nanos now) {
  if (closed_) return;
  const auto& options = core_->options;
  const base::Nanos silence = now - activity_;
  if (lingering_) {
    if (silence > std::min(options.idle_timeout, kLinger)) Close();
    return;
  }
  if (request_since_ != 0) {
    const bool in_body = parser_ && parser_->is_header_done();
    const base::Nanos limit =
        in_body ? options.request_timeout : std::min(options.request_timeout, options.idle_timeout);
    if (now - request_since_ > limit) return CloseFor(core_->stats->timed_out);
  }
  const bool late = unsent_since_ != 0 && !streaming_ && now - unsent_since_ > options.answer_timeout;
  if (late || (unsent_ > 0 && silence > options.idle_timeout)) return CloseFor(core_->stats->unread);
  if (!answering_ && silence > options.idle_timeout) {
    if (request_since_ != 0) return CloseFor(core_->stats->timed_out);
    Close();  // kept alive for long enough
  }
}

void HttpConnection::CloseFor(std::atomic<uint64_t>& count) {
  if (closed_) return;
  count.fetch_add(1, std::memory_order_relaxed);
  Close();
}

void HttpConnection::Close() {
  if (closed_) return;
  const auto self = shared_from_this();
  closed_ = true;
  core_->held -= unsent_;
  unsent_ = 0;
  out_.clear();
  ErrorCode error;
  socket_.close(error);
  if (gone_) asio::post(core_->loop.io(), std::move(gone_));
  gone_ = nullptr;
  next_ = nullptr;
  core_->connections.erase(self);
  core_->stats->connections.store(core_->connections.size(), std::memory_order_relaxed);
}

}  // namespace fairway::net
