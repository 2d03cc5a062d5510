// Each plugin alone, on hand-made columns.
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "scheduling/plugin.h"
#include "tests/support/plugins.h"

namespace fairway::scheduling {
namespace {

using Fixture = tests::Candidates;
using List = std::vector<uint32_t>;

TEST(LeastQueueFilter, KeepsWithinTheFirstNthOfTheRange) {
  // The classic scheduler's own cases {0, 3, 10} -> {0, 3}: 0 + 10/3 = 3.33; real division keeps 3.
  Fixture f(3);
  f["queue"] = {0, 3, 10};
  EXPECT_EQ(f.Keep("least-queue-filter"), (List{0, 1}));
  f["queue"] = {7, 7, 7};
  EXPECT_EQ(f.Keep("least-queue-filter"), (List{0, 1, 2}));
  f["queue"] = {1, 0, 1};
  EXPECT_EQ(f.Keep("least-queue-filter"), (List{1}));
  EXPECT_EQ(f.Keep("least-queue-filter", {{"slack", 1}}), (List{0, 1, 2}));
  f["queue"] = {0, 2, 10};
  EXPECT_EQ(f.Keep("least-queue-filter", {{"slack", 1}}), (List{0, 1})) << "the range is more";
}

TEST(LeastKvCacheFilter, KeepsWithinTheFirstNthOfTheRange) {
  Fixture f(3);
  f["kv-usage"] = {0, 0.3f, 1.0f};
  EXPECT_EQ(f.Keep("least-kv-cache-filter"), (List{0, 1}));
  f["kv-usage"] = {0.1f, 0.8f, 1.0f};
  EXPECT_EQ(f.Keep("least-kv-cache-filter"), (List{0}));
  EXPECT_EQ(f.Keep("least-kv-cache-filter", {{"floor", 0.8}}), (List{0, 1}));
}

TEST(QueueLimitFilter, ComparesThePagesQueueStrictly) {
  Fixture f(3);
  f["page-queue"] = {49, 50, 51};
  f["queue"] = {1000, 0, 0};
  EXPECT_EQ(f.Keep("queue-limit-filter"), (List{0}));
  EXPECT_EQ(f.Keep("queue-limit-filter", {{"limit", 51}}), (List{0, 1}));
  EXPECT_TRUE(f.Keep("queue-limit-filter", {{"limit", 1}}).empty());
}

TEST(CapacityFilter, NeedsBothQueueAndKvCache) {
  Fixture f(4);
  f["page-queue"] = {4, 5, 0, 0};
  f["kv-usage"] = {0.79f, 0.1f, 0.8f, 0};
  EXPECT_EQ(f.Keep("capacity-filter"), (List{0, 3}));
}

TEST(CapacityFilter, TheLedgersQueueCountsWhereItIsWork) {
  Fixture f(3);
  f["queue"] = {5, 4, 5};
  f["work"] = {700, 9000, 699};
  EXPECT_EQ(f.Keep("capacity-filter"), (List{1})) << "and 2, with less work than the mean, is left to others";
  EXPECT_EQ(f.Keep("capacity-filter", {{"workLimit", 701}}), (List{0, 1, 2}));
}

TEST(CapacityFilter, LeavesTheLessLoadedHalfToOthersWhenSomeAreFull) {
  Fixture f(5);
  f["work"] = {100, 200, 300, 400, 0};
  EXPECT_EQ(f.Keep("capacity-filter"), (List{0, 1, 2, 3, 4})) << "room everywhere";
  f["page-queue"][4] = 5;
  EXPECT_EQ(f.Keep("capacity-filter"), (List{2, 3}));
  f["work"] = {7, 7, 7, 7, 0};
  EXPECT_EQ(f.Keep("capacity-filter"), (List{0, 1, 2, 3}));
}

TEST(CriticalRequestFilter, PassesAllOrNone) {
  Fixture f(2);
  f.request.critical = true;
  EXPECT_EQ(f.Keep("critical-request-filter"), (List{0, 1}));
  f.request.critical = false;
  EXPECT_TRUE(f.Keep("critical-request-filter").empty());
}

TEST(LoraAffinityFilter, ResidentThenRoomElseFails) {
  Fixture f(4);
  f["adapter"] = {kAdapterRunning, kAdapterWaiting | kAdapterRoom, kAdapterRoom, 0};
  EXPECT_EQ(f.Keep("lora-affinity-filter", {{"exploration", 0}}), (List{0, 1}));
  EXPECT_EQ(f.Keep("lora-affinity-filter", {{"exploration", 1}}), (List{2}));
  f["adapter"] = {0, kAdapterRoom, kAdapterRoom, 0};
  EXPECT_EQ(f.Keep("lora-affinity-filter"), (List{1, 2}));
  f["adapter"] = {0, 0, 0, 0};
  EXPECT_TRUE(f.Keep("lora-affinity-filter").empty());
}

TEST(LoraAffinityFilter, AnEmptySlotIsUsedOnceOpenRequestsPileUpElsewhere) {
  Fixture f(4);
  f["adapter"] = {kAdapterRunning, kAdapterRoom | kAdapterFree, kAdapterRoom, 0};
  f["requests"] = {33, 1, 0, 0};
  EXPECT_EQ(f.Keep("lora-affinity-filter", {{"exploration", 0}}), (List{0}))
      << "32 more are not more than 32";
  f["requests"][0] = 34;
  EXPECT_EQ(f.Keep("lora-affinity-filter", {{"exploration", 0}}), (List{0, 1}));
  EXPECT_EQ(f.Keep("lora-affinity-filter", {{"exploration", 0}, {"freeSlotRequests", 33}}), (List{0}));
  f["work"] = {1001, 0, 500, 0};
  EXPECT_EQ(f.Keep("lora-affinity-filter", {{"exploration", 0}, {"freeSlotRequests", 33}}), (List{0, 1}));
  f["adapter"][0] = 0;
  EXPECT_EQ(f.Keep("lora-affinity-filter"), (List{1})) << "who has room has another adapter to lose";
  f["work"][1] = 1501;
  EXPECT_EQ(f.Keep("lora-affinity-filter"), (List{1, 2}));
}

TEST(LoraAffinityFilter, ExplorationTakesItsShare) {
  Fixture f(2);
  f["adapter"] = {kAdapterRunning, kAdapterRoom};
  int explored = 0;
  f.With("lora-affinity-filter", {{"exploration", 0.1}}, [&](const auto& context, const auto& plugin) {
    for (int i = 0; i < 10'000; ++i) {
      uint32_t out[2];
      plugin.filter->Apply(context, f.all, out);
      explored += out[0] == 1 ? 1 : 0;
    }
  });
  EXPECT_NEAR(explored, 1000, 4 * 30);  // 4 sigma of binomial(10000, 0.1)
}

TEST(LoraAffinityFilter, AffinityCostsNoMoreThanLoading) {
  Fixture f(4);
  f["adapter"] = {kAdapterRunning, kAdapterResident | kAdapterRoom, kAdapterRoom, 0};
  f["work"] = {1500, 1300, 300, 0};
  EXPECT_EQ(f.Keep("lora-affinity-filter", {{"exploration", 0}}), (List{0, 1}))
      << "1,300 - 300 is not more than 1,000";
  f["work"][1] = 1301;
  EXPECT_EQ(f.Keep("lora-affinity-filter", {{"exploration", 0}}), (List{0, 1, 2}));
  EXPECT_EQ(f.Keep("lora-affinity-filter", {{"exploration", 0}, {"loadCost", 2000}}), (List{0, 1}));
}

TEST(Scorers, FollowTheirFormulas) {
  Fixture f(3);
  f["queue"] = {0, 5, 10};
  EXPECT_EQ(f.Scores("queue-scorer"), (std::vector<float>{1, 0.5f, 0}));
  f["queue"] = {4, 4, 4};
  EXPECT_EQ(f.Scores("queue-scorer"), (std::vector<float>{1, 1, 1}));
  f["running"] = {2, 0, 4};
  EXPECT_EQ(f.Scores("running-requests-size-scorer"), (std::vector<float>{0.5f, 1, 0}));
  f["kv-usage"] = {0.25f, 0, 1.5f};
  EXPECT_EQ(f.Scores("kv-cache-utilization-scorer"), (std::vector<float>{0.75f, 1, -0.5f}))
      << "the engine cuts it";
  f["adapter"] = {kAdapterRunning, kAdapterRoom, kAdapterWaiting};
  EXPECT_EQ(f.Scores("lora-affinity-scorer"), (std::vector<float>{1.0f, 0.8f, 0.6f}));
}

TEST(TimeToFirstTokenScorer, AddsWhatHasToHappenBefore) {
  Fixture f(4);
  f.request.adapter = 1;
  f["work"] = {0, 100, 0, 0};
  f["prefill"] = {50, 25, 50, 50};
  f["requests"] = {2, 1, 0, 0};
  f["adapter"] = {kAdapterRunning, kAdapterResident, kAdapterRoom, 0};
  // Of 600,000 ms. Each open request is held up by a tenth of the own time; where its end will not be seen, of what
  // that is more than the least.
  const std::vector<float> scores = f.Scores("time-to-first-token-scorer");
  for (const auto& [i, ms] : {std::pair{0, 60 + 10.0}, {1, 130 + 2.5}, {2, 1050}, {3, 2050}})
    EXPECT_NEAR(scores[static_cast<size_t>(i)], 1 - ms / 600'000.0, 1e-7) << i;
  f["adapter"][2] = kAdapterRoom | kAdapterFree;
  EXPECT_NEAR(f.Scores("time-to-first-token-scorer")[2], 1 - 150 / 600'000.0, 1e-7);
  EXPECT_NEAR(f.Scores("time-to-first-token-scorer", {{"loadCost", 60}})[2], 1 - 110 / 600'000.0, 1e-7);
  f.request.shows_end = false;
  EXPECT_NEAR(f.Scores("time-to-first-token-scorer")[0], 1 - (60 + 5) / 600'000.0, 1e-7);
  EXPECT_NEAR(f.Scores("time-to-first-token-scorer")[1], 1 - 130 / 600'000.0, 1e-7);
}

TEST(TimeToFirstTokenScorer, LeavesAPromptWhereItIsCachedTheMoreRequestsItWouldHoldUpElsewhere) {
  Fixture f(7);  // more than four at a time
  f["work"] = {300, 0, 0, 0, 0, 0, 0};
  f["prefill"] = {80, 480, 480, 480, 480, 480, 480};
  f["requests"] = {1, 1, 1, 1, 1, 1, 1};
  std::vector<float> scores = f.Scores("time-to-first-token-scorer");
  EXPECT_GT(scores[0], scores[6]) << "380 ms and 480";
  f["work"] = {600, 0, 0, 0, 0, 0, 0};
  scores = f.Scores("time-to-first-token-scorer");
  EXPECT_LT(scores[0], scores[6]) << "680 ms and 480";
  f["requests"] = {20, 20, 20, 20, 20, 20, 20};
  scores = f.Scores("time-to-first-token-scorer");
  EXPECT_GT(scores[0], scores[6]) << "20 would wait for 400 ms more that are needless";
}

TEST(LmetricScorer, IsTheProductOfWorkAndRequests) {
  Fixture f(2);
  f["work"] = {100, 0};
  f["prefill"] = {100, 100};
  f["requests"] = {4, 0};
  const std::vector<float> scores = f.Scores("lmetric-scorer");
  EXPECT_FLOAT_EQ(scores[0], 1 / 2.0f);  // 200 * 5
  EXPECT_FLOAT_EQ(scores[1], 1 / 1.1f);
}

TEST(ActiveRequestScorer, IsTheShareOfTheMost) {
  Fixture f(3);
  f["requests"] = {0, 1, 4};
  EXPECT_EQ(f.Scores("active-request-scorer"), (std::vector<float>{1, 0.75f, 0}));
  f["requests"] = {0, 0, 0};
  EXPECT_EQ(f.Scores("active-request-scorer"), (std::vector<float>{1, 1, 1}));
}

TEST(MaxScorePicker, BestFirstTiesUniformFallbacksByScore) {
  Fixture f(5);
  const char* const type = "max-score-picker";
  const std::vector<float> scores{1, 3, 2, 3, 0};
  int first_is_1 = 0;
  for (int i = 0; i < 4000; ++i) {
    std::vector<uint32_t> out(3);
    const size_t n = f.With(type, {}, [&](const auto& context, const auto& plugin) {
      return plugin.picker->Pick(context, f.all, scores, out);
    });
    ASSERT_EQ(n, 3u);
    ASSERT_TRUE((out[0] == 1 && out[1] == 3) || (out[0] == 3 && out[1] == 1));
    ASSERT_EQ(out[2], 2u);
    first_is_1 += out[0] == 1 ? 1 : 0;
  }
  EXPECT_NEAR(first_is_1, 2000, 4 * 32);
  std::vector<uint32_t> many(8);
  EXPECT_EQ(f.With(type, {},
                   [&](const auto& context, const auto& plugin) {
                     return plugin.picker->Pick(context, f.all, scores, many);
                   }),
            5u);
}

TEST(RandomPicker, UniformWithoutRepetition) {
  Fixture f(4);
  const char* const type = "random-picker";
  const std::vector<float> scores(4);
  std::map<uint32_t, int> first;
  for (int i = 0; i < 8000; ++i) {
    std::vector<uint32_t> out(6);
    ASSERT_EQ(f.With(type, {},
                     [&](const auto& context, const auto& plugin) {
                       return plugin.picker->Pick(context, f.all, scores, out);
                     }),
              4u);
    out.resize(4);
    ++first[out[0]];
    std::sort(out.begin(), out.end());
    ASSERT_EQ(out, f.all);
  }
  for (const auto& [position, n] : first) EXPECT_NEAR(n, 2000, 4 * 39) << position;
}

}  // namespace
}  // namespace fairway::scheduling
