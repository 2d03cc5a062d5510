// The socket side of a connection: events, reading, writing, time and memory. The HTTP/2 side:
// grpc_streams.cc.
#include "net/grpc_connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <boost/asio/post.hpp>
#include <utility>

#include "net/address.h"

namespace fairway::net {
namespace {

// A connection's turn is over after so much work, in microseconds or so: a frame 1, a call 4, a message 2, a
// KiB of data 1; or when that took longer. Whatever is left waits for the turns of all others that have work:
// who comes with little waits for one turn of each.
constexpr size_t kWorkPerTurn = 256;
constexpr base::Nanos kLongestTurn = base::kMillisecond;
constexpr uint64_t kWritePerTurn = 1 << 20;
// As finely as work is told apart.
constexpr size_t kFramesAtOnce = 32;
// Bytes that are read at a time, to begin with and at least: what is left of them at a turn's end is kept.
constexpr size_t kFirstRead = 16 << 10;
constexpr size_t kLeastRead = 4 << 10;
// How long a closing connection waits for the client to take the last bytes: closing at once would make the
// kernel reset the connection, and the reset may overtake them.
constexpr base::Nanos kLinger = base::kSecond;
// ... and what it reads meanwhile at the most.
constexpr size_t kMaxLinger = 1 << 20;
// Frames that wait to be sent while the socket takes nothing: then reading stops.
constexpr size_t kMaxControlFrames = 64;
// What is kept of the last call's headers for the next.
constexpr size_t kMaxKeptHeaders = 8 << 10;
// Each of a client's SETTINGS may walk all its open streams; gateways send them once.
constexpr double kSettingsBurst = 20;
constexpr double kSettingsRate = 1;
// Frames that carry nothing: empty DATA, PRIORITY, WINDOW_UPDATE, PING, resets of what is closed, unknown
// ones. Each call and each frame of ours pays for some (GrpcConnection::OnSent, SendData).
constexpr double kIdleFrameBurst = 10'000;
constexpr double kIdleFrameRate = 200;

std::string PeerOf(int descriptor) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  char text[INET6_ADDRSTRLEN] = "?";
  if (::getpeername(descriptor, reinterpret_cast<sockaddr*>(&address), &size) != 0) return text;
  if (address.ss_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(&address);
    inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
    return FormatHostPort(text, ntohs(v4->sin_port));
  }
  if (address.ss_family == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&address);
    inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
    return FormatHostPort(text, ntohs(v6->sin6_port));
  }
  return "local";
}

// +-10 %, so that clients that connected together do not all come back together.
base::Nanos Spread(base::Nanos age, uint64_t serial) {
  const auto share =
      static_cast<double>((serial * 0x9E3779B97F4A7C15ull) >> 40) / static_cast<double>(1 << 24);
  return static_cast<base::Nanos>(static_cast<double>(age) * (0.9 + 0.2 * share));
}

}  // namespace

GrpcConnection::GrpcConnection(GrpcWorker& worker, int descriptor, const PeerAddress& peer,
                               const TlsContext& tls)
    : worker_(worker),
      shared_(worker.shared()),
      descriptor_(worker.loop().io()),
      peer_(peer),
      port_(LocalPort(descriptor)),
      tls_(tls),
      stream_(descriptor, tls),
      out_(tls != nullptr),
      read_size_(kFirstRead),
      handshaken_(tls == nullptr),
      opened_(shared_->clock.Now()),
      max_age_(Spread(shared_->options.max_connection_age, worker.NextSerial())),
      now_(opened_),
      last_read_(opened_),
      resets_(shared_->options.reset_burst, shared_->options.reset_rate, opened_),
      settings_(kSettingsBurst, kSettingsRate, opened_),
      idle_frames_(kIdleFrameBurst, kIdleFrameRate, opened_) {
  const int one = 1;
  ::setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  boost::system::error_code error;
  descriptor_.assign(descriptor, error);
  if (error) {
    ::close(descriptor);
    failing_ = true;
  }
  OpenSession();
}

GrpcConnection::~GrpcConnection() { FAIRWAY_CHECK(closed_ && calls_.front() == nullptr); }

void GrpcConnection::Start() {
  SetIdle(true);
  Event([] {});
}

// Whatever happens on a connection happens in here: afterwards what is to be sent is sent, and a connection
// that failed is closed, when nothing of ours or of nghttp2's is on the stack any more.
template <typename Body>
void GrpcConnection::Event(Body body) {
  if (closed_) return;
  in_event_ = true;
  now_ = shared_->clock.Now();
  work_ = 0;
  turn_written_ = out_.written();
  body();
  if (!failing_) ShedIfOver();
  if (!failing_) Pump();
  PublishHeld();
  in_event_ = false;
  if (failing_) return Close();
  if (!reading_) ReadOn();
}

// Asio tells when; the calls themselves are ours: Asio could neither gather pieces by reference under its own
// TLS nor share one read buffer between connections.
void GrpcConnection::WaitReadable() {
  reading_ = true;
  descriptor_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                         [self = shared_from_this()](const boost::system::error_code& error) {
                           self->reading_ = false;
                           if (!error) self->OnReadable();
                         });
}

void GrpcConnection::WaitWritable() {
  if (waiting_write_) return;
  waiting_write_ = true;
  descriptor_.async_wait(boost::asio::posix::stream_descriptor::wait_write,
                         [self = shared_from_this()](const boost::system::error_code& error) {
                           self->waiting_write_ = false;
                           if (!error)
                             self->Event([&self] {
                               if (!self->handshaken_) {
                                 self->Handshake();
                               } else if (std::exchange(self->read_wants_write_, false)) {
                                 self->ReadSome();
                               }
                             });
                         });
}

void GrpcConnection::OnReadable() {
  Event([this] {
    if (Handshake()) ReadSome();
  });
}

// Waits for more to read, unless the client has to read first.
void GrpcConnection::ReadOn() {
  if (Choked()) return;  // the event in which the socket takes bytes comes by here again
  if (!shedding_ && unread_.empty() && !stream_.HasPending()) return WaitReadable();
  reading_ = true;  // there is more to do, of which the socket would not say
  boost::asio::post(descriptor_.get_executor(), [self = shared_from_this()] {
    self->reading_ = false;
    self->OnReadable();
  });
}

bool GrpcConnection::TurnIsOver() const {
  return work_ >= kWorkPerTurn || shared_->clock.Now() - now_ >= kLongestTurn;
}

// The client makes us answer, and does not read: what it sends stays in its socket until it does. (One whose
// windows are closed reads: that is held per call, see OnData.)
bool GrpcConnection::Choked() const {
  return !lingering_ && !out_.empty() && !blocked_on_read_ &&
         (calmed_ || nghttp2_session_get_outbound_queue_size(session_) > kMaxControlFrames);
}

// Scanners fail, too, and are nobody's mistake. Who speaks no TLS at all is a gateway that was set up so: all of
// its calls fail.
void GrpcConnection::NoteFailedHandshake(std::string_view error) {
  const std::string peer = PeerOf(descriptor_.native_handle());
  const bool plain = error.find("wrong version number") != std::string_view::npos ||
                     error.find("http request") != std::string_view::npos;
  uint64_t held_back = 0;
  if (plain && shared_->abort_limit.Allow(shared_->clock.Now(), &held_back)) {
    shared_->log.Warn(
        "a client speaks without TLS to a port with TLS: it needs a TLS transport socket, or this port "
        "has to serve without TLS",
        {{"peer", peer}, {"held_back", std::to_string(held_back)}});
    return;
  }
  shared_->log.Debug("TLS handshake failed", {{"peer", peer}, {"error", std::string(error)}});
}

bool GrpcConnection::Handshake() {
  if (handshaken_) return true;
  switch (stream_.Handshake()) {
    case SocketStream::Status::kOk:
      break;
    case SocketStream::Status::kWantRead:
      return false;
    case SocketStream::Status::kWantWrite:
      WaitWritable();
      return false;
    case SocketStream::Status::kClosed:
    case SocketStream::Status::kFailed:
      NoteFailedHandshake(stream_.error());
      Fail();
      return false;
  }
  // A client that sends no ALPN at all is taken at its word; one that sends it without h2 was refused by the
  // context, unless that was made for other protocols too.
  if (const std::string_view protocol = stream_.Protocol(); !protocol.empty() && protocol != "h2") {
    Abort("the client chose another protocol than HTTP/2");
    return false;
  }
  handshaken_ = true;
  return true;
}

void GrpcConnection::ReadSome() {
  if (shedding_ && !lingering_) return;  // it holds too much to be read further
  do {
    if (!TakeUnread() || !ReadFurther()) return;
  } while (!failing_ && !TurnIsOver());
}

// What was left by the turns before. False: some of it still is.
bool GrpcConnection::TakeUnread() {
  if (unread_.empty()) return true;
  unread_at_ += TakeRead(std::string_view(unread_).substr(unread_at_));
  if (!failing_ && unread_at_ < unread_.size()) return false;
  std::string().swap(unread_);
  unread_at_ = 0;
  return !failing_ && !Choked() && !TurnIsOver();
}

// False: there is nothing more to read for now.
bool GrpcConnection::ReadFurther() {
  char* const buffer = worker_.read_buffer();
  size_t got = 0;
  switch (stream_.Read(buffer, read_size_, got)) {
    case SocketStream::Status::kOk:
      break;
    case SocketStream::Status::kWantRead:
      return false;
    case SocketStream::Status::kWantWrite:
      read_wants_write_ = true;
      WaitWritable();
      return false;
    case SocketStream::Status::kClosed:
    case SocketStream::Status::kFailed:
      Fail();
      return false;
  }
  if (lingering_) lingered_ += got;
  if (lingered_ > kMaxLinger) {
    Fail();
    return false;
  }
  const bool more = got == read_size_ || stream_.tls();
  const size_t taken = TakeRead({buffer, got});
  if (failing_) return false;
  if (taken < got) {
    unread_.assign(buffer + taken, got - taken);
    read_size_ = std::max(kLeastRead, read_size_ / 4);
  } else if (got == read_size_) {
    read_size_ = std::min(GrpcWorker::kReadBuffer, 2 * read_size_);
  }
  return more && taken == got && !Choked();
}

// Some frames after the other, until the turn is over. Returns how much was taken.
size_t GrpcConnection::TakeRead(std::string_view bytes) {
  last_read_ = now_;
  pinged_ = false;
  size_t taken = 0;
  while (taken < bytes.size() && !failing_) {
    if (lingering_) return bytes.size();  // nothing more is heard from it
    if (Choked() || (taken > 0 && TurnIsOver())) break;
    const std::string_view rest = bytes.substr(taken);
    const std::string_view slice = rest.substr(0, cutter_.Take(rest, kFramesAtOnce));
    taken += slice.size();
    Receive(slice);
    if (!failing_ && nghttp2_session_get_outbound_queue_size(session_) > kMaxControlFrames) Pump();
  }
  return taken;
}

void GrpcConnection::Receive(std::string_view bytes) {
  if (in_headers_) header_input_ += bytes.size();
  const ssize_t n =
      nghttp2_session_mem_recv(session_, reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  if (!in_headers_) {
    header_input_ = 0;
    if (request_.capacity() > kMaxKeptHeaders) request_ = {};
  }
  if (n >= 0) return;
  // Tell the client why, as far as the socket takes it now.
  const bool flood = n == NGHTTP2_ERR_FLOODED;
  nghttp2_session_terminate_session(session_, flood ? NGHTTP2_ENHANCE_YOUR_CALM : NGHTTP2_PROTOCOL_ERROR);
  RunDueEnds();
  FlushAndFill();
  Abort(n == NGHTTP2_ERR_BAD_CLIENT_MAGIC ? "the client does not speak HTTP/2"
                                          : nghttp2_strerror(static_cast<int>(n)));
}

void GrpcConnection::Pump() {
  if (!handshaken_) return;
  do {
    RunDueEnds();
    if (lingering_ || failing_) return;
    if (!FlushAndFill()) return;
  } while (!due_.empty() && !failing_);
  if (!failing_ && nghttp2_session_want_read(session_) == 0 && nghttp2_session_want_write(session_) == 0)
    Linger();
}

// True: all is written. False: the socket takes no more, or the connection failed.
bool GrpcConnection::FlushAndFill() {
  for (;;) {
    const auto status = out_.Flush(stream_);
    blocked_on_read_ = status == OutputQueue::Status::kBlockedOnRead;
    if (status == OutputQueue::Status::kEmpty || out_.written() - written_then_ >= kGrpcProgress) {
      written_then_ = out_.written();
      written_at_ = now_;
    }
    switch (status) {
      case OutputQueue::Status::kEmpty:
        break;
      case OutputQueue::Status::kBlocked:
        WaitWritable();
        return false;
      case OutputQueue::Status::kBlockedOnRead:  // the next readable event pumps again
        return false;
      case OutputQueue::Status::kFailed:
        Fail();
        return false;
    }
    while (!out_.full()) {
      const uint8_t* data = nullptr;
      const ssize_t n = nghttp2_session_mem_send(session_, &data);
      if (n < 0) {
        Abort(nghttp2_strerror(static_cast<int>(n)));
        return false;
      }
      if (n == 0) break;
      out_.Copy({reinterpret_cast<const char*>(data), static_cast<size_t>(n)});
    }
    if (out_.empty()) return true;
    if (out_.written() - turn_written_ >= kWritePerTurn) {  // a reader as fast as we are: others have a turn
      WaitWritable();
      return false;
    }
  }
}

// Says goodbye and reads on until the client closes too.
void GrpcConnection::Linger() {
  SetIdle(false);
  lingering_ = true;
  linger_until_ = shared_->clock.Now() + kLinger;
  stream_.CloseWrite();
  DropCalls();
}

void GrpcConnection::Touch() {
  if (in_event_ || pump_posted_ || closed_) return;
  pump_posted_ = true;
  boost::asio::post(descriptor_.get_executor(), [self = shared_from_this()] {
    self->pump_posted_ = false;
    self->Event([] {});
  });
}

void GrpcConnection::Abort(std::string_view reason) {
  if (failing_ || closed_) return;
  failing_ = true;
  NoteAbort(reason);
  Touch();
}

void GrpcConnection::NoteAbort(std::string_view reason) {
  ++shared_->stats.aborted_connections;
  uint64_t held_back = 0;
  if (shared_->abort_limit.Allow(shared_->clock.Now(), &held_back)) {
    shared_->log.Warn("gRPC connection closed", {{"peer", PeerOf(descriptor_.native_handle())},
                                                 {"reason", std::string(reason)},
                                                 {"held_back", std::to_string(held_back)}});
  }
}

void GrpcConnection::Tick(base::Nanos now) {
  Event([&] {
    if (lingering_) {
      if (now >= linger_until_) Fail();
    } else if (TickConnection(now) && handshaken_) {
      Examine(now);
    }
  });
}

void GrpcConnection::ExamineLater() {
  boost::asio::post(descriptor_.get_executor(), [self = shared_from_this()] {
    self->Event([&self] {
      if (!self->lingering_) self->ExamineSome(self->now_);
    });
  });
}

// False: the connection ends.
bool GrpcConnection::TickConnection(base::Nanos now) {
  const GrpcServerOptions& options = shared_->options;
  const char* reason = nullptr;
  const bool late = options.handshake_timeout > 0 && now - opened_ > options.handshake_timeout;
  if (late && !handshaken_) {
    reason = "no TLS handshake in time";
  } else if (late && !greeted_) {
    reason = "no HTTP/2 preface in time";
  } else if (late && !acknowledged_) {
    reason = "our SETTINGS are not acknowledged";
  } else if (in_headers_ && options.handshake_timeout > 0 &&
             now - headers_since_ > options.handshake_timeout) {
    reason = "a block of headers does not end";
  } else if (!out_.empty() && options.stall_timeout > 0 && now - written_at_ > options.stall_timeout) {
    reason = "the client does not read";
  }
  if (reason == nullptr && handshaken_ && options.keepalive > 0 && !Choked()) {
    const base::Nanos silence = now - last_read_;
    if (silence > 2 * options.keepalive) {
      reason = "the client is silent";
    } else if (silence > options.keepalive && !pinged_) {
      pinged_ = true;
      nghttp2_submit_ping(session_, NGHTTP2_FLAG_NONE, nullptr);
    }
  }
  if (reason != nullptr) {
    Abort(reason);
    return false;
  }
  if (handshaken_ && max_age_ > 0 && now - opened_ > max_age_) noticed_ ? SendGoAway() : SendGoAwayNotice();
  return true;
}

void GrpcConnection::OnDeadline(int32_t stream) {
  Event([&] {
    State* state = Find(stream);
    if (state == nullptr) return;
    state->deadline = 0;  // the worker has forgotten it
    End(*state, GrpcStatus::kDeadlineExceeded, "the deadline of the call has passed", NGHTTP2_CANCEL);
    state->reader.Drop();
    CountInput(*state);
  });
}

void GrpcConnection::SendGoAwayNotice() {
  if (noticed_ || closed_ || lingering_) return;
  noticed_ = true;
  nghttp2_submit_shutdown_notice(session_);
  Touch();
}

void GrpcConnection::SendGoAway() {
  if (gone_away_ || closed_ || lingering_) return;
  noticed_ = gone_away_ = true;
  nghttp2_submit_goaway(session_, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(session_),
                        NGHTTP2_NO_ERROR, nullptr, 0);
  Touch();
}

void GrpcConnection::SendAway() {
  Event([this] {
    SetIdle(false);
    noticed_ = gone_away_ = true;
    nghttp2_session_terminate_session(session_, NGHTTP2_NO_ERROR);
    if (!handshaken_) Fail();
  });
}

void GrpcConnection::SetIdle(bool idle) {
  if (idle == idle_at_.has_value() || closed_ || lingering_) return;
  if (idle) {
    idle_since_ = shared_->clock.Now();
    idle_at_ = worker_.AddIdle(*this);
  } else {
    worker_.RemoveIdle(*std::exchange(idle_at_, std::nullopt));
  }
}

void GrpcConnection::Close() {
  if (closed_) return;
  const auto self = shared_from_this();
  SetIdle(false);
  closed_ = true;
  const bool dropping = lingering_ && calls_.front() != nullptr;
  if (!dropping) DropCalls();
  nghttp2_session_del(session_);
  session_ = nullptr;
  out_ = OutputQueue(true);
  std::string().swap(unread_);
  PublishHeld();
  boost::system::error_code ignored;
  descriptor_.close(ignored);
  if (calls_.front() == nullptr) worker_.Remove(*this);
}

void GrpcConnection::CloseNow() {
  const auto self = shared_from_this();
  Close();
  DropSome(calls_.size());
}

}  // namespace fairway::net
