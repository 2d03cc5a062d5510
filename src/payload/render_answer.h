// The tokens of prompts, out of the answer of a render server of vLLM:
//
//   {"token_ids": [...], "features": {"mm_hashes": {"image": ["..."]},
//                                     "mm_placeholders": {"image": [{"offset": 3, "length": 576}]}}, ...}
//
// or a list of such, one for each prompt (/v1/completions/render). Other members are skipped.
#pragma once

#include <optional>
#include <string_view>

#include "payload/prompt_tokens.h"

namespace fairway::payload {

// Nothing: it is none, or has more than kMaxRenderedTokens or kMaxRenderedMedia.
std::optional<PromptTokens> ReadRenderAnswer(std::string_view json);

inline constexpr size_t kMaxRenderedTokens = 4u << 20;
inline constexpr size_t kMaxRenderedMedia = 4096;

}  // namespace fairway::payload
