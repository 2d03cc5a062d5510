#include "net/http_response.h"

#include <algorithm>
#include <cstring>

#include "base/strings.h"

namespace fairway::net {
namespace {

constexpr size_t kMaxLocation = 200;  // of it goes into messages
constexpr size_t kMaxChunkLine = 4096;
constexpr size_t kMaxTrailer = 64 << 10;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// RFC 9110 section 5.6.2.
bool IsToken(std::string_view text) {
  if (text.empty()) return false;
  for (char c : text) {
    const bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || IsDigit(c) || c == '-' || c == '_';
    if (!word && (c == '\0' || std::strchr("!#$%&'*+.^`|~", c) == nullptr)) return false;
  }
  return true;
}

bool HasToken(std::string_view list, std::string_view token) {
  while (!list.empty()) {
    const size_t comma = list.find(',');
    if (base::EqualsIgnoreCase(base::Trim(list.substr(0, comma)), token)) return true;
    list.remove_prefix(comma == std::string_view::npos ? list.size() : comma + 1);
  }
  return false;
}

bool ParseStatusLine(std::string_view line, HttpResponseHead& head) {
  // "HTTP/1.1 200 OK"; the reason may be missing with its blank.
  if (line.size() < 12 || !line.starts_with("HTTP/1.") || !IsDigit(line[7]) || line[8] != ' ') return false;
  if (line.size() > 12 && line[12] != ' ') return false;
  if (!IsDigit(line[9]) || !IsDigit(line[10]) || !IsDigit(line[11])) return false;
  head.status = (line[9] - '0') * 100 + (line[10] - '0') * 10 + (line[11] - '0');
  head.keep_alive = line[7] != '0';
  return head.status >= 100;
}

// One line of a head, without its end; "" when it is fine, else what is wrong with it.
std::string_view ParseHeaderLine(std::string_view line, HttpResponseHead& head) {
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos) return "the answer has a malformed header";
  const std::string_view name = line.substr(0, colon);
  const std::string_view value = base::Trim(line.substr(colon + 1));
  if (!IsToken(name) || value.find('\0') != std::string_view::npos)
    return "the answer has a malformed header";
  switch (name.size()) {
    case 8:
      if (base::EqualsIgnoreCase(name, "location")) head.location = value;
      break;
    case 10:
      if (base::EqualsIgnoreCase(name, "connection")) {
        if (HasToken(value, "close")) {
          head.keep_alive = false;
        } else if (HasToken(value, "keep-alive")) {
          head.keep_alive = true;
        }
      }
      break;
    case 14:
      if (base::EqualsIgnoreCase(name, "content-length")) {
        const auto length = base::ParseInteger<uint64_t>(value);
        if (!length || (head.content_length && *head.content_length != *length)) {
          return "the answer's content-length is malformed";
        }
        head.content_length = length;
      }
      break;
    case 16:
      if (base::EqualsIgnoreCase(name, "content-encoding") && !base::EqualsIgnoreCase(value, "identity")) {
        head.content_encoding = value;
      }
      break;
    case 17:
      if (base::EqualsIgnoreCase(name, "transfer-encoding")) {
        if (!base::EqualsIgnoreCase(value, "chunked")) return "the answer's transfer-encoding is not known";
        head.chunked = true;
      }
      break;
    default:
      break;
  }
  return {};
}

}  // namespace

HttpParse HttpHeadParser::Parse(std::string_view bytes, std::string_view& error) {
  const auto bad = [&](std::string_view why) {
    error = why;
    return HttpParse::kBad;
  };
  constexpr std::string_view kStart = "HTTP/1.";
  if (line_ == 0 && bytes.substr(0, kStart.size()) != kStart.substr(0, bytes.size()))
    return bad("the answer is no HTTP/1.1");
  for (;;) {
    const size_t newline = bytes.find('\n', searched_);
    if (newline == std::string_view::npos) {
      searched_ = bytes.size();
      return bytes.size() > kMax ? bad("the answer's head is too large") : HttpParse::kMore;
    }
    std::string_view line = bytes.substr(line_, newline - line_);
    const bool first = line_ == 0;
    line_ = searched_ = newline + 1;
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (first) {
      if (!ParseStatusLine(line, head_)) return bad("the answer's status line is malformed");
      continue;
    }
    if (line.empty()) break;
    if (const std::string_view why = ParseHeaderLine(line, head_); !why.empty()) return bad(why);
  }
  if (line_ > kMax) return bad("the answer's head is too large");
  head_.size = line_;
  return HttpParse::kDone;
}

void HttpResponseReader::Reset(std::string storage, const Piece* piece) {
  held_ = std::move(storage);
  held_.clear();
  piece_ = piece;
  taken_ = 0;
  head_ = {};
  head_parser_ = {};
  interim_ = 0;
  location_.clear();
  content_encoding_.clear();
  error_.clear();
  body_ = {};
  left_ = 0;
  line_size_ = trailer_size_ = 0;
  phase_ = Phase::kHead;
  keep_alive_ = true;
  too_large_ = false;
}

HttpParse HttpResponseReader::Bad(std::string_view why) {
  error_ = why;
  keep_alive_ = false;
  return HttpParse::kBad;
}

HttpParse HttpResponseReader::TooLarge() {
  too_large_ = true;
  return Bad("page larger than " + std::to_string(max_body_) + " bytes");
}

HttpParse HttpResponseReader::Done(std::string_view body, bool extra_bytes) {
  body_ = body;
  keep_alive_ = head_.keep_alive && !extra_bytes;
  return HttpParse::kDone;
}

HttpParse HttpResponseReader::Append(std::string_view bytes) {
  if (bytes.size() > max_body_ - taken_) return TooLarge();
  taken_ += bytes.size();
  if (keeps_body()) {
    held_ += bytes;
  } else if (!(*piece_)(bytes)) {
    return Bad("the answer is not what was asked for");
  }
  return HttpParse::kMore;
}

HttpParse HttpResponseReader::Feed(std::string_view bytes) {
  return phase_ == Phase::kHead ? FeedHead(bytes) : FeedBody(bytes);
}

// What is left of `all` or, when that is empty, of other bytes. Without a copy where nothing was taken: it
// may come byte by byte.
void HttpResponseReader::Hold(std::string& all, std::string_view rest) {
  if (!all.empty() && rest.size() == all.size()) {
    held_.swap(all);
  } else {
    held_.assign(rest);
  }
}

HttpParse HttpResponseReader::FeedHead(std::string_view bytes) {
  std::string split;  // a head that came in pieces, which is rare
  if (!held_.empty()) {
    held_ += bytes;
    split.swap(held_);
    bytes = split;
  }
  std::string_view why;
  for (;;) {
    const HttpParse parsed = head_parser_.Parse(bytes, why);
    head_ = head_parser_.head();
    if (parsed == HttpParse::kBad) return Bad(why);
    // They are to outlive the bytes, or to be found where they are now.
    location_.assign(head_.location.substr(0, kMaxLocation));
    content_encoding_.assign(head_.content_encoding.substr(0, kMaxLocation));
    if (parsed == HttpParse::kMore) {
      head_parser_.Keep(location_, content_encoding_);
      Hold(split, bytes);
      return parsed;
    }
    bytes.remove_prefix(head_.size);
    if (head_.status == 101) return Bad("the answer switches protocols");
    if (head_.status >= 200) break;
    interim_ += head_.size;
    if (interim_ > HttpHeadParser::kMax) return Bad("the answer does not begin");
    head_parser_ = {};
  }
  // RFC 9112 section 6.3.
  if (head_.chunked && head_.content_length) head_.keep_alive = false;
  if (head_.status == 204 || head_.status == 304) return Done({}, !bytes.empty());
  if (head_.chunked) {
    phase_ = Phase::kChunkSize;
    chunk_digits_ = 0;
    chunk_extension_ = false;
  } else if (head_.content_length) {
    const uint64_t length = *head_.content_length;
    if (length > max_body_) return TooLarge();
    if (bytes.size() >= length && split.empty() && keeps_body()) {
      return Done(bytes.substr(0, length), bytes.size() > length);  // the usual case: nothing is copied
    }
    if (keeps_body()) held_.reserve(length);
    phase_ = Phase::kLength;
  } else {
    phase_ = Phase::kToEnd;
    head_.keep_alive = false;
  }
  return FeedBody(bytes);
}

HttpParse HttpResponseReader::FeedBody(std::string_view bytes) {
  if (phase_ == Phase::kLength) {
    const auto missing = static_cast<size_t>(*head_.content_length - taken_);
    if (Append(bytes.substr(0, missing)) == HttpParse::kBad) return HttpParse::kBad;
    return bytes.size() < missing ? HttpParse::kMore : Done(held_, bytes.size() > missing);
  }
  if (phase_ == Phase::kToEnd) return Append(bytes);
  return FeedChunks(bytes);
}

HttpParse HttpResponseReader::FeedChunks(std::string_view bytes) {
  while (!bytes.empty()) {
    if (phase_ == Phase::kChunkData) {
      const size_t take = static_cast<size_t>(std::min<uint64_t>(left_, bytes.size()));
      if (Append(bytes.substr(0, take)) == HttpParse::kBad) return HttpParse::kBad;
      bytes.remove_prefix(take);
      left_ -= take;
      if (left_ == 0) phase_ = Phase::kChunkEnd;
      continue;
    }
    const char c = bytes.front();
    bytes.remove_prefix(1);
    switch (phase_) {
      case Phase::kChunkSize:
        if (++line_size_ > kMaxChunkLine) return Bad("the answer's chunks are malformed");
        if (c == '\n') {
          if (chunk_digits_ == 0) return Bad("the answer's chunks are malformed");
          phase_ = left_ == 0 ? Phase::kTrailer : Phase::kChunkData;
          line_size_ = 0;
          chunk_digits_ = 0;
          chunk_extension_ = false;
        } else if (!chunk_extension_) {
          const char lower = static_cast<char>(c | 0x20);
          const int digit = IsDigit(c) ? c - '0' : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
          if (digit >= 0) {
            if (++chunk_digits_ > 15) return Bad("the answer's chunks are malformed");
            left_ = left_ * 16 + static_cast<uint64_t>(digit);
          } else if (chunk_digits_ > 0 && (c == ';' || c == '\r' || c == ' ' || c == '\t')) {
            chunk_extension_ = true;
          } else {
            return Bad("the answer's chunks are malformed");
          }
        }
        break;
      case Phase::kChunkEnd:
        if (c == '\n') {
          phase_ = Phase::kChunkSize;
          line_size_ = 0;
        } else if (c != '\r' || ++line_size_ > 1) {
          return Bad("the answer's chunks are malformed");
        }
        break;
      default:  // kTrailer: lines up to an empty one
        if (++trailer_size_ > kMaxTrailer) return Bad("the answer's trailer is too large");
        if (c == '\n') {
          if (line_size_ == 0) return Done(held_, !bytes.empty());
          line_size_ = 0;
        } else if (c != '\r') {
          ++line_size_;
        }
        break;
    }
  }
  return HttpParse::kMore;
}

HttpParse HttpResponseReader::FeedEnd() {
  if (phase_ == Phase::kToEnd) return Done(held_, false);
  return Bad("connection closed in the middle of the answer");
}

}  // namespace fairway::net
