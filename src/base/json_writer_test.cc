#include "base/json_writer.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>
#include <string>

#include "base/random.h"

namespace fairway::base {
namespace {

template <typename Write>
std::string Written(Write write) {
  std::string out;
  JsonWriter json(out);
  write(json);
  return out;
}

TEST(JsonWriter, PutsCommasWhereTheyBelong) {
  EXPECT_EQ(Written([](JsonWriter& json) {
              json.BeginObject();
              json.Key("empty").BeginList().EndList();
              json.Key("none").BeginObject().EndObject();
              json.Member("n", 1).Member("yes", true).Key("nothing").Null();
              json.Key("list").BeginList();
              json.Value(1u).Value("two").BeginObject().Member("a", int64_t{-3}).EndObject().BeginList();
              json.EndList().EndList();
              json.Key("raw").Raw("[1,2]").Member("last", "x");
              json.EndObject();
            }),
            R"({"empty":[],"none":{},"n":1,"yes":true,"nothing":null,"list":[1,"two",{"a":-3},[]],)"
            R"("raw":[1,2],"last":"x"})");
}

TEST(JsonWriter, ContinuesATextThatIsThereAlready) {
  std::string out = "data: ";
  JsonWriter(out).BeginList().Value(std::numeric_limits<uint64_t>::max()).EndList();
  EXPECT_EQ(out, "data: [18446744073709551615]");
}

TEST(JsonWriter, TextIsValidWhateverItWas) {
  EXPECT_EQ(Written([](JsonWriter& json) { json.Value("a\"b\\c\n\xff"); }), R"("a\"b\\c\n\ufffd")");
  EXPECT_EQ(Written([](JsonWriter& json) { json.BeginObject().Member("k\"", std::string("v")).EndObject(); }),
            R"({"k\"":"v"})");
  // Cut at a character.
  EXPECT_EQ(Written([](JsonWriter& json) { json.Text("abc\xc3\xa4", 4); }), "\"abc\"");
}

TEST(JsonWriter, NumbersComeBackAsTheyWere) {
  EXPECT_EQ(Written([](JsonWriter& json) { json.BeginList().Value(0.3f).Value(0.1).Value(2.0f).EndList(); }),
            "[0.3,0.1,2]");
  Random random(7);
  for (int i = 0; i < 10'000; ++i) {
    const auto value = static_cast<float>(random.NextDouble() * 1e6);
    const std::string text = Written([&](JsonWriter& json) { json.Value(value); });
    EXPECT_EQ(std::strtof(text.c_str(), nullptr), value) << text << " (seed 7)";
  }
  EXPECT_EQ(Written([](JsonWriter& json) { json.Value(std::numeric_limits<double>::infinity()); }), "null");
  EXPECT_EQ(Written([](JsonWriter& json) { json.Value(std::numeric_limits<float>::quiet_NaN()); }), "null");
}

}  // namespace
}  // namespace fairway::base
