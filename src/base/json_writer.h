// Writes JSON onto the end of a string: commas by itself, text always valid (base/strings.h), numbers so that
// they are read back as the same ones.
//
//   std::string out;
//   JsonWriter json(out);
//   json.BeginObject();
//   json.Member("name", name);
//   json.Key("load").BeginList();
//   for (const float v : load) json.Value(v);
//   json.EndList();
//   json.EndObject();                       // {"name":"A","load":[0.3,2]}
//
// What belongs together is the caller's affair: as many ends as begins, a key before each value of an object.
// One thread.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace fairway::base {

class JsonWriter {
 public:
  // REQUIRES: `out` outlives the writer.
  explicit JsonWriter(std::string& out) : out_(out) {}

  JsonWriter& BeginObject() { return Begin('{'); }
  JsonWriter& EndObject() { return End('}'); }
  JsonWriter& BeginList() { return Begin('['); }
  JsonWriter& EndList() { return End(']'); }
  // Of the value that comes next.
  JsonWriter& Key(std::string_view key);

  JsonWriter& Value(std::string_view text);
  JsonWriter& Value(const char* text) { return Value(std::string_view(text)); }
  JsonWriter& Value(bool value) { return Raw(value ? "true" : "false"); }
  // The shortest that is read back as the same number; null where it is none.
  JsonWriter& Value(float value);
  JsonWriter& Value(double value);
  template <std::integral Integer>
    requires(!std::same_as<Integer, bool>)
  JsonWriter& Value(Integer value) {
    if constexpr (std::signed_integral<Integer>) {
      return Whole(static_cast<int64_t>(value));
    } else {
      return Whole(static_cast<uint64_t>(value));
    }
  }
  JsonWriter& Null() { return Raw("null"); }
  // Somebody else's text, cut as CleanText cuts.
  JsonWriter& Text(std::string_view text, size_t max);
  // One value that is JSON already.
  JsonWriter& Raw(std::string_view json);

  template <typename V>
  JsonWriter& Member(std::string_view key, const V& value) {
    return Key(key).Value(value);
  }
  JsonWriter& TextMember(std::string_view key, std::string_view text, size_t max) {
    return Key(key).Text(text, max);
  }

 private:
  void Comma() {
    if (comma_) out_ += ',';
    comma_ = true;
  }
  JsonWriter& Begin(char bracket);
  JsonWriter& End(char bracket);
  JsonWriter& Whole(int64_t value);
  JsonWriter& Whole(uint64_t value);

  std::string& out_;
  bool comma_ = false;  // before what comes next
};

}  // namespace fairway::base
