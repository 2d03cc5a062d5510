// One HTTP/1.1 answer put together from the pieces a socket gives: bytes in, a body out, no socket and no
// allocation per answer.
//
// Own code and not Beast's parser: that one keeps every header in a list of its own (measured: README,
// "HTTP/1.1").
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace fairway::net {

// What the head of an answer says. Views point into the parsed bytes.
struct HttpResponseHead {
  int status = 0;
  bool keep_alive = true;
  bool chunked = false;
  std::optional<uint64_t> content_length;
  std::string_view location;
  std::string_view content_encoding;  // "" for none
  size_t size = 0;                    // of the head with its empty line
};

enum class HttpParse { kMore, kDone, kBad };

// Reads one head, however it drips: linear in its length. Bare LF ends a line as CRLF does.
class HttpHeadParser {
 public:
  static constexpr size_t kMax = 64 << 10;

  // `bytes` begin where the head does, and with each call there may be more of them. kBad: `error` says why
  // (a literal); it is noticed with the line that is wrong.
  HttpParse Parse(std::string_view bytes, std::string_view& error);
  // Its views point into the bytes of the call that met them.
  const HttpResponseHead& head() const { return head_; }
  // The same texts elsewhere, as those bytes go away.
  void Keep(std::string_view location, std::string_view content_encoding) {
    head_.location = location;
    head_.content_encoding = content_encoding;
  }

 private:
  HttpResponseHead head_;
  size_t line_ = 0;      // where the line begins that has no end yet
  size_t searched_ = 0;  // it has none before
};

// Takes one answer after the other. Owned by one thread.
class HttpResponseReader {
 public:
  // Takes a piece of a body; false: no more of it is wanted.
  using Piece = std::function<bool(std::string_view)>;

  explicit HttpResponseReader(size_t max_body) : max_body_(max_body) {}

  // Begins a new answer. `storage` is used for answers that come in more than one piece; TakeStorage gives it
  // back. With `piece`, which lives as long as the answer, nothing of a 200's body is kept: it gets what
  // comes, and body() is empty.
  void Reset(std::string storage = {}, const Piece* piece = nullptr);
  // Of answers that begin from now on.
  void SetMaxBody(size_t max_body) { max_body_ = max_body; }
  std::string TakeStorage() { return std::move(held_); }

  // The next bytes. At kDone body() is valid as long as `bytes` and until the next Reset or TakeStorage; at
  // kBad error() says why.
  HttpParse Feed(std::string_view bytes);
  // The peer closed. kDone: the end of the connection was the end of the body.
  HttpParse FeedEnd();

  int status() const { return head_.status; }
  const std::string& location() const { return location_; }
  const std::string& content_encoding() const { return content_encoding_; }
  bool keep_alive() const { return keep_alive_; }
  std::string_view body() const { return body_; }
  const std::string& error() const { return error_; }
  bool too_large() const { return too_large_; }  // what was bad is the body's size

 private:
  enum class Phase : uint8_t { kHead, kLength, kToEnd, kChunkSize, kChunkData, kChunkEnd, kTrailer };

  HttpParse Bad(std::string_view why);
  HttpParse TooLarge();
  void Hold(std::string& all, std::string_view rest);
  HttpParse FeedHead(std::string_view bytes);
  HttpParse FeedBody(std::string_view bytes);
  HttpParse FeedChunks(std::string_view bytes);
  HttpParse Done(std::string_view body, bool extra_bytes);
  HttpParse Append(std::string_view bytes);
  // Of a refusal, and of what came encoded, the body is no answer to be read.
  bool keeps_body() const { return piece_ == nullptr || head_.status != 200 || !content_encoding_.empty(); }

  size_t max_body_;
  const Piece* piece_ = nullptr;
  HttpHeadParser head_parser_;
  size_t interim_ = 0;  // bytes of interim answers
  HttpResponseHead head_;
  std::string location_;
  std::string content_encoding_;
  std::string held_;    // the head until it is whole, then the body so far
  uint64_t taken_ = 0;  // of the body
  std::string_view body_;
  std::string error_;
  uint64_t left_ = 0;     // of the chunk's data
  size_t line_size_ = 0;  // of the chunk's or trailer's line so far
  size_t trailer_size_ = 0;
  uint8_t chunk_digits_ = 0;
  bool chunk_extension_ = false;
  Phase phase_ = Phase::kHead;
  bool keep_alive_ = true;
  bool too_large_ = false;
};

}  // namespace fairway::net
