// The /metrics page of a simulated server: vLLM's names, types, labels and order, as its Python client
// library writes them. Or SGLang's, of which those that a picker reads are there.
#pragma once

#include <string>

#include "base/clock.h"
#include "simulator/engine.h"
#include "simulator/faults.h"

namespace fairway::simulator {

struct MetricsPageInput {
  const Engine& engine;
  const PinnedMetrics& pin;
  std::string model;
  bool legacy_names = false;  // also vllm:gpu_cache_usage_perc and the other names dropped after 0.10
  base::Nanos now = 0;        // the engine's time ...
  double unix_now = 0;        // ... and the wall clock's at that moment, seconds
  double unix_start = 0;      // for the _created series
};

// Pure. About 20 KB.
std::string RenderMetricsPage(const MetricsPageInput& input);

// As SGLang shows itself: its page, and what its /v1/loads answers. Before the first step that is all 0.
std::string RenderSglangPage(const MetricsPageInput& input);
std::string RenderSglangLoads(const MetricsPageInput& input);

}  // namespace fairway::simulator
