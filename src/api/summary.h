// What would be served, in words for people: the output of `fairway check`.
#pragma once

#include <string>

#include "api/manifests.h"

namespace fairway::api {

// Pools with their endpoints, models, rewrites and objectives, gateways with their listeners, routes with the
// share of each backend. The text is stable: objects in the order they were read.
std::string Summarize(const Manifests& manifests);

}  // namespace fairway::api
