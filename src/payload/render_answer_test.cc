#include "payload/render_answer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>

namespace fairway::payload {
namespace {

std::optional<PromptTokens> ReadInPieces(std::string_view json, size_t size) {
  RenderAnswerReader reader;
  for (; !json.empty(); json.remove_prefix(std::min(size, json.size())))
    if (!reader.Feed(json.substr(0, size))) return std::nullopt;
  return reader.Finish();
}

// However it is cut.
std::optional<PromptTokens> ReadRenderAnswer(std::string_view json) {
  const auto whole = ReadInPieces(json, json.size());
  for (size_t size = 1; size < json.size(); ++size) EXPECT_EQ(ReadInPieces(json, size), whole) << json;
  return whole;
}

// As many times `text`, with commas between.
std::string Times(size_t count, std::string_view text) {
  std::string all;
  for (size_t i = 0; i < count; ++i) (all += i == 0 ? "" : ",") += text;
  return all;
}

TEST(RenderAnswer, TheTokensOfAChat) {
  EXPECT_EQ(ReadRenderAnswer(R"({"request_id":"r","token_ids":[1,128000,3],"sampling_params":{"n":1},
                                 "token_ids_of_others":[9],"features":null})"),
            (PromptTokens{.tokens = {1, 128000, 3}, .ends = {3}}));
}

TEST(RenderAnswer, OneForEachPrompt) {
  EXPECT_EQ(ReadRenderAnswer(R"([{"token_ids":[1,2]},{"token_ids":[]},{"token_ids":[3]}])"),
            (PromptTokens{.tokens = {1, 2, 3}, .ends = {2, 2, 3}}));
}

TEST(RenderAnswer, MediaInTheirOrder) {
  EXPECT_EQ(
      ReadRenderAnswer(
          R"({"features":{"mm_hashes":{"image":["b","a"],"audio":["c","left over"]},"kwargs":{"x":[1]},
                    "mm_placeholders":{"audio":[{"offset":1,"length":1}],
                                       "image":[{"offset":2,"length":2,"is_embed":null},{"length":1,"offset":0}]}},
                    "token_ids":[5,6,7,8]})"),
      (PromptTokens{
          .tokens = {5, 6, 7, 8}, .ends = {4}, .media = {{0, 0, 1, "a"}, {0, 1, 2, "c"}, {0, 2, 4, "b"}}}));
}

TEST(RenderAnswer, WhatIsNone) {
  for (const std::string_view text :
       {"", "[]", "{}", "7", R"({"token_ids":"x"})", R"({"token_ids":[1.5]})", R"({"token_ids":[-1]})",
        R"({"token_ids":[4294967296]})", R"({"token_ids":[null]})", R"({"token_ids":["1"]})",
        R"({"token_ids":[1],"token_ids":[2]})", R"({"token_ids":[1)", R"([{"token_ids":[1]},{}])",
        R"({"token_ids":[1],"features":{"mm_hashes":{"image":["a"]},)"
        R"("mm_placeholders":{"image":[{"offset":1,"length":1}]}}})"})
    EXPECT_EQ(ReadRenderAnswer(text), std::nullopt) << text;
}

TEST(RenderAnswer, WhatIsKeptIsCountedAndBounded) {
  for (const std::string_view one : {R"({})", R"({"offset":1})", R"({"length":0})", R"({"is_embed":null})"}) {
    const auto answer = [&](size_t count) {
      return R"({"token_ids":[1],"features":{"mm_placeholders":{"image":[)" + Times(count, one) + "]}}}";
    };
    EXPECT_NE(ReadInPieces(answer(2 * kMaxRenderedMedia), 1000), std::nullopt) << one;
    EXPECT_EQ(ReadInPieces(answer(2 * kMaxRenderedMedia + 1), 1000), std::nullopt) << one;
  }
  RenderAnswerReader reader;
  ASSERT_TRUE(reader.Feed(R"({"token_ids":[)" + Times(100'000, "1") + "],"));
  const size_t tokens = reader.bytes();
  EXPECT_GE(tokens, 400'000u);
  EXPECT_LE(tokens, 1'000'000u);
  ASSERT_TRUE(
      reader.Feed(R"("features":{"mm_hashes":{"image":[)" + Times(1000, '"' + std::string(256, 'a') + '"')));
  EXPECT_GE(reader.bytes(), tokens + 256'000);
}

TEST(RenderAnswer, EndsWhereItIsNone) {
  RenderAnswerReader reader;
  EXPECT_TRUE(reader.Feed(R"({"token_ids":[1,)"));
  EXPECT_FALSE(reader.Feed(R"("x",)"));
  EXPECT_FALSE(reader.Feed("2]}"));
  EXPECT_EQ(reader.Finish(), std::nullopt);
  RenderAnswerReader many;
  EXPECT_TRUE(many.Feed(R"({"token_ids":[)"));
  const std::string million = Times(1 << 20, "1") + ",";
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(many.Feed(million));
  EXPECT_FALSE(many.Feed("1,"));
}

}  // namespace
}  // namespace fairway::payload
