#include "replay/fields.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <utility>

#include "api/load.h"
#include "base/strings.h"

namespace fairway::replay {

namespace {

std::string Show(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.12g", value);
  return text.data();
}

std::optional<double> ParseNumber(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

}  // namespace

std::optional<double> ReadNumber(const api::Node& node, double min, double max) {
  if (!node.present()) return std::nullopt;
  if (!node.Is(api::Value::Kind::kNumber)) {
    node.WrongType("a number");
    return std::nullopt;
  }
  const auto value = ParseNumber(node.value().text);
  if (value && *value >= min && *value <= max) return value;
  node.Error("want a number of " + Show(min) + " to " + Show(max) + ", got " + node.value().text);
  return std::nullopt;
}

std::optional<base::Nanos> ReadTime(const api::Node& node, base::Nanos min, base::Nanos max) {
  if (!node.present()) return std::nullopt;
  std::optional<base::Nanos> time;
  if (node.Is(api::Value::Kind::kNumber)) {
    if (const auto seconds = ParseNumber(node.value().text); seconds && std::abs(*seconds) < 9e9)
      time = static_cast<base::Nanos>(std::llround(*seconds * 1e9));
  } else if (node.Is(api::Value::Kind::kString)) {
    time = base::ParseDuration(node.value().text);
  }
  if (time && *time >= min && *time <= max) return time;
  node.Error("want a time as \"50ms\" or \"1m30s\", or seconds, of " + Show(base::ToSeconds(min)) + "s to " +
             Show(base::ToSeconds(max)) + "s");
  return std::nullopt;
}

bool ReadBool(const api::Node& node, bool otherwise) {
  if (!node.present()) return otherwise;
  if (!node.Is(api::Value::Kind::kBool)) {
    node.WrongType("true or false");
    return otherwise;
  }
  const char first = node.value().text.empty() ? 'f' : node.value().text[0];
  return first == 't' || first == 'T' || first == 'y' || first == 'Y' || node.value().text == "on";
}

std::string ToText(const std::vector<api::Problem>& problems) {
  std::string text;
  for (const api::Problem& problem : problems) text += api::ToString(problem) + "\n";
  if (!text.empty()) text.pop_back();
  return text;
}

std::optional<std::string> ReadFile(const std::string& path, size_t max_bytes,
                                    std::vector<api::Problem>& problems) {
  const auto fail = [&](std::string what) {
    problems.push_back({api::Severity::kError, {path, 0}, "", "", std::move(what)});
    return std::nullopt;
  };
  struct stat info{};
  if (::stat(path.c_str(), &info) == 0 && (S_ISCHR(info.st_mode) || S_ISBLK(info.st_mode)))
    return fail("is a device, not a file");
  auto text = api::ReadFile(path, {.max_bytes = max_bytes});
  if (!text) return fail(text.error().message);
  return std::move(*text);
}

}  // namespace fairway::replay
