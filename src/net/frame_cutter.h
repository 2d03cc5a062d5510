// Where the frames of an HTTP/2 connection begin, so that its reader can be given some of them at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string_view>

namespace fairway::net {

// Follows the bytes that a client sends, from its preface on. Owned by its connection.
class FrameCutter {
 public:
  // How many of `bytes` may be taken, with no more than `frames` beginnings of frames. Each byte that was
  // taken is not given again. REQUIRES: frames > 0. At least 1 where there are bytes.
  size_t Take(std::string_view bytes, size_t frames) {
    size_t at = 0;
    while (at < bytes.size()) {
      if (payload_ > 0) {
        const size_t part = std::min(payload_, bytes.size() - at);
        payload_ -= part;
        at += part;
        continue;
      }
      if (head_ == 0 && frames-- == 0) break;
      if (head_ < kLengthBytes) length_ = length_ << 8 | static_cast<unsigned char>(bytes[at]);
      ++at;
      if (++head_ < kHeadBytes) continue;
      payload_ = length_;
      head_ = length_ = 0;
    }
    return at;
  }

 private:
  static constexpr size_t kPreface = 24;  // RFC 9113, 3.4
  static constexpr size_t kHeadBytes = 9;
  static constexpr size_t kLengthBytes = 3;
  size_t payload_ = kPreface;  // bytes up to the next frame's head
  size_t head_ = 0;            // bytes of the head at hand
  size_t length_ = 0;
};

}  // namespace fairway::net
