// Hashes of a prompt's blocks, made while its text passes: no copy of it, no second pass over it.
//
//   PromptHasher hasher;
//   hasher.BeginPart(PromptHasher::kMain); hasher.Add("text "); hasher.Add("in any pieces");
//   hasher.EndPart(); std::vector<uint64_t> chain; std::vector<PromptEnd> ends;
//   hasher.AppendChains(PrefixRoot(model, salt), chain, ends);
//
// A block is kBlockBytes of text as the client sent it, JSON escapes as they are: the same client writes the
// same text the same way, and undoing escapes costs more than hashing. Its hash is XXH3_64bits of its bytes
// and depends on nothing else, so model and salt may come after the prompt. AppendChains then makes hashes of
// prefixes of them, which say the same when the root and all blocks up to there are the same.
//
// A prompt is what a chat template makes of a body: the template itself where the body has one, tools,
// documents, then the system text, then messages, wherever they stand in the JSON. All but messages end with
// a shorter block of their own. What is one thing (an image's URL or data) is one block, and the text before
// it ends with a shorter one. Of several prompts in one body each is a chain of its own.
//
// Owned by one thread. Memory: 8 bytes a block, at most kMaxBlocks of them (2 MiB of text); what comes after
// is not hashed. What comes out does not depend on how the bytes were cut. Collisions can be made by who
// wants to: they mislead a guess about a cache, nothing else may hang on it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "payload/prompt_tokens.h"

namespace fairway::payload {

// Where a prompt's chain ends in the hashes that AppendChains made; its last block is shorter than a block.
struct PromptEnd {
  uint32_t end = 0;
  bool partial = false;
  bool operator==(const PromptEnd&) const = default;
};

// What the chains of a model and a salt begin with.
uint64_t PrefixRoot(std::string_view model, std::string_view salt);

// XXH3_64bits of each of `count` blocks that lie side by side. All of them say the same.
struct BlockKernel {
  const char* name;
  void (*hash)(const char* blocks, size_t count, uint64_t* out);
};
// Every one that this CPU can run, the fastest last.
std::span<const BlockKernel> AllBlockKernels();

class PromptHasher {
 public:
  static constexpr size_t kBlockBytes = 256;  // 64 tokens of 4 bytes, the reference's least
  static constexpr size_t kMaxBlocks = 8192;
  // In the order of the template.
  enum Part : uint8_t { kTemplate, kTools, kDocuments, kSystem, kMain };

  PromptHasher();
  void Reset();
  // From the next body on tokens that are added are kept, 4 bytes each.
  void KeepTokens(bool on) { tokens_ = on ? std::make_shared<PromptTokens>() : nullptr; }

  // Parts come one after the other, in any order, each once: of a body where one comes again there are no
  // chains.
  void BeginPart(Part part);
  void EndPart();
  // The body ends here, inside of a part or not; `cut`: it was to go on.
  void Finish(bool cut);
  // From here on another prompt. REQUIRES: in kMain.
  void NextPrompt() { EndPrompt(); }
  // The bytes that are added from here to EndOne are one block, however many they are.
  void BeginOne();
  void EndOne();
  void Add(std::string_view text);
  void AddToken(uint32_t token);  // four bytes, little-endian
  // What was added is not what the engine will see, or the engine does not look into its cache: there are no
  // chains and no tokens.
  void Spoil() { spoiled_ = true; }
  bool spoiled() const { return spoiled_; }

  // The prompts' prefixes, to hashes that may be there already. `partial`: with a hash of the last block
  // where that is a shorter one (the reference has it; it can only be met by the same prompt again).
  void AppendChains(uint64_t root, std::vector<uint64_t>& hashes, std::vector<PromptEnd>& ends,
                    bool partial = false) const;
  bool keeps_tokens() const { return tokens_ != nullptr; }
  // What the prompts are made of, where that is tokens alone, they were kept, and all of them are here. Else
  // null. REQUIRES: nothing is added after it.
  std::shared_ptr<const PromptTokens> tokens() const;
  // Blocks so far, of all parts, and what they were made of.
  size_t blocks() const { return hashes_.size(); }
  uint64_t bytes() const { return bytes_; }
  // What it takes, with itself.
  size_t memory() const {
    return sizeof *this + hashes_.capacity() * sizeof(uint64_t) + prompts_.capacity() * sizeof(PromptEnd) +
           (tokens_ != nullptr ? tokens_->bytes() : 0);
  }

 private:
  struct Range {
    uint32_t begin = 0;
    uint32_t end = 0;
    bool seen = false;
    bool cut = false;  // some of it is missing: nothing may follow
  };

  void Take(const char* blocks, size_t count);
  void Push(uint64_t hash);
  bool Close();
  void EndPrompt();

  void (*kernel_)(const char*, size_t, uint64_t*);
  std::vector<uint64_t> hashes_;  // of blocks, in the order of the body
  std::vector<PromptEnd> prompts_;
  std::array<Range, 5> parts_;
  Part part_ = kMain;
  std::shared_ptr<PromptTokens> tokens_;  // null: they are not wanted
  bool in_part_ = false;
  bool one_ = false;
  bool spoiled_ = false;
  uint64_t one_hash_ = 0;
  uint64_t bytes_ = 0;
  size_t rest_size_ = 0;
  std::array<char, kBlockBytes> rest_;  // the block that is not full
};

}  // namespace fairway::payload
