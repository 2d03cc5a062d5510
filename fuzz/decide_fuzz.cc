// Any bytes as the life of a picker (tests/support/decide_walk.h): configs, pools that change, pages, and
// requests that begin, answer and end in any order. Each is refused for a reason that holds or goes to an
// endpoint that is allowed; places are the model's at every step, and none is left when all have ended.
#include <cstddef>
#include <cstdint>

#include "tests/support/decide_walk.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 4096) return 0;  // a life is long enough
  fairway::tests::DecideWalk({data, size}).Run();
  return 0;
}
