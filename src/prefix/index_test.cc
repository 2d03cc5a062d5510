#include "prefix/index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <list>
#include <map>
#include <set>
#include <thread>

#include "base/random.h"

namespace fairway::prefix {
namespace {

using testing::IsEmpty;
using testing::UnorderedElementsAre;

std::vector<uint64_t> Chain(uint64_t seed, size_t size) {
  base::Random random(seed);
  std::vector<uint64_t> chain(size);
  for (uint64_t& block : chain) block = random.Next();
  return chain;
}

std::vector<SlotMatch> Match(const Index& index, std::span<const uint64_t> chain) {
  Index::Scratch scratch;
  std::vector<SlotMatch> matches;
  index.Match(chain, scratch, matches);
  return matches;
}

std::map<uint16_t, uint32_t> ByIndex(const std::vector<SlotMatch>& matches) {
  std::map<uint16_t, uint32_t> by_index;
  for (const SlotMatch& match : matches) EXPECT_TRUE(by_index.emplace(match.slot.index, match.blocks).second);
  return by_index;
}

constexpr size_t kMiB = size_t{1} << 20;

TEST(Index, WhoHoldsHowMuch) {
  Index index({.bytes = kMiB});
  const EndpointSlot a = *index.Take(), b = *index.Take();
  const std::vector<uint64_t> chain = Chain(1, 100);
  EXPECT_THAT(Match(index, chain), IsEmpty());
  index.Insert(a, chain);
  index.Insert(b, std::span(chain).first(30));
  EXPECT_THAT(Match(index, chain), UnorderedElementsAre(SlotMatch{a, 100}, SlotMatch{b, 30}));
  EXPECT_THAT(Match(index, std::span(chain).first(10)),
              UnorderedElementsAre(SlotMatch{a, 10}, SlotMatch{b, 10}));
  EXPECT_THAT(Match(index, {}), IsEmpty());
  EXPECT_EQ(index.stats().blocks, 100U);
  EXPECT_EQ(index.stats().held, 130U);
}

TEST(Index, WhatIsUsedLeastFallsOffAndPrefixesStay) {
  Index index({.bytes = kMiB});
  const EndpointSlot a = *index.Take();
  index.SetCapacity(a, 100);
  const std::vector<uint64_t> one = Chain(1, 60), two = Chain(2, 60), three = Chain(3, 60);
  index.Insert(a, one);
  index.Insert(a, two);  // 40 of the first are left
  EXPECT_THAT(Match(index, one), UnorderedElementsAre(SlotMatch{a, 40}));
  index.Insert(a, one);
  EXPECT_THAT(Match(index, two), UnorderedElementsAre(SlotMatch{a, 40}));
  index.Insert(a, three);
  EXPECT_THAT(Match(index, two), IsEmpty());
  EXPECT_THAT(Match(index, one), UnorderedElementsAre(SlotMatch{a, 40}));
  index.SetCapacity(a, 70);
  EXPECT_THAT(Match(index, one), UnorderedElementsAre(SlotMatch{a, 10}));
  EXPECT_THAT(Match(index, three), UnorderedElementsAre(SlotMatch{a, 60}));
  index.Insert(a, Chain(4, 1000));  // longer than the cache: its begin
  EXPECT_THAT(Match(index, Chain(4, 1000)), UnorderedElementsAre(SlotMatch{a, 70}));
  EXPECT_EQ(index.held(a), 70U);
}

TEST(Index, UnlearnTakesAwayWhatWasNew) {
  Index index({.bytes = kMiB});
  const EndpointSlot a = *index.Take();
  const std::vector<uint64_t> chain = Chain(1, 50);
  index.Insert(a, std::span(chain).first(20));
  index.Insert(a, chain);
  index.Unlearn(a, chain, 20);
  EXPECT_THAT(Match(index, chain), UnorderedElementsAre(SlotMatch{a, 20}));
  index.Unlearn(a, chain, 20);
  index.Unlearn(a, chain, 60);
  EXPECT_EQ(index.held(a), 20U);
  // What another prompt had behind the block that is not there is not there, either.
  std::vector<uint64_t> branch(chain.begin(), chain.begin() + 40);
  for (const uint64_t block : Chain(2, 20)) branch.push_back(block);
  const std::vector<uint64_t> other = Chain(3, 10);
  index.Insert(a, other);
  index.Insert(a, chain);
  index.Insert(a, branch);
  EXPECT_EQ(index.held(a), 80U);
  index.Unlearn(a, chain, 30);
  EXPECT_THAT(Match(index, branch), UnorderedElementsAre(SlotMatch{a, 30}));
  EXPECT_THAT(Match(index, other), UnorderedElementsAre(SlotMatch{a, 10}));
  EXPECT_EQ(index.held(a), 40U);
  EXPECT_EQ(index.stats().blocks, 40U);
}

TEST(Index, WhoIsGoneIsForgottenAtOnceAndItsNumberIsAnothersThen) {
  Index index({.bytes = kMiB, .max_slots = 2});
  const EndpointSlot a = *index.Take(), b = *index.Take();
  EXPECT_FALSE(index.Take());
  const std::vector<uint64_t> chain = Chain(1, 50);
  index.Insert(a, chain);
  index.Insert(b, chain);
  index.Return(a);
  EXPECT_THAT(Match(index, chain), UnorderedElementsAre(SlotMatch{b, 50}));
  const EndpointSlot c = *index.Take();
  EXPECT_EQ(c.index, a.index);
  EXPECT_NE(c, a);
  // Late words of the one that is gone.
  index.Insert(a, chain);
  index.Unlearn(a, chain, 0);
  index.SetCapacity(a, 1);
  index.Forget(a);
  index.Return(a);
  EXPECT_THAT(Match(index, chain), UnorderedElementsAre(SlotMatch{b, 50}));
  index.Insert(c, chain);
  EXPECT_THAT(Match(index, chain), UnorderedElementsAre(SlotMatch{b, 50}, SlotMatch{c, 50}));
  index.Forget(b);
  EXPECT_THAT(Match(index, chain), UnorderedElementsAre(SlotMatch{c, 50}));
  index.Return(c);
  EXPECT_EQ(index.stats().blocks, 0U);
  index.Insert({.index = 9, .generation = 1}, chain);
  index.Insert({}, chain);
  EXPECT_EQ(index.stats().held, 0U);
}

// All forms that a set of holders has, up and down.
TEST(Index, AnyNumberOfHolders) {
  Index index({.bytes = 32 * kMiB, .max_slots = 3000});
  const std::vector<uint64_t> chain = Chain(1, 3);
  std::vector<EndpointSlot> slots;
  while (const auto slot = index.Take()) slots.push_back(*slot);
  ASSERT_EQ(slots.size(), 3000U);
  base::Random random(3);
  for (size_t i = slots.size(); i > 1; --i) std::swap(slots[i - 1], slots[random.Below(i)]);
  for (size_t i = 0; i < slots.size(); ++i) {
    index.Insert(slots[i], std::span(chain).first(1 + i % 3));
    if (i > 70 && i % 191 != 0) continue;
    const auto matches = ByIndex(Match(index, chain));
    ASSERT_EQ(matches.size(), i + 1);
    for (size_t j = 0; j <= i; ++j) ASSERT_EQ(matches.at(slots[j].index), 1 + j % 3);
  }
  for (size_t i = slots.size(); i-- > 0;) {
    index.Forget(slots[i]);
    if (i > 70 && i % 191 != 0) continue;
    const auto matches = ByIndex(Match(index, chain));
    ASSERT_EQ(matches.size(), i);
    for (size_t j = 0; j < i; ++j) ASSERT_EQ(matches.at(slots[j].index), 1 + j % 3);
  }
  EXPECT_EQ(index.stats().blocks, 0U);
}

// What the index must say, in twenty lines. A block's chain up to it is what it stands for.
struct Plain {
  size_t capacity = 0;
  std::list<std::vector<uint64_t>> blocks;  // the one used last first

  void Insert(std::span<const uint64_t> chain) {
    chain = chain.first(std::min(chain.size(), capacity));
    auto at = blocks.begin();
    for (size_t i = 1; i <= chain.size(); ++i) {
      const std::vector<uint64_t> prefix(chain.begin(), chain.begin() + static_cast<std::ptrdiff_t>(i));
      if (at != blocks.end() && *at == prefix) {
        ++at;
      } else {
        blocks.remove(prefix);
        at = std::next(blocks.insert(at, prefix));
      }
    }
    SetCapacity(capacity);
  }
  void SetCapacity(size_t most) {
    capacity = most;
    while (blocks.size() > capacity) blocks.pop_back();
  }
  void Unlearn(std::span<const uint64_t> chain, size_t from) {
    if (from >= chain.size()) return;
    std::erase_if(blocks, [&](const auto& b) { return b.size() > from && b[from] == chain[from]; });
  }
  uint32_t Match(std::span<const uint64_t> chain) const {
    std::set<uint64_t> held;
    for (const auto& block : blocks) held.insert(block.back());
    uint32_t i = 0;
    while (i < chain.size() && held.contains(chain[i])) ++i;
    return i;
  }
};

TEST(Index, ARandomWalkBesideThePlainOne) {
  for (uint64_t seed = 0; seed < 2; ++seed) {
    base::Random random(seed);
    // Chains that part from one another at many places, as prompts do.
    std::vector<std::vector<uint64_t>> chains;
    for (size_t i = 0; i < 60; ++i) {
      std::vector<uint64_t> chain;
      if (i % 8 != 0) {
        const auto& parent = chains[random.Below(chains.size())];
        chain.assign(parent.begin(),
                     parent.begin() + static_cast<std::ptrdiff_t>(random.Below(parent.size() + 1)));
      }
      const std::vector<uint64_t> tail = Chain(seed * 1000 + i, 1 + random.Below(100));
      chain.insert(chain.end(), tail.begin(), tail.end());
      chains.push_back(chain);
    }
    Index index({.bytes = 4 * kMiB});
    std::map<uint16_t, std::pair<EndpointSlot, Plain>> plain;
    for (int step = 0; step < 500; ++step) {
      if (plain.size() < 5 || (plain.size() < 24 && random.Below(20) == 0)) {
        const EndpointSlot slot = *index.Take();
        const size_t capacity = 10 + random.Below(400);
        index.SetCapacity(slot, capacity);
        ASSERT_TRUE(plain.emplace(slot.index, std::pair{slot, Plain{capacity, {}}}).second);
      }
      auto it = std::next(plain.begin(), static_cast<std::ptrdiff_t>(random.Below(plain.size())));
      auto& [slot, model] = it->second;
      const auto& chain = chains[random.Below(chains.size())];
      switch (random.Below(40)) {
        case 0:
          index.Return(slot);
          plain.erase(it);
          break;
        case 1:
          index.Forget(slot);
          model.blocks.clear();
          break;
        case 2: {
          const size_t capacity = random.Below(500);
          index.SetCapacity(slot, capacity);
          model.SetCapacity(capacity);
          break;
        }
        case 3:
        case 4: {
          const size_t from = random.Below(chain.size() + 1);
          index.Unlearn(slot, chain, from);
          model.Unlearn(chain, from);
          break;
        }
        default:
          index.Insert(slot, chain);
          model.Insert(chain);
      }
      const auto& asked = chains[random.Below(chains.size())];
      const auto matches = ByIndex(Match(index, asked));
      for (const auto& [number, entry] : plain) {
        const auto found = matches.find(number);
        ASSERT_EQ(found == matches.end() ? 0 : found->second, entry.second.Match(asked))
            << seed << " " << step;
      }
      size_t held = 0;
      for (const auto& [number, entry] : plain) held += entry.second.blocks.size();
      if (step % 50 == 0) {
        ASSERT_EQ(index.stats().held, held);
      }
    }
    EXPECT_EQ(index.stats().refused, 0U);
  }
}

TEST(Index, MemoryIsBoundedAndSharedWhenAllWantMore) {
  Index index({.bytes = 4 * kMiB, .default_capacity = 1'000'000});
  std::vector<EndpointSlot> slots;
  uint64_t seed = 1;
  for (int i = 0; i < 20; ++i) {
    slots.push_back(*index.Take());
    for (int j = 0; j < 100; ++j) {
      index.Insert(slots[static_cast<size_t>(j) % slots.size()], Chain(seed++, 500));
      if (j % 20 == 0) {
        ASSERT_LE(index.stats().bytes, 4 * kMiB + 200'000);
      }
    }
  }
  const IndexStats stats = index.stats();
  EXPECT_LE(stats.most_bytes, 4 * kMiB + 200'000);  // and what stands for each shard
  EXPECT_GT(stats.blocks, 4 * kMiB / 60 * 8 / 10);
  EXPECT_LT(stats.refused, stats.inserted / 100);
  for (const EndpointSlot slot : slots) EXPECT_LE(index.held(slot), 4 * kMiB / 60 / 20);
  // The last prompt of each is there as a whole.
  EXPECT_EQ(ByIndex(Match(index, Chain(seed - 1, 500))).size(), 1U);
  // Who is left has more again.
  while (slots.size() > 1) {
    index.Return(slots.back());
    slots.pop_back();
  }
  EXPECT_GT(index.capacity(slots[0]), 4 * kMiB / 60 / 2);
}

TEST(Index, ATableThatIsFullRefuses) {
  Index index({.bytes = 1, .default_capacity = 1000});
  const EndpointSlot a = *index.Take();
  index.Insert(a, Chain(1, 10));
  EXPECT_EQ(index.held(a), 0U);
  EXPECT_THAT(Match(index, Chain(1, 10)), IsEmpty());
}

// Writers and readers at once: what a reader sees of a chain that never changes is always all of it, and of
// one that comes and goes never more than was ever there.
TEST(Index, ReadersBesideWriters) {
  Index index({.bytes = 4 * kMiB});
  std::vector<EndpointSlot> slots;
  for (int i = 0; i < 40; ++i) slots.push_back(*index.Take());
  const std::vector<uint64_t> steady = Chain(1, 200), moving = Chain(2, 200);
  for (int i = 0; i < 40; i += 2) index.Insert(slots[static_cast<size_t>(i)], steady);
  std::atomic<bool> stop = false;
  std::vector<std::jthread> threads;
  for (uint64_t writer = 0; writer < 2; ++writer) {
    threads.emplace_back([&, writer] {
      base::Random random(writer);
      while (!stop) {
        const EndpointSlot slot = slots[random.Below(20) * 2 + 1];
        index.Insert(slot, std::span(moving).first(random.Below(150)));
        index.Insert(slot, Chain(100 + random.Below(50), 100));
        index.Unlearn(slot, moving, random.Below(100));
        if (random.Below(30) == 0) index.Forget(slot);
        std::this_thread::yield();
      }
    });
  }
  threads.emplace_back([&] {
    while (!stop) {
      const auto slot = index.Take();
      index.Insert(*slot, moving);
      index.Return(*slot);
      (void)index.stats();
      std::this_thread::yield();
    }
  });
  Index::Scratch scratch;
  std::vector<SlotMatch> matches;
  for (int i = 0; i < 1500; ++i) {
    const uint64_t given_up = index.stats().given_up;
    index.Match(steady, scratch, matches);
    if (index.stats().given_up == given_up) {
      ASSERT_EQ(matches.size(), 20U);
      for (const SlotMatch& match : matches) ASSERT_EQ(match.blocks, 200U);
    }
    index.Match(moving, scratch, matches);
    for (const SlotMatch& match : matches) {
      ASSERT_TRUE(match.slot.index % 2 == 1 || match.slot.index >= 40) << match.slot.index;
      ASSERT_LE(match.blocks, match.slot.index < 40 ? 150U : 200U);
    }
  }
  stop = true;
  threads.clear();
  for (const EndpointSlot slot : slots) index.Forget(slot);
  EXPECT_EQ(index.stats().blocks, 0U);
}

}  // namespace
}  // namespace fairway::prefix
