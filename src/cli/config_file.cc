#include "cli/config_file.h"

#include <CLI/CLI.hpp>
#include <utility>

#include "api/endpoint_picker_config.h"
#include "base/strings.h"

namespace fairway::cli {

std::shared_ptr<const scheduling::Config> ReadConfigFile(const std::string& path,
                                                         std::vector<api::Problem>& problems) {
  picker::ConfigOptions options;
  options.file = path;
  options.allow_experimental = true;
  return picker::LoadConfig(options, problems);
}

void AddConfigFlags(CLI::App& app, picker::ConfigOptions& options) {
  app.add_option("--config-file", options.file, "EndpointPickerConfig, or - for standard input");
  app.add_option("--config-text", options.text, "The same, as text");
  app.add_option(
      "--config-dir", options.directory,
      "Folder with an EndpointPickerConfig NAMESPACE.POOL.yaml for each pool that has one of its own");
  app.add_flag("--allow-experimental-plugins", options.allow_experimental,
               "Allow plugins that the reference calls Alpha");
  app.add_option("--feature-gates", options.feature_gates,
                 "As in a config's featureGates: name or name=false")
      ->delimiter(',');
}

std::string PrintConfigs(const picker::ConfigOptions& options, std::vector<api::Problem>& problems,
                         payload::Parsers* read) {
  std::string printed;
  const auto print = [&](const picker::ConfigOptions& one, const std::string& pool) {
    api::EndpointPickerConfig document;
    const auto config = picker::LoadConfig(one, problems, nullptr, nullptr, &document);
    if (config == nullptr) return;
    if (read != nullptr) *read = payload::Parsers::FromBits(read->bits() | config->parsers.bits());
    if (!printed.empty()) printed += "---\n";
    if (!pool.empty()) printed += "# of pool " + base::CleanText(pool, 3 * pool.size()) + "\n";
    printed += scheduling::PrintConfig(document, *config);
  };
  if (!options.file.empty() || !options.text.empty()) print(options, "");
  if (options.directory.empty()) return printed;
  for (const auto& [pool, path] : picker::PoolConfigFiles(options.directory, options.file, problems)) {
    picker::ConfigOptions one = options;
    one.file = path;
    one.text.clear();
    print(one, pool);
  }
  return printed;
}

}  // namespace fairway::cli
