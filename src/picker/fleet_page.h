// What /debug/fleet shows: pools, endpoints and what is known of them now, as JSON.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "fleet/snapshot.h"

namespace fairway::picker {

// Of a pool ("namespace/name"): the keys of its config's custom metrics.
using AttributesOfPool = std::function<std::vector<std::string>(const std::string& pool)>;

// In pieces of some 64 KiB, so that ten thousand endpoints are not one text; "" after the last. `now`: of the
// fleet's clock, for the ages. The function that it returns may be called on any one thread at a time.
std::function<std::string()> FleetPage(std::shared_ptr<const fleet::Snapshot> snapshot, base::Nanos now,
                                       AttributesOfPool attributes);

}  // namespace fairway::picker
