// Where engines that dial publish to: one port for all of them (the reference's `zmqEndpoint`). Each connection
// is a ZmtpSocket that subscribes to everything; who is meant is said by a message's topic, which is its
// reader's affair.
//
// One process can have a port. Who finds it taken says so once and tries each second, as in Envoy's hot
// restart, where the old process has it until it ends.
//
// Bounded, whoever dials: kMostConnections, of them kMostOfHost from one address (that of an engine by itself,
// others by net::PeerShareOf); further ones take the place
// of the one that was silent for longest, of the same address or else of those that have most; connections that
// did not shake hands yet go first. Handshakes have
// 5 s. Of messages that are not whole yet kMostHeld bytes are kept: who holds most is closed then.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/log.h"
#include "net/loop.h"
#include "sources/kv_events/zmtp.h"

namespace fairway::sources::kv_events {

struct ZmtpListenerOptions {
  std::string host;  // an IP literal; "::" is all there is, IPv4 too
  uint16_t port = 0;
  base::Nanos open_timeout = 5 * base::kSecond;
  size_t max_message = 16 << 20;
  size_t most_connections = 4096;
  size_t most_of_host = 128;
  size_t most_held = 64 << 20;
};

// Owned by its loop's thread.
class ZmtpListener {
 public:
  // On the loop; none may destroy the listener. `connection` is a number of its own for each, that rises;
  // `from` the address it comes from.
  struct Handlers {
    // Whether an engine has that address.
    std::function<bool(const std::string& from)> known;
    std::function<void(uint64_t connection, const std::string& from, const ZmtpMessage&)> message;
    std::function<void(uint64_t connection)> ended;
    std::function<void()> refused;  // a connection that was closed on its peer, for one of the bounds
  };
  ZmtpListener(net::Loop& loop, ZmtpListenerOptions options, const base::Clock& clock, const base::Log& log,
               Handlers handlers);
  ~ZmtpListener();  // closes all; no handler is called any more
  ZmtpListener(const ZmtpListener&) = delete;
  ZmtpListener& operator=(const ZmtpListener&) = delete;

  bool listening() const;
  // Why it does not.
  const std::string& failure() const;
  size_t connections() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace fairway::sources::kv_events
