// One function per subcommand: it declares its flags on `app` and, when the user calls it, sets `run` to what
// main calls after parsing; `run` returns the exit code (exit_codes.h). sim_command.h and up_command.h
// declare theirs.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace fairway::cli {

void AddCheckCommand(CLI::App& app, std::function<int()>& run);
void AddConfigCommand(CLI::App& app, std::function<int()>& run);
void AddReferenceCommand(CLI::App& app, std::function<int()>& run);
void AddEppCommand(CLI::App& app, std::function<int()>& run);
void AddExplainCommand(CLI::App& app, std::function<int()>& run);
void AddReplayCommand(CLI::App& app, std::function<int()>& run);
void AddVersionCommand(CLI::App& app, std::function<int()>& run);

}  // namespace fairway::cli
