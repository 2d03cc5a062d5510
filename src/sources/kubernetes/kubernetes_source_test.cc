#include "sources/kubernetes/kubernetes_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/support/fake_api_server.h"

namespace fairway::sources::kubernetes {
namespace {

using fairway::testing::FakeAnswer;
using fairway::testing::FakeApiServer;
using ::testing::HasSubstr;

const std::string kPods = "/api/v1/namespaces/llm/pods?";
const std::string kPools = "/apis/inference.networking.k8s.io/v1/namespaces/llm/inferencepools?";
const std::string kModels = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/llm/inferencemodels?";

std::string List(const std::string& items) {
  return R"({"metadata":{"resourceVersion":"7"},"items":[)" + items + "]}";
}
std::string PodText(const std::string& name, int version = 1) {
  return R"({"metadata":{"name":")" + name +
         R"(","namespace":"llm","uid":"u","labels":{"app":"x"},"resourceVersion":")" +
         std::to_string(version) +
         R"("},"status":{"podIP":"10.0.0.1","conditions":[{"type":"Ready","status":"True"}]}})";
}
std::string PoolText() {
  return R"({"apiVersion":"inference.networking.k8s.io/v1","kind":"InferencePool","metadata":{"name":"pool","namespace":"llm",)"
         R"("resourceVersion":"1"},"spec":{"selector":{"matchLabels":{"app":"x"}},"targetPorts":[{"number":8000}]}})";
}
std::string Resources(const std::string& names) { return R"({"resources":[)" + names + "]}"; }

class KubernetesSourceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Discover(R"({"name":"inferencepools"},{"name":"inferencepools/status"})", "");
    Lists(kPods, PodText("a"));
    Lists(kPools, PoolText());
  }
  void TearDown() override {
    api_.Run([&] { source_.reset(); });
  }

  void Discover(const std::string& newer, const std::string& older) {
    group_ = {.body = Resources(newer)};
    group_x_ = older.empty() ? FakeAnswer{.status = 404, .body = "404 page not found"}
                             : FakeAnswer{.body = Resources(older)};
    Serve();
  }
  // Lists first: their paths are longer than the discovery's.
  void Lists(const std::string& path, const std::string& items) {
    lists_.emplace_back(path, items);
    Serve();
  }
  void Serve() {
    for (const auto& [path, items] : lists_) {
      api_.Always(path + "watch=true", {.stream = true, .body = "a watch"});
      api_.Always(path + "limit=", {.body = List(items)});
    }
    for (const char* group : {"/apis/inference.networking.k8s.io/v1",
                              "/apis/inference.networking.x-k8s.io/v1alpha2", "/apis/llm-d.ai/v1alpha2"}) {
      api_.Always(group, {});
    }
    api_.Always("/apis/llm-d.ai/v1alpha2", group_llmd_);
    api_.Always("/apis/inference.networking.k8s.io/v1", group_);
    api_.Always("/apis/inference.networking.x-k8s.io/v1alpha2", group_x_);
  }
  void Start(KubernetesOptions options = {}) {
    options.namespace_name = "llm";
    if (options.pool_name.empty()) options.pool_name = "pool";
    options.discovery_interval = 20 * base::kMillisecond;
    api_.Run([&] {
      auto source = KubernetesSource::Create(api_.loop(), api_.Config(), options, clock_, log_, registry_,
                                             [this](const api::Manifests& manifests) {
                                               last_ = manifests;
                                               ++published_;
                                             });
      ASSERT_TRUE(source) << source.error().message;
      source_ = std::move(*source);
    });
  }
  bool Await(const std::function<bool()>& condition) {
    return api_.Await([&] { return api_.Ask(condition); });
  }

  FakeApiServer api_;
  FakeAnswer group_, group_x_;
  FakeAnswer group_llmd_{.status = 404, .body = "404 page not found"};
  std::vector<std::pair<std::string, std::string>> lists_;
  base::SystemClock clock_;
  base::Log log_{base::LogLevel::kOff, base::LogFormat::kText};
  base::Registry registry_;
  api::Manifests last_;
  int published_ = 0;
  std::unique_ptr<KubernetesSource> source_;
};

TEST_F(KubernetesSourceTest, PublishesOncePoolAndPodsAreThere) {
  Start();
  ASSERT_TRUE(Await([&] { return published_ > 0; }));
  EXPECT_EQ(published_, 1);
  ASSERT_EQ(last_.pools.size(), 1u);
  ASSERT_EQ(last_.endpoints.size(), 1u);
  EXPECT_EQ(last_.endpoints[0].name, "a-rank-0");
  EXPECT_EQ(last_.endpoints[0].pool_key, "llm/pool");
  EXPECT_TRUE(Await([&] {
    return registry_.Render().find("fairway_kubernetes_sync_age_seconds{resource=\"pods\"} 0\n") !=
           std::string::npos;
  }));
}

TEST_F(KubernetesSourceTest, AServerThatHangsLetsTheAgeGrowThoughItsWatchesAreOpen) {
  Start();
  ASSERT_TRUE(Await([&] { return published_ > 0; }));
  const auto age = [&] {
    const std::string page = registry_.Render();
    const std::string name = "fairway_kubernetes_sync_age_seconds{resource=\"pods\"} ";
    const size_t at = page.find(name);
    return at == std::string::npos ? -1.0 : std::stod(page.substr(at + name.size()));
  };
  ASSERT_TRUE(Await([&] { return age() == 0; }));
  group_ = group_x_ = group_llmd_ = {};  // no answer any more
  Serve();
  EXPECT_TRUE(Await([&] { return age() > 0.2; }));
}

// A Role without InferenceModels, or with one group's pools alone, is what other charts bring.
TEST_F(KubernetesSourceTest, WhatIsOptionalAndRefusedOrAbsentDelaysNothing) {
  const FakeAnswer refused{.status = 403, .body = R"({"kind":"Status","code":403,"message":"no"})"};
  const FakeAnswer absent{.status = 404, .body = "404 page not found"};
  for (const FakeAnswer& answer : {refused, absent}) {
    Discover(R"({"name":"inferencepools"})", R"({"name":"inferencemodels"},{"name":"inferencepools"})");
    const std::string x = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/llm/";
    api_.Always(x + "inferencemodels?", answer);
    api_.Always(x + "inferencepools?", answer);
    Serve();
    published_ = 0;
    Start({.patience = 3600 * base::kSecond});
    ASSERT_TRUE(Await([&] { return published_ > 0; }));
    EXPECT_EQ(last_.endpoints.size(), 1u);
    api_.Run([&] { source_.reset(); });
  }
}

TEST_F(KubernetesSourceTest, PoolsOfTheOlderGroupAloneDelayNothing) {
  const std::string pools = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/llm/inferencepools?";
  lists_.clear();
  Lists(kPods, PodText("a"));
  Lists(
      pools,
      R"({"apiVersion":"inference.networking.x-k8s.io/v1alpha2","kind":"InferencePool","metadata":{"name":"pool",)"
      R"("namespace":"llm","resourceVersion":"1"},"spec":{"selector":{"app":"x"},"targetPortNumber":8000,)"
      R"("extensionRef":{"name":"epp"}}})");
  api_.Always(kPools + "limit=", {.status = 403, .body = R"({"kind":"Status","code":403,"message":"no"})"});
  Discover(R"({"name":"inferencepools"})", R"({"name":"inferencepools"})");
  Start({.patience = 3600 * base::kSecond});
  ASSERT_TRUE(Await([&] { return published_ > 0; }));
  EXPECT_EQ(last_.endpoints.size(), 1u);
}

// Neither refused nor there: a server in trouble.
TEST_F(KubernetesSourceTest, AKindThatCannotBeReadIsNotWaitedForForEver) {
  Discover(R"({"name":"inferencepools"})", R"({"name":"inferencemodels"})");
  api_.Always(kModels, {.status = 500, .body = R"({"kind":"Status","code":500,"message":"no"})"});
  Serve();
  Start({.patience = 100 * base::kMillisecond});
  ASSERT_TRUE(Await([&] { return published_ > 0; }));
  EXPECT_GE(api_.Elapsed(), 100 * base::kMillisecond);
  EXPECT_EQ(last_.endpoints.size(), 1u);
}

TEST_F(KubernetesSourceTest, AKindInstalledLaterIsPickedUp) {
  Start();
  ASSERT_TRUE(Await([&] { return published_ > 0; }));
  EXPECT_TRUE(last_.models.empty());
  lists_.insert(
      lists_.begin(),
      {kModels,
       R"({"apiVersion":"inference.networking.x-k8s.io/v1alpha2","kind":"InferenceModel","metadata":{"name":"m",)"
       R"("namespace":"llm","resourceVersion":"3"},"spec":{"modelName":"m","poolRef":{"name":"pool"}}})"});
  Discover(R"({"name":"inferencepools"})", R"({"name":"inferencemodels"})");
  EXPECT_TRUE(Await([&] { return last_.models.size() == 1; }));
}

TEST_F(KubernetesSourceTest, TheOlderGroupsObjectivesCountUntilTheNewerIsThere) {
  const auto objective = [](const std::string& group, int priority) {
    return R"({"apiVersion":")" + group +
           R"(/v1alpha2","kind":"InferenceObjective","metadata":{"name":"o","namespace":"llm",)"
           R"("resourceVersion":"3"},"spec":{"priority":)" +
           std::to_string(priority) + R"(,"poolRef":{"name":"pool"}}})";
  };
  const std::string path = "/v1alpha2/namespaces/llm/inferenceobjectives?";
  Lists("/apis/inference.networking.x-k8s.io" + path, objective("inference.networking.x-k8s.io", 1));
  Lists("/apis/llm-d.ai" + path, objective("llm-d.ai", 2));
  Discover(R"({"name":"inferencepools"})", R"({"name":"inferenceobjectives"})");
  Start();
  ASSERT_TRUE(Await([&] { return last_.objectives.size() == 1 && last_.objectives[0].priority == 1; }));
  group_llmd_ = {.body = Resources(R"({"name":"inferenceobjectives"})")};
  Serve();
  EXPECT_TRUE(Await([&] { return last_.objectives.size() == 1 && last_.objectives[0].priority == 2; }));
}

TEST_F(KubernetesSourceTest, AStormIsGathered) {
  api_.Always(kPods + "watch=true", {});
  std::string events;
  for (int i = 0; i < 1000; ++i) {
    events += R"({"type":"ADDED","object":)" + PodText("b-" + std::to_string(i), 10 + i) + "}\n";
  }
  auto watch = api_.Expect({.has = {"pods?watch=true"}, .stream = true});
  Start({.publish_interval = 50 * base::kMillisecond});
  ASSERT_TRUE(Await([&] { return published_ == 1; }));
  ASSERT_TRUE(watch->Opened());
  const auto began = api_.Elapsed();
  for (size_t at = 0; at < events.size(); at += 4096) watch->Write(events.substr(at, 4096));
  ASSERT_TRUE(Await([&] { return last_.endpoints.size() == 1001; }));
  const auto took = api_.Elapsed() - began;
  EXPECT_LE(published_, 3 + took / (50 * base::kMillisecond));
}

TEST_F(KubernetesSourceTest, PodsByASelectorNeedNoPool) {
  lists_.clear();
  Lists("/api/v1/namespaces/llm/pods?", PodText("a"));
  Start({.pool_name = "mine", .endpoint_selector = "app in (x)", .target_ports = {8000, 8001}});
  ASSERT_TRUE(Await([&] { return published_ > 0; }));
  ASSERT_EQ(last_.pools.size(), 1u);
  EXPECT_EQ(last_.pools[0].meta.name, "mine");
  EXPECT_EQ(last_.endpoints.size(), 2u);
}

TEST_F(KubernetesSourceTest, OptionsAreChecked) {
  const auto error = [&](KubernetesOptions options) {
    std::string message;
    api_.Run([&] {
      auto source =
          KubernetesSource::Create(api_.loop(), api_.Config(), options, clock_, log_, registry_, {});
      message = source ? "" : source.error().message;
    });
    return message;
  };
  EXPECT_THAT(error({}), HasSubstr("name is missing"));
  EXPECT_THAT(error({.pool_name = "p", .pool_group = "other"}),
              HasSubstr("want inference.networking.k8s.io or"));
  EXPECT_THAT(error({.pool_name = "p", .endpoint_selector = "a=b"}), HasSubstr("together"));
  EXPECT_THAT(error({.pool_name = "p", .target_ports = {1}}), HasSubstr("together"));
}

}  // namespace
}  // namespace fairway::sources::kubernetes
