#include "routing/decision_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "routing/router.h"
#include "tests/support/config_text.h"
#include "tests/support/plugins.h"
#include "tests/support/pools.h"
#include "tests/support/router_scene.h"

namespace fairway::routing {
namespace {

using base::kMillisecond;
using base::kSecond;
using ::testing::HasSubstr;
using ::testing::Not;

std::shared_ptr<Decision> Made(std::string id, base::Nanos at = kSecond) {
  static const auto names = std::make_shared<const EndpointNames>();
  auto decision = std::make_shared<Decision>();
  decision->request_id = std::move(id);
  decision->at = at;
  decision->names = names;
  return decision;
}

TEST(DecisionLog, KeepsTheLatestAndShowsThemFirst) {
  DecisionLog log(2);
  EXPECT_EQ(log.Render(kSecond), "{\"decisions\":[]}\n");
  EXPECT_EQ(log.Add(Made("1")), nullptr);
  EXPECT_EQ(log.Add(Made("2", kSecond + 5 * kMillisecond)), nullptr);
  const auto spare = log.Add(Made("3", kSecond + 7 * kMillisecond));
  ASSERT_NE(spare, nullptr) << "its memory is the next one's";
  EXPECT_EQ(spare->request_id, "1");
  EXPECT_THAT(log.Render(kSecond + 10 * kMillisecond),
              ::testing::MatchesRegex("\\{\"decisions\":\\[\n\\{\"ageMs\":3,\"requestId\":\"3\",.*\\},\n"
                                      "\\{\"ageMs\":5,\"requestId\":\"2\",.*\\}\\]\\}\n"));
}

TEST(DecisionLog, FindsThoseOfARequest) {
  DecisionLog log(500);
  for (int i = 0; i < 300; ++i) log.Add(Made("r-" + std::to_string(i % 100)));
  const std::string found = log.Render(kSecond, "r-7");
  EXPECT_EQ(found.find("\"requestId\":\"r-7\""), found.find("\"requestId\""));
  EXPECT_THAT(found, Not(HasSubstr("r-70")));
  EXPECT_FALSE(log.Pages(kSecond, "r-100"));
  EXPECT_TRUE(log.Pages(kSecond, ""));
}

// Pieces, so that ten thousand decisions are not a text of 200 MB, and neither are they kept.
TEST(DecisionLog, ComesInPiecesAndHasABoundInBytes) {
  DecisionLog log(1000, 2u << 20);
  const auto add = [&log](std::string id) {
    auto decision = Made(std::move(id));
    decision->model = std::string(10'000, 'x');
    decision->pool = std::string(10'000, 'x');
    log.Add(std::move(decision));
  };
  for (int i = 0; i < 1000; ++i) add(std::to_string(i));
  const auto pages = log.Pages(kSecond);
  std::string all;
  size_t pieces = 0;
  size_t count = 0;
  for (std::string piece = pages(); !piece.empty(); piece = pages()) {
    EXPECT_LT(piece.size(), 80u << 10);
    all += piece;
    ++pieces;
    if (pieces == 1) add("later");  // while it is read
  }
  for (size_t at = all.find("requestId"); at != std::string::npos; at = all.find("requestId", at + 1))
    ++count;
  EXPECT_LE(count, (2u << 20) / 20'000);
  EXPECT_GT(count, 80u);
  EXPECT_GT(pieces, 5u);
  EXPECT_THAT(all, ::testing::StartsWith("{\"decisions\":[\n{\"ageMs\":0,\"requestId\":\"999\","));
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
      std::shared_ptr<Decision> decision;
      for (int i = 0; i < 1000; ++i) {
        if (decision == nullptr) decision = Made("");
        decision->request_id = std::to_string(i);
        decision = log.Add(std::move(decision));
      }
    });
  }
  for (int i = 0; i < 100; ++i) EXPECT_THAT(log.Render(1), HasSubstr("decisions"));
  for (auto& thread : threads) thread.join();
}

TEST(DecisionLog, AttributesOfPagesAreShownAndWhatIsMissingIsNoNumber) {
  tests::TestPool pool({{"A", 1}, {"B", 2}});
  pool.pool()->endpoints[0].cell->SetAttribute(fleet::PageAttributes::KeyOf("Heat"), 71.5f);
  const auto config = tests::Compiled(
      tests::OneProfile(
          {tests::Parsed(
               "core-metrics-extractor", "pages",
               "{engineConfigs: [{name: vllm, customMetrics: [{attributeKey: Heat, metricSpec: h}]}]}"),
           tests::Parsed("endpoint-attribute-scorer", "cool",
                         "{attributeKey: Heat, producer: pages, algorithm: {type: linear_lower_is_better}}"),
           tests::Spec("max-score-picker")},
          {{"cool"}, {"max-score-picker"}}),
      {.more_types = {}, .states = nullptr, .allow_experimental = true});
  const base::ManualClock clock(kSecond + 20 * kMillisecond);
  base::Registry registry;
  std::string text;
  const Router router(pool.fleet().published(), clock, registry,
                      {.config = config, .explain = [&text](std::string_view said) { text += said; }});
  const auto worker = router.NewWorker(1);
  EXPECT_TRUE(std::holds_alternative<Ticket>(router.Begin(*worker, {})));
  EXPECT_THAT(text, HasSubstr("  column Heat/pages: A 71.5 B unknown\n"));
  EXPECT_EQ(text.find("nan"), std::string::npos) << text;
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
  const std::string page = log.Render(clock.Now());
  EXPECT_THAT(
      page,
      HasSubstr(
          R"({"ageMs":0,"requestId":"r-1","pool":"default/pool","model":"ch\"at","targetModel":"lora-x",)"
          R"("rewrite":"canary","objective":"batch","priority":-3,"mayBeShed":true,"outcome":"picked",)"
          R"("endpoints":["10.0.0.2:8000"],"signals":"fresh","heldTokens":1,"cachedTokens":0,"profile":"time-to-first-token",)"
          R"x("why":"B alone was left: capacity-filter had dropped A (queue 10 is not below 8)","tookUs":0,"numCandidates":3,"candidates":[)x"
          R"({"name":"A","address":"10.0.0.1:8000","own":0,"others":10,"queue":10,"pageQueue":10,"running":0,"kvUsage":0.3,)"));
  EXPECT_THAT(page, HasSubstr(R"("adapter":"resident","columns":{"cached-tokens":0,"prefix-match":0,)"
                              R"("likely-cached-tokens":0},"fresh":true,"scrapeAgeMs":20,"score":0},)"));
  EXPECT_THAT(
      page,
      HasSubstr(
          R"("profiles":[{"name":"time-to-first-token","picker":"time-to-first-token-picker","shed":false,)"
          R"("endpoints":["10.0.0.2:8000"],"why":"B alone)"));
  EXPECT_THAT(
      page,
      HasSubstr(
          R"("steps":[{"name":"capacity-filter","profile":"time-to-first-token","in":3,"out":1,"dropped":[)"
          R"({"address":"10.0.0.1:8000","why":"queue 10 is not below 8"},)"
          R"({"address":"10.0.0.3:8000","why":"KV use 90 % is not below 80 %"}]},)"
          R"({"name":"time-to-first-token-scorer","profile":"time-to-first-token","in":1,"weight":1,"scores":{"10.0.0.2:8000":0.99)"));
  EXPECT_THAT(page, HasSubstr(R"("picture":{"request":{"targetModel":"lora-x","adapter":)"));
  EXPECT_THAT(page, HasSubstr(R"("queue":[10,5,1])"));
  EXPECT_THAT(log.Render(clock.Now(), "r-1", DecisionFormat::kText),
              HasSubstr("why: B alone was left: capacity-filter had dropped A (queue 10 is not below 8)\n"));
}

// What clients write cannot become a part of the page.
TEST(DecisionLog, SaysWhatARequestHits) {
  DecisionLog log(10);
  tests::Scene scene({{"A"}, {"B"}}, {}, {.decisions = &log});
  const std::string body = R"({"model":"m","prompt":")" + std::string(20 * 256, 'x');
  const std::string home(scene.Get(body + R"("})", "/v1/completions", {.request_id = "r-1"}).destination());
  scene.Get(body + std::string(20 * 256, 'y') + R"("})", "/v1/completions", {.request_id = "r-2"});
  const std::string page = log.Render(scene.clock.Now(), "r-2", DecisionFormat::kPrefixes);
  EXPECT_THAT(page, testing::StartsWith(R"({"requests":[)"));
  EXPECT_THAT(page,
              HasSubstr(R"("requestId":"r-2","pool":"default/pool","targetModel":"m","promptTokens":2560,)"
                        R"("chosen":[")" +
                        home));
  EXPECT_THAT(page, HasSubstr(R"("address":")" + home +
                              R"(","blocks":20,"cachedTokens":1280,)"
                              R"("uncachedTokens":1280,"likelyCachedTokens":1280,)"
                              // 0.4 ms a token; the first request's answer was not seen and wears off.
                              R"("workMs":320,"promptMs":320})"));
  EXPECT_THAT(page, HasSubstr(R"("blocks":0,"cachedTokens":0,"uncachedTokens":2560,)"));
  EXPECT_EQ(log.Render(scene.clock.Now(), "r-3", DecisionFormat::kPrefixes), "");
}

TEST(DecisionLog, ThePageForPeopleIsWholeAndSafe) {
  tests::TestPool pool({{"A", 10, 0.30f}, {"B", 5, 0.70f}, {"<b>C", 1, 0.9f}});
  const base::ManualClock clock(kSecond + 20 * kMillisecond);
  base::Registry registry;
  DecisionLog log(10);
  const Router router(pool.fleet().published(), clock, registry, {.decisions = &log});
  const auto worker = router.NewWorker(1);
  payload::RequestScanner scanner(payload::Api::kCompletions);
  scanner.Feed(R"({"model":"<script>alert(1)</script>","prompt":"hi"})");
  scanner.Finish();
  const std::string id = "\"><img src=x onerror='y'>&%";
  const auto picked = router.Begin(*worker, {.request_id = id, .body = &scanner});
  EXPECT_TRUE(std::holds_alternative<Ticket>(picked));
  for (const std::string& page : {log.Render(clock.Now(), "", DecisionFormat::kHtml),
                                  log.Render(clock.Now(), id, DecisionFormat::kHtml)}) {
    EXPECT_THAT(page, ::testing::StartsWith("<!DOCTYPE html>"));
    EXPECT_THAT(page, ::testing::EndsWith("</html>\n"));
    EXPECT_THAT(page, HasSubstr("&lt;script&gt;alert(1)&lt;/script&gt;"));
    for (const char* never : {"<script", "<img", "<b>C", "http://", "https://", "src=\"", " onerror='"})
      EXPECT_THAT(page, Not(HasSubstr(never)));
  }
  const std::string list = log.Render(clock.Now(), "", DecisionFormat::kHtml);
  EXPECT_THAT(
      list,
      HasSubstr("href=\"?format=html&amp;request-id=%22%3E%3Cimg%20src%3Dx%20onerror%3D%27y%27%3E%26%25\""));
  const std::string page = log.Render(clock.Now(), id, DecisionFormat::kHtml);
  EXPECT_THAT(page, HasSubstr("<p class=why>&lt;b&gt;C won; B was next"));
  EXPECT_THAT(page, HasSubstr("time-to-first-token-scorer x 1"));
}

// A decision that is asked again by another config: both choices are seen and counted.
TEST(Shadow, DecidesOnTheSamePictureAndTakesNoPlace) {
  tests::TestPool pool({{"A", 0, 0.9f}, {"B", 9, 0.1f}});
  const base::ManualClock clock(kSecond + 20 * kMillisecond);
  base::Registry registry;
  DecisionLog log(10);
  scheduling::SchedulerOptions by_kv;
  by_kv.profile = scheduling::Profile::kQueueKvLora;
  Router router(pool.fleet().published(), clock, registry, {.decisions = &log});
  const auto worker = router.NewWorker(1);
  std::vector<Ticket> tickets;
  const auto ask = [&] {
    auto begun = router.Begin(*worker, {.request_id = "r"});
    tickets.push_back(std::get<Ticket>(std::move(begun)));
  };
  ask();
  EXPECT_THAT(log.Render(clock.Now()), Not(HasSubstr("shadow")));
  EXPECT_THAT(registry.Render(), Not(HasSubstr("fairway_shadow_decisions_total{")));
  // One scorer that sees KV use alone.
  router.SwapShadow(tests::Compiled(
      tests::OneProfile({tests::Spec("kv-cache-utilization-scorer"), tests::Spec("max-score-picker")},
                        {{"kv-cache-utilization-scorer"}, {"max-score-picker"}})));
  ask();
  const auto snapshot = pool.pool();
  EXPECT_EQ(snapshot->cells[0]->own() + snapshot->cells[1]->own(), 2u) << "one place for each request";
  EXPECT_THAT(
      log.Render(clock.Now()),
      HasSubstr(
          R"("shadow":{"agrees":false,"outcome":"picked","endpoints":["10.0.0.2:8000","10.0.0.1:8000"],"waitMs":)"));
  EXPECT_THAT(
      registry.Render(),
      HasSubstr("fairway_shadow_decisions_total{pool=\"default/pool\",outcome=\"other-endpoint\"} 1\n"));
  EXPECT_THAT(registry.Render(),
              HasSubstr("fairway_shadow_wait_milliseconds_total{pool=\"default/pool\",choice=\"shadow\"}"));
  router.SwapShadow(scheduling::CompileBuiltin({}));
  ask();
  EXPECT_THAT(registry.Render(),
              HasSubstr("fairway_shadow_decisions_total{pool=\"default/pool\",outcome=\"agreed\"} 1\n"));
  router.SwapShadow(nullptr);
  ask();
  EXPECT_THAT(registry.Render(),
              HasSubstr("fairway_shadow_decisions_total{pool=\"default/pool\",outcome=\"agreed\"} 1\n"));
}

// Whatever the shadow would have done: engines have cached what was sent to them.
TEST(Shadow, LearnsWhereRequestsReallyWent) {
  tests::TestPool pool({{.name = "A"}, {.name = "B"}, {.name = "C"}, {.name = "D"}});
  const base::ManualClock clock(kSecond + 20 * kMillisecond);
  base::Registry registry;
  DecisionLog log(10);
  RouterOptions options{.decisions = &log};
  options.config = tests::ConfigOf("plugins: [{type: random-picker, parameters: {maxNumOfEndpoints: 1}}]");
  options.shadow = tests::ConfigOf(
      "plugins: [{type: prefix-cache-scorer}, {type: max-score-picker, parameters: "
      "{maxNumOfEndpoints: 1}}]");
  const Router router(pool.fleet().published(), clock, registry, std::move(options));
  const auto worker = router.NewWorker(5);
  for (int i = 0; i < 30; ++i) {
    const std::string body = R"({"prompt":")" + std::to_string(i) + std::string(2000, 'x') + R"("})";
    payload::RequestScanner scanner(payload::Api::kUnknown);
    const std::string second = "second-" + std::to_string(i);
    const auto ask = [&](std::string_view id) {
      scanner.Reset(payload::Api::kCompletions);
      scanner.HashPrompt(router.wants_prefixes());
      scanner.Feed(body);
      scanner.Finish();
      return std::string(
          std::get<Ticket>(router.Begin(*worker, {.request_id = id, .body = &scanner, .model_rewrite = "m"}))
              .destination());
    };
    const std::string went = ask("first");
    ask(second);
    EXPECT_THAT(log.Render(clock.Now(), second),
                HasSubstr(R"("outcome":"picked","endpoints":[")" + went + R"("],"waitMs")"))
        << i;
  }
}

class LastDecision final : public DecisionSink {
 public:
  void Add(const std::shared_ptr<const Decision>& decision) override { last = decision; }
  std::shared_ptr<const Decision> last;
};

// What is kept of a request is its facts: with headers that the shadow alone reads, texts cut, and without the
// prompt, however long. Nor does the worker keep its tokens.
TEST(Shadow, ReadsHeadersOfItsOwn) {
  tests::TestPool pool({{"A"}, {"B"}});
  const base::ManualClock clock(kSecond + 20 * kMillisecond);
  base::Registry registry;
  LastDecision record;
  Router router(pool.fleet().published(), clock, registry, {.record = &record});
  router.SwapShadow(tests::Compiled(
      tests::OneProfile({tests::Spec("header-based-testing-filter"), tests::Spec("max-score-picker")},
                        {{"header-based-testing-filter"}, {"max-score-picker"}}),
      {.more_types = {}, .states = nullptr, .allow_experimental = true}));
  const auto worker = router.NewWorker(1);
  payload::RequestScanner scanner(payload::Api::kUnknown);
  scanner.HashPrompt(true);
  scanner.Reset(payload::Api::kCompletions);
  scanner.Feed(R"({"model":"m","prompt":")" + std::string(2000, 'x') + R"("})");
  scanner.Finish();
  const std::string many = "10.0.0.2:8000" + std::string(1000, ',');
  const std::vector<std::pair<std::string_view, std::string_view>> headers{
      {"test-epp-endpoint-selection", "10.0.0.1:8000"}, {"test-epp-endpoint-selection", many}, {"x", "y"}};
  const auto tokens = std::make_shared<const payload::PromptTokens>(
      payload::PromptTokens{.tokens = std::vector<uint32_t>(500), .ends = {500}});
  for (const bool said : {true, false}) {
    RequestInput input{.body = &scanner, .tokens = tokens};
    if (said) input.headers = headers;
    (void)router.Begin(*worker, input);
    EXPECT_EQ(tokens.use_count(), 2) << "ours and the input's";
    const scheduling::Facts& facts = record.last->seen.facts;
    EXPECT_EQ(facts.header("test-epp-endpoint-selection"),
              said ? many.substr(0, scheduling::Recording::kMaxText) : "");
    EXPECT_EQ(facts.header("x"), "");
    EXPECT_EQ(facts.prompts.prefixes.capacity() + facts.prompts.ends.capacity(), 0u);
    EXPECT_EQ(facts.prompt_tokens, 500u);
    ASSERT_TRUE(record.last->shadow);
    const scheduling::Outcome& shadow = record.last->shadow->outcome;
    EXPECT_EQ(shadow.num_choices, said ? 1u : 0u);
    if (said) {
      EXPECT_EQ(record.last->Address(shadow.choices[0]), "10.0.0.2:8000") << "of two the last";
    }
  }
}

// A shadow alone, without a log: as on any picker that nobody looks at.
TEST(Shadow, DrawsTheSameRandomNumbersAndChangesNoneOfThem) {
  std::vector<std::string> runs[2];
  for (int with = 0; with < 2; ++with) {
    tests::TestPool pool(std::vector<tests::ServerState>(8, {.name = "A"}));
    const base::ManualClock clock(kSecond + 20 * kMillisecond);
    base::Registry registry;
    RouterOptions options;
    if (with == 1) options.shadow = scheduling::CompileBuiltin({});
    const Router router(pool.fleet().published(), clock, registry, std::move(options));
    const auto worker = router.NewWorker(3);
    for (int i = 0; i < 200; ++i)
      runs[with].emplace_back(std::get<Ticket>(router.Begin(*worker, {})).destinations());
    if (with == 1) {
      EXPECT_THAT(
          registry.Render(),
          HasSubstr("fairway_shadow_decisions_total{pool=\"default/pool\",outcome=\"agreed\"} 200\n"));
    }
  }
  EXPECT_EQ(runs[0], runs[1]);
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
  EXPECT_THAT(
      page,
      HasSubstr(
          R"x("why":"shed: no endpoint has room for a request that is not critical (capacity-filter kept none of 30)")x"));
  EXPECT_LT(page.size(), 40'000u);
}

}  // namespace
}  // namespace fairway::routing
