// Flags that `epp` and `up` share, and small readers for their values.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/log.h"
#include "cli/console.h"
#include "cli/picker.h"

namespace CLI {
class App;
}

namespace fairway::cli {

// As the user wrote them; Read* turn them into options and say what is wrong.
struct CommonFlags {
  std::vector<std::string> files;
  std::string log_format = "text";
  std::string log_level = "info";
  bool explain = false;
  size_t debug_decisions = 0;
  std::string record;
  std::string record_max_bytes = "64Mi";
  size_t metrics_max_bytes = 10'000'000;
  uint64_t seed = 0;
  size_t workers = 0;
  std::string scrape_interval = "auto";
  std::string scrape_timeout = "1s";
  // Where model servers' pages are; "" and 0: as the endpoint or its engine has it.
  std::string page_path;
  std::string page_scheme;
  uint16_t page_port = 0;
  std::string page_ca_file;
  std::string page_server_name;
  std::optional<bool> page_unverified;  // nothing: true without a CA file
  picker::ConfigOptions config;         // an EndpointPickerConfig
  uint32_t choices = 3;
  std::string load_source = "ledger";
  double lora_exploration = 0.001;
  float critical_queue_limit = 50;
  float sheddable_queue_limit = 5;
  float sheddable_kv_limit = 0.8f;
  float sheddable_work_limit = 700;
};

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
