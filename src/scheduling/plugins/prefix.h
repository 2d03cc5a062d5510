// What plugins know of prefix caches: two columns that one producer makes. Without one they are 0.
#pragma once

#include <string>
#include <string_view>

#include "scheduling/build.h"
#include "scheduling/column.h"

namespace fairway::scheduling {

// Of the request's blocks the share that is believed to be cached there, from its beginning: 0..1.
inline constexpr std::string_view kPrefixMatch = "prefix-match";

class PrefixColumns {
 public:
  explicit PrefixColumns(Build& build) {
    const std::string producer =
        build.Text("prefixMatchInfoProducerName", "",
                   "Plugin whose data on cached prefixes is read; none: the default one");
    by_default_ = producer.empty() || producer == "approx-prefix-cache-producer";
  }
  // Where another producer is named but is not there, nobody is made in its place.
  Column Read(Build& build, std::string_view column) const {
    return build.ReadsOptional(column, by_default_);
  }

 private:
  bool by_default_ = true;
};

}  // namespace fairway::scheduling
