// A character's bytes.
#pragma once

#include <cstdint>
#include <string>

namespace fairway::base {

// The UTF-8 of a code point: 1 to 4 bytes, so no allocation. REQUIRES: below 0x110000 and no surrogate.
std::string Utf8Of(uint32_t code);

}  // namespace fairway::base
