// What operators say about requests apart from the pool: how important they are, and which model they get.
//
// Both kinds are v1alpha2 of the group llm-d.ai and, with the same fields, of inference.networking.x-k8s.io,
// where they stood before.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "api/meta.h"

namespace fairway::api {

// A request says by header which objective it has: the object's name.
struct InferenceObjective {
  ObjectMeta meta;
  std::string group;     // "llm-d.ai" or "inference.networking.x-k8s.io"
  int32_t priority = 0;  // higher goes first; below 0 may be shed
  PoolRef pool;          // the group counts, too
};

// Which model is really asked for. Across all rewrites of a pool a rule that names the model goes before one
// that matches every model, then the oldest object, then the first rule.
struct InferenceModelRewrite {
  struct Match {
    std::string model;  // exactly this
    Position where;
  };
  struct Target {
    std::string model;
    std::optional<int32_t> weight;  // 1 to 1000000; none set: equal shares; some set: the others get nothing
  };
  struct Rule {
    std::vector<Match> matches;   // any of them; empty: every model
    std::vector<Target> targets;  // never empty in an object without errors
    Position where;
  };
  ObjectMeta meta;
  std::string group;  // as above
  PoolRef pool;
  std::vector<Rule> rules;
};

}  // namespace fairway::api
