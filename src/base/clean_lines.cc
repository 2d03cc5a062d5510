#include "base/clean_lines.h"

#include <algorithm>

#include "base/strings.h"

namespace fairway::base {

std::string CleanLines(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (true) {
    const size_t end = std::min(text.find_first_of("\n\t"), text.size());
    out += CleanText(text.substr(0, end), 3 * end);  // U+FFFD may take the place of one byte
    if (end == text.size()) return out;
    out += text[end];
    text.remove_prefix(end + 1);
  }
}

}  // namespace fairway::base
