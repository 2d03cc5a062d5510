#include <algorithm>

#include "picker/picker.h"

namespace fairway::picker {

ConfigOptions ConfigOf(const api::PickerSettings& settings) {
  return {.file = settings.config_file,
          .text = settings.config_text,
          .directory = settings.config_directory,
          .shadow_file = settings.shadow_config_file,
          .allow_experimental = settings.allow_experimental_plugins,
          .feature_gates = settings.feature_gates};
}

void Apply(const api::PickerSettings& settings, Options& options) {
  options.debug_decisions = settings.debug_decisions;
  options.record_file = settings.record_file;
  options.record_max_bytes = settings.record_max_bytes;
  options.metrics_max_bytes = settings.metrics_max_bytes;
  options.config = ConfigOf(settings);

  // The reference clamps at 50 ms; shorter is possible here.
  auto interval = settings.scrape_interval;
  if (interval) interval = std::max(*interval, base::kMillisecond);
  options.scrape.SetInterval(interval);
  options.scrape.timeout = std::max(settings.scrape_timeout, base::kMillisecond);
  options.scrape.page = {
      .scheme = settings.page_scheme, .path = settings.page_path, .port = settings.page_port};
  options.scrape.ca_file = settings.page_ca_file;
  options.scrape.server_name = settings.page_server_name;
  options.scrape.verification = !settings.page_unverified   ? sources::scrape::Verification::kWithCaFile
                                : *settings.page_unverified ? sources::scrape::Verification::kOff
                                                            : sources::scrape::Verification::kOn;

  options.router.ask_load = settings.answer_load;
  auto& scheduling = options.router.scheduling;
  scheduling.max_choices = settings.max_endpoints;
  if (settings.load_source == "page") scheduling.load_source = scheduling::LoadSource::kPage;
  scheduling.lora_exploration = settings.lora_exploration;
  scheduling.critical_queue_limit = static_cast<float>(settings.critical_queue_limit);
  scheduling.sheddable_queue_limit = static_cast<float>(settings.sheddable_queue_limit);
  scheduling.sheddable_kv_limit = static_cast<float>(settings.sheddable_kv_limit);
  scheduling.sheddable_work_limit = static_cast<float>(settings.sheddable_work_limit);
  // A page may come late by a few intervals and still be fresh.
  scheduling.fresh_for = std::max(base::kSecond, 4 * options.scrape.interval);
}

}  // namespace fairway::picker
