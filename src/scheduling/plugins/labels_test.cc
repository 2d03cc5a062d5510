// Filters and scorers by what manifests say: labels, roles, topology, attributes.
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "scheduling/plugin.h"
#include "tests/support/plugins.h"

namespace fairway::scheduling {
namespace {

using Fixture = tests::Candidates;
using List = std::vector<uint32_t>;
using Scores = std::vector<float>;
using Texts = std::vector<std::string>;

const CompileOptions kAlpha{.more_types = {}, .states = nullptr, .allow_experimental = true};

TEST(LabelSelectorFilter, FollowsKubernetes) {
  Fixture f(4);
  f.Label({{{"app", "a"}, {"tier", "fast"}}, {{"app", "b"}}, {{"tier", "slow"}}, {}});
  struct Case {
    const char* selector;
    List kept;
  };
  for (const Case& c : {
           Case{"{}", {0, 1, 2, 3}},
           Case{"matchLabels: {app: a}", {0}},
           Case{"matchLabels: {app: a, tier: slow}", {}},
           Case{"matchExpressions: [{key: app, operator: In, values: [a, b]}]", {0, 1}},
           Case{"matchExpressions: [{key: app, operator: NotIn, values: [a]}]", {1, 2, 3}},
           Case{"matchExpressions: [{key: tier, operator: Exists}]", {0, 2}},
           Case{"matchExpressions: [{key: tier, operator: DoesNotExist}]", {1, 3}},
           Case{"{matchLabels: {tier: fast}, matchExpressions: [{key: app, operator: Exists}]}", {0}},
       }) {
    EXPECT_EQ(f.Keep("label-selector-filter", c.selector), c.kept) << c.selector;
    EXPECT_EQ(f.Keep("by-label-selector", c.selector), c.kept) << c.selector;
  }
}

TEST(LabelSelectorFilter, SaysWhatIsWrong) {
  const auto problem = [](const char* parameters) {
    const Texts problems =
        tests::ProblemsOf({.plugins = {tests::Parsed("label-selector-filter", "l", parameters)}});
    return problems.empty() ? "" : problems.front().substr(problems.front().find("parameters"));
  };
  EXPECT_EQ(problem("matchExpressions: [{key: a, operator: In}]"),
            "parameters.matchExpressions[0].values: In and NotIn want at least one value");
  EXPECT_EQ(problem("matchExpressions: [{key: a, operator: Exists, values: [b]}]"),
            "parameters.matchExpressions[0].values: Exists and DoesNotExist take no values");
  EXPECT_EQ(problem("matchExpressions: [{operator: Exists}]"),
            "parameters.matchExpressions[0].key: is required");
  EXPECT_NE(problem("matchExpressions: [{key: a, operator: Inn}]").find("did you mean \"In\""),
            std::string::npos);
  EXPECT_NE(problem("matchLabel: {a: b}").find("did you mean \"matchLabels\""), std::string::npos);
}

TEST(ByLabelFilter, KeepsValuesThatAreListed) {
  Fixture f(3);
  f.Label({{{"pool", "a"}}, {{"pool", "b"}}, {}});
  EXPECT_EQ(f.Keep("by-label", "{label: pool, validValues: [a]}"), (List{0}));
  EXPECT_EQ(f.Keep("by-label", "{label: pool, validValues: [a], allowsNoLabel: true}"), (List{0, 2}));
  EXPECT_EQ(f.Keep("by-label", "{label: pool, allowsNoLabel: true}"), (List{2}));
  EXPECT_EQ(f.warnings.front(),
            "test.yaml:1: warning: plugin by-label: type: plugin type \"by-label\" is deprecated; use "
            "\"label-selector-filter\"; llm-d removes it in v0.11.0");
  EXPECT_EQ(tests::ProblemsOf({.plugins = {tests::Spec("by-label")}}).size(), 3u);
}

TEST(RoleFilters, KnowWhoServesWhat) {
  Fixture f(8);
  const std::string role = "llm-d.ai/role";
  f.Label({{{role, "decode"}},
           {{role, "prefill"}},
           {{role, "encode"}},
           {{role, "prefill-decode"}},
           {{role, "encode-prefill"}},
           {{role, "encode-prefill-decode"}},
           {{role, "both"}},
           {}});
  EXPECT_EQ(f.Keep("decode-filter"), (List{0, 3, 5, 6, 7}));
  EXPECT_EQ(f.Keep("prefill-filter"), (List{1, 3, 4, 5, 6}));
  EXPECT_EQ(f.Keep("encode-filter"), (List{2, 4, 5}));
}

TEST(ContextLengthAware, FiltersAndScoresByRange) {
  const char* const type = "context-length-aware";
  const std::string label = "llm-d.ai/context-length-range";
  Fixture f(7);
  f.Label({{{label, "0-1000"}},
           {{label, "500-500"}},
           {},
           {{label, "long"}},
           {{label, " 0 - 100 "}},
           {{label, "1000-2000"}},
           {{label, "9-1"}}});
  f.request.prompt_tokens = 500;
  const Scores scores = f.Scores(type);
  // 0.3 + 0.7 * (0.7 / 1.1 + 0.3 * 0.5); one length; no label; no range; 400 above; 500 below; no range
  const std::vector<double> wanted{0.8504545455, 1, 0.5, 0, 0.2142857143, 0.2, 0};
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(scores[i], wanted[i], 1e-6) << i;
  EXPECT_EQ(f.Keep(type), f.all);
  EXPECT_EQ(f.Keep(type, "enableFiltering: true"), (List{0, 1, 2}));
}

TEST(HeaderLabelAffinityScorer, ComparesHeaderAndLabel) {
  const char* const parameters = "{headerName: X-Zone, labelKey: zone}";
  Fixture f(3);
  f.Label({{{"zone", "a"}}, {{"zone", "b"}}, {}});
  EXPECT_EQ(f.Scores("header-label-affinity-scorer", parameters), (Scores{0, 0, 0})) << "no header";
  f.headers["x-zone"] = "b";
  EXPECT_EQ(f.Scores("header-label-affinity-scorer", parameters), (Scores{0, 1, 0}));
  EXPECT_EQ(tests::ProblemsOf({.plugins = {tests::Spec("header-label-affinity-scorer")}}, kAlpha).size(), 2u);
}

TEST(TopologyAffinity, NearIsBetter) {
  const auto at = [](const char* host, const char* rack, const char* zone) {
    return std::map<std::string, std::string>{{"kubernetes.io/hostname", host},
                                              {"topology.kubernetes.io/rack", rack},
                                              {"topology.kubernetes.io/zone", zone},
                                              {"topology.kubernetes.io/region", "r"}};
  };
  Fixture f(6);
  f.Label({at("h1", "k1", "z1"),
           at("h1", "k1", "z1"),
           at("h2", "k1", "z1"),
           at("h3", "k2", "z1"),
           at("h4", "k3", "z2"),
           {}});
  EXPECT_EQ(f.Keep("topology-affinity-filter"), f.all);
  EXPECT_EQ(f.warnings.size(), 1u) << "no extractor";
  f.others = {tests::Spec("topology-extractor")};
  EXPECT_EQ(f.Keep("topology-affinity-filter"), f.all) << "no profile before";
  EXPECT_EQ(f.Scores("topology-affinity-scorer"), (Scores{0, 0, 0, 0, 0, 0}));
  f.peer = 0;
  EXPECT_EQ(f.Scores("topology-affinity-scorer"), (Scores{1, 1, 0.2f, 0.05f, 0.02f, 0}));
  EXPECT_EQ(f.Keep("topology-affinity-filter"), (List{0, 1}));
  EXPECT_EQ(f.Keep("topology-affinity-filter", "minAffinity: zone"), (List{0, 1, 2, 3}));
  f.peer = 5;
  EXPECT_EQ(f.Keep("topology-affinity-filter"), f.all) << "nobody knows where it is";
}

TEST(EndpointAttributeFilter, ComparesWithALimit) {
  const char* const type = "endpoint-attribute-filter";
  constexpr float kMissing = std::numeric_limits<float>::quiet_NaN();
  Fixture f(4);
  f["GPU/dcgm"] = {0.5f, 0.9f, 0.95f, kMissing};
  const auto keep = [&](const std::string& more) {
    return f.Keep(type, ("{attribute: GPU, producer: dcgm, " + more + "}").c_str());
  };
  const std::string below =
      "algorithm: {type: threshold, threshold: {operator: LessThanOrEqual, value: 0.9}}";
  EXPECT_EQ(keep(below), (List{0, 1, 3}));
  EXPECT_EQ(keep(below + ", onMissing: Fail"), (List{0, 1}));
  const auto with = [&](const std::string& op) {
    return keep("onMissing: Fail, algorithm: {type: threshold, threshold: {operator: " + op +
                ", value: 0.9}}");
  };
  EXPECT_EQ(with("LessThan"), (List{0}));
  EXPECT_EQ(with("GreaterThan"), (List{2}));
  EXPECT_EQ(with("GreaterThanOrEqual"), (List{1, 2}));
  EXPECT_EQ(with("Equal"), (List{1}));
  EXPECT_EQ(with("NotEqual"), (List{0, 2}));
  const std::string none = "onMissing: Fail, algorithm: {type: threshold, threshold: {operator: LessThan}}";
  EXPECT_EQ(keep(none), List{});
  EXPECT_EQ(keep(none + ", fallbackOnEmpty: true"), f.all);
  EXPECT_EQ(f.warnings.front(),
            "test.yaml:1: warning: plugin endpoint-attribute-filter: no plugin makes column \"GPU/dcgm\": no "
            "endpoint "
            "has a value");
  f["queue"] = {1, 2, 3, 4};
  EXPECT_EQ(f.Keep(type,
                   "{attribute: queue, algorithm: {type: threshold, threshold: {operator: LessThan, "
                   "value: 3}}}"),
            (List{0, 1}));
}

TEST(EndpointAttributeScorer, IsLinear) {
  const char* const type = "endpoint-attribute-scorer";
  constexpr float kMissing = std::numeric_limits<float>::quiet_NaN();
  Fixture f(4);
  f["GPU/dcgm"] = {0.25f, 0.5f, 1.25f, kMissing};
  const auto scores = [&](const std::string& algorithm) {
    return f.Scores(type,
                    ("{attributeKey: GPU, producer: dcgm, algorithm: {type: " + algorithm + "}}").c_str());
  };
  EXPECT_EQ(scores("linear_lower_is_better"), (Scores{1, 0.75f, 0, 0}));
  EXPECT_EQ(scores("linear_higher_is_better, normalization: {adaptiveRange: {}}"), (Scores{0, 0.25f, 1, 0}));
  EXPECT_EQ(scores("linear_lower_is_better, normalization: {fixedRange: {min: 0, max: 1}}"),
            (Scores{0.75f, 0.5f, 0, 0}));
  f["GPU/dcgm"] = {7, 7, 7, kMissing};
  EXPECT_EQ(scores("linear_lower_is_better"), (Scores{1, 1, 1, 0}));
}

TEST(HeaderBasedTestingFilter, KeepsWhatTheHeaderLists) {
  const char* const type = "header-based-testing-filter";
  Fixture f(3);
  f.Label({{}, {}, {}});
  EXPECT_EQ(f.Keep(type), List{});
  f.headers["test-epp-endpoint-selection"] = "10.0.0.3, 10.0.0.1:8000,10.0.0.2:9000";
  EXPECT_EQ(f.Keep(type), (List{0, 2}));
}

}  // namespace
}  // namespace fairway::scheduling
