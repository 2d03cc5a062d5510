// `fairway up`: manifests served on this machine, through a real Envoy.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace fairway::cli {

// Adds the subcommand; see commands.h for `run`.
void AddUpCommand(CLI::App& app, std::function<int()>& run);

}  // namespace fairway::cli
