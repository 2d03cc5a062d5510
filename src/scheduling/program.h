// One engine for both kinds of configuration: filters that lead to filters by success or failure, then
// weighted scorers, then a picker. A profile is a program whose filters follow one another; the criticality
// tree is one of branches.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fairway::scheduling {

class Filter;
class Scorer;
class Picker;
class SaturationDetector;

// The plugins are the config's (config.h), which outlives it.
struct Program {
  static constexpr int kPick = -1;  // score and pick among what is left
  static constexpr int kShed = -2;  // no capacity for this request

  struct Node {
    const Filter* filter = nullptr;
    std::string name;
    int on_success = kPick;  // with what the filter kept
    int on_failure = kPick;  // with what the filter was given
    // Fallbacks, too, come only from what this filter kept: it says who has capacity, not who is best.
    bool limits_fallbacks = false;
    // It reads nothing of load, so it holds also where nobody told any for long: roles, labels, sessions. One
    // of a list; in a tree such a filter stands among others that do.
    bool steady = false;
    bool of_tree = false;  // it sheds for want of room, and not for want of anybody who fits
  };
  struct WeightedScorer {
    const Scorer* scorer = nullptr;
    std::string name;
    float weight = 1;
  };

  std::string name;
  // Who has room for a request that may be shed; nobody: it is shed. Before the nodes, and the fallbacks come
  // from what it kept. Null: the nodes see to it, or nothing is shed.
  const Filter* room = nullptr;
  std::string room_name;
  // The same by a figure for all: from 1 on such a request is shed. Null: nobody is asked.
  const SaturationDetector* saturation = nullptr;
  std::string saturation_name;
  std::vector<Node> nodes;  // starts at 0; empty: all candidates are scored
  std::vector<WeightedScorer> scorers;
  const Picker* picker = nullptr;
  uint32_t max_choices = 0;  // as its picker says; 0: as SchedulerOptions say
  // Live columns that its plugins read, a bit per Column::id.
  uint32_t reads = 0;
};

}  // namespace fairway::scheduling
