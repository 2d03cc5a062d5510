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

// Of the time to first token, in ms: what is beyond it is all alike.
constexpr double kHorizon = 600'000;

Parameters Params(std::map<std::string, double> values) { return Parameters(std::move(values)); }

Parameters RoomParams(const SchedulerOptions& options) {
  return Params({{"queueLimit", options.sheddable_queue_limit},
                 {"kvCacheLimit", options.sheddable_kv_limit},
                 {"workLimit", options.sheddable_work_limit}});
}

Parameters TimeParams(const SchedulerOptions& options) {
  return Params(
      {{"requestCost", options.request_cost}, {"loadCost", options.lora_load_cost}, {"horizon", kHorizon}});
}

Parameters PickerParams(const SchedulerOptions& options) {
  return Params({{"tolerance", options.tolerance / kHorizon}});
}

}  // namespace

Program MakeCriticalityTree(const SchedulerOptions& options) {
  Program tree;
  tree.name = "criticality-tree";
  const auto add = [&tree](std::string_view type, int on_success, int on_failure,
                           Parameters parameters = {}) {
    tree.nodes.push_back({Must(MakeFilter(type, std::move(parameters))), on_success, on_failure});
  };
  const auto lora = [&options] {
    return Params({{"exploration", options.lora_exploration}, {"loadCost", options.lora_load_cost}});
  };
  // A request more or less in a queue that is known late, and KV use below what makes a cache short, say
  // nothing.
  const auto queue = [] { return Params({{"slack", 1}}); };
  const auto kv = [&options] { return Params({{"floor", options.sheddable_kv_limit}}); };
  add("critical-request-filter", 1, 8);
  //  Critical, some short queues: affinity first, it saves loading an adapter.
  add("queue-limit-filter", 2, 5, Params({{"limit", options.critical_queue_limit}}));
  add("lora-affinity-filter", 3, 3, lora());
  add("least-queue-filter", 4, 4, queue());
  add("least-kv-cache-filter", Program::kPick, Program::kPick, kv());
  //  Critical, long queues everywhere: the queue first.
  add("least-queue-filter", 6, 6, queue());
  add("lora-affinity-filter", 7, 7, lora());
  add("least-kv-cache-filter", Program::kPick, Program::kPick, kv());
  //  Not critical: only where there is room.
  add("capacity-filter", 9, Program::kShed, RoomParams(options));
  add("least-queue-filter", 10, 10, queue());
  add("lora-affinity-filter", 11, 11, lora());
  add("least-kv-cache-filter", Program::kPick, Program::kPick, kv());
  tree.nodes[8].limits_fallbacks = true;
  // Who is left is equal by the words of the tree; who answers first among them, the ledger knows.
  tree.scorers.push_back({Must(MakeScorer("time-to-first-token-scorer", TimeParams(options))), 1});
  tree.picker = Must(MakePicker("max-score-picker", PickerParams(options)));
  return tree;
}

Program MakeDefaultProfile(const SchedulerOptions& options) {
  Program profile;
  profile.name = ToString(options.profile);
  profile.room = Must(MakeFilter("capacity-filter", RoomParams(options)));
  const auto add = [&profile](std::string_view type, float weight, Parameters parameters = {}) {
    profile.scorers.push_back({Must(MakeScorer(type, std::move(parameters))), weight});
  };
  Parameters picker;
  switch (options.profile) {
    case Profile::kTimeToFirstToken:
      add("time-to-first-token-scorer", 1, TimeParams(options));
      picker = PickerParams(options);
      break;
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
  profile.picker = Must(MakePicker("max-score-picker", std::move(picker)));
  return profile;
}

}  // namespace fairway::scheduling
