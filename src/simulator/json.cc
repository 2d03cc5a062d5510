#include "simulator/json.h"

#include <charconv>
#include <cstdint>

#include "base/utf8.h"

namespace fairway::simulator {

using base::ErrorCode;

namespace {

constexpr int kMaxDepth = 64;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  base::Result<Json> Document() {
    Json json;
    const bool ok =
        Value(json, 0) && (Space(), at_ == text_.size() || Fail("unexpected text after the value"));
    if (!ok) {
      return base::Fail(ErrorCode::kInvalidArgument,
                        "invalid JSON at byte " + std::to_string(at_) + ": " + std::string(error_));
    }
    return json;
  }

 private:
  bool Fail(std::string_view error) {
    error_ = error;
    return false;
  }
  void Space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos)
      ++at_;
  }
  bool Eat(char c) {
    Space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  bool Value(Json& out, int depth) {
    if (depth > kMaxDepth) return Fail("nested too deeply");
    Space();
    if (at_ >= text_.size()) return Fail("unexpected end");
    switch (text_[at_]) {
      case '{':
        return Object(out, depth);
      case '[':
        return Array(out, depth);
      case '"':
        out.kind = Json::Kind::kString;
        return String(out.string);
      case 't':
        return Literal(out, "true", Json::Kind::kBool, true);
      case 'f':
        return Literal(out, "false", Json::Kind::kBool, false);
      case 'n':
        return Literal(out, "null", Json::Kind::kNull, false);
      default:
        return Number(out);
    }
  }

  bool Object(Json& out, int depth) {
    out.kind = Json::Kind::kObject;
    ++at_;
    if (Eat('}')) return true;
    do {
      Space();
      auto& [name, value] = out.members.emplace_back();
      if (at_ >= text_.size() || text_[at_] != '"') return Fail("a member's name in quotes is missing");
      if (!String(name)) return false;
      if (!Eat(':')) return Fail("':' is missing");
      if (!Value(value, depth + 1)) return false;
    } while (Eat(','));
    return Eat('}') || Fail("',' or '}' is missing");
  }

  bool Array(Json& out, int depth) {
    out.kind = Json::Kind::kArray;
    ++at_;
    if (Eat(']')) return true;
    do {
      if (!Value(out.items.emplace_back(), depth + 1)) return false;
    } while (Eat(','));
    return Eat(']') || Fail("',' or ']' is missing");
  }

  bool Literal(Json& out, std::string_view word, Json::Kind kind, bool value) {
    if (!text_.substr(at_).starts_with(word)) return Fail("unknown word");
    at_ += word.size();
    out.kind = kind;
    out.boolean = value;
    return true;
  }

  bool Number(Json& out) {
    const size_t digits = at_ + (text_[at_] == '-' ? 1 : 0);
    const bool starts_well = digits < text_.size() && text_[digits] >= '0' && text_[digits] <= '9';
    const bool leading_zero = starts_well && text_[digits] == '0' && digits + 1 < text_.size() &&
                              text_[digits + 1] >= '0' && text_[digits + 1] <= '9';
    if (!starts_well || leading_zero) return Fail("a value is missing");
    const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), out.number);
    if (error != std::errc()) return Fail("number out of range");
    out.kind = Json::Kind::kNumber;
    at_ = static_cast<size_t>(end - text_.data());
    return true;
  }

  bool String(std::string& out) {
    for (++at_; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (c == '"') {
        ++at_;
        return true;
      }
      if (static_cast<unsigned char>(c) < 0x20) return Fail("control character in a string");
      if (c != '\\') {
        out += c;
      } else if (!Escape(out)) {
        return false;
      }
    }
    return Fail("unterminated string");
  }

  // Leaves at_ on the escape's last byte.
  bool Escape(std::string& out) {
    if (++at_ >= text_.size()) return Fail("unterminated string");
    constexpr std::string_view kNames = "\"\\/bfnrt";
    constexpr std::string_view kBytes = "\"\\/\b\f\n\r\t";
    if (auto which = kNames.find(text_[at_]); which != std::string_view::npos) {
      out += kBytes[which];
      return true;
    }
    uint32_t code = 0;
    if (text_[at_] != 'u' || !Hex(code)) return Fail("unknown escape");
    if (code >= 0xd800 && code < 0xdc00) {
      uint32_t low = 0;
      const bool pair =
          text_.substr(at_ + 1).starts_with("\\u") && (at_ += 2, Hex(low)) && low >= 0xdc00 && low < 0xe000;
      if (!pair) return Fail("half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code < 0xe000) {
      return Fail("half of a surrogate pair");
    }
    out += base::Utf8Of(code);
    return true;
  }

  // The four digits after at_.
  bool Hex(uint32_t& code) {
    if (text_.size() - at_ < 5) return false;
    const char* begin = text_.data() + at_ + 1;
    const auto [end, error] = std::from_chars(begin, begin + 4, code, 16);
    if (error != std::errc() || end != begin + 4) return false;
    at_ += 4;
    return true;
  }

  std::string_view text_;
  size_t at_ = 0;
  std::string_view error_;
};

}  // namespace

const Json* Json::Find(std::string_view name) const {
  for (auto member = members.rbegin(); member != members.rend(); ++member)
    if (member->name == name) return &member->value;
  return nullptr;
}

base::Result<Json> ParseJson(std::string_view text) { return Parser(text).Document(); }

}  // namespace fairway::simulator
