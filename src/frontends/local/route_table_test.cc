#include "frontends/local/route_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace fairway::local {
namespace {

using api::HttpRoute;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

api::InferencePool Pool(const std::string& name) {
  api::InferencePool pool;
  pool.meta.name = name;
  return pool;
}

HttpRoute::Match Prefix(const std::string& path) {
  return {.path_type = HttpRoute::PathType::kPrefix, .path = path};
}
HttpRoute::Match Exact(const std::string& path) {
  return {.path_type = HttpRoute::PathType::kExact, .path = path};
}

// One rule for each match, so that a route's place tells which it is.
HttpRoute Route(const std::string& name, std::vector<std::string> hostnames,
                std::vector<HttpRoute::Match> matches) {
  HttpRoute route;
  route.meta.name = name;
  route.hostnames = std::move(hostnames);
  HttpRoute::Backend backend{.kind = "InferencePool", .name = "a", .namespace_name = "default"};
  for (auto& match : matches) route.rules.push_back({.matches = {match}, .backends = {backend}});
  route.parents = {{.name = "gw", .namespace_name = "default"}};
  return route;
}

api::Gateway Gateway(std::vector<api::Gateway::Listener> listeners) {
  api::Gateway gateway;
  gateway.meta.name = "gw";
  gateway.listeners = std::move(listeners);
  return gateway;
}

std::vector<std::string> Names(const VirtualHost& host) {
  std::vector<std::string> names;
  for (const TableRoute& route : host.routes) names.push_back(route.name);
  return names;
}

std::vector<std::string> Domains(const TableListener& listener) {
  std::vector<std::string> domains;
  for (const VirtualHost& host : listener.hosts) domains.push_back(host.domain);
  return domains;
}

TEST(RouteTableTest, WildcardsCoverByWholeLabels) {
  EXPECT_TRUE(Covers("*", "a.b"));
  EXPECT_TRUE(Covers("*.b.c", "a.b.c"));
  EXPECT_TRUE(Covers("*.b.c", "x.a.b.c"));
  EXPECT_TRUE(Covers("*.b.c", "*.a.b.c"));
  EXPECT_FALSE(Covers("*.b.c", "b.c"));
  EXPECT_FALSE(Covers("*.b.c", "ab.c"));
  EXPECT_FALSE(Covers("a.b.c", "*.b.c"));
  EXPECT_EQ(Intersect("", ""), "*");
  EXPECT_EQ(Intersect("*.b.c", "a.b.c"), "a.b.c");
  EXPECT_EQ(Intersect("a.b.c", "*.b.c"), "a.b.c");
  EXPECT_EQ(Intersect("a.b.c", "b.b.c"), std::nullopt);
}

TEST(RouteTableTest, OnlyPoolNeedsNoRoute) {
  api::Manifests manifests{.pools = {Pool("a")}};
  const auto table = MakeRouteTable(manifests, std::nullopt);
  ASSERT_TRUE(table);
  ASSERT_EQ(table->listeners.size(), 1u);
  EXPECT_EQ(table->listeners[0].address.host, "127.0.0.1");
  EXPECT_EQ(table->listeners[0].address.port, 8080);
  ASSERT_THAT(Domains(table->listeners[0]), ElementsAre("*"));
  ASSERT_EQ(table->listeners[0].hosts[0].routes.size(), 1u);
  EXPECT_EQ(table->listeners[0].hosts[0].routes[0].match.path, "/");
  EXPECT_EQ(table->listeners[0].hosts[0].routes[0].backends[0].name, "a");
}

TEST(RouteTableTest, SaysWhatIsMissing) {
  EXPECT_THAT(MakeRouteTable({}, std::nullopt).error().message, HasSubstr("--endpoint"));
  api::Manifests two{.pools = {Pool("a"), Pool("b")}};
  EXPECT_THAT(MakeRouteTable(two, std::nullopt).error().message,
              HasSubstr("2 InferencePools and no HTTPRoute"));
}

TEST(RouteTableTest, SortsByGatewayApiPrecedence) {
  HttpRoute::Match with_header = Prefix("/v1");
  with_header.headers = {{.name = "x-a", .value = "1"}};
  HttpRoute::Match with_query = Prefix("/v1");
  with_query.query = {{.name = "q", .value = "1"}};
  HttpRoute::Match with_method = Prefix("/v1");
  with_method.method = "POST";
  HttpRoute::Match regex{.path_type = HttpRoute::PathType::kRegex, .path = "/v1/.*"};
  api::Manifests manifests{.pools = {Pool("a")}};
  manifests.routes = {Route("r", {},
                            {Prefix("/"), Prefix("/v1"), with_query, with_header, with_method,
                             Prefix("/v1/chat/"), Exact("/v1"), regex})};
  const auto table = MakeRouteTable(manifests, std::nullopt);
  ASSERT_TRUE(table);
  EXPECT_THAT(Names(table->listeners[0].hosts[0]),
              ElementsAre("default/r/6/0", "default/r/7/0", "default/r/5/0", "default/r/4/0", "default/r/3/0",
                          "default/r/2/0", "default/r/1/0", "default/r/0/0"));
  EXPECT_EQ(table->listeners[0].hosts[0].routes[2].match.path, "/v1/chat");  // no trailing slash
}

TEST(RouteTableTest, OlderThenAlphabeticalBreaksTies) {
  api::Manifests manifests{.pools = {Pool("a")}};
  HttpRoute old = Route("z", {}, {Prefix("/x")});
  old.meta.creation_timestamp = "2024-01-01T00:00:00Z";
  HttpRoute young = Route("y", {}, {Prefix("/x")});
  young.meta.creation_timestamp = "2025-01-01T00:00:00Z";
  manifests.routes = {Route("c", {}, {Prefix("/x")}), Route("b", {}, {Prefix("/x")}), young, old};
  const auto table = MakeRouteTable(manifests, std::nullopt);
  EXPECT_THAT(Names(table->listeners[0].hosts[0]),
              ElementsAre("default/z/0/0", "default/y/0/0", "default/b/0/0", "default/c/0/0"));
}

TEST(RouteTableTest, MoreSpecificHostFirstAndFallsThrough) {
  api::Manifests manifests{.pools = {Pool("a")}};
  manifests.routes = {Route("any", {}, {Exact("/e")}), Route("wild", {"*.x.com"}, {Prefix("/w")}),
                      Route("one", {"A.x.com", "*.x.com"}, {Prefix("/")})};
  const auto table = MakeRouteTable(manifests, std::nullopt);
  ASSERT_THAT(Domains(table->listeners[0]), ElementsAre("a.x.com", "*.x.com", "*"));
  EXPECT_THAT(Names(table->listeners[0].hosts[0]),
              ElementsAre("default/one/0/0", "default/wild/0/0", "default/any/0/0"));
  EXPECT_THAT(Names(table->listeners[0].hosts[1]),
              ElementsAre("default/wild/0/0", "default/one/0/0", "default/any/0/0"));
  EXPECT_THAT(Names(table->listeners[0].hosts[2]), ElementsAre("default/any/0/0"));
}

TEST(RouteTableTest, RequestsBelongToTheMostSpecificListener) {
  api::Manifests manifests{.pools = {Pool("a")}};
  manifests.gateways = {Gateway({{.name = "all", .port = 80, .protocol = "HTTP"},
                                 {.name = "x", .port = 80, .protocol = "HTTP", .hostname = "*.x.com"}})};
  HttpRoute all = Route("all", {"a.x.com", "y.com"}, {Prefix("/")});
  all.parents[0].section_name = "all";
  HttpRoute x = Route("x", {}, {Prefix("/")});
  x.parents[0].section_name = "x";
  manifests.routes = {all, x};
  const auto table = MakeRouteTable(manifests, std::nullopt);
  ASSERT_EQ(table->listeners.size(), 1u);
  EXPECT_EQ(table->listeners[0].address.port, 80);
  // a.x.com is listener x's, to which route "all" is not attached.
  ASSERT_THAT(Domains(table->listeners[0]), ElementsAre("y.com", "*.x.com", "*"));
  EXPECT_THAT(Names(table->listeners[0].hosts[1]), ElementsAre("default/x/0/0"));
  EXPECT_THAT(Names(table->listeners[0].hosts[2]), ElementsAre());
}

TEST(RouteTableTest, ListenersByPortSectionAndOverride) {
  api::Manifests manifests{.pools = {Pool("a")}};
  manifests.gateways = {Gateway({{.name = "one", .port = 81, .protocol = "HTTP"},
                                 {.name = "two", .port = 82, .protocol = "HTTP"},
                                 {.name = "tls", .port = 443, .protocol = "HTTPS"}})};
  HttpRoute by_port = Route("p", {}, {Prefix("/p")});
  by_port.parents[0].port = 82;
  HttpRoute stray = Route("stray", {}, {Prefix("/s")});
  stray.parents[0].name = "other";
  manifests.routes = {Route("both", {}, {Prefix("/b")}), by_port, stray};
  auto table = MakeRouteTable(manifests, std::nullopt);
  ASSERT_EQ(table->listeners.size(), 2u);
  EXPECT_THAT(Names(table->listeners[0].hosts[0]), ElementsAre("default/both/0/0"));
  EXPECT_THAT(Names(table->listeners[1].hosts[0]), ElementsAre("default/both/0/0", "default/p/0/0"));
  EXPECT_THAT(table->warnings,
              ElementsAre(HasSubstr("HTTPS is not served"), HasSubstr("HTTPRoute default/stray")));

  table = MakeRouteTable(manifests, net::HostPort{"::1", 9000});
  ASSERT_EQ(table->listeners.size(), 1u);
  EXPECT_EQ(table->listeners[0].address.host, "::1");
  EXPECT_EQ(table->listeners[0].address.port, 9000);
  EXPECT_THAT(Names(table->listeners[0].hosts[0]), ElementsAre("default/both/0/0", "default/p/0/0"));
}

}  // namespace
}  // namespace fairway::local
