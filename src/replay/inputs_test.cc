// What users write: workloads, fleets, traces, and what is said of mistakes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "replay/fields.h"
#include "replay/trace.h"
#include "replay/traffic.h"
#include "replay/workload.h"

namespace fairway::replay {
namespace {

using testing::HasSubstr;

std::string WorkloadProblems(std::string_view text) {
  std::vector<api::Problem> problems;
  ParseWorkload(text, "w.yaml", "", problems);
  return ToText(problems);
}

std::string TraceProblems(std::string_view text) {
  std::vector<api::Problem> problems;
  EXPECT_EQ(ParseTrace(text, "t.jsonl", problems), nullptr);
  return ToText(problems);
}

std::string FleetProblems(std::string_view text) {
  std::vector<api::Problem> problems;
  ParseFleet(text, "--fleet", problems);
  return ToText(problems);
}

TEST(WorkloadFile, NamesLineAndFieldOfEachMistake) {
  const std::string text = WorkloadProblems(R"(duration: soon
classes:
- name: a
  arrivals: {process: posson, rate: 1}
  prompt: {uniform: [5]}
  anser: 3
- name: b
  arrivals: {process: poisson, rate: -1}
  system-prompt: {count: 2}
)");
  EXPECT_THAT(text, HasSubstr("w.yaml:1: duration"));
  EXPECT_THAT(text, HasSubstr("w.yaml:4: classes[0].arrivals.process"));
  EXPECT_THAT(text, HasSubstr("poisson"));
  EXPECT_THAT(text, HasSubstr("w.yaml:5: classes[0].prompt.uniform"));
  EXPECT_THAT(text, HasSubstr("w.yaml:6: classes[0].anser"));
  EXPECT_THAT(text, HasSubstr("w.yaml:8: classes[1].arrivals.rate"));
  EXPECT_THAT(text, HasSubstr("classes[1].system-prompt.tokens"));
}

TEST(WorkloadFile, AWarmUpIsShorterThanTheRun) {
  EXPECT_THAT(WorkloadProblems("duration: 10s\nwarmup: 10s\n"),
              HasSubstr("w.yaml:2: warmup: want less than the duration"));
}

TEST(WorkloadFile, SaysWhichOfATracesRequestsFitNowhere) {
  std::vector<api::Problem> problems;
  Workload workload;
  workload.classes.emplace_back();
  workload.classes[0].arrivals.trace = ParseTrace(
      "{\"timestamp\": 0, \"input_length\": 900, \"output_length\": 100}\n"
      "{\"timestamp\": 1, \"input_length\": 901, \"output_length\": 100}\n",
      "t.jsonl", problems);
  CheckFit(workload, ParseFleet("2,max-model-len=1001", "--fleet", problems), "t.jsonl", problems);
  EXPECT_EQ(ToText(problems), "");
  CheckFit(workload, ParseFleet("1,max-model-len=500;1,max-model-len=1000", "--fleet", problems), "t.jsonl",
           problems);
  EXPECT_THAT(ToText(problems), HasSubstr("t.jsonl"));
  EXPECT_THAT(ToText(problems),
              HasSubstr("1 of 2 requests will fail: they have up to 1001 tokens, and servers take "
                        "1000; raise max-model-len"));
  EXPECT_FALSE(api::HasErrors(problems));
}

TEST(WorkloadFile, RefusesWhatIsNone) {
  EXPECT_THAT(WorkloadProblems("- 1\n"), HasSubstr("w.yaml:1"));
  EXPECT_THAT(WorkloadProblems(""), HasSubstr("want one document"));
  EXPECT_THAT(WorkloadProblems("classes: ["), HasSubstr("w.yaml:"));
  EXPECT_THAT(WorkloadProblems("classes: []\n"), HasSubstr("classes"));
  EXPECT_THAT(WorkloadProblems("classes: [{name: a, arrivals: {process: trace, file: not-there.jsonl}}]\n"),
              HasSubstr("not-there.jsonl"));
}

TEST(FleetFile, NamesMistakes) {
  EXPECT_THAT(FleetProblems("8,prefil-rate=1"), HasSubstr("prefill-rate"));
  EXPECT_THAT(FleetProblems("0"), HasSubstr("engines[0].count"));
  EXPECT_THAT(FleetProblems("2,num-blocks=4"), HasSubstr("max_model_len"));
  EXPECT_THAT(FleetProblems("{}"), HasSubstr("want COUNT"));
  EXPECT_THAT(FleetProblems("2,=4"), HasSubstr("want COUNT"));
  EXPECT_THAT(FleetProblems("70000"), HasSubstr("65000"));
  EXPECT_THAT(WorkloadProblems(R"(classes: [{name: a, arrivals: {process: poisson, rate: 1}}]
fleet:
  engines: [{count: 2}]
  events:
  - {at: 1s, engine: engine-3, fail: true}
  - {at: 1s, engine: engine-1}
)"),
              testing::AllOf(HasSubstr("w.yaml:5: fleet.events[0].engine"), HasSubstr("did you mean"),
                             HasSubstr("w.yaml:6: fleet.events[1]")));
}

TEST(FleetFile, GroupsOfOneNameCountOn) {
  std::vector<api::Problem> problems;
  const FleetSpec fleet = ParseFleet("2;1,name=old,decode-ms=24,ranks=2;1", "--fleet", problems);
  ASSERT_THAT(problems, testing::IsEmpty());
  ASSERT_EQ(fleet.servers.size(), 4u);
  EXPECT_EQ(fleet.servers[1].name, "engine-2");
  EXPECT_EQ(fleet.servers[2].name, "old-1");
  EXPECT_EQ(fleet.servers[2].ranks, 2u);
  EXPECT_EQ(fleet.servers[2].engine.decode_base, 24 * base::kMillisecond);
  EXPECT_EQ(fleet.servers[3].name, "engine-3");
}

TEST(TraceFile, ReadsMooncake) {
  std::vector<api::Problem> problems;
  const auto trace =
      ParseTrace(R"({"timestamp": 3000, "input_length": 700, "output_length": 0, "hash_ids": [7, 9]}
{"timestamp": 1000, "input_length": 512, "output_length": 5, "hash_ids": [7]}
)",
                 "t.jsonl", problems);
  ASSERT_THAT(problems, testing::IsEmpty());
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_EQ(trace->requests[0].at, 0);  // in order of time, from the first
  EXPECT_EQ(trace->requests[1].at, 2 * base::kSecond);
  EXPECT_EQ(trace->requests[1].answer_tokens, 1u);
  EXPECT_EQ(trace->blocks[trace->requests[1].first_block + 1], 9u);
  EXPECT_TRUE(IsTrace("\n{\"timestamp\": 1, \"input_length\": 2}"));
  EXPECT_FALSE(IsTrace("classes: []"));
  EXPECT_FALSE(IsTrace("{\"classes\": []}"));
}

TEST(TraceFile, ReadsAzure) {
  std::vector<api::Problem> problems;
  const std::string text =
      "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 23:59:59.9500000,4808,10\r\n2023-11-17 "
      "00:00:00.05,1,2";
  ASSERT_TRUE(IsTrace(text));
  const auto trace = ParseTrace(text, "t.csv", problems);
  ASSERT_THAT(problems, testing::IsEmpty());
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_EQ(trace->requests[1].at, 100 * base::kMillisecond);
  EXPECT_EQ(trace->requests[0].prompt_tokens, 4808u);
  EXPECT_EQ(trace->requests[1].answer_tokens, 2u);
}

TEST(TraceFile, TimesHaveZonesAndTablesAByteOrderMark) {
  std::vector<api::Problem> problems;
  const auto head = "\xef\xbb\xbfTIMESTAMP,ContextTokens,GeneratedTokens\n";
  const std::string text = std::string(head) +
                           "2023-11-16 18:00:00.5+00:00,1,1\n2023-11-16 20:00:01+02:00,1,1\n"
                           "2023-11-16 16:30:02.5-01:30,1,1\n2023-11-16T18:00:03.500Z,1,1\n";
  ASSERT_TRUE(IsTrace(text));
  const auto trace = ParseTrace(text, "t.csv", problems);
  ASSERT_THAT(problems, testing::IsEmpty());
  std::vector<base::Nanos> at;
  for (const TraceRequest& request : trace->requests) at.push_back(request.at / base::kMillisecond);
  EXPECT_THAT(at, testing::ElementsAre(0, 500, 2000, 3000));
  const std::string mooncake =
      "\xef\xbb\xbf{\"timestamp\": 0, \"input_length\": 100, \"output_length\": 5}\n";
  ASSERT_TRUE(IsTrace(mooncake));
  EXPECT_EQ(ParseTrace(mooncake, "t.jsonl", problems)->requests.size(), 1u);
  EXPECT_THAT(problems, testing::IsEmpty());
  for (const char* wrong :
       {"2023-11-16 18:00:00garbage", "2023-11-16 18:00:00+25:00", "2023-11-16 18:00:00+0200"}) {
    ParseTrace(std::string(head) + wrong + ",1,1\n", "t.csv", problems);
    EXPECT_EQ(problems.size(), 1u) << wrong;
    problems.clear();
  }
}

TEST(TraceFile, NamesTheLineOfEachMistake) {
  EXPECT_THAT(TraceProblems(""), HasSubstr("t.jsonl:1: no request"));
  EXPECT_THAT(TraceProblems(R"({"timestamp": 1, "input_length": 5, "output_length": 5}
{"timestamp": -1, "input_length": 5, "output_length": 5}
{"timestamp": 1, "input_length": 0, "output_length": 5}
{"timestamp": 1, "input_length": 5, "output_length": 5, "hash_ids": [1, 2]}
{"timestamp": 1, "input_length": 5, "output_length": 1e99}
{"timestamp": 1,
)"),
              testing::AllOf(HasSubstr("t.jsonl:2: timestamp"), HasSubstr("t.jsonl:3: input_length"),
                             HasSubstr("t.jsonl:4: hash_ids"), HasSubstr("t.jsonl:5: output_length"),
                             HasSubstr("t.jsonl:6:")));
  EXPECT_THAT(TraceProblems("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-13-16 18:17:03.9,1,1\n"
                            "2023-11-16 18:17:03.9,1\n2023-11-16 18:17:03.9,-1,1\n"),
              testing::AllOf(HasSubstr("t.jsonl:2: TIMESTAMP"), HasSubstr("t.jsonl:3: want three fields"),
                             HasSubstr("t.jsonl:4: ContextTokens")));
  std::string many;
  for (int i = 0; i < 1000; ++i) many += "x\n";
  EXPECT_LT(TraceProblems(many).size(), 4000u);
}

TEST(Distribution, HasTheMomentsThatItNames) {
  std::vector<api::Problem> problems;
  const Workload workload = ParseWorkload(R"(classes:
- {name: a, arrivals: {process: poisson, rate: 1}, prompt: {lognormal: {mean: 800, stddev: 600}}, answer: {values: [10, 100], weights: [3, 1]}}
)",
                                          "w.yaml", "", problems);
  ASSERT_THAT(problems, testing::IsEmpty());
  base::Random random(1);
  double sum = 0, squares = 0, tens = 0;
  constexpr int kDraws = 200'000;
  for (int i = 0; i < kDraws; ++i) {
    const double value = workload.classes[0].prompt_tokens.Sample(random);
    sum += value;
    squares += value * value;
    tens += workload.classes[0].answer_tokens.SampleCount(random) == 10 ? 1 : 0;
  }
  const double mean = sum / kDraws;
  EXPECT_NEAR(mean, 800, 10);
  EXPECT_NEAR(std::sqrt(squares / kDraws - mean * mean), 600, 30);
  EXPECT_NEAR(tens / kDraws, 0.75, 0.01);
}

TEST(Traffic, ATurnQuotesAllBeforeIt) {
  std::vector<api::Problem> problems;
  const Workload workload = ParseWorkload(R"(classes:
- {name: a, arrivals: {process: constant, rate: 1}, system-prompt: {tokens: 100}, turns: 3, think: 2, prompt: 50, answer: 30}
)",
                                          "w.yaml", "", problems);
  ASSERT_THAT(problems, testing::IsEmpty());
  Traffic traffic(workload, 1);
  const Request first = traffic.Take();
  EXPECT_EQ(first.prompt_tokens, 150u);
  const auto second = traffic.After(first, 10 * base::kSecond);
  ASSERT_TRUE(second);
  EXPECT_EQ(second->due, 12 * base::kSecond);
  EXPECT_EQ(second->prompt_tokens, 230u);
  EXPECT_EQ(second->segments[1].content, first.segments[1].content);
  const auto third = traffic.After(*second, 20 * base::kSecond);
  ASSERT_TRUE(third);
  EXPECT_EQ(third->prompt_tokens, 310u);
  EXPECT_FALSE(traffic.After(*third, 30 * base::kSecond));
  EXPECT_EQ(traffic.Take().segments[0].content, first.segments[0].content);  // the one system prompt
}

}  // namespace
}  // namespace fairway::replay
