// The model's name in responses, where only those bytes may change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "payload/json_scanner.h"
#include "payload/request.h"

namespace fairway::request {

// What renamers write into: one for all of a thread, as an answer of hours needs it for moments.
class RenameBuffers {
 public:
  RenameBuffers() = default;
  RenameBuffers(const RenameBuffers&) = delete;
  RenameBuffers& operator=(const RenameBuffers&) = delete;

 private:
  friend class ModelRenamer;
  std::string input_;
  std::string output_;
};

// Renames the model in a response on its way to the client. Only the answer's own name, where it is `from`:
// the string `model` at the top of the JSON document, of its `response` (events of the Responses API) or of
// its `message` (Anthropic's message_start). What else an answer has under that key, in the arguments of a
// tool call say, is not ours to change. Of an event stream each event is a document.
//
// Owned by one thread. Linear time. Keeps memory() bytes between calls.
class ModelRenamer final : private payload::JsonSink {
 public:
  // `event_stream`: the response is text/event-stream, else one JSON document. `join`: a name that is cut
  // between two chunks is found too; its first part is then held back until the next chunk. REQUIRES:
  // `buffers` outlives it.
  ModelRenamer(std::string_view from, std::string_view to, bool event_stream, bool join,
               RenameBuffers& buffers);

  // The chunk with its names replaced. The view is valid until the next call of any renamer with these
  // buffers; it is `chunk` itself where nothing changes.
  std::string_view Feed(std::string_view chunk);
  // What is still held back. The view is valid as Feed's.
  std::string_view Finish();
  // What it holds at the most beside itself: the names, and a name's first part with escapes.
  size_t memory() const { return 7 * from_.size() + to_.size() + kMargin; }

 private:
  enum class Member : uint8_t { kOther, kName, kHolder };
  // Where in an event stream: in a field's name, in the data of an event, in the rest of another line.
  enum class Line : uint8_t { kField, kData, kOther };

  bool OnObject(uint64_t begin) override;
  bool OnArray(uint64_t begin) override;
  void OnClose(uint64_t end) override;
  void OnKey(std::string_view key) override;
  size_t OnString(uint64_t begin) override;
  void OnStringEnd(payload::Span span, std::string_view text, bool truncated) override;
  void OnNumber(payload::Span, std::string_view) override {}
  void OnLiteral(payload::Span, char) override {}

  void FeedEvents(size_t at);
  void FeedDocument(size_t begin, size_t end);
  void EndDocument();
  void Hold();
  size_t InText(uint64_t in_document) const;
  static constexpr size_t kMargin = 256;  // of strings' capacities, and a name that the scanner decodes

  const std::string from_;
  const std::string to_;  // JSON with quotes
  const bool event_stream_;
  const bool join_;

  // The document.
  payload::JsonScanner json_;
  unsigned depth_ = 0;
  Member member_ = Member::kOther;
  bool name_open_ = false;  // a string that may be the name is being read
  uint64_t name_begin_ = 0;

  // The event stream.
  Line line_ = Line::kField;
  uint8_t field_ = 0;      // characters of "data" so far
  uint8_t mark_ = 0;       // bytes of a byte order mark at the very begin so far
  bool carriage_ = false;  // the last line ended with '\r': a '\n' belongs to it
  bool has_data_ = false;  // of this event

  // What is being fed: what was held back, and the chunk.
  std::string_view text_;
  size_t copied_ = 0;          // of it, in output_ already
  size_t piece_ = 0;           // where in it the piece begins that the scanner gets
  uint64_t piece_offset_ = 0;  // and where in the document
  std::string held_;
  RenameBuffers& buffers_;
};

}  // namespace fairway::request
