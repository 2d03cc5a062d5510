// What every decision reads of a model server, in 32 bytes: two servers share a cache line. A decision asks
// all servers of a pool, and inside a proxy the answers come from far away each time. What else is known of a
// server is in its EndpointCell, which also keeps the words below true.
//
// The ledger. An engine's page is late: its gauges are those of the end of its last step, and a prefill step
// takes 100 to 500 ms. Who forgets its own requests when a page arrives takes an engine that has just begun
// to work for idle, and sends it the next one. So:
//
//   requests at e = own open requests + others,  others = told by peers + what the page shows beyond these
//   work at e     = own and told prompt tokens not yet computed + tokens of requests that nobody watches
//
// Own requests count from the pick to their end, whatever pages say. Only `others` comes from pages.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.h"

namespace fairway::fleet {

// Times in the words below: milliseconds of the monotonic clock, modulo 2^32 (49 days). 0 is never.
inline uint32_t Millis(base::Nanos now) noexcept {
  return std::max(static_cast<uint32_t>(now / base::kMillisecond), 1u);
}
// Milliseconds from `then` to `now`. Negative where another thread's clock reading was a little later.
inline int32_t MillisSince(uint32_t then, uint32_t now) noexcept { return static_cast<int32_t>(now - then); }

// Before anything was learned of an engine, and for good where answers are not shown. Slower than engines are,
// as several pickers that do not tell one another herd less when they remember their own picks for longer;
// but what is believed to be left from one burst to the next makes them all fill the same gap. Replays of
// engines with 0.125, answers not shown, mean time to first token with 0.4, 0.2 and 0.125 here: 4 pickers that
// do not tell, unique prompts 329, 351, 380 ms; 4 that tell, bursts 1785, 705, 705; 1, unequal 354, 283, 328.
inline constexpr float kDefaultMsPerToken = 0.25f;

// The same of prompts, in tokens.
inline constexpr float kDefaultPrompt = 250;

// EndpointLoad::ledger. From the low end: own 16, others 16, page 32. Both counters saturate at 65,535, after
// which they undercount until they are 0 again.
struct Ledger {
  static constexpr uint32_t kMost = 0xffff;
  uint32_t own = 0;     // our requests from the pick to their end, or until we stop watching them
  uint32_t others = 0;  // of other clients, and ours that we do not watch
  uint32_t page = 0;    // Millis of the last good page

  uint64_t Pack() const noexcept {
    return std::min(own, kMost) | std::min(others, kMost) << 16 | uint64_t{page} << 32;
  }
  static Ledger Of(uint64_t word) noexcept {
    return {.own = static_cast<uint32_t>(word) & kMost,
            .others = static_cast<uint32_t>(word >> 16) & kMost,
            .page = static_cast<uint32_t>(word >> 32)};
  }
};

// EndpointLoad::scraped, what a page said: whoever reads it sees one page's values, not a queue of this one
// beside a KV use of the last. From the low end: waiting 16, running 15, lora_room 1, kv_usage 32 (a float's
// bits). A signal that the page did not have is 0; kUnknown where that would be wrong.
struct ScrapedLoad {
  static constexpr float kUnknown = -1;            // of kv_usage
  static constexpr uint32_t kMaxWaiting = 0xffff;  // more counts as this many
  static constexpr uint32_t kMaxRunning = 0x7fff;

  uint32_t waiting = 0;
  uint32_t running = 0;
  bool lora_room = false;
  float kv_usage = 0;

  uint64_t Pack() const noexcept {
    return std::min(waiting, kMaxWaiting) | std::min(running, kMaxRunning) << 16 | uint32_t{lora_room} << 31 |
           uint64_t{std::bit_cast<uint32_t>(kv_usage)} << 32;
  }
  static ScrapedLoad Of(uint64_t word) noexcept {
    return {.waiting = static_cast<uint32_t>(word) & kMaxWaiting,
            .running = static_cast<uint32_t>(word >> 16) & kMaxRunning,
            .lora_room = (word >> 31 & 1) != 0,
            .kv_usage = std::bit_cast<float>(static_cast<uint32_t>(word >> 32))};
  }
};

// EndpointLoad::work: uncached prompt tokens of ours and of peers that the engine has still to compute, each
// until its request's first token is seen, and how long the engine takes for one.
struct Work {
  uint32_t tokens = 0;
  float ms_per_token = 0;  // 0: not learned yet

  uint64_t Pack() const noexcept { return tokens | uint64_t{std::bit_cast<uint32_t>(ms_per_token)} << 32; }
  static Work Of(uint64_t word) noexcept {
    return {.tokens = static_cast<uint32_t>(word),
            .ms_per_token = std::bit_cast<float>(static_cast<uint32_t>(word >> 32))};
  }
};

// EndpointLoad::unseen: prompt tokens whose first token nobody will show us. The engine is taken to compute
// them from `since` on, at its rate: they wear off, so nothing stays because nobody asks.
struct Unseen {
  uint32_t tokens = 0;
  uint32_t since = 0;  // Millis

  uint64_t Pack() const noexcept { return tokens | uint64_t{since} << 32; }
  static Unseen Of(uint64_t word) noexcept {
    return {.tokens = static_cast<uint32_t>(word), .since = static_cast<uint32_t>(word >> 32)};
  }
  // Milliseconds of work that are left.
  float Left(float ms_per_token, uint32_t now) const noexcept {
    const float work = static_cast<float>(tokens) * ms_per_token;
    return std::max(work - static_cast<float>(std::max(MillisSince(since, now), 0)), 0.0f);
  }
};

// Thread-safe: any thread reads; who writes is EndpointCell's affair.
struct alignas(32) EndpointLoad {
  std::atomic<uint64_t> ledger{0};   // Ledger
  std::atomic<uint64_t> scraped{0};  // ScrapedLoad
  std::atomic<uint64_t> work{0};     // Work
  std::atomic<uint64_t> unseen{0};   // Unseen

  Ledger requests() const noexcept { return Ledger::Of(ledger.load(std::memory_order_relaxed)); }
  ScrapedLoad last() const noexcept { return ScrapedLoad::Of(scraped.load(std::memory_order_relaxed)); }
  Work own_work() const noexcept { return Work::Of(work.load(std::memory_order_relaxed)); }
  Unseen unseen_work() const noexcept { return Unseen::Of(unseen.load(std::memory_order_relaxed)); }
};

// Where the EndpointLoads of a fleet lie, next to each other: those that are taken one after the other, as a
// new pool's are, follow one another in memory. The memory is what the most that there were at one time
// needed, in chunks of 2 KiB, and goes with the slab.
//
// Thread-safe: a mutex, which no request takes before its endpoint is gone from the fleet.
class LoadSlab {
 public:
  LoadSlab() = default;
  LoadSlab(const LoadSlab&) = delete;
  LoadSlab& operator=(const LoadSlab&) = delete;

  // All zero, the caller's until Return. The free one that is farthest to the front: a fleet that comes and
  // goes stays together.
  EndpointLoad& Take();
  // REQUIRES: from Take, and nobody looks at it any more.
  void Return(const EndpointLoad& load) noexcept;
  // There is memory for this many.
  size_t capacity() const;

  // How many cells of the fleet are refusing (EndpointCell::SetRefusing): nearly always 0, so that decisions
  // need not ask each.
  const std::atomic<int32_t>& refusing() const noexcept { return refusing_; }
  void CountRefusing(int32_t change) noexcept { refusing_.fetch_add(change, std::memory_order_relaxed); }

 private:
  static constexpr size_t kPerChunk = 64;
  struct alignas(64) Chunk {
    std::array<EndpointLoad, kPerChunk> loads;
    uint64_t free = UINT64_MAX;  // a bit each
  };

  // A line of its own: decisions read it, and the mutex beside it would be written.
  alignas(64) std::atomic<int32_t> refusing_{0};
  alignas(64) mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Chunk>> chunks_;
  size_t first_free_ = 0;  // none is free in a chunk before this one
};

}  // namespace fairway::fleet
