#include "payload/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <simdjson.h>

#include "payload/test_corpus.h"

namespace fairway::payload {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr Api kAllApis[] = {Api::kChatCompletions, Api::kCompletions,    Api::kEmbeddings,
                            Api::kResponses,       Api::kMessages,       Api::kImages,
                            Api::kVllmGenerate,    Api::kSglangGenerate, Api::kUnknown};

RequestScanner Scan(Api api, const std::vector<std::string_view>& chunks) {
  RequestScanner scanner(api);
  for (const std::string_view chunk : chunks) scanner.Feed(chunk);
  scanner.Finish();
  return scanner;
}

RequestScanner Scan(Api api, std::string_view body) { return Scan(api, std::vector{body}); }

std::vector<std::string> Prompt(std::string_view body, const RequestFields& fields) {
  std::vector<std::string> texts;
  texts.reserve(fields.prompt.size());
  for (const Span& span : fields.prompt) texts.emplace_back(body.substr(span.begin, span.end - span.begin));
  return texts;
}

std::vector<std::string> Prompt(Api api, std::string_view body) {
  return Prompt(body, Scan(api, body).fields());
}

void ExpectSame(const RequestScanner& a, const RequestScanner& b, std::string_view body) {
  ASSERT_EQ(a.error(), b.error()) << body;
  ASSERT_TRUE(a.fields() == b.fields()) << body;
}

TEST(ApiOfPath, LongestSuffixAtASegmentBoundary) {
  const struct {
    std::string_view path;
    Api api;
  } kCases[] = {
      {"/v1/chat/completions", Api::kChatCompletions},
      {"/v1/chat/completions/?x=/v1/embeddings", Api::kChatCompletions},
      {"/tenant/a/v1/completions", Api::kCompletions},
      {"completions", Api::kCompletions},
      {"/v1/chat/completions/render", Api::kChatCompletions},
      {"/v1/completions/render", Api::kCompletions},
      {"/v1/embeddings//", Api::kEmbeddings},
      {"/v1/responses", Api::kResponses},
      {"/v1/messages", Api::kMessages},
      {"/v1/messages/count_tokens", Api::kMessages},
      {"/v1/images/generations", Api::kImages},
      {"/inference/v1/generate", Api::kVllmGenerate},
      {"/generate", Api::kSglangGenerate},
      {"/generate/?x=1", Api::kSglangGenerate},
      {"/v2/models/m/generate", Api::kUnknown},
      {"/foocompletions", Api::kUnknown},
      {"/v1/models", Api::kUnknown},
      {"/", Api::kUnknown},
      {"", Api::kUnknown},
      {"?completions", Api::kUnknown},
  };
  for (const auto& c : kCases) EXPECT_EQ(ApiOfPath(c.path), c.api) << c.path;
}

Parsers Only(std::initializer_list<Parser> listed) {
  Parsers parsers;
  for (const Parser parser : listed) parsers.Add(parser);
  return parsers;
}

// As servers read it: an escape is no way round what a model's name is checked by.
TEST(ApiOfPath, EscapesAreTheCharactersThatTheyStandFor) {
  EXPECT_EQ(ApiOfPath("/v1%2Fcompletions"), Api::kCompletions);
  EXPECT_EQ(ApiOfPath("/v1%2fchat%2Fcompletions%2f?x=%"), Api::kChatCompletions);
  EXPECT_EQ(ApiOfPath("/v1/%63ompletion%73"), Api::kCompletions);
  EXPECT_EQ(ApiOfPath("/v1/completions%3Fx"), Api::kUnknown) << "no query: a server has nobody of that name";
  for (const char* path :
       {"/v1/completions%", "/v1/completions%7", "/v1/completions%zz", "/v1%252Fcompletions"})
    EXPECT_EQ(ApiOfPath(path), Api::kUnknown) << path;
}

TEST(ApiOfPath, GoesToTheParsersThatAreOn) {
  const Parsers openai = Only({Parser::kOpenai});
  EXPECT_EQ(ApiOfPath("/v1/chat/completions", openai), Api::kChatCompletions);
  EXPECT_EQ(ApiOfPath("/v1/conversations", openai), Api::kUnknown) << "taken, and not read";
  EXPECT_EQ(ApiOfPath("/v1/messages", openai), std::nullopt);
  EXPECT_EQ(ApiOfPath("/generate", openai), std::nullopt);
  EXPECT_EQ(ApiOfPath("/", Parsers()), std::nullopt);
  const Parsers passthrough = Only({Parser::kPassthrough});
  EXPECT_EQ(ApiOfPath("/v1/chat/completions", passthrough), Api::kUnknown);
  EXPECT_EQ(ApiOfPath("/v1/messages", Only({Parser::kAnthropic})), Api::kMessages);
  EXPECT_EQ(ApiOfPath("/inference/v1/generate", Only({Parser::kVllmHttp})), Api::kVllmGenerate);
  EXPECT_EQ(ApiOfPath("/inference/v1/generate", Only({Parser::kSglangHttp})), std::nullopt);
  EXPECT_EQ(ApiOfPath("/generate", Only({Parser::kSglangHttp, Parser::kPassthrough})), Api::kSglangGenerate);
  const Parsers vertex = Only({Parser::kVertexAi});
  EXPECT_EQ(ApiOfPath("/google.cloud.aiplatform.v1.PredictionService/RawPredict", vertex), Api::kVertexRaw);
  EXPECT_EQ(ApiOfPath("/google.cloud.MyPredictionService/RawPredict", vertex), std::nullopt);
}

TEST(ParserList, NamesAreThoseOfConfigs) {
  EXPECT_EQ(ToString(Parsers::Default()),
            "openai-parser, anthropic-parser, vllmhttp-parser, sglanghttp-parser, passthrough-parser");
  EXPECT_EQ(FindParser("vllmgrpc-parser"), Parser::kVllmGrpc);
  EXPECT_EQ(FindParser("vllm-parser"), std::nullopt);
  EXPECT_EQ(Parsers::FromBits(Parsers::Default().bits()), Parsers::Default());
}

TEST(RequestScanner, ChatCompletions) {
  const std::string_view body =
      R"({"model":"llama2","messages":[{"role":"system","content":"be \"brief\""},)"
      R"({"role":"user","content":[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":"x","text":"no"}}]},)"
      R"({"role":"assistant","content":null,"tool_calls":[{"content":"no"}]}],)"
      R"("stream":true,"max_tokens":5,"max_completion_tokens":7,"cache_salt":"s\u0061lt","stop":["model"]})";
  const RequestScanner scanner = Scan(Api::kChatCompletions, body);
  ASSERT_TRUE(scanner.ok()) << scanner.error();
  const RequestFields& fields = scanner.fields();
  EXPECT_TRUE(fields.has_model);
  EXPECT_EQ(fields.model, "llama2");
  EXPECT_EQ(body.substr(fields.model_span.begin, fields.model_span.end - fields.model_span.begin),
            "\"llama2\"");
  EXPECT_TRUE(fields.stream);
  EXPECT_EQ(fields.max_tokens, 7);
  EXPECT_EQ(fields.cache_salt, "salt");
  EXPECT_THAT(Prompt(body, fields), ElementsAre(R"(be \"brief\")", "hi"));
  EXPECT_EQ(fields.prompt_bytes, 14U);
  EXPECT_EQ(fields.members, (Span{1, body.size() - 1}));
}

TEST(RequestScanner, PromptOfEachApi) {
  EXPECT_THAT(Prompt(Api::kCompletions, R"({"prompt":"a"})"), ElementsAre("a"));
  EXPECT_THAT(Prompt(Api::kCompletions, R"({"prompt":["a","","b"]})"), ElementsAre("a", "", "b"));
  EXPECT_THAT(Prompt(Api::kEmbeddings, R"({"input":["a","b"]})"), ElementsAre("a", "b"));
  EXPECT_THAT(Prompt(Api::kResponses, R"({"instructions":"i","input":"x"})"), ElementsAre("i", "x"));
  EXPECT_THAT(
      Prompt(Api::kResponses, R"({"input":[{"role":"user","content":"x"},)"
                              R"({"type":"message","content":[{"type":"input_text","text":"y"}]}, "no"]})"),
      ElementsAre("x", "y"));
  EXPECT_THAT(
      Prompt(Api::kMessages, R"({"system":[{"type":"text","text":"s"}],"messages":[{"role":"user","content":)"
                             R"([{"type":"tool_result","content":[{"type":"text","text":"t"}]},)"
                             R"({"type":"tool_result","content":"u"}]}]})"),
      ElementsAre("s", "t", "u"));
  EXPECT_THAT(Prompt(Api::kMessages, R"({"messages":[{"content":"x"}],"system":"s"})"),
              ElementsAre("x", "s"));
  EXPECT_THAT(Prompt(Api::kChatCompletions, R"({"system":"no","messages":[{"content":["a"]}]})"),
              ElementsAre("a"));
  EXPECT_THAT(Prompt(Api::kUnknown, R"({"prompt":"a"})"), IsEmpty());
}

TEST(RequestScanner, EmbeddingsOfMessages) {
  const std::string_view body =
      R"({"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"},)"
      R"({"type":"image_url","image_url":{"url":"no"}}]},{"role":"user","content":"yy"}]})";
  for (size_t cut = 0; cut <= body.size(); ++cut) {
    const RequestScanner scanner = Scan(Api::kEmbeddings, {body.substr(0, cut), body.substr(cut)});
    ASSERT_TRUE(scanner.ok()) << scanner.error();
    EXPECT_THAT(Prompt(body, scanner.fields()), ElementsAre("x", "yy"));
    EXPECT_EQ(scanner.fields().prompt_bytes, 3U);
  }
  // Of both the last one counts, as of a member that comes twice.
  EXPECT_THAT(Prompt(Api::kEmbeddings, R"({"messages":[{"content":"x"}],"input":"a"})"), ElementsAre("a"));
  EXPECT_THAT(Prompt(Api::kEmbeddings, R"({"input":["a"],"messages":[{"content":"x"}]})"), ElementsAre("x"));
  constexpr std::string_view kMessages = "invalid embeddings request: must have valid messages field";
  for (const std::string_view bad : {R"({"messages":[]})", R"({"messages":"x"})", R"({"messages":["x"]})",
                                     R"({"messages":[{"content":5}]})", R"({"input":"a","messages":null})"}) {
    EXPECT_EQ(Scan(Api::kEmbeddings, bad).error(), kMessages) << bad;
  }
  // A scanner that is used again starts anew.
  RequestScanner scanner = Scan(Api::kEmbeddings, R"({"messages":[{"content":"x"}]})");
  scanner.Reset(Api::kEmbeddings);
  scanner.Feed(R"({"model":"m"})");
  scanner.Finish();
  EXPECT_EQ(scanner.error(), "invalid embeddings request: must have input field");
}

// What engines take in place of a prompt is theirs to judge.
TEST(RequestScanner, WhatStandsForThePrompt) {
  EXPECT_TRUE(Scan(Api::kCompletions, R"({"model":"m","prompt_embeds":"AAAA"})").ok());
  EXPECT_TRUE(Scan(Api::kCompletions, R"({"prompt_embeds":["AAAA","BBBB"],"prompt":null})").ok());
  EXPECT_TRUE(Scan(Api::kCompletions, R"({"prompt":"","prompt_embeds":"AAAA"})").ok());
  EXPECT_TRUE(Scan(Api::kResponses, R"({"model":"m","prompt":{"id":"pmpt_1"}})").ok());
  EXPECT_FALSE(Scan(Api::kCompletions, R"({"prompt_embeds":null})").ok());
  EXPECT_FALSE(Scan(Api::kCompletions, R"({"prompt_embeds":"AAAA","prompt_embeds":null})").ok());
  EXPECT_FALSE(Scan(Api::kResponses, R"({"prompt":null})").ok());
  EXPECT_FALSE(Scan(Api::kChatCompletions, R"({"prompt_embeds":"AAAA"})").ok());
  RequestScanner scanner = Scan(Api::kCompletions, R"({"prompt_embeds":"AAAA"})");
  scanner.Reset(Api::kCompletions);
  scanner.Feed("{}");
  scanner.Finish();
  EXPECT_FALSE(scanner.ok());
}

std::string WithModel(std::string_view body, const RequestFields& fields, std::string_view model) {
  std::string out(body);
  return PutModel(out, fields, model) ? out : "nothing";
}

TEST(RequestScanner, AByteOrderMarkStaysBeforeTheBody) {
  const std::string_view body = "\xef\xbb\xbf{\"model\":\"m\",\"prompt\":\"x\"}";
  const RequestScanner scanner = Scan(Api::kCompletions, body);
  ASSERT_TRUE(scanner.ok()) << scanner.error();
  EXPECT_EQ(WithModel(body, scanner.fields(), "other"), "\xef\xbb\xbf{\"model\":\"other\",\"prompt\":\"x\"}");
}

TEST(RequestScanner, TokenIdsCountFourBytesEach) {
  for (const std::string_view body : {R"({"prompt":[1,2,3]})", R"({"prompt":[[1,2],[3]]})"}) {
    const RequestScanner scanner = Scan(Api::kCompletions, body);
    EXPECT_TRUE(scanner.ok()) << scanner.error();
    EXPECT_THAT(scanner.fields().prompt, IsEmpty());
    EXPECT_EQ(scanner.fields().prompt_bytes, 12U);
  }
}

TEST(RequestScanner, MaxTokensByApi) {
  const auto limit = [](Api api, std::string_view body) { return Scan(api, body).fields().max_tokens; };
  EXPECT_EQ(limit(Api::kChatCompletions, R"({"max_completion_tokens":3,"max_tokens":9})"), 3);
  EXPECT_EQ(limit(Api::kChatCompletions, R"({"max_completion_tokens":null,"max_tokens":9})"), 9);
  EXPECT_EQ(limit(Api::kChatCompletions, R"({"max_completion_tokens":3,"max_completion_tokens":"x"})"),
            std::nullopt);
  EXPECT_EQ(limit(Api::kCompletions, R"({"max_tokens":1e2})"), 100);
  EXPECT_EQ(limit(Api::kCompletions, R"({"max_completion_tokens":3})"), std::nullopt);
  EXPECT_EQ(limit(Api::kMessages, R"({"max_tokens":8})"), 8);
  EXPECT_EQ(limit(Api::kResponses, R"({"max_output_tokens":8,"max_tokens":3})"), 8);
  for (const std::string_view bad :
       {"-1", "1.5", "\"7\"", "true", "99999999999999999999", "1e999", "{}", "[7]"}) {
    EXPECT_EQ(limit(Api::kCompletions, "{\"max_tokens\":" + std::string(bad) + "}"), std::nullopt) << bad;
  }
}

TEST(RequestScanner, StreamOnlyWhenLiterallyTrueAtTheTop) {
  const auto stream = [](std::string_view body) { return Scan(Api::kCompletions, body).fields().stream; };
  EXPECT_TRUE(stream(R"({"stream":true})"));
  EXPECT_TRUE(stream(R"({"str\u0065am" : true})"));
  for (const std::string_view body :
       {R"({"stream":"true"})", R"({"stream":1})", R"({"x":{"stream":true}})", R"({"stream":[true]})",
        R"({"stream":true,"stream":false})", R"({"Stream":true})"}) {
    EXPECT_FALSE(stream(body)) << body;
  }
}

TEST(RequestScanner, OfDuplicateKeysTheLastCounts) {
  const std::string_view body =
      R"({"system":"s1","messages":[{"role":"user","content":"a"}],"model":"x","system":[{"text":"s2","text":"s3"}],)"
      R"("messages":5,"messages":[{"role":3,"role":"user","content":"b","content":["c",{"text":"d"}]}],)"
      R"("model":"y","max_tokens":1,"max_tokens":2})";
  const RequestScanner scanner = Scan(Api::kMessages, body);
  ASSERT_TRUE(scanner.ok()) << scanner.error();
  EXPECT_EQ(scanner.fields().model, "y");
  EXPECT_EQ(scanner.fields().max_tokens, 2);
  EXPECT_THAT(Prompt(body, scanner.fields()), ElementsAre("s3", "c", "d"));
  EXPECT_EQ(scanner.fields().prompt_bytes, 4U);

  EXPECT_FALSE(Scan(Api::kMessages, R"({"model":"x","model":5})").fields().has_model);
  EXPECT_FALSE(Scan(Api::kCompletions, R"({"prompt":"a","prompt":5})").ok());
  EXPECT_THAT(Prompt(Api::kMessages, R"({"messages":[{"content":[{"text":"1","content":"2","text":"3"}]}]})"),
              ElementsAre("2", "3"));
  EXPECT_THAT(Prompt(Api::kMessages,
                     R"({"messages":[{"content":[{"text":"1","content":"2","text":"3","content":"4"}]}]})"),
              ElementsAre("3", "4"));
}

TEST(RequestScanner, RefusesWithTheReferencesWords) {
  constexpr std::string_view kChat = "invalid chat completions request: must have valid messages field";
  constexpr std::string_view kCompletions = "invalid completions request: must have prompt field";
  constexpr std::string_view kEmbeddings = "invalid embeddings request: must have input field";
  constexpr std::string_view kResponses = "invalid responses request: must have input field";
  constexpr std::string_view kMessages = "invalid messages request: must have valid messages field";
  constexpr std::string_view kEnd = "error unmarshaling request bodyMap: unexpected end of JSON input";
  const struct {
    Api api;
    std::string_view body;
    std::string_view error;
  } kCases[] = {
      {Api::kChatCompletions, "", kEnd},
      {Api::kChatCompletions, " \n ", kEnd},
      {Api::kChatCompletions, R"({"model":"m","messages":[{"role":"user","content":"x"}])", kEnd},
      {Api::kChatCompletions, "{}", kChat},
      {Api::kChatCompletions, R"({"prompt":"x"})", kChat},
      {Api::kChatCompletions, R"({"Messages":[{}]})", kChat},
      {Api::kChatCompletions, R"({"messages":[]})", kChat},
      {Api::kChatCompletions, R"({"messages":null})", kChat},
      {Api::kChatCompletions, R"({"messages":"x"})", kChat},
      {Api::kChatCompletions, R"({"messages":{}})", kChat},
      {Api::kChatCompletions, R"({"messages":["x"]})", kChat},
      {Api::kChatCompletions, R"({"messages":[{"role":123,"content":"x"}]})", kChat},
      {Api::kChatCompletions, R"({"messages":[{"role":"user","content":123}]})", kChat},
      {Api::kChatCompletions, R"({"messages":[{"role":"user","content":{}}]})", kChat},
      {Api::kChatCompletions, R"({"messages":[{"role":"user","content":[1]}]})", kChat},
      {Api::kChatCompletions, R"({"messages":[{"content":5},{"content":"ok"}]})", kChat},
      {Api::kChatCompletions, R"({"messages":[{}],"tools":{}})", kChat},
      {Api::kChatCompletions, R"({"messages":[{}],"cache_salt":1})", kChat},
      {Api::kChatCompletions, R"({"messages":[{}],"add_generation_prompt":"true"})", kChat},
      {Api::kChatCompletions, R"({"messages":[{}],"chat_template_kwargs":[]})", kChat},
      {Api::kChatCompletions, R"({"messages":[{}],"tools":{},"tools":null,"add_generation_prompt":false})",
       ""},
      {Api::kChatCompletions, R"({"messages":[{"role":"user"}]})", ""},
      {Api::kChatCompletions, R"({"messages":[{"content":[]}]})", ""},
      {Api::kCompletions, R"({"model":"m"})", kCompletions},
      {Api::kCompletions, R"({"prompt":""})", kCompletions},
      {Api::kCompletions, R"({"prompt":[]})", kCompletions},
      {Api::kCompletions, R"({"prompt":123})", kCompletions},
      {Api::kCompletions, R"({"prompt":null})", kCompletions},
      {Api::kCompletions, R"({"prompt":["a",1]})", kCompletions},
      {Api::kCompletions, R"({"prompt":[-1]})", kCompletions},
      {Api::kCompletions, R"({"prompt":[1.5]})", kCompletions},
      {Api::kCompletions, R"({"prompt":[4294967296]})", kCompletions},
      {Api::kCompletions, R"({"prompt":[[1],["a"]]})", kCompletions},
      {Api::kCompletions, R"({"prompt":[null]})", kCompletions},
      {Api::kCompletions, R"({"prompt":[""]})", ""},
      {Api::kCompletions, R"({"prompt":[4294967295]})", ""},
      {Api::kEmbeddings, R"({"model":"m"})", kEmbeddings},
      {Api::kEmbeddings, R"({"input":null})", kEmbeddings},
      {Api::kEmbeddings, R"({"input":""})", kEmbeddings},
      {Api::kEmbeddings, R"({"input":[]})", kEmbeddings},
      {Api::kEmbeddings, R"({"input":[[1,2]]})", ""},
      {Api::kResponses, R"({"model":"m"})", kResponses},
      {Api::kResponses, R"({"input":null})", kResponses},
      {Api::kResponses, R"({"input":"x"})", ""},
      {Api::kMessages, R"({"model":"m","max_tokens":1})", kMessages},
      {Api::kMessages, R"({"messages":[{"role":"user","content":"x"}]})", ""},
      {Api::kCompletions, "no healthy upstream",
       "error unmarshaling request bodyMap: invalid JSON at byte 1: expected true, false or null, found 'o'"},
      {Api::kCompletions, R"(["prompt"])",
       "error unmarshaling request bodyMap: invalid JSON at byte 0: the body must be an object, found an "
       "array"},
      {Api::kCompletions, R"( "prompt")",
       "error unmarshaling request bodyMap: invalid JSON at byte 1: the body must be an object, found a "
       "string"},
      {Api::kCompletions, "17",
       "error unmarshaling request bodyMap: invalid JSON at byte 0: the body must be an object, found a "
       "number"},
      {Api::kCompletions, "null",
       "error unmarshaling request bodyMap: invalid JSON at byte 0: the body must be an object"},
      {Api::kCompletions, "{\"prompt\":\"\xff\"}",
       "error unmarshaling request bodyMap: invalid JSON at byte 11: invalid UTF-8 in a string, byte 0xFF"},
      {Api::kCompletions, R"({"prompt":"x"} {})",
       "error unmarshaling request bodyMap: invalid JSON at byte 15: expected nothing after the value, found "
       "'{'"},
  };
  for (const auto& c : kCases) {
    EXPECT_EQ(Scan(c.api, c.body).error(), c.error) << c.body;
    for (size_t cut = 1; cut < c.body.size(); ++cut) {
      EXPECT_EQ(Scan(c.api, {c.body.substr(0, cut), c.body.substr(cut)}).error(), c.error) << c.body << cut;
    }
  }
}

// An image, a sound or a video wherever an API has them, and nothing that only looks like one.
TEST(RequestScanner, MediaAreSeen) {
  const struct {
    Api api;
    std::string_view body;
    bool media;
  } kCases[] = {
      {Api::kChatCompletions,
       R"({"messages":[{"content":[{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"u"}}]}]})",
       true},
      {Api::kChatCompletions,
       R"({"messages":[{"content":[{"type":"input_audio","input_audio":{"data":"AA==","format":"wav"}}]}]})",
       true},
      {Api::kChatCompletions, R"({"messages":[{"content":[{"video_url":{"url":"u"}}]}],"model":"m"})", true},
      {Api::kChatCompletions, R"({"messages":[{"content":[{"image_url":"u"}]}]})", true},
      {Api::kChatCompletions, R"({"messages":[{"content":[{"image_url":null,"text":"x"}]}]})", false},
      {Api::kChatCompletions, R"({"messages":[{"content":"image_url","image_url":"u"}],"image_url":"u"})",
       false},
      {Api::kChatCompletions, R"({"messages":[{"content":[{"file":{"file_id":"f"}}]}]})", false},
      {Api::kResponses, R"({"input":[{"content":[{"type":"input_image","image_url":"u"}]}]})", true},
      {Api::kMessages, R"({"messages":[{"content":[{"type":"image","source":{"type":"url","url":"u"}}]}]})",
       true},
      {Api::kMessages,
       R"({"messages":[{"content":[{"type":"tool_result","content":[{"type":"image","source":{"data":"A"}}]}]}]})",
       true},
      {Api::kVllmGenerate, R"({"model":"m","token_ids":[1,2],"features":{"mm_hashes":{"image":["h"]}}})",
       true},
      {Api::kVllmGenerate, R"({"model":"m","token_ids":[1,2],"features":null})", false},
      {Api::kSglangGenerate, R"({"text":"x","image_data":["u"]})", true},
      {Api::kSglangGenerate, R"({"text":"x","image_data":null})", false},
  };
  for (const bool hashes : {false, true}) {
    for (const auto& c : kCases) {
      for (size_t cut = 0; cut < c.body.size(); ++cut) {
        RequestScanner scanner(c.api);
        if (hashes) scanner.HashPrompt(true);
        scanner.Feed(c.body.substr(0, cut));
        scanner.Feed(c.body.substr(cut));
        scanner.Finish();
        EXPECT_TRUE(scanner.ok()) << scanner.error();
        ASSERT_EQ(scanner.fields().has_media, c.media) << c.body << " cut at " << cut;
      }
    }
  }
  RequestScanner again(Api::kChatCompletions);
  again.Feed(kCases[0].body);
  again.Reset(Api::kChatCompletions);
  EXPECT_FALSE(again.fields().has_media);
}

TEST(RequestScanner, TheEnginesOwnApis) {
  const auto vllm =
      Scan(Api::kVllmGenerate, R"({"model":"m","token_ids":[1,2,3],"sampling_params":{"max_tokens":7,"n":1},)"
                               R"("stream":true,"cache_salt":"s","max_tokens":9})");
  EXPECT_TRUE(vllm.ok()) << vllm.error();
  EXPECT_EQ(vllm.fields().model, "m");
  EXPECT_EQ(vllm.fields().prompt_bytes, 12u);
  EXPECT_EQ(vllm.fields().max_tokens, 7);
  EXPECT_TRUE(vllm.fields().stream);
  EXPECT_EQ(vllm.fields().cache_salt, "s");
  for (const char* wrong : {"{}", R"({"token_ids":[]})", R"({"token_ids":null})", R"({"token_ids":["a"]})",
                            R"({"token_ids":[-1]})", R"({"prompt":"x"})"}) {
    EXPECT_EQ(Scan(Api::kVllmGenerate, wrong).error(),
              "invalid generate request: must have non-empty token_ids field")
        << wrong;
  }

  const std::string_view text =
      R"({"text":"hello","input_ids":null,"sampling_params":{"max_new_tokens":5},"extra_key":"k","stream":true})";
  const auto sglang = Scan(Api::kSglangGenerate, text);
  EXPECT_EQ(Prompt(text, sglang.fields()), (std::vector<std::string>{"hello"}));
  EXPECT_EQ(sglang.fields().max_tokens, 5);
  EXPECT_EQ(sglang.fields().cache_salt, "k");
  EXPECT_TRUE(sglang.fields().stream);
  EXPECT_FALSE(sglang.fields().has_model);
  EXPECT_EQ(Scan(Api::kSglangGenerate, R"({"text":null,"input_ids":[[1,2],[3]]})").fields().prompt_bytes,
            12u);
  for (const char* passes : {"", "no json", "[1]", R"({"inputs":"x"})", R"({"extra_key":1})"})
    EXPECT_TRUE(Scan(Api::kSglangGenerate, passes).ok()) << passes;

  EXPECT_TRUE(Scan(Api::kImages, R"({"model":"m","prompt":"a cat"})").ok());
  EXPECT_EQ(Scan(Api::kImages, R"({"model":"m","prompt":""})").error(),
            "invalid images generations request: must have prompt field");
}

TEST(RequestScanner, UnknownApisTakeAnything) {
  for (const std::string_view body :
       {"", "--boundary\r\n\xff\x00", "[1", "{\"a\"", "{\"model\":5}", "\"x\"", "nope", "17x"}) {
    const RequestScanner scanner = Scan(Api::kUnknown, body);
    EXPECT_TRUE(scanner.ok()) << body;
    EXPECT_FALSE(scanner.fields().has_model) << body;
  }
  EXPECT_EQ(Scan(Api::kUnknown, R"({"x":[{"model":"no"}],"model":"yes"})").fields().model, "yes");
  EXPECT_EQ(Scan(Api::kUnknown, R"({"model":"yes",oops)").fields().model, "yes");
}

TEST(RequestScanner, EveryBoundHolds) {
  const auto error = [](const std::string& body) { return Scan(Api::kCompletions, body).error(); };
  EXPECT_EQ(error(R"({"prompt":"x","model":")" + std::string(4096, 'm') + "\"}"), "");
  EXPECT_EQ(error(R"({"prompt":"x","model":")" + std::string(4097, 'm') + "\"}"),
            "error unmarshaling request bodyMap: model name at byte 22 is longer than 4096 bytes");
  EXPECT_EQ(error(R"({"cache_salt":")" + std::string(4097, 'm') + "\"}"),
            "error unmarshaling request bodyMap: cache_salt at byte 14 is longer than 4096 bytes");
  EXPECT_EQ(error(R"({"x":)" + std::string(511, '[') + std::string(511, ']') + R"(,"prompt":"x"})"), "");
  EXPECT_EQ(error(R"({"x":)" + std::string(512, '[')),
            "error unmarshaling request bodyMap: invalid JSON at byte 516: nested deeper than 512 levels");
  std::string huge;
  huge.assign(10'000'000, '[');
  EXPECT_EQ(error(huge),
            "error unmarshaling request bodyMap: invalid JSON at byte 0: the body must be an object, found "
            "an array");
  EXPECT_EQ(error(R"({"prompt":"x","n":)" + std::string(1'000'000, '9') + "}"), "");
  EXPECT_EQ(error("{\"" + std::string(1'000'000, 'k') + R"(":1,"prompt":"x"})"), "");

  std::string many = R"({"prompt":["ab")";
  for (int i = 1; i < 5000; ++i) many += ",\"ab\"";
  many += "]}";
  const RequestScanner scanner = Scan(Api::kCompletions, many);
  EXPECT_TRUE(scanner.ok());
  EXPECT_EQ(scanner.fields().prompt.size(), RequestScanner::kMaxPromptSpans);
  EXPECT_EQ(scanner.fields().prompt_bytes, 10'000U);

  std::string long_prompt(1 << 20, 'x');
  for (size_t i = 0; i < long_prompt.size(); i += 997) long_prompt.replace(i, 2, "\\n");
  const std::string body = R"({"prompt":")" + long_prompt + R"(","model":"m"})";
  EXPECT_THAT(Prompt(Api::kCompletions, body), ElementsAre(long_prompt));
}

TEST(RequestScanner, APartKeepsWhatWasFound) {
  RequestScanner scanner(Api::kChatCompletions);
  const std::string_view body =
      R"({"model":"m","stream":true,"messages":[{"role":"user","content":"a long te)";
  scanner.Feed(body);
  scanner.FinishPartial();
  EXPECT_TRUE(scanner.ok());
  EXPECT_EQ(scanner.fields().model, "m");
  EXPECT_THAT(Prompt(body, scanner.fields()), ElementsAre("a long te"));

  RequestScanner role(Api::kChatCompletions);
  role.Feed(R"({"messages":[{"role":"use)");
  role.FinishPartial();
  EXPECT_TRUE(role.ok());
  EXPECT_THAT(role.fields().prompt, IsEmpty());
}

// A request such as users send, with members doubled, misspelt and out of place.
std::string Request(JsonMaker& maker) {
  auto& random = maker.random();
  const auto content = [&] {
    if (random.Below(2) == 0) return maker.String();
    std::string blocks = "[";
    const uint64_t n = random.Below(3);
    for (uint64_t i = 0; i < n; ++i) {
      blocks += (i == 0 ? "" : ",") + std::string(R"({"type":"text","text":)") + maker.String();
      if (random.Below(3) == 0) blocks += R"(,"content":)" + maker.Value(2);
      blocks += "}";
    }
    return blocks + "]";
  };
  std::string body = maker.Space() + "{" + R"("model":)" + maker.String();
  const uint64_t members = 1 + random.Below(5);
  for (uint64_t i = 0; i < members; ++i) {
    body += "," + maker.Space();
    switch (random.Below(5)) {
      case 0: {
        body += R"("messages":[)";
        const uint64_t n = 1 + random.Below(3);
        for (uint64_t j = 0; j < n; ++j) {
          body += (j == 0 ? "" : ",") + std::string(R"({"role":"user","content":)") + content();
          if (random.Below(4) == 0) body += R"(,"content":)" + content();
          body += "}";
        }
        body += "]";
        break;
      }
      case 1:
        body += R"("system":)" + content();
        break;
      case 2:
        body += (random.Below(2) == 0 ? R"("prompt":)" : R"("input":)") + content();
        break;
      case 3:
        body += R"("model":)" + (random.Below(4) == 0 ? maker.Value(1) : maker.String());
        break;
      default:
        body += maker.Key() + ":" + maker.Value(2);
        break;
    }
  }
  return body + "}" + maker.Space();
}

TEST(RequestScanner, TheSameWhereverItIsCut) {
  JsonMaker maker(11);
  for (int round = 0; round < 50; ++round) {
    std::string body = Request(maker);
    if (round % 4 == 3) body = maker.Broken(body);
    const std::string_view view = body;
    for (const Api api : kAllApis) {
      const RequestScanner whole = Scan(api, view);
      for (size_t cut = 1; cut < body.size(); ++cut) {
        ExpectSame(Scan(api, {view.substr(0, cut), view.substr(cut)}), whole, body);
      }
    }
  }
  for (int round = 0; round < 20'000; ++round) {
    std::string body = Request(maker);
    if (round % 2 == 0) body = maker.Broken(body);
    const Api api = kAllApis[maker.random().Below(6)];
    ExpectSame(Scan(api, maker.Cut(body)), Scan(api, body), body);
  }
}

TEST(RequestScanner, AsNewAfterAReset) {
  JsonMaker maker(14);
  const auto end = [](RequestScanner& scanner, uint64_t how) {
    if (how < 6) scanner.Finish();
    if (how == 6) scanner.FinishPartial();
  };
  RequestScanner reused(Api::kUnknown);
  for (int round = 0; round < 40'000; ++round) {
    std::string body = Request(maker);
    if (round % 3 == 0) body = maker.Broken(body);
    if (round % 1000 == 0) {  // more than is kept
      body = R"({"model":"m","messages":[)";
      for (int i = 0; i < 5000; ++i) body += R"({"role":"user","content":"x"},)";
      body += R"({"role":"user","content":"x"}]})";
    }
    const Api api = kAllApis[maker.random().Below(std::size(kAllApis))];
    const uint64_t how = maker.random().Below(8);  // also left in the midst
    reused.Reset(api);
    ASSERT_EQ(reused.api(), api);
    ASSERT_TRUE(reused.ok());
    ASSERT_TRUE(reused.fields() == RequestFields());
    RequestScanner fresh(api);
    for (const std::string_view piece : maker.Cut(body)) {
      reused.Feed(piece);
      fresh.Feed(piece);
    }
    end(reused, how);
    end(fresh, how);
    ExpectSame(reused, fresh, body);
  }
}

// What simdjson's tree says the prompt of a chat or Anthropic request is; of duplicate keys the last.
simdjson::dom::element Last(simdjson::dom::object object, std::string_view key, bool& found) {
  simdjson::dom::element value;
  found = false;
  for (const auto field : object) {
    if (field.key != key) continue;
    value = field.value;
    found = true;
  }
  return value;
}

void AppendContent(simdjson::dom::element content, bool inner, std::string& out) {
  if (content.is_string()) out += content.get_string().value();
  if (!content.is_array()) return;
  for (const auto block : content.get_array()) {
    if (block.is_string()) out += block.get_string().value();
    if (!block.is_object()) continue;
    // In the order of the body: the last text and the last content.
    size_t index = 0, text_at = 0, content_at = 0;
    for (const auto field : block.get_object()) {
      ++index;
      if (field.key == "text") text_at = index;
      if (field.key == "content" && !inner) content_at = index;
    }
    index = 0;
    for (const auto field : block.get_object()) {
      ++index;
      if (index == text_at && field.value.is_string()) out += field.value.get_string().value();
      if (index == content_at) AppendContent(field.value, true, out);
    }
  }
}

TEST(RequestScanner, FindsWhatSimdjsonsTreeHolds) {
  JsonMaker maker(12);
  simdjson::dom::parser parser, string_parser;
  int compared = 0;
  for (int round = 0; round < 60'000; ++round) {
    const std::string body = Request(maker);
    const auto tree = parser.parse(body);
    if (tree.error() != simdjson::SUCCESS) continue;  // numbers and surrogates that it refuses
    const simdjson::dom::object root = tree.get_object();
    const RequestScanner scanner = Scan(Api::kMessages, body);
    const RequestFields& fields = scanner.fields();
    if (!fields.prompt.empty()) ++compared;

    bool found = false;
    const auto model = Last(root, "model", found);
    ASSERT_EQ(fields.has_model, found && model.is_string()) << body;
    if (fields.has_model) {
      ASSERT_EQ(fields.model, model.get_string().value()) << body;
    }
    const auto stream = Last(root, "stream", found);
    ASSERT_EQ(fields.stream, found && stream.is_bool() && stream.get_bool().value()) << body;

    std::string expected;
    size_t index = 0, system_at = 0, messages_at = 0;
    for (const auto field : root) {
      ++index;
      if (field.key == "system") system_at = index;
      if (field.key == "messages") messages_at = index;
    }
    index = 0;
    for (const auto field : root) {
      ++index;
      if (index == system_at) AppendContent(field.value, false, expected);
      if (index != messages_at || !field.value.is_array()) continue;
      for (const auto message : field.value.get_array()) {
        if (!message.is_object()) continue;
        const auto content = Last(message.get_object(), "content", found);
        if (found) AppendContent(content, false, expected);
      }
    }
    std::string got;
    for (const Span& span : fields.prompt) {
      const std::string quoted = '"' + body.substr(span.begin, span.end - span.begin) + '"';
      got += string_parser.parse(quoted).get_string().value();
    }
    ASSERT_EQ(got, expected) << body;
  }
  EXPECT_GT(compared, 5000);
}

TEST(PutModel, ReplacesTheNameAlone) {
  std::string body = R"({"prompt": "a",  "model" : "llama2", "x": 12345678901234567890})";
  RequestScanner scanner(Api::kCompletions);
  scanner.Feed(body);
  scanner.Finish();
  ASSERT_TRUE(PutModel(body, scanner.fields(), "llama2-\"v1\""));
  EXPECT_EQ(body, R"({"prompt": "a",  "model" : "llama2-\"v1\"", "x": 12345678901234567890})");
}

TEST(PutModel, InsertsTheMemberWhereThereIsNone) {
  const auto put = [](std::string body) {
    RequestScanner scanner(Api::kCompletions);
    scanner.Feed(body);
    scanner.Finish();
    return PutModel(body, scanner.fields(), "m") ? body : "no";
  };
  EXPECT_EQ(put(R"({"prompt":"a"})"), R"({"model":"m","prompt":"a"})");
  EXPECT_EQ(put(R"({"model" : null, "prompt":"a"})"), R"({"model" : "m", "prompt":"a"})");
  EXPECT_EQ(put(R"({"prompt":"a","model":{"x":[1]}})"), R"({"prompt":"a","model":"m"})");
  EXPECT_EQ(put(" { } "), R"( {"model":"m" } )");
  EXPECT_EQ(put("\xef\xbb\xbf{\"prompt\":\"a\"}"), "\xef\xbb\xbf{\"model\":\"m\",\"prompt\":\"a\"}");
  EXPECT_EQ(put("[]"), "no");
  EXPECT_EQ(put(R"({"prompt":"a")"), "no");
}

TEST(PutModel, LeavesABodyWithoutOne) {
  std::string body = "{}";
  EXPECT_FALSE(PutModel(body, RequestFields(), "x"));
  EXPECT_EQ(body, "{}");
}

TEST(PutModel, KeepsEveryOtherByte) {
  JsonMaker maker(13);
  for (int round = 0; round < 5000; ++round) {
    const std::string body = Request(maker);
    const RequestFields fields = Scan(Api::kUnknown, body).fields();
    const std::string model = round % 2 == 0 ? "llama2-v1" : "a \"b\\c\n\xc3\xa4 \x01 d";
    const std::string edited = WithModel(body, fields, model);
    const bool had = fields.model_span.end != 0;
    const Span at = had ? fields.model_span : Span{fields.members.begin, fields.members.begin};
    ASSERT_TRUE(edited.starts_with(body.substr(0, at.begin))) << body;
    ASSERT_TRUE(edited.ends_with(body.substr(at.end))) << body;
    ASSERT_EQ(Scan(Api::kUnknown, edited).fields().model, model) << edited;
    if (!fields.has_model) continue;
    // And back: nothing but the way in which the name was written is another.
    ASSERT_EQ(WithModel(edited, Scan(Api::kUnknown, edited).fields(), fields.model),
              WithModel(body, fields, fields.model));
  }
}

TEST(PutModel, InsertsAModelWhereThereIsNone) {
  const auto edited = [](std::string_view body) {
    return WithModel(body, Scan(Api::kUnknown, body).fields(), "m");
  };
  EXPECT_EQ(edited(R"( {"a":1})"), R"( {"model":"m","a":1})");
  EXPECT_EQ(edited("{ }"), R"({"model":"m" })");
  EXPECT_EQ(edited(R"({"model":null,"a":1})"), R"({"model":"m","a":1})");
  EXPECT_EQ(edited(R"({"model":{"x":[1]},"a":1})"), R"({"model":"m","a":1})");
  EXPECT_EQ(edited(R"({"model":"a","model":5})"), R"({"model":"a","model":"m"})");
  EXPECT_EQ(edited("[]"), "nothing");
}

}  // namespace
}  // namespace fairway::payload
