#include "frontends/local/route_table.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "base/strings.h"

namespace fairway::local {
namespace {

using api::HttpRoute;

constexpr uint16_t kDefaultPort = 8080;

std::string_view Anywhere(std::string_view host) { return host.empty() ? "*" : host; }

// Exact names before wildcards, longer before shorter, "*" last.
bool MoreSpecific(std::string_view a, std::string_view b) {
  const auto rank = [](std::string_view d) {
    return std::make_tuple(d.starts_with('*'), -static_cast<int64_t>(d.size()));
  };
  return std::tuple_cat(rank(a), std::make_tuple(a)) < std::tuple_cat(rank(b), std::make_tuple(b));
}

// "/v1/" and "/v1" are the same prefix.
std::string_view PrefixOf(std::string_view path) {
  while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
  return path;
}

// One match of one rule of one route, with what decides its place.
struct Entry {
  std::string domain;
  TableRoute route;
  std::string creation;  // of the HTTPRoute
  std::string key;       // of the HTTPRoute
  size_t rule = 0;
  size_t match = 0;

  // Smaller comes first. Regular expressions are the implementation's choice: between exact paths and
  // prefixes.
  auto Precedence() const {
    const HttpRoute::Match& m = route.match;
    const int type = m.path_type == HttpRoute::PathType::kExact   ? 0
                     : m.path_type == HttpRoute::PathType::kRegex ? 1
                                                                  : 2;
    const size_t length = type == 2 ? PrefixOf(m.path).size() : m.path.size();
    return std::make_tuple(type, -static_cast<int64_t>(length), m.method.empty(),
                           -static_cast<int64_t>(m.headers.size()), -static_cast<int64_t>(m.query.size()),
                           creation.empty(), std::string_view(creation), std::string_view(key), rule, match);
  }
  auto Identity() const { return std::make_tuple(key, rule, match); }
};

// Listener host name -> the entries attached to it. One such map per address.
using Groups = std::map<std::string, std::vector<Entry>>;

bool Attaches(const HttpRoute::ParentRef& parent, const api::Gateway& gateway,
              const api::Gateway::Listener& listener) {
  return parent.name == gateway.meta.name && parent.namespace_name == gateway.meta.namespace_name &&
         (parent.section_name.empty() || parent.section_name == listener.name) &&
         (!parent.port || *parent.port == listener.port);
}

// Returns false when the route's host names and the listener's have nothing in common.
bool Attach(const HttpRoute& route, const std::string& listener_host, Groups& groups) {
  std::vector<std::string> hostnames = route.hostnames;
  if (hostnames.empty()) hostnames.emplace_back();
  bool any = false;
  for (const std::string& hostname : hostnames) {
    const auto domain = Intersect(base::ToLower(listener_host), base::ToLower(hostname));
    if (!domain) continue;
    any = true;
    for (size_t r = 0; r < route.rules.size(); ++r) {
      const HttpRoute::Rule& rule = route.rules[r];
      for (size_t m = 0; m < rule.matches.size(); ++m) {
        Entry entry{.domain = *domain,
                    .creation = route.meta.creation_timestamp,
                    .key = api::Key(route.meta),
                    .rule = r,
                    .match = m};
        entry.route = {.name = entry.key + "/" + std::to_string(r) + "/" + std::to_string(m),
                       .match = rule.matches[m],
                       .backends = rule.backends,
                       .timeout_ms = rule.request_timeout_ms};
        if (rule.matches[m].path_type == HttpRoute::PathType::kPrefix) {
          entry.route.match.path = std::string(PrefixOf(rule.matches[m].path));
        }
        groups[std::string(Anywhere(base::ToLower(listener_host)))].push_back(std::move(entry));
      }
    }
  }
  return any;
}

VirtualHost MakeHost(const std::string& domain, const std::vector<Entry>& entries) {
  std::vector<const Entry*> sorted;
  for (const Entry& entry : entries) {
    if (Covers(entry.domain, domain)) sorted.push_back(&entry);
  }
  std::sort(sorted.begin(), sorted.end(), [](const Entry* a, const Entry* b) {
    if (a->domain != b->domain) return MoreSpecific(a->domain, b->domain);
    return a->Precedence() < b->Precedence();
  });
  VirtualHost host{.domain = domain};
  std::set<std::tuple<std::string, size_t, size_t>> seen;  // a route may come by two of its host names
  for (const Entry* entry : sorted) {
    if (seen.insert(entry->Identity()).second) host.routes.push_back(entry->route);
  }
  return host;
}

std::vector<VirtualHost> MakeHosts(const Groups& groups) {
  std::vector<VirtualHost> hosts;
  for (const auto& [listener_host, entries] : groups) {
    std::set<std::string> domains{listener_host};
    for (const Entry& entry : entries) domains.insert(entry.domain);
    for (const std::string& domain : domains) {
      // A request belongs to the most specific listener alone.
      const bool taken = std::any_of(groups.begin(), groups.end(), [&](const auto& other) {
        return other.first != listener_host && MoreSpecific(other.first, listener_host) &&
               Covers(other.first, domain);
      });
      if (!taken) hosts.push_back(MakeHost(domain, entries));
    }
  }
  std::sort(hosts.begin(), hosts.end(),
            [](const VirtualHost& a, const VirtualHost& b) { return MoreSpecific(a.domain, b.domain); });
  if (hosts.empty() || hosts.back().domain != "*") hosts.push_back({.domain = "*"});
  return hosts;
}

// Where there is no HTTPRoute the only pool takes everything.
HttpRoute RouteToOnlyPool(const api::InferencePool& pool) {
  HttpRoute route;
  route.meta.name = pool.meta.name;
  route.meta.namespace_name = pool.meta.namespace_name;
  HttpRoute::Backend backend{.group = pool.group,
                             .kind = "InferencePool",
                             .name = pool.meta.name,
                             .namespace_name = pool.meta.namespace_name};
  route.rules.push_back({.matches = {HttpRoute::Match{}}, .backends = {backend}});
  return route;
}

}  // namespace

bool Covers(std::string_view domain, std::string_view other) {
  if (domain == "*" || domain == other) return true;
  if (!domain.starts_with("*.")) return false;
  const std::string_view suffix = domain.substr(1);  // ".example.com"
  if (other.starts_with('*')) other.remove_prefix(1);
  return other.size() > suffix.size() && other.ends_with(suffix);
}

std::optional<std::string> Intersect(std::string_view listener_host, std::string_view route_host) {
  const std::string_view a = Anywhere(listener_host);
  const std::string_view b = Anywhere(route_host);
  if (Covers(a, b)) return std::string(b);
  if (Covers(b, a)) return std::string(a);
  return std::nullopt;
}

base::Result<RouteTable> MakeRouteTable(const api::Manifests& manifests,
                                        const std::optional<net::HostPort>& listen) {
  if (manifests.pools.empty()) {
    return base::Fail(base::ErrorCode::kInvalidArgument,
                      "no InferencePool: give one with -f, or model servers with --endpoint HOST:PORT");
  }
  std::vector<HttpRoute> routes = manifests.routes;
  const bool made_up = routes.empty();
  if (made_up) {
    if (manifests.pools.size() > 1) {
      return base::Fail(
          base::ErrorCode::kInvalidArgument,
          std::to_string(manifests.pools.size()) +
              " InferencePools and no HTTPRoute that says which requests go to which: add an HTTPRoute "
              "with a backendRef to each");
    }
    routes.push_back(RouteToOnlyPool(manifests.pools[0]));
  }

  RouteTable table;
  std::map<uint16_t, Groups> by_port;
  if (manifests.gateways.empty()) {
    Groups& groups = by_port[listen ? listen->port : kDefaultPort];
    for (const HttpRoute& route : routes) Attach(route, "", groups);
  } else {
    std::vector<bool> attached(routes.size(), made_up);
    for (const api::Gateway& gateway : manifests.gateways) {
      for (const api::Gateway::Listener& listener : gateway.listeners) {
        if (!base::EqualsIgnoreCase(listener.protocol, "HTTP")) {
          table.warnings.push_back("Gateway " + api::Key(gateway.meta) + " listener " + listener.name +
                                   ": protocol " + listener.protocol +
                                   " is not served locally, only HTTP is");
          continue;
        }
        Groups& groups = by_port[listen ? listen->port : listener.port];
        groups[std::string(Anywhere(base::ToLower(listener.hostname)))];
        for (size_t i = 0; i < routes.size(); ++i) {
          const auto& parents = routes[i].parents;
          const bool wanted = made_up || std::any_of(parents.begin(), parents.end(), [&](const auto& parent) {
                                return Attaches(parent, gateway, listener);
                              });
          if (wanted && Attach(routes[i], listener.hostname, groups)) attached[i] = true;
        }
      }
    }
    for (size_t i = 0; i < routes.size(); ++i) {
      if (!attached[i]) {
        table.warnings.push_back(
            "HTTPRoute " + api::Key(routes[i].meta) +
            " is attached to no listener that is served: check spec.parentRefs and the host names");
      }
    }
    if (by_port.empty()) {
      return base::Fail(base::ErrorCode::kInvalidArgument,
                        "no Gateway has an HTTP listener, the only kind served locally");
    }
  }
  for (const auto& [port, groups] : by_port) {
    table.listeners.push_back({{listen ? listen->host : "127.0.0.1", port}, MakeHosts(groups)});
  }
  return table;
}

}  // namespace fairway::local
