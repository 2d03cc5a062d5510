// Any bytes as a response, JSON or event stream: no crash, and the same usage wherever it is cut.
//
// Input: one byte for API and kind, one seed byte for the cuts, then the response.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/random.h"
#include "base/result.h"
#include "payload/usage.h"

using fairway::payload::Api;
using fairway::payload::UsageScanner;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const Api api = static_cast<Api>((data[0] >> 1) % (static_cast<unsigned>(Api::kUnknown) + 1));
  const bool event_stream = (data[0] & 1) != 0;
  std::string_view rest(reinterpret_cast<const char*>(data) + 2, size - 2);

  UsageScanner whole(api, event_stream);
  whole.Feed(rest);
  whole.Finish();

  fairway::base::Random random(data[1]);
  const uint64_t most = 1 + random.Below(40);
  UsageScanner cut(api, event_stream);
  while (!rest.empty()) {
    // A copy of its own, so that the sanitizer sees a read beyond the chunk or after it.
    const std::string chunk(rest.substr(0, random.Below(most + 1)));
    cut.Feed(chunk);
    rest.remove_prefix(chunk.size());
  }
  cut.Finish();
  FAIRWAY_CHECK(whole.usage() == cut.usage());
  FAIRWAY_CHECK(whole.events() == cut.events());
  FAIRWAY_CHECK(whole.usage().found || whole.usage() == fairway::payload::Usage{});
  return 0;
}
