#include "scheduling/plugins/engine_caches.h"

#include <algorithm>

#include "payload/prompt_hash.h"

namespace fairway::scheduling {
namespace {

std::atomic<uint64_t> num_engine_caches{0};

}  // namespace

// ---- EventMatch.

void EventMatch::Asked(uint64_t first_key, uint64_t plain_key, bool cached) {
  if (cached) {  // of what it told
    *this = {};
    return;
  }
  asked_keys_[asked_++ % kKept] = {first_key, plain_key};
  Judge();
}

void EventMatch::Told(const prefix::StoreOutcome& outcome, const prefix::StoredBlocks& stored) {
  using Kind = prefix::StoreOutcome::Kind;
  switch (outcome.kind) {
    case Kind::kStored:
      ++stored_;
      break;
    case Kind::kNoParent:
      ++no_parent_;
      break;
    case Kind::kNoTokens:
      ++no_tokens_;
      break;
    case Kind::kBlockSize:
      ++wrong_size_;
      size_ = stored.block_tokens;
      break;
    case Kind::kNobody:
      return;
  }
  if (outcome.begins) {
    ++firsts_;
    for (const auto& [key, plain] : asked_keys_) {
      if (key == outcome.first) {
        *this = {};
        return;
      }
      if (plain == outcome.plain) ++same_tokens_;
    }
  }
  Judge();
}

// An engine that tells nothing at all is another matter.
void EventMatch::Judge() {
  const bool tells = firsts_ >= kEnough || (stored_ == 0 && no_parent_ + no_tokens_ + wrong_size_ >= kEnough);
  unmatched_ = asked_ >= kEnough && tells;
}

std::string EventMatch::Why(uint32_t ours) const {
  if (!unmatched_) return {};
  if (stored_ == 0 && wrong_size_ > 0)
    return "block size: its blocks have " + std::to_string(size_) +
           " tokens, which neither is a multiple nor a part of " + std::to_string(ours) +
           ", or is a part and has salts or media: set tokenProcessorConfig.blockSizeTokens, or the engine's "
           "--block-size";
  if (stored_ == 0 && no_tokens_ > 0) return "its events have no token ids";
  if (stored_ == 0 && no_parent_ > 0)
    return "it was there before: its blocks continue what was never told; set replaySocketPort, or start it "
           "anew";
  if (same_tokens_ > 0)
    return "salt, adapter or media: it has the tokens of the requests, under other extra keys (SGLang tells "
           "no salts)";
  return "tokenizer: none of its prompts begins with the tokens of a request that went there; compare the "
         "render server's model and chat template with the engine's (a hash seed is no reason: keys are made "
         "of tokens)";
}

// ---- EngineCaches.

EngineCaches::EngineCaches(prefix::ExactOptions options)
    : number(++num_engine_caches), index(std::move(options)), shown_(index.max_sources()) {}

std::optional<uint16_t> EngineCaches::SourceOf(const std::shared_ptr<fleet::EndpointCell>& cell) {
  const std::lock_guard lock(mutex_);
  auto found = endpoints_.find(cell.get());
  if (found != endpoints_.end() && !found->second.cell.expired())
    return found->second.ranks.front().second.index;
  if (found != endpoints_.end()) {  // another one, at the place in memory of one that is gone
    Return(found->second);
    endpoints_.erase(found);
  }
  if (++asked_ > endpoints_.size()) ForgetGone();
  const auto slot = index.Take();
  if (!slot) return std::nullopt;
  Endpoint& endpoint = endpoints_[cell.get()];
  endpoint.cell = cell;
  endpoint.ranks = {{-1, *slot}};  // of whichever rank comes first
  by_first_[slot->index] = cell.get();
  shown_[slot->index].first.store(slot->index, std::memory_order_relaxed);
  Show(endpoint);
  return slot->index;
}

void EngineCaches::Return(const Endpoint& endpoint) {
  by_first_.erase(endpoint.ranks.front().second.index);
  for (const auto& [rank, slot] : endpoint.ranks) index.Return(slot);
}

void EngineCaches::ForgetGone() {
  asked_ = 0;
  for (auto it = endpoints_.begin(); it != endpoints_.end();) {
    if (!it->second.cell.expired()) {
      ++it;
      continue;
    }
    Return(it->second);
    it = endpoints_.erase(it);
  }
}

EngineCaches::Endpoint* EngineCaches::Find(const fleet::EndpointCell& cell) {
  const auto found = endpoints_.find(&cell);
  return found != endpoints_.end() ? &found->second : nullptr;
}

std::optional<prefix::EndpointSlot> EngineCaches::SlotOf(Endpoint& endpoint, int64_t rank) {
  auto& ranks = endpoint.ranks;
  if (ranks.front().first == -1) ranks.front().first = rank;
  const auto found =
      std::find_if(ranks.begin(), ranks.end(), [rank](const auto& r) { return r.first == rank; });
  if (found != ranks.end()) return found->second;
  if (ranks.size() == kMaxRanks) return std::nullopt;
  const auto slot = index.Take();
  if (!slot) return std::nullopt;
  shown_[slot->index].first.store(ranks.front().second.index, std::memory_order_relaxed);
  ranks.emplace_back(rank, *slot);
  return slot;
}

std::optional<prefix::EndpointSlot> EngineCaches::SlotOf(const fleet::EndpointCell& cell, int64_t rank,
                                                         std::string_view adapter) {
  const std::lock_guard lock(mutex_);
  Endpoint* endpoint = Find(cell);
  if (endpoint == nullptr) return std::nullopt;
  if (!adapter.empty()) NoteAdapter(adapter);
  return SlotOf(*endpoint, rank);
}

void EngineCaches::Show(const Endpoint& endpoint) {
  Known known = Known::kNothing;
  if (endpoint.told && !endpoint.match.unmatched()) known = endpoint.all ? Known::kAll : Known::kSome;
  shown_[endpoint.ranks.front().second.index].known.store(known, std::memory_order_relaxed);
}

// What takes long is done without the mutex. A source that is returned meanwhile is nobody's for the index.
void EngineCaches::Store(const fleet::EndpointCell& cell, int64_t rank, const prefix::StoredBlocks& stored) {
  const auto slot = SlotOf(cell, rank, stored.adapter);
  if (!slot) return;
  const prefix::StoreOutcome outcome = index.Store(*slot, stored);
  const std::lock_guard lock(mutex_);
  Endpoint* endpoint = Find(cell);
  if (endpoint == nullptr) return;
  endpoint->told = true;
  endpoint->match.Told(outcome, stored);
  Show(*endpoint);
}

void EngineCaches::Remove(const fleet::EndpointCell& cell, int64_t rank, std::span<const uint64_t> blocks,
                          std::string_view tier) {
  if (const auto slot = SlotOf(cell, rank, "")) index.Remove(*slot, blocks, tier);
}

void EngineCaches::Clear(const fleet::EndpointCell& cell) {
  std::vector<std::pair<int64_t, prefix::EndpointSlot>> ranks;
  {
    const std::lock_guard lock(mutex_);
    if (const Endpoint* endpoint = Find(cell); endpoint != nullptr) ranks = endpoint->ranks;
  }
  for (const auto& [rank, slot] : ranks) index.Clear(slot);
  const std::lock_guard lock(mutex_);
  Endpoint* endpoint = Find(cell);
  if (endpoint == nullptr) return;
  endpoint->match = {};
  Show(*endpoint);
}

void EngineCaches::Knows(const fleet::EndpointCell& cell, bool all) {
  const std::lock_guard lock(mutex_);
  Endpoint* endpoint = Find(cell);
  if (endpoint == nullptr) return;
  endpoint->told = true;
  endpoint->all = all;
  Show(*endpoint);
}

std::string EngineCaches::WhyUnmatched(const fleet::EndpointCell& cell) const {
  const std::lock_guard lock(mutex_);
  const auto found = endpoints_.find(&cell);
  return found != endpoints_.end() ? found->second.match.Why(index.keys().block_tokens()) : std::string();
}

std::optional<EngineView> EngineCaches::View(const fleet::EndpointCell& cell) const {
  const std::lock_guard lock(mutex_);
  const auto found = endpoints_.find(&cell);
  if (found == endpoints_.end()) return std::nullopt;
  const Endpoint& endpoint = found->second;
  EngineView view{.known = !endpoint.told ? "nothing"
                           : endpoint.all ? "all"
                                          : "some",
                  .block_tokens = index.keys().block_tokens(),
                  .engines = endpoint.ranks.size(),
                  .asked = endpoint.match.asked(),
                  .told = endpoint.match.told(),
                  .why_unmatched = endpoint.match.Why(index.keys().block_tokens())};
  for (const auto& [rank, slot] : endpoint.ranks) view.blocks += index.held(slot);
  return view;
}

// Under the mutex.
void EngineCaches::NoteAdapter(std::string_view name) {
  if (IsAdapter(name)) return;
  const size_t count = num_adapters_.load(std::memory_order_relaxed);
  if (count == kMaxAdapters) return;
  adapters_[count].store(payload::PrefixRoot(name, ""), std::memory_order_relaxed);
  num_adapters_.store(count + 1, std::memory_order_release);
}

bool EngineCaches::IsAdapter(std::string_view name) const {
  const size_t count = num_adapters_.load(std::memory_order_acquire);
  if (count == 0) return false;
  const uint64_t hash = payload::PrefixRoot(name, "");
  return std::any_of(adapters_.begin(), adapters_.begin() + static_cast<std::ptrdiff_t>(count),
                     [hash](const auto& known) { return known.load(std::memory_order_relaxed) == hash; });
}

void EngineCaches::Asked(uint16_t first, uint64_t first_key, uint64_t plain_key, bool cached) {
  // Who tells may hold it for long, and what is asked is only a sample.
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return;
  const auto cell = by_first_.find(first);
  if (cell == by_first_.end()) return;
  Endpoint& endpoint = endpoints_.at(cell->second);
  if (!endpoint.told) return;
  endpoint.match.Asked(first_key, plain_key, cached);
  Show(endpoint);
}

void EngineCaches::Speculate(uint16_t first, std::span<const uint64_t> chain, base::Nanos until) {
  std::optional<prefix::EndpointSlot> slot;
  {
    // As in Asked: a guess may be lost.
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return;
    const auto cell = by_first_.find(first);
    if (cell == by_first_.end()) return;
    slot = endpoints_.at(cell->second).ranks.front().second;
  }
  index.Speculate(*slot, chain, until);
}

}  // namespace fairway::scheduling
