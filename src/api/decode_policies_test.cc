// InferenceObjective and InferenceModelRewrite: what is read, every check with its words and line, which of
// them count for a pool and in which order.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "api/manifests.h"
#include "api/summary.h"

namespace fairway::api {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> Texts(const std::vector<Problem>& problems) {
  std::vector<std::string> out;
  for (const Problem& problem : problems) out.push_back(ToString(problem));
  return out;
}

constexpr const char* kObjective = R"(apiVersion: llm-d.ai/v1alpha2
kind: InferenceObjective
metadata:
  name: o
spec:
)";
constexpr const char* kRewrite = R"(apiVersion: llm-d.ai/v1alpha2
kind: InferenceModelRewrite
metadata:
  name: r
spec:
)";
const std::string kPool = "  poolRef: {name: p}\n";  // line 6

TEST(Objective, AllFieldsAndDefaults) {
  const LoadResult result = ParseManifests(std::string(kObjective) + kPool + R"(  priority: -10
status: {conditions: []}
---
{"apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceObjective",
 "metadata": {"name": "gold", "namespace": "ml"},
 "spec": {"priority": 2147483647, "poolRef": {"group": "inference.networking.x-k8s.io", "kind": "InferencePool", "name": "q"}}}
---
)" + kObjective + kPool,
                                           "f");
  EXPECT_THAT(Texts(result.problems), IsEmpty());
  ASSERT_EQ(result.manifests.objectives.size(), 3u);
  const InferenceObjective& first = result.manifests.objectives[0];
  EXPECT_EQ(Key(first.meta), "default/o");
  EXPECT_EQ(first.group, "llm-d.ai");
  EXPECT_EQ(first.priority, -10);
  EXPECT_EQ(first.pool.name, "p");
  EXPECT_EQ(first.pool.group, "inference.networking.k8s.io");
  EXPECT_EQ(first.pool.where.line, 6);
  const InferenceObjective& second = result.manifests.objectives[1];
  EXPECT_EQ(Key(second.meta), "ml/gold");
  EXPECT_EQ(second.group, "inference.networking.x-k8s.io");
  EXPECT_EQ(second.priority, 2147483647);
  EXPECT_EQ(second.pool.group, "inference.networking.x-k8s.io");
  EXPECT_EQ(result.manifests.objectives[2].priority, 0);
}

TEST(Rewrite, AllFieldsAndDefaults) {
  const LoadResult result = ParseManifests(std::string(kRewrite) + kPool + R"(  rules:
  - matches: [{model: {type: Exact, value: chat}}, {model: {value: chat-2}}]
    targets: [{modelRewrite: chat-v1, weight: 90}, {modelRewrite: chat-v2, weight: 10}]
  - targets: [{modelRewrite: base}]
---
{"apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceModelRewrite", "metadata": {"name": "s"},
 "spec": {"poolRef": {"name": "p"}, "rules": []}}
)",
                                           "f");
  EXPECT_THAT(Texts(result.problems), IsEmpty());
  ASSERT_EQ(result.manifests.rewrites.size(), 2u);
  const InferenceModelRewrite& rewrite = result.manifests.rewrites[0];
  EXPECT_EQ(rewrite.group, "llm-d.ai");
  EXPECT_EQ(rewrite.pool.name, "p");
  ASSERT_EQ(rewrite.rules.size(), 2u);
  ASSERT_EQ(rewrite.rules[0].matches.size(), 2u);
  EXPECT_EQ(rewrite.rules[0].matches[1].model, "chat-2");
  EXPECT_EQ(rewrite.rules[0].matches[1].where.line, 8);
  ASSERT_EQ(rewrite.rules[0].targets.size(), 2u);
  EXPECT_EQ(rewrite.rules[0].targets[0].model, "chat-v1");
  EXPECT_EQ(rewrite.rules[0].targets[0].weight, 90);
  EXPECT_THAT(rewrite.rules[1].matches, IsEmpty());
  EXPECT_FALSE(rewrite.rules[1].targets[0].weight.has_value());
  EXPECT_EQ(rewrite.rules[1].where.line, 10);
  EXPECT_EQ(result.manifests.rewrites[1].group, "inference.networking.x-k8s.io");
}

struct Case {
  const char* name;
  std::string text;
  std::vector<std::string> problems;
};
class Policies : public ::testing::TestWithParam<Case> {};

TEST_P(Policies, SayEveryProblem) {
  EXPECT_THAT(Texts(ParseManifests(GetParam().text, "f").problems), ElementsAreArray(GetParam().problems));
}

INSTANTIATE_TEST_SUITE_P(
    Objective, Policies,
    ::testing::Values(
        Case{"Empty",
             std::string(kObjective) + "  {}\n",
             {"f:5: InferenceObjective default/o: spec.poolRef: is required"}},
        Case{"NoSpec",
             "apiVersion: llm-d.ai/v1alpha2\nkind: InferenceObjective\nmetadata: {name: o}\n",
             {"f:1: InferenceObjective default/o: spec: is required"}},
        Case{"Priority",
             kObjective + kPool + "  priority: 2147483648\n",
             {"f:7: InferenceObjective default/o: spec.priority: want a whole number from -2147483648 to "
              "2147483647, got \"2147483648\""}},
        Case{"PriorityInQuotes",
             kObjective + kPool + "  priority: '-1'\n",
             {"f:7: InferenceObjective default/o: spec.priority: want a whole number, got the string \"-1\"; "
              "take "
              "the quotes off"}},
        Case{"Fields",
             kObjective + kPool + "  criticality: Critical\n  prioriy: 1\n",
             {"f:7: InferenceObjective default/o: spec.criticality: unknown field; that is InferenceModel's; "
              "here it is priority, a number: below 0 may be shed",
              "f:8: InferenceObjective default/o: spec.prioriy: unknown field; did you mean \"priority\"?"}},
        Case{
            "PoolRef",
            std::string(kObjective) + "  poolRef: {kind: Pool, namespace: x}\n",
            {"f:6: InferenceObjective default/o: spec.poolRef.kind: want InferencePool, got \"Pool\"",
             "f:6: InferenceObjective default/o: spec.poolRef.name: is required",
             "f:6: InferenceObjective default/o: spec.poolRef.namespace: unknown field; an objective and its "
             "pool stand in the same namespace"}},
        Case{"Version",
             "apiVersion: llm-d.ai/v1\nkind: InferenceObjective\nmetadata: {name: o}\n",
             {"f:1: InferenceObjective default/o: apiVersion: want llm-d.ai/v1alpha2 or "
              "inference.networking.x-k8s.io/v1alpha2, got \"llm-d.ai/v1\""}},
        Case{"Group",
             "apiVersion: inference.networking.k8s.io/v1alpha2\nkind: InferenceObjective\n",
             {"f:1: InferenceObjective: apiVersion: want llm-d.ai/v1alpha2 or "
              "inference.networking.x-k8s.io/v1alpha2, got \"inference.networking.k8s.io/v1alpha2\""}},
        Case{"Kind",
             "apiVersion: llm-d.ai/v1alpha2\nkind: InferenceObjectiv\n---\n"
             "apiVersion: llm-d.ai/v1alpha1\nkind: VariantAutoscaling\n",
             {"f:2: InferenceObjectiv: kind: no kind \"InferenceObjectiv\" in llm-d.ai; did you mean "
              "\"InferenceObjective\"?"}}),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Rewrite, Policies,
    ::testing::Values(
        Case{"Empty",
             std::string(kRewrite) + "  {}\n",
             {"f:5: InferenceModelRewrite default/r: spec.poolRef: is required",
              "f:5: InferenceModelRewrite default/r: spec.rules: is required"}},
        Case{"Rules",
             kRewrite + kPool + "  rules:\n  - {}\n  - targets: []\n  - split: [{modelRewrite: a}]\n  -\n",
             {"f:8: InferenceModelRewrite default/r: spec.rules[0].targets: is required",
              "f:9: InferenceModelRewrite default/r: spec.rules[1].targets: want at least 1 item",
              "f:10: InferenceModelRewrite default/r: spec.rules[2].targets: is required",
              "f:10: InferenceModelRewrite default/r: spec.rules[2].split: unknown field; that was its first "
              "name; it is targets",
              "f:11: InferenceModelRewrite default/r: spec.rules[3]: is empty; fill it or take it out"}},
        Case{"Matches",
             kRewrite + kPool +
                 "  rules:\n  - targets: [{modelRewrite: a}]\n    matches:\n    - {}\n    - model: {}\n"
                 "    - model: {type: Prefix, value: ''}\n    - {model: chat}\n",
             {"f:10: InferenceModelRewrite default/r: spec.rules[0].matches[0].model: is required",
              "f:11: InferenceModelRewrite default/r: spec.rules[0].matches[1].model.value: is required",
              "f:12: InferenceModelRewrite default/r: spec.rules[0].matches[2].model.type: want Exact, got "
              "\"Prefix\"",
              "f:12: InferenceModelRewrite default/r: spec.rules[0].matches[2].model.value: want 1 to 1024 "
              "characters, got \"\"",
              "f:13: InferenceModelRewrite default/r: spec.rules[0].matches[3].model: want a map, got the "
              "string \"chat\""}},
        Case{"Targets",
             kRewrite + kPool +
                 "  rules:\n  - targets:\n    - {name: a}\n    - {modelRewrite: '', weight: 0}\n"
                 "    - {modelRewrite: b, weight: 1000001}\n",
             {"f:9: InferenceModelRewrite default/r: spec.rules[0].targets[0].modelRewrite: is required",
              "f:9: InferenceModelRewrite default/r: spec.rules[0].targets[0].name: unknown field; that is "
              "InferenceModel's name for it; here it is modelRewrite",
              "f:9: warning: InferenceModelRewrite default/r: spec.rules[0].targets[0].weight: is not set, "
              "but "
              "others are: this target gets no requests; set it for all or for none",
              "f:10: InferenceModelRewrite default/r: spec.rules[0].targets[1].modelRewrite: want 1 to 1024 "
              "characters, got \"\"",
              "f:10: InferenceModelRewrite default/r: spec.rules[0].targets[1].weight: want a whole number "
              "from 1 to 1000000, got \"0\"",
              "f:11: InferenceModelRewrite default/r: spec.rules[0].targets[2].weight: want a whole number "
              "from 1 to 1000000, got \"1000001\""}}),
    [](const auto& info) { return info.param.name; });

// --- One object of an API server. ---

TEST(ParseObject, FieldsOfALaterVersionAreLeftAlone) {
  const std::string text =
      R"({"apiVersion":"llm-d.ai/v1alpha2","kind":"InferenceObjective","metadata":{"name":"o","uid":"1"},)"
      R"("spec":{"priority":3,"later":{"a":1},"poolRef":{"name":"p","later":true}}})";
  const LoadResult object = ParseObject(text, "InferenceObjective default/o");
  EXPECT_THAT(Texts(object.problems), IsEmpty());
  ASSERT_EQ(object.manifests.objectives.size(), 1u);
  EXPECT_EQ(object.manifests.objectives[0].priority, 3);
  EXPECT_EQ(ParseManifests(text, "f.json").problems.size(), 2u) << "in a file they are slips of the pen";
  // What the CRD does not let through is an error here, too.
  EXPECT_THAT(
      Texts(ParseObject(R"({"apiVersion":"llm-d.ai/v1alpha2","kind":"InferenceObjective",
"metadata":{"name":"o"},"spec":{"priority":"high","poolRef":{"name":"p"}}})",
                        "api")
                .problems),
      ElementsAre(HasSubstr("api:2: InferenceObjective default/o: spec.priority: want a whole number")));
  EXPECT_FALSE(ParseObject("{", "api").ok());
  EXPECT_FALSE(ParseObject("kind: X", "api").ok()) << "JSON only";
}

// --- Among other objects. ---

std::vector<std::string> References(const std::string& text, Manifests* out = nullptr) {
  LoadResult result = ParseManifests(text, "f");
  for (const Problem& problem : result.problems) ADD_FAILURE() << ToString(problem);
  CheckReferences(result.manifests, result.problems);
  if (out != nullptr) *out = std::move(result.manifests);
  return Texts(result.problems);
}

// One line each, so that the tests can count lines.
std::string PoolV1(const std::string& meta) {
  return "--- {apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {" + meta +
         "}, spec: {selector: {matchLabels: {app: x}}, targetPorts: [{number: 80}]}}\n";
}
std::string PoolX(const std::string& meta) {
  return "--- {apiVersion: inference.networking.x-k8s.io/v1alpha2, kind: InferencePool, metadata: {" + meta +
         "}, spec: {selector: {app: x}, targetPortNumber: 80, extensionRef: {name: e}}}\n";
}
std::string Objective(const std::string& meta, const std::string& ref,
                      const std::string& group = "llm-d.ai") {
  return "--- {apiVersion: " + group + "/v1alpha2, kind: InferenceObjective, metadata: {" + meta +
         "}, spec: {priority: 1, poolRef: {" + ref + "}}}\n";
}
std::string Rewrite(const std::string& meta, const std::string& rules, const std::string& ref = "name: p") {
  return "--- {apiVersion: llm-d.ai/v1alpha2, kind: InferenceModelRewrite, metadata: {" + meta +
         "}, spec: {poolRef: {" + ref + "}, rules: [" + rules + "]}}\n";
}
std::string Exact(const std::string& model, const std::string& target) {
  return "{matches: [{model: {value: " + model + "}}], targets: [{modelRewrite: " + target + "}]}";
}
std::string Generic(const std::string& target) { return "{targets: [{modelRewrite: " + target + "}]}"; }

TEST(PolicyReferences, ToAPool) {
  EXPECT_THAT(
      References(PoolV1("name: p") + Objective("name: o", "name: p") + Rewrite("name: r", Generic("a"))),
      IsEmpty());
  EXPECT_THAT(
      References(PoolV1("name: chat-pool") + Objective("name: o", "name: chat-pol") +
                 Rewrite("name: r", Generic("a"), "name: chat-poool")),
      ElementsAre("f:2: InferenceObjective default/o: spec.poolRef.name: no InferencePool \"chat-pol\" in "
                  "namespace \"default\"; did you mean \"chat-pool\"?",
                  "f:3: InferenceModelRewrite default/r: spec.poolRef.name: no InferencePool "
                  "\"chat-poool\" in namespace \"default\"; did you mean \"chat-pool\"?"));
  EXPECT_THAT(References(PoolV1("name: p, namespace: ml") + Objective("name: o", "name: p")),
              ElementsAre("f:2: InferenceObjective default/o: spec.poolRef.name: no InferencePool \"p\" in "
                          "namespace \"default\"; there is one in namespace \"ml\""));
}

TEST(PolicyReferences, TheGroupCounts) {
  EXPECT_THAT(
      References(PoolX("name: p") + Objective("name: o", "name: p")),
      ElementsAre(
          "f:2: InferenceObjective default/o: spec.poolRef.group: is \"inference.networking.k8s.io\", but "
          "InferencePool default/p (f:1) is of \"inference.networking.x-k8s.io\""));
  Manifests manifests;
  EXPECT_THAT(
      References(PoolX("name: p") + Objective("name: o", "group: inference.networking.x-k8s.io, name: p"),
                 &manifests),
      IsEmpty());
  EXPECT_EQ(ObjectivesOf(manifests, manifests.pools[0]).size(), 1u);
  manifests.objectives[0].pool.group = "inference.networking.k8s.io";
  EXPECT_THAT(ObjectivesOf(manifests, manifests.pools[0]), IsEmpty());
}

TEST(PolicyReferences, OneNameTwice) {
  EXPECT_THAT(
      References(PoolV1("name: p") + Objective("name: o", "name: p") +
                 Objective("name: o", "name: p", "inference.networking.x-k8s.io") +
                 Objective("name: o, namespace: b", "name: p") + PoolV1("name: p, namespace: b")),
      ElementsAre("f:3: InferenceObjective default/o: metadata.name: is defined twice; first in f:2 with the "
                  "group \"llm-d.ai\"; keep one of the two"));
}

TEST(PolicyReferences, RulesThatOthersHide) {
  const std::string rules =
      Exact("a", "x") + ", " + Generic("y") + ", " + Exact("a", "z") + ", " + Generic("z");
  EXPECT_THAT(
      References(PoolV1("name: p") +
                 Rewrite("name: young, creationTimestamp: '2025-04-03T00:00:00Z'", rules) +
                 Rewrite("name: old, creationTimestamp: '2025-04-02T00:00:00Z'", Exact("a", "w"))),
      ElementsAre(
          "f:2: warning: InferenceModelRewrite default/young: spec.rules[0].matches[0].model.value: \"a\" is "
          "matched already by InferenceModelRewrite default/old (f:3), which comes first; this one has no "
          "effect",
          "f:2: warning: InferenceModelRewrite default/young: spec.rules[2].matches[0].model.value: \"a\" is "
          "matched already by InferenceModelRewrite default/old (f:3), which comes first; this one has no "
          "effect",
          "f:2: warning: InferenceModelRewrite default/young: spec.rules[3]: every model is matched already "
          "by an earlier rule of this object; this one has no effect"));
  EXPECT_THAT(References(PoolV1("name: p") + PoolV1("name: q") + Rewrite("name: r", Exact("a", "x")) +
                         Rewrite("name: s", Exact("a", "x"), "name: q")),
              IsEmpty())
      << "another pool, another rule";
}

TEST(RewritesOf, TheOldestFirstAndWithoutATimeLast) {
  Manifests manifests;
  References(PoolV1("name: p") + Rewrite("name: timeless-1", "") +
                 Rewrite("name: young, creationTimestamp: '2025-04-03T00:00:00Z'", "") +
                 Rewrite("name: same, creationTimestamp: '2025-04-03T00:00:00Z'", "") +
                 Rewrite("name: timeless-2", "") +
                 Rewrite("name: old, creationTimestamp: '2025-04-03T01:00:00+02:00'", ""),
             &manifests);
  std::vector<std::string> names;
  for (const auto* rewrite : RewritesOf(manifests, manifests.pools[0])) names.push_back(rewrite->meta.name);
  EXPECT_THAT(names, ElementsAre("old", "young", "same", "timeless-1", "timeless-2"));
}

TEST(PolicySummary, InTheOrderOfPrecedence) {
  const LoadResult result = ParseManifests(
      PoolV1("name: p") + Rewrite("name: r", Generic("base") + ", " + Exact("chat", "chat-v1")) +
          Rewrite("name: s",
                  "{matches: [{model: {value: a}}, {model: {value: b}}], targets: [{modelRewrite: c}, "
                  "{modelRewrite: d, weight: 3}, {modelRewrite: e, weight: 1}]}, "
                  "{matches: [{model: {value: f}}], targets: [{modelRewrite: g}, {modelRewrite: h}]}") +
          Objective("name: gold", "name: p") +
          "--- {apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {name: batch}, spec: "
          "{priority: "
          "-5, poolRef: {name: p}}}\n",
      "f");
  EXPECT_THAT(Summarize(result.manifests), HasSubstr(R"(
  models            any (no InferenceModel names this pool)
  rewrite           chat -> chat-v1 (r)
  rewrite           a, b -> c (no weight, 0 %), d (weight 3, 75 %), e (weight 1, 25 %) (s)
  rewrite           f -> g (50 %), h (50 %) (s)
  rewrite           any other model -> base (r)
  objective         gold: priority 1
  objective         batch: priority -5, may be shed
)"));
}

}  // namespace
}  // namespace fairway::api
