// Other replicas of this picker: what they know is asked for and heard, and they hear what this one knows.
//
// Each replica asks each other one; nobody can tell what was not asked for, and only addresses that a name or
// list of the operator's leads to are asked, and answered. Where authorities are given, both sides show a
// certificate of theirs instead. What is said is proto/peers.proto over HTTP/1.1.
//
// Whatever a peer does or does not do: connecting takes 2 s at most, a stream that is silent for `silence` has
// ended, messages have kMostMessage, bytes and messages a rate, a snapshot its bytes and seconds, one address
// kMostOfHost connections (that of a peer by itself, others by net::PeerShareOf), and there are kMostPeers. A peer whose
// stream ended, or that no name leads to any more, is gone (Content::gone) and is tried again each second.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/result.h"
#include "net/address.h"
#include "net/loop.h"
#include "sources/peers/messages.h"

namespace fairway::sources::peers {

inline constexpr size_t kMostPeers = 32;
inline constexpr size_t kMostOfHost = 16;  // connections of one address, to what others ask

// What the settings are called where they were given: errors begin with it.
struct SettingNames {
  std::string peers = "--peers";
  std::string port = "--peer-port";
  std::string cert_path = "--cert-path";
  std::string ca_file = "--peer-ca-file";
};

struct Options {
  // As ParsePeer reads them: a name stands for all its addresses, and may lead to this replica, too.
  std::vector<std::string> peers;
  std::string host = "::";    // to listen on
  uint16_t port = 9004;       // 0: a free one; also of peers that name none
  bool keeps_trying = false;  // where the port is taken at the start; else that is an error
  bool secure = true;         // TLS
  std::string cert_path;      // folder with tls.crt and tls.key; "": a self-signed one
  std::string ca_file;  // authorities (PEM) one of which must have signed the other side's; "": any is good
  base::Nanos interval = 20 * base::kMillisecond;  // between two messages
  base::Nanos silence = base::kSecond;
  base::Nanos look_up = 5 * base::kSecond;  // names, again and again
  base::Nanos again = base::kSecond;        // a peer that was not there
  size_t bytes_a_second = 64 << 20;         // of a peer; the hashes of 2 GB of prompts
  size_t messages_a_second = 1000;          // of a peer; it needs one for each `interval` and 256 KiB
  size_t snapshot_bytes = 64 << 20;
  base::Nanos snapshot_time = 10 * base::kSecond;
  SettingNames names;
  uint64_t replica = 0;  // a number of this one's own; REQUIRES: not 0
};

// "host:port", "host" or "ip"; `port`: of those that name none. The error says what would be right.
base::Result<net::HostPort> ParsePeer(const std::string& text, uint16_t port);

// What is told and what is done with what is heard. All on the loop.
struct Content {
  // Writes what changed since the last call.
  std::function<void(MessageWriter&)> changes;
  // Writes all, as of the last call of `changes`.
  std::function<void(MessageWriter&)> all;
  // Whether anybody listens.
  std::function<void(bool)> listened;
  // `peer` is a number of this side's own, another one each time that a peer is heard anew: what a peer says of
  // itself, its number included, can be anybody's.
  std::function<void(uint64_t peer, const Message&)> heard;
  std::function<void(uint64_t peer)> gone;
  // A snapshot in parts: false after the last.
  std::function<std::function<bool(MessageWriter&)>()> snapshot;
  // A snapshot is wanted now; asked each second until one came, or kSnapshotTries failed.
  std::function<bool()> wants_snapshot;
  std::function<void(const Message&)> took;
};

// Created and destroyed on its loop.
class Peers {
 public:
  static constexpr int kSnapshotTries = 3;

  // The error names the setting and the reason.
  static base::Result<std::unique_ptr<Peers>> Start(Options options, Content content, net::Loop& loop,
                                                    const base::Clock& clock, const base::Log& log,
                                                    base::Registry& registry);
  ~Peers();
  Peers(const Peers&) = delete;
  Peers& operator=(const Peers&) = delete;

  uint16_t port() const;  // 0 while it could not be had

 private:
  struct Impl;
  explicit Peers(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<Impl> impl_;
};

}  // namespace fairway::sources::peers
