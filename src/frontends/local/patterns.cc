#include "frontends/local/patterns.h"

#include <re2/re2.h>

namespace fairway::local {

// Envoy's own library with Envoy's options, so that both say the same.
std::string CheckPattern(std::string_view pattern) {
  if (pattern.empty()) return "a regular expression cannot be empty; write .* to match anything";
  const RE2 compiled(re2::StringPiece(pattern.data(), pattern.size()), RE2::Quiet);
  if (compiled.ok()) return "";
  std::string why = "is no regular expression of RE2: " + compiled.error();
  if (compiled.error_code() == RE2::ErrorBadPerlOp) why += " (there is no lookahead or lookbehind in RE2)";
  if (compiled.error_code() == RE2::ErrorBadEscape) why += " (there are no back references in RE2)";
  return why;
}

}  // namespace fairway::local
