// How families become a page: for metrics.cc only.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "base/metrics.h"

namespace fairway::base {

// At most `max_bytes` in all. REQUIRES: the families outlive the page.
std::unique_ptr<Page> MakePage(const std::vector<const AnyFamily*>& families, size_t max_bytes);

}  // namespace fairway::base
