// Values as text again.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "api/value.h"
#include "base/json_writer.h"

namespace fairway::api {

// The value as JSON text. What only YAML writes (0x10, yes) stays as it is, for ParseText.
void WriteValue(const Value& value, base::JsonWriter& json);

// The text as YAML has it: in quotes where it would be read as something else without.
std::string YamlText(std::string_view text);

// The value behind "key:" or "-", in block style, `indent` spaces in: " 5\n", or lines below.
void AppendYaml(const Value& value, size_t indent, std::string& out);

}  // namespace fairway::api
