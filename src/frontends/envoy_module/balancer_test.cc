#include "frontends/envoy_module/balancer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "frontends/envoy_module/choices.h"
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
    ASSERT_TRUE(balancer.Choose(nullptr, priority, index));
    EXPECT_EQ(priority, 1u);
    chosen.push_back(index);
  }
  EXPECT_THAT(chosen, ElementsAre(0u, 1u, 0u, 1u));
  cluster.priorities = {{}};
  EXPECT_FALSE(balancer.Choose(nullptr, priority, index));
}

TEST(Balancer, HearsOfHostsThatAreThereWhateverTheirPriority) {
  ClusterDirectory directory;
  FakeCluster cluster{.name = "pool", .priorities = {{}, {{.address = "10.0.0.1:1"}}}};
  int told = 0;
  directory.Subscribe(1, "pool", [&](const ClusterHosts&) { ++told; });
  Balancer balancer(directory, &cluster);
  EXPECT_EQ(told, 1);
}

class ChosenHosts : public testing::Test {
 protected:
  // The address that a request with this id is sent to.
  std::string Choose(tests::FakeStream& request) {
    uint32_t priority = 99;
    uint32_t index = 99;
    if (!balancer_.Choose(&request, priority, index)) return "";
    size_t healthy = 0;
    for (const auto& host : cluster_.priorities[priority]) {
      if (host.healthy && healthy++ == index) return host.address;
    }
    return "beyond the healthy hosts";
  }
  static tests::FakeStream Request(const std::string& id) {
    return {.request_headers = {{":path", "/"}, {"x-request-id", id}}};
  }

  // A choice of this thread, until it goes.
  struct Listed : Choice {
    Listed() = default;
    Listed(const Listed&) = delete;
    Listed& operator=(const Listed&) = delete;
    ~Listed() { Choices::OfThisThread().Remove(*this); }
    void Add(std::string_view request_id, std::string_view list) {
      Choices::OfThisThread().Add(*this, request_id, list);
    }
  };

  ClusterDirectory directory_;
  FakeCluster cluster_{
      .name = "pool",
      .priorities = {{{.address = "10.0.0.1:1"}, {.address = "10.0.0.2:1", .healthy = false}},
                     {{.address = "10.0.0.3:1"}, {.address = "10.0.0.4:1"}}}};
  Balancer balancer_{directory_, &cluster_};
};

TEST_F(ChosenHosts, GoInTheOrderOfTheListWithEachTry) {
  Listed choice;
  choice.Add("a", "10.0.0.4:1,10.0.0.1:1");
  auto request = Request("a");
  EXPECT_EQ(Choose(request), "10.0.0.4:1");
  EXPECT_EQ(choice.asked(), 1u);
  EXPECT_EQ(Choose(request), "10.0.0.1:1");
  EXPECT_EQ(choice.asked(), 2u);
  EXPECT_EQ(Choose(request), "10.0.0.1:1");  // nothing left: in turn
}

TEST_F(ChosenHosts, PassOverWhatIsNotHealthyOrNotHere) {
  Listed choice;
  choice.Add("b", "10.0.0.2:1,10.9.9.9:1,10.0.0.3:1");
  auto request = Request("b");
  EXPECT_EQ(Choose(request), "10.0.0.3:1");
  // Health and places change.
  Listed later;
  later.Add("c", "10.0.0.4:1,10.0.0.2:1");
  cluster_.priorities[0][1].healthy = true;
  cluster_.priorities[1].clear();
  balancer_.OnHostsChanged();
  auto third = Request("c");
  EXPECT_EQ(Choose(third), "10.0.0.2:1");
}

TEST_F(ChosenHosts, AreOfTheRequestThatAsksAlsoWhereSeveralHaveItsId) {
  Listed first;
  Listed second;
  first.Add("same", "10.0.0.3:1,10.0.0.1:1");
  second.Add("same", "10.0.0.4:1,10.0.0.3:1");
  auto one = Request("same");
  one.request_headers.emplace_back("x-gateway-destination-endpoint", "10.0.0.3:1");
  auto two = Request("same");
  two.request_headers.emplace_back("x-gateway-destination-endpoint", "10.0.0.4:1");
  EXPECT_EQ(Choose(one), "10.0.0.3:1");
  EXPECT_EQ(Choose(one), "10.0.0.1:1");
  EXPECT_EQ(Choose(two), "10.0.0.4:1");
  EXPECT_EQ(Choose(two), "10.0.0.3:1");
}

TEST_F(ChosenHosts, BeyondTheListARetryGoesToNobodyThatItsPolicyHasRuledOut) {
  cluster_.priorities = {{{.address = "10.0.0.1:1"},
                          {.address = "10.0.0.2:1", .healthy = false},
                          {.address = "10.0.0.3:1"},
                          {.address = "10.0.0.4:1"}}};
  balancer_.OnHostsChanged();
  auto request = Request("nobody chose for it");
  request.ruled_out = {"10.0.0.1:1", "10.0.0.4:1"};
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Choose(request), "10.0.0.3:1");
  request.ruled_out.push_back("10.0.0.3:1");
  EXPECT_NE(Choose(request), "");  // all are: any is better than none
}

TEST_F(ChosenHosts, AreOfTheRequestThatAsks) {
  Listed first;
  Listed second;
  first.Add("d", "10.0.0.3:1");
  second.Add("e", "10.0.0.4:1");
  auto d = Request("d");
  auto nobodys = Request("f");
  tests::FakeStream nameless;
  EXPECT_EQ(Choose(nobodys), "10.0.0.1:1");
  EXPECT_EQ(Choose(nameless), "10.0.0.1:1");
  EXPECT_EQ(Choose(d), "10.0.0.3:1");
  EXPECT_EQ(second.asked(), 0u);
}

}  // namespace
}  // namespace fairway::envoy_module
