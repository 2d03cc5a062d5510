// What is known of one model server right now: the last scrape, and our own reservations since.
//
// A cell is a few cache lines of atomics. It outlives snapshots: a scrape or a pick rebuilds nothing. One
// thread (the control loop) writes scrapes; any thread reserves, releases and reads. What every decision
// reads lies elsewhere, beside that of the other cells (load.h). Fields are read one by one with relaxed
// loads, so a reader may see adapters of this scrape beside a queue of the last: each is true, and the
// difference is one scrape interval.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "base/clock.h"
#include "fleet/load.h"

namespace fairway::fleet {

// Adapter names are interned per pool (PoolSnapshot::adapters); this many can be told apart at one time.
inline constexpr uint32_t kMaxAdapters = 512;
inline constexpr uint32_t kNoAdapter = UINT32_MAX;

using AdapterSet = std::array<uint64_t, kMaxAdapters / 64>;
inline void AddAdapter(AdapterSet& set, uint32_t id) { set[id / 64] |= uint64_t{1} << (id % 64); }

// One page's worth of signals. What the page did not have keeps its last value.
struct Signals {
  std::optional<uint32_t> waiting;  // requests queued in the engine
  std::optional<uint32_t> running;  // requests in the engine's batch
  std::optional<float> kv_usage;    // 0..1
  struct Lora {
    AdapterSet running{};         // adapters resident and in use
    AdapterSet waiting{};         // adapters that queued requests wait for
    uint32_t resident_count = 0;  // |running|, also those beyond kMaxAdapters
    uint32_t waiting_count = 0;
    uint32_t max = 0;  // slots; 0 means no room, as in the reference
  };
  std::optional<Lora> lora;
  std::optional<uint32_t> block_size;  // tokens per KV block
  std::optional<uint32_t> num_blocks;
};

// A place taken on an endpoint by one request of ours. A plain value; given back exactly once with
// EndpointCell::Release.
struct Reservation {
  uint32_t generation = 0;
  uint32_t tokens = 0;
};

enum class ReleaseKind {
  kEnded,     // we saw the request end (or never start): its load is gone
  kDetached,  // we stopped watching while it may still run: the next scrape will tell
};

// Thread-safe as said at each function.
class alignas(64) EndpointCell {
 public:
  // Its load lies in `slab`, by those of the cells made just before and after it.
  explicit EndpointCell(std::shared_ptr<LoadSlab> slab) : load_(&slab->Take()), slab_(std::move(slab)) {}
  // Alone, with a slab of its own.
  EndpointCell() : EndpointCell(std::make_shared<LoadSlab>()) {}
  ~EndpointCell() { slab_->Return(*load_); }
  EndpointCell(const EndpointCell&) = delete;
  EndpointCell& operator=(const EndpointCell&) = delete;

  // ---- The control loop.
  // Call when the scrape's request is sent: what is reserved until now will be in its answer.
  void BeginScrape() noexcept;
  // The answer came: takes over its values and forgets the reservations that it contains. REQUIRES: `now`
  // never goes back (PoolSnapshot::oldest_scrape relies on it).
  void ApplyScrape(const Signals& signals, base::Nanos now) noexcept;
  // No answer: the last values stay, and the reservations keep counting.
  void FailScrape() noexcept {}

  // ---- Any thread.
  // Takes a place if nobody changed the number of pending reservations since `expected` was read by
  // pending(): so that two workers which picked the same least loaded endpoint at once do not both get it.
  // Nothing when somebody did.
  std::optional<Reservation> TryReserve(uint32_t expected, uint32_t tokens) noexcept;
  Reservation Reserve(uint32_t tokens) noexcept;
  void Release(Reservation reservation, ReleaseKind kind) noexcept;

  // Reservations that the last good scrape cannot have seen, ended ones left out.
  uint32_t pending() const noexcept { return load_->pending(); }
  // All our requests on this endpoint that have not ended.
  uint32_t inflight() const noexcept { return inflight_.load(std::memory_order_relaxed); }
  uint64_t inflight_tokens() const noexcept { return inflight_tokens_.load(std::memory_order_relaxed); }

  // What a decision reads; lives as long as the cell.
  const EndpointLoad& load() const noexcept { return *load_; }

  // The last scrape's values; 0 before the first. More than ScrapedLoad has room for counts as that.
  uint32_t waiting() const noexcept { return load_->last().waiting; }
  uint32_t running() const noexcept { return load_->last().running; }
  float kv_usage() const noexcept { return load_->last().kv_usage; }
  uint32_t block_size() const noexcept { return block_size_.load(std::memory_order_relaxed); }
  uint32_t num_blocks() const noexcept { return num_blocks_.load(std::memory_order_relaxed); }
  // When the last good scrape came; 0: never.
  base::Nanos scraped_at() const noexcept { return scraped_at_.load(std::memory_order_relaxed); }

  bool adapter_running(uint32_t id) const noexcept {
    return id < kMaxAdapters && Has(adapters_[id / 64].running, id);
  }
  bool adapter_waiting(uint32_t id) const noexcept {
    return id < kMaxAdapters && Has(adapters_[id / 64].waiting, id);
  }
  // What these two read of an adapter, for who asks for it ahead. REQUIRES: id < kMaxAdapters.
  const void* adapter_line(uint32_t id) const noexcept { return &adapters_[id / 64]; }
  uint32_t lora_used() const noexcept {
    return lora_used_.load(std::memory_order_relaxed);
  }  // running + waiting adapters
  uint32_t lora_max() const noexcept { return lora_max_.load(std::memory_order_relaxed); }
  // lora_used() < lora_max(), as of the last scrape.
  bool lora_has_room() const noexcept { return load_->last().lora_room; }

 private:
  // EndpointLoad::ledger, from the low end: current 16, older 16, generation 26, uncovered 6.
  //   current   reservations since the last BeginScrape
  //   older     reservations before it that no applied scrape has covered
  //   generation  counts BeginScrape (26 bits at 50 ms are 38 days)
  //   uncovered   generations since the last ApplyScrape: which tickets `older` still holds
  // One word, so that a scrape and a release can never count a reservation twice. Counters saturate at 65535.
  static constexpr uint64_t kCounterMax = 0xffff;
  static constexpr uint32_t kGenerationMask = (1u << 26) - 1;
  static constexpr uint32_t kUncoveredMax = (1u << 6) - 1;
  static uint32_t Current(uint64_t word) { return static_cast<uint32_t>(word & kCounterMax); }
  static uint32_t Older(uint64_t word) { return static_cast<uint32_t>((word >> 16) & kCounterMax); }
  static uint32_t Generation(uint64_t word) { return static_cast<uint32_t>(word >> 32) & kGenerationMask; }
  static uint32_t Uncovered(uint64_t word) { return static_cast<uint32_t>(word >> 58); }
  static uint64_t Pack(uint32_t current, uint32_t older, uint32_t generation, uint32_t uncovered) {
    return uint64_t{current} | uint64_t{older} << 16 | uint64_t{generation & kGenerationMask} << 32 |
           uint64_t{uncovered} << 58;
  }

  struct AdapterWords {
    std::atomic<uint64_t> running{0};
    std::atomic<uint64_t> waiting{0};
  };
  static bool Has(const std::atomic<uint64_t>& word, uint32_t id) noexcept {
    return (word.load(std::memory_order_relaxed) >> (id % 64) & 1) != 0;
  }

  EndpointLoad* const load_;
  std::atomic<uint64_t> inflight_tokens_{0};
  std::atomic<base::Nanos> scraped_at_{0};
  std::atomic<uint32_t> inflight_{0};
  std::atomic<uint32_t> lora_used_{0};
  std::atomic<uint32_t> lora_max_{0};
  std::atomic<uint32_t> block_size_{0};
  std::atomic<uint32_t> num_blocks_{0};
  const std::shared_ptr<LoadSlab> slab_;
  // Both sets side by side: a decision asks both of them for the same adapter.
  alignas(64) std::array<AdapterWords, kMaxAdapters / 64> adapters_{};
};

}  // namespace fairway::fleet
