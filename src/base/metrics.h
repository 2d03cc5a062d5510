// Prometheus metrics: counters, gauges and histograms with labels, and the text page that shows them.
//
//   Registry registry;
//   CounterFamily& requests = registry.AddCounter({.name = "x_total", .help = "...", .labels = {"model"}});
//   Counter& llama = requests.With({"llama2"});   // kept by who counts often: With takes a mutex
//   llama.Add();                                  // one relaxed atomic add
//   for (auto page = registry.Open(); page->Next(text);) ...   // piece by piece
//
// Two bounds. A family keeps at most `max_series` label sets; later ones share one series whose every label
// is "other". A page has at most set_max_page_bytes(): what does not fit is left out and counted on the page.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/histogram.h"

namespace fairway::base {

// What stands for a client's text in a label: at most 128 bytes of it, as CleanText makes them.
std::string LabelText(std::string_view text);

// Thread-safe: relaxed atomics.
class Counter {
 public:
  void Add(uint64_t n = 1) noexcept { value_.fetch_add(n, std::memory_order_relaxed); }
  uint64_t value() const noexcept { return value_.load(std::memory_order_relaxed); }
  void Clear() noexcept {
    value_.store(0, std::memory_order_relaxed);
  }  // it counts something else from now on

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

enum class MetricType { kCounter, kGauge, kHistogram };

// A series as a page shows it: plain numbers.
struct Series {
  std::vector<std::string> labels;  // values, in the order of the family's names
  double value = 0;                 // of a histogram: the sum
  std::vector<uint64_t> buckets;    // histograms only: not cumulative, the last is +Inf's
};

// The series of a family, one after the other. Owned by one thread.
class SeriesReader {
 public:
  enum class Step {
    kSeries,
    kNothing,  // none among those that were looked at: to be asked again
    kEnd,
  };
  virtual ~SeriesReader() = default;
  // Overwrites `out`. Never the same label values twice; a little work each time.
  virtual Step Next(Series& out) = 0;
};

// What a page is made of.
class AnyFamily {
 public:
  AnyFamily(MetricOptions options, MetricType type) : options_(std::move(options)), type_(type) {}
  virtual ~AnyFamily() = default;
  const MetricOptions& options() const { return options_; }
  MetricType type() const { return type_; }
  virtual std::unique_ptr<SeriesReader> Open() const = 0;
  // About what a series adds to the page, its twins left out, when its label values have so many bytes
  // together.
  size_t PageBytes(size_t label_bytes) const;

 private:
  const MetricOptions options_;
  const MetricType type_;
};

// Label values -> metric. Thread-safe: a mutex, so keep what is returned where it is used per request. A
// histogram with labels is not on the page before its first observation.
template <typename Metric>
class Family final : public AnyFamily {
 public:
  explicit Family(MetricOptions options);
  // REQUIRES: as many values as the family has labels. The reference stays valid for the family's life, or
  // until Remove.
  Metric& With(std::initializer_list<std::string_view> values) { return *Share(values); }
  // The same, valid as long as somebody holds it.
  std::shared_ptr<Metric> Share(std::span<const std::string_view> values);
  std::shared_ptr<Metric> Share(std::initializer_list<std::string_view> values) {
    return Share(std::span(values.begin(), values.size()));
  }
  // Shows a metric that somebody else made, in place of what these values showed; not bounded by max_series.
  void Attach(std::span<const std::string_view> values, std::shared_ptr<Metric> metric);
  // Takes the series off the page.
  void Remove(std::span<const std::string_view> values);
  void Remove(std::initializer_list<std::string_view> values) {
    Remove(std::span(values.begin(), values.size()));
  }

  // In the order of the label values; what comes and goes meanwhile may be there or not.
  std::unique_ptr<SeriesReader> Open() const override;

 private:
  class Reader;
  using Key = std::vector<std::string>;
  static Key MakeKey(std::span<const std::string_view> values);

  mutable std::mutex mutex_;
  std::map<Key, std::shared_ptr<Metric>> series_;
};

using CounterFamily = Family<Counter>;
using GaugeFamily = Family<Gauge>;
using HistogramFamily = Family<Histogram>;

// A page on its way: the families as they were registered when it was opened, each series as it is when its
// turn comes. Counters and gauges come first, then histograms, then twins, each by name: where the page is
// full, the deprecated names go first. Owned by one thread; REQUIRES: the registry outlives it.
class Page {
 public:
  virtual ~Page() = default;
  // The next piece, in place of what `out` had: some 64 KB, or nothing yet. False: the page was complete
  // before.
  virtual bool Next(std::string& out) = 0;
};

// Owns families and writes the page. Thread-safe.
class Registry {
 public:
  static constexpr size_t kDefaultMaxPageBytes = 10'000'000;

  CounterFamily& AddCounter(MetricOptions options);
  GaugeFamily& AddGauge(MetricOptions options);
  HistogramFamily& AddHistogram(MetricOptions options);
  // A family that is not kept but read off something else when a page is written, by a reader for each page.
  // REQUIRES: a counter or a gauge.
  void AddComputed(MetricOptions options, MetricType type,
                   std::function<std::unique_ptr<SeriesReader>()> open);
  // Runs before each page, on the thread that opens it: for gauges that are computed rather than kept.
  void AddCollector(std::function<void()> collect);
  // At least 4,096, for what is said of the page itself.
  void set_max_page_bytes(size_t bytes);
  size_t max_page_bytes() const { return max_page_bytes_.load(std::memory_order_relaxed); }

  // Text exposition format 0.0.4, valid UTF-8.
  std::unique_ptr<Page> Open() const;
  // All of it.
  std::string Render() const;

 private:
  template <typename T>
  T& Add(std::unique_ptr<T> family);

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<AnyFamily>> families_;
  std::vector<std::function<void()>> collectors_;
  std::atomic<size_t> max_page_bytes_{kDefaultMaxPageBytes};
};

}  // namespace fairway::base
