#include "frontends/request/circuit_breaker.h"

#include <gtest/gtest.h>

namespace fairway::request {
namespace {

using Ask = CircuitBreaker::Ask;

CircuitBreaker Opened(base::Nanos now) {
  CircuitBreaker breaker;
  for (int i = 0; i < CircuitBreaker::kMostInARow; ++i)
    EXPECT_EQ(breaker.Waited(breaker.MayAsk(now), now), i == CircuitBreaker::kMostInARow - 1);
  return breaker;
}

TEST(CircuitBreaker, OpensAfterSomeInARow) {
  CircuitBreaker breaker;
  for (int i = 0; i < 10; ++i) {
    for (int j = 1; j < CircuitBreaker::kMostInARow; ++j) EXPECT_FALSE(breaker.Waited(Ask::kYes, 0));
    EXPECT_FALSE(breaker.Answered()) << "it was not open";
    EXPECT_EQ(breaker.MayAsk(0), Ask::kYes);
  }
  EXPECT_TRUE(Opened(0).open());
}

TEST(CircuitBreaker, OneProbeAfterEachPauseThatGrows) {
  base::Nanos now = 0;
  CircuitBreaker breaker = Opened(now);
  for (base::Nanos pause = CircuitBreaker::kFirstPause;;
       pause = std::min(2 * pause, CircuitBreaker::kMostPause)) {
    EXPECT_EQ(breaker.pause(), pause);
    EXPECT_EQ(breaker.MayAsk(now + pause - 1), Ask::kNo);
    now += pause;
    EXPECT_EQ(breaker.MayAsk(now), Ask::kProbe);
    EXPECT_EQ(breaker.MayAsk(now + CircuitBreaker::kMostPause), Ask::kNo) << "one at a time";
    EXPECT_FALSE(breaker.Waited(Ask::kYes, now)) << "asked before it opened";
    EXPECT_EQ(breaker.MayAsk(now + CircuitBreaker::kMostPause), Ask::kNo);
    if (now > 5 * CircuitBreaker::kMostPause) break;
    EXPECT_FALSE(breaker.Waited(Ask::kProbe, now)) << "told once";
  }
  EXPECT_TRUE(breaker.Answered());
  EXPECT_FALSE(breaker.Answered()) << "told once";
  EXPECT_EQ(breaker.MayAsk(now), Ask::kYes);
  for (int i = 1; i < CircuitBreaker::kMostInARow; ++i) EXPECT_FALSE(breaker.Waited(Ask::kYes, now));
  EXPECT_TRUE(breaker.Waited(Ask::kYes, now));
  EXPECT_EQ(breaker.pause(), CircuitBreaker::kFirstPause) << "it begins anew";
}

}  // namespace
}  // namespace fairway::request
