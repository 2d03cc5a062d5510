// The rules for names, labels, hosts and the like, each as the API's pattern has it, and the words that tell
// a user about them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace fairway::api {

// `text` in double quotes for a message: escaped, and cut when it is long.
std::string Quote(std::string_view text);

// "; did you mean \"x\"?" for the nearest of `candidates`, "" when none is near or there are too many to look
// at.
std::string DidYouMean(std::string_view wanted, std::span<const std::string> candidates);

// Each answers "" when `text` keeps the rule, else what would be right ("want ...").
using TextRule = std::string (*)(std::string_view text);

std::string CheckDnsLabel(std::string_view text);      // RFC 1123: namespaces
std::string CheckDnsSubdomain(std::string_view text);  // RFC 1123: object names
std::string CheckGroup(std::string_view text);         // an API group, "" is core
std::string CheckKind(std::string_view text);
std::string CheckReferentName(std::string_view text);  // 1 to 253 characters
std::string CheckLabelKey(std::string_view text);      // with an optional prefix and /
std::string CheckLabelValue(std::string_view text);
std::string CheckHostname(std::string_view text);    // "*." in front is allowed
std::string CheckHeaderName(std::string_view text);  // an RFC 9110 token of 1 to 256 characters
std::string CheckHttpPath(std::string_view text);    // exact and prefix paths of an HTTPRoute

// RFC 3339 -> the same instant as "2025-04-02T10:00:00Z", so that text order is time order.
std::optional<std::string> NormalizeTime(std::string_view text);

// GEP-2257, the Gateway API's durations: "1h", "1m30s", "500ms". Milliseconds.
std::optional<int64_t> ParseGatewayDuration(std::string_view text);

// Of a model server's metrics page: "http" or "https"; a path that a request line can hold, with a query
// where one is wanted.
std::string CheckMetricsScheme(std::string_view text);
std::string CheckMetricsPath(std::string_view text);

}  // namespace fairway::api
