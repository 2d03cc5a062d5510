// What pickers tell one another of their indexes.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <span>
#include <unordered_set>
#include <vector>

#include "base/random.h"
#include "prefix/index.h"

namespace fairway::prefix {
namespace {

using Links = std::vector<SlotBlocks::Link>;
using Words = std::vector<uint64_t>;

// Small numbers would all lie at one place of the table.
uint64_t Hash(uint64_t number) { return (number + 1) * 0x9e3779b97f4a7c15; }

size_t Held(const Index& index, EndpointSlot slot, std::span<const uint64_t> chain) {
  Index::Scratch scratch;
  std::vector<SlotMatch> matches;
  index.Match(chain, scratch, matches);
  for (const SlotMatch& match : matches)
    if (match.slot == slot) return match.blocks;
  return 0;
}

TEST(IndexTold, ChainsAreToldOnceWhileSomebodyWantsThem) {
  Index index({.bytes = 1 << 20});
  const EndpointSlot a = *index.Take();
  Words told;
  index.Insert(a, Words{1, 2, 3});
  index.TakeUntold(a, told);
  EXPECT_EQ(told, Words{}) << "nobody wanted it";
  EXPECT_FALSE(index.HasUntold());
  index.SetTelling(true);
  index.Insert(a, Words{1, 2});
  index.Insert(a, Words{1, 2, 4, 5});
  index.Insert(a, Words{9});
  EXPECT_TRUE(index.HasUntold());
  index.InsertTold(a, Words{Hash(7)});
  EXPECT_FALSE(index.HasUntold());
  index.TakeUntold(a, told);
  EXPECT_EQ(told, (Words{4, 1, 2, 4, 5, 1, 9}))
      << "the longer one in the place of its begin, and no told one";
  told.clear();
  index.TakeUntold(a, told);
  EXPECT_EQ(told, Words{});
  EXPECT_EQ(Held(index, a, Words{Hash(7)}), 1u);
  Words large(8000);
  for (uint64_t i = 0; i < large.size(); ++i) large[i] = Hash(1'000'000 + i);
  for (int i = 0; i < 3; ++i) index.Insert(a, large);
  for (uint64_t i = 0; i < 1000; ++i) index.Insert(a, Words{Hash(100 + i)});
  index.TakeUntold(a, told);
  EXPECT_LE(told.size(), Index::kMostUntold);
  index.Insert(a, Words{1});
  index.Return(a);
  told.clear();
  index.TakeUntold(a, told);
  EXPECT_EQ(told, Words{});
}

TEST(IndexTold, AnotherIndexTakesOverWhatOneHolds) {
  base::Random random(3);
  for (int round = 0; round < 30; ++round) {
    Index from({.bytes = 1 << 20}), to({.bytes = 1 << 20});
    const EndpointSlot a = *from.Take(), b = *to.Take();
    from.SetCapacity(a, 200);
    // Prompts that begin alike.
    std::vector<Words> prompts;
    for (int i = 0; i < 40; ++i) {
      Words chain;
      if (!prompts.empty() && random.Below(2) == 0) {
        const Words& other = prompts[random.Below(prompts.size())];
        chain.assign(other.begin(),
                     other.begin() + static_cast<std::ptrdiff_t>(random.Below(other.size() + 1)));
      }
      for (uint64_t k = 0; k <= random.Below(20); ++k) chain.push_back(random.Next());
      from.Insert(a, chain);
      prompts.push_back(std::move(chain));
    }
    const Links all = from.Export(a, 10'000);
    EXPECT_EQ(all.size(), from.held(a));
    to.Import(b, all);
    EXPECT_EQ(to.held(b), from.held(a));
    for (const Words& chain : prompts) ASSERT_EQ(Held(to, b, chain), Held(from, a, chain));
    EXPECT_EQ(to.Export(b, 10'000), all) << "in the same order";
    // A part is the newest, and whole prompts' begins.
    Index part({.bytes = 1 << 20});
    const EndpointSlot c = *part.Take();
    part.Import(c, from.Export(a, 50));
    EXPECT_EQ(part.held(c), std::min<size_t>(50, all.size()));
    for (const Words& chain : prompts) ASSERT_LE(Held(part, c, chain), Held(from, a, chain));
    EXPECT_EQ(Held(part, c, prompts.back()), std::min<size_t>(50, prompts.back().size()));
  }
}

TEST(IndexTold, WhatIsThereStaysAndIsNewer) {
  Index index({.bytes = 1 << 20});
  const EndpointSlot a = *index.Take();
  index.SetCapacity(a, 4);
  index.Insert(a, Words{1, 2});
  index.Import(a, Links{{5, 0}, {6, 1}, {7, 1}, {2, 1}});
  EXPECT_EQ(index.held(a), 4u) << "as much as there is room for";
  EXPECT_EQ(Held(index, a, Words{1, 2}), 2u);
  EXPECT_EQ(Held(index, a, Words{5, 6, 7}), 2u);
  index.Insert(a, Words{1, 2, 3});
  EXPECT_EQ(Held(index, a, Words{5, 6, 7}), 1u) << "what was taken over goes first";
}

TEST(IndexTold, AnyChainIsTaken) {
  base::Random random(4);
  for (int round = 0; round < 200; ++round) {
    Index index({.bytes = 1 << 20});
    const EndpointSlot a = *index.Take();
    index.SetCapacity(a, 30);
    for (int i = 0; i < 50; ++i) {
      Words chain(random.Below(20));
      for (uint64_t& block : chain) block = Hash(random.Below(50));
      index.InsertTold(a, chain);
      EXPECT_LE(index.held(a), 30u);
      EXPECT_EQ(index.Export(a, 10'000).size(), index.held(a));
    }
    index.Forget(a);
    EXPECT_EQ(index.stats().blocks, 0u);
  }
}

// Whatever comes: who holds a block holds all before it, and nothing grows beyond the capacity.
TEST(IndexTold, AnyListIsTaken) {
  base::Random random(9);
  for (int round = 0; round < 200; ++round) {
    Index index({.bytes = 1 << 20});
    const EndpointSlot a = *index.Take();
    index.SetCapacity(a, 60);
    Links list(random.Below(400));
    for (auto& [block, behind] : list) {
      block = Hash(random.Below(100));
      behind = random.Below(4) == 0 ? static_cast<uint32_t>(random.Next())
                                    : static_cast<uint32_t>(random.Below(5));
    }
    index.Import(a, list);
    EXPECT_LE(index.held(a), 60u);
    const Links held = index.Export(a, 10'000);
    std::set<uint64_t> before;
    for (const auto& [block, behind] : held) EXPECT_TRUE(before.insert(block).second) << "each once";
    EXPECT_EQ(held.size(), index.held(a));
    index.Forget(a);
    EXPECT_EQ(index.stats().blocks, 0u) << "all can be taken out again";
  }
}

// A peer may name blocks as it likes: multiples of the numbers of buckets that a table of the standard library has when
// it is so large. Asked is what others, and this one, pay for them, beside names that mean no harm.
TEST(SlotBlocks, NamesThatWouldAllFallIntoOneBucketCostNoMore) {
  std::unordered_set<uint32_t> plain;
  for (uint32_t i = 0; i < 20'000; ++i) plain.insert(i);
  const uint64_t buckets = plain.bucket_count();
  const auto took = [](uint64_t step) {
    SlotBlocks blocks;
    for (uint64_t i = 1; i <= 20'000; ++i) {
      const uint64_t before = (i - 1) * step;
      blocks.AddLast(i * step, i == 1 ? nullptr : &before, 20'000);
    }
    const auto begun = std::chrono::steady_clock::now();
    EXPECT_EQ(blocks.Newest(20'000).size(), 20'000u);
    std::vector<uint64_t> gone;
    blocks.RemoveWithAllBehind(step, gone);
    EXPECT_EQ(gone.size(), 20'000u);
    return std::chrono::steady_clock::now() - begun;
  };
  const auto honest = std::min(took(1), took(1));
  EXPECT_LT(std::min(took(buckets), took(buckets)), 20 * honest + std::chrono::milliseconds(1));
}

}  // namespace
}  // namespace fairway::prefix
