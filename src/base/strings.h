// Small text helpers that several rooms need.
#pragma once

#include <charconv>
#include <cstdint>
#include <functional>
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

// Go's duration syntax, as the reference's flags take it: "50ms", "1m30s", "2.5s", "0". Nanoseconds.
std::optional<int64_t> ParseDuration(std::string_view text);

// Kubernetes' quantity syntax for sizes: "4Mi", "10MiB", "1G", "512k", "1000". Bytes.
std::optional<uint64_t> ParseQuantity(std::string_view text);

// Of `candidates` the one a mistyped `wanted` most likely meant: a case mismatch, a missing or extra ending,
// or few edits. Nothing when none is near. For "did you mean" hints, not for decisions.
std::optional<std::string> Nearest(std::string_view wanted, std::span<const std::string> candidates);

// Appends `text` as a JSON string with quotes. Invalid UTF-8 becomes U+FFFD, so that the output is always
// valid JSON.
void AppendJsonString(std::string& out, std::string_view text);
std::string JsonString(std::string_view text);

// Where text is looked up in a map keyed by std::string without making a string of it.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>{}(text); }
};

}  // namespace fairway::base
