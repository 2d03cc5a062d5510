#include "prefix/exact_index.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "base/result.h"

namespace fairway::prefix {
namespace {

constexpr size_t kBytesEach = 80;
constexpr size_t kWithEngine = SlotBlocks::kBytes + 16;
constexpr double kTableLoad = 0.6;
constexpr size_t kReadAhead = 8;
constexpr float kOtherTier = 1;

size_t RecordsOf(size_t held) { return static_cast<size_t>(static_cast<double>(held) / kTableLoad); }

std::vector<float> WeightsOf(const ExactOptions& options) {
  std::vector<float> weights = {kOtherTier};
  for (const auto& [name, weight] : options.tiers) {
    if (std::find(weights.begin(), weights.end(), weight) == weights.end()) weights.push_back(weight);
  }
  FAIRWAY_CHECK(weights.size() <= ExactIndex::kMaxWeights);
  return weights;
}

// The name of a part of an engine's block that is several of ours: the engine's own for the last one, behind
// which its children come.
uint64_t PartName(uint64_t block, size_t part, size_t parts) {
  const uint64_t from_last = parts - 1 - part;
  return block ^ from_last * 0x9e3779b97f4a7c15ULL;
}

bool SameHolders(const Holders& a, const Holders& b) {
  if (a.count != b.count || a.bitmap != b.bitmap) return false;
  if (a.bitmap) return a.words == b.words;
  return std::equal(a.list.begin(), a.list.begin() + a.count, b.list.begin());
}

// `bits`: memory for those of a list.
std::span<const uint64_t> Bits(const Holders& holders, std::vector<uint64_t>& bits) {
  if (holders.bitmap) return holders.words;
  bits.clear();
  for (size_t i = 0; i < holders.count; ++i) {
    const uint16_t slot = holders.list[i];
    if (bits.size() <= slot / 64U) bits.resize(slot / 64U + 1);
    bits[slot / 64] |= uint64_t{1} << slot % 64;
  }
  return bits;
}

}  // namespace

ExactIndex::ExactIndex(ExactOptions options)
    : options_(std::move(options)),
      weights_(WeightsOf(options_)),
      bits_(weights_.size() + 1),
      max_sources_(BlockTable::kMaxSlots / bits_),
      most_held_(options_.bytes / kBytesEach),
      table_(
          RecordsOf(most_held_),
          options_.bytes - std::min(options_.bytes, most_held_ * kWithEngine + RecordsOf(most_held_) * 16)),
      sources_(std::make_unique<std::unique_ptr<Source>[]>(max_sources_)),
      share_(most_held_) {
  weights_.push_back(weights_[WeightOf("gpu")]);
}

size_t ExactIndex::WeightOf(std::string_view tier) const {
  if (tier.empty()) tier = "gpu";
  const auto same = [tier](const auto& named) {
    return named.first.size() == tier.size() &&
           std::equal(tier.begin(), tier.end(), named.first.begin(),
                      [](char a, char b) { return (a >= 'A' && a <= 'Z' ? a | 0x20 : a) == b; });
  };
  const auto found = std::find_if(options_.tiers.begin(), options_.tiers.end(), same);
  const float weight = found != options_.tiers.end() ? found->second : kOtherTier;
  return static_cast<size_t>(std::find(weights_.begin(), weights_.end(), weight) - weights_.begin());
}

std::optional<EndpointSlot> ExactIndex::Take() {
  const std::lock_guard lock(take_mutex_);
  uint16_t number = 0;
  const size_t used = used_.load(std::memory_order_relaxed);
  if (!free_.empty()) {
    number = free_.top();
    free_.pop();
  } else if (used < max_sources_) {
    number = static_cast<uint16_t>(used);
    sources_[number] = std::make_unique<Source>();
    used_.store(used + 1, std::memory_order_release);
  } else {
    return std::nullopt;
  }
  ++live_;
  SetShare();
  Source& source = *sources_[number];
  const std::lock_guard of_source(source.mutex);
  return EndpointSlot{number, ++source.generation};
}

void ExactIndex::Return(EndpointSlot gone) {
  const std::lock_guard take(take_mutex_);
  {
    std::unique_lock<std::mutex> lock;
    Source* source = Lock(gone, lock);
    if (source == nullptr) return;
    Empty(*source, gone.index);
    ++source->generation;
  }
  free_.push(gone.index);
  --live_;
  SetShare();
}

// Smaller shares count at once, so that the sum keeps its bound.
void ExactIndex::SetShare() {
  const size_t share = most_held_ / std::max<size_t>(live_, 1);
  const size_t before = share_.exchange(share, std::memory_order_relaxed);
  if (share >= before) return;
  for (size_t i = 0; i < used_.load(std::memory_order_relaxed); ++i) {
    Source& source = *sources_[i];
    const std::lock_guard lock(source.mutex);
    Trim(source, i, MostOf(source));
    source.names.Shrink(MostOf(source));
    source.known.shrink_to_fit();
    source.tokens.shrink_to_fit();
  }
}

ExactIndex::Source* ExactIndex::Lock(EndpointSlot slot, std::unique_lock<std::mutex>& lock) const {
  if (slot.index >= used_.load(std::memory_order_acquire)) return nullptr;
  Source& source = *sources_[slot.index];
  lock = std::unique_lock(source.mutex);
  return Locked(slot, lock);
}

ExactIndex::Source* ExactIndex::Locked(EndpointSlot slot, const std::unique_lock<std::mutex>& lock) const {
  Source& source = *sources_[slot.index];
  if (!lock.owns_lock()) return nullptr;
  return (slot.generation & 1) != 0 && source.generation == slot.generation ? &source : nullptr;
}

// ---- What engines tell.

void ExactIndex::Put(Source& source, size_t number, uint32_t node, size_t weight) {
  Known& known = source.known[node];
  uint8_t& times = known.stored[weight];
  if (times == 0 && known.part == 0 && !table_.Add(known.key, Bit(number, weight))) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  if (times != UINT8_MAX) ++times;
}

// With all that it says in the table.
void ExactIndex::Drop(Source& source, size_t number, uint32_t node) {
  const Known& known = source.known[node];
  for (size_t weight = 0; weight < Guessed(); ++weight) {
    if (known.stored[weight] != 0 && known.part == 0) table_.Remove(known.key, Bit(number, weight));
  }
  source.names.Remove(node);
  source.known[node] = source.known.back();
  source.known.pop_back();
  if (source.part_tokens != 0) {
    const size_t size = source.part_tokens;
    std::copy_n(source.tokens.end() - static_cast<std::ptrdiff_t>(size), size,
                source.tokens.begin() + static_cast<std::ptrdiff_t>(node * size));
    source.tokens.resize(source.tokens.size() - size);
  }
  source.begun.valid = false;
}

void ExactIndex::Trim(Source& source, size_t number, size_t most) {
  uint64_t evicted = 0;
  std::array<uint64_t, 1> last;
  for (; source.names.size() > most; ++evicted) {
    source.names.Last(last);
    Drop(source, number, source.names.Find(last[0]));
  }
  if (evicted != 0) evicted_.fetch_add(evicted, std::memory_order_relaxed);
}

void ExactIndex::Empty(Source& source, size_t number) {
  while (source.names.size() != 0) Drop(source, number, 0);
  source.names.Clear();
  std::vector<Known>().swap(source.known);
  std::vector<uint32_t>().swap(source.tokens);
  source.part_tokens = 0;
  source.begun = {};
  ExpireOf(source, number, std::numeric_limits<base::Nanos>::max());
}

StoreOutcome ExactIndex::Store(EndpointSlot slot, const StoredBlocks& stored) {
  std::unique_lock<std::mutex> lock;
  Source* source = Lock(slot, lock);
  if (source == nullptr) return {.kind = StoreOutcome::Kind::kNobody};
  const StoreOutcome outcome = stored.tokens.empty() ? StoreAgain(*source, slot.index, stored)
                                                     : StoreTokens(*source, slot.index, stored);
  stored_.fetch_add(outcome.blocks, std::memory_order_relaxed);
  return outcome;
}

StoreOutcome ExactIndex::StoreAgain(Source& source, size_t number, const StoredBlocks& stored) {
  const size_t weight = WeightOf(stored.tier);
  const size_t parts = std::max<size_t>(stored.block_tokens / keys().block_tokens(), 1);
  StoreOutcome outcome{.kind = StoreOutcome::Kind::kNoTokens};
  for (const uint64_t block : stored.blocks) {
    for (size_t part = 0; part < parts; ++part) {
      const uint32_t node = source.names.Find(PartName(block, part, parts));
      if (node == SlotBlocks::kNone)
        break;  // the engine says how many parts there are; we know how many we have
      outcome.kind = StoreOutcome::Kind::kStored;
      Put(source, number, node, weight);
    }
  }
  return outcome;
}

StoreOutcome ExactIndex::StoreTokens(Source& source, size_t number, const StoredBlocks& stored) {
  const size_t ours = keys().block_tokens();
  if (stored.block_tokens != 0 && stored.block_tokens < ours) return StoreParts(source, number, stored);
  if (source.part_tokens != 0) Empty(source, number);  // its blocks are others now
  if (stored.block_tokens % ours != 0 || stored.tokens.size() != stored.blocks.size() * stored.block_tokens)
    return {.kind = StoreOutcome::Kind::kBlockSize};
  const size_t parts = stored.block_tokens / ours;
  const size_t most = share_.load(std::memory_order_relaxed);
  const size_t blocks = std::min(stored.blocks.size(), most / parts);
  uint64_t key = keys().Root(stored.adapter);
  if (stored.parent) {
    const uint32_t node = source.names.Find(*stored.parent);
    if (node == SlotBlocks::kNone) return {.kind = StoreOutcome::Kind::kNoParent};
    key = source.known[node].key;
    source.names.Move(node, SlotBlocks::kFront);
  }
  size_t missing = 0;
  for (size_t i = 0; i < blocks; ++i) {
    if (source.names.Find(stored.blocks[i]) == SlotBlocks::kNone) missing += parts;
  }
  // What falls off is not of these, as they are moved to the front first.
  for (size_t i = 0; i < blocks; ++i) {
    for (size_t part = 0; part < parts; ++part) {
      const uint32_t node = source.names.Find(PartName(stored.blocks[i], part, parts));
      if (node != SlotBlocks::kNone) source.names.Move(node, SlotBlocks::kFront);
    }
  }
  Trim(source, number, most - std::min(missing, most));
  const size_t weight = WeightOf(stored.tier);
  StoreOutcome outcome;
  uint32_t after = SlotBlocks::kFront;
  for (size_t i = 0; i < blocks * parts; ++i) {
    const size_t block = i / parts;
    const std::span<const std::string_view> extras =
        block < stored.extras.size() ? std::span<const std::string_view>(stored.extras[block])
                                     : std::span<const std::string_view>();
    key = keys().Next(key, stored.tokens.subspan(i * ours, ours), extras);
    if (i == 0 && !stored.parent) {
      outcome.begins = true;
      outcome.first = key;
      outcome.plain = keys().Next(keys().Root(""), stored.tokens.first(ours), {});
    }
    const auto [node, is_new] = Place(source, number, PartName(stored.blocks[block], i % parts, parts),
                                      {.key = key}, {}, after, most);
    if (node == SlotBlocks::kNone) break;
    outcome.blocks += is_new ? 1 : 0;
    Put(source, number, node, weight);
    after = node;
  }
  return outcome;
}

// The node of what an engine names so, now behind `after`, and whether it is new; in place of what had the name
// before. `tokens`: of a part. kNone: there is no room, as for a block that is there twice in what was told.
std::pair<uint32_t, bool> ExactIndex::Place(Source& source, size_t number, uint64_t name, const Known& known,
                                            std::span<const uint32_t> tokens, uint32_t after, size_t most) {
  uint32_t node = source.names.Find(name);
  if (node != SlotBlocks::kNone &&
      (source.known[node].key != known.key || source.known[node].part != known.part)) {
    Drop(source, number, node);
    node = SlotBlocks::kNone;
    after = SlotBlocks::kFront;  // nodes have moved
  }
  if (node != SlotBlocks::kNone) {
    if (node != after) source.names.Move(node, after);
    return {node, false};
  }
  if (source.names.size() >= most) return {SlotBlocks::kNone, false};
  node = source.names.Add(name, after, most);
  if (source.known.size() == source.known.capacity())
    source.known.reserve(std::min(most, std::max<size_t>(2 * source.known.size(), 64)));
  source.known.push_back(known);
  KeepTokens(source, tokens, most);
  return {node, true};
}

// What stands before `stored` of the block of ours that it goes on with. False: it is not known.
bool ExactIndex::FindBegun(Source& source, const StoredBlocks& stored) const {
  Begun& begun = source.begun;
  if (stored.parent && begun.valid && begun.behind == *stored.parent) return true;
  begun = {.valid = true, .first = !stored.parent, .key = keys().Root(stored.adapter), .tokens = {}};
  if (!stored.parent) return true;
  const size_t size = source.part_tokens;
  std::vector<uint32_t> backwards;  // nodes
  uint64_t name = *stored.parent;
  uint8_t part = 0;
  while (true) {
    const uint32_t node = source.names.Find(name);
    if (node == SlotBlocks::kNone) return begun.valid = false;
    const Known& known = source.known[node];
    if (known.part == 0) {
      // Behind parts there is one that was there when they came.
      begun.key = known.key;
      break;
    }
    // A name that stands for something else by now.
    if (part != 0 && known.part != part - 1) return begun.valid = false;
    part = known.part;
    backwards.push_back(node);
    if (known.key == name) {
      begun.first = true;
      if (part != 1) return begun.valid = false;
      break;
    }
    name = known.key;
  }
  if (!begun.first && part > 1) return begun.valid = false;
  for (auto node = backwards.rbegin(); node != backwards.rend(); ++node) {
    const auto from = source.tokens.begin() + static_cast<std::ptrdiff_t>(*node * size);
    begun.tokens.insert(begun.tokens.end(), from, from + static_cast<std::ptrdiff_t>(size));
  }
  return true;
}

// Of the last one of `known`.
void ExactIndex::KeepTokens(Source& source, std::span<const uint32_t> tokens, size_t most) {
  if (source.tokens.size() + tokens.size() > source.tokens.capacity())
    source.tokens.reserve(std::min(most * tokens.size(), std::max<size_t>(2 * source.tokens.size(), 64)));
  source.tokens.insert(source.tokens.end(), tokens.begin(), tokens.end());
}

// A part has its tokens beside what others have.
size_t ExactIndex::MostOf(const Source& source) const {
  return share_.load(std::memory_order_relaxed) * kBytesEach /
         (kBytesEach + source.part_tokens * sizeof(uint32_t));
}

// Engine's blocks of which several are one of ours.
StoreOutcome ExactIndex::StoreParts(Source& source, size_t number, const StoredBlocks& stored) {
  const size_t ours = keys().block_tokens();
  const size_t size = stored.block_tokens;
  const bool extras = std::any_of(stored.extras.begin(), stored.extras.end(),
                                  [](const auto& of_block) { return !of_block.empty(); });
  if (ours % size != 0 || ours / size > UINT8_MAX || extras ||
      stored.tokens.size() != stored.blocks.size() * size)
    return {.kind = StoreOutcome::Kind::kBlockSize};
  if (source.part_tokens != size) Empty(source, number);
  source.part_tokens = static_cast<uint32_t>(size);
  const size_t most = MostOf(source);
  if (stored.parent) {
    const uint32_t node = source.names.Find(*stored.parent);
    if (node == SlotBlocks::kNone) return {.kind = StoreOutcome::Kind::kNoParent};
    source.names.Move(node, SlotBlocks::kFront);
  }
  if (!FindBegun(source, stored)) return {.kind = StoreOutcome::Kind::kNoParent};
  const auto missing =
      static_cast<size_t>(std::count_if(stored.blocks.begin(), stored.blocks.end(), [&source](uint64_t name) {
        return source.names.Find(name) == SlotBlocks::kNone;
      }));
  Begun begun = std::move(source.begun);
  Trim(source, number, most - std::min(missing, most));
  uint32_t after = stored.parent ? source.names.Find(*stored.parent) : SlotBlocks::kFront;
  if (after == SlotBlocks::kNone) after = SlotBlocks::kFront;
  const size_t weight = WeightOf(stored.tier);
  const size_t parts = ours / size;
  StoreOutcome outcome;
  uint64_t before = stored.parent.value_or(0);
  for (size_t i = 0; i < std::min(stored.blocks.size(), most); ++i) {
    const uint64_t name = stored.blocks[i];
    const auto tokens = stored.tokens.subspan(i * size, size);
    begun.tokens.insert(begun.tokens.end(), tokens.begin(), tokens.end());
    const size_t part = begun.tokens.size() / size % parts;
    const bool alone = begun.first && begun.tokens.size() == size;
    Known known{.key = alone ? name : before, .part = static_cast<uint8_t>(part)};
    if (part == 0) {
      known.key = keys().Next(begun.key, begun.tokens, {});
      if (begun.first) {
        outcome.begins = true;
        outcome.first = known.key;
        outcome.plain = keys().Next(keys().Root(""), begun.tokens, {});
      }
      begun.key = known.key;
      begun.first = false;
      begun.tokens.clear();
    }
    const auto [node, is_new] = Place(source, number, name, known, tokens, after, most);
    if (node == SlotBlocks::kNone) break;
    outcome.blocks += is_new && part == 0 ? 1 : 0;
    Put(source, number, node, weight);
    after = node;
    before = name;
  }
  source.begun = std::move(begun);
  source.begun.behind = before;
  source.begun.valid = true;
  return outcome;
}

void ExactIndex::Remove(EndpointSlot slot, std::span<const uint64_t> blocks, std::string_view tier) {
  std::unique_lock<std::mutex> lock;
  Source* source = Lock(slot, lock);
  if (source == nullptr) return;
  const size_t weight = WeightOf(tier);
  uint64_t removed = 0;
  for (const uint64_t block : blocks) {
    for (size_t from_last = 0;; ++from_last) {
      const uint32_t node = source->names.Find(PartName(block, 0, from_last + 1));
      if (node == SlotBlocks::kNone) break;
      Known& known = source->known[node];
      uint8_t& times = known.stored[weight];
      if (times == 1 && known.part == 0) table_.Remove(known.key, Bit(slot.index, weight));
      if (times != 0) --times;
      if (std::any_of(known.stored.begin(), known.stored.end(), [](uint8_t times) { return times != 0; }))
        continue;
      Drop(*source, slot.index, node);
      ++removed;
    }
  }
  removed_.fetch_add(removed, std::memory_order_relaxed);
}

void ExactIndex::Clear(EndpointSlot slot) {
  std::unique_lock<std::mutex> lock;
  if (Source* source = Lock(slot, lock)) Empty(*source, slot.index);
}

// ---- What is believed.

void ExactIndex::Speculate(EndpointSlot slot, std::span<const uint64_t> chain, base::Nanos until) {
  if (slot.index >= used_.load(std::memory_order_acquire)) return;
  const std::unique_lock lock(sources_[slot.index]->mutex, std::try_to_lock);
  Source* source = Locked(slot, lock);
  if (source == nullptr) return;
  chain = chain.first(std::min(chain.size(), options_.max_speculated));
  while (!source->guesses.empty() && source->guessed + chain.size() > options_.max_speculated)
    ExpireOf(*source, slot.index, source->guesses.front().until);
  size_t there = 0;
  for (; there < chain.size() && table_.Add(chain[there], Bit(slot.index, Guessed())); ++there)
    ++source->times_guessed[chain[there]];
  chain = chain.first(there);
  if (chain.empty()) return;
  source->guesses.push_back({until, {chain.begin(), chain.end()}});
  source->guessed += chain.size();
}

// A key that is guessed again later stays until then.
void ExactIndex::ExpireOf(Source& source, size_t number, base::Nanos now) {
  while (!source.guesses.empty() && source.guesses.front().until <= now) {
    const Guess gone = std::move(source.guesses.front());
    source.guesses.pop_front();
    source.guessed -= gone.keys.size();
    for (const uint64_t key : gone.keys) {
      const auto times = source.times_guessed.find(key);
      if (--times->second != 0) continue;
      source.times_guessed.erase(times);
      table_.Remove(key, Bit(number, Guessed()));
    }
  }
}

void ExactIndex::Expire(base::Nanos now) {
  const size_t used = used_.load(std::memory_order_acquire);
  for (size_t i = 0; i < used; ++i) {
    Source& source = *sources_[i];
    const std::lock_guard lock(source.mutex);
    ExpireOf(source, i, now);
  }
}

// ---- At the pick.

void ExactIndex::Match(std::span<const uint64_t> chain, Scratch& scratch,
                       std::vector<ExactMatch>& matches) const {
  matches.clear();
  const size_t used = used_.load(std::memory_order_acquire);
  if (chain.empty() || used == 0) return;
  if (scratch.runs_.size() < used) scratch.runs_.resize(used);
  Holders* same = &scratch.holders_[0];  // of the block before
  Holders* next = &scratch.holders_[1];
  same->count = 0;
  same->bitmap = false;
  scratch.open_ = 0;
  for (size_t i = 0; i < std::min(kReadAhead, chain.size()); ++i) table_.Prefetch(chain[i]);
  uint32_t blocks = 0;
  for (; blocks < chain.size(); ++blocks) {
    if (blocks + kReadAhead < chain.size()) table_.Prefetch(chain[blocks + kReadAhead]);
    table_.Read(chain[blocks], *next, used * bits_);
    if (blocks != 0 && SameHolders(*same, *next)) continue;
    Turn(*same, *next, blocks, scratch);
    if (scratch.open_ == 0) break;
    std::swap(same, next);
  }
  for (const uint16_t source : scratch.found_) {
    Scratch::Run& run = scratch.runs_[source];
    if (run.open) run.Sum(blocks);
    matches.push_back({source, run.since, run.sum});
    run = {};
  }
  scratch.found_.clear();
}

void ExactIndex::Scratch::Run::Sum(uint32_t to) {
  sum += weight * static_cast<float>(to - since);
  since = to;
}

// Only sources whose bits differ are looked at: 1,000 engines whose runs end at 1,000 places are 1,000 steps,
// where all who are left at each of them are half a million.
void ExactIndex::Turn(const Holders& before, const Holders& now, uint32_t block, Scratch& scratch) const {
  const std::span<const uint64_t> was = Bits(before, scratch.bits_[0]), is = Bits(now, scratch.bits_[1]);
  for (size_t word = 0; word < std::max(was.size(), is.size()); ++word) {
    uint64_t bits = (word < was.size() ? was[word] : 0) ^ (word < is.size() ? is[word] : 0);
    for (; bits != 0; bits &= bits - 1) {
      const size_t source = (word * 64 + static_cast<size_t>(std::countr_zero(bits))) / bits_;
      if (source < scratch.runs_.size()) TurnOf(source, block, is, scratch);  // else it was taken since
    }
  }
}

void ExactIndex::TurnOf(size_t source, uint32_t block, std::span<const uint64_t> bits,
                        Scratch& scratch) const {
  Scratch::Run& run = scratch.runs_[source];
  if (block == 0 && !run.open) {
    run.open = true;
    ++scratch.open_;
    scratch.found_.push_back(static_cast<uint16_t>(source));
  }
  if (!run.open) return;
  bool held = false;
  float weight = 0;  // of the best of the memories that it is in
  for (size_t i = 0; i < bits_; ++i) {
    const size_t slot = source * bits_ + i;
    if (slot / 64 >= bits.size() || (bits[slot / 64] >> slot % 64 & 1) == 0) continue;
    weight = held ? std::max(weight, weights_[i]) : weights_[i];
    held = true;
  }
  run.Sum(block);
  run.weight = weight;
  if (held) return;
  run.open = false;
  --scratch.open_;
}

size_t ExactIndex::held(EndpointSlot slot) const {
  std::unique_lock<std::mutex> lock;
  const Source* source = Lock(slot, lock);
  return source != nullptr ? source->names.size() : 0;
}

ExactStats ExactIndex::stats() const {
  ExactStats stats;
  stats.bytes = table_.bytes();
  stats.most_bytes = table_.most_bytes() + most_held_ * kWithEngine;
  stats.blocks = table_.records();
  const size_t used = used_.load(std::memory_order_acquire);
  for (size_t i = 0; i < used; ++i) {
    const Source& source = *sources_[i];
    const std::lock_guard lock(source.mutex);
    stats.held += source.names.size();
    stats.bytes += source.names.bytes() + source.known.capacity() * sizeof(Known) +
                   source.tokens.capacity() * sizeof(uint32_t) + source.guessed * sizeof(uint64_t);
  }
  {
    const std::lock_guard lock(take_mutex_);
    stats.sources = live_;
  }
  stats.stored = stored_.load(std::memory_order_relaxed);
  stats.removed = removed_.load(std::memory_order_relaxed);
  stats.evicted = evicted_.load(std::memory_order_relaxed);
  stats.refused = refused_.load(std::memory_order_relaxed);
  return stats;
}

}  // namespace fairway::prefix
