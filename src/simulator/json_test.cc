#include "simulator/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace fairway::simulator {
namespace {

using testing::HasSubstr;

TEST(Json, ReadsEveryKindOfValue) {
  auto json = ParseJson(
      R"( {"a": [1, -2.5e3, true, false, null], "b": {"c": "x\n\u00e9\ud83d\ude00\/"}, "a2": {}} )");
  ASSERT_TRUE(json) << json.error().message;
  const Json* a = json->Find("a");
  ASSERT_TRUE(a && a->Is(Json::Kind::kArray));
  ASSERT_EQ(a->items.size(), 5u);
  EXPECT_EQ(a->items[1].number, -2500);
  EXPECT_TRUE(a->items[2].boolean);
  EXPECT_TRUE(a->items[4].Is(Json::Kind::kNull));
  EXPECT_EQ(json->Find("b")->Find("c")->string, "x\n\xc3\xa9\xf0\x9f\x98\x80/");
  EXPECT_EQ(json->Find("nothing"), nullptr);
  EXPECT_EQ(a->Find("x"), nullptr);
}

TEST(Json, OfDuplicatesTheLastCounts) { EXPECT_EQ(ParseJson(R"({"a":1,"a":2})")->Find("a")->number, 2); }

TEST(Json, WrongTextIsAnErrorWithItsPlace) {
  for (const char* text :
       {"",    " ",     "{",  "{\"a\"", "{\"a\":", "{\"a\":1",  "{\"a\":1,}",  "[1,]",        "[1 2]",
        "tru", "01",    "-",  "1e",     "\"\\x\"", "\"\\u12\"", "\"\\ud800\"", "\"\\udc00\"", "\"a\nb\"",
        "\"a", "{} {}", "+1", "nan",    "1e999",   "{a:1}"}) {
    EXPECT_FALSE(ParseJson(text)) << text;
  }
  EXPECT_THAT(ParseJson("{\"a\" 1}").error().message, HasSubstr("invalid JSON at byte 5: ':' is missing"));
  EXPECT_FALSE(ParseJson(std::string(100, '[') + std::string(100, ']')));
  EXPECT_FALSE(ParseJson(std::string(1000000, '[')));
}

}  // namespace
}  // namespace fairway::simulator
