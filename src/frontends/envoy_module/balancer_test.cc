#include "frontends/envoy_module/balancer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/support/fake_envoy.h"

namespace fairway::envoy_module {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using tests::FakeCluster;

std::vector<std::string> Names(const ClusterHosts& hosts) {
  std::vector<std::string> names;
  for (const auto& host : hosts) names.push_back(host.host + ":" + std::to_string(host.port));
  return names;
}

TEST(Balancer, TellsSubscribersOfHostsTheirLabelsAndTheirHealth) {
  ClusterDirectory directory;
  directory.WantLabels("envoy.lb", {"llm-d.ai/engine-type"});
  std::vector<ClusterHosts> told;
  directory.Subscribe(1, "pool", [&](const ClusterHosts& hosts) { told.push_back(hosts); });
  FakeCluster cluster{.name = "pool"};
  Balancer balancer(directory, &cluster);
  EXPECT_THAT(told, IsEmpty());  // a worker's first look comes before its hosts do
  cluster.priorities[0] = {
      {.address = "10.0.0.1:8000", .metadata = {{{"envoy.lb", "llm-d.ai/engine-type"}, "sglang"}}},
      {.address = "[2001:db8::1]:8001"},
      {.address = "10.0.0.3:8000", .healthy = false},
      {.address = "/run/socket"}};
  balancer.OnHostsChanged();
  ASSERT_EQ(told.size(), 1u);
  EXPECT_THAT(Names(told[0]), ElementsAre("10.0.0.1:8000", "2001:db8::1:8001"));
  EXPECT_EQ(told[0][0].labels.at("llm-d.ai/engine-type"), "sglang");
  balancer.OnHostsChanged();
  EXPECT_EQ(told.size(), 1u);  // no news
  // Where nobody is healthy Envoy would send to anybody.
  for (auto& host : cluster.priorities[0]) host.healthy = false;
  balancer.OnHostsChanged();
  EXPECT_THAT(Names(told.back()), ElementsAre("10.0.0.1:8000", "2001:db8::1:8001", "10.0.0.3:8000"));
  cluster.priorities[0].clear();
  balancer.OnHostsChanged();
  EXPECT_THAT(told.back(), IsEmpty());
}

TEST(Balancer, WhoSubscribesLateHearsAtOnceAndWhoLeftNothing) {
  ClusterDirectory directory;
  FakeCluster cluster{.name = "pool", .priorities = {{{.address = "10.0.0.1:8000"}}}};
  Balancer balancer(directory, &cluster);
  int told = 0;
  directory.Subscribe(7, "pool", [&](const ClusterHosts&) { ++told; });
  EXPECT_EQ(told, 1);
  directory.Unsubscribe(7);
  cluster.priorities[0].push_back({.address = "10.0.0.2:8000"});
  balancer.OnHostsChanged();
  EXPECT_EQ(told, 1);
}

// A cluster that is replaced: the old one's balancers live on beside the new one's, with the old hosts.
TEST(Balancer, TheNewestSpeaksForTheClusterAndTheOneBeforeItWhenItGoes) {
  ClusterDirectory directory;
  ClusterHosts last;
  directory.Subscribe(1, "pool", [&](const ClusterHosts& hosts) { last = hosts; });
  FakeCluster old_cluster{.name = "pool", .priorities = {{{.address = "10.0.0.1:8000"}}}};
  auto old_balancer = std::make_unique<Balancer>(directory, &old_cluster);
  FakeCluster new_cluster{.name = "pool", .priorities = {{{.address = "10.0.0.2:8000"}}}};
  auto new_balancer = std::make_unique<Balancer>(directory, &new_cluster);
  EXPECT_THAT(Names(last), ElementsAre("10.0.0.2:8000"));
  old_cluster.priorities[0].push_back({.address = "10.0.0.9:8000"});
  old_balancer->OnHostsChanged();
  EXPECT_THAT(Names(last), ElementsAre("10.0.0.2:8000"));
  new_balancer.reset();
  EXPECT_THAT(Names(last), ElementsAre("10.0.0.1:8000", "10.0.0.9:8000"));
  // The last one gone: what it had stays until somebody knows better.
  old_balancer.reset();
  EXPECT_THAT(Names(last), ElementsAre("10.0.0.1:8000", "10.0.0.9:8000"));
}

TEST(Balancer, ChoosesHealthyHostsInTurn) {
  ClusterDirectory directory;
  FakeCluster cluster{.name = "pool",
                      .priorities = {{{.address = "10.0.0.1:1", .healthy = false}},
                                     {{.address = "10.0.0.2:1"}, {.address = "10.0.0.3:1"}}}};
  Balancer balancer(directory, &cluster);
  uint32_t priority = 9;
  uint32_t index = 9;
  std::vector<uint32_t> chosen;
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(balancer.Choose(priority, index));
    EXPECT_EQ(priority, 1u);
    chosen.push_back(index);
  }
  EXPECT_THAT(chosen, ElementsAre(0u, 1u, 0u, 1u));
  cluster.priorities = {{}};
  EXPECT_FALSE(balancer.Choose(priority, index));
}

}  // namespace
}  // namespace fairway::envoy_module
