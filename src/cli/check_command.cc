#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "api/load.h"
#include "api/manifests.h"
#include "api/summary.h"
#include "cli/commands.h"
#include "cli/config_file.h"
#include "cli/console.h"
#include "cli/exit_codes.h"
#include "frontends/local/patterns.h"

namespace fairway::cli {

namespace {

struct Counts {
  size_t errors = 0;
  size_t warnings = 0;
};

void Print(const std::vector<api::Problem>& problems, Counts& counts) {
  for (const auto& problem : problems) {
    Show(stderr, api::ToString(problem) + "\n");
    ++(problem.severity == api::Severity::kError ? counts.errors : counts.warnings);
  }
}

// gRPC is HTTP/2, which servers have to be told to speak by their pool.
std::vector<api::Problem> PoolsWithoutHttp2(const api::Manifests& manifests) {
  std::vector<api::Problem> problems;
  for (const api::InferencePool& pool : manifests.pools) {
    if (pool.app_protocol == api::AppProtocol::kH2c) continue;
    problems.push_back(
        {.severity = api::Severity::kWarning,
         .where = pool.meta.where,
         .object = "InferencePool " + Key(pool.meta),
         .field = "spec.appProtocol",
         .message = "is http, and the config's vllmgrpc-parser reads gRPC: want kubernetes.io/h2c"});
  }
  return problems;
}

int Check(const std::vector<std::string>& files, const picker::ConfigOptions& config) {
  Counts counts;
  std::string summary;
  api::Manifests manifests;
  if (!files.empty()) {
    api::LoadResult loaded = api::LoadManifests(files, {.check_pattern = local::CheckPattern});
    Print(loaded.problems, counts);
    summary = api::Summarize(loaded.manifests);
    manifests = std::move(loaded.manifests);
  }
  if (config.given()) {
    std::vector<api::Problem> problems;
    payload::Parsers read;
    summary += PrintConfigs(config, problems, &read);
    Print(problems, counts);
    if (read.Has(payload::Parser::kVllmGrpc)) Print(PoolsWithoutHttp2(manifests), counts);
  }
  if (counts.errors > 0) {
    std::fprintf(stderr, "%zu error%s, %zu warning%s: nothing would be served.\n", counts.errors,
                 counts.errors == 1 ? "" : "s", counts.warnings, counts.warnings == 1 ? "" : "s");
    return kExitInput;
  }
  Show(stdout, summary);
  return kExitOk;
}

}  // namespace

void AddCheckCommand(CLI::App& app, std::function<int()>& run) {
  auto* command = app.add_subcommand("check", "Check manifests and print what would be served");
  auto files = std::make_shared<std::vector<std::string>>();
  auto config = std::make_shared<picker::ConfigOptions>();
  command->add_option("-f,--file,files", *files, "Manifest files or folders, or - for standard input");
  AddConfigFlags(*command, *config);
  command->footer(
      "Every problem of every file is reported with file, line, field and what would be right. A config is "
      "printed as it decides,\nas `fairway config print` does.\n"
      "Exit code: 0 no errors, 1 errors, 2 wrong flags.\n\n"
      "Examples:\n"
      "  fairway check -f examples/intro-fixed\n"
      "  fairway check -f pool.yaml -f route.yaml\n"
      "  fairway check --config-file examples/endpoint-picker-config/pd-epp-config.yaml\n"
      "  kubectl get inferencepools,httproutes -o yaml | fairway check -f -");
  command->callback([files, config, &run] {
    if (files->empty() && !config->given())
      throw CLI::RequiredError("-f, --config-file, --config-text or --config-dir");
    run = [files, config] { return Check(*files, *config); };
  });
}

}  // namespace fairway::cli
