// approx-prefix-cache-producer: makes "cached-tokens", how much of the request's prompt each endpoint is
// believed to have in its prefix cache, and "prefix-match", the same as a share of the prompt. It believes
// that an endpoint has what was sent there, as long as its cache is large enough for all that came since.
//
// Prompts are compared by blocks of 64 tokens, taken as 256 bytes of text, and their last, shorter block by
// all that came before it. An endpoint's cache is as large as its page says (blocks x tokens of each) while
// `autoTune` (true), else `lruCapacityPerServer` (31,250) blocks of `blockSizeTokens` (16) tokens; what
// answers tell of cached tokens corrects that, since engines evict earlier than they say. Where engines' KV
// events are followed (precise-prefix-cache-producer), how much they are seen to hold takes the page's place,
// and a cache that was emptied is believed empty at once. Without autoTune
// `blockSizeTokens` above 64 is the unit of what matches, as the reference has it: in whole blocks of so many
// tokens, rounded down to 64s; up to 64 it says the same as 64. `blockSize` is its old name.
// `maxPrefixTokensToMatch` (131,072 tokens) ends what is compared, where it is 0 `maxPrefixBlocksToMatch`
// (2048 blocks), and where both are, what is hashed does (2 MiB of text). `memory` (268,435,456 bytes) bounds
// the whole index.
//
// Source: the reference's producer of this name (llm-d router), which counts blocks that are not contiguous,
// keeps what engines have evicted, and never learns from answers. prefix/index.h has the structure.
#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "prefix/index.h"
#include "prefix/learned_capacity.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

constexpr uint32_t kBlockTokens = payload::PromptHasher::kBlockBytes / 4;
constexpr float kNoSlot = -1;

// What outlives a config: the index, and which endpoint has which slot.
class Cache {
 public:
  explicit Cache(const prefix::IndexOptions& options)
      : index(options), generations_(options.max_slots), reported_(options.max_slots) {}

  // The endpoint's slot, taken when it is new. Nothing: all are taken.
  std::optional<prefix::EndpointSlot> SlotOf(const std::shared_ptr<fleet::EndpointCell>& cell) {
    const std::lock_guard lock(mutex_);
    auto found = known_.find(cell.get());
    if (found != known_.end() && !found->second.cell.expired()) return found->second.slot;
    if (found != known_.end()) {  // another one, at the place in memory of one that is gone
      index.Return(found->second.slot);
      known_.erase(found);
    }
    // A fleet of 100,000 comes at once, and a look at all for each would take a minute.
    if (++asked_ > known_.size()) ForgetGone();
    const auto slot = index.Take();
    if (slot) {
      known_.emplace(cell.get(), Known{cell, *slot, prefix::LearnedCapacity(index.capacity(*slot))});
      generations_[slot->index].store(slot->generation, std::memory_order_relaxed);
      reported_[slot->index].store(0, std::memory_order_relaxed);
    }
    return slot;
  }

  prefix::EndpointSlot Slot(float column) const noexcept {
    const auto index = static_cast<uint16_t>(column);
    return {index, generations_[index].load(std::memory_order_relaxed)};
  }

  // Nothing: it was never seen.
  std::optional<prefix::EndpointSlot> Find(const fleet::EndpointCell& cell) {
    const std::lock_guard lock(mutex_);
    const auto found = known_.find(&cell);
    if (found == known_.end() || found->second.cell.expired()) return std::nullopt;
    return found->second.slot;
  }

  // The size of its cache as its page has it, in blocks of ours.
  void Report(const fleet::EndpointCell& cell, prefix::EndpointSlot slot) {
    const auto blocks = static_cast<uint32_t>(uint64_t{cell.num_blocks()} * cell.block_size() / kBlockTokens);
    if (blocks == 0 || reported_[slot.index].load(std::memory_order_relaxed) == blocks) return;
    const std::lock_guard lock(mutex_);
    const auto found = known_.find(&cell);
    if (found == known_.end() || found->second.counted) return;
    reported_[slot.index].store(blocks, std::memory_order_relaxed);
    found->second.capacity.SetReported(blocks);
    index.SetCapacity(slot, found->second.capacity.blocks());
  }

  // The same as its events have it, which is what it really had: its page counts no more.
  void Count(const fleet::EndpointCell& cell, uint64_t tokens) {
    const std::lock_guard lock(mutex_);
    const auto found = known_.find(&cell);
    if (found == known_.end()) return;
    Known& known = found->second;
    known.counted = true;
    known.capacity.SetReported(std::max<size_t>(tokens / kBlockTokens, 1));
    index.SetCapacity(known.slot, known.capacity.blocks());
  }

  void Learn(const fleet::EndpointCell& cell, const prefix::CacheTold& told, base::Nanos now) {
    const std::lock_guard lock(mutex_);
    const auto found = known_.find(&cell);
    if (found == known_.end()) return;
    Known& known = found->second;
    switch (known.capacity.Learn(told, index.held(known.slot), now)) {
      case prefix::LearnedCapacity::kShrunk:
      case prefix::LearnedCapacity::kGrown:
        index.SetCapacity(known.slot, known.capacity.blocks());
        break;
      case prefix::LearnedCapacity::kGone:
        index.Forget(known.slot);
        break;
      default:
        break;
    }
  }

  Placements::Held Export(const fleet::EndpointCell& cell) {
    Placements::Held held;
    const auto slot = Find(cell);
    if (!slot) return held;
    {
      const std::lock_guard lock(mutex_);
      const auto found = known_.find(&cell);
      if (found != known_.end() && reported_[slot->index].load(std::memory_order_relaxed) != 0) {
        held.reported = found->second.capacity.reported();
        held.capacity = found->second.capacity.blocks();
      }
    }
    held.blocks = index.Export(*slot, Placements::kMostHeld);
    return held;
  }

  // `sizes`: also how much it can hold, unless its page or its events have said so already.
  void Import(const fleet::EndpointCell& cell, const Placements::Held& held, bool sizes) {
    const auto slot = Find(cell);
    if (!slot) return;
    if (sizes) {
      const std::lock_guard lock(mutex_);
      const auto found = known_.find(&cell);
      if (found != known_.end() && !found->second.counted &&
          reported_[slot->index].load(std::memory_order_relaxed) == 0) {
        found->second.capacity.Adopt(held.reported, held.capacity);
        index.SetCapacity(*slot, found->second.capacity.blocks());
      }
    }
    index.Import(*slot, held.blocks);
  }

  prefix::Index index;

 private:
  struct Known {
    std::weak_ptr<fleet::EndpointCell> cell;
    prefix::EndpointSlot slot;
    prefix::LearnedCapacity capacity;
    bool counted = false;  // by the engine's events
  };
  void ForgetGone() {
    asked_ = 0;
    for (auto it = known_.begin(); it != known_.end();) {
      if (it->second.cell.expired()) {
        index.Return(it->second.slot);
        it = known_.erase(it);
      } else {
        ++it;
      }
    }
  }

  std::mutex mutex_;
  size_t asked_ = 0;  // for slots of new endpoints, since ForgetGone
  std::unordered_map<const fleet::EndpointCell*, Known> known_;
  // By slot: its generation, and the size of cache that the index was told.
  std::vector<std::atomic<uint32_t>> generations_, reported_;
};

// Blocks of a prompt that are learned at the pick; the rest is put off. 8 KB of text.
constexpr size_t kLearnedAtOnce = 32;
// The profile that answers and one that prefills.
constexpr size_t kMostPutOff = 2;

// Of one worker.
struct Lookup {
  prefix::Index::Scratch scratch;
  std::vector<prefix::SlotMatch> matches;
  std::vector<uint32_t> blocks =
      std::vector<uint32_t>(prefix::BlockTable::kMaxSlots);  // by slot; zeros between uses
  std::vector<uint16_t> found;
  // Over the last requests: which share of those that are open other pickers sent, and which share of their
  // prompts we knew.
  float others = 0;
  // From the start as if half of each prompt were known, and rising faster than it falls: so pickers that start
  // together place what many prompts begin with at one endpoint, and do not fill all caches with copies of it.
  // (Replays, 4 pickers: 150 tenants, 15 requests a second, 11,763 ms from 0 on with steps of 1/64, 259 so; unique
  // prompts 278 and 285, until a picker has found out that they share nothing.)
  float known = 0.5f;
  // Who is to learn the rest of the last request's prompts.
  std::array<prefix::EndpointSlot, kMostPutOff> put_off;
  size_t num_put_off = 0;
};

class ApproxPrefixCacheProducer final : public Plugin,
                                        public Producer,
                                        public EndpointProducer,
                                        public RequestHook,
                                        public CacheHook,
                                        public Placements,
                                        public PrefixBelief {
 public:
  explicit ApproxPrefixCacheProducer(Build& build)
      : auto_tune_(build.Flag("autoTune", true, "Block size and capacity as engines' pages tell them")) {
    prefix::IndexOptions options;
    options.bytes = static_cast<size_t>(build.Integer("memory", 256 << 20, 1 << 20, int64_t{1} << 40,
                                                      "Bytes for all that is believed to be cached"));
    const int64_t block_tokens = ReadBlock(build);
    // As many of the reference's blocks, each of so many tokens as the config says.
    const int64_t capacity = build.Integer("lruCapacityPerServer", 31'250, 1, 100'000'000,
                                           "Blocks that a server holds whose page does not tell");
    options.default_capacity =
        static_cast<size_t>(std::max<int64_t>(capacity * block_tokens / kBlockTokens, 1));
    ReadMost(build);
    build.WantsPrefixes();
    slot_ = build.Makes(build.Own("slot"), Lifetime::kSnapshot, Unit::kCount);
    name_ = build.Makes(build.Own("name"), Lifetime::kSnapshot, Unit::kCount);
    cached_ = build.Makes(kCachedTokens, Lifetime::kRequest, Unit::kTokens);
    match_ = build.Makes("prefix-match", Lifetime::kRequest, Unit::kShare);
    likely_ = build.Makes(kLikelyCachedTokens, Lifetime::kRequest, Unit::kTokens);
    trust_ = build.Float("trustInOthers", 2, 0, 4,
                         "How far it is believed that other pickers decide as this one does; 0 not at all");
    lookup_ = build.PerWorker<Lookup>();
    cache_ = build.Remember<Cache>([&] { return std::make_shared<Cache>(options); });
  }

  float Value(Column column, const fleet::Endpoint& endpoint) const override {
    // The same for every picker, and exact in a float.
    if (column == name_) return static_cast<float>(payload::PrefixRoot(endpoint.address, "") & 0xffffff);
    const auto slot = cache_->SlotOf(endpoint.cell);
    return slot ? static_cast<float>(slot->index) : kNoSlot;
  }

  void Make(const Context& context, float* const* made) const noexcept override {
    const Prompts& prompts = context.request.prompts;
    if (prompts.prefixes.empty()) return;
    Lookup& lookup = lookup_.Get(context.worker);
    lookup.num_put_off = 0;
    size_t total = 0;
    uint32_t begin = 0;
    for (const payload::PromptEnd& prompt : prompts.ends) {
      const auto chain = Chain(prompts.prefixes, begin, prompt.end, max_blocks_);
      cache_->index.Match(chain, lookup.scratch, lookup.matches);
      for (const prefix::SlotMatch& match : lookup.matches) {
        if (lookup.blocks[match.slot.index] == 0) lookup.found.push_back(match.slot.index);
        lookup.blocks[match.slot.index] += Whole(match.blocks, chain.size());
      }
      total += chain.size();
      begin = prompt.end;
    }
    if (total == 0 || (lookup.found.empty() && trust_ == 0)) return;
    const float* slots = context.columns[slot_];
    const auto prompt_tokens = static_cast<float>(context.request.prompt_tokens);
    const float share = 1 / static_cast<float>(total);
    for (size_t i = 0; i < context.columns.size(); ++i) {
      if (slots[i] < 0) continue;
      const auto blocks = static_cast<float>(lookup.blocks[static_cast<size_t>(slots[i])]);
      made[cached_.id][i] = std::min(blocks * kBlockTokens, prompt_tokens);
      made[match_.id][i] = blocks * share;
    }
    Guess(context, total, lookup, made);
    for (const uint16_t slot : lookup.found) lookup.blocks[slot] = 0;
    lookup.found.clear();
  }

  void Picked(const Context& context, uint32_t position,
              const fleet::Endpoint& endpoint) const noexcept override {
    const Prompts& prompts = context.request.prompts;
    const float column = context.columns[slot_][position];
    if (prompts.prefixes.empty() || column < 0) return;
    const prefix::EndpointSlot slot = cache_->Slot(column);
    if (auto_tune_) cache_->Report(*endpoint.cell, slot);
    size_t room = kLearnedAtOnce;
    bool all = true;
    uint32_t begin = 0;
    for (const payload::PromptEnd& prompt : prompts.ends) {
      const auto chain = Chain(prompts.prefixes, begin, prompt.end, max_blocks_);
      const auto first = chain.first(std::min(chain.size(), room));
      if (!first.empty()) cache_->index.Insert(slot, first);
      room -= first.size();
      all = all && first.size() == chain.size();
      begin = prompt.end;
    }
    Lookup& lookup = lookup_.Get(context.worker);
    if (!all && lookup.num_put_off < kMostPutOff) lookup.put_off[lookup.num_put_off++] = slot;
  }

  bool HasPutOff(std::span<const std::shared_ptr<void>> worker) const noexcept override {
    return lookup_.Get(worker).num_put_off != 0;
  }
  std::function<void()> TakePutOff(std::span<const std::shared_ptr<void>> worker,
                                   const std::shared_ptr<const Prompts>& of_request) const override {
    Lookup& lookup = lookup_.Get(worker);
    return [cache = cache_, of_request, slots = lookup.put_off, count = std::exchange(lookup.num_put_off, 0),
            most = max_blocks_] {
      uint32_t begin = 0;
      for (const payload::PromptEnd& prompt : of_request->ends) {
        const auto chain = Chain(of_request->prefixes, begin, prompt.end, most);
        for (size_t i = 0; i < count; ++i) cache->index.Insert(slots[i], chain);
        begin = prompt.end;
      }
    };
  }

  void PickedBeside(const Context& context, std::string_view profile, uint32_t position,
                    const fleet::Endpoint& endpoint) const noexcept override {
    // As the reference has it: the profile of this name computes the prompt.
    if (profile == "prefill") Picked(context, position, endpoint);
  }

  void Told(const fleet::EndpointCell& cell, const CacheTold& told, base::Nanos now) const noexcept override {
    cache_->Learn(cell,
                  {.predicted_blocks = told.believed_tokens / kBlockTokens,
                   .total_blocks = std::max<size_t>(told.prompt_estimate / kBlockTokens, 1),
                   .cached_tokens = told.cached_tokens,
                   .prompt_tokens = told.prompt_tokens},
                  now);
  }

  void Emptied(const fleet::EndpointCell& cell) const noexcept override {
    if (const auto slot = cache_->Find(cell)) cache_->index.Forget(*slot);
  }
  void Keeps(const fleet::EndpointCell& cell, uint64_t tokens) const noexcept override {
    if (auto_tune_) cache_->Count(cell, tokens);
  }

  Held Export(const fleet::EndpointCell& cell) const override { return cache_->Export(cell); }
  void Import(const fleet::EndpointCell& cell, const Held& held) const override {
    cache_->Import(cell, held, auto_tune_);
  }
  void SetTelling(bool telling) const noexcept override { cache_->index.SetTelling(telling); }
  bool HasUntold() const noexcept override { return cache_->index.HasUntold(); }
  void TakeUntold(const fleet::EndpointCell& cell, std::vector<uint64_t>& out) const override {
    if (const auto slot = cache_->Find(cell)) cache_->index.TakeUntold(*slot, out);
  }
  void PlacedByPeer(const fleet::EndpointCell& cell,
                    std::span<const uint64_t> chain) const noexcept override {
    if (const auto slot = cache_->Find(cell)) cache_->index.InsertTold(*slot, chain);
  }

  std::optional<Size> SizeOf(const fleet::EndpointCell& cell) const override {
    const auto slot = cache_->Find(cell);
    if (!slot) return std::nullopt;
    return Size{cache_->index.held(*slot) * kBlockTokens, cache_->index.capacity(*slot) * kBlockTokens};
  }
  Totals totals() const override {
    const prefix::IndexStats stats = cache_->index.stats();
    return {.entries = stats.held,
            .blocks = stats.blocks,
            .bytes = stats.bytes,
            .most_bytes = stats.most_bytes,
            .inserted = stats.inserted,
            .evicted = stats.evicted,
            .refused = stats.refused,
            .given_up = stats.given_up};
  }

 private:
  // `blockSizeTokens`, 16; `blockSize` is its old name. In tokens.
  int64_t ReadBlock(Build& build) {
    constexpr int64_t kOtherwise = 16;
    constexpr int64_t kMost = 1 << 20;
    const int64_t old = build.Integer("blockSize", kOtherwise, 0, kMost, "Old name of blockSizeTokens");
    int64_t tokens =
        build.Integer("blockSizeTokens", kOtherwise, 0, kMost, "Tokens of a block; below 64 counts as 64");
    if (tokens == kOtherwise) tokens = old;
    if (tokens == 0 && !auto_tune_) build.Error("blockSizeTokens", "must be above 0 without autoTune");
    if (tokens == 0) tokens = kOtherwise;
    if (auto_tune_ || tokens <= kBlockTokens) return tokens;
    blocks_each_ = static_cast<uint32_t>(tokens / kBlockTokens);
    if (tokens % kBlockTokens != 0)
      build.Warn("blockSizeTokens", "counts as " + std::to_string(blocks_each_ * kBlockTokens) +
                                        ": a multiple of " + std::to_string(kBlockTokens) + " tokens");
    return tokens;
  }
  // `maxPrefixTokensToMatch`, 131,072; where that is 0 the old `maxPrefixBlocksToMatch`, 2048; 0: no limit.
  void ReadMost(Build& build) {
    const int64_t tokens =
        build.Integer("maxPrefixTokensToMatch", 131'072, 0, 1 << 30,
                      "Tokens of a prompt that are looked at; 0: maxPrefixBlocksToMatch counts");
    const int64_t blocks =
        build.Integer("maxPrefixBlocksToMatch", 2048, 0, 1 << 30, "The same in blocks; 0: all");
    const size_t each = blocks_each_;
    if (tokens != 0) {
      max_blocks_ = static_cast<size_t>(tokens) / (kBlockTokens * each) * each;
    } else {
      max_blocks_ = blocks != 0 ? static_cast<size_t>(blocks) * each : SIZE_MAX;
    }
  }
  // Of a chain of `total` blocks of ours those that are whole ones of the config's.
  uint32_t Whole(uint32_t blocks, size_t total) const noexcept {
    return blocks == total ? blocks : blocks - blocks % blocks_each_;
  }

  // What other pickers did is not known here. But they decide as we do: what a conversation began with was
  // sent to the endpoint that is first by its hash, where load allowed it, and what continues what we know
  // went on there.
  void Guess(const Context& context, size_t total, Lookup& lookup, float* const* made) const noexcept {
    const size_t n = context.columns.size();
    const float* requests = context.columns[kRequests];
    float all = 0;
    float own = 0;
    for (size_t i = 0; i < n; ++i) {
      all += requests[i];
      own += static_cast<float>(context.own[i]);
    }
    // Replicas that tell where they placed what are no others: what they did is known.
    if (context.pool != nullptr) {  // the count is the whole pool's; the candidates get their share of it
      const auto told =
          static_cast<float>(context.pool->tally->told_requests.load(std::memory_order_relaxed));
      own += told * static_cast<float>(n) / static_cast<float>(std::max(context.pool->endpoints.size(), n));
    }
    if (all > 0) lookup.others += (1 - std::min(own / all, 1.0f) - lookup.others) / 32;
    const float* cached = made[cached_.id];
    float* likely = made[likely_.id];
    std::copy_n(cached, n, likely);
    const float most = *std::max_element(cached, cached + n);
    const auto deepest = static_cast<size_t>(std::count(cached, cached + n, most));
    if (context.request.prompt_tokens > 0) {
      const float share = most / static_cast<float>(context.request.prompt_tokens);
      lookup.known += (share - lookup.known) / (share > lookup.known ? 8 : 24);
    }
    const float left = static_cast<float>(context.request.prompt_tokens) - most;
    const size_t at = std::min<size_t>(static_cast<size_t>(most) / kBlockTokens, total - 1);
    size_t home = 0;
    if (deepest == 1) {
      home = static_cast<size_t>(std::max_element(cached, cached + n) - cached);
    } else {
      const float* names = context.columns[name_];
      uint64_t best = 0;
      for (size_t i = 0; i < n; ++i) {
        const uint64_t weight = Mix(context.request.prompts.prefixes[at] + static_cast<uint64_t>(names[i]));
        if (weight >= best) {
          best = weight;
          home = i;
        }
      }
    }
    likely[home] += left * std::min(trust_ * lookup.others, 1.0f) * std::min(2 * lookup.known, 1.0f);
  }
  static uint64_t Mix(uint64_t x) noexcept {
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93;
    return (x ^ x >> 32) * 0xd6e8feb86659fd93;
  }

  // Of a prompt what is compared: at most `most` blocks.
  static std::span<const uint64_t> Chain(std::span<const uint64_t> prefixes, uint32_t begin, uint32_t end,
                                         size_t most) {
    return prefixes.subspan(begin, std::min<size_t>(end - begin, most));
  }

  bool auto_tune_;
  uint32_t blocks_each_ = 1;  // of ours to one of the config's
  size_t max_blocks_ = SIZE_MAX;
  float trust_ = 0;
  Column slot_, name_, cached_, match_, likely_;
  Build::Worker<Lookup> lookup_;
  std::shared_ptr<Cache> cache_;
};

}  // namespace

std::unique_ptr<Plugin> MakeApproxPrefixCacheProducer(Build& build) {
  return std::make_unique<ApproxPrefixCacheProducer>(build);
}

}  // namespace fairway::scheduling
