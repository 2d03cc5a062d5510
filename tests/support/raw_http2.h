// HTTP/2 frames by hand on a plain socket, for what no client library would send.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fairway::testing {

inline std::string Frame(int type, int flags, uint32_t stream, std::string_view payload) {
  const size_t n = payload.size();
  const auto byte = [](size_t value) { return static_cast<char>(value & 0xff); };
  std::string out = {byte(n >> 16),
                     byte(n >> 8),
                     byte(n),
                     byte(static_cast<size_t>(type)),
                     byte(static_cast<size_t>(flags)),
                     byte(stream >> 24),
                     byte(stream >> 16),
                     byte(stream >> 8),
                     byte(stream)};
  return out.append(payload);
}
constexpr int kDataFrame = 0, kHeadersFrame = 1, kPriorityFrame = 2, kResetFrame = 3, kSettingsFrame = 4,
              kPingFrame = 6, kGoAwayFrame = 7, kWindowFrame = 8, kContinuationFrame = 9;
constexpr int kEndStream = 1, kEndHeaders = 4;

inline std::string Preface() {
  return std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") + Frame(kSettingsFrame, 0, 0, "");
}
// HPACK, literal without indexing; both shorter than 127 bytes.
inline std::string HpackLiteral(std::string_view name, std::string_view value) {
  std::string out(1, '\0');
  out += static_cast<char>(name.size());
  out += name;
  out += static_cast<char>(value.size());
  return out.append(value);
}
inline std::string RequestBlock(std::string_view path) {
  return HpackLiteral(":method", "POST") + HpackLiteral(":scheme", "http") + HpackLiteral(":path", path) +
         HpackLiteral(":authority", "x") + HpackLiteral("content-type", "application/grpc");
}

// A blocking socket.
class RawClient {
 public:
  static RawClient Connect(uint16_t port, int receive_buffer = 0) {
    RawClient client;
    client.descriptor_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_buffer > 0) {
      ::setsockopt(client.descriptor_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    client.connected_ =
        ::connect(client.descriptor_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    return client;
  }
  RawClient(RawClient&& other) noexcept
      : descriptor_(std::exchange(other.descriptor_, -1)), connected_(other.connected_) {}
  RawClient(const RawClient&) = delete;
  ~RawClient() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  bool connected() const { return connected_; }

  // False when the server closed. Reads meanwhile, so that neither side waits for the other for ever; without
  // `read` only the server's own limits can end that.
  bool Send(std::string_view bytes, bool read = true) {
    while (!bytes.empty()) {
      const short events = read ? POLLIN | POLLOUT : POLLOUT;
      pollfd p{descriptor_, events, 0};
      if (::poll(&p, 1, 10'000) <= 0) return false;
      if ((p.revents & POLLIN) != 0 && !ReadOnce()) return false;
      if ((p.revents & (POLLOUT | POLLERR | POLLHUP)) == 0) continue;
      const ssize_t n = ::send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
      if (n < 0) {
        while (ReadOnce()) {
        }
        return false;
      }
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  // True when the server closes within the time.
  bool ReadToEnd(int milliseconds = 20'000) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
    for (;;) {
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now())
              .count();
      pollfd p{descriptor_, POLLIN, 0};
      if (left <= 0 || ::poll(&p, 1, static_cast<int>(left)) <= 0) return false;
      if (!ReadOnce()) return true;
    }
  }

  // What came so far.
  struct Received {
    int type = 0, flags = 0;
    uint32_t stream = 0;
    std::string payload;
  };
  std::vector<Received> Frames() const {
    std::vector<Received> frames;
    for (size_t at = 0; at + 9 <= in_.size();) {
      const auto* h = reinterpret_cast<const uint8_t*>(in_.data() + at);
      const size_t n = size_t{h[0]} << 16 | size_t{h[1]} << 8 | h[2];
      if (at + 9 + n > in_.size()) break;
      frames.push_back({h[3], h[4], Number(h + 5), in_.substr(at + 9, n)});
      at += 9 + n;
    }
    return frames;
  }
  std::optional<uint32_t> GoAwayCode() const {
    for (const Received& frame : Frames()) {
      if (frame.type == kGoAwayFrame)
        return Number(reinterpret_cast<const uint8_t*>(frame.payload.data()) + 4);
    }
    return {};
  }
  size_t Count(int type) const {
    size_t n = 0;
    for (const Received& frame : Frames()) n += frame.type == type ? 1 : 0;
    return n;
  }

 private:
  RawClient() = default;
  static uint32_t Number(const uint8_t* p) {
    return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | p[3];
  }
  bool ReadOnce() {
    char buffer[16 << 10];
    const ssize_t n = ::recv(descriptor_, buffer, sizeof buffer, 0);
    if (n <= 0) return n < 0 && errno == EINTR;
    in_.append(buffer, static_cast<size_t>(n));
    return true;
  }

  int descriptor_ = -1;
  bool connected_ = false;
  std::string in_;
};

}  // namespace fairway::testing
