// Decisions as a page for people: nothing but HTML and CSS of its own, no script, nothing fetched. All that
// is somebody else's text is escaped.
#pragma once

#include <string>
#include <string_view>

#include "routing/decision.h"

namespace fairway::routing {

// With the title and what every page begins and ends with.
std::string HtmlHead(std::string_view title);
std::string HtmlTail();
// A row of the list of decisions, with a link to its page.
std::string HtmlListHead();
std::string HtmlRow(const Decision& decision, base::Nanos now);
std::string HtmlListTail();
// A decision with its reasons.
std::string ToHtml(const Told& told, base::Nanos now);

}  // namespace fairway::routing
