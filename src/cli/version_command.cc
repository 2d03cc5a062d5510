#include <CLI/CLI.hpp>
#include <cstdio>

#include "cli/commands.h"
#include "cli/exit_codes.h"

namespace fairway::cli {

void AddVersionCommand(CLI::App& app, std::function<int()>& run) {
  auto* command = app.add_subcommand("version", "Print the version");
  command->footer("Example:\n  fairway version");
  command->callback([&run] {
    run = [] {
      std::printf("fairway %s\n", FAIRWAY_VERSION);
      return kExitOk;
    };
  });
}

}  // namespace fairway::cli
