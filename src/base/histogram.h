// How often values fell between bounds.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace fairway::base {

// Cumulative buckets are made when the page is written. Thread-safe: immutable but for relaxed atomics.
class Histogram {
 public:
  explicit Histogram(std::span<const double> upper_bounds);  // ascending

  void Observe(double v) noexcept;
  std::span<const double> bounds() const noexcept { return bounds_; }
  // Not cumulative; that of bounds().size() is +Inf's.
  uint64_t bucket(size_t i) const noexcept { return counts_[i].load(std::memory_order_relaxed); }
  double sum() const noexcept { return sum_.load(std::memory_order_relaxed); }
  uint64_t count() const noexcept;

 private:
  const std::vector<double> bounds_;
  const std::unique_ptr<std::atomic<uint64_t>[]> counts_;
  std::atomic<double> sum_{0};
};

}  // namespace fairway::base
