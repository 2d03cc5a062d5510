// One engine for both kinds of configuration: filters that lead to filters by success or failure, then
// weighted scorers, then a picker. A profile is a program whose filters follow one another; the criticality
// tree is one without scorers.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "scheduling/plugin.h"
#include "scheduling/scheduler.h"

namespace fairway::scheduling {

struct Program {
  static constexpr int kPick = -1;  // score and pick among what is left
  static constexpr int kShed = -2;  // no capacity for this request

  struct Node {
    std::unique_ptr<Filter> filter;
    int on_success = kPick;  // with what the filter kept
    int on_failure = kPick;  // with what the filter was given
    // Fallbacks, too, come only from what this filter kept: it says who has capacity, not who is best.
    bool limits_fallbacks = false;
  };
  struct WeightedScorer {
    std::unique_ptr<Scorer> scorer;
    float weight = 1;
  };

  std::string name;
  // Who has room for a request that may be shed; nobody: it is shed. Before the nodes, and the fallbacks come
  // from what it kept. Null: the nodes see to it, or nothing is shed.
  std::unique_ptr<Filter> room;
  std::vector<Node> nodes;  // starts at 0; empty: all candidates are scored
  std::vector<WeightedScorer> scorers;
  std::unique_ptr<Picker> picker;
};

// ARCHITECTURE.md: for a pool whose models are declared by InferenceModel.
Program MakeCriticalityTree(const SchedulerOptions& options);
// For a pool without InferenceModels: the one of SchedulerOptions::profile. What an InferenceObjective lets
// be shed goes only where the tree would let it go.
Program MakeDefaultProfile(const SchedulerOptions& options);

}  // namespace fairway::scheduling
