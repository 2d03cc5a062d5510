// Protobuf's wire format, read and written without generated classes: for messages of Envoy and of our own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace fairway::net {

// Steps through the fields of one protobuf message. A plain value.
//
//   WireReader r(bytes);
//   while (r.Next()) if (r.field() == 1 && r.is_bytes()) use(r.bytes());
//   if (!r.ok()) -> malformed
class WireReader {
 public:
  explicit WireReader(std::string_view message)
      : at_(message.data()), end_(message.data() + message.size()) {}

  // False at the end, and on malformed input (then ok() is false).
  bool Next();
  bool ok() const { return ok_; }

  uint32_t field() const { return field_; }
  bool is_varint() const { return type_ == 0; }
  bool is_fixed64() const { return type_ == 1; }
  bool is_bytes() const { return type_ == 2; }
  uint64_t number() const { return number_; }  // of a varint or a fixed64
  std::string_view bytes() const { return bytes_; }

  // Reads one varint at `text`'s front and moves past it. False when it is cut or too long.
  static bool Varint(std::string_view& text, uint64_t& value);

 private:
  bool Varint(uint64_t& value);
  bool Fail() { return ok_ = false; }

  const char* at_;
  const char* end_;
  uint32_t field_ = 0;
  uint32_t type_ = 0;
  uint64_t number_ = 0;
  std::string_view bytes_;
  bool ok_ = true;
};

// Writes a message from its end to its front. Reused: Clear keeps the memory. Owned by one thread.
class WireWriter {
 public:
  WireWriter() : begin_(inline_), end_(inline_ + sizeof(inline_)), at_(end_) {}
  WireWriter(const WireWriter&) = delete;
  WireWriter& operator=(const WireWriter&) = delete;

  void Raw(std::string_view bytes);
  void Varint(uint64_t value);
  void Number(uint32_t field, uint64_t value);  // a varint field
  void Double(uint32_t field, double value);    // a fixed64 field
  void Fixed64(uint32_t field, uint64_t value);
  void Bytes(uint32_t field, std::string_view bytes);  // string, bytes
  // Bytes written so far: give it to EndMessage for what was written since.
  size_t Mark() const { return static_cast<size_t>(end_ - at_); }
  // What was written since `mark` is the message `field`. `extra`: bytes that belong to its end and follow by
  // reference.
  void EndMessage(uint32_t field, size_t mark, size_t extra = 0);
  // The 5 bytes of gRPC before all of it.
  void GrpcHeader(size_t extra = 0);

  std::string_view view() const { return {at_, Mark()}; }
  void Clear() { at_ = end_; }

 private:
  void Grow(size_t need);

  char* begin_;
  char* end_;
  char* at_;
  std::unique_ptr<char[]> heap_;
  char inline_[2048];
};

}  // namespace fairway::net
