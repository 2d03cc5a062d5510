#include "cli/config_file.h"

#include "api/endpoint_picker_config.h"

namespace fairway::cli {

std::shared_ptr<const scheduling::Config> ReadConfigFile(const std::string& path,
                                                         std::vector<api::Problem>& problems) {
  const auto document = api::LoadEndpointPickerConfig(path);
  problems.insert(problems.end(), document.problems.begin(), document.problems.end());
  if (!document.ok()) return nullptr;
  api::ProblemList list(path, problems);
  scheduling::CompileOptions options;
  options.allow_experimental = true;
  return scheduling::Compile(scheduling::FromDocument(document.config), list, options);
}

}  // namespace fairway::cli
