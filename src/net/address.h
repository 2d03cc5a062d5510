// Where to connect or listen: "10.0.0.1:8000", "[fd00::1]:8000" or "localhost:8000".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

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

// Of a socket's own side; 0 when it has none.
uint16_t LocalPort(int descriptor);

}  // namespace fairway::net
