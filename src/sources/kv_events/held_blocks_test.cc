#include "sources/kv_events/held_blocks.h"

#include <gtest/gtest.h>

namespace fairway::sources::kv_events {
namespace {

KvEvent Stored(uint64_t blocks, bool on_device = true) {
  return {.kind = KvEvent::Kind::kStored, .blocks = blocks, .block_size = 16, .on_device = on_device};
}
KvEvent Removed(uint64_t blocks, bool on_device = true) {
  return {.kind = KvEvent::Kind::kRemoved, .blocks = blocks, .on_device = on_device};
}

TEST(HeldBlocks, CapacityIsWhatWasHeldWhenBlocksHadToGo) {
  HeldBlocks held;
  EXPECT_EQ(held.tokens(), 0u);
  held.Apply(Stored(1000));
  EXPECT_EQ(held.tokens(), 16'000u);
  EXPECT_FALSE(held.capacity()) << "it may hold more";
  held.Apply(Removed(1));
  EXPECT_EQ(held.tokens(), 15'984u);
  EXPECT_EQ(held.capacity(), 16'000u);
  held.Apply(Stored(11));
  EXPECT_EQ(held.capacity(), 16'160u) << "it holds more than that";
}

TEST(HeldBlocks, ALongPromptTakesBlocksAwayBeforeItsOwnAreStored) {
  HeldBlocks held;
  held.Apply(Stored(1000));
  for (int i = 0; i < 500; ++i) held.Apply(Removed(1));
  EXPECT_EQ(held.capacity(), 16'000u);
  held.Apply(Stored(1));
  held.Apply(Removed(1));
  EXPECT_EQ(held.capacity(), 16'000u - 250) << "a sixty-fourth less for each time that it was less";
}

TEST(HeldBlocks, EachMemoryCountsAndTheLargestIsWhatIsHeld) {
  HeldBlocks held;
  held.Apply(Stored(100));
  held.Apply(Removed(10));
  held.Apply(Stored(10, false));
  EXPECT_EQ(held.tokens(), 90u * 16);
  EXPECT_FALSE(held.capacity()) << "the other memory still fills up";
  held.Apply(Stored(290, false));
  held.Apply(Removed(20, false));
  EXPECT_EQ(held.tokens(), 280u * 16);
  EXPECT_EQ(held.capacity(), 300u * 16);
}

TEST(HeldBlocks, CachesOfASlidingWindowDoNotCount) {
  HeldBlocks held;
  KvEvent window = Stored(50);
  window.group = 1;
  window.whole_prefix = false;
  held.Apply(window);
  KvEvent gone = Removed(5);
  gone.group = 1;
  held.Apply(gone);
  EXPECT_EQ(held.tokens(), 0u);
  KvEvent full = Stored(8);
  full.group = 0;
  held.Apply(full);
  EXPECT_EQ(held.tokens(), 128u);
}

TEST(HeldBlocks, WhatWasMissedMakesItUnknownUntilItIsEmpty) {
  HeldBlocks held;
  held.Apply(Stored(10));
  held.Apply(Removed(1));
  held.Lose();
  EXPECT_FALSE(held.tokens());
  EXPECT_FALSE(held.capacity());
  held.Apply(Stored(300));
  held.Apply(Removed(20));
  held.Apply({});
  EXPECT_EQ(held.tokens(), 0u);
  held.Apply(Stored(3));
  EXPECT_EQ(held.tokens(), 48u);
  EXPECT_EQ(held.capacity(), 160u) << "what was seen before that";
}

TEST(HeldBlocks, MoreRemovedThanStoredIsNoCount) {
  HeldBlocks held;
  held.Apply(Stored(3));
  held.Apply(Removed(4));
  EXPECT_FALSE(held.tokens());
}

}  // namespace
}  // namespace fairway::sources::kv_events
