// How metrics pages of model servers are read where a config says it: the parameters of the reference's
// core-metrics-extractor.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace fairway::api {

// A family and the labels that a series of it must have.
struct MetricSpec {
  std::string name;
  std::vector<std::pair<std::string, std::string>> labels;
  bool operator==(const MetricSpec&) const = default;
};

// `name` or `name{label=value,...}`, quotes around values optional.
base::Result<MetricSpec> ParseMetricSpec(std::string_view text);

// Engines whose pages are known without a word of any config (sources/scrape).
inline constexpr std::array<std::string_view, 5> kKnownEngines{"vllm", "sglang", "trtllm-serve",
                                                               "triton-tensorrt-llm", "triton"};

// One engine's page. What is not said is as it is known of the engine of this name, or not there.
struct EnginePage {
  static constexpr size_t kMaxCustom = 16;

  std::string name;
  std::optional<MetricSpec> queued, running, kv_usage, lora, cache_info, block_size, num_blocks;
  std::string block_size_label, num_blocks_label;  // of cache_info
  // Further numbers, by names of the config's.
  struct Custom {
    std::string key;
    MetricSpec metric;
    bool operator==(const Custom&) const = default;
  };
  std::vector<Custom> custom;  // at most kMaxCustom, of different keys
  bool operator==(const EnginePage&) const = default;
};

// As ParseMetricSpec reads it.
std::string ToString(const MetricSpec& spec);

struct EnginePages {
  std::string label;           // of an endpoint, that names its engine
  std::string default_engine;  // of endpoints without it
  std::vector<EnginePage> engines;
  bool operator==(const EnginePages&) const = default;
};

// Keys of all engines' custom metrics, different ones, in their order.
std::vector<std::string> AttributesOf(const EnginePages& pages);
// The custom metrics of this key: "heat{gpu=0} (vllm), my_heat (mine)".
std::string MetricsOf(const EnginePages& pages, std::string_view attribute);

}  // namespace fairway::api
