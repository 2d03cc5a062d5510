// One value of a YAML or JSON document with the line it stands on: what is between the bytes of a file and
// the typed structs.
//
// Values are immutable once parsed and may be shared (YAML aliases), so a document is a graph without cycles.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fairway::api {

struct Value;
using ValuePtr = std::shared_ptr<const Value>;

struct Value {
  enum class Kind { kNull, kBool, kNumber, kString, kList, kMap };
  struct Entry {
    std::string key;
    int line = 0;
    ValuePtr value;
  };
  Kind kind = Kind::kNull;
  int line = 0;
  std::string text;  // scalars, as written but unquoted and unescaped
  std::vector<ValuePtr> items;
  std::vector<Entry> entries;  // in the order of the file; every key once
  size_t size = 1;             // values in it, with what aliases repeat counted each time

  const Value* Find(std::string_view key) const;
};

// How much one file may hold. A plain file of the largest size stays below; a bomb of aliases or brackets
// does not.
constexpr size_t kMaxFileBytes = 16 * 1024 * 1024;
constexpr int kMaxDepth = 100;
constexpr size_t kMaxValues = 1'000'000;
constexpr size_t kMaxAliasedValues = 100'000;
constexpr size_t kMaxSyntaxProblems = 100;

struct SyntaxProblem {
  int line = 0;
  std::string message;
};

struct ParsedText {
  std::vector<ValuePtr> documents;  // those that could be read; never null
  std::vector<SyntaxProblem> problems;
};

// What a plain (unquoted) YAML scalar is: YAML 1.2's core schema plus the yes/no/on/off of YAML 1.1, which
// kubectl takes for booleans.
Value::Kind ResolvePlain(std::string_view text);

// All documents of a YAML text. After a syntax error reading goes on at the next "---".
ParsedText ParseYaml(std::string_view text);

// JSON values one after the other. Stops at the first syntax error.
ParsedText ParseJson(std::string_view text);

// Any of the two, by what the text begins with and, where that leaves it open, by the file's ending. Rejects
// what is not UTF-8 text.
ParsedText ParseText(std::string_view text, std::string_view file_name);

}  // namespace fairway::api
