// Numbers of a server's page that only a config has names for, by the hashes of these.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string_view>

namespace fairway::fleet {

// Any thread reads; one at a time writes. Values are read one by one, as a cell's are.
class PageAttributes {
 public:
  static constexpr size_t kMost = 16;  // more are not kept
  static uint64_t KeyOf(std::string_view name) { return std::hash<std::string_view>()(name) | 1; }

  // No number: it is not known.
  float Get(uint64_t key) const noexcept {
    for (size_t i = 0; i < kMost; ++i) {
      const uint64_t there = keys_[i].load(std::memory_order_acquire);
      if (there == key) return values_[i].load(std::memory_order_relaxed);
      if (there == 0) break;
    }
    return std::numeric_limits<float>::quiet_NaN();
  }
  void Set(uint64_t key, float value) noexcept {
    for (size_t i = 0; i < kMost; ++i) {
      const uint64_t there = keys_[i].load(std::memory_order_relaxed);
      if (there != 0 && there != key) continue;
      values_[i].store(value, std::memory_order_relaxed);
      keys_[i].store(key, std::memory_order_release);
      return;
    }
  }
  void Clear() noexcept {
    for (auto& key : keys_) key.store(0, std::memory_order_relaxed);
  }

 private:
  std::array<std::atomic<uint64_t>, kMost> keys_{};
  std::array<std::atomic<float>, kMost> values_{};
};

}  // namespace fairway::fleet
