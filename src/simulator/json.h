// A small JSON document, for the few bodies that a simulated server reads beyond what payload/request.h
// finds: fault settings and the odd switch of a request. Not for the product's request path.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace fairway::simulator {

struct Json {
  struct Member;
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  double number = 0;
  std::string string;
  std::vector<Json> items;
  std::vector<Member> members;  // as sent, duplicates too

  bool Is(Kind wanted) const { return kind == wanted; }
  // The last member of that name; null when there is none or this is no object.
  const Json* Find(std::string_view name) const;
};

struct Json::Member {
  std::string name;
  Json value;
};

// RFC 8259, nesting up to 64. Strings are not checked for UTF-8. The error names the byte.
base::Result<Json> ParseJson(std::string_view text);

}  // namespace fairway::simulator
