#include "net/memory_trim.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace fairway::net {

size_t ResidentBytes() {
  FILE* const file = std::fopen("/proc/self/statm", "re");
  if (file == nullptr) return 0;
  size_t pages = 0;
  const bool read = std::fscanf(file, "%*u %zu", &pages) == 1;
  std::fclose(file);
  return read ? pages * static_cast<size_t>(::sysconf(_SC_PAGESIZE)) : 0;
}

MemoryTrimmer::MemoryTrimmer(Loop& loop, Options options)
    : options_(std::move(options)), least_(ResidentBytes()), timer_(loop) {
  timer_.Every(options_.period, [this] { Look(); });
}

void MemoryTrimmer::Look() {
  const size_t resident = ResidentBytes();
  const size_t in_use = options_.in_use ? options_.in_use() : 0;
  least_ = std::min(least_, resident);
  in_use_ = std::max(in_use_, in_use);
  if (in_use_ - in_use >= options_.step) wait_ = waited_ = 1;
  if (resident < least_ + options_.step || ++waited_ < wait_) return;
#ifdef __GLIBC__
  ::malloc_trim(0);
#endif
  const size_t left = ResidentBytes();
  wait_ = left + options_.step / 4 < resident ? 1 : std::min(2 * wait_, kLongestWait);
  waited_ = 0;
  in_use_ = in_use;
  least_ = std::min(least_, left);
}

}  // namespace fairway::net
