#include "sources/kv_events/zmtp.h"

#include "sources/kv_events/big_endian.h"

namespace fairway::sources::kv_events {
namespace {

constexpr uint8_t kMore = 1, kLong = 2, kCommand = 4;
constexpr std::string_view kNull = "NULL";

void AppendFrame(std::string& to, uint8_t flags, std::string_view body) {
  if (body.size() > 255) {
    to += static_cast<char>(flags | kLong);
    to += ToBigEndian(body.size());
  } else {
    to += static_cast<char>(flags);
    to += static_cast<char>(body.size());
  }
  to += body;
}

void AppendProperty(std::string& to, std::string_view name, std::string_view value) {
  to += static_cast<char>(name.size());
  to += name;
  to += std::string("\0\0\0", 3) + static_cast<char>(value.size());
  to += value;
}

}  // namespace

std::string ZmtpOpening(std::string_view type) {
  std::string opening("\xff\0\0\0\0\0\0\0\0\x7f\3\0", 12);
  opening += kNull;
  opening.resize(kZmtpGreetingBytes, '\0');
  std::string ready("\5READY");
  AppendProperty(ready, "Socket-Type", type);
  AppendProperty(ready, "Identity", "");
  AppendFrame(opening, kCommand, ready);
  return opening;
}

ZmtpTaken CheckZmtpGreeting(std::string_view bytes) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  if (!bytes.empty() && byte(0) != 0xff) return ZmtpTaken::kBroken;
  if (bytes.size() > 9 && (byte(9) & 1) == 0) return ZmtpTaken::kBroken;
  if (bytes.size() > 10 && byte(10) < 3) return ZmtpTaken::kBroken;
  if (bytes.size() < kZmtpGreetingBytes) return ZmtpTaken::kIncomplete;
  return bytes.substr(12, 5) == std::string_view("NULL\0", 5) ? ZmtpTaken::kMessage : ZmtpTaken::kBroken;
}

ZmtpTaken TakeZmtp(std::string_view bytes, size_t most, ZmtpMessage& message, size_t& consumed) {
  message.count = 0;
  size_t at = 0;
  while (true) {
    if (bytes.size() - at < 2) return ZmtpTaken::kIncomplete;
    const auto flags = static_cast<uint8_t>(bytes[at]);
    if ((flags & ~(kMore | kLong | kCommand)) != 0) return ZmtpTaken::kBroken;
    const size_t size_bytes = (flags & kLong) != 0 ? 8 : 1;
    if (bytes.size() - at < 1 + size_bytes) return ZmtpTaken::kIncomplete;
    const uint64_t size = ReadBigEndian(bytes.substr(at + 1, size_bytes));
    at += 1 + size_bytes;
    if (size > most || at + size > most) return ZmtpTaken::kBroken;
    const bool command = (flags & kCommand) != 0;
    const bool more = (flags & kMore) != 0;
    if (command && (more || message.count != 0)) return ZmtpTaken::kBroken;
    if (message.count == ZmtpMessage::kMaxParts) return ZmtpTaken::kBroken;
    if (bytes.size() - at < size) return ZmtpTaken::kIncomplete;
    message.parts[message.count++] = bytes.substr(at, size);
    message.command = command;
    at += size;
    if (more) continue;
    consumed = at;
    return ZmtpTaken::kMessage;
  }
}

std::string ZmtpFrames(std::initializer_list<std::string_view> parts) {
  std::string frames;
  size_t left = parts.size();
  for (const std::string_view part : parts) AppendFrame(frames, --left > 0 ? kMore : 0, part);
  return frames;
}

std::string ZmtpSubscribe(std::string_view topic) { return ZmtpFrames({'\1' + std::string(topic)}); }

bool IsZmtpCommand(std::string_view command, std::string_view name) {
  return command.size() > name.size() && static_cast<uint8_t>(command[0]) == name.size() &&
         command.substr(1, name.size()) == name;
}

// PING: time to live (2 bytes), context (at most 16), which the answer gives back.
std::string ZmtpPong(std::string_view command) {
  if (!IsZmtpCommand(command, "PING")) return "";
  const std::string_view context = command.size() > 7 ? command.substr(7, 16) : std::string_view();
  std::string pong;
  AppendFrame(pong, kCommand, "\4PONG" + std::string(context));
  return pong;
}

}  // namespace fairway::sources::kv_events
