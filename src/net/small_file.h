// Certificates, keys, tokens: files that are read whole, and whose size somebody else decides.
#pragma once

#include <string>

#include "base/result.h"

namespace fairway::net {

// At most 1 MiB. Never waits: a pipe without a writer reads as empty. The error names the file and the
// reason.
base::Result<std::string> ReadSmallFile(const std::string& path);

}  // namespace fairway::net
