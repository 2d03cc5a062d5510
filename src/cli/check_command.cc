#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "api/load.h"
#include "api/manifests.h"
#include "api/summary.h"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "frontends/local/patterns.h"

namespace fairway::cli {

int Check(const std::vector<std::string>& files) {
  const api::LoadResult loaded = api::LoadManifests(files, {.check_pattern = local::CheckPattern});
  size_t errors = 0, warnings = 0;
  for (const auto& problem : loaded.problems) {
    std::fprintf(stderr, "%s\n", api::ToString(problem).c_str());
    ++(problem.severity == api::Severity::kError ? errors : warnings);
  }
  if (errors > 0) {
    std::fprintf(stderr, "%zu error%s, %zu warning%s: nothing would be served.\n", errors,
                 errors == 1 ? "" : "s", warnings, warnings == 1 ? "" : "s");
    return kExitInput;
  }
  std::fputs(api::Summarize(loaded.manifests).c_str(), stdout);
  return kExitOk;
}

void AddCheckCommand(CLI::App& app, std::function<int()>& run) {
  auto* command = app.add_subcommand("check", "Check manifests and print what would be served");
  auto files = std::make_shared<std::vector<std::string>>();
  command->add_option("-f,--file,files", *files, "Manifest files or folders, or - for standard input")
      ->required();
  command->footer(
      "Every problem of every file is reported with file, line, field and what would be right.\n"
      "Exit code: 0 no errors, 1 errors, 2 wrong flags.\n\n"
      "Examples:\n"
      "  fairway check -f examples/intro-fixed\n"
      "  fairway check -f pool.yaml -f route.yaml\n"
      "  kubectl get inferencepools,httproutes -o yaml | fairway check -f -");
  command->callback([files, &run] { run = [files] { return Check(*files); }; });
}

}  // namespace fairway::cli
