// What is left open by the program: a race for the place, the order of fallbacks, what a refusal was decided
// on.
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "scheduling/config.h"
#include "scheduling/plugin.h"
#include "scheduling/scheduler.h"
#include "tests/support/plugins.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using base::kSecond;
using tests::Model;
using tests::TestPool;

constexpr base::Nanos kNow = kSecond + kSecond / 10;

// Another worker that is faster: so many times a request of its own goes to the first endpoint while this
// decision is being made.
int faster = 0;
fleet::EndpointCell* taken = nullptr;
class Faster final : public Plugin, public Scorer {
 public:
  void Score(const Context&, std::span<const uint32_t> in, float* out) const noexcept override {
    std::fill(out, out + in.size(), 0.5f);
    if (faster-- > 0) taken->Reserve(100, kNow);
  }
};

Outcome PickBesideFaster(TestPool& pool, int times) {
  ConfigSpec spec = tests::OneProfile(
      {tests::Spec("faster"), tests::Spec("active-request-scorer"), tests::Spec("max-score-picker")},
      {{"faster"}, {"active-request-scorer"}, {"max-score-picker"}});
  const auto make = [](Build&) -> std::unique_ptr<Plugin> { return std::make_unique<Faster>(); };
  const Scheduler scheduler({.max_choices = 1}, 0, tests::Compiled(spec, {.more_types = {{"faster", make}}}));
  faster = times;
  const auto snapshot = pool.pool();
  taken = snapshot->endpoints[0].cell.get();
  Scratch scratch;
  base::Random random(1);
  return scheduler.Pick(*snapshot, {.prompt_tokens = 10}, std::nullopt, kNow, scratch, random);
}

TEST(Race, WhoWasSlowerLooksAgain) {
  TestPool pool({{"A"}, {"B"}});
  pool.pool()->endpoints[1].cell->Reserve(1, kNow);
  const Outcome alone = PickBesideFaster(pool, 0);
  EXPECT_EQ(alone.choices[0], 0u);
  pool.pool()->endpoints[0].cell->Release(alone.reservation, fleet::ReleaseKind::kEnded, kNow);
  // Two others took A since we looked: B has one request, and is now the better one.
  const Outcome second = PickBesideFaster(pool, 2);
  EXPECT_EQ(second.choices[0], 1u);
  EXPECT_EQ(pool.pool()->endpoints[1].cell->own(), 2u);
}

TEST(Race, WhoLosesEachTimeTakesAPlaceInTheEnd) {
  TestPool pool({{"A"}});
  const Outcome outcome = PickBesideFaster(pool, 1000);
  ASSERT_EQ(outcome.kind, OutcomeKind::kPicked);
  EXPECT_GT(faster, 900) << "a few rounds, and not for ever";
  EXPECT_EQ(pool.pool()->endpoints[0].cell->own(), static_cast<uint32_t>(1000 - faster) + 1);
}

Outcome Once(TestPool& pool, const Facts& request, base::Nanos now = kNow) {
  const Scheduler scheduler({.lora_exploration = 0, .tolerance = 0}, 0);
  Scratch scratch;
  base::Random random(1);
  const auto snapshot = pool.pool();
  return scheduler.Pick(*snapshot, request, std::nullopt, now, scratch, random);
}

TEST(Fallbacks, OfEqualQueuesTheEmptierCacheComesFirst) {
  for (const bool first_is_emptier : {false, true}) {
    TestPool pool(
        {{"A", 0, 0.1f}, {"B", 9, first_is_emptier ? 0.2f : 0.6f}, {"C", 9, first_is_emptier ? 0.6f : 0.2f}},
        {Model("any", api::Criticality::kCritical)});
    const Outcome outcome = Once(pool, {.critical = true, .prompt_tokens = 10});
    ASSERT_EQ(outcome.num_choices, 3u);
    EXPECT_EQ(outcome.choices[0], 0u);
    EXPECT_EQ(outcome.choices[1], first_is_emptier ? 1u : 2u);
    EXPECT_EQ(outcome.choices[2], first_is_emptier ? 2u : 1u);
  }
}

class NobodyFilter final : public Plugin, public Filter {
 public:
  size_t Apply(const Context&, std::span<const uint32_t>, uint32_t*) const noexcept override { return 0; }
  std::string Why(const Context&, uint32_t) const override { return "nobody"; }
};

TEST(Shed, SaysWhetherItWasDecidedOnOldSignals) {
  TestPool pool({{"A", 9, 0.1f}, {"B", 9, 0.1f}});
  const auto make = [](Build&) -> std::unique_ptr<Plugin> { return std::make_unique<NobodyFilter>(); };
  const Scheduler scheduler(
      {}, 0,
      tests::Compiled(tests::OneProfile({tests::Spec("nobody"), tests::Spec("max-score-picker")},
                                        {{"nobody"}, {"max-score-picker"}}),
                      {.more_types = {{"nobody", make}}}));
  const auto decide = [&](base::Nanos now) {
    Scratch scratch;
    base::Random random(1);
    const auto snapshot = pool.pool();
    return scheduler.Pick(*snapshot, {.prompt_tokens = 10}, std::nullopt, now, scratch, random);
  };
  const Outcome fresh = decide(kNow);
  EXPECT_EQ(fresh.kind, OutcomeKind::kShed);
  EXPECT_EQ(fresh.rung, Rung::kFresh);
  const base::Nanos later = 10 * kSecond;
  pool.Scrape(0, {"A", 9, 0.1f}, later);
  const Outcome partly = decide(later);
  EXPECT_EQ(partly.kind, OutcomeKind::kShed);
  EXPECT_EQ(partly.rung, Rung::kLedger) << "B's page is old";
}

}  // namespace
}  // namespace fairway::scheduling
