#include "frontends/request/model_name.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace fairway::request {
namespace {

// Of `text` in pieces that end at `cuts`.
std::string Renamed(std::string_view text, bool events, bool join, const std::vector<size_t>& cuts) {
  RenameBuffers buffers;
  ModelRenamer renamer("llama2-v1", "llama2", events, join, buffers);
  std::string out;
  size_t at = 0;
  for (const size_t cut : cuts) {
    out += renamer.Feed(text.substr(at, cut - at));
    at = cut;
  }
  out += renamer.Feed(text.substr(at));
  out += renamer.Finish();
  return out;
}

struct Case {
  bool events;
  std::string_view text;
  std::string_view renamed;
};

const Case kCases[] = {
    {false,
     R"({"id":"1","model":"llama2-v1","choices":[{"text":"\"model\":\"llama2-v1\""}],"x":{"model":"llama2-v1"}})",
     R"({"id":"1","model":"llama2","choices":[{"text":"\"model\":\"llama2-v1\""}],"x":{"model":"llama2-v1"}})"},
    {false, " {\n \"object\" : \"list\" ,\n\"model\"\t:  \"llama2\\u002dv1\"\n}\n",
     " {\n \"object\" : \"list\" ,\n\"model\"\t:  \"llama2\"\n}\n"},
    {false, R"({"model":"llama2-v10"})", R"({"model":"llama2-v10"})"},
    {false, R"({"model":"llama2-v1","model":"llama2-v1"})", R"({"model":"llama2","model":"llama2"})"},
    {false, R"([{"model":"llama2-v1"}])", R"([{"model":"llama2-v1"}])"},
    // An argument of a tool call is the model's to say.
    {false,
     R"({"type":"message","model":"llama2-v1","content":[{"type":"tool_use","input":{"model":"llama2-v1"}}]})",
     R"({"type":"message","model":"llama2","content":[{"type":"tool_use","input":{"model":"llama2-v1"}}]})"},
    {false, R"({"model":"llama2-v1","metadata":{"model":"llama2-v1"},"tools":[{"model":"llama2-v1"}]})",
     R"({"model":"llama2","metadata":{"model":"llama2-v1"},"tools":[{"model":"llama2-v1"}]})"},
    {true,
     "data: {\"id\":1,\"model\":\"llama2-v1\"}\n\ndata:{\"model\":\"llama2-v1\"}\n\ndata: [DONE]\n\n"
     "data: {\"model\":\"llama2-v1\"}\n\n",
     "data: {\"id\":1,\"model\":\"llama2\"}\n\ndata:{\"model\":\"llama2\"}\n\ndata: [DONE]\n\n"
     "data: {\"model\":\"llama2\"}\n\n"},
    {true,
     "event: message_start\r\ndata: "
     "{\"type\":\"message_start\",\"message\":{\"model\":\"llama2-v1\",\"usage\":{"
     "\"model\":\"llama2-v1\"}}}\r\n\r\n: {\"model\":\"llama2-v1\"}\r\ndata: "
     "{\"delta\":{\"model\":\"llama2-v1\"}}"
     "\r\n\r\n",
     "event: message_start\r\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"llama2\",\"usage\":{"
     "\"model\":\"llama2-v1\"}}}\r\n\r\n: {\"model\":\"llama2-v1\"}\r\ndata: "
     "{\"delta\":{\"model\":\"llama2-v1\"}}"
     "\r\n\r\n"},
    {true,
     "\xef\xbb\xbf"
     "data: {\"response\":{\"model\":\"llama2-v1\",\"tools\":[{\"model\":\"llama2-v1\"}],"
     "\"response\":{\"model\":\"llama2-v1\"}}}\r\r",
     "\xef\xbb\xbf"
     "data: {\"response\":{\"model\":\"llama2\",\"tools\":[{\"model\":\"llama2-v1\"}],"
     "\"response\":{\"model\":\"llama2-v1\"}}}\r\r"},
    // An event's data in two lines; one that is no JSON; names of other fields; no empty line at the end.
    {true,
     "data: {\"a\":1,\ndata: \"model\":\"llama2-v1\"}\nid: 7\n\ndata: {\"model\":{]\n\ndata: "
     "{\"model\":\"llama2-v1\"}",
     "data: {\"a\":1,\ndata: \"model\":\"llama2\"}\nid: 7\n\ndata: {\"model\":{]\n\ndata: "
     "{\"model\":\"llama2\"}"},
    {true, "datum: {\"model\":\"llama2-v1\"}\ndat\ndata\n\nmodel: \"llama2-v1\"\n\n",
     "datum: {\"model\":\"llama2-v1\"}\ndat\ndata\n\nmodel: \"llama2-v1\"\n\n"},
};

TEST(ModelRenamer, RenamesTheAnswersOwnNameWhereverTheTextIsCut) {
  for (const Case& c : kCases) {
    EXPECT_EQ(Renamed(c.text, c.events, false, {}), c.renamed);
    for (size_t cut = 0; cut <= c.text.size(); ++cut) {
      EXPECT_EQ(Renamed(c.text, c.events, true, {cut}), c.renamed) << cut;
      const size_t second = std::min(cut + 3, c.text.size());
      EXPECT_EQ(Renamed(c.text, c.events, true, {cut, second}), c.renamed) << cut;
    }
    std::vector<size_t> all;
    for (size_t cut = 1; cut < c.text.size(); ++cut) all.push_back(cut);
    EXPECT_EQ(Renamed(c.text, c.events, true, all), c.renamed);
  }
}

TEST(ModelRenamer, LosesNothingOfACutText) {
  for (const Case& c : kCases) {
    for (const bool join : {true, false}) {
      for (size_t end = 0; end <= c.text.size(); ++end) {
        RenameBuffers buffers;
        ModelRenamer renamer("absent", "x", c.events, join, buffers);
        std::string out(renamer.Feed(c.text.substr(0, end)));
        out += renamer.Finish();
        EXPECT_EQ(out, c.text.substr(0, end));
      }
    }
  }
}

TEST(ModelRenamer, HoldsNothingBackWhenItMustNot) {
  RenameBuffers buffers;
  ModelRenamer renamer("llama2-v1", "llama2", false, false, buffers);
  const std::string_view cut = R"({"model":"lla)";
  EXPECT_EQ(renamer.Feed(cut), cut);
  EXPECT_EQ(renamer.Feed(R"(ma2-v1"})"), R"(ma2-v1"})");  // what it has let go it does not change
  EXPECT_EQ(renamer.Finish(), "");
}

TEST(ModelRenamer, HoldsBackALittleOnly) {
  RenameBuffers buffers;
  ModelRenamer renamer("llama2-v1", "llama2", false, true, buffers);
  std::string out(renamer.Feed(R"({"model":")"));
  const std::string long_name(100, 'l');
  for (int i = 0; i < 100; ++i) {
    out += renamer.Feed(long_name);
    EXPECT_EQ(out.size(), 10 + 100u * (static_cast<size_t>(i) + 1));
  }
  EXPECT_EQ(renamer.Finish(), "");
}

TEST(ModelRenamer, GivesTheChunkBackWhereNothingChanges) {
  for (const bool events : {false, true}) {
    RenameBuffers buffers;
    ModelRenamer renamer("a", "b", events, true, buffers);
    const std::string chunk = R"({"model":"c"})";
    EXPECT_EQ(renamer.Feed(chunk).data(), chunk.data());
  }
}

}  // namespace
}  // namespace fairway::request
