// EndpointPickerConfigs for commands that run once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "api/load.h"
#include "picker/config_source.h"
#include "scheduling/config.h"

namespace CLI {
class App;
}

namespace fairway::cli {

// A file, ready to decide with. Null where it has errors, which `problems` gets with its warnings.
// Experimental plugins are allowed: nothing is served by it.
std::shared_ptr<const scheduling::Config> ReadConfigFile(const std::string& path,
                                                         std::vector<api::Problem>& problems);

// The flags that name configs, as `epp` has them.
void AddConfigFlags(CLI::App& app, picker::ConfigOptions& options);

// All configs that the flags name, as they decide (scheduling::PrintConfig). Those that have errors are left
// out; `problems` gets all, warnings, too, and `read` the parsers of all.
std::string PrintConfigs(const picker::ConfigOptions& options, std::vector<api::Problem>& problems,
                         payload::Parsers* read = nullptr);

}  // namespace fairway::cli
