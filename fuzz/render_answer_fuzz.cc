// Any bytes as a render server's answer, cut anywhere: no crash, and what comes out fits together.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/result.h"
#include "payload/render_answer.h"

namespace {

std::optional<fairway::payload::PromptTokens> Read(std::string_view text, size_t first) {
  fairway::payload::RenderAnswerReader reader;
  reader.Feed(text.substr(0, first));
  reader.Feed(text.substr(first));
  return reader.Finish();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto tokens = Read(text, size);
  FAIRWAY_CHECK(Read(text, size == 0 ? 0 : data[size - 1] % size) == tokens);
  if (!tokens) return 0;
  FAIRWAY_CHECK(!tokens->ends.empty() && tokens->ends.back() == tokens->tokens.size());
  FAIRWAY_CHECK(tokens->tokens.size() <= size);
  uint32_t before = 0;
  for (const uint32_t end : tokens->ends) {
    FAIRWAY_CHECK(end >= before);
    before = end;
  }
  for (const auto& media : tokens->media) {
    FAIRWAY_CHECK(media.prompt < tokens->ends.size() && media.begin <= media.end);
    FAIRWAY_CHECK(media.end <= tokens->tokens.size());
  }
  return 0;
}
