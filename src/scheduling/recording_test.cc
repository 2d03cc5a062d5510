#include "scheduling/recording.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/plugins.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using base::kSecond;

tests::TestPool RandomPool(base::Random& random, bool with_models) {
  std::vector<tests::ServerState> servers;
  const size_t n = 1 + random.Below(20);
  for (size_t i = 0; i < n; ++i) {
    servers.push_back({.name = "e" + std::to_string(i),
                       .waiting = static_cast<uint32_t>(random.Below(60)),
                       .kv_usage = static_cast<float>(random.NextDouble()),
                       .adapters = {"lora-" + std::to_string(random.Below(3))},
                       .max_adapters = 4,
                       .running = static_cast<uint32_t>(random.Below(64))});
  }
  std::vector<api::InferenceModel> models;
  if (with_models) models.push_back(tests::Model("chat", api::Criticality::kCritical));
  return tests::TestPool(std::move(servers), std::move(models));
}

Facts RandomRequest(base::Random& random, const fleet::PoolSnapshot& pool) {
  const bool adapter = random.Below(2) == 0;
  return {.target_model = adapter ? "lora-1" : "base",
          .adapter = adapter ? pool.AdapterId("lora-1") : fleet::kNoAdapter,
          .critical = random.Below(3) != 0,
          .prompt_tokens = static_cast<uint32_t>(random.Below(5000))};
}

// Whatever the fleet, the request and the profile: asked again it is decided the same, with the same random
// numbers, and the explanation says the same as the one that was made meanwhile.
TEST(Recording, DecidesTheSameWhenItIsAskedAgain) {
  constexpr uint64_t kSeed = 11;
  base::Random random(kSeed);
  Scratch scratch, other;
  for (int i = 0; i < 400; ++i) {
    SchedulerOptions options;
    options.profile = kProfiles[random.Below(kProfiles.size())];
    options.lora_exploration = 0.3;
    tests::TestPool pool = RandomPool(random, random.Below(2) == 0);
    const auto snapshot = pool.pool();
    // Some pages are old, at times all.
    const base::Nanos now = kSecond + static_cast<base::Nanos>(random.Below(3)) * 20 * kSecond;
    for (const auto& endpoint : snapshot->endpoints) {
      if (random.Below(2) != 0) continue;
      endpoint.cell->BeginScrape(now);
      endpoint.cell->ApplyScrape({.waiting = static_cast<uint32_t>(random.Below(9))}, now);
    }
    const Scheduler scheduler(options, 0);
    const Facts request = RandomRequest(random, *snapshot);
    Recording recording;
    Explanation live, again;
    const Outcome outcome =
        scheduler.Pick(*snapshot, request, std::nullopt, now, scratch, random, &live, &recording);
    ASSERT_TRUE(recording.has_picture);
    ASSERT_TRUE(SameChoices(recording.outcome, outcome));
    const Outcome repeated = DecideAgain(recording, *recording.config, {.options = options}, other, &again);
    ASSERT_TRUE(SameChoices(repeated, outcome)) << "seed " << kSeed << ", round " << i;
    EXPECT_EQ(repeated.rung, outcome.rung);
    ASSERT_EQ(again.candidates.size(), live.candidates.size());
    for (size_t c = 0; c < live.candidates.size(); ++c) {
      EXPECT_EQ(again.candidates[c].score, live.candidates[c].score);
      EXPECT_EQ(again.candidates[c].work, live.candidates[c].work);
      EXPECT_EQ(again.candidates[c].age, live.candidates[c].age);
      EXPECT_EQ(again.candidates[c].adapter, live.candidates[c].adapter);
    }
    ASSERT_EQ(again.steps.size(), live.steps.size());
    for (size_t s = 0; s < live.steps.size(); ++s) {
      EXPECT_EQ(again.steps[s].name, live.steps[s].name);
      EXPECT_EQ(again.steps[s].scores, live.steps[s].scores);
      EXPECT_EQ(again.steps[s].drops.size(), live.steps[s].drops.size());
    }
  }
}

// Another config's columns are found by name, and what was recorded of producers counts more than what they
// would say now.
TEST(Recording, AnotherConfigDecidesOnTheSamePicture) {
  tests::TestPool pool({{"A", 9, 0.1f}, {"B", 0, 0.9f}, {"C", 5, 0.5f}});
  const auto snapshot = pool.pool();
  const auto by = [](std::string_view scorer) {
    return tests::Compiled(tests::OneProfile({tests::Spec(scorer), tests::Spec("max-score-picker")},
                                             {{std::string(scorer)}, {"max-score-picker"}}));
  };
  const Scheduler scheduler({}, 0, by("queue-scorer"));
  Scratch scratch;
  base::Random random(1);
  Recording recording;
  const Outcome outcome =
      scheduler.Pick(*snapshot, {}, std::nullopt, kSecond, scratch, random, nullptr, &recording);
  EXPECT_EQ(outcome.choices[0], 1u);
  const auto other = by("kv-cache-utilization-scorer");
  const SchedulerOptions options;
  float wait = -1;
  EXPECT_EQ(
      DecideAgain(recording, *other, {.options = options, .pool = snapshot.get(), .wait = &wait}, scratch)
          .choices[0],
      0u);
  EXPECT_GT(wait, recording.Wait()) << "A has nine more in its queue";
}

TEST(Recording, OfTooManyCandidatesThereIsNoPicture) {
  tests::TestPool pool(std::vector<tests::ServerState>(Recording::kMaxCandidates + 1, {.name = "A"}));
  const Scheduler scheduler({}, 0);
  Scratch scratch;
  base::Random random(1);
  Recording recording;
  EXPECT_EQ(
      scheduler.Pick(*pool.pool(), {}, std::nullopt, kSecond, scratch, random, nullptr, &recording).kind,
      OutcomeKind::kPicked);
  EXPECT_FALSE(recording.has_picture);
  EXPECT_EQ(recording.num_candidates, Recording::kMaxCandidates + 1);
  EXPECT_EQ(recording.outcome.kind, OutcomeKind::kPicked);
  const SchedulerOptions options;
  EXPECT_EQ(DecideAgain(recording, *recording.config, {.options = options}, scratch).kind,
            OutcomeKind::kNoCandidates);
}

// ---- What an explanation says beside steps.

struct Asked {
  Outcome outcome;
  Explanation explanation;
};

Asked Ask(tests::TestPool& pool, std::shared_ptr<const Config> config, const Facts& request = {}) {
  const Scheduler scheduler({}, 0, std::move(config));
  Scratch scratch;
  base::Random random(1);
  Asked asked;
  asked.outcome =
      scheduler.Pick(*pool.pool(), request, std::nullopt, kSecond, scratch, random, &asked.explanation);
  return asked;
}

TEST(Explanation, SaysWhoWasNextAndWhatWouldHaveHadToDiffer) {
  // queue: A 1, B 0, C 0.5; KV use: A 0.2, B 0.9, C 0.6.
  tests::TestPool pool({{"A", 0, 0.8f}, {"B", 10, 0.1f}, {"C", 5, 0.4f}});
  const auto asked =
      Ask(pool, tests::Compiled(tests::OneProfile(
                    {tests::Spec("queue-scorer"), tests::Spec("kv-cache-utilization-scorer"),
                     tests::Spec("max-score-picker")},
                    {{"queue-scorer", 2.0}, {"kv-cache-utilization-scorer", 1.0}, {"max-score-picker"}})));
  ASSERT_EQ(asked.explanation.profiles.size(), 1u);
  const Explanation::Ran& ran = asked.explanation.profiles[0];
  EXPECT_EQ(ran.profile, "test");
  EXPECT_EQ(ran.picker, "max-score-picker");
  EXPECT_EQ(ran.choices, (std::vector<uint32_t>{0, 2, 1}));
  ASSERT_TRUE(ran.runner_up);
  EXPECT_EQ(ran.runner_up->endpoint, 2u);
  EXPECT_NEAR(ran.runner_up->margin, 2.2 - 1.6, 1e-5);
  EXPECT_EQ(ran.runner_up->decided_by, "queue-scorer");
  ASSERT_TRUE(ran.runner_up->needed);
  EXPECT_NEAR(*ran.runner_up->score, 0.5, 1e-5);
  EXPECT_NEAR(*ran.runner_up->needed, 0.8, 1e-5) << "0.6 more in all, at a weight of 2";
  EXPECT_EQ(asked.explanation.steps[0].reads, (std::vector<std::string>{"queue"}));
}

TEST(Explanation, OfOneThatAloneWasLeftItSaysWhoWasDroppedLast) {
  tests::TestPool pool({{"A", 60, 0.1f}, {"B", 3, 0.1f}});
  const auto asked =
      Ask(pool, tests::Compiled(tests::OneProfile(
                    {tests::Spec("queue-limit-filter", {{"limit", 50}}), tests::Spec("max-score-picker")},
                    {{"queue-limit-filter"}, {"max-score-picker"}})));
  ASSERT_TRUE(asked.explanation.profiles[0].runner_up);
  const Explanation::RunnerUp& other = *asked.explanation.profiles[0].runner_up;
  EXPECT_EQ(other.endpoint, 0u);
  EXPECT_EQ(other.decided_by, "queue-limit-filter");
  EXPECT_EQ(other.dropped, "queue 60 is not below 50");
}

}  // namespace
}  // namespace fairway::scheduling
