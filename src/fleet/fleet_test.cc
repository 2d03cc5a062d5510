#include "fleet/fleet.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace fairway::fleet {
namespace {

api::Manifests OnePool(int endpoints) {
  api::Manifests m;
  api::InferencePool pool;
  pool.meta.name = "pool";
  pool.selector = {{"app", "vllm"}};
  pool.target_ports = {8000};
  m.pools.push_back(pool);
  for (int i = 0; i < endpoints; ++i) {
    api::Endpoint endpoint;
    endpoint.name = "e" + std::to_string(i);
    endpoint.address = "10.0.0." + std::to_string(i + 1);
    endpoint.port = 8000;
    endpoint.labels = {{"app", "vllm"}, {"extra", "x"}};
    m.endpoints.push_back(endpoint);
  }
  return m;
}

TEST(Fleet, EndpointsJoinThePoolsThatSelectThemAndKeepTheirCells) {
  Fleet fleet;
  EXPECT_EQ(fleet.published().Load()->FindPool(""), nullptr);
  api::Manifests m = OnePool(3);
  m.endpoints[1].labels = {{"app", "other"}};
  m.endpoints[2].address = "fd00::1";
  m.endpoints[2].metrics_port = 9100;
  fleet.Apply(m);
  auto snapshot = fleet.published().Load();
  const PoolSnapshot* pool = snapshot->FindPool("");
  ASSERT_NE(pool, nullptr);
  EXPECT_EQ(pool, snapshot->FindPool("default/pool"));
  ASSERT_EQ(pool->endpoints.size(), 2u);
  EXPECT_EQ(pool->endpoints[0].address, "10.0.0.1:8000");
  EXPECT_EQ(pool->endpoints[1].address, "[fd00::1]:8000");
  EXPECT_EQ(pool->endpoints[1].metrics_port, 9100);
  const auto cell = pool->endpoints[1].cell;
  cell->Reserve(10);

  m.endpoints.erase(m.endpoints.begin());
  fleet.Apply(m);
  const auto after = fleet.published().Load();
  ASSERT_EQ(after->FindPool("")->endpoints.size(), 1u);
  EXPECT_EQ(after->FindPool("")->endpoints[0].cell, cell);
  EXPECT_EQ(cell->inflight(), 1u);
  EXPECT_EQ(pool->endpoints.size(), 2u) << "a pinned snapshot does not change";

  m.endpoints[1].port = 8001;  // another server on that host: a new cell
  fleet.Apply(m);
  EXPECT_NE(fleet.published().Load()->FindPool("")->endpoints[0].cell, cell);

  m.endpoints[1].uid = "u2";  // and so is another Pod of the same name and address
  const auto before = fleet.published().Load()->FindPool("")->endpoints[0].cell;
  fleet.Apply(m);
  const auto other = fleet.published().Load()->FindPool("")->endpoints[0].cell;
  EXPECT_NE(other, before);
  fleet.Apply(m);
  EXPECT_EQ(fleet.published().Load()->FindPool("")->endpoints[0].cell, other);
}

TEST(Fleet, HostNamesNeedAnAddress) {
  Fleet fleet;
  api::Manifests m = OnePool(2);
  m.endpoints[0].address = "gpu-1.example";
  m.endpoints[1].address = "gpu-2.example";
  fleet.Apply(m, {{"gpu-2.example", "10.1.1.1"}});
  const auto snapshot = fleet.published().Load();
  ASSERT_EQ(snapshot->FindPool("")->endpoints.size(), 1u);
  EXPECT_EQ(snapshot->FindPool("")->endpoints[0].address, "10.1.1.1:8000");
  EXPECT_EQ(fleet.unresolved(), std::vector<std::string>{"gpu-1.example"});
}

TEST(Fleet, OldestInferenceModelOfANameWins) {
  Fleet fleet;
  api::Manifests m = OnePool(1);
  api::InferenceModel young;
  young.meta.name = "young";
  young.meta.creation_timestamp = "2026-01-02T00:00:00Z";
  young.model_name = "llama2";
  young.pool_name = "pool";
  young.targets = {{"young-target", {}}};
  api::InferenceModel old = young;
  old.meta.name = "old";
  old.meta.creation_timestamp = "2025-01-02T00:00:00Z";
  old.criticality = api::Criticality::kCritical;
  old.targets = {{"a", 75}, {"b", 25}};
  api::InferenceModel elsewhere = old;
  elsewhere.pool_name = "another";
  elsewhere.model_name = "not-here";
  m.models = {young, old, elsewhere};
  fleet.Apply(m);
  const auto snapshot = fleet.published().Load();
  const ModelMap& models = snapshot->FindPool("")->models;
  ASSERT_EQ(models.size(), 1u);
  const Model& model = models.at("llama2");
  EXPECT_TRUE(model.critical);
  ASSERT_EQ(model.targets.size(), 2u);
  EXPECT_EQ(model.targets[0].cumulative_weight, 75u);
  EXPECT_EQ(model.targets.back().cumulative_weight, 100u);
}

api::InferenceModelRewrite Rewrite(const std::string& name, const std::string& created,
                                   std::vector<api::InferenceModelRewrite::Rule> rules) {
  api::InferenceModelRewrite rewrite;
  rewrite.meta.name = name;
  rewrite.meta.creation_timestamp = created;
  rewrite.pool.name = "pool";
  rewrite.rules = std::move(rules);
  return rewrite;
}

TEST(Fleet, PoliciesAreThoseThatNameThePool) {
  Fleet fleet;
  api::Manifests m = OnePool(1);
  fleet.Apply(m);
  EXPECT_EQ(fleet.published().Load()->FindPool("")->policies, nullptr) << "nothing to look at";

  api::InferenceObjective batch;
  batch.meta.name = "batch";
  batch.pool.name = "pool";
  batch.priority = -7;
  api::InferenceObjective other_pool = batch, other_group = batch, other_namespace = batch;
  other_pool.pool.name = "another";
  other_group.pool.group = "example.com";
  other_namespace.meta.namespace_name = "ml";
  m.objectives = {other_pool, other_group, other_namespace};
  fleet.Apply(m);
  EXPECT_EQ(fleet.published().Load()->FindPool("")->policies, nullptr);

  m.objectives.push_back(batch);
  fleet.Apply(m);
  const auto snapshot = fleet.published().Load();
  const auto policies = snapshot->FindPool("")->policies;
  ASSERT_NE(policies, nullptr);
  ASSERT_NE(policies->FindPriority("batch"), nullptr);
  EXPECT_EQ(*policies->FindPriority("batch"), -7);
  EXPECT_EQ(policies->FindPriority("Batch"), nullptr);
  EXPECT_EQ(policies->FindRewrite("a"), nullptr);
  EXPECT_EQ(policies->GenericRewrite(), nullptr);
  fleet.InternAdapter("default/pool", "x");
  EXPECT_EQ(fleet.published().Load()->FindPool("")->policies, policies);
}

TEST(Fleet, OfSeveralRewritesTheOldestAndThenTheFirstRuleCounts) {
  Fleet fleet;
  api::Manifests m = OnePool(1);
  const auto exact = [](const std::string& model, const std::string& target) {
    return api::InferenceModelRewrite::Rule{{{model, {}}}, {{target, {}}}, {}};
  };
  const auto generic = [](const std::string& target) {
    return api::InferenceModelRewrite::Rule{{}, {{target, {}}}, {}};
  };
  m.rewrites = {
      Rewrite("timeless", "", {exact("a", "1"), exact("d", "2")}),
      Rewrite("young", "2025-01-03T00:00:00Z", {exact("a", "3"), exact("b", "4"), generic("5")}),
      Rewrite("old", "2025-01-02T00:00:00Z",
              {generic("6"), exact("a", "7"), exact("a", "8"), generic("9"), exact("c", "0")}),
  };
  fleet.Apply(m);
  const auto policies = fleet.published().Load()->FindPool("")->policies;
  ASSERT_NE(policies, nullptr);
  const auto target = [&](const std::string& model) {
    const Policies::Rewrite* rewrite = policies->FindRewrite(model);
    return rewrite == nullptr ? "" : rewrite->name + " " + rewrite->targets[0].name;
  };
  EXPECT_EQ(target("a"), "old 7");
  EXPECT_EQ(target("b"), "young 4");
  EXPECT_EQ(target("c"), "old 0") << "a rule that names the model goes before the generic one";
  EXPECT_EQ(target("d"), "timeless 2");
  EXPECT_EQ(target("e"), "");
  ASSERT_NE(policies->GenericRewrite(), nullptr);
  EXPECT_EQ(policies->GenericRewrite()->targets[0].name, "6");
}

TEST(Fleet, TargetsWithoutAWeightGetNothingBesideOnesWithIt) {
  Fleet fleet;
  api::Manifests m = OnePool(1);
  m.rewrites = {Rewrite("r", "",
                        {{{{"some", {}}}, {{"a", 3}, {"b", {}}, {"c", 1'000'000}}, {}},
                         {{{"none", {}}}, {{"a", {}}, {"b", {}}}, {}}})};
  fleet.Apply(m);
  const auto policies = fleet.published().Load()->FindPool("")->policies;
  const auto& some = policies->FindRewrite("some")->targets;
  ASSERT_EQ(some.size(), 2u);
  EXPECT_EQ(some[1].name, "c");
  EXPECT_EQ(some[1].cumulative_weight, 1'000'003u);
  const auto& none = policies->FindRewrite("none")->targets;
  ASSERT_EQ(none.size(), 2u);
  EXPECT_EQ(none[1].cumulative_weight, 2u);
}

TEST(Fleet, AdapterNumbersAreStableBoundedAndReused) {
  Fleet fleet;
  fleet.Apply(OnePool(1));
  EXPECT_EQ(fleet.InternAdapter("default/nope", "x"), kNoAdapter);
  const uint32_t x = fleet.InternAdapter("default/pool", "x");
  EXPECT_EQ(fleet.InternAdapter("default/pool", "x"), x);
  fleet.Apply(OnePool(1));
  EXPECT_EQ(fleet.published().Load()->FindPool("")->AdapterId("x"), x);

  // Everything in use: no room. Then one goes: its number is given again.
  Signals signals;
  signals.lora = Signals::Lora{};
  AddAdapter(signals.lora->running, x);
  for (uint32_t i = 1; i < kMaxAdapters; ++i) {
    AddAdapter(signals.lora->running, fleet.InternAdapter("default/pool", "a" + std::to_string(i)));
  }
  const auto cell = fleet.published().Load()->FindPool("")->endpoints[0].cell;
  cell->ApplyScrape(signals, 1);
  EXPECT_EQ(fleet.InternAdapter("default/pool", "one too many"), kNoAdapter);
  EXPECT_EQ(fleet.adapter_overflow(), 1u);
  signals.lora->running[x / 64] &= ~(uint64_t{1} << (x % 64));
  cell->ApplyScrape(signals, 2);
  EXPECT_EQ(fleet.InternAdapter("default/pool", "one too many"), x);
}

TEST(Cell, ScrapeForgetsWhatItHasSeenAndKeepsWhatCameLater) {
  EndpointCell cell;
  const Reservation before = cell.Reserve(100);
  cell.BeginScrape();
  const Reservation during = cell.Reserve(50);
  EXPECT_EQ(cell.pending(), 2u);
  cell.ApplyScrape({.waiting = 7, .kv_usage = 0.5f}, 42);
  EXPECT_EQ(cell.pending(), 1u) << "the scrape saw the first, not the second";
  EXPECT_EQ(cell.waiting(), 7u);
  EXPECT_EQ(cell.inflight(), 2u);
  EXPECT_EQ(cell.inflight_tokens(), 150u);
  cell.Release(before, ReleaseKind::kEnded);
  EXPECT_EQ(cell.pending(), 1u) << "its end shows in the next scrape";
  cell.Release(during, ReleaseKind::kEnded);
  EXPECT_EQ(cell.pending(), 0u);
  EXPECT_EQ(cell.inflight(), 0u);
  EXPECT_EQ(cell.inflight_tokens(), 0u);
  cell.ApplyScrape({.running = 3}, 43);
  EXPECT_EQ(cell.waiting(), 7u) << "a page without a family keeps the last value";
}

TEST(Cell, FailedScrapesKeepReservationsCounting) {
  EndpointCell cell;
  const Reservation first = cell.Reserve(1);
  cell.BeginScrape();
  cell.FailScrape();
  const Reservation second = cell.Reserve(1);
  cell.BeginScrape();
  cell.FailScrape();
  EXPECT_EQ(cell.pending(), 2u);
  cell.Release(first, ReleaseKind::kEnded);
  EXPECT_EQ(cell.pending(), 1u);
  cell.BeginScrape();
  cell.ApplyScrape({}, 1);
  EXPECT_EQ(cell.pending(), 0u);
  cell.Release(second, ReleaseKind::kEnded);
  EXPECT_EQ(cell.pending(), 0u);
  EXPECT_EQ(cell.inflight(), 0u);
}

TEST(Cell, ManyFailedScrapesNeverLoseOrInventReservations) {
  EndpointCell cell;
  std::vector<Reservation> open;
  for (int i = 0; i < 1000; ++i) {
    open.push_back(cell.Reserve(1));
    cell.BeginScrape();
    cell.FailScrape();
  }
  EXPECT_EQ(cell.pending(), 1000u);
  for (const auto& r : open) cell.Release(r, ReleaseKind::kEnded);
  EXPECT_EQ(cell.pending(), 0u);
}

TEST(Cell, DetachedRequestsStayPendingUntilTheNextScrape) {
  EndpointCell cell;
  cell.Release(cell.Reserve(1), ReleaseKind::kDetached);
  EXPECT_EQ(cell.inflight(), 0u);
  EXPECT_EQ(cell.pending(), 1u);
  cell.BeginScrape();
  cell.ApplyScrape({.running = 1}, 1);
  EXPECT_EQ(cell.pending(), 0u);
}

TEST(Cell, TryReserveRefusesWhenSomebodyWasFaster) {
  EndpointCell cell;
  const uint32_t seen = cell.pending();
  EXPECT_TRUE(cell.TryReserve(seen, 1));
  EXPECT_FALSE(cell.TryReserve(seen, 1));
  EXPECT_EQ(cell.pending(), 1u);
}

TEST(Cell, CountsAreExactUnderConcurrency) {
  EndpointCell cell;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&cell] {
      for (int i = 0; i < 20'000; ++i) cell.Release(cell.Reserve(3), ReleaseKind::kEnded);
    });
  }
  for (int i = 0; i < 5'000; ++i) {
    cell.BeginScrape();
    if (i % 3 != 0) cell.ApplyScrape({.waiting = 1}, i + 1);
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(cell.inflight(), 0u);
  EXPECT_EQ(cell.inflight_tokens(), 0u);
  EXPECT_EQ(cell.pending(), 0u);
}

TEST(Cell, AScrapeIsOneWord) {
  for (const ScrapedLoad load :
       {ScrapedLoad{}, ScrapedLoad{.waiting = 1}, ScrapedLoad{.running = 1}, ScrapedLoad{.lora_room = true},
        ScrapedLoad{.kv_usage = 0.1f}, ScrapedLoad{0xffff, 0, false, 0}, ScrapedLoad{0, 0x7fff, false, 0},
        ScrapedLoad{0xffff, 0x7fff, true, 1.25f}, ScrapedLoad{0, 0, false, -1e30f}}) {
    const ScrapedLoad back = ScrapedLoad::Of(load.Pack());
    EXPECT_EQ(back.waiting, load.waiting);
    EXPECT_EQ(back.running, load.running);
    EXPECT_EQ(back.lora_room, load.lora_room);
    EXPECT_EQ(back.kv_usage, load.kv_usage);
  }
  EXPECT_EQ(ScrapedLoad{.waiting = 1}.Pack(), 1u) << "where the decision looks for it";
  EXPECT_EQ(ScrapedLoad{.running = 1}.Pack(), 0x1'0000u);
  EXPECT_EQ(ScrapedLoad{.lora_room = true}.Pack(), 0x8000'0000u);
  EXPECT_EQ(ScrapedLoad{.kv_usage = 1}.Pack(), 0x3f80'0000'0000'0000u);
}

TEST(Cell, CountsBeyondTheWordCountAsItsMost) {
  EndpointCell cell;
  cell.ApplyScrape({.waiting = 65'536, .running = 32'768, .kv_usage = 0.5f}, 1);
  EXPECT_EQ(cell.waiting(), 65'535u);
  EXPECT_EQ(cell.running(), 32'767u);
  EXPECT_EQ(cell.kv_usage(), 0.5f);
  EXPECT_FALSE(cell.lora_has_room());
  Signals full{.waiting = UINT32_MAX, .running = UINT32_MAX};
  full.lora = Signals::Lora{.max = 1};
  cell.ApplyScrape(full, 2);
  EXPECT_EQ(cell.waiting(), 65'535u);
  EXPECT_EQ(cell.running(), 32'767u);
  EXPECT_EQ(cell.kv_usage(), 0.5f);
  EXPECT_TRUE(cell.lora_has_room());
  cell.ApplyScrape({.waiting = 3}, 3);
  EXPECT_EQ(cell.waiting(), 3u);
  EXPECT_EQ(cell.running(), 32'767u);
  EXPECT_TRUE(cell.lora_has_room());
}

TEST(Cell, ReservationsSaturateAndLeaveTheScrapeAlone) {
  EndpointCell cell;
  cell.ApplyScrape({.waiting = 1, .running = 2, .kv_usage = 0.5f}, 1);
  for (int i = 0; i < 70'000; ++i) cell.Reserve(0);
  EXPECT_EQ(cell.pending(), 65'535u);
  cell.BeginScrape();
  for (int i = 0; i < 70'000; ++i) cell.Reserve(0);
  EXPECT_EQ(cell.pending(), 131'070u);
  EXPECT_EQ(cell.waiting(), 1u);
  EXPECT_EQ(cell.running(), 2u);
}

TEST(Loads, LieSideBySideAndAreTakenAgain) {
  LoadSlab slab;
  std::vector<EndpointLoad*> taken;
  for (int i = 0; i < 100; ++i) taken.push_back(&slab.Take());
  for (size_t i = 1; i < 64; ++i) EXPECT_EQ(taken[i], taken[0] + i);
  for (size_t i = 65; i < 100; ++i) EXPECT_EQ(taken[i], taken[64] + (i - 64));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(taken[0]) % 64, 0u);
  EXPECT_EQ(slab.capacity(), 128u);
  for (const size_t i : {70u, 5u, 6u}) {
    taken[i]->ledger = taken[i]->scraped = 99;
    slab.Return(*taken[i]);
  }
  for (const size_t i : {5u, 6u, 70u}) {
    EndpointLoad& again = slab.Take();
    EXPECT_EQ(&again, taken[i]) << "from the front";
    EXPECT_EQ(again.ledger, 0u) << "nothing of the one before";
    EXPECT_EQ(again.scraped, 0u);
  }
  for (int round = 0; round < 50; ++round) {
    for (EndpointLoad* load : taken) slab.Return(*load);
    for (EndpointLoad*& load : taken) load = &slab.Take();
  }
  EXPECT_EQ(slab.capacity(), 128u) << "what the most at one time needed";
}

TEST(Loads, CellsComeAndGoOnAnyThread) {
  const auto slab = std::make_shared<LoadSlab>();
  std::vector<std::thread> threads;
  for (uint32_t t = 1; t <= 4; ++t) {
    threads.emplace_back([&slab, t] {
      for (int round = 0; round < 200; ++round) {
        std::vector<std::shared_ptr<EndpointCell>> cells;
        for (uint32_t i = 0; i < 40; ++i) {
          cells.push_back(std::make_shared<EndpointCell>(slab));
          ASSERT_EQ(cells[i]->pending() + cells[i]->waiting(), 0u) << "as new";
          cells[i]->ApplyScrape({.waiting = t}, 1);
          for (uint32_t k = 0; k <= i % 3; ++k) cells[i]->Reserve(1);
        }
        for (uint32_t i = 0; i < 40; ++i) {
          ASSERT_EQ(cells[i]->waiting(), t) << "nobody else's";
          ASSERT_EQ(cells[i]->pending(), i % 3 + 1);
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_LE(slab->capacity(), 192u);
}

TEST(Fleet, LoadsOfAPoolFollowOneAnother) {
  std::shared_ptr<EndpointCell> kept;
  {
    Fleet fleet;
    api::Manifests m = OnePool(10);
    fleet.Apply(m);
    const auto pool = fleet.published().Load()->pools.at("default/pool");
    ASSERT_EQ(pool->loads.size(), 12u);
    for (size_t i = 0; i < 10; ++i) {
      EXPECT_EQ(pool->loads[i], &pool->cells[i]->load());
      EXPECT_EQ(pool->loads[i], pool->loads[0] + i);
    }
    EXPECT_EQ(pool->loads[10], pool->loads[9]);
    EXPECT_EQ(pool->loads[11], pool->loads[9]);
    kept = pool->endpoints[4].cell;
    m.endpoints.clear();
    fleet.Apply(m);
    EXPECT_TRUE(fleet.published().Load()->pools.at("default/pool")->loads.empty());
  }
  kept->Release(kept->Reserve(1), ReleaseKind::kEnded);  // a ticket outlives the fleet
}

TEST(Fleet, WhatIsKnownOfScrapesHoldsForTheSameEndpointsOnly) {
  Fleet fleet;
  api::Manifests m = OnePool(2);
  fleet.Apply(m);
  const auto pool = [&fleet] { return fleet.published().Load()->pools.at("default/pool"); };
  EXPECT_EQ(pool()->oldest_scrape.at(), 0) << "not known";
  pool()->oldest_scrape.Note(5);
  fleet.InternAdapter("default/pool", "lora");
  EXPECT_EQ(pool()->oldest_scrape.at(), 5) << "the same endpoints";
  fleet.Apply(OnePool(3));
  EXPECT_EQ(pool()->oldest_scrape.at(), 0);
}

}  // namespace
}  // namespace fairway::fleet
