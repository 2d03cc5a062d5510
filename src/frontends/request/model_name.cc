#include "frontends/request/model_name.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace fairway::request {

namespace {
constexpr std::string_view kData = "data";
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
constexpr size_t kMaxKept = 1 << 20;  // bytes of a thread's buffers
constexpr size_t kNotInText = std::numeric_limits<size_t>::max();
}  // namespace

ModelRenamer::ModelRenamer(std::string_view from, std::string_view to, bool event_stream, bool join,
                           RenameBuffers& buffers)
    : from_(from),
      to_(payload::ModelReplacement(to)),
      event_stream_(event_stream),
      join_(join),
      buffers_(buffers) {}

// ---- The document. What is not reported is not looked at: its containers say only where they end.

bool ModelRenamer::OnObject(uint64_t) {
  const bool root = depth_ == 0;
  const bool holder = depth_ == 1 && member_ == Member::kHolder;
  ++depth_;
  member_ = Member::kOther;
  return root || holder;
}

bool ModelRenamer::OnArray(uint64_t) {
  ++depth_;
  return false;
}

void ModelRenamer::OnClose(uint64_t) {
  --depth_;
  member_ = Member::kOther;
}

void ModelRenamer::OnKey(std::string_view key) {
  member_ = Member::kOther;
  if (key == "model") member_ = Member::kName;
  if (depth_ == 1 && (key == "response" || key == "message")) member_ = Member::kHolder;
}

size_t ModelRenamer::OnString(uint64_t begin) {
  if (member_ != Member::kName) return 0;
  name_open_ = true;
  name_begin_ = begin;
  return from_.size() + 1;
}

void ModelRenamer::OnStringEnd(payload::Span span, std::string_view text, bool truncated) {
  if (!std::exchange(name_open_, false) || truncated || text != from_) return;
  const size_t begin = InText(span.begin);
  if (begin == kNotInText) return;  // its first part is gone
  buffers_.output_.append(text_.substr(copied_, begin - copied_));
  buffers_.output_.append(to_);
  copied_ = InText(span.end);
}

// Where in `text_` a byte of the document is; kNotInText: in an earlier one.
size_t ModelRenamer::InText(uint64_t in_document) const {
  if (in_document >= piece_offset_) return piece_ + static_cast<size_t>(in_document - piece_offset_);
  const uint64_t before = piece_offset_ - in_document;
  return before <= piece_ ? piece_ - static_cast<size_t>(before) : kNotInText;
}

void ModelRenamer::FeedDocument(size_t begin, size_t end) {
  piece_ = begin;
  piece_offset_ = json_.offset();
  json_.Feed(text_.substr(begin, end - begin), *this);
}

void ModelRenamer::EndDocument() {
  json_.Reset();
  depth_ = 0;
  member_ = Member::kOther;
  name_open_ = false;
  has_data_ = false;
}

// ---- The stream. https://html.spec.whatwg.org/multipage/server-sent-events.html

void ModelRenamer::FeedEvents(size_t at) {
  while (at < text_.size()) {
    const char c = text_[at];
    if (std::exchange(carriage_, false) && c == '\n') {
      ++at;
      continue;
    }
    if (line_ == Line::kField && c != '\n' && c != '\r') {
      ++at;
      if (mark_ < kByteOrderMark.size() && c == kByteOrderMark[mark_]) {
        ++mark_;
        continue;
      }
      mark_ = static_cast<uint8_t>(kByteOrderMark.size());
      if (field_ < kData.size()) {
        c == kData[field_] ? void(++field_) : void(line_ = Line::kOther);
      } else {
        line_ = c == ':' ? Line::kData : Line::kOther;
      }
      if (line_ == Line::kData && std::exchange(has_data_, true)) json_.Feed("\n", *this);
      continue;
    }
    size_t end = std::min(text_.find('\n', at), text_.size());
    end = at + std::min(text_.substr(at, end - at).find('\r'), end - at);
    if (line_ == Line::kData) FeedDocument(at, end);
    if (end == text_.size()) return;
    if (line_ == Line::kField && field_ == 0) EndDocument();
    line_ = Line::kField;
    field_ = 0;
    carriage_ = text_[end] == '\r';
    at = end + 1;
  }
}

std::string_view ModelRenamer::Feed(std::string_view chunk) {
  const size_t kept = held_.size();
  text_ = chunk;
  for (std::string* buffer : {&buffers_.input_, &buffers_.output_}) {
    if (buffer->capacity() > kMaxKept) *buffer = {};
    buffer->clear();
  }
  if (kept != 0) {
    buffers_.input_.append(held_).append(chunk);
    held_.clear();
    text_ = buffers_.input_;
  }
  copied_ = 0;
  event_stream_ ? FeedEvents(kept) : FeedDocument(kept, text_.size());
  if (join_ && name_open_ && !json_.failed()) Hold();
  if (copied_ == 0) return text_;
  buffers_.output_.append(text_.substr(copied_));
  return buffers_.output_;
}

// A name's first part goes when it is known whether it is one. Each of its characters may be an escape.
void ModelRenamer::Hold() {
  const size_t begin = InText(name_begin_);
  if (begin == kNotInText || text_.size() - begin > 6 * from_.size() + 2) return;
  held_.assign(text_.substr(begin));
  text_ = text_.substr(0, begin);
}

std::string_view ModelRenamer::Finish() {
  buffers_.output_ = std::exchange(held_, {});
  return buffers_.output_;
}

}  // namespace fairway::request
