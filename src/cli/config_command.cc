#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "api/manifests.h"
#include "cli/commands.h"
#include "cli/config_file.h"
#include "cli/console.h"
#include "cli/exit_codes.h"

namespace fairway::cli {
namespace {

int Print(const picker::ConfigOptions& options) {
  std::vector<api::Problem> problems;
  const std::string printed = PrintConfigs(options, problems);
  for (const api::Problem& problem : problems) Show(stderr, api::ToString(problem) + "\n");
  if (api::HasErrors(problems)) return kExitInput;
  Show(stdout, printed);
  return kExitOk;
}

}  // namespace

void AddConfigCommand(CLI::App& app, std::function<int()>& run) {
  auto* command = app.add_subcommand("config", "Print an EndpointPickerConfig as it decides");
  command->require_subcommand(1);
  command->footer("Example: fairway config print --config-file config.yaml");
  auto* print = command->add_subcommand(
      "print", "Print the config with all defaults and all that is filled in; the output is a config again");
  auto options = std::make_shared<picker::ConfigOptions>();
  AddConfigFlags(*print, *options);
  print->footer(
      "Plugins that are filled in and parameters that nobody gave are marked so. Read again, the output "
      "decides "
      "as the input does.\n\n"
      "Examples:\n"
      "  fairway config print --config-file examples/endpoint-picker-config/pd-epp-config.yaml\n"
      "  fairway config print --config-text 'apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig'");
  print->callback([options, &run] {
    if (!options->given()) throw CLI::RequiredError("--config-file, --config-text or --config-dir");
    run = [options] { return Print(*options); };
  });
}

}  // namespace fairway::cli
