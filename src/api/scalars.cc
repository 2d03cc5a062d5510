#include "api/scalars.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <string>
#include <string_view>

#include "base/strings.h"

namespace fairway::api {
namespace {

// YAML's reals but for infinities, hexadecimal and octal ones.
std::optional<double> ToReal(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(number)) return std::nullopt;
  return number;
}

std::string Shown(double number) {
  std::array<char, 40> out{};
  const auto [end, error] = std::to_chars(out.data(), out.data() + out.size(), number);
  return {out.data(), error == std::errc() ? end : out.data()};
}

std::string WantedNumber(double min, double max) {
  if (min == -kAnyNumber && max == kAnyNumber) return "a number";
  if (max == kAnyNumber) return "a number from " + Shown(min) + " on";
  if (min == -kAnyNumber) return "a number up to " + Shown(max);
  return "a number from " + Shown(min) + " to " + Shown(max);
}

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
  const auto number = ToReal(text);
  if (!number) return std::nullopt;
  const double value = RoundUp(*number * factor);
  constexpr double kLimit = 9.2e18;
  if (value > kLimit || value < -kLimit) return std::nullopt;
  return static_cast<int64_t>(value);
}

}  // namespace

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
  const auto number = ToReal(node.value().text);
  if (!number || *number < min || *number > max) {
    node.Error("want " + wanted + ", got " + Quote(node.value().text));
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
