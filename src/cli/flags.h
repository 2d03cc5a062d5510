// Flags that `epp` and `up` share, and small readers for their values.
#pragma once

#include <string>
#include <vector>

#include "api/picker_settings.h"
#include "base/clock.h"
#include "base/log.h"
#include "cli/console.h"
#include "cli/picker.h"

namespace CLI {
class App;
}

namespace fairway::cli {

struct CommonFlags : api::PickerSettings {
  std::vector<std::string> files;
  std::string log_format = "text";
  std::string log_level = "info";
  size_t workers = 0;
};

// A flag for each setting that has one. They outlive the parsing.
void AddFlags(CLI::App& app, const std::vector<api::Setting>& settings);

void AddCommonFlags(CLI::App& app, CommonFlags& flags, const std::string& interval_flag);

// Adds a flag that holds a duration in Go's syntax; parsing fails on anything else.
void AddDuration(CLI::App& app, const std::string& name, std::string& value, const std::string& help);
// REQUIRES: checked by AddDuration.
base::Nanos Duration(const std::string& text);

base::LogFormat Format(const CommonFlags& flags);
base::LogLevel Level(const CommonFlags& flags);
// Everything but ports and certificates. The console outlives what is made with them.
PickerOptions MakePickerOptions(const CommonFlags& flags, Console& console);

}  // namespace fairway::cli
