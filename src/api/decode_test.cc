// Each kind: what is read, the defaults, and every check with its exact words and line.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "api/decode.h"
#include "api/manifests.h"

namespace fairway::api {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

std::vector<std::string> Texts(const std::vector<Problem>& problems) {
  std::vector<std::string> out;
  for (const Problem& problem : problems) out.push_back(ToString(problem));
  return out;
}

LoadResult Parse(const std::string& text) { return ParseManifests(text, "f"); }
std::vector<std::string> Problems(const std::string& text) { return Texts(Parse(text).problems); }

constexpr const char* kPoolV1 = R"(apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: p
spec:
)";
constexpr const char* kPoolX = R"(apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata:
  name: p
spec:
)";
constexpr const char* kModel = R"(apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata:
  name: m
spec:
)";
constexpr const char* kGateway = R"(apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: g
spec:
)";
constexpr const char* kRoute = R"(apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: r
spec:
)";

// The bodies begin on line 6.
struct Case {
  const char* name;
  const char* head;
  std::string body;
  std::vector<std::string> problems;
};

class Decode : public ::testing::TestWithParam<Case> {};

TEST_P(Decode, SaysEveryProblem) {
  EXPECT_THAT(Problems(GetParam().head + GetParam().body), ElementsAreArray(GetParam().problems));
}

std::string CaseName(const ::testing::TestParamInfo<Case>& info) { return info.param.name; }

// --- InferencePool v1 ---

TEST(PoolV1, AllFields) {
  const LoadResult result = Parse(R"({
  "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
  "metadata": {"name": "p", "namespace": "ml", "labels": {"a": "b"}, "annotations": {"x/y": "any thing"},
	"creationTimestamp": "2025-04-02T12:00:00+02:00", "uid": "ignored", "managedFields": [{"f": 1}]},
  "spec": {"selector": {"matchLabels": {"app": "x", "tier": ""}}, "targetPorts": [{"number": 8000}, {"number": 8001}],
	"appProtocol": "kubernetes.io/h2c",
	"endpointPickerRef": {"name": "epp", "port": {"number": 9003}, "failureMode": "FailOpen"}},
  "status": {"anything": true}})");
  EXPECT_THAT(Texts(result.problems), IsEmpty());
  ASSERT_EQ(result.manifests.pools.size(), 1u);
  const InferencePool& pool = result.manifests.pools[0];
  EXPECT_EQ(Key(pool.meta), "ml/p");
  EXPECT_EQ(pool.meta.creation_timestamp, "2025-04-02T10:00:00Z");
  EXPECT_THAT(pool.meta.labels, UnorderedElementsAre(Pair("a", "b")));
  EXPECT_THAT(pool.meta.annotations, UnorderedElementsAre(Pair("x/y", "any thing")));
  EXPECT_EQ(pool.group, "inference.networking.k8s.io");
  EXPECT_THAT(pool.selector, UnorderedElementsAre(Pair("app", "x"), Pair("tier", "")));
  EXPECT_THAT(pool.target_ports, ElementsAre(8000, 8001));
  EXPECT_EQ(pool.app_protocol, AppProtocol::kH2c);
  ASSERT_TRUE(pool.picker.has_value());
  EXPECT_EQ(pool.picker->kind, "Service");
  EXPECT_EQ(pool.picker->name, "epp");
  EXPECT_EQ(pool.picker->port, 9003);
  EXPECT_EQ(pool.picker->failure_mode, FailureMode::kFailOpen);
}

TEST(PoolV1, Defaults) {
  const LoadResult result =
      Parse(std::string(kPoolV1) + "  selector: {matchLabels: {app: x}}\n  targetPorts: [{number: 8000}]\n");
  EXPECT_THAT(Texts(result.problems), IsEmpty());
  ASSERT_EQ(result.manifests.pools.size(), 1u);
  const InferencePool& pool = result.manifests.pools[0];
  EXPECT_EQ(pool.meta.namespace_name, "default");
  EXPECT_EQ(pool.meta.where.file, "f");
  EXPECT_EQ(pool.meta.where.line, 1);
  EXPECT_EQ(pool.app_protocol, AppProtocol::kHttp);
  EXPECT_FALSE(pool.picker.has_value());
}

const std::string kGoodPool =
    "  selector: {matchLabels: {app: x}}\n  targetPorts: [{number: 8000}]\n";  // lines 6, 7

INSTANTIATE_TEST_SUITE_P(
    PoolV1, Decode,
    ::testing::Values(
        Case{"Empty",
             kPoolV1,
             "  {}\n",
             {"f:5: InferencePool default/p: spec.selector: is required",
              "f:5: InferencePool default/p: spec.targetPorts: is required"}},
        Case{"NoSpec", kPoolV1, "", {"f:5: InferencePool default/p: spec: is required"}},
        Case{"SelectorOfV1Alpha2",
             kPoolV1,
             "  selector:\n    app: x\n  targetPorts: [{number: 8000}]\n",
             {"f:6: InferencePool default/p: spec.selector.matchLabels: is required",
              "f:7: InferencePool default/p: spec.selector.app: unknown field; in v1 the labels stand under "
              "selector.matchLabels"}},
        Case{"NamesOfV1Alpha2",
             kPoolV1,
             "  selector: {matchLabels: {app: x}}\n  targetPortNumber: 8000\n  extensionRef: {name: e}\n",
             {"f:5: InferencePool default/p: spec.targetPorts: is required",
              "f:7: InferencePool default/p: spec.targetPortNumber: unknown field; this is v1alpha2's name; "
              "in v1 write "
              "targetPorts: [{number: ...}]",
              "f:8: InferencePool default/p: spec.extensionRef: unknown field; this is v1alpha2's name; in "
              "v1 it is "
              "endpointPickerRef"}},
        Case{"EmptySelector",
             kPoolV1,
             "  selector: {matchLabels: {}}\n  targetPorts: [{number: 8000}]\n",
             {"f:6: InferencePool default/p: spec.selector.matchLabels: want at least 1 label"}},
        Case{"Labels",
             kPoolV1,
             "  selector:\n    matchLabels:\n      -app: x\n      version: 2\n      on: on\n      a: 'x y'\n "
             "     b: [1]\n"
             "    matchExpressions: []\n  targetPorts: [{number: 8000}]\n",
             {"f:8: InferencePool default/p: spec.selector.matchLabels.-app: want a label key: at most 63 "
              "letters, digits, "
              "'-', '_' and '.', beginning and ending with a letter or digit, with an optional DNS prefix "
              "and '/', got "
              "\"-app\"",
              "f:9: InferencePool default/p: spec.selector.matchLabels.version: want a string, got the "
              "number \"2\"; put it "
              "in quotes",
              "f:10: InferencePool default/p: spec.selector.matchLabels.on: want a string, got the boolean "
              "on; put it in "
              "quotes",
              "f:11: InferencePool default/p: spec.selector.matchLabels.a: want a label value: at most 63 "
              "letters, digits, "
              "'-', '_' and '.', beginning and ending with a letter or digit, got \"x y\"",
              "f:12: InferencePool default/p: spec.selector.matchLabels.b: want a string, got a list",
              "f:13: InferencePool default/p: spec.selector.matchExpressions: unknown field; an "
              "InferencePool selects by "
              "matchLabels only"}},
        Case{"Ports",
             kPoolV1,
             "  selector: {matchLabels: {app: x}}\n  targetPorts:\n  - number: 0\n  - number: 65536\n  - "
             "number: '80'\n"
             "  - number: 8000\n  - number: 8000\n  - 8001\n  - port: 1\n  -\n",
             {"f:8: InferencePool default/p: spec.targetPorts[0].number: want a whole number from 1 to "
              "65535, got \"0\"",
              "f:9: InferencePool default/p: spec.targetPorts[1].number: want a whole number from 1 to "
              "65535, got \"65536\"",
              "f:10: InferencePool default/p: spec.targetPorts[2].number: want a number from 1 to 65535, got "
              "the string "
              "\"80\"; take the quotes off",
              "f:12: InferencePool default/p: spec.targetPorts[4].number: port 8000 is here twice; port "
              "numbers must be "
              "unique",
              "f:13: InferencePool default/p: spec.targetPorts[5]: want a map, got the number \"8001\"; "
              "write {number: "
              "8001}",
              "f:14: InferencePool default/p: spec.targetPorts[6].number: is required",
              "f:14: InferencePool default/p: spec.targetPorts[6].port: unknown field",
              "f:15: InferencePool default/p: spec.targetPorts[7]: is empty; fill it or take it out"}},
        Case{"NoPorts",
             kPoolV1,
             "  selector: {matchLabels: {app: x}}\n  targetPorts: []\n",
             {"f:7: InferencePool default/p: spec.targetPorts: want at least 1 item"}},
        Case{"NinePorts",
             kPoolV1,
             "  selector: {matchLabels: {app: x}}\n  targetPorts: [{number: 1}, {number: 2}, {number: 3}, "
             "{number: 4}, "
             "{number: 5}, {number: 6}, {number: 7}, {number: 8}, {number: 9}]\n",
             {"f:7: InferencePool default/p: spec.targetPorts: want at most 8 items, got 9"}},
        Case{"PickerWithoutPort",
             kPoolV1,
             kGoodPool + "  endpointPickerRef: {name: e}\n",
             {"f:8: InferencePool default/p: spec.endpointPickerRef.port: is required when kind is Service "
              "(the default); "
              "write port: {number: 9002}"}},
        Case{"PickerOfAnotherKind",
             kPoolV1,
             kGoodPool + "  endpointPickerRef: {name: e, kind: Endpoint, group: a.b}\n",
             {}},
        Case{"Picker",
             kPoolV1,
             kGoodPool + "  endpointPickerRef:\n    kind: 1x\n    group: A\n    failureMode: failOpen\n    "
                         "portNumber: 9002\n",
             {"f:8: InferencePool default/p: spec.endpointPickerRef.name: is required",
              "f:9: InferencePool default/p: spec.endpointPickerRef.kind: want a kind such as "
              "\"InferencePool\", got \"1x\"",
              "f:10: InferencePool default/p: spec.endpointPickerRef.group: want an API group such as "
              "\"inference.networking.k8s.io\", got \"A\"",
              "f:11: InferencePool default/p: spec.endpointPickerRef.failureMode: want one of FailOpen, "
              "FailClose, got "
              "\"failOpen\"; did you mean \"FailOpen\"?",
              "f:12: InferencePool default/p: spec.endpointPickerRef.portNumber: unknown field; this is "
              "v1alpha2's name; in "
              "v1 write port: {number: ...}"}},
        Case{"AppProtocol",
             kPoolV1,
             kGoodPool + "  appProtocol: h2c\n",
             {"f:8: InferencePool default/p: spec.appProtocol: want one of http, kubernetes.io/h2c, got "
              "\"h2c\""}},
        Case{"UnknownField",
             kPoolV1,
             kGoodPool + "  endpointPickerref: {}\n  zzz: 1\n",
             {"f:8: InferencePool default/p: spec.endpointPickerref: unknown field; did you mean "
              "\"endpointPickerRef\"?",
              "f:9: InferencePool default/p: spec.zzz: unknown field"}},
        Case{"UnknownAtTheTop",
             kPoolV1,
             kGoodPool + "specs: {}\n",
             {"f:8: InferencePool default/p: specs: unknown field; did you mean \"spec\"?"}}),
    CaseName);

TEST(PoolV1, SixtyFourLabelsAtMost) {
  for (const int count : {64, 65}) {
    std::string body = "  targetPorts: [{number: 8000}]\n  selector:\n    matchLabels:\n";
    for (int i = 0; i < count; ++i) body += "      k" + std::to_string(i) + ": v\n";
    const std::vector<std::string> problems = Problems(kPoolV1 + body);
    if (count == 64) {
      EXPECT_THAT(problems, IsEmpty());
    } else {
      EXPECT_THAT(
          problems,
          ElementsAre("f:8: InferencePool default/p: spec.selector.matchLabels: want at most 64 entries, "
                      "got 65"));
    }
  }
}

// --- InferencePool v1alpha2 ---

TEST(PoolV1Alpha2, AllFieldsAndDefaults) {
  const LoadResult result =
      Parse(std::string(kPoolX) +
            "  selector: {app: x}\n  targetPortNumber: 8000\n  extensionRef: {name: epp}\n---\n" + kPoolX +
            "  selector: {}\n  targetPortNumber: 1\n  extensionRef: {name: epp, kind: Other, group: a.b, "
            "failureMode: FailOpen}\n");
  EXPECT_THAT(Texts(result.problems), IsEmpty());
  ASSERT_EQ(result.manifests.pools.size(), 2u);
  const InferencePool& pool = result.manifests.pools[0];
  EXPECT_EQ(pool.group, "inference.networking.x-k8s.io");
  EXPECT_THAT(pool.selector, UnorderedElementsAre(Pair("app", "x")));
  EXPECT_THAT(pool.target_ports, ElementsAre(8000));
  EXPECT_EQ(pool.picker->port, 9002);
  EXPECT_EQ(pool.picker->failure_mode, FailureMode::kFailClose);
  EXPECT_EQ(result.manifests.pools[1].picker->port, std::nullopt);
  EXPECT_EQ(result.manifests.pools[1].picker->failure_mode, FailureMode::kFailOpen);
}

INSTANTIATE_TEST_SUITE_P(
    PoolV1Alpha2, Decode,
    ::testing::Values(
        Case{"Empty",
             kPoolX,
             "  {}\n",
             {"f:5: InferencePool default/p: spec.selector: is required",
              "f:5: InferencePool default/p: spec.targetPortNumber: is required",
              "f:5: InferencePool default/p: spec.extensionRef: is required"}},
        Case{"NamesOfV1",
             kPoolX,
             "  selector:\n    matchLabels: {app: x}\n  targetPorts: [{number: 1}]\n  endpointPickerRef: {}\n"
             "  appProtocol: http\n  extensionRef: {name: e, port: {number: 1}, targetPortNumber: 1}\n",
             {"f:5: InferencePool default/p: spec.targetPortNumber: is required",
              "f:7: InferencePool default/p: spec.selector.matchLabels: this is v1's form; in v1alpha2 the "
              "labels stand "
              "directly under selector",
              "f:8: InferencePool default/p: spec.targetPorts: unknown field; this is v1's name; in v1alpha2 "
              "it is "
              "targetPortNumber",
              "f:9: InferencePool default/p: spec.endpointPickerRef: unknown field; this is v1's name; in "
              "v1alpha2 it is "
              "extensionRef",
              "f:10: InferencePool default/p: spec.appProtocol: unknown field; only v1 has it (apiVersion "
              "inference.networking.k8s.io/v1)",
              "f:11: InferencePool default/p: spec.extensionRef.port: unknown field; this is v1's name; in "
              "v1alpha2 it is "
              "portNumber: 9002",
              "f:11: InferencePool default/p: spec.extensionRef.targetPortNumber: unknown field; this is "
              "v1alpha1's name; in "
              "v1alpha2 it is portNumber"}},
        Case{"Types",
             kPoolX,
             "  selector: x\n  targetPortNumber: 8000.5\n  extensionRef: [e]\n",
             {"f:6: InferencePool default/p: spec.selector: want a map, got the string \"x\"",
              "f:7: InferencePool default/p: spec.targetPortNumber: want a whole number from 1 to 65535, got "
              "\"8000.5\"",
              "f:8: InferencePool default/p: spec.extensionRef: want a map, got a list"}},
        Case{"Octal",
             kPoolX,
             "  selector: {a: b}\n  targetPortNumber: 08000\n  extensionRef: {name: e}\n",
             {"f:7: InferencePool default/p: spec.targetPortNumber: want a whole number from 1 to 65535, got "
              "\"08000\""}},
        Case{"Nulls",
             kPoolX,
             "  selector:\n  targetPortNumber: ~\n  extensionRef: {name: e, failureMode: null}\n",
             {"f:6: InferencePool default/p: spec.selector: is required",
              "f:7: InferencePool default/p: spec.targetPortNumber: is required"}}),
    CaseName);

// --- InferenceModel ---

TEST(Model, AllFieldsAndDefaults) {
  const LoadResult result = Parse(
      std::string(kModel) +
      "  modelName: llama2\n  criticality: Critical\n  poolRef: {name: p}\n  targetModels:\n  - {name: a, "
      "weight: 75}\n"
      "  - {name: b, weight: 25}\n---\n" +
      kModel +
      "  modelName: x/y\n  poolRef: {group: inference.networking.k8s.io, kind: InferencePool, name: q}\n");
  EXPECT_THAT(Texts(result.problems), IsEmpty());
  ASSERT_EQ(result.manifests.models.size(), 2u);
  const InferenceModel& model = result.manifests.models[0];
  EXPECT_EQ(model.model_name, "llama2");
  EXPECT_EQ(model.criticality, Criticality::kCritical);
  EXPECT_EQ(model.pool_name, "p");
  EXPECT_EQ(model.pool_group, "inference.networking.x-k8s.io");
  EXPECT_EQ(model.pool_where.line, 8);
  ASSERT_EQ(model.targets.size(), 2u);
  EXPECT_EQ(model.targets[0].name, "a");
  EXPECT_EQ(model.targets[0].weight, 75);
  EXPECT_EQ(model.targets[1].weight, 25);
  EXPECT_EQ(result.manifests.models[1].criticality, Criticality::kUnset);
  EXPECT_EQ(result.manifests.models[1].pool_group, "inference.networking.k8s.io");
  EXPECT_THAT(result.manifests.models[1].targets, IsEmpty());
}

const std::string kGoodModel = "  modelName: llama2\n  poolRef: {name: p}\n";  // lines 6, 7

INSTANTIATE_TEST_SUITE_P(
    Model, Decode,
    ::testing::Values(
        Case{"Empty",
             kModel,
             "  {}\n",
             {"f:5: InferenceModel default/m: spec.modelName: is required",
              "f:5: InferenceModel default/m: spec.poolRef: is required"}},
        Case{"LongName",
             kModel,
             "  modelName: " + std::string(257, 'x') + "\n  poolRef: {name: p}\n",
             {"f:6: InferenceModel default/m: spec.modelName: want 1 to 256 characters, got \"" +
              std::string(80, 'x') + "\"..."}},
        Case{"Criticality",
             kModel,
             kGoodModel + "  criticality: critical\n",
             {"f:8: InferenceModel default/m: spec.criticality: want one of Critical, Standard, Sheddable, "
              "got \"critical\"; "
              "did you mean \"Critical\"?"}},
        Case{"SomeWeights",
             kModel,
             kGoodModel + "  targetModels:\n  - name: a\n    weight: 1\n  - name: b\n",
             {"f:8: InferenceModel default/m: spec.targetModels: weights should be set for all models, or "
              "for none; set here "
              "for 1 of 2"}},
        Case{"Weights",
             kModel,
             kGoodModel + "  targetModels:\n  - {name: a, weight: 0}\n  - {name: b, weight: 1000001}\n  - "
                          "{name: c, weight: "
                          "99999999999999999999}\n  - {weigth: -1}\n",
             {"f:8: InferenceModel default/m: spec.targetModels: weights should be set for all models, or "
              "for none; set here "
              "for 3 of 4",
              "f:9: InferenceModel default/m: spec.targetModels[0].weight: want a whole number from 1 to "
              "1000000, got \"0\"",
              "f:10: InferenceModel default/m: spec.targetModels[1].weight: want a whole number from 1 to "
              "1000000, got "
              "\"1000001\"",
              "f:11: InferenceModel default/m: spec.targetModels[2].weight: want a whole number from 1 to "
              "1000000, got "
              "\"99999999999999999999\"",
              "f:12: InferenceModel default/m: spec.targetModels[3].name: is required",
              "f:12: InferenceModel default/m: spec.targetModels[3].weigth: unknown field; did you mean "
              "\"weight\"?"}},
        Case{"ElevenTargets",
             kModel,
             kGoodModel + "  targetModels: [{name: a}, {name: b}, {name: c}, {name: d}, {name: e}, {name: "
                          "f}, {name: g}, "
                          "{name: h}, {name: i}, {name: j}, {name: k}]\n",
             {"f:8: InferenceModel default/m: spec.targetModels: want at most 10 items, got 11"}},
        Case{"PoolRef",
             kModel,
             "  modelName: a\n  poolRef: {kind: Pool, nam: p, namespace: x}\n",
             {"f:7: InferenceModel default/m: spec.poolRef.kind: want InferencePool, got \"Pool\"",
              "f:7: InferenceModel default/m: spec.poolRef.name: is required",
              "f:7: InferenceModel default/m: spec.poolRef.nam: unknown field; did you mean \"name\"?",
              "f:7: InferenceModel default/m: spec.poolRef.namespace: unknown field; a model and its pool "
              "stand in the same "
              "namespace"}}),
    CaseName);

// --- Gateway ---

TEST(Gateway, AllFieldsAndDefaults) {
  const LoadResult result =
      Parse(std::string(kGateway) +
            "  gatewayClassName: c\n  listeners:\n  - {name: http, port: 80, protocol: HTTP}\n"
            "  - {name: two, port: 80, protocol: HTTP, hostname: '*.example.com'}\n");
  EXPECT_THAT(Texts(result.problems), IsEmpty());
  ASSERT_EQ(result.manifests.gateways.size(), 1u);
  const Gateway& gateway = result.manifests.gateways[0];
  EXPECT_EQ(gateway.class_name, "c");
  ASSERT_EQ(gateway.listeners.size(), 2u);
  EXPECT_EQ(gateway.listeners[0].name, "http");
  EXPECT_EQ(gateway.listeners[0].port, 80);
  EXPECT_EQ(gateway.listeners[0].hostname, "");
  EXPECT_EQ(gateway.listeners[1].hostname, "*.example.com");
  EXPECT_EQ(gateway.listeners[1].where.line, 9);
}

INSTANTIATE_TEST_SUITE_P(
    Gateway, Decode,
    ::testing::Values(
        Case{"Empty",
             kGateway,
             "  {}\n",
             {"f:5: Gateway default/g: spec.gatewayClassName: is required",
              "f:5: Gateway default/g: spec.listeners: is required"}},
        Case{"Listener",
             kGateway,
             "  gatewayClassName: c\n  listeners:\n  - {}\n  - name: A\n    port: 70000\n    protocol: "
             "http\n    hostname: "
             "a.b:80\n    hostnam: x\n",
             {"f:8: Gateway default/g: spec.listeners[0].name: is required",
              "f:8: Gateway default/g: spec.listeners[0].port: is required",
              "f:8: Gateway default/g: spec.listeners[0].protocol: is required",
              "f:9: Gateway default/g: spec.listeners[1].name: want at most 253 lower-case letters, digits, "
              "'-' and '.', each "
              "part beginning and ending with a letter or digit, got \"A\"",
              "f:10: Gateway default/g: spec.listeners[1].port: want a whole number from 1 to 65535, got "
              "\"70000\"",
              "f:11: Gateway default/g: spec.listeners[1].protocol: want one of HTTP, HTTPS, TLS, TCP, UDP, "
              "got \"http\"; did "
              "you mean \"HTTP\"?",
              "f:12: Gateway default/g: spec.listeners[1].hostname: want a lower-case DNS name without a "
              "port, \"*.\" in front "
              "is allowed, got \"a.b:80\"",
              "f:13: Gateway default/g: spec.listeners[1].hostnam: unknown field; did you mean "
              "\"hostname\"?"}},
        Case{"Unique",
             kGateway,
             "  gatewayClassName: c\n  listeners:\n  - {name: a, port: 80, protocol: HTTP}\n  - {name: a, "
             "port: 81, protocol: "
             "HTTP}\n  - {name: b, port: 80, protocol: HTTP}\n",
             {"f:9: Gateway default/g: spec.listeners[1].name: a listener \"a\" is there already; listener "
              "names must be "
              "unique",
              "f:10: Gateway default/g: spec.listeners[2]: port, protocol and hostname are those of listener "
              "\"a\"; their "
              "combination must be unique"}},
        Case{"NotServed",
             kGateway,
             "  gatewayClassName: c\n  addresses: []\n  infrastructure: {}\n  listeners:\n  - name: a\n    "
             "port: 443\n    "
             "protocol: HTTPS\n    tls: {}\n    allowedRoutes: {}\n  - {name: b, port: 1, protocol: "
             "example.com/x}\n  - "
             "{name: c, port: 80, protocol: HTTP, tls: {}}\n",
             {"f:7: warning: Gateway default/g: spec.addresses: is not served locally and has no effect here",
              "f:8: warning: Gateway default/g: spec.infrastructure: is not served locally and has no effect "
              "here",
              "f:12: warning: Gateway default/g: spec.listeners[0].protocol: a listener of protocol "
              "\"HTTPS\" is not served "
              "locally; HTTP is",
              "f:13: warning: Gateway default/g: spec.listeners[0].tls: is not served locally and has no "
              "effect here",
              "f:14: warning: Gateway default/g: spec.listeners[0].allowedRoutes: is not served locally and "
              "has no effect "
              "here",
              "f:15: warning: Gateway default/g: spec.listeners[1].protocol: a listener of protocol "
              "\"example.com/x\" is not "
              "served locally; HTTP is",
              "f:16: Gateway default/g: spec.listeners[2].tls: must not be set for protocol HTTP"}}),
    CaseName);

// --- HTTPRoute ---

TEST(Route, AllFieldsAndDefaults) {
  const LoadResult result = Parse(R"(apiVersion: gateway.networking.k8s.io/v1beta1
kind: HTTPRoute
metadata: {name: r, namespace: ml}
spec:
  parentRefs:
  - name: g
  - {group: gateway.networking.k8s.io, kind: Gateway, name: h, namespace: infra, sectionName: http, port: 80}
  hostnames: [a.example.com, "*.b.com"]
  rules:
  - name: one
    matches:
    - path: {value: /v1}
      method: POST
      headers:
      - {name: X-Tier, value: gold}
      - {name: x-team, value: "a|b", type: RegularExpression}
      queryParams: [{name: q, value: "1"}]
    - path: {type: Exact, value: /x}
    - path: {type: RegularExpression, value: "^/y.*$"}
    backendRefs:
    - {group: inference.networking.k8s.io, kind: InferencePool, name: p, weight: 0, port: 3000}
    - {group: inference.networking.x-k8s.io, kind: InferencePool, name: q, namespace: other, weight: 7}
    timeouts: {request: 1m30s}
  - backendRefs:
    - {group: inference.networking.k8s.io, kind: InferencePool, name: p}
)");
  EXPECT_THAT(Texts(result.problems), IsEmpty());
  ASSERT_EQ(result.manifests.routes.size(), 1u);
  const HttpRoute& route = result.manifests.routes[0];
  ASSERT_EQ(route.parents.size(), 2u);
  EXPECT_EQ(route.parents[0].namespace_name, "ml");
  EXPECT_EQ(route.parents[0].port, std::nullopt);
  EXPECT_EQ(route.parents[1].namespace_name, "infra");
  EXPECT_EQ(route.parents[1].section_name, "http");
  EXPECT_EQ(route.parents[1].port, 80);
  EXPECT_THAT(route.hostnames, ElementsAre("a.example.com", "*.b.com"));
  ASSERT_EQ(route.rules.size(), 2u);
  const HttpRoute::Rule& rule = route.rules[0];
  EXPECT_EQ(rule.request_timeout_ms, 90'000);
  ASSERT_EQ(rule.matches.size(), 3u);
  EXPECT_EQ(rule.matches[0].path_type, HttpRoute::PathType::kPrefix);
  EXPECT_EQ(rule.matches[0].path, "/v1");
  EXPECT_EQ(rule.matches[0].method, "POST");
  ASSERT_EQ(rule.matches[0].headers.size(), 2u);
  EXPECT_EQ(rule.matches[0].headers[0].name, "X-Tier");
  EXPECT_FALSE(rule.matches[0].headers[0].regex);
  EXPECT_TRUE(rule.matches[0].headers[1].regex);
  EXPECT_EQ(rule.matches[0].query[0].value, "1");
  EXPECT_EQ(rule.matches[1].path_type, HttpRoute::PathType::kExact);
  EXPECT_EQ(rule.matches[2].path_type, HttpRoute::PathType::kRegex);
  ASSERT_EQ(rule.backends.size(), 2u);
  EXPECT_EQ(rule.backends[0].weight, 0);
  EXPECT_EQ(rule.backends[0].namespace_name, "ml");
  EXPECT_EQ(rule.backends[1].weight, 7);
  EXPECT_EQ(rule.backends[1].namespace_name, "other");
  // A rule without matches takes everything.
  ASSERT_EQ(route.rules[1].matches.size(), 1u);
  EXPECT_EQ(route.rules[1].matches[0].path, "/");
  EXPECT_EQ(route.rules[1].backends[0].weight, 1);
}

const std::string kBackend =
    "    backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: p}]\n";

std::string PathRule(const std::string& path) {
  return "  rules:\n  - matches: [{path: " + path + "}]\n" + kBackend;
}

INSTANTIATE_TEST_SUITE_P(
    Route, Decode,
    ::testing::Values(
        Case{"NoRules",
             kRoute,
             "  parentRefs: [{name: g}]\n",
             {"f:5: warning: HTTPRoute default/r: spec.rules: is empty: the route sends nothing anywhere"}},
        Case{"NoBackends",
             kRoute,
             "  rules:\n  - matches: [{path: {value: /}}]\n",
             {"f:7: warning: HTTPRoute default/r: spec.rules[0].backendRefs: is empty: requests that match "
              "this rule are "
              "answered with 500"}},
        Case{"NoWeight",
             kRoute,
             "  rules:\n  - backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: p, "
             "weight: 0}]\n",
             {"f:7: warning: HTTPRoute default/r: spec.rules[0].backendRefs: all weights are 0: requests "
              "that match this rule "
              "are answered with 500"}},
        Case{"PathRelative",
             kRoute,
             PathRule("{value: v1}"),
             {"f:7: HTTPRoute default/r: spec.rules[0].matches[0].path.value: must start with '/', got "
              "\"v1\""}},
        Case{"PathSlashes",
             kRoute,
             PathRule("{type: Exact, value: /a//b}"),
             {"f:7: HTTPRoute default/r: spec.rules[0].matches[0].path.value: must not contain \"//\", got "
              "\"/a//b\""}},
        Case{"PathDots",
             kRoute,
             PathRule("{value: /a/..}"),
             {"f:7: HTTPRoute default/r: spec.rules[0].matches[0].path.value: must not end with \"/..\", got "
              "\"/a/..\""}},
        Case{"PathSpace",
             kRoute,
             PathRule("{value: '/a b'}"),
             {"f:7: HTTPRoute default/r: spec.rules[0].matches[0].path.value: must not contain \" \"; write "
              "such a byte as "
              "%XX, got \"/a b\""}},
        Case{"PathEscape", kRoute, PathRule("{value: /a%20b}"), {}},
        Case{"PathBadEscape",
             kRoute,
             PathRule("{value: /a%2}"),
             {"f:7: HTTPRoute default/r: spec.rules[0].matches[0].path.value: must not contain \"%\"; write "
              "such a byte as "
              "%XX, got \"/a%2\""}},
        Case{"PathSlashEscape",
             kRoute,
             PathRule("{value: /a%2fb}"),
             {"f:7: HTTPRoute default/r: spec.rules[0].matches[0].path.value: must not contain \"%2f\", got "
              "\"/a%2fb\""}},
        Case{"PathType",
             kRoute,
             PathRule("{type: Prefix, value: /}"),
             {"f:7: HTTPRoute default/r: spec.rules[0].matches[0].path.type: want one of PathPrefix, Exact, "
              "RegularExpression, got \"Prefix\""}},
        Case{"PathAsText",
             kRoute,
             PathRule("/v1"),
             {"f:7: HTTPRoute default/r: spec.rules[0].matches[0].path: want a map, got the string \"/v1\""}},
        Case{"Matches",
             kRoute,
             "  rules:\n  - matches:\n    - method: post\n      headers:\n      - {name: a b, value: x}\n    "
             "  - {name: X}\n   "
             "   - {name: y, value: 1}\n      - {name: Y, value: z}\n      queryParam: []\n" +
                 kBackend,
             {"f:8: HTTPRoute default/r: spec.rules[0].matches[0].method: want one of GET, HEAD, POST, PUT, "
              "DELETE, CONNECT, "
              "OPTIONS, TRACE, PATCH, got \"post\"; did you mean \"POST\"?",
              "f:10: HTTPRoute default/r: spec.rules[0].matches[0].headers[0].name: want 1 to 256 letters, "
              "digits and any of "
              "!#$%&'*+-.^_`|~, got \"a b\"",
              "f:11: HTTPRoute default/r: spec.rules[0].matches[0].headers[1].value: is required",
              "f:12: HTTPRoute default/r: spec.rules[0].matches[0].headers[2].value: want a string, got the "
              "number \"1\"; put "
              "it in quotes",
              "f:13: HTTPRoute default/r: spec.rules[0].matches[0].headers[3].name: \"Y\" is matched twice "
              "in one match; "
              "write one of them in a second match",
              "f:14: HTTPRoute default/r: spec.rules[0].matches[0].queryParam: unknown field; did you mean "
              "\"queryParams\"?"}},
        Case{"Backends",
             kRoute,
             "  rules:\n  - backendRefs:\n    - {kind: InferencePool, name: p}\n    - {kind: InferencePool, "
             "name: p, group: "
             "inference.networking.k8s.oi}\n    - {group: inference.networking.k8s.io, name: p}\n    - "
             "{group: "
             "inference.networking.k8s.io, kind: InferencePol, name: p}\n    - {kind: inferencepool, name: "
             "p, group: x.io}\n  "
             "  - {group: inference.networking.k8s.io, kind: InferencePool, weight: -1}\n",
             {"f:8: HTTPRoute default/r: spec.rules[0].backendRefs[0].group: is required for an "
              "InferencePool: "
              "\"inference.networking.k8s.io\" or \"inference.networking.x-k8s.io\"",
              "f:9: HTTPRoute default/r: spec.rules[0].backendRefs[1].group: an InferencePool has the group "
              "\"inference.networking.k8s.io\" or \"inference.networking.x-k8s.io\", got "
              "\"inference.networking.k8s.oi\"; did "
              "you mean \"inference.networking.k8s.io\"?",
              "f:10: HTTPRoute default/r: spec.rules[0].backendRefs[2].kind: is required for an "
              "InferencePool: kind: "
              "InferencePool (the default is Service)",
              "f:11: HTTPRoute default/r: spec.rules[0].backendRefs[3].kind: want InferencePool, got "
              "\"InferencePol\"; did you "
              "mean \"InferencePool\"?",
              "f:12: HTTPRoute default/r: spec.rules[0].backendRefs[4].kind: want InferencePool, got "
              "\"inferencepool\"; did "
              "you mean \"InferencePool\"?",
              "f:13: HTTPRoute default/r: spec.rules[0].backendRefs[5].name: is required",
              "f:13: HTTPRoute default/r: spec.rules[0].backendRefs[5].weight: want a whole number from 0 to "
              "1000000, got "
              "\"-1\""}},
        Case{"NotServed",
             kRoute,
             "  rules:\n  - filters: []\n    retry: {}\n    sessionPersistence: {}\n    timeouts: {request: "
             "10s, "
             "backendRequest: 5s}\n    backendRefs:\n    - {name: svc, port: 80}\n    - {group: "
             "inference.networking.k8s.io, "
             "kind: InferencePool, name: p, filters: []}\n  parentRefs:\n  - {kind: Service, group: '', "
             "name: s}\n",
             {"f:7: warning: HTTPRoute default/r: spec.rules[0].filters: is not served locally and has no "
              "effect here",
              "f:8: warning: HTTPRoute default/r: spec.rules[0].retry: is not served locally and has no "
              "effect here",
              "f:9: warning: HTTPRoute default/r: spec.rules[0].sessionPersistence: is not served locally "
              "and has no effect "
              "here",
              "f:10: warning: HTTPRoute default/r: spec.rules[0].timeouts.backendRequest: is not served "
              "locally and has no "
              "effect here",
              "f:12: warning: HTTPRoute default/r: spec.rules[0].backendRefs[0].kind: a backend of kind "
              "\"Service\" is not "
              "served locally; InferencePool is",
              "f:13: warning: HTTPRoute default/r: spec.rules[0].backendRefs[1].filters: is not served "
              "locally and has no "
              "effect here",
              "f:15: warning: HTTPRoute default/r: spec.parentRefs[0].kind: a parent of kind \"Service\" is "
              "not served "
              "locally; Gateway is"}},
        Case{"Timeouts",
             kRoute,
             "  rules:\n  - timeouts: {request: 1s, backendRequest: 2s}\n" + kBackend +
                 "  - timeouts: {request: 1.5s, reqest: 1s}\n" + kBackend,
             {"f:7: HTTPRoute default/r: spec.rules[0].timeouts.backendRequest: cannot be longer than "
              "timeouts.request",
              "f:9: HTTPRoute default/r: spec.rules[1].timeouts.request: want a duration such as \"30s\", "
              "\"500ms\" or "
              "\"1m30s\", got \"1.5s\"",
              "f:9: HTTPRoute default/r: spec.rules[1].timeouts.reqest: unknown field; did you mean "
              "\"request\"?"}},
        Case{"Parents",
             kRoute,
             "  parentRefs:\n  - {name: g}\n  - {name: g}\n  - {name: g, sectionName: a}\n  - {kind: "
             "gateway, name: h}\n  - "
             "{group: gateway.k8s.io, name: h}\n  - {}\n  hostnames: [A.b, '']\n  rules:\n  -" +
                 kBackend.substr(3),
             {"f:8: HTTPRoute default/r: spec.parentRefs[1]: the same parent is here twice; tell them apart "
              "by sectionName or "
              "port",
              "f:10: HTTPRoute default/r: spec.parentRefs[3].kind: want Gateway, got \"gateway\"; did you "
              "mean \"Gateway\"?",
              "f:11: HTTPRoute default/r: spec.parentRefs[4].group: a Gateway has the group "
              "\"gateway.networking.k8s.io\", "
              "got \"gateway.k8s.io\"",
              "f:12: HTTPRoute default/r: spec.parentRefs[5].name: is required",
              "f:13: HTTPRoute default/r: spec.hostnames[0]: want a lower-case DNS name without a port, "
              "\"*.\" in front is "
              "allowed, got \"A.b\"",
              "f:13: HTTPRoute default/r: spec.hostnames[1]: want a lower-case DNS name without a port, "
              "\"*.\" in front is "
              "allowed, got \"\""}},
        Case{"UnknownInRule",
             kRoute,
             "  rule: []\n  rules:\n  - backendRef: []\n",
             {"f:6: HTTPRoute default/r: spec.rule: unknown field; did you mean \"rules\"?",
              "f:8: warning: HTTPRoute default/r: spec.rules[0].backendRefs: is empty: requests that match "
              "this rule are "
              "answered with 500",
              "f:8: HTTPRoute default/r: spec.rules[0].backendRef: unknown field; did you mean "
              "\"backendRefs\"?"}}),
    CaseName);

TEST(Route, AtMost128Matches) {
  std::string body = "  rules:\n";
  for (int rule = 0; rule < 3; ++rule) {
    body += "  - matches:\n";
    for (int i = 0; i < 43; ++i) body += "    - {path: {value: /a}}\n";
    body += kBackend;
  }
  EXPECT_THAT(
      Problems(kRoute + body),
      ElementsAre(
          "f:6: HTTPRoute default/r: spec.rules: want at most 128 matches in all rules together, got 129"));
}

// --- The endpoints file ---

TEST(Endpoints, AllFieldsAndDefaults) {
  const LoadResult result = Parse(R"(endpoints:
- {name: a, address: 10.0.0.1, port: "8000"}
- {name: b, namespace: ml, address: "[2001:DB8:0::1]", port: 8001, metricsPort: "9000", labels: {app: x}}
- {name: c, address: ::1, port: "1"}
- {name: pod_d, address: GPU-1.example.com, port: "65535", metricsPort: 1, metricsScheme: https, metricsPath: "/m?a=b"}
)");
  EXPECT_THAT(Texts(result.problems), IsEmpty());
  const std::vector<Endpoint>& endpoints = result.manifests.endpoints;
  ASSERT_EQ(endpoints.size(), 4u);
  EXPECT_EQ(endpoints[0].name, "a");
  EXPECT_EQ(endpoints[0].namespace_name, "default");
  EXPECT_EQ(endpoints[0].address, "10.0.0.1");
  EXPECT_EQ(endpoints[0].port, 8000);
  EXPECT_EQ(endpoints[0].metrics_port, 0);
  EXPECT_EQ(endpoints[1].namespace_name, "ml");
  EXPECT_EQ(endpoints[1].address, "2001:db8::1");
  EXPECT_EQ(endpoints[1].port, 8001);
  EXPECT_EQ(endpoints[1].metrics_port, 9000);
  EXPECT_THAT(endpoints[1].labels, UnorderedElementsAre(Pair("app", "x")));
  EXPECT_EQ(endpoints[2].address, "::1");
  EXPECT_EQ(endpoints[3].address, "gpu-1.example.com");
  EXPECT_EQ(endpoints[3].metrics_port, 1);
  EXPECT_EQ(endpoints[3].metrics_scheme, "https");
  EXPECT_EQ(endpoints[3].metrics_path, "/m?a=b");
  EXPECT_EQ(endpoints[0].metrics_scheme + endpoints[0].metrics_path, "");
  EXPECT_EQ(endpoints[3].where.line, 5);
}

TEST(Endpoints, WhereAMetricsPageCannotBe) {
  for (const auto& [field, why] : std::vector<std::pair<std::string, std::string>>{
           {"metricsScheme: ftp", "metricsScheme: want http or https"},
           {"metricsScheme: HTTPS", "want http or https"},
           {"metricsPath: metrics", "metricsPath: want a path such as /metrics"},
           {"metricsPath: \"/a b\"", "want a path"},
           {"metricsPath: \"/a\\r\\nX: y\"", "want a path"},
           {"metricsPath: /" + std::string(2000, 'x'), "up to 1024"},
           {"metricsPath: [a]", "metricsPath"}}) {
    const LoadResult result =
        ParseManifests("endpoints: [{name: a, address: ::1, port: 80, " + field + "}]", "f");
    ASSERT_EQ(result.problems.size(), 1u) << field;
    EXPECT_THAT(ToString(result.problems[0]), ::testing::HasSubstr(why));
  }
}

TEST(Endpoints, Json) {
  const LoadResult result =
      Parse("{\"endpoints\": [\n\t{\"name\": \"a\", \"address\": \"10.0.0.1\", \"port\": \"80\"}]}");
  EXPECT_THAT(Texts(result.problems), IsEmpty());
  ASSERT_EQ(result.manifests.endpoints.size(), 1u);
  EXPECT_EQ(result.manifests.endpoints[0].where.line, 2);
  EXPECT_THAT(Problems("endpoints: []"), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(
    Endpoints, Decode,
    ::testing::Values(
        Case{"Missing",
             "",
             "endpoints:\n- {}\n-\n- x\n",
             {"f:2: endpoints[0].name: is required", "f:2: endpoints[0].address: is required",
              "f:2: endpoints[0].port: is required", "f:3: endpoints[1]: is empty; fill it or take it out",
              "f:4: endpoints[2]: want a map, got the string \"x\""}},
        Case{"Ports",
             "",
             "endpoints:\n- {name: a, address: a.b, port: '0'}\n- {name: a, address: a.b, port: 65536}\n- "
             "{name: a, address: "
             "a.b, port: '80 '}\n- {name: a, address: a.b, port: http, metricsPort: -1}\n",
             {"f:2: endpoints[0].port: want a port from 1 to 65535, got \"0\"",
              "f:3: endpoints[1].port: want a whole number from 1 to 65535, got \"65536\"",
              "f:4: endpoints[2].port: want a port from 1 to 65535, got \"80 \"",
              "f:5: endpoints[3].port: want a port from 1 to 65535, got \"http\"",
              "f:5: endpoints[3].metricsPort: want a whole number from 1 to 65535, got \"-1\""}},
        Case{"Addresses",
             "",
             "endpoints:\n- {name: a, port: '1', address: 10.0.0.256}\n- {name: a, port: '1', address: "
             "'10.0.0.1:8000'}\n- "
             "{name: a, port: '1', address: 'http://x'}\n- {name: a, port: '1', address: 'fe80::1%eth0'}\n- "
             "{name: a, port: "
             "'1', address: a_b}\n- {name: a, port: '1', address: '[10.0.0.1]'}\n- {name: a, port: '1', "
             "address: ''}\n- "
             "{name: a, port: '1', address: 10.1}\n",
             {"f:2: endpoints[0].address: want an IPv4 or IPv6 address or a host name, got \"10.0.0.256\"",
              "f:3: endpoints[1].address: want an IPv4 or IPv6 address or a host name, got "
              "\"10.0.0.1:8000\"; write the port "
              "as port: \"8000\"",
              "f:4: endpoints[2].address: want an IPv4 or IPv6 address or a host name, got \"http://x\"; "
              "leave out the scheme",
              "f:5: endpoints[3].address: want an IPv4 or IPv6 address or a host name, got \"fe80::1%eth0\"; "
              "an address with "
              "a zone is not supported",
              "f:6: endpoints[4].address: want an IPv4 or IPv6 address or a host name, got \"a_b\"",
              "f:7: endpoints[5].address: want an IPv4 or IPv6 address or a host name, got \"[10.0.0.1]\"",
              "f:8: endpoints[6].address: want an IPv4 or IPv6 address or a host name, got \"\"",
              "f:9: endpoints[7].address: want a string, got the number \"10.1\"; put it in quotes"}},
        Case{"Fields",
             "",
             "endpoints:\n- {name: a/b, address: a.b, port: '1', label: {}}\nendpoint: 1\n",
             {"f:2: endpoints[0].name: want 1 to 253 characters without spaces and '/', got \"a/b\"",
              "f:2: endpoints[0].label: unknown field; did you mean \"labels\"?",
              "f:3: endpoint: unknown field; did you mean \"endpoints\"?"}}),
    CaseName);

// --- Documents and kinds ---

INSTANTIATE_TEST_SUITE_P(
    Documents, Decode,
    ::testing::Values(
        Case{"OthersAreSkipped",
             "",
             "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {x: [1]}\n---\napiVersion: "
             "v1\nkind: "
             "Service\nmetadata: {}\n---\napiVersion: v1\nkind: ConfigMap\ndata: {endpoints: "
             "x}\n---\napiVersion: "
             "networking.istio.io/v1\nkind: Gateway\nmetadata: {name: i}\n---\napiVersion: "
             "gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n---\napiVersion: "
             "gateway.networking.k8s.io/v1\nkind: "
             "GatewayClass\n",
             {}},
        Case{
            "NotYet",
            "",
            "apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: InferencePoolImport\nmetadata: {name: "
            "o}\n---\n"
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n---\napiVersion: "
            "gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g, namespace: n}\n",
            {"f:1: warning: InferencePoolImport default/o: is not served yet and has no effect here",
             "f:5: warning: EndpointPickerConfig: is no manifest and has no effect here: give its file to "
             "--config-file",
             "f:8: warning: GRPCRoute n/g: is not served locally and has no effect here"}},
        Case{"WrongVersions",
             "",
             "apiVersion: inference.networking.k8s.io/v1alpha2\nkind: InferencePool\n---\napiVersion: "
             "inference.networking.x-k8s.io/v1\nkind: InferenceModel\n---\napiVersion: v1\nkind: "
             "HTTPRoute\n---\napiVersion: "
             "gateway.networking.k8s.io/v1alpha2\nkind: Gateway\n---\napiVersion: "
             "gateway.networking.k8.io/v1\nkind: "
             "Gateway\n",
             {"f:1: InferencePool: apiVersion: want inference.networking.k8s.io/v1 or "
              "inference.networking.x-k8s.io/v1alpha2, "
              "got \"inference.networking.k8s.io/v1alpha2\"",
              "f:4: InferenceModel: apiVersion: want inference.networking.x-k8s.io/v1alpha2, got "
              "\"inference.networking.x-k8s.io/v1\"",
              "f:7: HTTPRoute: apiVersion: want gateway.networking.k8s.io/v1 or "
              "gateway.networking.k8s.io/v1beta1, got \"v1\"",
              "f:10: Gateway: apiVersion: want gateway.networking.k8s.io/v1 or "
              "gateway.networking.k8s.io/v1beta1, got "
              "\"gateway.networking.k8s.io/v1alpha2\"",
              "f:13: Gateway: apiVersion: want gateway.networking.k8s.io/v1 or "
              "gateway.networking.k8s.io/v1beta1, got "
              "\"gateway.networking.k8.io/v1\""}},
        Case{
            "WrongKinds",
            "",
            "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePol\n---\napiVersion: "
            "gateway.networking.k8s.io/v1\nkind: HttpRoute\n---\napiVersion: "
            "inference.networking.k8s.io/v1\nkind: Foo\n",
            {"f:2: InferencePol: kind: no kind \"InferencePol\" in inference.networking.k8s.io; did you mean "
             "\"InferencePool\"?",
             "f:5: HttpRoute: kind: no kind \"HttpRoute\" in gateway.networking.k8s.io; did you mean "
             "\"HTTPRoute\"?",
             "f:8: Foo: kind: no kind \"Foo\" in inference.networking.k8s.io"}},
        Case{"NoKind",
             "",
             "kind: X\n---\napiVersion: v1\n---\napiversion: v1\nkin: a\n---\nendpoint: []\n---\nfoo: "
             "1\n---\nx\n",
             {"f:1: apiVersion: is required", "f:3: kind: is required",
              "f:5: neither a Kubernetes object (apiVersion and kind) nor an endpoints file (endpoints); did "
              "you mean "
              "\"apiVersion\"?",
              "f:8: neither a Kubernetes object (apiVersion and kind) nor an endpoints file (endpoints); did "
              "you mean "
              "\"endpoints\"?",
              "f:10: neither a Kubernetes object (apiVersion and kind) nor an endpoints file (endpoints)",
              "f:12: want a Kubernetes object or an endpoints file, got the string \"x\""}},
        Case{"Empty", "", "", {"f: the file is empty"}},
        Case{"OnlyComments", "", "# nothing\n---\n", {"f: warning: there is no object in this file"}},
        Case{"Syntax",
             "",
             "kind: [\n---\nfoo: 1\n",
             {"f:2: not valid YAML: a [ is not closed by a ] (column 1)",
              "f:3: neither a Kubernetes object (apiVersion and kind) nor an endpoints file (endpoints)"}},
        Case{"Meta",
             "",
             "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModel\nmetadata:\n  "
             "namespace: A b\n  labels: "
             "{a: 1}\n  creationTimestamp: yesterday\n  anything: 1\nspec: {modelName: a, poolRef: {name: "
             "p}}\n",
             {"f:3: InferenceModel: metadata.name: is required",
              "f:4: InferenceModel: metadata.namespace: want at most 63 lower-case letters, digits and '-', "
              "beginning and "
              "ending with a letter or digit, got \"A b\"",
              "f:5: InferenceModel: metadata.labels.a: want a string, got the number \"1\"; put it in quotes",
              "f:6: InferenceModel: metadata.creationTimestamp: want a time as RFC 3339 has it, such as "
              "\"2025-04-02T10:00:00Z\", got \"yesterday\""}},
        Case{"NoMeta",
             "",
             "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModel\nspec: {modelName: a, "
             "poolRef: {name: "
             "p}}\n",
             {"f:1: InferenceModel: metadata: is required"}}),
    CaseName);

TEST(Documents, ListsCountAsTheirItems) {
  const std::string model =
      R"({"apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceModel",
     "metadata": {"name": "m", "creationTimestamp": null}, "spec": {"modelName": "a", "poolRef": {"name": "p"}}})";
  const LoadResult result =
      Parse("{\"apiVersion\": \"v1\", \"kind\": \"List\", \"metadata\": {}, \"items\": [\n" + model + ",\n" +
            model + "]}\n[" + model + "]");
  EXPECT_THAT(Texts(result.problems), IsEmpty());
  EXPECT_EQ(result.manifests.models.size(), 3u);
  EXPECT_EQ(result.manifests.models[1].meta.where.line, 4);
}

TEST(Documents, ProblemsAreBounded) {
  std::string text = "endpoints:\n";
  for (int i = 0; i < 5000; ++i) text += "- {}\n";
  const LoadResult result = Parse(text);
  EXPECT_EQ(result.problems.size(), ProblemList::kMaxProblems + 1);
  EXPECT_FALSE(result.ok());
}

TEST(Problem, ToString) {
  EXPECT_EQ(ToString({Severity::kError, {"a.yaml", 12}, "HTTPRoute default/r", "spec.x", "is wrong"}),
            "a.yaml:12: HTTPRoute default/r: spec.x: is wrong");
  EXPECT_EQ(ToString({Severity::kWarning, {"a.yaml", 0}, "", "", "is odd"}), "a.yaml: warning: is odd");
}

TEST(Selector, EveryPairMustMatchAndNoneMatchesNothing) {
  EXPECT_TRUE(Matches({{"a", "b"}}, {{"a", "b"}, {"c", "d"}}));
  EXPECT_FALSE(Matches({{"a", "b"}, {"c", "x"}}, {{"a", "b"}, {"c", "d"}}));
  EXPECT_FALSE(Matches({{"a", ""}}, {}));
  EXPECT_FALSE(Matches({}, {{"a", "b"}}));
}

}  // namespace
}  // namespace fairway::api
