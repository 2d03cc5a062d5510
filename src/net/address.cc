#include "net/address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

namespace fairway::net {
namespace {

bool IsIpv4(const std::string& text) {
  in_addr address;
  return inet_pton(AF_INET, text.c_str(), &address) == 1;
}

bool IsIpv6(const std::string& text) {
  in6_addr address;
  return inet_pton(AF_INET6, text.c_str(), &address) == 1;
}

bool IsName(std::string_view text) {
  if (text.empty() || text.size() > 253) return false;
  return std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.' || c == '_';
  });
}

// "10.0.0" and "1.2.3.4.5" are no names: a resolver would read the first as 10.0.0.0.
bool LooksLikeIpv4(std::string_view text) {
  return text.find_first_not_of("0123456789.") == std::string_view::npos;
}

tl::unexpected<base::Error> Bad(std::string_view text, std::string_view why) {
  return base::Fail(base::ErrorCode::kInvalidArgument,
                    "bad address \"" + std::string(text.substr(0, 300)) + "\": " + std::string(why));
}

}  // namespace

base::Result<HostPort> ParseHostPort(std::string_view text, bool allow_zero_port) {
  if (text.find('\0') != std::string_view::npos) return Bad("", "it holds a zero byte");
  HostPort out;
  std::string_view port;
  if (text.starts_with('[')) {
    const size_t end = text.find(']');
    if (end == std::string_view::npos) return Bad(text, "\"]\" is missing; write [fd00::1]:8000");
    out.host = text.substr(1, end - 1);
    if (!IsIpv6(out.host)) return Bad(text, "no IPv6 address in the brackets; write [fd00::1]:8000");
    std::string_view rest = text.substr(end + 1);
    if (!rest.starts_with(':')) return Bad(text, "a port is missing; write [fd00::1]:8000");
    port = rest.substr(1);
  } else {
    if (const size_t scheme = text.find("://"); scheme != std::string_view::npos)
      return Bad(text, "want HOST:PORT without a scheme, such as " + std::string(text.substr(scheme + 3)));
    const size_t colon = text.find(':');
    if (colon == std::string_view::npos) return Bad(text, "want HOST:PORT, such as 127.0.0.1:8000");
    if (text.find(':', colon + 1) != std::string_view::npos) {
      return Bad(text, "more than one \":\"; IPv6 goes in brackets, as in [fd00::1]:8000");
    }
    out.host = text.substr(0, colon);
    port = text.substr(colon + 1);
    if (out.host.empty()) return Bad(text, "the host is missing; write host:8000");
    if (LooksLikeIpv4(out.host) ? !IsIpv4(out.host) : !IsName(out.host)) {
      return Bad(text, "the host is neither an IP address nor a name");
    }
  }
  if (port.empty() || port.size() > 5 || port.find_first_not_of("0123456789") != std::string_view::npos) {
    return Bad(text, "the port is no number from 1 to 65535");
  }
  unsigned number = 0;
  for (const char c : port) number = number * 10 + static_cast<unsigned>(c - '0');
  if (number > 65535 || (number == 0 && !allow_zero_port))
    return Bad(text, "the port is no number from 1 to 65535");
  out.port = static_cast<uint16_t>(number);
  return out;
}

std::string FormatHostPort(std::string_view host, uint16_t port) {
  const bool brackets = host.find(':') != std::string_view::npos && !host.starts_with('[');
  std::string out;
  out.reserve(host.size() + 8);
  if (brackets) out += '[';
  out += host;
  if (brackets) out += ']';
  out += ':';
  out += std::to_string(port);
  return out;
}

bool IsIpLiteral(std::string_view host) {
  if (host.size() > 64 || host.find('\0') != std::string_view::npos) return false;
  const std::string text(host);
  return IsIpv4(text) || IsIpv6(text);
}

uint16_t LocalPort(int descriptor) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (::getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                             : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
}

PeerAddress PeerAddressOf(const sockaddr_storage& address) {
  PeerAddress out{};
  if (address.ss_family == AF_INET) {
    out[10] = out[11] = 0xff;
    std::memcpy(out.data() + 12, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, 4);
  } else if (address.ss_family == AF_INET6) {
    const in6_addr& v6 = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
    std::memcpy(out.data(), &v6, IN6_IS_ADDR_V4MAPPED(&v6) ? 16 : 8);
  }
  return out;
}

std::string PeerShareOf(std::string_view ip) {
  const std::string text(ip.substr(0, ip.find('%')));  // an address of a link says which
  sockaddr_storage address{};
  char out[INET6_ADDRSTRLEN] = "";
  if (inet_pton(AF_INET6, text.c_str(), &reinterpret_cast<sockaddr_in6&>(address).sin6_addr) != 1)
    return std::string(ip);
  address.ss_family = AF_INET6;
  const PeerAddress share = PeerAddressOf(address);
  if (share[11] != 0) return inet_ntop(AF_INET, share.data() + 12, out, sizeof out);
  return inet_ntop(AF_INET6, share.data(), out, sizeof out) + std::string("/64");
}

std::vector<std::string> OwnAddresses() {
  constexpr size_t kMost = 64;
  std::vector<std::string> addresses;
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return addresses;
  for (const ifaddrs* one = all; one != nullptr && addresses.size() < kMost; one = one->ifa_next) {
    char text[INET6_ADDRSTRLEN] = "";
    if (one->ifa_addr == nullptr) continue;
    if (one->ifa_addr->sa_family == AF_INET) {
      const auto* v4 = reinterpret_cast<const sockaddr_in*>(one->ifa_addr);
      inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
    } else if (one->ifa_addr->sa_family == AF_INET6) {
      const auto* v6 = reinterpret_cast<const sockaddr_in6*>(one->ifa_addr);
      if (!IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr)) inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
    }
    if (text[0] != '\0') addresses.emplace_back(text);
  }
  freeifaddrs(all);
  return addresses;
}

size_t DescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return 1 << 20;
  return limit.rlim_cur;
}

}  // namespace fairway::net
