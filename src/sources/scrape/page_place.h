// Where an endpoint's metrics page is.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "fleet/snapshot.h"

namespace fairway::sources::scrape {

// What is said for all endpoints, or by an engine's description. "" and 0 say nothing.
struct PageDefaults {
  std::string scheme;  // "http" or "https"
  std::string path;
  uint16_t port = 0;
};

struct PagePlace {
  std::string host;  // an IP literal
  uint16_t port = 0;
  bool https = false;
  std::string path;
  bool path_is_set = false;  // for the endpoint or for all: not just its engine's

  bool operator==(const PagePlace&) const = default;
};

// What the endpoint says comes first, then `all`, then `engine`, then http, /metrics and the endpoint's own
// port. A scheme or path of the endpoint that cannot be is left out; `problem` then says so, else it is "".
PagePlace PlaceOf(const fleet::Endpoint& endpoint, const PageDefaults& all, const PageDefaults& engine,
                  std::string& problem);

// "http://10.0.0.1:8000/metrics", with `path` in place of the place's own.
std::string UrlOf(const PagePlace& place, std::string_view path);

// The path that a redirect's `location`, answered to a request for `path`, leads to. Nothing when that is
// another server than `place`'s, or no path that a request can hold.
std::optional<std::string> RedirectedPath(const PagePlace& place, std::string_view path,
                                          std::string_view location);

}  // namespace fairway::sources::scrape
