// The endpoints file: the reference's file-discovery format (ports as text), and beyond it numbers, IPv6,
// host names and where the metrics page is.
#include <arpa/inet.h>

#include <algorithm>
#include <array>

#include "api/decode.h"
#include "base/strings.h"

namespace fairway::api {
namespace {

constexpr size_t kMaxEndpoints = 100'000;

std::string CheckEndpointName(std::string_view text) {
  const bool fits = !text.empty() && text.size() <= 253 && std::none_of(text.begin(), text.end(), [](char c) {
    return static_cast<unsigned char>(c) <= ' ' || c == '/' || c == 0x7f;
  });
  return fits ? "" : "want 1 to 253 characters without spaces and '/'";
}

std::string Readable(int family, const void* address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  return inet_ntop(family, address, text.data(), text.size()) == nullptr ? "" : text.data();
}

// The address in its usual spelling, or "" after saying what is wrong.
std::string ReadAddress(const Node& node) {
  auto text = node.Text();
  if (!text) return "";
  std::string bare = *text;
  const bool bracketed = bare.size() > 2 && bare.front() == '[' && bare.back() == ']';
  if (bracketed) bare = bare.substr(1, bare.size() - 2);
  in_addr v4{};
  in6_addr v6{};
  if (!bracketed && inet_pton(AF_INET, bare.c_str(), &v4) == 1) return Readable(AF_INET, &v4);
  if (inet_pton(AF_INET6, bare.c_str(), &v6) == 1) return Readable(AF_INET6, &v6);
  constexpr std::string_view kWanted = "want an IPv4 or IPv6 address or a host name";
  std::string advice;
  const size_t colon = bare.rfind(':');
  if (bare.find("://") != std::string::npos) {
    advice = "; leave out the scheme";
  } else if (bare.find('%') != std::string::npos) {
    advice = "; an address with a zone is not supported";
  } else if (colon != std::string::npos &&
             base::ParseInteger<uint16_t>(std::string_view(bare).substr(colon + 1))) {
    advice = "; write the port as port: \"" + bare.substr(colon + 1) + "\"";
  } else if (const std::string lower = base::ToLower(bare);
             !bracketed && bare.find_first_not_of("0123456789.") != std::string::npos &&
             CheckDnsSubdomain(lower).empty()) {
    return lower;
  }
  node.Error(std::string(kWanted) + ", got " + Quote(*text) + advice);
  return "";
}

// "8000", as the reference wants it, or 8000.
std::optional<uint16_t> ReadPortText(const Node& node) {
  if (!node.Is(Value::Kind::kString)) return ReadPort(node);
  const std::string& text = node.value().text;
  const auto number = base::ParseInteger<uint16_t>(text);
  if (!number || *number == 0) {
    node.Error("want a port from 1 to 65535, got " + Quote(text));
    return std::nullopt;
  }
  return number;
}

}  // namespace

std::vector<Endpoint> ReadEndpoints(ObjectReader& root) {
  std::vector<Endpoint> endpoints;
  for (const Node& item : root.Require("endpoints").Items(0, kMaxEndpoints)) {
    ObjectReader reader(item);
    Endpoint endpoint;
    endpoint.where = item.where();
    endpoint.name = ReadText(reader.Require("name"), CheckEndpointName);
    endpoint.namespace_name = ReadTextOr(reader.Get("namespace"), CheckDnsLabel, "default");
    endpoint.address = ReadAddress(reader.Require("address"));
    endpoint.port = ReadPortText(reader.Require("port")).value_or(0);
    endpoint.metrics_port = ReadPortText(reader.Get("metricsPort")).value_or(0);
    endpoint.metrics_scheme = ReadTextOr(reader.Get("metricsScheme"), CheckMetricsScheme, "");
    endpoint.metrics_path = ReadTextOr(reader.Get("metricsPath"), CheckMetricsPath, "");
    endpoint.labels = ReadTextMap(reader.Get("labels"), CheckLabelKey, CheckLabelValue, 1000);
    reader.Finish();
    endpoints.push_back(std::move(endpoint));
  }
  root.Finish();
  return endpoints;
}

}  // namespace fairway::api
