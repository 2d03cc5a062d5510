// What a picker can be told by flags (`fairway epp`, `fairway up`) and by the configuration of the module
// inside Envoy alike.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/setting.h"
#include "base/clock.h"

namespace fairway::api {

struct PickerSettings {
  bool explain = false;
  uint32_t debug_decisions = 0;  // of /debug/decisions; 0: off
  std::string record_file;       // each decision is written there; "": none is
  uint64_t record_max_bytes = 64u << 20;
  uint32_t metrics_max_bytes = 10'000'000;  // of the metrics page
  uint64_t seed = 0;                        // 0: from the system's entropy

  std::optional<base::Nanos> scrape_interval;  // none: as often as placement needs
  base::Nanos scrape_timeout = base::kSecond;
  // Where metrics pages are whose endpoints do not say it; "" and 0: at their engine's place.
  std::string page_path;
  std::string page_scheme;
  uint16_t page_port = 0;
  std::string page_ca_file;
  std::string page_server_name;
  std::optional<bool> page_unverified;  // nothing: true without a CA file
  bool answer_load = false;             // engines are asked to tell their load with each answer

  // EndpointPickerConfigs.
  std::string config_file;
  std::string config_text;
  std::string config_directory;
  std::string shadow_config_file;
  bool allow_experimental_plugins = false;
  std::vector<std::string> feature_gates;

  uint32_t max_endpoints = 3;
  std::string load_source = "ledger";
  double lora_exploration = 0.001;
  double critical_queue_limit = 50;
  double sheddable_queue_limit = 5;
  double sheddable_kv_limit = 0.8;
  double sheddable_work_limit = 700;  // ms
};

// `interval_flag`: the name of the flag of scrape_interval, which is the reference's in one command.
std::vector<Setting> SettingsOf(PickerSettings& settings,
                                std::string_view interval_flag = "--scrape-interval");

}  // namespace fairway::api
