#include "api/scalars.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace fairway::api {
namespace {

// One scalar as a config has it, and the problems that reading it reports.
class Scalar {
 public:
  explicit Scalar(const std::string& yaml) : parsed_(ParseYaml("x: " + yaml)) {}
  Node node() const { return Node(&context_, parsed_.documents.at(0).get(), "", 1).Child("x"); }
  std::string problem() const { return found_.empty() ? "" : found_[0].message; }

 private:
  ParsedText parsed_;
  std::vector<Problem> found_;
  ProblemList problems_{"f", found_};
  ObjectContext context_{&problems_, ""};
};

TEST(Scalars, Quantities) {
  const std::vector<std::pair<std::string, int64_t>> cases = {
      {"0", 0},
      {"100", 100},
      {"'100'", 100},
      {"+7", 7},
      {"1k", 1000},
      {"1Ki", 1024},
      {"500M", 500'000'000},
      {"1Gi", int64_t{1} << 30},
      {"2Ti", int64_t{2} << 40},
      {"1Ei", int64_t{1} << 60},
      {"1.5G", 1'500'000'000},
      {"100m", 1},  // rounds up
      {"7000m", 7},
      {"2.003k", 2003},
      {"1.0001k", 1001},
      {"1e3", 1000},
      {"1E3", 1000},
      {"9223372036854775807", INT64_MAX},
      {"-5", -5},
      {"-1Ki", -1024},
  };
  for (const auto& [text, value] : cases) {
    const Scalar scalar(text);
    EXPECT_EQ(ReadQuantity(scalar.node()), value) << text;
    EXPECT_EQ(scalar.problem(), "") << text;
  }
  for (const char* text : {"''", "1K", "1MB", "1kk", "k", "1e3k", "1e", "10E", "1 k", "nan", ".inf", "0x10",
                           "true", "[1]", "1e400"}) {
    const Scalar scalar(text);
    EXPECT_EQ(ReadQuantity(scalar.node()), std::nullopt) << text;
    EXPECT_TRUE(scalar.problem().starts_with("want a quantity such as")) << text << ": " << scalar.problem();
  }
  EXPECT_EQ(ReadQuantity(Scalar("null").node()), std::nullopt);
}

TEST(Scalars, Durations) {
  const std::vector<std::pair<std::string, int64_t>> cases = {
      {"60s", 60'000'000'000}, {"1m30s", 90'000'000'000}, {"'0'", 0}, {"0s", 0},
      {"+1ms", 1'000'000},     {"1.5s", 1'500'000'000},   {"-0s", 0},
  };
  for (const auto& [text, value] : cases) {
    const Scalar scalar(text);
    EXPECT_EQ(ReadDuration(scalar.node()), value) << text;
    EXPECT_EQ(scalar.problem(), "") << text;
  }
  for (const char* text : {"60", "''", "1 s", "s", "1d", "--1s", "1s2", "[]", "no"}) {
    const Scalar scalar(text);
    EXPECT_EQ(ReadDuration(scalar.node()), std::nullopt) << text;
    EXPECT_TRUE(scalar.problem().starts_with("want a duration such as")) << text << ": " << scalar.problem();
  }
}

TEST(Scalars, Numbers) {
  const auto read = [](const std::string& text, double min, double max) {
    const Scalar scalar(text);
    const auto number = ReadNumber(scalar.node(), min, max);
    return number ? std::to_string(*number) : scalar.problem();
  };
  EXPECT_EQ(read("0.25", 0, 1), "0.250000");
  EXPECT_EQ(read("1", 0, 1), "1.000000");
  EXPECT_EQ(read(".5", 0, 1), "0.500000");
  EXPECT_EQ(read("1e-2", 0, 1), "0.010000");
  EXPECT_EQ(read("1.1", 0, 1), "want a number from 0 to 1, got \"1.1\"");
  EXPECT_EQ(read("-1", 0, kAnyNumber), "want a number from 0 on, got \"-1\"");
  EXPECT_EQ(read("2", -kAnyNumber, 1), "want a number up to 1, got \"2\"");
  EXPECT_EQ(read("'1'", 0, 1), "want a number from 0 to 1, got the string \"1\"");
  EXPECT_EQ(read(".nan", 0, 1), "want a number from 0 to 1, got the string \".nan\"");
  EXPECT_EQ(read(".inf", -kAnyNumber, kAnyNumber), "want a number, got \".inf\"");
}

TEST(Scalars, Booleans) {
  for (const char* text : {"true", "True", "yes", "on"})
    EXPECT_EQ(ReadBoolean(Scalar(text).node()), true) << text;
  for (const char* text : {"false", "FALSE", "no", "off"})
    EXPECT_EQ(ReadBoolean(Scalar(text).node()), false) << text;
  const Scalar number("1");
  EXPECT_EQ(ReadBoolean(number.node()), std::nullopt);
  EXPECT_EQ(number.problem(), "want true or false, got the number \"1\"");
}

}  // namespace
}  // namespace fairway::api
