// Fairway's own router, fleet and ledger in a replay: the same objects that serve in production, handed
// virtual time.
#pragma once

#include <string>

#include "replay/picker.h"
#include "scheduling/scheduler.h"

namespace fairway::replay {

// A policy's parameters into the scheduler's options. REQUIRES: from Policy::Find.
void SetParameters(const Policy& policy, scheduling::SchedulerOptions& options);

// What plugins of the config read that no replay has, and who: "no custom metrics (read by heat-filter)". "":
// nothing.
std::string WithoutData(const scheduling::Config& config);

}  // namespace fairway::replay
