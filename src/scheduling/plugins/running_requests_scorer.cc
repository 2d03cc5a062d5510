// running-requests-size-scorer: (max - v) / (max - min) of the running requests over the candidates; 1 for
// all when they are equal. No parameters. Source: the reference's scorer of this name (llm-d router).
#include "scheduling/term.h"

namespace fairway::scheduling {

std::unique_ptr<Plugin> MakeRunningRequestsScorer(Build& build) {
  return MakeTerm(InverseRange{build.Reads("running")});
}

}  // namespace fairway::scheduling
