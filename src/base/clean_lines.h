// What is printed, or served as plain text, and has a word from a file, a request or a peer in it.
#pragma once

#include <string>
#include <string_view>

namespace fairway::base {

// CleanText (strings.h) for a text of several lines, as long as it is: newlines and tabs stay, what else a
// terminal would obey becomes U+FFFD.
std::string CleanLines(std::string_view text);

}  // namespace fairway::base
