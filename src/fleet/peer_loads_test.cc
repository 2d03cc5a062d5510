#include "fleet/peer_loads.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "fleet/fleet.h"

namespace fairway::fleet {
namespace {

api::Manifests PoolOf(const std::vector<std::string>& addresses) {
  api::Manifests manifests;
  api::InferencePool pool;
  pool.meta.name = "pool";
  pool.selector = {{"app", "server"}};
  pool.target_ports = {8000};
  manifests.pools.push_back(pool);
  for (const std::string& address : addresses) {
    api::Endpoint endpoint;
    endpoint.name = address;
    endpoint.address = address;
    endpoint.port = 8000;
    endpoint.labels = {{"app", "server"}};
    manifests.endpoints.push_back(std::move(endpoint));
  }
  return manifests;
}

struct Replica {
  Replica() {
    fleet.Apply(PoolOf({"10.0.0.1", "10.0.0.2"}));
    peers.Refresh();
  }
  std::shared_ptr<EndpointCell> Cell(const std::string& host) const {
    return FindCell(*fleet.published().Load(), Key(), host + ":8000");
  }
  std::string Key() const { return fleet.published().Load()->pools.begin()->first; }
  Fleet fleet;
  PeerLoads peers{fleet.published()};
};

TEST(PeerLoads, ALoadCountsUntilItsReplicaIsForgotten) {
  Replica replica;
  const auto cell = replica.Cell("10.0.0.1");
  ASSERT_TRUE(replica.peers.Hear(7, replica.Key(), "10.0.0.1:8000", {3, 900}));
  ASSERT_TRUE(replica.peers.Hear(8, replica.Key(), "10.0.0.1:8000", {1, 50}));
  EXPECT_EQ(cell->others(), 4u);
  EXPECT_EQ(cell->load().own_work().tokens, 950u);
  replica.peers.Hear(7, replica.Key(), "10.0.0.1:8000", {2, 100});
  EXPECT_EQ(cell->others(), 3u);
  replica.peers.Forget(7);
  EXPECT_EQ(cell->others(), 1u);
  EXPECT_EQ(cell->load().own_work().tokens, 50u);
  EXPECT_EQ(replica.Cell("10.0.0.2")->others(), 0u);
}

TEST(PeerLoads, WhatIsToldIsNotToldAgain) {
  Replica replica;
  const auto cell = replica.Cell("10.0.0.1");
  const Reservation own = cell->Reserve(400, base::kMillisecond);
  replica.peers.Hear(7, replica.Key(), "10.0.0.1:8000", {3, 900});
  EXPECT_EQ(cell->ToTell(2 * base::kMillisecond), (OpenLoad{1, 400}));
  OwnLoads loads;
  std::vector<std::pair<std::string, OpenLoad>> changes;
  const auto look = [&](base::Nanos now) {
    changes.clear();
    loads.Look(*replica.fleet.published().Load(), now, [&](const OwnLoads::Endpoint& changed) {
      changes.emplace_back(changed.address, changed.load);
    });
  };
  using Changes = std::vector<std::pair<std::string, OpenLoad>>;
  look(3 * base::kMillisecond);
  EXPECT_EQ(changes, (Changes{{"10.0.0.1:8000", {1, 400}}}));
  look(4 * base::kMillisecond);
  EXPECT_EQ(changes, Changes{}) << "nothing is new";
  replica.fleet.Apply(PoolOf({"10.0.0.2"}));
  look(5 * base::kMillisecond);
  EXPECT_EQ(changes, (Changes{{"10.0.0.1:8000", {0, 0}}})) << "it has left our fleet, maybe not theirs";
  cell->Release(own, ReleaseKind::kEnded, 6 * base::kMillisecond);
}

TEST(PeerLoads, APageShowsPeersRequestsAsItShowsOurs) {
  Replica replica;
  const auto cell = replica.Cell("10.0.0.1");
  replica.peers.Hear(7, replica.Key(), "10.0.0.1:8000", {3, 0});
  cell->BeginScrape(base::kMillisecond);
  cell->ApplyScrape({.waiting = 1, .running = 2}, 2 * base::kMillisecond);
  EXPECT_EQ(cell->others(), 3u) << "all that it shows was told";
  cell->BeginScrape(3 * base::kMillisecond);
  cell->ApplyScrape({.waiting = 3, .running = 2}, 4 * base::kMillisecond);
  EXPECT_EQ(cell->others(), 5u) << "two are of somebody else";
  replica.peers.Forget(7);
  EXPECT_EQ(cell->others(), 2u);
}

TEST(PeerLoads, AnEndpointMayBecomeKnownLater) {
  Replica replica;
  replica.peers.Hear(7, replica.Key(), "10.0.0.3:8000", {5, 10});
  replica.fleet.Apply(PoolOf({"10.0.0.1", "10.0.0.3"}));
  replica.peers.Refresh();
  EXPECT_EQ(replica.Cell("10.0.0.3")->others(), 5u);
  const auto gone = replica.Cell("10.0.0.3");
  replica.fleet.Apply(PoolOf({"10.0.0.1"}));
  replica.peers.Refresh();
  EXPECT_EQ(gone->others(), 0u) << "taken back, whoever still holds it";
  replica.fleet.Apply(PoolOf({"10.0.0.1", "10.0.0.3"}));
  replica.peers.Refresh();
  EXPECT_EQ(replica.Cell("10.0.0.3")->others(), 5u) << "another cell, of which the same is true";
}

TEST(PeerLoads, AReplicaHasABound) {
  Replica replica;
  EXPECT_FALSE(replica.peers.Hear(7, std::string(PeerLoads::kMostName, 'p'), "a", {1, 1}));
  for (size_t i = 0; i < PeerLoads::kMostEndpoints; ++i)
    ASSERT_TRUE(replica.peers.Hear(7, "p", std::to_string(i), {1, 1}));
  EXPECT_FALSE(replica.peers.Hear(7, "p", "one more", {1, 1}));
  EXPECT_TRUE(replica.peers.Hear(7, "p", "none of it", {0, 0})) << "which takes nothing";
  EXPECT_TRUE(replica.peers.Hear(7, "p", "5", {0, 0}));
  EXPECT_TRUE(replica.peers.Hear(7, "p", "one more", {1, 1}));
  replica.peers.Hear(7, replica.Key(), "10.0.0.1:8000", {0, 0});
  replica.peers.Hear(8, replica.Key(), "10.0.0.1:8000", {UINT32_MAX, UINT32_MAX});
  replica.peers.Forget(8);
  EXPECT_EQ(replica.Cell("10.0.0.1")->load().own_work().tokens, 0u);
}

// Whatever replicas say and however endpoints come and go: each cell has the sum of what those say that are
// there, and nothing when they are gone.
TEST(PeerLoads, ARandomWalkAgreesWithAPlainSum) {
  const std::vector<std::string> all = {"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"};
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    Replica replica;
    std::map<std::pair<uint64_t, std::string>, OpenLoad> plain;
    for (int step = 0; step < 300; ++step) {
      const uint64_t who = random.Below(3);
      const std::string& host = all[random.Below(all.size())];
      switch (random.Below(6)) {
        case 0:
          replica.peers.Forget(who);
          std::erase_if(plain, [&](const auto& entry) { return entry.first.first == who; });
          break;
        case 1: {
          std::vector<std::string> there;
          for (const std::string& one : all)
            if (random.Below(3) != 0) there.push_back(one);
          replica.fleet.Apply(PoolOf(there));
          replica.peers.Refresh();
          break;
        }
        default: {
          const OpenLoad load{static_cast<uint32_t>(random.Below(9)),
                              static_cast<uint32_t>(random.Below(999))};
          plain[{who, host}] = load;
          replica.peers.Hear(who, replica.Key(), host + ":8000", load);
        }
      }
      int64_t of_pool = 0;
      for (const std::string& one : all) {
        const auto cell = replica.Cell(one);
        if (cell == nullptr) continue;
        OpenLoad sum;
        for (const auto& [of, load] : plain)
          if (of.second == one) sum = {sum.requests + load.requests, sum.tokens + load.tokens};
        ASSERT_EQ(cell->others(), sum.requests);
        ASSERT_EQ(cell->load().own_work().tokens, sum.tokens);
        of_pool += sum.requests;
      }
      ASSERT_EQ(replica.fleet.published().Load()->pools.begin()->second->tally->told_requests, of_pool);
    }
  }
}

TEST(Cell, ARateOfAPeerIsAFirstGuess) {
  EndpointCell cell;
  for (const float wrong : {0.0f, -1.0f, 1e9f, std::numeric_limits<float>::quiet_NaN()}) {
    cell.AdoptRate(wrong);
    EXPECT_EQ(cell.ms_per_token(), 0);
  }
  cell.AdoptRate(0.25f);
  EXPECT_EQ(cell.ms_per_token(), 0.25f);
  cell.AdoptRate(0.5f);
  EXPECT_EQ(cell.ms_per_token(), 0.25f) << "not instead of what is known";
  for (int i = 0; i < 100; ++i) {
    Reservation own = cell.Reserve(1000, i * 1000 * base::kMillisecond);
    cell.FirstToken(own, (i * 1000 + 100) * base::kMillisecond);
    cell.Release(own, ReleaseKind::kEnded, (i * 1000 + 100) * base::kMillisecond);
  }
  EXPECT_NEAR(cell.ms_per_token(), 0.1f, 0.01f) << "own first tokens weigh more soon";
}

}  // namespace
}  // namespace fairway::fleet
