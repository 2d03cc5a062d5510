#include "scheduling/session_token.h"

#include <array>

namespace fairway::scheduling {

namespace {

constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr uint8_t kNoDigit = 64;
constexpr std::array<uint8_t, 256> kValues = [] {
  std::array<uint8_t, 256> values{};
  values.fill(kNoDigit);
  for (size_t i = 0; i < kDigits.size(); ++i)
    values[static_cast<unsigned char>(kDigits[i])] = static_cast<uint8_t>(i);
  return values;
}();

std::string Encode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); i += 3) {
    const auto byte = [&](size_t k) {
      return i + k < text.size() ? static_cast<uint32_t>(static_cast<unsigned char>(text[i + k])) : 0u;
    };
    const uint32_t bits = byte(0) << 16 | byte(1) << 8 | byte(2);
    for (size_t k = 0; k < 4; ++k) out += k <= text.size() - i ? kDigits[bits >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

}  // namespace

std::string SessionToken(const fleet::PoolSnapshot& pool, uint32_t endpoint) {
  const fleet::Endpoint& of = pool.endpoints[endpoint];
  std::string name = of.namespace_name + "/" + of.name;
  if (pool.by_host.count(of.host) > 1) name += ":" + std::to_string(of.port);
  return Encode(name);
}

std::string_view ReadSessionToken(std::string_view token, std::span<char> memory) noexcept {
  while (!token.empty() && token.back() == '=') token.remove_suffix(1);
  size_t size = 0;
  uint32_t bits = 0;
  for (size_t i = 0; i < token.size(); ++i) {
    const uint8_t value = kValues[static_cast<unsigned char>(token[i])];
    if (value == kNoDigit) return {};
    bits = bits << 6 | value;
    if (i % 4 == 0) continue;
    if (size == memory.size()) return {};
    memory[size++] = static_cast<char>(bits >> (6 - 2 * (i % 4)) & 0xff);
  }
  return token.size() % 4 == 1 ? std::string_view() : std::string_view(memory.data(), size);
}

}  // namespace fairway::scheduling
