// Requests and answers of vLLM's and Vertex AI's gRPC services, cut anywhere, and with all that can be wrong with them.
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "payload/request.h"
#include "payload/usage.h"

namespace fairway::payload {
namespace {

std::string Varint(uint64_t value) {
  std::string out;
  for (; value > 0x7f; value >>= 7) out += static_cast<char>((value & 0x7f) | 0x80);
  return out + static_cast<char>(value);
}
std::string Number(uint32_t field, uint64_t value) { return Varint(uint64_t{field} << 3) + Varint(value); }
std::string Bytes(uint32_t field, std::string_view bytes) {
  return Varint(uint64_t{field} << 3 | 2) + Varint(bytes.size()) + std::string(bytes);
}
std::string Packed(uint32_t field, const std::vector<uint32_t>& numbers) {
  std::string bytes;
  for (const uint32_t number : numbers) bytes += Varint(number);
  return Bytes(field, bytes);
}
std::string Frame(std::string_view message, char flag = 0) {
  const auto n = static_cast<uint32_t>(message.size());
  return std::string{flag, static_cast<char>(n >> 24), static_cast<char>(n >> 16), static_cast<char>(n >> 8),
                     static_cast<char>(n)} +
         std::string(message);
}

RequestScanner Scan(Api api, std::string_view body, size_t cut = SIZE_MAX) {
  RequestScanner scanner(api);
  scanner.HashPrompt(true);
  while (!body.empty()) {
    const std::string piece(body.substr(0, cut));  // on its own, so that ASan sees a look beyond it
    scanner.Feed(piece);
    body.remove_prefix(piece.size());
  }
  scanner.Finish();
  return scanner;
}

std::vector<uint64_t> Chain(const RequestScanner& scanner) {
  std::vector<uint64_t> hashes;
  std::vector<PromptEnd> ends;
  scanner.prompt_hashes()->AppendChains(PrefixRoot("m", ""), hashes, ends, true);
  return hashes;
}

// The same wherever it is cut.
RequestScanner Read(std::string_view body, Api api = Api::kVllmGrpcGenerate) {
  RequestScanner whole = Scan(api, body);
  for (const size_t cut : {1, 2, 3, 7}) {
    const RequestScanner pieces = Scan(api, body, cut);
    EXPECT_EQ(pieces.error(), whole.error()) << cut;
    EXPECT_EQ(pieces.fields(), whole.fields()) << cut;
    if (whole.ok()) {
      EXPECT_EQ(Chain(pieces), Chain(whole)) << cut;
    }
  }
  return whole;
}

std::vector<uint32_t> Ids(size_t count) {
  std::vector<uint32_t> ids;
  for (size_t i = 0; i < count; ++i) ids.push_back(static_cast<uint32_t>(i * 977 % 150000));
  return ids;
}

TEST(GrpcRequest, TextWithItsSettings) {
  const std::string text(600, 'x');
  const std::string body = Frame(Bytes(1, "id") + Bytes(3, text) +
                                 Bytes(4, Number(7, 1) + Number(8, 77) + Bytes(10, "stop")) + Number(5, 1));
  const RequestScanner scanner = Read(body);
  ASSERT_TRUE(scanner.ok()) << scanner.error();
  const RequestFields& fields = scanner.fields();
  EXPECT_FALSE(fields.has_model);
  EXPECT_TRUE(fields.stream);
  EXPECT_FALSE(fields.has_media);
  EXPECT_EQ(fields.max_tokens, 77);
  EXPECT_EQ(fields.prompt_bytes, 600u);
  ASSERT_EQ(fields.prompt.size(), 1u);
  EXPECT_EQ(body.substr(fields.prompt[0].begin, fields.prompt[0].end - fields.prompt[0].begin), text);
  std::string edited = body;
  EXPECT_FALSE(PutModel(edited, fields, "other")) << "there is nowhere to put one";
}

// The same prompt is the same prefix, whichever way it comes.
TEST(GrpcRequest, HashesAreThoseOfTheSamePromptInJson) {
  const std::string text(1000, 'y');
  const RequestScanner grpc = Read(Frame(Bytes(3, text)));
  EXPECT_EQ(Chain(grpc), Chain(Scan(Api::kCompletions, "{\"prompt\":\"" + text + "\"}")));
  EXPECT_EQ(Chain(grpc).size(), 4u);

  std::string json = "{\"prompt\":[";
  for (const uint32_t id : Ids(300)) json += std::to_string(id) + ",";
  json.back() = ']';
  json += "}";
  const RequestScanner ids = Read(Frame(Bytes(2, Bytes(1, "the text") + Packed(2, Ids(300)))));
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(ids.fields().prompt_bytes, 1200u);
  EXPECT_EQ(Chain(ids), Chain(Scan(Api::kCompletions, json)));
  EXPECT_EQ(Chain(Read(Frame(Bytes(3, text) + Bytes(4, Number(23, 1))))), std::vector<uint64_t>())
      << "with prompt_logprobs, for which the engine leaves its cache unread";
}

TEST(GrpcRequest, TokenIdsInAnyForm) {
  std::string one_by_one;
  for (const uint32_t id : Ids(100)) one_by_one += Number(2, id);
  const auto packed = Chain(Read(Frame(Bytes(2, Packed(2, Ids(100))))));
  EXPECT_EQ(Chain(Read(Frame(Bytes(2, one_by_one)))), packed);
  // A message that comes in two pieces is one.
  const std::vector<uint32_t> ids = Ids(100);
  EXPECT_EQ(Chain(Read(Frame(Bytes(2, Packed(2, {ids.begin(), ids.begin() + 40})) +
                             Bytes(2, Packed(2, {ids.begin() + 40, ids.end()}))))),
            packed);
  EXPECT_TRUE(Read(Frame(Bytes(2, ""))).ok()) << "there, and empty";
}

TEST(GrpcRequest, OfTextAndTokensTheLastCounts) {
  const RequestScanner scanner = Read(Frame(Bytes(2, Packed(2, Ids(300))) + Bytes(3, "hello")));
  ASSERT_TRUE(scanner.ok());
  EXPECT_EQ(scanner.fields().prompt_bytes, 5u);
  EXPECT_TRUE(Chain(scanner).empty()) << "hashed was something else";
}

TEST(GrpcRequest, EmbedHasTokensAlone) {
  const RequestScanner scanner =
      Read(Frame(Bytes(1, "id") + Bytes(2, Packed(2, {1, 2, 3}))), Api::kVllmGrpcEmbed);
  ASSERT_TRUE(scanner.ok()) << scanner.error();
  EXPECT_EQ(scanner.fields().prompt_bytes, 12u);
  EXPECT_EQ(Read(Frame(Bytes(3, "text")), Api::kVllmGrpcEmbed).error(),
            "invalid embed request: must have tokenized field");
}

TEST(GrpcRequest, MediaAreSeen) {
  EXPECT_TRUE(Read(Frame(Bytes(3, "a") + Bytes(7, Bytes(6, "hash")))).fields().has_media);
  EXPECT_FALSE(Read(Frame(Bytes(3, "a") + Bytes(7, ""))).fields().has_media);
}

TEST(GrpcRequest, WhatComesCompressedPassesUnread) {
  const RequestScanner scanner = Read(Frame("\x1f\x8b any bytes \xff\xff", 1));
  EXPECT_TRUE(scanner.ok()) << scanner.error();
  EXPECT_EQ(scanner.fields(), RequestFields());
  EXPECT_TRUE(Chain(scanner).empty());
}

TEST(GrpcRequest, UnknownFieldsOfAnyTypePass) {
  const std::string group = Varint(99 << 3 | 3) + Number(1, 5) + Bytes(2, "in it") + Varint(99 << 3 | 4);
  const std::string fixed = Varint(50 << 3 | 1) + "12345678" + Varint(51 << 3 | 5) + "1234";
  const RequestScanner scanner =
      Read(Frame(group + fixed + Bytes(3, "text") + Bytes(1000, "more") + Number(6, 1)));
  EXPECT_TRUE(scanner.ok()) << scanner.error();
  EXPECT_EQ(scanner.fields().prompt_bytes, 4u);
}

TEST(GrpcRequest, WhatIsWrongIsRefused) {
  const struct {
    const char* name;
    std::string body;
    std::string error;
  } kCases[] = {
      {"empty", "", "there is no message (at byte 0)"},
      {"cut head", std::string("\0\0\0", 3), "the body ends within a message (at byte 3)"},
      {"flag", Frame(Bytes(3, "a"), 2), "the first byte of a message is neither 0 nor 1 (at byte 5)"},
      {"JSON", "{\"prompt\":\"a\"}", "the first byte of a message is neither 0 nor 1 (at byte 5)"},
      {"length is a lie", std::string("\0\xff\xff\xff\xff", 5) + Bytes(3, "a"),
       "the body ends within a message (at byte 8)"},
      {"field beyond its message", Frame(Varint(3 << 3 | 2) + Varint(1000) + "a"),
       "a field is longer than what it stands in (at byte 8)"},
      {"huge field", Frame(Varint(3 << 3 | 2) + Varint(UINT64_MAX)),
       "a field is longer than what it stands in (at byte 16)"},
      {"inner field beyond its own", Frame(Bytes(2, Varint(2 << 3 | 2) + Varint(9)) + Bytes(3, "0123456789")),
       "a field is longer than what it stands in (at byte 9)"},
      {"fixed beyond its message", Frame(Varint(9 << 3 | 1) + "1234"),
       "a field is longer than what it stands in (at byte 6)"},
      {"field 0", Frame(Bytes(0, "a")), "there is no field of that number (at byte 6)"},
      {"type 7", Frame(Varint(3 << 3 | 7)), "there is no such type of field (at byte 6)"},
      {"endless number", Frame(Varint(5 << 3) + std::string(20, '\xff')),
       "a number is longer than 10 bytes (at byte 17)"},
      {"cut number", Frame(Varint(5 << 3) + "\xff"), "a field is cut by the end of its message (at byte 7)"},
      {"cut token", Frame(Bytes(2, Bytes(2, "\x01\xff"))),
       "a number is cut by the end of its field (at byte 11)"},
      {"cut tag", Frame(Bytes(2, "\xff")), "a field is cut by the end of what it stands in (at byte 8)"},
      {"group without end", Frame(Varint(9 << 3 | 3)), "a group has no end (at byte 6)"},
      {"end without group", Frame(Varint(9 << 3 | 4)), "a group ends that did not begin (at byte 6)"},
      {"group left open inside", Frame(Bytes(2, Varint(9 << 3 | 3))), "a group has no end (at byte 8)"},
  };
  for (const auto& c : kCases)
    EXPECT_EQ(Read(c.body).error(), "invalid or unsupported gRPC payload: " + c.error) << c.name;
  std::string deep;
  for (int i = 0; i < 200; ++i) deep += Varint(9 << 3 | 3);
  EXPECT_EQ(Read(Frame(deep)).error(),
            "invalid or unsupported gRPC payload: groups are nested too deep (at byte 106)");
  EXPECT_EQ(Read(Frame("")).error(), "invalid generate request: must have tokenized or text field");
  // Nesting that nobody reads is one field, however deep.
  std::string nested;
  for (int i = 0; i < 10000; ++i) nested = Varint(7 << 3 | 2) + Varint(nested.size()) + nested;
  EXPECT_TRUE(Read(Frame(Bytes(3, "a") + nested)).ok());
}

TEST(GrpcRequest, ABodyThatEndsEarlyTellsWhatWasSeen) {
  const std::string body = Frame(Number(5, 1) + Bytes(3, std::string(1000, 'z')));
  RequestScanner scanner(Api::kVllmGrpcGenerate);
  scanner.HashPrompt(true);
  scanner.Feed(std::string_view(body).substr(0, 600));
  scanner.FinishPartial();
  EXPECT_TRUE(scanner.ok());
  EXPECT_TRUE(scanner.fields().stream);
  ASSERT_EQ(scanner.fields().prompt.size(), 1u);
  EXPECT_EQ(scanner.fields().prompt[0].end, 600u);
  EXPECT_EQ(Chain(scanner).size(), 2u);
}

TEST(GrpcRequest, AScannerIsUsedAgain) {
  RequestScanner scanner(Api::kCompletions);
  scanner.HashPrompt(true);
  scanner.Reset(Api::kVllmGrpcGenerate);
  const std::string body = Frame(Bytes(3, "text"));
  scanner.Feed(body);
  scanner.Finish();
  EXPECT_TRUE(scanner.ok());
  EXPECT_EQ(scanner.fields().prompt_bytes, 4u);
  scanner.Reset(Api::kCompletions);
  scanner.Feed("{\"prompt\":\"ab\"}");
  scanner.Finish();
  EXPECT_TRUE(scanner.ok()) << scanner.error();
  EXPECT_EQ(scanner.fields().prompt_bytes, 2u);
}

// ---- Answers.

std::string Vertex(std::string_view json) {
  return Frame(Bytes(1, "projects/p/endpoints/e") + Bytes(2, Bytes(1, "application/json") + Bytes(2, json)));
}

TEST(WrappedRequest, IsReadAsTheJsonInside) {
  const std::string json =
      R"({"model":"m","stream":true,"max_tokens":7,"messages":[{"role":"user","content":")" +
      std::string(700, 'x') + R"("}]})";
  const std::string body = Vertex(json);
  const RequestScanner scanner = Read(body, Api::kVertexChat);
  ASSERT_TRUE(scanner.ok()) << scanner.error();
  EXPECT_EQ(scanner.api(), Api::kVertexChat);
  const RequestFields& fields = scanner.fields();
  EXPECT_EQ(fields.model, "m");
  EXPECT_TRUE(fields.stream);
  EXPECT_EQ(fields.max_tokens, 7);
  ASSERT_EQ(fields.prompt.size(), 1u);
  EXPECT_EQ(body.substr(fields.prompt[0].begin, 3), "xxx");
  EXPECT_EQ(Chain(scanner), Chain(Scan(Api::kChatCompletions, json)));
  EXPECT_TRUE(Read(Vertex(R"({"model":"m","input":"a"})"), Api::kVertexRaw).ok());
}

TEST(WrappedRequest, AnotherModelChangesTheLengthsAroundIt) {
  for (const size_t length : {1u, 60u, 120u, 200u, 16300u, 70000u}) {
    const std::string rest = R"(","input":")" + std::string(length, 'x') + "\"}";
    std::string body = Vertex(R"({"model":"m)" + rest);
    for (const std::string& model : {std::string("other"), std::string(150, 'n'), std::string("m")}) {
      ASSERT_TRUE(PutModel(body, Read(body, Api::kVertexRaw).fields(), model));
      EXPECT_EQ(body, Vertex(R"({"model":")" + model + rest)) << length;
    }
  }
  std::string none = Vertex(R"({"input":"a"})");
  ASSERT_TRUE(PutModel(none, Read(none, Api::kVertexRaw).fields(), "m"));
  EXPECT_EQ(none, Vertex(R"({"model":"m","input":"a"})"));
}

TEST(WrappedRequest, WhatIsWrongIsRefused) {
  const auto error = [](std::string_view body) { return Read(body, Api::kVertexChat).error(); };
  EXPECT_EQ(error(Frame(Bytes(1, "e"))), "the request has no http_body with data");
  EXPECT_EQ(error(Vertex("{}")), "invalid chat completions request: must have valid messages field");
  EXPECT_EQ(error(Vertex("{")).substr(0, 40), "error unmarshaling request bodyMap: unex");
  EXPECT_EQ(error(Frame(Bytes(2, Bytes(2, "{}") + Bytes(2, "{}")))),
            "the message's http_body has more than one data");
  EXPECT_EQ(error(Frame(Bytes(2, Bytes(2, "{}")) + Bytes(2, Bytes(1, "a")))),
            "the message has more than one http_body");
  // Of two mistakes the first is told, also where one piece has both.
  EXPECT_EQ(error(Frame(Bytes(2, Bytes(2, "{]")) + Bytes(2, Bytes(1, "a")))).substr(0, 21),
            "error unmarshaling re");
  EXPECT_EQ(error(Frame(Bytes(2, Bytes(2, "]")) + "\x07")).substr(0, 21), "error unmarshaling re");
  EXPECT_TRUE(Read(Frame("anything", 1), Api::kVertexChat).ok()) << "compressed";
}

Usage UsageOf(std::string_view body, Api api = Api::kVllmGrpcGenerate) {
  Usage first;
  for (const size_t cut : {SIZE_MAX, size_t{1}, size_t{3}}) {
    UsageScanner scanner(api, false);
    for (std::string_view rest = body; !rest.empty();) {
      const std::string piece(rest.substr(0, cut));
      scanner.Feed(piece);
      rest.remove_prefix(piece.size());
    }
    scanner.Finish();
    if (cut == SIZE_MAX) first = scanner.usage();
    EXPECT_EQ(scanner.usage(), first) << cut;
  }
  return first;
}

std::string Chunk(const std::vector<uint32_t>& ids) {
  return Frame(Bytes(1, Packed(1, ids) + Number(2, 50) + Number(3, ids.size()) + Number(4, 16)));
}
std::string Complete(const std::vector<uint32_t>& ids) {
  return Frame(
      Bytes(2, Packed(1, ids) + Bytes(2, "stop") + Number(3, 50) + Number(4, ids.size()) + Number(5, 16)));
}

TEST(GrpcUsage, OfAStreamTheNewTokensAddUp) {
  const Usage usage = UsageOf(Chunk({1, 2}) + Chunk({300, 4}) + Chunk({5}) + Complete({5}));
  EXPECT_EQ(usage, (Usage{.found = true,
                          .input_tokens = 50,
                          .output_tokens = 5,
                          .total_tokens = 55,
                          .cached_tokens = 16,
                          .tells_cached = true}));
}

TEST(GrpcUsage, WithoutAStreamAllIsInTheLast) {
  EXPECT_EQ(UsageOf(Complete({7, 8, 9})).output_tokens, 3);
  EXPECT_EQ(UsageOf(Complete({7, 8, 9}) + Complete({7, 8})).output_tokens, 5) << "two answers";
}

TEST(GrpcUsage, OfAnEmbeddingThePrompt) {
  const Usage usage = UsageOf(Frame(Bytes(1, std::string(64, 'f')) + Number(2, 12)), Api::kVllmGrpcEmbed);
  EXPECT_EQ(usage, (Usage{.found = true, .input_tokens = 12, .total_tokens = 12}));
}

TEST(WrappedUsage, IsThatOfTheJsonOrTheEventsInside) {
  const auto answer = [](std::string_view data) { return Frame(Bytes(1, "text") + Bytes(2, data)); };
  const std::string usage = R"({"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}})";
  const Usage want{.found = true, .input_tokens = 9, .output_tokens = 4, .total_tokens = 13};
  EXPECT_EQ(UsageOf(answer(usage), Api::kVertexChat), want);
  EXPECT_EQ(UsageOf(answer(R"({"id":"a"})") + answer(usage), Api::kVertexChat), want) << "a message a chunk";
  const std::string events = "data: {\"id\":\"a\"}\n\ndata: " + usage + "\n\ndata: [DONE]\n\n";
  EXPECT_EQ(UsageOf(answer(events.substr(0, 30)) + answer(events.substr(30)), Api::kVertexRaw), want);
  EXPECT_FALSE(UsageOf(Frame(Bytes(1, "text")), Api::kVertexChat).found);
}

TEST(GrpcUsage, BrokenOrCompressedIsNone) {
  EXPECT_EQ(UsageOf(""), Usage());
  EXPECT_EQ(UsageOf(Frame("compressed", 1)), Usage());
  EXPECT_EQ(UsageOf(Frame(Bytes(2, "\xff"))), Usage());
  EXPECT_EQ(UsageOf(Chunk({1, 2}) + Chunk({3}).substr(0, 9)).output_tokens, 2) << "cut off by a reset";
  EXPECT_EQ(UsageOf(Frame("compressed", 1) + Chunk({1, 2})).output_tokens, 2);
}

}  // namespace
}  // namespace fairway::payload
