// Any bytes as a stream of a peer's messages, cut anywhere: no crash, no more than there is in them, and what is
// understood is the same however it was cut.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "sources/peers/messages.h"

using fairway::sources::peers::MessageCutter;
using fairway::sources::peers::ReadMessage;

namespace {

struct Seen {
  bool good = true;
  size_t messages = 0;
  size_t hashes = 0;
  bool operator==(const Seen&) const = default;
};

Seen Read(std::string_view bytes, size_t step) {
  Seen seen;
  MessageCutter cutter;
  for (size_t at = 0; seen.good && at < bytes.size(); at += step) {
    seen.good = cutter.Feed(bytes.substr(at, step), [&seen](std::string_view text) {
      const auto message = ReadMessage(text);
      if (!message) return false;
      ++seen.messages;
      for (const auto& news : message->endpoints) {
        for (const auto& chain : news.placed) seen.hashes += chain.size();
        if (news.learned) seen.hashes += news.learned->held.size();
      }
      return true;
    });
  }
  return seen;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const Seen whole = Read(bytes, bytes.size());
  FAIRWAY_CHECK(whole.hashes * 8 <= size);
  FAIRWAY_CHECK(Read(bytes, 1 + data[0] % 16) == whole);
  return 0;
}
