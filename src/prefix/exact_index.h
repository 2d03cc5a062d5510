// Which engine holds how much of a prompt, by what engines tell of their caches block by block (KV events).
//
//   ExactIndex index({.keys = BlockKeys(...)});
//   EndpointSlot source = *index.Take();          // one for each engine, as long as it is followed
//   index.Store(source, {...}); index.Remove(source, hashes, "gpu"); index.Clear(source);
//   index.Match(chain, scratch, matches);         // at the pick; `chain`: keys of a request's blocks
//
// An engine names its blocks by hashes of its own. They are kept, for each engine, with the key that is made
// of the block's tokens; a block's parent is found by them, and so is what is removed. A block that is stored
// twice is there until it is removed twice. An engine's block may be several of ours, or a part of one (SGLang's
// pages of one token): then ours is there with the last of its parts.
//
// A match is the longest run of blocks from the first on, whatever memory each is in (a tier: "gpu", "cpu"),
// and the sum of their tiers' weights. Of tiers that weigh alike one is not told from the other.
//
// Memory: `bytes` bounds all of it, at most 80 bytes a block at an engine: 44 with the engine, the rest in the
// table (block_table.h). A part of a block counts as one, and its tokens (4 bytes each) with it. Each engine has
// an equal share; what was told longest ago falls off. What engines hold is far less than that: 3.3 million
// blocks of 16 tokens in 256 MiB.
//
// Thread-safe. Match takes no lock, and a scratch for each thread. The others take their source's mutex for
// the time of their work.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "prefix/block_keys.h"
#include "prefix/block_table.h"
#include "prefix/index.h"
#include "prefix/slot_blocks.h"

namespace fairway::prefix {

// What an engine tells of blocks that it has stored. Views are valid while it is told.
struct StoredBlocks {
  std::span<const uint64_t> blocks;  // as the engine names them, one behind the other in a prompt
  std::optional<uint64_t> parent;    // the one before them; nothing: they are a prompt's first
  // Of all of them. None: blocks that were told before are in this tier, too.
  std::span<const uint32_t> tokens;
  uint32_t block_tokens = 0;                              // in each
  std::string_view tier;                                  // "": gpu
  std::string_view adapter;                               // "": none
  std::span<const std::vector<std::string_view>> extras;  // of each block; empty: none has any
};

// What became of them.
struct StoreOutcome {
  enum class Kind : uint8_t {
    kStored,
    kNoParent,   // the block before them is not known
    kNoTokens,   // they have no tokens, and are not known either
    kBlockSize,  // it is neither a multiple nor a part of ours, or a part that has extras
    kNobody,     // the source is gone
  };
  Kind kind = Kind::kStored;
  uint32_t blocks = 0;  // of ours that are there now and were not
  // The first one of ours of a prompt is among them: its key, and what that would be without adapter and extras.
  bool begins = false;
  uint64_t first = 0;
  uint64_t plain = 0;
};

struct ExactMatch {
  uint16_t source = 0;
  uint32_t blocks = 0;  // at least 1
  float weight = 0;     // sum over them
};

struct ExactOptions {
  BlockKeys keys{BlockKeys::Algorithm::kCborFnv, "", 16};
  size_t bytes = size_t{256} << 20;
  // What a block is worth by where it is, in lower case. A tier that is not among them: 1. REQUIRES: at most
  // kMaxWeights different ones, that 1 included.
  std::vector<std::pair<std::string, float>> tiers = {{"gpu", 1.0f}, {"cpu", 0.8f}};
  size_t max_speculated = 4096;  // keys of a source
};

struct ExactStats {
  size_t bytes = 0;
  size_t most_bytes = 0;
  size_t blocks = 0;  // different ones
  size_t held = 0;    // sum over the engines
  size_t sources = 0;
  uint64_t stored = 0;   // blocks that an engine got, since the start
  uint64_t removed = 0;  // that an engine said were gone
  uint64_t evicted = 0;  // that found no room beside newer ones
  uint64_t refused = 0;  // that found no room in the table
};

class ExactIndex {
 public:
  static constexpr size_t kMaxWeights = 7;

  explicit ExactIndex(ExactOptions options);
  ExactIndex(const ExactIndex&) = delete;
  ExactIndex& operator=(const ExactIndex&) = delete;

  const BlockKeys& keys() const { return options_.keys; }
  size_t max_sources() const { return max_sources_; }

  // Nothing: there are max_sources already.
  std::optional<EndpointSlot> Take();
  void Return(EndpointSlot source);

  StoreOutcome Store(EndpointSlot source, const StoredBlocks& stored);
  // Unknown ones are ignored.
  void Remove(EndpointSlot source, std::span<const uint64_t> blocks, std::string_view tier);
  // It holds nothing, in no tier.
  void Clear(EndpointSlot source);
  // These will be there soon: they count as if they were, until `until`, which is never before that of an
  // earlier call by more than their order may differ among threads. Waits for nobody: while something else is
  // done with the source they are not believed.
  void Speculate(EndpointSlot source, std::span<const uint64_t> chain, base::Nanos until);
  // Takes away what was believed until then. Speculate does so for its source.
  void Expire(base::Nanos now);

  class Scratch {
    friend class ExactIndex;
    struct Run {
      uint32_t since = 0;  // the first block that is not in `sum` yet
      float sum = 0;
      float weight = 0;  // of a block from there on
      bool open = false;
      void Sum(uint32_t to);
    };
    std::array<Holders, 2> holders_;
    std::array<std::vector<uint64_t>, 2> bits_;  // of both, where they are lists
    std::vector<Run> runs_;                      // by source; zeros between uses
    std::vector<uint16_t> found_;
    size_t open_ = 0;  // runs
  };
  // Into `matches` those that hold the first block, in no order.
  void Match(std::span<const uint64_t> chain, Scratch& scratch, std::vector<ExactMatch>& matches) const;

  size_t held(EndpointSlot source) const;  // blocks
  ExactStats stats() const;

 private:
  // Of a block as its engine names it.
  struct Known {
    // Of ours that ends here; of a part that does not end one, the name of the part or block before it, or its
    // own where there is none.
    uint64_t key = 0;
    std::array<uint8_t, kMaxWeights> stored{};  // how often, by weight
    uint8_t part = 0;                           // how many parts of ours there are with it; 0: all
  };
  // Tokens behind an engine's block, of ours that it does not end.
  struct Begun {
    uint64_t behind = 0;  // that block's name
    bool valid = false;
    bool first = false;  // nothing is before them
    uint64_t key = 0;    // of ours before them
    std::vector<uint32_t> tokens;
  };
  struct Guess {
    base::Nanos until = 0;
    std::vector<uint64_t> keys;
  };
  struct alignas(64) Source {
    mutable std::mutex mutex;
    uint32_t generation = 0;  // odd: taken
    SlotBlocks names;
    std::vector<Known> known;      // by node of `names`
    uint32_t part_tokens = 0;      // of each part of ours; 0: its blocks are not parts
    std::vector<uint32_t> tokens;  // by node, so many each
    Begun begun;                   // behind what was stored last
    std::deque<Guess> guesses;
    size_t guessed = 0;                                                      // keys of all of them
    std::unordered_map<uint64_t, uint32_t, SlotBlocks::Hash> times_guessed;  // how many of them have a key
  };

  Source* Lock(EndpointSlot source, std::unique_lock<std::mutex>& lock) const;
  Source* Locked(EndpointSlot source, const std::unique_lock<std::mutex>& lock) const;
  size_t WeightOf(std::string_view tier) const;
  uint16_t Bit(size_t source, size_t weight) const { return static_cast<uint16_t>(source * bits_ + weight); }
  size_t Guessed() const { return weights_.size() - 1; }  // the number of what is only believed
  void Put(Source& source, size_t number, uint32_t node, size_t weight);
  void Drop(Source& source, size_t number, uint32_t node);
  void Trim(Source& source, size_t number, size_t most);
  void Empty(Source& source, size_t number);
  void ExpireOf(Source& source, size_t number, base::Nanos now);
  StoreOutcome StoreAgain(Source& source, size_t number, const StoredBlocks& stored);
  StoreOutcome StoreTokens(Source& source, size_t number, const StoredBlocks& stored);
  StoreOutcome StoreParts(Source& source, size_t number, const StoredBlocks& stored);
  bool FindBegun(Source& source, const StoredBlocks& stored) const;
  static void KeepTokens(Source& source, std::span<const uint32_t> tokens, size_t most);
  std::pair<uint32_t, bool> Place(Source& source, size_t number, uint64_t name, const Known& known,
                                  std::span<const uint32_t> tokens, uint32_t after, size_t most);
  size_t MostOf(const Source& source) const;
  void SetShare();
  void Turn(const Holders& before, const Holders& now, uint32_t block, Scratch& scratch) const;
  void TurnOf(size_t source, uint32_t block, std::span<const uint64_t> bits, Scratch& scratch) const;

  const ExactOptions options_;
  std::vector<float> weights_;  // different ones, then that of what is only believed
  size_t bits_ = 0;             // of the table's slots to a source
  size_t max_sources_ = 0;
  size_t most_held_ = 0;
  BlockTable table_;
  std::unique_ptr<std::unique_ptr<Source>[]> sources_;  // made when first taken, and kept
  std::atomic<size_t> used_{0};                         // that were ever taken
  mutable std::mutex take_mutex_;
  std::priority_queue<uint16_t, std::vector<uint16_t>, std::greater<>> free_;
  size_t live_ = 0;
  std::atomic<size_t> share_;
  std::atomic<uint64_t> stored_{0}, removed_{0}, evicted_{0}, refused_{0};
};

}  // namespace fairway::prefix
