// fairway: parse the command line, run one subcommand, return its exit code.
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/exit_codes.h"
#include "cli/sim_command.h"
#include "cli/up_command.h"

namespace {

// From the last to the first, as CLI11 takes them. "--name=" is an empty value, as with Go's flags, where
// CLI11 would take the next argument for it.
std::vector<std::string> Arguments(int argc, char** argv) {
  std::vector<std::string> all;
  bool flags = true;
  for (int i = 1; i < argc; ++i) {
    std::string one = argv[i];
    if (one == "--") flags = false;
    if (flags && one.starts_with("--") && one.find('=') == one.size() - 1) {
      one.pop_back();
      all.push_back(std::move(one));
      all.emplace_back();
    } else {
      all.push_back(std::move(one));
    }
  }
  std::reverse(all.begin(), all.end());
  return all;
}

// CLI11 takes an empty text for 0, and of other texts says that it "could not convert" them.
void CheckNumbers(CLI::App& command) {
  for (CLI::Option* option : command.get_options()) {
    const std::string type = option->get_type_name();
    if (type.starts_with("FLOAT") || type.starts_with("INT"))
      option->check([](const std::string& text) { return text.empty() ? "want a number" : ""; }, "");
    if (!type.starts_with("UINT")) continue;
    const bool port = option->get_name().find("port") != std::string::npos;
    option->check(
        [port](const std::string& text) -> std::string {
          const auto number = fairway::base::ParseInteger<uint64_t>(text);
          if (number && (!port || *number <= 65535)) return "";
          return "want a whole number from 0 " + std::string(port ? "to 65535" : "on") + ", got \"" + text +
                 "\"";
        },
        "");
  }
}

// Of an argument without a flag, where a newcomer may expect one to do. "": none.
std::string AdviceFor(const std::string& command, const std::string& argument) {
  if (argument.starts_with("-")) return "";
  if (command == "replay")
    return "say what " + argument + " is: --workload " + argument + " runs it, --from-decisions " + argument +
           " asks recorded decisions again";
  if (command == "explain") return "say what " + argument + " is: --fleet " + argument + " asks it again";
  if (command == "print" || (command == "config" && argument.find_first_of("./") != std::string::npos))
    return "a config is printed by: config print --config-file " + argument;
  if (command == "epp" || command == "up") return "manifests are given by -f: -f " + argument;
  return "";
}

// "did you mean --grpc-port?" for the first argument that nobody knows; "" where no name is near.
std::string Hint(const CLI::App& app) {
  const CLI::App* command = &app;
  while (!command->get_subcommands().empty()) command = command->get_subcommands().front();
  std::vector<std::string> names;
  for (const CLI::Option* option : command->get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  for (const CLI::App* below : command->get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(below->get_name());
  for (const std::string& text : app.remaining(true)) {
    if (const std::string advice = AdviceFor(command->get_name(), text); !advice.empty()) return advice;
    if (const auto near = fairway::base::Nearest(text.substr(0, text.find('=')), names))
      return "did you mean " + *near + "?";
  }
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  // Bodies of some 100 KB come and go with each request: without these glibc maps and unmaps each one, page
  // by page.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  std::signal(SIGPIPE, SIG_IGN);  // a peer that is gone is an error of one write, not the end of the process

  CLI::App app{"Fairway picks, for every LLM request, the model server that will answer it soonest.",
               "fairway"};
  app.require_subcommand(1);
  // As Go's flags: given twice, the last one holds, and lists go on. Charts put their own flags after or
  // before those that their users add. Subcommands inherit it, so it is said before they are made.
  app.option_defaults()->take_last();
  app.set_version_flag("--version", "fairway " FAIRWAY_VERSION);
  app.footer(
      "Examples:\n"
      "  fairway up -f examples/intro-fixed        serve manifests on this machine through a real Envoy\n"
      "  fairway up --endpoint 127.0.0.1:8000      serve model servers with no manifest at all\n"
      "  fairway epp -f manifests/                 the endpoint picker alone, for a gateway with ext_proc\n"
      "  fairway sim --listen 127.0.0.1:8000       a simulated model server\n"
      "  fairway check -f manifests/               find mistakes before they are served\n\n"
      "Exit codes: 0 done; 1 a manifest has errors; 2 wrong flags; 3 could not start; 4 stopped by a "
      "failure.");
  std::function<int()> run;
  fairway::cli::AddEppCommand(app, run);
  fairway::cli::AddUpCommand(app, run);
  fairway::cli::AddSimCommand(app, run);
  fairway::cli::AddExplainCommand(app, run);
  fairway::cli::AddReplayCommand(app, run);
  fairway::cli::AddCheckCommand(app, run);
  fairway::cli::AddConfigCommand(app, run);
  fairway::cli::AddReferenceCommand(app, run);
  fairway::cli::AddVersionCommand(app, run);
  for (CLI::App* command : app.get_subcommands({})) CheckNumbers(*command);
  try {
    app.parse(Arguments(argc, argv));
  } catch (const CLI::Success& e) {
    return app.exit(e);  // --help, --version
  } catch (const CLI::ParseError& e) {
    if (dynamic_cast<const CLI::ExtrasError*>(&e) != nullptr) {
      // Its own text has them from the last to the first.
      fairway::cli::Show(stderr, "not expected: " + fairway::base::Join(app.remaining(true), " ") +
                                     "\nRun with --help for more information.\n");
    } else {
      app.exit(e);
    }
    if (const std::string hint = Hint(app); !hint.empty()) fairway::cli::Show(stderr, hint + "\n");
    return fairway::cli::kExitUsage;
  }
  try {
    return run();
  } catch (const std::exception& e) {
    fairway::cli::Show(stderr, std::string("fairway: ") + e.what() + "\n");
    return fairway::cli::kExitFailure;
  }
}
