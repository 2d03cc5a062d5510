#include "base/either_pointer.h"

#include <gtest/gtest.h>

#include <memory>

namespace fairway::base {
namespace {

struct Counted {
  explicit Counted(int& alive) : count(&alive) { ++*count; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  ~Counted() { --*count; }
  int* count;
};
struct First : Counted {
  using Counted::Counted;
};
struct Second : Counted {
  using Counted::Counted;
};

TEST(EitherPointer, HoldsOneOfBothAndSaysWhich) {
  int first = 0;
  int second = 0;
  {
    EitherPointer<First, Second> either;
    static_assert(sizeof(either) == sizeof(void*));
    EXPECT_EQ(either.Get<First>(), nullptr);
    EXPECT_EQ(either.Get<Second>(), nullptr);
    either.Set(std::make_unique<First>(first));
    EXPECT_EQ(either.Get<First>()->count, &first);
    EXPECT_EQ(either.Get<Second>(), nullptr);
    EXPECT_EQ(either.Take<Second>(), nullptr);  // and the other stays
    EXPECT_EQ(first, 1);
    either.Set(std::make_unique<Second>(second));
    EXPECT_EQ(first, 0);
    EXPECT_EQ(either.Get<First>(), nullptr);
    EXPECT_EQ(either.Get<Second>()->count, &second);
  }
  EXPECT_EQ(second, 0);
}

TEST(EitherPointer, GivesAwayWhatItHolds) {
  int first = 0;
  int second = 0;
  EitherPointer<First, Second> either;
  either.Set(std::make_unique<Second>(second));
  std::unique_ptr<Second> taken = either.Take<Second>();
  EXPECT_EQ(either.Get<Second>(), nullptr);
  EXPECT_EQ(either.Take<Second>(), nullptr);
  EXPECT_EQ(second, 1);
  either.Set(std::make_unique<First>(first));
  either.Set(std::unique_ptr<Second>());
  EXPECT_EQ(first, 0);
  either.Set(std::move(taken));
  either.Reset();
  EXPECT_EQ(second, 0);
}

}  // namespace
}  // namespace fairway::base
