#include "frontends/envoy_module/stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "base/strings.h"
#include "tests/support/config_text.h"
#include "tests/support/fake_envoy.h"
#include "tests/support/pools.h"

namespace fairway::envoy_module {
namespace {

using base::kMillisecond;
using base::kSecond;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using tests::FakeStream;
using tests::HeaderList;
using tests::Model;
using tests::ServerState;
using tests::TheFakeEnvoy;

const std::string kBody = R"({"model":"m","prompt":"hello"})";

// A filter over a pool of servers, the first the least loaded, then the second, and so on.
class StreamTest : public testing::Test {
 protected:
  void SetUp() override {
    TheFakeEnvoy().throw_on_headers = false;
    TheFakeEnvoy().TakeOrders();
    Serve({{.name = "a", .waiting = 0}, {.name = "b", .waiting = 5}, {.name = "c", .waiting = 9}});
  }
  void TearDown() override {
    for (size_t i = 0; i < pool_->pool()->endpoints.size(); ++i) EXPECT_EQ(cell(i).own(), 0u) << i;
    EXPECT_EQ(TheFakeEnvoy().live_schedulers(), 0u);
  }

  void Serve(std::vector<ServerState> servers, std::vector<api::InferenceModel> models = {},
             std::function<bool(std::string_view)> settled = {},
             std::shared_ptr<const scheduling::Config> config = nullptr) {
    filter_.picker.reset();
    registry_ = std::make_unique<base::Registry>();
    pool_ = std::make_unique<tests::TestPool>(std::move(servers), std::move(models));
    routing::RouterOptions options;
    options.scheduling.lora_exploration = 0;
    options.config = std::move(config);
    options.ask_load = ask_load_;
    router_ = std::make_unique<routing::Router>(pool_->fleet().published(), clock_, *registry_, options);
    SharedPicker::Parts parts;
    parts.router = router_.get();
    parts.clock = &clock_;
    parts.log = &log_;
    parts.settled = std::move(settled);
    parts.seed = 1;
    parts.concurrency = 2;
    parts.post = post_;
    parts.ask_tokens = ask_tokens_;
    filter_.picker = std::make_shared<SharedPicker>(std::move(parts));
    filter_.counters = {
        .faults = 1, .failed_open = 2, .waited = 3, .timeouts = 4, .no_room = 5, .defined = true};
  }

  bool ask_load_ = false;  // of Serve
  fleet::EndpointCell& cell(size_t i) { return *pool_->pool()->endpoints[i].cell; }
  std::string Page() { return registry_->Render(); }

  static HeaderList Post(size_t length, HeaderList more = {}) {
    HeaderList headers = {{":method", "POST"},
                          {":path", "/v1/completions"},
                          {"x-request-id", "id-1"},
                          {"content-length", std::to_string(length)}};
    headers.insert(headers.end(), more.begin(), more.end());
    return headers;
  }

  // As Envoy's HTTP/1 codec gives a request: each chunk, then an empty last one. Returns whether it may go
  // on.
  static bool SendHttp1(Stream& stream, FakeStream& envoy, const std::vector<std::string>& chunks) {
    EXPECT_EQ(stream.OnRequestHeaders(false), abi::HeadersStatus::kStop);
    for (const auto& chunk : chunks) {
      envoy.received = {chunk};
      const auto status = stream.OnRequestBody(false);
      if (envoy.reply) return false;
      EXPECT_EQ(status, abi::BodyStatus::kStopAndBuffer);
      if (!chunk.empty()) envoy.buffered.push_back(chunk);
      envoy.received.clear();
    }
    return stream.OnRequestBody(true) == abi::BodyStatus::kContinue;
  }
  // HTTP/2: the end comes with the last chunk.
  static bool SendHttp2(Stream& stream, FakeStream& envoy, const std::vector<std::string>& chunks) {
    EXPECT_EQ(stream.OnRequestHeaders(false), abi::HeadersStatus::kStop);
    for (size_t i = 0; i < chunks.size(); ++i) {
      envoy.received = {chunks[i]};
      const bool last = i + 1 == chunks.size();
      const auto status = stream.OnRequestBody(last);
      if (last || envoy.reply) return status == abi::BodyStatus::kContinue;
      if (!chunks[i].empty()) envoy.buffered.push_back(chunks[i]);
      envoy.received.clear();
    }
    return false;
  }

  std::function<void(std::function<void()>)> post_;
  std::function<void(request::TokenClient::Question, request::TokenClient::Answer)> ask_tokens_;
  base::ManualClock clock_{kSecond + 20 * kMillisecond};
  base::Log log_{base::LogLevel::kOff, base::LogFormat::kText};
  std::unique_ptr<base::Registry> registry_;
  std::unique_ptr<tests::TestPool> pool_;
  std::unique_ptr<routing::Router> router_;
  Filter filter_;
};

TEST_F(StreamTest, APathThatNoParserTakesIsRefusedAtItsHeaders) {
  Serve({{.name = "a"}}, {}, {},
        tests::ConfigOf(
            "plugins: [{type: queue-scorer}]\nrequestHandler: {parsers: [{pluginRef: anthropic-parser}]}\n"));
  FakeStream envoy{.request_headers = Post(kBody.size())};
  Stream stream(filter_, &envoy);
  EXPECT_EQ(stream.OnRequestHeaders(false), abi::HeadersStatus::kStop);
  ASSERT_TRUE(envoy.reply);
  EXPECT_EQ(envoy.reply->status, 400u);
  EXPECT_EQ(envoy.reply->body,
            "inference error: BadRequest - no parser registered matching path suffix for: /v1/completions");
  stream.OnComplete();
}

TEST_F(StreamTest, FirstChoiceByOverrideHostTheOthersAsTheListForRetries) {
  FakeStream envoy{.request_headers = Post(kBody.size())};
  Stream stream(filter_, &envoy);
  ASSERT_TRUE(SendHttp1(stream, envoy, {kBody.substr(0, 7), kBody.substr(7)}));
  EXPECT_EQ(envoy.override_host, "10.0.0.1:8000");
  EXPECT_EQ(envoy.request_header("x-gateway-destination-endpoint"), "10.0.0.1:8000");
  EXPECT_THAT(envoy.metadata, ElementsAre(Pair(Pair("envoy.lb", "x-gateway-destination-endpoint"),
                                               "10.0.0.2:8000,10.0.0.3:8000")));
  EXPECT_EQ(envoy.body(), kBody);
  EXPECT_EQ(envoy.request_header("content-length"), std::to_string(kBody.size()));
  EXPECT_EQ(cell(0).own(), 1u);
  envoy.response_headers = {{":status", "200"}};
  stream.OnResponseHeaders(false);
  stream.OnResponseBody(true);
  EXPECT_EQ(cell(0).own(), 0u);
  stream.OnComplete();
}

TEST_F(StreamTest, WithOneEndpointThereIsNoList) {
  Serve({{.name = "a"}});
  FakeStream envoy{.request_headers = Post(kBody.size())};
  Stream stream(filter_, &envoy);
  ASSERT_TRUE(SendHttp2(stream, envoy, {kBody}));
  EXPECT_TRUE(envoy.metadata.empty());
}

TEST_F(StreamTest, WhatLongPromptsTeachIsDoneOnAnotherThread) {
  std::vector<std::function<void()>> posted;
  post_ = [&](std::function<void()> task) { posted.push_back(std::move(task)); };
  Serve({{.name = "a"}});
  const auto send = [&](char letter) {
    const std::string body = R"({"model":"m","prompt":")" + std::string(100 * 256, letter) + R"("})";
    FakeStream envoy{.request_headers = Post(body.size())};
    Stream stream(filter_, &envoy);
    ASSERT_TRUE(SendHttp2(stream, envoy, {body}));
  };
  send('a');
  EXPECT_EQ(posted.size(), 1u);
  // What waits there is bounded.
  for (int i = 0; i < 100; ++i) send(static_cast<char>('b' + i % 20));
  EXPECT_EQ(posted.size(), 64u);
  for (const auto& task : posted) task();
  posted.clear();
  send('A');
  EXPECT_EQ(posted.size(), 1u);
}

// ---- Requests whose tokens are asked for.

class StreamTokensTest : public StreamTest {
 protected:
  void SetUp() override {
    ask_tokens_ = [this](request::TokenClient::Question question, request::TokenClient::Answer answer) {
      questions.push_back(std::move(question));
      answers.push_back(std::move(answer));
    };
    StreamTest::SetUp();
    Serve(
        {{.name = "a"}, {.name = "b", .waiting = 5}}, {}, {},
        tests::ConfigOf("plugins:\n"
                        "- type: token-producer\n"
                        "  parameters: {modelName: base, vllm: {url: 'http://10.9.9.9:81/at', timeout: 2s}}\n"
                        "- type: precise-prefix-cache-producer\n"
                        "- type: queue-scorer\n"
                        "- type: max-score-picker\n"));
  }
  static std::shared_ptr<const payload::PromptTokens> ThreeTokens() {
    return std::make_shared<const payload::PromptTokens>(
        payload::PromptTokens{.tokens = {1, 2, 3}, .ends = {3}});
  }
  // What Envoy does with what was ordered.
  static void RunOrders(Stream& stream) {
    for (const auto& [envoy, event] : TheFakeEnvoy().TakeOrders()) stream.OnScheduled(event);
  }
  std::vector<request::TokenClient::Question> questions;
  std::vector<request::TokenClient::Answer> answers;
};

TEST_F(StreamTokensTest, ARequestWaitsForItsTokensWithoutAThread) {
  for (const bool http1 : {false, true}) {
    FakeStream envoy{.request_headers = Post(kBody.size())};
    Stream stream(filter_, &envoy);
    const std::vector<std::string> chunks = {kBody.substr(0, 9), kBody.substr(9)};
    ASSERT_FALSE(http1 ? SendHttp1(stream, envoy, chunks) : SendHttp2(stream, envoy, chunks));
    ASSERT_EQ(questions.size(), 1u);
    EXPECT_EQ(questions[0].host, "10.9.9.9");
    EXPECT_EQ(questions[0].path, "/at/v1/completions/render");
    EXPECT_EQ(questions[0].body, R"({"model":"base","prompt":"hello"})");
    EXPECT_EQ(questions[0].timeout, 2 * kSecond);
    EXPECT_EQ(cell(0).own(), 0u) << "nothing is decided";
    // Envoy keeps what came.
    if (!http1) envoy.buffered.push_back(chunks.back());
    envoy.received.clear();
    EXPECT_EQ(stream.OnRequestTrailers(), abi::TrailersStatus::kStop);
    answers[0](ThreeTokens());
    EXPECT_EQ(cell(0).own(), 0u) << "on its own thread";
    RunOrders(stream);
    EXPECT_TRUE(envoy.continued);
    EXPECT_EQ(envoy.override_host, "10.0.0.1:8000");
    EXPECT_EQ(envoy.body(), kBody);
    EXPECT_EQ(cell(0).own(), 1u);
    answers[0](ThreeTokens());  // twice is once
    EXPECT_TRUE(TheFakeEnvoy().TakeOrders().empty());
    stream.OnComplete();
    questions.clear();
    answers.clear();
  }
}

TEST_F(StreamTokensTest, WithoutAnAnswerItIsDecidedByWhatElseIsKnown) {
  FakeStream envoy{.request_headers = Post(kBody.size())};
  Stream stream(filter_, &envoy);
  ASSERT_FALSE(SendHttp2(stream, envoy, {kBody}));
  answers.at(0)(nullptr);
  RunOrders(stream);
  EXPECT_TRUE(envoy.continued);
  EXPECT_EQ(envoy.override_host, "10.0.0.1:8000");
  EXPECT_EQ(questions.size(), 1u) << "it is asked once";
  stream.OnComplete();
}

TEST_F(StreamTokensTest, NobodyWaitsForAStreamThatIsGone) {
  {
    FakeStream envoy{.request_headers = Post(kBody.size())};
    Stream stream(filter_, &envoy);
    ASSERT_FALSE(SendHttp2(stream, envoy, {kBody}));
    EXPECT_GE(TheFakeEnvoy().live_schedulers(), 1u);
  }
  EXPECT_EQ(TheFakeEnvoy().live_schedulers(), 0u);
  answers.at(0)(ThreeTokens());
  EXPECT_TRUE(TheFakeEnvoy().TakeOrders().empty());
  // Another filter answered before.
  FakeStream envoy{.request_headers = Post(kBody.size())};
  Stream stream(filter_, &envoy);
  ASSERT_FALSE(SendHttp2(stream, envoy, {kBody}));
  answers.at(1)(ThreeTokens());
  envoy.response_headers = {{":status", "429"}};
  stream.OnResponseHeaders(true);
  RunOrders(stream);
  EXPECT_FALSE(envoy.continued);
  EXPECT_EQ(cell(0).own(), 0u);
  stream.OnComplete();
}

TEST_F(StreamTokensTest, WhatHasTokensIsNotAskedFor) {
  const std::string body = R"({"model":"m","prompt":[1,2,3,4]})";
  FakeStream envoy{.request_headers = Post(body.size())};
  Stream stream(filter_, &envoy);
  EXPECT_TRUE(SendHttp2(stream, envoy, {body}));
  EXPECT_TRUE(questions.empty());
  stream.OnComplete();
}

TEST_F(StreamTest, ASessionIsToldItsEndpointAndStaysThere) {
  Serve({{.name = "a"}, {.name = "b"}, {.name = "c"}, {.name = "d"}}, {}, {},
        tests::ConfigOf(tests::kSessionConfig));
  std::string destination;
  std::string token;
  for (int i = 0; i < 20; ++i) {
    HeaderList headers = {{":method", "GET"}, {":path", "/v1/models"}};
    if (i > 0) headers.emplace_back("x-session-token", token);
    FakeStream envoy{.request_headers = headers};
    Stream stream(filter_, &envoy);
    ASSERT_EQ(stream.OnRequestHeaders(true), abi::HeadersStatus::kContinue);
    if (i == 0) destination = envoy.override_host;
    ASSERT_EQ(envoy.override_host, destination);
    envoy.response_headers = {{":status", "200"}};
    stream.OnResponseHeaders(true);
    stream.OnComplete();
    if (i == 0) token = envoy.response_header("x-session-token");
    ASSERT_FALSE(token.empty());
    ASSERT_EQ(envoy.response_header("x-session-token"), token);
  }
}

TEST_F(StreamTest, ARefusalSaysWhoRefusedAndWhenToComeAgain) {
  Serve({{.name = "a", .waiting = 100}}, {}, {},
        tests::ConfigOf(
            "plugins: [{type: utilization-filter, parameters: {conditions: [{metric: waiting-queue, "
            "maxValue: 5}]}}]"));
  FakeStream envoy{.request_headers = {{":method", "GET"}, {":path", "/v1/models"}}};
  Stream stream(filter_, &envoy);
  EXPECT_EQ(stream.OnRequestHeaders(true), abi::HeadersStatus::kStop);
  ASSERT_TRUE(envoy.reply);
  EXPECT_EQ(envoy.reply->status, 429u);
  EXPECT_THAT(envoy.reply->headers,
              ElementsAre(Pair("x-llm-d-request-dropped-reason", "rejected-saturated"),
                          Pair("x-fairway-refused-by", "filters; plugin=utilization-filter"),
                          Pair("retry-after", testing::Not(testing::IsEmpty()))));
}

TEST_F(StreamTest, WhatIsPreferredOnlyIfAvailableIsRefusedElsewhere) {
  Serve({{.name = "a"}}, {}, {}, tests::ConfigOf("plugins: [{type: prefix-cache-scorer}]"));
  FakeStream wants{.request_headers = Post(kBody.size(), {{"prefer", "if-available"}})};
  Stream only(filter_, &wants);
  EXPECT_FALSE(SendHttp2(only, wants, {kBody}));
  ASSERT_TRUE(wants.reply);
  EXPECT_EQ(wants.reply->status, 412u);
}

TEST_F(StreamTest, ARequestWithoutBodyIsDecidedByLoad) {
  FakeStream envoy{.request_headers = {{":method", "GET"}, {":path", "/v1/models"}}};
  Stream stream(filter_, &envoy);
  EXPECT_EQ(stream.OnRequestHeaders(true), abi::HeadersStatus::kContinue);
  EXPECT_EQ(envoy.override_host, "10.0.0.1:8000");
  EXPECT_EQ(envoy.request_header("x-request-id").size(), 36u);  // it had none
}

TEST_F(StreamTest, AnUpgradeOrConnectIsDecidedAtItsHeaders) {
  const std::vector<HeaderList> kTunnels = {{{":method", "GET"},
                                             {":path", "/v1/realtime?model=m"},
                                             {"upgrade", "websocket"},
                                             {"connection", "Upgrade"}},
                                            {{":method", "POST"},
                                             {":path", "/v1/completions"},
                                             {"connection", "keep-alive, upgrade"},
                                             {"upgrade", "x"}},
                                            {{":method", "CONNECT"}, {":path", "/"}}};
  for (const HeaderList& headers : kTunnels) {
    FakeStream envoy{.request_headers = headers};
    Stream stream(filter_, &envoy);
    EXPECT_EQ(stream.OnRequestHeaders(false), abi::HeadersStatus::kContinue);
    EXPECT_EQ(envoy.override_host, "10.0.0.1:8000");
    EXPECT_EQ(cell(0).own(), 1u);
    envoy.received = {"frame"};
    EXPECT_EQ(stream.OnRequestBody(false), abi::BodyStatus::kContinue);
    EXPECT_EQ(envoy.body(), "frame");
    envoy.response_headers = {{":status", "101"}};
    stream.OnResponseHeaders(false);
    EXPECT_EQ(cell(0).own(), 1u);
    stream.OnComplete();  // somebody hung up
    EXPECT_EQ(cell(0).own(), 0u);
  }
  // Asked of another hop, or of none.
  FakeStream envoy{.request_headers = Post(kBody.size(), {{"upgrade", "websocket"}})};
  Stream stream(filter_, &envoy);
  EXPECT_EQ(stream.OnRequestHeaders(false), abi::HeadersStatus::kStop);
  EXPECT_THAT(Page(), testing::Not(HasSubstr("ClientClosedRequest")));
}

TEST_F(StreamTest, ABodyThatCannotBeReadIsRoutedByLoad) {
  Serve({{.name = "a"}}, {Model("m", api::Criticality::kCritical, {{"other", 1}})});
  const std::string gzip = "\x1f\x8b no JSON";
  for (const auto& [name, value] :
       HeaderList{{"content-encoding", "gzip"}, {"content-type", "x; charset=utf-16"}}) {
    FakeStream envoy{.request_headers = Post(gzip.size(), {{name, value}})};
    Stream stream(filter_, &envoy);
    ASSERT_TRUE(SendHttp1(stream, envoy, {gzip.substr(0, 4), gzip.substr(4)}));
    EXPECT_EQ(envoy.override_host, "10.0.0.1:8000");
    EXPECT_EQ(envoy.body(), gzip);
    // What can be read is no way round models and criticality.
    FakeStream claims{.request_headers = Post(kBody.size(), {{name, value}})};
    Stream plain(filter_, &claims);
    ASSERT_TRUE(SendHttp1(plain, claims, {kBody.substr(0, 4), kBody.substr(4)}));
    EXPECT_THAT(claims.body(), HasSubstr(R"("model":"other")"));
    const std::string unknown = R"({"model":"nobody","prompt":"x"})";
    FakeStream refused{.request_headers = Post(unknown.size(), {{name, value}})};
    Stream third(filter_, &refused);
    EXPECT_FALSE(SendHttp1(third, refused, {unknown}));
    EXPECT_EQ(refused.reply->status, 404u);
  }
  FakeStream envoy{.request_headers = Post(gzip.size(), {{"content-encoding", "identity"}})};
  Stream stream(filter_, &envoy);
  EXPECT_FALSE(SendHttp1(stream, envoy, {gzip}));
  EXPECT_EQ(envoy.reply->status, 400u);
}

TEST_F(StreamTest, ARequestWithoutAModelIsGivenTheOneOfItsHeader) {
  const std::string body = R"({"prompt":"hello"})";
  const HeaderList rewrite = {{"x-llm-d-model-name-rewrite", "m2"}};
  for (const bool http1 : {true, false}) {
    FakeStream envoy{.request_headers = Post(body.size(), rewrite)};
    Stream stream(filter_, &envoy);
    ASSERT_TRUE(http1 ? SendHttp1(stream, envoy, {body}) : SendHttp2(stream, envoy, {body}));
    EXPECT_EQ(envoy.body(), R"({"model":"m2","prompt":"hello"})");
    EXPECT_EQ(envoy.request_header("content-length"), std::to_string(envoy.body().size()));
  }
}

TEST_F(StreamTest, TheModelIsReplacedWhereverEnvoyHoldsTheBody) {
  const std::string want = R"({"model":"a-much-longer-name","prompt":"hello"})";
  const auto serve = [&] {
    Serve({{.name = "a"}}, {Model("m", api::Criticality::kCritical, {{"a-much-longer-name", 1}})});
  };
  for (const size_t cut : {size_t{0}, size_t{3}, size_t{12}, kBody.size() - 1}) {
    serve();
    FakeStream h1{.request_headers = Post(kBody.size())};
    Stream first(filter_, &h1);
    ASSERT_TRUE(SendHttp1(first, h1, {kBody.substr(0, cut), kBody.substr(cut)}));
    EXPECT_EQ(h1.body(), want);
    EXPECT_EQ(h1.request_header("content-length"), std::to_string(want.size()));
    FakeStream h2{.request_headers = Post(kBody.size())};
    Stream second(filter_, &h2);
    ASSERT_TRUE(SendHttp2(second, h2, {kBody.substr(0, cut), kBody.substr(cut)}));
    EXPECT_EQ(h2.body(), want);
    EXPECT_TRUE(h2.buffered.empty());  // what is received goes on behind it
  }
  serve();
  FakeStream collected{.request_headers = Post(kBody.size()), .received_is_buffer = true};
  Stream third(filter_, &collected);
  EXPECT_EQ(third.OnRequestHeaders(false), abi::HeadersStatus::kStop);
  collected.received = {kBody.substr(0, 9), kBody.substr(9)};
  EXPECT_EQ(third.OnRequestBody(true), abi::BodyStatus::kContinue);
  EXPECT_EQ(collected.body(), want);
}

TEST_F(StreamTest, ABodyThatEndsInTrailersIsDecidedThere) {
  Serve({{.name = "a"}}, {Model("m", api::Criticality::kCritical, {{"other", 1}})});
  FakeStream envoy{.request_headers = {{":method", "POST"}, {":path", "/v1/completions"}}};
  Stream stream(filter_, &envoy);
  EXPECT_EQ(stream.OnRequestHeaders(false), abi::HeadersStatus::kStop);
  envoy.received = {kBody};
  EXPECT_EQ(stream.OnRequestBody(false), abi::BodyStatus::kStopAndBuffer);
  envoy.buffered = {kBody};
  envoy.received.clear();
  EXPECT_EQ(stream.OnRequestTrailers(), abi::TrailersStatus::kContinue);
  EXPECT_EQ(envoy.body(), R"({"model":"other","prompt":"hello"})");
  EXPECT_EQ(envoy.request_header("content-length"), "");  // there was none
  EXPECT_EQ(envoy.override_host, "10.0.0.1:8000");
}

TEST_F(StreamTest, RefusalsAreSaidAsExtProcSaysThem) {
  Serve({{.name = "a", .waiting = 60, .kv_usage = 0.9f}},
        {Model("m", api::Criticality::kSheddable), Model("n", api::Criticality::kCritical)});
  struct Case {
    std::string body;
    uint32_t status;
    std::string text, details, reason;
  };
  const std::vector<Case> cases = {
      {R"({"model":"m","prompt":"x"})", 429,
       "inference error: ResourceExhausted - system saturated, sheddable request dropped",
       "ResourceExhausted", "rejected-saturated"},
      {R"({"model":"nn","prompt":"x"})", 404,
       "inference error: NotFound - model \"nn\" is not served here; did you mean \"n\"?", "NotFound", ""},
      {R"({"prompt":"x"})", 400, "inference error: BadRequest - model not found in request body",
       "BadRequest", ""},
      {R"({"model":)", 400, "inference error: BadRequest - error unmarshaling request bodyMap", "BadRequest",
       ""},
  };
  for (const Case& c : cases) {
    FakeStream envoy{.request_headers = Post(c.body.size())};
    Stream stream(filter_, &envoy);
    EXPECT_FALSE(SendHttp1(stream, envoy, {c.body}));
    ASSERT_TRUE(envoy.reply) << c.body;
    EXPECT_EQ(envoy.reply->status, c.status);
    EXPECT_THAT(envoy.reply->body, testing::StartsWith(c.text));
    EXPECT_EQ(envoy.reply->details, c.details);
    HeaderList headers;
    if (!c.reason.empty())
      headers = {{"x-llm-d-request-dropped-reason", c.reason},
                 {"x-fairway-refused-by", "room; plugin=capacity-filter"},
                 {"retry-after", "4"}};  // 60 requests of others, 62.5 ms each
    EXPECT_EQ(envoy.reply->headers, headers);
    EXPECT_EQ(envoy.override_host, "");
    stream.OnResponseHeaders(true);  // Envoy shows its local replies to filters
    stream.OnComplete();
  }
}

TEST_F(StreamTest, ABodyBeyondTheLimitIs413AndTheLimitOfEnvoyIsRaised) {
  filter_.config.max_body = 3 << 20;
  FakeStream envoy{.request_headers = Post(0)};
  Stream stream(filter_, &envoy);
  EXPECT_FALSE(SendHttp1(stream, envoy, std::vector<std::string>(4, std::string(1 << 20, ' '))));
  EXPECT_GT(envoy.buffer_limit, uint64_t{3} << 20);
  ASSERT_TRUE(envoy.reply);
  EXPECT_EQ(envoy.reply->status, 413u);
  EXPECT_EQ(envoy.reply->body,
            "inference error: RequestTooLarge - request body is larger than 3145728 bytes");
}

TEST_F(StreamTest, WhatTheClientSaidToThePickerDoesNotGoOn) {
  FakeStream envoy{.request_headers = Post(kBody.size(), {{"x-gateway-destination-endpoint", "6.6.6.6:6"},
                                                          {"x-prefiller-host-port", "6.6.6.6:6"},
                                                          {"x-llm-d-inference-fairness-id", "tenant-7"},
                                                          {"x-kept", "1"}})};
  Stream stream(filter_, &envoy);
  ASSERT_TRUE(SendHttp1(stream, envoy, {kBody}));
  EXPECT_EQ(envoy.request_header("x-gateway-destination-endpoint"), "10.0.0.1:8000");
  EXPECT_EQ(envoy.request_header("x-prefiller-host-port"), "");
  EXPECT_EQ(envoy.request_header("x-llm-d-inference-fairness-id"), "");
  EXPECT_EQ(envoy.request_header("x-kept"), "1");
  EXPECT_THAT(Page(), HasSubstr("tenant-7"));
}

TEST_F(StreamTest, AnObjectiveBelowZeroCanBeShed) {
  Serve({{.name = "a", .waiting = 60}});
  api::InferenceObjective objective;
  objective.meta.name = "batch";
  objective.pool.name = "pool";
  objective.priority = -1;
  pool_->manifests().objectives.push_back(objective);
  pool_->fleet().Apply(pool_->manifests());
  for (const bool batch : {true, false}) {
    FakeStream envoy{.request_headers = Post(kBody.size())};
    if (batch) envoy.request_headers.emplace_back("x-llm-d-inference-objective", "batch");
    Stream stream(filter_, &envoy);
    EXPECT_EQ(SendHttp1(stream, envoy, {kBody}), !batch);
    if (batch) {
      ASSERT_TRUE(envoy.reply);
      EXPECT_EQ(envoy.reply->status, 429u);
    }
  }
}

TEST_F(StreamTest, TheSubsetHintIsKept) {
  for (const bool list : {true, false}) {
    FakeStream envoy{.request_headers = Post(kBody.size())};
    if (list) {
      envoy.subset_hint = {"10.0.0.3:8000"};
    } else {
      envoy.subset_hint_text = "10.0.0.3:8000";
    }
    Stream stream(filter_, &envoy);
    ASSERT_TRUE(SendHttp1(stream, envoy, {kBody}));
    EXPECT_EQ(envoy.override_host, "10.0.0.3:8000");
  }
  FakeStream none{.request_headers = Post(kBody.size()), .subset_hint = std::vector<std::string>{}};
  Stream stream(filter_, &none);
  EXPECT_FALSE(SendHttp1(stream, none, {kBody}));
  ASSERT_TRUE(none.reply);
  EXPECT_EQ(none.reply->status, 503u);
}

TEST_F(StreamTest, TheRouteNamesThePool) {
  const RouteConfig route{.pool_key = "default/nowhere"};
  FakeStream envoy{.request_headers = Post(kBody.size()), .route_config = &route};
  Stream stream(filter_, &envoy);
  EXPECT_FALSE(SendHttp1(stream, envoy, {kBody}));
  ASSERT_TRUE(envoy.reply);
  EXPECT_EQ(envoy.reply->status, 503u);
  const RouteConfig right{.pool_key = "default/pool"};
  FakeStream other{.request_headers = Post(kBody.size()), .route_config = &right};
  Stream second(filter_, &other);
  EXPECT_TRUE(SendHttp1(second, other, {kBody}));
}

// ---- Waiting.

TEST_F(StreamTest, RequestsWaitForAPoolsFirstEndpoints) {
  bool settled = false;
  Serve({{.name = "a"}}, {Model("m", api::Criticality::kCritical, {{"other", 1}})},
        [&](std::string_view) { return settled; });
  FakeStream envoy{.request_headers = Post(kBody.size())};
  Stream stream(filter_, &envoy);
  EXPECT_FALSE(SendHttp1(stream, envoy, {kBody}));
  EXPECT_FALSE(envoy.reply);
  EXPECT_EQ(filter_.picker->waiters().size(), 1u);
  filter_.picker->waiters().Wake();
  EXPECT_EQ(TheFakeEnvoy().commits(), 1u);
  stream.OnScheduled(kEndpointsEvent);  // for nothing: still none
  EXPECT_FALSE(envoy.continued);
  settled = true;
  filter_.picker->waiters().Wake();
  stream.OnScheduled(kEndpointsEvent);
  EXPECT_TRUE(envoy.continued);
  EXPECT_EQ(envoy.override_host, "10.0.0.1:8000");
  EXPECT_EQ(envoy.body(), R"({"model":"other","prompt":"hello"})");
  EXPECT_EQ(filter_.picker->waiters().size(), 0u);
  EXPECT_EQ(envoy.counters[3], 1u);
  stream.OnScheduled(kEndpointsEvent);  // a late one
}

// Workers hear of a cluster's hosts one after the other, and the picker may know before them.
TEST_F(StreamTest, AtTheStartRequestsWaitForTheirWorkersHosts) {
  Serve({{.name = "a"}}, {}, [](std::string_view) { return true; });
  FakeStream envoy{.request_headers = Post(kBody.size()), .cluster_hosts = 0};
  Stream stream(filter_, &envoy);
  EXPECT_FALSE(SendHttp1(stream, envoy, {kBody}));
  EXPECT_FALSE(envoy.reply);
  envoy.cluster_hosts = 1;
  stream.OnScheduled(kEndpointsEvent);
  EXPECT_TRUE(envoy.continued);
  // Later it is not asked for.
  filter_.picker->Settle();
  clock_.Advance(2 * kSecond);
  FakeStream later{.request_headers = Post(kBody.size()), .cluster_hosts = 0};
  Stream second(filter_, &later);
  EXPECT_TRUE(SendHttp1(second, later, {kBody}));
}

TEST_F(StreamTest, WhenTheStartIsOverNobodyWaits) {
  Serve({}, {}, [](std::string_view) { return false; });
  FakeStream waiting{.request_headers = Post(kBody.size())};
  Stream first(filter_, &waiting);
  EXPECT_FALSE(SendHttp1(first, waiting, {kBody}));
  EXPECT_FALSE(waiting.reply);
  filter_.picker->Settle();
  EXPECT_EQ(TheFakeEnvoy().commits(), 1u);
  first.OnScheduled(kEndpointsEvent);
  ASSERT_TRUE(waiting.reply);
  EXPECT_EQ(waiting.reply->status, 503u);
  EXPECT_FALSE(waiting.continued);
}

// The API server has been away since the start: as if there were no picker, so the route's failure mode says.
TEST_F(StreamTest, BeforeAnyPoolIsKnownRequestsGoAsTheRouteFails) {
  Serve({});
  pool_->fleet().Apply({});
  for (const bool open : {true, false}) {
    filter_.config.failure_mode = open ? api::FailureMode::kFailOpen : api::FailureMode::kFailClose;
    FakeStream envoy{.request_headers =
                         Post(kBody.size(), {{"x-gateway-destination-endpoint", "10.6.6.6:1"}})};
    Stream stream(filter_, &envoy);
    EXPECT_EQ(SendHttp1(stream, envoy, {kBody}), open);
    EXPECT_EQ(envoy.reply.has_value(), !open);
    EXPECT_EQ(envoy.counters[2], open ? 1u : 0u);
    if (open) {
      EXPECT_EQ(envoy.request_header("x-gateway-destination-endpoint"), "");
      EXPECT_EQ(envoy.body(), kBody);
    } else {
      EXPECT_EQ(envoy.reply->status, 503u);
    }
    stream.OnComplete();
  }
  // Once one was known it is another thing that there is none.
  filter_.config.failure_mode = api::FailureMode::kFailOpen;
  Serve({{.name = "a"}});
  EXPECT_TRUE(filter_.picker->KnewAPool());
  pool_->fleet().Apply({});
  {
    FakeStream late{.request_headers = Post(kBody.size())};
    Stream stream(filter_, &late);
    EXPECT_FALSE(SendHttp1(stream, late, {kBody}));
    EXPECT_TRUE(late.reply && late.reply->status == 503u);
  }
  Serve({{.name = "a"}});  // whose ledger is looked at in the end
}

TEST_F(StreamTest, WaitingIsBoundedAndAClientThatLeavesIsForgotten) {
  filter_.config.max_waiting = 1;
  Serve({}, {}, [](std::string_view) { return false; });
  FakeStream first_envoy{.request_headers = Post(kBody.size())};
  auto first = std::make_unique<Stream>(filter_, &first_envoy);
  EXPECT_FALSE(SendHttp1(*first, first_envoy, {kBody}));
  EXPECT_FALSE(first_envoy.reply);
  FakeStream second_envoy{.request_headers = Post(kBody.size())};
  Stream second(filter_, &second_envoy);
  EXPECT_FALSE(SendHttp1(second, second_envoy, {kBody}));
  ASSERT_TRUE(second_envoy.reply);
  EXPECT_EQ(second_envoy.reply->status, 503u);
  first->OnComplete();
  EXPECT_EQ(TheFakeEnvoy().live_schedulers(), 0u);
  first.reset();
  filter_.picker->waiters().Wake();  // to nobody
}

// ---- Responses.

TEST_F(StreamTest, ChargedIsWhoServed) {
  FakeStream envoy{.request_headers = Post(kBody.size())};
  Stream stream(filter_, &envoy);
  ASSERT_TRUE(SendHttp1(stream, envoy, {kBody}));
  envoy.response_headers = {{":status", "200"}};
  envoy.upstream_address = "10.0.0.2:8000";
  stream.OnResponseHeaders(false);
  EXPECT_EQ(cell(0).own(), 0u);
  EXPECT_EQ(cell(1).own(), 1u);
  stream.OnComplete();  // in the middle of the answer
  EXPECT_EQ(cell(1).own(), 0u);
  EXPECT_THAT(Page(), HasSubstr("ClientClosedRequest"));
}

TEST_F(StreamTest, ReadsUsageAndPutsTheNameBackOnlyWhenAskedTo) {
  const std::string answer =
      R"({"model":"other","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}})";
  for (const bool full : {false, true}) {
    Serve({{.name = "a"}}, {Model("m", api::Criticality::kCritical, {{"other", 1}})});
    filter_.config.response_mode = full ? ResponseMode::kFull : ResponseMode::kHeaders;
    FakeStream envoy{.request_headers = Post(kBody.size())};
    Stream stream(filter_, &envoy);
    ASSERT_TRUE(SendHttp1(stream, envoy, {kBody}));
    envoy.response_headers = {{":status", "200"},
                              {"content-type", "application/json"},
                              {"content-length", std::to_string(answer.size())}};
    stream.OnResponseHeaders(false);
    envoy.response_received = {answer.substr(0, 30), answer.substr(30)};
    stream.OnResponseBody(false);
    std::string sent;
    for (const auto& piece : envoy.response_received) sent += piece;
    envoy.response_received.clear();
    stream.OnResponseBody(true);
    stream.OnComplete();
    EXPECT_EQ(envoy.response_header("content-length"), full ? "" : std::to_string(answer.size()));
    EXPECT_EQ(sent.find(R"("model":"m")") != std::string::npos, full) << sent;
    uint64_t tokens = 0;
    const std::string page = Page();
    for (const std::string_view line : base::Split(page, '\n')) {
      if (line.starts_with("llm_d_epp_request_output_tokens_sum{") ||
          line.starts_with("llm_d_router_epp_request_output_tokens_sum{"))
        tokens += base::ParseInteger<uint64_t>(line.substr(line.rfind(' ') + 1)).value_or(0);
    }
    EXPECT_EQ(tokens > 0, full) << page;
  }
}

TEST_F(StreamTest, AServerIsAskedForItsLoadWhereThatIsWanted) {
  constexpr char kLoad[] = "TEXT named_metrics.num_requests_waiting=9,named_metrics.kv_cache_usage_perc=0.5";
  for (const bool wanted : {false, true}) {
    for (const bool client_asks : {false, true}) {
      ask_load_ = wanted;
      Serve({{.name = "a"}});
      HeaderList more;
      if (client_asks) more = {{"endpoint-load-metrics-format", "JSON"}};
      FakeStream envoy{.request_headers = Post(kBody.size(), more)};
      Stream stream(filter_, &envoy);
      ASSERT_TRUE(SendHttp1(stream, envoy, {kBody}));
      const bool asks = wanted && !client_asks;
      EXPECT_EQ(envoy.request_header("endpoint-load-metrics-format"), client_asks ? "JSON"
                                                                      : asks      ? "TEXT"
                                                                                  : "");
      envoy.response_headers = {{":status", "200"}, {"endpoint-load-metrics", kLoad}};
      stream.OnResponseHeaders(true);
      stream.OnComplete();
      EXPECT_EQ(cell(0).waiting(), asks ? 9u : 0u);
      EXPECT_EQ(envoy.response_header("endpoint-load-metrics"), asks ? "" : kLoad)
          << "what we asked for is for us, and what the client asked for is not";
    }
  }
}

TEST_F(StreamTest, AnAnswerBeforeTheBodyIsCompleteEndsTheWait) {
  FakeStream envoy{.request_headers = Post(100)};
  Stream stream(filter_, &envoy);
  EXPECT_EQ(stream.OnRequestHeaders(false), abi::HeadersStatus::kStop);
  envoy.received = {"{"};
  EXPECT_EQ(stream.OnRequestBody(false), abi::BodyStatus::kStopAndBuffer);
  envoy.response_headers = {{":status", "408"}};
  stream.OnResponseHeaders(true);  // another filter's
  EXPECT_EQ(stream.OnRequestBody(true), abi::BodyStatus::kContinue);
  EXPECT_EQ(envoy.override_host, "");
  stream.OnComplete();
}

// ---- Hosts by the module's own policy.

TEST_F(StreamTest, WithTheModulesPolicyEnvoyIsToldNothingAndAsks) {
  filter_.config.host_selection = HostSelection::kPolicy;
  FakeStream envoy{.request_headers = Post(kBody.size())};
  Stream stream(filter_, &envoy);
  ASSERT_TRUE(SendHttp1(stream, envoy, {kBody}));
  EXPECT_EQ(envoy.override_host, "");
  EXPECT_TRUE(envoy.metadata.empty());
  EXPECT_EQ(envoy.request_header("x-gateway-destination-endpoint"), "10.0.0.1:8000");
  Choice* choice = Choices::OfThisThread().Find("id-1");
  ASSERT_NE(choice, nullptr);
  EXPECT_EQ(choice->Next(), "10.0.0.1:8000");
  EXPECT_EQ(choice->Next(), "10.0.0.2:8000");  // a retry
  EXPECT_EQ(choice->Next(), "10.0.0.3:8000");  // another one
  envoy.response_headers = {{":status", "200"}};
  envoy.upstream_address = "10.0.0.3:8000";
  stream.OnResponseHeaders(false);
  EXPECT_EQ(cell(0).own(), 0u);
  EXPECT_EQ(cell(2).own(), 1u);
  stream.OnResponseBody(true);
  stream.OnComplete();
  EXPECT_EQ(Choices::OfThisThread().size(), 0u);
  EXPECT_FALSE(filter_.policy_missing);
}

TEST_F(StreamTest, WithoutTheHeaderTheRequestGoesAsItCame) {
  filter_.config.host_selection = HostSelection::kPolicy;
  filter_.config.destination_header = false;
  FakeStream envoy{.request_headers =
                       Post(kBody.size(), {{"x-gateway-destination-endpoint", "6.6.6.6:666"}})};
  Stream stream(filter_, &envoy);
  ASSERT_TRUE(SendHttp1(stream, envoy, {kBody}));
  EXPECT_EQ(envoy.request_headers, Post(kBody.size()));  // not what the client made up either
  Choice* choice = Choices::OfThisThread().Find("id-1");
  ASSERT_NE(choice, nullptr);
  EXPECT_EQ(choice->Next(), "10.0.0.1:8000");
  // Another one with this id: the header is what tells them apart.
  FakeStream other{.request_headers = Post(kBody.size())};
  Stream second(filter_, &other);
  ASSERT_TRUE(SendHttp1(second, other, {kBody}));
  EXPECT_EQ(other.request_header("x-gateway-destination-endpoint"), "10.0.0.1:8000");
  EXPECT_NE(Choices::OfThisThread().Find("id-1", "10.0.0.1:8000"), nullptr);
  // Where the cluster has another policy Envoy is told both ways, and so is the model server.
  filter_.policy_missing = true;
  FakeStream third{
      .request_headers = {{":method", "GET"}, {":path", "/v1/models"}, {"x-request-id", "id-3"}}};
  Stream told(filter_, &third);
  EXPECT_EQ(told.OnRequestHeaders(true), abi::HeadersStatus::kContinue);
  EXPECT_EQ(third.request_header("x-gateway-destination-endpoint"), third.override_host);
  for (Stream* each : {&stream, &second, &told}) each->OnComplete();
}

TEST_F(StreamTest, TheLastFilterSaysWhoIsNext) {
  filter_.config.host_selection = HostSelection::kPolicy;
  FakeStream envoy{.request_headers = Post(kBody.size())};
  Stream stream(filter_, &envoy);
  ASSERT_TRUE(SendHttp1(stream, envoy, {kBody}));
  EXPECT_EQ(Choices::OfThisThread().TakeExpected(), nullptr);  // other filters may come, and hold it
  filter_.config.last_filter = true;
  FakeStream other{
      .request_headers = {{":method", "GET"}, {":path", "/v1/models"}, {"x-request-id", "id-2"}}};
  Stream second(filter_, &other);
  EXPECT_EQ(second.OnRequestHeaders(true), abi::HeadersStatus::kContinue);
  Choice* next = Choices::OfThisThread().TakeExpected();
  ASSERT_NE(next, nullptr);
  EXPECT_EQ(next, Choices::OfThisThread().Find("id-2"));
  filter_.policy_missing = true;  // Envoy goes by override host, and asks nobody
  FakeStream third{
      .request_headers = {{":method", "GET"}, {":path", "/v1/models"}, {"x-request-id", "id-3"}}};
  Stream told(filter_, &third);
  EXPECT_EQ(told.OnRequestHeaders(true), abi::HeadersStatus::kContinue);
  EXPECT_EQ(Choices::OfThisThread().TakeExpected(), nullptr);
  for (Stream* each : {&stream, &second, &told}) each->OnComplete();
}

TEST_F(StreamTest, ARequestThatHadNoIdIsFoundByTheOneItGets) {
  filter_.config.host_selection = HostSelection::kPolicy;
  FakeStream envoy{.request_headers = {{":method", "GET"}, {":path", "/v1/models"}}};
  auto stream = std::make_unique<Stream>(filter_, &envoy);
  EXPECT_EQ(stream->OnRequestHeaders(true), abi::HeadersStatus::kContinue);
  Choice* choice = Choices::OfThisThread().Find(envoy.request_header("x-request-id"));
  ASSERT_NE(choice, nullptr);
  EXPECT_EQ(choice->Next(), "10.0.0.1:8000");
  // The first choice answers: nobody needs to ask Envoy who it was.
  envoy.response_headers = {{":status", "200"}};
  stream->OnResponseHeaders(false);
  EXPECT_EQ(cell(0).own(), 1u);
  stream.reset();  // Envoy ends
  EXPECT_EQ(Choices::OfThisThread().size(), 0u);
}

TEST_F(StreamTest, AClusterWithAnotherPolicyIsNoticedAndServedByOverrideHost) {
  filter_.config.host_selection = HostSelection::kPolicy;
  for (const bool first : {true, false}) {
    FakeStream envoy{.request_headers = Post(kBody.size())};
    Stream stream(filter_, &envoy);
    ASSERT_TRUE(SendHttp1(stream, envoy, {kBody}));
    EXPECT_EQ(envoy.override_host, first ? "" : "10.0.0.1:8000");
    EXPECT_EQ(envoy.metadata.size(), first ? 0u : 1u);
    Choice* choice = Choices::OfThisThread().Find("id-1");
    ASSERT_NE(choice, nullptr);
    EXPECT_EQ(choice->asked(), first ? 0u : 1u);
    if (!first) {
      EXPECT_EQ(choice->Next(), "10.0.0.2:8000");  // of another cluster, whose policy is ours: a retry
    }
    envoy.response_headers = {{":status", "200"}};
    envoy.upstream_address = "10.0.0.2:8000";
    stream.OnResponseHeaders(false);
    EXPECT_EQ(cell(1).own(), 1u);
    EXPECT_TRUE(filter_.policy_missing);
    stream.OnComplete();
  }
}

TEST_F(StreamTest, RequestsWithOneIdAreChargedToWhoServedThem) {
  filter_.config.host_selection = HostSelection::kPolicy;
  FakeStream first_envoy{.request_headers = Post(kBody.size())};
  Stream first(filter_, &first_envoy);
  ASSERT_TRUE(SendHttp1(first, first_envoy, {kBody}));
  FakeStream second_envoy{.request_headers = Post(kBody.size())};
  Stream second(filter_, &second_envoy);
  ASSERT_TRUE(SendHttp1(second, second_envoy, {kBody}));
  // Envoy asked for the second one twice, and for the first one by the same id not at all.
  Choice* choice = Choices::OfThisThread().Find("id-1");
  ASSERT_NE(choice, nullptr);
  choice->Next();
  choice->Next();
  for (auto* stream : {&first, &second}) {
    FakeStream& envoy = stream == &first ? first_envoy : second_envoy;
    envoy.response_headers = {{":status", "200"}};
    envoy.upstream_address = stream == &first ? "10.0.0.3:8000" : "10.0.0.2:8000";
    stream->OnResponseHeaders(false);
  }
  EXPECT_EQ(Choices::OfThisThread().size(), 0u);  // nothing is tried again once there is an answer
  EXPECT_FALSE(filter_.policy_missing);
  EXPECT_EQ(cell(0).own(), 0u);
  EXPECT_EQ(cell(1).own(), 1u);
  EXPECT_EQ(cell(2).own(), 1u);
  first.OnComplete();
  second.OnComplete();
}

TEST_F(StreamTest, AnAnswerOfEnvoysOwnSaysNothingOfThePolicy) {
  filter_.config.host_selection = HostSelection::kPolicy;
  FakeStream envoy{.request_headers = Post(kBody.size())};
  Stream stream(filter_, &envoy);
  ASSERT_TRUE(SendHttp1(stream, envoy, {kBody}));
  envoy.response_headers = {{":status", "503"}};  // no such cluster
  stream.OnResponseHeaders(true);
  stream.OnComplete();
  EXPECT_FALSE(filter_.policy_missing);
}

TEST_F(StreamTest, ThreeUnavailableInARowAreARefusalButNotWhatEnvoySaysByItself) {
  const auto unavailable = [this](HeaderList more, const std::string& address) {
    for (int i = 0; i < 3; ++i) {
      FakeStream envoy{.request_headers = Post(kBody.size())};
      Stream stream(filter_, &envoy);
      ASSERT_TRUE(SendHttp1(stream, envoy, {kBody}));
      envoy.upstream_address = address;
      envoy.response_headers = {{":status", "503"}};
      envoy.response_headers.insert(envoy.response_headers.end(), more.begin(), more.end());
      stream.OnResponseHeaders(true);
      stream.OnComplete();
    }
  };
  unavailable({}, "");  // nobody was asked
  unavailable({{"x-envoy-overloaded", "true"}}, "10.0.0.1:8000");
  EXPECT_FALSE(cell(0).refusing());
  unavailable({}, "10.0.0.1:8000");
  EXPECT_TRUE(cell(0).refusing());
  EXPECT_FALSE(cell(1).refusing());
}

// ---- Memory.

TEST_F(StreamTest, LeavesNothingBehindWhereverItEnds) {
  filter_.config.host_selection = HostSelection::kPolicy;
  {
    FakeStream envoy{.request_headers = Post(kBody.size())};
    Stream collecting(filter_, &envoy);
    EXPECT_EQ(collecting.OnRequestHeaders(false), abi::HeadersStatus::kStop);
  }
  {
    FakeStream envoy{.request_headers = Post(kBody.size())};
    Stream decided(filter_, &envoy);
    ASSERT_TRUE(SendHttp2(decided, envoy, {kBody}));
    EXPECT_EQ(Choices::OfThisThread().size(), 1u);
  }
  EXPECT_EQ(Choices::OfThisThread().size(), 0u);
  EXPECT_EQ(cell(0).own(), 0u);
  Serve({}, {}, [](std::string_view) { return false; });
  {
    FakeStream envoy{.request_headers = Post(kBody.size())};
    Stream waiting(filter_, &envoy);
    EXPECT_FALSE(SendHttp2(waiting, envoy, {kBody}));
    EXPECT_EQ(TheFakeEnvoy().live_schedulers(), 2u);  // that of its wait, and the one that it lends
  }
  EXPECT_EQ(filter_.picker->waiters().size(), 0u);
}

// ---- Bodies that stall, and all of them together.

TEST_F(StreamTest, AStalledBodyIsGivenUp) {
  constexpr base::Nanos kWait = 30 * kSecond;
  FakeStream first_envoy{.request_headers = Post(100)};
  FakeStream second_envoy{.request_headers = Post(100)};
  FakeStream done_envoy{.request_headers = Post(kBody.size())};
  auto first = std::make_unique<Stream>(filter_, &first_envoy);
  Stream second(filter_, &second_envoy);
  Stream done(filter_, &done_envoy);
  EXPECT_EQ(first->OnRequestHeaders(false), abi::HeadersStatus::kStop);
  EXPECT_EQ(second.OnRequestHeaders(false), abi::HeadersStatus::kStop);
  ASSERT_TRUE(SendHttp1(done, done_envoy, {kBody}));
  EXPECT_EQ(TheFakeEnvoy().live_schedulers(), 1u) << "one lends its own for all";

  // What the picker's loop does in any case, and what Envoy does with what was ordered.
  const auto pass = [&](base::Nanos time) {
    clock_.Advance(time);
    filter_.picker->RingForBodies(clock_.Now());
    for (int hop = 0; hop < 2; ++hop) {
      for (const auto& [envoy, event] : TheFakeEnvoy().TakeOrders()) {
        if (envoy == &first_envoy && first != nullptr) first->OnScheduled(event);
        if (envoy == &second_envoy) second.OnScheduled(event);
        if (envoy == &done_envoy) done.OnScheduled(event);
      }
    }
  };
  pass(kWait - kSecond);
  second_envoy.received = {"{"};
  EXPECT_EQ(second.OnRequestBody(false), abi::BodyStatus::kStopAndBuffer);
  pass(2 * kSecond);
  ASSERT_TRUE(first_envoy.reply);
  EXPECT_EQ(first_envoy.reply->status, 408u);
  EXPECT_EQ(first_envoy.reply->body,
            "inference error: RequestTimeout - the request's body did not come in time");
  EXPECT_EQ(first_envoy.counters[4], 1u);
  EXPECT_THAT(Page(), HasSubstr("error_code=\"RequestTimeout\"} 1\n"));
  EXPECT_FALSE(second_envoy.reply) << "a byte came";
  EXPECT_FALSE(done_envoy.reply);
  first->OnComplete();
  first.reset();
  EXPECT_EQ(TheFakeEnvoy().live_schedulers(), 1u) << "another one lends its own now";
  second_envoy.received = {"\"x\":"};
  EXPECT_EQ(second.OnRequestBody(false), abi::BodyStatus::kStopAndBuffer);
  pass(kWait);
  ASSERT_TRUE(second_envoy.reply);
  EXPECT_EQ(second_envoy.reply->status, 408u);
  EXPECT_EQ(cell(0).own(), 1u);
}

TEST_F(StreamTest, ABodyThatDripsIsGivenUpToo) {
  FakeStream envoy{.request_headers = Post(1000)};
  Stream stream(filter_, &envoy);
  EXPECT_EQ(stream.OnRequestHeaders(false), abi::HeadersStatus::kStop);
  int drops = 0;
  for (; drops < 100 && !envoy.reply; ++drops) {
    envoy.received = {"x"};
    EXPECT_EQ(stream.OnRequestBody(false), abi::BodyStatus::kStopAndBuffer);
    clock_.Advance(29 * kSecond);
    filter_.picker->RingForBodies(clock_.Now());
    for (int hop = 0; hop < 2; ++hop) {
      for (const auto& [to, event] : TheFakeEnvoy().TakeOrders()) stream.OnScheduled(event);
    }
  }
  EXPECT_EQ(drops, 11);  // 300 s
  ASSERT_TRUE(envoy.reply);
  EXPECT_EQ(envoy.reply->status, 408u);
}

// A body that is there waits for endpoints, not for its client.
TEST_F(StreamTest, ABodyThatIsThereIsNotOverdue) {
  Serve({}, {}, [](std::string_view) { return false; });
  FakeStream envoy{.request_headers = Post(kBody.size())};
  Stream stream(filter_, &envoy);
  EXPECT_FALSE(SendHttp2(stream, envoy, {kBody}));
  clock_.Advance(1000 * kSecond);
  filter_.picker->RingForBodies(clock_.Now());
  for (int hop = 0; hop < 2; ++hop) {
    for (const auto& [to, event] : TheFakeEnvoy().TakeOrders()) stream.OnScheduled(event);
  }
  EXPECT_FALSE(envoy.reply);
}

TEST_F(StreamTest, WhenBodiesHoldTooMuchTheLongestGoes) {
  filter_.config.max_buffered = 1000;
  FakeStream large_envoy{.request_headers = Post(900)};
  FakeStream small_envoy{.request_headers = Post(900)};
  Stream large(filter_, &large_envoy);
  Stream small(filter_, &small_envoy);
  const auto give = [](Stream& stream, FakeStream& envoy, size_t size) {
    envoy.received = {std::string(size, ' ')};
    return stream.OnRequestBody(false);
  };
  EXPECT_EQ(large.OnRequestHeaders(false), abi::HeadersStatus::kStop);
  EXPECT_EQ(small.OnRequestHeaders(false), abi::HeadersStatus::kStop);
  give(large, large_envoy, 800);
  give(small, small_envoy, 300);  // together too much: not the one that came, the longest
  EXPECT_FALSE(small_envoy.reply);
  give(small, small_envoy, 300);  // its end is ordered: what it holds does not count any more
  auto orders = TheFakeEnvoy().TakeOrders();
  ASSERT_EQ(orders.size(), 1u);
  EXPECT_EQ(orders[0].first, &large_envoy);
  large.OnScheduled(orders[0].second);
  ASSERT_TRUE(large_envoy.reply);
  EXPECT_EQ(large_envoy.reply->status, 503u);
  EXPECT_EQ(large_envoy.counters[5], 1u);
  give(small, small_envoy, 500);  // now the longest itself
  ASSERT_TRUE(small_envoy.reply);
  EXPECT_EQ(small_envoy.reply->status, 503u);
  EXPECT_THAT(TheFakeEnvoy().TakeOrders(), testing::IsEmpty());
  // Nothing is left of them in the sum.
  FakeStream next_envoy{.request_headers = Post(kBody.size())};
  Stream next(filter_, &next_envoy);
  EXPECT_TRUE(SendHttp1(next, next_envoy, {std::string(900, ' ') + kBody}));
}

// What a request needs until its decision is used by one after the other.
TEST_F(StreamTest, RequestsBehindEachOtherAndSideBySideDoNotMix) {
  std::vector<std::unique_ptr<FakeStream>> envoys;
  std::vector<std::unique_ptr<Stream>> streams;
  const auto body = [](size_t i) {
    return R"({"model":"m)" + std::to_string(i % 7) + R"(","prompt":")" + std::string(i + 1, 'x') + R"("})";
  };
  for (int turn = 0; turn < 2; ++turn) {
    for (size_t i = 0; i < 100; ++i) {  // more than are kept
      envoys.push_back(std::make_unique<FakeStream>(FakeStream{.request_headers = Post(body(i).size())}));
      streams.push_back(std::make_unique<Stream>(filter_, envoys.back().get()));
      EXPECT_EQ(streams.back()->OnRequestHeaders(false), abi::HeadersStatus::kStop);
      envoys.back()->received = {body(i).substr(0, 12)};
      EXPECT_EQ(streams.back()->OnRequestBody(false), abi::BodyStatus::kStopAndBuffer);
    }
    for (size_t i = 0; i < 100; ++i) {
      envoys[i]->received = {i % 10 == 9 ? "x" : body(i).substr(12)};  // some are no JSON
      const auto status = streams[i]->OnRequestBody(true);
      EXPECT_EQ(status, i % 10 == 9 ? abi::BodyStatus::kStopAndBuffer : abi::BodyStatus::kContinue) << i;
      EXPECT_EQ(envoys[i]->reply.has_value(), i % 10 == 9) << i;
    }
    for (auto& stream : streams) stream->OnComplete();
    streams.clear();
    envoys.clear();
    FakeStream envoy{.request_headers = {{":method", "GET"}, {":path", "/v1/models"}}};
    Stream without_body(filter_, &envoy);
    EXPECT_EQ(without_body.OnRequestHeaders(true), abi::HeadersStatus::kContinue);
    without_body.OnComplete();
  }
  const auto counted = [page = Page()](const std::string& model, int requests) {
    const std::string line = "llm_d_epp_request_total{model_name=\"" + model + "\",target_model_name=\"" +
                             model + "\",fairness_id=\"default-flow\",priority=\"0\"} " +
                             std::to_string(requests) + "\n";
    return page.find(line) != std::string::npos;
  };
  EXPECT_TRUE(counted("m0", 28));
  EXPECT_TRUE(counted("", 2));
}

// ---- Faults.

TEST_F(StreamTest, AFaultLetsTheRequestGoOrAnswersIt) {
  for (const bool open : {true, false}) {
    filter_.config.failure_mode = open ? api::FailureMode::kFailOpen : api::FailureMode::kFailClose;
    FakeStream envoy{.request_headers = Post(kBody.size())};
    Stream stream(filter_, &envoy);
    EXPECT_EQ(stream.OnRequestHeaders(false), abi::HeadersStatus::kStop);
    envoy.received = {kBody};
    EXPECT_EQ(stream.OnRequestBody(false), abi::BodyStatus::kStopAndBuffer);
    EXPECT_EQ(stream.OnFault("thrown"), open);
    EXPECT_EQ(envoy.counters[1], 1u);
    EXPECT_EQ(envoy.counters[2], open ? 1u : 0u);
    EXPECT_EQ(envoy.reply.has_value(), !open);
    if (!open) {
      EXPECT_EQ(envoy.reply->status, 500u);
    }
    EXPECT_EQ(stream.OnRequestBody(true), abi::BodyStatus::kContinue);  // nothing more is done with it
    envoy.response_headers = {{":status", "200"}};
    stream.OnResponseHeaders(false);
    stream.OnResponseBody(true);
    stream.OnComplete();
  }
}

TEST_F(StreamTest, AFaultWhileAResponseIsReadEndsTheReading) {
  filter_.config.response_mode = ResponseMode::kFull;
  FakeStream envoy{.request_headers = Post(kBody.size())};
  Stream stream(filter_, &envoy);
  ASSERT_TRUE(SendHttp2(stream, envoy, {kBody}));
  envoy.response_headers = {{":status", "200"}};
  stream.OnResponseHeaders(false);
  envoy.response_received = {R"({"usage":)"};
  stream.OnResponseBody(false);
  EXPECT_TRUE(stream.OnFault("thrown"));
  EXPECT_EQ(cell(0).own(), 0u);
  stream.OnResponseBody(true);
  stream.OnComplete();
}

TEST_F(StreamTest, AThreadThatIsNoWorkerIsAFault) {
  FakeStream envoy{.request_headers = Post(1), .worker = 17};
  Stream stream(filter_, &envoy);
  EXPECT_ANY_THROW(stream.OnRequestHeaders(false));
  EXPECT_TRUE(stream.OnFault("it"));
  stream.OnComplete();
}

// GenerateRequest{text: "hi", stream: true} in its frame.
const std::string kGrpcBody("\0\0\0\0\x06\x1a\x02hi\x28\x01", 11);
const HeaderList kGrpc = {{":path", "/vllm.grpc.engine.VllmEngine/Generate"},
                          {"content-type", "application/grpc"}};
const char* const kGrpcConfig =
    "plugins: [{type: queue-scorer}]\nrequestHandler: {parsers: [{pluginRef: vllmgrpc-parser}]}\n";

HeaderList GrpcPost() {
  HeaderList headers = {{":method", "POST"}, {"x-request-id", "id-1"}};
  headers.insert(headers.end(), kGrpc.begin(), kGrpc.end());
  return headers;
}

TEST_F(StreamTest, GrpcGoesOnAsItCameAndIsRefusedInItsOwnWords) {
  Serve({{.name = "a"}}, {}, {}, tests::ConfigOf(kGrpcConfig));
  {
    FakeStream envoy{.request_headers = GrpcPost()};
    Stream stream(filter_, &envoy);
    ASSERT_TRUE(SendHttp2(stream, envoy, {kGrpcBody.substr(0, 6), kGrpcBody.substr(6)}));
    EXPECT_EQ(cell(0).own(), 1u);
    envoy.response_headers = {{":status", "200"}, {"content-type", "application/grpc"}};
    stream.OnResponseHeaders(false);
    envoy.response_trailers = {{"grpc-status", "0"}};
    stream.OnResponseTrailers();
    EXPECT_EQ(cell(0).own(), 0u);
    stream.OnComplete();
    EXPECT_THAT(Page(), testing::Not(HasSubstr("ModelServerError")));
  }
  {
    FakeStream envoy{.request_headers = GrpcPost()};
    Stream stream(filter_, &envoy);
    ASSERT_TRUE(SendHttp2(stream, envoy, {kGrpcBody}));
    envoy.response_headers = {{":status", "200"}, {"content-type", "application/grpc"}};
    stream.OnResponseHeaders(false);
    envoy.response_trailers = {{"grpc-status", "13"}};
    stream.OnResponseTrailers();
    stream.OnComplete();
    EXPECT_THAT(Page(), HasSubstr("error_code=\"ModelServerError\""));
  }
  FakeStream envoy{.request_headers = GrpcPost()};
  Stream stream(filter_, &envoy);
  EXPECT_FALSE(SendHttp2(stream, envoy, {"{}"}));
  ASSERT_TRUE(envoy.reply);
  EXPECT_EQ(envoy.reply->status, 400u);
  EXPECT_THAT(envoy.reply->headers, testing::Contains(Pair("grpc-status", "3")));
  stream.OnComplete();
}

TEST_F(StreamTest, AGrpcAnswerOfHeadersAloneIsWhatItsStatusSays) {
  Serve({{.name = "a"}}, {}, {}, tests::ConfigOf(kGrpcConfig));
  FakeStream envoy{.request_headers = GrpcPost()};
  Stream stream(filter_, &envoy);
  ASSERT_TRUE(SendHttp2(stream, envoy, {kGrpcBody}));
  envoy.response_headers = {{":status", "200"}, {"content-type", "application/grpc"}, {"grpc-status", "14"}};
  stream.OnResponseHeaders(true);
  stream.OnComplete();
  EXPECT_THAT(Page(), HasSubstr("error_code=\"ModelServerError\""));
}

}  // namespace
}  // namespace fairway::envoy_module
