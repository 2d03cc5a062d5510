// An EndpointPickerConfig file, ready to decide with: for commands that run once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "api/load.h"
#include "scheduling/config.h"

namespace fairway::cli {

// Null where it has errors, which `problems` gets with its warnings. Experimental plugins are allowed:
// nothing is served by it.
std::shared_ptr<const scheduling::Config> ReadConfigFile(const std::string& path,
                                                         std::vector<api::Problem>& problems);

}  // namespace fairway::cli
