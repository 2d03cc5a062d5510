#include "payload/usage.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>
#include <utility>

namespace fairway::payload {
namespace {

constexpr std::string_view kNeedle = "\"usage\"";
constexpr std::string_view kSglangNeedle = "\"meta_info\"";
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
constexpr std::string_view kField = "data";
constexpr std::string_view kDone = "[DONE]";

bool MentionsUsage(std::string_view json, Api api) {
  const std::string_view needle = api == Api::kSglangGenerate ? kSglangNeedle : kNeedle;
  return memmem(json.data(), json.size(), needle.data(), needle.size()) != nullptr;
}

bool IsSpace(char c) { return c == ' ' || c == '\t'; }

std::string_view TrimSpace(std::string_view text) {
  while (!text.empty() && IsSpace(text.front())) text.remove_prefix(1);
  while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
  return text;
}

// Finds line ends in a chunk. Looks for each kind ahead once, so that a chunk of one kind costs linear time.
class LineEnds {
 public:
  explicit LineEnds(std::string_view chunk) : chunk_(chunk) {}

  // The first '\n' or '\r' at or after `from`, npos when there is none.
  size_t Next(size_t from) {
    Advance(newline_, '\n', from);
    Advance(carriage_, '\r', from);
    return std::min(newline_, carriage_);
  }

 private:
  void Advance(size_t& at, char c, size_t from) {
    if (at == kUnknown || (at != std::string_view::npos && at < from)) at = chunk_.find(c, from);
  }

  static constexpr size_t kUnknown = std::string_view::npos - 1;
  std::string_view chunk_;
  size_t newline_ = kUnknown;
  size_t carriage_ = kUnknown;
};

}  // namespace

bool UsageSink::OnObject(uint64_t) {
  const Place place = depth_ == 0 ? Place::kRoot : member_;
  levels_[depth_++] = place;
  if (place == Place::kUsage) current_ = {};
  return place == Place::kRoot || place == Place::kHolder || place == Place::kUsage ||
         place == Place::kDetails;
}

bool UsageSink::OnArray(uint64_t) {
  levels_[depth_++] = Place::kIgnored;
  return false;
}

void UsageSink::OnClose(uint64_t) {
  if (levels_[--depth_] != Place::kUsage) return;
  if (current_.input < 0 && current_.output < 0 && current_.total < 0) return;
  counts_ = current_;
  found_ = true;
}

void UsageSink::OnKey(std::string_view key) {
  member_ = Place::kIgnored;
  switch (levels_[depth_ - 1]) {
    case Place::kRoot:
      if (key == "response" || key == "message") member_ = Place::kHolder;
      if (key == "meta_info") member_ = Place::kUsage;  // SGLang's own API
      [[fallthrough]];
    case Place::kHolder:
      if (key == "usage") member_ = Place::kUsage;
      break;
    case Place::kUsage:
      if (key == "prompt_tokens" || key == "input_tokens") member_ = Place::kInput;
      if (key == "completion_tokens" || key == "output_tokens") member_ = Place::kOutput;
      if (key == "total_tokens") member_ = Place::kTotal;
      if (key == "cache_read_input_tokens" || key == "cached_tokens") member_ = Place::kCached;
      if (key == "prompt_tokens_details" || key == "input_tokens_details") member_ = Place::kDetails;
      break;
    case Place::kDetails:
      if (key == "cached_tokens") member_ = Place::kCached;
      break;
    default:
      break;
  }
}

size_t UsageSink::OnString(uint64_t) { return 0; }

void UsageSink::OnStringEnd(Span, std::string_view, bool) {}

void UsageSink::OnLiteral(Span, char) {}

void UsageSink::OnNumber(Span, std::string_view text) {
  if (depth_ == 0) return;
  const auto number = WholeNumber(text);
  if (!number) return;
  switch (member_) {
    case Place::kInput:
      current_.input = *number;
      break;
    case Place::kOutput:
      current_.output = *number;
      break;
    case Place::kTotal:
      current_.total = *number;
      break;
    case Place::kCached:
      current_.cached = *number;
      break;
    default:
      break;
  }
}

void UsageScanner::Feed(std::string_view chunk) {
  if (chunk.empty()) return;
  if (grpc_ != nullptr) {
    grpc_->Feed(chunk);
  } else if (wrapped_ != nullptr) {
    wrapped_->Feed(chunk);
  } else if (event_stream_) {
    FeedEvents(chunk);
  } else {
    json_.Feed(chunk, sink_);
  }
}

void UsageScanner::Finish() {
  if (grpc_ != nullptr || wrapped_ != nullptr) {
    usage_ = grpc_ != nullptr ? grpc_->Get() : wrapped_->Get();
    return;
  }
  if (!event_stream_) {
    if (json_.Finish(sink_) && sink_.found()) Merge(sink_.counts());
    return;
  }
  if (!line_empty_) EndLine();
  EndEvent();
}

void UsageScanner::FeedEvents(std::string_view chunk) {
  size_t at = 0;
  if (skip_newline_ && chunk.front() == '\n') at = 1;
  skip_newline_ = false;
  LineEnds ends(chunk);
  while (at < chunk.size()) {
    const size_t end = ends.Next(at);
    TakePart(chunk.substr(at, end - at));  // npos: to the end
    if (end == std::string_view::npos) break;
    EndLine();
    at = end + 1;
    if (chunk[end] == '\r') {
      if (at == chunk.size()) {
        skip_newline_ = true;
      } else if (chunk[at] == '\n') {
        ++at;
      }
    }
  }
  Spill();  // the chunk goes away
}

// A line or a part of one.
// https://html.spec.whatwg.org/multipage/server-sent-events.html, "Interpreting an event stream". Names, ids
// and comments do not matter here.
void UsageScanner::TakePart(std::string_view part) {
  if (!part.empty()) line_empty_ = false;
  while (line_ == Line::kField && !part.empty()) {
    TakeField(part.front());
    part.remove_prefix(1);
  }
  if (part.empty()) return;
  if (line_ == Line::kBlank) {
    line_ = Line::kData;
    if (part.front() == ' ') part.remove_prefix(1);
  }
  if (line_ != Line::kData) return;
  if (streamed_) {
    Stream(part);
  } else {
    view_ = part;
  }
}

void UsageScanner::TakeField(char c) {
  if (mark_ < kByteOrderMark.size()) {
    if (c == kByteOrderMark[mark_]) {
      if (++mark_ == kByteOrderMark.size()) line_empty_ = true;
      return;
    }
    if (mark_ > 0) line_ = Line::kOther;
    mark_ = static_cast<uint8_t>(kByteOrderMark.size());
    if (line_ == Line::kOther) return;
  }
  if (field_ < kField.size()) {
    c == kField[field_] ? void(++field_) : void(line_ = Line::kOther);
    return;
  }
  line_ = c == ':' ? Line::kBlank : Line::kOther;
  if (line_ == Line::kBlank) BeginData();
}

// Of an event's lines of data each begins a new line of it.
void UsageScanner::BeginData() {
  if (!std::exchange(has_data_, true)) return;
  Spill();
  Stream("\n");
}

void UsageScanner::EndLine() {
  mark_ = static_cast<uint8_t>(kByteOrderMark.size());
  if (line_empty_) {
    EndEvent();
  } else if (line_ == Line::kField && field_ == kField.size()) {
    BeginData();  // "data" alone is one without any
  }
  line_ = Line::kField;
  field_ = 0;
  line_empty_ = true;
}

// From here on the event's data is read as it comes: not all of it is where it could be looked at.
void UsageScanner::Spill() {
  if (!has_data_ || streamed_) return;
  streamed_ = true;
  stream_empty_ = true;
  names_usage_ = false;
  seam_size_ = 0;
  done_ = 0;
  json_.Reset();
  sink_.Reset();
  Stream(std::exchange(view_, {}));
}

void UsageScanner::Stream(std::string_view data) {
  if (data.empty()) return;
  stream_empty_ = false;
  for (const char c : data) {
    if (done_ == kNotDone) break;
    if (done_ < kDone.size() && c == kDone[done_]) {
      ++done_;
    } else if (!IsSpace(c) || (done_ > 0 && done_ < kDone.size())) {
      done_ = kNotDone;
    }
  }
  FindUsage(data);
  json_.Feed(data, sink_);
}

void UsageScanner::FindUsage(std::string_view data) {
  static_assert(std::max(kNeedle.size(), kSglangNeedle.size()) == 1 + std::tuple_size_v<decltype(seam_)>);
  if (names_usage_) return;
  std::array<char, 2 * std::tuple_size_v<decltype(seam_)>> both;
  char* end = std::copy_n(seam_.begin(), seam_size_, both.begin());
  end = std::copy_n(data.begin(), std::min(data.size(), seam_.size()), end);
  const std::string_view seam(both.data(), static_cast<size_t>(end - both.data()));
  names_usage_ = MentionsUsage(seam, api_) || MentionsUsage(data, api_);
  const std::string_view last = data.size() >= seam_.size() ? data : seam;
  seam_size_ = std::min(last.size(), seam_.size());
  std::copy_n(last.end() - static_cast<std::ptrdiff_t>(seam_size_), seam_size_, seam_.begin());
}

void UsageScanner::EndEvent() {
  if (has_data_ && ReadEvent() && sink_.found()) Merge(sink_.counts());
  view_ = {};
  has_data_ = streamed_ = false;
}

// True: it was JSON that may tell the usage.
bool UsageScanner::ReadEvent() {
  if (streamed_ ? stream_empty_ : view_.empty()) return false;
  if (streamed_ ? done_ == kDone.size() : TrimSpace(view_) == kDone) return false;
  ++events_;
  if (streamed_) return names_usage_ && json_.Finish(sink_);
  if (!MentionsUsage(view_, api_)) return false;
  json_.Reset();
  sink_.Reset();
  json_.Feed(view_, sink_);
  return json_.Finish(sink_);
}

void UsageScanner::Merge(const UsageSink::Counts& counts) {
  // Anthropic tells the input when the message starts and the output when it ends; all others repeat
  // everything.
  if (api_ != Api::kMessages) usage_ = {};
  usage_.found = true;
  if (counts.input >= 0) usage_.input_tokens = counts.input;
  if (counts.output >= 0) usage_.output_tokens = counts.output;
  if (counts.cached >= 0) {
    usage_.cached_tokens = counts.cached;
    usage_.tells_cached = true;
  }
  usage_.total_tokens = counts.total >= 0 ? counts.total : usage_.input_tokens + usage_.output_tokens;
}

}  // namespace fairway::payload
