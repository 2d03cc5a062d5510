#include "api/value.h"

#include <algorithm>
#include <array>

namespace fairway::api {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool AllDigits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), IsDigit);
}

bool IsNumber(std::string_view text) {
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
  if (text.empty()) return false;
  if (text == ".inf" || text == ".Inf" || text == ".INF") return true;
  if (text.size() > 2 && text[0] == '0' && (text[1] == 'x' || text[1] == 'o')) {
    const bool hex = text[1] == 'x';
    return std::all_of(text.begin() + 2, text.end(), [&](char c) {
      return hex ? IsDigit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F') : c >= '0' && c <= '7';
    });
  }
  size_t digits = 0;
  const auto skip_digits = [&] {
    while (!text.empty() && IsDigit(text[0])) {
      text.remove_prefix(1);
      ++digits;
    }
  };
  skip_digits();
  if (!text.empty() && text[0] == '.') {
    text.remove_prefix(1);
    skip_digits();
  }
  if (digits == 0) return false;
  if (!text.empty() && (text[0] == 'e' || text[0] == 'E')) {
    text.remove_prefix(1);
    if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
    return AllDigits(text);
  }
  return text.empty();
}

// Length of the UTF-8 sequence at the beginning of `text`; 0 when there is none. Table 3-7 of the Unicode
// standard.
size_t SequenceLength(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto tail = [&](size_t i, unsigned char low, unsigned char high) {
    return i < text.size() && byte(i) >= low && byte(i) <= high;
  };
  const unsigned char c = byte(0);
  if (c < 0x80) return 1;
  if (c >= 0xc2 && c <= 0xdf) return tail(1, 0x80, 0xbf) ? 2 : 0;
  if (c >= 0xe0 && c <= 0xef) {
    return tail(1, c == 0xe0 ? 0xa0 : 0x80, c == 0xed ? 0x9f : 0xbf) && tail(2, 0x80, 0xbf) ? 3 : 0;
  }
  if (c >= 0xf0 && c <= 0xf4) {
    return tail(1, c == 0xf0 ? 0x90 : 0x80, c == 0xf4 ? 0x8f : 0xbf) && tail(2, 0x80, 0xbf) &&
                   tail(3, 0x80, 0xbf)
               ? 4
               : 0;
  }
  return 0;
}

// Reports the first byte that no UTF-8 text of YAML or JSON has.
bool CheckText(std::string_view text, ParsedText& out) {
  static constexpr char kHex[] = "0123456789abcdef";
  int line = 1;
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    const size_t length = SequenceLength(text.substr(i, 4));
    const bool control = c < 0x20 && c != '\t' && c != '\n' && c != '\r';
    if (length == 0 || control || c == 0x7f) {
      const std::string byte = std::string("0x") + kHex[c >> 4] + kHex[c & 15];
      out.problems.push_back(
          {line, length == 0 || c == 0
                     ? "not UTF-8 text: byte " + byte + "; save the file as UTF-8 YAML or JSON"
                     : "the control character " + byte +
                           " cannot stand in YAML or JSON; take it out, or write it as \\u00" +
                           byte.substr(2) + " in a text in double quotes"});
      return false;
    }
    if (c == '\n') ++line;
    i += length;
  }
  return true;
}

}  // namespace

const Value* Value::Find(std::string_view key) const {
  for (const Entry& entry : entries) {
    if (entry.key == key) return entry.value.get();
  }
  return nullptr;
}

Value::Kind ResolvePlain(std::string_view text) {
  static constexpr std::array<std::string_view, 5> kNulls{"", "~", "null", "Null", "NULL"};
  static constexpr std::array<std::string_view, 18> kBools{"true", "True", "TRUE", "false", "False", "FALSE",
                                                           "yes",  "Yes",  "YES",  "no",    "No",    "NO",
                                                           "on",   "On",   "ON",   "off",   "Off",   "OFF"};
  if (std::find(kNulls.begin(), kNulls.end(), text) != kNulls.end()) return Value::Kind::kNull;
  if (std::find(kBools.begin(), kBools.end(), text) != kBools.end()) return Value::Kind::kBool;
  return IsNumber(text) ? Value::Kind::kNumber : Value::Kind::kString;
}

ParsedText ParseText(std::string_view text, std::string_view file_name) {
  ParsedText out;
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  if (text.size() > kMaxFileBytes) {
    out.problems.push_back({0, "larger than 16 MiB; split it into files of one folder"});
    return out;
  }
  if (!CheckText(text, out)) return out;
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos || (text[first] != '{' && text[first] != '[')) return ParseYaml(text);
  // JSON by its looks. YAML's flow style looks alike, so what is no JSON gets a second chance unless the name
  // says JSON.
  if (text.substr(first).starts_with("{{")) {
    out.problems.push_back({1, "begins with {{, as a template does; render it first (helm template)"});
    return out;
  }
  out = ParseJson(text);
  if (out.problems.empty() || file_name.ends_with(".json")) return out;
  ParsedText yaml = ParseYaml(text);
  return yaml.documents.empty() ? out : yaml;
}

}  // namespace fairway::api
