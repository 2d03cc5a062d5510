// Follows the KV events of many engines, on a thread of its own (`kv-events`), which starts with the first of
// them.
//
//   KvEvents events(clock, log, registry, {.emptied = ..., .capacity = ...});
//   events.Follow(publishers);                      // whenever the fleet or the config changed
//
// On the metrics page, beside the counters of subscriber.h, for each engine:
//   fairway_kv_events_endpoint{pool,endpoint,address,standing}    1 for how it stands (Standing)
//   fairway_kv_events_held_tokens{pool,endpoint,address}          what its cache holds, where that is known
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "fleet/snapshot.h"
#include "sources/kv_events/subscriber.h"

namespace fairway::sources::kv_events {

// An endpoint whose engine publishes events.
struct Publisher {
  std::string pool;      // "namespace/name"
  std::string endpoint;  // its id and its name
  std::string name;
  std::string address;
  std::shared_ptr<fleet::EndpointCell> cell;
  std::shared_ptr<fleet::PickTally> picks;
  SubscriberOptions options;
};

// What was learned. On the thread of events, until ~KvEvents returns.
struct Learned {
  // Set when ~KvEvents begins: who takes long over an event leaves the rest of it.
  std::shared_ptr<std::atomic<bool>> stopping = std::make_shared<std::atomic<bool>>(false);
  std::function<void(const Publisher&)> emptied;
  std::function<void(const Publisher&, uint64_t tokens)> capacity;
  std::function<void(const Publisher&, const KvEvent&)> event = {};
  std::function<void(const Publisher&, bool all)> knows = {};
  std::function<std::string(const Publisher&)> why_unmatched = {};
  std::function<void(base::Nanos now)> tick = {};  // ten times a second
};

// How one engine stands, for people.
struct EngineState {
  std::string pool, name, address;
  std::shared_ptr<fleet::EndpointCell> cell;
  Standing standing = Standing::kWaiting;
  std::string reason;
  bool connected = false;
  bool fed = false;  // over a connection that it dialled
  bool replaying = false;
  SubscriberOptions options;
  Subscriber::Seen seen;
  std::optional<uint64_t> held_tokens, capacity_tokens;
};

// Owned by one thread, which is not the events' own. `clock`, `log` and `registry` outlive it.
class KvEvents {
 public:
  KvEvents(const base::Clock& clock, const base::Log& log, base::Registry& registry, Learned learned);
  // Waits for the thread, which leaves what it has not read of a message.
  ~KvEvents();
  KvEvents(const KvEvents&) = delete;
  KvEvents& operator=(const KvEvents&) = delete;

  // Those that are followed from now on. Who stays as it is keeps its connection, and tells its capacity
  // again.
  void Follow(std::vector<Publisher> publishers);

  // Of all that are followed, at most `most`, by pool and endpoint; `left_out` is the rest. Any thread but the
  // events' own, until ~KvEvents begins. Waits for that thread, at most a second: nothing, it is busy.
  std::optional<std::vector<EngineState>> Look(size_t most, size_t& left_out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fairway::sources::kv_events
