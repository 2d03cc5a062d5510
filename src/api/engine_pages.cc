#include "api/engine_pages.h"

#include <algorithm>

#include "base/strings.h"

namespace fairway::api {

base::Result<MetricSpec> ParseMetricSpec(std::string_view text) {
  const auto fail = [&](std::string_view why) {
    return base::Fail(base::ErrorCode::kInvalidArgument, "metric \"" + std::string(text) +
                                                             "\": " + std::string(why) +
                                                             "; expected name or name{label=value,...}");
  };
  MetricSpec spec;
  std::string_view rest = base::Trim(text);
  const size_t brace = rest.find('{');
  spec.name = base::Trim(rest.substr(0, brace));
  if (spec.name.empty()) return fail("no name");
  if (spec.name.find_first_of(" \t\r\n\"=,}#") != std::string::npos) return fail("not a metric name");
  if (brace == std::string_view::npos) return spec;
  rest.remove_prefix(brace + 1);
  if (rest.empty() || rest.back() != '}') return fail("the closing } is missing");
  rest.remove_suffix(1);
  if (base::Trim(rest).empty()) return spec;
  for (std::string_view piece : base::Split(rest, ',')) {
    const size_t equals = piece.find('=');
    if (equals == std::string_view::npos) return fail("a label without =");
    const std::string_view name = base::Trim(piece.substr(0, equals));
    std::string_view value = base::Trim(piece.substr(equals + 1));
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"')
      value = value.substr(1, value.size() - 2);
    if (name.empty()) return fail("a label without a name");
    if (value.find('"') != std::string_view::npos) return fail("a quote inside a value");
    spec.labels.emplace_back(name, value);
  }
  return spec;
}

std::string ToString(const MetricSpec& spec) {
  if (spec.labels.empty()) return spec.name;
  std::vector<std::string> labels;
  labels.reserve(spec.labels.size());
  for (const auto& [name, value] : spec.labels) labels.emplace_back(name).append("=").append(value);
  return spec.name + "{" + base::Join(labels, ",") + "}";
}

std::vector<std::string> AttributesOf(const EnginePages& pages) {
  std::vector<std::string> keys;
  for (const EnginePage& engine : pages.engines) {
    for (const auto& custom : engine.custom) {
      if (std::find(keys.begin(), keys.end(), custom.key) == keys.end()) keys.push_back(custom.key);
    }
  }
  return keys;
}

std::string MetricsOf(const EnginePages& pages, std::string_view attribute) {
  std::vector<std::string> metrics;
  for (const EnginePage& engine : pages.engines) {
    for (const auto& custom : engine.custom) {
      if (custom.key == attribute) metrics.push_back(ToString(custom.metric) + " (" + engine.name + ")");
    }
  }
  return base::Join(metrics, ", ");
}

}  // namespace fairway::api
