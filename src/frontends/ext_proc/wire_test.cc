// Our reader and writer against protobuf's own parser, both ways.
#include "frontends/ext_proc/wire.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "base/random.h"
#include "ext_proc.pb.h"

namespace fairway::ext_proc {
namespace {

namespace pb = envoy::service::ext_proc::v3;

std::string Text(base::Random& random, size_t max) {
  std::string text(random.Below(max + 1), ' ');
  for (char& c : text) c = static_cast<char>('!' + random.Below(90));
  return text;
}
std::string Bytes(base::Random& random, size_t max) {
  std::string text(random.Below(max + 1), ' ');
  for (char& c : text) c = static_cast<char>(random.Next());
  return text;
}

void FillHeaders(base::Random& random, pb::HeaderMap* map) {
  for (uint64_t n = random.Below(5); n > 0; --n) {
    auto* header = map->add_headers();
    header->set_key(Text(random, 300));
    if (random.Below(2) == 0) header->set_value(Text(random, 200));
    if (random.Below(2) == 0) header->set_raw_value(Bytes(random, 200));
  }
}

void FillValue(base::Random& random, google::protobuf::Value* value, int depth) {
  switch (random.Below(depth > 0 ? 6 : 4)) {
    case 0:
      value->set_null_value(google::protobuf::NULL_VALUE);
      break;
    case 1:
      value->set_number_value(random.NextDouble() * 1e6);
      break;
    case 2:
      value->set_string_value(Text(random, 200));
      break;
    case 3:
      value->set_bool_value(random.Below(2) == 1);
      break;
    case 4:
      for (uint64_t n = random.Below(4); n > 0; --n) {
        FillValue(random, &(*value->mutable_struct_value()->mutable_fields())[Text(random, 20)], depth - 1);
      }
      break;
    default:
      for (uint64_t n = random.Below(4); n > 0; --n)
        FillValue(random, value->mutable_list_value()->add_values(), depth - 1);
  }
}

pb::ProcessingRequest RandomRequest(base::Random& random) {
  pb::ProcessingRequest request;
  switch (random.Below(7)) {
    case 0:
      FillHeaders(random, request.mutable_request_headers()->mutable_headers());
      request.mutable_request_headers()->set_end_of_stream(random.Below(2) == 1);
      break;
    case 1:
      FillHeaders(random, request.mutable_response_headers()->mutable_headers());
      request.mutable_response_headers()->set_end_of_stream(random.Below(2) == 1);
      break;
    case 2:
      request.mutable_request_body()->set_body(Bytes(random, random.Below(50) == 0 ? 70'000 : 500));
      request.mutable_request_body()->set_end_of_stream(random.Below(2) == 1);
      break;
    case 3:
      request.mutable_response_body()->set_body(Bytes(random, 300));
      request.mutable_response_body()->set_end_of_stream(random.Below(2) == 1);
      break;
    case 4:
      FillHeaders(random, request.mutable_request_trailers()->mutable_trailers());
      break;
    case 5:
      FillHeaders(random, request.mutable_response_trailers()->mutable_trailers());
      break;
    default:
      break;
  }
  for (uint64_t n = random.Below(3); n > 0; --n) {
    google::protobuf::Value value;
    auto& fields = (*request.mutable_metadata_context()->mutable_filter_metadata())[Text(random, 30)];
    FillValue(random, &(*fields.mutable_fields())[Text(random, 30)], 3);
  }
  if (random.Below(3) == 0) (*request.mutable_attributes())["a"].mutable_fields();
  request.set_observability_mode(random.Below(4) == 0);
  if (random.Below(2) == 0) {
    auto* config = request.mutable_protocol_config();
    config->set_request_body_mode(static_cast<pb::BodySendMode>(random.Below(5)));
    config->set_response_body_mode(static_cast<pb::BodySendMode>(random.Below(5)));
    config->set_send_body_without_waiting_for_header_response(random.Below(2) == 1);
  }
  return request;
}

void ExpectSameHeaders(std::string_view ours, const pb::HeaderMap& theirs) {
  int i = 0;
  EXPECT_TRUE(ForEachHeader(ours, [&](std::string_view name, std::string_view value) {
    ASSERT_LT(i, theirs.headers_size());
    const auto& header = theirs.headers(i++);
    EXPECT_EQ(name, header.key());
    EXPECT_EQ(value, header.raw_value().empty() ? header.value() : header.raw_value());
  }));
  EXPECT_EQ(i, theirs.headers_size());
}

void ExpectSameValue(const ValueView& ours, const google::protobuf::Value& theirs) {
  switch (theirs.kind_case()) {
    case google::protobuf::Value::kNumberValue:
      EXPECT_EQ(ours.kind, ValueView::Kind::kNumber);
      EXPECT_EQ(ours.number, theirs.number_value());
      break;
    case google::protobuf::Value::kStringValue:
      EXPECT_EQ(ours.kind, ValueView::Kind::kString);
      EXPECT_EQ(ours.bytes, theirs.string_value());
      break;
    case google::protobuf::Value::kBoolValue:
      EXPECT_EQ(ours.kind, ValueView::Kind::kBool);
      EXPECT_EQ(ours.boolean, theirs.bool_value());
      break;
    case google::protobuf::Value::kStructValue:
      EXPECT_EQ(ours.kind, ValueView::Kind::kStruct);
      for (const auto& [name, value] : theirs.struct_value().fields()) {
        const auto field = FindField(ours.bytes, name);
        ASSERT_TRUE(field) << name;
        ExpectSameValue(*field, value);
      }
      break;
    case google::protobuf::Value::kListValue: {
      EXPECT_EQ(ours.kind, ValueView::Kind::kList);
      int i = 0;
      EXPECT_TRUE(ForEachValue(ours.bytes, [&](const ValueView& value) {
        ASSERT_LT(i, theirs.list_value().values_size());
        ExpectSameValue(value, theirs.list_value().values(i++));
      }));
      EXPECT_EQ(i, theirs.list_value().values_size());
      break;
    }
    default:
      EXPECT_EQ(ours.kind, ValueView::Kind::kNull);
  }
}

void ExpectSame(const RequestMessage& ours, const pb::ProcessingRequest& theirs) {
  EXPECT_EQ(static_cast<int>(ours.kind), static_cast<int>(theirs.request_case()));
  switch (theirs.request_case()) {
    case pb::ProcessingRequest::kRequestHeaders:
      ExpectSameHeaders(ours.headers, theirs.request_headers().headers());
      EXPECT_EQ(ours.end_of_stream, theirs.request_headers().end_of_stream());
      break;
    case pb::ProcessingRequest::kResponseHeaders:
      ExpectSameHeaders(ours.headers, theirs.response_headers().headers());
      EXPECT_EQ(ours.end_of_stream, theirs.response_headers().end_of_stream());
      break;
    case pb::ProcessingRequest::kRequestBody:
      EXPECT_EQ(ours.body, theirs.request_body().body());
      EXPECT_EQ(ours.end_of_stream, theirs.request_body().end_of_stream());
      break;
    case pb::ProcessingRequest::kResponseBody:
      EXPECT_EQ(ours.body, theirs.response_body().body());
      EXPECT_EQ(ours.end_of_stream, theirs.response_body().end_of_stream());
      break;
    case pb::ProcessingRequest::kRequestTrailers:
      ExpectSameHeaders(ours.headers, theirs.request_trailers().trailers());
      break;
    case pb::ProcessingRequest::kResponseTrailers:
      ExpectSameHeaders(ours.headers, theirs.response_trailers().trailers());
      break;
    default:
      break;
  }
  for (const auto& [name, fields] : theirs.metadata_context().filter_metadata()) {
    const auto found = FindMetadata(ours.metadata, name);
    ASSERT_TRUE(found) << name;
    for (const auto& [key, value] : fields.fields()) {
      const auto field = FindField(*found, key);
      ASSERT_TRUE(field) << key;
      ExpectSameValue(*field, value);
    }
  }
  EXPECT_EQ(ours.observability_mode, theirs.observability_mode());
  ASSERT_EQ(ours.protocol_config.has_value(), theirs.has_protocol_config());
  if (!theirs.has_protocol_config()) return;
  const auto& config = theirs.protocol_config();
  EXPECT_EQ(static_cast<int>(ours.protocol_config->request_body), config.request_body_mode());
  EXPECT_EQ(static_cast<int>(ours.protocol_config->response_body), config.response_body_mode());
  EXPECT_EQ(ours.protocol_config->send_body_without_waiting,
            config.send_body_without_waiting_for_header_response());
}

TEST(WireOracle, ReadsWhatProtobufWrites) {
  base::Random random(1);
  for (int i = 0; i < 1000; ++i) {
    const pb::ProcessingRequest theirs = RandomRequest(random);
    const std::string bytes = theirs.SerializeAsString();
    RequestMessage ours;
    ASSERT_TRUE(ParseRequest(bytes, ours));
    ExpectSame(ours, theirs);
    if (HasFailure()) FAIL() << "message " << i << ": " << theirs.ShortDebugString().substr(0, 2000);
  }
}

TEST(WireOracle, SurvivesBrokenBytes) {
  base::Random random(2);
  for (int i = 0; i < 4000; ++i) {
    std::string bytes = RandomRequest(random).SerializeAsString().substr(0, 2000);
    for (uint64_t n = random.Below(4); n > 0 && !bytes.empty(); --n) {
      bytes[random.Below(bytes.size())] = static_cast<char>(random.Next());
    }
    RequestMessage ours;
    if (!ParseRequest(bytes, ours)) continue;
    ForEachHeader(ours.headers, [](std::string_view, std::string_view) {});
    if (const auto found = FindMetadata(ours.metadata, "envoy.lb")) FindField(*found, "x");
  }
}

TEST(WireOracle, RefusesCutMessages) {
  pb::ProcessingRequest request;
  request.mutable_request_body()->set_body("0123456789");
  const std::string bytes = request.SerializeAsString();
  for (size_t n = 1; n < bytes.size(); ++n) {
    RequestMessage ours;
    EXPECT_FALSE(ParseRequest(std::string_view(bytes).substr(0, n), ours)) << n;
  }
}

TEST(WireOracle, DividesLongBodyMessages) {
  base::Random random(3);
  int divided = 0;
  for (int i = 0; i < 1000; ++i) {
    pb::ProcessingRequest theirs = RandomRequest(random);
    theirs.mutable_request_body()->set_body(Bytes(random, 3000));
    theirs.mutable_request_body()->set_end_of_stream(random.Below(2) == 1);
    const std::string bytes = theirs.SerializeAsString();
    const std::string_view first = std::string_view(bytes).substr(0, random.Below(bytes.size() + 1));
    const auto head = ParseBodyHead(first, bytes.size());
    if (!head) continue;
    ++divided;
    ASSERT_EQ(first.size() + head->body_left + head->tail, bytes.size());
    const std::string body = std::string(head->body) + bytes.substr(first.size(), head->body_left);
    EXPECT_EQ(body, theirs.request_body().body());
    RequestMessage ours;
    ASSERT_TRUE(
        ParseBodyTail(std::string_view(bytes).substr(bytes.size() - head->tail), head->inner_tail, ours));
    EXPECT_TRUE(ours.body.empty());
    ours.body = body;
    ExpectSame(ours, theirs);
    ASSERT_FALSE(HasFailure()) << i;
  }
  EXPECT_GT(divided, 500);
}

// The message that follows a gRPC header.
pb::ProcessingResponse Parsed(const WireWriter& writer, std::string_view body = {}) {
  std::string all(writer.view());
  all.append(body);
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(all[i])); };
  EXPECT_EQ(byte(0), 0u);
  EXPECT_EQ(byte(1) << 24 | byte(2) << 16 | byte(3) << 8 | byte(4), all.size() - 5);
  pb::ProcessingResponse response;
  EXPECT_TRUE(response.ParseFromString(all.substr(5)));
  return response;
}

bool Same(const pb::ProcessingResponse& a, const pb::ProcessingResponse& b) {
  return google::protobuf::util::MessageDifferencer::Equals(a, b);
}

TEST(WireOracle, ProtobufReadsWhatWeWrite) {
  base::Random random(4);
  WireWriter writer;
  for (int i = 0; i < 1000; ++i) {
    std::vector<std::string> texts;
    texts.reserve(64);
    const auto text = [&](size_t max) -> std::string_view { return texts.emplace_back(Text(random, max)); };
    std::vector<SetHeader> set;
    std::vector<std::string_view> remove;
    for (uint64_t n = random.Below(4); n > 0; --n) set.push_back({text(40), text(300)});
    for (uint64_t n = random.Below(4); n > 0; --n) remove.push_back(text(40));
    std::vector<std::pair<std::string, float>> scores;
    for (uint64_t n = random.Below(random.Below(3) == 0 ? 200 : 1); n > 0; --n) {
      scores.emplace_back("10.0.0." + std::to_string(n) + ":8000", static_cast<float>(n));
    }
    const LbMetadata metadata = {text(100), scores};
    const std::string body = Bytes(random, 400);
    Reply reply = {.kind = static_cast<ReplyKind>(1 + random.Below(6)),
                   .set_headers = set,
                   .remove_headers = remove,
                   .clear_route_cache = random.Below(2) == 1,
                   .body = static_cast<Reply::Body>(random.Below(4)),
                   .end_of_stream = random.Below(2) == 1,
                   .metadata = random.Below(2) == 1 ? &metadata : nullptr};
    const bool trailers = reply.kind >= ReplyKind::kRequestTrailers;
    const bool with_body =
        !trailers && (reply.body == Reply::Body::kReplace || reply.body == Reply::Body::kStreamed);
    if (with_body) reply.body_size = body.size();
    WriteReply(writer, reply);

    pb::ProcessingResponse expected;
    pb::CommonResponse common;
    for (const auto& header : set) {
      auto* option = common.mutable_header_mutation()->add_set_headers();
      option->mutable_header()->set_key(std::string(header.name));
      option->mutable_header()->set_raw_value(std::string(header.value));
      option->set_append_action(pb::HeaderValueOption::OVERWRITE_IF_EXISTS_OR_ADD);
    }
    for (const auto name : remove) common.mutable_header_mutation()->add_remove_headers(std::string(name));
    common.set_clear_route_cache(reply.clear_route_cache);
    if (reply.body == Reply::Body::kReplace) common.mutable_body_mutation()->set_body(body);
    if (reply.body == Reply::Body::kClear) common.mutable_body_mutation()->set_clear_body(true);
    if (reply.body == Reply::Body::kStreamed) {
      common.mutable_body_mutation()->mutable_streamed_response()->set_body(body);
      common.mutable_body_mutation()->mutable_streamed_response()->set_end_of_stream(reply.end_of_stream);
    }
    switch (reply.kind) {
      case ReplyKind::kRequestHeaders:
        *expected.mutable_request_headers()->mutable_response() = common;
        break;
      case ReplyKind::kResponseHeaders:
        *expected.mutable_response_headers()->mutable_response() = common;
        break;
      case ReplyKind::kRequestBody:
        *expected.mutable_request_body()->mutable_response() = common;
        break;
      case ReplyKind::kResponseBody:
        *expected.mutable_response_body()->mutable_response() = common;
        break;
      case ReplyKind::kRequestTrailers:
        expected.mutable_request_trailers();
        break;
      case ReplyKind::kResponseTrailers:
        expected.mutable_response_trailers();
        break;
    }
    if (reply.metadata != nullptr) {
      auto& lb = *(*expected.mutable_dynamic_metadata()->mutable_fields())["envoy.lb"]
                      .mutable_struct_value()
                      ->mutable_fields();
      lb["x-gateway-destination-endpoint"].set_string_value(std::string(metadata.destinations));
      if (!scores.empty()) {
        auto& values = *lb["x-gateway-destination-endpoint-scores"].mutable_struct_value()->mutable_fields();
        for (const auto& [address, score] : scores) values[address].set_number_value(score);
      }
    }
    const pb::ProcessingResponse parsed = Parsed(writer, with_body ? body : std::string());
    ASSERT_TRUE(Same(parsed, expected))
        << parsed.ShortDebugString() << "\nexpected " << expected.ShortDebugString();
  }
}

TEST(WireOracle, ProtobufReadsImmediateReplies) {
  WireWriter writer;
  const std::vector<SetHeader> headers = {{"x-llm-d-request-dropped-reason", "rejected-saturated"}};
  WriteImmediate(writer,
                 {.status = 429, .headers = headers, .body = "no room", .details = "ResourceExhausted"});
  const pb::ProcessingResponse parsed = Parsed(writer);
  EXPECT_EQ(parsed.immediate_response().status().code(), 429);
  EXPECT_EQ(parsed.immediate_response().body(), "no room");
  EXPECT_EQ(parsed.immediate_response().details(), "ResourceExhausted");
  ASSERT_EQ(parsed.immediate_response().headers().set_headers_size(), 1);
  EXPECT_EQ(parsed.immediate_response().headers().set_headers(0).header().raw_value(), "rejected-saturated");
}

TEST(Wire, AnUnknownModeIsNoMode) {
  std::string config;
  config += '\x08';
  config += '\x05';  // request_body_mode 5, which came later (GRPC)
  std::string bytes;
  bytes += '\x5a';
  bytes += static_cast<char>(config.size());
  bytes += config;
  RequestMessage message;
  ASSERT_TRUE(ParseRequest(bytes, message));
  EXPECT_FALSE(message.protocol_config);
}

TEST(Wire, WritesLongHeaders) {
  WireWriter writer;
  const std::string value(100'000, 'v');
  const std::vector<SetHeader> headers = {{"a", value}, {"b", value}};
  WriteReply(writer, {.kind = ReplyKind::kRequestHeaders, .set_headers = headers});
  const auto parsed = Parsed(writer);
  ASSERT_EQ(parsed.request_headers().response().header_mutation().set_headers_size(), 2);
  EXPECT_EQ(parsed.request_headers().response().header_mutation().set_headers(1).header().raw_value(), value);
}

}  // namespace
}  // namespace fairway::ext_proc
