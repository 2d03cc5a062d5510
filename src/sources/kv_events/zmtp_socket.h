// One connection to a ZeroMQ socket, which it dials or which dialled (zmtp_listener.h): shakes hands, then
// messages come until it ends. Who wants another connection makes another object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "net/loop.h"
#include "sources/kv_events/zmtp.h"

namespace fairway::sources::kv_events {

struct ZmtpSocketOptions {
  std::string host;          // an IP literal
  uint16_t port = 0;         // both: of whom to dial
  std::string type = "SUB";  // ours
  std::string first;         // sent when the handshake is done: subscriptions, a request
  base::Nanos open_timeout = 5 * base::kSecond;
  size_t max_message = 16 << 20;  // bytes; a longer one ends the connection
};

// Owned by its loop's thread.
class ZmtpSocket {
 public:
  enum class End : uint8_t {
    kRefused,   // nobody listens
    kClosed,    // or reset, or not reached
    kProtocol,  // what came is not ZMTP, too long, or more commands than anybody needs
  };
  // On the loop. `ended` is called at most once, as the last; each may destroy the socket. Messages that come
  // at once are given in turns of at most 64 KB, or one message, so that others on the loop get theirs; of one
  // connection 20,000 and 32 MiB in a second, what is more waits with who sends it.
  struct Handlers {
    std::function<void()> opened;
    std::function<void(const ZmtpMessage&)> message;
    std::function<void(End, const std::string& reason)> ended;
    // Memory that a message which is not whole yet has, whenever it is another than before. May be empty.
    std::function<void(size_t bytes)> held = {};
  };

  ZmtpSocket(net::Loop& loop, ZmtpSocketOptions options, Handlers handlers);
  // Takes over `descriptor`: of somebody who dialled, over IPv6 or not.
  ZmtpSocket(net::Loop& loop, int descriptor, bool ipv6, ZmtpSocketOptions options, Handlers handlers);
  ~ZmtpSocket();
  // Bytes that it has for what came and was not taken yet. On the loop, or while nothing comes.
  size_t memory() const;  // closes; no handler is called any more
  ZmtpSocket(const ZmtpSocket&) = delete;
  ZmtpSocket& operator=(const ZmtpSocket&) = delete;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace fairway::sources::kv_events
