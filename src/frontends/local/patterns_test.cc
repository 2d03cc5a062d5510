#include "frontends/local/patterns.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace fairway::local {
namespace {

using ::testing::HasSubstr;

TEST(CheckPattern, SaysWhatEnvoyWouldSay) {
  for (const char* good : {".*", "/v1/(chat/)?completions", "[a-z]+", "(?i)x", "\\d{1,3}", "a|b", "\\pL+"})
    EXPECT_EQ(CheckPattern(good), "") << good;
  EXPECT_THAT(CheckPattern("/v1/(chat"), HasSubstr("missing )"));
  EXPECT_THAT(CheckPattern("[z-a]"), HasSubstr("invalid character class range: z-a"));
  EXPECT_THAT(CheckPattern("*"), HasSubstr("no argument for repetition operator"));
  EXPECT_THAT(CheckPattern("(?=a)b"), HasSubstr("lookahead"));
  EXPECT_THAT(CheckPattern("(a)\\1"), HasSubstr("back references"));
  EXPECT_THAT(CheckPattern("a{1001}"), HasSubstr("invalid repetition size"));
  EXPECT_THAT(CheckPattern(std::string(1, '\xff')), HasSubstr("UTF-8"));
  EXPECT_THAT(CheckPattern("\\pL{1000}"), HasSubstr("too large"));
  EXPECT_THAT(CheckPattern(""), HasSubstr("cannot be empty"));
}

}  // namespace
}  // namespace fairway::local
