#include "api/scalars.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <string>
#include <string_view>
#include <utility>

#include "base/strings.h"

namespace fairway::api {
namespace {

// Without an exponent where that is shorter to read.
template <typename Number>
std::string Digits(Number number) {
  const bool plain = number == 0 || (std::abs(number) >= Number{1e-7F} && std::abs(number) < Number{1e15F});
  std::array<char, 64> out{};
  const auto [end, error] = std::to_chars(out.data(), out.data() + out.size(), number,
                                          plain ? std::chars_format::fixed : std::chars_format::general);
  return {out.data(), error == std::errc() ? end : out.data()};
}

std::string WantedNumber(double min, double max) {
  const std::string range = RangeOf(min, max);
  if (range.empty()) return "a number";
  if (range.starts_with("up")) return "a number " + range;
  return "a number " + (range.starts_with("from") ? range + " on" : "from " + range);
}

constexpr double kNoEnd = 1e9;  // ends beyond it only keep sums finite

struct Suffix {
  std::string_view text;
  double factor;
};
constexpr auto kSuffixes = std::to_array<Suffix>({{"Ki", 0x1p10},
                                                  {"Mi", 0x1p20},
                                                  {"Gi", 0x1p30},
                                                  {"Ti", 0x1p40},
                                                  {"Pi", 0x1p50},
                                                  {"Ei", 0x1p60},
                                                  {"n", 1e-9},
                                                  {"u", 1e-6},
                                                  {"m", 1e-3},
                                                  {"k", 1e3},
                                                  {"M", 1e6},
                                                  {"G", 1e9},
                                                  {"T", 1e12},
                                                  {"P", 1e15},
                                                  {"E", 1e18}});

// Up to the next whole number, but for what is one within a double's exactness: "7000m" is 7, not 8.
double RoundUp(double value) {
  const double nearest = std::round(value);
  return std::abs(value - nearest) <= 1e-9 * std::max(1.0, std::abs(value)) ? nearest : std::ceil(value);
}

// Whole numbers without a suffix are exact; the others are as exact as a double is.
std::optional<int64_t> ToQuantity(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  if (const auto whole = base::ParseInteger<int64_t>(text)) return whole;
  double factor = 1;
  for (const Suffix& suffix : kSuffixes) {
    if (!text.ends_with(suffix.text)) continue;
    factor = suffix.factor;
    text.remove_suffix(suffix.text.size());
    break;
  }
  // An exponent and a suffix exclude each other, so "1e3k" is none.
  if (factor != 1 && text.find_first_of("eE") != std::string_view::npos) return std::nullopt;
  const auto number = ParseReal(text);
  if (!number) return std::nullopt;
  const double value = RoundUp(*number * factor);
  constexpr double kLimit = 9.2e18;
  if (value > kLimit || value < -kLimit) return std::nullopt;
  return static_cast<int64_t>(value);
}

}  // namespace

// YAML's reals but for infinities, hexadecimal and octal ones.
std::optional<double> ParseReal(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(number)) return std::nullopt;
  return number;
}

std::string RangeOf(double min, double max) {
  if (max < kNoEnd && min > -kNoEnd) return ShowNumber(min) + " to " + ShowNumber(max);
  if (min > -kNoEnd) return "from " + ShowNumber(min);
  return max < kNoEnd ? "up to " + ShowNumber(max) : "";
}

std::string ShowNumber(double number) { return Digits(number); }
std::string ShowNumber(float number) { return Digits(number); }

std::string ShowDuration(int64_t nanos) {
  constexpr auto kUnits = std::to_array<std::pair<int64_t, const char*>>(
      {{1'000'000'000, "s"}, {1'000'000, "ms"}, {1'000, "us"}, {1, "ns"}});
  const auto* const unit = std::find_if(kUnits.begin(), kUnits.end() - 1,
                                        [&](const auto& unit) { return nanos % unit.first == 0; });
  return std::to_string(nanos / unit->first) + unit->second;
}

std::string ShowSize(double bytes) {
  constexpr auto kUnits = std::to_array<std::pair<double, const char*>>(
      {{0x1p40, "Ti"}, {0x1p30, "Gi"}, {0x1p20, "Mi"}, {0x1p10, "Ki"}});
  for (const auto& [factor, name] : kUnits) {
    if (bytes >= factor && std::fmod(bytes, factor) == 0) return ShowNumber(bytes / factor) + name;
  }
  return ShowNumber(bytes);
}

std::optional<bool> ReadBoolean(const Node& node) {
  if (!node.present()) return std::nullopt;
  if (node.Is(Value::Kind::kBool)) {
    const std::string text = base::ToLower(node.value().text);
    return text == "true" || text == "yes" || text == "on";
  }
  node.WrongType("true or false");
  return std::nullopt;
}

std::optional<double> ReadNumber(const Node& node, double min, double max) {
  if (!node.present()) return std::nullopt;
  const std::string wanted = WantedNumber(min, max);
  if (!node.Is(Value::Kind::kNumber)) {
    node.WrongType(wanted);
    return std::nullopt;
  }
  const auto number = ParseReal(node.value().text);
  if (!number || *number < min || *number > max) {
    // A bound that ranges leave out, since nobody comes near it, is named to who passed it.
    const bool far = number && *number > max && max >= kNoEnd && max != kAnyNumber;
    node.Error("want " + (far ? "a number up to " + ShowNumber(max) : wanted) + ", got " +
               Quote(node.value().text));
    return std::nullopt;
  }
  return number;
}

std::optional<int64_t> ReadDuration(const Node& node) {
  if (!node.present()) return std::nullopt;
  constexpr std::string_view kWanted = "a duration such as \"60s\", \"1m30s\" or \"500ms\"";
  if (!node.Is(Value::Kind::kString)) {
    node.WrongType(kWanted);
    return std::nullopt;
  }
  std::string_view text = node.value().text;
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  const auto nanos = base::ParseDuration(text);
  if (!nanos) {
    node.Error("want " + std::string(kWanted) + ", got " + Quote(node.value().text));
    return std::nullopt;
  }
  if (negative && *nanos > 0) {
    node.Error("must not be negative, got " + Quote(node.value().text));
    return std::nullopt;
  }
  return nanos;
}

std::optional<int64_t> ReadQuantity(const Node& node) {
  if (!node.present()) return std::nullopt;
  constexpr std::string_view kWanted = "a quantity such as \"1Gi\", \"500M\" or 1000";
  if (!node.Is(Value::Kind::kNumber) && !node.Is(Value::Kind::kString)) {
    node.WrongType(kWanted);
    return std::nullopt;
  }
  const auto quantity = ToQuantity(node.value().text);
  if (!quantity) node.Error("want " + std::string(kWanted) + ", got " + Quote(node.value().text));
  return quantity;
}

}  // namespace fairway::api
