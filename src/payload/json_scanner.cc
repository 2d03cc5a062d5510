#include "payload/json_scanner.h"

#include <charconv>
#include <cmath>
#include <cstring>

#include "base/strings.h"
#include "base/utf8.h"

namespace fairway::payload {
namespace {

constexpr bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }
constexpr bool IsDigit(char c) { return c >= '0' && c <= '9'; }

constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

// What an escape other than \u stands for; 0: no such escape.
char Unescape(char c) {
  switch (c) {
    case '"':
    case '\\':
    case '/':
      return c;
    case 'b':
      return '\b';
    case 'f':
      return '\f';
    case 'n':
      return '\n';
    case 'r':
      return '\r';
    case 't':
      return '\t';
    default:
      return 0;
  }
}

std::string Quoted(char c) {
  if (c > 0x20 && c < 0x7f) return {'\'', c, '\''};
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  const auto byte = static_cast<unsigned char>(c);
  return std::string("byte 0x") + kDigits[byte >> 4] + kDigits[byte & 15];
}

}  // namespace

inline const char* JsonScanner::SkipSpace(const char* p) const {
  while (p != end_ && IsSpace(*p)) ++p;
  return p;
}

inline void JsonScanner::BeginCapture(size_t limit, const char* run) {
  capture_limit_ = limit;
  run_ = run;
  buffered_ = false;
  truncated_ = false;
  high_surrogate_ = 0;
}

[[gnu::hot]] void JsonScanner::Reset() {
  state_ = State::kValue;
  offset_ = 0;
  depth_ = 0;
  quiet_depth_ = 0;
  capture_limit_ = 0;
  error_.clear();
}

[[gnu::hot]] void JsonScanner::Feed(std::string_view chunk, JsonSink& sink, MemberSink* members) {
  chunk_ = chunk.data();
  end_ = chunk_ + chunk.size();
  run_ = chunk_;
  const char* p = chunk_;
  while (p != end_) {
    if (state_ >= State::kString) {
      if (failed()) return;
      p = Inside(p, sink);
      continue;
    }
    p = SkipSpace(p);
    if (p != end_) p = Token(p, sink, members);
  }
  if (state_ == State::kString || state_ == State::kUtf8 || InNumber()) Flush(end_);
  offset_ += chunk.size();
}

// Comparisons in place of a table of jumps: fewer cache lines.
inline const char* JsonScanner::Token(const char* p, JsonSink& sink, MemberSink* members) {
  if (state_ == State::kAfterValue) return AfterValue(p, sink);
  if (state_ == State::kFirstKey || state_ == State::kKey) {
    if (*p == '}' && state_ == State::kFirstKey) return Close(p, sink);
    if (members != nullptr && *p == '"' && !quiet()) {
      const char* q = PlainMembers(p, *members);
      if (q != p) return q;  // what comes next is no key, or the next call's
    }
    return Key(p, sink);
  }
  if (state_ <= State::kFirstElement) return Value(p, sink);
  if (*p != ':') return Unexpected(p, "':' after the key");
  state_ = State::kValue;
  return p + 1;
}

// From the quote of a key on, as far as members are plain. What is not is left where it begins, in state kKey
// or kFirstKey; of a container the key is taken, and it begins in state kValue.
[[gnu::hot]] const char* JsonScanner::PlainMembers(const char* p, MemberSink& sink) {
  constexpr std::ptrdiff_t kLeast = 5;  // what looks at less than that of a value needs no look at the end
  PlainMember member;
  for (;;) {
    const char* q = p + 1;
    while (q != end_ && static_cast<signed char>(*q) > 0x1f && *q != '"' && *q != '\\') ++q;  // ASCII
    if (end_ - q < kLeast + 3 || q[0] != '"' || q[1] != ':') return p;
    member.key = {p + 1, static_cast<size_t>(q - p - 1)};
    if (member.key.size() > kMaxKey) return p;
    q += q[2] == ' ' ? 3 : 2;
    member.first = *q;
    member.span.begin = At(q);
    if (*q == '"') {
      const char* text = q + 1;
      q = kernel_->skip_text(text, end_);
      if (q == end_ || *q != '"') return p;
      member.text = {text, static_cast<size_t>(q - text)};
      ++q;
    } else if (IsDigit(*q)) {
      const char* digits = q;
      uint64_t number = 0;
      do number = number * 10 + static_cast<uint64_t>(*q++ - '0');
      while (q != end_ && IsDigit(*q));
      if (q - digits > 18 || (*digits == '0' && q - digits > 1)) return p;
      member.number = static_cast<int64_t>(number);
      if (q != end_ && *q == '.') {  // a temperature
        member.number = -1;
        const char* point = q;
        do ++q;
        while (q != end_ && IsDigit(*q));
        if (q - point < 2) return p;
      }
      if (q == end_ || (*q != ',' && *q != '}')) return p;
    } else if (*q == '[' || *q == '{') {
      sink.OnKey(member.key);
      state_ = State::kValue;
      return q;
    } else {
      if (std::memcmp(q, "true", 4) == 0 || std::memcmp(q, "null", 4) == 0) {
        q += 4;
      } else if (std::memcmp(q, "false", 5) == 0) {
        q += 5;
      } else {
        return p;
      }
    }
    member.span.end = At(q);
    if (!sink.OnPlainMember(member)) return p;
    p = q;
    state_ = State::kAfterValue;
    if (end_ - p < 3 || *p != ',') return p;
    state_ = State::kKey;
    p += p[1] == ' ' ? 2 : 1;
    if (*p != '"') return p;
  }
}

const char* JsonScanner::Inside(const char* p, JsonSink& sink) {
  switch (state_) {
    case State::kString:
      return String(p, sink);
    case State::kUtf8:
      return Utf8(p);
    case State::kEscape:
      return Escape(p);
    case State::kHex:
      return Hex(p);
    case State::kLiteral:
      return Literal(p, sink);
    case State::kByteOrderMark:
      return ByteOrderMark(p);
    default:
      return Number(p, sink);
  }
}

[[gnu::hot]] bool JsonScanner::Finish(JsonSink& sink) {
  if (failed()) return false;
  if (state_ == State::kZero || state_ == State::kInteger || state_ == State::kFraction ||
      state_ == State::kExponentDigits) {
    chunk_ = end_ = run_ = nullptr;
    EndNumber(offset_, sink, nullptr);
  }
  if (failed()) return false;
  if (depth_ == 0 && state_ == State::kAfterValue) return true;
  Fail("unexpected end of JSON input");
  return false;
}

[[gnu::noinline, gnu::cold]] void JsonScanner::Fail(std::string message) {
  state_ = State::kFailed;
  error_ = std::move(message);
}

std::optional<uint64_t> JsonScanner::open_string() const {
  const bool open =
      state_ == State::kString || state_ == State::kUtf8 || state_ == State::kEscape || state_ == State::kHex;
  if (!open || is_key_ || quiet()) return std::nullopt;
  return token_begin_;
}

[[gnu::noinline, gnu::cold]] const char* JsonScanner::FailAt(uint64_t at, std::string_view what) {
  Fail("invalid JSON at byte " + std::to_string(at) + ": " + std::string(what));
  return end_;
}

[[gnu::noinline, gnu::cold]] const char* JsonScanner::FailCharacter(const char* p, std::string_view before,
                                                                    std::string_view after) {
  return FailAt(p, std::string(before) + Quoted(*p) + std::string(after));
}

[[gnu::noinline, gnu::cold]] const char* JsonScanner::FailDepth(const char* p) {
  return FailAt(p, "nested deeper than " + std::to_string(kMaxDepth) + " levels");
}

[[gnu::noinline, gnu::cold]] const char* JsonScanner::Unexpected(const char* p, std::string_view wanted) {
  if (At(p) == 0 && *p == kByteOrderMark[0]) {
    state_ = State::kByteOrderMark;
    return p + 1;
  }
  return FailAt(p, "expected " + std::string(wanted) + ", found " + Quoted(*p));
}

// Engines in Python take it (json.loads of bytes).
[[gnu::noinline, gnu::cold]] const char* JsonScanner::ByteOrderMark(const char* p) {
  const uint64_t at = At(p);
  if (*p != kByteOrderMark[at]) return FailAt(uint64_t{0}, "expected a value, found other text before it");
  if (at + 1 == kByteOrderMark.size()) state_ = State::kValue;
  return p + 1;
}

[[gnu::hot]] const char* JsonScanner::Value(const char* p, JsonSink& sink) {
  const char c = *p;
  token_begin_ = At(p);
  if (c == '"') {
    is_key_ = false;
    state_ = State::kString;
    BeginCapture(quiet() ? 0 : sink.OnString(token_begin_), p + 1);
    return failed() ? end_ : String(p + 1, sink);
  }
  if (c == '{' || c == '[') return Open(p, c == '{', sink);
  if (c == ']' && state_ == State::kFirstElement) return Close(p, sink);
  if (c == 't' || c == 'f' || c == 'n') {
    literal_ = c == 't' ? "true" : c == 'f' ? "false" : "null";
    state_ = State::kLiteral;
    return Literal(p, sink);
  }
  if (c != '-' && !IsDigit(c)) return Unexpected(p, "a value");
  if (const char* end = PlainNumber(p, sink)) return end;
  state_ = c == '-' ? State::kMinus : c == '0' ? State::kZero : State::kInteger;
  BeginCapture(quiet() ? 0 : kMaxNumber, p);
  return p + 1;
}

const char* JsonScanner::Key(const char* p, JsonSink& sink) {
  if (*p != '"') return Unexpected(p, state_ == State::kKey ? "a key in '\"'" : "a key in '\"' or '}'");
  token_begin_ = At(p);
  is_key_ = true;
  state_ = State::kString;
  BeginCapture(quiet() ? 0 : kMaxKey, p + 1);
  return String(p + 1, sink);
}

[[gnu::hot]] const char* JsonScanner::AfterValue(const char* p, JsonSink& sink) {
  if (depth_ == 0) return Unexpected(p, "nothing after the value");
  const bool in_object = object_[static_cast<size_t>(depth_ - 1)];
  if (*p == ',') {
    state_ = in_object ? State::kKey : State::kValue;
    return p + 1;
  }
  if (*p == (in_object ? '}' : ']')) return Close(p, sink);
  return Unexpected(p, in_object ? "',' or '}'" : "',' or ']'");
}

[[gnu::hot]] const char* JsonScanner::Open(const char* p, bool object, JsonSink& sink) {
  if (depth_ == kMaxDepth) return FailDepth(p);
  object_[static_cast<size_t>(depth_++)] = object;
  state_ = object ? State::kFirstKey : State::kFirstElement;
  if (!quiet() && !(object ? sink.OnObject(token_begin_) : sink.OnArray(token_begin_))) quiet_depth_ = depth_;
  return p + 1;
}

[[gnu::hot]] const char* JsonScanner::Close(const char* p, JsonSink& sink) {
  state_ = State::kAfterValue;
  if (quiet_depth_ == depth_) quiet_depth_ = 0;
  --depth_;
  if (!quiet()) sink.OnClose(At(p + 1));
  return p + 1;
}

const char* JsonScanner::String(const char* p, JsonSink& sink) {
  const bool wanted = capture_limit_ != 0;  // else escapes need no decoding
  const SkipFunction skip = wanted ? kernel_->skip_plain : kernel_->skip_text;
  for (;;) {
    // Short strings are many: a look at 16 bytes before a call.
    const unsigned plain = end_ - p >= 16 ? PlainAsciiPrefix16(p) : 16;
    p += plain < 16 ? plain : 0;
    if (plain == 16 || static_cast<unsigned char>(*p) >= 0x80 || (*p == '\\' && !wanted)) p = skip(p, end_);
    if (p == end_) return p;
    const auto c = static_cast<unsigned char>(*p);
    if (c == '"') return EndString(p, sink);
    if (c == '\\') {
      Flush(p);
      state_ = State::kEscape;
      return p + 1;
    }
    if (c < 0x20) return FailCharacter(p, "control character in a string, ", ": write it as an escape");
    character_begin_ = At(p);
    if (!utf8_.Begin(c)) return FailCharacter(p, "invalid UTF-8 in a string, ", "");
    state_ = State::kUtf8;
    return p + 1;
  }
}

const char* JsonScanner::EndString(const char* p, JsonSink& sink) {
  const std::string_view text = Captured(p);
  const bool truncated = truncated_;
  capture_limit_ = 0;
  if (is_key_) {
    const bool colon = p + 1 != end_ && p[1] == ':';
    state_ = colon ? State::kValue : State::kColon;
    if (!quiet()) sink.OnKey(text);
    if (colon) return p + 2;
  } else {
    state_ = State::kAfterValue;
    if (!quiet()) sink.OnStringEnd({token_begin_, At(p + 1)}, text, truncated);
  }
  return p + 1;
}

const char* JsonScanner::Utf8(const char* p) {
  if (!utf8_.Next(static_cast<unsigned char>(*p)))
    return FailAt(character_begin_, "invalid UTF-8 in a string");
  if (utf8_.remaining == 0) state_ = State::kString;
  return p + 1;
}

const char* JsonScanner::Escape(const char* p) {
  if (*p == 'u') {
    state_ = State::kHex;
    hex_ = 0;
    hex_digits_ = 0;
    return p + 1;
  }
  const char c = Unescape(*p);
  if (c == 0) return FailCharacter(p, "no such escape in a string, ", " after '\\'");
  if (capture_limit_ != 0) Capture({&c, 1});
  state_ = State::kString;
  run_ = p + 1;
  return p + 1;
}

const char* JsonScanner::Hex(const char* p) {
  const int value = base::HexDigit(*p);
  if (value < 0) return FailCharacter(p, "expected four hexadecimal digits after '\\u', found ", "");
  hex_ = hex_ << 4 | static_cast<uint32_t>(value);
  if (++hex_digits_ == 4) {
    if (capture_limit_ != 0) CaptureUnit(hex_);
    state_ = State::kString;
    run_ = p + 1;
  }
  return p + 1;
}

// The short way for what lists of token ids are made of: digits and a comma, all in this chunk. Null when it
// is something else.
const char* JsonScanner::PlainNumber(const char* p, JsonSink& sink) {
  const char* q = p;
  while (q != end_ && IsDigit(*q)) ++q;
  const auto size = static_cast<size_t>(q - p);
  if (q == end_ || (*q != ',' && *q != ']' && *q != '}') || size == 0 || size > kMaxNumber || *p == '0')
    return nullptr;
  state_ = State::kAfterValue;
  if (!quiet()) sink.OnNumber({token_begin_, At(q)}, {p, size});
  return q;
}

const char* JsonScanner::Number(const char* p, JsonSink& sink) {
  for (; p != end_; ++p) {
    if (state_ == State::kInteger) {  // the common case, so a loop of its own
      while (p != end_ && IsDigit(*p)) ++p;
      if (p == end_) return p;
    }
    if (NumberCharacter(*p)) continue;
    switch (state_) {
      case State::kMinus:
        return Unexpected(p, "a digit after '-'");
      case State::kPoint:
        return Unexpected(p, "a digit after '.'");
      case State::kExponent:
      case State::kExponentSign:
        return Unexpected(p, "a digit in the exponent");
      default:
        break;
    }
    if (state_ == State::kZero && IsDigit(*p)) return FailAt(p, "a number must not begin with 0");
    EndNumber(At(p), sink, p);
    return p;
  }
  return p;
}

// Whether the number goes on with `c`; moves the state on.
bool JsonScanner::NumberCharacter(char c) {
  const bool digit = IsDigit(c);
  switch (state_) {
    case State::kMinus:
      if (!digit) return false;
      state_ = c == '0' ? State::kZero : State::kInteger;
      return true;
    case State::kPoint:
      if (digit) state_ = State::kFraction;
      return digit;
    case State::kExponent:
      if (c == '+' || c == '-') {
        state_ = State::kExponentSign;
        return true;
      }
      [[fallthrough]];
    case State::kExponentSign:
      if (digit) state_ = State::kExponentDigits;
      return digit;
    case State::kExponentDigits:
      return digit;
    case State::kZero:
    case State::kInteger:
      if (digit) return state_ == State::kInteger;
      if (c == '.') {
        state_ = State::kPoint;
        return true;
      }
      break;
    default:
      if (digit) return true;
      break;
  }
  if (c != 'e' && c != 'E') return false;
  state_ = State::kExponent;
  return true;
}

void JsonScanner::EndNumber(uint64_t end, JsonSink& sink, const char* p) {
  const std::string_view text = Captured(p);
  const bool truncated = truncated_;
  capture_limit_ = 0;
  state_ = State::kAfterValue;
  if (!quiet()) sink.OnNumber({token_begin_, end}, truncated ? std::string_view() : text);
}

const char* JsonScanner::Literal(const char* p, JsonSink& sink) {
  for (; p != end_ && !literal_.empty(); ++p) {
    if (*p != literal_.front()) return Unexpected(p, "true, false or null");
    literal_.remove_prefix(1);
  }
  if (!literal_.empty()) return p;
  state_ = State::kAfterValue;
  const uint64_t end = At(p);
  const char first = end - token_begin_ == 5 ? 'f' : p[-1] == 'l' ? 'n' : 't';
  if (!quiet()) sink.OnLiteral({token_begin_, end}, first);
  return p;
}

void JsonScanner::Flush(const char* end) {
  if (capture_limit_ == 0) return;
  if (!buffered_) captured_.clear();
  buffered_ = true;
  if (end != run_) Capture({run_, static_cast<size_t>(end - run_)});
  run_ = end;
}

// What was captured up to `end`, the limit applied.
std::string_view JsonScanner::Captured(const char* end) {
  if (capture_limit_ == 0) return {};
  if (buffered_) {
    Flush(end);
    if (high_surrogate_ != 0) Capture({});
    return captured_;
  }
  const std::string_view text(run_, static_cast<size_t>(end - run_));
  truncated_ = text.size() > capture_limit_;
  return text.substr(0, capture_limit_);
}

void JsonScanner::Capture(std::string_view text) {
  if (high_surrogate_ != 0) {
    high_surrogate_ = 0;
    Capture(base::Utf8Of(0xfffd));
  }
  const size_t room = capture_limit_ - captured_.size();
  truncated_ = truncated_ || text.size() > room;
  captured_.append(text.substr(0, room));
}

void JsonScanner::CaptureUnit(uint32_t unit) {
  const bool high = unit >= 0xd800 && unit <= 0xdbff;
  const bool low = unit >= 0xdc00 && unit <= 0xdfff;
  if (low && high_surrogate_ != 0) {
    const uint32_t code = 0x10000 + ((high_surrogate_ - 0xd800) << 10) + (unit - 0xdc00);
    high_surrogate_ = 0;
    Capture(base::Utf8Of(code));
    return;
  }
  if (high_surrogate_ != 0) Capture({});  // alone
  if (high) {
    high_surrogate_ = unit;
  } else {
    Capture(base::Utf8Of(low ? 0xfffd : unit));
  }
}

std::optional<int64_t> WholeNumber(std::string_view json_number) {
  // As a rule a few digits.
  int64_t plain = 0;
  size_t digits = 0;
  while (digits < json_number.size() && digits < 18 && IsDigit(json_number[digits])) {
    plain = plain * 10 + (json_number[digits++] - '0');
  }
  if (digits != 0 && digits == json_number.size()) return plain;
  if (const auto whole = base::ParseInteger<int64_t>(json_number)) return *whole >= 0 ? whole : std::nullopt;
  double real = 0;
  const auto [at, error] = std::from_chars(json_number.begin(), json_number.end(), real);
  if (error != std::errc() || at != json_number.end() || real < 0 || real > 0x1p62 ||
      real != std::floor(real))
    return std::nullopt;
  return static_cast<int64_t>(real);
}

}  // namespace fairway::payload
