// Numbers, times and choices out of YAML, on top of api's object reader: every mistake is reported with its
// place.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/decode.h"
#include "base/clock.h"

namespace fairway::replay {

// "50ms", "1m30s", or a number of seconds.
std::optional<base::Nanos> ReadTime(const api::Node& node, base::Nanos min = 0,
                                    base::Nanos max = 1000LL * 3600 * base::kSecond);

// What is wrong with a file, one problem a line: "file:line: field: what".
std::string ToText(const std::vector<api::Problem>& problems);

// The whole of a file or a pipe; the error names it. A file of more than `max_bytes` is an error, and so is a
// device, which need not end.
std::optional<std::string> ReadFile(const std::string& path, size_t max_bytes,
                                    std::vector<api::Problem>& problems);

}  // namespace fairway::replay
