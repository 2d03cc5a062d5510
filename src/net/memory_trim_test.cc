// Memory that was freed goes back to the system, without anybody asking.
#include "net/memory_trim.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

namespace fairway::net {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
TEST(MemoryTrimTest, DISABLED_GivesBackWhatWasFreed) {}  // another allocator
#else
TEST(MemoryTrimTest, GivesBackWhatWasFreed) {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);  // as `fairway` sets it
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  LoopThread thread("trim");
  std::unique_ptr<MemoryTrimmer> trimmer;
  std::atomic<size_t> in_use{0};
  thread.loop().Post([&] {
    trimmer = std::make_unique<MemoryTrimmer>(
        thread.loop(), MemoryTrimmer::Options{.period = 20 * base::kMillisecond,
                                              .step = 16 << 20,
                                              .in_use = [&in_use] { return in_use.load(); }});
  });
  // Calls come and go on threads of their own; the last one keeps the heap's end.
  std::vector<std::unique_ptr<char[]> > pieces;
  std::unique_ptr<char[]> last;
  std::thread([&] {
    for (int i = 0; i < 80'000; ++i) {
      pieces.push_back(std::make_unique<char[]>(2500));  // filled with zeros, so resident
    }
    last = std::make_unique<char[]>(2500);
    in_use = 200'000'000;
  }).join();
  const size_t peak = ResidentBytes();
  ASSERT_GT(peak, 200'000'000u);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // in which trimming is of no use
  pieces.clear();
  in_use = 0;
  bool given_back = false;
  for (int i = 0; i < 4000 && !given_back; ++i) {
    given_back = ResidentBytes() < peak - (150u << 20);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_TRUE(given_back) << peak << " " << ResidentBytes();
  thread.Join();
  trimmer.reset();
}
#endif

}  // namespace
}  // namespace fairway::net
