// What engines are believed to have cached, from picks and answers.
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
    hasher.AppendChains(payload::PrefixRoot(model, ""), prefixes_, ends_);
    tokens_ = static_cast<uint32_t>(blocks.size() * payload::PromptHasher::kBlockBytes / 4);
  }
  Request request() const { return {.prompt_tokens = tokens_, .prefixes = prefixes_, .prefix_ends = ends_}; }

 private:
  std::vector<uint64_t> prefixes_;
  std::vector<payload::PromptEnd> ends_;
  uint32_t tokens_ = 0;
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
        scheduler->Pick(*snapshot, prompt.request(), among, kSecond, scratch, random, &why);
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
  Scratch scratch;
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
