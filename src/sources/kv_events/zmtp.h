// ZeroMQ's wire protocol, as much of it as a subscriber needs: ZMTP 3.0 with the NULL mechanism
// (https://rfc.zeromq.org/spec/23), which every libzmq since 4.0 speaks. Bytes in, bytes out; no socket here.
//
//   64 bytes of greeting each way | READY command each way | messages, and commands between them
//
// A message is 1 .. kMaxParts frames. A frame is flags, size (1 or 8 bytes) and body.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace fairway::sources::kv_events {

struct ZmtpMessage {
  static constexpr size_t kMaxParts = 8;
  std::array<std::string_view, kMaxParts> parts;  // in the bytes that were taken from
  size_t count = 0;
  bool command = false;  // one part: length of the name, name, data
};

enum class ZmtpTaken : uint8_t {
  kMessage,
  kIncomplete,
  kBroken,  // not this protocol, another mechanism, or longer than allowed
};

inline constexpr size_t kZmtpGreetingBytes = 64;

// What our side begins with, READY included. `type`: "SUB" or "DEALER".
std::string ZmtpOpening(std::string_view type);
// The peer's first 64 bytes.
ZmtpTaken CheckZmtpGreeting(std::string_view bytes);
// The first message or command in `bytes`; `consumed` is its size then. `most`: bytes that it may have in
// all.
ZmtpTaken TakeZmtp(std::string_view bytes, size_t most, ZmtpMessage& message, size_t& consumed);

// A message of these parts, as bytes.
std::string ZmtpFrames(std::initializer_list<std::string_view> parts);
// All topics that begin with `topic`.
std::string ZmtpSubscribe(std::string_view topic);
// The answer to a PING command, or "" where `command` is none.
std::string ZmtpPong(std::string_view command);
bool IsZmtpCommand(std::string_view command, std::string_view name);

}  // namespace fairway::sources::kv_events
