// The labels of a series as a page writes them: `a="x",b="y"}`. For metrics_page.cc and series.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fairway::sources::scrape {

inline bool IsBlank(char c) { return c == ' ' || c == '\t'; }
inline void SkipBlanks(std::string_view& text) {
  while (!text.empty() && IsBlank(text.front())) text.remove_prefix(1);
}

// One label; `raw` still has its escapes. Both point into the page.
struct Label {
  std::string_view name;
  std::string_view raw;
};

enum class LabelStep { kLabel, kEnd, kBad };

// Takes the next label off `text`, which stands after '{' or after the label before. At kEnd `text` stands
// after '}'.
LabelStep NextLabel(std::string_view& text, Label& label);

// The label's text: the page's own bytes where they need no unescaping, else bytes appended to `storage`.
// REQUIRES: `storage` has room for them, so that views into it hold.
std::string_view Plain(std::string_view raw, std::string& storage);

// Is `raw`, unescaped, `wanted`?
bool ValueIs(std::string_view raw, std::string_view wanted);

// The whole of a label's value as a small number. "None", "" and what is no number: nothing.
std::optional<uint32_t> SmallNumber(std::string_view raw);
// vLLM writes "None" until it knows.
bool IsUnknown(std::string_view raw);

}  // namespace fairway::sources::scrape
