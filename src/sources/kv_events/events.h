// What an engine says of its KV cache: batches of events as vLLM, SGLang and TensorRT-LLM publish them.
//
//   [timestamp, events, rank?] or {"ts": ..., "events": ...}, in MessagePack; an event is
//     {"type": "BlockStored", "block_hashes": [...], "token_ids": [...], "block_size": 16, ...}   or
//     ["BlockStored", block_hashes, parent_block_hash, token_ids, block_size, lora_id, medium, lora_name,
//      extra_keys, group_idx, kv_cache_spec_kind, ...]
//     ["BlockRemoved", block_hashes, medium, group_idx, ...]
//     ["AllBlocksCleared"]
//
// Fields that are not there, or nil, have their defaults; what comes behind the known ones is skipped. Hashes
// are integers or bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace fairway::sources::kv_events {

struct KvEvent {
  enum class Kind : uint8_t { kStored, kRemoved, kCleared };
  Kind kind = Kind::kCleared;
  uint64_t blocks = 0;           // kStored, kRemoved: how many
  uint64_t block_size = 0;       // tokens in each; kStored: at least 1
  bool on_device = true;         // in the GPU's memory, which is also what an event without `medium` means
  std::optional<int64_t> group;  // of layers that have a cache of their own, in hybrid models
  // Such a cache keeps the whole prefix: full, MLA or sink attention, and what does not say.
  bool whole_prefix = true;
  int64_t rank = 0;  // of the engine, where a server is several
  // A block before those that were stored, as the engine names it; nothing: they are a prompt's first.
  std::optional<uint64_t> parent;
  std::string_view medium;   // as it was said; "": not
  std::string_view adapter;  // "": none
  // MessagePack, in the batch's bytes, for the functions below; empty: not there.
  std::string_view hashes, tokens, extra_keys;
};

// What an event's values hold, to the end of `to`. False: something else is in them, or more than `most`.
// Names of blocks: of bytes the last 8 count, as the reference has it (llm-d router, kvevents).
bool ReadHashes(std::string_view hashes, size_t most, std::vector<uint64_t>& to);
bool ReadTokens(std::string_view tokens, size_t most, std::vector<uint32_t>& to);
// An engine's block has at most so many tokens; an event with a larger one is malformed.
inline constexpr uint64_t kMostBlockTokens = 1 << 16;
// So many of ReadExtraKeys, of all blocks of an event together.
inline constexpr uint64_t kMostExtraKeys = 1 << 16;
// Of each block the texts (a list's first item stands for it) and bytes that it has beside its tokens, but for
// the adapter's name.
bool ReadExtraKeys(std::string_view extra_keys, std::string_view adapter, size_t most,
                   std::vector<std::vector<std::string_view>>& to);

class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void On(const KvEvent& event) = 0;
};

struct BatchOutcome {
  bool readable = false;  // it is a batch
  uint32_t events = 0;    // that the sink got
  uint32_t unknown = 0;   // of types that are not known
  uint32_t malformed = 0;
};

// The sink gets the events of `payload` in their order. One that is unknown or malformed is left out and
// counted, the rest of its batch stands. Time: that of one or two passes over the bytes.
BatchOutcome ReadBatch(std::string_view payload, EventSink& sink);

}  // namespace fairway::sources::kv_events
