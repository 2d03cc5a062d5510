// What `fairway` returns to its caller; `fairway --help` and docs/cli.md say the same.
#pragma once

namespace fairway::cli {

inline constexpr int kExitOk = 0;       // done, or ended by SIGINT or SIGTERM as asked
inline constexpr int kExitInput = 1;    // a manifest has errors
inline constexpr int kExitUsage = 2;    // wrong flags
inline constexpr int kExitStart = 3;    // could not start: port taken, certificate unreadable, no Envoy
inline constexpr int kExitFailure = 4;  // stopped by a failure while serving

}  // namespace fairway::cli
