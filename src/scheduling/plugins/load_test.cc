// Scorers, filters, detectors and admitters of load and of prefix caches, by their formulas.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "scheduling/plugin.h"
#include "tests/support/plugins.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using Fixture = tests::Candidates;
using List = std::vector<uint32_t>;
using tests::ProblemsOf;

void ExpectScores(const std::vector<float>& scores, const std::vector<double>& wanted) {
  ASSERT_EQ(scores.size(), wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(scores[i], wanted[i], 1e-6) << i;
}

TEST(LoadAwareScorer, IsAtMostAHalf) {
  Fixture f(5);
  f["queue"] = {0, 32, 64, 128, 200};
  ExpectScores(f.Scores("load-aware-scorer"), {0.5, 0.375, 0.25, 0, 0});
  ExpectScores(f.Scores("load-aware-scorer", {{"threshold", 64}}), {0.5, 0.25, 0, 0, 0});
  EXPECT_TRUE(f.warnings.empty());
  ExpectScores(f.Scores("load-aware-scorer", {{"threshold", 0}}), {0.5, 0.375, 0.25, 0, 0});
  EXPECT_EQ(f.warnings.size(), 1u);
}

TEST(TokenLoadScorer, CountsWhatIsUnderWayAndTheRequestsOwn) {
  Fixture f(4);
  f["tokens"] = {0, 2'097'152, 4'194'304, 5'000'000};
  ExpectScores(f.Scores("token-load-scorer"), {1, 0.5, 0, 0});
  f["tokens"] = {0, 0, 0, 500};
  f["cached-tokens"] = {1000, 500, 0, 2000};
  f.request.prompt_tokens = 1000;
  ExpectScores(f.Scores("token-load-scorer", {{"queueThresholdTokens", 2000}}), {1, 0.75, 0.5, 0.75});
}

TEST(ActiveRequestScorer, IdleOnesAreBestAndBusyOnesCapped) {
  Fixture f(4);
  f["requests"] = {0, 1, 4, 2};
  ExpectScores(f.Scores("active-request-scorer", {{"idleThreshold", 1}, {"maxBusyScore", 0.5}}),
               {1, 1, 0, 0.25});
  EXPECT_TRUE(f.warnings.empty());
  ExpectScores(f.Scores("active-request-scorer", "{maxBusyScore: 2, idleThreshold: -1, requestTimeout: 1m}"),
               {1, 0.75, 0, 0.5});
  EXPECT_EQ(f.warnings.size(), 3u);
}

TEST(PrefixCacheScorer, MixesShareAndLength) {
  Fixture f(3);
  ExpectScores(f.Scores("prefix-cache-scorer"), {0, 0, 0});
  f["prefix-match"] = {0, 0.5f, 1};
  f["cached-tokens"] = {0, 4096, 20'000};
  ExpectScores(f.Scores("prefix-cache-scorer"), {0, 0.5, 1});
  ExpectScores(f.Scores("prefix-cache-scorer", {{"matchLengthWeight", 0.5}}), {0, 0.25 + 0.125, 1});
  ExpectScores(
      f.Scores("prefix-cache-scorer", {{"matchLengthWeight", 1}, {"matchLengthScaleTokens", 40'960}}),
      {0, 0.01, 0.2384185791});  // (20000 / 40960)^2
  EXPECT_EQ(ProblemsOf({.plugins = {tests::Spec("prefix-cache-scorer", {{"matchLengthWeight", 0.1},
                                                                        {"matchLengthScaleTokens", 0}})}}),
            (std::vector<std::string>{"test.yaml: plugin prefix-cache-scorer: "
                                      "parameters.matchLengthScaleTokens: must be above 0 where "
                                      "matchLengthWeight is"}));
}

TEST(PrefixCacheAffinityFilter, StaysUntilItWaitsTooLong) {
  const char* const type = "prefix-cache-affinity-filter";
  Fixture f(3);
  const List all{0, 1, 2};
  EXPECT_EQ(f.Keep(type), all) << "nobody knows anything";
  f["prefix-match"] = {0.8f, 0.79f, 0};
  EXPECT_EQ(f.Keep(type), (List{0}));
  EXPECT_EQ(f.Keep(type, {{"affinityThreshold", 0.5}}), (List{0, 1}));
  EXPECT_EQ(f.Keep(type, {{"affinityThreshold", 0}}), all);
  EXPECT_EQ(f.Keep(type, {{"explorationProbability", 1}}), all);
  f["tokens"] = {286'000, 50'000, 0};  // 17,956 ms later than the other's
  EXPECT_EQ(f.Keep(type), (List{0}));
  f["tokens"][0] = 287'000;  // 18,019 ms
  EXPECT_EQ(f.Keep(type), all);
  EXPECT_EQ(f.Keep(type, {{"maxTTFTPenaltyMs", 0}}), (List{0}));
  EXPECT_EQ(f.Keep(type, {{"peakPrefillThroughput", 20'000}}), (List{0}));
}

TEST(UtilizationFilter, KeepsWhoIsBelowEachLimit) {
  const char* const type = "utilization-filter";
  Fixture f(4);
  f["requests"] = {10, 11, 0, 0};
  f["kv-usage"] = {0.5f, 0, 0.6f, 0};
  f["page-queue"] = {0, 0, 0, 3};
  const char* const both =
      "{conditions: [{metric: active-requests, maxValue: 10}, {metric: kv-cache-utilization, maxValue: "
      "0.5}]}";
  EXPECT_EQ(f.Keep(type, both), (List{0, 3}));
  EXPECT_EQ(f.Keep(type, "{conditions: [{metric: waiting-queue, maxValue: 2}]}"), (List{0, 1, 2}));
  f["running"] = {9, 9, 9, 9};
  EXPECT_EQ(f.Keep(type, "{conditions: [{metric: running-requests, maxValue: 8}]}"), List{});
  EXPECT_EQ(f.Keep(type, "{conditions: [{metric: running-requests, maxValue: 8}], fallbackOnEmpty: true}"),
            f.all);
  const CompileOptions alpha{.more_types = {}, .states = nullptr, .allow_experimental = true};
  EXPECT_EQ(
      ProblemsOf({.plugins = {tests::Spec(type)}}, alpha),
      (std::vector<std::string>{"test.yaml:1: plugin utilization-filter: parameters.conditions: want at "
                                "least one"}));
  EXPECT_EQ(
      ProblemsOf({.plugins = {tests::Parsed(type, type,
                                            "{conditions: [{metric: kv-cache-utilization, maxValue: 2}]}")}},
                 alpha),
      (std::vector<std::string>{"test.yaml:1: plugin utilization-filter: parameters.conditions[0].maxValue: "
                                "want a number from 0 to 1, got \"2\""}));
}

float SaturationOf(Fixture& f, const tests::NumberList& parameters, const char* type) {
  return f.With(type, parameters, [](const auto& context, const auto& plugin) {
    return plugin.saturation->Saturation(context);
  });
}

TEST(UtilizationDetector, IsTheMeanOfTheFullestMeasure) {
  const char* const type = "utilization-detector";
  Fixture f(2);
  f["page-queue"] = {5, 0};
  f["kv-usage"] = {0.4f, 0.4f};
  EXPECT_FLOAT_EQ(SaturationOf(f, {}, type), 0.75f);  // (1 + 0.5) / 2
  EXPECT_FLOAT_EQ(SaturationOf(f, {{"queueDepthThreshold", 20}, {"kvCacheUtilThreshold", 0.4}}, type), 1);
  EXPECT_EQ(f.Keep(type), (List{1}));
  EXPECT_EQ(f.Keep(type, {{"headroom", 0.2}}), (List{0, 1}));
  f["page-queue"] = {5, 9};
  EXPECT_EQ(f.Keep(type), (List{0, 1})) << "nobody is below";
  EXPECT_TRUE(f.warnings.empty());
  f.Keep(type, "{headroom: 20, metricsStalenessThreshold: 200ms}");
  EXPECT_EQ(f.warnings.size(), 2u);
}

TEST(ConcurrencyDetector, CountsRequestsTokensOrTheWorse) {
  const char* const type = "concurrency-detector";
  Fixture f(2);
  f["requests"] = {50, 100};
  f["tokens"] = {1'000'000, 0};
  const auto saturation = [&](const char* parameters) {
    return f.With(tests::Parsed(type, type, parameters), [](const auto& context, const auto& plugin) {
      return plugin.saturation->Saturation(context);
    });
  };
  EXPECT_FLOAT_EQ(saturation("{}"), 0.75f);
  EXPECT_FLOAT_EQ(saturation("concurrencyMode: tokens"), 0.5f);
  EXPECT_FLOAT_EQ(saturation("concurrencyMode: hybrid"), 1);
  EXPECT_EQ(f.Keep(type), (List{0}));
  EXPECT_EQ(f.Keep(type, "{concurrencyMode: tokens}"), (List{1}));
  EXPECT_EQ(f.Keep(type, "{concurrencyMode: hybrid}"), List{});
  f["requests"] = {10, 11};
  EXPECT_EQ(f.Keep(type, {{"maxConcurrency", 10}, {"headroom", 0.15}}), (List{0})) << "11.5 is 11";
}

TEST(MaxSaturationDetector, IsTheGreatest) {
  Fixture f(1);
  f["requests"] = {30};
  f["page-queue"] = {4};
  f.others = {tests::Spec("utilization-detector"), tests::Spec("concurrency-detector")};
  const auto most =
      f.With(tests::Parsed("max-saturation-detector", "most",
                           "detectors: [utilization-detector, concurrency-detector]"),
             [](const auto& context, const auto& plugin) { return plugin.saturation->Saturation(context); });
  EXPECT_FLOAT_EQ(most, 0.8f);
  EXPECT_EQ(ProblemsOf({.plugins = {tests::Spec("queue-scorer"),
                                    tests::Parsed("max-saturation-detector", "most",
                                                  "detectors: [queue-scorer, queue-scorer]")}})
                .size(),
            3u)
      << "no detector, twice; and one name twice";
}

TEST(ProbabilisticAdmitter, RefusesByPowerOfSaturation) {
  Fixture f(2);
  const auto refused = [&](std::vector<float> queue) {
    f["page-queue"] = std::move(queue);
    return f.With("probabilistic-admitter", {}, [](const auto& context, const auto& plugin) {
      int n = 0;
      for (int i = 0; i < 10'000; ++i) n += plugin.admitter->Admit(context) ? 0 : 1;
      return n;
    });
  };
  f.request.critical = false;
  EXPECT_EQ(refused({5, 5}), 10'000);
  EXPECT_EQ(refused({0, 0}), 0);
  EXPECT_NEAR(refused({0, 2}), 960, 4 * 30);  // 300 * 0.2^5
  f.request.critical = true;
  EXPECT_EQ(refused({5, 5}), 0);
}

TEST(ProbabilisticAdmitter, TheSchedulerTellsWhoRefused) {
  tests::TestPool pool({{.name = "a", .waiting = 9}, {.name = "b", .waiting = 9}});
  const auto spec = tests::OneProfile({tests::Spec("probabilistic-admitter"), tests::Spec("random-picker")},
                                      {{"random-picker"}});
  const Scheduler scheduler({}, 0, tests::Compiled(spec));
  Scratch scratch;
  base::Random random(1);
  Explanation why;
  Facts request{.critical = false};
  const Outcome refused =
      scheduler.Pick(*pool.pool(), request, std::nullopt, base::kSecond, scratch, random, &why);
  EXPECT_EQ(refused.kind, OutcomeKind::kShed);
  EXPECT_EQ(refused.refused_by, "probabilistic-admitter");
  EXPECT_EQ(why.verdict, "refused by probabilistic-admitter: saturation 1.8, refused with probability 1");
  request.critical = true;
  EXPECT_EQ(scheduler.Pick(*pool.pool(), request, std::nullopt, base::kSecond, scratch, random).kind,
            OutcomeKind::kPicked);
}

TEST(MaxSaturationDetector, ShedsWhatItsDetectorsCount) {
  tests::TestPool pool({{"a"}});
  ConfigSpec spec = tests::OneProfile(
      {tests::Spec("concurrency-detector", {{"maxConcurrency", 1}}),
       tests::Parsed("max-saturation-detector", "most", "detectors: [concurrency-detector]"),
       tests::Spec("random-picker")},
      {{"random-picker"}});
  spec.profiles[0].saturation = "most";
  const Scheduler scheduler({}, 0, tests::Compiled(spec));
  Scratch scratch;
  base::Random random(1);
  const Facts sheddable{.critical = false};
  const auto pick = [&] {
    return scheduler.Pick(*pool.pool(), sheddable, std::nullopt, base::kSecond, scratch, random);
  };
  const Outcome first = pick();
  EXPECT_EQ(first.kind, OutcomeKind::kPicked);
  EXPECT_EQ(pick().kind, OutcomeKind::kShed) << "one is open";
}

}  // namespace
}  // namespace fairway::scheduling
