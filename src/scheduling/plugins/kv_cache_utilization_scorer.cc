// kv-cache-utilization-scorer: 1 - KV use. No parameters. Source: the reference's scorer of this name (llm-d
// router).
#include "scheduling/term.h"

namespace fairway::scheduling {

std::unique_ptr<Plugin> MakeKvCacheUtilizationScorer(Build& build) {
  return MakeTerm(Linear{build.Reads("kv-usage"), 1, -1});
}

}  // namespace fairway::scheduling
