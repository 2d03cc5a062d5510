#include "replay/replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace fairway::replay {
namespace {

Workload Parsed(std::string_view text) {
  std::vector<api::Problem> problems;
  Workload workload = ParseWorkload(text, "w.yaml", "", problems);
  EXPECT_THAT(problems, testing::IsEmpty()) << problems[0].message;
  return workload;
}

FleetSpec Fleet(std::string_view text) {
  std::vector<api::Problem> problems;
  FleetSpec fleet = ParseFleet(text, "--fleet", problems);
  EXPECT_THAT(problems, testing::IsEmpty()) << problems[0].message;
  return fleet;
}

std::vector<Row> Rows(const Workload& workload, const FleetSpec& fleet, const std::string& policy,
                      const Settings& settings = {}, uint64_t seed = 1) {
  const auto found = Policy::Find(policy);
  EXPECT_TRUE(found) << found.error().message;
  std::vector<Row> rows;
  const auto outcome = Replay(workload, fleet, *found, settings, seed).Run({});
  Summarize(workload, policy, outcome.records, outcome.totals, 1, rows);
  return rows;
}

constexpr char kUnique[] = R"(
duration: 40s
classes:
- name: chat
  arrivals: {process: poisson, rate: 20}
  prompt: {uniform: [300, 2700]}
  answer: {uniform: [13, 115]}
)";

// Everything that can happen to a request: turns, retries, time-outs, a death, adapters, shedding.
constexpr char kEverything[] = R"(
duration: 30s
classes:
- name: chat
  arrivals: {process: poisson, rate: 4}
  system-prompt: {count: 3, tokens: 500, popularity: zipf}
  turns: {uniform: [1, 4]}
  think: {exponential: 1}
  prompt: {lognormal: {mean: 300, stddev: 200}}
  answer: {uniform: [1, 60]}
  retries: {max: 2, backoff: 200ms}
- name: tuned
  arrivals: {process: ramp, from: 1, to: 6}
  adapters: {count: 5, popularity: zipf}
  timeout: 2s
- name: batch
  model: batch
  arrivals: {process: bursts, size: 30, every: 3s, over: 100ms}
  criticality: Sheddable
  priority: -1
  prompt: {values: [100, 3000, 40000], weights: [8, 2, 0.1]}
fleet:
  engines: [{count: 3, max-loras: 2, jitter: 0.1, tokenizer-rate: 100000}, {name: pair, ranks: 2, max-loras: 2}]
  unready-after: 2s
  events:
  - {at: 5s, engine: engine-2, fail: true}
  - {at: 12s, engine: engine-2, join: true}
  - {at: 8s, engine: engine-1, slowdown: 3}
  - {at: 10s, engine: engine-3, join: true}
)";

TEST(Replay, TheSameSeedGivesTheSameBytes) {
  const Workload workload = Parsed(kEverything);
  for (const char* policy : {"fairway", "fairway-tree", "power-of-two", "oracle"}) {
    const Settings settings{.pickers = 3};
    const std::string once = Json("w", "", Rows(workload, *workload.fleet, policy, settings));
    EXPECT_EQ(once, Json("w", "", Rows(workload, *workload.fleet, policy, settings)));
    EXPECT_NE(once, Json("w", "", Rows(workload, *workload.fleet, policy, settings, 2)));
  }
}

TEST(Replay, EveryRequestEndsExactlyOnce) {
  const Workload workload = Parsed(kEverything);
  for (const char* policy :
       {"fairway", "fairway-tree", "round-robin", "random", "least-requests", "oracle"}) {
    for (const bool unseen : {false, true}) {
      const auto outcome =
          Replay(workload, *workload.fleet, *Policy::Find(policy), {.pickers = 2, .unseen_ends = unseen}, 1)
              .Run({});
      // A moment of one class has one request, but for bursts.
      std::map<std::pair<base::Nanos, int>, int> seen;
      std::map<End, int> ends;
      for (const Record& record : outcome.records) {
        ++ends[record.end];
        if (record.traffic != 2) {
          EXPECT_EQ(++seen[std::pair(record.due, int{record.traffic})], 1);
        }
        if (record.end != End::kAnswered) continue;
        EXPECT_GT(record.first_token, 0);
        EXPECT_GE(record.total, record.first_token);
      }
      EXPECT_EQ(ends[End::kUnfinished], 0) << policy;
      EXPECT_GT(ends[End::kAnswered], 300) << policy;
      EXPECT_GT(ends[End::kFailed] + ends[End::kTimedOut], 0) << policy;  // prompts of 40,000 fit nowhere
    }
  }
}

TEST(Replay, AllPoliciesGetTheSameRequests) {
  const Workload workload = Parsed(kUnique);
  std::map<std::string, double> tokens;
  for (const char* policy : {"fairway", "round-robin", "oracle"}) {
    const auto outcome = Replay(workload, Fleet("8"), *Policy::Find(policy), {}, 1).Run({});
    for (const Record& record : outcome.records)
      tokens[policy] += record.prompt_tokens + 1e6 * record.answer_tokens;
  }
  EXPECT_EQ(tokens["fairway"], tokens["oracle"]);
  EXPECT_EQ(tokens["fairway"], tokens["round-robin"]);
}

TEST(Replay, NobodyIsFarAheadOfTheOracleAndRandomIsBehindMost) {
  const Workload workload = Parsed(kUnique);
  for (const char* fleet : {"8", "6;2,name=old,prefill-rate=4000,decode-ms=24"}) {
    std::map<std::string, double> mean;
    for (const char* policy :
         {"oracle", "fairway", "round-robin", "least-requests", "power-of-two", "random"})
      mean[policy] = Rows(workload, Fleet(fleet), policy)[0].first_token.mean;
    // It gives each request the earliest first token, which is not quite the same as the best mean of all.
    for (const auto& [policy, value] : mean)
      EXPECT_GE(value, 0.95 * mean["oracle"]) << policy << " on " << fleet;
    EXPECT_GT(mean["random"], mean["power-of-two"]) << fleet;
  }
}

TEST(Replay, AParameterOfTheSchedulerChangesItsDecisions) {
  const Workload workload = Parsed(kUnique);
  const double as_is = Rows(workload, Fleet("8"), "fairway")[0].first_token.mean;
  EXPECT_NE(as_is, Rows(workload, Fleet("8"), "fairway,request-cost=500")[0].first_token.mean);
}

TEST(Policy, SaysWhatIsWrong) {
  EXPECT_THAT(Policy::Find("fairwy").error().message, testing::HasSubstr("did you mean \"fairway\"?"));
  EXPECT_THAT(Policy::Find("fairway,tolerence=1").error().message,
              testing::HasSubstr("did you mean \"tolerance\"?"));
  EXPECT_THAT(Policy::Find("fairway,tolerance=x").error().message, testing::HasSubstr("want a number"));
  EXPECT_THAT(Policy::Find("random,tolerance=1").error().message, testing::HasSubstr("no parameters"));
}

TEST(Summary, IsByNearestRank) {
  std::vector<float> values;
  for (int i = 100; i > 0; --i) values.push_back(static_cast<float>(i));
  const Summary summary = Summary::Of(values);
  EXPECT_DOUBLE_EQ(summary.mean, 50.5);
  EXPECT_EQ(summary.p50, 50);
  EXPECT_EQ(summary.p90, 90);
  EXPECT_EQ(summary.p99, 99);
}

}  // namespace
}  // namespace fairway::replay
