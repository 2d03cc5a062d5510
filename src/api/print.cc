#include "api/print.h"

#include <algorithm>

#include "base/strings.h"

namespace fairway::api {

void WriteValue(const Value& value, base::JsonWriter& json) {
  switch (value.kind) {
    case Value::Kind::kNull:
      json.Null();
      break;
    case Value::Kind::kBool:
    case Value::Kind::kNumber:
      json.Raw(value.text);
      break;
    case Value::Kind::kString:
      json.Value(value.text);
      break;
    case Value::Kind::kList:
      json.BeginList();
      for (const ValuePtr& item : value.items) WriteValue(*item, json);
      json.EndList();
      break;
    case Value::Kind::kMap:
      json.BeginObject();
      for (const Value::Entry& entry : value.entries) WriteValue(*entry.value, json.Key(entry.key));
      json.EndObject();
      break;
  }
}

std::string YamlText(std::string_view text) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.' || c == '/';
  };
  const bool bare = !text.empty() && text[0] != '-' && std::all_of(text.begin(), text.end(), plain) &&
                    ResolvePlain(text) == Value::Kind::kString;
  return bare ? std::string(text) : base::JsonString(text);
}

void AppendYaml(const Value& value, size_t indent, std::string& out) {
  const auto scalar = [](const Value& one) {
    return one.kind == Value::Kind::kString ? YamlText(one.text)
           : one.kind == Value::Kind::kNull ? "null"
                                            : one.text;
  };
  if (value.kind == Value::Kind::kList) {
    out += value.items.empty() ? " []\n" : "\n";
    for (const ValuePtr& item : value.items) {
      std::string below;
      AppendYaml(*item, indent + 2, below);
      // A map begins behind the dash: its first line loses its indentation.
      const bool map = item->kind == Value::Kind::kMap && !item->entries.empty();
      out += std::string(indent, ' ') + "-" + (map ? " " + below.substr(1 + indent + 2) : below);
    }
  } else if (value.kind == Value::Kind::kMap) {
    out += value.entries.empty() ? " {}\n" : "\n";
    for (const Value::Entry& entry : value.entries) {
      out += std::string(indent, ' ') + YamlText(entry.key) + ":";
      AppendYaml(*entry.value, indent + 2, out);
    }
  } else {
    out += " " + scalar(value) + "\n";
  }
}

}  // namespace fairway::api
