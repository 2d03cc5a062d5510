// Finding an Envoy on this machine.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace fairway::local {

struct EnvoyBinary {
  std::string path;
  std::string version;  // "1.40.0"
};

// Runs `path --version`, waiting up to 10 s.
base::Result<EnvoyBinary> InspectEnvoy(const std::string& path);

// `wanted` (--envoy) if it is not empty: that one or an error. Else the first on PATH, then the newest that
// tools/get-envoy put into $XDG_CACHE_HOME/fairway (~/.cache/fairway), that is not older than OldestEnvoy().
// The error says where was looked, what was found there, and how to get one. Starts child processes: not for
// a loop's thread.
base::Result<EnvoyBinary> FindEnvoy(const std::string& wanted);

// "1.40": the configuration uses settings that older ones refuse (override_host's selected_host_key).
std::string_view OldestEnvoy();
// Numerically by dots: "1.9" < "1.40".
bool OlderVersion(std::string_view a, std::string_view b);

}  // namespace fairway::local
