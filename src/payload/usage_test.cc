#include "payload/usage.h"

#include <gtest/gtest.h>

#include "payload/test_corpus.h"

namespace fairway::payload {
namespace {

struct Seen {
  Usage usage;
  uint64_t events = 0;
  bool operator==(const Seen&) const = default;
};

Seen Read(Api api, bool stream, const std::vector<std::string_view>& chunks) {
  UsageScanner scanner(api, stream);
  for (const std::string_view chunk : chunks) scanner.Feed(chunk);
  scanner.Finish();
  return {scanner.usage(), scanner.events()};
}

// Reads it whole, cut once at every byte, and byte by byte: all must agree.
Seen ReadCut(Api api, bool stream, std::string_view text) {
  const Seen whole = Read(api, stream, {text});
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    EXPECT_EQ(Read(api, stream, {text.substr(0, cut), text.substr(cut)}), whole) << text << " cut at " << cut;
  }
  std::vector<std::string_view> bytes;
  bytes.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) bytes.push_back(text.substr(i, 1));
  EXPECT_EQ(Read(api, stream, bytes), whole) << text;
  return whole;
}

Usage Json(Api api, std::string_view body) { return ReadCut(api, false, body).usage; }
Seen Events(Api api, std::string_view body) { return ReadCut(api, true, body); }

TEST(UsageScanner, JsonOfEachApi) {
  EXPECT_EQ(
      Json(
          Api::kChatCompletions,
          R"({"choices":[{"message":{"content":"\"usage\":{\"prompt_tokens\":9}","usage":{"prompt_tokens":8}}}],)"
          R"("usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,)"
          R"("prompt_tokens_details":{"cached_tokens":4}}})"),
      (Usage{true, 10, 5, 15, 4, true}));
  EXPECT_EQ(Json(Api::kEmbeddings, R"({"usage":{"prompt_tokens":3,"total_tokens":3}})"),
            (Usage{true, 3, 0, 3, 0}));
  EXPECT_EQ(
      Json(Api::kResponses,
           R"({"usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":1},"output_tokens":4}})"),
      (Usage{true, 3, 4, 7, 1, true}));
  EXPECT_EQ(
      Json(Api::kMessages,
           R"({"type":"message","usage":{"input_tokens":3,"cache_read_input_tokens":2,"output_tokens":4}})"),
      (Usage{true, 3, 4, 7, 2, true}));
  EXPECT_EQ(Json(Api::kChatCompletions, R"({"\u0075sage":{"prompt_tokens":1}})"), (Usage{true, 1, 0, 1, 0}));
  EXPECT_EQ(Json(Api::kChatCompletions, R"({"usage":{"prompt_tokens":1},"usage":{"prompt_tokens":2}})"),
            (Usage{true, 2, 0, 2, 0}));
}

TEST(UsageScanner, SglangsOwnApi) {
  const Usage usage =
      Json(Api::kSglangGenerate, R"({"text":"x","meta_info":{"id":"1","finish_reason":{"type":"stop"},)"
                                 R"("prompt_tokens":9,"completion_tokens":4,"cached_tokens":3}})");
  EXPECT_TRUE(usage.found);
  EXPECT_EQ(usage.input_tokens, 9);
  EXPECT_EQ(usage.output_tokens, 4);
  EXPECT_EQ(usage.cached_tokens, 3);
  EXPECT_TRUE(usage.tells_cached);
  const Seen events = Events(Api::kSglangGenerate,
                             "data: {\"text\":\"x\",\"meta_info\":{\"prompt_tokens\":9,"
                             "\"completion_tokens\":1}}\n\n"
                             "data: {\"text\":\"xy\",\"meta_info\":{\"prompt_tokens\":9,"
                             "\"completion_tokens\":2}}\n\ndata: [DONE]\n\n");
  EXPECT_EQ(events.usage.output_tokens, 2);
}

TEST(UsageScanner, NoUsageInOtherJson) {
  for (const std::string_view body :
       {"", "null", "[]", "17", "{}", R"({"usage":null})", R"({"usage":{}})",
        R"({"usage":[{"prompt_tokens":1}]})", R"({"usage":{"prompt_tokens":"1"}})",
        R"({"usage":{"prompt_tokens":-1}})", R"({"x":{"usage":{"prompt_tokens":1}}})",
        R"({"choices":[{"usage":{"prompt_tokens":1}}]})",
        R"({"content":"{\"usage\":{\"prompt_tokens\":1}}"})", R"({"usage":{"prompt_tokens":1})",
        R"({"usage":{"prompt_tokens":1}}})", "upstream connect error"}) {
    EXPECT_EQ(Json(Api::kChatCompletions, body), Usage{}) << body;
  }
}

TEST(UsageScanner, ChatEvents) {
  EXPECT_EQ(
      Events(
          Api::kChatCompletions,
          "data: {\"choices\":[{\"delta\":{\"content\":\"\xe4\xb8\xad\"}}],\"usage\":null}\n\n"
          ": ping\n\n"
          "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":{\\\"prompt_tokens\\\":7}\"}}]}\n\n"
          "data: "
          "{\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":5,\"total_tokens\":15}}\n\n"
          "data: [DONE]\n\n"),
      (Seen{{true, 10, 5, 15, 0}, 3}));
  // Continuous usage: the last one wins, as a whole.
  EXPECT_EQ(Events(Api::kChatCompletions,
                   "data: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,"
                   "\"prompt_tokens_details\":{\"cached_tokens\":1}}}\n\n"
                   "data: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n"),
            (Seen{{true, 1, 2, 3, 0}, 2}));
}

TEST(UsageScanner, EveryLineEndAndForm) {
  for (const std::string end : {"\n", "\r\n", "\r"}) {
    std::string text = "\xef\xbb\xbf";
    for (const std::string_view line :
         {"event: x", "data:{\"usage\":", "data: {\"prompt_tokens\":", ": comment", "data: 5}}", "id: 1", "",
          "data", "", "database: {\"usage\":{\"prompt_tokens\":9}}", "", "data:  [DONE]", ""}) {
      text += line;
      text += end;
    }
    EXPECT_EQ(Events(Api::kCompletions, text), (Seen{{true, 5, 0, 5, 0}, 1})) << testing::PrintToString(end);
  }
  // The last event counts also when the stream ends without an empty line, or without a line end.
  EXPECT_EQ(Events(Api::kCompletions, "data: {\"usage\":{\"prompt_tokens\":5}}"),
            (Seen{{true, 5, 0, 5, 0}, 1}));
  EXPECT_EQ(Events(Api::kCompletions, "data: {\"usage\":{\"prompt_tokens\":5}}\r"),
            (Seen{{true, 5, 0, 5, 0}, 1}));
  EXPECT_EQ(Events(Api::kCompletions, "data: {\"usage\":{\"prompt_tokens\":5}"), (Seen{{}, 1}));
  EXPECT_EQ(Events(Api::kCompletions, ""), Seen{});
  // A part of a byte order mark is none, and neither is one that comes later.
  EXPECT_EQ(Events(Api::kCompletions,
                   "\xef\xbb"
                   "data: x\n\n"),
            Seen{});
  EXPECT_EQ(Events(Api::kCompletions,
                   "\n\xef\xbb\xbf"
                   "data: x\n\n"),
            Seen{});
  EXPECT_EQ(Events(Api::kCompletions, "\xef\xbb\xbf\ndata: x\n\n"), (Seen{{}, 1}));
  EXPECT_EQ(Events(Api::kCompletions, "data:\n\ndata:\ndata:\n\ndata: [DONE\n\ndata: \t[DONE] \n\n"),
            (Seen{{}, 2}));
  // A key with an escape is not looked for in events, wherever they are cut.
  EXPECT_EQ(Events(Api::kCompletions, "data: {\"\\u0075sage\":{\"prompt_tokens\":5}}\n\n"), (Seen{{}, 1}));
}

TEST(UsageScanner, ResponsesEvents) {
  EXPECT_EQ(
      Events(
          Api::kResponses,
          "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n"
          "event: response.output_text.delta\ndata: "
          "{\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n"
          "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{}],"
          "\"usage\":{\"input_tokens\":7,\"input_tokens_details\":{\"cached_tokens\":6},\"output_tokens\":3,"
          "\"total_tokens\":10}}}\n\n"),
      (Seen{{true, 7, 3, 10, 6, true}, 3}));
}

TEST(UsageScanner, AnthropicEventsAreMerged) {
  EXPECT_EQ(
      Events(Api::kMessages,
             "event: message_start\ndata: "
             "{\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,"
             "\"cache_read_input_tokens\":8,\"output_tokens\":1}}}\n\n"
             "event: content_block_delta\ndata: {\"delta\":{\"text\":\"hi\"}}\n\n"
             "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":15}}\n\n"
             "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"),
      (Seen{{true, 25, 15, 40, 8, true}, 4}));
}

// Nothing of an event is kept, so it may be as long as it likes: `response.completed` has the whole answer in
// it.
TEST(UsageScanner, LongEventsAreReadToTheirEnd) {
  const std::string good = "data: {\"usage\":{\"prompt_tokens\":5}}\n\n";
  const std::string pad(300'000, 'x');
  const Usage five{true, 5, 0, 5, 0};
  const Usage nine{true, 9, 0, 9, 0};
  const struct {
    std::string text;
    Seen seen;
  } kCases[] = {
      {"data: {\"x\":\"" + pad + "\",\"usage\":{\"prompt_tokens\":9}}\n\n", {nine, 1}},
      {"data: {\"usage\":{\"prompt_tokens\":9},\"x\":\"" + pad + "\"}\n\n" + good, {five, 2}},
      {"data: {\"usage\":{\"prompt_tokens\":9}}\ndata: " + pad + "\n\n" + good, {five, 2}},
      {"data: {\"x\":\"" + pad + "\",\ndata: \"usage\":{\"prompt_tokens\":\ndata: 9}}\n\n", {nine, 1}},
      {"data: " + pad + "\ndata: x\ndata: y\ndata: z\n\n" + good, {five, 2}},
      {"data: " + pad + "\n:c\n:long comment\nid: 7\n\n" + good, {five, 2}},
      {"data: " + std::string(300'000, ' ') + "[DONE]\n\n" + good, {five, 1}},
      {"data: [DONE] " + pad + "\n\n" + good, {five, 2}},
      {": " + pad + pad + "\n\n" + good, {five, 1}},
      {pad + pad + "\n\n" + good, {five, 1}},
  };
  for (const auto& c : kCases) {
    const std::string_view view = c.text;
    EXPECT_EQ(Read(Api::kCompletions, true, {view}), c.seen) << view.substr(0, 50);
    for (size_t cut = 1; cut < view.size(); cut += cut < 16 || cut + 40 > view.size() ? 1 : 99'991) {
      ASSERT_EQ(Read(Api::kCompletions, true, {view.substr(0, cut), view.substr(cut)}), c.seen) << cut;
    }
    for (const size_t size : {7, 4096}) {
      std::vector<std::string_view> pieces;
      for (size_t at = 0; at < view.size(); at += size) pieces.push_back(view.substr(at, size));
      ASSERT_EQ(Read(Api::kCompletions, true, pieces), c.seen) << size;
    }
  }
}

TEST(UsageScanner, LinearInLineEnds) {
  // A quadratic search for the other line end would take minutes here.
  for (const char c : {'\r', '\n'})
    EXPECT_EQ(Read(Api::kCompletions, true, {std::string(8 << 20, c)}), Seen{});
}

TEST(UsageScanner, TheSameWhereverItIsCut) {
  JsonMaker maker(21);
  constexpr Api kApis[] = {Api::kChatCompletions, Api::kResponses, Api::kMessages};
  int found = 0;
  for (int round = 0; round < 20'000; ++round) {
    const Api api = kApis[maker.random().Below(3)];
    const auto document = [&] {
      if (maker.random().Below(2) == 0) return maker.Value(4);
      return R"({"x":)" + maker.Value(2) + R"(,"usage":{"prompt_tokens":)" + maker.Number() + "," +
             maker.Key() + ":" + maker.Value(2) + "}}";
    };
    std::string body = document();
    const bool stream = round % 2 == 0;
    if (stream) {
      body.clear();
      const uint64_t events = maker.random().Below(6);
      for (uint64_t i = 0; i < events; ++i) {
        static constexpr std::string_view kEnds[] = {"\n\n", "\r\n\r\n", "\r\r", "\n", "\r\n"};
        body += (maker.random().Below(2) == 0 ? "data: " : "data:") + document() +
                std::string(kEnds[maker.random().Below(5)]);
      }
    }
    if (round % 3 == 0) body = maker.Broken(body);
    const Seen whole = Read(api, stream, {body});
    ASSERT_EQ(Read(api, stream, maker.Cut(body)), whole) << body;
    found += whole.usage.found ? 1 : 0;
  }
  EXPECT_GT(found, 1000);
}

}  // namespace
}  // namespace fairway::payload
