// The metric families of a Scraper, by the names that its header lists.
#pragma once

#include <string_view>

#include "base/metrics.h"

namespace fairway::sources::scrape {

// The reference's names of its plugins, which are the values of its labels.
inline constexpr std::string_view kSourceType = "metrics-data-source";
inline constexpr std::string_view kExtractorType = "core-metrics-extractor";

// The metrics. The page may be rendered on another thread and after the scraper is gone, so it holds what it
// needs.
struct Meters {
  explicit Meters(base::Registry& registry)
      : scrapes(registry.AddCounter({.name = "fairway_scrapes_total",
                                     .help = "Metrics pages of model servers that were taken over.",
                                     .labels = {"pool"}})),
        errors(registry.AddCounter({.name = "fairway_scrape_errors_total",
                                    .help = "Metrics pages of model servers that failed, by kind.",
                                    .labels = {"pool", "kind"}})),
        poll_errors(
            registry
                .AddCounter(
                    {.name = "llm_d_epp_datalayer_poll_errors_total",
                     .help = "[ALPHA] Errors while polling a data source.",
                     .labels = {"source_type"},
                     .twins = {{.name = "llm_d_inference_scheduler_datalayer_poll_errors_total",
                                .help = "[ALPHA] [Deprecated: Use llm_d_epp_datalayer_poll_errors_total] "
                                        "Errors while polling a data source.",
                                .labels = {{"source_type", "source_type"}}}}})
                .With({kSourceType})),
        extract_errors(
            registry
                .AddCounter(
                    {.name = "llm_d_epp_datalayer_extract_errors_total",
                     .help = "[ALPHA] Errors while extracting values from polled data.",
                     .labels = {"source_type", "extractor_type"},
                     .twins = {{.name = "llm_d_inference_scheduler_datalayer_extract_errors_total",
                                .help = "[ALPHA] [Deprecated: Use llm_d_epp_datalayer_extract_errors_total] "
                                        "Errors while extracting values from polled data.",
                                .labels = {{"source_type", "source_type"},
                                           {"extractor_type", "extractor_type"}}}}})
                .With({kSourceType, kExtractorType})),
        age(registry.AddGauge({.name = "fairway_scrape_age_seconds",
                               .help = "Age of the oldest last good metrics page among the pool's endpoints.",
                               .labels = {"pool"}})),
        failing(registry.AddGauge(
            {.name = "fairway_scrape_failing_endpoints",
             .help = "Endpoints whose last metrics page failed; they stay in use on their last values.",
             .labels = {"pool"}})),
        unscraped(registry.AddGauge({.name = "fairway_unscraped_endpoints",
                                     .help = "Endpoints that never gave a metrics page.",
                                     .labels = {"pool"}})),
        refusing(registry.AddGauge({.name = "fairway_refusing_endpoints",
                                    .help = "Endpoints whose system refused or reset the last connection, or "
                                            "whose last answers were all 503.",
                                    .labels = {"pool"}})) {}

  base::CounterFamily& scrapes;
  base::CounterFamily& errors;
  base::Counter& poll_errors;
  base::Counter& extract_errors;
  base::GaugeFamily& age;
  base::GaugeFamily& failing;
  base::GaugeFamily& unscraped;
  base::GaugeFamily& refusing;
};

}  // namespace fairway::sources::scrape
