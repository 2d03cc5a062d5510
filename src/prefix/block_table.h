// Which endpoints hold a block: block hash -> set of slots, read without locks.
//
// A record is 16 bytes, four to a cache line, in one of two lines that its hash names. Up to three slots
// stand in the record; up to 16 are a list, more a bit map, both in an arena. Memory is set aside as
// addresses at first and taken from the system as it is used; it never moves and is never given back, so that
// a reader at most reads of another block, and then reads again.
//
// Thread-safe. Readers take no lock and write nothing: each shard has a version that is odd while its records
// change (a sequence lock). A reader that finds it odd, or moved, reads again, kTries times; then the block
// counts as held by nobody. Writers take their shard's mutex for one change.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

namespace fairway::prefix {

// What a block's holders are at one moment.
struct Holders {
  static constexpr size_t kListed = 16;
  uint32_t count = 0;
  bool bitmap = false;
  std::array<uint16_t, kListed> list;  // where it is no bit map
  std::vector<uint64_t> words;         // where it is
};

class BlockTable {
 public:
  static constexpr size_t kMaxSlots = 16384;
  static constexpr int kTries = 1000;

  // Room for `records` blocks, rounded down by at most a sixteenth, and `arena_bytes` for the sets that have
  // more than three holders.
  BlockTable(size_t records, size_t arena_bytes);
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  // True: `slot` holds the block now, or did before. False: no room, nothing changed. REQUIRES: slot <
  // kMaxSlots
  bool Add(uint64_t block, uint16_t slot);
  void Remove(uint64_t block, uint16_t slot);

  // Who holds it; `out` keeps its memory. Of a bit map at least the slots below `slots` are read.
  void Read(uint64_t block, Holders& out, size_t slots = kMaxSlots) const;
  // Which of at most 32 slots hold it: bit i for slots[i].
  uint32_t Which(uint64_t block, std::span<const uint16_t> slots) const;
  // Fetches into the cache what Read and Which will look at, in two steps some blocks ahead.
  void Prefetch(uint64_t block) const;
  void PrefetchSet(uint64_t block) const;

  size_t records() const;  // blocks that somebody holds
  size_t bytes() const;    // taken so far
  size_t most_bytes() const {
    return kShards * most_buckets_ * sizeof(Bucket) + arena_words_ * sizeof(uint64_t);
  }
  uint64_t given_up() const { return given_up_.load(std::memory_order_relaxed); }  // reads, after kTries

 private:
  static constexpr size_t kShards = 256;
  static constexpr size_t kWays = 4;
  using Word = std::atomic<uint64_t>;
  struct alignas(64) Bucket {
    std::array<Word, kWays> block;  // 0: nothing is here
    std::array<Word, kWays> holders;
  };
  struct alignas(64) Shard {
    std::atomic<uint32_t> version{0};
    std::atomic<uint32_t> buckets{0};  // in use; the others are untouched
    std::atomic<uint32_t> records{0};
    std::mutex mutex;
  };
  struct Place {
    Bucket* bucket = nullptr;
    size_t way = 0;
  };
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  static uint64_t Key(uint64_t block) { return block != 0 ? block : 1; }
  static size_t ShardOf(uint64_t block) { return block >> 56; }
  Bucket* First(uint64_t block, size_t buckets) const;
  Bucket* Second(uint64_t block, size_t buckets) const;
  uint64_t Find(uint64_t block) const;
  Place FindPlace(uint64_t block, size_t buckets) const;
  Place Vacant(uint64_t block, size_t buckets) const;
  Place MakeRoom(uint64_t block, size_t buckets);
  bool Insert(Shard& shard, uint64_t block, uint64_t holders);
  void Grow(Shard& shard);
  template <typename Reading>
  bool Consistently(uint64_t block, const Reading& read) const;

  bool Holds(uint64_t holders, uint16_t slot) const;
  uint64_t With(uint64_t holders, uint16_t slot);     // 0: no room
  uint64_t Without(uint64_t holders, uint16_t slot);  // 0: nobody is left
  uint16_t Listed(uint64_t holders, size_t i) const;
  void SetListed(uint32_t cell, size_t i, uint16_t slot);
  uint32_t Allocate(unsigned size_class);
  void Release(uint32_t cell, unsigned size_class);

  size_t first_buckets_ = 0, most_buckets_ = 0;  // of a shard
  std::unique_ptr<void, Free> table_memory_, arena_memory_;
  Bucket* table_ = nullptr;  // in it
  std::unique_ptr<Shard[]> shards_;
  size_t arena_words_ = 0;
  Word* arena_ = nullptr;
  mutable std::mutex arena_mutex_;
  size_t arena_used_ = 0;
  std::array<std::vector<uint32_t>, 6> free_cells_;
  mutable std::atomic<uint64_t> given_up_{0};
};

}  // namespace fairway::prefix
