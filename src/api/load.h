// Loading with more to say than LoadManifests(paths) has.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "api/manifests.h"
#include "api/value.h"
#include "base/result.h"

namespace fairway::api {

// What is wrong with a regular expression of an HTTPRoute, "" when it is good.
using CheckPattern = std::function<std::string(std::string_view)>;

struct LoadOptions {
  // Pipes, devices and standard input are an error instead of being read: for files that are read again.
  bool only_files = false;
  CheckPattern check_pattern = {};   // empty: regular expressions are not looked at
  size_t max_bytes = kMaxFileBytes;  // of one file
};

// The bytes of one file, or of "-", in the time and size that LoadManifests allows itself.
base::Result<std::string> ReadFile(const std::string& path, const LoadOptions& options);

// LoadManifests of manifests.h. At most 16 MiB of a file and 128 MiB of all; a pipe that gives nothing for 5
// s or does not end within 30 s is given up, standard input after 60 s and 10 min.
LoadResult LoadManifests(const std::vector<std::string>& paths, const LoadOptions& options);

// ParseManifests of manifests.h.
LoadResult ParseManifests(std::string_view text, std::string_view file_name,
                          const CheckPattern& check_pattern);

}  // namespace fairway::api
