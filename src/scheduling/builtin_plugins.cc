// The list of plugins: one declaration and one line each. No static-initialiser registration, so that what is
// linked is what is listed, and nothing runs before main.
#include <array>

#include "base/strings.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {

std::unique_ptr<Filter> MakeCriticalRequestFilter(Parameters&);
std::unique_ptr<Filter> MakeQueueLimitFilter(Parameters&);
std::unique_ptr<Filter> MakeCapacityFilter(Parameters&);
std::unique_ptr<Filter> MakeLoraAffinityFilter(Parameters&);
std::unique_ptr<Filter> MakeLeastQueueFilter(Parameters&);
std::unique_ptr<Filter> MakeLeastKvCacheFilter(Parameters&);
std::unique_ptr<Scorer> MakeQueueScorer(Parameters&);
std::unique_ptr<Scorer> MakeKvCacheUtilizationScorer(Parameters&);
std::unique_ptr<Scorer> MakeLoraAffinityScorer(Parameters&);
std::unique_ptr<Scorer> MakeRunningRequestsScorer(Parameters&);
std::unique_ptr<Scorer> MakeActiveRequestScorer(Parameters&);
std::unique_ptr<Scorer> MakeLmetricScorer(Parameters&);
std::unique_ptr<Scorer> MakeTimeToFirstTokenScorer(Parameters&);
std::unique_ptr<Picker> MakeMaxScorePicker(Parameters&);
std::unique_ptr<Picker> MakeRandomPicker(Parameters&);

std::span<const PluginType<Filter>> BuiltinFilters() {
  static constexpr auto kFilters = std::to_array<PluginType<Filter>>({
      {"critical-request-filter", MakeCriticalRequestFilter},
      {"queue-limit-filter", MakeQueueLimitFilter},
      {"capacity-filter", MakeCapacityFilter},
      {"lora-affinity-filter", MakeLoraAffinityFilter},
      {"least-queue-filter", MakeLeastQueueFilter},
      {"least-kv-cache-filter", MakeLeastKvCacheFilter},
  });
  return kFilters;
}

std::span<const PluginType<Scorer>> BuiltinScorers() {
  static constexpr auto kScorers = std::to_array<PluginType<Scorer>>({
      {"queue-scorer", MakeQueueScorer},
      {"kv-cache-utilization-scorer", MakeKvCacheUtilizationScorer},
      {"lora-affinity-scorer", MakeLoraAffinityScorer},
      {"running-requests-size-scorer", MakeRunningRequestsScorer},
      {"active-request-scorer", MakeActiveRequestScorer},
      {"lmetric-scorer", MakeLmetricScorer},
      {"time-to-first-token-scorer", MakeTimeToFirstTokenScorer},
  });
  return kScorers;
}

std::span<const PluginType<Picker>> BuiltinPickers() {
  static constexpr auto kPickers = std::to_array<PluginType<Picker>>({
      {"max-score-picker", MakeMaxScorePicker},
      {"random-picker", MakeRandomPicker},
  });
  return kPickers;
}

double Parameters::Number(const std::string& name, double default_value, double min, double max) {
  taken_.push_back(name);
  const auto found = values_.find(name);
  if (found == values_.end()) return default_value;
  if (!(found->second >= min && found->second <= max) && problem_.empty()) {
    problem_ = "parameter " + name + " must be from " + std::to_string(min) + " to " + std::to_string(max) +
               ", not " + std::to_string(found->second);
  }
  return found->second;
}

base::Result<void> Parameters::Check(std::string_view type) const {
  std::string problem = problem_;
  for (const auto& [name, value] : values_) {
    if (!problem.empty()) break;
    bool known = false;
    for (const std::string& taken : taken_) known |= taken == name;
    if (known) continue;
    problem = "no parameter " + name;
    if (const auto near = base::Nearest(name, taken_)) problem += "; did you mean " + *near + "?";
  }
  if (problem.empty()) return {};
  return base::Fail(base::ErrorCode::kInvalidArgument, std::string(type) + ": " + problem);
}

namespace {

template <typename Plugin>
base::Result<std::unique_ptr<Plugin>> Make(std::span<const PluginType<Plugin>> types, std::string_view what,
                                           std::string_view type, Parameters& parameters) {
  std::vector<std::string> names;
  names.reserve(types.size());
  for (const auto& entry : types) {
    names.emplace_back(entry.type);
    if (entry.type != type) continue;
    auto plugin = entry.make(parameters);
    if (auto checked = parameters.Check(type); !checked) return tl::make_unexpected(checked.error());
    return plugin;
  }
  std::string message = "no " + std::string(what) + " of type " + std::string(type);
  if (const auto near = base::Nearest(type, names)) {
    message += "; did you mean " + *near + "?";
  } else {
    message += "; there are: " + base::Join(names, ", ");
  }
  return base::Fail(base::ErrorCode::kInvalidArgument, std::move(message));
}

}  // namespace

base::Result<std::unique_ptr<Filter>> MakeFilter(std::string_view type, Parameters parameters) {
  return Make(BuiltinFilters(), "filter", type, parameters);
}
base::Result<std::unique_ptr<Scorer>> MakeScorer(std::string_view type, Parameters parameters) {
  return Make(BuiltinScorers(), "scorer", type, parameters);
}
base::Result<std::unique_ptr<Picker>> MakePicker(std::string_view type, Parameters parameters) {
  return Make(BuiltinPickers(), "picker", type, parameters);
}

}  // namespace fairway::scheduling
