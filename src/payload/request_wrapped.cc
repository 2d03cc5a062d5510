// What RequestScanner reads in the requests of Vertex AI's gRPC service, which have JSON inside. Source:
// google/cloud/aiplatform/v1beta1/prediction_service.proto: ChatCompletionsRequest, RawPredictRequest and
// StreamRawPredictRequest have http_body = 2, a google.api.HttpBody with data = 2. As in the reference the JSON is
// that of chat/completions in the first, and of responses in the others.
#include "payload/request.h"

namespace fairway::payload {
namespace {

constexpr uint32_t kHttpBody = 2;
constexpr uint32_t kData = 2;  // of HttpBody

}  // namespace

GrpcSink::Take RequestScanner::OnWrappedField(uint32_t field, uint64_t begin, uint64_t length) {
  Grpc& grpc = *grpc_;
  if (grpc.inside == 0 && field == kHttpBody) {
    // Of two the bytes of the last one would count, which the first may have been read of.
    if (grpc.input == Grpc::Input::kJson) error_ = "the message has more than one http_body";
    grpc.inside = kHttpBody;
    fields_.wrap.http_body = {begin, begin + length};
    return Take::kMessage;
  }
  if (grpc.inside != kHttpBody || field != kData) return Take::kSkip;
  if (grpc.input == Grpc::Input::kJson) {
    error_ = "the message's http_body has more than one data";
    return Take::kSkip;
  }
  grpc.input = Grpc::Input::kJson;
  fields_.wrap.data = {begin, begin + length};
  return Take::kBytes;
}

// From the JSON's begin to the body's.
void RequestScanner::MoveSpans() {
  const uint64_t by = fields_.wrap.data.begin;
  const auto move = [by](Span& span) {
    if (span.end != 0) span = {span.begin + by, span.end + by};
  };
  move(fields_.model_span);
  move(fields_.members);
  for (Span& span : fields_.prompt) move(span);
}

void RequestScanner::FinishWrapped() {
  if (!grpc_->scanner.Finish()) return RefuseGrpc();
  if (grpc_->scanner.compressed()) {  // passes unread
    fields_ = {};
    if (hasher_ != nullptr) hasher_->Reset();
    return;
  }
  if (grpc_->input == Grpc::Input::kNone) {
    error_ = "the request has no http_body with data";
    return;
  }
  FinishJson();
  MoveSpans();
}

void RequestScanner::FinishPartialWrapped() {
  if (!json_.failed()) FinishPartialJson();
  MoveSpans();
}

}  // namespace fairway::payload
