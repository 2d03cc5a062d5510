#include "base/metrics.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "base/result.h"

namespace fairway::base {
namespace {

using LabelValues = std::vector<std::string>;

std::string FormatNumber(double v) {
  if (std::isnan(v)) return "NaN";
  if (std::isinf(v)) return v > 0 ? "+Inf" : "-Inf";
  std::array<char, 32> out{};
  // As Go prints float64 with 'g': whole numbers plain up to 21 digits, else the shortest form.
  if (v == std::floor(v) && std::fabs(v) < 1e6) {
    auto [end, error] = std::to_chars(out.data(), out.data() + out.size(), static_cast<int64_t>(v));
    return {out.data(), end};
  }
  const bool exponent = std::fabs(v) >= 1e6 || std::fabs(v) < 1e-4;
  auto [end, error] = std::to_chars(out.data(), out.data() + out.size(), v,
                                    exponent ? std::chars_format::scientific : std::chars_format::fixed);
  return {out.data(), end};
}

void AppendLabel(std::string& out, std::string_view name, std::string_view value) {
  if (out.back() != '{') out += ',';
  out += name;
  out += "=\"";
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  out += '"';
}

void AppendLine(std::string& out, std::string_view name, std::span<const std::string> labels,
                const LabelValues& values, std::string_view number, std::string_view le = {}) {
  out += name;
  if (!labels.empty() || !le.empty()) {
    out += '{';
    for (size_t i = 0; i < labels.size(); ++i) AppendLabel(out, labels[i], values[i]);
    if (!le.empty()) AppendLabel(out, "le", le);
    out += '}';
  }
  out += ' ';
  out += number;
  out += '\n';
}

// What a series adds to a page: plain numbers, so that a twin can add several up.
struct Sample {
  double value = 0;
  std::vector<uint64_t> buckets;
  void Add(const Counter& m) { value += static_cast<double>(m.value()); }
  void Add(const Gauge& m) { value += m.value(); }
  void Add(const Histogram& m) {
    buckets.resize(m.num_bounds() + 1);
    for (size_t i = 0; i < buckets.size(); ++i) buckets[i] += m.bucket(i);
    value += m.sum();
  }
};

constexpr std::string_view TypeName(const Counter*) { return "counter"; }
constexpr std::string_view TypeName(const Gauge*) { return "gauge"; }
constexpr std::string_view TypeName(const Histogram*) { return "histogram"; }

void AppendFamily(std::string& out, std::string_view name, std::string_view help, std::string_view type,
                  std::span<const std::string> labels, std::span<const double> bounds,
                  const std::map<LabelValues, Sample>& samples) {
  if (samples.empty()) return;
  out.append("# HELP ").append(name).append(" ").append(help).append("\n");
  out.append("# TYPE ").append(name).append(" ").append(type).append("\n");
  for (const auto& [values, sample] : samples) {
    if (type != "histogram") {
      AppendLine(out, name, labels, values, FormatNumber(sample.value));
      continue;
    }
    uint64_t cumulative = 0;
    const std::string bucket_name = std::string(name) + "_bucket";
    for (size_t i = 0; i < sample.buckets.size(); ++i) {
      cumulative += sample.buckets[i];
      AppendLine(out, bucket_name, labels, values, std::to_string(cumulative),
                 i < bounds.size() ? FormatNumber(bounds[i]) : "+Inf");
    }
    AppendLine(out, std::string(name) + "_sum", labels, values, FormatNumber(sample.value));
    AppendLine(out, std::string(name) + "_count", labels, values, std::to_string(cumulative));
  }
}

template <typename Metric>
void RenderFamily(std::map<std::string, std::string>& pages, const Family<Metric>& family) {
  const MetricOptions& options = family.options();
  std::map<LabelValues, Sample> own;
  std::vector<std::map<LabelValues, Sample>> twins(options.twins.size());
  std::vector<std::vector<size_t>> columns(options.twins.size());
  for (size_t t = 0; t < options.twins.size(); ++t) {
    for (const auto& [from, to] : options.twins[t].labels) {
      const auto at = std::find(options.labels.begin(), options.labels.end(), from);
      FAIRWAY_CHECK(at != options.labels.end());
      columns[t].push_back(static_cast<size_t>(at - options.labels.begin()));
    }
  }
  family.ForEach([&](const LabelValues& values, const Metric& metric) {
    own[values].Add(metric);
    for (size_t t = 0; t < twins.size(); ++t) {
      LabelValues projected;
      for (const size_t column : columns[t]) projected.push_back(values[column]);
      twins[t][projected].Add(metric);
    }
  });
  const std::string_view type = TypeName(static_cast<const Metric*>(nullptr));
  AppendFamily(pages[options.name], options.name, options.help, type, options.labels, options.buckets, own);
  for (size_t t = 0; t < twins.size(); ++t) {
    const MetricTwin& twin = options.twins[t];
    std::vector<std::string> names;
    names.reserve(twin.labels.size());
    for (const auto& [from, to] : twin.labels) names.push_back(to);
    AppendFamily(pages[twin.name], twin.name, twin.help, type, names, options.buckets, twins[t]);
  }
}

std::unique_ptr<Counter> Make(const MetricOptions&, const Counter*) { return std::make_unique<Counter>(); }
std::unique_ptr<Gauge> Make(const MetricOptions&, const Gauge*) { return std::make_unique<Gauge>(); }
std::unique_ptr<Histogram> Make(const MetricOptions& options, const Histogram*) {
  return std::make_unique<Histogram>(options.buckets);
}

}  // namespace

namespace {

using Float = std::numeric_limits<float>;

float RoundUp(double v) {
  if (v > Float::max()) return Float::infinity();
  const auto rounded = static_cast<float>(std::max<double>(v, Float::lowest()));
  return rounded < v ? std::nextafter(rounded, Float::infinity()) : rounded;
}

}  // namespace

Histogram::Histogram(std::span<const double> upper_bounds)
    : num_bounds_(static_cast<uint32_t>(upper_bounds.size())) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const size_t rows = upper_bounds.size() / kPerRow + 1;  // one more bucket than bounds
  rows_ = std::make_unique<Row[]>(rows);
  for (size_t i = 0; i < rows * kPerRow; ++i) {
    rows_[i / kPerRow].buckets[i % kPerRow].bound = i < upper_bounds.size() ? upper_bounds[i] : kInfinity;
  }
  stride_ = static_cast<uint32_t>((rows + kMarks - 1) / kMarks * kPerRow);
  for (size_t i = 0; i < kMarks; ++i) {
    const size_t last = (i + 1) * stride_ - 1;
    marks_[i] = last < upper_bounds.size() ? RoundUp(upper_bounds[last]) : Float::infinity();
  }
}

[[gnu::hot]] void Histogram::Observe(double v) noexcept {
  size_t mark = 0;
  while (marks_[mark] < v) ++mark;  // the last one is +Inf
  size_t i = mark * stride_;
  while (at(i).bound < v) ++i;
  rows_[i / kPerRow].buckets[i % kPerRow].count.fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(v, std::memory_order_relaxed);
}

uint64_t Histogram::count() const noexcept {
  uint64_t total = 0;
  for (size_t i = 0; i <= num_bounds_; ++i) total += bucket(i);
  return total;
}

template <typename Metric>
Metric& Family<Metric>::With(std::span<const std::string_view> values) {
  FAIRWAY_CHECK(values.size() == options_.labels.size());
  LabelValues key(values.begin(), values.end());
  std::lock_guard lock(mutex_);
  auto found = series_.find(key);
  if (found == series_.end()) {
    if (series_.size() >= options_.max_series && !key.empty()) std::fill(key.begin(), key.end(), "other");
    auto& slot = series_[std::move(key)];
    if (slot == nullptr) slot = Make(options_, static_cast<const Metric*>(nullptr));
    return *slot;
  }
  return *found->second;
}

template <typename Metric>
void Family<Metric>::Remove(std::initializer_list<std::string_view> values) {
  const LabelValues key(values.begin(), values.end());
  std::lock_guard lock(mutex_);
  series_.erase(key);
}

template <typename Metric>
void Family<Metric>::ForEach(const std::function<void(const LabelValues&, const Metric&)>& visit) const {
  std::lock_guard lock(mutex_);
  for (const auto& [values, metric] : series_) visit(values, *metric);
}

template class Family<Counter>;
template class Family<Gauge>;
template class Family<Histogram>;

CounterFamily& Registry::AddCounter(MetricOptions options) {
  std::lock_guard lock(mutex_);
  return *counters_.emplace_back(std::make_unique<CounterFamily>(std::move(options)));
}

GaugeFamily& Registry::AddGauge(MetricOptions options) {
  std::lock_guard lock(mutex_);
  return *gauges_.emplace_back(std::make_unique<GaugeFamily>(std::move(options)));
}

HistogramFamily& Registry::AddHistogram(MetricOptions options) {
  std::lock_guard lock(mutex_);
  return *histograms_.emplace_back(std::make_unique<HistogramFamily>(std::move(options)));
}

void Registry::AddCollector(std::function<void()> collect) {
  std::lock_guard lock(mutex_);
  collectors_.push_back(std::move(collect));
}

std::string Registry::Render() const {
  std::vector<std::function<void()>> collectors;
  {
    std::lock_guard lock(mutex_);
    collectors = collectors_;
  }
  for (const auto& collect : collectors) collect();  // outside the lock: a collector may add families
  std::map<std::string, std::string> pages;
  std::lock_guard lock(mutex_);
  for (const auto& family : counters_) RenderFamily(pages, *family);
  for (const auto& family : gauges_) RenderFamily(pages, *family);
  for (const auto& family : histograms_) RenderFamily(pages, *family);
  std::string out;
  for (const auto& [name, page] : pages) out += page;
  return out;
}

}  // namespace fairway::base
