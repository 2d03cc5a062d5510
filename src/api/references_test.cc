// What shows only when all objects are there: every message with file, line and field.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "api/manifests.h"

namespace fairway::api {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Parses, expects no problem in the objects themselves, and gives what the references have.
std::vector<std::string> References(const std::string& text, Manifests* out = nullptr) {
  LoadResult result = ParseManifests(text, "f");
  for (const Problem& problem : result.problems) ADD_FAILURE() << ToString(problem);
  CheckReferences(result.manifests, result.problems);
  std::vector<std::string> texts;
  for (const Problem& problem : result.problems) texts.push_back(ToString(problem));
  if (out != nullptr) *out = std::move(result.manifests);
  return texts;
}

// One line each, so that the tests can count lines.
std::string PoolX(const std::string& meta) {
  return "--- {apiVersion: inference.networking.x-k8s.io/v1alpha2, kind: InferencePool, metadata: {" + meta +
         "}, spec: {selector: {app: x}, targetPortNumber: 80, extensionRef: {name: e}}}\n";
}
std::string PoolV1(const std::string& meta) {
  return "--- {apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {" + meta +
         "}, spec: {selector: {matchLabels: {app: x}}, targetPorts: [{number: 80}]}}\n";
}
std::string Model(const std::string& meta, const std::string& spec) {
  return "--- {apiVersion: inference.networking.x-k8s.io/v1alpha2, kind: InferenceModel, metadata: {" + meta +
         "}, spec: {" + spec + "}}\n";
}
std::string Route(const std::string& meta, const std::string& parents, const std::string& backend) {
  return "--- {apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {" + meta +
         "}, spec: {parentRefs: [" + parents + "], rules: [{backendRefs: [{kind: InferencePool, " + backend +
         "}]}]}}\n";
}
std::string RouteTo(const std::string& backend) { return Route("name: r", "", backend); }
const std::string kX = "group: inference.networking.x-k8s.io, ";
const std::string kV1 = "group: inference.networking.k8s.io, ";

TEST(References, RouteToAPool) {
  EXPECT_THAT(References(PoolX("name: p") + RouteTo(kX + "name: p")), IsEmpty());
  EXPECT_THAT(References(PoolX("name: vllm-llama2-7b-pool") + RouteTo(kX + "name: vllm-llama2-7b")),
              ElementsAre("f:2: HTTPRoute default/r: spec.rules[0].backendRefs[0].name: no InferencePool "
                          "\"vllm-llama2-7b\" in "
                          "namespace \"default\"; did you mean \"vllm-llama2-7b-pool\"?"));
  EXPECT_THAT(
      References(PoolX("name: other") + RouteTo(kX + "name: p-and-q")),
      ElementsAre(
          "f:2: HTTPRoute default/r: spec.rules[0].backendRefs[0].name: no InferencePool \"p-and-q\" in "
          "namespace \"default\"; the only one there is \"other\""));
  EXPECT_THAT(
      References(RouteTo(kX + "name: p")),
      ElementsAre(
          "f:1: HTTPRoute default/r: spec.rules[0].backendRefs[0].name: no InferencePool \"p\" in namespace "
          "\"default\"; no InferencePool was given at all"));
}

TEST(References, NamespacesCount) {
  EXPECT_THAT(
      References(PoolX("name: p, namespace: ml") + RouteTo(kX + "name: p")),
      ElementsAre(
          "f:2: HTTPRoute default/r: spec.rules[0].backendRefs[0].name: no InferencePool \"p\" in namespace "
          "\"default\"; there is one in namespace \"ml\""));
  EXPECT_THAT(References(PoolX("name: p, namespace: ml") + RouteTo(kX + "name: p, namespace: ml")),
              IsEmpty());
  EXPECT_THAT(
      References(PoolX("name: p, namespace: ml") + Route("name: r, namespace: ml", "", kX + "name: p")),
      IsEmpty());
}

TEST(References, TheGroupSaysWhichApi) {
  EXPECT_THAT(
      References(PoolX("name: p") + RouteTo(kV1 + "name: p")),
      ElementsAre(
          "f:2: HTTPRoute default/r: spec.rules[0].backendRefs[0].group: is \"inference.networking.k8s.io\", "
          "but InferencePool default/p (f:1) is of \"inference.networking.x-k8s.io\""));
  EXPECT_THAT(References(PoolV1("name: p") + RouteTo(kX + "name: p")),
              ElementsAre("f:2: HTTPRoute default/r: spec.rules[0].backendRefs[0].group: is "
                          "\"inference.networking.x-k8s.io\", but InferencePool default/p (f:1) is of "
                          "\"inference.networking.k8s.io\""));
}

TEST(References, ModelToAPool) {
  EXPECT_THAT(References(PoolX("name: p") + Model("name: m", "modelName: a, poolRef: {name: p}")), IsEmpty());
  EXPECT_THAT(
      References(PoolX("name: p-1") + Model("name: m", "modelName: a, poolRef: {name: p-2}")),
      ElementsAre("f:2: InferenceModel default/m: spec.poolRef.name: no InferencePool \"p-2\" in namespace "
                  "\"default\"; did you mean \"p-1\"?"));
  // The reference compares names only.
  EXPECT_THAT(References(PoolV1("name: p") + Model("name: m", "modelName: a, poolRef: {name: p}")),
              IsEmpty());
  EXPECT_THAT(References(PoolX("name: p") + Model("name: m", "modelName: a, poolRef: {" + kV1 + "name: p}")),
              ElementsAre("f:2: warning: InferenceModel default/m: spec.poolRef.group: is "
                          "\"inference.networking.k8s.io\", but "
                          "InferencePool default/p is of \"inference.networking.x-k8s.io\""));
}

TEST(References, OneNameTwice) {
  EXPECT_THAT(References(PoolX("name: p") + PoolX("name: p") + PoolX("name: p, namespace: b")),
              ElementsAre("f:2: InferencePool default/p: metadata.name: is defined twice; first in f:1"));
  EXPECT_THAT(
      References(PoolX("name: p") + PoolV1("name: p")),
      ElementsAre(
          "f:2: InferencePool default/p: metadata.name: is defined twice; first in f:1 with the group "
          "\"inference.networking.x-k8s.io\"; keep one of the two"));
  const std::string route = RouteTo(kX + "name: p");
  EXPECT_THAT(References(PoolX("name: p") + route + route),
              ElementsAre("f:3: HTTPRoute default/r: metadata.name: is defined twice; first in f:2"));
}

TEST(References, OldestModelOfAName) {
  const std::string spec = "modelName: a, poolRef: {name: p}";
  Manifests manifests;
  EXPECT_THAT(
      References(PoolX("name: p") + Model("name: young, creationTimestamp: '2025-04-03T00:00:00Z'", spec) +
                     Model("name: old, creationTimestamp: '2025-04-02T23:59:59-01:00'", spec) +
                     Model("name: oldest, creationTimestamp: '2025-04-03T01:00:00+02:00'", spec) +
                     Model("name: timeless", spec) + Model("name: other", "modelName: b, poolRef: {name: p}"),
                 &manifests),
      ElementsAre("f:2: warning: InferenceModel default/young: spec.modelName: \"a\" is also the name of "
                  "InferenceModel "
                  "default/oldest (f:4), which is older and is served; this one has no effect",
                  "f:3: warning: InferenceModel default/old: spec.modelName: \"a\" is also the name of "
                  "InferenceModel "
                  "default/oldest (f:4), which is older and is served; this one has no effect",
                  "f:5: warning: InferenceModel default/timeless: spec.modelName: \"a\" is also the name of "
                  "InferenceModel default/oldest (f:4), which is served; this one has no effect"));
  std::vector<std::string> names;
  for (const InferenceModel* model : ModelsOf(manifests, manifests.pools[0]))
    names.push_back(model->meta.name);
  EXPECT_THAT(names, ElementsAre("oldest", "other"));
  EXPECT_THAT(
      References(PoolX("name: p") + Model("name: m1", spec) + Model("name: m2", spec)),
      ElementsAre(
          "f:3: warning: InferenceModel default/m2: spec.modelName: \"a\" is also the name of InferenceModel "
          "default/m1 (f:2), which is served; this one has no effect"));
  // Without a creation time there is no age: the first read stays, as in the fleet.
  EXPECT_EQ(References(PoolX("name: p") + Model("name: timeless", spec) +
                           Model("name: old, creationTimestamp: '2025-04-02T00:00:00Z'", spec),
                       &manifests)
                .size(),
            1u);
  EXPECT_EQ(ModelsOf(manifests, manifests.pools[0])[0]->meta.name, "timeless");
  // Another pool, another model.
  EXPECT_THAT(References(PoolX("name: p") + PoolX("name: q") + Model("name: m1", spec) +
                         Model("name: m2", "modelName: a, poolRef: {name: q}")),
              IsEmpty());
}

TEST(References, RouteToAGateway) {
  const std::string gateway =
      "--- {apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: inference-gateway}, "
      "spec: "
      "{gatewayClassName: c, listeners: [{name: http, port: 80, protocol: HTTP}]}}\n";
  const auto with = [&](const std::string& parent) {
    return References(PoolX("name: p") + gateway + Route("name: r", "{" + parent + "}", kX + "name: p"));
  };
  EXPECT_THAT(with("name: inference-gateway"), IsEmpty());
  EXPECT_THAT(with("name: inference-gateway, sectionName: http, port: 80"), IsEmpty());
  EXPECT_THAT(
      with("name: inference-gatway"),
      ElementsAre("f:3: HTTPRoute default/r: spec.parentRefs: no Gateway \"inference-gatway\" in namespace "
                  "\"default\"; did you mean \"inference-gateway\"?"));
  EXPECT_THAT(
      with("name: inference-gateway, namespace: infra"),
      ElementsAre("f:3: HTTPRoute default/r: spec.parentRefs: no Gateway \"inference-gateway\" in namespace "
                  "\"infra\"; there is one in namespace \"default\""));
  EXPECT_THAT(
      with("name: inference-gateway, sectionName: https"),
      ElementsAre(
          "f:3: HTTPRoute default/r: spec.parentRefs: Gateway default/inference-gateway has no listener "
          "\"https\"; did you mean \"http\"?"));
  EXPECT_THAT(
      with("name: inference-gateway, port: 81"),
      ElementsAre(
          "f:3: HTTPRoute default/r: spec.parentRefs: Gateway default/inference-gateway has no such listener "
          "on port 81"));
  // Without any Gateway there is a listener for every route.
  EXPECT_THAT(References(PoolX("name: p") + Route("name: r", "{name: anything}", kX + "name: p")), IsEmpty());
}

TEST(References, PoolsAndEndpointsThatDoNotMeet) {
  EXPECT_THAT(References(PoolX("name: p") +
                         "--- {endpoints: [{name: a, address: 10.0.0.1, port: '1', labels: {app: x}}]}\n"),
              IsEmpty());
  EXPECT_THAT(
      References(PoolX("name: p") + PoolX("name: q, namespace: ml") +
                 "---\nendpoints:\n- {name: a, address: 10.0.0.1, port: '1', labels: {app: x}}\n"
                 "- {name: b, address: 10.0.0.2, port: '1', labels: {app: y}}\n"),
      ElementsAre(
          "f:2: warning: InferencePool ml/q: spec.selector: selects none of the endpoints; an endpoint needs "
          "its namespace \"ml\" and all its labels",
          "f:6: warning: endpoint default/b: labels: no InferencePool selects this endpoint; it will get no "
          "requests"));
  // Endpoints alone, or pools alone, are fine: the other half comes from elsewhere.
  EXPECT_THAT(References("endpoints: [{name: a, address: 10.0.0.1, port: '1'}]\n"), IsEmpty());
}

TEST(References, EndpointsTwice) {
  EXPECT_THAT(
      References(
          "endpoints:\n- {name: a, address: 10.0.0.1, port: '1'}\n- {name: a, address: 10.0.0.2, port: '1'}\n"
          "- {name: b, address: 10.0.0.1, port: '1'}\n- {name: c, address: 10.0.0.1, port: '2'}\n"),
      ElementsAre("f:3: endpoint default/a: name: is defined twice; first in f:2",
                  "f:4: warning: endpoint default/b: address: address and port are those of endpoint \"a\" "
                  "(f:2): one "
                  "server would get two servers' load"));
}

}  // namespace
}  // namespace fairway::api
