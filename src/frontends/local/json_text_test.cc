#include "frontends/local/json_text.h"

#include <gtest/gtest.h>

namespace fairway::local {
namespace {

TEST(JsonTextTest, ComposesValues) {
  const Json value = JsonObject({{"name", JsonText("a\"b")},
                                 {"left out", JsonNothing()},
                                 {"list", JsonArray({JsonNumber(-1), JsonNothing(), JsonBool(true)})},
                                 {"empty", JsonObject({})}});
  EXPECT_EQ(value.text, R"({"name":"a\"b","list":[-1,true],"empty":{}})");
}

TEST(JsonTextTest, IndentsWithoutTouchingStrings) {
  const Json value = JsonObject(
      {{"a", JsonText("{,:[\\\"")}, {"b", JsonArray({})}, {"c", JsonArray({JsonNumber(1), JsonNumber(2)})}});
  EXPECT_EQ(Indented(value),
            "{\n  \"a\": \"{,:[\\\\\\\"\",\n  \"b\": [],\n  \"c\": [\n    1,\n    2\n  ]\n}\n");
}

}  // namespace
}  // namespace fairway::local
