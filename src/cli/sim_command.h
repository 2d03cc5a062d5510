// `fairway sim`: simulated model servers in the foreground, until SIGINT or SIGTERM.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace fairway::cli {

// Adds the subcommand. When it is parsed, `run` is set to what does it; its result is the process's exit
// code (exit_codes.h). `run` must outlive the parsing.
void AddSimCommand(CLI::App& app, std::function<int()>& run);

}  // namespace fairway::cli
