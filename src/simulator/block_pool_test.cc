#include "simulator/block_pool.h"

#include <gtest/gtest.h>

namespace fairway::simulator {
namespace {

TEST(BlockPool, CountsWithoutTheNullBlock) {
  BlockPool pool(5);
  EXPECT_EQ(pool.capacity(), 4u);
  EXPECT_EQ(pool.Allocate(), 1u);
  EXPECT_DOUBLE_EQ(pool.Usage(), 0.25);
  pool.Release(1);
  EXPECT_EQ(pool.used(), 0u);
}

TEST(BlockPool, AFreedBlockIsFoundUntilItsSpaceIsNeeded) {
  BlockPool pool(3);
  const BlockId a = pool.Allocate();
  pool.SetContent(a, 77);
  pool.Release(a);
  ASSERT_EQ(pool.Find(77), a);
  pool.Take(a);
  EXPECT_EQ(pool.free_count(), 1u);
  pool.Release(a);
  EXPECT_NE(pool.Allocate(), a);  // the one freed longest ago
  EXPECT_EQ(pool.Find(77), a);
  EXPECT_EQ(pool.Allocate(), a);
  EXPECT_EQ(pool.Find(77), std::nullopt);
}

TEST(BlockPool, SharedBlocksAreFreeWhenTheLastUserLeaves) {
  BlockPool pool(2);
  const BlockId a = pool.Allocate();
  pool.SetContent(a, 1);
  pool.Take(a);
  pool.Release(a);
  EXPECT_EQ(pool.free_count(), 0u);
  EXPECT_FALSE(pool.IsFree(a));
  pool.Release(a);
  EXPECT_TRUE(pool.IsFree(a));
}

TEST(BlockPool, OfTwoWithTheSameContentTheFirstIsFound) {
  BlockPool pool(3);
  const BlockId a = pool.Allocate();
  const BlockId b = pool.Allocate();
  pool.SetContent(a, 1);
  pool.SetContent(b, 1);
  pool.Release(b);
  EXPECT_EQ(pool.Allocate(), b);  // forgetting b must not forget a
  EXPECT_EQ(pool.Find(1), a);
}

}  // namespace
}  // namespace fairway::simulator
