// Gives memory back to the system after a peak. glibc keeps what was freed: after 1.3 GB of calls that were
// gone the process still had 1.3 GB.
#pragma once

#include <cstddef>
#include <functional>

#include "base/clock.h"
#include "net/loop.h"

namespace fairway::net {

// Resident memory of this process; 0 where the system does not say.
size_t ResidentBytes();

// Looks at the resident memory every few seconds and trims the allocator when it is well above the least that
// was seen. Trimming takes some 0.1 s per GB, in which other threads may wait for the allocator: where it
// gave back nothing it is tried again after twice the time, up to five minutes, or when much was let go.
// Belongs to its loop's thread, which should be nobody's who is in a hurry.
class MemoryTrimmer {
 public:
  struct Options {
    base::Nanos period = 3 * base::kSecond;
    size_t step = 32 << 20;          // above the least seen, and how much is much
    std::function<size_t()> in_use;  // bytes that are known to be held; may be empty
  };
  // Starts looking. REQUIRES: on the loop's thread.
  MemoryTrimmer(Loop& loop, Options options);

 private:
  void Look();

  static constexpr size_t kLongestWait = 100;  // looks

  const Options options_;
  size_t least_;
  size_t in_use_ = 0;  // the most since the last trim
  size_t wait_ = 1;    // looks between two trims
  size_t waited_ = 0;
  Timer timer_;
};

}  // namespace fairway::net
