#include "payload/usage.h"

#include <algorithm>
#include <cstring>

namespace fairway::payload {
namespace {

constexpr std::string_view kNeedle = "\"usage\"";
constexpr std::string_view kSglangNeedle = "\"meta_info\"";
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

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
  if (event_stream_) {
    FeedEvents(chunk);
  } else {
    json_.Feed(chunk, sink_);
  }
}

void UsageScanner::Finish() {
  if (!event_stream_) {
    if (json_.Finish(sink_) && sink_.found()) Merge(sink_.counts());
    return;
  }
  if (line_open_) {
    EndLine(line_);
    line_open_ = false;
  }
  EndEvent();
}

void UsageScanner::FeedEvents(std::string_view chunk) {
  size_t at = 0;
  if (skip_newline_ && chunk.front() == '\n') at = 1;
  skip_newline_ = false;
  LineEnds ends(chunk);
  while (at < chunk.size()) {
    const size_t end = ends.Next(at);
    if (end == std::string_view::npos) {
      KeepLine(chunk.substr(at));
      break;
    }
    const std::string_view part = chunk.substr(at, end - at);
    if (line_open_) {
      KeepLine(part);
      EndLine(line_);
      KeepEvent();  // the view must not point into line_, which is used again
      line_.clear();
      line_open_ = line_too_long_ = false;
    } else {
      EndLine(part);
    }
    at = end + 1;
    if (chunk[end] == '\r') {
      if (at == chunk.size()) {
        skip_newline_ = true;
      } else if (chunk[at] == '\n') {
        ++at;
      }
    }
  }
  KeepEvent();
}

// Keeps a part of a line whose end is not there yet, as far as an event may be long.
void UsageScanner::KeepLine(std::string_view part) {
  line_open_ = true;
  const size_t used = EventData().size() + line_.size();
  const size_t room = used < kMaxEvent ? kMaxEvent - used : 0;
  if (part.size() > room) line_too_long_ = true;
  line_.append(part.substr(0, room));
}

// https://html.spec.whatwg.org/multipage/server-sent-events.html, "Interpreting an event stream". Names, ids
// and comments do not matter here.
void UsageScanner::EndLine(std::string_view line) {
  const size_t used = EventData().size();
  const size_t room = used < kMaxEvent ? kMaxEvent - used : 0;
  const bool too_long = line_too_long_ || line.size() > room;
  if (first_line_) {
    first_line_ = false;
    if (line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
  }
  if (line.empty() && !too_long) {
    EndEvent();
    return;
  }
  if (too_long && room < 5) {  // not even the name of a field fits: the event is at its limit
    too_long_ = true;
    return;
  }
  if (!line.starts_with("data")) return;
  line.remove_prefix(4);
  if (!line.empty() && line.front() != ':') return;  // another field
  if (!line.empty()) line.remove_prefix(1);
  if (!line.empty() && line.front() == ' ') line.remove_prefix(1);
  if (too_long) {
    too_long_ = true;
    line = {};
  }
  AddData(line);
}

void UsageScanner::AddData(std::string_view data) {
  if (!has_data_) {
    has_data_ = true;
    view_ = data;
    return;
  }
  if (too_long_) return;
  KeepEvent();
  event_ += '\n';
  event_ += data;
}

// The chunk goes away: what the event has so far must not.
void UsageScanner::KeepEvent() {
  if (kept_ || !has_data_) return;
  event_.assign(view_);
  view_ = {};
  kept_ = true;
}

void UsageScanner::EndEvent() {
  const std::string_view data = EventData();
  if (has_data_ && (too_long_ || !data.empty())) {
    const bool done = !too_long_ && TrimSpace(data) == "[DONE]";
    if (!done) ++events_;
    if (!done && !too_long_ && MentionsUsage(data, api_)) {
      json_.Reset();
      sink_.Reset();
      json_.Feed(data, sink_);
      if (json_.Finish(sink_) && sink_.found()) Merge(sink_.counts());
    }
  }
  view_ = {};
  event_.clear();
  kept_ = has_data_ = too_long_ = false;
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
