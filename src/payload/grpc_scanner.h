// Messages of a gRPC body (5 bytes of flag and length before each) and the protobuf fields in them, as a state
// machine that may be cut anywhere. It knows no schema: a GrpcSink says of each field with a length whether it is a
// message to be read, bytes, packed numbers, or nothing of interest.
//
// Field numbers, lengths and depth are the client's: a length beyond what it stands in is an error, nothing is kept of
// any, and only messages that the sink enters count as depth. Owned by one thread; no exceptions, any bytes, linear
// time, no memory beside itself.
//
// Sources: "gRPC over HTTP2" (the protocol's PROTOCOL-HTTP2), "Encoding" of protobuf's documentation.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace fairway::payload {

class GrpcSink {
 public:
  enum class Take : uint8_t { kSkip, kMessage, kBytes, kNumbers };

  // A field with a length begins. Its bytes stand at [begin, begin + length) of the body.
  virtual Take OnField(uint32_t field, uint64_t begin, uint64_t length) = 0;
  virtual void OnNumber(uint32_t field, uint64_t value) = 0;  // a varint, also of kNumbers
  virtual void OnBytes(std::string_view piece) = 0;           // of kBytes
  virtual void OnEnd(uint32_t field) = 0;                     // of kBytes and kNumbers
  virtual void OnLeave(uint32_t field) = 0;                   // of kMessage
  virtual void OnMessageEnd() = 0;                            // a gRPC message is complete

 protected:
  ~GrpcSink() = default;
};

class GrpcScanner {
 public:
  static constexpr size_t kMaxDepth = 3;       // messages that a sink may enter, one in the other
  static constexpr uint32_t kMaxGroups = 100;  // protobuf's own limit

  void Feed(std::string_view chunk, GrpcSink& sink);
  // The body is complete. False: there is no message, or the last one is cut.
  bool Finish();

  bool failed() const { return error_ != nullptr; }
  // "" when ok; else what is wrong and at which byte of the body.
  std::string error() const;
  // A message came compressed: it was passed over.
  bool compressed() const { return compressed_; }
  uint64_t messages() const { return messages_; }  // that are complete, compressed ones included
  uint64_t offset() const { return offset_; }      // bytes of the body so far

 private:
  enum class Step : uint8_t { kTag, kNumber, kLength, kSkip, kBytes, kNumbers };
  struct Level {
    uint32_t field = 0;
    uint64_t end = 0;  // in the message
  };

  void BeginMessage();
  void EndMessage(GrpcSink& sink);
  void Read(std::string_view bytes, GrpcSink& sink);
  bool Varint(std::string_view& bytes);
  void OnTag();
  void OnLength(GrpcSink& sink);
  void Pass(std::string_view& bytes, GrpcSink& sink);
  void EndField(GrpcSink& sink);
  void Fail(const char* what) { error_ = what; }

  std::array<unsigned char, 5> head_ = {};
  size_t head_size_ = 0;
  uint64_t left_ = 0;   // of the message
  bool skips_ = false;  // the message is compressed
  bool compressed_ = false;
  uint64_t messages_ = 0;
  uint64_t offset_ = 0;
  const char* error_ = nullptr;

  // Of the message.
  Step step_ = Step::kTag;
  uint64_t at_ = 0;                               // bytes of it so far
  std::array<Level, kMaxDepth + 1> levels_ = {};  // the first is the message
  size_t depth_ = 0;
  uint32_t groups_ = 0;  // old-fashioned messages between two tags, which are passed over, one in the other
  uint32_t field_ = 0;
  uint64_t field_end_ = 0;
  uint64_t value_ = 0;  // of the varint
  unsigned shift_ = 0;  // its bits so far
};

}  // namespace fairway::payload
