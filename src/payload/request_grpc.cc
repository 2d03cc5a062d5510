// What RequestScanner reads in the requests of vLLM's gRPC service. Source: vllm_engine.proto, package
// vllm.grpc.engine: GenerateRequest has tokenized = 2 (TokenizedInput: input_ids = 2) or text = 3, of which the last
// one counts, sampling_params = 4 (max_tokens = 8, prompt_logprobs = 23), stream = 5, mm_inputs = 7; EmbedRequest has tokenized = 2. There is
// no model in either: a server has one.
#include <algorithm>

#include "payload/request.h"

namespace fairway::payload {
namespace {

// Of GenerateRequest; the first of EmbedRequest, too.
constexpr uint32_t kTokenized = 2, kText = 3, kSampling = 4, kStream = 5, kMedia = 7;
constexpr uint32_t kInputIds = 2;                         // of TokenizedInput
constexpr uint32_t kMaxTokens = 8, kPromptLogprobs = 23;  // of SamplingParams

}  // namespace

// A text that takes the place of token ids, or of another text, or the other way round.
void RequestScanner::BeginGrpcInput(Grpc::Input input) {
  Grpc& grpc = *grpc_;
  // Token ids that come in pieces belong together.
  if (input == Grpc::Input::kTokens && grpc.input == input) return;
  const bool again = grpc.input != Grpc::Input::kNone;
  grpc.input = input;
  fields_.prompt.clear();
  fields_.prompt_bytes = 0;
  if (hasher_ == nullptr) return;
  again ? hasher_->Spoil() : hasher_->BeginPart(PromptHasher::kMain);
}

GrpcSink::Take RequestScanner::OnField(uint32_t field, uint64_t begin, uint64_t length) {
  Grpc& grpc = *grpc_;
  if (grpc.complete || !ok()) return Take::kSkip;  // the first error counts, however the body is cut
  if (IsWrapped(outer_)) return OnWrappedField(field, begin, length);
  if (grpc.inside == kTokenized) return field == kInputIds ? Take::kNumbers : Take::kSkip;
  if (grpc.inside != 0) return Take::kSkip;
  const bool generates = api_ == Api::kVllmGrpcGenerate;
  if (field == kTokenized || (field == kSampling && generates)) {
    grpc.inside = field;
    if (field == kTokenized) BeginGrpcInput(Grpc::Input::kTokens);
    return Take::kMessage;
  }
  if (field == kMedia && generates && length > 0) fields_.has_media = true;
  if (field != kText || !generates) return Take::kSkip;
  BeginGrpcInput(Grpc::Input::kText);
  grpc.text = {begin, begin + length};
  return Take::kBytes;
}

void RequestScanner::OnNumber(uint32_t field, uint64_t value) {
  Grpc& grpc = *grpc_;
  if (grpc.complete || IsWrapped(outer_)) return;
  if (grpc.inside == kTokenized && field == kInputIds) {
    fields_.prompt_bytes += kBytesPerToken;
    if (hasher_ != nullptr) hasher_->AddToken(static_cast<uint32_t>(value));
  } else if (grpc.inside == kSampling && field == kMaxTokens) {
    fields_.max_tokens = static_cast<uint32_t>(value);
  } else if (grpc.inside == kSampling && field == kPromptLogprobs) {
    if (hasher_ != nullptr) hasher_->Spoil();  // the engine does not look into its cache
  } else if (grpc.inside == 0 && field == kStream && api_ == Api::kVllmGrpcGenerate) {
    fields_.stream = value != 0;
  }
}

void RequestScanner::OnBytes(std::string_view piece) {
  if (IsWrapped(outer_)) {
    if (!json_.failed()) FeedJson(piece);
  } else if (hasher_ != nullptr) {
    hasher_->Add(piece);
  }
}

void RequestScanner::OnEnd(uint32_t field) {
  if (field == kText && grpc_->inside == 0 && !IsWrapped(outer_)) AddPrompt(grpc_->text);
}

void RequestScanner::OnLeave(uint32_t) { grpc_->inside = 0; }

void RequestScanner::OnMessageEnd() {
  grpc_->complete = true;
  if (hasher_ != nullptr && grpc_->input != Grpc::Input::kNone && !IsWrapped(outer_)) hasher_->EndPart();
}

void RequestScanner::FeedGrpc(std::string_view chunk) {
  if (!ok()) return;
  GrpcScanner& scanner = grpc_->scanner;
  scanner.Feed(chunk, *this);
  if (scanner.failed() && ok()) RefuseGrpc();
}

void RequestScanner::FinishGrpc() {
  if (!ok()) return;
  if (IsWrapped(outer_)) return FinishWrapped();
  if (hasher_ != nullptr) hasher_->Finish(false);
  if (!grpc_->scanner.Finish()) return RefuseGrpc();
  if (grpc_->scanner.compressed()) {  // passes unread
    fields_ = {};
    if (hasher_ != nullptr) hasher_->Reset();
  } else if (grpc_->input == Grpc::Input::kNone) {
    error_ = api_ == Api::kVllmGrpcGenerate ? "invalid generate request: must have tokenized or text field"
                                            : "invalid embed request: must have tokenized field";
  }
}

void RequestScanner::FinishPartialGrpc() {
  if (IsWrapped(outer_)) return FinishPartialWrapped();
  if (hasher_ != nullptr) hasher_->Finish(true);
  const Grpc& grpc = *grpc_;
  if (ok() && grpc.input == Grpc::Input::kText && fields_.prompt.empty() && !grpc.complete)
    AddPrompt({grpc.text.begin, std::min(grpc.text.end, grpc.scanner.offset())});
}

void RequestScanner::RefuseGrpc() {
  error_ = "invalid or unsupported gRPC payload: " + grpc_->scanner.error();
}

}  // namespace fairway::payload
