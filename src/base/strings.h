// Small text helpers that several rooms need.
#pragma once

#include <charconv>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fairway::base {

// ASCII white space off both ends.
std::string_view Trim(std::string_view text);

// The pieces between `separator`, untrimmed; "" gives one empty piece.
std::vector<std::string_view> Split(std::string_view text, char separator);

std::string Join(std::span<const std::string> pieces, std::string_view separator);

// ASCII only: header names, enum values.
std::string ToLower(std::string_view text);
bool EqualsIgnoreCase(std::string_view a, std::string_view b) noexcept;

// The whole of `text` as a number, or nothing: no sign tricks, no trailing bytes, no overflow.
template <typename Integer>
std::optional<Integer> ParseInteger(std::string_view text) {
  Integer value{};
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// 0 to 15; -1 for what is no hexadecimal digit.
constexpr int HexDigit(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// A URL's text with each "%2F" as the byte that it stands for (RFC 3986, 2.1); what is no escape stays.
std::string PercentDecoded(std::string_view text);

// Go's duration syntax, as the reference's flags take it: "50ms", "1m30s", "2.5s", "0". Nanoseconds.
std::optional<int64_t> ParseDuration(std::string_view text);

// Kubernetes' quantity syntax for sizes: "4Mi", "10MiB", "1G", "512k", "1000". Bytes.
std::optional<uint64_t> ParseQuantity(std::string_view text);

// Of `candidates` the one a mistyped `wanted` most likely meant: a case mismatch, a missing or extra ending,
// words left out between hyphens, or few edits. Nothing when none is near, and for texts of more than 256 bytes. For "did you mean" hints,
// not for decisions. A candidate costs at most the product of both lengths, and next to nothing where they
// differ by more than a third.
std::optional<std::string> Nearest(std::string_view wanted, std::span<const std::string> candidates);

// Text of somebody else's, fit for a label, a log line or an answer: valid UTF-8 of at most `max` bytes, cut
// between two characters. What is no UTF-8 becomes U+FFFD, and so do control characters, which a terminal
// obeys: C0, DEL and C1 (U+0080 to U+009F, among them CSI).
std::string CleanText(std::string_view text, size_t max);

// An address as all others write it: IPv6 as in RFC 5952, so that equal addresses are equal texts. Takes
// "host", "[host]" and "[host]:port"; what has no IPv6 in it comes back as it is.
std::string CanonicalAddress(std::string_view text);

// Appends `text` as a JSON string with quotes. Invalid UTF-8 becomes U+FFFD, so that the output is always
// valid JSON; control characters are escaped, C1 among them.
void AppendJsonString(std::string& out, std::string_view text);
std::string JsonString(std::string_view text);

// For maps keyed by std::string: text is looked up without making a string of it, and the hash (SipHash-1-3
// under a key that each process draws anew) is one that nobody outside can make collide. So the order of a
// map's entries differs from process to process.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const noexcept;
};

}  // namespace fairway::base
