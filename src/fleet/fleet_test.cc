#include "fleet/fleet.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/random.h"

namespace fairway::fleet {
namespace {

api::Manifests OnePool(int endpoints) {
  api::Manifests m;
  api::InferencePool pool;
  pool.meta.name = "pool";
  pool.selector = {{"app", "vllm"}};
  pool.target_ports = {8000};
  m.pools.push_back(pool);
  for (int i = 0; i < endpoints; ++i) {
    api::Endpoint endpoint;
    endpoint.name = "e" + std::to_string(i);
    endpoint.address = "10.0.0." + std::to_string(i + 1);
    endpoint.port = 8000;
    endpoint.labels = {{"app", "vllm"}, {"extra", "x"}};
    m.endpoints.push_back(endpoint);
  }
  return m;
}

api::InferenceModelRewrite Rewrite(const std::string& name, const std::string& created,
                                   std::vector<api::InferenceModelRewrite::Rule> rules) {
  api::InferenceModelRewrite rewrite;
  rewrite.meta.name = name;
  rewrite.meta.creation_timestamp = created;
  rewrite.pool.name = "pool";
  rewrite.rules = std::move(rules);
  return rewrite;
}

TEST(Fleet, EndpointsJoinThePoolsThatSelectThemAndKeepTheirCells) {
  Fleet fleet;
  EXPECT_EQ(fleet.published().Load()->FindPool(""), nullptr);
  api::Manifests m = OnePool(3);
  m.endpoints[1].labels = {{"app", "other"}};
  m.endpoints[2].address = "fd00::1";
  m.endpoints[2].metrics_port = 9100;
  fleet.Apply(m);
  auto snapshot = fleet.published().Load();
  const PoolSnapshot* pool = snapshot->FindPool("");
  ASSERT_NE(pool, nullptr);
  EXPECT_EQ(pool, snapshot->FindPool("default/pool"));
  ASSERT_EQ(pool->endpoints.size(), 2u);
  EXPECT_EQ(pool->endpoints[0].address, "10.0.0.1:8000");
  EXPECT_EQ(pool->endpoints[1].address, "[fd00::1]:8000");
  EXPECT_EQ(pool->endpoints[1].metrics_port, 9100);
  const auto cell = pool->endpoints[1].cell;
  cell->Reserve(7, base::kMillisecond);

  m.endpoints.erase(m.endpoints.begin());
  fleet.Apply(m);
  const auto after = fleet.published().Load();
  ASSERT_EQ(after->FindPool("")->endpoints.size(), 1u);
  EXPECT_EQ(after->FindPool("")->endpoints[0].cell, cell);
  EXPECT_EQ(cell->own(), 1u);
  EXPECT_EQ(pool->endpoints.size(), 2u) << "a pinned snapshot does not change";

  m.endpoints[1].port = 8001;  // another server on that host: a new cell
  fleet.Apply(m);
  EXPECT_NE(fleet.published().Load()->FindPool("")->endpoints[0].cell, cell);

  m.endpoints[1].uid = "u2";  // and so is another Pod of the same name and address
  const auto before = fleet.published().Load()->FindPool("")->endpoints[0].cell;
  fleet.Apply(m);
  const auto other = fleet.published().Load()->FindPool("")->endpoints[0].cell;
  EXPECT_NE(other, before);
  fleet.Apply(m);
  EXPECT_EQ(fleet.published().Load()->FindPool("")->endpoints[0].cell, other);
}

TEST(Fleet, AServerUnderTwoNamesIsOneCandidate) {
  Fleet fleet;
  api::Manifests m = OnePool(3);
  m.endpoints[2].address = m.endpoints[0].address;  // e0, e1, e2 = e0
  fleet.Apply(m);
  const auto pool = [&fleet] { return fleet.published().Load()->pools.at("default/pool"); };
  ASSERT_EQ(pool()->endpoints.size(), 2u);
  EXPECT_EQ(pool()->endpoints[0].name, "e0");
  EXPECT_EQ(pool()->endpoints[1].name, "e1");
  EXPECT_EQ(pool()->cells.size(), 2u);
  EXPECT_EQ(pool()->by_address.size(), 2u);
  EXPECT_EQ(pool()->by_host.size(), 2u);
  const auto before = pool();
  fleet.Apply(m);
  EXPECT_EQ(pool(), before) << "nothing changed";
  std::swap(m.endpoints[0], m.endpoints[2]);
  fleet.Apply(m);
  ASSERT_EQ(pool()->endpoints.size(), 2u);
  EXPECT_EQ(pool()->endpoints[0].name, "e2") << "the first name counts";
  m.endpoints[2].port = 8001;  // another server on that host
  fleet.Apply(m);
  EXPECT_EQ(pool()->endpoints.size(), 3u);
}

TEST(Fleet, APoolThatStaysKeepsItsObject) {
  api::Manifests m = OnePool(3);
  m.endpoints[0].address = "gpu-1.example";
  m.pools.push_back(m.pools[0]);
  m.pools[1].meta.name = "other";
  m.pools[1].selector = {{"app", "other"}};
  m.endpoints[2].labels = {{"app", "other"}};
  Fleet fleet;
  Fleet::Addresses addresses{{"gpu-1.example", "10.9.9.9"}};
  fleet.Apply(m, addresses);
  auto before = fleet.published().Load();
  fleet.Apply(m, addresses);
  EXPECT_EQ(fleet.published().Load(), before) << "nothing is published";

  // Each of these changes the first pool and leaves the other alone.
  const std::vector<std::function<void()>> changes{
      [&] { m.endpoints[1].labels["new"] = "x"; },
      [&] { m.endpoints[1].uid = "u"; },
      [&] { m.endpoints[1].name = "renamed"; },
      [&] { m.endpoints[1].port = 9000; },
      [&] { m.endpoints[1].metrics_port = 9000; },
      [&] { m.endpoints[1].metrics_path = "/m"; },
      [&] { m.endpoints[1].metrics_scheme = "https"; },
      [&] { addresses["gpu-1.example"] = "10.9.9.8"; },
      [&] { std::swap(m.endpoints[0], m.endpoints[1]); },
      [&] { m.pools[0].app_protocol = api::AppProtocol::kH2c; },
      [&] {
        m.pools[0].picker.emplace();
        m.pools[0].picker->failure_mode = api::FailureMode::kFailOpen;
      },
      [&] {
        api::InferenceModel model;
        model.meta.name = model.model_name = "chat";
        model.pool_name = "pool";
        m.models.push_back(model);
      },
      [&] { m.models[0].targets = {{"a", 1}, {"b", 2}}; },
      [&] { m.models[0].criticality = api::Criticality::kCritical; },
      [&] {
        api::InferenceObjective objective;
        objective.meta.name = "batch";
        objective.pool.name = "pool";
        m.objectives.push_back(objective);
      },
      [&] { m.objectives[0].priority = 7; },
      [&] { m.rewrites = {Rewrite("r", "", {{{{"a", {}}}, {{"b", {}}}, {}}})}; },
      [&] { m.rewrites[0].rules[0].targets[0].model = "c"; },
      [&] { m.endpoints.erase(m.endpoints.begin()); },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    changes[i]();
    fleet.Apply(m, addresses);
    const auto after = fleet.published().Load();
    EXPECT_NE(after->pools.at("default/pool"), before->pools.at("default/pool")) << i;
    EXPECT_EQ(after->pools.at("default/other"), before->pools.at("default/other")) << i;
    EXPECT_EQ(after->pools.at("default/pool")->loads.size(),
              after->pools.at("default/pool")->endpoints.size());
    before = after;
  }
  m.pools.pop_back();
  fleet.Apply(m, addresses);
  EXPECT_EQ(fleet.published().Load()->pools.size(), 1u);
}

TEST(Fleet, ANewAdapterCopiesNothingLargeAndIsSeenWhenItIsPublished) {
  Fleet fleet;
  fleet.Apply(OnePool(3));
  const auto pool = [&fleet] { return fleet.published().Load()->pools.at("default/pool"); };
  const auto before = pool();
  EXPECT_EQ(fleet.NumberAdapter("default/nope", "x"), kNoAdapter);
  EXPECT_FALSE(fleet.has_new_names());
  const uint32_t x = fleet.NumberAdapter("default/pool", "x");
  const uint32_t y = fleet.NumberAdapter("default/pool", "y");
  EXPECT_NE(x, y);
  EXPECT_EQ(fleet.NumberAdapter("default/pool", "x"), x);
  EXPECT_EQ(fleet.FindAdapter("default/pool", "y"), y);
  EXPECT_EQ(pool(), before);
  fleet.PublishNames();
  const uint64_t version = fleet.published().version();
  fleet.PublishNames();
  EXPECT_EQ(fleet.published().version(), version) << "nothing is new";
  EXPECT_EQ(pool()->AdapterId("x"), x);
  EXPECT_EQ(pool()->AdapterId("y"), y);
  EXPECT_EQ(pool()->content, before->content);
  EXPECT_EQ(before->AdapterId("x"), kNoAdapter);
  // Names that are not published yet are not lost when the pool changes.
  const uint32_t z = fleet.NumberAdapter("default/pool", "z");
  fleet.Apply(OnePool(4));
  EXPECT_EQ(pool()->AdapterId("z"), z);
  fleet.Apply({});
  EXPECT_EQ(fleet.FindAdapter("default/pool", "x"), kNoAdapter) << "they go with their pool";
}

TEST(Fleet, ModelsThatEndpointsServeAreKnownAsLongAsOneSaysSo) {
  Fleet fleet;
  const api::Manifests m = OnePool(3);
  fleet.Apply(m);
  const auto pool = [&fleet] { return fleet.published().Load()->pools.at("default/pool"); };
  const auto set = [&fleet](const std::string& endpoint, std::vector<std::string> models) {
    fleet.SetServed("default/pool", endpoint, std::move(models));
  };
  const auto first = pool();
  EXPECT_FALSE(first->Knows("llama"));
  set("a", {"llama", "llama", "qwen"});
  fleet.SetServed("default/nope", "a", {"x"});
  EXPECT_FALSE(pool()->Knows("llama")) << "not published yet";
  fleet.PublishNames();
  EXPECT_TRUE(pool()->Knows("llama") && pool()->Knows("qwen"));
  EXPECT_FALSE(pool()->Knows("x") || first->Knows("llama"));
  EXPECT_EQ(pool()->content, first->content);

  // What changes nothing is not published.
  set("b", {"llama"});
  EXPECT_FALSE(fleet.has_new_names());
  set("a", {"qwen"});
  EXPECT_FALSE(fleet.has_new_names()) << "b serves llama";
  set("b", {});
  EXPECT_TRUE(fleet.has_new_names());
  fleet.PublishNames();
  EXPECT_FALSE(pool()->Knows("llama"));
  EXPECT_TRUE(pool()->Knows("qwen"));

  // A pool that changes takes what is new with it.
  set("c", {"gemma"});
  fleet.Apply(OnePool(2));
  EXPECT_TRUE(pool()->Knows("gemma") && pool()->Knows("qwen"));
  fleet.Apply({});
  fleet.Apply(m);
  EXPECT_FALSE(pool()->Knows("qwen")) << "another pool";
}

TEST(Fleet, ServedModelsAreBounded) {
  Fleet fleet;
  fleet.Apply(OnePool(1));
  const auto name = [](size_t i) { return "m" + std::to_string(100'000 + i); };
  for (size_t e = 0; e < 40; ++e) {
    std::vector<std::string> models;
    for (size_t i = 0; i < 64; ++i) models.push_back(name(e * 64 + i));
    fleet.SetServed("default/pool", std::to_string(e), std::move(models));
  }
  fleet.PublishNames();
  const auto pool = [&fleet] { return fleet.published().Load()->pools.at("default/pool"); };
  EXPECT_EQ(pool()->served->size(), Fleet::kMaxServed);
  EXPECT_TRUE(pool()->Knows(name(0)));
  EXPECT_FALSE(pool()->Knows(name(2000)));
  for (size_t e = 0; e < 40; ++e) fleet.SetServed("default/pool", std::to_string(e), {});
  fleet.SetServed("default/pool", "e", {name(2000)});
  fleet.PublishNames();
  EXPECT_EQ(pool()->served->size(), 1u) << "nothing is left of those that were too many";
  EXPECT_TRUE(pool()->Knows(name(2000)));
}

TEST(Fleet, HostNamesNeedAnAddress) {
  Fleet fleet;
  api::Manifests m = OnePool(2);
  m.endpoints[0].address = "gpu-1.example";
  m.endpoints[1].address = "gpu-2.example";
  fleet.Apply(m, {{"gpu-2.example", "10.1.1.1"}});
  const auto snapshot = fleet.published().Load();
  ASSERT_EQ(snapshot->FindPool("")->endpoints.size(), 1u);
  EXPECT_EQ(snapshot->FindPool("")->endpoints[0].address, "10.1.1.1:8000");
  EXPECT_EQ(fleet.unresolved(), std::vector<std::string>{"gpu-1.example"});
}

TEST(Fleet, OldestInferenceModelOfANameWins) {
  Fleet fleet;
  api::Manifests m = OnePool(1);
  api::InferenceModel young;
  young.meta.name = "young";
  young.meta.creation_timestamp = "2026-01-02T00:00:00Z";
  young.model_name = "llama2";
  young.pool_name = "pool";
  young.targets = {{"young-target", {}}};
  api::InferenceModel old = young;
  old.meta.name = "old";
  old.meta.creation_timestamp = "2025-01-02T00:00:00Z";
  old.criticality = api::Criticality::kCritical;
  old.targets = {{"a", 75}, {"b", 25}};
  api::InferenceModel elsewhere = old;
  elsewhere.pool_name = "another";
  elsewhere.model_name = "not-here";
  m.models = {young, old, elsewhere};
  fleet.Apply(m);
  const auto snapshot = fleet.published().Load();
  const ModelMap& models = snapshot->FindPool("")->models;
  ASSERT_EQ(models.size(), 1u);
  const Model& model = models.at("llama2");
  EXPECT_TRUE(model.critical);
  ASSERT_EQ(model.targets.size(), 2u);
  EXPECT_EQ(model.targets[0].cumulative_weight, 75u);
  EXPECT_EQ(model.targets.back().cumulative_weight, 100u);
}

TEST(Fleet, PoliciesAreThoseThatNameThePool) {
  Fleet fleet;
  api::Manifests m = OnePool(1);
  fleet.Apply(m);
  EXPECT_EQ(fleet.published().Load()->FindPool("")->policies, nullptr) << "nothing to look at";

  api::InferenceObjective batch;
  batch.meta.name = "batch";
  batch.pool.name = "pool";
  batch.priority = -7;
  api::InferenceObjective other_pool = batch, other_group = batch, other_namespace = batch;
  other_pool.pool.name = "another";
  other_group.pool.group = "example.com";
  other_namespace.meta.namespace_name = "ml";
  m.objectives = {other_pool, other_group, other_namespace};
  fleet.Apply(m);
  EXPECT_EQ(fleet.published().Load()->FindPool("")->policies, nullptr);

  m.objectives.push_back(batch);
  fleet.Apply(m);
  const auto snapshot = fleet.published().Load();
  const auto policies = snapshot->FindPool("")->policies;
  ASSERT_NE(policies, nullptr);
  ASSERT_NE(policies->FindPriority("batch"), nullptr);
  EXPECT_EQ(*policies->FindPriority("batch"), -7);
  EXPECT_EQ(policies->FindPriority("Batch"), nullptr);
  EXPECT_EQ(policies->FindRewrite("a"), nullptr);
  EXPECT_EQ(policies->GenericRewrite(), nullptr);
  fleet.InternAdapter("default/pool", "x");
  EXPECT_EQ(fleet.published().Load()->FindPool("")->policies, policies);
}

TEST(Fleet, OfSeveralRewritesTheOldestAndThenTheFirstRuleCounts) {
  Fleet fleet;
  api::Manifests m = OnePool(1);
  const auto exact = [](const std::string& model, const std::string& target) {
    return api::InferenceModelRewrite::Rule{{{model, {}}}, {{target, {}}}, {}};
  };
  const auto generic = [](const std::string& target) {
    return api::InferenceModelRewrite::Rule{{}, {{target, {}}}, {}};
  };
  m.rewrites = {
      Rewrite("timeless", "", {exact("a", "1"), exact("d", "2")}),
      Rewrite("young", "2025-01-03T00:00:00Z", {exact("a", "3"), exact("b", "4"), generic("5")}),
      Rewrite("old", "2025-01-02T00:00:00Z",
              {generic("6"), exact("a", "7"), exact("a", "8"), generic("9"), exact("c", "0")}),
  };
  fleet.Apply(m);
  const auto policies = fleet.published().Load()->FindPool("")->policies;
  ASSERT_NE(policies, nullptr);
  const auto target = [&](const std::string& model) {
    const Policies::Rewrite* rewrite = policies->FindRewrite(model);
    return rewrite == nullptr ? "" : rewrite->name + " " + rewrite->targets[0].name;
  };
  EXPECT_EQ(target("a"), "old 7");
  EXPECT_EQ(target("b"), "young 4");
  EXPECT_EQ(target("c"), "old 0") << "a rule that names the model goes before the generic one";
  EXPECT_EQ(target("d"), "timeless 2");
  EXPECT_EQ(target("e"), "");
  ASSERT_NE(policies->GenericRewrite(), nullptr);
  EXPECT_EQ(policies->GenericRewrite()->targets[0].name, "6");
}

TEST(Fleet, TargetsWithoutAWeightGetNothingBesideOnesWithIt) {
  Fleet fleet;
  api::Manifests m = OnePool(1);
  m.rewrites = {Rewrite("r", "",
                        {{{{"some", {}}}, {{"a", 3}, {"b", {}}, {"c", 1'000'000}}, {}},
                         {{{"none", {}}}, {{"a", {}}, {"b", {}}}, {}}})};
  fleet.Apply(m);
  const auto policies = fleet.published().Load()->FindPool("")->policies;
  const auto& some = policies->FindRewrite("some")->targets;
  ASSERT_EQ(some.size(), 2u);
  EXPECT_EQ(some[1].name, "c");
  EXPECT_EQ(some[1].cumulative_weight, 1'000'003u);
  const auto& none = policies->FindRewrite("none")->targets;
  ASSERT_EQ(none.size(), 2u);
  EXPECT_EQ(none[1].cumulative_weight, 2u);
}

TEST(Fleet, AdapterNumbersAreStableBoundedAndReused) {
  Fleet fleet;
  fleet.Apply(OnePool(1));
  EXPECT_EQ(fleet.InternAdapter("default/nope", "x"), kNoAdapter);
  const uint32_t x = fleet.InternAdapter("default/pool", "x");
  EXPECT_EQ(fleet.InternAdapter("default/pool", "x"), x);
  fleet.Apply(OnePool(1));
  EXPECT_EQ(fleet.published().Load()->FindPool("")->AdapterId("x"), x);

  // Everything in use: no room. Then one goes: its number is given again.
  Signals signals;
  signals.lora = Signals::Lora{};
  AddAdapter(signals.lora->running, x);
  for (uint32_t i = 1; i < kMaxAdapters; ++i) {
    AddAdapter(signals.lora->running, fleet.InternAdapter("default/pool", "a" + std::to_string(i)));
  }
  const auto cell = fleet.published().Load()->FindPool("")->endpoints[0].cell;
  cell->ApplyScrape(signals, 1);
  EXPECT_EQ(fleet.InternAdapter("default/pool", "one too many"), kNoAdapter);
  EXPECT_EQ(fleet.adapter_overflow(), 1u);
  signals.lora->running[x / 64] &= ~(uint64_t{1} << (x % 64));
  cell->ApplyScrape(signals, 2);
  EXPECT_EQ(fleet.InternAdapter("default/pool", "one too many"), x);
}

constexpr base::Nanos kMs = base::kMillisecond;
using Place = Reservation::Place;

void Page(EndpointCell& cell, const Signals& signals, base::Nanos asked, base::Nanos came) {
  cell.BeginScrape(asked);
  cell.ApplyScrape(signals, came);
}

TEST(Cell, OwnRequestsCountUntilTheyEndWhateverPagesSay) {
  EndpointCell cell;
  const Reservation request = cell.Reserve(100, 1000 * kMs);
  for (base::Nanos now = 1050 * kMs; now < 3000 * kMs; now += 50 * kMs) {
    Page(cell, {.waiting = 0, .running = 0}, now, now + kMs);  // a step of two seconds: nothing shows
    EXPECT_EQ(cell.own(), 1u);
    EXPECT_EQ(cell.others(), 0u);
    EXPECT_FLOAT_EQ(cell.work_ms(now), 100 * kDefaultMsPerToken);
  }
  Page(cell, {.waiting = 0, .running = 1}, 3000 * kMs, 3001 * kMs);
  EXPECT_EQ(cell.own() + cell.others(), 1u) << "the same request, once";
  cell.Release(request, ReleaseKind::kEnded, 0);
  EXPECT_EQ(cell.own() + cell.others(), 0u);
  EXPECT_EQ(cell.work_ms(3002 * kMs), 0);
}

TEST(Cell, OthersAreWhatThePageShowsBeyondOurOwn) {
  EndpointCell cell;
  std::vector<Reservation> own;
  for (int i = 0; i < 3; ++i) own.push_back(cell.Reserve(0, 1000 * kMs));
  Page(cell, {.waiting = 4, .running = 6}, 2000 * kMs, 2001 * kMs);
  EXPECT_EQ(cell.others(), 7u);
  cell.Release(own[0], ReleaseKind::kEnded, 0);
  EXPECT_EQ(cell.own(), 2u);
  EXPECT_EQ(cell.others(), 7u) << "an end of ours is no end of theirs";
  Page(cell, {.waiting = 0, .running = 2}, 3000 * kMs, 3001 * kMs);
  EXPECT_EQ(cell.others(), 0u);
}

TEST(Cell, APageThatShowsOthersNeedNotShowOurLastOnesYet) {
  EndpointCell cell;
  for (int i = 0; i < 2; ++i) cell.Reserve(0, 1000 * kMs);
  for (int i = 0; i < 5; ++i) cell.Reserve(0, 2990 * kMs);
  Page(cell, {.waiting = 0, .running = 8}, 3000 * kMs, 3001 * kMs);
  EXPECT_EQ(cell.others(), 6u) << "8 less the two that are older than the window";
  Page(cell, {.waiting = 0, .running = 8}, 4000 * kMs, 4001 * kMs);
  EXPECT_EQ(cell.others(), 1u);
}

TEST(Cell, AnAnswerTellsWhatWaitsAndNoMore) {
  EndpointCell cell;
  Page(cell, {.waiting = 0, .running = 5, .kv_usage = 0.5f}, 2000 * kMs, 2001 * kMs);
  cell.ApplyAnswer({.waiting = 9, .kv_usage = 0.75f}, 2100 * kMs);
  EXPECT_EQ(cell.waiting(), 9u);
  EXPECT_EQ(cell.running(), 5u) << "as the page said";
  EXPECT_FLOAT_EQ(cell.kv_usage(), 0.75f);
  EXPECT_EQ(cell.waiting_at(), 2100 * kMs);
  EXPECT_EQ(cell.running_at(), 2001 * kMs);
  EXPECT_EQ(cell.others(), 5u);
  cell.ApplyAnswer({.waiting = 0}, 2200 * kMs);
  EXPECT_EQ(cell.waiting(), 0u);
  EXPECT_FLOAT_EQ(cell.kv_usage(), 0.75f) << "it was not told";
  EXPECT_EQ(cell.kv_usage_at(), 2100 * kMs);
  cell.ApplyAnswer({}, 2300 * kMs);
  EXPECT_EQ(cell.waiting_at(), 2200 * kMs);
}

TEST(Cell, DetachedRequestsAreOthersAndWearOff) {
  EndpointCell cell;
  cell.Release(cell.Reserve(1600, 1000 * kMs), ReleaseKind::kDetached, 1000 * kMs);
  EXPECT_EQ(cell.own(), 0u);
  EXPECT_EQ(cell.others(), 1u);
  EXPECT_FLOAT_EQ(cell.work_ms(1100 * kMs), 300) << "400 ms of work, 100 of them over";
  Page(cell, {.waiting = 0, .running = 0}, 1100 * kMs, 1101 * kMs);
  EXPECT_EQ(cell.others(), 1u) << "a page need not show it yet";
  EXPECT_NEAR(cell.work_ms(1200 * kMs), 200, 1);
  Page(cell, {.waiting = 0, .running = 0}, 1600 * kMs, 1601 * kMs);
  EXPECT_EQ(cell.others(), 0u);
  EXPECT_EQ(cell.work_ms(1601 * kMs), 0);
}

TEST(Cell, WithoutPagesNothingStays) {
  EndpointCell cell;
  for (base::Nanos now = kMs; now < 10'000 * kMs; now += 10 * kMs) {
    cell.Release(cell.Reserve(20, now), ReleaseKind::kDetached, now);
  }
  EXPECT_EQ(cell.own(), 0u);
  EXPECT_LE(cell.work_ms(10'000 * kMs), 16);  // 8 ms of work each 10 ms
  EXPECT_EQ(cell.work_ms(10'020 * kMs), 0);
}

TEST(Cell, OthersWhoWaitHavePromptsLikeOurs) {
  EndpointCell cell;
  for (int i = 0; i < 500; ++i) cell.Release(cell.Reserve(200, kMs), ReleaseKind::kEnded, 0);
  Page(cell, {.waiting = 10, .running = 5}, 2000 * kMs, 2000 * kMs);
  EXPECT_NEAR(cell.work_ms(2000 * kMs), 10 * 200 * kDefaultMsPerToken, 1);
  EXPECT_NEAR(cell.work_ms(2100 * kMs), 10 * 200 * kDefaultMsPerToken - 100, 1);
}

TEST(Cell, OthersPromptsAreWhatTheEngineTellsBeyondOurOwn) {
  EndpointCell cell;
  EXPECT_FALSE(cell.wants_waiting_tokens());
  for (int i = 0; i < 50; ++i) cell.Release(cell.Reserve(200, kMs), ReleaseKind::kEnded, 0);
  cell.Reserve(1000, 1000 * kMs);
  Page(cell, {.waiting = 10, .running = 5}, 2000 * kMs, 2000 * kMs);
  EXPECT_TRUE(cell.wants_waiting_tokens());
  const auto tell = [&](uint64_t tokens, base::Nanos now) {
    cell.BeginWaitingTokens();
    cell.ApplyWaitingTokens(tokens, now);
    return cell.work_ms(now) / kDefaultMsPerToken;
  };
  EXPECT_NEAR(tell(31'000, 2000 * kMs), 31'000, 3) << "others have 30,000, and long ones";
  EXPECT_NEAR(tell(1500, 2001 * kMs), 1500, 1) << "less counts, too";
  EXPECT_NEAR(tell(400, 2002 * kMs), 1000, 1) << "our own, whatever is told";
  EXPECT_NEAR(tell(UINT64_MAX, 2003 * kMs) / 4e9, 1, 0.1);
  EXPECT_NEAR(tell(1000, 2004 * kMs), 1000, 1);
  for (int page = 0; page < 3; ++page) {
    Page(cell, {.waiting = 10, .running = 5}, 2005 * kMs, 2005 * kMs);
    EXPECT_NEAR(cell.work_ms(2005 * kMs), 1000 * kDefaultMsPerToken, 1) << "what was told stands";
  }
  Page(cell, {.waiting = 10, .running = 5}, 2006 * kMs, 2006 * kMs);
  EXPECT_GT(cell.work_ms(2006 * kMs), 2000 * kDefaultMsPerToken) << "nobody tells any more: supposed";
}

TEST(Cell, WhatTheEngineTellsNeedNotHaveTheLastUnseenPrompts) {
  EndpointCell cell;
  cell.Release(cell.Reserve(800, 1000 * kMs), ReleaseKind::kDetached, 1000 * kMs);
  cell.BeginWaitingTokens();
  cell.ApplyWaitingTokens(0, 1010 * kMs);
  EXPECT_NEAR(cell.work_ms(1010 * kMs), 800 * kDefaultMsPerToken, 16 * kDefaultMsPerToken + 1);
  cell.BeginWaitingTokens();
  cell.ApplyWaitingTokens(0, 1600 * kMs);
  EXPECT_EQ(cell.work_ms(1600 * kMs), 0);
}

TEST(Cell, TheRateIsLearnedFromFirstTokens) {
  EndpointCell cell;
  base::Nanos now = 1000 * kMs;
  // 2,000 tokens a second, two prompts at a time: the second waits for the first.
  for (int i = 0; i < 200; ++i, now += 2000 * kMs) {
    Reservation first = cell.Reserve(500, now);
    Reservation second = cell.Reserve(1500, now);
    EXPECT_EQ(second.ahead, 2000u);
    cell.FirstToken(first, now + 250 * kMs);
    cell.FirstToken(second, now + 1000 * kMs);
    EXPECT_EQ(cell.work_ms(now + 1000 * kMs), 0);
    cell.Release(first, ReleaseKind::kEnded, 0);
    cell.Release(second, ReleaseKind::kEnded, 0);
  }
  EXPECT_NEAR(cell.ms_per_token(), 0.5, 0.001);
  EXPECT_EQ(cell.own(), 0u);
}

TEST(Cell, OneOddFirstTokenHardlyMovesTheRate) {
  EndpointCell cell;
  const auto once = [&cell](uint32_t tokens, base::Nanos took) {
    Reservation request = cell.Reserve(tokens, kMs);
    cell.FirstToken(request, kMs + took);
    cell.Release(request, ReleaseKind::kEnded, 0);
  };
  for (int i = 0; i < 300; ++i) once(1000, 100 * kMs);
  EXPECT_NEAR(cell.ms_per_token(), 0.1, 0.001);
  once(1000, 3'600'000 * kMs);
  EXPECT_LT(cell.ms_per_token(), 0.12);
  once(1000, 0);
  EXPECT_GT(cell.ms_per_token(), 0.09);
  once(0, kMs);
  for (int i = 0; i < 1000; ++i) once(1, 3'600'000 * kMs);
  EXPECT_LE(cell.ms_per_token(), 100) << "a bound";
}

TEST(Cell, WhoseFirstTokenNobodyShowsTeachesNothing) {
  EndpointCell cell;
  Reservation request = cell.Reserve(1600, kMs, Place::kUnseen);
  cell.FirstToken(request, 5000 * kMs);
  EXPECT_EQ(cell.ms_per_token(), 0);
  EXPECT_FLOAT_EQ(cell.work_ms(101 * kMs), 300);
  cell.Release(request, ReleaseKind::kEnded, 0);
  EXPECT_EQ(cell.own(), 0u);
}

TEST(Cell, ASignalThatVanishesIsUnknown) {
  EndpointCell cell;
  Page(cell, {.waiting = 7, .running = 3, .kv_usage = 0.9f}, kMs, 2 * kMs);
  Page(cell, {.running = 3}, 50 * kMs, 51 * kMs);
  EXPECT_EQ(cell.waiting(), 0u);
  EXPECT_EQ(cell.kv_usage(), 0);
  EXPECT_EQ(cell.others(), 3u);
  EXPECT_EQ(cell.waiting_at(), 2 * kMs) << "each signal has an age of its own";
  EXPECT_EQ(cell.kv_usage_at(), 2 * kMs);
  EXPECT_EQ(cell.running_at(), 51 * kMs);
  Page(cell, {.kv_usage = 0.5f}, 100 * kMs, 101 * kMs);
  EXPECT_EQ(cell.load().requests().page, 0u) << "says nothing of load: as good as no page";
  EXPECT_EQ(cell.scraped_at(), 101 * kMs);
}

TEST(Cell, TryReserveRefusesWhenSomebodyWasFaster) {
  EndpointCell cell;
  const uint32_t seen = cell.own();
  EXPECT_TRUE(cell.TryReserve(seen, 1, kMs));
  EXPECT_FALSE(cell.TryReserve(seen, 1, kMs));
  EXPECT_EQ(cell.own(), 1u);
  Page(cell, {.waiting = 5, .running = 1}, kMs, kMs);
  EXPECT_TRUE(cell.TryReserve(1, 1, kMs)) << "a page took no place";
}

TEST(Cell, CountsAreExactUnderConcurrency) {
  EndpointCell cell;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&cell] {
      for (int i = 0; i < 20'000; ++i) {
        Reservation request = cell.Reserve(3, kMs);
        if (i % 2 == 0) cell.FirstToken(request, 2 * kMs);
        cell.Release(request, i % 3 == 0 ? ReleaseKind::kDetached : ReleaseKind::kEnded, 2 * kMs);
      }
    });
  }
  for (int i = 0; i < 5'000; ++i) {
    cell.BeginScrape(kMs);
    if (i % 3 != 0) cell.ApplyScrape({.waiting = 1}, 2 * kMs);
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(cell.own(), 0u);
  EXPECT_EQ(cell.load().own_work().tokens, 0u);
  Page(cell, {.waiting = 0}, 1000 * kMs, 1001 * kMs);
  EXPECT_EQ(cell.others(), 0u);
}

// The ledger as one would write it down: a list of what is open.
struct PlainLedger {
  struct Open {
    Reservation reservation;
    bool first_token = false;
  };
  std::vector<Open> open;
  uint64_t others = 0;
  std::vector<base::Nanos> detached;  // when

  uint64_t Tokens() const {
    uint64_t tokens = 0;
    for (const Open& request : open) {
      if (request.reservation.place == Place::kCounted) tokens += request.reservation.tokens;
    }
    return tokens;
  }
};

TEST(Cell, ARandomWalkAgreesWithAPlainLedger) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    EndpointCell cell;
    PlainLedger plain;
    base::Nanos now = base::kSecond;
    uint64_t own_asked = 0;
    bool asked = false;
    std::array<OpenLoad, 3> peers;
    const auto told = [&peers] {
      OpenLoad all;
      for (const OpenLoad& peer : peers) all = {all.requests + peer.requests, all.tokens + peer.tokens};
      return all;
    };
    for (int step = 0; step < 2000; ++step) {
      now += static_cast<base::Nanos>(random.Below(40)) * kMs;
      const uint64_t what = random.Below(9);
      if (what <= 2) {
        const auto tokens = static_cast<uint32_t>(random.Below(3000));
        const Place place = random.Below(3) == 0 ? Place::kUnseen : Place::kCounted;
        plain.open.push_back({cell.Reserve(tokens, now, place)});
      } else if (what <= 4 && !plain.open.empty()) {
        const size_t at = random.Below(plain.open.size());
        const bool detach = random.Below(3) == 0;
        cell.Release(plain.open[at].reservation, detach ? ReleaseKind::kDetached : ReleaseKind::kEnded, now);
        plain.open.erase(plain.open.begin() + static_cast<std::ptrdiff_t>(at));
        if (detach) {
          ++plain.others;
          plain.detached.push_back(now);
        }
      } else if (what == 5 && !plain.open.empty()) {
        cell.FirstToken(plain.open[random.Below(plain.open.size())].reservation, now);
      } else if (what == 6) {
        cell.BeginScrape(now);
        own_asked = plain.open.size() + told().requests;
        asked = true;
      } else if (what == 8) {
        const OpenLoad load{static_cast<uint32_t>(random.Below(20)),
                            static_cast<uint32_t>(random.Below(9000))};
        cell.ReplaceTold(std::exchange(peers[random.Below(peers.size())], load), load);
      } else if (what == 7 && asked) {
        asked = false;
        // Everything ours has had time to show: then others are exactly what is left.
        now += 2 * base::kSecond;
        const uint64_t shown = random.Below(20);
        if (shown > own_asked) continue;  // the rule for recent picks has a test of its own
        cell.ApplyScrape({.waiting = 0, .running = static_cast<uint32_t>(shown)}, now);
        plain.others = 0;
      }
      ASSERT_EQ(cell.own(), plain.open.size());
      ASSERT_EQ(cell.others(), plain.others + told().requests);
      ASSERT_EQ(cell.load().own_work().tokens, plain.Tokens() + told().tokens);
    }
    for (const OpenLoad& peer : peers) cell.ReplaceTold(peer, {});
    for (const auto& request : plain.open) cell.Release(request.reservation, ReleaseKind::kEnded, now);
    EXPECT_EQ(cell.own(), 0u) << "exact at rest";
    EXPECT_EQ(cell.load().own_work().tokens, 0u);
    EXPECT_EQ(cell.work_ms(now + 3600 * base::kSecond), 0);
  }
}

TEST(Cell, AdaptersAreBelievedToStayInTheirSlots) {
  EndpointCell cell;
  cell.UseAdapter(1, kMs);
  EXPECT_FALSE(cell.adapter_resident(1)) << "no page has named an adapter";
  Signals signals{.running = 1};
  signals.lora = Signals::Lora{.resident_count = 1, .max = 2};
  AddAdapter(signals.lora->running, 1);
  Page(cell, signals, kMs, 2 * kMs);
  EXPECT_TRUE(cell.adapter_resident(1));
  signals.lora = Signals::Lora{.max = 2};
  Page(cell, signals, 50 * kMs, 51 * kMs);
  EXPECT_FALSE(cell.adapter_running(1));
  EXPECT_TRUE(cell.adapter_resident(1)) << "nobody uses it now, but nothing took its slot";
  cell.UseAdapter(300, 60 * kMs);
  EXPECT_TRUE(cell.adapter_resident(300));
  EXPECT_TRUE(cell.adapter_resident(1));
  cell.UseAdapter(1, 70 * kMs);
  cell.UseAdapter(70, 80 * kMs);
  EXPECT_TRUE(cell.adapter_resident(70));
  EXPECT_TRUE(cell.adapter_resident(1));
  EXPECT_FALSE(cell.adapter_resident(300)) << "unused for longest";
  EXPECT_FALSE(cell.adapter_resident(kNoAdapter));
}

TEST(Cell, SlotsAreFreeUntilAsManyAdaptersAreBelievedThere) {
  using Slots = AdapterSlots;
  EndpointCell cell;
  EXPECT_EQ(cell.adapter_slots().state, Slots::kUntold);
  cell.UseAdapter(1, kMs);
  EXPECT_EQ(cell.adapter_slots().state, Slots::kTried);
  Signals signals{.running = 1};
  signals.lora = Signals::Lora{.resident_count = 1, .max = 2};
  AddAdapter(signals.lora->running, 1);
  Page(cell, signals, kMs, 2 * kMs);
  EXPECT_EQ(cell.adapter_slots().state, Slots::kFree);
  cell.UseAdapter(300, 60 * kMs);
  EXPECT_EQ(cell.adapter_slots().state, Slots::kFull);
  signals.lora = Signals::Lora{.max = 2};
  Page(cell, signals, 90 * kMs, 91 * kMs);
  EXPECT_EQ(cell.adapter_slots().state, Slots::kFull) << "nobody uses them now, but they are there";
  signals.lora->restarted = true;
  Page(cell, signals, 100 * kMs, 101 * kMs);
  EXPECT_EQ(cell.adapter_slots().state, Slots::kFree);
  EXPECT_FALSE(cell.adapter_resident(1));
}

TEST(Cell, AScrapeIsOneWord) {
  for (const ScrapedLoad load :
       {ScrapedLoad{}, ScrapedLoad{.waiting = 1}, ScrapedLoad{.running = 1}, ScrapedLoad{.lora_room = true},
        ScrapedLoad{.kv_usage = 0.1f}, ScrapedLoad{0xffff, 0, false, 0}, ScrapedLoad{0, 0x7fff, false, 0},
        ScrapedLoad{0xffff, 0x7fff, true, 1.25f}, ScrapedLoad{0, 0, false, -1e30f}}) {
    const ScrapedLoad back = ScrapedLoad::Of(load.Pack());
    EXPECT_EQ(back.waiting, load.waiting);
    EXPECT_EQ(back.running, load.running);
    EXPECT_EQ(back.lora_room, load.lora_room);
    EXPECT_EQ(back.kv_usage, load.kv_usage);
  }
  EXPECT_EQ(ScrapedLoad{.waiting = 1}.Pack(), 1u) << "where the decision looks for it";
  EXPECT_EQ(ScrapedLoad{.running = 1}.Pack(), 0x1'0000u);
  EXPECT_EQ(ScrapedLoad{.lora_room = true}.Pack(), 0x8000'0000u);
  EXPECT_EQ(ScrapedLoad{.kv_usage = 1}.Pack(), 0x3f80'0000'0000'0000u);
}

TEST(Cell, CountsBeyondTheWordCountAsItsMost) {
  EndpointCell cell;
  Signals full{.waiting = UINT32_MAX, .running = UINT32_MAX, .kv_usage = 0.5f};
  full.lora = Signals::Lora{.max = 1};
  Page(cell, full, kMs, kMs);
  EXPECT_EQ(cell.waiting(), 65'535u);
  EXPECT_EQ(cell.running(), 32'767u);
  EXPECT_EQ(cell.others(), 65'535u);
  EXPECT_EQ(cell.kv_usage(), 0.5f);
  EXPECT_TRUE(cell.lora_has_room());
}

TEST(Cell, CountersSaturateAndLeaveTheOthersAlone) {
  EndpointCell cell;
  Page(cell, {.waiting = 1, .running = 2, .kv_usage = 0.5f}, kMs, kMs);
  for (int i = 0; i < 70'000; ++i) cell.Reserve(UINT32_MAX, kMs);
  EXPECT_EQ(cell.own(), 65'535u);
  EXPECT_EQ(cell.others(), 3u);
  EXPECT_EQ(cell.load().own_work().tokens, UINT32_MAX);
  for (int i = 0; i < 80'000; ++i)
    cell.Release({.tokens = 1, .place = Place::kCounted}, ReleaseKind::kEnded, 0);
  EXPECT_EQ(cell.own(), 0u);
  EXPECT_EQ(cell.others(), 3u);
  EXPECT_EQ(cell.waiting(), 1u);
  EXPECT_EQ(cell.running(), 2u);
}

TEST(Cell, AWordIsWhatItIsMadeOf) {
  const Ledger ledger{.own = 1, .others = 0xfffe, .page = 0xfffffffe};
  EXPECT_EQ(Ledger::Of(ledger.Pack()).own, 1u);
  EXPECT_EQ(Ledger::Of(ledger.Pack()).others, 0xfffeu);
  EXPECT_EQ(Ledger::Of(ledger.Pack()).page, 0xfffffffeu);
  EXPECT_EQ(Ledger::Of(Ledger{.own = 1 << 20, .others = 1 << 20}.Pack()).own, 0xffffu);
  EXPECT_EQ(Millis(0), 1u) << "0 is never";
  EXPECT_EQ(MillisSince(5, 3), -2);
  EXPECT_EQ(MillisSince(0xffffffff, 1), 2) << "the clock of milliseconds goes around";
  EXPECT_EQ((Unseen{.tokens = 10, .since = 0xffffffff}.Left(1, 1)), 8);
  EXPECT_EQ((Unseen{.tokens = 10, .since = 5}.Left(1, 3)), 10);
}

TEST(RecentCount, ForgetsWhatIsOlderThanItsWindow) {
  RecentCount recent;
  for (uint32_t i = 0; i < 10; ++i) recent.Add(1000);
  EXPECT_EQ(recent.Get(1000), 10u);
  EXPECT_EQ(recent.Get(1249), 10u);
  EXPECT_EQ(recent.Get(1375), 5u);
  EXPECT_EQ(recent.Get(1500), 0u);
  recent.Add(1260);
  EXPECT_EQ(recent.Get(1260), 10u);
  EXPECT_EQ(recent.Get(1499), 1u);
  recent.Add(100'000);
  EXPECT_EQ(recent.Get(100'000), 1u);
}

TEST(Cell, TheFleetKnowsHowManyRefuse) {
  Fleet fleet;
  fleet.Apply(OnePool(3));
  const auto pool = fleet.published().Load()->pools.at("default/pool");
  EXPECT_FALSE(pool->anyone_refuses());
  EndpointCell& cell = *pool->endpoints[1].cell;
  cell.SetRefusing(true);
  cell.SetRefusing(true);
  EXPECT_TRUE(cell.refusing() && pool->anyone_refuses());
  cell.SetRefusing(false);
  EXPECT_FALSE(cell.refusing() || pool->anyone_refuses());
  {
    const auto slab = std::make_shared<LoadSlab>();
    auto gone = std::make_unique<EndpointCell>(slab);
    gone->SetRefusing(true);
    EXPECT_EQ(slab->refusing(), 1);
    gone.reset();
    EXPECT_EQ(slab->refusing(), 0) << "one that is gone refuses nobody";
  }
}

TEST(Loads, LieSideBySideAndAreTakenAgain) {
  LoadSlab slab;
  std::vector<EndpointLoad*> taken;
  for (int i = 0; i < 100; ++i) taken.push_back(&slab.Take());
  for (size_t i = 1; i < 64; ++i) EXPECT_EQ(taken[i], taken[0] + i);
  for (size_t i = 65; i < 100; ++i) EXPECT_EQ(taken[i], taken[64] + (i - 64));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(taken[0]) % 64, 0u);
  EXPECT_EQ(slab.capacity(), 128u);
  for (const size_t i : {70u, 5u, 6u}) {
    taken[i]->ledger = taken[i]->scraped = taken[i]->work = taken[i]->unseen = 99;
    slab.Return(*taken[i]);
  }
  for (const size_t i : {5u, 6u, 70u}) {
    EndpointLoad& again = slab.Take();
    EXPECT_EQ(&again, taken[i]) << "from the front";
    EXPECT_EQ(again.ledger, 0u) << "nothing of the one before";
    EXPECT_EQ(again.scraped, 0u);
    EXPECT_EQ(again.work, 0u);
    EXPECT_EQ(again.unseen, 0u);
  }
  for (int round = 0; round < 50; ++round) {
    for (EndpointLoad* load : taken) slab.Return(*load);
    for (EndpointLoad*& load : taken) load = &slab.Take();
  }
  EXPECT_EQ(slab.capacity(), 128u) << "what the most at one time needed";
}

TEST(Loads, CellsComeAndGoOnAnyThread) {
  const auto slab = std::make_shared<LoadSlab>();
  std::vector<std::thread> threads;
  for (uint32_t t = 1; t <= 4; ++t) {
    threads.emplace_back([&slab, t] {
      for (int round = 0; round < 200; ++round) {
        std::vector<std::shared_ptr<EndpointCell>> cells;
        for (uint32_t i = 0; i < 40; ++i) {
          cells.push_back(std::make_shared<EndpointCell>(slab));
          ASSERT_EQ(cells[i]->own() + cells[i]->waiting(), 0u) << "as new";
          cells[i]->ApplyScrape({.waiting = t}, 1);
          for (uint32_t k = 0; k <= i % 3; ++k) cells[i]->Reserve(1, kMs);
        }
        for (uint32_t i = 0; i < 40; ++i) {
          ASSERT_EQ(cells[i]->waiting(), t) << "nobody else's";
          ASSERT_EQ(cells[i]->own(), i % 3 + 1);
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_LE(slab->capacity(), 192u);
}

TEST(Fleet, LoadsOfAPoolFollowOneAnother) {
  std::shared_ptr<EndpointCell> kept;
  {
    Fleet fleet;
    api::Manifests m = OnePool(10);
    fleet.Apply(m);
    const auto pool = fleet.published().Load()->pools.at("default/pool");
    ASSERT_EQ(pool->loads.size(), 10u);
    for (size_t i = 0; i < 10; ++i) {
      EXPECT_EQ(pool->loads[i], &pool->cells[i]->load());
      EXPECT_EQ(pool->loads[i], pool->loads[0] + i);
    }
    kept = pool->endpoints[4].cell;
    m.endpoints.clear();
    fleet.Apply(m);
    EXPECT_TRUE(fleet.published().Load()->pools.at("default/pool")->loads.empty());
  }
  kept->Release(kept->Reserve(1, kMs), ReleaseKind::kEnded, 0);  // a ticket outlives the fleet
}

}  // namespace
}  // namespace fairway::fleet
