#include "replay/plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace fairway::replay {

namespace {

constexpr double kLabels = 190, kPanel = 260, kGap = 24, kLine = 20, kTop = 58, kBottom = 34;

struct Panel {
  const char* title;
  Summary Row::* of;
};
constexpr std::array<Panel, 3> kPanels{{{"time to the first token", &Row::first_token},
                                        {"time per further token", &Row::per_token},
                                        {"end to end", &Row::total}}};

std::string Escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<' || c == '>' || c == '&' || c == '"') {
      out += "&#" + std::to_string(static_cast<int>(c)) + ";";
    } else if (static_cast<unsigned char>(c) >= ' ') {
      out += c;
    }
  }
  return out;
}

template <typename... Values>
void Print(std::string& out, const char* format, Values... values) {
  std::array<char, 400> text{};
  std::snprintf(text.data(), text.size(), format, values...);
  out += text.data();
}

void Text(std::string& out, double x, double y, const char* anchor, const std::string& text) {
  Print(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
  out += Escaped(text) + "</text>\n";
}

std::string Seconds(double value) {
  std::string out;
  if (value < 1) {
    Print(out, "%g ms", std::round(value * 1e6) / 1e3);
  } else {
    Print(out, "%g s", value);
  }
  return out;
}

// A logarithmic axis over what the rows have.
class Axis {
 public:
  Axis(const std::vector<Row>& rows, Summary Row::* of) {
    for (const Row& row : rows) {
      const Summary& summary = row.*of;
      if (summary.p50 <= 0) continue;
      low_ = std::min(low_, std::min(summary.p50, summary.mean));
      high_ = std::max(high_, std::max(summary.p99, summary.mean));
    }
    if (high_ <= 0) low_ = 0.5, high_ = 1;
    low_ /= 1.5;
    high_ *= 1.1;
  }
  double At(double value) const {
    const double part = std::log(std::max(value, low_) / low_) / std::log(high_ / low_);
    return std::clamp(part, 0.0, 1.0) * kPanel;
  }
  // 1, 2, 5, 10, ... as many as there is room for.
  std::vector<double> Ticks() const {
    std::vector<double> all, decades;
    for (int power = static_cast<int>(std::floor(std::log10(low_))); std::pow(10, power) <= high_; ++power) {
      for (const double step : {1.0, 2.0, 5.0}) {
        const double value = step * std::pow(10, power);
        if (value < low_ || value > high_) continue;
        all.push_back(value);
        if (step == 1.0) decades.push_back(value);
      }
    }
    return all.size() > 6 && decades.size() > 1 ? decades : all;
  }

 private:
  double low_ = 1e18, high_ = 0;
};

void DrawPanel(std::string& out, const Panel& panel, const std::vector<Row>& rows, double x, double height) {
  const Axis axis(rows, panel.of);
  Text(out, x, kTop - 10, "start", panel.title);
  for (const double tick : axis.Ticks()) {
    Print(out, "<path d=\"M%.1f %.1fV%.1f\" stroke=\"#ccc\"/>\n", x + axis.At(tick), kTop, height - kBottom);
    Text(out, x + axis.At(tick), height - kBottom + 14, "middle", Seconds(tick));
  }
  double y = kTop + 3;
  for (const Row& row : rows) {
    const Summary& summary = row.*(panel.of);
    const auto bar = [&](double value, const char* colour) {
      Print(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", x, y,
            axis.At(value), kLine - 7, colour);
    };
    if (summary.p50 > 0) {
      bar(summary.p99, "#c6dbef");
      bar(summary.p90, "#6baed6");
      bar(summary.p50, "#2171b5");
      Print(out, "<path d=\"M%.1f %.1fv%.1f\" stroke=\"#d94801\" stroke-width=\"2\"/>\n",
            x + axis.At(summary.mean), y - 1, kLine - 5);
    }
    y += kLine;
  }
}

}  // namespace

std::string Plot(const std::string& title, const std::vector<Row>& rows) {
  size_t longest = 0;
  for (const Row& row : rows)
    longest = std::max(longest, std::max(row.policy.size(), row.traffic.size() + 2));
  const double labels = std::max(kLabels, 7.0 * static_cast<double>(longest) + 20);
  const double width = labels + static_cast<double>(kPanels.size()) * (kPanel + kGap);
  const double height = kTop + kLine * static_cast<double>(rows.size()) + kBottom + 20;
  std::string out;
  Print(out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" font-family=\"sans-serif\" "
        "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
        width, height);
  Text(out, 10, 22, "start", title);
  Text(out, width - kGap, height - 6, "end", "bars: 50th, 90th, 99th percentile; mark: mean");
  double y = kTop + 13;
  for (const Row& row : rows) {
    Text(out, row.traffic.empty() ? 10 : 24, y, "start", row.traffic.empty() ? row.policy : row.traffic);
    y += kLine;
  }
  double x = labels;
  for (const Panel& panel : kPanels) {
    DrawPanel(out, panel, rows, x, height - 20);
    x += kPanel + kGap;
  }
  return out + "</svg>\n";
}

}  // namespace fairway::replay
