// The usage that the answers of vLLM's gRPC service tell. Source: vllm_engine.proto, package vllm.grpc.engine, and what
// its server does: of a stream each chunk has the tokens that are new, and the message that completes it repeats those
// of the last chunk; without a stream that message has all. Of several answers to one prompt (`n`) the tokens add up.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "payload/grpc_scanner.h"
#include "payload/request.h"

namespace fairway::payload {

struct Usage;

class GrpcUsage final : public GrpcSink {
 public:
  explicit GrpcUsage(bool embeds) : embeds_(embeds) {}
  void Feed(std::string_view chunk) { scanner_.Feed(chunk, *this); }
  // Of the messages that are complete.
  Usage Get() const;

 private:
  Take OnField(uint32_t field, uint64_t begin, uint64_t length) override;
  void OnNumber(uint32_t field, uint64_t value) override;
  void OnBytes(std::string_view) override {}
  void OnEnd(uint32_t) override {}
  void OnLeave(uint32_t) override { inside_ = 0; }
  void OnMessageEnd() override;

  const bool embeds_;
  GrpcScanner scanner_;
  uint32_t inside_ = 0;  // which message of GenerateResponse
  // Of the message that is being read.
  struct Counts {
    uint32_t of = 0;  // as inside_
    uint64_t ids = 0;
    uint32_t prompt = 0;
    uint32_t completion = 0;
    uint32_t cached = 0;
  } counts_;
  uint32_t prompt_ = 0;
  uint32_t cached_ = 0;
  uint64_t streamed_ = 0;   // tokens of all chunks
  uint64_t completed_ = 0;  // of all that are complete
};

class UsageScanner;

// The same of Vertex AI's service (request_wrapped.cc): each message is a google.api.HttpBody whose data = 2 is a
// JSON document, or the next piece of an event stream.
class WrappedUsage final : public GrpcSink {
 public:
  explicit WrappedUsage(Api inner);
  ~WrappedUsage();
  void Feed(std::string_view chunk) { scanner_.Feed(chunk, *this); }
  Usage Get();

 private:
  Take OnField(uint32_t field, uint64_t begin, uint64_t length) override;
  void OnNumber(uint32_t, uint64_t) override {}
  void OnBytes(std::string_view piece) override;
  void OnEnd(uint32_t) override {}
  void OnLeave(uint32_t) override {}
  void OnMessageEnd() override;

  const Api inner_;
  GrpcScanner scanner_;
  std::unique_ptr<UsageScanner> document_;  // of this message
  std::unique_ptr<UsageScanner> events_;    // of all; null: they are documents
  std::unique_ptr<Usage> found_;
};

}  // namespace fairway::payload
