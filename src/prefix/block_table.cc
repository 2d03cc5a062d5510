#include "prefix/block_table.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <new>

#include "base/result.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fairway::prefix {
namespace {

// How holders are written in a record's word. Up to three: their number in the top 16 bits, a slot in each of
// the lower ones. More: kWide and the class of the set's cell on top, their number in 16 bits below, and
// where the cell is.
constexpr uint64_t kInPlace = 3;
constexpr uint64_t kWide = 0x100;
// Cells: class 0 is a list of 16 slots, class c a bit map of 1024 << (c - 1).
constexpr uint32_t kNoCell = ~uint32_t{0};
// A set goes back to a smaller form a little below where it left it, so that one slot that comes and goes
// costs nothing.
constexpr size_t kBackToList = 12;
constexpr size_t kFirstBuckets = 16;  // at least, of a shard

constexpr size_t CellWords(unsigned size_class) {
  return size_class == 0 ? Holders::kListed / 4 : size_t{16} << (size_class - 1);
}
constexpr size_t CellSlots(unsigned size_class) { return CellWords(size_class) * 64; }  // of a bit map
unsigned ClassFor(uint16_t slot) {
  unsigned size_class = 1;
  while (CellSlots(size_class) <= slot) ++size_class;
  return size_class;
}

uint64_t Top(uint64_t holders) { return holders >> 48; }
bool IsWide(uint64_t holders) { return Top(holders) >= kWide; }
unsigned Class(uint64_t holders) { return static_cast<unsigned>(Top(holders) - kWide); }
bool IsBitmap(uint64_t holders) { return IsWide(holders) && Class(holders) != 0; }
uint32_t Cell(uint64_t holders) { return static_cast<uint32_t>(holders); }
size_t Count(uint64_t holders) { return IsWide(holders) ? holders >> 32 & 0xffff : Top(holders); }
uint64_t InPlace(size_t count, uint64_t slots) { return static_cast<uint64_t>(count) << 48 | slots; }
uint64_t Wide(unsigned size_class, size_t count, uint32_t cell) {
  return (kWide + size_class) << 48 | static_cast<uint64_t>(count) << 32 | cell;
}

void Pause() {
#if defined(__SSE2__)
  _mm_pause();
#endif
}

// Zeros that take no memory before they are written to; aligned to cache lines.
void* Zeros(size_t bytes) {
  // calloc knows which pages are new and zero, aligned_alloc does not: so one line more, and the caller's own
  // alignment.
  void* memory = std::calloc(bytes + 64, 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

template <typename T>
T* Aligned(void* memory) {
  const auto past = reinterpret_cast<uintptr_t>(memory) % 64;
  return reinterpret_cast<T*>(static_cast<char*>(memory) + (64 - past) % 64);
}

}  // namespace

BlockTable::BlockTable(size_t records, size_t arena_bytes) {
  const size_t wanted = std::max<size_t>(records / (kShards * kWays), kFirstBuckets);
  first_buckets_ = wanted;
  while (first_buckets_ >= 2 * kFirstBuckets) first_buckets_ /= 2;
  most_buckets_ = first_buckets_;
  while (2 * most_buckets_ <= wanted) most_buckets_ *= 2;
  table_memory_.reset(Zeros(kShards * most_buckets_ * sizeof(Bucket)));
  table_ = Aligned<Bucket>(table_memory_.get());
  arena_words_ = std::min<size_t>(arena_bytes / sizeof(Word), kNoCell);
  arena_memory_.reset(Zeros(arena_words_ * sizeof(Word)));
  arena_ = Aligned<Word>(arena_memory_.get());
  shards_ = std::make_unique<Shard[]>(kShards);
  for (size_t i = 0; i < kShards; ++i)
    shards_[i].buckets.store(static_cast<uint32_t>(first_buckets_), std::memory_order_relaxed);
}

// Twice the buckets put what was in bucket i into 2i or 2i + 1.
inline BlockTable::Bucket* BlockTable::First(uint64_t block, size_t buckets) const {
  return table_ + ShardOf(block) * most_buckets_ + ((block >> 24 & 0xffffffff) * buckets >> 32);
}
inline BlockTable::Bucket* BlockTable::Second(uint64_t block, size_t buckets) const {
  return table_ + ShardOf(block) * most_buckets_ + ((block & 0xffffffff) * buckets >> 32);
}

inline BlockTable::Place BlockTable::FindPlace(uint64_t block, size_t buckets) const {
  for (Bucket* bucket : {First(block, buckets), Second(block, buckets)}) {
    for (size_t way = 0; way < kWays; ++way) {
      if (bucket->block[way].load(std::memory_order_acquire) == block) return {bucket, way};
    }
  }
  return {};
}

inline uint64_t BlockTable::Find(uint64_t block) const {
  const Place place = FindPlace(block, shards_[ShardOf(block)].buckets.load(std::memory_order_acquire));
  return place.bucket != nullptr ? place.bucket->holders[place.way].load(std::memory_order_acquire) : 0;
}

// All that `read` loads it loads with acquire: so the version is looked at again after it, and a value of a
// writer that has begun shows that writer's odd version, too.
template <typename Reading>
inline bool BlockTable::Consistently(uint64_t block, const Reading& read) const {
  const std::atomic<uint32_t>& version = shards_[ShardOf(block)].version;
  for (int i = 0; i < kTries; ++i) {
    const uint32_t before = version.load(std::memory_order_acquire);
    if ((before & 1) == 0) {
      read(Find(block));
      if (version.load(std::memory_order_acquire) == before) return true;
    }
    Pause();
  }
  given_up_.fetch_add(1, std::memory_order_relaxed);
  return false;
}

void BlockTable::Read(uint64_t block, Holders& out, size_t slots) const {
  block = Key(block);
  const bool read = Consistently(block, [&](uint64_t holders) {
    out.count = static_cast<uint32_t>(Count(holders));
    out.bitmap = IsBitmap(holders);
    if (out.bitmap) {
      const size_t words =
          std::min({CellWords(Class(holders)), arena_words_ - Cell(holders), (slots + 63) / 64});
      out.words.resize(words);
      const Word* from = arena_ + Cell(holders);
      for (size_t i = 0; i < words; ++i) out.words[i] = from[i].load(std::memory_order_acquire);
      return;
    }
    out.count = std::min<uint32_t>(out.count, Holders::kListed);
    for (size_t i = 0; i < out.count; ++i) out.list[i] = Listed(holders, i);
  });
  if (read) return;
  out.count = 0;
  out.bitmap = false;
}

uint32_t BlockTable::Which(uint64_t block, std::span<const uint16_t> slots) const {
  block = Key(block);
  uint32_t which = 0;
  const bool read = Consistently(block, [&](uint64_t holders) {
    which = 0;
    for (size_t i = 0; i < slots.size(); ++i) which |= Holds(holders, slots[i]) ? uint32_t{1} << i : 0;
  });
  return read ? which : 0;
}

void BlockTable::Prefetch(uint64_t block) const {
  block = Key(block);
  const size_t buckets = shards_[ShardOf(block)].buckets.load(std::memory_order_relaxed);
  __builtin_prefetch(First(block, buckets));
  __builtin_prefetch(Second(block, buckets));
}

void BlockTable::PrefetchSet(uint64_t block) const {
  const uint64_t holders = Find(Key(block));
  if (!IsWide(holders)) return;
  const Word* cell = arena_ + Cell(holders);
  const size_t words = std::min<size_t>(CellWords(Class(holders)), 64);
  for (size_t i = 0; i < words; i += 8) __builtin_prefetch(cell + i);
}

uint16_t BlockTable::Listed(uint64_t holders, size_t i) const {
  if (!IsWide(holders)) return static_cast<uint16_t>(holders >> 16 * i);
  return static_cast<uint16_t>(arena_[Cell(holders) + i / 4].load(std::memory_order_acquire) >> 16 * (i % 4));
}

void BlockTable::SetListed(uint32_t cell, size_t i, uint16_t slot) {
  Word& word = arena_[cell + i / 4];
  const uint64_t others = word.load(std::memory_order_relaxed) & ~(uint64_t{0xffff} << 16 * (i % 4));
  word.store(others | static_cast<uint64_t>(slot) << 16 * (i % 4), std::memory_order_release);
}

bool BlockTable::Holds(uint64_t holders, uint16_t slot) const {
  if (IsBitmap(holders)) {
    if (slot >= CellSlots(Class(holders))) return false;
    return (arena_[Cell(holders) + slot / 64].load(std::memory_order_acquire) >> slot % 64 & 1) != 0;
  }
  const size_t count = std::min(Count(holders), Holders::kListed);
  for (size_t i = 0; i < count; ++i) {
    if (Listed(holders, i) == slot) return true;
  }
  return false;
}

// Allocation is rare beside what it is for: one mutex.
uint32_t BlockTable::Allocate(unsigned size_class) {
  std::lock_guard lock(arena_mutex_);
  const size_t words = CellWords(size_class);
  uint32_t cell = kNoCell;
  if (!free_cells_[size_class].empty()) {
    cell = free_cells_[size_class].back();
    free_cells_[size_class].pop_back();
  } else if (arena_used_ + words <= arena_words_) {
    cell = static_cast<uint32_t>(arena_used_);
    arena_used_ += words;
  } else {
    return kNoCell;
  }
  for (size_t i = 0; i < words; ++i) arena_[cell + i].store(0, std::memory_order_release);
  return cell;
}

void BlockTable::Release(uint32_t cell, unsigned size_class) {
  std::lock_guard lock(arena_mutex_);
  free_cells_[size_class].push_back(cell);
}

uint64_t BlockTable::With(uint64_t holders, uint16_t slot) {
  const size_t count = Count(holders);
  if (!IsWide(holders) && count < kInPlace) {
    const uint64_t slots = holders & ((uint64_t{1} << 48) - 1);
    return InPlace(count + 1, slots | static_cast<uint64_t>(slot) << 16 * count);
  }
  if (!IsBitmap(holders) && count < Holders::kListed) {
    uint32_t cell = Cell(holders);
    if (!IsWide(holders)) {
      cell = Allocate(0);
      if (cell == kNoCell) return 0;
      for (size_t i = 0; i < count; ++i) SetListed(cell, i, Listed(holders, i));
    }
    SetListed(cell, count, slot);
    return Wide(0, count + 1, cell);
  }
  uint32_t cell = Cell(holders);
  unsigned size_class = Class(holders);
  const auto set = [&](uint16_t s) {
    Word& word = arena_[cell + s / 64];
    word.store(word.load(std::memory_order_relaxed) | uint64_t{1} << s % 64, std::memory_order_release);
  };
  if (size_class == 0 || slot >= CellSlots(size_class)) {
    uint16_t highest = slot;
    for (size_t i = 0; size_class == 0 && i < count; ++i) highest = std::max(highest, Listed(holders, i));
    const unsigned wider = ClassFor(highest);
    const uint32_t from = cell;
    cell = Allocate(wider);
    if (cell == kNoCell) return 0;
    for (size_t i = 0; size_class == 0 && i < count; ++i) set(Listed(holders, i));
    for (size_t i = 0; size_class != 0 && i < CellWords(size_class); ++i)
      arena_[cell + i].store(arena_[from + i].load(std::memory_order_relaxed), std::memory_order_release);
    Release(from, size_class);
    size_class = wider;
  }
  set(slot);
  return Wide(size_class, count + 1, cell);
}

uint64_t BlockTable::Without(uint64_t holders, uint16_t slot) {
  const size_t left = Count(holders) - 1;
  if (left == 0) return 0;
  const uint32_t cell = Cell(holders);
  if (IsBitmap(holders)) {
    Word& word = arena_[cell + slot / 64];
    word.store(word.load(std::memory_order_relaxed) & ~(uint64_t{1} << slot % 64), std::memory_order_release);
    const unsigned size_class = Class(holders);
    const uint32_t list = left == kBackToList ? Allocate(0) : kNoCell;
    if (list == kNoCell) return Wide(size_class, left, cell);
    size_t listed = 0;
    for (size_t i = 0; i < CellWords(size_class); ++i) {
      for (uint64_t bits = arena_[cell + i].load(std::memory_order_relaxed); bits != 0; bits &= bits - 1)
        SetListed(list, listed++,
                  static_cast<uint16_t>(i * 64 + static_cast<size_t>(std::countr_zero(bits))));
    }
    Release(cell, size_class);
    return Wide(0, left, list);
  }
  std::array<uint16_t, Holders::kListed> slots;
  size_t at = 0;
  for (size_t i = 0; i <= left; ++i) {
    if (Listed(holders, i) != slot) slots[at++] = Listed(holders, i);
  }
  if (left <= kInPlace - 1 || !IsWide(holders)) {
    if (IsWide(holders)) Release(cell, 0);
    uint64_t in_place = 0;
    for (size_t i = 0; i < left; ++i) in_place |= static_cast<uint64_t>(slots[i]) << 16 * i;
    return InPlace(left, in_place);
  }
  for (size_t i = 0; i < left; ++i) SetListed(cell, i, slots[i]);
  return Wide(0, left, cell);
}

// The first bucket, unless it is fuller by two than the second: most are found where one looks first.
BlockTable::Place BlockTable::Vacant(uint64_t block, size_t buckets) const {
  std::array<Place, 2> vacant;
  std::array<size_t, 2> taken = {};
  const std::array<Bucket*, 2> two = {First(block, buckets), Second(block, buckets)};
  for (size_t i = 0; i < 2; ++i) {
    for (size_t way = 0; way < kWays; ++way) {
      if (two[i]->block[way].load(std::memory_order_relaxed) == 0) {
        vacant[i] = {two[i], way};
      } else {
        ++taken[i];
      }
    }
  }
  return vacant[taken[0] > taken[1] + 1 || vacant[0].bucket == nullptr ? 1 : 0];
}

// Where both buckets are full: of their eight records one whose other bucket is not goes there.
BlockTable::Place BlockTable::MakeRoom(uint64_t block, size_t buckets) {
  for (Bucket* bucket : {First(block, buckets), Second(block, buckets)}) {
    for (size_t way = 0; way < kWays; ++way) {
      const uint64_t moved = bucket->block[way].load(std::memory_order_relaxed);
      Bucket* first = First(moved, buckets);
      Bucket* other = first == bucket ? Second(moved, buckets) : first;
      for (size_t to = 0; to < kWays; ++to) {
        if (other->block[to].load(std::memory_order_relaxed) != 0) continue;
        other->holders[to].store(bucket->holders[way].load(std::memory_order_relaxed),
                                 std::memory_order_release);
        other->block[to].store(moved, std::memory_order_release);
        return {bucket, way};
      }
    }
  }
  return {};
}

bool BlockTable::Insert(Shard& shard, uint64_t block, uint64_t holders) {
  size_t buckets = shard.buckets.load(std::memory_order_relaxed);
  const size_t records = shard.records.load(std::memory_order_relaxed);
  if (records * 10 >= buckets * kWays * 7 && buckets < most_buckets_) Grow(shard);
  buckets = shard.buckets.load(std::memory_order_relaxed);
  Place place = Vacant(block, buckets);
  if (place.bucket == nullptr) place = MakeRoom(block, buckets);
  if (place.bucket == nullptr) return false;
  place.bucket->holders[place.way].store(holders, std::memory_order_release);
  place.bucket->block[place.way].store(block, std::memory_order_release);
  shard.records.store(static_cast<uint32_t>(records + 1), std::memory_order_relaxed);
  return true;
}

// In place, from the last bucket down: where its records go is empty, since it is above all that are left.
void BlockTable::Grow(Shard& shard) {
  const size_t buckets = shard.buckets.load(std::memory_order_relaxed);
  Bucket* const base = table_ + static_cast<size_t>(&shard - shards_.get()) * most_buckets_;
  for (size_t i = buckets; i-- > 0;) {
    std::array<uint64_t, kWays> block, holders;
    for (size_t way = 0; way < kWays; ++way) {
      block[way] = base[i].block[way].load(std::memory_order_relaxed);
      holders[way] = base[i].holders[way].load(std::memory_order_relaxed);
      base[i].block[way].store(0, std::memory_order_release);
    }
    for (size_t way = 0; way < kWays; ++way) {
      if (block[way] == 0) continue;
      const bool first = First(block[way], buckets) == base + i;
      Bucket* to = first ? First(block[way], buckets * 2) : Second(block[way], buckets * 2);
      size_t free = 0;
      while (to->block[free].load(std::memory_order_relaxed) != 0)
        ++free;  // four came from one bucket: there is room
      to->holders[free].store(holders[way], std::memory_order_release);
      to->block[free].store(block[way], std::memory_order_release);
    }
  }
  shard.buckets.store(static_cast<uint32_t>(buckets * 2), std::memory_order_release);
}

bool BlockTable::Add(uint64_t block, uint16_t slot) {
  FAIRWAY_CHECK(slot < kMaxSlots);
  block = Key(block);
  Shard& shard = shards_[ShardOf(block)];
  std::lock_guard lock(shard.mutex);
  const Place place = FindPlace(block, shard.buckets.load(std::memory_order_relaxed));
  const uint64_t holders =
      place.bucket != nullptr ? place.bucket->holders[place.way].load(std::memory_order_relaxed) : 0;
  if (holders != 0 && Holds(holders, slot)) return true;
  const uint32_t version = shard.version.load(std::memory_order_relaxed);
  shard.version.store(version + 1, std::memory_order_relaxed);
  bool added = false;
  if (holders == 0) {
    added = Insert(shard, block, InPlace(1, slot));
  } else if (const uint64_t more = With(holders, slot); more != 0) {
    place.bucket->holders[place.way].store(more, std::memory_order_release);
    added = true;
  }
  shard.version.store(version + 2, std::memory_order_release);
  return added;
}

void BlockTable::Remove(uint64_t block, uint16_t slot) {
  block = Key(block);
  Shard& shard = shards_[ShardOf(block)];
  std::lock_guard lock(shard.mutex);
  const Place place = FindPlace(block, shard.buckets.load(std::memory_order_relaxed));
  if (place.bucket == nullptr) return;
  const uint64_t holders = place.bucket->holders[place.way].load(std::memory_order_relaxed);
  if (!Holds(holders, slot)) return;
  const uint32_t version = shard.version.load(std::memory_order_relaxed);
  shard.version.store(version + 1, std::memory_order_relaxed);
  const uint64_t rest = Without(holders, slot);
  place.bucket->holders[place.way].store(rest, std::memory_order_release);
  if (rest == 0) {
    place.bucket->block[place.way].store(0, std::memory_order_release);
    shard.records.store(shard.records.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
  }
  shard.version.store(version + 2, std::memory_order_release);
}

size_t BlockTable::records() const {
  size_t records = 0;
  for (size_t i = 0; i < kShards; ++i) records += shards_[i].records.load(std::memory_order_relaxed);
  return records;
}

size_t BlockTable::bytes() const {
  size_t bytes = kShards * sizeof(Shard);
  for (size_t i = 0; i < kShards; ++i)
    bytes += shards_[i].buckets.load(std::memory_order_relaxed) * sizeof(Bucket);
  std::lock_guard lock(arena_mutex_);
  return bytes + arena_used_ * sizeof(Word);
}

}  // namespace fairway::prefix
