// What a worker thread and a ticket are made of. For the .cc files of this room only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "routing/decision.h"
#include "routing/metrics.h"
#include "routing/prefix_metrics.h"
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
    const size_t of = ListFor(size);
    if (of == kSizes.size() || lists_[of].first == nullptr) return Allocate(size);
    List& list = lists_[of];
    --list.count;
    return std::exchange(list.first, list.first->next);
  }
  // `size`: as it was taken.
  void Give(void* block, size_t size) noexcept {
    const size_t of = ListFor(size);
    if (of == kSizes.size() || lists_[of].count == kMax) return Free(block);
    List& list = lists_[of];
    ++list.count;
    list.first = new (block) Spare{list.first};
  }

 private:
  // What is kept of a response that is read; a ticket with three destinations, as short as addresses inside a
  // cluster are; with longer ones, up to IPv6 in full. Sizes that Envoy's allocator has: 192 would cost 208.
  static constexpr std::array<size_t, 3> kSizes = {64, 144, 208};
  static constexpr uint32_t kMax = 64;  // of each
  struct Spare {
    Spare* next;
  };
  struct List {
    Spare* first = nullptr;
    uint32_t count = 0;
  };
  static size_t ListFor(size_t size) {
    size_t of = 0;
    while (of < kSizes.size() && size > kSizes[of]) ++of;
    return of;
  }
  static void* Allocate(size_t size);
  static void Free(void* block) noexcept;

  std::array<List, kSizes.size()> lists_;
};

struct Worker::Impl final : Worker {
  Impl(const base::Published<fleet::Snapshot>& fleet, const base::Published<std::vector<std::string>>& wanted,
       const scheduling::Scheduler& s, const base::Published<scheduling::Config>& second,
       const base::Clock& c, RouterMetrics& m, uint64_t seed)
      : reader(fleet),
        wanted_headers(wanted),
        scheduler(s),
        shadow(second),
        clock(c),
        metrics(m),
        random(seed),
        series(m) {}

  // The class of a request that this route and target were chosen for. `fairness_id`: as the client said it.
  const RequestClassPointer& ClassOf(const Route& route, RouteTarget& target, std::string_view model,
                                     std::string_view fairness_id, base::Nanos now) {
    const bool kept =
        target.request_class && target.fairness_id == fairness_id && now < target.look_again &&
        target.request_class->series->state.load(std::memory_order_relaxed) != RequestSeries::kGone;
    if (!kept) [[unlikely]]
      FindClass(route, target, model, fairness_id, now);
    return target.request_class;
  }
  // Of a decision that refused (RouterMetrics::Refusals).
  [[gnu::cold]] void CountRefusal(std::string_view pool, const scheduling::Outcome& outcome);
  struct RefusalCounter {
    scheduling::Refusal refusal;
    std::string pool;
    std::string by;
    base::Counter* counter;
  };
  // `facts` of a request that goes to `target`. `wanted`: headers of which its config wants to know; with
  // `by_shadow` the shadow's, too.
  void MakeFacts(const RequestInput& input, const Route& route, const RouteTarget& target,
                 const std::vector<std::string>& wanted, bool by_shadow);
  void KeepHeaders(const RequestInput& input, const std::vector<std::string>& wanted, bool by_shadow);
  void FindPrefixes(const RequestInput& input);
  void FindClass(const Route& route, RouteTarget& target, std::string_view model,
                 std::string_view fairness_id, base::Nanos now);

  base::Published<fleet::Snapshot>::Reader reader;
  base::Published<std::vector<std::string>>::Reader wanted_headers;
  const scheduling::Scheduler& scheduler;
  base::Published<scheduling::Config>::Reader shadow;
  const base::Clock& clock;
  RouterMetrics& metrics;
  base::Random random;
  SpareBlocks spares;
  RouteCache routes;
  RouterMetrics::View series;
  scheduling::Scratch scratch;
  std::vector<uint32_t> candidates;     // of a subset hint
  scheduling::Facts facts;              // of the request under way
  uint64_t prefix_generation = 0;       // Config::generation of
  PrefixMetrics::Series prefix_series;  // which these are
  scheduling::Explanation explanation;
  std::shared_ptr<Decision> decision;  // the next one that is kept
  std::vector<std::shared_ptr<const EndpointNames>> names;
  std::shared_ptr<const EndpointNames> NamesOf(const fleet::PoolSnapshot& pool);
  std::unique_ptr<scheduling::Scratch> more_scratch;  // of the shadow
  std::vector<RefusalCounter> refusals;               // found once, since a look-up takes a mutex
  const payload::RequestFields no_fields;
  const Ticket::Scores no_scores;
  const Ticket::Headers no_headers;
};

// A ticket holds the cell of its endpoint but no snapshot: a stream of an hour must not keep an hour's
// snapshots alive. There may be a hundred thousand: one piece of memory, with the destinations behind it, and
// what only some of them need apart.
struct Ticket::State {
  struct Tokens {
    uint32_t input = 0;
    uint32_t output = 0;
    uint32_t cached = 0;
  };
  // Of a decision whose scores are kept, of one of several places, and of one that the client is told of.
  struct Rare {
    struct Place {
      std::shared_ptr<fleet::EndpointCell> cell;
      fleet::Reservation reservation;
    };
    Scores scores;
    Headers headers;  // of the request
    Headers response_headers;
    uint32_t name_server = 0;   // of these, a bit each: those that name who answers
    bool tells_served = false;  // the last of them is scheduling::kServedHeader
    std::vector<Place> places;
  };
  // Of a response whose body the frontend reads, and of a decision whose scores are kept.
  struct Extras {
    uint64_t response_bytes = 0;
    base::Nanos first_body_at = 0;
    base::Nanos last_body_at = 0;
    bool has_usage = false;
    bool tells_cached = false;
    uint32_t believed_tokens = 0;  // cached, of prompt_estimate
    uint32_t prompt_estimate = 0;
    Tokens tokens;  // when has_usage
    std::unique_ptr<Rare> rare;
  };

  // REQUIRES: `worker` outlives the ticket; `addresses` is not empty.
  static Ticket::Pointer Make(Worker::Impl& worker, const RequestClassPointer& request_class,
                              std::span<const std::string_view> addresses);
  State(Worker::Impl& w, const RequestClassPointer& c) : worker(&w), request_class(c) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (extras != nullptr) EndExtras();
  }

  char* text() { return reinterpret_cast<char*>(this + 1); }
  std::string_view destinations() { return {text(), destinations_size}; }
  Extras& NeedExtras() { return extras != nullptr ? *extras : MakeExtras(); }

  // Gives the reservation back and takes the request off the gauges; once.
  void Release(fleet::ReleaseKind kind);
  void Record();  // the histograms of a response that was seen to its end
  void RecordExtras(RequestSeries& series, base::Nanos now);
  void TellCache(base::Nanos now);
  void CountError(std::string_view code);  // once
  void KeepScores(const fleet::PoolSnapshot& pool, const scheduling::Explanation& explanation);
  // Places beside the first one, and headers that tell of them.
  void KeepFurther(const fleet::PoolSnapshot& pool, const scheduling::Outcome& outcome);
  void ReleaseFurther(fleet::ReleaseKind kind) noexcept;
  // Headers of the answer that name endpoints.
  void KeepSessions(const fleet::PoolSnapshot& pool, const scheduling::Outcome& outcome);
  void KeepServed();
  void TellServed(std::string_view served);
  Rare& NeedRare();
  bool MoveTo(std::string_view served);  // false: it is none of the pool
  Extras& MakeExtras();
  void EndExtras() noexcept;

  Worker::Impl* const worker;
  const RequestClassPointer request_class;
  std::shared_ptr<fleet::EndpointCell> cell;  // null once given back
  fleet::Reservation reservation;
  base::Nanos received_at = 0;
  Extras* extras = nullptr;  // owned; null until one of them is needed
  uint16_t first_size = 0;   // destinations up to here is the first choice
  uint16_t destinations_size = 0;
  bool streaming = false;
  bool inserts_model = false;
  bool asks_load = false;
  bool error_counted = false;
};

}  // namespace fairway::routing
