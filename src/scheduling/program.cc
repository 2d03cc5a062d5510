#include "scheduling/program.h"

#include <utility>

namespace fairway::scheduling {
namespace {

// The built-in programs name built-in plugins with parameters that were checked before: failing is a bug of
// ours.
template <typename T>
T Must(base::Result<T> result) {
  FAIRWAY_CHECK(result.has_value());
  return std::move(*result);
}

Parameters Params(std::map<std::string, double> values) { return Parameters(std::move(values)); }

Parameters RoomParams(const SchedulerOptions& options) {
  return Params(
      {{"queueLimit", options.sheddable_queue_limit}, {"kvCacheLimit", options.sheddable_kv_limit}});
}

}  // namespace

void Scorer::Add(const Context& context, std::span<const uint32_t> in, float weight, float* total,
                 float* score) const noexcept {
  Score(context, in, score);
  for (size_t i = 0; i < in.size(); ++i) total[i] += score[i] * weight;
}

Program MakeCriticalityTree(const SchedulerOptions& options) {
  Program tree;
  tree.name = "criticality-tree";
  const auto add = [&tree](std::string_view type, int on_success, int on_failure,
                           Parameters parameters = {}) {
    tree.nodes.push_back({Must(MakeFilter(type, std::move(parameters))), on_success, on_failure});
  };
  const auto lora = [&options] { return Params({{"exploration", options.lora_exploration}}); };
  add("critical-request-filter", 1, 8);
  //  Critical, some short queues: affinity first, it saves loading an adapter.
  add("queue-limit-filter", 2, 5, Params({{"limit", options.critical_queue_limit}}));
  add("lora-affinity-filter", 3, 3, lora());
  add("least-queue-filter", 4, 4);
  add("least-kv-cache-filter", Program::kPick, Program::kPick);
  //  Critical, long queues everywhere: the queue first.
  add("least-queue-filter", 6, 6);
  add("lora-affinity-filter", 7, 7, lora());
  add("least-kv-cache-filter", Program::kPick, Program::kPick);
  //  Not critical: only where there is room.
  add("capacity-filter", 9, Program::kShed, RoomParams(options));
  add("least-queue-filter", 10, 10);
  add("lora-affinity-filter", 11, 11, lora());
  add("least-kv-cache-filter", Program::kPick, Program::kPick);
  tree.nodes[8].limits_fallbacks = true;
  tree.picker = Must(MakePicker("random-picker"));
  return tree;
}

Program MakeDefaultProfile(const SchedulerOptions& options) {
  Program profile;
  profile.name = "default";
  profile.room = Must(MakeFilter("capacity-filter", RoomParams(options)));
  const auto add = [&profile](std::string_view type, float weight) {
    if (weight != 0) profile.scorers.push_back({Must(MakeScorer(type)), weight});
  };
  add("queue-scorer", options.queue_weight);
  add("kv-cache-utilization-scorer", options.kv_weight);
  add("lora-affinity-scorer", options.lora_weight);
  add("running-requests-size-scorer", options.running_weight);
  profile.scorers_at_once = {.queue_weight = options.queue_weight,
                             .kv_weight = options.kv_weight,
                             .lora_weight = options.lora_weight,
                             .running_weight = options.running_weight};
  profile.picker = Must(MakePicker("max-score-picker"));
  return profile;
}

}  // namespace fairway::scheduling
