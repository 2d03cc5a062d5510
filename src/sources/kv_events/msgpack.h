// A pull reader of MessagePack: one token after the other, out of bytes that somebody else keeps.
//
//   MsgpackReader reader(bytes);
//   while (const auto token = reader.Next()) ...     // an array's or map's items follow its token
//   reader.Skip();                                   // a whole value, however deep
//
// Nothing is allocated and nothing recurses. A count that the bytes left cannot hold is broken, so no bytes
// make a caller work longer than they are. Format: msgpack/spec.md of 2013.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace fairway::sources::kv_events {

struct MsgpackToken {
  enum class Kind : uint8_t { kNil, kBool, kInteger, kFloat, kText, kBytes, kArray, kMap, kExtension };
  Kind kind = Kind::kNil;
  // kInteger and kBool: the value, a negative one as two's complement. kArray: items. kMap: pairs.
  uint64_t number = 0;
  double real = 0;         // kFloat
  std::string_view bytes;  // kText, kBytes, kExtension; in the reader's bytes
};

// Owned by one thread.
class MsgpackReader {
 public:
  explicit MsgpackReader(std::string_view bytes) : rest_(bytes) {}

  // Nothing: the bytes have ended, or are broken.
  std::optional<MsgpackToken> Next();
  // False: there is no whole value.
  bool Skip();

  bool broken() const { return broken_; }
  std::string_view rest() const { return rest_; }

 private:
  std::optional<MsgpackToken> Number(MsgpackToken::Kind kind, size_t size, bool is_signed = false);
  std::optional<MsgpackToken> Float(size_t size);
  std::optional<MsgpackToken> Bytes(MsgpackToken::Kind kind, size_t size);
  std::optional<MsgpackToken> Sized(MsgpackToken::Kind kind, size_t size_bytes, size_t more = 0);
  std::optional<MsgpackToken> Items(MsgpackToken::Kind kind, uint64_t count);
  std::optional<MsgpackToken> Long(uint8_t first);
  std::optional<uint64_t> Read(size_t size);
  std::nullopt_t Break() {
    broken_ = true;
    return std::nullopt;
  }

  std::string_view rest_;
  bool broken_ = false;
};

}  // namespace fairway::sources::kv_events
