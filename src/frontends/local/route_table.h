// Gateways and HTTPRoutes as a data plane walks them: listeners, their virtual hosts, and in each host the
// routes in the order of Gateway API precedence (the first that matches wins).
//
// Source of the rules: gateway-api v1, HTTPRouteRule.matches and HTTPRouteSpec.hostnames (precedence),
// listener isolation as GatewaySpec.listeners describes it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/manifests.h"
#include "base/result.h"
#include "net/address.h"

namespace fairway::local {

struct TableRoute {
  std::string name;  // "namespace/name/rule/match" of the HTTPRoute, for people
  api::HttpRoute::Match match;
  std::vector<api::HttpRoute::Backend> backends;
  int64_t timeout_ms = 0;  // 0: none
};

struct VirtualHost {
  std::string domain;  // "a.example.com", "*.example.com" or "*"
  std::vector<TableRoute> routes;
};

struct TableListener {
  net::HostPort address;
  std::vector<VirtualHost> hosts;  // most specific first; the last is always "*"
};

struct RouteTable {
  std::vector<TableListener> listeners;
  std::vector<std::string> warnings;
};

// `listen`: see EnvoyOptions::listen. Error: no pool, or several pools and no HTTPRoute to tell them apart.
base::Result<RouteTable> MakeRouteTable(const api::Manifests& manifests,
                                        const std::optional<net::HostPort>& listen);

// "*.example.com" covers "a.b.example.com" and "*.b.example.com", not "example.com". "*" covers all.
bool Covers(std::string_view domain, std::string_view other);
// The host names that both admit; nothing when there is none. "" means all, the result then is "*".
std::optional<std::string> Intersect(std::string_view listener_host, std::string_view route_host);

}  // namespace fairway::local
