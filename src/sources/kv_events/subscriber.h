// Follows the KV events of one engine: a subscription that dials again when it ends, or messages that come
// over a connection which the engine dialled (central.h); the order of batches, and what was missed asked for
// at the engine's replay socket.
//
// Batches are numbered from 0. One that is not the next means that some were lost: with `replay_port` they are
// asked for, at the first connection from 0 on, and what comes meanwhile waits (bounded). What could not be
// had makes the count of what the engine holds unknown until its cache is empty, and nothing else. A number
// that is behind after a new connection, and a connection that is refused where there was one, are an engine
// that started anew: its cache is empty.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "net/loop.h"
#include "sources/kv_events/events.h"
#include "sources/kv_events/held_blocks.h"
#include "sources/kv_events/zmtp_socket.h"

namespace fairway::sources::kv_events {

struct SubscriberOptions {
  std::string host;  // an IP literal
  uint16_t port = 0;
  uint16_t endpoint_port = 0;  // of the endpoint itself: what it is called
  bool dials = true;           // it is asked at its port, unless it dials itself
  // Where it may dial: an IP literal and a port of ours. 0: nowhere.
  std::string central_host = {};
  uint16_t central_port = 0;
  uint16_t replay_port = 0;  // 0: nothing is replayed
  // Messages of other topics do not count. A message without a topic does: who dialled knows whose it is.
  std::string topic;
  base::Nanos retry_first = 250 * base::kMillisecond;  // doubled each time,
  base::Nanos retry_most = 5 * base::kSecond;          // up to this
  base::Nanos replay_idle = 2 * base::kSecond;         // without a batch: it is over
  base::Nanos replay_total = 120 * base::kSecond;
  base::Nanos replay_pause = 30 * base::kSecond;  // after one that did not bring what was missing
  // What waits while a replay runs. When it is full the replay is given up.
  size_t waiting_batches = 4096;
  size_t waiting_bytes = 32 << 20;

  uint64_t reader = 0;  // who hears of it (scheduling::KvEventsReader::Where)

  bool operator==(const SubscriberOptions&) const = default;
};

// How it stands, for people.
enum class Standing : uint8_t {
  kWaiting,      // connected, or about to be; it is too early to say more
  kFollowed,     // events come and are understood
  kUnreachable,  // nobody answers at the port
  kSilent,       // requests went there, and no event came
  kOtherTopic,   // messages come, all under topics that do not count
  kUnreadable,   // messages come, and none holds an event that is known
  kUnmatched,    // events are understood, and have nothing of what the engine was asked
};
std::string_view NameOf(Standing standing);

// Of all subscribers; on the metrics page.
struct Meters {
  explicit Meters(base::Registry& registry);
  base::Counter& received;
  base::Counter& reconnections;
  base::Counter& errors;
  base::Gauge& waiting;
  base::Counter& taken;  // events
  base::Counter& unknown;
  base::Counter& malformed;
  base::Counter& other_topic;  // messages
  base::Counter& unreadable;
  base::Counter& gaps;
  base::Counter& replays;
  base::Counter& restarts;
  // Of engines that dial.
  base::Counter& unknown_pod;  // messages
  base::Counter& superseded;   // messages
  base::Counter& refused;      // connections

 private:
  Meters(base::Registry& registry, base::CounterFamily& events, base::CounterFamily& streams);
};

// What is known of the engine's cache changed. On the subscriber's loop.
struct Changes {
  std::function<void()> emptied;                  // all blocks are gone
  std::function<void(uint64_t tokens)> capacity;  // it was found how much it holds
  // Blocks were stored or removed, in a cache that counts; empty: nobody wants to know.
  std::function<void(const KvEvent&)> event;
  std::function<void(bool all)> knows;  // whether all that it holds was told
  // Whether the process is about to end: then nothing more is wanted of what came. May be empty.
  std::function<bool()> stopping;
  // Why what it tells does not match what it is asked; "": it does, or it is too early to say.
  std::function<std::string()> why_unmatched;
};

// Owned by its loop's thread.
class Subscriber final : EventSink {
 public:
  Subscriber(net::Loop& loop, SubscriberOptions options, const base::Clock& clock, const base::Log& log,
             Meters& meters, Changes changes);
  ~Subscriber() override;
  Subscriber(const Subscriber&) = delete;
  Subscriber& operator=(const Subscriber&) = delete;

  // Called from time to time. `requests`: that went to the engine since it was first looked at. Says in the
  // log what is new.
  void Judge(uint64_t requests);
  // Whoever heard the capacity has forgotten it.
  void TellAgain();
  // A message over a connection that its engine dialled; `own`: from the endpoint's own address. Of several
  // such connections the newest counts, and those of its own address before others.
  void Feed(uint64_t connection, bool own, const ZmtpMessage& message);
  void FeedEnded(uint64_t connection);
  // Whether engines can dial; "": they can. Called before Judge.
  void SetCentralFailure(const std::string& failure) { central_failure_ = failure; }

  // For /debug/prefix.
  const SubscriberOptions& options() const { return options_; }
  const std::string& reason() const { return reason_; }  // of how it stands
  struct Seen {
    uint64_t stored = 0, removed = 0, cleared = 0;  // events
    // Blocks by the memory that they are in, as events name it ("gpu" where they do not); since it was last
    // empty. Of more names than kMostTiers the rest goes with the last.
    struct Tier {
      std::string name;
      uint64_t stored = 0, removed = 0;
    };
    static constexpr size_t kMostTiers = 8;
    std::vector<Tier> tiers;
    uint64_t unknown = 0, malformed = 0;       // events
    uint64_t unreadable = 0, other_topic = 0;  // messages
    uint64_t gaps = 0, replays = 0, replays_given_up = 0, restarts = 0, reconnections = 0;
    uint64_t block_size = 0;         // of the last one stored, in tokens; 0: none was
    std::optional<uint64_t> number;  // of the last batch
    base::Nanos at = 0;              // when it came; 0: never
  };
  const Seen& seen() const { return seen_; }
  bool connected() const { return connected_; }
  bool fed() const { return feeding_ != 0; }
  bool replaying() const { return replay_ != nullptr; }
  Standing standing() const { return standing_; }
  std::optional<uint64_t> held_tokens() const { return held_.tokens(); }
  std::optional<uint64_t> capacity_tokens() const { return held_.capacity(); }

 private:
  struct Waiting {
    uint64_t number = 0;
    std::string payload;
  };
  void On(const KvEvent& event) override;
  void Dial();
  void Ended(ZmtpSocket::End end, const std::string& reason);
  void Opened();
  void Connected();
  void Receive(const ZmtpMessage& message);
  void Take(uint64_t number, std::string_view payload);
  void Accept(uint64_t number, std::string_view payload);
  void StartAnew();
  bool MayReplay() const;
  void Replay();
  void ReceiveReplayed(const ZmtpMessage& message);
  void EndReplay(bool complete);
  void Wait(uint64_t number, std::string_view payload);
  void See(const KvEvent& event);
  void TellCapacity();
  void TellKnown();
  std::string DialledNobody() const;
  void Say(Standing standing, const std::string& why);

  net::Loop& loop_;
  const SubscriberOptions options_;
  const base::Clock& clock_;
  const base::Log& log_;
  Meters& meters_;
  const Changes changes_;

  std::unique_ptr<ZmtpSocket> socket_, replay_;
  net::Timer retry_, replay_idle_, replay_total_;
  base::Nanos retry_after_;
  std::deque<Waiting> waiting_;
  size_t waiting_bytes_ = 0;
  base::Nanos no_replay_before_ = 0;

  HeldBlocks held_;
  uint64_t next_ = 0;      // the number that comes next
  bool accepted_ = false;  // any batch, of the engine as it runs now
  bool connected_ = false;
  bool was_connected_ = false;             // at any time
  bool was_dialled_ = false;               // and we had dialled
  bool reconnected_ = false;               // and no batch came since
  uint64_t behind_ = 0, last_behind_ = 0;  // batches in a row whose numbers were here
  uint64_t told_capacity_ = 0;
  std::optional<bool> told_known_;

  uint64_t feeding_ = 0;  // the connection that its engine dialled; 0: none
  bool feeds_own_ = false;
  std::string central_failure_;

  Seen seen_;
  Standing standing_ = Standing::kWaiting;
  std::string reason_;
  std::string failure_;  // of the last connection
  std::string strange_topic_;
  uint64_t understood_ = 0, strange_ = 0, unreadable_ = 0;  // messages
  base::Nanos since_;                                       // when it was last connected or not
  std::optional<uint64_t> requests_then_;                   // when it was connected
};

}  // namespace fairway::sources::kv_events
