#include "routing/decision_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "routing/router.h"
#include "tests/support/pools.h"

namespace fairway::routing {
namespace {

using base::kMillisecond;
using base::kSecond;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(DecisionLog, KeepsTheLatestAndShowsThemFirst) {
  DecisionLog log(2);
  EXPECT_EQ(log.Render(kSecond), "{\"decisions\":[]}\n");
  log.Add(kSecond, "\"requestId\":\"1\"");
  log.Add(kSecond + 5 * kMillisecond, "\"requestId\":\"2\"");
  log.Add(kSecond + 7 * kMillisecond, "\"requestId\":\"3\"");
  EXPECT_EQ(log.Render(kSecond + 10 * kMillisecond),
            "{\"decisions\":[\n{\"ageMs\":3,\"requestId\":\"3\"},\n{\"ageMs\":5,\"requestId\":\"2\"}]}\n");
}

// Pieces, so that ten thousand decisions are not a text of 200 MB, and neither are they kept.
TEST(DecisionLog, ComesInPiecesAndHasABoundInBytes) {
  DecisionLog log(1000, 2u << 20);
  const std::string text = "\"a\":\"" + std::string(10'000, 'x') + "\"";
  for (int i = 0; i < 1000; ++i) log.Add(kSecond, "\"n\":" + std::to_string(i) + "," + text);
  const auto pages = log.Pages(kSecond);
  std::string all;
  size_t pieces = 0;
  for (std::string piece = pages(); !piece.empty(); piece = pages()) {
    EXPECT_LT(piece.size(), 80u << 10);
    all += piece;
    ++pieces;
    log.Add(kSecond, "\"n\":\"later\"," + text);  // while it is read
  }
  EXPECT_GT(pieces, 20u);
  EXPECT_LT(all.size(), 2u << 20);
  EXPECT_THAT(all, ::testing::StartsWith("{\"decisions\":[\n{\"ageMs\":0,\"n\":999,"));
  EXPECT_THAT(all, ::testing::EndsWith("}]}\n"));
  EXPECT_THAT(all, Not(HasSubstr("later")));
  EXPECT_THAT(all, Not(HasSubstr("}{")));
  EXPECT_EQ(pages(), "");
}

TEST(DecisionLog, ManyThreadsAddWhileOneReads) {
  DecisionLog log(8);
  std::vector<std::thread> threads;
  threads.reserve(2);
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&log] {
      for (int i = 0; i < 1000; ++i) log.Add(1, "\"a\":1");
    });
  }
  for (int i = 0; i < 100; ++i) EXPECT_THAT(log.Render(1), HasSubstr("decisions"));
  for (auto& thread : threads) thread.join();
}

TEST(DecisionLog, ADecisionSaysWhatWasAskedWhoWasLookedAtAndWhy) {
  tests::TestPool pool(
      {{"A", 10, 0.30f, {"lora-x"}, {}, 2}, {"B", 5, 0.70f, {}, {}, 2}, {"C", 1, 0.9f, {}, {}, 2}});
  pool.manifests().objectives = {tests::Objective("batch", -3)};
  pool.manifests().rewrites = {tests::Rewrite("canary", {"ch\"at"}, {{"lora-x", {}}})};
  pool.fleet().Apply(pool.manifests());
  const base::ManualClock clock(kSecond + 20 * kMillisecond);
  base::Registry registry;
  DecisionLog log(10);
  const Router router(pool.fleet().published(), clock, registry,
                      {.scheduling = {.sheddable_queue_limit = 8}, .decisions = &log});
  const auto worker = router.NewWorker(1);
  payload::RequestScanner scanner(payload::Api::kCompletions);
  scanner.Feed(R"({"model":"ch\"at","prompt":"hi"})");
  scanner.Finish();
  const auto picked = router.Begin(*worker, {.request_id = "r-1", .body = &scanner, .objective = "batch"});
  EXPECT_TRUE(std::holds_alternative<Ticket>(picked));
  EXPECT_EQ(
      log.Render(clock.Now()),
      "{\"decisions\":[\n"
      R"({"ageMs":0,"requestId":"r-1","pool":"default/pool","model":"ch\"at","targetModel":"lora-x",)"
      R"("rewrite":"canary","objective":"batch","priority":-3,"mayBeShed":true,"outcome":"picked",)"
      R"("endpoints":["10.0.0.2:8000"],"signals":"fresh","profile":"time-to-first-token","tookUs":0,"numCandidates":3,"candidates":[)"
      R"({"name":"A","address":"10.0.0.1:8000","own":0,"others":10,"queue":10,"pageQueue":10,"running":0,"kvUsage":0.3,"workMs":980,"prefillMs":0,)"
      R"("adapter":"resident","fresh":true,"scrapeAgeMs":20,"score":0},)"
      R"({"name":"B","address":"10.0.0.2:8000","own":0,"others":5,"queue":5,"pageQueue":5,"running":0,"kvUsage":0.7,"workMs":480,"prefillMs":0,)"
      R"("adapter":"room","fresh":true,"scrapeAgeMs":20,"score":0.997492},)"
      R"({"name":"C","address":"10.0.0.3:8000","own":0,"others":1,"queue":1,"pageQueue":1,"running":0,"kvUsage":0.9,"workMs":80,"prefillMs":0,)"
      R"("adapter":"room","fresh":true,"scrapeAgeMs":20,"score":0}],"steps":[)"
      R"({"name":"capacity-filter","in":3,"out":1,"dropped":[)"
      R"({"address":"10.0.0.1:8000","why":"queue 10 is not below 8"},)"
      R"({"address":"10.0.0.3:8000","why":"KV use 90 % is not below 80 %"}]},)"
      R"({"name":"time-to-first-token-scorer","in":1,"weight":1,"scores":{"10.0.0.2:8000":0.997492}}]})"
      "]}\n");
}

TEST(DecisionLog, RefusalsAreDecisionsTooAndLongTextIsCut) {
  tests::TestPool pool(std::vector<tests::ServerState>(30, {.name = "A", .waiting = 9}),
                       {tests::Model("m", api::Criticality::kSheddable)});
  const base::ManualClock clock(kSecond);
  base::Registry registry;
  DecisionLog log(10);
  const Router router(pool.fleet().published(), clock, registry, {.decisions = &log});
  const auto worker = router.NewWorker(1);
  payload::RequestScanner scanner(payload::Api::kCompletions);
  scanner.Feed(R"({"model":"m","prompt":"hi"})");
  scanner.Finish();
  const std::string id(5000, 'x');
  EXPECT_EQ(std::get<Rejection>(router.Begin(*worker, {.request_id = id, .body = &scanner})).status, 429);
  const SubsetHint nobody;
  EXPECT_EQ(std::get<Rejection>(router.Begin(*worker, {.subset = &nobody})).status, 503);
  const std::string page = log.Render(kSecond);
  EXPECT_THAT(page, HasSubstr(R"("outcome":"no endpoint","endpoints":[])"));
  EXPECT_THAT(page, HasSubstr(R"("outcome":"shed","endpoints":[])"));
  EXPECT_THAT(page, HasSubstr(R"("profile":"criticality-tree")"));
  EXPECT_THAT(page, HasSubstr(R"("numCandidates":30)"));
  EXPECT_THAT(page, HasSubstr("\"" + std::string(200, 'x') + "\""));
  EXPECT_THAT(page, Not(HasSubstr("10.0.0.21:8000"))) << "twenty of a list";
  EXPECT_LT(page.size(), 20'000u);
}

}  // namespace
}  // namespace fairway::routing
