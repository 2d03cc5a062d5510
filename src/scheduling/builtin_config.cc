// The profiles that need no file.
#include <array>
#include <cstdio>
#include <utility>

#include "base/result.h"
#include "scheduling/compiler.h"
#include "scheduling/config.h"

namespace fairway::scheduling {

api::ValuePtr Numbers(std::initializer_list<std::pair<std::string_view, double>> values) {
  auto map = std::make_shared<api::Value>();
  map->kind = api::Value::Kind::kMap;
  for (const auto& [name, number] : values) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%.17g", number);
    auto value = std::make_shared<api::Value>();
    value->kind = api::Value::Kind::kNumber;
    value->text = text.data();
    map->entries.push_back({std::string(name), 0, std::move(value)});
  }
  return map;
}

namespace {

// Of the time to first token, in ms: what is beyond it is all alike.
constexpr double kHorizon = 600'000;

// A map and `name: false` in it.
api::ValuePtr WithFalse(const api::Value& map, std::string_view name) {
  auto more = std::make_shared<api::Value>(map);
  auto no = std::make_shared<api::Value>();
  no->kind = api::Value::Kind::kBool;
  no->text = "false";
  more->entries.push_back({std::string(name), 0, std::move(no)});
  return more;
}

class Specs {
 public:
  explicit Specs(ConfigSpec& config) : config_(config) {}
  // Adds a plugin and returns its name.
  std::string operator()(std::string_view type, std::string_view name = "",
                         std::initializer_list<std::pair<std::string_view, double>> values = {}) {
    config_.plugins.push_back({.type = std::string(type),
                               .name = std::string(name.empty() ? type : name),
                               .parameters = Numbers(values)});
    return config_.plugins.back().name;
  }

 private:
  ConfigSpec& config_;
};

ProfileSpec CriticalityTree(const SchedulerOptions& options, Specs& plugin) {
  constexpr int kPick = Program::kPick;
  const std::string critical = plugin("critical-request-filter");
  const std::string short_queue = plugin("queue-limit-filter", "", {{"limit", options.critical_queue_limit}});
  const std::string affinity =
      plugin("lora-affinity-filter", "",
             {{"exploration", options.lora_exploration}, {"loadCost", options.lora_load_cost}});
  // A request more or less in a queue that is known late, and KV use below what makes a cache short, say
  // nothing.
  const std::string queue = plugin("least-queue-filter", "", {{"slack", 1}});
  const std::string cache = plugin("least-kv-cache-filter", "", {{"floor", options.sheddable_kv_limit}});
  return {.name = "criticality-tree",
          // Who is left is equal by the words of the tree; who answers first among them, the ledger knows.
          .steps = {{"time-to-first-token-scorer"}, {"time-to-first-token-picker"}},
          .branches = {
              {critical, 1, 8},
              //  Critical, some short queues: affinity first, it saves loading an adapter.
              {short_queue, 2, 5},
              {affinity, 3, 3},
              {queue, 4, 4},
              {cache, kPick, kPick},
              //  Critical, long queues everywhere: the queue first.
              {queue, 6, 6},
              {affinity, 7, 7},
              {cache, kPick, kPick},
              //  Not critical: only where there is room.
              {"capacity-filter", 9, Program::kShed, true},
              {queue, 10, 10},
              {affinity, 11, 11},
              {cache, kPick, kPick},
          }};
}

ProfileSpec DefaultProfile(const SchedulerOptions& options, Specs& plugin) {
  ProfileSpec profile{.name = std::string(ToString(options.profile)), .room = "capacity-filter"};
  const auto add = [&](std::string_view type, double weight) {
    profile.steps.push_back({plugin(type), weight});
  };
  switch (options.profile) {
    case Profile::kTimeToFirstToken:
      profile.steps = {{"time-to-first-token-scorer"}, {"time-to-first-token-picker"}};
      return profile;
    case Profile::kQueueKvLora:
      add("queue-scorer", 2);
      add("kv-cache-utilization-scorer", 2);
      add("lora-affinity-scorer", 1);
      add("running-requests-size-scorer", 1);
      break;
    case Profile::kActiveRequest:
      add("active-request-scorer", 1);
      break;
    case Profile::kLmetric:
      add("lmetric-scorer", 1);
      break;
  }
  add("max-score-picker", 1);
  return profile;
}

}  // namespace

ConfigSpec BuiltinConfig(const SchedulerOptions& options) {
  ConfigSpec config;
  Specs plugin(config);
  plugin("capacity-filter", "",
         {{"queueLimit", options.sheddable_queue_limit},
          {"kvCacheLimit", options.sheddable_kv_limit},
          {"workLimit", options.sheddable_work_limit}});
  plugin(
      "time-to-first-token-scorer", "",
      {{"requestCost", options.request_cost}, {"loadCost", options.lora_load_cost}, {"horizon", kHorizon}});
  PluginSpec& scorer = config.plugins.back();
  if (!options.prefix_cache) scorer.parameters = WithFalse(*scorer.parameters, "prefixCache");
  plugin("max-score-picker", "time-to-first-token-picker",
         {{"tolerance", options.tolerance / kHorizon},
          {"unseenTolerance", options.unseen_tolerance / kHorizon}});
  if (options.prefix_cache)
    plugin("approx-prefix-cache-producer", "", {{"trustInOthers", options.trust_in_others}});
  config.profiles.push_back(CriticalityTree(options, plugin));
  config.profiles.push_back(DefaultProfile(options, plugin));
  config.with_models = 0;
  config.without_models = 1;
  return config;
}

std::shared_ptr<const Config> CompileBuiltin(const SchedulerOptions& options) {
  std::vector<api::Problem> found;
  api::ProblemList problems("built-in", found);
  auto config = Compile(BuiltinConfig(options), problems);
  // Its plugins are ours, with parameters that CheckOptions looked at: failing is a bug of ours.
  FAIRWAY_CHECK(config != nullptr && found.empty());
  return config;
}

}  // namespace fairway::scheduling
