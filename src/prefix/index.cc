#include "prefix/index.h"

#include <algorithm>
#include <array>
#include <bit>

namespace fairway::prefix {
namespace {

constexpr size_t kBytesPerBlock = 60;
constexpr double kLoad = 0.6;  // of the table, when all is taken by different blocks
// How far ahead lines are fetched into the cache: blocks of Insert, strides of Match and, for sets, half of
// those.
constexpr size_t kAhead = 12;
constexpr size_t kStridesAhead = 4;
constexpr size_t kEvictedAtOnce = 32;

size_t Records(size_t held) { return static_cast<size_t>(static_cast<double>(held) / kLoad); }

size_t ArenaBytes(size_t bytes, size_t held) {
  const size_t others = held * SlotBlocks::kBytes + Records(held) * 16;
  return bytes > others ? bytes - others : 0;
}

}  // namespace

Index::Index(const IndexOptions& options)
    : options_(options),
      most_held_(options.bytes / kBytesPerBlock),
      table_(Records(most_held_), ArenaBytes(options.bytes, most_held_)),
      share_(most_held_) {
  options_.max_slots = std::min(options_.max_slots, BlockTable::kMaxSlots);
  slots_ = std::make_unique<std::atomic<Slot*>[]>(options_.max_slots);
}

Index::~Index() {
  for (size_t i = 0; i < used_; ++i) delete slots_[i].load(std::memory_order_relaxed);
}

std::optional<EndpointSlot> Index::Take() {
  std::lock_guard lock(take_mutex_);
  uint16_t index = 0;
  if (!free_.empty()) {
    index = free_.top();
    free_.pop();
  } else if (used_ < options_.max_slots) {
    index = static_cast<uint16_t>(used_);
    slots_[used_++].store(new Slot, std::memory_order_release);
  } else {
    return std::nullopt;
  }
  live_.fetch_add(1, std::memory_order_relaxed);
  SetShare();
  Slot& slot = *slots_[index].load(std::memory_order_relaxed);
  std::lock_guard slot_lock(slot.mutex);
  slot.capacity = options_.default_capacity;
  const uint32_t generation = slot.generation.load(std::memory_order_relaxed) + 1;
  slot.generation.store(generation, std::memory_order_release);
  return EndpointSlot{index, generation};
}

// Nobody is told of it any more before its blocks are taken out one by one.
void Index::Return(EndpointSlot gone) {
  std::lock_guard take_lock(take_mutex_);
  std::unique_lock<std::mutex> lock;
  Slot* slot = Lock(gone, lock);
  if (slot == nullptr) return;
  slot->generation.store(gone.generation + 1, std::memory_order_release);
  Trim(*slot, gone.index, 0);
  slot->blocks.Clear();
  slot->untold = {};
  slot->last_untold = 0;
  free_.push(gone.index);
  live_.fetch_sub(1, std::memory_order_relaxed);
  lock.unlock();
  SetShare();
}

// Shares get smaller only here, where all that may have more than theirs give it back at once: so the sum
// keeps its bound. In steps of an eighth, so that a fleet of thousands that comes up looks at all of itself
// some dozen times.
void Index::SetShare() {
  const size_t live = std::max<size_t>(live_.load(std::memory_order_relaxed), 1);
  if (live <= shared_by_ && live + live / 2 >= shared_by_) return;
  const bool smaller = live > shared_by_;
  shared_by_ = live + live / 8;
  share_.store(most_held_ / shared_by_, std::memory_order_relaxed);
  for (size_t i = 0; smaller && i < used_; ++i) {
    Slot& slot = *slots_[i].load(std::memory_order_relaxed);
    std::lock_guard lock(slot.mutex);
    Trim(slot, static_cast<uint16_t>(i), Most(slot));
    slot.blocks.Shrink(Most(slot));
  }
}

Index::Slot* Index::Lock(EndpointSlot slot, std::unique_lock<std::mutex>& lock) const {
  Slot* found =
      slot.index < options_.max_slots ? slots_[slot.index].load(std::memory_order_acquire) : nullptr;
  if (found == nullptr) return nullptr;
  lock = std::unique_lock(found->mutex);
  const bool taken =
      (slot.generation & 1) != 0 && found->generation.load(std::memory_order_relaxed) == slot.generation;
  return taken ? found : nullptr;
}

void Index::Trim(Slot& slot, uint16_t index, size_t most) {
  uint64_t evicted = 0;
  std::array<uint64_t, kEvictedAtOnce> last;
  while (slot.blocks.size() > most) {
    const size_t count =
        slot.blocks.Last(std::span(last).first(std::min(last.size(), slot.blocks.size() - most)));
    for (size_t i = 0; i < count; ++i) {
      table_.Prefetch(last[i]);
      slot.blocks.Prefetch(last[i]);
    }
    for (size_t i = 0; i < count; ++i) table_.Remove(slot.blocks.TakeLast(), index);
    evicted += count;
  }
  if (evicted != 0) evicted_.fetch_add(evicted, std::memory_order_relaxed);
  slot.held.store(slot.blocks.size(), std::memory_order_relaxed);
}

void Index::SetCapacity(EndpointSlot which, size_t blocks) {
  std::unique_lock<std::mutex> lock;
  Slot* slot = Lock(which, lock);
  if (slot == nullptr) return;
  slot->capacity = blocks;
  Trim(*slot, which.index, Most(*slot));
  slot->blocks.Shrink(Most(*slot));
}

void Index::Forget(EndpointSlot which) {
  std::unique_lock<std::mutex> lock;
  Slot* slot = Lock(which, lock);
  if (slot == nullptr) return;
  Trim(*slot, which.index, 0);
  slot->blocks.Clear();
}

// Who holds a block holds all before it, so what is known of a chain is its begin. Room for the rest is made
// at once: what falls off is not of this chain, which is in front by then and no longer than `most`.
void Index::Insert(EndpointSlot which, std::span<const uint64_t> chain) {
  std::unique_lock<std::mutex> lock;
  Slot* slot = Lock(which, lock);
  if (slot == nullptr) return;
  InsertLocked(*slot, which.index, chain);
  if (!telling_.load(std::memory_order_relaxed) || chain.empty()) return;
  // What is longer now takes the place of its begin.
  std::vector<uint64_t>& untold = slot->untold;
  if (!untold.empty() && untold[slot->last_untold] <= chain.size() &&
      std::equal(untold.begin() + static_cast<std::ptrdiff_t>(slot->last_untold) + 1, untold.end(),
                 chain.begin()))
    untold.resize(slot->last_untold);
  if (untold.size() + 1 + chain.size() > kMostUntold) return;
  slot->last_untold = untold.size();
  untold.push_back(chain.size());
  untold.insert(untold.end(), chain.begin(), chain.end());
  has_untold_.store(true, std::memory_order_release);
}

void Index::InsertTold(EndpointSlot which, std::span<const uint64_t> chain) {
  std::unique_lock<std::mutex> lock;
  if (Slot* slot = Lock(which, lock); slot != nullptr) InsertLocked(*slot, which.index, chain);
}

void Index::TakeUntold(EndpointSlot which, std::vector<uint64_t>& out) {
  std::unique_lock<std::mutex> lock;
  Slot* slot = Lock(which, lock);
  if (slot == nullptr) return;
  out.insert(out.end(), slot->untold.begin(), slot->untold.end());
  slot->untold = {};
  slot->last_untold = 0;
}

std::vector<SlotBlocks::Link> Index::Export(EndpointSlot which, size_t most) const {
  std::unique_lock<std::mutex> lock;
  const Slot* slot = Lock(which, lock);
  return slot != nullptr ? slot->blocks.Newest(most) : std::vector<SlotBlocks::Link>{};
}

void Index::Import(EndpointSlot which, std::span<const SlotBlocks::Link> list) {
  // Some at a time: a decision may wait for the slot.
  constexpr size_t kAtOnce = 256;
  for (size_t from = 0; from < list.size(); from += kAtOnce) {
    std::unique_lock<std::mutex> lock;
    Slot* slot = Lock(which, lock);
    if (slot == nullptr) return;
    const size_t most = Most(*slot);
    size_t added = 0;
    for (size_t i = from; i < std::min(from + kAtOnce, list.size()); ++i) {
      const auto& [block, behind] = list[i];
      if (slot->blocks.size() >= most) break;
      if (slot->blocks.Find(block) != SlotBlocks::kNone) continue;
      const uint64_t* before = behind == 0 || behind > i ? nullptr : &list[i - behind].block;
      if (behind != 0 && (before == nullptr || slot->blocks.Find(*before) == SlotBlocks::kNone)) continue;
      if (!table_.Add(block, which.index)) {
        refused_.fetch_add(1, std::memory_order_relaxed);
        break;
      }
      slot->blocks.AddLast(block, before, most);
      ++added;
    }
    inserted_.fetch_add(added, std::memory_order_relaxed);
    slot->held.store(slot->blocks.size(), std::memory_order_relaxed);
  }
}

void Index::InsertLocked(Slot& of, uint16_t index, std::span<const uint64_t> chain) {
  Slot* const slot = &of;
  SlotBlocks& blocks = slot->blocks;
  const size_t most = Most(*slot);
  chain = chain.first(std::min(chain.size(), most));
  for (size_t i = 0; i < std::min(kAhead, chain.size()); ++i) blocks.Prefetch(chain[i]);
  size_t known = 0;
  for (uint32_t after = SlotBlocks::kFront; known < chain.size(); ++known) {
    if (known + kAhead < chain.size()) blocks.Prefetch(chain[known + kAhead]);
    const uint32_t node = blocks.Find(chain[known]);
    if (node == SlotBlocks::kNone) break;
    blocks.Move(node, after);
    after = node;
  }
  Trim(*slot, index, most - (chain.size() - known));
  const uint32_t after = known != 0 ? blocks.Find(chain[known - 1]) : SlotBlocks::kFront;
  Append(*slot, index, chain.subspan(known), after, most);
  slot->held.store(blocks.size(), std::memory_order_relaxed);
}

void Index::Append(Slot& slot, uint16_t index, std::span<const uint64_t> chain, uint32_t after, size_t most) {
  const auto fetch = [&](size_t i) {
    if (i >= chain.size()) return;
    table_.Prefetch(chain[i]);
    slot.blocks.Prefetch(chain[i]);
  };
  for (size_t i = 0; i < kAhead; ++i) fetch(i);
  size_t added = 0;
  for (size_t i = 0; i < chain.size(); ++i) {
    fetch(i + kAhead);
    if (const uint32_t node = slot.blocks.Find(chain[i]); node != SlotBlocks::kNone) {
      slot.blocks.Move(node, after);
      after = node;
      continue;
    }
    if (!table_.Add(chain[i], index)) {  // what comes behind it would be out of reach
      refused_.fetch_add(chain.size() - i, std::memory_order_relaxed);
      break;
    }
    after = slot.blocks.Add(chain[i], after, most);
    ++added;
  }
  inserted_.fetch_add(added, std::memory_order_relaxed);
}

void Index::Unlearn(EndpointSlot which, std::span<const uint64_t> chain, size_t from) {
  std::unique_lock<std::mutex> lock;
  Slot* slot = Lock(which, lock);
  if (slot == nullptr) return;
  if (from >= chain.size()) return;
  std::vector<uint64_t> gone;
  slot->blocks.RemoveWithAllBehind(chain[from], gone);
  for (const uint64_t block : gone) table_.Remove(block, which.index);
  slot->held.store(slot->blocks.size(), std::memory_order_relaxed);
}

void Index::Report(uint16_t index, size_t blocks, std::vector<SlotMatch>& matches) const {
  const uint32_t generation =
      slots_[index].load(std::memory_order_acquire)->generation.load(std::memory_order_acquire);
  if ((generation & 1) != 0) matches.push_back({{index, generation}, static_cast<uint32_t>(blocks)});
}

void Index::ReportAll(size_t word, uint64_t bits, size_t blocks, std::vector<SlotMatch>& matches) const {
  for (; bits != 0; bits &= bits - 1)
    Report(static_cast<uint16_t>(word * 64 + static_cast<size_t>(std::countr_zero(bits))), blocks, matches);
}

// Who holds a block holds all before it (slot_blocks.h), so it is enough to look at each 32nd block and the
// last, and then, for those alone who were lost in between, at halves of what lies in between.
void Index::Match(Chain chain, Scratch& scratch, std::vector<SlotMatch>& matches) const {
  matches.clear();
  if (chain.empty()) return;
  const size_t last = chain.size() - 1;
  for (size_t i = 0; i <= kStridesAhead; ++i) table_.Prefetch(chain[std::min(i * kStride, last)]);
  const Holders& first = scratch.holders_;
  table_.Read(chain[0], scratch.holders_);
  scratch.many_ = 0;
  scratch.few_.clear();
  if (first.bitmap) {
    scratch.bits_ = first.words;
    scratch.many_ = first.count;
  } else {
    scratch.few_.assign(first.list.begin(), first.list.begin() + first.count);
  }
  for (size_t from = 0; from != last && scratch.many_ + scratch.few_.size() != 0;) {
    const size_t to = std::min(from + kStride, last);
    table_.Prefetch(chain[std::min(from + kStridesAhead * kStride, last)]);
    table_.PrefetchSet(chain[std::min(from + kStridesAhead / 2 * kStride, last)]);
    if (scratch.many_ == 0) {
      NarrowFew(chain, from, to, scratch, matches);
    } else {
      Narrow(chain, from, to, scratch, matches);
    }
    from = to;
  }
  for (const uint16_t slot : scratch.few_) Report(slot, chain.size(), matches);
  for (size_t i = 0; scratch.many_ != 0 && i < scratch.bits_.size(); ++i)
    ReportAll(i, scratch.bits_[i], chain.size(), matches);
}

// All of the scratch's slots hold block `from`; leaves those that hold block `to`, and reports the others.
void Index::NarrowFew(Chain chain, size_t from, size_t to, Scratch& scratch,
                      std::vector<SlotMatch>& matches) const {
  std::vector<uint16_t>& few = scratch.few_;
  const uint32_t which = table_.Which(chain[to], few);
  if (which == (uint64_t{1} << few.size()) - 1) return;
  std::array<uint16_t, kFew> lost;
  size_t kept = 0, gone = 0;
  for (size_t i = 0; i < few.size(); ++i) ((which >> i & 1) != 0 ? few[kept++] : lost[gone++]) = few[i];
  few.resize(kept);
  SplitFew(chain, from, to, std::span(lost).first(gone), matches);
}

void Index::Narrow(Chain chain, size_t from, size_t to, Scratch& scratch,
                   std::vector<SlotMatch>& matches) const {
  std::vector<uint64_t>& bits = scratch.bits_;
  Holders& holders = scratch.holders_;
  table_.Read(chain[to], holders);
  if (!holders.bitmap) {
    holders.words.assign(bits.size(), 0);
    for (size_t i = 0; i < holders.count; ++i) {
      const uint16_t slot = holders.list[i];
      if (slot / 64U < bits.size()) holders.words[slot / 64] |= uint64_t{1} << slot % 64;
    }
  }
  holders.words.resize(std::max(holders.words.size(), bits.size()));
  bool lost = false;
  for (size_t i = 0; i < bits.size(); ++i) lost = lost || (bits[i] & ~holders.words[i]) != 0;
  if (!lost) return;
  scratch.many_ = 0;
  std::vector<uint64_t> gone(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) {
    gone[i] = bits[i] & ~holders.words[i];
    bits[i] &= holders.words[i];
    scratch.many_ += static_cast<size_t>(std::popcount(bits[i]));
  }
  Split(chain, from, to, std::move(gone), matches);
  if (scratch.many_ > kFew) return;
  for (size_t i = 0; i < bits.size(); ++i) {
    for (uint64_t rest = bits[i]; rest != 0; rest &= rest - 1)
      scratch.few_.push_back(static_cast<uint16_t>(i * 64 + static_cast<size_t>(std::countr_zero(rest))));
  }
  scratch.many_ = 0;
}

// Reports slots of which all hold block `low` and none block `high`.
void Index::SplitFew(Chain chain, size_t low, size_t high, std::span<const uint16_t> slots,
                     std::vector<SlotMatch>& matches) const {
  if (slots.empty()) return;
  if (high - low == 1) {
    for (const uint16_t slot : slots) Report(slot, high, matches);
    return;
  }
  const size_t middle = low + (high - low) / 2;
  const uint32_t which = table_.Which(chain[middle], slots);
  std::array<uint16_t, kFew> with, without;
  size_t more = 0, less = 0;
  for (size_t i = 0; i < slots.size(); ++i)
    ((which >> i & 1) != 0 ? with[more++] : without[less++]) = slots[i];
  SplitFew(chain, low, middle, std::span(without).first(less), matches);
  SplitFew(chain, middle, high, std::span(with).first(more), matches);
}

void Index::Split(Chain chain, size_t low, size_t high, std::vector<uint64_t> bits,
                  std::vector<SlotMatch>& matches) const {
  size_t count = 0;
  for (const uint64_t word : bits) count += static_cast<size_t>(std::popcount(word));
  if (count <= kFew) {
    std::array<uint16_t, kFew> slots;
    size_t at = 0;
    for (size_t i = 0; i < bits.size(); ++i) {
      for (uint64_t rest = bits[i]; rest != 0; rest &= rest - 1)
        slots[at++] = static_cast<uint16_t>(i * 64 + static_cast<size_t>(std::countr_zero(rest)));
    }
    return SplitFew(chain, low, high, std::span(slots).first(at), matches);
  }
  if (high - low == 1) {
    for (size_t i = 0; i < bits.size(); ++i) ReportAll(i, bits[i], high, matches);
    return;
  }
  const size_t middle = low + (high - low) / 2;
  Holders holders;
  table_.Read(chain[middle], holders);
  if (!holders.bitmap) {
    for (size_t i = 0; i < holders.count; ++i) {
      holders.words.resize(std::max<size_t>(holders.words.size(), holders.list[i] / 64U + 1));
      holders.words[holders.list[i] / 64] |= uint64_t{1} << holders.list[i] % 64;
    }
  }
  holders.words.resize(std::max(holders.words.size(), bits.size()));
  std::vector<uint64_t> with(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) {
    with[i] = bits[i] & holders.words[i];
    bits[i] &= ~holders.words[i];
  }
  Split(chain, low, middle, std::move(bits), matches);
  Split(chain, middle, high, std::move(with), matches);
}

size_t Index::held(EndpointSlot which) const {
  std::unique_lock<std::mutex> lock;
  const Slot* slot = Lock(which, lock);
  return slot != nullptr ? slot->blocks.size() : 0;
}

size_t Index::capacity(EndpointSlot which) const {
  std::unique_lock<std::mutex> lock;
  const Slot* slot = Lock(which, lock);
  return slot != nullptr ? Most(*slot) : 0;
}

IndexStats Index::stats() const {
  IndexStats stats;
  stats.bytes = table_.bytes();
  stats.most_bytes = table_.most_bytes() + most_held_ * SlotBlocks::kBytes;
  stats.blocks = table_.records();
  for (size_t i = 0; i < options_.max_slots; ++i) {
    const Slot* slot = slots_[i].load(std::memory_order_acquire);
    if (slot == nullptr) break;  // they are made in order
    std::lock_guard lock(slot->mutex);
    stats.held += slot->blocks.size();
    stats.bytes += slot->blocks.bytes() + slot->untold.capacity() * sizeof(uint64_t);
  }
  stats.endpoints = live_.load(std::memory_order_relaxed);
  stats.inserted = inserted_.load(std::memory_order_relaxed);
  stats.evicted = evicted_.load(std::memory_order_relaxed);
  stats.refused = refused_.load(std::memory_order_relaxed);
  stats.given_up = table_.given_up();
  return stats;
}

}  // namespace fairway::prefix
