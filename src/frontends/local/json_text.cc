#include "frontends/local/json_text.h"

#include "base/strings.h"

namespace fairway::local {

Json JsonText(std::string_view value) { return {base::JsonString(value)}; }

Json JsonObject(std::initializer_list<JsonMember> members) {
  std::string out = "{";
  for (const auto& [name, value] : members) {
    if (!value.present()) continue;
    if (out.size() > 1) out += ',';
    base::AppendJsonString(out, name);
    out += ':';
    out += value.text;
  }
  out += '}';
  return {std::move(out)};
}

Json JsonArray(const std::vector<Json>& items) {
  std::string out = "[";
  for (const Json& item : items) {
    if (!item.present()) continue;
    if (out.size() > 1) out += ',';
    out += item.text;
  }
  out += ']';
  return {std::move(out)};
}

std::string Indented(const Json& value) {
  const std::string& in = value.text;
  std::string out;
  out.reserve(in.size() * 2);
  size_t depth = 0;
  const auto line = [&] {
    out += '\n';
    out.append(2 * depth, ' ');
  };
  for (size_t i = 0; i < in.size(); ++i) {
    const char c = in[i];
    switch (c) {
      case '"': {
        size_t end = i + 1;
        while (in[end] != '"') end += in[end] == '\\' ? 2 : 1;
        out.append(in, i, end - i + 1);
        i = end;
        break;
      }
      case '{':
      case '[':
        out += c;
        if (in[i + 1] == c + 2) {  // '{' and '}', '[' and ']' are two apart in ASCII
          out += in[++i];
        } else {
          ++depth;
          line();
        }
        break;
      case '}':
      case ']':
        --depth;
        line();
        out += c;
        break;
      case ',':
        out += c;
        line();
        break;
      case ':':
        out += ": ";
        break;
      default:
        out += c;
    }
  }
  out += '\n';
  return out;
}

}  // namespace fairway::local
