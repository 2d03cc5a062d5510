#include "base/json_writer.h"

#include <array>
#include <charconv>
#include <cmath>

#include "base/strings.h"

namespace fairway::base {
namespace {

template <typename Number>
void AppendNumber(std::string& out, Number value) {
  std::array<char, 32> text;
  out.append(text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr);
}

}  // namespace

JsonWriter& JsonWriter::Key(std::string_view key) {
  Comma();
  AppendJsonString(out_, key);
  out_ += ':';
  comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::Begin(char bracket) {
  Comma();
  out_ += bracket;
  comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::End(char bracket) {
  out_ += bracket;
  comma_ = true;
  return *this;
}

JsonWriter& JsonWriter::Raw(std::string_view json) {
  Comma();
  out_ += json;
  return *this;
}

JsonWriter& JsonWriter::Value(std::string_view text) {
  Comma();
  AppendJsonString(out_, text);
  return *this;
}

JsonWriter& JsonWriter::Text(std::string_view text, size_t max) { return Value(CleanText(text, max)); }

JsonWriter& JsonWriter::Whole(int64_t value) {
  Comma();
  AppendNumber(out_, value);
  return *this;
}

JsonWriter& JsonWriter::Whole(uint64_t value) {
  Comma();
  AppendNumber(out_, value);
  return *this;
}

JsonWriter& JsonWriter::Value(float value) {
  if (!std::isfinite(value)) return Null();
  Comma();
  AppendNumber(out_, value);
  return *this;
}

JsonWriter& JsonWriter::Value(double value) {
  if (!std::isfinite(value)) return Null();
  Comma();
  AppendNumber(out_, value);
  return *this;
}

}  // namespace fairway::base
