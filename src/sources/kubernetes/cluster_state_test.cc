#include "sources/kubernetes/cluster_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace fairway::sources::kubernetes {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct PodText {
  std::string name = "pod-1";
  std::string space = "default";
  std::string labels = R"({"app":"llm"})";
  std::string meta;  // more metadata
  std::string status = R"({"podIP":"10.0.0.1","conditions":[{"type":"PodScheduled","status":"True"},)"
                       R"({"type":"Ready","status":"True"}]})";
  std::string text() const {
    return R"({"apiVersion":"v1","kind":"Pod","metadata":{"name":")" + name + R"(","namespace":")" + space +
           R"(","uid":"u-)" + name + R"(","resourceVersion":"5","labels":)" + labels + meta +
           R"(,"managedFields":[{"f:status":{"f:podIP":{}}}]},"spec":{"containers":[{"name":"x"}]},"status":)" +
           status + "}";
  }
};

bool Eligible(const PodText& pod) {
  const auto read = ReadPod(pod.text());
  EXPECT_TRUE(read.has_value());
  return read && read->eligible;
}

TEST(Pods, WhatIsEligible) {
  EXPECT_TRUE(Eligible({}));
  EXPECT_TRUE(Eligible({.meta = R"(,"deletionTimestamp":null)"}));
  EXPECT_FALSE(Eligible({.meta = R"(,"deletionTimestamp":"2026-01-01T00:00:00Z")"}));
  EXPECT_FALSE(Eligible({.status = R"({"podIP":"10.0.0.1"})"}));
  EXPECT_FALSE(
      Eligible({.status = R"({"podIP":"10.0.0.1","conditions":[{"type":"Ready","status":"False"}]})"}));
  EXPECT_FALSE(
      Eligible({.status = R"({"podIP":"10.0.0.1","conditions":[{"type":"ReadyToo","status":"True"}]})"}));
  EXPECT_FALSE(Eligible({.status = R"({"conditions":[{"type":"Ready","status":"True"}]})"}));
  // The API server looks at the syntax only, and not everywhere.
  EXPECT_FALSE(
      Eligible({.status = R"({"podIP":"evil.example","conditions":[{"type":"Ready","status":"True"}]})"}));
  EXPECT_TRUE(Eligible({.status = R"({"podIP":"fd00::1","conditions":[{"status":"True","type":"Ready"}]})"}));
  EXPECT_FALSE(ReadPod("[]").has_value());
}

Pod WithAnnotations(const std::string& annotations) {
  return ReadPod(PodText{.meta = ",\"annotations\":{" + annotations + "}"}.text()).value();
}
Pod WithActivePorts(const std::string& text) {
  return WithAnnotations("\"llm-d.ai/active-ports\":\"" + text + "\"");
}

TEST(Pods, ActivePorts) {
  EXPECT_TRUE(PortIsActive(WithAnnotations(""), 8000));
  EXPECT_TRUE(PortIsActive(WithActivePorts("8001, 8000"), 8000));
  EXPECT_FALSE(PortIsActive(WithActivePorts("8001"), 8000));
  EXPECT_FALSE(PortIsActive(WithActivePorts(""), 8000));
  EXPECT_FALSE(PortIsActive(WithActivePorts("x,80000"), 8000));
  EXPECT_TRUE(PortIsActive(WithActivePorts("x,8000"), 8000));
  const std::string both = R"("inference.networking.k8s.io/active-ports":"1")";
  EXPECT_TRUE(PortIsActive(WithAnnotations(both), 1));
  for (const Pod& pod : {WithAnnotations(R"("llm-d.ai/active-ports":"2",)" + both),
                         WithAnnotations(both + R"(,"llm-d.ai/active-ports":"2")")}) {
    EXPECT_TRUE(PortIsActive(pod, 2));
    EXPECT_FALSE(PortIsActive(pod, 1));
  }
}

TEST(Pods, WhatIsWrongWithActivePortsIsSaid) {
  for (const char* good : {"", "8000", "8000,8001", " 8000 , 8001 ", "8000,"}) {
    EXPECT_EQ(WithActivePorts(good).active_ports_problem, "") << good;
  }
  EXPECT_EQ(WithActivePorts("[18102]").active_ports_problem,
            "llm-d.ai/active-ports: \"[18102]\" is no port; want a list like 8000,8001");
  EXPECT_EQ(WithAnnotations(R"("inference.networking.k8s.io/active-ports":"1,0,-3")").active_ports_problem,
            "inference.networking.k8s.io/active-ports: \"0\" is no port; want a list like 8000,8001");
  // The newer one's fault counts where both are there.
  EXPECT_EQ(WithAnnotations(R"("inference.networking.k8s.io/active-ports":"x","llm-d.ai/active-ports":"2")")
                .active_ports_problem,
            "");
  // However long it is, little of it is kept.
  EXPECT_LT(WithActivePorts(std::string(100'000, 'x')).active_ports_problem.size(), 200u);
  std::string many = "1";
  for (int i = 2; i < 20'000; ++i) many += "," + std::to_string(i);
  EXPECT_EQ(WithActivePorts(many).active_ports->size(), 256u);
  EXPECT_THAT(WithActivePorts(many).active_ports_problem, HasSubstr("\"257\" is one too many"));
}

TEST(PodStore, AMalformedAnnotationIsToldOncePerPod) {
  std::vector<std::string> told;
  PodStore store([&](const std::string& key, const std::string&) { told.push_back(key); });
  const auto text = [](const std::string& name, const std::string& ports, bool ready) {
    PodText pod{.name = name, .meta = R"(,"annotations":{"llm-d.ai/active-ports":")" + ports + "\"}"};
    if (!ready) pod.status = R"({"podIP":"10.0.0.1"})";
    return pod.text();
  };
  for (int list = 0; list < 2; ++list) {
    store.BeginList();  // this one breaks off
    store.Listed(text("a", "[1]", true));
    store.BeginList();
    store.Listed(text("a", "[1]", true));
    store.Listed(text("b", "[1]", false));
    store.Listed(text("c", "1", true));
    store.EndList();
  }
  EXPECT_THAT(told, ElementsAre("default/a", "default/b"));
  for (const bool ready : {false, true, false, true}) store.Set(text("a", "[1]", ready));
  EXPECT_EQ(told.size(), 2u);
  EXPECT_EQ(store.pods().count("default/a"), 1u);
  store.Set(text("a", "[2]", true));  // another fault
  EXPECT_EQ(told.size(), 3u);
  store.Set(text("a", "2", true));
  store.Set(text("a", "[2]", true));
  EXPECT_EQ(told.size(), 4u);
  store.Deleted(text("a", "[2]", true));
  store.Set(text("a", "[2]", true));
  EXPECT_EQ(told.size(), 5u);
}

std::vector<std::string> Keys(const PodStore& store) {
  std::vector<std::string> keys;
  for (const auto& [key, pod] : store.pods()) keys.push_back(key);
  return keys;
}

TEST(Pods, AWatchChangesWhatAListMade) {
  PodStore store;
  store.BeginList();
  store.Listed(PodText{.name = "a"}.text());
  store.Listed(PodText{.name = "b", .status = "{}"}.text());
  EXPECT_THAT(Keys(store), IsEmpty());  // not before the list is complete
  store.EndList();
  EXPECT_THAT(Keys(store), ElementsAre("default/a"));
  uint64_t version = store.version();

  store.Set(PodText{.name = "b"}.text());
  EXPECT_THAT(Keys(store), ElementsAre("default/a", "default/b"));
  EXPECT_GT(store.version(), version);
  version = store.version();
  store.Set(PodText{.name = "b", .meta = R"(,"annotations":{"other":"new"})"}.text());
  EXPECT_EQ(store.version(), version);  // nothing that matters

  // Terminating: gone at once, and its end is no news any more.
  store.Set(PodText{.name = "b", .meta = R"(,"deletionTimestamp":"2026-01-01T00:00:00Z")"}.text());
  EXPECT_THAT(Keys(store), ElementsAre("default/a"));
  version = store.version();
  store.Deleted(PodText{.name = "b"}.text());
  EXPECT_EQ(store.version(), version);

  // A list that begins anew forgets what was listed before it; one without changes is no change.
  store.BeginList();
  store.Listed(PodText{.name = "c"}.text());
  store.BeginList();
  store.Listed(PodText{.name = "a"}.text());
  store.EndList();
  EXPECT_EQ(store.version(), version);
  EXPECT_THAT(Keys(store), ElementsAre("default/a"));
}

api::InferencePool Pool(std::vector<uint16_t> ports = {8000, 8001}) {
  api::InferencePool pool;
  pool.meta.name = "pool";
  pool.group = "inference.networking.k8s.io";
  pool.selector = {{"app", "llm"}};
  pool.target_ports = std::move(ports);
  return pool;
}

TEST(Endpoints, APodSaysWhereItsMetricsPageIs) {
  PodStore store;
  store.Set(PodText{.name = "a",
                    .labels = R"({"app":"llm","fairway/metrics-scheme":"https","fairway/metrics-port":"1"})",
                    .meta = R"(,"annotations":{"fairway/metrics-path":"/p","fairway/metrics-port":"9400"})"}
                .text());
  store.Set(PodText{.name = "b",
                    .meta = R"(,"annotations":{"fairway/metrics-port":"99999","fairway/metrics-path":"/)" +
                            std::string(5000, 'x') + "\"}"}
                .text());
  std::vector<api::Endpoint> endpoints;
  AppendEndpoints(Pool({8000}), PodIndex(store.pods()).Matching(Pool()), endpoints);
  ASSERT_EQ(endpoints.size(), 2u);
  EXPECT_EQ(endpoints[0].metrics_path, "/p");
  EXPECT_EQ(endpoints[0].metrics_scheme, "https");
  EXPECT_EQ(endpoints[0].metrics_port, 9400);
  EXPECT_EQ(endpoints[1].metrics_port, 0);
  EXPECT_EQ(endpoints[1].metrics_path.size(), api::kMaxMetricsText)
      << "kept bounded, and too long to be used";
}

TEST(Endpoints, OnePerPodAndPort) {
  PodStore store;
  store.Set(PodText{.name = "a"}.text());
  store.Set(PodText{.name = "b", .meta = R"(,"annotations":{"llm-d.ai/active-ports":"8001"})"}.text());
  store.Set(PodText{.name = "c", .labels = R"({"app":"other"})"}.text());
  store.Set(PodText{.name = "d", .space = "default-2"}.text());
  std::vector<api::Endpoint> endpoints;
  AppendEndpoints(Pool(), PodIndex(store.pods()).Matching(Pool()), endpoints);
  std::vector<std::string> names;
  names.reserve(endpoints.size());
  for (const auto& endpoint : endpoints) names.push_back(endpoint.name + ":" + std::to_string(endpoint.port));
  EXPECT_THAT(names, ElementsAre("a-rank-0:8000", "a-rank-1:8001", "b-rank-1:8001"));
  EXPECT_EQ(endpoints[0].uid, "u-a");
  EXPECT_EQ(endpoints[0].pool_key, "default/pool");
  EXPECT_EQ(endpoints[0].address, "10.0.0.1");

  endpoints.clear();
  AppendEndpoints(Pool({8000}), store.pods(), endpoints);
  EXPECT_EQ(endpoints.size(), 3u);  // all but b, which has the port switched off
  api::InferencePool none = Pool();
  none.selector = {};
  EXPECT_TRUE(PodIndex(store.pods()).Matching(none).empty());
  none.selector = {{"app", "llm"}, {"tier", "x"}};
  EXPECT_TRUE(PodIndex(store.pods()).Matching(none).empty());
}

TEST(Pools, TheNewerGroupWins) {
  auto old = Pool();
  old.group = "inference.networking.x-k8s.io";
  auto other = Pool();
  other.meta.name = "other";
  std::vector<api::InferencePool> pools{old, Pool(), other};
  DropShadowedPools(pools);
  ASSERT_EQ(pools.size(), 2u);
  EXPECT_EQ(pools[0].meta.name, "other");
  EXPECT_EQ(pools[1].group, "inference.networking.k8s.io");
}

std::string PoolText(const std::string& version, const std::string& ports, const std::string& more = "") {
  return R"({"apiVersion":"inference.networking.k8s.io/v1","kind":"InferencePool","metadata":{"name":"pool","namespace":"llm",)"
         R"("resourceVersion":")" +
         version +
         R"(","uid":"u","generation":1,"managedFields":[]},"spec":{"selector":{"matchLabels":{"app":"llm"}},"targetPorts":)" +
         ports + more + R"(},"status":{"parents":[]}})";
}

TEST(Manifests, AnObjectWithAnErrorKeepsItsLastGoodState) {
  std::vector<std::string> problems;
  ManifestStore store([&](const api::Problem& problem) { problems.push_back(api::ToString(problem)); });
  store.BeginList();
  store.Listed(PoolText("1", R"([{"number":8000}])"));
  store.EndList();
  const auto ports = [&] {
    api::Manifests manifests;
    store.AppendTo(manifests);
    return manifests.pools.size() == 1 ? manifests.pools[0].target_ports : std::vector<uint16_t>{};
  };
  EXPECT_THAT(ports(), ElementsAre(8000));
  EXPECT_THAT(problems, IsEmpty());

  store.Set(PoolText("2", R"([{"number":0}])"));
  EXPECT_THAT(ports(), ElementsAre(8000));
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_THAT(problems[0], HasSubstr("InferencePool llm/pool: spec.targetPorts[0].number"));

  // The same state again, as a new list gives it: not told twice, and the good state still stays.
  store.BeginList();
  store.Listed(PoolText("2", R"([{"number":0}])"));
  store.EndList();
  EXPECT_EQ(problems.size(), 1u);
  EXPECT_THAT(ports(), ElementsAre(8000));

  store.Set(PoolText("3", R"([{"number":8001}])"));
  EXPECT_THAT(ports(), ElementsAre(8001));
  store.Deleted(PoolText("4", R"([{"number":8001}])"));
  EXPECT_THAT(ports(), IsEmpty());
}

TEST(Manifests, AFieldOfANewerCrdIsNoReasonToLeaveAnObjectOut) {
  std::vector<std::string> problems;
  ManifestStore store([&](const api::Problem& problem) { problems.push_back(api::ToString(problem)); });
  store.Set(PoolText("1", R"([{"number":8000}])", R"(,"fieldOfTheFuture":{"a":1})"));
  EXPECT_THAT(problems, IsEmpty());
  api::Manifests manifests;
  store.AppendTo(manifests);
  EXPECT_EQ(manifests.pools.size(), 1u);
}

TEST(Manifests, ObjectivesAndRewritesToo) {
  std::vector<std::string> problems;
  ManifestStore store([&](const api::Problem& problem) { problems.push_back(api::ToString(problem)); });
  store.Set(
      R"({"apiVersion":"llm-d.ai/v1alpha2","kind":"InferenceObjective","metadata":{"name":"batch","namespace":"llm",)"
      R"("resourceVersion":"1"},"spec":{"priority":-1,"poolRef":{"name":"pool"}}})");
  store.Set(
      R"({"apiVersion":"llm-d.ai/v1alpha2","kind":"InferenceModelRewrite","metadata":{"name":"r","namespace":"llm",)"
      R"("resourceVersion":"1"},"spec":{"poolRef":{"name":"pool"},"rules":[{"targets":[{"modelRewrite":"x"}]}]}})");
  EXPECT_THAT(problems, IsEmpty());
  api::Manifests manifests;
  store.AppendTo(manifests);
  ASSERT_EQ(manifests.objectives.size(), 1u);
  EXPECT_EQ(manifests.objectives[0].priority, -1);
  EXPECT_EQ(manifests.rewrites.size(), 1u);
}

}  // namespace
}  // namespace fairway::sources::kubernetes
