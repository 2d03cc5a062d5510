#include "api/text_rules.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>

#include "base/strings.h"

namespace fairway::api {
namespace {

constexpr size_t kMaxQuoted = 80;
// A suggestion costs an edit distance for each candidate.
constexpr size_t kMaxSuggestLength = 256;
constexpr size_t kMaxSuggestCandidates = 1000;

bool IsLower(char c) { return c >= 'a' && c <= 'z'; }
bool IsUpper(char c) { return c >= 'A' && c <= 'Z'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsAlnum(char c) { return IsLower(c) || IsUpper(c) || IsDigit(c); }
bool IsHex(char c) { return IsDigit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

// [a-z0-9]([-a-z0-9]*[a-z0-9])?
bool IsDnsPart(std::string_view text) {
  return !text.empty() && text.front() != '-' && text.back() != '-' &&
         std::all_of(text.begin(), text.end(), [](char c) { return IsLower(c) || IsDigit(c) || c == '-'; });
}

bool IsDnsName(std::string_view text) {
  if (text.size() > 253) return false;
  for (const std::string_view part : base::Split(text, '.')) {
    if (!IsDnsPart(part)) return false;
  }
  return true;
}

// ([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]
bool IsQualifiedPart(std::string_view text) {
  return !text.empty() && text.size() <= 63 && IsAlnum(text.front()) && IsAlnum(text.back()) &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return IsAlnum(c) || c == '-' || c == '_' || c == '.'; });
}

}  // namespace

std::string Quote(std::string_view text) {
  if (text.size() <= kMaxQuoted) return base::JsonString(text);
  size_t cut = kMaxQuoted;
  while (cut > 0 && (static_cast<unsigned char>(text[cut]) & 0xc0) == 0x80) --cut;
  return base::JsonString(text.substr(0, cut)) + "...";
}

std::string DidYouMean(std::string_view wanted, std::span<const std::string> candidates) {
  if (wanted.size() > kMaxSuggestLength || candidates.size() > kMaxSuggestCandidates) return "";
  const auto nearest = base::Nearest(wanted, candidates);
  return nearest ? "; did you mean " + Quote(*nearest) + "?" : "";
}

std::string CheckDnsLabel(std::string_view text) {
  if (text.size() <= 63 && IsDnsPart(text)) return "";
  return "want at most 63 lower-case letters, digits and '-', beginning and ending with a letter or digit";
}

std::string CheckDnsSubdomain(std::string_view text) {
  if (IsDnsName(text)) return "";
  return "want at most 253 lower-case letters, digits, '-' and '.', each part beginning and ending with a "
         "letter or digit";
}

std::string CheckGroup(std::string_view text) {
  return text.empty() || IsDnsName(text) ? "" : "want an API group such as \"inference.networking.k8s.io\"";
}

std::string CheckKind(std::string_view text) {
  const bool fits = !text.empty() && text.size() <= 63 && (IsLower(text[0]) || IsUpper(text[0])) &&
                    text.back() != '-' &&
                    std::all_of(text.begin(), text.end(), [](char c) { return IsAlnum(c) || c == '-'; });
  return fits ? "" : "want a kind such as \"InferencePool\"";
}

std::string CheckReferentName(std::string_view text) {
  return !text.empty() && text.size() <= 253 ? "" : "want 1 to 253 characters";
}

std::string CheckLabelKey(std::string_view text) {
  const size_t slash = text.find('/');
  const bool prefix_fits = slash == std::string_view::npos || IsDnsName(text.substr(0, slash));
  const std::string_view name = slash == std::string_view::npos ? text : text.substr(slash + 1);
  if (prefix_fits && IsQualifiedPart(name) && text.size() <= 253) return "";
  return "want a label key: at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter "
         "or digit, "
         "with an optional DNS prefix and '/'";
}

std::string CheckLabelValue(std::string_view text) {
  if (text.empty() || IsQualifiedPart(text)) return "";
  return "want a label value: at most 63 letters, digits, '-', '_' and '.', beginning and ending with a "
         "letter or digit";
}

std::string CheckHostname(std::string_view text) {
  const std::string_view name = text.starts_with("*.") ? text.substr(2) : text;
  if (!text.empty() && text.size() <= 253 && IsDnsName(name)) return "";
  return "want a lower-case DNS name without a port, \"*.\" in front is allowed";
}

std::string CheckHeaderName(std::string_view text) {
  constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
  const bool fits = !text.empty() && text.size() <= 256 && std::all_of(text.begin(), text.end(), [&](char c) {
    return IsAlnum(c) || kMarks.find(c) != std::string_view::npos;
  });
  return fits ? "" : "want 1 to 256 letters, digits and any of !#$%&'*+-.^_`|~";
}

std::string CheckHttpPath(std::string_view text) {
  if (!text.starts_with('/')) return "must start with '/'";
  if (text.size() > 1024) return "must have at most 1024 characters";
  for (const std::string_view bad : {"//", "/./", "/../", "%2f", "%2F", "#"}) {
    if (text.find(bad) != std::string_view::npos) return "must not contain " + Quote(bad);
  }
  for (const std::string_view bad : {"/..", "/."}) {
    if (text.ends_with(bad)) return "must not end with " + Quote(bad);
  }
  constexpr std::string_view kMarks = "-/._~!$&'()*+,;=:@";
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '%' && i + 2 < text.size() && IsHex(text[i + 1]) && IsHex(text[i + 2])) continue;
    if (!IsAlnum(c) && kMarks.find(c) == std::string_view::npos) {
      return "must not contain " + Quote(text.substr(i, 1)) + "; write such a byte as %XX";
    }
  }
  return "";
}

std::optional<std::string> NormalizeTime(std::string_view text) {
  // 2025-04-02T10:00:00[.123](Z|+02:00); all fields have fixed places up to the seconds.
  constexpr std::string_view kShape = "dddd-dd-ddTdd:dd:dd";
  if (text.size() <= kShape.size()) return std::nullopt;
  for (size_t i = 0; i < kShape.size(); ++i) {
    const char c = text[i];
    const bool fits = kShape[i] == 'd'   ? IsDigit(c)
                      : kShape[i] == 'T' ? c == 'T' || c == 't'
                                         : c == kShape[i];
    if (!fits) return std::nullopt;
  }
  const auto number = [&](size_t at, size_t length) {
    return *base::ParseInteger<int>(text.substr(at, length));
  };
  const std::chrono::year_month_day date(std::chrono::year(number(0, 4)),
                                         std::chrono::month(static_cast<unsigned>(number(5, 2))),
                                         std::chrono::day(static_cast<unsigned>(number(8, 2))));
  const int hour = number(11, 2), minute = number(14, 2), second = number(17, 2);
  if (!date.ok() || hour > 23 || minute > 59 || second > 60) return std::nullopt;
  std::string_view rest = text.substr(kShape.size());
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    const size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
    if (digits == 0) return std::nullopt;
    rest.remove_prefix(digits);
  }
  int offset_minutes = 0;
  if (rest != "Z" && rest != "z") {
    if (rest.size() != 6 || (rest[0] != '+' && rest[0] != '-') || rest[3] != ':') return std::nullopt;
    const auto hours = base::ParseInteger<unsigned>(rest.substr(1, 2));
    const auto minutes = base::ParseInteger<unsigned>(rest.substr(4, 2));
    if (!hours || !minutes || *hours > 23 || *minutes > 59) return std::nullopt;
    offset_minutes = static_cast<int>(*hours * 60 + *minutes) * (rest[0] == '-' ? -1 : 1);
  }
  const std::chrono::sys_seconds instant = std::chrono::sys_days(date) + std::chrono::hours(hour) +
                                           std::chrono::minutes(minute - offset_minutes) +
                                           std::chrono::seconds(second);
  const auto day = std::chrono::floor<std::chrono::days>(instant);
  const std::chrono::year_month_day utc(day);
  const std::chrono::hh_mm_ss time(instant - day);
  std::array<char, 64> out{};
  std::snprintf(out.data(), out.size(), "%04d-%02u-%02uT%02d:%02d:%02dZ", static_cast<int>(utc.year()),
                static_cast<unsigned>(utc.month()), static_cast<unsigned>(utc.day()),
                static_cast<int>(time.hours().count()), static_cast<int>(time.minutes().count()),
                static_cast<int>(time.seconds().count()));
  return std::string(out.data());
}

std::optional<int64_t> ParseGatewayDuration(std::string_view text) {
  int64_t total = 0;
  int parts = 0;
  do {
    const size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
    if (digits < 1 || digits > 5 || ++parts > 4) return std::nullopt;
    const int64_t number = *base::ParseInteger<int64_t>(text.substr(0, digits));
    text.remove_prefix(digits);
    int64_t unit = 0;
    size_t unit_length = 1;
    if (text.starts_with("ms")) {
      unit = 1;
      unit_length = 2;
    } else if (text.starts_with('s')) {
      unit = 1000;
    } else if (text.starts_with('m')) {
      unit = 60 * 1000;
    } else if (text.starts_with('h')) {
      unit = 60 * 60 * 1000;
    } else {
      return std::nullopt;
    }
    text.remove_prefix(unit_length);
    total += number * unit;
  } while (!text.empty());
  return total;
}

std::string CheckMetricsScheme(std::string_view text) {
  return text == "http" || text == "https" ? "" : "want http or https";
}

std::string CheckMetricsPath(std::string_view text) {
  constexpr size_t kMost = 1024;
  const bool fits =
      !text.empty() && text.front() == '/' && text.size() <= kMost &&
      std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f && c != '#'; });
  return fits ? "" : "want a path such as /metrics: up to 1024 printable ASCII characters, beginning with /";
}

}  // namespace fairway::api
