// approx-prefix-cache-producer: makes "cached-tokens", how much of the request's prompt each endpoint is
// believed to have in its prefix cache, and "prefix-match", the same as a share of the prompt. It believes
// that an endpoint has what was sent there, as long as its cache is large enough for all that came since.
//
// Prompts are compared by blocks of 64 tokens, taken as 256 bytes of text. An endpoint's cache is as large as
// its page says (blocks x tokens of each), else `lruCapacityPerServer` blocks (7812 = the reference's 31,250
// of 16 tokens); what answers tell of cached tokens corrects that, since engines evict earlier than they say.
// `maxPrefixTokensToMatch` (131,072; 0 is all that is hashed) ends what is compared. `memory` (268,435,456
// bytes) bounds the whole index. Of the reference's other parameters `autoTune` (true) says whether pages
// count; block sizes are taken and have no effect.
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

  // The size of its cache as its page has it, in blocks of ours.
  void Report(const fleet::EndpointCell& cell, prefix::EndpointSlot slot) {
    const auto blocks = static_cast<uint32_t>(uint64_t{cell.num_blocks()} * cell.block_size() / kBlockTokens);
    if (blocks == 0 || reported_[slot.index].load(std::memory_order_relaxed) == blocks) return;
    const std::lock_guard lock(mutex_);
    const auto found = known_.find(&cell);
    if (found == known_.end()) return;
    reported_[slot.index].store(blocks, std::memory_order_relaxed);
    found->second.capacity.SetReported(blocks);
    index.SetCapacity(slot, found->second.capacity.blocks());
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

  prefix::Index index;

 private:
  struct Known {
    std::weak_ptr<fleet::EndpointCell> cell;
    prefix::EndpointSlot slot;
    prefix::LearnedCapacity capacity;
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
  float known = 0;
};

class ApproxPrefixCacheProducer final : public Plugin,
                                        public Producer,
                                        public EndpointProducer,
                                        public RequestHook {
 public:
  explicit ApproxPrefixCacheProducer(Build& build) : auto_tune_(build.Flag("autoTune", true)) {
    prefix::IndexOptions options;
    options.bytes = static_cast<size_t>(build.Integer("memory", 256 << 20, 1 << 20, int64_t{1} << 40));
    options.default_capacity =
        static_cast<size_t>(build.Integer("lruCapacityPerServer", 31'250, 1, 100'000'000)) / 4;
    const int64_t tokens = build.Integer("maxPrefixTokensToMatch", 131'072, 0, 1 << 30);
    max_blocks_ = tokens == 0 ? SIZE_MAX : static_cast<size_t>(tokens) / kBlockTokens;
    for (const char* size : {"blockSizeTokens", "blockSize", "maxPrefixBlocksToMatch"}) {
      if (build.Integer(size, 0, 0, 1 << 30) != 0)
        build.Warn(size, "has no effect: prompts are compared by blocks of 64 tokens");
    }
    build.WantsPrefixes();
    slot_ = build.Makes(build.Own("slot"), Lifetime::kSnapshot, Unit::kCount);
    name_ = build.Makes(build.Own("name"), Lifetime::kSnapshot, Unit::kCount);
    cached_ = build.Makes(kCachedTokens, Lifetime::kRequest, Unit::kTokens);
    match_ = build.Makes("prefix-match", Lifetime::kRequest, Unit::kShare);
    likely_ = build.Makes(kLikelyCachedTokens, Lifetime::kRequest, Unit::kTokens);
    trust_ = build.Float("trustInOthers", 2, 0, 4);
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
    const Request& request = context.request;
    if (request.prefixes.empty()) return;
    Lookup& lookup = lookup_.Get(context.worker);
    size_t total = 0;
    uint32_t begin = 0;
    for (const payload::PromptEnd& prompt : request.prefix_ends) {
      const auto chain = Chain(request, begin, prompt.end);
      cache_->index.Match(chain, lookup.scratch, lookup.matches);
      for (const prefix::SlotMatch& match : lookup.matches) {
        if (lookup.blocks[match.slot.index] == 0) lookup.found.push_back(match.slot.index);
        lookup.blocks[match.slot.index] += match.blocks;
      }
      total += chain.size();
      begin = prompt.end;
    }
    if (lookup.found.empty() && trust_ == 0) return;
    const float* slots = context.columns[slot_];
    const auto prompt_tokens = static_cast<float>(request.prompt_tokens);
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
    const Request& request = context.request;
    const float column = context.columns[slot_][position];
    if (request.prefixes.empty() || column < 0) return;
    const prefix::EndpointSlot slot = cache_->Slot(column);
    if (auto_tune_) cache_->Report(*endpoint.cell, slot);
    uint32_t begin = 0;
    for (const payload::PromptEnd& prompt : request.prefix_ends) {
      cache_->index.Insert(slot, Chain(request, begin, prompt.end));
      begin = prompt.end;
    }
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

 private:
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
    if (all > 0) lookup.others += (1 - own / all - lookup.others) / 32;
    const float* cached = made[cached_.id];
    float* likely = made[likely_.id];
    std::copy_n(cached, n, likely);
    const float most = *std::max_element(cached, cached + n);
    const auto deepest = static_cast<size_t>(std::count(cached, cached + n, most));
    if (context.request.prompt_tokens > 0)
      lookup.known += (most / static_cast<float>(context.request.prompt_tokens) - lookup.known) / 64;
    const float left = static_cast<float>(context.request.prompt_tokens) - most;
    const size_t at = std::min<size_t>(static_cast<size_t>(most) / kBlockTokens, total - 1);
    size_t home = 0;
    if (deepest == 1) {
      home = static_cast<size_t>(std::max_element(cached, cached + n) - cached);
    } else {
      const float* names = context.columns[name_];
      uint64_t best = 0;
      for (size_t i = 0; i < n; ++i) {
        const uint64_t weight = Mix(context.request.prefixes[at] + static_cast<uint64_t>(names[i]));
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

  std::span<const uint64_t> Chain(const Request& request, uint32_t begin, uint32_t end) const {
    return request.prefixes.subspan(begin, std::min<size_t>(end - begin, max_blocks_));
  }

  bool auto_tune_;
  size_t max_blocks_ = 0;
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
