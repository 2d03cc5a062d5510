// What /debug/fleet shows: pools, endpoints and what is known of them now, as JSON.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "fleet/snapshot.h"

namespace fairway::picker {

// In pieces of some 64 KiB, so that ten thousand endpoints are not one text; "" after the last. `now`: of the
// fleet's clock, for the ages.
std::function<std::string()> FleetPage(std::shared_ptr<const fleet::Snapshot> snapshot, base::Nanos now);

}  // namespace fairway::picker
