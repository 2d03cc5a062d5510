// Random lives of a picker against a plain model of the ledger: the same walk as fuzz/decide_fuzz.cc.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "base/random.h"
#include "tests/support/decide_walk.h"

namespace fairway::routing {
namespace {

TEST(Walk, TicketsAndCellsAgreeWithAPlainLedger) {
  size_t picked = 0, refused = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    base::Random random(seed);
    std::vector<uint8_t> bytes(2000);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.Next());
    SCOPED_TRACE(seed);
    tests::DecideWalk walk(bytes);
    walk.Run();
    picked += walk.picked();
    refused += walk.refused();
  }
  EXPECT_GT(picked, 2'000u);
  EXPECT_GT(refused, 200u);
}

}  // namespace
}  // namespace fairway::routing
