#include "sources/scrape/page_place.h"

#include "api/text_rules.h"
#include "base/strings.h"
#include "net/address.h"

namespace fairway::sources::scrape {
namespace {

const std::string& First(const std::string& a, const std::string& b, const std::string& c) {
  return !a.empty() ? a : !b.empty() ? b : c;
}

// "host:port" of a URL, without user info.
std::string_view TakeAuthority(std::string_view& rest) {
  const size_t end = rest.find_first_of("/?");
  const std::string_view authority = rest.substr(0, end);
  rest.remove_prefix(authority.size());
  return authority;
}

}  // namespace

PagePlace PlaceOf(const fleet::Endpoint& endpoint, const PageDefaults& all, const PageDefaults& engine,
                  std::string& problem) {
  problem.clear();
  const auto usable = [&](const std::string& text, api::TextRule rule, const char* what) -> std::string {
    if (text.empty()) return "";
    const std::string wanted = rule(text);
    if (wanted.empty()) return text;
    if (!problem.empty()) problem += "; ";
    problem += std::string(what) + " " + api::Quote(text) + ": " + wanted;
    return "";
  };
  const std::string scheme = usable(endpoint.metrics_scheme, api::CheckMetricsScheme, "scheme");
  const std::string path = usable(endpoint.metrics_path, api::CheckMetricsPath, "path");
  PagePlace place;
  place.host = endpoint.host;
  place.port = endpoint.metrics_port != 0 ? endpoint.metrics_port : all.port != 0 ? all.port : endpoint.port;
  place.https = First(scheme, all.scheme, engine.scheme) == "https";
  place.path = First(path, all.path, engine.path);
  if (place.path.empty()) place.path = "/metrics";
  place.path_is_set = !path.empty() || !all.path.empty();
  return place;
}

std::string UrlOf(const PagePlace& place, std::string_view path) {
  return (place.https ? "https://" : "http://") + net::FormatHostPort(place.host, place.port) +
         std::string(path);
}

std::optional<std::string> RedirectedPath(const PagePlace& place, std::string_view path,
                                          std::string_view location) {
  std::string_view rest = location.substr(0, location.find('#'));
  const std::string_view scheme = place.https ? "https:" : "http:";
  if (rest.size() > scheme.size() && base::ToLower(rest.substr(0, scheme.size())) == scheme)
    rest.remove_prefix(scheme.size());
  std::string target;
  if (rest.starts_with("//")) {
    rest.remove_prefix(2);
    const std::string own = net::FormatHostPort(place.host, place.port);
    const std::string authority = base::ToLower(TakeAuthority(rest));
    const uint16_t usual = place.https ? 443 : 80;
    const bool same =
        authority == own || (place.port == usual && authority + ":" + std::to_string(usual) == own);
    if (!same) return std::nullopt;
    target = rest.empty() || rest.front() != '/' ? "/" + std::string(rest) : std::string(rest);
  } else if (rest.starts_with('/')) {
    target = rest;
  } else if (rest.find(':') == std::string_view::npos && !rest.starts_with('.') && !rest.empty()) {
    const std::string_view folder = path.substr(0, path.find('?'));
    target = std::string(folder.substr(0, folder.rfind('/') + 1)).append(rest);
  }
  if (!api::CheckMetricsPath(target).empty() || target == path) return std::nullopt;
  return target;
}

}  // namespace fairway::sources::scrape
