// Where to connect or listen: "10.0.0.1:8000", "[fd00::1]:8000" or "localhost:8000".
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace fairway::net {

struct HostPort {
  std::string host;  // IPv4, IPv6 without brackets, or a name
  uint16_t port = 0;
};

// Strict: a port 1..65535 (0 with `allow_zero_port`), IPv6 only in brackets. The error says what would be
// right.
base::Result<HostPort> ParseHostPort(std::string_view text, bool allow_zero_port = false);

// Brackets around IPv6.
std::string FormatHostPort(std::string_view host, uint16_t port);

bool IsIpLiteral(std::string_view host);

// Whom a connection is counted as, where each has a share: an IPv4 address as IPv6 has it (::ffff:a.b.c.d),
// so that both ways to listen agree; of an IPv6 address its network of 64 bits, as whoever has one address of
// such a network can have all of them.
// All zero for a socket without one.
using PeerAddress = std::array<uint8_t, 16>;
PeerAddress PeerAddressOf(const sockaddr_storage& address);
// The same of an address as text, as text: "10.0.0.1", "fd00:1:2:3::/64". What is none stays as it is.
std::string PeerShareOf(std::string_view ip);

// The addresses of this machine's (or Pod's) interfaces but those of a link alone; at most 64.
std::vector<std::string> OwnAddresses();

// How many descriptors this process may have open.
size_t DescriptorLimit();

// Of a socket's own side; 0 when it has none.
uint16_t LocalPort(int descriptor);

}  // namespace fairway::net
