// Writing JSON by composing texts: values are valid JSON from the start, so nothing can be left unclosed.
//
//   JsonObject({{"name", JsonText("pool")}, {"weight", JsonNumber(3)}, {"note", JsonNothing()}})
//   -> {"name":"pool","weight":3}
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fairway::local {

// One JSON value as text; empty is "no value": an object leaves such a member out.
struct Json {
  std::string text;
  bool present() const { return !text.empty(); }
};

using JsonMember = std::pair<std::string_view, Json>;

inline Json JsonNothing() { return {}; }
inline Json JsonBool(bool value) { return {value ? "true" : "false"}; }
inline Json JsonNumber(int64_t value) { return {std::to_string(value)}; }
Json JsonText(std::string_view value);
Json JsonObject(std::initializer_list<JsonMember> members);
Json JsonArray(const std::vector<Json>& items);

// The same value with line breaks and two blanks of indent a level, for people.
std::string Indented(const Json& value);

}  // namespace fairway::local
