// Numbers of endpoints by the names that configs give them.
#pragma once

#include <algorithm>
#include <limits>
#include <string>

#include "scheduling/build.h"
#include "scheduling/column.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {

// The attribute that parameter `parameter` and `producer` (core-metrics-extractor where it is not set) name:
// "NAME/PRODUCER", where a plugin makes it, else a column of Fairway (column.h) by its name. Nobody makes it:
// no number for all, with a warning.
inline Column ReadsAttribute(Build& build, std::string_view parameter) {
  const std::string name = build.Text(parameter, "", "Column that is read, required");
  const std::string producer = build.Text("producer", "", "Plugin that makes the attribute");
  if (name.empty()) {
    build.Error(parameter, "must be set");
    return {};
  }
  const bool live = std::any_of(kLiveColumns.begin(), kLiveColumns.end(),
                                [&](const LiveColumn& column) { return column.name == name; });
  const std::string maker = producer.empty() ? "core-metrics-extractor" : producer;
  const auto* pages = build.RefersOptional<PageSettings>("producer", maker);
  const bool custom = pages != nullptr && pages->HasAttribute(name);
  if (live && producer.empty() && !custom) return build.Reads(name);
  if (producer.empty() && name.find('/') != std::string::npos)
    build.Error(parameter, "must not have a \"/\": what stands behind it is for producer");
  return build.ReadsOptional(name + "/" + maker, true, std::numeric_limits<float>::quiet_NaN());
}

}  // namespace fairway::scheduling
