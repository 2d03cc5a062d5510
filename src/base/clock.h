// Time as a thing that is handed in, so that every decision can be replayed and no test sleeps.
#pragma once

#include <atomic>
#include <cstdint>
#include <ctime>

namespace fairway::base {

// Nanoseconds on a monotonic axis with an arbitrary origin. 0 means "never".
using Nanos = int64_t;

constexpr Nanos kMicrosecond = 1'000;
constexpr Nanos kMillisecond = 1'000'000;
constexpr Nanos kSecond = 1'000'000'000;

inline constexpr double ToSeconds(Nanos n) { return static_cast<double>(n) * 1e-9; }

// Thread-safe: implementations may be read from any thread.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual Nanos Now() const noexcept = 0;
};

// CLOCK_MONOTONIC, asked for directly: std::chrono has a call of its own before it. About 20 ns.
class SystemClock final : public Clock {
 public:
  [[gnu::hot]] Nanos Now() const noexcept override {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * kSecond + now.tv_nsec;
  }
};

// A clock that moves when it is told to: tests and virtual time.
class ManualClock final : public Clock {
 public:
  explicit ManualClock(Nanos start = kSecond) : now_(start) {}
  Nanos Now() const noexcept override { return now_.load(std::memory_order_relaxed); }
  void Advance(Nanos by) { now_.fetch_add(by, std::memory_order_relaxed); }
  void Set(Nanos to) { now_.store(to, std::memory_order_relaxed); }

 private:
  std::atomic<Nanos> now_;
};

}  // namespace fairway::base
