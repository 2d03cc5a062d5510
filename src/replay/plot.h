// The table as a picture.
#pragma once

#include <string>
#include <vector>

#include "replay/results.h"

namespace fairway::replay {

// An SVG of its own: a line a row, first token, time per token and end to end beside each other. A bar
// reaches to the 50th, 90th and 99th percentile, ever paler; a mark is the mean. The axes are logarithmic.
std::string Plot(const std::string& title, const std::vector<Row>& rows);

}  // namespace fairway::replay
