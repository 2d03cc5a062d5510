#include "sources/kv_events/msgpack.h"

#include <bit>

#include "sources/kv_events/big_endian.h"

namespace fairway::sources::kv_events {

using Kind = MsgpackToken::Kind;
using Token = std::optional<MsgpackToken>;

std::optional<uint64_t> MsgpackReader::Read(size_t size) {
  if (rest_.size() < size) return Break();
  const uint64_t value = ReadBigEndian(rest_.substr(0, size));
  rest_.remove_prefix(size);
  return value;
}

Token MsgpackReader::Number(Kind kind, size_t size, bool is_signed) {
  const auto value = Read(size);
  if (!value) return std::nullopt;
  MsgpackToken token{.kind = kind, .number = *value};
  if (is_signed && size < 8 && (*value >> (size * 8 - 1)) != 0) token.number |= ~uint64_t{0} << (size * 8);
  return token;
}

Token MsgpackReader::Float(size_t size) {
  const auto value = Read(size);
  if (!value) return std::nullopt;
  return MsgpackToken{.kind = Kind::kFloat,
                      .real = size == 4 ? double{std::bit_cast<float>(static_cast<uint32_t>(*value))}
                                        : std::bit_cast<double>(*value)};
}

Token MsgpackReader::Bytes(Kind kind, size_t size) {
  if (rest_.size() < size) return Break();
  MsgpackToken token{.kind = kind, .bytes = rest_.substr(0, size)};
  rest_.remove_prefix(size);
  return token;
}

Token MsgpackReader::Sized(Kind kind, size_t size_bytes, size_t more) {
  const auto size = Read(size_bytes);
  if (!size) return std::nullopt;
  return Bytes(kind, static_cast<size_t>(*size) + more);
}

// Each item takes a byte at least.
Token MsgpackReader::Items(Kind kind, uint64_t count) {
  if (count * (kind == Kind::kMap ? 2 : 1) > rest_.size()) return Break();
  return MsgpackToken{.kind = kind, .number = count};
}

// From 0xc0 on.
Token MsgpackReader::Long(uint8_t first) {
  switch (first) {
    case 0xc0:
      return MsgpackToken{};
    case 0xc2:
    case 0xc3:
      return MsgpackToken{.kind = Kind::kBool, .number = first & 1u};
    case 0xc4:
    case 0xc5:
    case 0xc6:
      return Sized(Kind::kBytes, size_t{1} << (first - 0xc4));
    case 0xc7:
    case 0xc8:
    case 0xc9:
      return Sized(Kind::kExtension, size_t{1} << (first - 0xc7), 1);  // and a byte for its type
    case 0xca:
      return Float(4);
    case 0xcb:
      return Float(8);
    case 0xcc:
    case 0xcd:
    case 0xce:
    case 0xcf:
      return Number(Kind::kInteger, size_t{1} << (first - 0xcc));
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3:
      return Number(Kind::kInteger, size_t{1} << (first - 0xd0), true);
    case 0xd4:
    case 0xd5:
    case 0xd6:
    case 0xd7:
    case 0xd8:
      return Bytes(Kind::kExtension, (size_t{1} << (first - 0xd4)) + 1);
    case 0xd9:
    case 0xda:
    case 0xdb:
      return Sized(Kind::kText, size_t{1} << (first - 0xd9));
    case 0xdc:
    case 0xdd:
    case 0xde:
    case 0xdf: {
      const auto count = Read((first & 1) == 0 ? 2 : 4);
      if (!count) return std::nullopt;
      return Items(first < 0xde ? Kind::kArray : Kind::kMap, *count);
    }
    default:
      return Break();  // 0xc1 is never used
  }
}

Token MsgpackReader::Next() {
  if (broken_ || rest_.empty()) return std::nullopt;
  const auto first = static_cast<uint8_t>(rest_[0]);
  rest_.remove_prefix(1);
  if (first < 0x80) return MsgpackToken{.kind = Kind::kInteger, .number = first};
  if (first < 0x90) return Items(Kind::kMap, first & 0x0fu);
  if (first < 0xa0) return Items(Kind::kArray, first & 0x0fu);
  if (first < 0xc0) return Bytes(Kind::kText, first & 0x1fu);
  if (first >= 0xe0)
    return MsgpackToken{.kind = Kind::kInteger, .number = static_cast<uint64_t>(static_cast<int8_t>(first))};
  return Long(first);
}

bool MsgpackReader::Skip() {
  for (uint64_t left = 1; left > 0; --left) {
    const auto token = Next();
    if (!token) return false;
    if (token->kind == Kind::kArray) left += token->number;
    if (token->kind == Kind::kMap) left += token->number * 2;
  }
  return true;
}

}  // namespace fairway::sources::kv_events
