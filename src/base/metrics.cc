#include "base/metrics.h"

#include <algorithm>
#include <utility>

#include "base/metrics_page.h"
#include "base/result.h"
#include "base/strings.h"

namespace fairway::base {
namespace {

// Names of Kubernetes have 253 bytes at most; clients' texts are shortened to 128 by who counts them.
constexpr size_t kMaxLabel = 256;

std::shared_ptr<Counter> Make(const MetricOptions&, const Counter*) { return std::make_shared<Counter>(); }
std::shared_ptr<Gauge> Make(const MetricOptions&, const Gauge*) { return std::make_shared<Gauge>(); }
std::shared_ptr<Histogram> Make(const MetricOptions& options, const Histogram*) {
  return std::make_shared<Histogram>(options.buckets);
}

constexpr MetricType TypeOf(const Counter*) { return MetricType::kCounter; }
constexpr MetricType TypeOf(const Gauge*) { return MetricType::kGauge; }
constexpr MetricType TypeOf(const Histogram*) { return MetricType::kHistogram; }

void Take(Series& out, const Counter& m) { out.value = static_cast<double>(m.value()); }
void Take(Series& out, const Gauge& m) { out.value = m.value(); }
void Take(Series& out, const Histogram& m) {
  out.buckets.resize(m.bounds().size() + 1);
  for (size_t i = 0; i < out.buckets.size(); ++i) out.buckets[i] = m.bucket(i);
  out.value = m.sum();
}

bool Shown(const Counter&) { return true; }
bool Shown(const Gauge&) { return true; }
bool Shown(const Histogram& m) { return m.count() > 0; }

}  // namespace

std::string LabelText(std::string_view text) { return CleanText(text, 128); }

Histogram::Histogram(std::span<const double> upper_bounds)
    : bounds_(upper_bounds.begin(), upper_bounds.end()),
      counts_(new std::atomic<uint64_t>[upper_bounds.size() + 1]()) {}

[[gnu::hot]] void Histogram::Observe(double v) noexcept {
  const auto at = std::lower_bound(bounds_.begin(), bounds_.end(), v) - bounds_.begin();
  counts_[static_cast<size_t>(at)].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(v, std::memory_order_relaxed);
}

uint64_t Histogram::count() const noexcept {
  uint64_t total = 0;
  for (size_t i = 0; i <= bounds_.size(); ++i) total += bucket(i);
  return total;
}

size_t AnyFamily::PageBytes(size_t label_bytes) const {
  constexpr size_t kNumber = 12;
  size_t line = options_.name.size() + label_bytes + kNumber;
  for (const std::string& label : options_.labels) line += label.size() + 4;
  if (type_ != MetricType::kHistogram) return line;
  constexpr size_t kBucket = 24;  // "_bucket", le="..."
  return (options_.buckets.size() + 3) * (line + kBucket);
}

template <typename Metric>
Family<Metric>::Family(MetricOptions options)
    : AnyFamily(std::move(options), TypeOf(static_cast<const Metric*>(nullptr))) {}

template <typename Metric>
typename Family<Metric>::Key Family<Metric>::MakeKey(std::span<const std::string_view> values) {
  Key key;
  key.reserve(values.size());
  for (const std::string_view value : values) key.push_back(CleanText(value, kMaxLabel));
  return key;
}

template <typename Metric>
std::shared_ptr<Metric> Family<Metric>::Share(std::span<const std::string_view> values) {
  FAIRWAY_CHECK(values.size() == options().labels.size());
  Key key = MakeKey(values);
  std::lock_guard lock(mutex_);
  if (const auto found = series_.find(key); found != series_.end()) return found->second;
  if (series_.size() >= options().max_series) std::fill(key.begin(), key.end(), "other");
  auto& slot = series_[std::move(key)];
  if (slot == nullptr) slot = Make(options(), static_cast<const Metric*>(nullptr));
  return slot;
}

template <typename Metric>
void Family<Metric>::Attach(std::span<const std::string_view> values, std::shared_ptr<Metric> metric) {
  FAIRWAY_CHECK(values.size() == options().labels.size());
  Key key = MakeKey(values);
  std::lock_guard lock(mutex_);
  series_[std::move(key)].swap(metric);  // the old one is freed outside the lock
}

template <typename Metric>
void Family<Metric>::Remove(std::span<const std::string_view> values) {
  const Key key = MakeKey(values);
  std::lock_guard lock(mutex_);
  series_.erase(key);
}

// Between two steps the family is free: it goes on behind the last series that it gave.
template <typename Metric>
class Family<Metric>::Reader final : public SeriesReader {
 public:
  explicit Reader(const Family& family) : family_(family) {}
  Step Next(Series& out) override {
    std::lock_guard lock(family_.mutex_);
    const auto at = begun_ ? family_.series_.upper_bound(last_) : family_.series_.begin();
    if (at == family_.series_.end()) return Step::kEnd;
    begun_ = true;
    last_ = at->first;
    if (!last_.empty() && !Shown(*at->second)) return Step::kNothing;
    out.labels = last_;
    Take(out, *at->second);
    return Step::kSeries;
  }

 private:
  const Family& family_;
  Key last_;
  bool begun_ = false;
};

template <typename Metric>
std::unique_ptr<SeriesReader> Family<Metric>::Open() const {
  return std::make_unique<Reader>(*this);
}

template class Family<Counter>;
template class Family<Gauge>;
template class Family<Histogram>;

namespace {

class Computed final : public AnyFamily {
 public:
  Computed(MetricOptions options, MetricType type, std::function<std::unique_ptr<SeriesReader>()> open)
      : AnyFamily(std::move(options), type), open_(std::move(open)) {}
  std::unique_ptr<SeriesReader> Open() const override { return open_(); }

 private:
  const std::function<std::unique_ptr<SeriesReader>()> open_;
};

}  // namespace

template <typename T>
T& Registry::Add(std::unique_ptr<T> family) {
  T& added = *family;
  std::lock_guard lock(mutex_);
  families_.push_back(std::move(family));
  return added;
}

CounterFamily& Registry::AddCounter(MetricOptions options) {
  return Add(std::make_unique<CounterFamily>(std::move(options)));
}
GaugeFamily& Registry::AddGauge(MetricOptions options) {
  return Add(std::make_unique<GaugeFamily>(std::move(options)));
}
HistogramFamily& Registry::AddHistogram(MetricOptions options) {
  return Add(std::make_unique<HistogramFamily>(std::move(options)));
}
void Registry::AddComputed(MetricOptions options, MetricType type,
                           std::function<std::unique_ptr<SeriesReader>()> open) {
  FAIRWAY_CHECK(type != MetricType::kHistogram);
  Add(std::make_unique<Computed>(std::move(options), type, std::move(open)));
}

void Registry::AddCollector(std::function<void()> collect) {
  std::lock_guard lock(mutex_);
  collectors_.push_back(std::move(collect));
}

void Registry::set_max_page_bytes(size_t bytes) {
  max_page_bytes_.store(std::max<size_t>(bytes, 4096), std::memory_order_relaxed);
}

std::unique_ptr<Page> Registry::Open() const {
  std::vector<std::function<void()>> collectors;
  {
    std::lock_guard lock(mutex_);
    collectors = collectors_;
  }
  for (const auto& collect : collectors) collect();  // outside the lock: a collector may add families
  std::vector<const AnyFamily*> families;
  std::lock_guard lock(mutex_);
  families.reserve(families_.size());
  for (const auto& family : families_) families.push_back(family.get());
  return MakePage(families, max_page_bytes());
}

std::string Registry::Render() const {
  std::string out;
  std::string piece;
  for (const auto page = Open(); page->Next(piece);) out += piece;
  return out;
}

}  // namespace fairway::base
