#include "sources/kv_events/zmtp_socket.h"

#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <utility>

#include "base/strings.h"

namespace fairway::sources::kv_events {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using Error = boost::system::error_code;

namespace {

constexpr size_t kReadBytes = 64 << 10;
// One that has more commands than this in a second means no good: a PING in each second is usual. Messages and
// bytes have a rate, beyond which they wait with who sends them, as all engines share the thread; an engine makes one
// message in each step, and some MB a second.
constexpr size_t kCommandsASecond = 100;
constexpr size_t kMessagesASecond = 20'000;
constexpr size_t kBytesASecond = 32 << 20;
// What a peer may make us answer before it takes the answers.
constexpr size_t kMaxUnsent = 4 << 10;

}  // namespace

// Kept alive by its handlers; `handlers` is taken away when nobody listens any more.
struct ZmtpSocket::Impl final : std::enable_shared_from_this<ZmtpSocket::Impl> {
  Impl(net::Loop& loop, ZmtpSocketOptions o, Handlers h)
      : options(std::move(o)), handlers(std::move(h)), socket(loop.io()), timer(loop), pause(loop) {}

  void Dial() {
    Error error;
    const auto address = asio::ip::make_address(options.host, error);
    timer.After(options.open_timeout, [self = weak_from_this()] {
      if (const auto alive = self.lock()) alive->Finish(End::kClosed, "no answer");
    });
    if (error) {
      timer.After(0, [self = weak_from_this()] {
        if (const auto alive = self.lock()) alive->Finish(End::kClosed, "not an address");
      });
      return;
    }
    socket.async_connect({address, options.port}, [self = shared_from_this()](const Error& failed) {
      if (self->done) return;
      if (failed)
        return self->Finish(failed == asio::error::connection_refused ? End::kRefused : End::kClosed,
                            base::ToLower(failed.message()));
      self->Begin();
    });
  }

  void TakeOver(int descriptor, bool ipv6) {
    timer.After(options.open_timeout, [self = weak_from_this()] {
      if (const auto alive = self.lock()) alive->Finish(End::kClosed, "no handshake");
    });
    Error error;
    socket.assign(ipv6 ? tcp::v6() : tcp::v4(), descriptor, error);
    if (!error) return Begin();
    ::close(descriptor);
    timer.After(0, [self = weak_from_this()] {
      if (const auto alive = self.lock()) alive->Finish(End::kClosed, "no socket");
    });
  }

  void Begin() {
    Error ignored;
    socket.non_blocking(true, ignored);
    KeepAlive();
    Send(ZmtpOpening(options.type));
    Read();
  }

  // A peer that vanished without a word is noticed within about half a minute.
  void KeepAlive() {
    const auto set = [this](int level, int option, int value) {
      static_cast<void>(setsockopt(socket.native_handle(), level, option, &value, sizeof value));
    };
    set(SOL_SOCKET, SO_KEEPALIVE, 1);
    set(IPPROTO_TCP, TCP_KEEPIDLE, 15);
    set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
    set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  }

  // Memory is taken when there is something to read: most connections are silent most of the time.
  void Read() {
    socket.async_wait(tcp::socket::wait_read, [self = shared_from_this()](const Error& error) {
      if (self->done) return;
      if (error) return self->Finish(End::kClosed, base::ToLower(error.message()));
      const size_t had = self->bytes.size();
      self->bytes.resize(had + kReadBytes);
      Error failed;
      const size_t got = self->socket.read_some(asio::buffer(self->bytes.data() + had, kReadBytes), failed);
      self->bytes.resize(had + got);
      self->NextSecond();
      self->bytes_now += got;
      if (failed && failed != asio::error::would_block)
        return self->Finish(End::kClosed, base::ToLower(failed.message()));
      self->Take();
      if (!self->done) self->ReadWhenDue();
    });
  }

  void NextSecond() {
    const base::Nanos now = base::SystemClock().Now();
    if (now - second < base::kSecond) return;
    second = now;
    bytes_now = messages_now = commands_now = 0;
  }

  void ReadWhenDue() {
    if (bytes_now < kBytesASecond && messages_now < kMessagesASecond) return Read();
    pause.After(base::kSecond - std::min(base::SystemClock().Now() - second, base::kSecond),
                [self = weak_from_this()] {
                  if (const auto alive = self.lock(); alive && !alive->done) alive->Read();
                });
  }

  void Take() {
    size_t at = 0;
    if (!greeted) {
      const ZmtpTaken greeting = CheckZmtpGreeting(bytes);
      if (greeting == ZmtpTaken::kBroken)
        return Finish(End::kProtocol, "it does not speak ZMTP 3 without encryption");
      if (greeting == ZmtpTaken::kIncomplete) return;
      greeted = true;
      at = kZmtpGreetingBytes;
    }
    ZmtpMessage message;
    size_t consumed = 0;
    while (!done) {
      const auto taken = TakeZmtp(std::string_view(bytes).substr(at), options.max_message, message, consumed);
      if (taken == ZmtpTaken::kIncomplete) break;
      if (taken == ZmtpTaken::kBroken) return Finish(End::kProtocol, "what came is no message, or too long");
      at += consumed;
      Handle(message);
    }
    if (done) return;
    // What a long message needed goes back with it, and what counts is what is kept, not what is used of it.
    if (at > 0) std::string(bytes, at).swap(bytes);
    if (std::exchange(told_held, bytes.capacity()) != bytes.capacity() && handlers.held)
      handlers.held(bytes.capacity());
  }

  void Handle(const ZmtpMessage& message) {
    if (!opened) {
      if (!message.command || !IsZmtpCommand(message.parts[0], "READY"))
        return Finish(End::kProtocol, "it does not want this kind of socket");
      opened = true;
      timer.Cancel();
      if (!options.first.empty()) Send(options.first);
      return handlers.opened();
    }
    if (!message.command) {
      ++messages_now;
      return handlers.message(message);
    }
    if (++commands_now > kCommandsASecond) return Finish(End::kProtocol, "too many commands");
    if (std::string pong = ZmtpPong(message.parts[0]); !pong.empty()) Send(std::move(pong));
  }

  void Send(std::string text) {
    if (sending.empty()) {
      sending = std::move(text);
      Write();
    } else if (unsent.size() < kMaxUnsent) {
      unsent += text;
    }
  }
  void Write() {
    asio::async_write(socket, asio::buffer(sending), [self = shared_from_this()](const Error& error, size_t) {
      if (self->done || error) return;  // reading says it, too
      self->sending = std::exchange(self->unsent, {});
      if (!self->sending.empty()) self->Write();
    });
  }

  void Finish(End end, const std::string& reason) {
    if (done) return;
    const auto self = shared_from_this();
    const auto ended = std::move(handlers.ended);
    Stop();
    if (ended) ended(end, reason);
  }
  // Called by a handler, too: the function that runs stays until it returns.
  void Stop() {
    done = true;
    timer.Cancel();
    pause.Cancel();
    Error error;
    socket.close(error);
  }

  const ZmtpSocketOptions options;
  Handlers handlers;
  tcp::socket socket;
  net::Timer timer, pause;
  std::string bytes;     // that came and were not taken
  size_t told_held = 0;  // of them
  std::string sending, unsent;
  base::Nanos second = 0;  // when these began to count
  size_t bytes_now = 0, messages_now = 0, commands_now = 0;
  bool greeted = false, opened = false, done = false;
};

ZmtpSocket::ZmtpSocket(net::Loop& loop, ZmtpSocketOptions options, Handlers handlers)
    : impl_(std::make_shared<Impl>(loop, std::move(options), std::move(handlers))) {
  impl_->Dial();
}
ZmtpSocket::ZmtpSocket(net::Loop& loop, int descriptor, bool ipv6, ZmtpSocketOptions options,
                       Handlers handlers)
    : impl_(std::make_shared<Impl>(loop, std::move(options), std::move(handlers))) {
  impl_->TakeOver(descriptor, ipv6);
}
ZmtpSocket::~ZmtpSocket() { impl_->Stop(); }
size_t ZmtpSocket::memory() const { return impl_->bytes.capacity(); }

}  // namespace fairway::sources::kv_events
