#include <utility>

#include "ext_proc.pb.h"
#include "tests/equality/pickers.h"
#include "tests/support/grpc_client.h"

namespace fairway::equality {
namespace {

namespace pb = envoy::service::ext_proc::v3;
using Reply = fairway::testing::GrpcReply;
using Call = fairway::testing::GrpcClientCall;

constexpr const char* kProcess = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
constexpr const char* kDestination = "x-gateway-destination-endpoint";

void AddHeader(pb::HttpHeaders& headers, const std::string& name, const std::string& value) {
  auto* header = headers.mutable_headers()->add_headers();
  header->set_key(name);
  header->set_raw_value(value);
}

google::protobuf::Map<std::string, google::protobuf::Value>& MetadataOf(pb::ProcessingRequest& message,
                                                                        const std::string& space) {
  return *(*message.mutable_metadata_context()->mutable_filter_metadata())[space].mutable_fields();
}

void Send(Call& call, const Request& request, pb::ProcessingRequest message) {
  if (request.hint) {
    MetadataOf(message, "envoy.lb.subset_hint")["x-gateway-destination-endpoint-subset"].set_string_value(
        *request.hint);
  }
  call.Send(message.SerializeAsString());
}

pb::ProcessingResponse Receive(Call& call) {
  const Reply reply = call.Recv();
  pb::ProcessingResponse response;
  if (reply.kind != Reply::Kind::kMessage || !response.ParseFromString(reply.message)) {
    Die("no reply: status " + std::to_string(reply.status) + " " + reply.status_message);
  }
  return response;
}

void Mutate(Headers& headers, const pb::HeaderMutation& mutation) {
  for (const auto& name : mutation.remove_headers()) Remove(headers, name);
  for (const auto& option : mutation.set_headers()) {
    if (option.append_action() != pb::HeaderValueOption::OVERWRITE_IF_EXISTS_OR_ADD) {
      Die("a header is not to be overwritten: " + option.header().key());
    }
    Set(headers, option.header().key(), option.header().raw_value());
  }
}

Outcome Refusal(const pb::ImmediateResponse& answer) {
  Outcome outcome{.status = answer.status().code(), .drop_reason = "-", .body = answer.body()};
  for (const auto& option : answer.headers().set_headers()) {
    const std::string& name = option.header().key();
    if (name == "x-llm-d-request-dropped-reason") {
      outcome.drop_reason = option.header().raw_value();
    } else if (name == "x-fairway-refused-by") {
      outcome.refused_by = option.header().raw_value();
    } else if (name == "retry-after") {
      outcome.come_again = true;
    } else {
      Die("an unexpected header: " + name);
    }
  }
  return outcome;
}

// What Envoy insists on before it lets a changed body go on.
void CheckLength(const Outcome& outcome) {
  const auto length = Find(outcome.headers, "content-length");
  if (length && *length != std::to_string(outcome.body.size())) {
    Die("content-length " + *length + " with a body of " + std::to_string(outcome.body.size()));
  }
}

}  // namespace

struct ExtProc::Impl {
  std::unique_ptr<fairway::testing::GrpcClient> client;

  // The request's replies; true when it may go on.
  bool AskRequest(Call& call, const Request& request, Outcome& outcome) {
    pb::ProcessingRequest first;
    first.mutable_protocol_config()->set_request_body_mode(pb::BUFFERED);
    // As the module sees answers, and the core is told that they are shown.
    first.mutable_protocol_config()->set_response_body_mode(pb::STREAMED);
    pb::HttpHeaders& headers = *first.mutable_request_headers();
    AddHeader(headers, ":authority", request.authority);
    AddHeader(headers, ":path", request.target);
    AddHeader(headers, ":method", request.method);
    AddHeader(headers, ":scheme", "http");
    for (const auto& [name, value] : request.headers) AddHeader(headers, name, value);
    headers.set_end_of_stream(request.ends_with_headers);
    Send(call, request, std::move(first));
    pb::ProcessingResponse reply = Receive(call);
    if (!request.ends_with_headers && reply.has_request_headers()) {
      Mutate(outcome.headers, reply.request_headers().response().header_mutation());
      pb::ProcessingRequest body;
      body.mutable_request_body()->set_body(request.body);
      body.mutable_request_body()->set_end_of_stream(true);
      Send(call, request, std::move(body));
      reply = Receive(call);
    }
    if (reply.has_immediate_response()) {
      outcome = Refusal(reply.immediate_response());
      return false;
    }
    if (reply.has_request_headers() != request.ends_with_headers ||
        reply.has_request_body() == request.ends_with_headers) {
      Die("the wrong reply: " + reply.ShortDebugString().substr(0, 1000));
    }
    const pb::CommonResponse& common =
        request.ends_with_headers ? reply.request_headers().response() : reply.request_body().response();
    Mutate(outcome.headers, common.header_mutation());
    if (common.has_body_mutation()) outcome.body = common.body_mutation().body();
    CheckLength(outcome);
    outcome.destinations = reply.dynamic_metadata()
                               .fields()
                               .at("envoy.lb")
                               .struct_value()
                               .fields()
                               .at(kDestination)
                               .string_value();
    return true;
  }

  static void Respond(Call& call, const Request& request, const std::string& served) {
    pb::ProcessingRequest message;
    pb::HttpHeaders& headers = *message.mutable_response_headers();
    AddHeader(headers, ":status", "200");
    headers.set_end_of_stream(true);
    MetadataOf(message, "envoy.lb")[std::string(kDestination) + "-served"].set_string_value(served);
    Send(call, request, std::move(message));
    if (!Receive(call).has_response_headers()) Die("the response's headers got another reply");
    call.HalfClose();
  }
};

ExtProc::ExtProc(uint16_t port) : impl_(std::make_unique<Impl>()) {
  std::string error;
  impl_->client = fairway::testing::GrpcClient::Connect("127.0.0.1", port, {}, &error);
  if (!impl_->client) Die(error);
}

ExtProc::~ExtProc() = default;

Outcome ExtProc::Ask(const Request& request) {
  auto call = impl_->client->Open(kProcess, {{"x-fairway-pool", request.pool}});
  Outcome outcome{.headers = request.headers, .body = request.body};
  if (impl_->AskRequest(*call, request, outcome)) {
    Impl::Respond(*call, request, outcome.destinations.substr(0, outcome.destinations.find(',')));
  }
  const Reply end = call->RecvEnd();
  if (end.kind != Reply::Kind::kEnd || end.status != 0)
    Die("the call ended with " + std::to_string(end.status) + " " + end.status_message);
  return outcome;
}

}  // namespace fairway::equality
