// Prometheus metrics: counters, gauges and histograms with labels, and the text page that shows them.
//
//   Registry registry;
//   auto& requests = registry.AddCounter({.name = "llm_d_epp_request_total", .help = "...", .labels =
//   {"model_name"}}); Counter& llama = requests.With({"llama2"});   // keep the reference: it lives as long
//   as the registry llama.Add();                                  // one relaxed atomic add
//
// A family holds at most `max_series` label sets; later ones share one series whose every label is "other",
// so that text from clients can never grow the page without a bound.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fairway::base {

// Thread-safe: relaxed atomics.
class Counter {
 public:
  void Add(uint64_t n = 1) noexcept { value_.fetch_add(n, std::memory_order_relaxed); }
  uint64_t value() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

// Thread-safe: relaxed atomics.
class Gauge {
 public:
  void Set(double v) noexcept { value_.store(v, std::memory_order_relaxed); }
  void Add(double v) noexcept { value_.fetch_add(v, std::memory_order_relaxed); }
  double value() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

// Cumulative buckets are made when the page is written; an observation touches two cache lines: the marks and
// the sum, and the bucket beside its bound. Thread-safe: immutable but for relaxed atomics.
class alignas(64) Histogram {
 public:
  explicit Histogram(std::span<const double> upper_bounds);  // ascending

  void Observe(double v) noexcept;
  size_t num_bounds() const noexcept { return num_bounds_; }
  double bound(size_t i) const noexcept { return at(i).bound; }
  // Not cumulative; that of num_bounds() is +Inf's.
  uint64_t bucket(size_t i) const noexcept { return at(i).count.load(std::memory_order_relaxed); }
  double sum() const noexcept { return sum_.load(std::memory_order_relaxed); }
  uint64_t count() const noexcept;

 private:
  struct Bucket {
    double bound;
    std::atomic<uint64_t> count{0};
  };
  static constexpr size_t kPerRow = 4;
  struct alignas(64) Row {
    std::array<Bucket, kPerRow> buckets;
  };
  static constexpr size_t kMarks = 10;

  const Bucket& at(size_t i) const noexcept { return rows_[i / kPerRow].buckets[i % kPerRow]; }

  std::unique_ptr<Row[]> rows_;  // behind the last bound: +Inf
  uint32_t num_bounds_;
  uint32_t stride_;  // buckets per mark
  std::atomic<double> sum_{0};
  // What lies beyond mark i lies beyond the buckets up to (i + 1) * stride_. Rounded up, so that they fit in
  // one cache line with the sum.
  std::array<float, kMarks> marks_;
};

// A second name under which the same family is shown, as the reference does for names it renamed. `labels`
// are pairs of (label of the family, name on the twin's page); series that then agree are added up.
struct MetricTwin {
  std::string name;
  std::string help;
  std::vector<std::pair<std::string, std::string>> labels;
};

struct MetricOptions {
  std::string name;
  std::string help;
  std::vector<std::string> labels;
  std::vector<double> buckets;  // histograms only; ascending
  std::vector<MetricTwin> twins;
  size_t max_series = 1000;
};

// Label values -> metric. Thread-safe: With takes a mutex, so keep what it returns where it is used per
// request.
template <typename Metric>
class Family {
 public:
  explicit Family(MetricOptions options) : options_(std::move(options)) {}
  // REQUIRES: as many values as the family has labels. The reference stays valid for the family's life.
  Metric& With(std::span<const std::string_view> values);
  Metric& With(std::initializer_list<std::string_view> values) {
    return With(std::span(values.begin(), values.size()));
  }
  // Takes the series off the page (an endpoint that left). The caller must not use references to it any more.
  void Remove(std::initializer_list<std::string_view> values);

  const MetricOptions& options() const { return options_; }
  // Calls `visit` for each series, in the order of the label values.
  void ForEach(const std::function<void(const std::vector<std::string>&, const Metric&)>& visit) const;

 private:
  MetricOptions options_;
  mutable std::mutex mutex_;
  std::map<std::vector<std::string>, std::unique_ptr<Metric>> series_;
};

using CounterFamily = Family<Counter>;
using GaugeFamily = Family<Gauge>;
using HistogramFamily = Family<Histogram>;

// Owns families and writes the page. Thread-safe.
class Registry {
 public:
  CounterFamily& AddCounter(MetricOptions options);
  GaugeFamily& AddGauge(MetricOptions options);
  HistogramFamily& AddHistogram(MetricOptions options);
  // Runs before each page, on the thread that writes it: for gauges that are computed rather than kept.
  void AddCollector(std::function<void()> collect);

  // Text exposition format 0.0.4. Families appear in the order of their names.
  std::string Render() const;

 private:
  mutable std::mutex mutex_;
  std::deque<std::unique_ptr<CounterFamily>> counters_;
  std::deque<std::unique_ptr<GaugeFamily>> gauges_;
  std::deque<std::unique_ptr<HistogramFamily>> histograms_;
  std::vector<std::function<void()>> collectors_;
};

}  // namespace fairway::base
