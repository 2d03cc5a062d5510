// JSON as RFC 8259 has it, any number of values one after the other. Apart from YAML because yaml-cpp
// stumbles over tabs and surrogate pairs, which JSON writers use freely.
#include <utility>

#include "api/builder.h"
#include "api/text_rules.h"
#include "api/value.h"
#include "base/utf8.h"

namespace fairway::api {
namespace {

class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text), builder_(out_) {}

  ParsedText Parse() {
    try {
      for (SkipSpace(); !text_.empty(); SkipSpace()) {
        builder_.StartDocument();
        ParseDocument();
        out_.documents.push_back(builder_.TakeDocument());
      }
    } catch (const ValueBuilder::Stop& stop) {
      out_.problems.push_back({stop.line, stop.message});
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void Fail(const std::string& message) const {
    throw ValueBuilder::Stop{line_, "not valid JSON: " + message, true};
  }
  std::string Here() const { return text_.empty() ? "the end of the file" : Quote(text_.substr(0, 1)); }

  void SkipSpace() {
    size_t i = 0;
    for (; i < text_.size(); ++i) {
      const char c = text_[i];
      if (c == '\n') ++line_;
      if (c != ' ' && c != '\t' && c != '\n' && c != '\r') break;
    }
    text_.remove_prefix(i);
  }
  bool Take(char c) {
    if (text_.empty() || text_[0] != c) return false;
    text_.remove_prefix(1);
    return true;
  }

  void ParseDocument() {
    // Without recursion: closers_ says what each open value ends with.
    ParseValue();
    while (!closers_.empty()) {
      SkipSpace();
      if (Take(closers_.back())) {
        closers_.pop_back();
        fresh_ = false;
        builder_.Close();
        continue;
      }
      if (!fresh_ && !Take(',')) {
        Fail(std::string("expected , or ") + closers_.back() + ", got " + Here());
      }
      fresh_ = false;
      SkipSpace();
      if (closers_.back() == '}') {
        if (text_.empty() || text_[0] != '"') Fail("expected a key in double quotes, got " + Here());
        const int line = line_;
        std::string key = ParseString();
        SkipSpace();
        if (!Take(':')) Fail("expected : after the key, got " + Here());
        builder_.Key(std::move(key), line);
        SkipSpace();
      }
      ParseValue();
    }
  }

  // A scalar, or the beginning of a list or map.
  void ParseValue() {
    if (text_.empty()) Fail("expected a value, got the end of the file");
    const char c = text_[0];
    if (c == '{' || c == '[') {
      text_.remove_prefix(1);
      builder_.Open(c == '{' ? Value::Kind::kMap : Value::Kind::kList, line_);
      closers_.push_back(c == '{' ? '}' : ']');
      fresh_ = true;
      return;
    }
    if (c == '"') {
      const int line = line_;
      builder_.Scalar(Value::Kind::kString, line, ParseString());
      return;
    }
    const size_t end = text_.find_first_of(" \t\r\n,:]}[{\"");
    const std::string_view word = text_.substr(0, end);
    Value::Kind kind;
    if (word == "null") {
      kind = Value::Kind::kNull;
    } else if (word == "true" || word == "false") {
      kind = Value::Kind::kBool;
    } else if (IsJsonNumber(word)) {
      kind = Value::Kind::kNumber;
    } else {
      Fail("expected a value, got " + (word.empty() ? Here() : Quote(word)));
    }
    builder_.Scalar(kind, line_, std::string(word));
    text_.remove_prefix(word.size());
  }

  static bool IsJsonNumber(std::string_view word) {
    const std::string_view digits = word.starts_with('-') ? word.substr(1) : word;
    return !digits.empty() && digits[0] >= '0' && digits[0] <= '9' && !digits.starts_with("0x") &&
           !digits.starts_with("0o") && !digits.ends_with('.') && ResolvePlain(word) == Value::Kind::kNumber;
  }

  int ParseHex4() {
    if (text_.size() < 4) Fail("\\u wants four hexadecimal digits");
    int value = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = text_[static_cast<size_t>(i)];
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) Fail("\\u wants four hexadecimal digits");
      value = value * 16 + digit;
    }
    text_.remove_prefix(4);
    return value;
  }

  void ParseEscape(std::string& out) {
    if (text_.empty()) Fail("a quote is opened and never closed");
    const char c = text_[0];
    text_.remove_prefix(1);
    static constexpr std::string_view kFrom = "\"\\/bfnrt";
    static constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
    if (const size_t at = kFrom.find(c); at != std::string_view::npos) {
      out += kTo[at];
      return;
    }
    if (c != 'u') Fail(std::string("unknown escape \\") + c);
    auto code = static_cast<unsigned>(ParseHex4());
    if (code >= 0xd800 && code < 0xdc00 && text_.starts_with("\\u")) {
      text_.remove_prefix(2);
      const auto low = static_cast<unsigned>(ParseHex4());
      if (low < 0xdc00 || low > 0xdfff) Fail("half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xd800 && code <= 0xdfff) {
      Fail("half of a surrogate pair");
    }
    out += base::Utf8Of(code);
  }

  std::string ParseString() {
    text_.remove_prefix(1);
    std::string out;
    for (;;) {
      const size_t plain = text_.find_first_of("\"\\\n");
      if (plain == std::string_view::npos || text_[plain] == '\n') Fail("a quote is opened and never closed");
      out += text_.substr(0, plain);
      const char c = text_[plain];
      text_.remove_prefix(plain + 1);
      if (c == '"') return out;
      ParseEscape(out);
    }
  }

  std::string_view text_;
  ParsedText out_;
  ValueBuilder builder_;
  std::vector<char> closers_;
  bool fresh_ = false;  // nothing is in the innermost open value yet
  int line_ = 1;
};

}  // namespace

ParsedText ParseJson(std::string_view text) { return JsonParser(text).Parse(); }

}  // namespace fairway::api
