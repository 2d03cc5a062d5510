#include "routing/router.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/config_text.h"
#include "tests/support/router_scene.h"

namespace fairway::routing {
namespace {

using base::kMillisecond;
using base::kSecond;
using ::testing::HasSubstr;
using ::testing::Not;
using tests::Completion;
using tests::Model;
using tests::Scene;

// ---- The worked examples, from request bytes to the destination.

TEST(WorkedExamples, FromBytesToHeader) {
  Scene first(
      {{"A", 10, 0.30f, {"lora-x"}, {}, 2}, {"B", 5, 0.70f, {}, {}, 2}, {"C", 60, 0.20f, {"lora-x"}, {}, 2}},
      {Model("chat", api::Criticality::kCritical, {{"lora-x", {}}})});
  const Ticket ticket = first.Get(Completion("chat"));
  EXPECT_EQ(ticket.destination(), "10.0.0.1:8000");
  EXPECT_THAT(std::string(ticket.destinations()), testing::StartsWith("10.0.0.1:8000,"));
  EXPECT_EQ(ticket.target_model(), "lora-x");
  EXPECT_TRUE(ticket.rewrites());

  Scene second({{"A", 6, 0.85f}, {"B", 4, 0.75f}, {"C", 7, 0.60f}},
               {Model("batch", api::Criticality::kSheddable)});
  EXPECT_EQ(second.Get(Completion("batch")).destination(), "10.0.0.2:8000");

  Scene third(
      {{"A", 70, 0.40f, {"lora-y"}, {}, 2}, {"B", 80, 0.60f, {"lora-y"}, {}, 2}, {"C", 65, 0.70f, {}, {}, 2}},
      {Model("lora-y", api::Criticality::kCritical)});
  const Ticket same_name = third.Get(Completion("lora-y"));
  EXPECT_EQ(same_name.destination(), "10.0.0.1:8000");
  EXPECT_FALSE(same_name.rewrites());
}

TEST(WorkedExamples, NotCriticalWithEveryEndpointBeyondALimitIs429) {
  for (const auto criticality :
       {api::Criticality::kSheddable, api::Criticality::kStandard, api::Criticality::kUnset}) {
    Scene scene({{"A", 9, 0.1f}, {"B", 0, 0.9f}}, {Model("m", criticality)});
    const Rejection refused = scene.Refused(Completion("m"));
    EXPECT_EQ(refused.status, 429);
    EXPECT_EQ(refused.drop_reason, "rejected-saturated");
    EXPECT_EQ(RejectionBody(refused),
              "inference error: ResourceExhausted - system saturated, sheddable request dropped");
  }
}

TEST(TargetModels, WeightsHoldAndRepeatWithTheSeed) {
  std::vector<std::string> runs[2];
  for (auto& run : runs) {
    Scene scene({{"A"}, {"B"}}, {Model("llama2", api::Criticality::kCritical, {{"v1", 75}, {"v2", 25}})}, {},
                42);
    int v1 = 0;
    for (int i = 0; i < 10'000; ++i) {
      const Ticket ticket = scene.Get(Completion("llama2"));
      v1 += ticket.target_model() == "v1" ? 1 : 0;
      run.emplace_back(std::string(ticket.target_model()) + "@" + std::string(ticket.destination()));
    }
    EXPECT_NEAR(v1, 7500, 4 * 43.3);  // 4 sigma of binomial(10000, 0.75)
  }
  EXPECT_EQ(runs[0], runs[1]) << "same seed, same picks";
}

TEST(TargetModels, UnsetWeightsAreUniform) {
  Scene scene({{"A"}}, {Model("m", api::Criticality::kCritical, {{"a", {}}, {"b", {}}, {"c", {}}})});
  std::map<std::string, int> seen;
  for (int i = 0; i < 9'000; ++i) ++seen[std::string(scene.Get(Completion("m")).target_model())];
  for (const auto& [name, n] : seen) EXPECT_NEAR(n, 3000, 4 * 44.7) << name;
  EXPECT_EQ(seen.size(), 3u);
}

// ---- What long prompts teach.

class LongPrompts : public testing::Test {
 protected:
  LongPrompts() : scene({{"A"}}, {}, {.explain = [this](std::string_view text) { said = text; }}) {}
  std::string Ask(Worker& worker) {
    payload::RequestScanner scanner(payload::Api::kCompletions);
    scanner.HashPrompt(scene.router->wants_prefixes());
    scanner.Feed(R"({"model":"m","prompt":")" + std::string(100 * 256, 'x') + R"("})");
    scanner.Finish();
    RequestInput input;
    input.body = &scanner;
    EXPECT_TRUE(std::holds_alternative<Ticket>(scene.router->Begin(worker, input)));
    return said;
  }
  std::string said;
  Scene scene;
};

TEST_F(LongPrompts, TeachBeforeTheNextDecisionWhereNobodyTookIt) {
  Ask(*scene.worker);
  EXPECT_TRUE(Router::HasPutOff(*scene.worker));
  EXPECT_THAT(Ask(*scene.worker), HasSubstr("6400 more are cached"));
}

// As the reference counts: blocks of 64 tokens, and a shorter last one that the same prompt alone meets.
TEST(Prefixes, EndWithAShorterBlock) {
  std::string said;
  Scene scene({{"A"}}, {}, {.explain = [&](std::string_view text) { said = text; }});
  const auto ask = [&](const std::string& prompt) {
    scene.Get(R"({"model":"m","prompt":)" + prompt + "}");
    return said;
  };
  const std::string block(256, 'x'), half(128, 'y'), other(128, 'z');
  ask("\"" + block + half + "\"");
  EXPECT_THAT(ask("\"" + block + half + "\""), HasSubstr("prefix-match: A 1\n"));
  EXPECT_THAT(said, HasSubstr("96 more are cached"));
  EXPECT_THAT(ask("\"" + block + other + "\""), HasSubstr("prefix-match: A 0.5\n"));
  EXPECT_THAT(said, HasSubstr("64 more are cached"));
  EXPECT_THAT(ask("\"" + block + half + other + "\""), HasSubstr("prefix-match: A 0.5\n"));
  // What is shorter than a block is not looked up, alone or among others.
  ask("\"" + half + "\"");
  EXPECT_THAT(ask("\"" + half + "\""), HasSubstr("cached-tokens: A 0\n"));
  ask("[\"" + half + "\",\"" + half + block + "\"]");
  EXPECT_THAT(ask("[\"" + half + "\",\"" + half + block + "\"]"), HasSubstr("prefix-match: A 1\n"));
  EXPECT_THAT(said, HasSubstr("cached-tokens: A 128\n"));
}

TEST_F(LongPrompts, TeachOnAnyThread) {
  Ask(*scene.worker);
  const std::function<void()> rest = Router::TakePutOff(*scene.worker);
  EXPECT_FALSE(Router::HasPutOff(*scene.worker));
  EXPECT_THAT(Ask(*scene.router->NewWorker(2)), HasSubstr("2048 more are cached"));
  std::thread(rest).join();
  EXPECT_THAT(Ask(*scene.router->NewWorker(3)), HasSubstr("6400 more are cached"));
}

// ---- Objectives and rewrites.

class PolicyScene : public Scene {
 public:
  PolicyScene(std::vector<tests::ServerState> servers, std::vector<api::InferenceModel> models,
              std::vector<api::InferenceObjective> objectives,
              std::vector<api::InferenceModelRewrite> rewrites = {}, RouterOptions options = {},
              uint64_t seed = 1)
      : Scene(std::move(servers), std::move(models), std::move(options), seed) {
    pool.manifests().objectives = std::move(objectives);
    pool.manifests().rewrites = std::move(rewrites);
    pool.fleet().Apply(pool.manifests());
  }
  // "shed", or the label `priority`.
  std::string Priority(std::string_view objective, std::string_view model) {
    auto begun = Ask(Completion(model), "/v1/completions", {.objective = objective});
    if (auto* refused = std::get_if<Rejection>(&begun)) {
      EXPECT_EQ(refused->status, 429);
      EXPECT_EQ(RejectionBody(*refused),
                "inference error: ResourceExhausted - system saturated, sheddable request dropped");
      EXPECT_EQ(refused->drop_reason, "rejected-saturated");
      return "shed";
    }
    const std::string page = registry.Render();
    const std::string series = "llm_d_epp_request_running{model_name=\"" + std::string(model) + "\"";
    for (const std::string_view line : base::Split(page, '\n')) {
      if (!line.starts_with(series) || !line.ends_with(" 1")) continue;
      const size_t at = line.find("priority=\"") + 10;
      return std::string(line.substr(at, line.find('"', at) - at));
    }
    return "no series";
  }
  std::string Target(std::string_view model, std::string_view header = "") {
    auto begun = Ask(Completion(model), "/v1/completions", {.model_rewrite = header});
    if (auto* refused = std::get_if<Rejection>(&begun)) return std::to_string(refused->status);
    const Ticket& ticket = std::get<Ticket>(begun);
    EXPECT_EQ(ticket.rewrites(), ticket.target_model() != model);
    EXPECT_EQ(ticket.model(), model);
    return std::string(ticket.target_model());
  }
};

const std::vector<api::InferenceObjective> kObjectives = {
    tests::Objective("gold", 10), tests::Objective("plain", 0), tests::Objective("batch", -10)};

TEST(Objectives, SetThePriorityInAPoolWithoutModels) {
  PolicyScene idle({{"A"}}, {}, kObjectives);
  EXPECT_EQ(idle.Priority("gold", "m"), "10");
  EXPECT_EQ(idle.Priority("batch", "m"), "-10");
  EXPECT_EQ(idle.Priority("plain", "m"), "0");
  EXPECT_EQ(idle.Priority("", "m"), "0");
  EXPECT_EQ(idle.Priority("GOLD", "m"), "0") << "unknown: as without";

  PolicyScene full({{"A", 5, 0.1f}, {"B", 0, 0.9f}}, {}, kObjectives);
  EXPECT_EQ(full.Priority("batch", "m"), "shed");
  EXPECT_EQ(full.Priority("gold", "m"), "10");
  EXPECT_EQ(full.Priority("plain", "m"), "0");
  EXPECT_EQ(full.Priority("unknown", "m"), "0");
  EXPECT_THAT(full.registry.Render(),
              HasSubstr("llm_d_epp_request_error_total{model_name=\"m\",target_model_name=\"m\",fairness_id="
                        "\"default-flow\",priority=\"-10\",error_code=\"ResourceExhausted\"} 1\n"));
}

TEST(Objectives, GoBeforeTheCriticalityOfTheModel) {
  const std::vector<api::InferenceModel> models = {Model("chat", api::Criticality::kCritical),
                                                   Model("cheap", api::Criticality::kSheddable)};
  PolicyScene full({{"A", 6, 0.1f}, {"B", 0, 0.9f}}, models, kObjectives);
  EXPECT_EQ(full.Priority("", "chat"), "1");
  EXPECT_EQ(full.Priority("", "cheap"), "shed");
  EXPECT_EQ(full.Priority("batch", "chat"), "shed");
  EXPECT_EQ(full.Priority("gold", "cheap"), "10");
  EXPECT_EQ(full.Priority("plain", "cheap"), "0");
  EXPECT_EQ(full.Priority("unknown", "cheap"), "shed") << "unknown: the model's criticality stays";
}

TEST(Objectives, CountWithoutABodyToo) {
  PolicyScene full({{"A", 60, 0.9f}}, {}, kObjectives);
  auto begun = full.router->Begin(*full.worker, {.objective = "batch"});
  EXPECT_EQ(std::get<Rejection>(begun).status, 429);
  begun = full.router->Begin(*full.worker, {.objective = "gold"});
  EXPECT_TRUE(std::holds_alternative<Ticket>(begun));
}

TEST(Rewrites, TheRuleThatNamesTheModelThenTheModelThenTheGenericRuleThenTheHeader) {
  PolicyScene plain({{"A"}}, {}, {}, {tests::Rewrite("r", {"chat", "talk"}, {{"chat-v1", {}}})});
  EXPECT_EQ(plain.Target("chat"), "chat-v1");
  EXPECT_EQ(plain.Target("talk"), "chat-v1");
  EXPECT_EQ(plain.Target("chat", "header"), "chat-v1") << "a rule beats the header";
  EXPECT_EQ(plain.Target("other", "header"), "header");
  EXPECT_EQ(plain.Target("other", std::string(4096, 'x')), std::string(4096, 'x')) << "never half of it";
  EXPECT_EQ(plain.Target("other", std::string(4097, 'x')), "400");
  EXPECT_EQ(plain.Target("other"), "other");

  PolicyScene all(
      {{"A"}}, {Model("model", api::Criticality::kSheddable, {{"adapter", {}}})}, {},
      {tests::Rewrite("any", {}, {{"base", {}}}), tests::Rewrite("r", {"chat"}, {{"chat-v1", {}}})});
  EXPECT_EQ(all.Target("chat"), "chat-v1");
  EXPECT_EQ(all.Target("model"), "adapter");
  EXPECT_EQ(all.Target("other"), "base") << "a rule serves it: no 404";
  EXPECT_EQ(all.Target("other", "header"), "base");

  PolicyScene declared({{"A"}}, {Model("model", api::Criticality::kSheddable, {{"adapter", {}}})}, {},
                       {tests::Rewrite("r", {"chat", "model"}, {{"chat-v1", {}}})});
  EXPECT_EQ(declared.Target("chat"), "chat-v1") << "declared by its rule";
  EXPECT_EQ(declared.Target("model"), "chat-v1");
  EXPECT_EQ(declared.Target("other"), "404");
}

TEST(Rewrites, TheCriticalityIsThatOfTheModelAskedFor) {
  PolicyScene full(
      {{"A", 9, 0.1f}},
      {Model("cheap", api::Criticality::kSheddable), Model("chat", api::Criticality::kCritical)}, {},
      {tests::Rewrite("r", {"cheap"}, {{"chat", {}}}), tests::Rewrite("s", {"new"}, {{"chat", {}}})});
  EXPECT_EQ(full.Priority("", "cheap"), "shed");
  EXPECT_EQ(full.Priority("", "new"), "0") << "no InferenceModel declares it: not shed";
}

TEST(Rewrites, WeightsHoldAndRepeatWithTheSeed) {
  std::vector<std::string> runs[2];
  for (auto& run : runs) {
    PolicyScene scene({{"A"}, {"B"}}, {}, {},
                      {tests::Rewrite("canary", {"chat"}, {{"v1", 90}, {"v2", 10}, {"v3", {}}})}, {}, 42);
    std::map<std::string, int> seen;
    for (int i = 0; i < 10'000; ++i) ++seen[run.emplace_back(scene.Target("chat"))];
    EXPECT_NEAR(seen["v1"], 9000, 4 * 30);  // 4 sigma of binomial(10000, 0.9)
    EXPECT_EQ(seen.size(), 2u) << "no weight beside weights: nothing";
    EXPECT_THAT(
        scene.registry.Render(),
        HasSubstr("llm_d_epp_model_rewrite_decisions_total{model_rewrite_name=\"canary\",model_name=\"chat\","
                  "target_model=\"v2\"} " +
                  std::to_string(seen["v2"]) + "\n"));
    EXPECT_THAT(
        scene.registry.Render(),
        HasSubstr("inference_extension_model_rewrite_decisions_total{model_rewrite_name=\"canary\","));
  }
  EXPECT_EQ(runs[0], runs[1]) << "same seed, same picks";
}

TEST(Rewrites, TheTargetsAdapterDecides) {
  PolicyScene scene({{"A", 0, 0.1f, {}, {}, 2}, {"B", 0, 0.1f, {"lora-x"}, {}, 2}}, {}, {},
                    {tests::Rewrite("r", {"chat"}, {{"lora-x", {}}})});
  EXPECT_EQ(scene.Get(Completion("chat")).destination(), "10.0.0.2:8000");
}

TEST(Rewrites, WhatAsksForNoModelIsLeftAlone) {
  PolicyScene scene({{"A"}}, {}, {}, {tests::Rewrite("any", {}, {{"base", {}}})});
  for (const std::string_view body : {"not json", R"({"text":"x"})"}) {
    const Ticket ticket = scene.Get(body, "/v1/audio");
    EXPECT_FALSE(ticket.rewrites());
    EXPECT_FALSE(ticket.inserts_model());
  }
  auto begun = scene.router->Begin(*scene.worker, {});
  EXPECT_FALSE(std::get<Ticket>(begun).rewrites());
  EXPECT_FALSE(std::get<Ticket>(begun).inserts_model());
  EXPECT_THAT(scene.registry.Render(), Not(HasSubstr("model_rewrite_name")));
}

TEST(Rewrites, ARequestThatNamesNoModelIsGivenTheOneOfTheRuleElseOfTheHeader) {
  const auto given = [](PolicyScene& scene, std::string_view body, std::string_view header) -> std::string {
    auto begun = scene.Ask(body, "/v1/completions", {.model_rewrite = header});
    if (auto* refused = std::get_if<Rejection>(&begun)) return refused->message;
    const Ticket& ticket = std::get<Ticket>(begun);
    EXPECT_TRUE(ticket.inserts_model());
    EXPECT_FALSE(ticket.rewrites()) << "nothing is to be put back in the answer";
    EXPECT_EQ(ticket.model(), ticket.target_model());
    return std::string(ticket.target_model());
  };
  constexpr std::string_view kNone = "model not found in request body";
  PolicyScene rule({{"A"}}, {}, {},
                   {tests::Rewrite("any", {}, {{"base", {}}}), tests::Rewrite("r", {"chat"}, {{"v1", {}}})});
  PolicyScene header({{"A"}}, {}, {}, {tests::Rewrite("r", {"chat"}, {{"v1", {}}})});
  PolicyScene models({{"A"}}, {Model("chat", api::Criticality::kCritical)}, {});
  for (const std::string_view body :
       {R"({"prompt":"x"})", R"({"model":null,"prompt":"x"})", R"({"model":"","prompt":"x"})"}) {
    EXPECT_EQ(given(rule, body, ""), "base");
    EXPECT_EQ(given(rule, body, "m2"), "base") << "a rule beats the header";
    EXPECT_EQ(given(header, body, "m2"), "m2");
    EXPECT_EQ(given(header, body, ""), kNone);
    EXPECT_EQ(given(models, body, ""), kNone);
    EXPECT_EQ(given(models, body, "m2"), "m2");
  }
  // The route of requests without a body, which are told apart by nothing else.
  auto begun = rule.router->Begin(*rule.worker, {});
  EXPECT_EQ(std::get<Ticket>(begun).target_model(), "");
  EXPECT_EQ(given(rule, R"({"prompt":"x"})", ""), "base");
  EXPECT_THAT(rule.registry.Render(), HasSubstr("model_rewrite_name=\"any\""));
}

// ---- Refusals.

TEST(Refusals, UnknownModelIs404WithTheNearestName) {
  Scene scene({{"A"}}, {Model("llama2", api::Criticality::kCritical)});
  const Rejection refused = scene.Refused(Completion("lama2"));
  EXPECT_EQ(refused.status, 404);
  EXPECT_EQ(RejectionBody(refused),
            "inference error: NotFound - model \"lama2\" is not served here; did you mean \"llama2\"?");
  EXPECT_LT(scene.Refused(Completion(std::string(3000, 'x'))).message.size(), 300u);
}

// An edit distance of 4 KB against each of a thousand names of 256 bytes took 1.9 s.
TEST(Refusals, AnUnknownModelIsRefusedAtOnceWhateverItsLength) {
  std::vector<api::InferenceModel> models;
  for (int i = 0; i < 1000; ++i) {
    models.push_back(Model("m" + std::to_string(i) + std::string(252, 'x'), api::Criticality::kCritical));
  }
  for (const char* name : {"llama2", "llama3", "mistral-7b"})
    models.push_back(Model(name, api::Criticality::kCritical));
  Scene scene({{"A"}}, std::move(models));
  const std::string body = Completion(std::string(4096, 'm'));
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(scene.Refused(body).status, 404);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
  EXPECT_THAT(scene.Refused(Completion("mistral-7")).message, HasSubstr("did you mean \"mistral-7b\"?"));
  EXPECT_THAT(scene.Refused(Completion("llama4")).message, HasSubstr("did you mean \"llama2\"?"));
}

TEST(Refusals, WhatTheAnswerRepeatsIsPrintable) {
  Scene scene({{"A"}}, {Model("llama2", api::Criticality::kCritical)});
  EXPECT_EQ(scene.Refused(Completion("a\\u009b31m")).message,
            "model \"a\xef\xbf\xbd"
            "31m\" is not served here");
  EXPECT_EQ(scene.Refused(Completion(std::string(199, 'x') + "\xe2\x82\xac")).message,
            "model \"" + std::string(199, 'x') + "...\" is not served here");
}

TEST(Refusals, AnyModelGoesWithoutInferenceModels) {
  Scene scene({{"A"}});
  EXPECT_EQ(scene.Get(Completion("whatever")).target_model(), "whatever");
}

TEST(Refusals, MalformedBodiesAre400BeforeAnythingElse) {
  Scene empty_pool({});
  EXPECT_EQ(empty_pool.Refused("{").status, 400);
  EXPECT_EQ(empty_pool.Refused(R"({"prompt":"x"})").message, "model not found in request body");
  EXPECT_EQ(empty_pool.Refused(R"({"model":"m"})").message,
            "invalid completions request: must have prompt field");
  EXPECT_EQ(empty_pool.Refused(Completion("m")).status, 503);
}

TEST(Refusals, EmptyOrUnknownPoolIs503) {
  Scene scene({{"A"}});
  const Rejection refused = scene.Refused(Completion("m"), "/v1/completions", {.pool_key = "default/other"});
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.drop_reason, "rejected-no-endpoints");
  scene.pool.manifests().endpoints.clear();
  scene.pool.fleet().Apply(scene.pool.manifests());
  EXPECT_EQ(scene.Refused(Completion("m")).status, 503);
}

TEST(PassThrough, UnknownPathsAndBodilessRequestsAreScheduledByLoad) {
  Scene scene({{"A", 30}, {"B", 2}}, {Model("m", api::Criticality::kSheddable)});
  EXPECT_EQ(scene.Get("not json", "/v1/audio").destination(), "10.0.0.2:8000");
  EXPECT_EQ(scene.Get(R"({"model":"unknown"})", "/v1/audio").destination(), "10.0.0.2:8000");
  auto begun = scene.router->Begin(*scene.worker, {});
  EXPECT_EQ(std::get<Ticket>(begun).destination(), "10.0.0.2:8000");
}

// ---- Subset hints.

TEST(Subset, AddressesWithAndWithoutPort) {
  Scene scene({{"A", 0}, {"B", 5}, {"C", 3}});
  const auto pick = [&](SubsetHint hint) -> std::string {
    auto begun = scene.Ask(Completion("m"), "/v1/completions", {.subset = &hint});
    if (auto* refused = std::get_if<Rejection>(&begun)) return std::to_string(refused->status);
    return std::string(std::get<Ticket>(begun).destination());
  };
  EXPECT_EQ(pick({"10.0.0.2:8000", "10.0.0.3:8000"}), "10.0.0.3:8000");
  EXPECT_EQ(pick({"10.0.0.2"}), "10.0.0.2:8000");
  EXPECT_EQ(pick({"10.0.0.2:9999"}), "503") << "a port that is given counts";
  EXPECT_EQ(pick({"10.9.9.9"}), "503");
  EXPECT_EQ(pick({}), "503");
  EXPECT_EQ(pick({"10.9.9.9", "10.0.0.2:8000", "10.0.0.2"}), "10.0.0.2:8000");
}

// All endpoints of a host were looked up for each mention of it.
TEST(Subset, ManyHintsOfOneHostAreOne) {
  std::vector<tests::ServerState> servers(1000);
  for (size_t i = 0; i < servers.size(); ++i) servers[i] = {.name = "s" + std::to_string(i), .waiting = 9};
  Scene scene(servers);
  uint16_t port = 8000;
  for (auto& endpoint : scene.pool.manifests().endpoints) {
    endpoint.address = "fd00::1";
    endpoint.port = port++;
  }
  scene.pool.fleet().Apply(scene.pool.manifests());
  servers[700].waiting = 0;
  for (size_t i = 0; i < servers.size(); ++i) scene.pool.Scrape(i, servers[i], kSecond);
  const SubsetHint hint(100'000, "[FD00:0:0::1]");
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(scene.Get(Completion("m"), "/v1/completions", {.subset = &hint}).destination(),
              "[fd00::1]:8700");
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
}

TEST(Subset, TheFirstThousandHintsCount) {
  Scene scene({{"A"}, {"B"}});
  SubsetHint hint;
  for (int i = 0; i < 1000; ++i) hint.push_back("10.9.9.9:" + std::to_string(i));
  hint.emplace_back("10.0.0.1:8000");
  EXPECT_EQ(scene.Refused(Completion("m"), "/v1/completions", {.subset = &hint}).status, 503);
  hint.erase(hint.begin());
  EXPECT_EQ(scene.Get(Completion("m"), "/v1/completions", {.subset = &hint}).destination(), "10.0.0.1:8000");
}

// However somebody writes an IPv6 address, in manifests, hints or responses, it is the same server.
TEST(Ipv6, IsComparedInItsCanonicalForm) {
  Scene scene({{"A", 5}, {"B", 0}});
  auto& endpoints = scene.pool.manifests().endpoints;
  endpoints[0].address = "FD00:0:0::1";
  endpoints[1].address = "fd00:0::0:2";
  scene.pool.fleet().Apply(scene.pool.manifests());
  scene.pool.Scrape(0, {.waiting = 5}, kSecond);
  scene.pool.Scrape(1, {.waiting = 0}, kSecond);
  for (const char* text : {"fd00::1", "[FD00::0001]", "[fd00:0:0:0:0:0:0:1]:8000", "FD00::1"}) {
    const SubsetHint hint{text};
    Ticket ticket = scene.Get(Completion("m"), "/v1/completions", {.subset = &hint});
    EXPECT_EQ(ticket.destination(), "[fd00::1]:8000") << text;
    ticket.OnResponseHeaders(200, "[FD00::0:2]:8000", false);
    EXPECT_EQ(scene.cell(0).own(), 0u);
    EXPECT_EQ(scene.cell(1).own(), 1u);
  }
}

TEST(Subset, CanBeSwitchedOff) {
  Scene scene({{"A", 0}, {"B", 5}}, {}, {.use_subset_hint = false});
  const SubsetHint hint{"10.0.0.2"};
  EXPECT_EQ(scene.Get(Completion("m"), "/v1/completions", {.subset = &hint}).destination(), "10.0.0.1:8000");
}

// ---- The reservation's life.

TEST(Reservation, IsGivenBackExactlyOnceHoweverTheRequestEnds) {
  Scene scene({{"A"}});
  auto& cell = scene.cell(0);
  {
    Ticket ticket = scene.Get(Completion("m"));
    EXPECT_EQ(cell.own(), 1u);
    Ticket moved = std::move(ticket);
    EXPECT_EQ(cell.own(), 1u);
    moved.OnComplete();
    EXPECT_EQ(cell.own(), 0u);
    moved.Abort();
    moved.OnComplete();
  }
  EXPECT_EQ(cell.own(), 0u);
  {
    Ticket dropped = scene.Get(Completion("m"));
  }
  EXPECT_EQ(cell.own(), 0u);
  EXPECT_EQ(cell.others(), 0u);
  {
    Ticket detached = scene.Get(Completion("m"));
    detached.Detach();
  }
  EXPECT_EQ(cell.own(), 0u);
  EXPECT_EQ(cell.others(), 1u) << "it may still run: the next scrape tells";
}

TEST(Reservation, MovesToTheEndpointThatServed) {
  Scene scene({{"A", 0}, {"B", 5}});
  Ticket ticket = scene.Get(Completion("m"));
  ASSERT_EQ(ticket.destination(), "10.0.0.1:8000");
  ticket.OnResponseHeaders(200, "10.0.0.2:8000", false);
  EXPECT_EQ(scene.cell(0).own(), 0u);
  EXPECT_EQ(scene.cell(1).own(), 1u);
  ticket.OnResponseHeaders(200, "1.2.3.4:1", false);
  EXPECT_EQ(scene.cell(1).own(), 1u) << "an address nobody knows changes nothing";
  ticket.OnComplete();
  EXPECT_EQ(scene.cell(1).own(), 0u);
  EXPECT_THAT(scene.registry.Render(), HasSubstr("fairway_served_elsewhere_total{pool=\"default/pool\"} 1"));
}

TEST(Reservation, OutlivesItsEndpointAndItsSnapshot) {
  Scene scene({{"A"}});
  Ticket ticket = scene.Get(Completion("m"));
  scene.pool.manifests().endpoints.clear();
  scene.pool.fleet().Apply(scene.pool.manifests());
  ticket.OnResponseHeaders(200, "10.0.0.1:8000", false);
  ticket.OnComplete();
}

// ---- Refusals of a decision: what refused, and when to come again.

TEST(Refusals, SayWhatRefused) {
  struct Case {
    const char* config;
    uint32_t waiting;
    int32_t priority;
    int status;
    std::string message;
    std::string by;
    bool waits;
  };
  const Case cases[] = {
      {"plugins: [{type: queue-scorer}]", 100, -1, 429, "system saturated, sheddable request dropped",
       "saturation; plugin=utilization-detector", true},
      {"plugins: [{type: label-selector-filter, name: gpus, parameters: {matchLabels: {gpu: h100}}}]", 0, 0,
       429, "no endpoints available for the given request", "filters; plugin=gpus", false},
      {"plugins: [{type: utilization-filter, parameters: {conditions: [{metric: waiting-queue, maxValue: "
       "5}]}}]",
       100, 0, 429, "no endpoints available for the given request", "filters; plugin=utilization-filter",
       true},
      {"plugins: [{type: probabilistic-admitter, parameters: {k: 1e9}}, "
       "{type: utilization-detector, parameters: {queueDepthThreshold: 1000000}}]",
       100, -1, 429, "request cannot be admitted by probabilistic-admitter",
       "admitter; plugin=probabilistic-admitter", true},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.config);
    Scene scene({{"A", c.waiting}}, {}, {.config = tests::ConfigOf(c.config)});
    scene.pool.manifests().objectives = {tests::Objective("low", c.priority)};
    scene.pool.fleet().Apply(scene.pool.manifests());
    RequestInput input;
    input.objective = "low";
    const Rejection rejection = scene.Refused(Completion("m"), "/v1/completions", input);
    EXPECT_EQ(rejection.status, c.status);
    EXPECT_EQ(rejection.message, c.message);
    EXPECT_EQ(rejection.drop_reason, "rejected-saturated");
    EXPECT_EQ(rejection.refused_by, c.by);
    EXPECT_EQ(rejection.retry_after > 0, c.waits);
    EXPECT_LE(rejection.retry_after, 30u);
    const size_t end = c.by.find(';');
    EXPECT_THAT(scene.registry.Render(),
                HasSubstr("fairway_refusals_total{pool=\"default/pool\",reason=\"" + c.by.substr(0, end) +
                          "\",plugin=\"" + c.by.substr(end + 9) + "\"} 1\n"));
  }
}

TEST(Refusals, ComeAgainWhenTheFirstWillHaveComputedWhatItHas) {
  const auto config = tests::ConfigOf("plugins: [{type: utilization-detector}]");
  Scene scene({{"A", 100}}, {}, {.config = config});
  scene.pool.manifests().objectives = {tests::Objective("low", -1)};
  scene.pool.fleet().Apply(scene.pool.manifests());
  RequestInput input;
  input.objective = "low";
  const uint32_t before = scene.Refused(Completion("m"), "/v1/completions", input).retry_after;
  // A million prompt tokens more, of a request of our own.
  const Ticket open = scene.Get(R"({"model":"m","prompt":")" + std::string(4'000'000, 'x') + R"("})");
  const uint32_t after = scene.Refused(Completion("m"), "/v1/completions", input).retry_after;
  EXPECT_GT(after, before);
  EXPECT_EQ(after, 30u);
}

// prefer: if-available
TEST(Refusals, WhoWantsOnlyACachedPromptGets412AndLeavesNoTrace) {
  Scene scene({{"A"}, {"B"}}, {}, {.config = tests::ConfigOf("plugins: [{type: prefix-cache-scorer}]")});
  const std::string body = R"({"model":"m","prompt":")" + std::string(4096, 'x') + R"("})";
  const auto ask = [&](bool if_available) {
    payload::RequestScanner scanner(payload::Api::kCompletions);
    scanner.HashPrompt(scene.router->wants_prefixes());
    scanner.Feed(body);
    scanner.Finish();
    RequestInput input;
    input.body = &scanner;
    input.if_available = if_available;
    return scene.router->Begin(*scene.worker, input);
  };
  for (int i = 0; i < 3; ++i) {
    const auto refused = ask(true);
    ASSERT_TRUE(std::holds_alternative<Rejection>(refused));
    const auto& rejection = std::get<Rejection>(refused);
    EXPECT_EQ(rejection.status, 412);
    EXPECT_EQ(RejectionBody(rejection),
              "inference error: PreconditionFailed - no decode worker has the requested KV cache");
    EXPECT_EQ(rejection.retry_after, 0u);
    EXPECT_EQ(scene.cell(0).own() + scene.cell(1).own(), 0u);
  }
  EXPECT_TRUE(std::holds_alternative<Ticket>(ask(false)));
  EXPECT_TRUE(std::holds_alternative<Ticket>(ask(true))) << "it is cached there now";
}

// ---- Media: seen in the body, and given to plugins.

TEST(Media, LetAnEncodeStageRun) {
  Scene scene({{"D"}, {"E"}}, {}, {.config = tests::ConfigOf(R"(
plugins:
- {type: disagg-profile-handler, parameters: {deciders: {encode: always-disagg-multimodal-decider}}}
- {type: always-disagg-multimodal-decider}
- {type: random-picker, parameters: {maxNumOfEndpoints: 1}}
schedulingProfiles:
- {name: decode, plugins: [{pluginRef: random-picker}]}
- {name: encode, plugins: [{pluginRef: random-picker}]}
)")});
  const auto ask = [&](const std::string& part) {
    return scene.Get(
        R"({"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"},)" + part + "]}]}",
        "/v1/chat/completions");
  };
  EXPECT_TRUE(ask(R"({"type":"text","text":"y"})").request_headers().empty());
  const Ticket ticket = ask(R"({"type":"image_url","image_url":{"url":"http://x/y.png"}})");
  ASSERT_EQ(ticket.request_headers().size(), 1u);
  EXPECT_EQ(ticket.request_headers()[0].first, "x-encoder-hosts-ports");
  for (const std::string decision : {"decode-only", "encode-decode"}) {
    EXPECT_THAT(
        scene.registry.Render(),
        AllOf(HasSubstr("llm_d_epp_disagg_decision_total{plugin_name=\"disagg-profile-handler\",plugin_type="
                        "\"disagg-profile-handler\",model_name=\"m\",decision_type=\"" +
                        decision + "\"} 1\n"),
              HasSubstr("llm_d_inference_scheduler_disagg_decision_total{model_name=\"m\",decision_type=\"" +
                        decision + "\"} 1\n")));
  }
}

// ---- Engines' own APIs.

TEST(EngineApis, SglangNamesNoModelAndVllmMay) {
  Scene scene({{"A"}});
  EXPECT_EQ(scene.Get(R"({"text":"hello","sampling_params":{}})", "/generate").model(), "");
  EXPECT_EQ(scene.Get(R"({"model":"m","token_ids":[1,2]})", "/inference/v1/generate").model(), "m");
  EXPECT_EQ(scene.Refused(R"({"token_ids":[1,2]})", "/inference/v1/generate").message,
            "model not found in request body");
  RequestInput input;
  input.model_rewrite = "m2";
  const Ticket given = scene.Get(R"({"token_ids":[1,2]})", "/inference/v1/generate", input);
  EXPECT_TRUE(given.inserts_model());
  EXPECT_EQ(given.target_model(), "m2");
}

// ---- Sessions: the client is told which endpoint it had.

TEST(Sessions, TheAnswerNamesTheEndpointThatTheNextRequestGoesTo) {
  Scene scene({{"A"}, {"B"}, {"C"}}, {}, {.config = tests::ConfigOf(tests::kSessionConfig)});
  Ticket first = scene.Get(Completion("m"));
  const std::string at(first.destination());
  ASSERT_EQ(first.response_headers().size(), 1u);
  const auto [name, token] = first.response_headers()[0];
  EXPECT_EQ(name, "x-session-token");
  EXPECT_TRUE(first.request_headers().empty());
  const std::vector<std::pair<std::string_view, std::string_view>> headers = {{"x-session-token", token}};
  for (int i = 0; i < 30; ++i) {
    Ticket next = scene.Get(Completion("m"), "/v1/completions", {.headers = headers});
    ASSERT_EQ(next.destination(), at);
    ASSERT_EQ(next.response_headers().at(0).second, token);
  }
  // Its endpoint is gone: another one, and the answer says which.
  auto& endpoints = scene.pool.manifests().endpoints;
  std::erase_if(endpoints, [&](const auto& e) { return e.address + ":8000" == at; });
  scene.pool.fleet().Apply(scene.pool.manifests());
  Ticket moved = scene.Get(Completion("m"), "/v1/completions", {.headers = headers});
  EXPECT_NE(moved.destination(), at);
  EXPECT_NE(moved.response_headers().at(0).second, token);
}

TEST(Sessions, AfterARetryTheAnswerNamesWhoServed) {
  Scene scene({{"A"}, {"B"}}, {}, {.config = tests::ConfigOf(tests::kSessionConfig)});
  Ticket ticket = scene.Get(Completion("m"));
  const bool to_a = ticket.destination() == "10.0.0.1:8000";
  const std::string a = "ZGVmYXVsdC9B", b = "ZGVmYXVsdC9C";  // default/A, default/B
  EXPECT_EQ(ticket.response_headers().at(0).second, to_a ? a : b);
  ticket.OnResponseHeaders(200, to_a ? "10.0.0.2:8000" : "10.0.0.1:8000", false);
  EXPECT_EQ(ticket.response_headers().at(0).second, to_a ? b : a);
}

// ---- Tickets.

TEST(Tickets, NoneIsWhatIsMovedFromAndAssigningEndsWhatWasThere) {
  Scene scene({{"A"}, {"B", 50}});
  Ticket ticket;
  EXPECT_FALSE(ticket);
  ticket = scene.Get(Completion("m"));
  EXPECT_TRUE(ticket);
  Ticket moved = std::move(ticket);
  EXPECT_FALSE(ticket);  // NOLINT(bugprone-use-after-move): what it says
  EXPECT_EQ(moved.destination(), "10.0.0.1:8000");
  EXPECT_EQ(scene.cell(0).own(), 1u);
  moved = scene.Get(Completion("m"));
  EXPECT_EQ(scene.cell(0).own(), 1u);
  moved = {};
  EXPECT_FALSE(moved);
  EXPECT_EQ(scene.cell(0).own(), 0u);
}

// What is measured of a response's body has a place only from its first piece on.
TEST(Tickets, MeasureAResponseFromItsFirstPieceOnAlsoWhenMoved) {
  Scene scene({{"A"}});
  const auto count = [&scene](const std::string& series) {
    const std::string page = scene.registry.Render();
    const std::string name = "llm_d_epp_" + series + "_count{model_name=\"m\"";
    const size_t at = page.find(name);
    if (at == std::string::npos) return std::string("0");
    const size_t value = page.find("} ", at) + 2;
    return page.substr(value, page.find('\n', value) - value);
  };
  const auto run = [&scene](bool pieces, bool usage) {
    Ticket first = scene.Get(R"({"model":"m","prompt":"hi","stream":true})");
    first.OnResponseHeaders(200, "", true);
    first.OnResponseBody(0);
    if (pieces) first.OnResponseBody(10);
    Ticket ticket = std::move(first);
    scene.clock.Advance(kMillisecond);
    if (pieces) ticket.OnResponseBody(20);
    if (usage) ticket.OnUsage({.found = true, .input_tokens = 3, .output_tokens = 2});
    ticket.OnComplete();
  };
  run(false, false);
  EXPECT_EQ(count("request_duration_seconds"), "1");
  EXPECT_EQ(count("response_size_bytes"), "0");
  run(true, false);
  EXPECT_EQ(count("request_duration_seconds"), "2");
  EXPECT_EQ(count("response_size_bytes"), "1");
  EXPECT_EQ(count("request_output_tokens"), "0");
  run(false, true);  // in memory that the one before has used
  EXPECT_EQ(count("response_size_bytes"), "1");
  EXPECT_EQ(count("request_output_tokens"), "1");
  EXPECT_EQ(count("request_ntpot_seconds"), "1");
  run(true, true);
  EXPECT_EQ(count("response_size_bytes"), "2");
  EXPECT_EQ(count("request_output_tokens"), "2");
}

void AskForDestinationsOfAnyLength(uint32_t max_choices) {
  RouterOptions options{.keep_scores = true};
  options.scheduling.max_choices = max_choices;
  Scene scene({{"A"}, {"B"}, {"C"}, {"D"}, {"E"}, {"F"}, {"G"}, {"H"}}, {}, std::move(options));
  const std::vector<std::string> hosts = {"1.1.1.",
                                          "127.0.0.",
                                          "192.168.100.",
                                          "192.168.200.10",
                                          "2001:db8::1:",
                                          "fd00:1234:5:6:7:89ab:cdef:",
                                          "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ff0"};
  std::vector<std::pair<Ticket, std::string>> open;
  for (int round = 0; round < 3; ++round) {
    for (const std::string& host : hosts) {
      auto& endpoints = scene.pool.manifests().endpoints;
      for (size_t i = 0; i < endpoints.size(); ++i) endpoints[i].address = host + std::to_string(i + 1);
      scene.pool.fleet().Apply(scene.pool.manifests());
      for (int i = 0; i < 70; ++i) {  // more than are kept
        Ticket ticket = scene.Get(Completion("m"));
        const std::string texts(ticket.destinations());
        EXPECT_EQ(std::count(texts.begin(), texts.end(), ','), max_choices - 1);
        EXPECT_THAT(texts, testing::StartsWith(std::string(ticket.destination())));
        EXPECT_THAT(texts, HasSubstr(host));
        EXPECT_EQ(ticket.scores().size(), endpoints.size());
        if (i % 2 == 0) ticket.OnResponseBody(1);
        open.emplace_back(std::move(ticket), texts);
      }
    }
    for (const auto& [ticket, texts] : open) EXPECT_EQ(ticket.destinations(), texts);
    open.erase(open.begin(), open.begin() + 300);
  }
}

TEST(Tickets, HaveRoomForDestinationsOfAnyLength) {
  for (const uint32_t choices : {1u, 3u, 8u}) AskForDestinationsOfAnyLength(choices);
}

// ---- Metrics.

TEST(Metrics, TheReferencesSeriesUnderBothNames) {
  Scene scene({{"A", 4, 0.5f, {}, {}, 0, 2}, {"B", 8, 0.25f, {}, {}, 0, 3}},
              {Model("chat", api::Criticality::kCritical, {{"lora-x", {}}})});
  Ticket ticket = scene.Get(R"({"model":"chat","prompt":"hi","stream":true})");
  EXPECT_THAT(scene.registry.Render(),
              HasSubstr("inference_objective_running_requests{model_name=\"chat\"} 1\n"));
  ticket.OnResponseHeaders(200, "", true);
  scene.clock.Advance(30 * kMillisecond);
  ticket.OnResponseBody(100);
  scene.clock.Advance(100 * kMillisecond);
  ticket.OnResponseBody(50);
  ticket.OnUsage(
      {.found = true, .input_tokens = 12, .output_tokens = 5, .total_tokens = 17, .cached_tokens = 8});
  ticket.OnComplete();
  scene.Refused(Completion("nope"));
  const std::string page = scene.registry.Render();
  const std::string labels =
      R"({model_name="chat",target_model_name="lora-x",fairness_id="default-flow",priority="1"})";
  for (
      const std::string& line : {
          "llm_d_epp_request_total" + labels + " 1\n",
          std::string(
              R"(inference_objective_request_total{model_name="chat",target_model_name="lora-x",priority="1"} 1)") +
              "\n",
          "llm_d_epp_request_running" + labels + " 0\n",
          "llm_d_epp_request_duration_seconds_count" + labels + " 1\n",
          "llm_d_epp_request_output_tokens_sum" + labels + " 5\n",
          "llm_d_epp_request_input_tokens_sum" + labels + " 12\n",
          "llm_d_epp_request_cached_tokens_sum" + labels + " 8\n",
          "llm_d_epp_response_size_bytes_sum" + labels + " 150\n",
          "llm_d_epp_request_streaming_itl_seconds_sum" + labels + " 0.1\n",
          "llm_d_epp_request_streaming_itl_seconds_count" + labels + " 1\n",
          std::string(R"(llm_d_epp_request_streaming_tpot_seconds_sum)") + labels + " 0.025\n",
          std::string(R"(llm_d_epp_average_queue_size{name="pool",namespace="default"} 6)") + "\n",
          std::string(
              R"(inference_pool_average_kv_cache_utilization{name="pool",namespace="default"} 0.38)") +
              "\n",
          std::string(R"(llm_d_epp_std_dev_queue_size{name="pool",namespace="default"} 2.83)") + "\n",
          std::string(R"(inference_pool_ready_pods{name="pool",namespace="default"} 2)") + "\n",
          std::string(
              R"(inference_pool_per_pod_queue_size{name="pool",model_server_pod="B",namespace="default"} 8)") +
              "\n",
          std::string(R"(fairway_decisions_total{pool="default/pool",rung="fresh"} 1)") + "\n",
          std::string(R"(,error_code="NotFound"} 1)") + "\n",
          std::string(R"(llm_d_epp_scheduler_attempts_total{status="success",target_model_name="lora-x",)") +
              R"(endpoint_name="A",namespace="default",port="8000"} 1)" + "\n",
          std::string("llm_d_epp_scheduler_e2e_duration_seconds_count 1\n"),
      }) {
    EXPECT_THAT(page, HasSubstr(line));
  }
  EXPECT_THAT(
      page,
      HasSubstr("llm_d_epp_request_ttft_seconds_bucket{model_name=\"chat\",target_model_name=\"lora-x\","
                "fairness_id=\"default-flow\",priority=\"1\",streaming=\"true\",le=\"0.05\"} 1\n"));
  EXPECT_THAT(page, Not(HasSubstr("nope"))) << "a client's text is no label";
}

TEST(Metrics, StaleEndpointsAreNotReadyAndGoneOnesLeaveThePage) {
  Scene scene({{"A", 4}, {"B", 8}});
  EXPECT_THAT(scene.registry.Render(),
              HasSubstr("inference_pool_ready_pods{name=\"pool\",namespace=\"default\"} 2\n"));
  scene.clock.Advance(10 * kSecond);
  EXPECT_THAT(scene.registry.Render(),
              HasSubstr("inference_pool_ready_pods{name=\"pool\",namespace=\"default\"} 0\n"));
  scene.pool.manifests().endpoints.pop_back();
  scene.pool.fleet().Apply(scene.pool.manifests());
  EXPECT_THAT(scene.registry.Render(), Not(HasSubstr("model_server_pod=\"B\"")));
}

// ---- What is kept from one request to the next.

TEST(KeptRoutes, ANewSnapshotCountsAtOnce) {
  PolicyScene scene({{"A", 0, 0.1f, {}, {}, 2}, {"B", 0, 0.1f, {"two"}, {}, 2}},
                    {Model("chat", api::Criticality::kCritical, {{"one", {}}})}, kObjectives);
  auto& manifests = scene.pool.manifests();
  const auto apply = [&] { scene.pool.fleet().Apply(manifests); };
  EXPECT_EQ(scene.Target("chat"), "one");
  EXPECT_EQ(scene.Target("other"), "404");
  EXPECT_EQ(scene.Priority("gold", "chat"), "10");
  manifests.models[0].targets = {{"two", {}}};
  manifests.objectives = {tests::Objective("gold", 20)};
  apply();
  EXPECT_EQ(scene.Target("chat"), "two");
  EXPECT_EQ(scene.Get(Completion("chat")).destination(), "10.0.0.2:8000") << "the new target's adapter";
  EXPECT_EQ(scene.Priority("gold", "chat"), "20");
  manifests.rewrites = {tests::Rewrite("r", {"chat"}, {{"three", {}}})};
  apply();
  EXPECT_EQ(scene.Target("chat"), "three");
  manifests.rewrites.clear();
  manifests.models.clear();
  apply();
  EXPECT_EQ(scene.Target("chat"), "chat");
  EXPECT_EQ(scene.Target("other"), "other");
  manifests.pools.clear();
  apply();
  EXPECT_EQ(scene.Target("chat"), "503");
}

TEST(KeptRoutes, WeightedTargetsAreDrawnForEachRequestAndOthersAreNot) {
  Scene scene({{"A"}},
              {Model("weighted", api::Criticality::kCritical, {{"v1", 75}, {"v2", 25}}),
               Model("plain", api::Criticality::kCritical, {{"p", {}}})},
              {}, 42);
  base::Random random(42);
  for (int i = 0; i < 1000; ++i) {
    const std::string_view expected = random.Below(100) < 75 ? "v1" : "v2";
    ASSERT_EQ(scene.Get(Completion("weighted")).target_model(), expected) << i;
    if (i % 3 == 0) {
      ASSERT_EQ(scene.Get(Completion("plain")).target_model(), "p");
    }
  }
}

// Requests that look alike when their texts are put together are others.
TEST(KeptRoutes, EachTextCounts) {
  Scene scene({{"A"}});
  for (int turn = 0; turn < 3; ++turn) {
    for (const auto& [model, rewrite, objective, fairness_id] :
         std::vector<std::array<std::string_view, 4>>{{"ab", "", "", ""},
                                                      {"a", "b", "", ""},
                                                      {"a", "", "b", ""},
                                                      {"a", "", "", "b"},
                                                      {"a", "", "", ""},
                                                      {"ab", "", "", "default-flow"}}) {
      const Ticket ticket =
          scene.Get(Completion(model), "/v1/completions",
                    {.fairness_id = fairness_id, .model_rewrite = rewrite, .objective = objective});
      EXPECT_EQ(ticket.model(), model);
      EXPECT_EQ(ticket.target_model(), rewrite.empty() ? model : rewrite);
    }
  }
  const std::string page = scene.registry.Render();
  const auto counted = [&](std::string_view model, std::string_view target, std::string_view id, int n) {
    std::string line = "llm_d_epp_request_total{model_name=\"";
    line.append(model).append("\",target_model_name=\"").append(target).append("\",fairness_id=\"");
    line.append(id).append("\",priority=\"0\"} ").append(std::to_string(n)).append("\n");
    EXPECT_THAT(page, HasSubstr(line));
  };
  counted("ab", "ab", "default-flow", 6);
  counted("a", "b", "default-flow", 3);
  counted("a", "a", "b", 3);
  counted("a", "a", "default-flow", 6);
}

TEST(KeptRoutes, ATextMayHaveAZeroInIt) {
  Scene scene({{"A"}});
  const std::string rewrite("b\0c", 3);
  for (int turn = 0; turn < 2; ++turn) {
    const Ticket first = scene.Get(Completion("a\\u0000b"), "/v1/completions", {.model_rewrite = "c"});
    const Ticket second = scene.Get(Completion("a"), "/v1/completions", {.model_rewrite = rewrite});
    EXPECT_EQ(first.model(), std::string_view("a\0b", 3));
    EXPECT_EQ(first.target_model(), "c");
    EXPECT_EQ(second.model(), "a");
    EXPECT_EQ(second.target_model(), rewrite);
  }
}

TEST(KeptRoutes, MoreThanAreKeptAndTextsThatAreTooLong) {
  Scene scene({{"A"}});
  const std::string prefix(1500, 'x');
  std::vector<std::string> models;
  for (int i = 0; i < 150; ++i) models.push_back((i % 50 == 7 ? prefix : "m") + std::to_string(i));
  for (int turn = 0; turn < 3; ++turn) {
    for (const std::string& model : models) ASSERT_EQ(scene.Get(Completion(model)).model(), model);
  }
  const tests::PrometheusPage page = scene.Page();
  EXPECT_EQ(page.Sum("llm_d_epp_request_total"), 450);
  EXPECT_EQ(page.Value("llm_d_epp_request_total", {{"model_name", "m0"}}), 3);
  EXPECT_EQ(page.Value("llm_d_epp_request_total", {{"model_name", std::string(128, 'x')}}), 9)
      << "three of them";
}

TEST(KeptRoutes, NoSeriesBeforeARequestWasSent) {
  Scene scene({{"A", 60, 0.9f}}, {Model("m", api::Criticality::kSheddable)});
  for (int i = 0; i < 3; ++i) EXPECT_EQ(scene.Refused(Completion("m")).status, 429);
  const std::string page = scene.registry.Render();
  EXPECT_THAT(page, Not(HasSubstr("llm_d_epp_request_total{")));
  EXPECT_THAT(page, Not(HasSubstr("llm_d_epp_request_running{")));
  EXPECT_THAT(page, HasSubstr("llm_d_epp_scheduler_attempts_total{status=\"failure\",target_model_name=\"m\","
                              "endpoint_name=\"\",namespace=\"\",port=\"\"} 3\n"));
}

// Open tickets hold names that clients made up; what a worker has looked up starts anew meanwhile.
TEST(KeptRoutes, TicketsOutliveThem) {
  auto scene = std::make_unique<Scene>(std::vector<tests::ServerState>{{"A"}});
  std::vector<Ticket> open;
  for (int i = 0; i < 10'000; ++i) {
    Ticket ticket = scene->Get(Completion("model-" + std::to_string(i)), "/v1/completions",
                               {.fairness_id = std::to_string(i)});
    if (i % 50 == 0) open.push_back(std::move(ticket));
  }
  scene->pool.manifests().endpoints.clear();
  scene->pool.fleet().Apply(scene->pool.manifests());
  EXPECT_EQ(scene->Refused(Completion("m")).status, 503);
  for (size_t i = 0; i < open.size(); ++i) {
    const std::string model = "model-" + std::to_string(i * 50);
    EXPECT_EQ(open[i].model(), model);
    EXPECT_EQ(open[i].target_model(), model);
    EXPECT_EQ(open[i].pool_key(), "default/pool");
    EXPECT_EQ(open[i].destinations(), "10.0.0.1:8000");
    open[i].OnResponseHeaders(500, "10.0.0.9:1", false);
    open[i].OnComplete();
  }
  const tests::PrometheusPage page = scene->Page();
  EXPECT_EQ(page.Value("llm_d_epp_request_duration_seconds_count",
                       {{"model_name", "model-50"}, {"fairness_id", "50"}}),
            1);
  EXPECT_EQ(page.Sum("llm_d_epp_request_total"), 10'000);
  EXPECT_EQ(page.Sum("llm_d_epp_request_running"), 0);
}

TEST(Tickets, ARetryTakesItsTokensAlong) {
  Scene scene({{"A", 0}, {"B", 5}});
  Ticket ticket = scene.Get(R"({"model":"m","stream":true,"prompt":")" + std::string(40'000, 'x') + "\"}");
  const auto work = [&scene](size_t i) { return scene.cell(i).work_ms(scene.clock.Now()); };
  const float first = work(0), second = work(1);
  ticket.OnResponseHeaders(200, "10.0.0.2:8000", false);
  EXPECT_LT(work(0), first / 2) << "10,000 tokens less";
  EXPECT_NEAR(work(1) - second, first - work(0), 1);
  EXPECT_EQ(scene.Page().Value("fairway_served_elsewhere_total"), 1);
}

TEST(Tickets, HoldAsManyDestinationsAsThereAre) {
  std::vector<tests::ServerState> servers(20, tests::ServerState{});
  for (size_t i = 0; i < servers.size(); ++i) servers[i].name = "s" + std::to_string(i);
  RouterOptions options;
  options.scheduling.max_choices = scheduling::kMaxChoices;
  Scene scene(servers, {}, options);
  const auto long_addresses = [&] {
    uint16_t port = 8000;
    for (auto& endpoint : scene.pool.manifests().endpoints) {
      endpoint.address = "fd00:1111:2222:3333:4444:5555:6666:7777";
      endpoint.port = port++;
    }
    scene.pool.fleet().Apply(scene.pool.manifests());
    for (size_t i = 0; i < servers.size(); ++i) scene.pool.Scrape(i, servers[i], kSecond);
  };
  std::vector<Ticket> open;
  for (int turn = 0; turn < 2; ++turn) {
    for (int i = 0; i < 100; ++i) {  // more than a worker keeps memory of
      open.push_back(scene.Get(Completion("m")));
      const auto parts = base::Split(open.back().destinations(), ',');
      ASSERT_EQ(parts.size(), scheduling::kMaxChoices) << open.back().destinations();
      ASSERT_EQ(parts[0], open.back().destination());
    }
    open.erase(open.begin(), open.begin() + 50);
    long_addresses();
  }
  open.clear();
  for (size_t i = 0; i < servers.size(); ++i) EXPECT_EQ(scene.cell(i).own(), 0u);
}

// ---- Why.

TEST(Explain, SaysWhatWasDroppedAndWhy) {
  std::string why;
  Scene scene(
      {{"A", 10, 0.30f, {"lora-x"}, {}, 2}, {"B", 5, 0.70f, {}, {}, 2}, {"C", 60, 0.20f, {"lora-x"}, {}, 2}},
      {Model("chat", api::Criticality::kCritical, {{"lora-x", {}}})},
      {.explain = [&why](std::string_view text) { why = text; }});
  scene.Get(Completion("chat"), "/v1/completions", {.request_id = "r-1"});
  EXPECT_THAT(
      why,
      HasSubstr(
          "request r-1 model chat -> lora-x (critical) pool default/pool: picked A 10.0.0.1:8000, then "));
  EXPECT_THAT(why, HasSubstr("[fresh signals, criticality-tree]"));
  EXPECT_THAT(why, HasSubstr("queue-limit-filter: 3 -> 2: C: queue 60 is not below 50\n"));
  EXPECT_THAT(why,
              HasSubstr("lora-affinity-filter: 2 -> 1: B: the adapter is not loaded here, but elsewhere\n"));
  EXPECT_THAT(why, HasSubstr("  candidate own  others queue   running KV use  work ahead  own prompt  "
                             "adapter   scraped    score\n"));
  EXPECT_THAT(
      why,
      HasSubstr("  A         0    10     10      0       30 %    605 ms      0 ms        resident  20 ms"));
}

TEST(Explain, NamesTheObjectiveAndTheRewrite) {
  std::string why;
  PolicyScene scene({{"A", 0, 0.1f}}, {}, kObjectives, {tests::Rewrite("canary", {"chat"}, {{"v2", {}}})},
                    {.explain = [&why](std::string_view text) { why = text; }});
  scene.Get(Completion("chat"), "/v1/completions", {.request_id = "r-1", .objective = "batch"});
  EXPECT_THAT(why, testing::StartsWith(
                       "request r-1 model chat -> v2 (rewrite canary) (objective batch, priority -10) "
                       "pool default/pool: picked A "));
}

TEST(Scores, AreKeptOnRequest) {
  Scene scene({{"A", 0}, {"B", 5}}, {}, {.keep_scores = true});
  const Ticket ticket = scene.Get(Completion("m"));
  ASSERT_EQ(ticket.scores().size(), 2u);
  EXPECT_EQ(ticket.scores()[0].first, "10.0.0.1:8000");
  EXPECT_GT(ticket.scores()[0].second, ticket.scores()[1].second);
}

// Counters are kept by an endpoint's number in its snapshot: the number means another endpoint in the next
// one.
TEST(Metrics, AttemptsAreTheEndpointsOwnWhateverItsNumber) {
  Scene scene({{"A"}, {"B"}});
  std::map<std::string, std::map<std::string, int>> expected;  // model -> address -> picks
  const auto ask_all = [&] {
    for (int i = 0; i < 40; ++i) {
      const std::string model = "m" + std::to_string(i % 10);  // more than one worker keeps at hand
      const Ticket ticket = scene.Get(Completion(model));
      ++expected[model][std::string(ticket.destination())];
    }
  };
  ask_all();
  auto& endpoints = scene.pool.manifests().endpoints;
  std::swap(endpoints[0], endpoints[1]);
  api::Endpoint third = endpoints[0];
  third.name = "C";
  third.address = "10.0.0.3";
  endpoints.insert(endpoints.begin(), third);
  scene.pool.fleet().Apply(scene.pool.manifests());
  ask_all();
  const std::string page = scene.registry.Render();
  const std::map<std::string, std::string> names{
      {"10.0.0.1:8000", "A"}, {"10.0.0.2:8000", "B"}, {"10.0.0.3:8000", "C"}};
  for (const auto& [model, picks] : expected) {
    for (const auto& [address, count] : picks) {
      EXPECT_THAT(page,
                  HasSubstr(R"(llm_d_epp_scheduler_attempts_total{status="success",target_model_name=")" +
                            model + R"(",endpoint_name=")" + names.at(address) +
                            R"(",namespace="default",port="8000"} )" + std::to_string(count) + "\n"));
    }
  }
}

TEST(Router, EachPoolHasTheParsersOfItsConfig) {
  Scene scene({{.name = "a"}});
  EXPECT_EQ(scene.router->parsers(), payload::Parsers::Default());
  const auto grpc = tests::ConfigOf(
      "plugins: [{type: queue-scorer}]\nrequestHandler: {parsers: [{pluginRef: vllmgrpc-parser}]}\n");
  scene.router->Swap(std::make_shared<scheduling::ConfigSet>(
      scheduling::ConfigSet{.common = tests::ConfigOf("plugins: [{type: queue-scorer}]\n"),
                            .of_pools = {{scene.pool.pool()->key, grpc}}}));
  EXPECT_EQ(scene.router->parsers(), std::nullopt);
  EXPECT_EQ(ToString(scene.router->ParsersOf(*scene.worker, "")), "vllmgrpc-parser") << "the only pool";
  EXPECT_EQ(ToString(scene.router->ParsersOf(*scene.worker, scene.pool.pool()->key)), "vllmgrpc-parser");
  EXPECT_EQ(scene.router->ParsersOf(*scene.worker, "default/other"), payload::Parsers::Default());
  scene.router->Swap(
      std::make_shared<scheduling::ConfigSet>(scheduling::ConfigSet{.common = grpc, .of_pools = {}}));
  ASSERT_TRUE(scene.router->parsers());
  EXPECT_EQ(ToString(*scene.router->parsers()), "vllmgrpc-parser");
}

TEST(Router, AConfigThatWasSwappedOutIsFreedOnceNoWorkerDecidesByIt) {
  auto first = tests::ConfigOf("plugins: [{type: queue-scorer}]\n");
  const std::weak_ptr<const scheduling::Config> before = first;
  Scene scene({{.name = "a"}}, {}, {.config = std::move(first)});
  const auto ask = [&] { scene.Get(R"({"model":"m","prompt":"hi"})").OnResponseHeaders(200, "", true); };
  ask();
  scene.router->Swap(std::make_shared<scheduling::ConfigSet>(scheduling::ConfigSet{
      .common = tests::ConfigOf("plugins: [{type: running-requests-size-scorer}]\n"), .of_pools = {}}));
  scene.router->FreeUnused();
  EXPECT_FALSE(before.expired()) << "the worker may decide by it";
  ask();
  scene.router->FreeUnused();
  EXPECT_TRUE(before.expired());
}

TEST(Router, AnswersNameWhoGaveThemWhereAPluginWantsIt) {
  Scene scene({{.name = "a"}, {.name = "b"}}, {},
              {.config = tests::ConfigOf(
                   "plugins: [{type: queue-scorer}, {type: destination-endpoint-served-verifier}]\n")});
  Ticket ticket = scene.Get(R"({"model":"m","prompt":"hi"})");
  ticket.OnResponseHeaders(200, "10.0.0.2:8000", false);
  const Ticket::Headers wanted = {{"x-conformance-test-served-endpoint", "10.0.0.2:8000"}};
  EXPECT_EQ(ticket.response_headers(), wanted);
  Ticket untold = scene.Get(R"({"model":"m","prompt":"hi"})");
  untold.OnResponseHeaders(200, "", false);
  EXPECT_EQ(untold.response_headers().at(0).second, "fail: missing destination endpoint served metadata");
}

TEST(Router, AnAgentsSessionIsItsFairnessIdWhereItSaysNone) {
  Scene scene({{.name = "a"}}, {},
              {.config = tests::ConfigOf("plugins: [{type: queue-scorer}, {type: agent-identity}]\n")});
  const auto asks = [&](std::string_view said) {
    const std::array<std::pair<std::string_view, std::string_view>, 1> headers = {
        std::pair<std::string_view, std::string_view>{"session-id", "agent-7"}};
    RequestInput input;
    input.headers = headers;
    input.fairness_id = said;
    scene.Get(R"({"model":"m","prompt":"hi"})", "/v1/completions", input);
  };
  asks("");
  asks("own");
  const auto page = scene.Page();
  for (const char* id : {"agent-7", "own"})
    EXPECT_EQ(page.Value("llm_d_epp_request_total", {{"fairness_id", id}}), 1) << id;
}

TEST(Router, ScoresAreThoseOfWhomTheFiltersLeft) {
  Scene scene(
      {{.name = "a", .waiting = 3}, {.name = "b", .waiting = 9}, {.name = "c", .waiting = 50}}, {},
      {.config = tests::ConfigOf(
           "plugins: [{type: utilization-filter, parameters: {conditions: [{metric: waiting-queue, maxValue: "
           "20}]}}, {type: queue-scorer}]\n"),
       .keep_scores = true});
  const Ticket ticket = scene.Get(R"({"model":"m","prompt":"hi"})");
  const Ticket::Scores wanted = {{"10.0.0.1:8000", 1.0f}, {"10.0.0.2:8000", 0.0f}};
  EXPECT_EQ(ticket.scores(), wanted);
}

// Two bytes are a token, and five are two.
TEST(Router, ThePromptsLastTokenMayBeShorter) {
  for (const auto& [prompt, tokens] : {std::pair{"ab", 1u}, {"abcd", 1u}, {"abcde", 2u}}) {
    Scene scene({{.name = "a"}});
    const Ticket ticket = scene.Get(std::string(R"({"model":"m","stream":true,"prompt":")") + prompt + "\"}");
    EXPECT_EQ(scene.pool.pool()->endpoints[0].cell->load().own_work().tokens, tokens) << prompt;
  }
}

}  // namespace
}  // namespace fairway::routing
