#include "base/metrics_page.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <tuple>
#include <utility>

#include "base/result.h"
#include "base/strings.h"

namespace fairway::base {
namespace {

constexpr size_t kPiece = 64 << 10;
constexpr int kStepsPerPiece = 2000;  // some hundreds of microseconds, found or not
constexpr size_t kTail = 1024;        // of the page: what is said of itself

using LabelValues = std::vector<std::string>;

// As Go prints float64 with 'g': whole numbers below a million plain, else the shortest form.
void AppendNumber(std::string& out, double v) {
  if (std::isnan(v)) {
    out += "NaN";
    return;
  }
  if (std::isinf(v)) {
    out += v > 0 ? "+Inf" : "-Inf";
    return;
  }
  std::array<char, 32> text{};
  std::to_chars_result end{};
  if (v == std::floor(v) && std::fabs(v) < 1e6) {
    end = std::to_chars(text.data(), text.data() + text.size(), static_cast<int64_t>(v));
  } else {
    const bool exponent = std::fabs(v) >= 1e6 || std::fabs(v) < 1e-4;
    end = std::to_chars(text.data(), text.data() + text.size(), v,
                        exponent ? std::chars_format::scientific : std::chars_format::fixed);
  }
  out.append(text.data(), end.ptr);
}

std::string_view TypeName(MetricType type) {
  switch (type) {
    case MetricType::kCounter:
      return "counter";
    case MetricType::kGauge:
      return "gauge";
    case MetricType::kHistogram:
      break;
  }
  return "histogram";
}

void AppendHead(std::string& out, std::string_view name, std::string_view help, std::string_view type) {
  out.append("# HELP ").append(name).append(" ").append(help).append("\n");
  out.append("# TYPE ").append(name).append(" ").append(type).append("\n");
}

// A family under one of its names.
class Section {
 public:
  // `twin`: npos is the family itself.
  static constexpr size_t kOwn = static_cast<size_t>(-1);
  Section(const AnyFamily& family, size_t twin) : family_(&family), own_(twin == kOwn) {
    const MetricOptions& options = family.options();
    if (own_) {
      name_ = options.name;
      help_ = options.help;
      names_ = options.labels;
      for (size_t i = 0; i < names_.size(); ++i) columns_.push_back(i);
    } else {
      name_ = options.twins[twin].name;
      help_ = options.twins[twin].help;
      for (const auto& [from, to] : options.twins[twin].labels) {
        const auto at = std::find(options.labels.begin(), options.labels.end(), from);
        FAIRWAY_CHECK(at != options.labels.end());
        columns_.push_back(static_cast<size_t>(at - options.labels.begin()));
        names_.push_back(to);
      }
    }
    while (std::find(columns_.begin(), columns_.end(), common_) != columns_.end()) ++common_;
  }
  auto order() const { return std::tuple(!own_, family_->type() == MetricType::kHistogram, name_); }

  void Open() { reader_ = family_->Open(); }
  bool open() const { return reader_ != nullptr; }
  // A little further: appends to `out` what series became complete. False: there are no more.
  // `write(labels, series)` is called for each.
  template <typename Write>
  bool Step(const Write& write) {
    const SeriesReader::Step step = reader_->Next(series_);
    if (step == SeriesReader::Step::kNothing) return true;
    if (step == SeriesReader::Step::kEnd) {
      Flush(write);
      reader_ = nullptr;
      return false;
    }
    // A twin leaves labels out: series that agree in what is left are added up. Those come with the same
    // values in the leading labels, as series are in order.
    if (!group_.empty() && !std::equal(leading_.begin(), leading_.end(), series_.labels.begin()))
      Flush(write);
    if (group_.empty()) leading_.assign(series_.labels.begin(), series_.labels.begin() + common_end());
    LabelValues values;
    for (const size_t column : columns_) values.push_back(series_.labels[column]);
    Series& sum = group_[std::move(values)];
    sum.value += series_.value;
    sum.buckets.resize(series_.buckets.size());
    for (size_t i = 0; i < sum.buckets.size(); ++i) sum.buckets[i] += series_.buckets[i];
    return true;
  }

  void AppendHeadTo(std::string& out) const { AppendHead(out, name_, help_, TypeName(family_->type())); }
  void AppendSeries(std::string& out, const LabelValues& values, const Series& series) const {
    std::string labels;
    for (size_t i = 0; i < names_.size(); ++i) AppendLabel(labels, names_[i], values[i]);
    if (family_->type() != MetricType::kHistogram) {
      return AppendLine(out, "", labels, [&] { AppendNumber(out, series.value); });
    }
    uint64_t cumulative = 0;
    const std::vector<double>& bounds = family_->options().buckets;
    const size_t length = labels.size();
    for (size_t i = 0; i < series.buckets.size(); ++i) {
      cumulative += series.buckets[i];
      labels.resize(length);
      labels += labels.empty() ? "le=\"" : ",le=\"";
      if (i < bounds.size()) {
        AppendNumber(labels, bounds[i]);
      } else {
        labels += "+Inf";
      }
      labels += '"';
      AppendLine(out, "_bucket", labels, [&] { out += std::to_string(cumulative); });
    }
    labels.resize(length);
    AppendLine(out, "_sum", labels, [&] { AppendNumber(out, series.value); });
    AppendLine(out, "_count", labels, [&] { out += std::to_string(cumulative); });
  }

 private:
  std::ptrdiff_t common_end() const { return static_cast<std::ptrdiff_t>(common_); }

  template <typename Write>
  void Flush(const Write& write) {
    for (const auto& [values, series] : group_) write(values, series);
    group_.clear();
  }

  static void AppendLabel(std::string& out, std::string_view name, std::string_view value) {
    if (!out.empty()) out += ',';
    out += name;
    out += "=\"";
    for (const char c : CleanText(value, value.size())) {
      if (c == '\\' || c == '"') out += '\\';
      out += c;
    }
    out += '"';
  }

  template <typename Number>
  void AppendLine(std::string& out, std::string_view suffix, std::string_view labels,
                  const Number& number) const {
    out.append(name_).append(suffix);
    if (!labels.empty()) out.append("{").append(labels).append("}");
    out += ' ';
    number();
    out += '\n';
  }

  const AnyFamily* family_;
  bool own_;
  std::string_view name_;
  std::string_view help_;
  std::vector<std::string> names_;
  std::vector<size_t> columns_;  // of the family, in the order of names_
  size_t common_ = 0;            // so many of the family's first labels are among them
  std::unique_ptr<SeriesReader> reader_;
  Series series_;
  LabelValues leading_;  // of the group
  std::map<LabelValues, Series> group_;
};

class PieceByPiece final : public Page {
 public:
  PieceByPiece(std::vector<Section> sections, size_t max_bytes)
      : sections_(std::move(sections)), max_bytes_(max_bytes) {}

  bool Next(std::string& out) override {
    out.clear();
    if (ended_) return false;
    for (int steps = 0; at_ < sections_.size() && steps < kStepsPerPiece && out.size() < kPiece; ++steps) {
      Section& section = sections_[at_];
      if (!section.open()) {
        section.Open();
        headed_ = false;
      }
      const bool more = section.Step([&](const LabelValues& values, const Series& series) {
        text_.clear();
        if (!headed_) section.AppendHeadTo(text_);
        section.AppendSeries(text_, values, series);
        // What comes later is worth less: it does not take the place of what was left out.
        if (left_out_ > 0 || written_ + text_.size() + kTail > max_bytes_) {
          ++left_out_;
          return;
        }
        headed_ = true;
        written_ += text_.size();
        out += text_;
      });
      if (!more) ++at_;
    }
    if (at_ == sections_.size()) {
      AppendTail(out);
      ended_ = true;
    }
    return true;
  }

 private:
  void AppendTail(std::string& out) const {
    const auto gauge = [&out](std::string_view name, std::string_view help, size_t value) {
      AppendHead(out, name, help, "gauge");
      out.append(name).append(" ").append(std::to_string(value)).append("\n");
    };
    gauge("fairway_metrics_page_bytes", "Size of this page, but for these lines.", written_);
    gauge("fairway_metrics_page_limit_bytes", "What it may have (--metrics-max-bytes).", max_bytes_);
    gauge("fairway_metrics_left_out_series",
          "Series that had no room on this page: deprecated names first, then histograms.", left_out_);
  }

  std::vector<Section> sections_;
  const size_t max_bytes_;
  size_t at_ = 0;  // of sections_
  bool headed_ = false;
  bool ended_ = false;
  size_t written_ = 0;
  size_t left_out_ = 0;
  std::string text_;
};

}  // namespace

std::unique_ptr<Page> MakePage(const std::vector<const AnyFamily*>& families, size_t max_bytes) {
  std::vector<Section> sections;
  for (const AnyFamily* family : families) {
    sections.emplace_back(*family, Section::kOwn);
    for (size_t i = 0; i < family->options().twins.size(); ++i) sections.emplace_back(*family, i);
  }
  std::stable_sort(sections.begin(), sections.end(),
                   [](const Section& a, const Section& b) { return a.order() < b.order(); });
  return std::make_unique<PieceByPiece>(std::move(sections), max_bytes);
}

}  // namespace fairway::base
