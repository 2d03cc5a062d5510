// JSON (RFC 8259) read as it comes, in chunks cut anywhere, without a tree and without keeping the chunks.
//
//   JsonScanner json;
//   json.Feed(chunk1, sink); json.Feed(chunk2, sink);
//   if (!json.Finish()) ... json.error() ...
//
// Reports what it meets to a JsonSink. What it reports depends on the bytes alone, never on where they were
// cut.
//
// Accepts what RFC 8259 accepts, with these choices: `\u` escapes may name lone surrogates (as engines' JSON
// libraries allow; decoded as U+FFFD), text must be valid UTF-8, a UTF-8 byte order mark may stand before it,
// nesting up to kMaxDepth, duplicate keys are all reported.
//
// Owned by one thread. Memory: one bit per level, and what the sink asks to have decoded. Linear time.
#pragma once

#include <bitset>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "payload/string_kernel.h"

namespace fairway::payload {

// Bytes [begin, end) of the whole body, counted from its first byte.
struct Span {
  uint64_t begin = 0;
  uint64_t end = 0;
  bool operator==(const Span&) const = default;
};

// What a JsonScanner reports to. Views are valid during the call only.
class JsonSink {
 public:
  // A container opens. False: nothing of its inside is reported, only its OnClose.
  virtual bool OnObject(uint64_t begin) = 0;
  virtual bool OnArray(uint64_t begin) = 0;
  virtual void OnClose(uint64_t end) = 0;
  // Decoded; of a key longer than JsonScanner::kMaxKey only that many bytes.
  virtual void OnKey(std::string_view key) = 0;
  // A string begins; returns how many decoded bytes of it OnStringEnd should bring.
  virtual size_t OnString(uint64_t begin) = 0;
  virtual void OnStringEnd(Span span, std::string_view text, bool truncated) = 0;  // span: with the quotes
  virtual void OnNumber(Span span, std::string_view text) = 0;  // text: "" when longer than kMaxNumber
  virtual void OnLiteral(Span span, char first) = 0;            // 't', 'f' or 'n'

 protected:
  ~JsonSink() = default;
};

// A member of an object of which nothing is unusual: its key is ASCII without escapes, its value a string, a
// number without sign and exponent or a literal, and all of it is in one chunk.
struct PlainMember {
  std::string_view key;
  char first = 0;         // of the value: '"', a digit, 't', 'f' or 'n'
  Span span;              // the value, a string with its quotes
  std::string_view text;  // of a string, as sent: it may have escapes
  int64_t number = -1;    // where the value is a whole one
};

// A JsonSink that takes plain members in one piece. Most of a request is such members, and where its code is
// cold each call less is worth more than all that it does.
class MemberSink : public JsonSink {
 public:
  // False, and nothing was changed: it shall be reported piece by piece.
  virtual bool OnPlainMember(const PlainMember& member) = 0;

 protected:
  ~MemberSink() = default;
};

class JsonScanner {
 public:
  static constexpr int kMaxDepth = 512;
  static constexpr size_t kMaxKey = 64;
  static constexpr size_t kMaxNumber = 64;

  explicit JsonScanner(const StringKernel& kernel = BestStringKernel()) : kernel_(&kernel) {}

  // REQUIRES: the same sink for all chunks of a text. After an error, does nothing.
  void Feed(std::string_view chunk, JsonSink& sink) { Feed(chunk, sink, nullptr); }
  void Feed(std::string_view chunk, MemberSink& sink) { Feed(chunk, sink, &sink); }
  // The text is complete; false when it was not one valid JSON value.
  bool Finish(JsonSink& sink);
  // Gives up with `message`; for sinks.
  void Fail(std::string message);
  // As new, for the next text; keeps its buffer.
  void Reset();

  bool failed() const { return state_ == State::kFailed; }
  // "" or "invalid JSON at byte 17: ...", "unexpected end of JSON input", or what Fail was told. Bytes from
  // 0.
  const std::string& error() const { return error_; }
  // Where the string that is being read began (its quote), nothing between strings; `offset` bytes were read.
  std::optional<uint64_t> open_string() const;
  uint64_t offset() const { return offset_; }

 private:
  enum class State : uint8_t {
    kValue,         // from here on: between tokens
    kFirstElement,  // a value or ']'
    kFirstKey,      // a key or '}'
    kKey,
    kColon,
    kAfterValue,
    kString,  // from here on: inside of one
    kUtf8,    // inside a UTF-8 sequence that is cut or wrong
    kEscape,  // after '\'
    kHex,     // after '\u'
    kMinus,   // from here on: inside a number, named for what was read last
    kZero,
    kInteger,
    kPoint,
    kFraction,
    kExponent,
    kExponentSign,
    kExponentDigits,
    kLiteral,
    kByteOrderMark,
    kFailed,
  };

  void Feed(std::string_view chunk, JsonSink& sink, MemberSink* members);
  uint64_t At(const char* p) const { return offset_ + static_cast<uint64_t>(p - chunk_); }
  bool quiet() const { return quiet_depth_ != 0; }
  const char* FailAt(uint64_t at, std::string_view what);
  const char* FailAt(const char* p, std::string_view what) { return FailAt(At(p), what); }
  const char* FailCharacter(const char* p, std::string_view before, std::string_view after);
  const char* FailDepth(const char* p);
  const char* Unexpected(const char* p, std::string_view wanted);
  const char* SkipSpace(const char* p) const;

  // Between tokens. REQUIRES: `p` is no white space, for these six.
  const char* Token(const char* p, JsonSink& sink, MemberSink* members);
  const char* PlainMembers(const char* p, MemberSink& sink);
  const char* Value(const char* p, JsonSink& sink);
  const char* Key(const char* p, JsonSink& sink);
  const char* AfterValue(const char* p, JsonSink& sink);
  const char* Open(const char* p, bool object, JsonSink& sink);
  const char* Close(const char* p, JsonSink& sink);
  const char* Inside(const char* p, JsonSink& sink);  // a token that was cut, or has an escape
  const char* String(const char* p, JsonSink& sink);
  const char* EndString(const char* p, JsonSink& sink);
  const char* Utf8(const char* p);
  const char* Escape(const char* p);
  const char* Hex(const char* p);
  const char* PlainNumber(const char* p, JsonSink& sink);
  const char* Number(const char* p, JsonSink& sink);
  bool NumberCharacter(char c);
  void EndNumber(uint64_t end, JsonSink& sink, const char* p);
  const char* Literal(const char* p, JsonSink& sink);
  const char* ByteOrderMark(const char* p);

  bool InNumber() const { return state_ >= State::kMinus && state_ <= State::kExponentDigits; }
  void BeginCapture(size_t limit, const char* run);
  void Flush(const char* end);
  void Capture(std::string_view text);
  void CaptureUnit(uint32_t unit);
  std::string_view Captured(const char* end);

  const StringKernel* kernel_;
  State state_ = State::kValue;
  bool is_key_ = false;
  Utf8Tail utf8_;
  uint64_t offset_ = 0;          // of chunk_ in the text
  const char* chunk_ = nullptr;  // the chunk that is being fed
  const char* end_ = nullptr;
  int depth_ = 0;
  int quiet_depth_ = 0;            // of the container whose inside is not reported; 0: none
  std::bitset<kMaxDepth> object_;  // by depth - 1: object, else array
  uint64_t token_begin_ = 0;       // of the string, number or literal that is being read
  uint64_t character_begin_ = 0;   // of the UTF-8 sequence that is being read
  std::string_view literal_;       // what is left of it

  // Decoded text that somebody wants: [run_, ...) of this chunk is not in captured_ yet.
  size_t capture_limit_ = 0;
  const char* run_ = nullptr;
  bool buffered_ = false;  // captured_ has a part; else all of it is in this chunk
  bool truncated_ = false;
  std::string captured_;
  uint32_t hex_ = 0;
  int hex_digits_ = 0;
  uint32_t high_surrogate_ = 0;  // waits for its second half; 0: none
  std::string error_;
};

// A JSON number as a whole number that is not negative ("16", "16.0", "1.6e1"), or nothing.
std::optional<int64_t> WholeNumber(std::string_view json_number);

}  // namespace fairway::payload
