// Scalars that manifests of Kubernetes do not need but configurations do: booleans, real numbers, durations
// and quantities. Each gives nothing when the value is absent or wrong; wrong ones are reported with what
// would be right.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

#include "api/decode.h"

namespace fairway::api {

constexpr double kAnyNumber = std::numeric_limits<double>::max();

std::optional<bool> ReadBoolean(const Node& node);

// A finite number from `min` to `max`, ends included.
std::optional<double> ReadNumber(const Node& node, double min = -kAnyNumber, double max = kAnyNumber);

// Go's durations as the reference takes them: the text "1m30s", "500ms", "0s"; never a bare number, never
// negative. Nanoseconds.
std::optional<int64_t> ReadDuration(const Node& node);

// A Kubernetes quantity, a text or a number: "1Gi", "500M", "1e3", 100. Fractions round up. A negative one is
// given back as it is, for the caller to judge.
std::optional<int64_t> ReadQuantity(const Node& node);

}  // namespace fairway::api
