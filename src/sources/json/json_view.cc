#include "sources/json/json_view.h"

#include <algorithm>

#include "base/utf8.h"

namespace fairway::sources {
namespace {

constexpr std::string_view kSpace = " \t\r\n";
constexpr size_t kNone = std::string_view::npos;

void SkipSpace(std::string_view& text) {
  const size_t at = text.find_first_not_of(kSpace);
  text.remove_prefix(at == kNone ? text.size() : at);
}

// `from` is behind the opening quote; the place of the closing one.
size_t StringEnd(std::string_view text, size_t from) {
  for (size_t at = text.find('"', from); at != kNone; at = text.find('"', at + 1)) {
    size_t backslashes = 0;
    while (at - backslashes > from && text[at - backslashes - 1] == '\\') ++backslashes;
    if (backslashes % 2 == 0) return at;
  }
  return kNone;
}

// The length of the value that `text` begins with; 0: there is none, or it does not end.
size_t ValueLength(std::string_view text) {
  if (text.empty()) return 0;
  if (text[0] == '"') {
    const size_t end = StringEnd(text, 1);
    return end == kNone ? 0 : end + 1;
  }
  if (text[0] != '{' && text[0] != '[') {
    const size_t end = text.find_first_of(" \t\r\n,:]}[{\"");
    return end == kNone ? text.size() : end;
  }
  size_t depth = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (c == '"') {
      at = StringEnd(text, at + 1);
      if (at == kNone) return 0;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if ((c == '}' || c == ']') && --depth == 0) {
      return at + 1;
    }
  }
  return 0;
}

bool TakeValue(std::string_view& rest, std::string_view& value) {
  SkipSpace(rest);
  const size_t length = ValueLength(rest);
  if (length == 0) return false;
  value = rest.substr(0, length);
  rest.remove_prefix(length);
  SkipSpace(rest);
  if (!rest.empty() && rest[0] == ',') rest.remove_prefix(1);
  return true;
}

// The four hexadecimal digits at `at`; nothing when they are none.
std::optional<unsigned> Hex4(std::string_view bytes, size_t at) {
  if (at + 4 > bytes.size()) return std::nullopt;
  unsigned value = 0;
  for (const char c : bytes.substr(at, 4)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) return std::nullopt;
    value = value * 16 + static_cast<unsigned>(digit);
  }
  return value;
}

// The escape at `at`, behind its backslash; returns how many bytes it took.
size_t Unescape(std::string_view bytes, size_t at, std::string& out) {
  static constexpr std::string_view kFrom = "\"\\/bfnrt";
  static constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
  if (const size_t simple = kFrom.find(bytes[at]); simple != kNone) {
    out += kTo[simple];
    return 1;
  }
  const auto code = bytes[at] == 'u' ? Hex4(bytes, at + 1) : std::nullopt;
  if (!code) {
    out += base::Utf8Of(0xfffd);
    return 1;
  }
  if (*code >= 0xd800 && *code < 0xdc00 && bytes.substr(at + 5).starts_with("\\u")) {
    const auto low = Hex4(bytes, at + 7);
    if (low && *low >= 0xdc00 && *low < 0xe000) {
      out += base::Utf8Of(0x10000 + ((*code - 0xd800) << 10) + (*low - 0xdc00));
      return 11;
    }
  }
  out += base::Utf8Of(*code >= 0xd800 && *code < 0xe000 ? 0xfffd : *code);
  return 5;
}

}  // namespace

JsonMembers::JsonMembers(std::string_view object) : rest_(object) {
  SkipSpace(rest_);
  if (rest_.empty() || rest_[0] != '{') {
    rest_ = {};
  } else {
    rest_.remove_prefix(1);
  }
}

bool JsonMembers::Next() {
  SkipSpace(rest_);
  const size_t end = rest_.empty() || rest_[0] != '"' ? kNone : StringEnd(rest_, 1);
  if (end == kNone) return false;
  key_ = rest_.substr(1, end - 1);
  rest_.remove_prefix(end + 1);
  SkipSpace(rest_);
  if (rest_.empty() || rest_[0] != ':') return false;
  rest_.remove_prefix(1);
  return TakeValue(rest_, value_);
}

JsonItems::JsonItems(std::string_view list) : rest_(list) {
  SkipSpace(rest_);
  if (rest_.empty() || rest_[0] != '[') {
    rest_ = {};
  } else {
    rest_.remove_prefix(1);
  }
}

bool JsonItems::Next() { return TakeValue(rest_, value_); }

std::string JsonUnescape(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (;;) {
    const size_t at = bytes.find('\\');
    out += bytes.substr(0, at);
    if (at == kNone || at + 1 == bytes.size()) return out;
    bytes.remove_prefix(at + 1 + Unescape(bytes, at + 1, out));
  }
}

std::optional<std::string> JsonString(std::string_view value) {
  if (value.size() < 2 || value.front() != '"' || value.back() != '"') return std::nullopt;
  return JsonUnescape(value.substr(1, value.size() - 2));
}

bool ListSplitter::Feed(std::string_view bytes) {
  // `start`: where what is not yet given away begins, of the envelope or of the item that is being read. What
  // stands between items is dropped.
  size_t start = 0;
  const auto keep = [&](size_t end) {
    std::string& where = in_items_ && depth_ > 2 ? held_ : envelope_;
    where += bytes.substr(start, end - start);
    start = end;
    if (held_.size() > kMaxItem || envelope_.size() > kMaxEnvelope) failed_ = true;
  };
  for (size_t at = 0; at < bytes.size() && !failed_; ++at) {
    const char c = bytes[at];
    if (in_string_) {
      if (escaped_) {
        escaped_ = false;
      } else if (c == '\\') {
        escaped_ = true;
      } else if (c == '"') {
        in_string_ = false;
      } else if (depth_ == 1) {
        if (last_.size() < 16) last_ += c;
      } else {
        // The bulk of the text: to the next byte that means anything.
        const size_t next = bytes.find_first_of("\"\\", at);
        at = std::min(next, bytes.size()) - 1;
      }
      continue;
    }
    if (c == '"') {
      in_string_ = true;
      if (depth_ == 1) last_.clear();
    } else if (c == '{' || c == '[') {
      if (in_items_ && depth_ == 2) start = at;
      ++depth_;
      if (depth_ == 2 && c == '[' && last_ == "items") {
        in_items_ = true;
        keep(at + 1);
      }
    } else if (c == '}' || c == ']') {
      if (in_items_ && depth_ == 3) {  // an item ends
        if (held_.empty()) {
          item_(bytes.substr(start, at + 1 - start));
        } else {
          keep(at + 1);
          if (failed_) return false;
          item_(held_);
          held_.clear();
        }
        start = at + 1;
      }
      if (in_items_ && depth_ == 2) {
        start = at;
        in_items_ = false;
      }
      if (--depth_ <= 0) {
        depth_ = 0;
        keep(at + 1);
        done_ = true;
      }
    }
  }
  if (!failed_ && !(in_items_ && depth_ == 2)) keep(bytes.size());
  return !failed_;
}

}  // namespace fairway::sources
