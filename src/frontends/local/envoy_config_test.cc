#include "frontends/local/envoy_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace fairway::local {
namespace {

using api::HttpRoute;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

api::InferencePool Pool(const std::string& name, api::FailureMode mode = api::FailureMode::kFailClose) {
  api::InferencePool pool;
  pool.meta.name = name;
  pool.selector = {{"app", name}};
  pool.picker.emplace().failure_mode = mode;
  return pool;
}

api::Endpoint Endpoint(const std::string& app, const std::string& address, uint16_t port) {
  api::Endpoint endpoint;
  endpoint.address = address;
  endpoint.port = port;
  endpoint.labels = {{"app", app}};
  return endpoint;
}

HttpRoute::Backend To(const std::string& pool, int32_t weight = 1) {
  return {.kind = "InferencePool", .name = pool, .namespace_name = "default", .weight = weight};
}

// Strings of ours have no blanks where it matters.
std::string Compact(std::string text) {
  std::erase_if(text, [](char c) { return c == ' ' || c == '\n'; });
  return text;
}

class EnvoyConfigTest : public ::testing::Test {
 protected:
  std::string File(const std::string& name) {
    auto config = MakeEnvoyConfig(manifests_, SelectEndpoints(manifests_, addresses_), options_);
    if (!config) return "error: " + config.error().message;
    for (const EnvoyFile& file : config->files) {
      if (file.name == name) return Compact(file.text);
    }
    return "no such file";
  }
  HttpRoute::Rule& AddRule(const HttpRoute::Match& match, std::vector<HttpRoute::Backend> backends) {
    if (manifests_.routes.empty()) manifests_.routes.emplace_back().meta.name = "r";
    auto& rules = manifests_.routes[0].rules;
    rules.push_back({.matches = {match}, .backends = std::move(backends)});
    return rules.back();
  }

  api::Manifests manifests_{.pools = {Pool("a")}};
  std::map<std::string, std::string, std::less<>> addresses_;
  EnvoyOptions options_{.directory = "/dir"};
};

TEST_F(EnvoyConfigTest, EndpointsOfAPoolAreInItsOwnFile) {
  manifests_.pools.push_back(Pool("b"));
  AddRule({}, {To("a"), To("b")});
  manifests_.endpoints = {Endpoint("a", "10.0.0.2", 8000), Endpoint("a", "fd00::1", 8001),
                          Endpoint("a", "10.0.0.2", 8000), Endpoint("b", "known", 1),
                          Endpoint("b", "unknown", 2),     Endpoint("c", "10.0.0.9", 3)};
  addresses_ = {{"known", "10.0.0.3"}};
  EXPECT_EQ(File("eds-default_a.json"),
            R"({"resources":[{"@type":"type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",)"
            R"("cluster_name":"default/a","endpoints":[{"lb_endpoints":[)"
            R"({"endpoint":{"address":{"socket_address":{"address":"10.0.0.2","port_value":8000}}}},)"
            R"({"endpoint":{"address":{"socket_address":{"address":"fd00::1","port_value":8001}}}}]}]}]})");
  EXPECT_THAT(File("eds-default_b.json"), HasSubstr("10.0.0.3"));
  EXPECT_THAT(File("eds-default_b.json"), Not(HasSubstr("unknown")));
}

TEST_F(EnvoyConfigTest, FilesStandBeforeThoseThatNameThem) {
  const auto config = MakeEnvoyConfig(manifests_, {}, options_);
  ASSERT_TRUE(config);
  std::vector<std::string> names;
  for (const EnvoyFile& file : config->files) names.push_back(file.name);
  EXPECT_THAT(names,
              ElementsAre("eds-default_a.json", "cds.json", "rds-8080.json", "lds.json", "bootstrap.json"));
}

TEST_F(EnvoyConfigTest, ClusterFollowsThePickersList) {
  const std::string cds = File("cds.json");
  EXPECT_THAT(cds, HasSubstr(R"("name":"default/a","type":"EDS","connect_timeout":"1s")"));
  EXPECT_THAT(cds, HasSubstr(R"("path":"/dir/eds-default_a.json")"));
  EXPECT_THAT(
      cds,
      HasSubstr(
          R"("override_host_sources":[{"metadata":{"key":"envoy.lb","path":[{"key":"x-gateway-destination-endpoint"}]}}])"));
  EXPECT_THAT(
      cds,
      HasSubstr(
          R"("selected_host_key":{"key":"envoy.lb","path":[{"key":"x-gateway-destination-endpoint-served"}]})"));
  EXPECT_THAT(cds, HasSubstr(R"("explicit_http_config":{"http_protocol_options":{}})"));
  EXPECT_THAT(cds, HasSubstr(R"("idle_timeout":"4s")"));
}

TEST_F(EnvoyConfigTest, InsideEnvoyThePickersOwnPolicyChooses) {
  options_.place = PickerPlace::kModule;
  options_.module = {.file = "/lib/fairway.so", .config = "{}"};
  const std::string cds = File("cds.json");
  EXPECT_THAT(cds, HasSubstr("load_balancing_policies.dynamic_modules.v3.DynamicModulesLoadBalancerConfig"));
  EXPECT_THAT(cds, HasSubstr(R"("filename":"/lib/fairway.so")"));
  EXPECT_THAT(cds, HasSubstr(R"("lb_policy_name":"fairway")"));
  EXPECT_THAT(cds, Not(HasSubstr("override_host")));
}

TEST_F(EnvoyConfigTest, AppProtocolH2cIsHttp2) {
  manifests_.pools[0].app_protocol = api::AppProtocol::kH2c;
  EXPECT_THAT(File("cds.json"), HasSubstr(R"("explicit_http_config":{"http2_protocol_options":{}})"));
}

TEST_F(EnvoyConfigTest, OneBackendAsksForItsPool) {
  const std::string rds = File("rds-8080.json");
  EXPECT_THAT(rds, HasSubstr(R"("match":{"prefix":"/"},"route":{"cluster":"default/a")"));
  EXPECT_THAT(rds, HasSubstr(R"("timeout":"0s")"));
  EXPECT_THAT(rds, HasSubstr(R"("num_retries":2)"));
  EXPECT_THAT(rds, HasSubstr(R"("request_body_buffer_limit":"67108864")"));
  EXPECT_THAT(
      rds,
      HasSubstr(
          R"("overrides":{"grpc_initial_metadata":[{"key":"x-fairway-pool","value":"default/a"}],"failure_mode_allow":false})"));
  manifests_.pools[0] = Pool("a", api::FailureMode::kFailOpen);
  EXPECT_THAT(File("rds-8080.json"), HasSubstr(R"("failure_mode_allow":true)"));
}

TEST_F(EnvoyConfigTest, MatchesAreEnvoys) {
  HttpRoute::Match match{.path_type = HttpRoute::PathType::kExact, .path = "/v1/x", .method = "POST"};
  match.headers = {{.name = "X-Tier", .value = "gold"}, {.name = "x-r", .value = "a.*", .regex = true}};
  match.query = {{.name = "q", .value = "1"}};
  AddRule(match, {To("a")}).request_timeout_ms = 2500;
  AddRule({.path = "/v1/"}, {To("a")});
  AddRule({.path_type = HttpRoute::PathType::kRegex, .path = "/r/\\d+"}, {To("a")});
  const std::string rds = File("rds-8080.json");
  EXPECT_THAT(
      rds,
      HasSubstr(
          R"("match":{"path":"/v1/x","headers":[{"name":":method","string_match":{"exact":"POST"}},)"
          R"({"name":"x-tier","string_match":{"exact":"gold"}},{"name":"x-r","string_match":{"safe_regex":{"regex":"a.*"}}}],)"
          R"("query_parameters":[{"name":"q","string_match":{"exact":"1"}}]})"));
  EXPECT_THAT(rds, HasSubstr(R"("timeout":"2.500s")"));
  EXPECT_THAT(rds, HasSubstr(R"("match":{"path_separated_prefix":"/v1"})"));
  EXPECT_THAT(rds, HasSubstr(R"("match":{"safe_regex":{"regex":"/r/\\d+"}})"));
}

TEST_F(EnvoyConfigTest, WeightsZeroAndMissingBackends) {
  manifests_.pools.push_back(Pool("b"));
  AddRule({.path = "/w"}, {To("a", 3), To("b", 1), To("b", 0), To("gone", 2)});
  AddRule({.path = "/zero"}, {To("a", 0)});
  AddRule({.path = "/gone"}, {To("gone")});
  AddRule({.path = "/empty"}, {});
  const std::string rds = File("rds-8080.json");
  EXPECT_THAT(rds, HasSubstr(R"({"name":"default/a","weight":3,"typed_per_filter_config":)"));
  EXPECT_THAT(rds, HasSubstr(R"({"name":"default/b","weight":1,"typed_per_filter_config":)"));
  EXPECT_THAT(rds, HasSubstr(R"({"name":"fairway-invalid-backend","weight":2}]})"));
  EXPECT_THAT(rds, HasSubstr(R"("cluster_not_found_response_code":"INTERNAL_SERVER_ERROR")"));
  for (const char* path : {"/zero", "/gone", "/empty"}) {
    EXPECT_THAT(rds, HasSubstr("\"path_separated_prefix\":\"" + std::string(path) +
                               "\"},\"direct_response\":{\"status\":500"));
  }
  EXPECT_THAT(rds, HasSubstr(R"("direct_response":{"status":404)"));
}

TEST_F(EnvoyConfigTest, ListenerAsksThePickerOnlyWhereARouteSaysSo) {
  const std::string lds = File("lds.json");
  EXPECT_THAT(lds, HasSubstr(R"("name":"envoy.filters.http.ext_proc","disabled":true)"));
  EXPECT_THAT(
      lds,
      HasSubstr(
          R"("request_body_mode":"BUFFERED","request_trailer_mode":"SKIP","response_header_mode":"SEND","response_body_mode":"NONE")"));
  EXPECT_THAT(lds, HasSubstr(R"("key_matcher":{"prefix":"x-gateway-destination-endpoint"})"));
  EXPECT_THAT(lds, HasSubstr(R"("key_matcher":{"prefix":"x-fairway-"})"));
  EXPECT_LT(lds.find("header_mutation"), lds.find("filters.http.ext_proc"));
  EXPECT_THAT(lds, HasSubstr(R"("message_timeout":"10.000s")"));
  // Inside Envoy the picker removes them itself.
  options_.place = PickerPlace::kModule;
  EXPECT_THAT(File("lds.json"), Not(HasSubstr("header_mutation")));
}

TEST_F(EnvoyConfigTest, Modes) {
  for (const auto& [text, mode] :
       std::vector<std::pair<std::string, std::string>>{{"buffered", "BUFFERED"},
                                                        {"full-duplex", "FULL_DUPLEX_STREAMED"},
                                                        {"streamed", "STREAMED"},
                                                        {"partial", "BUFFERED_PARTIAL"},
                                                        {"none", "NONE"}}) {
    options_.body_mode = *ParseBodyMode(text);
    EXPECT_THAT(File("lds.json"), HasSubstr("\"request_body_mode\":\"" + mode + "\""));
    // Where bodies pass, Envoy keeps of them what it needs for retries.
    const bool whole = mode.starts_with("BUFFERED");
    EXPECT_THAT(File("rds-8080.json"), HasSubstr(whole ? R"("request_body_buffer_limit":"67108864")"
                                                       : R"("request_body_buffer_limit":"1048576")"));
  }
  options_.response_mode = *ParseResponseMode("full");
  EXPECT_THAT(File("lds.json"),
              HasSubstr(R"("response_body_mode":"STREAMED","response_trailer_mode":"SEND")"));
  EXPECT_THAT(ParseBodyMode("duplex").error().message, HasSubstr("want buffered, full-duplex"));
  EXPECT_THAT(ParseResponseMode("").error().message, HasSubstr("want headers or full"));
}

TEST_F(EnvoyConfigTest, UpgradesHaveFiltersThatWaitForNoBody) {
  const std::string lds = File("lds.json");
  const size_t upgrades = lds.find(R"("upgrade_configs":[{"upgrade_type":"websocket","filters":[)");
  ASSERT_NE(upgrades, std::string::npos) << lds;
  EXPECT_NE(lds.find(R"("request_body_mode":"NONE")", upgrades), std::string::npos);
  EXPECT_NE(lds.find(R"("key_matcher":{"prefix":"x-gateway-destination-endpoint"})", upgrades),
            std::string::npos);
  options_.place = PickerPlace::kModule;
  EXPECT_THAT(File("lds.json"), HasSubstr(R"("upgrade_configs":[{"upgrade_type":"websocket"}])"));
}

TEST_F(EnvoyConfigTest, UploadsAreBoundedInTimeAndAllTogetherInMemory) {
  options_.max_heap_bytes = 123456789;
  EXPECT_THAT(File("lds.json"), HasSubstr(R"("request_timeout":"300s")"));
  EXPECT_THAT(File("lds.json"), HasSubstr(R"("per_connection_buffer_limit_bytes":65536)"));
  const std::string bootstrap = File("bootstrap.json");
  EXPECT_THAT(bootstrap, HasSubstr(R"("max_heap_size_bytes":"123456789")"));
  for (const char* action :
       {"shrink_heap", "reset_high_memory_stream", "reduce_timeouts", "stop_accepting_requests"}) {
    EXPECT_THAT(bootstrap, HasSubstr("envoy.overload_actions." + std::string(action)));
  }
  options_.place = PickerPlace::kModule;
  EXPECT_THAT(File("rds-8080.json"), HasSubstr(R"("request_body_buffer_limit":"16777217")"));
}

TEST_F(EnvoyConfigTest, PickerElsewhere) {
  EXPECT_THAT(File("bootstrap.json"), HasSubstr(R"("type":"STATIC")"));
  // Not a port, which every user of the machine reaches; 384 is 0600.
  EXPECT_THAT(File("bootstrap.json"), HasSubstr(R"(/admin.sock","mode":384}}})"));
  EXPECT_THAT(File("bootstrap.json"), Not(HasSubstr("transport_socket")));
  options_.picker = {"epp.example", 9002};
  options_.picker_tls = true;
  EXPECT_THAT(File("bootstrap.json"), HasSubstr(R"("type":"STRICT_DNS")"));
  EXPECT_THAT(File("bootstrap.json"), HasSubstr(R"("alpn_protocols":["h2"])"));
}

}  // namespace
}  // namespace fairway::local
