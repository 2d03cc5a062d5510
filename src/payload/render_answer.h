// The tokens of prompts, out of the answer of a render server of vLLM:
//
//   {"token_ids": [...], "features": {"mm_hashes": {"image": ["..."]},
//                                     "mm_placeholders": {"image": [{"offset": 3, "length": 576}]}}, ...}
//
// or a list of such, one for each prompt (/v1/completions/render). Other members are skipped.
//
//   RenderAnswerReader reader;
//   while (...) if (!reader.Feed(piece)) break;
//   const auto tokens = reader.Finish();
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string_view>

#include "payload/prompt_tokens.h"

namespace fairway::payload {

inline constexpr size_t kMaxRenderedTokens = 4u << 20;
inline constexpr size_t kMaxRenderedMedia = 4096;

// Reads one answer as it comes, in pieces cut anywhere; what comes out does not depend on the cuts. Owned by
// one thread. Linear time.
class RenderAnswerReader {
 public:
  RenderAnswerReader();
  ~RenderAnswerReader();
  RenderAnswerReader(const RenderAnswerReader&) = delete;
  RenderAnswerReader& operator=(const RenderAnswerReader&) = delete;

  // False: it is no answer, or has more than kMaxRenderedTokens or kMaxRenderedMedia; more pieces change
  // nothing.
  bool Feed(std::string_view piece);
  // What is kept of the answer so far; never less.
  size_t bytes() const;
  // The answer is complete. Nothing: as Feed's false. Once.
  std::optional<PromptTokens> Finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fairway::payload
