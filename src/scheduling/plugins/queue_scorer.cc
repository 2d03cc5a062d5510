// queue-scorer: (max - v) / (max - min) of the queue over the candidates; 1 for all when they are equal. No
// parameters. Source: the reference's scorer of this name (llm-d router).
#include "scheduling/term.h"

namespace fairway::scheduling {

std::unique_ptr<Plugin> MakeQueueScorer(Build& build) { return MakeTerm(InverseRange{build.Reads("queue")}); }

}  // namespace fairway::scheduling
