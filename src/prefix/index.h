// Which endpoint holds how much of a prompt: the picker's belief of the engines' prefix caches.
//
//   Index index({});
//   EndpointSlot slot = *index.Take();                     // one for each endpoint, as long as it is there
//   index.SetCapacity(slot, blocks);                       // what its engine can hold
//   index.Match(chain, scratch, matches);                  // at the pick: who holds how many of the first
//   blocks index.Insert(slot, chain);                             // after it: the endpoint will hold all of
//   them index.Unlearn(slot, chain, matched);                   // it failed before its first token: what was
//   new is not there index.Return(slot);                                    // the endpoint is gone, and at
//   once all that it held
//
// A chain is what payload::PromptHasher::AppendChains makes: each hash stands for a block and all before it.
// What Match says of an endpoint is exact for what was told: the blocks from the first on that the endpoint
// holds, without a gap.
//
// Memory: `bytes` bounds all of it, 52 bytes for each block at each endpoint (24 with the endpoint, 16 of 0.7
// of a table for the first endpoint, the rest for sets of more than three). Where the endpoints' capacities
// together are more than that, each gets an equal share at most (and 300 KB stand anyway). What finds no room
// is not learned, and counted. Memory is taken as it is used.
//
// Thread-safe. Match takes no lock (block_table.h), a scratch for each thread. Insert, Unlearn and
// SetCapacity take the slot's mutex for the time of their work (300 ns a new block where the table is in none
// of the caches, 30 a known one), so they belong behind the answer, not before it. Take and Return are the
// control loop's: Take may look at all slots.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <queue>
#include <span>
#include <vector>

#include "prefix/block_table.h"
#include "prefix/slot_blocks.h"

namespace fairway::prefix {

// An endpoint's number in the index. The same index comes again for another endpoint, with another
// generation; what is told of a generation that is gone is ignored.
struct EndpointSlot {
  uint16_t index = 0;
  uint32_t generation = 0;
  bool operator==(const EndpointSlot&) const = default;
};

struct SlotMatch {
  EndpointSlot slot;
  uint32_t blocks = 0;  // at least 1
  bool operator==(const SlotMatch&) const = default;
};

struct IndexOptions {
  size_t bytes = size_t{256} << 20;
  size_t max_slots = BlockTable::kMaxSlots;
  // Of an endpoint of which nothing is known: the reference's 31,250 blocks of 16 tokens, in blocks of 64.
  size_t default_capacity = 7812;
};

struct IndexStats {
  size_t bytes = 0;  // taken now
  size_t most_bytes = 0;
  size_t blocks = 0;  // different ones
  size_t held = 0;    // sum over the endpoints
  size_t endpoints = 0;
  uint64_t inserted = 0;  // blocks that an endpoint got, since the start
  uint64_t evicted = 0;   // that fell off an endpoint's end
  uint64_t refused = 0;   // that found no room in the table
  uint64_t given_up = 0;  // reads that met a writer too often
};

class Index {
 public:
  explicit Index(const IndexOptions& options);
  Index(const Index&) = delete;
  Index& operator=(const Index&) = delete;
  ~Index();

  // Nothing: all of max_slots are taken. The lowest number that is free.
  std::optional<EndpointSlot> Take();
  void Return(EndpointSlot slot);
  // What the engine reports, or what was learned of it. At most its share of the memory is used.
  void SetCapacity(EndpointSlot slot, size_t blocks);
  // The engine started anew: it holds nothing.
  void Forget(EndpointSlot slot);

  // `chain`: of a whole prompt or its begin.
  void Insert(EndpointSlot slot, std::span<const uint64_t> chain);
  // As Insert, of what another picker told: it is not told again.
  void InsertTold(EndpointSlot slot, std::span<const uint64_t> chain);
  // Whether chains that are inserted from now on are kept for TakeUntold, at most kMostUntold hashes a slot.
  static constexpr size_t kMostUntold = 8192 + 256;
  void SetTelling(bool telling) { telling_.store(telling, std::memory_order_relaxed); }
  // Some were inserted since the last call, at whatever slot.
  bool HasUntold() { return has_untold_.exchange(false, std::memory_order_acquire); }
  // Appends those that were inserted since the last call: one after the other, each behind its length.
  void TakeUntold(EndpointSlot slot, std::vector<uint64_t>& out);

  // What the endpoint holds, the newest first, at most `most` blocks: for another picker's Import.
  std::vector<SlotBlocks::Link> Export(EndpointSlot slot, size_t most) const;
  // Takes over what it does not hold yet, as older than all that it does, as far as there is room. What comes
  // behind a block that is not there is left out, so the list may be anything.
  void Import(EndpointSlot slot, std::span<const SlotBlocks::Link> list);
  // Takes away the blocks of `chain` from number `from` on. What other prompts had behind them is out of
  // reach then, and falls off in its time.
  void Unlearn(EndpointSlot slot, std::span<const uint64_t> chain, size_t from);

  // What Match works with; one for each thread.
  class Scratch {
    friend class Index;
    std::vector<uint64_t> bits_;  // who holds all blocks so far, while they are many
    size_t many_ = 0;             // how many that are
    std::vector<uint16_t> few_;   // and when they are few
    Holders holders_;
  };
  // Into `matches` those that hold the first block, in no order.
  void Match(std::span<const uint64_t> chain, Scratch& scratch, std::vector<SlotMatch>& matches) const;

  // Blocks that the endpoint holds, and how many it may.
  size_t held(EndpointSlot slot) const;
  size_t capacity(EndpointSlot slot) const;
  IndexStats stats() const;

 private:
  struct alignas(64) Slot {
    mutable std::mutex mutex;
    std::atomic<uint32_t> generation{0};  // odd: taken
    std::atomic<size_t> held{0};
    size_t capacity = 0;
    SlotBlocks blocks;
    std::vector<uint64_t> untold;
    size_t last_untold = 0;
  };

  static constexpr size_t kFew = 32;     // as many as BlockTable::Which takes
  static constexpr size_t kStride = 32;  // blocks from one that Match looks at to the next

  Slot* Lock(EndpointSlot slot, std::unique_lock<std::mutex>& lock) const;
  size_t Most(const Slot& slot) const {
    return std::min(slot.capacity, share_.load(std::memory_order_relaxed));
  }
  void InsertLocked(Slot& slot, uint16_t index, std::span<const uint64_t> chain);
  void Trim(Slot& slot, uint16_t index, size_t most);
  // Behind `after`. REQUIRES: there is room for all of it.
  void Append(Slot& slot, uint16_t index, std::span<const uint64_t> chain, uint32_t after, size_t most);
  void SetShare();
  void Report(uint16_t slot, size_t blocks, std::vector<SlotMatch>& matches) const;
  void ReportAll(size_t word, uint64_t bits, size_t blocks, std::vector<SlotMatch>& matches) const;
  using Chain = std::span<const uint64_t>;
  void Narrow(Chain chain, size_t from, size_t to, Scratch& scratch, std::vector<SlotMatch>& matches) const;
  void NarrowFew(Chain chain, size_t from, size_t to, Scratch& scratch,
                 std::vector<SlotMatch>& matches) const;
  void Split(Chain chain, size_t low, size_t high, std::vector<uint64_t> bits,
             std::vector<SlotMatch>& matches) const;
  void SplitFew(Chain chain, size_t low, size_t high, std::span<const uint16_t> slots,
                std::vector<SlotMatch>& matches) const;

  IndexOptions options_;
  size_t most_held_ = 0;
  BlockTable table_;
  std::atomic<size_t> share_;
  std::unique_ptr<std::atomic<Slot*>[]> slots_;  // made when first taken, and kept
  std::mutex take_mutex_;
  std::priority_queue<uint16_t, std::vector<uint16_t>, std::greater<>> free_;
  size_t used_ = 0;       // slots that were ever taken
  size_t shared_by_ = 1;  // what share_ was made for: a little more than there are
  std::atomic<size_t> live_{0};
  std::atomic<bool> telling_{false}, has_untold_{false};
  std::atomic<uint64_t> inserted_{0}, evicted_{0}, refused_{0};
};

}  // namespace fairway::prefix
