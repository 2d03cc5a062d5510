// Any bytes as a batch of an engine's KV events: no crash, and no more events than there are bytes.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "sources/kv_events/events.h"

using fairway::sources::kv_events::BatchOutcome;
using fairway::sources::kv_events::EventSink;
using fairway::sources::kv_events::KvEvent;

namespace {

class Count final : public EventSink {
 public:
  void On(const KvEvent& event) override {
    ++events;
    if (event.kind == KvEvent::Kind::kStored) FAIRWAY_CHECK(event.block_size > 0);
    hashes.clear();
    tokens.clear();
    extras.clear();
    const bool named = fairway::sources::kv_events::ReadHashes(event.hashes, kMost, hashes);
    FAIRWAY_CHECK(!named || hashes.size() == event.blocks);
    static_cast<void>(fairway::sources::kv_events::ReadTokens(event.tokens, kMost, tokens));
    static_cast<void>(
        fairway::sources::kv_events::ReadExtraKeys(event.extra_keys, event.adapter, kMost, extras));
    FAIRWAY_CHECK(hashes.size() <= kMost && tokens.size() <= kMost && extras.size() <= kMost);
  }
  size_t events = 0;

 private:
  static constexpr size_t kMost = 1000;
  std::vector<uint64_t> hashes;
  std::vector<uint32_t> tokens;
  std::vector<std::vector<std::string_view>> extras;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Count count;
  const BatchOutcome outcome = ReadBatch({reinterpret_cast<const char*>(data), size}, count);
  FAIRWAY_CHECK(outcome.events == count.events);
  FAIRWAY_CHECK(outcome.events + outcome.unknown + outcome.malformed <= size);
  FAIRWAY_CHECK(outcome.readable || count.events == 0);
  return 0;
}
