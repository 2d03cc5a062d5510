// What every decision reads of a model server, in 16 bytes: four servers share a cache line. A decision asks
// all servers of a pool, and inside a proxy the answers come from far away each time. What else is known of a
// server is in its EndpointCell.
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

namespace fairway::fleet {

// What a scrape said, as one word: whoever reads it sees one scrape's values, not a queue of this one beside
// a KV use of the last. From the low end: waiting 16, running 15, lora_room 1, kv_usage 32 (a float's bits).
struct ScrapedLoad {
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

// Thread-safe: any thread reads; who writes is EndpointCell's affair.
struct alignas(16) EndpointLoad {
  // The reservations; EndpointCell says what is in it. The low half is two counters of 16 bits, which
  // together are the pending ones.
  std::atomic<uint64_t> ledger{0};
  std::atomic<uint64_t> scraped{0};  // ScrapedLoad

  uint32_t pending() const noexcept {
    const uint64_t word = ledger.load(std::memory_order_relaxed);
    return static_cast<uint32_t>((word & 0xffff) + (word >> 16 & 0xffff));
  }
  ScrapedLoad last() const noexcept { return ScrapedLoad::Of(scraped.load(std::memory_order_relaxed)); }
};

// Where the EndpointLoads of a fleet lie, next to each other: those that are taken one after the other, as a
// new pool's are, follow one another in memory. The memory is what the most that there were at one time
// needed, in chunks of a KiB, and goes with the slab.
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

 private:
  static constexpr size_t kPerChunk = 64;
  struct alignas(64) Chunk {
    std::array<EndpointLoad, kPerChunk> loads;
    uint64_t free = UINT64_MAX;  // a bit each
  };

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Chunk>> chunks_;
  size_t first_free_ = 0;  // none is free in a chunk before this one
};

}  // namespace fairway::fleet
