// Every body mode and order of messages, against a real router: what is answered, when, and with what.
#include "frontends/ext_proc/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <utility>
#include <vector>

#include "ext_proc.pb.h"
#include "tests/support/config_text.h"
#include "tests/support/pools.h"

namespace fairway::ext_proc {
namespace {

namespace pb = envoy::service::ext_proc::v3;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::string_view kChat = R"({"model":"llama2","messages":[{"role":"user","content":"hi"}]})";

// Puts the frames together again, as a client's transport does.
class RecordingSink final : public Sink {
 public:
  static constexpr size_t kRoom = SIZE_MAX / 2;

  void Send(std::string_view bytes) override {
    EXPECT_FALSE(ended_);
    bytes_.append(bytes);
  }
  // Reads them late, as a client's transport may: they must stay.
  void Send(const net::SharedBytes& bytes) override {
    EXPECT_FALSE(ended_);
    shared_.emplace_back(bytes_.size(), bytes);
    bytes_.append(bytes.size(), '\0');
  }
  net::SharedBytes Share(std::string bytes) override { return net::SharedBytes(std::move(bytes)); }
  void Finish(net::GrpcStatus status, std::string_view message) override {
    EXPECT_FALSE(ended_);
    ended_ = true;
    status_ = status;
    message_ = message;
  }
  bool Reserve(size_t bytes) override {
    if (bytes > room_) return false;
    room_ -= bytes;
    return true;
  }
  void Release(size_t bytes) override { room_ += bytes; }

  // The messages since the last call.
  std::vector<pb::ProcessingResponse> Take() {
    for (const auto& [at, bytes] : shared_) bytes_.replace(at, bytes.size(), bytes.view());
    shared_.clear();
    std::vector<pb::ProcessingResponse> messages;
    while (bytes_.size() >= 5) {
      size_t length = 0;
      for (int i = 1; i < 5; ++i) length = length << 8 | static_cast<uint8_t>(bytes_[i]);
      if (bytes_.size() < 5 + length) break;
      EXPECT_TRUE(messages.emplace_back().ParseFromString(bytes_.substr(5, length)));
      bytes_.erase(0, 5 + length);
    }
    EXPECT_TRUE(bytes_.empty());
    return messages;
  }
  bool ended() const { return ended_; }
  net::GrpcStatus status() const { return status_; }
  const std::string& message() const { return message_; }
  size_t& room() { return room_; }

 private:
  std::string bytes_;
  std::vector<std::pair<size_t, net::SharedBytes>> shared_;  // and where they belong
  bool ended_ = false;
  net::GrpcStatus status_ = net::GrpcStatus::kOk;
  std::string message_;
  size_t room_ = kRoom;
};

struct Modes {
  pb::BodySendMode request = pb::FULL_DUPLEX_STREAMED;
  pb::BodySendMode response = pb::FULL_DUPLEX_STREAMED;
  bool without_waiting = false;
};

class SessionTest : public testing::Test {
 protected:
  static std::vector<tests::ServerState> Idle(size_t n) {
    std::vector<tests::ServerState> servers;
    for (size_t i = 0; i < n; ++i) servers.push_back({.name = "s" + std::to_string(i)});
    return servers;
  }

  void Start(std::vector<tests::ServerState> servers, std::vector<api::InferenceModel> models = {},
             routing::RouterOptions router_options = {}) {
    session_.reset();
    shared_.reset();
    worker_.reset();
    pool_ = std::make_unique<tests::TestPool>(std::move(servers), std::move(models));
    registry_ = std::make_unique<base::Registry>();
    router_ =
        std::make_unique<routing::Router>(pool_->fleet().published(), clock_, *registry_, router_options);
    worker_ = router_->NewWorker(7);
    metrics_ = std::make_unique<Metrics>(*registry_, false);
    shared_.reset(new SessionShared{*router_, *worker_, clock_, options_, *metrics_, base::Random(9)});
    NewExchange();
  }

  void NewExchange(std::optional<Modes> modes = Modes()) {
    session_.reset();
    sink_ = std::make_unique<RecordingSink>();
    session_ = std::make_unique<Session>(*shared_, *sink_, "");
    modes_ = modes;
    first_ = true;
  }

  std::vector<pb::ProcessingResponse> Give(pb::ProcessingRequest message) {
    if (first_ && modes_) {
      message.mutable_protocol_config()->set_request_body_mode(modes_->request);
      message.mutable_protocol_config()->set_response_body_mode(modes_->response);
      message.mutable_protocol_config()->set_send_body_without_waiting_for_header_response(
          modes_->without_waiting);
    }
    first_ = false;
    const std::string bytes = message.SerializeAsString();
    // In a block of its own, so that a view kept too long is seen by ASan.
    const auto copy = std::make_unique<std::string>(bytes);
    session_->OnMessage(*copy);
    return sink_->Take();
  }

  using Headers = std::vector<std::pair<std::string, std::string>>;
  static void Add(const Headers& headers, pb::HeaderMap* map) {
    for (const auto& [name, value] : headers) {
      auto* header = map->add_headers();
      header->set_key(name);
      header->set_raw_value(value);
    }
  }
  static pb::ProcessingRequest RequestHeaders(bool end = false, const Headers& more = {}) {
    pb::ProcessingRequest message;
    auto* headers = message.mutable_request_headers();
    Add({{":method", end ? "GET" : "POST"},
         {":path", end ? "/v1/models" : "/v1/chat/completions"},
         {"x-request-id", "r1"}},
        headers->mutable_headers());
    Add(more, headers->mutable_headers());
    headers->set_end_of_stream(end);
    return message;
  }
  static pb::ProcessingRequest RequestBody(std::string_view body, bool end) {
    pb::ProcessingRequest message;
    message.mutable_request_body()->set_body(std::string(body));
    message.mutable_request_body()->set_end_of_stream(end);
    return message;
  }
  static pb::ProcessingRequest RequestTrailers() {
    pb::ProcessingRequest message;
    message.mutable_request_trailers();
    return message;
  }
  static pb::ProcessingRequest ResponseHeaders(const Headers& more = {}, std::string_view served = "",
                                               bool end = false) {
    pb::ProcessingRequest message;
    auto* headers = message.mutable_response_headers();
    Add({{":status", "200"}, {"content-type", "application/json"}}, headers->mutable_headers());
    Add(more, headers->mutable_headers());
    headers->set_end_of_stream(end);
    if (!served.empty()) {
      (*(*message.mutable_metadata_context()->mutable_filter_metadata())["envoy.lb"]
            .mutable_fields())["x-gateway-destination-endpoint-served"]
          .set_string_value(std::string(served));
    }
    return message;
  }
  static pb::ProcessingRequest ResponseBody(std::string_view body, bool end) {
    pb::ProcessingRequest message;
    message.mutable_response_body()->set_body(std::string(body));
    message.mutable_response_body()->set_end_of_stream(end);
    return message;
  }
  static pb::ProcessingRequest ResponseTrailers() {
    pb::ProcessingRequest message;
    message.mutable_response_trailers();
    return message;
  }

  static std::map<std::string, std::string> Set(const pb::HeaderMutation& mutation) {
    std::map<std::string, std::string> out;
    for (const auto& option : mutation.set_headers()) {
      EXPECT_EQ(option.append_action(), pb::HeaderValueOption::OVERWRITE_IF_EXISTS_OR_ADD);
      EXPECT_EQ(option.header().value(), "");
      out[option.header().key()] = option.header().raw_value();
    }
    return out;
  }
  static std::multiset<std::string> Removed(const pb::HeaderMutation& mutation) {
    return {mutation.remove_headers().begin(), mutation.remove_headers().end()};
  }
  static std::string Metadata(const pb::ProcessingResponse& message) {
    const auto& fields = message.dynamic_metadata().fields();
    if (!fields.contains("envoy.lb")) return "";
    const auto& lb = fields.at("envoy.lb").struct_value().fields();
    return lb.contains("x-gateway-destination-endpoint")
               ? lb.at("x-gateway-destination-endpoint").string_value()
               : "";
  }
  // The destination of a request headers reply, or "" with a failure.
  static std::string Destination(const pb::ProcessingResponse& message) {
    EXPECT_TRUE(message.has_request_headers()) << message.ShortDebugString();
    const auto& response = message.request_headers().response();
    EXPECT_TRUE(response.clear_route_cache());
    const std::string destination = Set(response.header_mutation())["x-gateway-destination-endpoint"];
    EXPECT_TRUE(Metadata(message).starts_with(destination)) << Metadata(message);
    return destination;
  }
  // What streamed pieces make together; the last one's flag in `end`.
  static std::string Pieces(const std::vector<pb::ProcessingResponse>& messages, size_t from, bool response,
                            bool& end) {
    std::string body;
    end = false;
    for (size_t i = from; i < messages.size(); ++i) {
      EXPECT_FALSE(end);
      const auto& reply = response ? messages[i].response_body() : messages[i].request_body();
      EXPECT_EQ(response ? messages[i].has_response_body() : messages[i].has_request_body(), true);
      EXPECT_TRUE(reply.response().body_mutation().has_streamed_response());
      const auto& piece = reply.response().body_mutation().streamed_response();
      EXPECT_LE(piece.body().size(), kMaxBodyPiece);
      body += piece.body();
      end = piece.end_of_stream();
    }
    return body;
  }

  void ExpectRefused(const std::vector<pb::ProcessingResponse>& messages, int status, std::string_view text) {
    ASSERT_FALSE(messages.empty());
    const auto& last = messages.back();
    ASSERT_TRUE(last.has_immediate_response()) << last.ShortDebugString();
    EXPECT_EQ(last.immediate_response().status().code(), status);
    EXPECT_THAT(last.immediate_response().body(), HasSubstr(std::string(text)));
    EXPECT_TRUE(sink_->ended());
    EXPECT_EQ(sink_->status(), net::GrpcStatus::kOk);
    EXPECT_THAT(Give(RequestBody("more", true)), IsEmpty());  // and nothing after it
  }

  uint32_t Inflight(size_t endpoint = 0) const { return pool_->pool()->endpoints[endpoint].cell->own(); }
  uint32_t AllInflight() const {
    uint32_t sum = 0;
    for (const auto& endpoint : pool_->pool()->endpoints) sum += endpoint.cell->own();
    return sum;
  }

  base::ManualClock clock_{base::kSecond};
  SessionOptions options_;
  std::unique_ptr<tests::TestPool> pool_;
  std::unique_ptr<base::Registry> registry_;
  std::unique_ptr<routing::Router> router_;
  std::unique_ptr<routing::Worker> worker_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<SessionShared> shared_;
  std::unique_ptr<RecordingSink> sink_;
  std::unique_ptr<Session> session_;
  std::optional<Modes> modes_;
  bool first_ = true;
};

const std::vector<api::InferenceModel> kRewriting = {
    tests::Model("llama2", api::Criticality::kCritical, {{"llama2-v1", 1}})};

// ---- FULL_DUPLEX_STREAMED.

TEST_F(SessionTest, FullDuplexAnswersAtTheEndOfTheBody) {
  Start(Idle(1));
  EXPECT_THAT(Give(RequestHeaders()), IsEmpty());
  EXPECT_THAT(Give(RequestBody(kChat.substr(0, 20), false)), IsEmpty());
  EXPECT_THAT(Give(RequestBody(kChat.substr(20), false)), IsEmpty());
  const auto replies = Give(RequestBody("", true));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(Destination(replies[0]), "10.0.0.1:8000");
  EXPECT_THAT(Set(replies[0].request_headers().response().header_mutation()),
              ElementsAre(testing::Pair("x-gateway-destination-endpoint", "10.0.0.1:8000")));
  bool end = false;
  EXPECT_EQ(Pieces(replies, 1, false, end), kChat);
  EXPECT_TRUE(end);
  EXPECT_EQ(Inflight(), 1u);
}

TEST_F(SessionTest, FullDuplexCutsTheBodyInPieces) {
  Start(Idle(1));
  std::string body = R"({"model":"m","prompt":")";
  body += std::string(150'025 - body.size() - 2, 'a') + "\"}";
  Give(RequestHeaders());
  const auto replies = Give(RequestBody(body, true));
  ASSERT_EQ(replies.size(), 1u);  // chat needs messages: refused
  EXPECT_EQ(replies[0].immediate_response().status().code(), 400);

  NewExchange();
  pb::ProcessingRequest headers;
  Add({{":path", "/v1/completions"}}, headers.mutable_request_headers()->mutable_headers());
  Give(headers);
  const auto pieces = Give(RequestBody(body, true));
  ASSERT_EQ(pieces.size(), 4u);
  EXPECT_EQ(pieces[1].request_body().response().body_mutation().streamed_response().body().size(), 62'000u);
  EXPECT_EQ(pieces[2].request_body().response().body_mutation().streamed_response().body().size(), 62'000u);
  EXPECT_EQ(pieces[3].request_body().response().body_mutation().streamed_response().body().size(), 26'025u);
  bool end = false;
  EXPECT_EQ(Pieces(pieces, 1, false, end), body);
  EXPECT_TRUE(end);
}

TEST_F(SessionTest, FullDuplexEmptyBodyIsOneEmptyPiece) {
  Start(Idle(1));
  pb::ProcessingRequest headers;
  Add({{":path", "/anything"}}, headers.mutable_request_headers()->mutable_headers());
  Give(headers);
  const auto replies = Give(RequestBody("", true));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[1].request_body().response().body_mutation().streamed_response().body(), "");
  EXPECT_TRUE(replies[1].request_body().response().body_mutation().streamed_response().end_of_stream());
}

TEST_F(SessionTest, FullDuplexTrailersEndTheBody) {
  Start(Idle(1));
  Give(RequestHeaders());
  EXPECT_THAT(Give(RequestBody(kChat, false)), IsEmpty());
  auto replies = Give(RequestTrailers());
  ASSERT_EQ(replies.size(), 3u);
  EXPECT_EQ(Destination(replies[0]), "10.0.0.1:8000");
  EXPECT_TRUE(replies[2].has_request_trailers());
  replies.pop_back();
  bool end = true;
  EXPECT_EQ(Pieces(replies, 1, false, end), kChat);
  EXPECT_FALSE(end);
}

TEST_F(SessionTest, FullDuplexRewritesTheModelAlone) {
  Start(Idle(1), kRewriting);
  Give(RequestHeaders());
  const auto replies = Give(RequestBody(kChat, true));
  ASSERT_EQ(replies.size(), 2u);
  bool end = false;
  EXPECT_EQ(Pieces(replies, 1, false, end),
            R"({"model":"llama2-v1","messages":[{"role":"user","content":"hi"}]})");
  EXPECT_TRUE(end);
}

TEST_F(SessionTest, LongBodyInPieces) {
  Start(Idle(1));
  Give(RequestHeaders());
  const std::string message = RequestBody(kChat, true).SerializeAsString();
  const auto head = ParseBodyHead(std::string_view(message).substr(0, 30), message.size());
  ASSERT_TRUE(head);
  ASSERT_TRUE(session_->TakesBodyPieces());
  session_->OnBodyPiece(head->body);
  session_->OnBodyPiece(std::string_view(message).substr(30, head->body_left));
  session_->OnBodyTail(std::string_view(message).substr(message.size() - head->tail), head->inner_tail);
  const auto replies = sink_->Take();
  ASSERT_EQ(replies.size(), 2u);
  bool end = false;
  EXPECT_EQ(Pieces(replies, 1, false, end), kChat);
  EXPECT_TRUE(end);
}

TEST_F(SessionTest, APathThatNoParserTakesIsRefusedAtItsHeaders) {
  routing::RouterOptions options;
  options.config = tests::ConfigOf(
      "plugins: [{type: queue-scorer}]\nrequestHandler: {parsers: [{pluginRef: anthropic-parser}]}\n");
  Start(Idle(1), {}, options);
  ExpectRefused(
      Give(RequestHeaders()), 400,
      "inference error: BadRequest - no parser registered matching path suffix for: /v1/chat/completions");
  // One without a body is asked nothing, and an upgrade is no body.
  NewExchange();
  EXPECT_NE(Destination(Give(RequestHeaders(true)).at(0)), "");
  NewExchange();
  EXPECT_NE(
      Destination(Give(RequestHeaders(false, {{"connection", "upgrade"}, {"upgrade", "websocket"}})).at(0)),
      "");
  NewExchange();
  ExpectRefused(Give(RequestBody(kChat, true)), 400, "suffix for: /v1/completions");
}

// ---- gRPC.

// GenerateRequest{text: "hi", stream: true} in its frame.
const std::string kGrpcBody("\0\0\0\0\x06\x1a\x02hi\x28\x01", 11);
const char* const kGrpcConfig =
    "plugins: [{type: queue-scorer}]\nrequestHandler: {parsers: [{pluginRef: vllmgrpc-parser}]}\n";

class GrpcSessionTest : public SessionTest {
 protected:
  void SetUp() override {
    routing::RouterOptions options;
    options.config = tests::ConfigOf(kGrpcConfig);
    Start(Idle(1), {}, options);
  }
  static pb::ProcessingRequest GrpcHeaders() {
    return RequestHeaders(
        false, {{":path", "/vllm.grpc.engine.VllmEngine/Generate"}, {"content-type", "application/grpc"}});
  }
  void Ask() {
    EXPECT_THAT(Give(GrpcHeaders()), IsEmpty());
    const auto replies = Give(RequestBody(kGrpcBody, true));
    ASSERT_EQ(replies.size(), 2u);
    EXPECT_NE(Destination(replies[0]), "");
    bool end = false;
    EXPECT_EQ(Pieces(replies, 1, false, end), kGrpcBody) << "unchanged";
    EXPECT_TRUE(end);
    EXPECT_EQ(Inflight(), 1u);
  }
  // `status`: grpc-status.
  static pb::ProcessingRequest GrpcTrailers(std::string_view status) {
    pb::ProcessingRequest message;
    Add({{"grpc-status", std::string(status)}}, message.mutable_response_trailers()->mutable_trailers());
    return message;
  }
  size_t Errors() const {
    return std::string(registry_->Render()).find("error_code=\"ModelServerError\"") != std::string::npos;
  }
  std::string Page() const { return registry_->Render(); }
};

TEST_F(GrpcSessionTest, EndsWithTrailers) {
  Ask();
  EXPECT_EQ(Give(ResponseHeaders({{"content-type", "application/grpc"}})).size(), 1u);
  // GenerateResponse{complete: {output_ids: [5, 6], prompt_tokens: 9, completion_tokens: 2}}
  const std::string answer("\0\0\0\0\x0a\x12\x08\x0a\x02\x05\x06\x18\x09\x20\x02", 15);
  EXPECT_EQ(Give(ResponseBody(answer, false)).size(), 1u);
  EXPECT_EQ(Inflight(), 1u);
  const auto replies = Give(GrpcTrailers("0"));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_TRUE(replies[0].has_response_trailers());
  EXPECT_EQ(Inflight(), 0u);
  EXPECT_EQ(Errors(), 0u);
  EXPECT_THAT(Page(), HasSubstr("llm_d_epp_request_output_tokens_sum"));
}

TEST_F(GrpcSessionTest, AnErrorInTrailersIsOne) {
  Ask();
  Give(ResponseHeaders({{"content-type", "application/grpc"}}));
  Give(GrpcTrailers("13"));
  EXPECT_EQ(Inflight(), 0u);
  EXPECT_EQ(Errors(), 1u);
}

TEST_F(GrpcSessionTest, AnAnswerOfHeadersAloneIsWhatItsStatusSays) {
  Ask();
  Give(ResponseHeaders({{"content-type", "application/grpc"}, {"grpc-status", "14"}}, "", true));
  EXPECT_EQ(Inflight(), 0u);
  EXPECT_EQ(Errors(), 1u);
}

TEST_F(GrpcSessionTest, AResetGivesThePlaceBack) {
  Ask();
  Give(ResponseHeaders({{"content-type", "application/grpc"}}));
  session_->OnGone();
  EXPECT_EQ(Inflight(), 0u);
}

TEST_F(GrpcSessionTest, RefusalsSayWhyInGrpcsWords) {
  EXPECT_THAT(Give(GrpcHeaders()), IsEmpty());
  auto replies = Give(RequestBody("{}", true));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].immediate_response().status().code(), 400);
  EXPECT_EQ(replies[0].immediate_response().grpc_status().status(), 3u);
  Start({});
  Give(GrpcHeaders());
  replies = Give(RequestBody(kGrpcBody, true));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].immediate_response().status().code(), 503);
  EXPECT_EQ(replies[0].immediate_response().grpc_status().status(), 14u);
  // Others get none.
  NewExchange();
  Give(RequestHeaders());
  replies = Give(RequestBody(kChat, true));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_FALSE(replies[0].immediate_response().has_grpc_status());
}

// In STREAMED other bodies wait for their model's name.
TEST_F(GrpcSessionTest, StreamedBodiesAreNotHeldBack) {
  NewExchange(Modes{.request = pb::STREAMED, .response = pb::STREAMED});
  EXPECT_NE(Destination(Give(GrpcHeaders()).at(0)), "");
  const auto replies = Give(RequestBody(kGrpcBody.substr(0, 4), false));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_FALSE(replies[0].request_body().response().has_body_mutation());
}

TEST_F(SessionTest, BodyWithoutHeaders) {
  Start(Idle(1));
  const auto replies = Give(RequestBody(R"({"model":"m","prompt":"x"})", true));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(Destination(replies[0]), "10.0.0.1:8000");
}

TEST_F(SessionTest, NoModesMeanFullDuplex) {
  Start(Idle(1));
  NewExchange(std::nullopt);
  EXPECT_THAT(Give(RequestHeaders()), IsEmpty());
  const auto replies = Give(RequestBody(kChat, true));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_TRUE(replies[1].request_body().response().body_mutation().has_streamed_response());
}

TEST_F(SessionTest, NoModesAndNoBodyIsAnsweredAfterAWhile) {
  Start(Idle(1));
  NewExchange(std::nullopt);
  Give(RequestHeaders());
  EXPECT_EQ(session_->deadline(), clock_.Now() + options_.mode_timeout);
  clock_.Advance(options_.mode_timeout);
  session_->OnDeadline();
  const auto replies = sink_->Take();
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(Destination(replies[0]), "10.0.0.1:8000");
  EXPECT_EQ(session_->deadline(), 0);
  // It was STREAMED or BUFFERED after all: the body passes.
  const auto body = Give(RequestBody(kChat, true));
  ASSERT_EQ(body.size(), 1u);
  EXPECT_TRUE(body[0].has_request_body());
  EXPECT_FALSE(body[0].request_body().response().has_body_mutation());
}

// ---- The other modes.

TEST_F(SessionTest, NoneDecidesAtTheHeaders) {
  Start(Idle(1));
  NewExchange(Modes{.request = pb::NONE, .response = pb::NONE});
  const auto replies = Give(RequestHeaders());
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(Destination(replies[0]), "10.0.0.1:8000");
  const auto response = Give(ResponseHeaders());
  ASSERT_EQ(response.size(), 1u);
  EXPECT_TRUE(response[0].has_response_headers());
  EXPECT_EQ(Inflight(), 1u);
  session_->OnGone();  // the end was not seen: detached
  EXPECT_EQ(Inflight(), 0u);
}

TEST_F(SessionTest, BufferedDecidesAtTheBody) {
  Start(Idle(1));
  NewExchange(Modes{.request = pb::BUFFERED, .response = pb::BUFFERED});
  const auto headers = Give(RequestHeaders(false, {{"x-gateway-destination-endpoint", "6.6.6.6:1"}}));
  ASSERT_EQ(headers.size(), 1u);
  EXPECT_TRUE(headers[0].has_request_headers());
  EXPECT_EQ(Metadata(headers[0]), "");
  EXPECT_TRUE(Removed(headers[0].request_headers().response().header_mutation())
                  .contains("x-gateway-destination-endpoint"));
  const auto body = Give(RequestBody(kChat, true));
  ASSERT_EQ(body.size(), 1u);
  ASSERT_TRUE(body[0].has_request_body());
  const auto& response = body[0].request_body().response();
  EXPECT_TRUE(response.clear_route_cache());
  EXPECT_FALSE(response.has_body_mutation());
  EXPECT_EQ(Set(response.header_mutation())["x-gateway-destination-endpoint"], "10.0.0.1:8000");
  EXPECT_EQ(Metadata(body[0]), "10.0.0.1:8000");
}

TEST_F(SessionTest, BufferedRewriteSetsTheLengthItHas) {
  Start(Idle(1), kRewriting);
  NewExchange(Modes{.request = pb::BUFFERED});
  Give(RequestHeaders(false, {{"content-length", std::to_string(kChat.size())}}));
  const auto body = Give(RequestBody(kChat, true));
  ASSERT_EQ(body.size(), 1u);
  const auto& response = body[0].request_body().response();
  EXPECT_EQ(response.body_mutation().body(),
            R"({"model":"llama2-v1","messages":[{"role":"user","content":"hi"}]})");
  EXPECT_EQ(Set(response.header_mutation())["content-length"], std::to_string(kChat.size() + 3));

  NewExchange(Modes{.request = pb::BUFFERED});
  Give(RequestHeaders());  // chunked: no length to correct
  const auto chunked = Give(RequestBody(kChat, true));
  EXPECT_FALSE(Set(chunked.at(0).request_body().response().header_mutation()).contains("content-length"));
}

TEST_F(SessionTest, BufferedTrailersWithoutABodyGetMetadata) {
  Start(Idle(1));
  NewExchange(Modes{.request = pb::BUFFERED});
  pb::ProcessingRequest headers;
  Add({{":path", "/anything"}}, headers.mutable_request_headers()->mutable_headers());
  Give(headers);
  const auto replies = Give(RequestTrailers());
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_TRUE(replies[0].has_request_trailers());
  EXPECT_EQ(Metadata(replies[0]), "10.0.0.1:8000");
}

TEST_F(SessionTest, BufferedBodyBeforeTrailersIsWhole) {
  Start(Idle(1));
  NewExchange(Modes{.request = pb::BUFFERED});
  Give(RequestHeaders());
  const auto body = Give(RequestBody(kChat, false));
  ASSERT_EQ(body.size(), 1u);
  EXPECT_EQ(Metadata(body[0]), "10.0.0.1:8000");
  const auto trailers = Give(RequestTrailers());
  ASSERT_EQ(trailers.size(), 1u);
  EXPECT_TRUE(trailers[0].has_request_trailers());
}

TEST_F(SessionTest, BufferedPartialDecidesOnWhatCame) {
  Start(Idle(1), kRewriting);
  NewExchange(Modes{.request = pb::BUFFERED_PARTIAL});
  EXPECT_EQ(Give(RequestHeaders(false, {{"content-length", "1000"}})).size(), 1u);
  const auto body = Give(RequestBody(R"({"model":"llama2","messages":[{"role":"us)", false));
  ASSERT_EQ(body.size(), 1u);
  ASSERT_TRUE(body[0].has_request_body()) << body[0].ShortDebugString();
  const auto& response = body[0].request_body().response();
  EXPECT_EQ(response.body_mutation().body(), R"({"model":"llama2-v1","messages":[{"role":"us)");
  EXPECT_TRUE(Removed(response.header_mutation()).contains("content-length"));
}

TEST_F(SessionTest, BufferedPartialWithTheWholeBodyChecksIt) {
  Start(Idle(1));
  NewExchange(Modes{.request = pb::BUFFERED_PARTIAL});
  Give(RequestHeaders());
  ExpectRefused(Give(RequestBody(R"({"model":"llama2","messages":[)", true)), 400, "BadRequest");
}

TEST_F(SessionTest, StreamedDecidesAtTheHeadersAndPassesTheBody) {
  Start(Idle(1));
  NewExchange(Modes{.request = pb::STREAMED, .response = pb::STREAMED});
  const auto headers = Give(RequestHeaders(false, {{"content-length", "70"}}));
  ASSERT_EQ(headers.size(), 1u);
  EXPECT_EQ(Destination(headers[0]), "10.0.0.1:8000");
  EXPECT_TRUE(Removed(headers[0].request_headers().response().header_mutation()).contains("content-length"));
  for (const auto& [text, end] : {std::pair(kChat.substr(0, 30), false), std::pair(kChat.substr(30), true)}) {
    const auto chunk = Give(RequestBody(text, end));
    ASSERT_EQ(chunk.size(), 1u);
    EXPECT_TRUE(chunk[0].has_request_body());
    EXPECT_FALSE(chunk[0].request_body().response().has_body_mutation());
  }
  EXPECT_EQ(Inflight(), 1u);  // one reservation, not two
  EXPECT_THAT(registry_->Render(),
              testing::ContainsRegex("\nllm_d_epp_request_total\\{[^}]*model_name=\"llama2\"[^}]*\\} 1\n"));
  EXPECT_THAT(
      registry_->Render(),
      testing::Not(testing::ContainsRegex("\nllm_d_epp_request_total\\{[^}]*model_name=\"\"[^}]*\\} 1\n")));
}

TEST_F(SessionTest, StreamedHoldsBackUntilTheModelIsKnown) {
  Start(Idle(3), kRewriting);
  NewExchange(Modes{.request = pb::STREAMED});
  const std::string destination = Destination(Give(RequestHeaders()).at(0));
  const auto first = Give(RequestBody(kChat.substr(0, 12), false));  // cut in the model's name
  ASSERT_EQ(first.size(), 1u);
  EXPECT_TRUE(first[0].request_body().response().body_mutation().clear_body());
  const auto second = Give(RequestBody(kChat.substr(12, 20), false));
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0].request_body().response().body_mutation().body(),
            std::string(R"({"model":"llama2-v1")") + std::string(kChat.substr(17, 15)));
  const auto third = Give(RequestBody(kChat.substr(32), true));
  ASSERT_EQ(third.size(), 1u);
  EXPECT_FALSE(third[0].request_body().response().has_body_mutation());
  EXPECT_EQ(AllInflight(), 1u);
  for (const auto& endpoint : pool_->pool()->endpoints) {
    EXPECT_EQ(endpoint.cell->own(), endpoint.address == destination ? 1u : 0u);
  }
}

TEST_F(SessionTest, StreamedUnknownModelIsRefusedInTheBody) {
  Start(Idle(1), kRewriting);
  NewExchange(Modes{.request = pb::STREAMED});
  Give(RequestHeaders());
  ExpectRefused(Give(RequestBody(R"({"model":"gpt","messages":[{"role":"user","content":"hi"}]})", true)),
                404, "NotFound");
  EXPECT_EQ(AllInflight(), 0u);
}

TEST_F(SessionTest, StreamedTrailersBeforeAModelAreRefused) {
  Start(Idle(1));
  NewExchange(Modes{.request = pb::STREAMED});
  Give(RequestHeaders());
  EXPECT_TRUE(Give(RequestBody(R"({"messages":)", false))
                  .at(0)
                  .request_body()
                  .response()
                  .body_mutation()
                  .clear_body());
  ExpectRefused(Give(RequestTrailers()), 400, "BadRequest");
}

TEST_F(SessionTest, StreamedWithoutWaitingDecidesWithTheModel) {
  Start({{.name = "a"}, {.name = "b", .adapters = {"llama2-v1"}, .max_adapters = 4}}, kRewriting);
  NewExchange(Modes{.request = pb::STREAMED, .without_waiting = true});
  EXPECT_THAT(Give(RequestHeaders()), IsEmpty());
  EXPECT_THAT(Give(RequestBody(kChat.substr(0, 5), false)), IsEmpty());
  const auto replies = Give(RequestBody(kChat.substr(5, 20), false));
  ASSERT_EQ(replies.size(), 3u);
  EXPECT_EQ(Destination(replies[0]), "10.0.0.2:8000");
  EXPECT_TRUE(replies[1].request_body().response().body_mutation().clear_body());
  EXPECT_EQ(replies[2].request_body().response().body_mutation().body(),
            std::string(R"({"model":"llama2-v1")") + std::string(kChat.substr(17, 8)));
  const auto rest = Give(RequestBody(kChat.substr(25), true));
  ASSERT_EQ(rest.size(), 1u);
  EXPECT_FALSE(rest[0].request_body().response().has_body_mutation());
}

TEST_F(SessionTest, HeadersAloneAreDecidedAtOnceInEveryMode) {
  for (const auto mode :
       {pb::NONE, pb::STREAMED, pb::BUFFERED, pb::BUFFERED_PARTIAL, pb::FULL_DUPLEX_STREAMED}) {
    Start(Idle(1));
    NewExchange(Modes{.request = mode, .response = mode});
    const auto replies = Give(RequestHeaders(true));
    ASSERT_EQ(replies.size(), 1u) << mode;
    EXPECT_EQ(Destination(replies[0]), "10.0.0.1:8000");
  }
}

// ---- Headers and metadata.

// An upgrade or CONNECT has no body that ends: in every mode its headers are answered at once, by load, and
// what the two ends say to each other passes by.
TEST_F(SessionTest, AnUpgradeIsDecidedAtItsHeadersInEveryMode) {
  Start(Idle(1), kRewriting);
  const Headers kUpgrade = {{"upgrade", "websocket"}, {"connection", "keep-alive, Upgrade"}};
  const std::vector<std::optional<Modes>> kModes = {Modes{},
                                                    Modes{.request = pb::BUFFERED},
                                                    Modes{.request = pb::BUFFERED_PARTIAL},
                                                    Modes{.request = pb::STREAMED},
                                                    Modes{.request = pb::STREAMED, .without_waiting = true},
                                                    Modes{.request = pb::NONE},
                                                    std::nullopt};
  for (const auto& modes : kModes) {
    for (const Headers& headers : {kUpgrade, Headers{{":method", "CONNECT"}}}) {
      NewExchange(modes);
      const auto replies = Give(RequestHeaders(false, headers));  // of an API whose body is read else
      ASSERT_EQ(replies.size(), 1u);
      EXPECT_EQ(Destination(replies[0]), "10.0.0.1:8000");
      EXPECT_EQ(session_->deadline(), 0);
      EXPECT_EQ(Inflight(), 1u);
      const bool pieces = !modes || modes->request == pb::FULL_DUPLEX_STREAMED;
      for (const std::string_view frame : {"hello", "{\"model\":", ""}) {
        const auto passed = Give(RequestBody(frame, frame.empty()));
        ASSERT_EQ(passed.size(), 1u);
        ASSERT_TRUE(passed[0].has_request_body());
        bool end = false;
        if (pieces) {
          EXPECT_EQ(Pieces(passed, 0, false, end), frame);
          EXPECT_EQ(end, frame.empty());
        } else {
          EXPECT_FALSE(passed[0].request_body().response().has_body_mutation());
        }
      }
      EXPECT_EQ(Inflight(), 1u);
      Give(ResponseHeaders({{":status", "101"}}));
      session_->OnGone();  // somebody hung up: no error, it has no other end
      EXPECT_EQ(AllInflight(), 0u);
    }
  }
  EXPECT_THAT(registry_->Render(), testing::Not(HasSubstr("ClientClosedRequest")));
}

// A body that cannot be read is no broken one: routed by load, with all that else bounds a body.
TEST_F(SessionTest, ACompressedBodyIsRoutedWithoutBeingRead) {
  Start(Idle(1), kRewriting);
  const std::string zstd = "\x28\xb5\x2f\xfd not JSON";
  for (const Headers& headers : {Headers{{"content-encoding", "zstd"}}, Headers{{"content-encoding", "GZIP"}},
                                 Headers{{"content-type", "application/json; charset=utf-16"}}}) {
    NewExchange();
    EXPECT_THAT(Give(RequestHeaders(false, headers)), IsEmpty());
    EXPECT_THAT(Give(RequestBody(zstd.substr(0, 5), false)), IsEmpty());
    EXPECT_NE(session_->deadline(), 0);
    auto replies = Give(RequestBody(zstd.substr(5), true));
    ASSERT_EQ(replies.size(), 2u);
    EXPECT_EQ(Destination(replies[0]), "10.0.0.1:8000");
    bool end = false;
    EXPECT_EQ(Pieces(replies, 1, false, end), zstd);
    EXPECT_TRUE(end);

    for (const auto mode : {pb::BUFFERED, pb::BUFFERED_PARTIAL}) {
      NewExchange(Modes{.request = mode});
      EXPECT_EQ(Give(RequestHeaders(false, headers)).size(), 1u);
      replies = Give(RequestBody(zstd, true));
      ASSERT_EQ(replies.size(), 1u);
      const auto& mutation = replies[0].request_body().response();
      EXPECT_EQ(Set(mutation.header_mutation())["x-gateway-destination-endpoint"], "10.0.0.1:8000");
      EXPECT_FALSE(mutation.has_body_mutation());
    }
    for (const bool without_waiting : {false, true}) {
      NewExchange(Modes{.request = pb::STREAMED, .without_waiting = without_waiting});
      replies = Give(RequestHeaders(false, headers));
      for (auto& reply : Give(RequestBody(zstd, true))) replies.push_back(std::move(reply));
      ASSERT_EQ(replies.size(), 2u);
      EXPECT_EQ(Destination(replies[0]), "10.0.0.1:8000");
      EXPECT_FALSE(replies[1].request_body().response().has_body_mutation());
    }
  }
  // What can be read is no way round models and criticality.
  for (const auto mode : {pb::FULL_DUPLEX_STREAMED, pb::STREAMED, pb::BUFFERED}) {
    for (const bool known : {false, true}) {
      NewExchange(Modes{.request = mode});
      Give(RequestHeaders(false, {{"content-encoding", "gzip"}}));
      const auto replies = Give(RequestBody(known ? kChat : R"({"model":"nobody","messages":[{}]})", true));
      if (!known) {
        ExpectRefused(replies, 404, "nobody");
        continue;
      }
      std::string all;
      for (const auto& reply : replies) all += reply.DebugString();
      EXPECT_THAT(all, HasSubstr("llama2-v1")) << mode;
    }
  }
  // What says plainly that nothing was done to it is read.
  NewExchange();
  Give(RequestHeaders(false, {{"content-encoding", "identity"}}));
  ExpectRefused(Give(RequestBody(zstd, true)), 400, "invalid JSON");
}

TEST_F(SessionTest, ControlHeadersDoNotReachTheModelServer) {
  Start(Idle(1));
  const auto replies = Give(RequestHeaders(true, {{"x-gateway-destination-endpoint", "6.6.6.6:1"},
                                                  {"x-gateway-destination-endpoint-subset", "6.6.6.6:1"},
                                                  {"x-llm-d-inference-objective", "o"},
                                                  {"x-gateway-inference-fairness-id", "tenant"},
                                                  {"x-gateway-inference-fairness-id", "tenant"},
                                                  {"x-prefiller-host-port", "6.6.6.6:1"},
                                                  {"x-other", "stays"}}));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(Destination(replies[0]), "10.0.0.1:8000");
  EXPECT_THAT(
      Removed(replies[0].request_headers().response().header_mutation()),
      testing::UnorderedElementsAre("x-gateway-destination-endpoint-subset", "x-llm-d-inference-objective",
                                    "x-gateway-inference-fairness-id", "x-prefiller-host-port"));
}

TEST_F(SessionTest, TheObjectiveIsReadUnderBothNames) {
  Start({{.name = "full", .waiting = 9}});
  pool_->manifests().objectives = {tests::Objective("batch", -1), tests::Objective("gold", 1)};
  pool_->fleet().Apply(pool_->manifests());
  const auto refused = [&](const Headers& headers) {
    NewExchange();
    const auto replies = Give(RequestHeaders(true, headers));
    EXPECT_EQ(replies.size(), 1u);
    return replies.at(0).immediate_response().status().code() == 429;
  };
  EXPECT_FALSE(refused({}));
  EXPECT_TRUE(refused({{"x-llm-d-inference-objective", "batch"}}));
  EXPECT_TRUE(refused({{"x-gateway-inference-objective", "batch"}}));
  EXPECT_FALSE(
      refused({{"x-llm-d-inference-objective", "gold"}, {"x-gateway-inference-objective", "batch"}}));
  EXPECT_TRUE(refused({{"x-gateway-inference-objective", "gold"}, {"x-llm-d-inference-objective", "batch"}}))
      << "of both the new name counts, in whatever order they come";
}

TEST_F(SessionTest, ARewriteChangesTheBodyAndIsTakenBackInTheResponse) {
  Start(Idle(1));
  pool_->manifests().rewrites = {tests::Rewrite("r", {"llama2"}, {{"llama2-canary", {}}})};
  pool_->fleet().Apply(pool_->manifests());
  NewExchange();
  EXPECT_THAT(Give(RequestHeaders(false, {{"x-llm-d-model-name-rewrite", "from-the-header"}})), IsEmpty());
  auto replies = Give(RequestBody(kChat, true));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[1].request_body().response().body_mutation().streamed_response().body(),
            R"({"model":"llama2-canary","messages":[{"role":"user","content":"hi"}]})");
  Give(ResponseHeaders());
  replies = Give(ResponseBody(R"({"model":"llama2-canary","x":1})", true));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].response_body().response().body_mutation().streamed_response().body(),
            R"({"model":"llama2","x":1})");
}

TEST_F(SessionTest, RequestIdIsMadeWhenThereIsNone) {
  Start(Idle(1));
  pb::ProcessingRequest headers;
  headers.mutable_request_headers()->set_end_of_stream(true);
  const auto replies = Give(headers);
  const std::string id = Set(replies.at(0).request_headers().response().header_mutation())["x-request-id"];
  EXPECT_THAT(id,
              testing::MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"));
}

TEST_F(SessionTest, TheHeaderHasOneAddressAndTheMetadataTheList) {
  Start(Idle(4));
  const auto replies = Give(RequestHeaders(true));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_THAT(Destination(replies[0]), testing::Not(HasSubstr(",")));
  EXPECT_THAT(Metadata(replies[0]), HasSubstr(","));
}

TEST_F(SessionTest, ScoresOnRequest) {
  routing::RouterOptions options;
  options.keep_scores = true;
  Start(Idle(2), {}, options);
  const auto replies = Give(RequestHeaders(true));
  const auto& lb = replies.at(0).dynamic_metadata().fields().at("envoy.lb").struct_value().fields();
  ASSERT_TRUE(lb.contains("x-gateway-destination-endpoint-scores"));
  EXPECT_EQ(lb.at("x-gateway-destination-endpoint-scores").struct_value().fields_size(), 2);
}

void Hint(pb::ProcessingRequest& message, const std::vector<std::string>& list) {
  auto& value = (*(*message.mutable_metadata_context()->mutable_filter_metadata())["envoy.lb.subset_hint"]
                      .mutable_fields())["x-gateway-destination-endpoint-subset"];
  value.mutable_list_value();
  for (const auto& entry : list) value.mutable_list_value()->add_values()->set_string_value(entry);
}
void HintText(pb::ProcessingRequest& message, const std::string& text) {
  (*(*message.mutable_metadata_context()->mutable_filter_metadata())["envoy.lb.subset_hint"]
        .mutable_fields())["x-gateway-destination-endpoint-subset"]
      .set_string_value(text);
}

TEST_F(SessionTest, SubsetHintInEitherMessageAndForm) {
  Start(Idle(4));
  for (const bool text : {false, true}) {
    for (const bool on_headers : {false, true}) {
      NewExchange();
      pb::ProcessingRequest headers = RequestHeaders();
      pb::ProcessingRequest body = RequestBody(kChat, true);
      pb::ProcessingRequest& hinted = on_headers ? headers : body;
      text ? HintText(hinted, " 10.0.0.3:8000 ,10.9.9.9:1") : Hint(hinted, {"10.0.0.3:8000", "10.9.9.9:1"});
      Give(headers);
      const auto replies = Give(body);
      ASSERT_EQ(replies.size(), 2u);
      EXPECT_EQ(Destination(replies[0]), "10.0.0.3:8000");
    }
  }
}

TEST_F(SessionTest, TheLaterHintCounts) {
  Start(Idle(4));
  pb::ProcessingRequest headers = RequestHeaders();
  Hint(headers, {"10.0.0.3:8000"});
  pb::ProcessingRequest body = RequestBody(kChat, true);
  Hint(body, {"10.0.0.2"});
  Give(headers);
  EXPECT_EQ(Destination(Give(body).at(0)), "10.0.0.2:8000");
}

TEST_F(SessionTest, HintOnAGetIsHonoured) {
  Start(Idle(4));
  pb::ProcessingRequest headers = RequestHeaders(true);
  Hint(headers, {"10.0.0.4:8000"});
  EXPECT_EQ(Destination(Give(headers).at(0)), "10.0.0.4:8000");
}

TEST_F(SessionTest, AnEmptyHintAllowsNobodyAnEmptyNamespaceSaysNothing) {
  Start(Idle(2));
  pb::ProcessingRequest headers = RequestHeaders(true);
  Hint(headers, {});
  ExpectRefused(Give(headers), 503, "failed to find endpoint candidates");
  NewExchange();
  headers = RequestHeaders(true);
  (*headers.mutable_metadata_context()
        ->mutable_filter_metadata())["envoy.lb.subset_hint"];  // as kgateway sends it
  EXPECT_EQ(Give(headers).size(), 1u);
  EXPECT_FALSE(sink_->ended());
}

// ---- Refusals.

TEST_F(SessionTest, RefusalsByStatus) {
  Start({{.name = "full", .waiting = 60, .kv_usage = 0.9f}},
        {tests::Model("llama2", api::Criticality::kSheddable)});
  Give(RequestHeaders());
  auto replies = Give(RequestBody(kChat, true));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].immediate_response().status().code(), 429);
  EXPECT_EQ(Set(replies[0].immediate_response().headers())["x-llm-d-request-dropped-reason"],
            "rejected-saturated");

  NewExchange();
  Give(RequestHeaders());
  ExpectRefused(Give(RequestBody(R"({"model":"gpt","messages":[{"role":"user","content":"hi"}]})", true)),
                404, "inference error: NotFound - ");

  NewExchange();
  Give(RequestHeaders());
  ExpectRefused(Give(RequestBody("{", true)), 400, "inference error: BadRequest - ");

  NewExchange();
  Give(RequestHeaders());
  ExpectRefused(Give(RequestBody("", true)), 400, "inference error: BadRequest - ");

  Start({});
  ExpectRefused(Give(RequestHeaders(true)), 503, "inference error: ServiceUnavailable - ");
}

TEST_F(SessionTest, ARefusalSaysWhoRefusedAndWhenToComeAgain) {
  Start({{.name = "a", .waiting = 100}}, {},
        {.config = tests::ConfigOf("plugins: [{type: utilization-filter, parameters: {conditions: [{metric: "
                                   "waiting-queue, maxValue: 5}]}}]")});
  const auto replies = Give(RequestHeaders(true));
  const auto& refusal = replies.at(0).immediate_response();
  EXPECT_EQ(refusal.status().code(), 429);
  auto headers = Set(refusal.headers());
  EXPECT_EQ(headers["x-llm-d-request-dropped-reason"], "rejected-saturated");
  EXPECT_EQ(headers["x-fairway-refused-by"], "filters; plugin=utilization-filter");
  EXPECT_GE(std::stoi(headers["retry-after"]), 1);

  Start(Idle(1), {}, {.config = tests::ConfigOf("plugins: [{type: prefix-cache-scorer}]")});
  Give(RequestHeaders(false, {{"prefer", "if-available"}}));
  ExpectRefused(Give(RequestBody(kChat, true)), 412, "PreconditionFailed - no decode worker has");
}

TEST_F(SessionTest, ABodyTooLargeIsRefusedWhenItGetsThere) {
  options_.max_body = 100;
  Start(Idle(1));
  Give(RequestHeaders());
  EXPECT_THAT(Give(RequestBody(std::string(100, ' '), false)), IsEmpty());
  ExpectRefused(Give(RequestBody("x", false)), 413, "larger than 100 bytes");
}

TEST_F(SessionTest, OutOfMemoryEndsQuietly) {
  Start(Idle(1));
  Give(RequestHeaders());
  sink_->room() = 10;
  EXPECT_THAT(Give(RequestBody(kChat, true)), IsEmpty());
  EXPECT_TRUE(session_->finished());  // the transport has ended the call
}

TEST_F(SessionTest, AStalledBodyTimesOut) {
  Start(Idle(1));
  Give(RequestHeaders());
  clock_.Advance(options_.body_timeout - 1);
  Give(RequestBody("{", false));  // progress
  EXPECT_EQ(session_->deadline(), clock_.Now() + options_.body_timeout);
  clock_.Advance(options_.body_timeout);
  session_->OnDeadline();
  ExpectRefused(sink_->Take(), 408, "did not come in time");
  EXPECT_EQ(session_->deadline(), 0);
}

TEST_F(SessionTest, ABodyThatDripsTimesOutToo) {
  Start(Idle(1));
  Give(RequestHeaders());
  int drops = 0;
  while (!sink_->ended() && drops < 100) {
    Give(RequestBody(" ", false));
    ++drops;
    clock_.Advance(29 * base::kSecond);
    if (clock_.Now() >= session_->deadline()) session_->OnDeadline();
  }
  EXPECT_EQ(drops, 11);  // 300 s
  ExpectRefused(sink_->Take(), 408, "did not come in time");
}

TEST_F(SessionTest, BufferedWaitsLonger) {
  Start(Idle(1));
  NewExchange(Modes{.request = pb::BUFFERED});
  Give(RequestHeaders());
  EXPECT_EQ(session_->deadline(), clock_.Now() + options_.buffered_timeout);
}

TEST_F(SessionTest, ObservabilityModeIsNotAnswered) {
  Start(Idle(1));
  pb::ProcessingRequest headers = RequestHeaders(true);
  headers.set_observability_mode(true);
  EXPECT_THAT(Give(headers), IsEmpty());
  EXPECT_EQ(AllInflight(), 0u);
  session_->OnHalfClose();
  EXPECT_TRUE(sink_->ended());
}

// It would change who an answer is for that is on its way.
TEST_F(SessionTest, ObservabilityModeCannotBeginLater) {
  for (const bool decided : {false, true}) {
    Start(Idle(1));
    const std::string body = R"({"model":"m","messages":[{"role":"user","content":"x"}],"x":")" +
                             std::string(200'000, 'a') + "\"}";
    Give(RequestHeaders());
    pb::ProcessingRequest whole = RequestBody(body, decided);
    session_->OnMessage(whole.SerializeAsString());
    ASSERT_FALSE(sink_->ended()) << sink_->Take().back().ShortDebugString().substr(0, 300);
    pb::ProcessingRequest observed;
    observed.set_observability_mode(true);
    session_->OnMessage(observed.SerializeAsString());
    EXPECT_TRUE(sink_->ended());
    EXPECT_EQ(sink_->status(), net::GrpcStatus::kInvalidArgument);
    session_.reset();  // what was given by reference stays
    const auto replies = sink_->Take();
    bool end = false;
    if (decided) {
      EXPECT_TRUE(Pieces(replies, 1, false, end) == body);
    } else {
      EXPECT_THAT(replies, IsEmpty());
    }
  }
}

TEST_F(SessionTest, TooManyHeadersAreRefused) {
  Start(Idle(1));
  for (const int count : {9'000, 10'001}) {
    NewExchange();
    Headers many;
    for (int i = 0; i < count; ++i) many.emplace_back("x-fairway-" + std::to_string(i), "1");
    const auto replies = Give(RequestHeaders(true, many));
    ASSERT_EQ(replies.size(), 1u);
    EXPECT_EQ(replies[0].has_immediate_response(), count > 10'000);
    const int status = replies[0].immediate_response().status().code();
    EXPECT_EQ(status, count > 10'000 ? 431 : 0);
  }
}

// ---- Memory is short.

TEST_F(SessionTest, FullDuplexPassesTheRestThrough) {
  Start(Idle(1));
  const std::string body = R"({"model":"llama2","messages":[],"x":")" + std::string(200'000, 'a') + "\"}";
  Give(RequestHeaders());
  EXPECT_THAT(Give(RequestBody(body.substr(0, 100'000), false)), IsEmpty());
  EXPECT_TRUE(session_->LetGo());
  EXPECT_EQ(sink_->room(), RecordingSink::kRoom);
  auto replies = sink_->Take();
  EXPECT_FALSE(Destination(replies.at(0)).empty());
  bool end = false;
  std::string echoed = Pieces(replies, 1, false, end);
  EXPECT_FALSE(end);
  EXPECT_FALSE(session_->LetGo());  // there is nothing left
  echoed += Pieces(Give(RequestBody(body.substr(100'000, 50'000), false)), 0, false, end);
  // The rest in a message that is taken in pieces.
  const std::string bytes = RequestBody(body.substr(150'000), true).SerializeAsString();
  const auto head = ParseBodyHead(std::string_view(bytes).substr(0, 100), bytes.size());
  ASSERT_TRUE(head);
  ASSERT_TRUE(session_->TakesBodyPieces());
  session_->OnBodyPiece(head->body);
  session_->OnBodyPiece(std::string_view(bytes).substr(100, head->body_left));
  session_->OnBodyTail(std::string_view(bytes).substr(bytes.size() - head->tail), head->inner_tail);
  EXPECT_EQ(sink_->room(), RecordingSink::kRoom);
  echoed += Pieces(sink_->Take(), 0, false, end);
  EXPECT_TRUE(end);
  EXPECT_TRUE(echoed == body);
  EXPECT_EQ(session_->deadline(), 0);
  EXPECT_EQ(Give(ResponseHeaders()).size(), 1u);
  EXPECT_EQ(AllInflight(), 1u);
  EXPECT_THAT(registry_->Render(), HasSubstr(R"(fairway_extproc_events_total{event="decided_early"} 1)"));
}

TEST_F(SessionTest, FullDuplexPassesTrailersThroughToo) {
  Start(Idle(1));
  Give(RequestHeaders());
  Give(RequestBody(kChat, false));
  EXPECT_TRUE(session_->LetGo());
  EXPECT_EQ(sink_->Take().size(), 2u);
  EXPECT_NE(session_->deadline(), 0);  // the wait for the rest has an end
  const auto replies = Give(RequestTrailers());
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_TRUE(replies[0].has_request_trailers());
  EXPECT_EQ(session_->deadline(), 0);
}

TEST_F(SessionTest, BufferedDecidesWithoutTheBody) {
  for (const auto mode : {pb::BUFFERED, pb::BUFFERED_PARTIAL}) {
    Start(Idle(1));
    NewExchange(Modes{.request = mode});
    Give(RequestHeaders());
    const std::string bytes =
        RequestBody(R"({"model":"m","x":")" + std::string(100'000, 'a') + "\"}", true).SerializeAsString();
    const auto head = ParseBodyHead(std::string_view(bytes).substr(0, 50'000), bytes.size());
    ASSERT_TRUE(head);
    session_->OnBodyPiece(head->body);
    EXPECT_TRUE(session_->LetGo());
    EXPECT_EQ(sink_->room(), RecordingSink::kRoom);
    session_->OnBodyPiece(std::string_view(bytes).substr(50'000, head->body_left));
    EXPECT_EQ(sink_->room(), RecordingSink::kRoom);
    session_->OnBodyTail(std::string_view(bytes).substr(bytes.size() - head->tail), head->inner_tail);
    const auto replies = sink_->Take();
    ASSERT_EQ(replies.size(), 1u);
    EXPECT_TRUE(replies[0].has_request_body());
    EXPECT_FALSE(Metadata(replies[0]).empty());
    EXPECT_FALSE(sink_->ended());
  }
}

TEST_F(SessionTest, StreamedIsDecidedByWhatCame) {
  Start(Idle(1));
  NewExchange(Modes{.request = pb::STREAMED, .without_waiting = true});
  Give(RequestHeaders());
  EXPECT_THAT(Give(RequestBody("{\"messages\":[\"", false)), IsEmpty());
  EXPECT_TRUE(session_->LetGo());
  const auto replies = sink_->Take();
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_FALSE(Destination(replies[0]).empty());
  EXPECT_EQ(Give(RequestBody("more", true)).size(), 1u);
  EXPECT_FALSE(session_->LetGo());
}

TEST_F(SessionTest, NothingToLetGo) {
  Start(Idle(1));
  EXPECT_FALSE(session_->LetGo());  // nothing is known of the request
  NewExchange(Modes{.request = pb::STREAMED});
  Give(RequestHeaders());
  EXPECT_FALSE(session_->LetGo());  // its first part is needed to go with the rest
  NewExchange();
  Give(RequestHeaders());
  Give(RequestBody(kChat, true));
  EXPECT_FALSE(session_->LetGo());
}

// ---- What is kept is short, or counts.

TEST_F(SessionTest, LongIdsAreCut) {
  Start(Idle(1));
  const std::string id = std::string(255, 'i') + "\xc3\xa9" + std::string(100'000, 'i');
  std::string seen;
  router_.reset();
  routing::RouterOptions options;
  options.explain = [&seen](std::string_view text) { seen += text; };
  Start(Idle(1), {}, options);
  Give(RequestHeaders(true, {{"x-request-id", id},
                             {"x-gateway-inference-fairness-id", id},
                             {"x-gateway-inference-objective", id}}));
  EXPECT_THAT(seen, HasSubstr(std::string(100, 'i')));
  EXPECT_LT(seen.size(), 2000u);
  EXPECT_EQ(sink_->room(), RecordingSink::kRoom);
}

TEST_F(SessionTest, WhatALongPromptTeachesComesBehindTheAnswer) {
  Start(Idle(1));
  int told = 0;
  shared_->has_put_off = [&] { ++told; };
  Give(RequestHeaders());
  Give(RequestBody(kChat, true));
  EXPECT_EQ(told, 0);
  const std::string text(100 * 256, 'x');
  NewExchange();
  Give(RequestHeaders());
  Give(RequestBody(R"({"model":"m","messages":[{"role":"user","content":")" + text + R"("}]})", true));
  EXPECT_EQ(told, 1);
  EXPECT_TRUE(routing::Router::HasPutOff(*worker_));
  routing::Router::RunPutOff(*worker_);
  EXPECT_FALSE(routing::Router::HasPutOff(*worker_));
}

TEST_F(SessionTest, ManyHeadersToRemoveCount) {
  Start(Idle(1));
  Headers many;
  for (int i = 0; i < 60; ++i) many.emplace_back("x-fairway-" + std::string(1000, 'a' + i % 26), "x");
  Give(RequestHeaders(false, many));
  EXPECT_LE(sink_->room(), RecordingSink::kRoom - 20'000);
}

TEST_F(SessionTest, AFirstMessageThatSaysNothingHasToBeFollowed) {
  Start(Idle(1));
  Give(pb::ProcessingRequest());
  EXPECT_EQ(session_->deadline(), clock_.Now() + options_.start_timeout);
  EXPECT_EQ(Give(RequestHeaders(true)).size(), 1u);
  EXPECT_EQ(session_->deadline(), 0);
}

TEST_F(SessionTest, ObservedBodiesInPiecesAreNotKept) {
  Start(Idle(1));
  NewExchange(std::nullopt);
  const size_t room = sink_->room();
  pb::ProcessingRequest body = RequestBody(kChat, false);
  body.set_observability_mode(true);
  const std::string bytes = body.SerializeAsString();
  const auto head = ParseBodyHead(std::string_view(bytes).substr(0, 30), bytes.size());
  ASSERT_TRUE(head);
  session_->OnBodyPiece(head->body);
  session_->OnBodyPiece(std::string_view(bytes).substr(30, head->body_left));
  session_->OnBodyTail(std::string_view(bytes).substr(bytes.size() - head->tail), head->inner_tail);
  EXPECT_EQ(session_->deadline(), 0);
  EXPECT_EQ(sink_->room(), room);
  EXPECT_FALSE(session_->TakesBodyPieces());
}

TEST_F(SessionTest, MalformedMessagesEndTheCall) {
  Start(Idle(1));
  session_->OnMessage("\x12\xff");
  EXPECT_TRUE(sink_->ended());
  EXPECT_EQ(sink_->status(), net::GrpcStatus::kInvalidArgument);
}

// ---- Responses.

class ResponseTest : public SessionTest {
 protected:
  void Answer(Modes modes = {}, std::vector<api::InferenceModel> models = {}, size_t servers = 2) {
    Start(Idle(servers), std::move(models));
    NewExchange(modes);
    auto replies = Give(RequestHeaders());
    if (modes.request == pb::FULL_DUPLEX_STREAMED) replies = Give(RequestBody(kChat, true));
    ASSERT_FALSE(replies.empty());
    first_choice_ = Destination(replies[0]);
  }
  std::string first_choice_;
};

TEST_F(ResponseTest, HeadersAreNotEchoed) {
  Answer();
  const auto replies = Give(ResponseHeaders({{"x-custom", "1"}}));
  ASSERT_EQ(replies.size(), 1u);
  const auto& response = replies[0].response_headers().response();
  EXPECT_THAT(Set(response.header_mutation()),
              ElementsAre(testing::Pair("x-went-into-resp-headers", "true")));
  EXPECT_FALSE(response.clear_route_cache());
  EXPECT_THAT(Removed(response.header_mutation()), IsEmpty());
}

TEST_F(ResponseTest, ASessionIsToldItsEndpointAndStaysThere) {
  const Modes modes{.request = pb::NONE, .response = pb::NONE};
  Start(Idle(4), {}, {.config = tests::ConfigOf(tests::kSessionConfig)});
  NewExchange(modes);
  const std::string first = Destination(Give(RequestHeaders()).at(0));
  auto told = Set(Give(ResponseHeaders()).at(0).response_headers().response().header_mutation());
  EXPECT_EQ(told.size(), 2u);
  const std::string token = told["x-session-token"];
  EXPECT_FALSE(token.empty());
  for (int i = 0; i < 20; ++i) {
    NewExchange(modes);
    ASSERT_EQ(Destination(Give(RequestHeaders(false, {{"x-session-token", token}})).at(0)), first);
    told = Set(Give(ResponseHeaders()).at(0).response_headers().response().header_mutation());
    ASSERT_EQ(told["x-session-token"], token);
  }
}

TEST_F(ResponseTest, AServerIsAskedForItsLoadWhereThatIsWanted) {
  for (const bool wanted : {false, true}) {
    for (const bool client_asks : {false, true}) {
      Start(Idle(1), {}, {.ask_load = wanted});
      NewExchange(Modes{.request = pb::NONE, .response = pb::NONE});
      Headers more;
      if (client_asks) more = {{"endpoint-load-metrics-format", "JSON"}};
      const bool asks = wanted && !client_asks;
      auto told = Set(Give(RequestHeaders(false, more)).at(0).request_headers().response().header_mutation());
      EXPECT_EQ(told["endpoint-load-metrics-format"], asks ? "TEXT" : "");
      const auto replies =
          Give(ResponseHeaders({{"endpoint-load-metrics", ""},
                                {"endpoint-load-metrics", "TEXT named_metrics.num_requests_waiting=9"},
                                {"endpoint-load-metrics", ""}}));
      ASSERT_EQ(replies.size(), 1u);
      EXPECT_EQ(Removed(replies[0].response_headers().response().header_mutation()),
                asks ? std::multiset<std::string>{"endpoint-load-metrics"} : std::multiset<std::string>{})
          << "what we asked for is for us, and what the client asked for is not";
      EXPECT_EQ(pool_->pool()->endpoints[0].cell->waiting(), asks ? 9u : 0u);
    }
  }
}

TEST_F(ResponseTest, TheReservationMovesToWhoServed) {
  Answer();
  const size_t first = first_choice_ == "10.0.0.1:8000" ? 0 : 1;
  EXPECT_EQ(Inflight(first), 1u);
  Give(ResponseHeaders({}, first == 0 ? "10.0.0.2:8000" : "10.0.0.1:8000"));
  EXPECT_EQ(Inflight(first), 0u);
  EXPECT_EQ(Inflight(1 - first), 1u);
  Give(ResponseBody("{}", true));
  EXPECT_EQ(AllInflight(), 0u);
}

TEST_F(ResponseTest, FullDuplexEchoesAtOnce) {
  Answer();
  Give(ResponseHeaders());
  bool end = true;
  EXPECT_EQ(Pieces(Give(ResponseBody("data: 1\n\n", false)), 0, true, end), "data: 1\n\n");
  EXPECT_FALSE(end);
  const std::string large(130'000, 'x');
  const auto pieces = Give(ResponseBody(large, false));
  EXPECT_EQ(pieces.size(), 3u);
  EXPECT_EQ(Pieces(pieces, 0, true, end), large);
  EXPECT_FALSE(end);
  const auto last = Give(ResponseBody("", true));
  ASSERT_EQ(last.size(), 1u);
  EXPECT_EQ(Pieces(last, 0, true, end), "");
  EXPECT_TRUE(end);
  EXPECT_EQ(AllInflight(), 0u);
}

TEST_F(ResponseTest, TrailersEndTheResponse) {
  Answer();
  Give(ResponseHeaders());
  Give(ResponseBody("x", false));
  const auto replies = Give(ResponseTrailers());
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_TRUE(replies[0].has_response_trailers());
  EXPECT_EQ(AllInflight(), 0u);
}

TEST_F(ResponseTest, StreamedAndBufferedLeaveTheBodyAlone) {
  for (const auto mode : {pb::STREAMED, pb::BUFFERED, pb::BUFFERED_PARTIAL}) {
    Answer({.response = mode});
    Give(ResponseHeaders());
    const auto replies = Give(ResponseBody("abc", true));
    ASSERT_EQ(replies.size(), 1u);
    EXPECT_TRUE(replies[0].has_response_body());
    EXPECT_FALSE(replies[0].response_body().response().has_body_mutation());
  }
}

TEST_F(ResponseTest, UsageIsCounted) {
  Answer({}, {}, 1);
  Give(ResponseHeaders({{"content-type", "text/event-stream"}}));
  Give(ResponseBody("data: {\"usage\":{\"prompt_tokens\":7,\"compl", false));
  Give(ResponseBody("etion_tokens\":5,\"total_tokens\":12}}\n\n", false));
  Give(ResponseBody("data: [DONE]\n\n", true));
  const std::string page = registry_->Render();
  EXPECT_THAT(page, HasSubstr("llm_d_epp_request_output_tokens_sum"));
  EXPECT_THAT(page, testing::ContainsRegex("llm_d_epp_request_output_tokens_sum\\{[^}]*\\} 5"));
}

TEST_F(ResponseTest, TheClientSeesTheNameItAskedFor) {
  Answer({}, kRewriting, 1);
  Give(ResponseHeaders());
  bool end = false;
  auto pieces = Give(ResponseBody(R"({"id":"1","model":"llama)", false));
  EXPECT_EQ(Pieces(pieces, 0, true, end), R"({"id":"1","model":)");
  pieces = Give(ResponseBody(R"(2-v1","x":1})", true));
  EXPECT_EQ(Pieces(pieces, 0, true, end), R"("llama2","x":1})");
  EXPECT_TRUE(end);
}

TEST_F(ResponseTest, HeldBytesComeBeforeTrailers) {
  Answer({}, kRewriting, 1);
  Give(ResponseHeaders());
  Give(ResponseBody(R"({"model":"llama)", false));
  const auto replies = Give(ResponseTrailers());
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[0].response_body().response().body_mutation().streamed_response().body(), R"("llama)");
  EXPECT_TRUE(replies[1].has_response_trailers());
}

TEST_F(ResponseTest, BufferedRenameCorrectsTheLength) {
  Answer({.response = pb::BUFFERED}, kRewriting, 1);
  Give(ResponseHeaders({{"content-length", "21"}}));
  const auto replies = Give(ResponseBody(R"({"model":"llama2-v1"})", true));
  ASSERT_EQ(replies.size(), 1u);
  const auto& response = replies[0].response_body().response();
  EXPECT_EQ(response.body_mutation().body(), R"({"model":"llama2"})");
  EXPECT_EQ(Set(response.header_mutation())["content-length"], "18");
}

TEST_F(ResponseTest, CompressedBodiesAreLeftAlone) {
  Answer({}, kRewriting, 1);
  Give(ResponseHeaders({{"content-encoding", "gzip"}}));
  bool end = false;
  EXPECT_EQ(Pieces(Give(ResponseBody(R"({"model":"llama2-v1"})", true)), 0, true, end),
            R"({"model":"llama2-v1"})");
}

TEST_F(ResponseTest, WithoutARequest) {
  Start(Idle(1));
  EXPECT_EQ(Give(ResponseHeaders()).size(), 1u);
  bool end = false;
  EXPECT_EQ(Pieces(Give(ResponseBody("abc", true)), 0, true, end), "abc");
  EXPECT_TRUE(end);
  EXPECT_FALSE(sink_->ended());
}

TEST_F(ResponseTest, AnEarlyAnswerEndsTheWaitForTheBody) {
  Start(Idle(1));
  Give(RequestHeaders());
  EXPECT_EQ(Give(ResponseHeaders()).size(), 1u);
  EXPECT_EQ(session_->deadline(), 0);
  EXPECT_THAT(Give(RequestBody(kChat, true)), IsEmpty());
  EXPECT_FALSE(sink_->ended());
}

TEST_F(ResponseTest, HowTheTicketEnds) {
  Answer({}, {}, 1);
  EXPECT_EQ(Inflight(), 1u);
  session_->OnGone();  // before any response: the client gave up
  EXPECT_EQ(Inflight(), 0u);
  EXPECT_THAT(registry_->Render(), HasSubstr("ClientClosedRequest"));

  Answer({.response = pb::NONE}, {}, 1);
  Give(ResponseHeaders());
  session_->OnHalfClose();  // the rest was not for us
  EXPECT_EQ(Inflight(), 0u);
  EXPECT_THAT(registry_->Render(), testing::Not(HasSubstr("ClientClosedRequest")));
}

// A client that leaves in the middle of its answer: the gateway ends the exchange, by half-close or reset.
// The place is free at once, not only when the next page comes.
TEST_F(ResponseTest, AnAnswerThatEndsInTheMiddleGivesThePlaceBackAtOnce) {
  for (const auto mode : {pb::FULL_DUPLEX_STREAMED, pb::STREAMED, pb::BUFFERED}) {
    for (const bool reset : {true, false}) {
      for (const bool piece : {true, false}) {
        Answer({.response = mode}, {}, 1);
        EXPECT_EQ(Inflight(), 1u);
        Give(ResponseHeaders());
        if (piece && mode != pb::BUFFERED) Give(ResponseBody("{", false));
        reset ? session_->OnGone() : session_->OnHalfClose();
        EXPECT_EQ(Inflight(), 0u);
        // Ended, not only no longer watched.
        EXPECT_THAT(registry_->Render(), HasSubstr("ClientClosedRequest")) << mode << reset << piece;
      }
    }
  }
  // What we end ourselves the gateway may let go on: the next page tells.
  Answer({}, {}, 1);
  Give(ResponseHeaders());
  session_->OnMessage("not a message");
  EXPECT_THAT(registry_->Render(), testing::Not(HasSubstr("ClientClosedRequest")));
}

TEST_F(ResponseTest, ServerErrorsAreCountedByTheRealStatus) {
  Answer({}, {}, 1);
  pb::ProcessingRequest headers;
  Add({{":status", "500"}}, headers.mutable_response_headers()->mutable_headers());
  Give(headers);
  EXPECT_THAT(registry_->Render(), HasSubstr("ModelServerError"));
}

TEST_F(ResponseTest, ThreeUnavailableInARowAreARefusalButNotEnvoysOwnLimits) {
  Answer();
  const auto unavailable = [this](const Headers& more, int times) {
    for (int i = 0; i < times; ++i) {
      NewExchange({});
      Give(RequestHeaders());
      Give(RequestBody(kChat, true));
      pb::ProcessingRequest message = ResponseHeaders(more, "10.0.0.1:8000", true);
      message.mutable_response_headers()->mutable_headers()->mutable_headers(0)->set_raw_value("503");
      Give(message);
    }
  };
  unavailable({{"x-envoy-overloaded", "true"}}, 5);
  EXPECT_FALSE(pool_->pool()->endpoints[0].cell->refusing());
  unavailable({}, 3);
  EXPECT_TRUE(pool_->pool()->endpoints[0].cell->refusing());
}

TEST_F(ResponseTest, ASentBodyIsFreed) {
  Answer({}, {}, 1);
  EXPECT_EQ(sink_->room(), RecordingSink::kRoom);
}

// Nothing is kept of a model server's event that does not end, and its usage is found all the same.
TEST_F(ResponseTest, UnfinishedEventsAreNotKept) {
  Answer({}, {}, 1);
  Give(ResponseHeaders({{"content-type", "text/event-stream"}}));
  Give(ResponseBody("data: {\"x\":\"" + std::string(100'000, 'x'), false));
  EXPECT_EQ(sink_->room(), RecordingSink::kRoom);
  EXPECT_EQ(
      Give(ResponseBody("more\",\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n", true)).size(),
      1u);
  EXPECT_THAT(registry_->Render(),
              testing::ContainsRegex("llm_d_epp_request_output_tokens_sum\\{[^}]*\\} 2"));
}

// What was found in a body is a multiple of some bodies: it counts, and goes when it has had its use.
TEST_F(SessionTest, WhatIsFoundInABodyCountsUntilItIsDecided) {
  Start(Idle(1));
  std::string body = R"({"model":"m","messages":[)";
  for (int i = 0; i < 4000; ++i) body += R"({"role":"user","content":"x"},)";
  Give(RequestHeaders());
  Give(RequestBody(body, false));
  EXPECT_LT(sink_->room(), RecordingSink::kRoom - body.size() - 60'000);
  Give(RequestBody(R"({"role":"user","content":"x"}]})", true));
  EXPECT_FALSE(sink_->ended());
  EXPECT_EQ(sink_->room(), RecordingSink::kRoom);
}

// So do the names that an answer is given back under, which clients may make up.
TEST_F(SessionTest, LongNamesOfAnswersCount) {
  Start(Idle(1));
  Give(RequestHeaders(false, {{"x-gateway-model-name-rewrite", "m"}}));
  Give(RequestBody(
      R"({"model":")" + std::string(4000, 'n') + R"(","messages":[{"role":"user","content":"hi"}]})", true));
  ASSERT_FALSE(sink_->ended());
  EXPECT_EQ(sink_->room(), RecordingSink::kRoom);
  Give(ResponseHeaders());
  EXPECT_LT(sink_->room(), RecordingSink::kRoom - 4000);
}

// ---- Requests whose tokens are asked for.

class TokensTest : public SessionTest {
 protected:
  void Start(size_t servers = 2) {
    routing::RouterOptions options;
    options.config = tests::ConfigOf(
        "plugins:\n"
        "- type: token-producer\n"
        "  parameters: {modelName: base, vllm: {url: 'http://10.9.9.9:81/at', timeout: 2s}}\n"
        "- type: precise-prefix-cache-producer\n"
        "- type: prefix-cache-scorer\n"
        "- type: max-score-picker\n");
    SessionTest::Start(Idle(servers), {}, options);
    shared_->ask_tokens = [this](request::TokenClient::Question question,
                                 request::TokenClient::Answer answer) {
      questions.push_back(std::move(question));
      answers.push_back(std::move(answer));
    };
  }
  static std::shared_ptr<const payload::PromptTokens> Tokens() {
    return std::make_shared<const payload::PromptTokens>(
        payload::PromptTokens{.tokens = {1, 2, 3}, .ends = {3}});
  }
  std::vector<request::TokenClient::Question> questions;
  std::vector<request::TokenClient::Answer> answers;
};

TEST_F(TokensTest, ARequestWaitsForItsTokens) {
  for (const auto mode : {pb::FULL_DUPLEX_STREAMED, pb::BUFFERED, pb::STREAMED}) {
    Start(1);
    NewExchange(Modes{mode, pb::NONE, true});
    Give(RequestHeaders());
    EXPECT_THAT(Give(RequestBody(kChat, true)), IsEmpty()) << mode;
    ASSERT_EQ(questions.size(), 1u) << mode;
    EXPECT_EQ(questions[0].host, "10.9.9.9");
    EXPECT_EQ(questions[0].port, 81);
    EXPECT_EQ(questions[0].path, "/at/v1/chat/completions/render");
    EXPECT_EQ(questions[0].body, R"({"model":"base","messages":[{"role":"user","content":"hi"}]})");
    EXPECT_EQ(questions[0].timeout, 2 * base::kSecond);
    EXPECT_EQ(AllInflight(), 0u) << "nothing is decided";
    EXPECT_GT(session_->deadline(), clock_.Now() + 2 * base::kSecond);
    answers[0](Tokens());
    const auto replies = sink_->Take();
    ASSERT_FALSE(replies.empty()) << mode;
    EXPECT_EQ(Metadata(replies[0]), "10.0.0.1:8000");
    EXPECT_EQ(AllInflight(), 1u);
    answers[0](Tokens());  // twice is once
    EXPECT_THAT(sink_->Take(), IsEmpty());
    questions.clear();
    answers.clear();
  }
}

TEST_F(TokensTest, WithoutAnAnswerItIsDecidedByWhatElseIsKnown) {
  Start(1);
  Give(RequestHeaders());
  Give(RequestBody(kChat, true));
  answers.at(0)(nullptr);
  EXPECT_EQ(Destination(sink_->Take().at(0)), "10.0.0.1:8000");
  NewExchange();
  Give(RequestHeaders());
  Give(RequestBody(kChat, true));
  clock_.Advance(4 * base::kSecond);
  ASSERT_LE(session_->deadline(), clock_.Now());
  session_->OnDeadline();
  EXPECT_EQ(Destination(sink_->Take().at(0)), "10.0.0.1:8000");
  answers.at(1)(Tokens());
  EXPECT_THAT(sink_->Take(), IsEmpty());
}

TEST_F(TokensTest, NobodyWaitsForARequestThatIsGone) {
  Start(1);
  Give(RequestHeaders());
  Give(RequestBody(kChat, true));
  session_->OnGone();
  answers.at(0)(Tokens());
  EXPECT_EQ(AllInflight(), 0u);
  NewExchange();
  Give(RequestHeaders());
  Give(RequestBody(kChat, true));
  session_.reset();
  answers.at(1)(Tokens());
  EXPECT_EQ(AllInflight(), 0u);
  // Somebody answered before.
  NewExchange();
  Give(RequestHeaders());
  Give(RequestBody(kChat, true));
  Give(ResponseHeaders());
  answers.at(2)(Tokens());
  EXPECT_EQ(AllInflight(), 0u);
}

TEST_F(TokensTest, WhatHasTokensOrNoTextIsNotAskedFor) {
  Start(1);
  const auto ask = [this](std::string_view path, std::string_view body) {
    NewExchange();
    pb::ProcessingRequest headers = RequestHeaders();
    for (auto& header : *headers.mutable_request_headers()->mutable_headers()->mutable_headers()) {
      if (header.key() == ":path") header.set_raw_value(std::string(path));
    }
    Give(headers);
    Give(RequestBody(body, true));
    return questions.size();
  };
  EXPECT_EQ(ask("/v1/completions", R"({"model":"m","prompt":[1,2,3]})"), 0u);
  EXPECT_EQ(ask("/v1/embeddings", R"({"model":"m","input":"text"})"), 0u);
  EXPECT_EQ(ask("/v1/chat/completions", "broken"), 0u);
  EXPECT_EQ(ask("/v1/completions", R"({"model":"m","prompt":"text"})"), 1u);
  EXPECT_EQ(questions[0].path, "/at/v1/completions/render");
}

// ---- Messages in no sensible order: an answer, nothing, or an end; never a crash or a reservation left
// behind.

TEST_F(SessionTest, AnyOrderOfMessages) {
  base::Random random(11);
  for (int round = 0; round < 4000; ++round) {
    if (round % 200 == 0) Start(Idle(2), round % 400 == 0 ? kRewriting : std::vector<api::InferenceModel>());
    std::optional<Modes> modes;
    if (random.Below(6) != 0) {
      modes = Modes{static_cast<pb::BodySendMode>(random.Below(5)),
                    static_cast<pb::BodySendMode>(random.Below(5)), random.Below(2) == 0};
    }
    NewExchange(modes);
    for (uint64_t n = 1 + random.Below(8); n > 0; --n) {
      const size_t cut = random.Below(kChat.size());
      switch (random.Below(9)) {
        case 0:
          Give(RequestHeaders(random.Below(4) == 0, {{"content-length", "62"}}));
          break;
        case 1:
          Give(RequestBody(kChat.substr(0, cut), random.Below(3) == 0));
          break;
        case 2:
          Give(RequestBody(kChat, random.Below(2) == 0));
          break;
        case 3:
          Give(RequestTrailers());
          break;
        case 4:
          Give(ResponseHeaders({}, "10.0.0.2:8000", random.Below(4) == 0));
          break;
        case 5:
          Give(ResponseBody(R"({"model":"llama2-v1"})", random.Below(2) == 0));
          break;
        case 6:
          Give(ResponseTrailers());
          break;
        case 7:
          random.Below(2) == 0 ? session_->OnDeadline() : static_cast<void>(session_->LetGo());
          sink_->Take();
          break;
        default:
          Give(pb::ProcessingRequest());
      }
    }
    random.Below(2) == 0 ? session_->OnGone() : session_->OnHalfClose();
    session_.reset();
    ASSERT_EQ(AllInflight(), 0u) << "round " << round;
  }
}

}  // namespace
}  // namespace fairway::ext_proc
