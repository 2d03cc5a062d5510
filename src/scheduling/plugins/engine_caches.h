// What engines tell of their prefix caches, by endpoint: the exact index, who has which source of it, how much
// of a cache was told, and whether it matches what engines are asked. Of precise-prefix-cache-producer.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "fleet/snapshot.h"
#include "prefix/exact_index.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {

// Whether what an engine tells is what it was asked: of a request that went there one sees its first block
// told, or cached before. Compared are keys of first blocks, and the same without adapter, salt and media, so
// that a mismatch has its reason. Owned by one thread at a time.
class EventMatch {
 public:
  // A request went there. `cached`: something of it was known to be there.
  void Asked(uint64_t first_key, uint64_t plain_key, bool cached);
  // What became of blocks that it told.
  void Told(const prefix::StoreOutcome& outcome, const prefix::StoredBlocks& stored);
  // "": it matches, or it is too early to say. `ours`: tokens of a block.
  std::string Why(uint32_t ours) const;
  bool unmatched() const { return unmatched_; }
  uint32_t asked() const { return asked_; }
  uint32_t told() const { return firsts_; }

 private:
  static constexpr size_t kKept = 64;
  static constexpr uint32_t kEnough = 16;
  void Judge();

  std::array<std::pair<uint64_t, uint64_t>, kKept> asked_keys_{};
  uint32_t asked_ = 0;        // requests, and since a match
  uint32_t firsts_ = 0;       // stores of a prompt's first block, the same
  uint32_t same_tokens_ = 0;  // of them, those of the right tokens under another key
  uint32_t no_parent_ = 0, no_tokens_ = 0, wrong_size_ = 0, stored_ = 0;  // stores, by outcome
  uint32_t size_ = 0;                                                     // of a block that does not fit ours
  bool unmatched_ = false;
};

// Thread-safe. What events say is told on one thread at a time. The mutex is not held while the index works, so
// that nobody waits for an engine that tells much.
class EngineCaches {
 public:
  // Unlike any other one in this process: what was told before does not count.
  const uint64_t number;

  explicit EngineCaches(prefix::ExactOptions options);

  prefix::ExactIndex index;

  // The source of the endpoint's first engine, made when it is new. Nothing: there are too many.
  std::optional<uint16_t> SourceOf(const std::shared_ptr<fleet::EndpointCell>& cell);

  // What events say. Endpoints that nobody asked SourceOf for are ignored.
  void Store(const fleet::EndpointCell& cell, int64_t rank, const prefix::StoredBlocks& stored);
  void Remove(const fleet::EndpointCell& cell, int64_t rank, std::span<const uint64_t> blocks,
              std::string_view tier);
  void Clear(const fleet::EndpointCell& cell);
  void Knows(const fleet::EndpointCell& cell, bool all);
  std::string WhyUnmatched(const fleet::EndpointCell& cell) const;
  std::optional<EngineView> View(const fleet::EndpointCell& cell) const;

  // ---- At the pick; no lock.
  // The first one of the endpoint that `source` is of.
  uint16_t FirstOf(uint16_t source) const { return shown_[source].first.load(std::memory_order_relaxed); }
  enum class Known : uint8_t { kNothing, kSome, kAll };
  // kNothing: nothing was told, or it does not match.
  Known known(uint16_t first) const { return shown_[first].known.load(std::memory_order_relaxed); }
  // Blocks of this adapter were told.
  bool IsAdapter(std::string_view name) const;

  // ---- After it.
  void Asked(uint16_t first, uint64_t first_key, uint64_t plain_key, bool cached);
  void Speculate(uint16_t first, std::span<const uint64_t> chain, base::Nanos until);

  std::atomic<uint64_t> lookups{0}, hits{0};

 private:
  static constexpr size_t kMaxAdapters = 1024;
  static constexpr size_t kMaxRanks = 64;  // of an endpoint
  struct Shown {
    std::atomic<uint16_t> first{0};
    std::atomic<Known> known{Known::kNothing};
  };
  struct Endpoint {
    std::weak_ptr<fleet::EndpointCell> cell;
    std::vector<std::pair<int64_t, prefix::EndpointSlot>> ranks;  // the first one is its own at the pick
    bool told = false;
    bool all = false;
    EventMatch match;
  };
  void Return(const Endpoint& endpoint);
  void ForgetGone();
  Endpoint* Find(const fleet::EndpointCell& cell);
  std::optional<prefix::EndpointSlot> SlotOf(Endpoint& endpoint, int64_t rank);
  std::optional<prefix::EndpointSlot> SlotOf(const fleet::EndpointCell& cell, int64_t rank,
                                             std::string_view adapter);
  void Show(const Endpoint& endpoint);
  void NoteAdapter(std::string_view name);

  mutable std::mutex mutex_;
  std::unordered_map<const fleet::EndpointCell*, Endpoint> endpoints_;
  std::unordered_map<uint16_t, const fleet::EndpointCell*> by_first_;
  size_t asked_ = 0;          // for new endpoints, since ForgetGone
  std::vector<Shown> shown_;  // by source
  // Hashes of adapters' names, those before the count. Never taken away.
  std::array<std::atomic<uint64_t>, kMaxAdapters> adapters_{};
  std::atomic<size_t> num_adapters_{0};
};

}  // namespace fairway::scheduling
