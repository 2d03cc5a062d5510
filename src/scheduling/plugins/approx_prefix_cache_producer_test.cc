// What engines are believed to have cached, from picks and answers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "payload/prompt_hash.h"
#include "scheduling/config.h"
#include "tests/support/plugins.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using base::kSecond;

// A prompt of whole blocks, each named by a letter.
class Prompt {
 public:
  explicit Prompt(std::string_view blocks, std::string_view model = "m") {
    payload::PromptHasher hasher;
    hasher.BeginPart(payload::PromptHasher::kMain);
    for (const char block : blocks) hasher.Add(std::string(payload::PromptHasher::kBlockBytes, block));
    hasher.EndPart();
    hasher.Finish(false);
    hasher.AppendChains(payload::PrefixRoot(model, ""), facts_.prompts.prefixes, facts_.prompts.ends);
    facts_.prompt_tokens = static_cast<uint32_t>(blocks.size() * payload::PromptHasher::kBlockBytes / 4);
  }
  const Prompts& prompts() const { return facts_.prompts; }
  const Facts& request() const { return facts_; }

 private:
  Facts facts_;
};

class PrefixCache : public testing::Test {
 protected:
  explicit PrefixCache(std::vector<tests::ServerState> servers = {{"A"}, {"B"}, {"C"}})
      : pool(std::move(servers)) {}

  ConfigSpec Spec(tests::NumberList parameters = {}) const {
    return tests::OneProfile({tests::Spec("approx-prefix-cache-producer", parameters),
                              tests::Spec("time-to-first-token-scorer"), tests::Spec("max-score-picker")},
                             {{"time-to-first-token-scorer"}, {"max-score-picker"}});
  }
  void Use(tests::NumberList parameters = {}) {
    scheduler.emplace(SchedulerOptions{}, 0, tests::Compiled(Spec(parameters), {.states = &states}));
  }
  // The name of the endpoint; its place is given back.
  std::string Pick(const Prompt& prompt, std::optional<std::span<const uint32_t>> among = {}) {
    const auto snapshot = pool.pool();
    const Outcome outcome =
        scheduler->Pick(*snapshot, prompt.request(), among, kSecond, *scratch, random, &why);
    cached = outcome.cached_tokens;
    reserved = outcome.reservation.tokens;
    const fleet::Endpoint& endpoint = snapshot->endpoints[outcome.choices[0]];
    endpoint.cell->Release(outcome.reservation, fleet::ReleaseKind::kEnded, kSecond);
    return endpoint.name;
  }
  // An answer of the endpoint at `number` tells what was cached.
  void Tell(size_t number, const CacheTold& told, base::Nanos now) {
    const auto snapshot = pool.pool();
    for (const RequestHook* hook : scheduler->configs()->common->hooks)
      hook->Told(*snapshot->endpoints[number].cell, told, now);
  }

  tests::TestPool pool;
  States states;
  std::optional<Scheduler> scheduler;
  std::optional<Scratch> scratch{std::in_place};
  base::Random random{1};
  Explanation why;
  uint32_t cached = 0, reserved = 0;
};

TEST_F(PrefixCache, ThePromptGoesWhereItsBeginningIs) {
  Use();
  const std::string home = Pick(Prompt("abcdefgh"));
  EXPECT_EQ(cached, 0u);
  EXPECT_EQ(reserved, 512u);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(Pick(Prompt("abcdefgh")), home);
    EXPECT_EQ(cached, 512u);
    EXPECT_EQ(reserved, 0u) << "nothing is left to be computed";
  }
  EXPECT_EQ(Pick(Prompt("abcdxxxx")), home);
  EXPECT_EQ(cached, 256u);
  EXPECT_EQ(reserved, 256u);
}

TEST_F(PrefixCache, AnotherModelHasNothing) {
  Use();
  Pick(Prompt("abcd"));
  Pick(Prompt("abcd", "lora"));
  EXPECT_EQ(cached, 0u);
}

TEST_F(PrefixCache, WaitingLongerThanComputingIsNotWorthIt) {
  Use();
  const std::string home = Pick(Prompt("abcdefgh"));
  const auto snapshot = pool.pool();
  for (const fleet::Endpoint& endpoint : snapshot->endpoints) {
    if (endpoint.name == home) endpoint.cell->Reserve(5000, kSecond);
  }
  EXPECT_NE(Pick(Prompt("abcdefgh")), home);
}

TEST_F(PrefixCache, AnExplanationShowsWhatIsBelieved) {
  Use();
  Pick(Prompt("abcd"));
  Pick(Prompt("abcdefgh"));
  std::map<std::string, float> most;
  for (const auto& column : why.columns)
    most[column.name] = *std::max_element(column.values.begin(), column.values.end());
  EXPECT_FLOAT_EQ(most.at("cached-tokens"), 256);
  EXPECT_FLOAT_EQ(most.at("prefix-match"), 0.5f);
}

TEST_F(PrefixCache, AConfigThatIsSwappedKeepsWhatIsKnown) {
  Use();
  const std::string home = Pick(Prompt("abcdefgh"));
  scheduler->Swap(std::make_shared<ConfigSet>(
      ConfigSet{.common = tests::Compiled(Spec(), {.states = &states}), .of_pools = {}}));
  EXPECT_EQ(Pick(Prompt("abcdefgh")), home);
  EXPECT_EQ(cached, 512u);
}

TEST_F(PrefixCache, AnEndpointThatIsGoneTakesItsBlocksWithIt) {
  Use();
  const std::string home = Pick(Prompt("abcdefgh"));
  auto endpoints = pool.manifests().endpoints;
  std::erase_if(pool.manifests().endpoints, [&](const api::Endpoint& e) { return e.name == home; });
  pool.fleet().Apply(pool.manifests());
  EXPECT_NE(Pick(Prompt("xy")), home);
  pool.manifests().endpoints = endpoints;
  pool.fleet().Apply(pool.manifests());
  Pick(Prompt("abcdefghijklmnop"));
  EXPECT_EQ(cached, 0u) << "it is a new server at the old address";
}

// More endpoints than there are slots: the first decision after such a change is made in a moment, not in a
// minute (16,384 known ones were looked at for each of them once).
TEST(PrefixCacheAtSize, AFleetOfManyIsKnownAtOnce) {
  std::vector<tests::ServerState> servers(40'000);
  for (size_t i = 0; i < servers.size(); ++i) servers[i].name = "e" + std::to_string(i);
  tests::TestPool pool(std::move(servers), {}, 0);
  const Scheduler scheduler({}, 0);
  Scratch scratch;
  base::Random random(1);
  const Prompt prompt("abcd");
  const base::SystemClock clock;
  const base::Nanos start = clock.Now();
  const Outcome outcome =
      scheduler.Pick(*pool.pool(), prompt.request(), std::nullopt, kSecond, scratch, random);
  EXPECT_EQ(outcome.kind, OutcomeKind::kPicked);
  EXPECT_LT(clock.Now() - start, 5 * kSecond);
}

TEST_F(PrefixCache, TheRestOfALongPromptIsLearnedBehindTheAnswer) {
  Use();
  const Prompt longer(std::string(100, 'x'));
  const auto seen_by_another_worker = [&] {
    Scratch another;
    const auto snapshot = pool.pool();
    const Outcome outcome =
        scheduler->Pick(*snapshot, longer.request(), std::nullopt, kSecond, another, random);
    snapshot->endpoints[outcome.choices[0]].cell->Release(outcome.reservation, fleet::ReleaseKind::kEnded,
                                                          kSecond);
    return outcome.cached_tokens;  // what it put off is lost with it
  };
  Pick(Prompt("abcdefgh"));
  EXPECT_FALSE(Scheduler::HasPutOff(*scratch)) << "short ones are learned at once";
  Pick(longer);
  EXPECT_TRUE(Scheduler::HasPutOff(*scratch));
  EXPECT_EQ(seen_by_another_worker(), 32 * 64u);
  const std::function<void()> rest = Scheduler::TakePutOff(*scratch, longer.prompts());
  EXPECT_FALSE(Scheduler::HasPutOff(*scratch));
  EXPECT_EQ(seen_by_another_worker(), 32 * 64u);
  rest();
  EXPECT_EQ(seen_by_another_worker(), 100 * 64u);
}

TEST_F(PrefixCache, AConfigThatIsSwappedStaysUntilWhatItPutOffIsTaken) {
  Use();
  const Prompt longer(std::string(100, 'x'));
  Pick(longer);
  const std::weak_ptr<const ConfigSet> before = scheduler->configs();
  scheduler->Swap(std::make_shared<ConfigSet>(
      ConfigSet{.common = tests::Compiled(Spec(), {.states = &states}), .of_pools = {}}));
  scheduler->ConfigOf(*pool.pool(), *scratch);  // another decision begins, by the new one
  scheduler->FreeUnused();
  EXPECT_FALSE(before.expired());
  Scheduler::TakePutOff(*scratch, longer.prompts())();
  scheduler->FreeUnused();
  EXPECT_TRUE(before.expired());
  Pick(longer);
  EXPECT_EQ(cached, 100 * 64u);
}

TEST_F(PrefixCache, OfSeveralPromptsTheRestIsLearnedToo) {
  Use();
  const auto tokens = [&](const Prompts& prompts) {
    const Facts request{.prompt_tokens = 8000, .prompts = prompts};
    const auto snapshot = pool.pool();
    const Outcome outcome = scheduler->Pick(*snapshot, request, std::nullopt, kSecond, *scratch, random);
    snapshot->endpoints[outcome.choices[0]].cell->Release(outcome.reservation, fleet::ReleaseKind::kEnded,
                                                          kSecond);
    if (Scheduler::HasPutOff(*scratch)) Scheduler::TakePutOff(*scratch, prompts)();
    return outcome.cached_tokens;
  };
  Prompts both = Prompt(std::string(20, 'x')).prompts();
  const Prompts second = Prompt(std::string(50, 'y')).prompts();
  both.prefixes.insert(both.prefixes.end(), second.prefixes.begin(), second.prefixes.end());
  both.ends.push_back({70, false});
  EXPECT_EQ(tokens(both), 0u);
  EXPECT_EQ(tokens(both), 70 * 64u);
  EXPECT_EQ(tokens(second), 50 * 64u);
}

TEST_F(PrefixCache, AnswersThatTellOfNoHitsEndTheBelief) {
  Use();
  const std::string home = Pick(Prompt("abcdefghijklmnop"));
  const size_t number = static_cast<size_t>(home[0] - 'A');
  for (int i = 0; i < 3; ++i)
    Tell(number,
         {.believed_tokens = 1024, .prompt_estimate = 1024, .cached_tokens = 0, .prompt_tokens = 1000},
         (i + 1) * 10 * kSecond);
  Pick(Prompt("abcdefghijklmnop"));
  EXPECT_EQ(cached, 0u);
}

TEST_F(PrefixCache, ACacheIsAsLargeAsItsPageSays) {
  Use({{"lruCapacityPerServer", 1000}});
  for (size_t i = 0; i < 3; ++i) {
    auto& cell = *pool.pool()->endpoints[i].cell;
    cell.BeginScrape(kSecond);
    cell.ApplyScrape({.waiting = 0, .running = 0, .kv_usage = 0.0f, .block_size = 16, .num_blocks = 32},
                     kSecond);
  }
  Pick(Prompt("abcdefgh"));  // 8 blocks of 64 tokens: all of it
  Pick(Prompt("abcdefgh"));
  EXPECT_EQ(cached, 512u);
  for (const char* other : {"ijklmnop", "qrstuvwx", "ABCDEFGH", "IJKLMNOP", "QRSTUVWX", "01234567"})
    Pick(Prompt(other));
  Pick(Prompt("abcdefgh"));
  EXPECT_EQ(cached, 0u);
}

// The reference's blocks. What matches is worked out by hand from its rules: blocks of max(64,
// blockSizeTokens) tokens, the last, shorter one hashed as well, up to maxPrefixTokensToMatch, else
// maxPrefixBlocksToMatch.
class ReferenceBlocks : public PrefixCache {
 protected:
  ReferenceBlocks() : PrefixCache({{"A"}}) {}
  // As YAML.
  static ConfigSpec SpecOf(const std::string& parameters) {
    const std::string type = "approx-prefix-cache-producer";
    return tests::OneProfile({tests::Parsed(type, type, parameters),
                              tests::Spec("time-to-first-token-scorer"), tests::Spec("max-score-picker")},
                             {{"time-to-first-token-scorer"}, {"max-score-picker"}});
  }
  void UseYaml(const std::string& parameters, bool anew = true) {
    scratch.emplace();
    scheduler.reset();
    if (anew) states.FreeUnused();
    scheduler.emplace(SchedulerOptions{}, 0, tests::Compiled(SpecOf(parameters), {.states = &states}));
  }
  uint32_t Cached(const Prompt& prompt) {
    Pick(prompt);
    return cached;
  }
  float Match() const {
    for (const auto& column : why.columns) {
      if (column.name == "prefix-match") return column.values.at(0);
    }
    return -1;
  }
};

TEST_F(ReferenceBlocks, AreOf64TokensWhateverLessIsAskedFor) {
  for (const char* tokens : {"1", "16", "64"}) {
    UseYaml("{autoTune: false, blockSizeTokens: " + std::string(tokens) + "}");
    EXPECT_EQ(Cached(Prompt("abcd")), 0u) << tokens;
    EXPECT_EQ(Cached(Prompt("abcxyz")), 3 * 64u);
    EXPECT_FLOAT_EQ(Match(), 0.5f);
  }
}

TEST_F(ReferenceBlocks, MatchAsAWhole) {
  // 192 tokens: "abc", "def", "gh" of the first prompt, "abc", "dxx", "x" of the second.
  UseYaml("{autoTune: false, blockSizeTokens: 192}");
  EXPECT_EQ(Cached(Prompt("abcdefgh")), 0u);
  EXPECT_EQ(Cached(Prompt("abcdxxx")), 3 * 64u);
  EXPECT_EQ(Cached(Prompt("abcdefgh")), 8 * 64u) << "the last, shorter one too";
}

TEST_F(ReferenceBlocks, EndWhereTheLimitIs) {
  UseYaml("{maxPrefixTokensToMatch: 256}");
  Pick(Prompt("abcdefgh"));
  EXPECT_EQ(Cached(Prompt("abcdefgh")), 256u);
  EXPECT_FLOAT_EQ(Match(), 1);
  UseYaml("{maxPrefixTokensToMatch: 0, maxPrefixBlocksToMatch: 3}", false);
  EXPECT_EQ(Cached(Prompt("abcdefgh")), 192u);
  UseYaml("{autoTune: false, blockSizeTokens: 128, maxPrefixTokensToMatch: 0, maxPrefixBlocksToMatch: 3}",
          false);
  EXPECT_EQ(Cached(Prompt("abcdefgh")), 256u) << "what was learned before, in blocks of 128";
  EXPECT_EQ(Cached(Prompt("abcdefgh")), 384u);
  UseYaml("{maxPrefixTokensToMatch: 0, maxPrefixBlocksToMatch: 0}", false);
  Pick(Prompt("abcdefgh"));
  EXPECT_EQ(Cached(Prompt("abcdefgh")), 512u);
}

TEST_F(ReferenceBlocks, OfALimitBelowABlockNothingIsLeft) {
  UseYaml("{maxPrefixTokensToMatch: 63}");
  Pick(Prompt("abcdefgh"));
  EXPECT_EQ(Cached(Prompt("abcdefgh")), 0u);
  EXPECT_EQ(Match(), 0);
}

TEST_F(ReferenceBlocks, ACacheHoldsSoManyOfSoManyTokens) {
  // 32 blocks of 16 tokens and 4 of 128 are 8 of ours.
  for (const char* parameters :
       {"{lruCapacityPerServer: 32}", "{autoTune: false, blockSizeTokens: 128, lruCapacityPerServer: 4}"}) {
    UseYaml(parameters);
    Pick(Prompt("abcdefgh"));
    EXPECT_EQ(Cached(Prompt("abcdefgh")), 512u) << parameters;
    Pick(Prompt("ijkl"));
    EXPECT_EQ(Cached(Prompt("abcdefgh")), 256u) << parameters;
  }
}

TEST_F(ReferenceBlocks, WhatCountsAsAnotherIsSaid) {
  std::vector<std::string> warnings;
  tests::Compiled(SpecOf("{autoTune: false, blockSizeTokens: 100}"), {}, &warnings);
  EXPECT_THAT(warnings, testing::ElementsAre(testing::HasSubstr("counts as 64: a multiple of 64 tokens")));
  warnings.clear();
  tests::Compiled(SpecOf("{blockSizeTokens: 16, blockSize: 16, maxPrefixBlocksToMatch: 256}"), {}, &warnings);
  EXPECT_THAT(warnings, testing::IsEmpty());
  EXPECT_THAT(tests::ProblemsOf(SpecOf("{autoTune: false, blockSizeTokens: 0}")),
              testing::ElementsAre(testing::HasSubstr("must be above 0 without autoTune")));
}

TEST_F(PrefixCache, WhatIsBelievedCanBeRead) {
  Use();
  const std::string home = Pick(Prompt("abcdefgh"));
  const auto& config = *scheduler->configs()->common;
  const PrefixBelief* belief = nullptr;
  for (const auto& instance : config.plugins) {
    if (const auto* found = dynamic_cast<const PrefixBelief*>(instance->plugin.get())) belief = found;
  }
  ASSERT_NE(belief, nullptr);
  for (const fleet::Endpoint& endpoint : pool.pool()->endpoints) {
    const auto size = belief->SizeOf(*endpoint.cell);
    ASSERT_TRUE(size);
    EXPECT_EQ(size->tokens, endpoint.name == home ? 512u : 0u);
    EXPECT_EQ(size->capacity, 7812 * 64u);
  }
  EXPECT_EQ(belief->totals().entries, 8u);
  EXPECT_EQ(belief->totals().inserted, 8u);
  const tests::TestPool other({{"D"}});
  EXPECT_FALSE(belief->SizeOf(*other.pool()->endpoints[0].cell)) << "never seen";
}

class EventsOfEngines : public PrefixCache {
 protected:
  template <typename Role>
  const Role& Find() const {
    const Role* role = nullptr;
    for (const auto& instance : scheduler->configs()->common->plugins) {
      if (const auto* found = dynamic_cast<const Role*>(instance->plugin.get())) role = found;
    }
    return *role;
  }
  const fleet::EndpointCell& CellOf(std::string_view name) const {
    const auto snapshot = pool.pool();
    for (const fleet::Endpoint& endpoint : snapshot->endpoints) {
      if (endpoint.name == name) return *endpoint.cell;
    }
    return *snapshot->endpoints[0].cell;
  }
};

TEST_F(EventsOfEngines, ACacheThatWasEmptiedIsBelievedEmpty) {
  Use();
  const std::string home = Pick(Prompt("abcdefgh"));
  EXPECT_EQ(Find<PrefixBelief>().SizeOf(CellOf(home))->tokens, 512u);
  Find<CacheHook>().Emptied(CellOf(home));
  EXPECT_EQ(Find<PrefixBelief>().SizeOf(CellOf(home))->tokens, 0u);
  Pick(Prompt("abcdefgh"));
  EXPECT_EQ(cached, 0u);
}

TEST_F(EventsOfEngines, WhatAnEngineWasSeenToHoldTakesThePlaceOfItsPage) {
  Use();
  const std::string home = Pick(Prompt("abcdefgh"));
  Find<CacheHook>().Keeps(CellOf(home), 4 * 64 + 63);
  EXPECT_EQ(Find<PrefixBelief>().SizeOf(CellOf(home))->capacity, 256u);
  EXPECT_EQ(Find<PrefixBelief>().SizeOf(CellOf(home))->tokens, 256u) << "what it cannot hold is gone";
  Find<CacheHook>().Keeps(CellOf(home), 6400);
  EXPECT_EQ(Find<PrefixBelief>().SizeOf(CellOf(home))->capacity, 6400u);
  // Of an endpoint that nobody knows.
  const tests::TestPool other({{"D"}});
  Find<CacheHook>().Keeps(*other.pool()->endpoints[0].cell, 64);
  Find<CacheHook>().Emptied(*other.pool()->endpoints[0].cell);
}

TEST_F(EventsOfEngines, WithoutAutoTuneTheConfigSaysHowMuchIsHeld) {
  ConfigSpec spec = Spec();
  spec.plugins[0] =
      tests::Parsed("approx-prefix-cache-producer", "approx-prefix-cache-producer", "{autoTune: false}");
  scheduler.emplace(SchedulerOptions{}, 0, tests::Compiled(spec, {.states = &states}));
  const std::string home = Pick(Prompt("abcdefgh"));
  Find<CacheHook>().Keeps(CellOf(home), 64);
  EXPECT_EQ(Find<PrefixBelief>().SizeOf(CellOf(home))->tokens, 512u);
}

// Several pickers that know nothing of each other.
class SeveralPickers : public PrefixCache {};

TEST_F(SeveralPickers, SendAConversationToTheSameServerWhereOthersSendMuch) {
  // Two pickers with belief of their own, over one fleet: what the other one sent shows on pages alone.
  Use();
  States other_states;
  Scheduler other(SchedulerOptions{}, 0, tests::Compiled(Spec(), {.states = &other_states}));
  Scratch other_scratch;
  base::Random other_random(7);
  const auto snapshot = pool.pool();
  for (const fleet::Endpoint& endpoint : snapshot->endpoints) {
    endpoint.cell->BeginScrape(kSecond);
    endpoint.cell->ApplyScrape({.waiting = 0, .running = 4, .kv_usage = 0.1f}, kSecond);
  }
  const auto pick_other = [&](const Prompt& prompt, std::optional<std::span<const uint32_t>> among = {}) {
    const Outcome outcome =
        other.Pick(*snapshot, prompt.request(), among, kSecond, other_scratch, other_random);
    snapshot->endpoints[outcome.choices[0]].cell->Release(outcome.reservation, fleet::ReleaseKind::kEnded,
                                                          kSecond);
    return snapshot->endpoints[outcome.choices[0]].name;
  };
  // Both learn that prompts repeat here, and that others send most of what is there.
  // And the prompt that all share is everywhere.
  for (uint32_t i = 0; i < 300; ++i) {
    const std::vector<uint32_t> only{i % 3};
    Pick(Prompt("SSSSSSSS"), only);
    pick_other(Prompt("SSSSSSSS"), only);
  }
  int same = 0;
  for (int i = 0; i < 100; ++i) {
    const std::string begin = "conversation " + std::to_string(i);
    const std::string first = Pick(Prompt("SSSSSSSS" + begin));
    same += pick_other(Prompt("SSSSSSSS" + begin + begin)) == first ? 1 : 0;
  }
  EXPECT_GT(same, 90) << "a third by chance";
}

}  // namespace
}  // namespace fairway::scheduling
