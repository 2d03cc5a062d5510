#include "api/picker_settings.h"

#include "api/endpoint_picker_config.h"
#include "api/text_rules.h"

namespace fairway::api {
namespace {

constexpr double kUnreached = 1e9;  // keeps sums finite

std::vector<Setting> OfDecisions(PickerSettings& s) {
  return {
      {.flag = "--config-file",
       .field = "configFile",
       .value = &s.config_file,
       .path = true,
       .help = "EndpointPickerConfig that decides instead of the built-in profiles; watched while running"},
      {.flag = "--config-text",
       .field = "configText",
       .value = &s.config_text,
       .map = true,
       .help = "The same, as text"},
      {.flag = "--config-dir",
       .field = "configDir",
       .value = &s.config_directory,
       .path = true,
       .help = "Folder with an EndpointPickerConfig NAMESPACE.POOL.yaml for each pool that shall have one of "
               "its own; watched while running"},
      {.flag = "--shadow-config-file",
       .field = "shadowConfigFile",
       .value = &s.shadow_config_file,
       .path = true,
       .help = "EndpointPickerConfig that decides too, without any effect: how often and how it differs is "
               "counted (fairway_shadow_*); watched while running"},
      {.flag = "--allow-experimental-plugins",
       .field = "allowExperimentalPlugins",
       .value = &s.allow_experimental_plugins,
       .help = "Allow plugins that the reference calls Alpha"},
      {.flag = "--feature-gates",
       .field = "featureGates",
       .value = &s.feature_gates,
       .rule = CheckFeatureGate,
       .help = "As in a config's featureGates: name or name=false"},
      {.flag = "--max-endpoints",
       .field = "maxEndpoints",
       .value = &s.max_endpoints,
       .min = 1,
       .max = 8,
       .help = "First choice and fallbacks that the gateway gets"},
      {.flag = "--load-source",
       .field = "loadSource",
       .value = &s.load_source,
       .words = {"ledger", "page"},
       .help = "What load decisions see: the ledger of own requests and pages, or pages alone (to compare)"},
      {.flag = "--lora-exploration",
       .field = "loraExploration",
       .value = &s.lora_exploration,
       .max = 1,
       .help = "Share of picks that load an adapter on a further endpoint"},
      {.flag = "--critical-queue-limit",
       .field = "criticalQueueLimit",
       .value = &s.critical_queue_limit,
       .max = kUnreached,
       .help = "Critical requests prefer endpoints with a shorter queue"},
      {.flag = "--sheddable-queue-limit",
       .field = "sheddableQueueLimit",
       .value = &s.sheddable_queue_limit,
       .max = kUnreached,
       .help = "What may be shed needs an endpoint with a shorter queue"},
      {.flag = "--sheddable-kv-limit",
       .field = "sheddableKvLimit",
       .value = &s.sheddable_kv_limit,
       .max = 1,
       .help = "... and with less of its KV cache in use"},
      {.flag = "--sheddable-work-limit",
       .field = "sheddableWorkLimit",
       .value = &s.sheddable_work_limit,
       .max = kUnreached,
       .help = "... and less work ahead, in ms, where as many wait by the ledger"},
      {.flag = "--seed",
       .field = "seed",
       .value = &s.seed,
       .help = "Seed of every random choice; 0 takes one from the system"},
  };
}

// Named as the reference's.
std::vector<Setting> OfPages(PickerSettings& s, std::string_view interval_flag) {
  return {
      {.flag = interval_flag,
       .field = "scrapeInterval",
       .value = &s.scrape_interval,
       .help = "How often each endpoint's metrics page is read; auto: as often as placement needs (400ms, "
               "and a third as often where nothing happens)"},
      {.flag = "--scrape-timeout",
       .field = "scrapeTimeout",
       .value = &s.scrape_timeout,
       .help = "The longest that one metrics page may take"},
      {.flag = "--model-server-metrics-path",
       .field = "metricsPath",
       .value = &s.page_path,
       .rule = CheckMetricsPath,
       .otherwise = "the engine's, /metrics for most",
       .help = "Path of the metrics page of all endpoints that do not say their own"},
      {.flag = "--model-server-metrics-scheme",
       .field = "metricsScheme",
       .value = &s.page_scheme,
       .rule = CheckMetricsScheme,
       .otherwise = "http",
       .help = "http or https for them"},
      {.flag = "--model-server-metrics-port",
       .field = "metricsPort",
       .value = &s.page_port,
       .otherwise = "0, the endpoint's own",
       .help = "Their port"},
      {.flag = "--model-server-metrics-ca-file",
       .field = "metricsCaFile",
       .value = &s.page_ca_file,
       .path = true,
       .help = "PEM file of who signs the certificates of https pages"},
      {.flag = "--model-server-metrics-server-name",
       .field = "metricsServerName",
       .value = &s.page_server_name,
       .otherwise = "the endpoint's address",
       .help = "The name that these certificates must be for"},
      {.flag = "--model-server-metrics-https-insecure-skip-verify",
       .field = "metricsInsecureSkipVerify",
       .value = &s.page_unverified,
       .otherwise = "true without a CA file",
       .help = "Take any certificate; false without a CA file: of the system's authorities"},
      {.flag = "--answer-load",
       .field = "answerLoad",
       .value = &s.answer_load,
       .help =
           "Ask engines to tell queue and KV use with each answer (endpoint-load-metrics), for configs that "
           "score by those of the pages"},
  };
}

std::vector<Setting> OfTelling(PickerSettings& s) {
  return {
      {.flag = "--explain",
       .field = "explain",
       .value = &s.explain,
       .help = "Print each decision to standard output: candidates, filters, scores, the choice"},
      {.flag = "--debug-decisions",
       .field = "debugDecisions",
       .value = &s.debug_decisions,
       .max = 10'000,
       .help = "Keep the last so many decisions for /debug/decisions on the admin port, such as 256; 0 keeps "
               "none"},
      {.flag = "--record",
       .field = "record",
       .value = &s.record_file,
       .path = true,
       .help = "Write each decision to this file, for `fairway replay --from-decisions`; once it is full it "
               "becomes FILE.1"},
      {.flag = "--record-max-bytes",
       .field = "recordMaxBytes",
       .value = &s.record_max_bytes,
       .min = 0x1p20,
       .max = 0x1p40,
       .bytes = true,
       .help = "Size of each of the two"},
      {.flag = "--metrics-max-bytes",
       .field = "metricsMaxBytes",
       .value = &s.metrics_max_bytes,
       .min = 100'000,
       .max = 1'000'000'000,
       .bytes = true,
       .help = "Bytes that the metrics page may have; names that clients make up get a part of them"},
  };
}

}  // namespace

std::vector<Setting> SettingsOf(PickerSettings& settings, std::string_view interval_flag) {
  std::vector<Setting> all = OfDecisions(settings);
  for (const auto& more : {OfPages(settings, interval_flag), OfTelling(settings)})
    all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace fairway::api
