// EndpointPickerConfig: every field with its default, every rule with its words and line, and the reference's
// sample configs.
#include "api/endpoint_picker_config.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "api/decode.h"

namespace fairway::api {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::IsEmpty;

using Config = EndpointPickerConfig;

// Two lines, so that what follows begins in line 3.
const std::string kHead = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n";

std::vector<std::string> Texts(const EndpointPickerConfigResult& result) {
  std::vector<std::string> out;
  for (const Problem& problem : result.problems) out.push_back(ToString(problem));
  return out;
}

EndpointPickerConfigResult Parse(const std::string& body) {
  return ParseEndpointPickerConfig(kHead + body, "c");
}

// What the loader says to a config of version v1 with this body.
std::vector<std::string> Problems(const std::string& body) { return Texts(Parse(body)); }

// The names of instances that references use below.
const std::string kPlugins = "plugins: [{type: queue-scorer, name: q}, {type: random-picker}]\n";  // line 3

std::string Name(const std::optional<Config::Ref>& ref) { return ref ? ref->name : "none"; }

TEST(EndpointPickerConfigFields, AllOfThem) {
  const EndpointPickerConfigResult result =
      Parse(R"(featureGates: [flowControl, haPopulateNonLeaderDatastore=false]
plugins:
- type: queue-scorer
- {type: queue-scorer, name: second, parameters: {a: 1}}
- {type: file-discovery, name: files}
- {type: peers}
- {type: syncer}
- {type: fair}
- {type: order}
- {type: limit}
- {type: detector}
- {type: source}
- {type: extractor}
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
  - {pluginRef: second, weight: -2.5}
- name: other
dataLayer:
  injectDefaults: false
  sources:
  - {pluginRef: source, extractors: [{pluginRef: extractor}]}
  discovery:
    endpoints: {pluginRef: files}
    peers: {pluginRef: peers}
  crossReplica: {syncerPluginRef: syncer, syncInterval: 500ms, publishTimeout: 2s}
flowControl:
  maxBytes: 1Gi
  maxRequests: "1k"
  defaultRequestTTL: 30s
  noEndpointRequestTTL: 5m
  defaultPriorityBand: {maxRequests: 10}
  defaultNegativePriorityBand: {maxBytes: 1M}
  priorityBands:
  - {priority: 10, maxBytes: 1e3, maxRequests: 7, defaultRequestTTL: 5s, fairnessPolicyRef: fair, orderingPolicyRef: order}
  - {priority: -1}
  usageLimitPolicyPluginRef: limit
  saturationDetector: {pluginRef: detector}
  enableEviction: true
requestHandler:
  parsers: [{pluginRef: openai-parser}, {pluginRef: vllmgrpc-parser}]
  propagatePriority: true
)");
  ASSERT_THAT(Texts(result), IsEmpty());
  const Config& config = result.config;
  EXPECT_EQ(config.api_version, "llm-d.ai/v1");
  EXPECT_TRUE(config.feature_gates.flow_control);
  EXPECT_FALSE(config.feature_gates.ha_populate_non_leader_datastore);

  ASSERT_EQ(config.plugins.size(), 11u);
  EXPECT_EQ(config.plugins[0].name, "queue-scorer");
  EXPECT_EQ(config.plugins[0].parameters, nullptr);
  EXPECT_EQ(config.plugins[1].type, "queue-scorer");
  EXPECT_EQ(config.plugins[1].name, "second");
  EXPECT_EQ(config.plugins[1].field, "plugins[1]");
  EXPECT_EQ(config.plugins[1].where.line, 6);
  ASSERT_NE(config.plugins[1].parameters, nullptr);
  EXPECT_EQ(config.plugins[1].parameters->Find("a")->text, "1");
  EXPECT_EQ(config.Find("second"), &config.plugins[1]);
  EXPECT_EQ(config.Find("third"), nullptr);

  ASSERT_EQ(config.profiles.size(), 2u);
  ASSERT_EQ(config.profiles[0].plugins.size(), 2u);
  EXPECT_EQ(config.profiles[0].plugins[0].weight, std::nullopt);
  EXPECT_EQ(config.profiles[0].plugins[1].weight, -2.5);
  EXPECT_EQ(config.profiles[0].plugins[1].plugin.field, "schedulingProfiles[0].plugins[1].pluginRef");
  EXPECT_EQ(config.profiles[0].plugins[1].plugin.where.line, 20);
  EXPECT_THAT(config.profiles[1].plugins, IsEmpty());

  EXPECT_FALSE(config.data_layer.inject_defaults);
  ASSERT_EQ(config.data_layer.sources.size(), 1u);
  EXPECT_EQ(config.data_layer.sources[0].extractors[0].name, "extractor");
  EXPECT_EQ(Name(config.data_layer.discovery_endpoints), "files");
  EXPECT_EQ(Name(config.data_layer.discovery_peers), "peers");
  EXPECT_EQ(Name(config.data_layer.cross_replica.syncer), "syncer");
  EXPECT_EQ(config.data_layer.cross_replica.sync_interval_ns, 500'000'000);
  EXPECT_EQ(config.data_layer.cross_replica.publish_timeout_ns, 2'000'000'000);

  const Config::FlowControl& control = config.flow_control;
  EXPECT_EQ(control.max_bytes, uint64_t{1} << 30);
  EXPECT_EQ(control.max_requests, 1000u);
  EXPECT_EQ(control.default_request_ttl_ns, 30'000'000'000);
  EXPECT_EQ(control.no_endpoint_request_ttl_ns, 300'000'000'000);
  EXPECT_EQ(control.default_band->max_requests, 10u);
  EXPECT_EQ(control.default_negative_band->max_bytes, 1'000'000u);
  ASSERT_EQ(control.bands.size(), 2u);
  EXPECT_EQ(control.bands[0].priority, 10);
  EXPECT_EQ(control.bands[0].max_bytes, 1000u);
  EXPECT_EQ(control.bands[0].max_requests, 7u);
  EXPECT_EQ(control.bands[0].default_request_ttl_ns, 5'000'000'000);
  EXPECT_EQ(Name(control.bands[0].fairness_policy), "fair");
  EXPECT_EQ(Name(control.bands[0].ordering_policy), "order");
  EXPECT_EQ(control.bands[1].priority, -1);
  EXPECT_EQ(control.bands[1].max_bytes, std::nullopt);
  EXPECT_EQ(Name(control.usage_limit_policy), "limit");
  EXPECT_EQ(Name(control.saturation_detector), "detector");
  EXPECT_TRUE(control.enable_eviction);

  ASSERT_EQ(config.parsers.size(), 2u);
  EXPECT_EQ(config.parsers[1].name, "vllmgrpc-parser");
  EXPECT_TRUE(config.propagate_priority);
}

TEST(EndpointPickerConfigFields, Defaults) {
  const EndpointPickerConfigResult result = Parse("");
  ASSERT_THAT(Texts(result), IsEmpty());
  const Config& config = result.config;
  EXPECT_FALSE(config.feature_gates.flow_control);
  EXPECT_TRUE(config.feature_gates.ha_populate_non_leader_datastore);
  EXPECT_THAT(config.plugins, IsEmpty());
  EXPECT_THAT(config.profiles, IsEmpty());
  EXPECT_TRUE(config.data_layer.inject_defaults);
  EXPECT_EQ(config.flow_control.default_request_ttl_ns, std::nullopt);
  EXPECT_EQ(config.flow_control.max_bytes, std::nullopt);
  EXPECT_FALSE(config.flow_control.enable_eviction);
  EXPECT_THAT(config.parsers, IsEmpty());
}

TEST(EndpointPickerConfigFields, NullAndEmptyAreAbsent) {
  const EndpointPickerConfigResult result = Parse(R"(featureGates: null
plugins: [{type: queue-scorer, name: "", parameters: null}]
schedulingProfiles: []
dataLayer: {crossReplica: {syncerPluginRef: ""}}
flowControl: {saturationDetector: {pluginRef: ""}, usageLimitPolicyPluginRef: ""}
requestHandler: {parsers: []}
)");
  EXPECT_THAT(
      Texts(result),
      ElementsAre("c:7: warning: EndpointPickerConfig: flowControl: has no effect but for "
                  "saturationDetector: the feature gate flowControl is off (featureGates: [flowControl])"));
  EXPECT_EQ(result.config.plugins[0].name, "queue-scorer");
  EXPECT_EQ(result.config.plugins[0].parameters, nullptr);
  EXPECT_EQ(result.config.flow_control.saturation_detector, std::nullopt);
}

TEST(EndpointPickerConfigFields, JsonIsTheSame) {
  const EndpointPickerConfigResult result = ParseEndpointPickerConfig(
      R"({"apiVersion": "llm-d.ai/v1", "kind": "EndpointPickerConfig",
          "plugins": [{"type": "queue-scorer", "parameters": {"x": [1, 2]}}],
          "schedulingProfiles": [{"name": "default", "plugins": [{"pluginRef": "queue-scorer", "weight": 2e0}]}]})",
      "--config-text");
  EXPECT_THAT(Texts(result), IsEmpty());
  EXPECT_EQ(result.config.profiles[0].plugins[0].weight, 2.0);
  EXPECT_EQ(result.config.plugins[0].where.file, "--config-text");
}

TEST(EndpointPickerConfigFields, ParametersAreReadLaterWithTheirPlace) {
  const EndpointPickerConfigResult result = Parse(R"(plugins:
- type: no-hit-lru-scorer
  parameters:
    lruSise: 2048
- type: queue-scorer
)");
  ASSERT_THAT(Texts(result), IsEmpty());
  std::vector<Problem> found;
  ProblemList problems("c", found);
  const ObjectContext context{&problems, "plugin no-hit-lru-scorer"};
  ObjectReader reader(ParametersOf(context, result.config.plugins[0]));
  reader.Get("lruSize").Integer(1, 100);
  reader.Finish();
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(ToString(found[0]),
            "c:6: plugin no-hit-lru-scorer: plugins[0].parameters.lruSise: unknown field; did you mean "
            "\"lruSize\"?");
  ObjectReader none(ParametersOf(context, result.config.plugins[1]));
  EXPECT_FALSE(none.valid());
  none.Finish();
  EXPECT_EQ(found.size(), 1u);
}

// --- Versions and fields that moved. ---

TEST(EndpointPickerConfigVersions, OldOnesNameTheirSuccessor) {
  for (const std::string version : {"llm-d.ai/v1alpha1", "inference.networking.x-k8s.io/v1alpha1"}) {
    const EndpointPickerConfigResult result =
        ParseEndpointPickerConfig("kind: EndpointPickerConfig\napiVersion: " + version + "\n", "c");
    EXPECT_THAT(Texts(result), ElementsAre("c:2: warning: EndpointPickerConfig: apiVersion: \"" + version +
                                           "\" is deprecated; use \"llm-d.ai/v1\""));
    EXPECT_TRUE(result.ok());
    EXPECT_EQ(result.config.api_version, version);
  }
}

TEST(EndpointPickerConfigVersions, OldPlacesAreTakenWithAWarning) {
  const EndpointPickerConfigResult result = Parse(R"(plugins: [{type: a}, {type: b}, {type: c}, {type: d}]
dataLayer:
  discovery: {pluginRef: a}
  peerDiscovery: {pluginRef: b}
  crossReplicaSyncerPluginRef: c
  crossReplicaSyncInterval: 1s
  crossReplicaPublishTimeout: 2s
saturationDetector: {pluginRef: d}
parser: {pluginRef: openai-parser}
)");
  EXPECT_TRUE(result.ok());
  EXPECT_THAT(
      Texts(result),
      ElementsAre(
          "c:5: warning: EndpointPickerConfig: dataLayer.discovery.pluginRef: is deprecated; it is "
          "dataLayer.discovery.endpoints.pluginRef now",
          "c:6: warning: EndpointPickerConfig: dataLayer.peerDiscovery: is deprecated; it is "
          "dataLayer.discovery.peers now",
          "c:7: warning: EndpointPickerConfig: dataLayer.crossReplicaSyncerPluginRef: is deprecated; it is "
          "dataLayer.crossReplica.syncerPluginRef now",
          "c:8: warning: EndpointPickerConfig: dataLayer.crossReplicaSyncInterval: is deprecated; it is "
          "dataLayer.crossReplica.syncInterval now",
          "c:9: warning: EndpointPickerConfig: dataLayer.crossReplicaPublishTimeout: is deprecated; it is "
          "dataLayer.crossReplica.publishTimeout now",
          "c:10: warning: EndpointPickerConfig: saturationDetector: is deprecated; it is "
          "flowControl.saturationDetector now",
          "c:11: warning: EndpointPickerConfig: parser: is deprecated; it is requestHandler.parsers now"));
  const Config& config = result.config;
  EXPECT_EQ(Name(config.data_layer.discovery_endpoints), "a");
  EXPECT_EQ(Name(config.data_layer.discovery_peers), "b");
  EXPECT_EQ(Name(config.data_layer.cross_replica.syncer), "c");
  EXPECT_EQ(config.data_layer.cross_replica.sync_interval_ns, 1'000'000'000);
  EXPECT_EQ(config.data_layer.cross_replica.publish_timeout_ns, 2'000'000'000);
  EXPECT_EQ(Name(config.flow_control.saturation_detector), "d");
  ASSERT_EQ(config.parsers.size(), 1u);
  EXPECT_EQ(config.parsers[0].name, "openai-parser");
}

TEST(EndpointPickerConfigVersions, TheNewPlaceWins) {
  const EndpointPickerConfigResult result = Parse(R"(plugins: [{type: new}]
dataLayer:
  discovery: {pluginRef: old, endpoints: {pluginRef: new}, peers: {pluginRef: new}}
  peerDiscovery: {pluginRef: old}
  crossReplica: {syncerPluginRef: new, syncInterval: 1s}
  crossReplicaSyncerPluginRef: old
  crossReplicaSyncInterval: 9s
flowControl: {saturationDetector: {pluginRef: new}}
saturationDetector: {pluginRef: old}
requestHandler: {parsers: [{pluginRef: new}]}
parser: {pluginRef: old}
)");
  EXPECT_TRUE(result.ok());
  EXPECT_THAT(
      Texts(result),
      ElementsAre(
          "c:5: warning: EndpointPickerConfig: dataLayer.discovery.pluginRef: is deprecated and has no "
          "effect, because dataLayer.discovery.endpoints.pluginRef is set, too",
          "c:6: warning: EndpointPickerConfig: dataLayer.peerDiscovery: is deprecated and has no effect, "
          "because dataLayer.discovery.peers is set, too",
          "c:8: warning: EndpointPickerConfig: dataLayer.crossReplicaSyncerPluginRef: is deprecated and has "
          "no effect, because dataLayer.crossReplica.syncerPluginRef is set, too",
          "c:9: warning: EndpointPickerConfig: dataLayer.crossReplicaSyncInterval: is deprecated and has no "
          "effect, because dataLayer.crossReplica.syncInterval is set, too",
          "c:11: warning: EndpointPickerConfig: saturationDetector: is deprecated and has no effect, because "
          "flowControl.saturationDetector is set, too",
          "c:13: warning: EndpointPickerConfig: parser: is deprecated and has no effect, because "
          "requestHandler.parsers is set, too"));
  const Config& config = result.config;
  EXPECT_EQ(Name(config.data_layer.discovery_endpoints), "new");
  EXPECT_EQ(Name(config.data_layer.discovery_peers), "new");
  EXPECT_EQ(Name(config.data_layer.cross_replica.syncer), "new");
  EXPECT_EQ(config.data_layer.cross_replica.sync_interval_ns, 1'000'000'000);
  EXPECT_EQ(Name(config.flow_control.saturation_detector), "new");
  ASSERT_EQ(config.parsers.size(), 1u);
  EXPECT_EQ(config.parsers[0].name, "new");
}

// --- The rules, one by one: the body of a v1 config and all that is said about it. ---

struct Rule {
  const char* name;
  std::string body;
  std::vector<std::string> problems;  // behind "EndpointPickerConfig: "
  friend void PrintTo(const Rule& rule, std::ostream* out) { *out << rule.body; }
};

class EndpointPickerConfigRules : public ::testing::TestWithParam<Rule> {};

TEST_P(EndpointPickerConfigRules, SaysWhatIsWrong) {
  std::vector<std::string> found = Problems(GetParam().body);
  for (std::string& text : found) {
    const std::string object = "EndpointPickerConfig: ";
    if (const size_t at = text.find(object); at != std::string::npos) text.erase(at, object.size());
  }
  EXPECT_THAT(found, ElementsAreArray(GetParam().problems));
}

const std::vector<Rule> kRules = {
    // Plugins.
    {"PluginWithoutType", "plugins: [{name: a}]", {"c:3: plugins[0].type: is required"}},
    {"PluginWithEmptyType",
     "plugins: [{type: ''}]",
     {"c:3: plugins[0].type: want 1 to 253 characters, got \"\""}},
    {"PluginTwice",
     "plugins:\n- type: queue-scorer\n- type: queue-scorer",
     {"c:5: plugins[1].name: \"queue-scorer\" is taken by plugins[0] in line 4; give one of the two another "
      "name"}},
    {"NameTwice",
     "plugins:\n- {type: a, name: x}\n- {type: b, name: x}",
     {"c:5: plugins[1].name: \"x\" is taken by plugins[0] in line 4"}},
    {"UnknownFieldOfAPlugin",
     "plugins: [{type: a, parameter: {}}]",
     {"c:3: plugins[0].parameter: unknown field; did you mean \"parameters\"?"}},
    {"WeightAtThePlugin",
     "plugins: [{type: a, weight: 2}]",
     {"c:3: plugins[0].weight: unknown field; weights stand in schedulingProfiles"}},
    {"ParametersAsAList",
     "plugins: [{type: a, parameters: [1]}]",
     {"c:3: plugins[0].parameters: want a map, got a list"}},
    {"PluginsAsAMap", "plugins: {a: b}", {"c:3: plugins: want a list, got a map"}},
    {"PluginAsAString", "plugins: [a]", {"c:3: plugins[0]: want a map, got the string \"a\""}},
    // Profiles.
    {"ProfileWithoutName",
     "schedulingProfiles: [{plugins: []}]",
     {"c:3: schedulingProfiles[0].name: is required"}},
    {"ProfileTwice",
     "schedulingProfiles:\n- name: a\n- name: a",
     {"c:5: schedulingProfiles[1].name: \"a\" is taken by schedulingProfiles[0] in line 4"}},
    {"NoPluginRef",
     "schedulingProfiles: [{name: a, plugins: [{weight: 1}]}]",
     {"c:3: schedulingProfiles[0].plugins[0].pluginRef: is required"}},
    {"EmptyPluginRef",
     "schedulingProfiles: [{name: a, plugins: [{pluginRef: ''}]}]",
     {"c:3: schedulingProfiles[0].plugins[0].pluginRef: want 1 to 253 characters, got \"\""}},
    {"PluginRefToNothing",
     "schedulingProfiles: [{name: a, plugins: [{pluginRef: x}]}]",
     {"c:3: schedulingProfiles[0].plugins[0].pluginRef: no \"x\" among plugins; plugins is empty"}},
    {"AReferenceIsNoPlugin",
     "saturationDetector: {type: utilization-detector, plugginRef: x}\nflowControl: {saturationDetector: "
     "{queueDepthThreshold: 5, pluginref: x}}",
     {"c:3: warning: saturationDetector: is deprecated and has no effect, because "
      "flowControl.saturationDetector is "
      "set, too",
      "c:3: saturationDetector.type: unknown field; here is pluginRef alone, the name of a plugin; its type "
      "and "
      "parameters stand under plugins",
      "c:3: saturationDetector.plugginRef: unknown field; did you mean \"pluginRef\"?",
      "c:4: flowControl.saturationDetector.queueDepthThreshold: unknown field; here is pluginRef alone, the "
      "name of "
      "a plugin; its type and parameters stand under plugins",
      "c:4: flowControl.saturationDetector.pluginref: unknown field; did you mean \"pluginRef\"?"}},
    {"PluginRefAlmostRight",
     "plugins: [{type: queue-scorer}]\nschedulingProfiles: [{name: a, plugins: [{pluginRef: queue-score}]}]",
     {"c:4: schedulingProfiles[0].plugins[0].pluginRef: no \"queue-score\" among plugins; did you mean "
      "\"queue-scorer\"?"}},
    {"PluginRefToAType",
     kPlugins + "schedulingProfiles: [{name: a, plugins: [{pluginRef: queue-scorer}]}]",
     {"c:4: schedulingProfiles[0].plugins[0].pluginRef: no \"queue-scorer\" among plugins; plugins[0] of "
      "that type "
      "is called \"q\""}},
    {"PluginTwiceInAProfile",
     kPlugins + "schedulingProfiles: [{name: a, plugins: [{pluginRef: q}, {pluginRef: q}]}]",
     {"c:4: warning: schedulingProfiles[0].plugins[1].pluginRef: \"q\" is there twice in this profile, and "
      "counts "
      "twice"}},
    {"TypeInAProfile",
     kPlugins + "schedulingProfiles: [{name: a, plugins: [{pluginRef: q, type: queue-scorer}]}]",
     {"c:4: schedulingProfiles[0].plugins[0].type: unknown field; plugins are made under plugins; here is "
      "pluginRef, "
      "the name of one"}},
    {"WeightInQuotes",
     kPlugins + "schedulingProfiles: [{name: a, plugins: [{pluginRef: q, weight: '2'}]}]",
     {"c:4: schedulingProfiles[0].plugins[0].weight: want a number, got the string \"2\""}},
    {"WeightWithoutEnd",
     kPlugins + "schedulingProfiles: [{name: a, plugins: [{pluginRef: q, weight: .inf}]}]",
     {"c:4: schedulingProfiles[0].plugins[0].weight: want a number, got \".inf\""}},
    {"WeightTooLarge",
     kPlugins + "schedulingProfiles: [{name: a, plugins: [{pluginRef: q, weight: 1e999}]}]",
     {"c:4: schedulingProfiles[0].plugins[0].weight: want a number, got \"1e999\""}},
    {"WeightsOfAnySign",
     kPlugins +
         "schedulingProfiles: [{name: a, plugins: [{pluginRef: q, weight: -1}, {pluginRef: random-picker, "
         "weight: 0}]}]",
     {}},
    {"DefaultsNeedNoEntry", "schedulingProfiles: [{name: a, plugins: [{pluginRef: max-score-picker}]}]", {}},
    // Feature gates.
    {"UnknownGate",
     "featureGates: [magic]",
     {"c:3: featureGates[0]: feature gate \"magic\" is unknown; there are flowControl and "
      "haPopulateNonLeaderDatastore"}},
    {"GateAlmostRight",
     "featureGates: [flowcontrol]",
     {"c:3: featureGates[0]: feature gate \"flowcontrol\" is unknown; did you mean \"flowControl\"?"}},
    {"GoneGate",
     "featureGates:\n- prepareDataPlugins=true",
     {"c:4: featureGates[0]: feature gate \"prepareDataPlugins\" is gone: nothing is left to switch; take it "
      "out"}},
    {"GateWithABadValue",
     "featureGates: ['flowControl=maybe']",
     {"c:3: featureGates[0]: want flowControl, flowControl=true or flowControl=false, got "
      "\"flowControl=maybe\""}},
    {"MoreParametersThanAPluginCanHave",
     "plugins: [{type: queue-scorer, parameters: {" +
         [] {
           std::string many = "a: 1";
           for (int i = 0; i < 1000; ++i) many += ", p" + std::to_string(i) + ": 1";
           return many;
         }() +
         "}}]",
     {"c:3: plugins[0].parameters: at most 1000 entries, not 1001"}},
    {"GatesAsGoReadsThem", "featureGates: [flowControl=T, 'haPopulateNonLeaderDatastore= FALSE']", {}},
    {"GateAsAMap", "featureGates: {flowControl: true}", {"c:3: featureGates: want a list, got a map"}},
    // The data layer.
    {"SourceWithoutRef",
     "dataLayer: {sources: [{extractors: []}]}",
     {"c:3: dataLayer.sources[0].pluginRef: is required"}},
    {"SourceToNothing",
     kPlugins + "dataLayer: {sources: [{pluginRef: nobody, extractors: [{pluginRef: nothing}]}]}",
     {"c:4: dataLayer.sources[0].pluginRef: no \"nobody\" among plugins",
      "c:4: dataLayer.sources[0].extractors[0].pluginRef: no \"nothing\" among plugins"}},
    {"DiscoveryToNothing",
     kPlugins + "dataLayer: {discovery: {endpoints: {pluginRef: nobody}, peers: {}}}",
     {"c:4: dataLayer.discovery.peers.pluginRef: is required",
      "c:4: dataLayer.discovery.endpoints.pluginRef: no \"nobody\" among plugins"}},
    {"SyncerToNothing",
     kPlugins + "dataLayer: {crossReplica: {syncerPluginRef: nobody}}",
     {"c:4: dataLayer.crossReplica.syncerPluginRef: no \"nobody\" among plugins"}},
    {"InjectDefaultsAsAString",
     "dataLayer: {injectDefaults: 'false'}",
     {"c:3: dataLayer.injectDefaults: want true or false, got the string \"false\""}},
    {"IntervalWithoutUnit",
     "dataLayer: {crossReplica: {syncInterval: 5}}",
     {"c:3: dataLayer.crossReplica.syncInterval: want a duration such as \"60s\", \"1m30s\" or \"500ms\", "
      "got the "
      "number \"5\""}},
    {"TimeoutOfNothing",
     "dataLayer: {crossReplica: {publishTimeout: 0s}}",
     {"c:3: dataLayer.crossReplica.publishTimeout: must be more than 0"}},
    // Flow control.
    {"NegativeQuantity",
     "featureGates: [flowControl]\nflowControl: {maxBytes: -1}",
     {"c:4: flowControl.maxBytes: must not be negative, got \"-1\""}},
    {"NegativeQuantityOfABand",
     "featureGates: [flowControl]\nflowControl: {priorityBands: [{priority: 1, maxRequests: '-1k'}]}",
     {"c:4: flowControl.priorityBands[0].maxRequests: must not be negative, got \"-1k\""}},
    {"NoQuantity",
     "featureGates: [flowControl]\nflowControl: {maxBytes: 1MB, maxRequests: true}",
     {"c:4: flowControl.maxBytes: want a quantity such as \"1Gi\", \"500M\" or 1000, got \"1MB\"",
      "c:4: flowControl.maxRequests: want a quantity such as \"1Gi\", \"500M\" or 1000, got the boolean "
      "true"}},
    {"NegativeDuration",
     "featureGates: [flowControl]\nflowControl: {defaultRequestTTL: -1s}",
     {"c:4: flowControl.defaultRequestTTL: must not be negative, got \"-1s\""}},
    {"NoDuration",
     "featureGates: [flowControl]\nflowControl: {noEndpointRequestTTL: soon}",
     {"c:4: flowControl.noEndpointRequestTTL: want a duration such as \"60s\", \"1m30s\" or \"500ms\", got "
      "\"soon\""}},
    {"PriorityTwice",
     "featureGates: [flowControl]\nflowControl:\n  priorityBands:\n  - priority: 5\n  - priority: 5",
     {"c:7: flowControl.priorityBands[1].priority: 5 is taken by flowControl.priorityBands[0] in line 6"}},
    {"PriorityMissing",
     "featureGates: [flowControl]\nflowControl:\n  priorityBands:\n  - maxRequests: 5",
     {"c:6: warning: flowControl.priorityBands[0].priority: is not set, so the band is that of priority 0"}},
    {"PriorityOfATemplate",
     "featureGates: [flowControl]\nflowControl: {defaultPriorityBand: {priority: 1}}",
     {"c:4: warning: flowControl.defaultPriorityBand.priority: has no effect: this band is a template for "
      "priorities "
      "that have none of their own"}},
    {"PriorityWithAFraction",
     "featureGates: [flowControl]\nflowControl: {priorityBands: [{priority: 1.5}]}",
     {"c:4: flowControl.priorityBands[0].priority: want a whole number from -2147483648 to 2147483647, got "
      "\"1.5\""}},
    {"PoliciesToNothing",
     "featureGates: [flowControl]\n" + kPlugins +
         "flowControl:\n  defaultPriorityBand: {fairnessPolicyRef: unfair}\n  priorityBands:\n  - {priority: "
         "1, "
         "orderingPolicyRef: disorder}\n  usageLimitPolicyPluginRef: no-limit",
     {"c:6: flowControl.defaultPriorityBand.fairnessPolicyRef: no \"unfair\" among plugins",
      "c:8: flowControl.priorityBands[0].orderingPolicyRef: no \"disorder\" among plugins",
      "c:9: flowControl.usageLimitPolicyPluginRef: no \"no-limit\" among plugins"}},
    {"DetectorToNothing",
     kPlugins + "flowControl: {saturationDetector: {pluginRef: nobody}}",
     {"c:4: flowControl.saturationDetector.pluginRef: no \"nobody\" among plugins"}},
    {"QueueOfOldConfigs",
     "featureGates: [flowControl]\nflowControl: {priorityBands: [{priority: 1, queue: ListQueue}]}",
     {"c:4: flowControl.priorityBands[0].queue: unknown field; kinds of queues are gone: the ordering policy "
      "says "
      "all"}},
    {"FlowControlSwitchedOff",
     kPlugins + "flowControl: {maxBytes: -1, priorityBands: [{priority: 1, fairnessPolicyRef: unfair}, "
                "{priority: 1}]}",
     {"c:4: warning: flowControl.maxBytes: must not be negative, got \"-1\"",
      "c:4: warning: flowControl: has no effect but for saturationDetector: the feature gate flowControl is "
      "off "
      "(featureGates: [flowControl])",
      "c:4: warning: flowControl.priorityBands[1].priority: 1 is taken by flowControl.priorityBands[0] in "
      "line 4",
      "c:4: warning: flowControl.priorityBands[0].fairnessPolicyRef: no \"unfair\" among plugins"}},
    // Parsers.
    {"ParserToNothing",
     "requestHandler: {parsers: [{pluginRef: my-parser}]}",
     {"c:3: requestHandler.parsers[0].pluginRef: no \"my-parser\" among plugins; plugins is empty"}},
    {"ParserWithoutRef",
     "requestHandler: {parsers: [{}]}",
     {"c:3: requestHandler.parsers[0].pluginRef: is required"}},
    {"ParserInTheSingular",
     "requestHandler: {parser: {pluginRef: openai-parser}}",
     {"c:3: requestHandler.parser: unknown field; it is parsers, a list"}},
    {"ParsersNeedNoEntry",
     "requestHandler: {parsers: [{pluginRef: sglanghttp-parser}, {pluginRef: passthrough-parser}]}",
     {}},
    // The document.
    {"UnknownSection",
     "schedulingProfile: []",
     {"c:3: schedulingProfile: unknown field; did you mean \"schedulingProfiles\"?"}},
    {"Metadata",
     "metadata: {name: a}",
     {"c:3: metadata: unknown field; the config looks like an object of Kubernetes and is none: it has no "
      "name"}},
    {"FieldTwice",
     "plugins: []\nplugins: []",
     {"c:4: the key \"plugins\" is here twice; it was first set on line 3"}},
    {"SecondDocument", "---\n" + kHead, {"c:4: a second document; one config is all there is"}},
    {"EmptyDocumentsAround", "---\n---\n", {}},
};

INSTANTIATE_TEST_SUITE_P(All, EndpointPickerConfigRules, ::testing::ValuesIn(kRules),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(EndpointPickerConfigDocument, WrongKindsAndVersions) {
  const auto problems = [](const std::string& text) { return Texts(ParseEndpointPickerConfig(text, "c")); };
  EXPECT_THAT(
      problems("apiVersion: llm-d.ai/v2\nkind: EndpointPickerConfig\n"),
      ElementsAre("c:1: EndpointPickerConfig: apiVersion: want one of llm-d.ai/v1, llm-d.ai/v1alpha1, "
                  "inference.networking.x-k8s.io/v1alpha1, got \"llm-d.ai/v2\"; did you mean "
                  "\"llm-d.ai/v1\"?"));
  EXPECT_THAT(problems("apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfg\nplugin: 1\n"),
              ElementsAre("c:2: EndpointPickerConfig: kind: want EndpointPickerConfig, got "
                          "\"EndpointPickerConfg\"; did you mean \"EndpointPickerConfig\"?"));
  EXPECT_THAT(
      problems("apiVersion: llm-d.ai/v1\nkind: ConfigMap\ndata: {}\n"),
      ElementsAre("c:2: EndpointPickerConfig: kind: want EndpointPickerConfig, got \"ConfigMap\"; the "
                  "config is what stands under a name in its data"));
  EXPECT_THAT(
      problems("apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\n"),
      ElementsAre("c:2: EndpointPickerConfig: kind: want EndpointPickerConfig, got \"InferencePool\"; "
                  "manifests are given by -f"));
  EXPECT_THAT(problems("plugins: []\n"), ElementsAre("c:1: EndpointPickerConfig: apiVersion: is required",
                                                     "c:1: EndpointPickerConfig: kind: is required"));
  EXPECT_THAT(problems("- a\n"),
              ElementsAre("c:1: EndpointPickerConfig: want an EndpointPickerConfig, got a list"));
  EXPECT_THAT(problems(""), ElementsAre("c: is empty; leave the flag away for the defaults"));
  EXPECT_THAT(problems("# nothing\n"), ElementsAre("c: is empty; leave the flag away for the defaults"));
  EXPECT_THAT(problems("a: [\n"), ElementsAre("c:2: not valid YAML: a [ is not closed by a ] (column 1)"));
}

TEST(EndpointPickerConfigDocument, AllErrorsAtOnceByLine) {
  EXPECT_THAT(
      Problems(R"(featureGates: [x]
plugins: [{name: a}]
schedulingProfiles: [{name: p, plugins: [{pluginRef: b}]}]
flowControl: {defaultRequestTTL: 1}
nonsense: 1
)"),
      ElementsAre("c:3: EndpointPickerConfig: featureGates[0]: feature gate \"x\" is unknown; there are "
                  "flowControl and haPopulateNonLeaderDatastore",
                  "c:4: EndpointPickerConfig: plugins[0].type: is required",
                  "c:5: EndpointPickerConfig: schedulingProfiles[0].plugins[0].pluginRef: no \"b\" among "
                  "plugins; did you mean \"a\"?",
                  "c:6: EndpointPickerConfig: flowControl.defaultRequestTTL: want a duration such as "
                  "\"60s\", \"1m30s\" or \"500ms\", got the number \"1\"",
                  "c:6: warning: EndpointPickerConfig: flowControl: has no effect but for "
                  "saturationDetector: the feature gate flowControl is off (featureGates: [flowControl])",
                  "c:7: EndpointPickerConfig: nonsense: unknown field"));
}

TEST(EndpointPickerConfigDocument, GatesOfFlagsWin) {
  const auto with = [](std::vector<std::string> gates) {
    return ParseEndpointPickerConfig(kHead + "featureGates: [flowControl=false]\n", "c",
                                     {.feature_gates = std::move(gates)});
  };
  EXPECT_TRUE(with({"flowControl"}).config.feature_gates.flow_control);
  EXPECT_FALSE(with({}).config.feature_gates.flow_control);
  EXPECT_THAT(Texts(with({"magic"})),
              ElementsAre("c: --feature-gates: feature gate \"magic\" is unknown; there are "
                          "flowControl and haPopulateNonLeaderDatastore"));
}

TEST(EndpointPickerConfigDocument, Limits) {
  std::string plugins = "plugins:\n";
  for (size_t i = 0; i <= kMaxPlugins; ++i) plugins += "- {type: t, name: n" + std::to_string(i) + "}\n";
  EXPECT_THAT(Problems(plugins),
              ElementsAre("c:3: EndpointPickerConfig: plugins: want at most 500 items, got 501"));
  EXPECT_THAT(Texts(ParseEndpointPickerConfig(kHead + std::string(kMaxConfigBytes, '\n'), "c")),
              ElementsAre("c: larger than 1 MiB"));
  std::string deep = "plugins: [{type: a, parameters: {x: ";
  for (int i = 0; i < 200; ++i) deep += "[";
  EXPECT_FALSE(Parse(deep).ok());
}

TEST(EndpointPickerConfigDocument, SectionsArePrintedSoThatTheyAreReadAgain) {
  const auto result = Parse(
      "featureGates: [flowControl]\n"
      "plugins: [{type: metrics-data-source}, {type: utilization-detector, name: 'on'}]\n"
      "dataLayer: {sources: [{pluginRef: metrics-data-source, extractors: [{pluginRef: "
      "core-metrics-extractor}]}]}\n"
      "flowControl: {maxBytes: 1Gi, priorityBands: [{priority: -1, defaultRequestTTL: 90s}], "
      "saturationDetector: {pluginRef: 'on'}}\n");
  ASSERT_TRUE(result.ok()) << ::testing::PrintToString(Texts(result));
  EXPECT_EQ(PrintFeatureGates(result.config),
            "featureGates:\n- flowControl=true\n- haPopulateNonLeaderDatastore=true\n");
  const std::string sections = PrintSections(result.config, "on");
  EXPECT_EQ(sections, R"(dataLayer:
  injectDefaults: true
  sources:
    - pluginRef: metrics-data-source
      extractors:
        - pluginRef: core-metrics-extractor
flowControl:
  maxBytes: 1073741824
  priorityBands:
    - priority: -1
      defaultRequestTTL: 90s
  saturationDetector:
    pluginRef: "on"
requestHandler:
  propagatePriority: false
)");
  const auto again =
      Parse(PrintFeatureGates(result.config) +
            "plugins: [{type: metrics-data-source}, {type: utilization-detector, name: 'on'}]\n" + sections);
  ASSERT_TRUE(again.ok()) << ::testing::PrintToString(Texts(again));
  EXPECT_EQ(PrintSections(again.config, "on"), sections);
}

// --- Files. ---

class EndpointPickerConfigFile : public ::testing::Test {
 protected:
  EndpointPickerConfigFile() {
    std::string pattern = (fs::temp_directory_path() / "fairway-config-XXXXXX").string();
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  ~EndpointPickerConfigFile() override { fs::remove_all(folder_); }
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
    return (folder_ / name).string();
  }
  fs::path folder_;
};

TEST_F(EndpointPickerConfigFile, IsReadAndItsPlacesNamed) {
  const std::string path = Write("config.yaml", kHead + "plugins: [{}]\n");
  const EndpointPickerConfigResult result = LoadEndpointPickerConfig(path);
  EXPECT_THAT(Texts(result), ElementsAre(path + ":3: EndpointPickerConfig: plugins[0].type: is required"));
  const uint64_t before = result.fingerprint;
  EXPECT_EQ(LoadEndpointPickerConfig(path).fingerprint, before);
  Write("config.yaml", kHead);
  EXPECT_NE(LoadEndpointPickerConfig(path).fingerprint, before);
}

TEST_F(EndpointPickerConfigFile, WhatIsNoFileIsSaid) {
  Write("config.yaml", kHead);
  const std::string folder = folder_.string();
  EXPECT_THAT(
      Texts(LoadEndpointPickerConfig(folder + "/confg.yaml")),
      ElementsAre(folder + "/confg.yaml: no such file; did you mean \"" + folder + "/config.yaml\"?"));
  EXPECT_THAT(Texts(LoadEndpointPickerConfig(folder)), ElementsAre(folder + ": is a folder, not a file"));
  const std::string large = Write("large.yaml", std::string(kMaxConfigBytes + 1, '#'));
  EXPECT_THAT(Texts(LoadEndpointPickerConfig(large)), ElementsAre(large + ": larger than 1 MiB"));
  EXPECT_THAT(Texts(LoadEndpointPickerConfig("/dev/null", {.only_files = true})),
              ElementsAre("/dev/null: is a device, not a file"));
}

// --- The reference's samples, as our own examples. ---

struct Sample {
  const char* name;
  size_t plugins;
  std::vector<std::string> profiles;  // "name: plugin xWEIGHT ..."
  bool flow_control = false;
  friend void PrintTo(const Sample& sample, std::ostream* out) { *out << sample.name; }
};

class EndpointPickerConfigSamples : public ::testing::TestWithParam<Sample> {};

TEST_P(EndpointPickerConfigSamples, Loads) {
  const std::string path = std::string("examples/endpoint-picker-config/") + GetParam().name + ".yaml";
  const EndpointPickerConfigResult result = LoadEndpointPickerConfig(path);
  ASSERT_TRUE(result.ok()) << ::testing::PrintToString(Texts(result));
  EXPECT_THAT(Texts(result), ::testing::IsEmpty());
  EXPECT_EQ(result.config.plugins.size(), GetParam().plugins);
  EXPECT_EQ(result.config.feature_gates.flow_control, GetParam().flow_control);
  std::vector<std::string> profiles;
  for (const Config::Profile& profile : result.config.profiles) {
    std::ostringstream line;
    line << profile.name << ':';
    for (const Config::ProfilePlugin& plugin : profile.plugins) {
      line << ' ' << plugin.plugin.name;
      if (plugin.weight) line << " x" << *plugin.weight;
    }
    profiles.push_back(line.str());
  }
  EXPECT_THAT(profiles, ElementsAreArray(GetParam().profiles));
}

const std::vector<std::string> kPrefillDecode = {
    "prefill: prefill-filter max-score-picker prefix-cache-scorer x2 queue-scorer x1",
    "decode: decode-filter max-score-picker prefix-cache-scorer x2 queue-scorer x1"};

const std::vector<Sample> kSamples = {
    {"dp-epp-config", 4, {"default: decode-filter max-score-picker prefix-cache-scorer x2"}},
    {"epp-burst-prefix-cache-config",
     7,
     {"default: decode-filter prefix-cache-scorer x2 load-aware-scorer x1 max-score-picker"}},
    {"epp-config", 4, {"default: decode-filter max-score-picker prefix-cache-scorer x2"}},
    {"epp-estimate-prefix-cache-config",
     5,
     {"default: decode-filter prefix-cache-scorer x1 load-aware-scorer x1 max-score-picker"}},
    {"epp-mm-embeddings-cache-config",
     12,
     {"default: decode-filter prefix-cache-scorer x10 mm-embeddings-cache-scorer x4 queue-scorer x1 "
      "max-score-picker"}},
    {"epp-precise-prefix-cache-config",
     11,
     {"default: decode-filter prefix-cache-scorer x2 kv-cache-utilization-scorer x1 queue-scorer x1 "
      "max-score-picker"}},
    {"pd-epp-config", 8, kPrefillDecode},
    {"pd-topology-epp-config",
     11,
     {"prefill: prefill-filter topology-affinity-filter max-score-picker prefix-cache-scorer x2 queue-scorer "
      "x1 "
      "topology-affinity-scorer x1",
      kPrefillDecode[1]}},
    {"probabilistic-admitter-epp-config", 3, {"default: random-picker"}},
    {"sim-e-p-d-epp-config",
     7,
     {"encode: encode-filter", "prefill: prefill-filter queue-scorer x1",
      "decode: decode-filter queue-scorer x1"}},
    {"sim-e-pd-epp-config", 5, {"encode: encode-filter", "decode: decode-filter"}},
    {"sim-epp-config", 5, {"default: decode-filter max-score-picker prefix-cache-scorer x2"}},
    {"sim-epp-gpu-config",
     8,
     {"default: decode-filter gpu-utilization-filter gpu-utilization-scorer x2 kv-cache-utilization-scorer "
      "x1 "
      "max-score-picker"}},
    {"sim-epp-kvcache-config", 6, {"default: decode-filter max-score-picker prefix-cache-scorer x10"}},
    {"sim-epp-no-hit-lru",
     6,
     {"default: decode-filter max-score-picker prefix-cache-scorer x2 no-hit-lru-scorer x1"}},
    {"sim-epp-tokenizer-vllm-http-config",
     6,
     {"default: decode-filter max-score-picker prefix-cache-scorer x10"}},
    {"sim-pd-epp-config", 8, kPrefillDecode},
    {"sim-program-aware-config", 4, {"default: queue-scorer max-score-picker"}, true},
    {"soft-reflective-ceiling-epp-config",
     4,
     {"default: queue-scorer x2 kv-cache-utilization-scorer x2 prefix-cache-scorer x3"},
     true},
};

INSTANTIATE_TEST_SUITE_P(All, EndpointPickerConfigSamples, ::testing::ValuesIn(kSamples),
                         [](const auto& info) {
                           std::string name(info.param.name);
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

TEST(EndpointPickerConfigSampleFolder, OlderVersionsSayTheSameAndAreDeprecated) {
  for (const auto& [older, sample] : {std::pair("llm-d-v1alpha1", "pd-epp-config"),
                                      std::pair("x-k8s-v1alpha1", "probabilistic-admitter-epp-config")}) {
    const std::string path = std::string("tests/support/older-configs/") + older + ".yaml";
    const auto result = LoadEndpointPickerConfig(path);
    ASSERT_TRUE(result.ok()) << ::testing::PrintToString(Texts(result));
    EXPECT_THAT(Texts(result),
                ElementsAre(path + ":2: warning: EndpointPickerConfig: apiVersion: \"" +
                            result.config.api_version + "\" is deprecated; use \"llm-d.ai/v1\""));
    const auto newest =
        LoadEndpointPickerConfig(std::string("examples/endpoint-picker-config/") + sample + ".yaml");
    EXPECT_EQ(PrintSections(result.config, "d"), PrintSections(newest.config, "d"));
    ASSERT_EQ(result.config.plugins.size(), newest.config.plugins.size());
    for (size_t i = 0; i < newest.config.plugins.size(); ++i)
      EXPECT_EQ(result.config.plugins[i].name, newest.config.plugins[i].name);
  }
}

TEST(EndpointPickerConfigSampleFolder, HasNoOthers) {
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator("examples/endpoint-picker-config"))
    files += entry.path().extension() == ".yaml" ? 1 : 0;
  EXPECT_EQ(files, kSamples.size());
}

}  // namespace
}  // namespace fairway::api
