#include "frontends/envoy_module/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace fairway::envoy_module {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string ErrorOf(std::string_view text) {
  const auto config = ParseConfig(text);
  return config ? "none" : config.error().message;
}

TEST(ModuleConfig, WhereMetricsPagesAre) {
  const auto config = ParseConfig(R"(manifests: [/a]
metricsPath: /stats
metricsScheme: https
metricsPort: 9400
metricsCaFile: /etc/ca.crt
metricsServerName: gpu.example
metricsInsecureSkipVerify: false
)");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->picker.page_path, "/stats");
  EXPECT_EQ(config->picker.page_scheme, "https");
  EXPECT_EQ(config->picker.page_port, 9400);
  EXPECT_EQ(config->picker.page_ca_file, "/etc/ca.crt");
  EXPECT_EQ(config->picker.page_server_name, "gpu.example");
  EXPECT_EQ(config->picker.page_unverified, false);
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"metricsPath":"stats"})"),
              HasSubstr("want a path such as /metrics"));
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"metricsScheme":"ftp"})"), HasSubstr("want http or https"));
}

TEST(ModuleConfig, PeersAreOtherEnvoys) {
  const auto config = ParseConfig(R"(manifests: [/a]
peers:
  addresses: [envoys.gateway.svc, "10.0.0.1:9104"]
  host: 127.0.0.1
  port: 9104
  certDir: /etc/fairway/peers
  caFile: /etc/fairway/peers/ca.crt
  interval: 50ms
)");
  ASSERT_TRUE(config) << config.error().message;
  ASSERT_TRUE(config->picker.peers);
  EXPECT_THAT(config->picker.peers->addresses, ElementsAre("envoys.gateway.svc", "10.0.0.1:9104"));
  EXPECT_EQ(config->picker.peers->port, 9104);
  EXPECT_THAT(config->picker.peers->where, ::testing::MatchesRegex("filter_config:[1-9]: peers\\."));
  EXPECT_EQ(config->picker.peers->interval, 50 * base::kMillisecond);
  EXPECT_EQ(config->picker.peers->ca_file, "/etc/fairway/peers/ca.crt");
  const auto plain = ParseConfig(R"({"manifests":["/a"],"peers":{"addresses":["a"]}})");
  ASSERT_TRUE(plain) << plain.error().message;
  EXPECT_EQ(plain->picker.peers->port, 9004);
  EXPECT_TRUE(plain->picker.peers->tls);
  EXPECT_FALSE(ParseConfig(R"({"manifests":["/a"]})")->picker.peers);
  const auto error = [](const std::string& peers) {
    return ErrorOf(R"({"manifests":["/a"],"peers":)" + peers + "}");
  };
  EXPECT_THAT(error("{}"), HasSubstr("peers.addresses"));
  EXPECT_THAT(error(R"({"addresses":[]})"), HasSubstr("headless Service"));
  EXPECT_THAT(error(R"({"addresses":["a"],"port":0})"), HasSubstr("peers.port"));
  EXPECT_THAT(error(R"({"addresses":["a"],"interval":"1s"})"), HasSubstr("peers.interval"));
  EXPECT_THAT(error(R"({"addresses":["a"],"caFile":"/ca.crt"})"), HasSubstr("needs tls and certDir"));
  EXPECT_THAT(error(R"({"addresses":["a"],"tls":false,"certDir":"/c"})"), HasSubstr("needs tls"));
  EXPECT_THAT(error(R"({"adresses":["a"]})"), HasSubstr("did you mean"));
}

TEST(ModuleConfig, WhoMayReadTheAdminPages) {
  const auto plain = ParseConfig(R"({"manifests":["/a"],"admin":{}})");
  ASSERT_TRUE(plain) << plain.error().message;
  EXPECT_EQ(plain->picker.admin_host, "127.0.0.1");
  EXPECT_EQ(plain->picker.admin_port, 9090);
  EXPECT_EQ(plain->picker.admin_cert_dir + plain->picker.admin_client_ca_file, "");
  EXPECT_THAT(plain->picker.admin_hosts, testing::IsEmpty());
  const auto config = ParseConfig(R"(manifests: [/a]
admin:
  host: "::"
  certDir: /etc/fairway/metrics
  clientCaFile: /etc/fairway/metrics/ca.crt
  allowedHosts: [picker.example.com, other.example.com]
)");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->picker.admin_host, "::");
  EXPECT_EQ(config->picker.admin_cert_dir, "/etc/fairway/metrics");
  EXPECT_EQ(config->picker.admin_client_ca_file, "/etc/fairway/metrics/ca.crt");
  EXPECT_THAT(config->picker.admin_hosts, ElementsAre("picker.example.com", "other.example.com"));
  EXPECT_NE(config->picker.identity, plain->picker.identity);
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"admin":{"clientCaFile":"/ca.crt"}})"),
              HasSubstr("needs certDir"));
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"admin":{"certificates":"/a"}})"), HasSubstr("certificates"));
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"admin":{"allowedHosts":"a"}})"), HasSubstr("allowedHosts"));
}

TEST(ModuleConfig, AStructAsJsonAndTheSameAsYaml) {
  // Envoy writes a Struct's numbers as it likes.
  const auto json = ParseConfig(
      R"({"manifests":["/etc/fairway/m"],"pool":"default/llama","responseMode":"full","failureMode":"FailClose",)"
      R"("maxBodyBytes":1048576.0,"maxEndpoints":2,"metricsMaxBytes":2e6,"sheddableKvLimit":0.5,"scrapeInterval":"100ms","seed":7,)"
      R"("admin":{"port":9091},"explain":true,"hostSelection":"policy","destinationHeader":false,)"
      R"("lastFilter":true,"subsetHint":false})");
  const auto yaml = ParseConfig(R"(manifests: [/etc/fairway/m]
pool: default/llama
responseMode: full
failureMode: FailClose
maxBodyBytes: 1048576
maxEndpoints: 2
metricsMaxBytes: 2000000
sheddableKvLimit: 0.5
scrapeInterval: 100ms
seed: 7
admin:
  port: 9091
explain: true
hostSelection: policy
destinationHeader: false
lastFilter: true
subsetHint: false
)");
  ASSERT_TRUE(json) << json.error().message;
  ASSERT_TRUE(yaml) << yaml.error().message;
  for (const ModuleConfig* config : {&*json, &*yaml}) {
    EXPECT_THAT(config->picker.files, ElementsAre("/etc/fairway/m"));
    EXPECT_EQ(config->filter.pool_key, "default/llama");
    EXPECT_EQ(config->filter.response_mode, ResponseMode::kFull);
    EXPECT_EQ(config->filter.failure_mode, api::FailureMode::kFailClose);
    EXPECT_EQ(config->filter.max_body, 1u << 20);
    EXPECT_EQ(config->picker.max_endpoints, 2u);
    EXPECT_EQ(config->picker.sheddable_kv_limit, 0.5);
    EXPECT_EQ(config->picker.metrics_max_bytes, 2'000'000u);
    EXPECT_EQ(config->picker.scrape_interval, 100 * base::kMillisecond);
    EXPECT_EQ(config->picker.seed, 7u);
    EXPECT_EQ(config->picker.admin_port, 9091);
    EXPECT_TRUE(config->picker.explain);
    EXPECT_EQ(config->filter.host_selection, HostSelection::kPolicy);
    EXPECT_FALSE(config->filter.destination_header);
    EXPECT_TRUE(config->filter.last_filter);
    EXPECT_FALSE(config->picker.use_subset_hint);
    EXPECT_FALSE(config->filter.use_subset_hint);
  }
}

TEST(ModuleConfig, EndpointPickerConfigs) {
  const auto files = ParseConfig(R"(manifests: [/a]
configFile: /etc/epp.yaml
configDir: /etc/pools
shadowConfigFile: /etc/next.yaml
allowExperimentalPlugins: true
featureGates: [flowControl=false]
)");
  ASSERT_TRUE(files) << files.error().message;
  EXPECT_EQ(files->picker.config_file, "/etc/epp.yaml");
  EXPECT_EQ(files->picker.config_directory, "/etc/pools");
  EXPECT_EQ(files->picker.shadow_config_file, "/etc/next.yaml");
  EXPECT_TRUE(files->picker.allow_experimental_plugins);
  EXPECT_THAT(files->picker.feature_gates, ElementsAre("flowControl=false"));
  const auto text = ParseConfig("{manifests: [/a], configText: 'plugins: []'}");
  ASSERT_TRUE(text) << text.error().message;
  EXPECT_EQ(text->picker.config_text, "plugins: []");
  const auto map = ParseConfig(R"({"manifests":["/a"],"configText":{"plugins":[{"type":"queue-scorer"}]}})");
  ASSERT_TRUE(map) << map.error().message;
  EXPECT_EQ(map->picker.config_text, R"({"plugins":[{"type":"queue-scorer"}]})");
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"configText":"x","configFile":"/y"})"),
              HasSubstr("give configFile or configText, not both"));
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"configText":[1]})"), HasSubstr("as a map or as one text"));
}

TEST(ModuleConfig, FiltersShareAPickerWhenTheySayTheSameOfIt) {
  const auto identity = [](std::string_view text) { return ParseConfig(text)->picker.identity; };
  const std::string base = identity(R"({"manifests":["/a"],"seed":1})");
  EXPECT_EQ(
      identity(R"({"seed":1,"manifests":["/a"],"pool":"x/y","responseMode":"full","hostSelection":"policy",)"
               R"("destinationHeader":false,"lastFilter":true})"),
      base);
  EXPECT_NE(identity(R"({"manifests":["/b"],"seed":1})"), base);
  EXPECT_NE(identity(R"({"manifests":["/a"],"seed":2})"), base);
}

TEST(ModuleConfig, ObjectsInPlaceAsAListOrAsText) {
  constexpr std::string_view kPool =
      R"({"apiVersion":"inference.networking.x-k8s.io/v1alpha2","kind":"InferencePool","metadata":{"name":"p"},)"
      R"("spec":{"selector":{"app":"x"},"targetPortNumber":8000,"extensionRef":{"name":"e"}}})";
  const auto list = ParseConfig(R"({"objects":[)" + std::string(kPool) + "]}");
  ASSERT_TRUE(list) << list.error().message;
  ASSERT_EQ(list->picker.manifests.pools.size(), 1u);
  const auto text = ParseConfig("objects: |\n  " + std::string(kPool) + "\n");
  ASSERT_TRUE(text) << text.error().message;
  EXPECT_EQ(text->picker.manifests.pools[0].meta.name, "p");
  EXPECT_THAT(
      ErrorOf(R"({"objects":[{"apiVersion":"inference.networking.k8s.io/v1","kind":"InferencePol"}]})"),
      HasSubstr("InferencePool"));
}

TEST(ModuleConfig, APoolThatOnlyAClusterTellsOf) {
  const auto config =
      ParseConfig(R"({"pools":[{"name":"default/llama","cluster":"outbound","labels":["role"]}]})");
  ASSERT_TRUE(config) << config.error().message;
  ASSERT_EQ(config->picker.clusters.size(), 1u);
  EXPECT_EQ(config->picker.clusters[0].cluster, "outbound");
  EXPECT_THAT(config->picker.clusters[0].label_keys, ElementsAre("role"));
  EXPECT_EQ(api::Key(config->picker.manifests.pools.at(0).meta), "default/llama");
  EXPECT_EQ(ParseConfig(R"({"pools":[{"name":"a/b"}]})")->picker.clusters[0].cluster, "a/b");
}

TEST(ModuleConfig, APoolOfTheKubernetesApi) {
  const auto config = ParseConfig(
      R"({"kubernetes":{"pool":"models/llama","kubeconfig":"/k"},"pools":[{"name":"models/llama"}]})");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->picker.kubernetes->pool_key, "models/llama");
  EXPECT_EQ(config->picker.kubernetes->kubeconfig, "/k");
  EXPECT_TRUE(config->picker.manifests.pools.empty());  // the API's is the one that counts
  EXPECT_THAT(ErrorOf(R"({"kubernetes":{"pool":"a/b"},"manifests":["/m"]})"), HasSubstr("not both"));
  EXPECT_THAT(ErrorOf(R"({"kubernetes":{}})"), HasSubstr("kubernetes.pool"));
}

TEST(ModuleConfig, MistakesNameLineFieldAndWhatWouldBeRight) {
  EXPECT_THAT(ErrorOf("manifests: [/a]\nresponsemode: full\n"),
              HasSubstr("filter_config:2: responsemode: unknown field; did you mean \"responseMode\"?"));
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"responseMode":"ful"})"), HasSubstr("full"));
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"hostSelection":"polici"})"), HasSubstr("policy"));
  EXPECT_THAT(ErrorOf("manifests: [/a]\ndestinationHeader: false\n"),
              HasSubstr("filter_config:2: destinationHeader: only with hostSelection: policy"));
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"lastFilter":true})"), HasSubstr("hostSelection: policy only"));
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"scrapeInterval":"fast"})"),
              HasSubstr("want a duration like 50ms, 2s or 1m30s, got \"fast\""));
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"maxEndpoints":9})"), HasSubstr("want a number from 1 to 8"));
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"maxEndpoints":1.5})"), HasSubstr("want a whole number"));
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"explain":"yes"})"), HasSubstr("want true or false"));
  EXPECT_THAT(ErrorOf(R"({"manifests":["/a"],"pool":"llama"})"), HasSubstr("namespace/name"));
  EXPECT_THAT(ErrorOf(R"({"manifests":["-"]})"), HasSubstr("want the path of a file or folder"));
  EXPECT_THAT(ErrorOf("{}"), HasSubstr("nothing to pick from"));
  // All of them at once.
  const std::string both = ErrorOf(R"({"manifests":["/a"],"maxEndpoints":0,"loraExploration":2})");
  EXPECT_THAT(both, HasSubstr("maxEndpoints"));
  EXPECT_THAT(both, HasSubstr("loraExploration"));
}

TEST(ModuleConfig, AnyBytesGiveAnError) {
  for (const std::string_view text :
       {"", "[]", "{", "\xff\xfe", "- a\n- b\n", "null", "{\"a\":1}{\"b\":2}"}) {
    EXPECT_NE(ErrorOf(text), "none") << text;
    EXPECT_FALSE(ParseRouteConfig(text)) << text;
  }
}

TEST(RouteConfig, PoolAndFailureMode) {
  const auto config = ParseRouteConfig(R"({"pool":"default/llama","failureMode":"FailOpen"})");
  ASSERT_TRUE(config);
  EXPECT_EQ(config->pool_key, "default/llama");
  EXPECT_EQ(config->failure_mode, api::FailureMode::kFailOpen);
  EXPECT_THAT(ParseRouteConfig(R"({"pol":"a/b"})").error().message, HasSubstr("did you mean \"pool\"?"));
}

}  // namespace
}  // namespace fairway::envoy_module
