#include "sources/scrape/page_place.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace fairway::sources::scrape {
namespace {

using ::testing::HasSubstr;
using ::testing::Optional;

fleet::Endpoint At(uint16_t port) {
  fleet::Endpoint endpoint;
  endpoint.host = "10.0.0.1";
  endpoint.port = port;
  return endpoint;
}

TEST(PagePlaceTest, TheEndpointSaysItThenTheSettingThenTheEngine) {
  std::string problem;
  fleet::Endpoint endpoint = At(8000);
  PagePlace place = PlaceOf(endpoint, {}, {}, problem);
  EXPECT_EQ(UrlOf(place, place.path), "http://10.0.0.1:8000/metrics");
  EXPECT_FALSE(place.path_is_set);
  const PageDefaults engine{.path = "/prometheus/metrics"};
  place = PlaceOf(endpoint, {}, engine, problem);
  EXPECT_EQ(UrlOf(place, place.path), "http://10.0.0.1:8000/prometheus/metrics");
  EXPECT_FALSE(place.path_is_set);
  const PageDefaults all{.scheme = "https", .path = "/all", .port = 9000};
  place = PlaceOf(endpoint, all, engine, problem);
  EXPECT_EQ(UrlOf(place, place.path), "https://10.0.0.1:9000/all");
  EXPECT_TRUE(place.path_is_set);
  endpoint.metrics_scheme = "http";
  endpoint.metrics_path = "/own?x=1";
  endpoint.metrics_port = 9100;
  place = PlaceOf(endpoint, all, engine, problem);
  EXPECT_EQ(UrlOf(place, place.path), "http://10.0.0.1:9100/own?x=1");
  EXPECT_EQ(problem, "");
}

TEST(PagePlaceTest, WhatCannotBeIsSaidAndLeftOut) {
  std::string problem;
  fleet::Endpoint endpoint = At(8000);
  endpoint.metrics_scheme = "gopher";
  endpoint.metrics_path = "/a b\r\nX: y";
  const PagePlace place = PlaceOf(endpoint, {}, {.path = "/p"}, problem);
  EXPECT_EQ(UrlOf(place, place.path), "http://10.0.0.1:8000/p");
  EXPECT_THAT(problem, HasSubstr("\"gopher\": want http or https"));
  EXPECT_THAT(problem, HasSubstr("want a path such as /metrics"));
}

TEST(PagePlaceTest, ARedirectStaysOnItsServer) {
  const PagePlace place{.host = "10.0.0.1", .port = 8000, .path = "/metrics"};
  const auto to = [&](std::string_view location) { return RedirectedPath(place, "/metrics", location); };
  EXPECT_THAT(to("/metrics/"), Optional(std::string("/metrics/")));
  EXPECT_THAT(to("http://10.0.0.1:8000/metrics/#top"), Optional(std::string("/metrics/")));
  EXPECT_THAT(to("HTTP://10.0.0.1:8000/x?y=z"), Optional(std::string("/x?y=z")));
  EXPECT_THAT(to("http://10.0.0.1:8000"), Optional(std::string("/")));
  EXPECT_THAT(to("//10.0.0.1:8000/x"), Optional(std::string("/x")));
  EXPECT_THAT(to("metrics/"), Optional(std::string("/metrics/")));
  for (const char* elsewhere :
       {"", "/metrics", "http://10.0.0.1/metrics/", "http://10.0.0.2:8000/metrics/",
        "https://10.0.0.1:8000/x", "//evil.example/x", "http://10.0.0.1:8000@evil.example/x",
        "ftp://10.0.0.1:8000/x", "../x", "/a b", "/\xff", "http:", "#x"}) {
    EXPECT_EQ(to(elsewhere), std::nullopt) << elsewhere;
  }
  EXPECT_EQ(to("/" + std::string(5000, 'x')), std::nullopt);
  const PagePlace usual{.host = "fd00::1", .port = 443, .https = true, .path = "/metrics"};
  EXPECT_THAT(RedirectedPath(usual, "/metrics", "https://[fd00::1]/m/"), Optional(std::string("/m/")));
  EXPECT_THAT(RedirectedPath(usual, "/metrics", "https://[FD00::1]:443/m/"), Optional(std::string("/m/")));
  EXPECT_EQ(RedirectedPath(usual, "/metrics", "http://[fd00::1]/m/"), std::nullopt);
}

}  // namespace
}  // namespace fairway::sources::scrape
