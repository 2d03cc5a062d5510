#include "frontends/request/model_name.h"

#include <gtest/gtest.h>

#include <string>

namespace fairway::request {
namespace {

TEST(PutModel, ReplacesTheNameAlone) {
  std::string body = R"({"prompt": "a",  "model" : "llama2", "x": 12345678901234567890})";
  payload::RequestScanner scanner(payload::Api::kCompletions);
  scanner.Feed(body);
  scanner.Finish();
  ASSERT_TRUE(PutModel(body, scanner.fields(), "llama2-\"v1\""));
  EXPECT_EQ(body, R"({"prompt": "a",  "model" : "llama2-\"v1\"", "x": 12345678901234567890})");
}

TEST(PutModel, LeavesABodyWithoutOne) {
  std::string body = "{}";
  EXPECT_FALSE(PutModel(body, payload::RequestFields(), "x"));
  EXPECT_EQ(body, "{}");
}

std::string Renamed(std::string_view text, size_t cut, bool join) {
  ModelRenamer renamer("llama2-v1", "llama2", join);
  std::string out(renamer.Feed(text.substr(0, cut)));
  out += renamer.Feed(text.substr(cut));
  out += renamer.Finish();
  return out;
}

constexpr std::string_view kBody =
    R"(data: {"id":"1","model":"llama2-v1","choices":[{"text":"\"model\":\"llama2-v1\""}],"model" : "llama2-v1","model":"llama2-v10"})";
constexpr std::string_view kRenamed =
    R"(data: {"id":"1","model":"llama2","choices":[{"text":"\"model\":\"llama2-v1\""}],"model" : "llama2","model":"llama2-v10"})";

TEST(ModelRenamer, FindsTheNameWhereverTheTextIsCut) {
  for (size_t cut = 0; cut <= kBody.size(); ++cut) EXPECT_EQ(Renamed(kBody, cut, true), kRenamed) << cut;
}

TEST(ModelRenamer, FindsTheNameByteByByte) {
  ModelRenamer renamer("llama2-v1", "llama2", true);
  std::string out;
  for (const char c : kBody) out += renamer.Feed(std::string_view(&c, 1));
  out += renamer.Finish();
  EXPECT_EQ(out, kRenamed);
}

TEST(ModelRenamer, LosesNothingOfACutName) {
  for (const bool join : {true, false}) {
    for (size_t end = 0; end <= kBody.size(); ++end) {
      ModelRenamer renamer("absent", "x", join);
      std::string out(renamer.Feed(kBody.substr(0, end)));
      out += renamer.Finish();
      EXPECT_EQ(out, kBody.substr(0, end));
    }
  }
}

TEST(ModelRenamer, HoldsNothingBackWhenItMustNot) {
  ModelRenamer renamer("llama2-v1", "llama2", false);
  const std::string_view cut = R"({"model":"lla)";
  EXPECT_EQ(renamer.Feed(cut), cut);
  EXPECT_EQ(renamer.Finish(), "");
}

TEST(ModelRenamer, GivesTheChunkBackWhereNothingChanges) {
  ModelRenamer renamer("a", "b", true);
  const std::string chunk = R"({"model":"c"})";
  EXPECT_EQ(renamer.Feed(chunk).data(), chunk.data());
}

}  // namespace
}  // namespace fairway::request
