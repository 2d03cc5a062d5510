// Numbers as ZMTP, MessagePack and the engines' sequence numbers have them: most significant byte first.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fairway::sources::kv_events {

// REQUIRES: at most 8 bytes.
inline uint64_t ReadBigEndian(std::string_view bytes) {
  uint64_t number = 0;
  for (const char c : bytes) number = number << 8 | static_cast<uint8_t>(c);
  return number;
}

// 8 bytes.
inline std::string ToBigEndian(uint64_t number) {
  std::string bytes;
  for (int shift = 56; shift >= 0; shift -= 8) bytes += static_cast<char>(number >> shift & 0xff);
  return bytes;
}

}  // namespace fairway::sources::kv_events
