// How the families are called, as the reference has it. For the .cc files of this room only.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/metrics.h"

namespace fairway::routing {

using LabelPairs = std::vector<std::pair<std::string, std::string>>;

// `llm_d_epp_<name>` with its deprecated twin, where `twin` is its name. For request families the bound on
// series is RouterMetrics', which knows what a series costs.
base::MetricOptions Named(const std::string& name, const std::string& help, std::vector<std::string> labels,
                          std::vector<double> buckets = {}, const std::string& twin = "",
                          LabelPairs twin_labels = {});

}  // namespace fairway::routing
