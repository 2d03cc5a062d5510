// The model's name in a body that was read: where it goes, and what takes its place.
#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "payload/request.h"

namespace fairway::payload {

std::string ModelReplacement(std::string_view model) { return base::JsonString(model); }

std::optional<BodyEdit> EditModel(const RequestFields& fields, std::string_view model) {
  if (fields.model_span.end != 0) return BodyEdit{fields.model_span, ModelReplacement(model)};
  if (fields.members.end == 0) return std::nullopt;  // no object, or the model may come yet
  std::string text = "\"model\":" + ModelReplacement(model);
  if (!fields.empty_object) text += ',';
  return BodyEdit{{fields.members.begin, fields.members.begin}, std::move(text)};
}

void AppendEdited(std::string& out, std::string_view chunk, uint64_t offset, const BodyEdit& edit) {
  const auto within = [&](uint64_t at) {
    return at <= offset ? 0 : static_cast<size_t>(std::min<uint64_t>(at - offset, chunk.size()));
  };
  out.append(chunk.substr(0, within(edit.at.begin)));
  if (edit.at.begin >= offset && edit.at.begin - offset < chunk.size()) out += edit.text;
  out.append(chunk.substr(within(edit.at.end)));
}

}  // namespace fairway::payload
