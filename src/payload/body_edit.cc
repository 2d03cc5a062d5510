// The model's name in a body that was read: where it goes, and what takes its place.
#include <optional>

#include "base/strings.h"
#include "payload/request.h"

namespace fairway::payload {
namespace {

// Puts another number in place of the varint that ends before `end`, and tells how much longer the body is.
int64_t SetVarint(std::string& body, size_t end, uint64_t value) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(body[begin - 1]) & 0x80) != 0) --begin;
  std::string text;
  for (; value > 0x7f; value >>= 7) text += static_cast<char>((value & 0x7f) | 0x80);
  text += static_cast<char>(value);
  body.replace(begin, end - begin, text);
  return static_cast<int64_t>(text.size()) - static_cast<int64_t>(end - begin);
}

// The lengths that stand before a wrapped body, the inner one first, once it is `longer`.
bool SetLengths(std::string& body, const RequestFields::Wrap& wrap, int64_t longer) {
  constexpr size_t kHead = 5;  // of the gRPC message
  longer += SetVarint(body, wrap.data.begin, wrap.data.end - wrap.data.begin + static_cast<uint64_t>(longer));
  longer += SetVarint(body, wrap.http_body.begin,
                      wrap.http_body.end - wrap.http_body.begin + static_cast<uint64_t>(longer));
  uint64_t message = 0;
  for (size_t i = 1; i < kHead; ++i) message = message << 8 | static_cast<unsigned char>(body[i]);
  message += static_cast<uint64_t>(longer);
  for (size_t i = kHead; --i > 0; message >>= 8) body[i] = static_cast<char>(message);
  return message == 0;  // else it is too long for one
}

}  // namespace

std::string ModelReplacement(std::string_view model) { return base::JsonString(model); }

bool PutModel(std::string& body, const RequestFields& fields, std::string_view model) {
  Span at = fields.model_span;
  std::string text = ModelReplacement(model);
  if (at.end == 0) {
    if (fields.members.end == 0) return false;  // no object, or the model may come yet
    at = {fields.members.begin, fields.members.begin};
    text = "\"model\":" + text + (fields.empty_object ? "" : ",");
  }
  if (at.begin > at.end || at.end > body.size()) return false;
  const int64_t longer = static_cast<int64_t>(text.size()) - static_cast<int64_t>(at.end - at.begin);
  body.replace(at.begin, at.end - at.begin, text);
  return fields.wrap.data.begin == 0 || SetLengths(body, fields.wrap, longer);
}

}  // namespace fairway::payload
