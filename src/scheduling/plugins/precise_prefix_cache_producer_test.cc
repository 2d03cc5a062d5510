// Where engines' KV events are read, as configs say it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "scheduling/config.h"
#include "scheduling/plugins/engine_caches.h"
#include "tests/support/plugins.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::string_view kType = "precise-prefix-cache-producer";

ConfigSpec WithPrecise(std::string_view parameters) {
  return tests::OneProfile(
      {tests::Parsed(kType, kType, parameters),
       tests::Parsed("prefix-cache-scorer", "prefix-cache-scorer",
                     "{prefixMatchInfoProducerName: precise-prefix-cache-producer}"),
       tests::Parsed("token-producer", "token-producer", "{vllm: {}}"), tests::Spec("max-score-picker")},
      {{"prefix-cache-scorer"}, {"max-score-picker"}});
}

const KvEventsReader::Where* WhereOf(const Config& config) {
  for (const auto& instance : config.plugins) {
    if (const auto* reader = dynamic_cast<const KvEventsReader*>(instance->plugin.get()))
      return reader->kv_events();
  }
  return nullptr;
}

TEST(PrecisePrefixCacheProducer, ReadsEventsWhereTheReferenceDoes) {
  std::vector<std::string> warnings;
  const auto config = tests::Compiled(WithPrecise("{}"), {}, &warnings);
  const auto* where = WhereOf(*config);
  ASSERT_NE(where, nullptr);
  EXPECT_EQ(where->port, 5557);
  EXPECT_EQ(where->replay_port, 0);
  EXPECT_EQ(where->topic, "kv@");
  EXPECT_THAT(where->labels, IsEmpty());
  EXPECT_THAT(warnings, IsEmpty());
  EXPECT_TRUE(config->cached) << "there is a belief to correct";
}

TEST(PrecisePrefixCacheProducer, WantsTokensOfSomebody) {
  const auto problems = [](const char* tokens) {
    ConfigSpec spec = WithPrecise("{}");
    spec.plugins[2] = tests::Parsed("token-producer", "token-producer", tokens);
    return tests::ProblemsOf(spec);
  };
  EXPECT_THAT(
      problems("{estimate: {}}"),
      ElementsAre(HasSubstr("estimate"),
                  HasSubstr("test.yaml:1: warning: plugin precise-prefix-cache-producer: knows no tokens of "
                            "prompts that come as text")));
  EXPECT_THAT(problems("{}"),
              ElementsAre(HasSubstr("add a token-producer with parameters {modelName: MODEL, vllm:")));
  EXPECT_THAT(problems("{modelName: m}"), IsEmpty());
  ConfigSpec none = WithPrecise("{}");
  none.plugins.erase(none.plugins.begin() + 2);
  EXPECT_THAT(tests::ProblemsOf(none), ElementsAre(HasSubstr("knows no tokens")));
  EXPECT_THAT(problems("{vllm: {url: x}}"), ElementsAre(HasSubstr("must be http://HOST")))
      << "one problem at a time";
}

TEST(PrecisePrefixCacheProducer, TakesTheParametersOfTheReference) {
  std::vector<std::string> warnings;
  const auto config = tests::Compiled(
      WithPrecise(
          "{kvEventsConfig: {topicFilter: 'x@', concurrency: 8, engineType: sglang, podDiscoveryConfig: "
          "{podLabelSelector: 'a=b, c==d', podNamespace: ns, socketPort: 6000, replaySocketPort: 7000}}}"),
      {}, &warnings);
  const auto* where = WhereOf(*config);
  ASSERT_NE(where, nullptr);
  EXPECT_EQ(where->port, 6000);
  EXPECT_EQ(where->replay_port, 7000);
  EXPECT_EQ(where->topic, "x@");
  EXPECT_EQ(where->namespace_name, "ns");
  EXPECT_THAT(where->labels, ElementsAre(testing::Pair("a", "b"), testing::Pair("c", "d")));
  EXPECT_THAT(warnings, IsEmpty());
}

TEST(PrecisePrefixCacheProducer, SaysWhatItDoesNotDo) {
  std::vector<std::string> warnings;
  const auto config =
      tests::Compiled(WithPrecise("{indexerConfig: {kvBlockIndexConfig: {redisConfig: {address: x}}}, "
                                  "kvEventsConfig: {discoverPods: false}}"),
                      {}, &warnings);
  EXPECT_EQ(WhereOf(*config), nullptr);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("each picker has an index of its own"),
                                    HasSubstr("no KV events are read")));
}

TEST(PrecisePrefixCacheProducer, EnginesMayDial) {
  const auto central = [](std::string_view endpoint, bool dials) {
    std::vector<std::string> warnings;
    const auto config =
        tests::Compiled(WithPrecise("{kvEventsConfig: {zmqEndpoint: '" + std::string(endpoint) +
                                    "', discoverPods: " + (dials ? "true" : "false") + "}}"),
                        {}, &warnings);
    EXPECT_THAT(warnings, IsEmpty());
    const auto* where = WhereOf(*config);
    if (where == nullptr) return std::string("nobody");
    EXPECT_EQ(where->dials, dials);
    return where->central_host + " " + std::to_string(where->central_port);
  };
  EXPECT_EQ(central("tcp://*:5557", true), ":: 5557");
  EXPECT_EQ(central("tcp://0.0.0.0:5558", false), "0.0.0.0 5558");
  EXPECT_EQ(central("tcp://[fd00::1]:65535", false), "fd00::1 65535");
  EXPECT_EQ(central("", true), " 0");
  for (const char* wrong : {"tcp://*", "tcp://", "tcp://*:0", "tcp://*:70000", "tcp://picker:5557", "*:5557",
                            "ipc:///tmp/x", "tcp://:5557", "tcp://1.2.3:5557"})
    EXPECT_THAT(
        tests::ProblemsOf(WithPrecise("{kvEventsConfig: {zmqEndpoint: '" + std::string(wrong) + "'}}")),
        ElementsAre(HasSubstr("as tcp://*:5557")))
        << wrong;
}

TEST(PrecisePrefixCacheProducer, RefusesWhatCannotBe) {
  const auto problem = [](std::string_view parameters) { return tests::ProblemsOf(WithPrecise(parameters)); };
  EXPECT_THAT(problem("{kvEventsConfig: {podDiscoveryConfig: {socketPort: 70000}}}"),
              ElementsAre(HasSubstr("socketPort")));
  EXPECT_THAT(problem("{kvEventsConfig: {podDiscoveryConfig: {podLabelSelector: 'a in (b)'}}}"),
              ElementsAre(HasSubstr("key=value")));
  EXPECT_THAT(problem("{kvEventsConfig: {engineType: tgi}}"), ElementsAre(HasSubstr("vllm or sglang")));
  EXPECT_THAT(problem("{tokenProcessorConfig: {hashAlgorithm: sha256}}"),
              ElementsAre(HasSubstr("want one of cbor-fnv, xxh64, got \"sha256\"")));
  EXPECT_THAT(problem("{tokenProcessorConfig: {hashAlgorithm: ''}}"), IsEmpty());
  EXPECT_THAT(problem("{kvEventsConfig: {topicFilters: x}}"), ElementsAre(HasSubstr("topicFilter")));
  EXPECT_THAT(problem("{kvEventsConfig: {discoverPods: 1}}"), ElementsAre(HasSubstr("true or false")));
  EXPECT_THAT(problem("{tokenProcessorConfig: {blockSizeTokens: -1}}"),
              ElementsAre(HasSubstr("blockSizeTokens")));
  EXPECT_THAT(problem("{tokenProcessorConfig: {hashAlgorithm: md5}}"), ElementsAre(HasSubstr("xxh64")));
  EXPECT_THAT(problem("{tokenProcessorConfig: {hashSed: x}}"), ElementsAre(HasSubstr("hashSeed")));
  EXPECT_THAT(problem("{indexerConfig: {tokenizersPoolConfig: {}}}"),
              ElementsAre(HasSubstr("token-producer")));
  EXPECT_THAT(problem("{indexerConfig: {kvCacheBackendConfigs: [{name: gpu, weight: x}]}}"),
              ElementsAre(HasSubstr("weight")));
  EXPECT_THAT(problem("{indexerConfig: {kvBlockIndexConfig: {costAwareMemoryConfig: {size: 1k}}}}"),
              ElementsAre(HasSubstr("1Mi")));
  EXPECT_THAT(problem("{speculativeTTL: soon}"), ElementsAre(HasSubstr("speculativeTTL")));
}

// ---- What it makes of what engines tell.

class ExactCache : public testing::Test {
 protected:
  static constexpr uint32_t kBlock = 16;
  static constexpr base::Nanos kNow = base::kSecond;

  explicit ExactCache(std::vector<tests::ServerState> servers = {{"A"}, {"B"}, {"C"}})
      : pool(std::move(servers)) {}

  void Use(std::string_view parameters = "{}") {
    scheduler.emplace(SchedulerOptions{}, 0, tests::Compiled(WithPrecise(parameters), {.states = &states}));
    scratch.emplace();
    Pick(Tokens(0, kBlock));  // so that it knows the endpoints
  }
  static payload::PromptTokens Tokens(uint32_t first, uint32_t count) {
    payload::PromptTokens prompt;
    for (uint32_t i = 0; i < count; ++i) prompt.tokens.push_back(first + i);
    prompt.ends = {count};
    return prompt;
  }
  // The name of the endpoint, and what of the prompt is cached there as it is known.
  std::string Pick(const payload::PromptTokens& prompt, std::string_view salt = "",
                   std::string_view model = "m") {
    const auto snapshot = pool.pool();
    const Facts request{.target_model = std::string(model),
                        .adapter = snapshot->AdapterId(model),
                        .prompt_tokens = static_cast<uint32_t>(prompt.tokens.size()),
                        .prompts = {.tokens = std::make_shared<const payload::PromptTokens>(prompt),
                                    .cache_salt = std::string(salt)}};
    const Outcome outcome = scheduler->Pick(*snapshot, request, {}, kNow, *scratch, random, nullptr);
    cached = outcome.cached_tokens;
    const fleet::Endpoint& endpoint = snapshot->endpoints[outcome.choices[0]];
    endpoint.cell->Release(outcome.reservation, fleet::ReleaseKind::kEnded, kNow);
    if (Scheduler::HasPutOff(*scratch)) Scheduler::TakePutOff(*scratch, {})();
    return endpoint.name;
  }
  template <typename Tell>
  void Hooks(size_t number, Tell tell) {
    const auto snapshot = pool.pool();
    for (const auto& instance : scheduler->configs()->common->plugins) {
      if (const auto* hook = dynamic_cast<const CacheHook*>(instance->plugin.get()))
        tell(*hook, *snapshot->endpoints[number].cell);
    }
  }
  // The engine at `number` has stored the prompt, in blocks that it calls name, name + 1, ...
  void Store(size_t number, uint64_t name, const payload::PromptTokens& prompt, int64_t rank = 0,
             std::string_view tier = "GPU", std::string_view adapter = "",
             const std::vector<std::vector<std::string_view>>& extras = {}, uint32_t block = kBlock) {
    std::vector<uint64_t> names;
    for (size_t i = 0; i < prompt.tokens.size() / block; ++i) names.push_back(name + i);
    Hooks(number, [&](const CacheHook& hook, const fleet::EndpointCell& cell) {
      hook.Stored(cell, rank,
                  {.blocks = names,
                   .tokens = prompt.tokens,
                   .block_tokens = block,
                   .tier = tier,
                   .adapter = adapter,
                   .extras = extras});
    });
  }
  void Knows(size_t number, bool all) {
    Hooks(number, [all](const CacheHook& hook, const fleet::EndpointCell& cell) { hook.Knows(cell, all); });
  }
  std::string Why(size_t number) {
    std::string why;
    Hooks(number,
          [&](const CacheHook& hook, const fleet::EndpointCell& cell) { why += hook.WhyUnmatched(cell); });
    return why;
  }

  tests::TestPool pool;
  States states;
  std::optional<Scheduler> scheduler;
  std::optional<Scratch> scratch{std::in_place};
  base::Random random{1};
  uint32_t cached = 0;
};

TEST_F(ExactCache, ThePromptGoesWhereItsBlocksAre) {
  Use();
  const auto prompt = Tokens(1000, 5 * kBlock + 3);
  Store(1, 1, Tokens(1000, 5 * kBlock));
  Store(2, 1, Tokens(1000, 2 * kBlock));
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(Pick(prompt), "B");
    EXPECT_EQ(cached, 5 * kBlock);
  }
  Hooks(1, [](const CacheHook& hook, const fleet::EndpointCell& cell) {
    const std::vector<uint64_t> second = {2};
    hook.Removed(cell, 0, second, "gpu");
  });
  EXPECT_EQ(Pick(prompt), "C");
  EXPECT_EQ(cached, 2 * kBlock);
  Hooks(2, [](const CacheHook& hook, const fleet::EndpointCell& cell) { hook.Emptied(cell); });
  EXPECT_EQ(Pick(prompt), "B");
  EXPECT_EQ(cached, kBlock);
}

TEST_F(ExactCache, TiersCountByTheirWeights) {
  Use();
  const auto prompt = Tokens(1000, 5 * kBlock);
  Store(0, 1, prompt, 0, "CPU");                           // 5 x 0.8 = 4
  Store(1, 1, Tokens(1000, 4 * kBlock));                   // 4
  Store(2, 1, Tokens(1000, 3 * kBlock), 0, "unheard of");  // 3
  std::map<std::string, int> picked;
  for (int i = 0; i < 60; ++i) ++picked[Pick(prompt)];
  EXPECT_GT(picked["A"], 10);
  EXPECT_GT(picked["B"], 10);
  EXPECT_EQ(picked["C"], 0);
  Use("{indexerConfig: {kvCacheBackendConfigs: [{name: gpu, weight: 1}, {name: cpu, weight: 0.1}]}}");
  Store(0, 1, prompt, 0, "CPU");
  Store(1, 1, Tokens(1000, 4 * kBlock));
  EXPECT_EQ(Pick(prompt), "B") << "other weights, another index";
}

TEST_F(ExactCache, RanksAreEnginesOfTheirOwn) {
  Use();
  const auto prompt = Tokens(1000, 4 * kBlock);
  Store(0, 1, Tokens(1000, 2 * kBlock), 0);
  Store(0, 1, Tokens(1000, 3 * kBlock), 1);
  EXPECT_EQ(Pick(prompt), "A");
  EXPECT_EQ(cached, 3 * kBlock) << "of the one that has most";
}

TEST_F(ExactCache, AdaptersAndSaltsAreToldApart) {
  Use();
  const auto prompt = Tokens(1000, 4 * kBlock);
  Store(0, 1, prompt);
  Store(1, 1, prompt, 0, "GPU", "sql");
  const std::vector<std::vector<std::string_view>> salted = {{"pepper"}, {}, {}, {}};
  Store(2, 1, prompt, 0, "GPU", "", salted);
  EXPECT_EQ(Pick(prompt), "A");
  EXPECT_EQ(Pick(prompt, "", "sql"), "B");
  EXPECT_EQ(Pick(prompt, "pepper"), "C");
  Pick(prompt, "salt");
  EXPECT_EQ(cached, 0u);
}

TEST_F(ExactCache, WhatIsSentThereIsBelievedForAWhile) {
  Use("{speculativeIndexing: true, speculativeTTL: 3s}");
  const auto prompt = Tokens(5000, 4 * kBlock);
  const std::string home = Pick(prompt);
  EXPECT_EQ(cached, 0u);
  EXPECT_EQ(Pick(prompt), home);
  EXPECT_EQ(cached, 4 * kBlock);
  const auto tick = [&](base::Nanos now) {
    Hooks(0, [now](const CacheHook& hook, const fleet::EndpointCell&) { hook.Tick(now); });
  };
  tick(kNow + 2 * base::kSecond);
  EXPECT_EQ(Pick(prompt), home);
  tick(kNow + 4 * base::kSecond);
  Pick(prompt);
  EXPECT_EQ(cached, 0u);
}

TEST_F(ExactCache, WhatWasLearnedStaysForTheNextConfig) {
  Use();
  const auto prompt = Tokens(1000, 4 * kBlock);
  Store(1, 1, prompt);
  const auto* before = WhereOf(*scheduler->configs()->common);
  const uint64_t reader = before->reader;
  Use("{speculativeIndexing: true}");
  EXPECT_EQ(WhereOf(*scheduler->configs()->common)->reader, reader);
  EXPECT_EQ(Pick(prompt), "B");
  Use("{tokenProcessorConfig: {hashAlgorithm: xxh64}}");
  EXPECT_NE(WhereOf(*scheduler->configs()->common)->reader, reader) << "it has to be told anew";
  Pick(prompt);
  EXPECT_EQ(cached, 0u);
}

class Unmatched : public ExactCache {
 protected:
  Unmatched() : ExactCache({{"A"}}) {}
  // Requests to a pool of one, none of which it tells of.
  void Ask(int times, std::string_view salt = "") {
    for (int i = 0; i < times; ++i)
      Pick(Tokens(static_cast<uint32_t>(1'000'000 + i * 1000), 2 * kBlock), salt);
  }
};

TEST_F(Unmatched, OtherTokensThanTheRequests) {
  Use();
  Ask(30);
  EXPECT_EQ(Why(0), "") << "it told nothing yet";
  for (uint32_t i = 0; i < 30; ++i) Store(0, 100 * i, Tokens(10'000 * i, 2 * kBlock));
  EXPECT_EQ(Why(0), "") << "what went there before it was followed does not count";
  Ask(30);
  EXPECT_THAT(Why(0), HasSubstr("tokenizer"));
  Store(0, 9000, Tokens(1'000'000, 2 * kBlock));
  EXPECT_EQ(Why(0), "") << "it was one of those";
}

TEST_F(Unmatched, BlocksThatDoNotFit) {
  Use();
  Store(0, 1, Tokens(10, 48), 0, "GPU", "", {}, 24);
  Ask(30);
  for (uint32_t i = 0; i < 30; ++i) Store(0, 100 * i, Tokens(10'000 * i, 48), 0, "GPU", "", {}, 24);
  EXPECT_THAT(Why(0), testing::AllOf(HasSubstr("24 tokens"), HasSubstr("a part of 16")));
}

TEST_F(Unmatched, PartsOfABlockAreJudgedWhenItIsWhole) {
  Use();
  Store(0, 1, Tokens(10, 2 * kBlock), 0, "GPU", "", {}, 1);
  Ask(30);
  for (uint32_t i = 0; i < 10; ++i)
    Store(0, 100 * (i + 1), Tokens(10'000 * i, 2 * kBlock), 0, "GPU", "", {}, 1);
  EXPECT_EQ(Why(0), "") << "a prompt is one, however many parts it has";
  for (uint32_t i = 10; i < 20; ++i)
    Store(0, 100 * (i + 1), Tokens(10'000 * i, 2 * kBlock), 0, "GPU", "", {}, 1);
  EXPECT_THAT(Why(0), HasSubstr("tokenizer"));
  Store(0, 9000, Tokens(1'000'000, 2 * kBlock), 0, "GPU", "", {}, 1);
  EXPECT_EQ(Why(0), "") << "it was one of those";
}

TEST_F(Unmatched, ASaltThatIsNotTold) {
  Use();
  Store(0, 1, Tokens(10, kBlock));
  Ask(30, "pepper");
  for (uint32_t i = 0; i < 30; ++i) Store(0, 100 * i + 1, Tokens(1'000'000 + i * 1000, 2 * kBlock));
  EXPECT_THAT(Why(0), HasSubstr("salt"));
}

// What one engine tells takes as long as it likes; nobody waits for it who wants to know something of others.
TEST(EngineCaches, AreNotHeldWhileTheIndexWorks) {
  EngineCaches caches(prefix::ExactOptions{});
  const auto busy = std::make_shared<fleet::EndpointCell>(), other = std::make_shared<fleet::EndpointCell>();
  ASSERT_TRUE(caches.SourceOf(busy) && caches.SourceOf(other));
  std::vector<uint32_t> tokens(size_t{1} << 20);
  std::vector<uint64_t> blocks(tokens.size() / 16);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = i + 1;
  std::atomic<bool> begun{false}, done{false};
  std::thread events([&] {
    begun = true;
    caches.Store(*busy, 0,
                 {.blocks = blocks,
                  .parent = {},
                  .tokens = tokens,
                  .block_tokens = 16,
                  .tier = {},
                  .adapter = {},
                  .extras = {}});
    done = true;
  });
  while (!begun) std::this_thread::yield();
  int answers = 0;
  while (!done) {
    EXPECT_EQ(caches.WhyUnmatched(*other), "");
    ++answers;
  }
  events.join();
  EXPECT_GT(answers, 100);
}

TEST_F(ExactCache, OfAnEngineThatTellsAllThatAloneCounts) {
  Use();
  Knows(0, true);
  const auto prompt = Tokens(1000, 4 * kBlock);
  Store(0, 1, prompt);
  EXPECT_EQ(Pick(prompt), "A");
  EXPECT_EQ(cached, 4 * kBlock);
}

}  // namespace
}  // namespace fairway::scheduling
