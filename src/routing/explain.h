// A decision in words: candidates, what each filter dropped and why, each score, the choice.
#pragma once

#include <string>
#include <string_view>

#include "base/clock.h"
#include "fleet/snapshot.h"
#include "scheduling/scheduler.h"

namespace fairway::routing {

struct ExplainedRequest {
  std::string_view request_id;
  std::string_view model;  // "" when unknown
  std::string_view target_model;
  bool critical = false;
  bool declared = false;       // by an InferenceModel
  std::string_view rewrite;    // the InferenceModelRewrite that set the target, "" is none
  std::string_view objective;  // the InferenceObjective that set the priority, "" is none
  std::string_view priority;
  base::Nanos took = 0;
};

// Several lines, the first of them complete in itself, each ended by a newline.
std::string Explain(const ExplainedRequest& request, const fleet::PoolSnapshot& pool,
                    const scheduling::Outcome& outcome, const scheduling::Explanation& explanation);

}  // namespace fairway::routing
