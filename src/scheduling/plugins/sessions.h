// Which endpoint a session has: a table of fixed size, for the session affinity by ids. All threads share it
// without locks; a session that two of them bind at once may be bound twice, and the first entry counts.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/clock.h"

namespace fairway::scheduling {

class Sessions {
 public:
  // 131,072 sessions are 2 MB. When a bucket is full, its oldest entry makes room.
  static constexpr size_t kBuckets = size_t{1} << 15;
  static constexpr size_t kInBucket = 4;

  // `session` is not 0, as KeyOf has it (keys.h). Nothing: it is not there, or older than `ttl`.
  std::optional<uint64_t> Find(uint64_t session, base::Nanos now, base::Nanos ttl) const noexcept {
    for (const Entry& entry : buckets_[session % kBuckets]) {
      if (entry.session.load(std::memory_order_acquire) != session) continue;
      const uint64_t bound = entry.bound.load(std::memory_order_acquire);
      if (entry.session.load(std::memory_order_acquire) != session) continue;  // it has become another one
      if (bound == 0 || Age(bound, now) > Ticks(ttl)) return std::nullopt;
      return bound & kEndpoint;
    }
    return std::nullopt;
  }

  // Binds it from `now` on.
  void Bind(uint64_t session, uint64_t endpoint, base::Nanos now) noexcept {
    auto& bucket = buckets_[session % kBuckets];
    Entry* place = nullptr;
    for (Entry& entry : bucket) {
      if (entry.session.load(std::memory_order_acquire) == session) {
        entry.bound.store(Word(endpoint, now), std::memory_order_release);
        return;
      }
      if (place == nullptr || Older(entry, *place, now)) place = &entry;
    }
    // Without an endpoint until its session stands there.
    place->bound.store(0, std::memory_order_release);
    place->session.store(session, std::memory_order_release);
    place->bound.store(Word(endpoint, now), std::memory_order_release);
  }

 private:
  struct Entry {
    std::atomic<uint64_t> session{0};
    std::atomic<uint64_t> bound{0};  // 40 bits of the endpoint's key, and when; 0: to none
  };
  static constexpr uint64_t kEndpoint = (uint64_t{1} << 40) - 1;
  // 24 bits of seconds are 194 days: what is older looks younger, and is bound again for a while.
  static constexpr uint32_t kTicks = (uint32_t{1} << 24) - 1;
  static constexpr uint32_t Ticks(base::Nanos time) noexcept {
    return static_cast<uint32_t>(time / base::kSecond) & kTicks;
  }
  static uint64_t Word(uint64_t endpoint, base::Nanos now) noexcept {
    return (endpoint & kEndpoint) | uint64_t{Ticks(now)} << 40;
  }
  static uint32_t Age(uint64_t bound, base::Nanos now) noexcept {
    return (Ticks(now) - static_cast<uint32_t>(bound >> 40)) & kTicks;
  }
  static bool Older(const Entry& a, const Entry& b, base::Nanos now) noexcept {
    const auto age = [now](const Entry& entry) {
      const uint64_t bound = entry.bound.load(std::memory_order_relaxed);
      return bound == 0 ? UINT32_MAX : Age(bound, now);
    };
    return age(a) > age(b);
  }

  std::vector<std::array<Entry, kInBucket>> buckets_{kBuckets};
};

}  // namespace fairway::scheduling
