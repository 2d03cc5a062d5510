// Plugins for tests: one made as a config makes it, and hand-made columns for it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <initializer_list>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/value.h"
#include "base/random.h"
#include "scheduling/config.h"

namespace fairway::tests {

using NumberList = std::initializer_list<std::pair<std::string_view, double>>;

inline scheduling::PluginSpec Spec(std::string_view type, NumberList values = {}) {
  return {.type = std::string(type),
          .name = std::string(type),
          .parameters = scheduling::Numbers(values),
          .line = 1};
}

// With parameters as YAML: "{headerName: x}".
inline scheduling::PluginSpec Parsed(std::string_view type, std::string_view name,
                                     std::string_view parameters) {
  const auto text = api::ParseYaml(parameters);
  return {
      .type = std::string(type), .name = std::string(name), .parameters = text.documents.at(0), .line = 1};
}

// The config; fails the test where it has an error, or a warning and `warnings` is null.
inline std::shared_ptr<const scheduling::Config> Compiled(const scheduling::ConfigSpec& spec,
                                                          const scheduling::CompileOptions& options = {},
                                                          std::vector<std::string>* warnings = nullptr) {
  std::vector<api::Problem> found;
  api::ProblemList problems("test.yaml", found);
  auto config = scheduling::Compile(spec, problems, options);
  for (const api::Problem& problem : found) {
    if (warnings != nullptr && problem.severity == api::Severity::kWarning) {
      warnings->push_back(api::ToString(problem));
    } else {
      ADD_FAILURE() << api::ToString(problem);
    }
  }
  return config;
}
// What is wrong with it.
inline std::vector<std::string> ProblemsOf(const scheduling::ConfigSpec& spec,
                                           const scheduling::CompileOptions& options = {}) {
  std::vector<api::Problem> found;
  api::ProblemList problems("test.yaml", found);
  scheduling::Compile(spec, problems, options);
  std::vector<std::string> texts;
  for (const api::Problem& problem : found) texts.push_back(api::ToString(problem));
  return texts;
}

// A config of one profile for all pools.
inline scheduling::ConfigSpec OneProfile(std::vector<scheduling::PluginSpec> plugins,
                                         std::vector<scheduling::ProfileSpec::Step> steps) {
  return {.plugins = std::move(plugins), .profiles = {{.name = "test", .steps = std::move(steps)}}};
}

// Columns by name, all of `n` candidates and zero at first.
class Candidates {
 public:
  explicit Candidates(size_t n) : all(n) { std::iota(all.begin(), all.end(), 0u); }

  std::vector<float>& operator[](const std::string& column) {
    auto& values = columns_[column];
    values.resize(all.size());
    return values;
  }

  // Calls f(context, instance) with the plugin and what it reads.
  template <typename F>
  auto With(std::string_view type, NumberList parameters, F f) {
    return With(Spec(type, parameters), f);
  }
  template <typename F>
  auto With(const scheduling::PluginSpec& spec, F f) {
    std::vector<scheduling::PluginSpec> plugins = others;
    plugins.push_back(spec);
    const auto config = Compiled(
        {.plugins = plugins}, {.more_types = {}, .states = &states, .allow_experimental = true}, &warnings);
    const auto made = Columns(*config);
    std::vector<const float*> table;
    for (const auto& column : made) table.push_back(column.data());
    scheduling::Columns columns(all, table.data());
    scheduling::Facts asked = request;
    asked.headers.assign(headers.begin(), headers.end());
    const auto instance = std::find_if(config->plugins.begin(), config->plugins.end(),
                                       [&](const auto& plugin) { return plugin->name == spec.name; });
    std::vector<std::shared_ptr<void>> worker;
    for (const auto make : config->per_worker) worker.push_back(make());
    const std::vector<uint32_t> own(all.size());
    return f(
        scheduling::Context{columns, asked, random, critical_traffic, own, worker, {}, now, "test", peer},
        **instance);
  }
  std::vector<uint32_t> Keep(std::string_view type, NumberList parameters = {}) {
    return Keep(Spec(type, parameters));
  }
  std::vector<uint32_t> Keep(std::string_view type, const char* parameters) {
    return Keep(Parsed(type, type, parameters));
  }
  std::vector<uint32_t> Keep(const scheduling::PluginSpec& spec) {
    return With(spec, [&](const auto& context, const auto& plugin) {
      std::vector<uint32_t> out(all.size());
      out.resize(plugin.filter->Apply(context, all, out.data()));
      return out;
    });
  }
  std::vector<float> Scores(std::string_view type, NumberList parameters = {}) {
    return Scores(Spec(type, parameters));
  }
  std::vector<float> Scores(std::string_view type, const char* parameters) {
    return Scores(Parsed(type, type, parameters));
  }
  std::vector<float> Scores(const scheduling::PluginSpec& spec) {
    return With(spec, [&](const auto& context, const auto& plugin) {
      std::vector<float> out(all.size());
      plugin.scorer->Score(context, all, out.data());
      return out;
    });
  }

  std::vector<uint32_t> all;
  scheduling::Facts request;
  base::Random random{5};
  bool critical_traffic = true;
  base::Nanos now = base::kSecond;
  std::optional<uint32_t> peer;
  std::map<std::string, std::string> headers;  // of the request
  std::vector<fleet::Endpoint> endpoints;      // what snapshot columns are made of; empty: hand-made
  std::vector<scheduling::PluginSpec> others;  // in the same config
  std::vector<std::string> warnings;           // of all compilations
  scheduling::States states;                   // what plugins remember from one call to the next

  const std::map<std::string, std::vector<float>>& columns() const { return columns_; }

  // An endpoint with these labels, one for each candidate.
  void Label(std::vector<std::map<std::string, std::string>> labels) {
    endpoints.clear();
    for (auto& of : labels) {
      fleet::Endpoint endpoint;
      endpoint.name = "pod-" + std::to_string(endpoints.size());
      endpoint.namespace_name = "default";
      endpoint.host = "10.0.0." + std::to_string(endpoints.size() + 1);
      endpoint.port = 8000;
      endpoint.address = endpoint.host + ":8000";
      endpoint.id = "default/" + endpoint.name;
      endpoint.labels = std::move(of);
      endpoints.push_back(std::move(endpoint));
    }
  }

 private:
  // By Column::id, with what may be read behind the end.
  std::vector<std::vector<float>> Columns(const scheduling::Config& config) {
    std::vector<std::vector<float>> made;
    for (const auto& column : config.columns) {
      const auto given = columns_.find(column.name);
      made.push_back(given != columns_.end() ? given->second : std::vector<float>());
      made.back().resize(all.size() + 4);
    }
    for (const auto& [column, producer] : config.endpoint_columns) {
      for (size_t i = 0; i < endpoints.size(); ++i)
        made[column.id][i] = producer->Value(column, endpoints[i]);
    }
    for (const auto& [column, value] : config.absent_columns) {
      if (!columns_.contains(config.columns[column.id].name))
        std::fill(made[column.id].begin(), made[column.id].end(), value);
    }
    return made;
  }

  std::map<std::string, std::vector<float>> columns_;
};

}  // namespace fairway::tests
