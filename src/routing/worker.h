// What a worker thread and a ticket are made of. For the .cc files of this room only.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "routing/metrics_cache.h"
#include "routing/route.h"
#include "routing/router.h"

namespace fairway::routing {

// Memory of tickets that have ended, for the next ones: an allocation costs more than all that a ticket
// keeps. Owned by one thread, bounded.
class SpareBlocks {
 public:
  SpareBlocks() = default;
  SpareBlocks(const SpareBlocks&) = delete;
  SpareBlocks& operator=(const SpareBlocks&) = delete;
  ~SpareBlocks();

  void* Take(size_t size) {
    if (size > kBlock || first_ == nullptr) return Allocate(size);
    --count_;
    return std::exchange(first_, first_->next);
  }
  void Give(void* block, size_t size) noexcept {
    if (size > kBlock || count_ == kMax) return Free(block);
    ++count_;
    first_ = new (block) Spare{first_};
  }

 private:
  static constexpr size_t kBlock = 192;  // three destinations with their ports, and three cache lines
  static constexpr uint32_t kMax = 64;
  struct Spare {
    Spare* next;
  };
  static void* Allocate(size_t size);
  static void Free(void* block) noexcept;

  Spare* first_ = nullptr;
  uint32_t count_ = 0;
};

struct Worker::Impl final : Worker {
  Impl(const base::Published<fleet::Snapshot>& fleet, const base::Clock& c, RouterMetrics& m, uint64_t seed)
      : reader(fleet), clock(c), metrics(m), random(seed), cache(m) {}

  void CountRewrite(const Route& route, RouteTarget& target, std::string_view model);
  void CountDecision(uint64_t version, Route& route, RouteTarget& target,
                     const scheduling::Outcome& outcome) {
    base::Counter*& decisions = route.decisions[static_cast<size_t>(outcome.rung)];
    if (decisions == nullptr) decisions = &cache.Decisions(route.pool->key, outcome.rung);
    decisions->Add();
    if (target.attempts == nullptr) target.attempts = cache.Attempts(version, *route.pool, target.name);
    const uint32_t chosen = outcome.choices[0];
    base::Counter*& attempts = target.attempts[chosen];
    if (attempts == nullptr) attempts = &cache.FindAttempts(target.name, route.pool->endpoints[chosen]);
    attempts->Add();
  }

  base::Published<fleet::Snapshot>::Reader reader;
  const base::Clock& clock;
  RouterMetrics& metrics;
  base::Random random;
  SpareBlocks spares;
  RouteCache routes;
  MetricsCache cache;
  scheduling::Scratch scratch;
  std::vector<uint32_t> candidates;  // of a subset hint
  scheduling::Explanation explanation;
  const Ticket::Scores no_scores;
};

// A ticket holds the cell of its endpoint but no snapshot: a stream of an hour must not keep an hour's
// snapshots alive. There may be a hundred thousand: one piece of memory, with the destinations behind it.
struct Ticket::State {
  struct Tokens {
    int64_t input = 0;
    int64_t output = 0;
    int64_t cached = 0;
  };

  // REQUIRES: `worker` outlives the ticket; `addresses` is not empty.
  static Ticket::Pointer Make(Worker::Impl& worker, const RequestClassPointer& request_class,
                              std::span<const std::string_view> addresses);
  State(Worker::Impl& w, const RequestClassPointer& c) : worker(&w), request_class(c) {}

  char* text() { return reinterpret_cast<char*>(this + 1); }
  std::string_view destinations() { return {text(), destinations_size}; }

  // Gives the reservation back and takes the request off the gauges; once.
  void Release(fleet::ReleaseKind kind);
  void Record();  // the histograms of a response that was seen to its end
  void RecordTokens(const RequestSeries& series, base::Nanos now);
  void CountError(std::string_view code);  // once
  void KeepScores(const fleet::PoolSnapshot& pool, const scheduling::Explanation& explanation);
  void MoveTo(std::string_view served);

  Worker::Impl* const worker;
  const RequestClassPointer request_class;
  std::shared_ptr<fleet::EndpointCell> cell;  // null once given back
  fleet::Reservation reservation;
  base::Nanos received_at = 0;
  uint64_t response_bytes = 0;
  uint16_t first_size = 0;  // destinations up to here is the first choice
  uint16_t destinations_size = 0;
  bool streaming = false;
  bool error_counted = false;
  bool has_usage = false;  // a cache line up to here
  base::Nanos first_body_at = 0;
  base::Nanos last_body_at = 0;
  Tokens tokens;  // when has_usage
  std::unique_ptr<Scores> scores;
};

}  // namespace fairway::routing
