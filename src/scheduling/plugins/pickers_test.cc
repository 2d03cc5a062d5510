#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "scheduling/plugin.h"
#include "tests/support/plugins.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using Fixture = tests::Candidates;

std::vector<uint32_t> Pick(Fixture& f, const char* type, const std::vector<float>& scores, size_t n) {
  return f.With(type, {}, [&](const auto& context, const auto& plugin) {
    std::vector<uint32_t> out(n);
    out.resize(plugin.picker->Pick(context, f.all, scores, out));
    return out;
  });
}

// How often each comes first in `n` draws of one.
std::map<uint32_t, int> Draw(Fixture& f, const char* type, const std::vector<float>& scores, int n) {
  return f.With(type, {}, [&](const auto& context, const auto& plugin) {
    std::map<uint32_t, int> first;
    for (int i = 0; i < n; ++i) {
      std::vector<uint32_t> out(1);
      plugin.picker->Pick(context, f.all, scores, out);
      ++first[out[0]];
    }
    return first;
  });
}

TEST(WeightedRandomPicker, DrawsByScore) {
  Fixture f(4);
  auto first = Draw(f, "weighted-random-picker", {1, 2, 1, 0}, 8000);
  EXPECT_NEAR(first[0], 2000, 4 * 39);  // 4 sigma of binomial(8000, 1/4)
  EXPECT_NEAR(first[1], 4000, 4 * 45);
  EXPECT_NEAR(first[2], 2000, 4 * 39);
  EXPECT_EQ(first[3], 0);
}

TEST(WeightedRandomPicker, WhatIsNotAboveZeroComesLast) {
  Fixture f(4);
  std::map<uint32_t, int> third;
  for (int i = 0; i < 4000; ++i) {
    const auto out = Pick(f, "weighted-random-picker", {0, 1e-30f, -1, 1e30f}, 4);
    ASSERT_EQ(out.size(), 4u);
    ASSERT_EQ(out[0], 3u);
    ASSERT_EQ(out[1], 1u);
    ++third[out[2]];
  }
  EXPECT_NEAR(third[0], 2000, 4 * 32);
  EXPECT_NEAR(third[2], 2000, 4 * 32);
}

TEST(WeightedRandomPicker, AllZeroIsUniform) {
  Fixture f(4);
  for (const auto& [position, n] : Draw(f, "weighted-random-picker", {0, 0, 0, 0}, 8000))
    EXPECT_NEAR(n, 2000, 4 * 39) << position;
}

TEST(WeightedRandomPicker, TheSecondIsDrawnFromTheRest) {
  Fixture f(3);
  std::map<uint32_t, int> second;
  int all = 0;
  for (int i = 0; i < 12'000; ++i) {
    const auto out = Pick(f, "weighted-random-picker", {2, 1, 1}, 2);
    ASSERT_NE(out[0], out[1]);
    if (out[0] != 1) continue;
    ++all;
    ++second[out[1]];
  }
  EXPECT_NEAR(second[0], all * 2 / 3, 4 * 26) << "2 to 1";  // 3000 draws
}

uint32_t Choices(const char* type, const char* parameters, std::vector<std::string>* warnings) {
  tests::TestPool pool({{"a"}, {"b"}, {"c"}, {"d"}, {"e"}, {"f"}, {"g"}, {"h"}, {"i"}, {"j"}});
  const auto spec = tests::OneProfile(
      {tests::Parsed(type, "picker", parameters), tests::Parsed("queue-scorer", "queue", "{}")},
      {{"queue"}, {"picker"}});
  const Scheduler scheduler({}, 0, tests::Compiled(spec, {}, warnings));
  Scratch scratch;
  base::Random random(1);
  return scheduler.Pick(*pool.pool(), {}, std::nullopt, base::kSecond, scratch, random).num_choices;
}

TEST(Pickers, TheConfigsNumberOfEndpointsWins) {
  for (const char* type : {"max-score-picker", "random-picker", "weighted-random-picker"}) {
    SCOPED_TRACE(type);
    std::vector<std::string> warnings;
    EXPECT_EQ(Choices(type, "{}", &warnings), SchedulerOptions().max_choices);
    EXPECT_EQ(Choices(type, "maxNumOfEndpoints: 1", &warnings), 1u);
    EXPECT_EQ(Choices(type, "maxNumOfEndpoints: 5", &warnings), 5u);
    EXPECT_TRUE(warnings.empty());
    EXPECT_EQ(Choices(type, "maxNumOfEndpoints: 0", &warnings), 1u);
    EXPECT_EQ(Choices(type, "maxNumOfEndpoints: 20", &warnings), 8u);
    EXPECT_EQ(warnings.size(), 2u);
    EXPECT_EQ(warnings.front(), "test.yaml:1: warning: plugin picker (" + std::string(type) +
                                    "): parameters.maxNumOfEndpoints: counts as 1");
  }
}

}  // namespace
}  // namespace fairway::scheduling
