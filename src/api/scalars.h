// Scalars that manifests of Kubernetes do not need but configurations do: booleans, real numbers, durations
// and quantities. Each gives nothing when the value is absent or wrong; wrong ones are reported with what
// would be right.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

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

// A finite number as YAML and JSON write it, the whole text.
std::optional<double> ParseReal(std::string_view text);

// "0 to 1", "from 0"; "" is any. Ends beyond 1e9, which only keep sums finite, are left out.
std::string RangeOf(double min, double max);

// As a config has them: all digits that count, "0.0001", "250ms", "64Mi".
std::string ShowNumber(double number);
std::string ShowNumber(float number);
std::string ShowDuration(int64_t nanos);
std::string ShowSize(double bytes);

}  // namespace fairway::api
