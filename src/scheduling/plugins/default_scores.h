// The scores of the default profile at once: what queue-scorer, kv-cache-utilization-scorer,
// lora-affinity-scorer and running-requests-size-scorer add up to, to the last bit, in two passes instead of
// six and one call instead of four: inside a proxy each scorer is code that has to come from far away.
#pragma once

#include "scheduling/plugin.h"

namespace fairway::scheduling {

struct DefaultScores {
  float queue_weight = 0;
  float kv_weight = 0;
  float lora_weight = 0;
  float running_weight = 0;

  // total[i] = the weighted scores of candidate i, of all. REQUIRES: the columns, and `total`, go on up to a
  // multiple of kLanes, those of floats with values of the last candidate (the scheduler's own do).
  void Sum(const Columns& columns, float* total) const noexcept;
};

}  // namespace fairway::scheduling
