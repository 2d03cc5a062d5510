#include "scheduling/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "scheduling/config.h"
#include "scheduling/plugin.h"
#include "tests/support/plugins.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using base::kSecond;
using tests::Model;
using tests::ServerState;
using tests::TestPool;

constexpr base::Nanos kNow = kSecond + kSecond / 10;

std::vector<api::InferenceModel> SomeModel() { return {Model("any", api::Criticality::kCritical)}; }

class Picks {
 public:
  explicit Picks(SchedulerOptions options = {.lora_exploration = 0, .tolerance = 0})
      : scheduler_(options, 0) {}

  Outcome Once(TestPool& pool, bool critical, std::string_view model = "", base::Nanos now = kNow) {
    const auto snapshot = pool.pool();
    return scheduler_.Pick(*snapshot, Ask(*snapshot, critical, model), std::nullopt, now, scratch_, random_,
                           &why_);
  }
  // The name of the chosen endpoint; nothing stays reserved.
  std::string Name(TestPool& pool, bool critical, std::string_view model = "", base::Nanos now = kNow) {
    const Outcome outcome = Once(pool, critical, model, now);
    if (outcome.kind == OutcomeKind::kShed) return "shed";
    if (outcome.kind == OutcomeKind::kNoCandidates) return "none";
    const auto& endpoint = pool.pool()->endpoints[outcome.choices[0]];
    endpoint.cell->Release(outcome.reservation, fleet::ReleaseKind::kEnded, now);
    return endpoint.name;
  }
  static Facts Ask(const fleet::PoolSnapshot& pool, bool critical, std::string_view model) {
    return {.target_model = std::string(model),
            .adapter = pool.AdapterId(model),
            .critical = critical,
            .prompt_tokens = 10};
  }

  Scheduler scheduler_;
  Scratch scratch_;
  base::Random random_{1};
  Explanation why_;
};

// ---- Endpoints that refuse connections.

TEST(Refusing, IsTakenOnlyWhenNothingElseIsLeft) {
  for (const bool with_models : {false, true}) {
    TestPool pool({{"A", 0, 0.0f, {}, {}}, {"B", 3, 0.5f, {}, {}}, {"C", 4, 0.6f, {}, {}}},
                  with_models ? SomeModel() : std::vector<api::InferenceModel>{});
    Picks picks;
    const auto refuse = [&](size_t i, bool refusing) {
      pool.pool()->endpoints[i].cell->SetRefusing(refusing);
    };
    refuse(0, true);
    for (int i = 0; i < 50; ++i) {
      const Outcome outcome = picks.Once(pool, true);
      ASSERT_EQ(outcome.kind, OutcomeKind::kPicked);
      ASSERT_EQ(outcome.num_choices, 2u) << "no fallback either";
      for (uint32_t k = 0; k < outcome.num_choices; ++k) ASSERT_NE(outcome.choices[k], 0u);
    }
    refuse(1, true);
    for (int i = 0; i < 20; ++i) ASSERT_EQ(picks.Name(pool, true), "C");
    refuse(2, true);
    std::set<std::string> names;
    for (int i = 0; i < 200; ++i) {
      const Outcome outcome = picks.Once(pool, true);
      ASSERT_EQ(outcome.kind, OutcomeKind::kPicked);
      names.insert(pool.pool()->endpoints[outcome.choices[0]].name);
    }
    EXPECT_GT(names.size(), 1u) << "all refuse: as if none did";
    refuse(0, false);  // back with the first success
    EXPECT_EQ(picks.Name(pool, true), "A");
  }
}

TEST(Refusing, WithinASubsetHint) {
  TestPool pool({{"A", 0, 0.0f, {}, {}}, {"B", 3, 0.5f, {}, {}}, {"C", 4, 0.6f, {}, {}}});
  Picks picks;
  const auto snapshot = pool.pool();
  snapshot->endpoints[0].cell->SetRefusing(true);
  const auto pick = [&](std::vector<uint32_t> subset) {
    const Outcome outcome = picks.scheduler_.Pick(*snapshot, Picks::Ask(*snapshot, true, ""), subset, kNow,
                                                  picks.scratch_, picks.random_, &picks.why_);
    return snapshot->endpoints[outcome.choices[0]].name;
  };
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(pick({0, 2}), "C");
    EXPECT_EQ(pick({0}), "A") << "nothing else is left";
  }
}

TEST(UnknownSignals, CountAsTheAverageAndNeverAsEmpty) {
  TestPool pool({{"A", 0, 0.1f, {}, {}}, {"B", 2, 0.3f, {}, {}}, {"C", 2, 0.3f, {}, {}}});
  Picks picks;
  auto& cell = *pool.pool()->endpoints[2].cell;
  cell.BeginScrape(kSecond);
  cell.ApplyScrape({.waiting = 2, .running = 0, .kv_unknown = true}, kSecond);
  picks.Once(pool, true);
  EXPECT_FLOAT_EQ(picks.why_.candidates[2].kv_usage, 0.2f);
  cell.ApplyScrape({.running = 0, .kv_usage = 0.9f, .load_unknown = true}, kSecond);
  picks.Once(pool, true);
  EXPECT_FALSE(picks.why_.candidates[2].fresh);
  EXPECT_GT(picks.why_.candidates[2].queue, 0.0f);
}

// ---- The worked examples of the introduction: they hold whatever the seed.

TEST(CriticalityTree, WorkedExample1AdapterBeatsAShorterQueue) {
  TestPool pool(
      {{"A", 10, 0.30f, {"lora-x"}, {}, 2}, {"B", 5, 0.70f, {}, {}, 2}, {"C", 60, 0.20f, {"lora-x"}, {}, 2}},
      SomeModel());
  Picks picks;
  for (int i = 0; i < 100; ++i) ASSERT_EQ(picks.Name(pool, true, "lora-x"), "A");
  ASSERT_GE(picks.why_.steps.size(), 3u);
  EXPECT_EQ(picks.why_.steps[1].name, "queue-limit-filter");
  ASSERT_EQ(picks.why_.steps[1].drops.size(), 1u);
  EXPECT_EQ(picks.why_.steps[1].drops[0].why, "queue 60 is not below 50");
}

TEST(CriticalityTree, WorkedExample2OnlyBHasRoom) {
  TestPool pool({{"A", 6, 0.85f, {}, {}}, {"B", 4, 0.75f, {}, {}}, {"C", 7, 0.60f, {}, {}}}, SomeModel());
  Picks picks;
  for (int i = 0; i < 100; ++i) ASSERT_EQ(picks.Name(pool, false), "B");
  ASSERT_EQ(picks.why_.steps[1].name, "capacity-filter");
  EXPECT_EQ(picks.why_.steps[1].drops[0].why, "queue 6 is not below 5 and KV use 85 % is not below 80 %");
}

TEST(CriticalityTree, WorkedExample3AllQueuesLongTheShortestWithTheAdapter) {
  TestPool pool(
      {{"A", 70, 0.40f, {"lora-y"}, {}, 2}, {"B", 80, 0.60f, {"lora-y"}, {}, 2}, {"C", 65, 0.70f, {}, {}, 2}},
      SomeModel());
  Picks picks;
  for (int i = 0; i < 100; ++i) ASSERT_EQ(picks.Name(pool, true, "lora-y"), "A");
}

TEST(CriticalityTree, ShedsWhenEveryEndpointIsBeyondALimit) {
  TestPool pool({{"A", 5, 0.1f, {}, {}}, {"B", 0, 0.8f, {}, {}}}, SomeModel());
  Picks picks;
  EXPECT_EQ(picks.Name(pool, false), "shed");
  EXPECT_EQ(picks.Name(pool, true), "B") << "a critical request is never shed";
}

TEST(CriticalityTree, LimitsAreStrict) {
  TestPool at_limit({{"A", 50, 0, {}, {}}, {"B", 49, 0.9f, {}, {}}}, SomeModel());
  Picks picks;
  EXPECT_EQ(picks.Name(at_limit, true), "B");
}

TEST(CriticalityTree, OwnReservationsDoNotShed) {
  // Thresholds compare the page's queue: a burst between two scrapes is spread, not refused.
  TestPool pool({{"A", 0, 0, {}, {}}, {"B", 0, 0, {}, {}}}, SomeModel());
  Picks picks;
  for (int i = 0; i < 100; ++i) ASSERT_EQ(picks.Once(pool, false).kind, OutcomeKind::kPicked);
  EXPECT_EQ(pool.pool()->endpoints[0].cell->own(), 50u);
  EXPECT_EQ(pool.pool()->endpoints[1].cell->own(), 50u);
}

TEST(CriticalityTree, OnlyWhereThereIsCriticalTrafficDoesTheLedgerShed) {
  TestPool pool({{"A"}}, SomeModel());
  Picks picks;
  for (int i = 0; i < 5; ++i) pool.pool()->endpoints[0].cell->Reserve(1600, kNow);
  EXPECT_EQ(picks.Name(pool, false), "A") << "nobody to protect";
  EXPECT_EQ(picks.Name(pool, true), "A");
  EXPECT_EQ(picks.Name(pool, false), "shed");
  EXPECT_EQ(picks.why_.steps[1].drops[0].why,
            "the ledger's queue 5 with 2000 ms of work is not below 5 with 700 ms");
  TestPool later({{"A"}}, SomeModel(), kNow + 20 * kSecond);
  for (int i = 0; i < 5; ++i) later.pool()->endpoints[0].cell->Reserve(1600, kNow);
  EXPECT_EQ(picks.Name(later, false, "", kNow + 20 * kSecond), "A");
}

TEST(CriticalityTree, ABaseModelNeedsNoSlot) {
  TestPool pool({{"A", 9, 0.1f, {}, {}, 2}, {"B", 0, 0.1f, {"x", "y"}, {}, 2}}, SomeModel());
  Picks picks;
  EXPECT_EQ(picks.Name(pool, true, "m"), "A") << "an adapter, as far as is known";
  pool.fleet().SetServed(pool.pool()->key, pool.pool()->endpoints[1].id, {"m"});
  pool.fleet().PublishNames();
  EXPECT_EQ(picks.Name(pool, true, "m"), "B");
}

TEST(CriticalityTree, AServerThatHasToldNothingYetHasRoom) {
  TestPool pool({{"A", 9, 0.1f, {}, {}, 2}, {.name = "B", .kv_usage = 0.1f, .tells_adapters = false}},
                SomeModel());
  Picks picks;
  EXPECT_EQ(picks.Name(pool, true, "z"), "B");
}

TEST(CriticalityTree, UnknownAdapterGoesWhereThereIsRoom) {
  TestPool pool({{"A", 0, 0.1f, {"x", "y"}, {}, 2}, {"B", 9, 0.9f, {"x"}, {}, 2}}, SomeModel());
  Picks picks;
  EXPECT_EQ(picks.Name(pool, true, "z"), "B");
}

TEST(CriticalityTree, FallbacksOfASheddableRequestHaveRoomToo) {
  TestPool pool({{"A", 0, 0.1f, {}, {}}, {"B", 9, 0.1f, {}, {}}, {"C", 1, 0.5f, {}, {}}}, SomeModel());
  Picks picks;
  const Outcome outcome = picks.Once(pool, false);
  ASSERT_EQ(outcome.num_choices, 2u) << "B has no room and is no fallback";
  EXPECT_EQ(outcome.choices[0], 0u);
  EXPECT_EQ(outcome.choices[1], 2u);
}

// ---- Reservation in the pick.

TEST(Reservation, AThousandAtOnceSpreadEvenlyOverEightIdleEndpoints) {
  for (const bool with_models : {true, false}) {
    TestPool pool(std::vector<ServerState>(8),
                  with_models ? SomeModel() : std::vector<api::InferenceModel>{});
    const auto snapshot = pool.pool();
    const Scheduler scheduler({}, 0);
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        Scratch scratch;
        base::Random random(t);
        for (int i = 0; i < 250; ++i) {
          const Outcome outcome =
              scheduler.Pick(*snapshot, Picks::Ask(*snapshot, true, ""), std::nullopt, kNow, scratch, random);
          ASSERT_EQ(outcome.kind, OutcomeKind::kPicked);
        }
      });
    }
    for (auto& thread : threads) thread.join();
    for (const auto& endpoint : snapshot->endpoints)
      EXPECT_NEAR(endpoint.cell->own(), 125, 5) << "4 requests are the tolerance";
  }
}

TEST(Reservation, TiesAreBrokenUniformly) {
  for (const bool with_models : {true, false}) {
    TestPool pool(std::vector<ServerState>{{"A"}, {"B"}, {"C"}, {"D"}},
                  with_models ? SomeModel() : std::vector<api::InferenceModel>{});
    Picks picks;
    std::map<std::string, int> seen;
    for (int i = 0; i < 8000; ++i) ++seen[picks.Name(pool, true)];
    for (const auto& [name, n] : seen) EXPECT_NEAR(n, 2000, 4 * 39) << name;
    EXPECT_EQ(seen.size(), 4u);
  }
}

TEST(Reservation, SameSeedSamePicks) {
  std::vector<uint32_t> runs[2];
  for (auto& run : runs) {
    TestPool pool(std::vector<ServerState>(16), SomeModel());
    Picks picks(SchedulerOptions{});
    for (int i = 0; i < 200; ++i) run.push_back(picks.Once(pool, true).choices[0]);
  }
  EXPECT_EQ(runs[0], runs[1]);
}

// ---- The default profile.

TEST(DefaultProfile, TheFirstTokenThatComesSoonestWins) {
  TestPool pool({{"A"}, {"B"}, {"C"}});
  Picks picks({.tolerance = 0});
  const auto cell = [&](size_t i) { return pool.pool()->endpoints[i].cell; };
  cell(0)->Reserve(4800, kNow);
  for (int i = 0; i < 20; ++i) cell(1)->Reserve(160, kNow);
  const Outcome idle = picks.Once(pool, true);
  EXPECT_EQ(idle.choices[0], 2u);
  EXPECT_EQ(idle.choices[1], 1u)
      << "3,200 tokens and 20 requests, 900 ms, before 4,800 tokens and one, 1,205 ms";
  EXPECT_FLOAT_EQ(picks.why_.candidates[0].work, 1200);
  EXPECT_FLOAT_EQ(picks.why_.candidates[1].work, 800);
  EXPECT_FLOAT_EQ(picks.why_.candidates[1].prefill, 2.5);
  EXPECT_FLOAT_EQ(picks.why_.candidates[1].own, 20);
  EXPECT_NEAR(picks.why_.candidates[1].score, 1 - 907.5 / 600'000, 1e-6)
      << "20 are held up by a tenth of 2.5 ms";
}

TEST(DefaultProfile, AnEngineThatIsTwiceAsFastGetsTwiceTheWork) {
  TestPool pool({{"slow"}, {"fast"}});
  Picks picks({.request_cost = 0, .tolerance = 0});
  const auto teach = [&](size_t i, base::Nanos took) {
    auto& cell = *pool.pool()->endpoints[i].cell;
    fleet::Reservation request = cell.Reserve(1000, kNow);
    cell.FirstToken(request, kNow + took);
    cell.Release(request, fleet::ReleaseKind::kEnded, 0);
  };
  teach(0, kSecond / 5);
  teach(1, kSecond / 10);
  const auto snapshot = pool.pool();
  for (int i = 0; i < 300; ++i) picks.Once(pool, true);
  EXPECT_NEAR(snapshot->endpoints[0].cell->own(), 100, 1);
  EXPECT_NEAR(snapshot->endpoints[1].cell->own(), 200, 1);
}

TEST(DefaultProfile, AnAdapterThatIsNotLoadedCostsItsLoading) {
  Picks picks({.tolerance = 0});
  TestPool empty({{"A", 0, 0, {"x"}, {}, 1}, {"B", 0, 0, {}, {}, 1}});
  empty.pool()->endpoints[0].cell->Reserve(360, kNow);  // 90 ms, and 5 for the request
  EXPECT_EQ(picks.Name(empty, true, "x"), "A");
  EXPECT_EQ(picks.why_.candidates[1].adapter, "free slot");
  empty.pool()->endpoints[0].cell->Reserve(20, kNow);
  EXPECT_EQ(picks.Name(empty, true, "x"), "B") << "into an empty slot it is 100 ms";
  TestPool lora({{"A", 0, 0, {"x"}, {}, 1}, {"B", 0, 0, {}, {}, 1}, {"C", 0, 0, {"y"}, {}, 1}});
  auto& a = *lora.pool()->endpoints[0].cell;
  a.Reserve(3840, kNow);  // 960 ms, and 5 for the request
  EXPECT_EQ(picks.Name(lora, true, "x"), "A");
  a.Reserve(160, kNow);
  EXPECT_EQ(picks.Name(lora, true, "x"), "B") << "loading costs 1,000 ms, waiting more";
  EXPECT_EQ(picks.Name(lora, true, "x"), "B") << "and it is believed to be loaded there now";
  EXPECT_EQ(picks.why_.candidates[1].adapter, "believed");
  TestPool full({{"A", 0, 0, {"y"}, {}, 1}, {"B", 0, 0, {}, {}, 1}, {"C", 0, 0, {"x"}, {}, 1}});
  full.pool()->endpoints[1].cell->Reserve(3200, kNow);
  full.pool()->endpoints[2].cell->Reserve(8000, kNow);
  EXPECT_EQ(picks.Name(full, true, "x"), "B") << "A has no slot for it";
}

TEST(DefaultProfile, WhoIsWithinTheToleranceIsDrawnAmong) {
  TestPool pool({{"A"}, {"B"}, {"C"}});
  pool.pool()->endpoints[1].cell->Reserve(48, kNow);   // 17 ms
  pool.pool()->endpoints[2].cell->Reserve(160, kNow);  // 45 ms
  const auto snapshot = pool.pool();
  for (const bool shown : {true, false}) {
    Picks picks(SchedulerOptions{});
    std::map<uint32_t, int> seen;
    for (int i = 0; i < 2000; ++i) {
      Facts request = Picks::Ask(*snapshot, true, "");
      request.shows_end = shown;
      const Outcome outcome =
          picks.scheduler_.Pick(*snapshot, request, std::nullopt, kNow, picks.scratch_, picks.random_);
      ++seen[outcome.choices[0]];
      snapshot->endpoints[outcome.choices[0]].cell->Release(outcome.reservation, fleet::ReleaseKind::kEnded,
                                                            kNow);
    }
    EXPECT_NEAR(seen[0], shown ? 2000 : 1000, shown ? 0 : 4 * 23) << "5 ms where answers are shown, else 20";
    EXPECT_EQ(seen[1], 2000 - seen[0]);
    EXPECT_EQ(seen[2], 0);
  }
}

TEST(DefaultProfile, OtherProfilesAreTheirFormulas) {
  const auto name = [](TestPool& pool, Profile profile) {
    Picks picks({.profile = profile});
    return picks.Name(pool, true);
  };
  TestPool mixed({{"A", 3, 0.1f, {}, {}}, {"B", 1, 0.8f, {}, {}}});
  Picks picks({.profile = Profile::kQueueKvLora});
  // queue 2 * 0 + KV 2 * 0.9 + LoRA 0 + running 1 = 2.8 against 2 * 1 + 2 * 0.2 + 0 + 1 = 3.4
  EXPECT_EQ(picks.Name(mixed, true), "B");
  EXPECT_NEAR(picks.why_.candidates[0].score, 2.8, 1e-5);
  EXPECT_NEAR(picks.why_.candidates[1].score, 3.4, 1e-5);
  EXPECT_EQ(name(mixed, Profile::kActiveRequest), "B");
  TestPool work({{"A", 0, 0, {}, {}, 0, 3}, {"B"}});
  work.pool()->endpoints[1].cell->Reserve(3000, kNow);
  EXPECT_EQ(name(work, Profile::kActiveRequest), "B") << "1 against 3";
  EXPECT_EQ(name(work, Profile::kLmetric), "A") << "(0 + 4) * 4 ms against (1,200 + 4) * 2";
}

TEST(LoadSource, PageForgetsTheLedger) {
  TestPool pool({{"A", 1, 0, {"x"}, {}, 1}, {"B", 2, 0, {"x"}, {}, 1}, {"C", 9, 0, {"x"}, {}, 1}});
  for (int i = 0; i < 9; ++i) pool.pool()->endpoints[0].cell->Reserve(3000, kNow);
  Picks ledger({.tolerance = 0});
  EXPECT_EQ(ledger.Name(pool, true, "x"), "B");
  Picks page({.load_source = LoadSource::kPage, .tolerance = 0});
  EXPECT_EQ(page.Name(pool, true, "x"), "A");
  EXPECT_FLOAT_EQ(page.why_.candidates[0].queue, 1);
  EXPECT_FLOAT_EQ(page.why_.candidates[0].work, 0);
}

TEST(DefaultProfile, WhatMayBeShedGoesOnlyWhereThereIsRoom) {
  Picks picks;
  // C is idle but for its KV cache: others take it, what may be shed does not.
  TestPool pool({{"A", 4, 0.5f}, {"B", 6, 0.1f}, {"C", 0, 0.8f}, {"D", 4, 0.79f, {}, {}, 0, 9}});
  EXPECT_EQ(picks.Name(pool, false), "A");
  EXPECT_EQ(picks.why_.steps.at(0).name, "capacity-filter");
  EXPECT_EQ(picks.why_.steps.at(0).out, 2u);
  const Outcome outcome = picks.Once(pool, false);
  ASSERT_EQ(outcome.num_choices, 2u) << "fallbacks have room, too";
  EXPECT_EQ(outcome.choices[1], 3u);

  TestPool full({{"A", 5, 0.1f}, {"B", 0, 0.8f}});
  EXPECT_EQ(picks.Name(full, false), "shed");
  EXPECT_NE(picks.Name(full, true), "shed");
  EXPECT_NE(picks.why_.steps.at(0).name, "capacity-filter") << "no step for the others";
}

TEST(DefaultProfile, OldSignalsShedNothing) {
  Picks picks;
  TestPool pool({{"A", 50, 0.99f}}, {});
  EXPECT_EQ(picks.Name(pool, false), "shed");
  EXPECT_EQ(picks.Name(pool, false, "", kNow + 5 * kSecond), "A");
  EXPECT_EQ(picks.Name(pool, false, "", kNow + 60 * kSecond), "A");
}

TEST(DefaultProfile, FallbacksFollowByScore) {
  TestPool pool(
      {{"A", 9, 0.1f, {}, {}}, {"B", 0, 0.1f, {}, {}}, {"C", 3, 0.1f, {}, {}}, {"D", 1, 0.1f, {}, {}}});
  Picks picks;
  const Outcome outcome = picks.Once(pool, true);
  ASSERT_EQ(outcome.num_choices, 3u);
  EXPECT_EQ(outcome.choices[0], 1u);
  EXPECT_EQ(outcome.choices[1], 3u);
  EXPECT_EQ(outcome.choices[2], 2u);
}

TEST(Candidates, SubsetIsHonouredAndEmptyGivesNothing) {
  TestPool pool({{"A", 0, 0, {}, {}}, {"B", 9, 0, {}, {}}, {"C", 5, 0, {}, {}}});
  const auto snapshot = pool.pool();
  const Scheduler scheduler({}, 0);
  Scratch scratch;
  base::Random random(1);
  const std::vector<uint32_t> subset{1, 2};
  const Outcome outcome =
      scheduler.Pick(*snapshot, Picks::Ask(*snapshot, true, ""), subset, kNow, scratch, random);
  EXPECT_EQ(outcome.choices[0], 2u);
  EXPECT_EQ(outcome.num_choices, 2u);
  const std::vector<uint32_t> none;
  EXPECT_EQ(scheduler.Pick(*snapshot, Picks::Ask(*snapshot, true, ""), none, kNow, scratch, random).kind,
            OutcomeKind::kNoCandidates);
}

// ---- The ladder: fresh, ledger, power of two, any ready.

TEST(Ladder, FreshSignalsDecideWhileTheyAreFresh) {
  TestPool pool({{"A", 0, 0, {}, {}}, {"B", 4, 0, {}, {}}});
  Picks picks;
  EXPECT_EQ(picks.Name(pool, true), "A");
  EXPECT_EQ(picks.Once(pool, true).rung, Rung::kFresh);
}

TEST(Ladder, WithoutScrapesTheLedgerDecides) {
  TestPool pool({{"A", 0, 0, {}, {}}, {"B", 40, 0.9f, {}, {}}}, SomeModel());
  Picks picks;
  auto& a = *pool.pool()->endpoints[0].cell;
  for (int i = 0; i < 3; ++i) a.Reserve(1, kNow);
  const base::Nanos later = 10 * kSecond;
  const Outcome outcome = picks.Once(pool, false, "", later);
  ASSERT_EQ(outcome.kind, OutcomeKind::kPicked) << "stale never means full";
  EXPECT_EQ(outcome.choices[0], 1u) << "none of our requests is there";
  EXPECT_EQ(outcome.rung, Rung::kLedger);
}

TEST(Ladder, AStaleEndpointAmongFreshOnesCountsAsAverage) {
  TestPool pool({{"A", 2, 0.2f, {}, {}}, {"B", 4, 0.2f, {}, {}}, {"stale", 0, 0.2f, {}, {}}});
  const base::Nanos later = 10 * kSecond;
  pool.Scrape(0, {"A", 2, 0.2f, {}, {}}, later);
  pool.Scrape(1, {"B", 4, 0.2f, {}, {}}, later);
  Picks picks;
  EXPECT_EQ(picks.Name(pool, true, "", later), "A");
  EXPECT_FLOAT_EQ(picks.why_.candidates[2].queue, 3);
  EXPECT_FALSE(picks.why_.candidates[2].fresh);
}

TEST(Ladder, AnEndpointThatGoesStaleIsNoticed) {
  TestPool pool({{"A", 5}, {"B", 9}, {"C", 7}}, {}, kSecond);
  Picks picks;
  for (base::Nanos now = kSecond; now <= 2 * kSecond; now += kSecond / 10) {
    EXPECT_EQ(picks.Name(pool, true, "", now), "A");
    EXPECT_TRUE(picks.why_.candidates[0].fresh);
  }
  pool.Scrape(1, {"B", 9}, 2 * kSecond);
  pool.Scrape(2, {"C", 7}, 2 * kSecond);
  const base::Nanos later = 2 * kSecond + base::kMillisecond;  // A's page is a millisecond too old
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(picks.Name(pool, true, "", later), "C");
    EXPECT_FALSE(picks.why_.candidates[0].fresh);
    EXPECT_TRUE(picks.why_.candidates[2].fresh);
  }
  pool.Scrape(0, {"A", 5}, later);
  EXPECT_EQ(picks.Name(pool, true, "", later), "A") << "back again";
}

TEST(Ladder, AnEndpointThatJoinsIsNotTakenForAFreshOne) {
  TestPool pool({{"A", 5}, {"B", 9}}, {}, kSecond);
  Picks picks;
  EXPECT_EQ(picks.Name(pool, true), "A");
  api::Endpoint joins = pool.manifests().endpoints[0];
  joins.name = "new";
  joins.address = "10.0.9.9";
  pool.manifests().endpoints.push_back(joins);
  pool.fleet().Apply(pool.manifests());
  EXPECT_EQ(picks.Name(pool, true), "A") << "the new one counts as the average, not as empty";
  ASSERT_EQ(picks.why_.candidates.size(), 3u);
  EXPECT_FALSE(picks.why_.candidates[2].fresh);
  EXPECT_FLOAT_EQ(picks.why_.candidates[2].queue, 7);
  TestPool other({{"X", 1}, {"Y", 2}, {"Z", 3}}, {}, 0);  // and neither is another fleet's
  EXPECT_EQ(picks.Once(other, true).rung, Rung::kLedger);
}

TEST(Ladder, WhatASubsetShowsSaysNothingOfTheOthers) {
  TestPool pool({{"A", 5}, {"B", 9}, {"stale", 1}}, {}, kSecond);
  const base::Nanos later = 3 * kSecond;
  pool.Scrape(0, {"A", 5}, later);
  pool.Scrape(1, {"B", 9}, later);
  const auto snapshot = pool.pool();
  const Scheduler scheduler({}, 0);
  Scratch scratch;
  base::Random random(1);
  const std::vector<uint32_t> subset{1, 0};
  const Facts request = Picks::Ask(*snapshot, true, "");
  const Outcome narrow = scheduler.Pick(*snapshot, request, subset, later, scratch, random);
  EXPECT_EQ(narrow.choices[0], 0u);
  EXPECT_EQ(narrow.rung, Rung::kFresh);
  Explanation why;
  scheduler.Pick(*snapshot, request, std::nullopt, later, scratch, random, &why);
  EXPECT_FALSE(why.candidates[2].fresh);
}

TEST(Ladder, LongSilenceMeansPowerOfTwoChoices) {
  TestPool pool({{"A"}, {"B"}, {"C"}, {"D"}}, SomeModel());
  Picks picks;
  auto& a = *pool.pool()->endpoints[0].cell;
  for (int i = 0; i < 3; ++i) a.Reserve(1, kNow);
  const base::Nanos later = 100 * kSecond;
  EXPECT_EQ(picks.Once(pool, false, "", later).rung, Rung::kPowerOfTwo);
  std::map<std::string, int> seen;
  for (int i = 0; i < 6000; ++i) ++seen[picks.Name(pool, false, "", later)];
  EXPECT_EQ(seen["A"], 0) << "the loaded one loses each of its pairs";
  EXPECT_GT(seen["B"], 1000);
  EXPECT_GT(seen["C"], 1000);
}

TEST(Ladder, AYoungFleetIsNotALostOne) {
  TestPool pool({{"A"}, {"B"}}, SomeModel(), 0);
  const Scheduler scheduler({}, 95 * kSecond);
  Scratch scratch;
  base::Random random(1);
  const auto snapshot = pool.pool();
  EXPECT_EQ(
      scheduler.Pick(*snapshot, Picks::Ask(*snapshot, true, ""), std::nullopt, 100 * kSecond, scratch, random)
          .rung,
      Rung::kLedger);
}

class DropEverything final : public Plugin, public Filter {
 public:
  size_t Apply(const Context&, std::span<const uint32_t>, uint32_t*) const noexcept override { return 0; }
  std::string Why(const Context&, uint32_t) const override { return "broken"; }
};
class PickNothing final : public Plugin, public Picker {
 public:
  size_t Pick(const Context&, std::span<const uint32_t>, std::span<const float>,
              std::span<uint32_t>) const noexcept override {
    return 0;
  }
};

TEST(Ladder, AFaultyProgramFallsToAnyReadyEndpoint) {
  ConfigSpec broken =
      tests::OneProfile({tests::Spec("drop-everything"), tests::Spec("pick-nothing")}, {{"pick-nothing"}});
  broken.profiles[0].branches = {{"drop-everything", 0, 0}};  // it leads to itself
  const auto make_filter = [](Build&) -> std::unique_ptr<Plugin> {
    return std::make_unique<DropEverything>();
  };
  const auto make_picker = [](Build&) -> std::unique_ptr<Plugin> { return std::make_unique<PickNothing>(); };
  const auto config = tests::Compiled(
      broken, {.more_types = {{"drop-everything", make_filter}, {"pick-nothing", make_picker}}});
  TestPool pool({{"A"}, {"B"}});
  const auto snapshot = pool.pool();
  const Scheduler scheduler({}, 0, config);
  Scratch scratch;
  base::Random random(3);
  std::set<uint32_t> seen;
  for (int i = 0; i < 50; ++i) {
    const Outcome outcome =
        scheduler.Pick(*snapshot, Picks::Ask(*snapshot, true, ""), std::nullopt, kNow, scratch, random);
    ASSERT_EQ(outcome.kind, OutcomeKind::kPicked);
    ASSERT_EQ(outcome.rung, Rung::kAnyReady);
    seen.insert(outcome.choices[0]);
  }
  EXPECT_EQ(seen.size(), 2u);
}

TEST(Options, AreChecked) {
  EXPECT_TRUE(CheckOptions({}));
  EXPECT_EQ(CheckOptions({.sheddable_kv_limit = 1.5f}).error().message,
            "sheddable KV limit must be from 0 to 1, not 1.5");
  EXPECT_FALSE(CheckOptions({.max_choices = 0}));
  EXPECT_FALSE(CheckOptions({.lora_exploration = -1}));
  EXPECT_FALSE(CheckOptions({.trust_in_others = 9}));
}

}  // namespace
}  // namespace fairway::scheduling
