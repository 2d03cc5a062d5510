#include "simulator/openai.h"

#include <array>

#include "base/random.h"
#include "base/strings.h"

namespace fairway::simulator {

using base::JsonString;

namespace {

constexpr std::array<std::string_view, 48> kWords = {
    "the",    "river", "runs",    "past",   "old",    "stone", "bridges", "and",    "slow",   "boats",
    "carry",  "salt",  "from",    "coast",  "toward", "towns", "where",   "people", "trade",  "grain",
    "for",    "wool",  "while",   "gulls",  "watch",  "over",  "quiet",   "docks",  "light",  "falls",
    "across", "wide",  "water",   "each",   "wave",   "finds", "shore",   "again",  "before", "night",
    "brings", "wind",  "through", "narrow", "lanes",  "with",  "small",   "lamps"};

std::string Common(const AnswerHead& head, std::string_view object) {
  std::string out = "{\"id\":";
  base::AppendJsonString(out, head.id);
  out.append(",\"object\":\"").append(object).append("\",\"created\":").append(std::to_string(head.created));
  out += ",\"model\":";
  base::AppendJsonString(out, head.model);
  return out;
}

std::string UsageJson(const TokenUsage& usage) {
  return "{\"prompt_tokens\":" + std::to_string(usage.prompt) +
         ",\"total_tokens\":" + std::to_string(usage.prompt + usage.completion) +
         ",\"completion_tokens\":" + std::to_string(usage.completion) +
         ",\"prompt_tokens_details\":{\"cached_tokens\":" + std::to_string(usage.cached) + "}}";
}

std::string FinishJson(FinishReason finish) {
  return finish == FinishReason::kNone ? "null" : '"' + std::string(ToString(finish)) + '"';
}

std::string StreamEvent(const AnswerHead& head, std::string_view rest) {
  return "data: " + Common(head, head.chat ? "chat.completion.chunk" : "text_completion") +
         std::string(rest) + "}\n\n";
}

std::string_view ErrorType(int status) {
  switch (status) {
    case 400:
      return "BadRequestError";
    case 404:
      return "NotFoundError";
    case 503:
      return "ServiceUnavailableError";
    default:
      return "InternalServerError";
  }
}

}  // namespace

std::string AnswerBody(const AnswerHead& head, std::string_view text, FinishReason finish,
                       const TokenUsage& usage) {
  std::string out =
      Common(head, head.chat ? "chat.completion" : "text_completion") + ",\"choices\":[{\"index\":0,";
  if (head.chat) {
    out += "\"message\":{\"role\":\"assistant\",\"content\":" + JsonString(text) +
           ",\"refusal\":null,\"annotations\":null,\"audio\":null,\"function_call\":null,\"tool_calls\":[],"
           "\"reasoning_content\":null},\"logprobs\":null,\"finish_reason\":" +
           FinishJson(finish) + ",\"stop_reason\":null,\"token_ids\":null}]";
  } else {
    out += "\"text\":" + JsonString(text) + ",\"logprobs\":null,\"finish_reason\":" + FinishJson(finish) +
           ",\"stop_reason\":null,\"token_ids\":null,\"prompt_logprobs\":null,\"prompt_token_ids\":null}]";
  }
  out += ",\"service_tier\":null,\"system_fingerprint\":null,\"usage\":" + UsageJson(usage);
  if (head.chat) out += ",\"prompt_logprobs\":null,\"prompt_token_ids\":null";
  return out + ",\"kv_transfer_params\":null}";
}

std::string RoleEvent(const AnswerHead& head) {
  return StreamEvent(head,
                     ",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                     "\"logprobs\":null,\"finish_reason\":null}],\"prompt_token_ids\":null");
}

std::string TokenEvent(const AnswerHead& head, std::string_view text, FinishReason finish) {
  std::string rest = ",\"choices\":[{\"index\":0,";
  if (head.chat) {
    rest += "\"delta\":{\"content\":" + JsonString(text) +
            "},\"logprobs\":null,\"finish_reason\":" + FinishJson(finish);
    rest += finish == FinishReason::kNone ? ",\"token_ids\":null}]"
                                          : ",\"stop_reason\":null,\"token_ids\":null}]";
  } else {
    rest += "\"text\":" + JsonString(text) + ",\"logprobs\":null,\"finish_reason\":" + FinishJson(finish) +
            ",\"stop_reason\":null,\"prompt_token_ids\":null,\"token_ids\":null}]";
  }
  return StreamEvent(head, rest);
}

std::string UsageEvent(const AnswerHead& head, const TokenUsage& usage) {
  return StreamEvent(head, ",\"choices\":[],\"usage\":" + UsageJson(usage));
}

std::string ErrorBody(int status, std::string_view message, std::string_view param) {
  std::string out = "{\"error\":{\"message\":";
  base::AppendJsonString(out, message);
  out.append(",\"type\":\"").append(ErrorType(status)).append("\",\"param\":");
  out += param.empty() ? "null" : JsonString(param);
  return out + ",\"code\":" + std::to_string(status) + "}}";
}

std::string ModelsBody(const std::string& model, const std::vector<std::string>& adapters,
                       uint32_t max_model_len, int64_t created) {
  std::string out = "{\"object\":\"list\",\"data\":[";
  auto card = [&](const std::string& id, const std::string& root, const std::string& parent,
                  const std::string& length) {
    out += "{\"id\":" + JsonString(id) + ",\"object\":\"model\",\"created\":" + std::to_string(created) +
           ",\"owned_by\":\"vllm\",\"root\":" + JsonString(root) + ",\"parent\":" + parent +
           ",\"max_model_len\":" + length + ",\"permission\":[{\"id\":" + JsonString("modelperm-" + id) +
           ",\"object\":\"model_permission\",\"created\":" + std::to_string(created) +
           ",\"allow_create_engine\":false,\"allow_sampling\":true,\"allow_logprobs\":true,"
           "\"allow_search_indices\":false,\"allow_view\":true,\"allow_fine_tuning\":false,\"organization\":"
           "\"*\","
           "\"group\":null,\"is_blocking\":false}]}";
  };
  card(model, model, "null", std::to_string(max_model_len));
  for (const std::string& adapter : adapters) {
    out += ',';
    card(adapter, "/adapters/" + adapter, JsonString(model), "null");
  }
  return out + "]}";
}

namespace {

constexpr size_t kTokenBytes = 4;

void AppendTokens(std::string_view prompt, std::string& out) {
  constexpr uint64_t kVocabulary = 128'000;
  out.reserve(out.size() + prompt.size() / kTokenBytes * 7 + 64);
  for (size_t at = 0; at < prompt.size(); at += kTokenBytes) {
    uint64_t state = 0;
    for (const char c : prompt.substr(at, kTokenBytes)) state = state << 8 | static_cast<unsigned char>(c);
    if (at > 0) out += ',';
    out += std::to_string(base::SplitMix64(state) % kVocabulary);
  }
}

}  // namespace

std::string TokenizeBody(std::string_view prompt, uint32_t max_model_len) {
  const size_t count = (prompt.size() + kTokenBytes - 1) / kTokenBytes;
  std::string out = "{\"count\":" + std::to_string(count) +
                    ",\"max_model_len\":" + std::to_string(max_model_len) + ",\"tokens\":[";
  AppendTokens(prompt, out);
  return out + "],\"token_strs\":null}";
}

std::string RenderBody(std::string_view prompt, bool chat) {
  std::string out = chat ? "" : "[";
  out += R"({"request_id":"render","token_ids":[)";
  AppendTokens(prompt, out);
  out += R"(],"features":null})";
  return chat ? out : out + "]";
}

std::string TokenText(std::string_view server, uint64_t seed, uint32_t index) {
  switch (index) {
    case 0:
      return "Served";
    case 1:
      return " by";
    case 2:
      return " " + std::string(server) + ":";
    default:
      break;
  }
  uint64_t state = seed + index;
  return " " + std::string(kWords[base::SplitMix64(state) % kWords.size()]);
}

}  // namespace fairway::simulator
