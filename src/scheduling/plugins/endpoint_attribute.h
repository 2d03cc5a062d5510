// Numbers of endpoints by the names that configs give them.
#pragma once

#include <algorithm>
#include <limits>
#include <string>

#include "scheduling/build.h"
#include "scheduling/column.h"

namespace fairway::scheduling {

// The attribute that parameter `parameter` and `producer` name: a column of Fairway (column.h) by its name,
// or "NAME/PRODUCER", where a plugin makes it. Nobody makes it: no number for all, with a warning.
inline Column ReadsAttribute(Build& build, std::string_view parameter) {
  const std::string name = build.Text(parameter, "", "Column that is read, required");
  const std::string producer = build.Text("producer", "", "Plugin that makes the attribute");
  if (name.empty()) {
    build.Error(parameter, "must be set");
    return {};
  }
  const bool live = std::any_of(kLiveColumns.begin(), kLiveColumns.end(),
                                [&](const LiveColumn& column) { return column.name == name; });
  if (live && producer.empty()) return build.Reads(name);
  if (producer.empty() && name.find('/') != std::string::npos)
    build.Error(parameter, "must not have a \"/\": what stands behind it is for producer");
  return build.ReadsOptional(name + "/" + (producer.empty() ? "core-metrics-extractor" : producer), true,
                             std::numeric_limits<float>::quiet_NaN());
}

}  // namespace fairway::scheduling
