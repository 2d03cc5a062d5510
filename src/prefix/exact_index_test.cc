#include "prefix/exact_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <numeric>
#include <set>
#include <thread>

#include "base/random.h"

namespace fairway::prefix {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;
using Kind = StoreOutcome::Kind;

constexpr uint32_t kOurBlock = 4;

ExactOptions Small() {
  return {.keys = BlockKeys(BlockKeys::Algorithm::kXxh64, "", kOurBlock), .bytes = size_t{1} << 20};
}

std::vector<uint32_t> Tokens(uint32_t first, size_t count) {
  std::vector<uint32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// An engine's names for blocks: `name`, `name` + 1, ...
std::vector<uint64_t> Names(uint64_t name, size_t count) {
  std::vector<uint64_t> names(count);
  std::iota(names.begin(), names.end(), name);
  return names;
}

class Exact : public testing::Test {
 protected:
  // Source -> blocks and weight.
  std::map<uint16_t, std::pair<uint32_t, float>> Found(std::span<const uint32_t> tokens,
                                                       std::string_view adapter = "",
                                                       std::string_view salt = "") {
    std::vector<uint64_t> chain;
    AppendKeys(index.keys(), index.keys().Root(adapter), tokens, {}, salt, chain);
    return FoundChain(chain);
  }
  std::map<uint16_t, std::pair<uint32_t, float>> FoundChain(std::span<const uint64_t> chain) {
    std::vector<ExactMatch> matches;
    index.Match(chain, scratch, matches);
    std::map<uint16_t, std::pair<uint32_t, float>> found;
    for (const ExactMatch& match : matches)
      EXPECT_TRUE(found.emplace(match.source, std::pair(match.blocks, match.weight)).second);
    return found;
  }
  StoreOutcome Store(EndpointSlot source, uint64_t name, std::span<const uint32_t> tokens,
                     std::optional<uint64_t> parent = std::nullopt, std::string_view tier = "",
                     uint32_t block = kOurBlock) {
    const auto names = Names(name, tokens.size() / block);
    return index.Store(
        source, {.blocks = names, .parent = parent, .tokens = tokens, .block_tokens = block, .tier = tier});
  }

  ExactIndex index{Small()};
  ExactIndex::Scratch scratch;
};

TEST_F(Exact, WhoHoldsHowMuchFromTheFirstBlockOn) {
  const EndpointSlot a = *index.Take(), b = *index.Take();
  const auto prompt = Tokens(1, 20);
  EXPECT_THAT(Found(prompt), IsEmpty());
  const StoreOutcome outcome = Store(a, 100, prompt);
  EXPECT_EQ(outcome.kind, Kind::kStored);
  EXPECT_EQ(outcome.blocks, 5U);
  EXPECT_EQ(outcome.first, index.keys().Next(index.keys().Root(""), std::span(prompt).first(4), {}));
  Store(b, 7, std::span(prompt).first(8));
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(5, 5.0f)), Pair(1, Pair(2, 2.0f))));
  EXPECT_THAT(Found(std::span(prompt).first(7)), ElementsAre(Pair(0, Pair(1, 1.0f)), Pair(1, Pair(1, 1.0f))));
  EXPECT_THAT(Found(std::span(prompt).subspan(4)), IsEmpty()) << "in the middle of a prompt is elsewhere";
  EXPECT_EQ(index.stats().held, 7U);
  EXPECT_EQ(index.stats().blocks, 5U);
}

// ---- Engine's blocks that are parts of ours, as SGLang's pages of one token are.

TEST_F(Exact, PartsMakeABlockWhenTheLastOneIsThere) {
  const EndpointSlot a = *index.Take();
  const auto prompt = Tokens(1, 12);
  // One event for each page, as SGLang has it.
  for (uint32_t i = 0; i < 11; ++i) {
    const auto outcome = Store(a, 100 + i, std::span(prompt).subspan(i, 1),
                               i == 0 ? std::nullopt : std::optional<uint64_t>(99 + i), "", 1);
    ASSERT_EQ(outcome.kind, Kind::kStored);
    ASSERT_EQ(outcome.blocks, i % 4 == 3 ? 1U : 0U) << i;
    ASSERT_EQ(outcome.begins, i == 3) << i;
    if (i == 3) {
      EXPECT_EQ(outcome.first, index.keys().Next(index.keys().Root(""), std::span(prompt).first(4), {}));
      EXPECT_EQ(outcome.plain, outcome.first);
    }
  }
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(2, 2.0f))));
  EXPECT_EQ(index.held(a), 11U) << "parts count each";
  EXPECT_EQ(index.stats().blocks, 2U);
  // Pages of another engine are two tokens, several to an event.
  const EndpointSlot b = *index.Take();
  Store(b, 200, prompt, std::nullopt, "", 2);
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(2, 2.0f)), Pair(1, Pair(3, 3.0f))));
}

TEST_F(Exact, APromptMayPartInTheMiddleOfABlock) {
  const EndpointSlot a = *index.Take();
  const auto prompt = Tokens(1, 12);
  Store(a, 100, prompt, std::nullopt, "", 1);
  for (const uint32_t split : {0, 1, 2, 5, 6, 7, 8}) {
    auto other = prompt;
    for (uint32_t i = split; i < 12; ++i) other[i] = 1000 * (split + 1) + i;
    // What was stored last is not what it goes on from.
    const auto parent = split == 0 ? std::nullopt : std::optional<uint64_t>(99 + split);
    ASSERT_EQ(Store(a, 1000 * (split + 1), std::span(other).subspan(split), parent, "", 1).kind,
              Kind::kStored);
    ASSERT_THAT(Found(other), ElementsAre(Pair(0, Pair(3, 3.0f)))) << split;
  }
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(3, 3.0f))));
}

TEST_F(Exact, ABlockGoesWithItsLastPart) {
  const EndpointSlot a = *index.Take();
  const auto prompt = Tokens(1, 12);
  Store(a, 100, prompt, std::nullopt, "", 1);
  for (uint64_t page = 11; page > 8; --page) index.Remove(a, Names(100 + page, 1), "");
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(2, 2.0f))));
  index.Remove(a, Names(100 + 7, 1), "");
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(1, 1.0f))));
  EXPECT_EQ(Store(a, 109, std::span(prompt).subspan(9), 108, "", 1).kind, Kind::kNoParent)
      << "what is before it in its block is gone";
  EXPECT_EQ(Store(a, 107, std::span(prompt).subspan(7), 106, "", 1).kind, Kind::kStored);
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(3, 3.0f))));
  index.Clear(a);
  EXPECT_EQ(index.stats().blocks, 0U);
  EXPECT_EQ(index.held(a), 0U);
}

TEST_F(Exact, WhatIsNoPartOfOursIsTold) {
  const EndpointSlot a = *index.Take();
  EXPECT_EQ(Store(a, 100, Tokens(1, 12), std::nullopt, "", 3).kind, Kind::kBlockSize);
  const std::vector<std::vector<std::string_view>> salts = {{"salt"}};
  const auto names = Names(1, 1);
  const auto tokens = Tokens(1, 2);
  EXPECT_EQ(index.Store(a, {.blocks = names, .tokens = tokens, .block_tokens = 2, .extras = salts}).kind,
            Kind::kBlockSize)
      << "the block's other part may have another one";
  // An engine that has other pages now is another engine.
  Store(a, 100, Tokens(1, 8), std::nullopt, "", 1);
  Store(a, 200, Tokens(1, 8), std::nullopt, "", 2);
  EXPECT_EQ(index.held(a), 4U);
  Store(a, 300, Tokens(1, 8));
  EXPECT_EQ(index.held(a), 2U);
  EXPECT_THAT(Found(Tokens(1, 8)), ElementsAre(Pair(0, Pair(2, 2.0f))));
}

TEST_F(Exact, PartsHaveTheirShareOfMemory) {
  const EndpointSlot a = *index.Take();
  for (uint32_t prompt = 0; prompt < 40'000; ++prompt)
    Store(a, 10 + 2 * prompt, Tokens(4 * prompt, 4), std::nullopt, "", 2);
  const ExactStats stats = index.stats();
  EXPECT_LE(stats.bytes, stats.most_bytes);
  EXPECT_LE(stats.most_bytes, size_t{1} << 20);
  EXPECT_GT(stats.held, 10'000U);
  EXPECT_GT(stats.evicted, 0U);
  EXPECT_THAT(Found(Tokens(4 * 39'999, 4)), ElementsAre(Pair(0, Pair(1, 1.0f))));
  EXPECT_THAT(Found(Tokens(4, 4)), IsEmpty());
}

// Against a model that keeps each page's tokens from the prompt's beginning.
TEST_F(Exact, PartsAreAsAModelOfThemHasThem) {
  base::Random random(5);
  const EndpointSlot a = *index.Take();
  constexpr size_t kPrompts = 3;
  constexpr size_t kPages = 14;
  std::array<std::array<bool, kPages>, kPrompts> there{};
  for (int step = 0; step < 20'000; ++step) {
    const size_t prompt = random.Below(kPrompts), page = random.Below(kPages);
    const auto tokens = Tokens(static_cast<uint32_t>(100 * prompt), kPages);
    const uint64_t name = 1 + 100 * prompt + page;
    auto& of = there[prompt];
    if (random.Below(3) != 0) {
      if (of[page]) continue;  // twice is there until it is removed twice
      const auto outcome = Store(a, name, std::span(tokens).subspan(page, 1),
                                 page == 0 ? std::nullopt : std::optional<uint64_t>(name - 1), "", 1);
      of[page] = page == 0 || of[page - 1];
      ASSERT_EQ(outcome.kind, of[page] ? Kind::kStored : Kind::kNoParent) << step;
    } else {
      // Leaves first, as radix trees do.
      size_t last = kPages;
      while (last > 0 && !of[last - 1]) --last;
      while (last > page) {
        index.Remove(a, Names(100 * prompt + last, 1), "");
        of[--last] = false;
      }
    }
    uint32_t blocks = 0;
    while (blocks < kPages / 4 && of[4 * blocks + 3]) ++blocks;
    const auto found = Found(tokens);
    ASSERT_EQ(found.empty() ? 0U : found.begin()->second.first, blocks) << step;
  }
}

TEST_F(Exact, BlocksComeBehindTheirParent) {
  const EndpointSlot a = *index.Take();
  const auto prompt = Tokens(1, 20);
  Store(a, 100, std::span(prompt).first(8));
  EXPECT_EQ(Store(a, 102, std::span(prompt).subspan(8), 101).kind, Kind::kStored);
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(5, 5.0f))));
  EXPECT_EQ(Store(a, 200, Tokens(50, 4), 999).kind, Kind::kNoParent);
  EXPECT_EQ(index.held(a), 5U);
}

TEST_F(Exact, AHoleEndsAMatchAndFilledAgainDoesNot) {
  const EndpointSlot a = *index.Take();
  const auto prompt = Tokens(1, 20);
  Store(a, 100, prompt);
  index.Remove(a, Names(102, 1), "gpu");
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(2, 2.0f))));
  Store(a, 102, std::span(prompt).subspan(8, 4), 101);
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(5, 5.0f))));
  index.Remove(a, Names(100, 1), "");
  EXPECT_THAT(Found(prompt), IsEmpty());
}

TEST_F(Exact, TwiceStoredIsThereUntilTwiceRemoved) {
  const EndpointSlot a = *index.Take();
  const auto prompt = Tokens(1, 4);
  Store(a, 100, prompt);
  EXPECT_EQ(Store(a, 100, prompt).blocks, 0U);
  index.Remove(a, Names(100, 1), "");
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(1, 1.0f))));
  index.Remove(a, Names(100, 1), "");
  EXPECT_THAT(Found(prompt), IsEmpty());
  index.Remove(a, Names(100, 1), "");
  EXPECT_EQ(index.stats().blocks, 0U);
}

TEST_F(Exact, ABlockIsWorthWhatItsBestTierIs) {
  const EndpointSlot a = *index.Take();
  const auto prompt = Tokens(1, 12);
  Store(a, 100, prompt);
  // Offloaded: told without its tokens.
  const auto names = Names(100, 3);
  EXPECT_EQ(index.Store(a, {.blocks = names, .block_tokens = kOurBlock, .tier = "CPU"}).kind, Kind::kStored);
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(3, 3.0f))));
  index.Remove(a, Names(101, 2), "GPU");
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(3, testing::FloatEq(2.6f)))));
  index.Remove(a, Names(100, 3), "cpu");
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(1, 1.0f))));
  Store(a, 101, std::span(prompt).subspan(4, 4), 100, "DISK");
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(2, 2.0f)))) << "a tier without a weight is worth 1";
  const auto strange = Names(900, 1);
  EXPECT_EQ(index.Store(a, {.blocks = strange, .block_tokens = kOurBlock}).kind, Kind::kNoTokens);
}

TEST_F(Exact, AnEnginesBlockMayBeSeveralOfOurs) {
  const EndpointSlot a = *index.Take();
  const auto prompt = Tokens(1, 24);
  EXPECT_EQ(Store(a, 100, std::span(prompt).first(16), std::nullopt, "", 8).blocks, 4U);
  Store(a, 102, std::span(prompt).subspan(16), 101, "", 8);
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(6, 6.0f))));
  EXPECT_THAT(Found(std::span(prompt).first(12)), ElementsAre(Pair(0, Pair(3, 3.0f))));
  index.Remove(a, Names(101, 1), "");
  EXPECT_THAT(Found(prompt), ElementsAre(Pair(0, Pair(2, 2.0f))));
  EXPECT_EQ(index.held(a), 4U);
  EXPECT_EQ(Store(a, 200, Tokens(1, 6), std::nullopt, "", 6).kind, Kind::kBlockSize);
}

TEST_F(Exact, AdaptersAndSaltsHaveTheirOwn) {
  const EndpointSlot a = *index.Take();
  const auto prompt = Tokens(1, 8);
  const auto names = Names(100, 2);
  const std::vector<std::vector<std::string_view>> salted = {{"pepper"}, {}};
  index.Store(a, {.blocks = names, .tokens = prompt, .block_tokens = 4, .adapter = "sql"});
  EXPECT_THAT(Found(prompt), IsEmpty());
  EXPECT_THAT(Found(prompt, "sql"), ElementsAre(Pair(0, Pair(2, 2.0f))));
  const auto others = Names(200, 2);
  index.Store(a, {.blocks = others, .tokens = prompt, .block_tokens = 4, .extras = salted});
  EXPECT_THAT(Found(prompt), IsEmpty());
  EXPECT_THAT(Found(prompt, "", "pepper"), ElementsAre(Pair(0, Pair(2, 2.0f))));
}

TEST_F(Exact, ANameMayComeToMeanSomethingElse) {
  const EndpointSlot a = *index.Take();
  Store(a, 100, Tokens(1, 8));
  Store(a, 100, Tokens(50, 8));  // it started anew, and nobody heard of it
  EXPECT_THAT(Found(Tokens(1, 8)), IsEmpty());
  EXPECT_THAT(Found(Tokens(50, 8)), ElementsAre(Pair(0, Pair(2, 2.0f))));
  EXPECT_EQ(index.stats().blocks, 2U);
}

TEST_F(Exact, WhoIsClearedOrGoneHoldsNothing) {
  const EndpointSlot a = *index.Take(), b = *index.Take();
  Store(a, 100, Tokens(1, 8));
  Store(b, 100, Tokens(1, 8));
  index.Clear(a);
  EXPECT_THAT(Found(Tokens(1, 8)), ElementsAre(Pair(1, Pair(2, 2.0f))));
  index.Return(b);
  EXPECT_THAT(Found(Tokens(1, 8)), IsEmpty());
  EXPECT_EQ(Store(b, 100, Tokens(1, 8)).kind, Kind::kNobody);
  const EndpointSlot c = *index.Take();
  EXPECT_EQ(c.index, b.index);
  EXPECT_NE(c.generation, b.generation);
  EXPECT_EQ(index.stats().blocks, 0U);
}

TEST_F(Exact, WhatIsBelievedEnds) {
  const EndpointSlot a = *index.Take();
  std::vector<uint64_t> chain;
  AppendKeys(index.keys(), index.keys().Root(""), Tokens(1, 12), {}, "", chain);
  index.Speculate(a, chain, 100);
  index.Speculate(a, std::span(chain).first(2), 200);
  EXPECT_THAT(FoundChain(chain), ElementsAre(Pair(0, Pair(3, 3.0f))));
  index.Expire(99);
  EXPECT_THAT(FoundChain(chain), ElementsAre(Pair(0, Pair(3, 3.0f))));
  index.Expire(100);
  EXPECT_THAT(FoundChain(chain), ElementsAre(Pair(0, Pair(2, 2.0f))));
  Store(a, 100, Tokens(1, 4));
  index.Expire(200);
  EXPECT_THAT(FoundChain(chain), ElementsAre(Pair(0, Pair(1, 1.0f)))) << "and what it told itself stays";
}

TEST_F(Exact, MemoryIsBoundedAndWhatWasToldLongestAgoFallsOff) {
  const EndpointSlot a = *index.Take();
  base::Random random(1);
  for (uint64_t i = 0; i < 20'000; ++i) Store(a, i * 8, Tokens(static_cast<uint32_t>(i * 1000), 32));
  const ExactStats stats = index.stats();
  EXPECT_LE(stats.bytes, stats.most_bytes);
  EXPECT_LE(stats.most_bytes, (size_t{1} << 20) + (64 << 10));
  EXPECT_LE(stats.held, (size_t{1} << 20) / 80);
  EXPECT_GT(stats.held, (size_t{1} << 20) / 100);
  EXPECT_EQ(stats.stored, stats.evicted + stats.held);
  EXPECT_THAT(Found(Tokens(19'999 * 1000, 32)), ElementsAre(Pair(0, Pair(8, 8.0f))));
  EXPECT_THAT(Found(Tokens(0, 32)), IsEmpty());
  // Each has an equal share.
  const EndpointSlot b = *index.Take();
  EXPECT_LE(index.held(a), (size_t{1} << 20) / 160);
  Store(b, 1, Tokens(0, 8));
  EXPECT_THAT(Found(Tokens(0, 32)), ElementsAre(Pair(1, Pair(2, 2.0f))));
}

TEST(ExactIndex, ManyHoldWhatIsAskedMost) {
  ExactIndex index(Small());
  const auto prompt = Tokens(1, 40);
  const auto names = Names(1, 10);
  for (int i = 0; i < 200; ++i) {
    const EndpointSlot source = *index.Take();
    const size_t blocks = i % 2 == 0 ? 10 : 5;
    index.Store(source, {.blocks = std::span(names).first(blocks),
                         .tokens = std::span(prompt).first(blocks * 4),
                         .block_tokens = 4});
  }
  std::vector<uint64_t> chain;
  AppendKeys(index.keys(), index.keys().Root(""), prompt, {}, "", chain);
  ExactIndex::Scratch scratch;
  std::vector<ExactMatch> matches;
  index.Match(chain, scratch, matches);
  ASSERT_EQ(matches.size(), 200U);
  for (const ExactMatch& match : matches) EXPECT_EQ(match.blocks, match.source % 2 == 0 ? 10U : 5U);
}

// Against a plain model: random blocks stored, removed and cleared by several engines.
TEST(ExactIndex, SaysWhatAPlainModelSays) {
  ExactIndex index(Small());
  base::Random random(7);
  constexpr size_t kEngines = 5, kPrompts = 12, kBlocks = 6;
  std::vector<EndpointSlot> engines;
  for (size_t i = 0; i < kEngines; ++i) engines.push_back(*index.Take());
  // Engine -> prompt -> which blocks, in each of two tiers.
  using Held = std::map<std::pair<size_t, size_t>, std::array<std::array<int, 2>, kBlocks>>;
  Held held;
  ExactIndex::Scratch scratch;
  for (int step = 0; step < 20'000; ++step) {
    const size_t engine = random.Below(kEngines), prompt = random.Below(kPrompts);
    const auto tokens = Tokens(static_cast<uint32_t>(1000 * prompt), kBlocks * 4);
    const auto names = Names(1 + 100 * prompt, kBlocks);
    const size_t block = random.Below(kBlocks), tier = random.Below(2);
    auto& of = held[{engine, prompt}];
    const std::string_view tier_name = tier == 0 ? "gpu" : "cpu";
    const uint64_t what = random.Below(20);
    if (what < 9) {
      std::optional<uint64_t> parent;
      if (block > 0) parent = names[block - 1];
      const auto outcome = index.Store(engines[engine], {.blocks = std::span(names).subspan(block, 1),
                                                         .parent = parent,
                                                         .tokens = std::span(tokens).subspan(block * 4, 4),
                                                         .block_tokens = 4,
                                                         .tier = tier_name});
      const bool has_parent = block == 0 || of[block - 1][0] + of[block - 1][1] > 0;
      ASSERT_EQ(outcome.kind, has_parent ? Kind::kStored : Kind::kNoParent);
      if (has_parent) ++of[block][tier];
    } else if (what < 19) {
      index.Remove(engines[engine], std::span(names).subspan(block, 1), tier_name);
      of[block][tier] = std::max(of[block][tier] - 1, 0);
    } else if (random.Below(20) == 0) {
      index.Clear(engines[engine]);
      for (size_t i = 0; i < kPrompts; ++i) held[{engine, i}] = {};
    }
    std::vector<uint64_t> chain;
    AppendKeys(index.keys(), index.keys().Root(""), tokens, {}, "", chain);
    std::vector<ExactMatch> matches;
    index.Match(chain, scratch, matches);
    std::map<uint16_t, std::pair<uint32_t, float>> found;
    for (const ExactMatch& match : matches) found[match.source] = {match.blocks, match.weight};
    for (size_t i = 0; i < kEngines; ++i) {
      uint32_t blocks = 0;
      float weight = 0;
      for (const auto& times : held[{i, prompt}]) {
        if (times[0] + times[1] == 0) break;
        ++blocks;
        weight += times[0] > 0 ? 1.0f : 0.8f;
      }
      ASSERT_EQ(found[engines[i].index].first, blocks) << "step " << step;
      ASSERT_NEAR(found[engines[i].index].second, weight, 1e-4);
    }
  }
}

TEST(ExactIndex, IsReadWhileItIsWritten) {
  ExactIndex index(Small());
  const auto tokens = Tokens(1, 64);
  const auto names = Names(1, 16);
  const EndpointSlot steady = *index.Take();
  index.Store(steady, {.blocks = names, .tokens = tokens, .block_tokens = 4});
  std::vector<uint64_t> chain;
  AppendKeys(index.keys(), index.keys().Root(""), tokens, {}, "", chain);
  std::atomic<bool> done{false};
  std::thread writer([&] {
    for (int i = 0; i < 500; ++i) {
      const EndpointSlot source = *index.Take();
      index.Store(source, {.blocks = names, .tokens = tokens, .block_tokens = 4});
      index.Remove(source, std::span(names).subspan(8), "");
      index.Speculate(source, chain, i);
      index.Expire(i - 1);
      index.Return(source);
    }
    done = true;
  });
  ExactIndex::Scratch scratch;
  std::vector<ExactMatch> matches;
  size_t found = 0;
  do {
    index.Match(chain, scratch, matches);
    for (const ExactMatch& match : matches) {
      if (match.source == steady.index) found += match.blocks == 16 ? 1 : 0;
      EXPECT_LE(match.blocks, 16U);
    }
  } while (!done);
  writer.join();
  EXPECT_GT(found, 0U);
  EXPECT_EQ(index.stats().held, 16U);
}

}  // namespace
}  // namespace fairway::prefix
