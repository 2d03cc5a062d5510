// Keys of a prompt's blocks by their tokens: each stands for a block and all before it, as hashes of text do
// (payload/prompt_hash.h). An engine's events tell which tokens its blocks hold, so the same keys are made of
// a request and of an engine's block, whatever the engine hashes by itself.
//
//   const BlockKeys keys(BlockKeys::Algorithm::kXxh64, "seed", 16);
//   uint64_t key = keys.Root("adapter");
//   key = keys.Next(key, first_16_tokens, {}); key = keys.Next(key, next_16_tokens, extras);
//
// The two algorithms are the reference's (llm-d router, kvcache/kvblock/token_processor.go):
//   xxh64     XXH64 of parent (8 bytes), tokens (4 bytes each) and each extra as its length (8 bytes) and its
//             bytes, all little-endian; a root is XXH64(seed), then a block of no tokens whose extra is the
//             model
//   cbor-fnv  FNV-1a (64 bits) of the CBOR of [parent, [tokens], extras], extras being null or
//             [{"Hash": text}, ...]; a root is FNV-1a(seed), then that of [root, null, model]
//
// Immutable.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace fairway::prefix {

class BlockKeys {
 public:
  enum class Algorithm : uint8_t { kCborFnv, kXxh64 };

  // REQUIRES: block_tokens > 0.
  BlockKeys(Algorithm algorithm, std::string_view seed, uint32_t block_tokens);

  uint32_t block_tokens() const { return block_tokens_; }
  // `model`: whose blocks these are where it is an adapter.
  uint64_t Root(std::string_view model) const;
  uint64_t Next(uint64_t parent, std::span<const uint32_t> tokens,
                std::span<const std::string_view> extras) const;

 private:
  Algorithm algorithm_;
  uint32_t block_tokens_;
  uint64_t seed_;
};

// An image or the like among the tokens: what it is, and which tokens stand for it.
struct MediaTokens {
  std::string_view hash;
  uint32_t begin = 0;
  uint32_t end = 0;
};

// Appends the keys of a prompt's whole blocks. `media`: by their begin; a block that one overlaps has it for
// an extra. `salt`: an extra of the first block, behind those; "" is none.
void AppendKeys(const BlockKeys& keys, uint64_t root, std::span<const uint32_t> tokens,
                std::span<const MediaTokens> media, std::string_view salt, std::vector<uint64_t>& to);

}  // namespace fairway::prefix
