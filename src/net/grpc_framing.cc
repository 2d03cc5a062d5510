#include "net/grpc_framing.h"

#include <algorithm>
#include <cstdint>

namespace fairway::net {
namespace {

constexpr size_t kHeader = 5;
// A service decides on a message's first piece; it gets at least this much of it to look at.
constexpr size_t kFirstPiece = 64;
// What a claimed length may reserve before its bytes are there.
constexpr size_t kMaxReserve = 1 << 20;
// Larger buffers are not kept for the next message of a stream that may be idle for hours.
constexpr size_t kMaxKept = 4096;

size_t LengthOf(std::string_view header) {
  const auto byte = [header](size_t i) { return static_cast<size_t>(static_cast<unsigned char>(header[i])); };
  return byte(1) << 24 | byte(2) << 16 | byte(3) << 8 | byte(4);
}

void Clear(std::string& text) {
  if (text.capacity() > kMaxKept) {
    std::string().swap(text);
  } else {
    text.clear();
  }
}

}  // namespace

GrpcMessageReader::Outcome GrpcMessageReader::Feed(std::string_view bytes, GrpcCall& call,
                                                   const bool& stopped) {
  while (!bytes.empty() && !stopped) {
    if (body_left_ > 0 || tail_left_ > 0) {
      bytes = TakeSplit(bytes, call);
      continue;
    }
    const Outcome outcome =
        pending_.empty() && bytes.size() >= kHeader ? TakeFirst(bytes, call) : Gather(bytes, call);
    if (outcome != Outcome::kOk) return outcome;
  }
  return Outcome::kOk;
}

void GrpcMessageReader::Drop() {
  std::string().swap(pending_);
  body_left_ = tail_left_ = 0;
}

// Bytes of a message that the service takes in pieces. Returns the rest.
std::string_view GrpcMessageReader::TakeSplit(std::string_view bytes, GrpcCall& call) {
  if (body_left_ > 0) {
    const std::string_view part = bytes.substr(0, body_left_);
    bytes.remove_prefix(part.size());
    body_left_ -= part.size();
    call.OnPart(part);
    if (body_left_ == 0 && tail_left_ == 0) {
      ++messages_;
      call.OnTail({});
    }
    return bytes;
  }
  const std::string_view part = bytes.substr(0, tail_left_);
  bytes.remove_prefix(part.size());
  tail_left_ -= part.size();
  if (tail_left_ == 0) ++messages_;
  if (tail_left_ == 0 && pending_.empty()) {
    call.OnTail(part);
    return bytes;
  }
  pending_.append(part);
  if (tail_left_ == 0) {
    call.OnTail(pending_);
    Clear(pending_);
  }
  return bytes;
}

// At the start of a message, with its five bytes in hand: whole messages are passed on where they lie.
GrpcMessageReader::Outcome GrpcMessageReader::TakeFirst(std::string_view& bytes, GrpcCall& call) {
  Outcome outcome = Check(bytes);
  if (outcome != Outcome::kOk) return outcome;
  const size_t length = LengthOf(bytes);
  if (bytes.size() - kHeader >= length) {
    if (length > max_message_) return Outcome::kTooLarge;
    const std::string_view message = bytes.substr(kHeader, length);
    bytes.remove_prefix(kHeader + length);
    ++messages_;
    call.OnMessage(message);
    return Outcome::kOk;
  }
  const std::string_view first = bytes.substr(kHeader);
  offered_ = first.size() >= kFirstPiece;
  if (offered_ && Offer(first, length, call, outcome)) {
    bytes = {};
    return outcome;
  }
  if (offered_ && length > max_message_) return Outcome::kTooLarge;
  pending_.reserve(std::min(kHeader + length, kMaxReserve));
  pending_.append(bytes);
  bytes = {};
  return Outcome::kOk;
}

// In the middle of a message.
GrpcMessageReader::Outcome GrpcMessageReader::Gather(std::string_view& bytes, GrpcCall& call) {
  const auto take = [&](size_t up_to) {
    const std::string_view part = bytes.substr(0, up_to - pending_.size());
    pending_.append(part);
    bytes.remove_prefix(part.size());
    return pending_.size() == up_to;
  };
  Outcome outcome = Outcome::kOk;
  if (pending_.size() < kHeader) {
    offered_ = false;
    if (!take(kHeader)) return Outcome::kOk;
    outcome = Check(pending_);
    if (outcome != Outcome::kOk) return outcome;
  }
  const size_t length = LengthOf(pending_);
  const size_t whole = kHeader + length;
  if (!offered_ && length > kFirstPiece) {
    if (!take(kHeader + kFirstPiece)) return Outcome::kOk;
    offered_ = true;
    if (Offer(std::string_view(pending_).substr(kHeader), length, call, outcome)) {
      Clear(pending_);
      return outcome;
    }
    if (length > max_message_) return Outcome::kTooLarge;
    pending_.reserve(std::min(whole, kMaxReserve));
  }
  if (!take(whole)) return Outcome::kOk;
  ++messages_;
  call.OnMessage(std::string_view(pending_).substr(kHeader));
  Clear(pending_);
  return Outcome::kOk;
}

GrpcMessageReader::Outcome GrpcMessageReader::Check(std::string_view header) const {
  if (header[0] != 0) return Outcome::kCompressed;
  const size_t length = LengthOf(header);
  return length > max_split_ || (length > max_message_ && length <= kFirstPiece) ? Outcome::kTooLarge
                                                                                 : Outcome::kOk;
}

// True: the service takes the message in pieces (or said nonsense, see `outcome`).
bool GrpcMessageReader::Offer(std::string_view first, size_t length, GrpcCall& call, Outcome& outcome) {
  size_t body = 0;
  size_t tail = 0;
  if (!call.OnHead(first, length, body, tail)) return false;
  const size_t rest = length - first.size();
  if (body > rest || tail != rest - body) {
    outcome = Outcome::kBadSplit;
    return true;
  }
  if (tail > max_message_) {  // it is put together
    outcome = Outcome::kTooLarge;
    return true;
  }
  body_left_ = body;
  tail_left_ = tail;
  return true;
}

std::string GrpcFrame(size_t length) {
  const auto byte = [length](int shift) { return static_cast<char>(length >> shift & 0xff); };
  return {0, byte(24), byte(16), byte(8), byte(0)};
}

base::Nanos ParseGrpcTimeout(std::string_view text) {
  constexpr base::Nanos kLongest = base::Nanos{100} * 24 * 3600 * base::kSecond;
  if (text.size() < 2 || text.size() > 9) return -1;
  base::Nanos value = 0;
  for (const char c : text.substr(0, text.size() - 1)) {
    if (c < '0' || c > '9') return -1;
    value = value * 10 + (c - '0');
  }
  base::Nanos unit = 0;
  switch (text.back()) {
    case 'H':
      unit = 3600 * base::kSecond;
      break;
    case 'M':
      unit = 60 * base::kSecond;
      break;
    case 'S':
      unit = base::kSecond;
      break;
    case 'm':
      unit = base::kMillisecond;
      break;
    case 'u':
      unit = base::kMicrosecond;
      break;
    case 'n':
      unit = 1;
      break;
    default:
      return -1;
  }
  return value > kLongest / unit ? kLongest : value * unit;
}

bool IsGrpcContentType(std::string_view value) {
  constexpr std::string_view kType = "application/grpc";
  if (!value.starts_with(kType)) return false;
  return value.size() == kType.size() || value[kType.size()] == '+' || value[kType.size()] == ';';
}

std::string PercentEncode(std::string_view text) {
  constexpr std::string_view kHex = "0123456789ABCDEF";
  std::string out;
  for (const char c : text.substr(0, 1024)) {
    const auto u = static_cast<unsigned char>(c);
    if (u >= 0x20 && u < 0x7f && c != '%') {
      out += c;
    } else {
      out += {'%', kHex[u >> 4], kHex[u & 15]};
    }
  }
  return out;
}

}  // namespace fairway::net
