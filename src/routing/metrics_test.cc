#include "routing/metrics.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/router_scene.h"

// Of this thread. The sanitizers have functions of this name of their own.
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define FAIRWAY_COUNTS_LOCKS 1
static thread_local uint64_t locks_taken = 0;
extern "C" int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept {
  static const auto real =
      reinterpret_cast<int (*)(pthread_mutex_t*)>(dlsym(RTLD_NEXT, "pthread_mutex_lock"));
  ++locks_taken;
  return real(mutex);
}
#endif

namespace fairway::routing {
namespace {

using base::kSecond;
using tests::Completion;
using tests::Model;
using tests::PrometheusPage;
using tests::Scene;

constexpr base::Nanos kMinute = 60 * kSecond;
constexpr const char* kRequests = "llm_d_epp_request_total";
constexpr const char* kAttempts = "llm_d_epp_scheduler_attempts_total";

// A path whose models are not checked: clients can make names up in any pool.
constexpr const char* kUncheckedPath = "/v1/rerank";

std::string Numbered(const std::string& prefix, int i) { return prefix + std::to_string(i); }

// With a response that fills every histogram.
void Serve(Scene& scene, std::string_view body, std::string_view path, const RequestInput& input) {
  Ticket ticket = scene.Get(body, path, input);
  ticket.OnResponseHeaders(200, "", true);
  ticket.OnResponseBody(100);
  ticket.OnResponseBody(100);
  ticket.OnUsage({.found = true, .input_tokens = 100, .output_tokens = 50, .cached_tokens = 20});
  ticket.OnComplete();
}

// ---- Prefix caches.

TEST(PrefixCaches, AreCountedAsPredictedAndAsTold) {
  Scene scene({{"A"}});
  // 20 blocks of 64 tokens; the estimate has 4 bytes to a token.
  const std::string body = R"({"model":"m","prompt":")" + std::string(20 * 256, 'x') + R"("})";
  const auto serve = [&](payload::Usage usage) {
    Ticket ticket = scene.Get(body);
    ticket.OnResponseHeaders(200, "", true);
    ticket.OnResponseBody(100);
    ticket.OnUsage(usage);
    ticket.OnComplete();
  };
  serve({.found = true, .input_tokens = 1000, .cached_tokens = 0, .tells_cached = true});
  serve({.found = true, .input_tokens = 1000, .cached_tokens = 900, .tells_cached = true});
  serve({.found = true, .input_tokens = 1000});
  const PrometheusPage page = scene.Page();
  const PrometheusPage::Labels plugin{{"plugin_name", "approx-prefix-cache-producer"},
                                      {"plugin_type", "approx-prefix-cache-producer"}};
  EXPECT_EQ(page.Value("llm_d_epp_prefix_indexer_size", plugin), 20);
  EXPECT_EQ(page.Value("inference_extension_prefix_indexer_size"), 20);
  EXPECT_EQ(page.Value("llm_d_epp_prefix_indexer_hit_ratio_count", plugin), 3);
  EXPECT_EQ(page.Value("llm_d_epp_prefix_indexer_hit_ratio_sum", plugin), 2);
  EXPECT_EQ(page.Value("llm_d_epp_prefix_indexer_hit_bytes_sum", plugin), 2 * 20 * 256);
  EXPECT_EQ(page.Value("llm_d_epp_prefix_predicted_cached_tokens_sum", plugin), 2 * 1280);
  EXPECT_EQ(page.Value("llm_d_epp_prefix_prompt_tokens_sum", plugin), 3 * 1280);
  const auto predicted = [&](const char* state) {
    return page.Value("fairway_prefix_predicted_tokens_total", {{"pool", "default/pool"}, {"state", state}});
  };
  EXPECT_EQ(predicted("cached"), 2 * 1280);
  EXPECT_EQ(predicted("uncached"), 1280);
  const auto answered = [&](const char* source, const char* state) {
    return page.Value("fairway_prefix_answered_tokens_total",
                      {{"pool", "default/pool"}, {"source", source}, {"state", state}});
  };
  EXPECT_EQ(answered("predicted", "cached"), 1280);
  EXPECT_EQ(answered("predicted", "uncached"), 1280);
  EXPECT_EQ(answered("told", "cached"), 900);
  EXPECT_EQ(answered("told", "uncached"), 1100);
  const PrometheusPage::Labels endpoint{{"pool", "default/pool"}, {"endpoint", "A"}};
  EXPECT_EQ(page.Value("fairway_prefix_endpoint_tokens", endpoint), 1280);
  EXPECT_EQ(page.Value("fairway_prefix_endpoint_capacity_tokens", endpoint), 7812 * 64);
}

// ---- What clients write.

TEST(ClientText, MakesNoPageLargeAndEveryPageCanBeRead) {
  Scene scene({{"A"}, {"B"}});
  for (int i = 0; i < 300; ++i) {
    const std::string name = Numbered("", i) + std::string(4000, 'x');
    Serve(scene, Completion(name), "/v1/completions", {});
    const std::string rewrite = Numbered("", i) + std::string(4'000, '\xff');
    Serve(scene, Completion("m"), "/v1/completions", {.model_rewrite = rewrite});
    const std::string flow = Numbered("a\xff", i) + "\"}\n";
    Serve(scene, Completion("m"), "/v1/completions", {.fairness_id = flow});
  }
  const std::string text = scene.registry.Render();
  EXPECT_LE(text.size(), 10'000'000u);
  const PrometheusPage page(text);
  EXPECT_THAT(page.problems(), testing::IsEmpty());
  EXPECT_EQ(page.Sum(kRequests), 900);
  for (const char* label : {"model_name", "target_model_name", "fairness_id"}) {
    for (const std::string& value : page.ValuesOf(kRequests, label)) EXPECT_LE(value.size(), 128u);
  }
  EXPECT_EQ(page.Value("fairway_metrics_left_out_series"), 0);
}

TEST(ClientText, FairnessIdsAreCutBetweenCharacters) {
  Scene scene({{"A"}});
  const std::string cut = std::string(127, 'x');
  for (const char* tail : {"\xe2\x82\xac", "\xe2\x82\xac and more", "\xc3\xa9"}) {
    const std::string id = cut + tail;
    scene.Get(Completion("m"), "/v1/completions", {.fairness_id = id});
  }
  const std::string longer(5000, 'y');
  scene.Get(Completion("m"), "/v1/completions", {.fairness_id = longer});
  const PrometheusPage page = scene.Page();
  EXPECT_EQ(page.ValuesOf(kRequests, "fairness_id"), (std::set<std::string>{cut, std::string(128, 'y')}));
}

TEST(ClientText, ThePageMayBeMadeSmallerAndThenClientsGetLessOfIt) {
  Scene scene({{"A"}}, {Model("chat", api::Criticality::kCritical)});
  scene.registry.set_max_page_bytes(1'000'000);
  for (int i = 0; i < 200; ++i) {
    const std::string id = Numbered("flow-", i);
    Serve(scene, Completion("chat"), "/v1/completions", {.fairness_id = id});
  }
  const std::string text = scene.registry.Render();
  EXPECT_LE(text.size(), 1'000'000u);
  const auto ids = PrometheusPage(text).ValuesOf(kRequests, "fairness_id");
  EXPECT_GT(ids.size(), 5u);
  EXPECT_LT(ids.size(), 20u);
}

// ---- Who keeps a series.

TEST(Names, WhatManifestsAndServersNameKeepsItsSeriesWhateverClientsMakeUp) {
  Scene scene({{"A", 0, 0.1f, {"lora-x"}, {}, 4}},
              {Model("chat", api::Criticality::kCritical, {{"base", {}}})});
  for (int i = 0; i < 3000; ++i) {
    const std::string name = Numbered("made-up-", i);
    scene.Get(Completion(name), kUncheckedPath, {.fairness_id = i % 2 == 0 ? std::string_view(name) : ""});
  }
  scene.Get(Completion("chat"));
  scene.Get(Completion("lora-x"), kUncheckedPath);
  scene.Get(Completion("chat"), "/v1/completions", {.fairness_id = "late"});
  const PrometheusPage page = scene.Page();
  EXPECT_EQ(
      page.Value(kRequests,
                 {{"model_name", "chat"}, {"target_model_name", "base"}, {"fairness_id", "default-flow"}}),
      1);
  EXPECT_EQ(page.Value(kRequests, {{"model_name", "chat"}, {"fairness_id", "other"}}), 1);
  EXPECT_EQ(page.Value(kRequests, {{"model_name", "lora-x"}}), 1);
  EXPECT_GT(page.Value(kRequests, {{"model_name", "other"}, {"fairness_id", "other"}}).value_or(0), 2000);
  EXPECT_EQ(page.Sum(kRequests), 3003);
}

// In a pool without InferenceModels only the pages of its servers say what is no client's invention.
TEST(Names, BaseModelsThatPagesNameKeepTheirSeriesFromTheFirstPageOn) {
  Scene scene({{"A"}});
  scene.registry.set_max_page_bytes(1'000'000);
  const auto flood = [&](int from) {
    for (int i = from; i < from + 300; ++i) scene.Get(Completion(Numbered("made-up-", i)));
  };
  const auto count = [&] { return scene.Page().Value(kRequests, {{"model_name", "org/llama"}}).value_or(0); };
  flood(0);
  scene.Get(Completion("org/llama"));
  EXPECT_EQ(count(), 0) << "one made-up name among many, as far as is known";
  scene.pool.fleet().SetServed("default/pool", "a", {"org/llama"});
  scene.pool.fleet().PublishNames();
  scene.clock.Advance(2 * kSecond);
  scene.Get(Completion("org/llama"));
  EXPECT_EQ(count(), 1);
  // Nor does an idle hour take it away, while others take all the room that there is.
  for (int i = 0; i < 6; ++i) {
    scene.clock.Advance(10 * kMinute);
    flood(10'000 * (i + 1));
    scene.Page();
  }
  EXPECT_EQ(count(), 1);
  scene.Get(Completion("org/llama"));
  EXPECT_EQ(count(), 2);
}

TEST(Names, MadeUpModelsAndFairnessIdsDoNotTakeEachOthersRoom) {
  Scene scene({{"A"}});
  for (int i = 0; i < 500; ++i) scene.Get(Completion(Numbered("m", i)));
  scene.Get(Completion("m1"), "/v1/completions", {.fairness_id = "tenant"});
  EXPECT_EQ(scene.Page().Value(kRequests, {{"model_name", "m1"}, {"fairness_id", "tenant"}}), 1);
  Scene other({{"A"}});
  for (int i = 0; i < 500; ++i) {
    const std::string id = Numbered("flow-", i);
    other.Get(Completion("llama"), "/v1/completions", {.fairness_id = id});
  }
  other.Get(Completion("mistral"), "/v1/completions", {.fairness_id = "late"});
  const PrometheusPage page = other.Page();
  EXPECT_EQ(page.Value(kRequests, {{"fairness_id", "flow-99"}}), 1);
  EXPECT_EQ(page.Value(kRequests, {{"model_name", "mistral"}, {"fairness_id", "other"}}), 1);
  EXPECT_EQ(page.Sum(kRequests, {{"model_name", "llama"}}), 500);
}

TEST(Names, IdleOnesGiveTheirSeriesBack) {
  Scene scene({{"A"}});
  const auto ask = [&scene](const std::string& model) { return scene.Get(Completion(model)); };
  const Ticket open = ask("streams-for-hours");
  for (int i = 0; i < 1000; ++i) ask(Numbered("m", i));
  ask("newcomer");
  const PrometheusPage full = scene.Page();
  EXPECT_EQ(full.Value(kRequests, {{"model_name", "newcomer"}}), std::nullopt);
  EXPECT_EQ(full.Value(kRequests, {{"model_name", "m1"}}), 1);
  for (int i = 0; i < 3; ++i) {
    scene.clock.Advance(4 * kMinute);
    ask("m0");
  }
  ask("newcomer");  // no page was written meanwhile
  const PrometheusPage page = scene.Page();
  EXPECT_EQ(page.Value(kRequests, {{"model_name", "newcomer"}}), 1);
  EXPECT_EQ(page.Value(kRequests, {{"model_name", "m0"}}), 4);
  EXPECT_EQ(page.Value(kRequests, {{"model_name", "m1"}}), std::nullopt);
  EXPECT_EQ(page.Value("llm_d_epp_request_running", {{"model_name", "streams-for-hours"}}), 1);
  EXPECT_EQ(page.ValuesOf(kAttempts, "target_model_name"),
            (std::set<std::string>{"m0", "newcomer", "other", "streams-for-hours"}));
  EXPECT_EQ(page.Value(kAttempts, {{"target_model_name", "newcomer"}}), 1)
      << "its number counted for another";
  // Whoever looked one up before finds it anew.
  ask("m1");
  EXPECT_EQ(scene.Page().Value(kRequests, {{"model_name", "m1"}}), 1);
}

// Nobody reads the page for an hour: what was counted by then is not taken for somebody else's.
TEST(Names, WhatIdledBeforeTheFirstPageIsOnNone) {
  Scene scene({{"A"}});
  for (int hour = 0; hour < 6; ++hour) {
    for (int i = 0; i < 80; ++i) {
      const std::string name = Numbered(Numbered("h", hour) + "-", i);
      for (int k = 0; k <= hour; ++k) scene.Get(Completion(name));
    }
    scene.clock.Advance(60 * kMinute);
  }
  scene.Get(Completion("now"));
  scene.Page();
  scene.Get(Completion("later"));
  const PrometheusPage page = scene.Page();
  EXPECT_EQ(page.Value(kAttempts, {{"target_model_name", "later"}}), 1);
  for (const PrometheusPage::Sample& sample : page.samples()) {
    if (sample.name != kAttempts || sample.labels.at("target_model_name") == "other") continue;
    EXPECT_EQ(sample.value, page.Value(kRequests, {{"model_name", sample.labels.at("target_model_name")}}))
        << sample.labels.at("target_model_name");
  }
}

TEST(Names, AnIdleOneTakesItsErrorsAndRewritesAlong) {
  Scene scene({{"A"}});
  scene.pool.manifests().rewrites = {tests::Rewrite("any", {}, {{"base", {}}})};
  scene.pool.fleet().Apply(scene.pool.manifests());
  scene.Get(Completion("typo")).Abort();
  const auto count = [&scene](const char* name) {
    return scene.Page().Value(name, {{"model_name", "typo"}});
  };
  for (const char* name :
       {"llm_d_epp_request_error_total", "llm_d_epp_model_rewrite_decisions_total", kRequests}) {
    EXPECT_EQ(count(name), 1) << name;
  }
  scene.clock.Advance(11 * kMinute);
  for (const char* name :
       {"llm_d_epp_request_error_total", "llm_d_epp_model_rewrite_decisions_total", kRequests}) {
    EXPECT_EQ(count(name), std::nullopt) << name;
  }
}

TEST(Names, AnIdleOneTakesTheStagesOfItsRequestsAlongOnceNobodySharesThem) {
  Scene scene({{"A"}}, {}, {.config = tests::ConfigOf(R"(
plugins:
- {type: disagg-profile-handler}
- {type: random-picker}
schedulingProfiles:
- {name: decode, plugins: [{pluginRef: random-picker}]}
)")});
  const auto serve = [&](const char* fairness_id) {
    Serve(scene, Completion("typo"), "/v1/completions", {.fairness_id = fairness_id});
  };
  const auto count = [&] {
    return scene.Page().Value("llm_d_epp_disagg_decision_total", {{"model_name", "typo"}});
  };
  serve("a");
  serve("b");
  EXPECT_EQ(count(), 2);
  scene.clock.Advance(6 * kMinute);
  serve("a");
  scene.clock.Advance(6 * kMinute);
  EXPECT_EQ(count(), 3) << "b is gone, a shares it";
  scene.clock.Advance(6 * kMinute);
  EXPECT_EQ(count(), std::nullopt);
}

TEST(Names, WhatIsNoLongerDeclaredMayIdle) {
  Scene scene({{"A"}},
              {Model("chat", api::Criticality::kCritical), Model("old", api::Criticality::kCritical)});
  scene.Get(Completion("chat"));
  scene.Get(Completion("old"));
  scene.clock.Advance(20 * kMinute);
  EXPECT_EQ(scene.Page().Value(kRequests, {{"model_name", "old"}}), 1);
  scene.pool.manifests().models.pop_back();
  scene.pool.fleet().Apply(scene.pool.manifests());
  const PrometheusPage page = scene.Page();
  EXPECT_EQ(page.Value(kRequests, {{"model_name", "old"}}), std::nullopt);
  EXPECT_EQ(page.Value(kRequests, {{"model_name", "chat"}}), 1);
}

// ---- Pods and pools.

// After 45 roll-outs of 100 Pods none of the present ones had a series.
TEST(Endpoints, RollOutsLeaveNoSeriesBehind) {
  Scene scene({{"A"}});
  const api::Endpoint pod = scene.pool.manifests().endpoints[0];
  for (int turn = 0; turn < 60; ++turn) {
    auto& endpoints = scene.pool.manifests().endpoints;
    endpoints.clear();
    for (int i = 0; i < 100; ++i) {
      endpoints.push_back(pod);
      endpoints.back().name = Numbered(Numbered("pod-", turn) + "-", i);
      endpoints.back().address = "10." + std::to_string(turn) + ".0." + std::to_string(i + 1);
    }
    scene.pool.fleet().Apply(scene.pool.manifests());
    for (int i = 0; i < 200; ++i) scene.Get(Completion("m"));
  }
  const PrometheusPage page = scene.Page();
  const auto names = page.ValuesOf(kAttempts, "endpoint_name");
  EXPECT_GT(names.size(), 50u);
  for (const std::string& name : names) EXPECT_TRUE(name.starts_with("pod-59-")) << name;
  EXPECT_EQ(page.Sum(kAttempts), 200);
}

TEST(Endpoints, TwoPoolsOfOneNameAreTwoSeries) {
  Scene scene({{"A", 2}, {"B", 4}, {"C", 6}});
  auto& manifests = scene.pool.manifests();
  api::InferencePool pool = manifests.pools[0];
  pool.meta.namespace_name = "team-b";
  manifests.pools.push_back(pool);
  api::Endpoint endpoint = manifests.endpoints[0];
  endpoint.namespace_name = "team-b";
  endpoint.address = "10.1.0.1";
  manifests.endpoints.push_back(endpoint);
  scene.pool.fleet().Apply(manifests);
  const auto snapshot = scene.pool.fleet().published().Load();
  auto& cell = *snapshot->pools.at("team-b/pool")->endpoints[0].cell;
  cell.BeginScrape(kSecond);
  cell.ApplyScrape({.waiting = 40, .running = 1, .kv_usage = 0.5f}, kSecond);
  scene.Get(Completion("m"), "/v1/completions", {.pool_key = "team-b/pool"});
  const PrometheusPage page = scene.Page();
  EXPECT_EQ(page.Value("llm_d_epp_ready_endpoints", {{"name", "pool"}, {"namespace", "default"}}), 3);
  EXPECT_EQ(page.Value("llm_d_epp_average_queue_size", {{"name", "pool"}, {"namespace", "default"}}), 4);
  EXPECT_EQ(page.Value("llm_d_epp_ready_endpoints", {{"name", "pool"}, {"namespace", "team-b"}}), 1);
  EXPECT_EQ(page.Value("inference_pool_average_queue_size", {{"name", "pool"}, {"namespace", "team-b"}}), 40);
  EXPECT_EQ(
      page.Value("inference_pool_per_pod_queue_size", {{"model_server_pod", "A"}, {"namespace", "team-b"}}),
      40);
  EXPECT_EQ(page.Value(kAttempts, {{"endpoint_name", "A"}, {"namespace", "team-b"}}), 1);
  EXPECT_EQ(page.Value("fairway_decisions_total", {{"pool", "team-b/pool"}}), 1);
  manifests.pools.pop_back();
  scene.pool.fleet().Apply(manifests);
  const PrometheusPage without = scene.Page();
  for (const PrometheusPage::Sample& sample : without.samples()) {
    for (const auto& [name, value] : sample.labels) EXPECT_NE(value.substr(0, 6), "team-b") << sample.name;
  }
}

TEST(Endpoints, OneThatIsInTwoPoolsIsOneSeries) {
  Scene scene({{"A"}});
  auto& manifests = scene.pool.manifests();
  manifests.pools.push_back(manifests.pools[0]);
  manifests.pools.back().meta.name = "second";
  scene.pool.fleet().Apply(manifests);
  for (const char* key : {"default/pool", "default/second", "default/second"}) {
    scene.Get(Completion("m"), "/v1/completions", {.pool_key = key});
  }
  EXPECT_EQ(scene.Page().Value(kAttempts, {{"endpoint_name", "A"}}), 3);
}

// ---- Once.

// The body comes after the decision, and with it a second one.
TEST(Counts, ARequestWhoseBodyComesLaterIsOne) {
  Scene scene({{"A"}});
  {
    auto begun = scene.router->Begin(*scene.worker, {.provisional = true});
    EXPECT_EQ(scene.Page().Sum(kRequests), 0);
  }
  const Ticket ticket = scene.Get(Completion("m"));
  const PrometheusPage page = scene.Page();
  EXPECT_EQ(page.Sum(kRequests), 1);
  EXPECT_EQ(page.Sum("llm_d_epp_request_size_bytes_count"), 1);
  EXPECT_EQ(page.Sum(kAttempts), 1);
  EXPECT_EQ(page.Sum("fairway_decisions_total"), 1);
}

TEST(Counts, ATicketThatFailsTwiceIsOneError) {
  Scene scene({{"A"}});
  {
    Ticket failed = scene.Get(Completion("m"));
    failed.OnResponseHeaders(500, "", false);
    failed.OnResponseHeaders(502, "", false);
    failed.Abort();
  }
  scene.Get(Completion("m")).Abort();
  const PrometheusPage page = scene.Page();
  EXPECT_EQ(page.Value("llm_d_epp_request_error_total", {{"error_code", "ModelServerError"}}), 1);
  EXPECT_EQ(page.Value("llm_d_epp_request_error_total", {{"error_code", "ClientClosedRequest"}}), 1);
}

TEST(Counts, AResponseIsAStreamWhenItSaysSo) {
  Scene scene({{"A"}});
  for (const bool stream : {true, false, false}) {
    Ticket ticket = scene.Get(Completion("m"));
    ticket.OnResponseHeaders(200, "", stream);
    ticket.OnResponseBody(1);
    ticket.OnComplete();
  }
  const PrometheusPage page = scene.Page();
  EXPECT_EQ(page.Value("llm_d_epp_request_ttft_seconds_count", {{"streaming", "true"}}), 1);
  EXPECT_EQ(page.Value("llm_d_epp_request_ttft_seconds_count", {{"streaming", "false"}}), 2);
}

#if defined(FAIRWAY_COUNTS_LOCKS)
TEST(Locks, RequestsAndRefusalsTakeNoneHoweverManyNamesThereAre) {
  Scene open({{"A"}, {"B"}});
  Scene declared({{"A", 60, 0.95f}}, {Model("m", api::Criticality::kSheddable)});
  Scene empty({});
  const auto round = [&] {
    for (int i = 0; i < 5000; ++i) {
      const std::string name = Numbered("name-", i);
      open.Get(Completion("m"), "/v1/completions", {.fairness_id = name});
      open.Get(Completion(name));
      Ticket failed = open.Get(Completion("m"), "/v1/completions", {.model_rewrite = name});
      failed.OnResponseHeaders(500, "", false);
      EXPECT_EQ(declared.Refused(Completion(name)).status, 404);
      EXPECT_EQ(declared.Refused(Completion("m"), "/v1/completions", {.fairness_id = name}).status, 429);
      EXPECT_EQ(empty.Refused(Completion(name)).status, 503);
      EXPECT_EQ(open.Refused("{", "/v1/completions", {.fairness_id = name}).status, 400);
    }
  };
  round();
  const uint64_t before = locks_taken;
  round();
  EXPECT_EQ(locks_taken, before);
  EXPECT_GT(before, 0u) << "none is counted";
}
#endif

}  // namespace
}  // namespace fairway::routing
