// Reads a Prometheus text page (exposition format 0.0.4) as strictly as a scrape does and more: what
// Prometheus would drop a page for, what would be a duplicate, and histograms that do not add up are
// problems.
#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fairway::tests {

class PrometheusPage {
 public:
  using Labels = std::map<std::string, std::string>;
  struct Sample {
    std::string name;
    Labels labels;
    double value = 0;
  };

  explicit PrometheusPage(std::string_view text) {
    if (!IsUtf8(text)) Problem("the page is no UTF-8", "");
    if (!text.empty() && !text.ends_with('\n')) Problem("no newline at the end", "");
    while (!text.empty()) {
      const size_t end = std::min(text.find('\n'), text.size());
      ReadLine(text.substr(0, end));
      text.remove_prefix(std::min(end + 1, text.size()));
    }
    for (const auto& [name, type] : types_) {
      if (type == "histogram") CheckHistogram(name);
    }
  }

  const std::vector<std::string>& problems() const { return problems_; }
  const std::vector<Sample>& samples() const { return samples_; }
  // Of the only series that has this name and, among others, these labels.
  std::optional<double> Value(std::string_view name, const Labels& labels = {}) const {
    std::optional<double> found;
    for (const Sample& sample : samples_) {
      if (sample.name != name || !Has(sample.labels, labels)) continue;
      if (found) return std::nullopt;
      found = sample.value;
    }
    return found;
  }
  double Sum(std::string_view name, const Labels& labels = {}) const {
    double sum = 0;
    for (const Sample& sample : samples_) {
      if (sample.name == name && Has(sample.labels, labels)) sum += sample.value;
    }
    return sum;
  }
  std::set<std::string> ValuesOf(std::string_view name, const std::string& label) const {
    std::set<std::string> values;
    for (const Sample& sample : samples_) {
      const auto found = sample.labels.find(label);
      if (sample.name == name && found != sample.labels.end()) values.insert(found->second);
    }
    return values;
  }

 private:
  static bool Has(const Labels& all, const Labels& some) {
    for (const auto& [name, value] : some) {
      const auto found = all.find(name);
      if (found == all.end() || found->second != value) return false;
    }
    return true;
  }

  // By decoding and looking at what came out.
  static bool IsUtf8(std::string_view text) {
    for (size_t i = 0; i < text.size();) {
      const auto c = static_cast<unsigned char>(text[i++]);
      if (c < 0x80) continue;
      const int more = (c & 0xe0) == 0xc0 ? 1 : (c & 0xf0) == 0xe0 ? 2 : (c & 0xf8) == 0xf0 ? 3 : 0;
      if (more == 0) return false;
      uint32_t point = c & (0x3f >> more);
      for (int k = 0; k < more; ++k) {
        if (i == text.size() || (static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return false;
        point = point << 6 | (static_cast<unsigned char>(text[i++]) & 0x3f);
      }
      constexpr uint32_t kSmallest[] = {0, 0x80, 0x800, 0x10000};
      if (point < kSmallest[more] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return false;
    }
    return true;
  }

  static bool IsName(std::string_view text, bool colon) {
    if (text.empty() || (text[0] >= '0' && text[0] <= '9')) return false;
    for (const char c : text) {
      const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (colon && c == ':');
      if (!letter && !(c >= '0' && c <= '9')) return false;
    }
    return true;
  }

  static std::optional<double> Number(std::string_view text) {
    if (text == "+Inf") return std::numeric_limits<double>::infinity();
    if (text == "-Inf") return -std::numeric_limits<double>::infinity();
    if (text == "NaN") return std::numeric_limits<double>::quiet_NaN();
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return value;
  }

  void Problem(std::string_view what, std::string_view line) {
    if (problems_.size() < 20)
      problems_.push_back(std::string(what) + ": " + std::string(line.substr(0, 300)));
  }

  void ReadLine(std::string_view line) {
    const bool help = line.starts_with("# HELP ");
    if (help || line.starts_with("# TYPE ")) {
      const std::string_view rest = line.substr(7);
      const size_t space = rest.find(' ');
      const std::string name(rest.substr(0, space));
      if (space == std::string_view::npos || !IsName(name, true)) return Problem("no name", line);
      if (help) {
        if (!helps_.insert(name).second) Problem("a second HELP", line);
      } else if (!types_.emplace(name, rest.substr(space + 1)).second) {
        Problem("a second TYPE", line);
      }
      if (family_ != name && closed_.contains(name)) Problem("a family in two places", line);
      if (family_ != name) closed_.insert(std::exchange(family_, name));
      return;
    }
    if (line.empty() || line[0] == '#') return Problem("a line that says nothing", line);
    ReadSample(line);
  }

  void ReadSample(std::string_view line) {
    Sample sample;
    size_t at = line.find_first_of("{ ");
    if (at == std::string_view::npos) return Problem("no value", line);
    sample.name = line.substr(0, at);
    if (!IsName(sample.name, true)) return Problem("no name", line);
    if (line[at] == '{') {
      ++at;
      while (at < line.size() && line[at] != '}') {
        const size_t equals = line.find("=\"", at);
        if (equals == std::string_view::npos) return Problem("no label", line);
        const std::string name(line.substr(at, equals - at));
        if (!IsName(name, false)) return Problem("no label name", line);
        std::string value;
        for (at = equals + 2;; ++at) {
          if (at >= line.size()) return Problem("a label without an end", line);
          if (line[at] == '"') break;
          if (line[at] != '\\') {
            value += line[at];
            continue;
          }
          ++at;
          if (at >= line.size() || (line[at] != '\\' && line[at] != '"' && line[at] != 'n'))
            return Problem("an unknown escape", line);
          value += line[at] == 'n' ? '\n' : line[at];
        }
        if (!sample.labels.emplace(name, std::move(value)).second) return Problem("a label twice", line);
        ++at;
        if (at < line.size() && line[at] == ',') {
          ++at;
        } else if (at >= line.size() || line[at] != '}') {
          return Problem("labels without an end", line);
        }
      }
      if (at >= line.size()) return Problem("labels without an end", line);
      ++at;
    }
    if (at >= line.size() || line[at] != ' ') return Problem("no value", line);
    const auto value = Number(line.substr(at + 1));
    if (!value) return Problem("no number", line);
    sample.value = *value;
    if (!BelongsToFamily(sample)) Problem("of another family than the last TYPE", line);
    if (!seen_.emplace(sample.name, sample.labels).second) Problem("a series twice", line);
    samples_.push_back(std::move(sample));
  }

  bool BelongsToFamily(const Sample& sample) const {
    const auto type = types_.find(family_);
    if (type == types_.end() || !helps_.contains(family_)) return false;
    if (type->second == "counter" && !(sample.value >= 0)) return false;
    if (type->second != "histogram") return sample.name == family_ && !sample.labels.contains("le");
    return (sample.name == family_ + "_bucket") == sample.labels.contains("le") &&
           (sample.name == family_ + "_bucket" || sample.name == family_ + "_sum" ||
            sample.name == family_ + "_count");
  }

  void CheckHistogram(const std::string& name) {
    struct Parts {
      double last_bound = -std::numeric_limits<double>::infinity();
      double last = 0;
      std::optional<double> sum, count;
    };
    std::map<Labels, Parts> series;
    for (const Sample& sample : samples_) {
      Labels labels = sample.labels;
      labels.erase("le");
      if (sample.name == name + "_sum") series[labels].sum = sample.value;
      if (sample.name == name + "_count") series[labels].count = sample.value;
      if (sample.name != name + "_bucket") continue;
      Parts& parts = series[labels];
      const auto bound = Number(sample.labels.at("le"));
      if (!bound || !(*bound > parts.last_bound)) Problem("bounds do not ascend", name);
      if (sample.value < parts.last) Problem("buckets are not cumulative", name);
      parts.last_bound = bound.value_or(0);
      parts.last = sample.value;
    }
    for (const auto& [labels, parts] : series) {
      if (!std::isinf(parts.last_bound) || !parts.sum || parts.count != parts.last)
        Problem("a histogram does not add up", name);
    }
  }

  std::vector<std::string> problems_;
  std::vector<Sample> samples_;
  std::set<std::pair<std::string, Labels>> seen_;
  std::map<std::string, std::string> types_;
  std::set<std::string> helps_;
  std::set<std::string> closed_;
  std::string family_;
};

}  // namespace fairway::tests
