#include "sources/json/json_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace fairway::sources {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

std::vector<std::pair<std::string, std::string>> Members(std::string_view text) {
  std::vector<std::pair<std::string, std::string>> out;
  for (JsonMembers members(text); members.Next();) out.emplace_back(members.key(), members.value());
  return out;
}

std::vector<std::string> Items(std::string_view text) {
  std::vector<std::string> out;
  for (JsonItems items(text); items.Next();) out.emplace_back(items.value());
  return out;
}

TEST(JsonView, MembersAreGivenAsTheyStand) {
  EXPECT_THAT(Members(R"( {"a":1, "b" : {"x":[1,"}"]},"c":"q\"}","d":[{"e":"]"}] ,"e":null} )"),
              ElementsAre(Pair("a", "1"), Pair("b", R"({"x":[1,"}"]})"), Pair("c", R"("q\"}")"),
                          Pair("d", R"([{"e":"]"}])"), Pair("e", "null")));
}

TEST(JsonView, WhatIsBrokenEndsQuietly) {
  for (const char* text :
       {"", "[]", "1", "{", R"({"a")", R"({"a":)", R"({"a":")", R"({"a":"\)", R"({"a":{"b":1)", "{1:2}"}) {
    EXPECT_THAT(Members(text), IsEmpty()) << text;
  }
  EXPECT_THAT(Members(R"({"a":1,"b":[)"), ElementsAre(Pair("a", "1")));
  EXPECT_THAT(Items("{}"), IsEmpty());
  EXPECT_THAT(Items("[1,{\"a\":"), ElementsAre("1"));
}

TEST(JsonView, Items) {
  EXPECT_THAT(Items(R"([ {"a":1} ,"x", [2,3]])"), ElementsAre(R"({"a":1})", R"("x")", "[2,3]"));
}

TEST(JsonView, StringsAreUnescaped) {
  EXPECT_EQ(JsonString(R"("a\"\\\/\n\tz")"), "a\"\\/\n\tz");
  EXPECT_EQ(JsonString(R"("\u00e9\ud83d\ude00")"), "\u00e9\U0001F600");
  EXPECT_EQ(JsonString(R"("\ud83d!")"), "\uFFFD!");
  EXPECT_EQ(JsonString(R"("\u12")"), "\uFFFD12");
  EXPECT_EQ(JsonString("12"), std::nullopt);
  EXPECT_EQ(JsonString("\""), std::nullopt);
}

struct Split {
  std::vector<std::string> items;
  std::string envelope;
  bool done = false;
  bool ok = true;
};

Split Feed(std::string_view text, size_t piece) {
  Split out;
  ListSplitter splitter([&](std::string_view item) { out.items.emplace_back(item); });
  for (size_t at = 0; at < text.size(); at += piece) out.ok = splitter.Feed(text.substr(at, piece)) && out.ok;
  out.envelope = splitter.envelope();
  out.done = splitter.done();
  return out;
}

TEST(ListSplitter, CutsItemsWhereverTheTextIsCut) {
  const std::string first = R"({"metadata":{"name":"a\\\"]}","items":["x",{"y":2}]},"z":"} ],{"})";
  const std::string second = R"({"items":[]})";
  const std::string text =
      R"({"kind":"items","apiVersion":"v1","metadata":{"resourceVersion":"7","items":[1]},"items":[)" +
      first + " ,\n" + second + R"(],"more":{"a":[{"b":1}]}})" + "\n";
  for (size_t piece = 1; piece <= text.size(); ++piece) {
    const Split split = Feed(text, piece);
    ASSERT_THAT(split.items, ElementsAre(first, second)) << piece;
    ASSERT_TRUE(split.ok && split.done);
    ASSERT_EQ(
        split.envelope,
        R"({"kind":"items","apiVersion":"v1","metadata":{"resourceVersion":"7","items":[1]},"items":[],"more":{"a":[{"b":1}]}})"
        "\n");
  }
}

TEST(ListSplitter, WhatStandsBetweenItemsDoesNotCount) {
  const std::string text =
      "{\n \"items\": [\n  {\"a\": 1}\n ,\t{\"b\":2} , \"x\", 3\n ],\n \"metadata\": {}\n}\n";
  for (size_t piece = 1; piece <= text.size(); ++piece) {
    const Split split = Feed(text, piece);
    ASSERT_THAT(split.items, ElementsAre("{\"a\": 1}", "{\"b\":2}")) << piece;
    ASSERT_EQ(split.envelope, "{\n \"items\": [],\n \"metadata\": {}\n}\n") << piece;
    ASSERT_TRUE(split.done);
  }
}

TEST(ListSplitter, AnEmptyListAndOneThatEndsTooEarly) {
  const Split empty = Feed(R"({"items":[],"metadata":{"resourceVersion":"1"}})", 5);
  EXPECT_TRUE(empty.done);
  EXPECT_THAT(empty.items, IsEmpty());
  EXPECT_FALSE(Feed(R"({"items":[{"a":1},)", 4).done);
  EXPECT_THAT(Feed(R"({"items":[{"a":1},{"b")", 4).items, ElementsAre(R"({"a":1})"));
}

TEST(ListSplitter, IsBounded) {
  EXPECT_FALSE(Feed(R"({"kind":")" + std::string(ListSplitter::kMaxEnvelope, 'x'), 4096).ok);
  EXPECT_FALSE(Feed(R"({"items":[{"a":")" + std::string(ListSplitter::kMaxItem, 'x'), 65536).ok);
}

}  // namespace
}  // namespace fairway::sources
