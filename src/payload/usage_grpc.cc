#include "payload/usage_grpc.h"

#include <algorithm>

#include "payload/usage.h"

namespace fairway::payload {
namespace {

// Of GenerateResponse, and what stands in them: a chunk's prompt_tokens = 2, completion_tokens = 3, cached_tokens = 4
// are 3, 4 and 5 of the message that completes.
constexpr uint32_t kChunk = 1, kComplete = 2;
constexpr uint32_t kIds = 1;
constexpr uint32_t kEmbedPromptTokens = 2;

}  // namespace

GrpcSink::Take GrpcUsage::OnField(uint32_t field, uint64_t, uint64_t) {
  if (embeds_) return Take::kSkip;
  if (inside_ != 0) return field == kIds ? Take::kNumbers : Take::kSkip;
  if (field != kChunk && field != kComplete) return Take::kSkip;
  inside_ = field;
  if (counts_.of != field) counts_ = {.of = field};
  return Take::kMessage;
}

void GrpcUsage::OnNumber(uint32_t field, uint64_t value) {
  const auto number = static_cast<uint32_t>(value);
  if (embeds_) {
    if (field == kEmbedPromptTokens) counts_.prompt = number;
    return;
  }
  if (inside_ == 0) return;
  if (field == kIds) {
    ++counts_.ids;
    return;
  }
  switch (field - (inside_ - kChunk)) {
    case 2:
      counts_.prompt = number;
      break;
    case 3:
      counts_.completion = number;
      break;
    case 4:
      counts_.cached = number;
      break;
    default:
      break;
  }
}

void GrpcUsage::OnMessageEnd() {
  prompt_ = std::max(prompt_, counts_.prompt);
  cached_ = std::max(cached_, counts_.cached);
  // A chunk's count of its own could also be the sum so far: its ids are what is new.
  const uint64_t tokens = counts_.ids > 0 ? counts_.ids : counts_.completion;
  if (counts_.of == kChunk) streamed_ += tokens;
  if (counts_.of == kComplete) completed_ += tokens;
  counts_ = {};
}

Usage GrpcUsage::Get() const {
  const uint64_t output = streamed_ > 0 ? streamed_ : completed_;
  if (prompt_ == 0 && output == 0) return {};
  return {.found = true,
          .input_tokens = prompt_,
          .output_tokens = static_cast<int64_t>(output),
          .total_tokens = static_cast<int64_t>(prompt_ + output),
          .cached_tokens = cached_,
          .tells_cached = !embeds_};
}

// ---- JSON inside.

WrappedUsage::WrappedUsage(Api inner) : inner_(inner) {}
WrappedUsage::~WrappedUsage() = default;

GrpcSink::Take WrappedUsage::OnField(uint32_t field, uint64_t, uint64_t) {
  constexpr uint32_t kData = 2;
  return field == kData ? Take::kBytes : Take::kSkip;
}

void WrappedUsage::OnBytes(std::string_view piece) {
  if (events_ == nullptr && document_ == nullptr) {
    const bool json = piece.front() == '{';
    (json ? document_ : events_) = std::make_unique<UsageScanner>(inner_, !json);
  }
  (document_ != nullptr ? document_ : events_)->Feed(piece);
}

void WrappedUsage::OnMessageEnd() {
  if (document_ == nullptr) return;
  document_->Finish();
  if (document_->usage().found) found_ = std::make_unique<Usage>(document_->usage());
  document_.reset();
}

Usage WrappedUsage::Get() {
  if (events_ != nullptr) {
    events_->Finish();
    return events_->usage();
  }
  return found_ != nullptr ? *found_ : Usage{};
}

}  // namespace fairway::payload
