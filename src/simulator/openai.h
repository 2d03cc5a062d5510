// The texts of vLLM's OpenAI-compatible API: answers, stream events, errors, the list of models. Pure
// functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "simulator/engine.h"

namespace fairway::simulator {

// What the texts about one request have in common.
struct AnswerHead {
  bool chat = true;  // /v1/chat/completions, else /v1/completions
  std::string id;    // "chatcmpl-..." or "cmpl-..."
  int64_t created = 0;
  std::string model;  // as asked for
};

struct TokenUsage {
  uint32_t prompt = 0;
  uint32_t completion = 0;
  uint32_t cached = 0;
};

// The whole body of an answer that is not streamed.
std::string AnswerBody(const AnswerHead& head, std::string_view text, FinishReason finish,
                       const TokenUsage& usage);

// Events of a stream, each "data: {...}\n\n".
std::string RoleEvent(const AnswerHead& head);  // chat only: before the first token
std::string TokenEvent(const AnswerHead& head, std::string_view text, FinishReason finish);
std::string UsageEvent(const AnswerHead& head, const TokenUsage& usage);  // with stream_options.include_usage
inline constexpr std::string_view kDoneEvent = "data: [DONE]\n\n";

// {"error": {"message", "type", "param", "code"}}; `type` follows from the status.
std::string ErrorBody(int status, std::string_view message, std::string_view param = "");

std::string ModelsBody(const std::string& model, const std::vector<std::string>& adapters,
                       uint32_t max_model_len, int64_t created);

// What POST /tokenize answers: a token is 4 bytes of the prompt, and its number depends on them alone.
std::string TokenizeBody(std::string_view prompt, uint32_t max_model_len);
// The same tokens, as POST /v1/completions/render and /v1/chat/completions/render answer them (`vllm launch
// render`).
std::string RenderBody(std::string_view prompt, bool chat);

// The text of token `index` of an answer: it says who served, then goes on with filler that depends on `seed`
// alone.
std::string TokenText(std::string_view server, uint64_t seed, uint32_t index);

}  // namespace fairway::simulator
