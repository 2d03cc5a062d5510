// What was decided about a pool and its endpoints, for the metrics of whoever decides: counters that live
// exactly as long as what they count, and are found without a look-up. This room counts nothing itself.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>

namespace fairway::fleet {

// Picks of one endpoint, by a small number that stands for the model asked for: which one, the router knows.
// Thread-safe: relaxed atomics.
class PickTally {
 public:
  static constexpr uint32_t kNumbers = 256;

  PickTally() = default;
  PickTally(const PickTally&) = delete;
  PickTally& operator=(const PickTally&) = delete;
  ~PickTally() { delete rest_.load(std::memory_order_relaxed); }

  // REQUIRES: number < kNumbers.
  void Add(uint32_t number) noexcept {
    if (number < kFirst) [[likely]] {
      first_[number].fetch_add(1, std::memory_order_relaxed);
    } else {
      AddToRest(number);
    }
  }
  uint64_t Get(uint32_t number) const noexcept {
    if (number < kFirst) return first_[number].load(std::memory_order_relaxed);
    const Rest* rest = rest_.load(std::memory_order_acquire);
    return rest == nullptr ? 0 : (*rest)[number - kFirst].load(std::memory_order_relaxed);
  }
  // The number stands for another model from now on.
  void Clear(uint32_t number) noexcept {
    if (number < kFirst) {
      first_[number].store(0, std::memory_order_relaxed);
    } else if (Rest* rest = rest_.load(std::memory_order_acquire); rest != nullptr) {
      (*rest)[number - kFirst].store(0, std::memory_order_relaxed);
    }
  }

 private:
  static constexpr uint32_t kFirst = 7;  // with the pointer, a cache line: most pools have fewer models
  using Rest = std::array<std::atomic<uint64_t>, kNumbers - kFirst>;  // 2 KB

  void AddToRest(uint32_t number) noexcept {
    Rest* rest = rest_.load(std::memory_order_acquire);
    if (rest == nullptr) {
      Rest* made = new (std::nothrow) Rest();
      if (made == nullptr) return;
      if (rest_.compare_exchange_strong(rest, made, std::memory_order_acq_rel)) {
        rest = made;
      } else {
        delete made;
      }
    }
    (*rest)[number - kFirst].fetch_add(1, std::memory_order_relaxed);
  }

  alignas(64) std::array<std::atomic<uint64_t>, kFirst> first_{};
  std::atomic<Rest*> rest_{nullptr};
};

// Of a pool. Thread-safe: relaxed atomics.
struct PoolTally {
  std::array<std::atomic<uint64_t>, 8> decisions{};  // by the rung that they were made on
  std::atomic<uint64_t> served_elsewhere{0};
  // Decisions that a second config made, too: by what came of it, and milliseconds that its choices and the
  // real ones would take to their first tokens.
  std::array<std::atomic<uint64_t>, 5> shadow{};
  std::atomic<uint64_t> shadow_wait{0};
  std::atomic<uint64_t> live_wait{0};
  // Prompt tokens of requests that were compared with what prefix caches are believed to have: believed to be
  // cached at the first choice, and not.
  std::array<std::atomic<uint64_t>, 2> predicted{};
  // Of those whose answers tell: the same, then cached and not as the answers have it, in the engine's
  // tokens.
  std::array<std::atomic<uint64_t>, 4> told{};
  // Open requests at its endpoints that other replicas of this picker told.
  std::atomic<int64_t> told_requests{0};
};

}  // namespace fairway::fleet
