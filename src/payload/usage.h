// What a model server says it used, found in JSON bodies and in SSE streams that are cut at any byte.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "payload/json_scanner.h"
#include "payload/request.h"
#include "payload/usage_grpc.h"

namespace fairway::payload {

struct Usage {
  bool found = false;
  int64_t input_tokens = 0;   // usage.prompt_tokens | input_tokens
  int64_t output_tokens = 0;  // usage.completion_tokens | output_tokens
  int64_t total_tokens = 0;   // as sent, else the sum
  int64_t cached_tokens = 0;  // prompt_tokens_details.cached_tokens | input_tokens_details.cached_tokens |
                              // cache_read_input_tokens; SGLang's meta_info.cached_tokens
  bool tells_cached = false;  // one of these was sent: engines leave it out unless they are asked for it
  bool operator==(const Usage&) const = default;
};

// Finds the last `usage` object of one JSON document: at its top, or in its `response` (Responses API events)
// or `message` (Anthropic's message_start); SGLang calls it `meta_info`. One in a string, or deeper, is none.
class UsageSink final : public JsonSink {
 public:
  // Which fields were sent; -1: not.
  struct Counts {
    int64_t input = -1;
    int64_t output = -1;
    int64_t total = -1;
    int64_t cached = -1;
  };

  void Reset() { *this = UsageSink(); }
  bool found() const { return found_; }
  const Counts& counts() const { return counts_; }

  bool OnObject(uint64_t begin) override;
  bool OnArray(uint64_t begin) override;
  void OnClose(uint64_t end) override;
  void OnKey(std::string_view key) override;
  size_t OnString(uint64_t begin) override;
  void OnStringEnd(Span span, std::string_view text, bool truncated) override;
  void OnNumber(Span span, std::string_view text) override;
  void OnLiteral(Span span, char first) override;

 private:
  enum class Place : uint8_t { kRoot, kIgnored, kHolder, kUsage, kDetails, kInput, kOutput, kTotal, kCached };

  Place levels_[5] = {};  // root, holder, usage, details, and an ignored one
  size_t depth_ = 0;
  Place member_ = Place::kRoot;
  bool found_ = false;
  Counts current_;  // of the usage object that is open
  Counts counts_;
};

// Reads a response as it comes. Plain OpenAI and Responses JSON, Anthropic JSON, and their event streams
// (the last usage wins; Anthropic's message_start and message_delta are merged; "[DONE]" is skipped); answers of
// vLLM's gRPC service. Broken JSON just yields no usage, and so does what comes behind a broken gRPC message.
//
// Owned by one thread. Keeps no byte of the response, however long an event or a body is and wherever it is
// cut: its state is this object, and a few hundred bytes for a key or a number that is cut (kMaxHeld).
class UsageScanner {
 public:
  static constexpr size_t kMaxHeld = 512;  // bytes beside the object

  // `event_stream`: the response's content-type contains text/event-stream.
  UsageScanner(Api api, bool event_stream) : api_(api), event_stream_(event_stream) {
    if (IsWrapped(api)) {
      wrapped_ = std::make_unique<WrappedUsage>(InnerOf(api));
    } else if (IsGrpc(api)) {
      grpc_ = std::make_unique<GrpcUsage>(api == Api::kVllmGrpcEmbed);
    }
  }
  void Feed(std::string_view chunk);
  // The response is complete: a JSON body counts only now, an event also without the empty line behind it.
  void Finish();
  const Usage& usage() const { return usage_; }
  uint64_t events() const { return events_; }  // SSE events with data seen, "[DONE]" left out

 private:
  // Where in a line: before it is known whose it is, behind the colon of "data:", in its data, in another.
  enum class Line : uint8_t { kField, kBlank, kData, kOther };
  static constexpr uint8_t kNotDone = 255;

  void FeedEvents(std::string_view chunk);
  void TakePart(std::string_view part);
  void TakeField(char c);
  void BeginData();
  void EndLine();
  void Spill();
  void Stream(std::string_view data);
  void FindUsage(std::string_view data);
  void EndEvent();
  bool ReadEvent();
  void Merge(const UsageSink::Counts& counts);

  Api api_;
  bool event_stream_;
  // Both null: it is JSON.
  std::unique_ptr<GrpcUsage> grpc_;
  std::unique_ptr<WrappedUsage> wrapped_;
  Usage usage_;
  uint64_t events_ = 0;
  JsonScanner json_;
  UsageSink sink_;

  // The line. A byte order mark may stand before the first one.
  Line line_ = Line::kField;
  uint8_t field_ = 0;  // characters of "data" so far
  uint8_t mark_ = 0;   // bytes of the byte order mark so far
  bool line_empty_ = true;
  bool skip_newline_ = false;  // the chunk ended with '\r'

  // The event's data: a part of the chunk that is being fed, or, once that does not hold all of it, read as
  // it comes.
  std::string_view view_;
  bool has_data_ = false;
  bool streamed_ = false;
  bool stream_empty_ = true;
  bool names_usage_ = false;
  std::array<char, 10> seam_ = {};  // its end, as "usage" or "meta_info" may be cut
  size_t seam_size_ = 0;
  uint8_t done_ = 0;  // characters of "[DONE]" so far; kNotDone: it is something else
};

}  // namespace fairway::payload
