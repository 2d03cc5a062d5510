// Regular expressions of HTTPRoutes, as Envoy takes them: one that it does not take makes it refuse all
// routes.
#pragma once

#include <string>
#include <string_view>

namespace fairway::local {

// What is wrong with it and what would be right; "" when Envoy takes it.
std::string CheckPattern(std::string_view pattern);

}  // namespace fairway::local
