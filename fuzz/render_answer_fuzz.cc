// Any bytes as a render server's answer: no crash, and what comes out fits together.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/result.h"
#include "payload/render_answer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto tokens = fairway::payload::ReadRenderAnswer({reinterpret_cast<const char*>(data), size});
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
