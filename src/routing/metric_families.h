// How the families are called, as the reference has it. For the .cc files of this room only.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/metrics.h"

namespace fairway::routing {

using LabelPairs = std::vector<std::pair<std::string, std::string>>;

// Of families that count prompt tokens. 32778 as the reference has it: dashboards name it.
inline const std::vector<double> kInputTokens{1,     8,      16,     32,     64,     128,   256,
                                              512,   1024,   2048,   4096,   8192,   16384, 32778,
                                              65536, 131072, 262144, 524288, 1048576};

// `llm_d_epp_<name>` with its deprecated twin, where `twin` is its name. For request families the bound on
// series is RouterMetrics', which knows what a series costs.
base::MetricOptions Named(const std::string& name, const std::string& help, std::vector<std::string> labels,
                          std::vector<double> buckets = {}, const std::string& twin = "",
                          LabelPairs twin_labels = {});

}  // namespace fairway::routing
