#include "payload/render_answer.h"

#include <gtest/gtest.h>

namespace fairway::payload {
namespace {

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

}  // namespace
}  // namespace fairway::payload
