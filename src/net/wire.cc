#include "net/wire.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace fairway::net {

bool WireReader::Varint(std::string_view& text, uint64_t& value) {
  value = 0;
  const size_t limit = std::min<size_t>(text.size(), 10);
  for (size_t i = 0; i < limit; ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
    if (byte < 0x80) {
      text.remove_prefix(i + 1);
      return true;
    }
  }
  return false;
}

bool WireReader::Varint(uint64_t& value) {
  if (at_ < end_ && static_cast<uint8_t>(*at_) < 0x80) {
    value = static_cast<uint8_t>(*at_++);
    return true;
  }
  std::string_view rest(at_, static_cast<size_t>(end_ - at_));
  if (!Varint(rest, value)) return Fail();
  at_ = rest.data();
  return true;
}

bool WireReader::Next() {
  if (!ok_ || at_ >= end_) return false;
  uint64_t tag;
  if (!Varint(tag)) return false;
  // Field numbers have 29 bits; 0 is none.
  if (tag > UINT32_MAX || (tag >> 3) == 0) return Fail();
  field_ = static_cast<uint32_t>(tag >> 3);
  type_ = static_cast<uint32_t>(tag & 7);
  switch (type_) {
    case 0:
      return Varint(number_);
    case 1:
      if (end_ - at_ < 8) return Fail();
      std::memcpy(&number_, at_, 8);  // little endian, as every machine we build for
      at_ += 8;
      return true;
    case 2:
      if (!Varint(number_)) return false;
      if (number_ > static_cast<uint64_t>(end_ - at_)) return Fail();
      bytes_ = {at_, static_cast<size_t>(number_)};
      at_ += number_;
      return true;
    case 5:
      if (end_ - at_ < 4) return Fail();
      at_ += 4;
      return true;
    default:
      return Fail();  // groups are not used by any message here
  }
}

void WireWriter::Grow(size_t need) {
  const size_t used = Mark();
  const size_t size = std::max(static_cast<size_t>(end_ - begin_) * 2, used + need);
  auto bigger = std::make_unique<char[]>(size);
  std::memcpy(bigger.get() + size - used, at_, used);
  heap_ = std::move(bigger);
  begin_ = heap_.get();
  end_ = begin_ + size;
  at_ = end_ - used;
}

void WireWriter::Raw(std::string_view bytes) {
  if (bytes.empty()) return;
  if (static_cast<size_t>(at_ - begin_) < bytes.size()) Grow(bytes.size());
  at_ -= bytes.size();
  std::memcpy(at_, bytes.data(), bytes.size());
}

void WireWriter::Varint(uint64_t value) {
  char text[10];
  size_t n = 0;
  while (value > 0x7f) {
    text[n++] = static_cast<char>((value & 0x7f) | 0x80);
    value >>= 7;
  }
  text[n++] = static_cast<char>(value);
  Raw({text, n});
}

void WireWriter::Number(uint32_t field, uint64_t value) {
  Varint(value);
  Varint(uint64_t{field} << 3);
}

void WireWriter::Double(uint32_t field, double value) { Fixed64(field, std::bit_cast<uint64_t>(value)); }

void WireWriter::Fixed64(uint32_t field, uint64_t value) {
  Raw({reinterpret_cast<const char*>(&value), sizeof(value)});
  Varint(uint64_t{field} << 3 | 1);
}

void WireWriter::Bytes(uint32_t field, std::string_view bytes) {
  Raw(bytes);
  Varint(bytes.size());
  Varint(uint64_t{field} << 3 | 2);
}

void WireWriter::EndMessage(uint32_t field, size_t mark, size_t extra) {
  Varint(Mark() - mark + extra);
  Varint(uint64_t{field} << 3 | 2);
}

void WireWriter::GrpcHeader(size_t extra) {
  const auto length = static_cast<uint32_t>(Mark() + extra);
  const char header[5] = {0, static_cast<char>(length >> 24), static_cast<char>(length >> 16),
                          static_cast<char>(length >> 8), static_cast<char>(length)};
  Raw({header, sizeof(header)});
}

}  // namespace fairway::net
