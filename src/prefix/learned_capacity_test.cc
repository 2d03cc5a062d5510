#include "prefix/learned_capacity.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "prefix/index.h"

namespace fairway::prefix {
namespace {

using base::kSecond;

CacheTold Told(size_t predicted, size_t total, uint64_t cached, uint64_t prompt) {
  return {predicted, total, cached, prompt};
}

TEST(LearnedCapacity, APredictionThatHoldsChangesNothing) {
  LearnedCapacity capacity(1000);
  EXPECT_EQ(capacity.Learn(Told(40, 50, 2600, 3300), 500, 1), LearnedCapacity::kHeldTrue);
  EXPECT_EQ(capacity.Learn(Told(40, 50, 2000, 3300), 500, 1),
            LearnedCapacity::kHeldTrue);  // 61 % of 80 % told
  EXPECT_EQ(capacity.blocks(), 1000U);
}

TEST(LearnedCapacity, WhatSaysLittleIsIgnored) {
  LearnedCapacity capacity(1000);
  EXPECT_EQ(capacity.Learn(Told(7, 8, 0, 500), 1000, 1), LearnedCapacity::kNothing);
  EXPECT_EQ(capacity.Learn(Told(40, 50, 0, 0), 1000, 1), LearnedCapacity::kNothing);
  EXPECT_EQ(capacity.Learn(Told(40, 0, 0, 100), 1000, 1), LearnedCapacity::kNothing);
  EXPECT_EQ(capacity.blocks(), 1000U);
}

TEST(LearnedCapacity, MissesShrinkOnceASecondAndHitsOfAFullOneGrow) {
  LearnedCapacity capacity(1000);
  EXPECT_EQ(capacity.Learn(Told(40, 50, 16, 3300), 500, kSecond), LearnedCapacity::kShrunk);
  EXPECT_EQ(capacity.blocks(), 400U);  // less than it held
  EXPECT_EQ(capacity.Learn(Told(40, 50, 16, 3300), 500, kSecond + 1), LearnedCapacity::kMissed);
  EXPECT_EQ(capacity.blocks(), 400U);
  EXPECT_EQ(capacity.Learn(Told(40, 50, 2600, 3300), 200, 2 * kSecond), LearnedCapacity::kHeldTrue);
  EXPECT_EQ(capacity.Learn(Told(40, 50, 2600, 3300), 390, 2 * kSecond), LearnedCapacity::kGrown);
  EXPECT_EQ(capacity.blocks(), 407U);
  for (int i = 0; i < 200; ++i) capacity.Learn(Told(40, 50, 2600, 3300), capacity.blocks(), 3 * kSecond);
  EXPECT_EQ(capacity.blocks(), 1000U);
  for (int i = 0; i < 100; ++i) capacity.Learn(Told(40, 50, 16, 3300), capacity.blocks(), (10 + i) * kSecond);
  EXPECT_EQ(capacity.blocks(), LearnedCapacity::kLeast);
}

TEST(LearnedCapacity, FullMissesInARowAreAnEngineThatStartedAnew) {
  LearnedCapacity capacity(1000);
  capacity.Learn(Told(40, 50, 0, 3300), 1000, kSecond);
  capacity.Learn(Told(40, 50, 2600, 3300), 10, kSecond);
  capacity.Learn(Told(40, 50, 0, 3300), 1000, kSecond);
  EXPECT_NE(capacity.Learn(Told(40, 50, 0, 3300), 1000, kSecond), LearnedCapacity::kGone);
  EXPECT_EQ(capacity.Learn(Told(40, 50, 0, 3300), 1000, 2 * kSecond), LearnedCapacity::kGone);
  EXPECT_NE(capacity.Learn(Told(40, 50, 0, 3300), 1000, 3 * kSecond), LearnedCapacity::kGone);
}

// A client whose requests the engine computes without its cache, as with prompt_logprobs: others' requests
// go on to find what was predicted.
TEST(LearnedCapacity, MissesOfOneClientBesideHitsOfOthersForgetNothing) {
  LearnedCapacity capacity(1000);
  for (int ms = 0; ms < 10'000; ++ms) {
    const base::Nanos now = kSecond + ms * base::kMillisecond;
    EXPECT_NE(capacity.Learn(Told(40, 50, 0, 3300), 500, now), LearnedCapacity::kGone) << ms;
    if (ms % 500 == 0) capacity.Learn(Told(40, 50, 2600, 3300), 500, now);
  }
}

TEST(LearnedCapacity, AReportedSizeThatMovesKeepsWhatWasLearned) {
  LearnedCapacity capacity(1000);
  capacity.Learn(Told(40, 50, 16, 3300), 1000, kSecond);
  EXPECT_EQ(capacity.blocks(), 800U);
  capacity.SetReported(2000);
  EXPECT_EQ(capacity.blocks(), 1600U);
  capacity.SetReported(50);
  EXPECT_EQ(capacity.blocks(), 50U);
  LearnedCapacity none(0);
  none.SetReported(100);
  EXPECT_EQ(none.blocks(), 100U);
}

// An engine that keeps a third of what it reports: the belief comes down to it, and predictions hold then.
TEST(LearnedCapacity, FindsWhatAnEngineKeeps) {
  Index index({.bytes = 8 << 20});
  const EndpointSlot believed = *index.Take(), real = *index.Take();  // the index plays the engine, too
  index.SetCapacity(believed, 3000);
  index.SetCapacity(real, 1000);
  LearnedCapacity capacity(3000);
  base::Random random(1);
  Index::Scratch scratch;
  std::vector<SlotMatch> matches;
  int wrong_at_last = 0;
  for (int i = 0; i < 4000; ++i) {
    base::Random blocks(random.Below(60));  // of 60 prompts of 40 blocks, which is more than the engine holds
    std::vector<uint64_t> chain(40);
    for (uint64_t& block : chain) block = blocks.Next();
    index.Match(chain, scratch, matches);
    size_t predicted = 0, cached = 0;
    for (const SlotMatch& match : matches) (match.slot == believed ? predicted : cached) = match.blocks;
    const bool wrong = predicted >= 8 && cached * 4 < predicted * 3;
    wrong_at_last += i >= 3000 && wrong ? 1 : 0;
    switch (capacity.Learn(Told(predicted, 40, cached * 64, 40 * 64), index.held(believed),
                           (i + 1) * kSecond / 10)) {
      case LearnedCapacity::kShrunk:
      case LearnedCapacity::kGrown:
        index.SetCapacity(believed, capacity.blocks());
        break;
      case LearnedCapacity::kGone:
        index.Forget(believed);
        break;
      default:
        break;
    }
    index.Insert(believed, chain);
    index.Insert(real, chain);
  }
  EXPECT_LT(capacity.blocks(), 1500U);
  EXPECT_GT(capacity.blocks(), 600U);
  EXPECT_LT(wrong_at_last, 50);
}

}  // namespace
}  // namespace fairway::prefix
