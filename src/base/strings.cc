#include "base/strings.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

namespace fairway::base {
namespace {

char Lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

// Letters more, less, others, or two swapped, whatever their case. Beyond `limit` any number above it: where
// two rows one after the other are beyond it no further one is looked at.
size_t EditDistance(std::string_view a, std::string_view b, size_t limit) {
  std::vector<size_t> before, last(b.size() + 1), row(b.size() + 1);  // of a's letters up to i - 2, i - 1, i
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  before = last;
  const auto same = [](char x, char y) { return Lower(x) == Lower(y); };
  size_t last_best = 0;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t best = row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (same(a[i - 1], b[j - 1]) ? 0 : 1)});
      if (i > 1 && j > 1 && same(a[i - 1], b[j - 2]) && same(a[i - 2], b[j - 1]))
        row[j] = std::min(row[j], before[j - 2] + 1);
      best = std::min(best, row[j]);
    }
    if (best > limit && last_best > limit) return best;
    last_best = best;
    before.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

// All words of `few` stand in `many`, in their order: how many others do. Nothing: they do not.
std::optional<size_t> MissingWords(std::string_view few, std::string_view many) {
  const auto wanted = Split(few, '-');
  if (wanted.size() < 2) return std::nullopt;
  size_t found = 0, others = 0;
  for (const std::string_view word : Split(many, '-'))
    found < wanted.size() && word == wanted[found] ? ++found : ++others;
  return found == wanted.size() ? std::optional(others) : std::nullopt;
}

// Length of the valid UTF-8 sequence at `text`, 0 when there is none. Table 3-7 of the Unicode standard.
size_t Utf8Length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto tail = [&](size_t i, unsigned char low = 0x80, unsigned char high = 0xbf) {
    return i < text.size() && byte(i) >= low && byte(i) <= high;
  };
  const unsigned char c = byte(0);
  if (c < 0x80) return 1;
  if (c >= 0xc2 && c <= 0xdf) return tail(1) ? 2 : 0;
  if (c >= 0xe0 && c <= 0xef) {
    return tail(1, c == 0xe0 ? 0xa0 : 0x80, c == 0xed ? 0x9f : 0xbf) && tail(2) ? 3 : 0;
  }
  if (c >= 0xf0 && c <= 0xf4) {
    return tail(1, c == 0xf0 ? 0x90 : 0x80, c == 0xf4 ? 0x8f : 0xbf) && tail(2) && tail(3) ? 4 : 0;
  }
  return 0;
}

// Of the character of `length` bytes at `text`. C1 is two bytes in UTF-8: c2 80 to c2 9f. What separates lines
// or turns the direction of what follows, U+2028 to U+202E and U+2066 to U+2069, changes what a terminal shows,
// too.
bool IsControl(std::string_view text, size_t length) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (length == 1) return byte(0) < 0x20 || byte(0) == 0x7f;
  if (length == 2) return byte(0) == 0xc2 && byte(1) < 0xa0;
  if (length != 3 || byte(0) != 0xe2) return false;
  return (byte(1) == 0x80 && byte(2) >= 0xa8 && byte(2) <= 0xae) ||
         (byte(1) == 0x81 && byte(2) >= 0xa6 && byte(2) <= 0xa9);
}

struct HashKey {
  uint64_t first = 0;
  uint64_t second = 0;
};

HashKey DrawHashKey() {
  HashKey key;
  // At boot the system may have no entropy yet, and then where it put us has to do.
  if (getrandom(&key, sizeof key, GRND_NONBLOCK) != sizeof key) key.second ^= std::bit_cast<uint64_t>(&key);
  return key;
}

// One round of SipHash (Aumasson and Bernstein, 2012).
void SipRound(std::array<uint64_t, 4>& v) {
  v[0] += v[1];
  v[1] = std::rotl(v[1], 13) ^ v[0];
  v[0] = std::rotl(v[0], 32);
  v[2] += v[3];
  v[3] = std::rotl(v[3], 16) ^ v[2];
  v[0] += v[3];
  v[3] = std::rotl(v[3], 21) ^ v[0];
  v[2] += v[1];
  v[1] = std::rotl(v[1], 17) ^ v[2];
  v[2] = std::rotl(v[2], 32);
}

}  // namespace

size_t StringHash::operator()(std::string_view text) const noexcept {
  static const HashKey key = DrawHashKey();
  std::array<uint64_t, 4> v{key.first ^ 0x736f6d6570736575, key.second ^ 0x646f72616e646f6d,
                            key.first ^ 0x6c7967656e657261, key.second ^ 0x7465646279746573};
  const auto take = [&v](uint64_t word) {
    v[3] ^= word;
    SipRound(v);
    v[0] ^= word;
  };
  uint64_t last = static_cast<uint64_t>(text.size()) << 56;
  while (text.size() >= 8) {
    uint64_t word = 0;
    std::memcpy(&word, text.data(), 8);
    take(word);
    text.remove_prefix(8);
  }
  for (size_t i = 0; i < text.size(); ++i) last |= uint64_t{static_cast<unsigned char>(text[i])} << (8 * i);
  take(last);
  v[2] ^= 0xff;
  for (int i = 0; i < 3; ++i) SipRound(v);
  return v[0] ^ v[1] ^ v[2] ^ v[3];
}

std::string_view Trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\f\v";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> pieces;
  for (;;) {
    const size_t at = text.find(separator);
    pieces.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return pieces;
    text.remove_prefix(at + 1);
  }
}

std::string Join(std::span<const std::string> pieces, std::string_view separator) {
  std::string out;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (i > 0) out += separator;
    out += pieces[i];
  }
  return out;
}

std::string ToLower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), Lower);
  return out;
}

bool EqualsIgnoreCase(std::string_view a, std::string_view b) noexcept {
  return a.size() == b.size() &&
         std::equal(a.begin(), a.end(), b.begin(), [](char x, char y) { return Lower(x) == Lower(y); });
}

std::optional<int64_t> ParseDuration(std::string_view text) {
  if (text == "0") return 0;
  struct Unit {
    std::string_view name;
    double nanos;
  };
  // "ms" stands before "m" so that the longer name is tried first.
  static constexpr std::array<Unit, 7> kUnits{
      {{"ns", 1}, {"us", 1e3}, {"\xc2\xb5s", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"m", 60e9}, {"h", 3600e9}}};
  double total = 0;
  if (text.empty()) return std::nullopt;
  while (!text.empty()) {
    double number = 0;
    auto [end, error] =
        std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
    if (error != std::errc() || number < 0 || !std::isfinite(number)) return std::nullopt;
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    const auto* unit =
        std::find_if(kUnits.begin(), kUnits.end(), [&](const Unit& u) { return text.starts_with(u.name); });
    if (unit == kUnits.end()) return std::nullopt;
    text.remove_prefix(unit->name.size());
    total += number * unit->nanos;
    if (total > 9e18) return std::nullopt;
  }
  return static_cast<int64_t>(total);
}

std::optional<uint64_t> ParseQuantity(std::string_view text) {
  double number = 0;
  auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc() || number < 0 || !std::isfinite(number)) return std::nullopt;
  std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
  if (unit.ends_with('B')) unit.remove_suffix(1);
  double factor = 1;
  if (!unit.empty()) {
    constexpr std::string_view kPrefixes = "kMGTP";
    const size_t power = kPrefixes.find(unit[0] == 'K' ? 'k' : unit[0]);
    if (power == std::string_view::npos) return std::nullopt;
    const bool binary = unit.size() == 2 && unit[1] == 'i';
    if (unit.size() > 1 && !binary) return std::nullopt;
    factor = std::pow(binary ? 1024.0 : 1000.0, static_cast<double>(power + 1));
  }
  const double bytes = number * factor;
  if (bytes > 1.8e19) return std::nullopt;
  return static_cast<uint64_t>(bytes);
}

std::optional<std::string> Nearest(std::string_view wanted, std::span<const std::string> candidates) {
  constexpr size_t kMaxText = 256;
  if (wanted.empty() || wanted.size() > kMaxText) return std::nullopt;
  const std::string* best = nullptr;
  size_t best_cost = 0;
  for (const std::string& candidate : candidates) {
    if (candidate.empty() || candidate.size() > kMaxText) continue;
    const auto [shorter, longer] = std::minmax({wanted.size(), candidate.size()});
    // One is the beginning of the other ("vllm-llama2-7b" of "vllm-llama2-7b-pool"): near, however long the
    // ending.
    size_t cost = longer - shorter;
    const bool prefix = shorter >= 3 && (candidate.starts_with(wanted) || wanted.starts_with(candidate));
    if (!prefix) {
      size_t limit = std::max<size_t>(1, longer / 3);
      if (best != nullptr) limit = std::min(limit, best_cost);
      const auto missing = MissingWords(wanted, candidate);
      if (!missing && cost > limit) continue;
      cost = missing ? *missing + 1 : EditDistance(wanted, candidate, limit);
      if (cost > limit && !missing) continue;
    }
    if (best != nullptr && cost >= best_cost) continue;
    best_cost = cost;
    best = &candidate;
  }
  if (best == nullptr) return std::nullopt;
  return *best;
}

std::string CleanText(std::string_view text, size_t max) {
  constexpr std::string_view kReplacement = "\xef\xbf\xbd";
  std::string out;
  out.reserve(std::min(text.size(), max));
  while (!text.empty()) {
    const size_t length = Utf8Length(text);
    const bool kept = length > 0 && !IsControl(text, length);
    const std::string_view character = kept ? text.substr(0, length) : kReplacement;
    if (out.size() + character.size() > max) break;
    out += character;
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return out;
}

std::string CanonicalAddress(std::string_view text) {
  std::string_view host = text;
  std::string_view port;
  const bool brackets = text.starts_with('[');
  if (brackets) {
    const size_t end = text.find(']');
    if (end == std::string_view::npos) return std::string(text);
    host = text.substr(1, end - 1);
    port = text.substr(end + 1);
  }
  in6_addr parsed{};
  std::array<char, INET6_ADDRSTRLEN> written{};
  if (host.find(':') == std::string_view::npos || host.size() >= written.size() ||
      inet_pton(AF_INET6, std::string(host).c_str(), &parsed) != 1 ||
      inet_ntop(AF_INET6, &parsed, written.data(), written.size()) == nullptr) {
    return std::string(text);
  }
  std::string out = written.data();
  return brackets ? "[" + out + "]" + std::string(port) : out;
}

void AppendJsonString(std::string& out, std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  out += '"';
  while (!text.empty()) {
    const char c = text[0];
    const size_t length = Utf8Length(text);
    if (length == 0) {
      out += "\\ufffd";
      text.remove_prefix(1);
      continue;
    }
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (IsControl(text, length)) {
      auto code = static_cast<unsigned char>(text[length - 1]);  // U+0000 to U+009F: the last byte is it
      if (length == 3)                                           // U+2000 to U+207F
        code = static_cast<unsigned char>((static_cast<unsigned char>(text[1]) & 1) << 6 | (code & 0x3f));
      out += length == 3 ? "\\u20" : "\\u00";
      out += kHex[code >> 4];
      out += kHex[code & 15];
    } else {
      out.append(text.substr(0, length));
    }
    text.remove_prefix(length);
  }
  out += '"';
}

std::string JsonString(std::string_view text) {
  std::string out;
  out.reserve(text.size() + 2);
  AppendJsonString(out, text);
  return out;
}

std::string PercentDecoded(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool escape =
        text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 && HexDigit(text[i + 2]) >= 0;
    out += escape ? static_cast<char>(HexDigit(text[i + 1]) << 4 | HexDigit(text[i + 2])) : text[i];
    if (escape) i += 2;
  }
  return out;
}

}  // namespace fairway::base
