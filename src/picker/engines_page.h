// What /debug/prefix shows where KV events are followed: each engine, what came of it and how it is understood,
// as JSON.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "scheduling/plugin.h"
#include "sources/kv_events/kv_events.h"

namespace fairway::picker {

// In pieces of some 64 KiB; "" after the last. `view` tells what the index has of an engine, when its turn
// comes. `now`: of the clock that events were seen by, for the ages. `left_out`: engines beyond those.
using ViewOf =
    std::function<std::optional<scheduling::EngineView>(const sources::kv_events::EngineState& engine)>;
std::function<std::string()> EnginesPage(std::vector<sources::kv_events::EngineState> engines,
                                         size_t left_out, base::Nanos now, ViewOf view);

}  // namespace fairway::picker
