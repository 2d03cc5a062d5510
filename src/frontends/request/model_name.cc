#include "frontends/request/model_name.h"

#include <utility>

namespace fairway::request {

namespace {
constexpr std::string_view kKey = "\"model\"";
constexpr std::string_view kSpace = " \t\r\n";
}  // namespace

bool PutModel(std::string& body, const payload::RequestFields& fields, std::string_view model) {
  const payload::Span span = fields.model_span;
  if (!fields.has_model || span.begin > span.end || span.end > body.size()) return false;
  body.replace(span.begin, span.end - span.begin, payload::ModelReplacement(model));
  return true;
}

ModelRenamer::ModelRenamer(std::string_view from, std::string_view to, bool join)
    : from_(payload::ModelReplacement(from)), to_(payload::ModelReplacement(to)), join_(join) {}

size_t ModelRenamer::Match(std::string_view text) const {
  if (text.size() < kKey.size()) return kKey.starts_with(text) ? std::string::npos : 0;
  if (!text.starts_with(kKey)) return 0;
  size_t at = kKey.size();
  const auto skip_space = [&] {
    const size_t limit = at + kMaxSpace;
    while (at < text.size() && at < limit && kSpace.find(text[at]) != std::string_view::npos) ++at;
  };
  skip_space();
  if (at == text.size()) return std::string::npos;
  if (text[at] != ':') return 0;
  ++at;
  skip_space();
  const std::string_view value = text.substr(at);
  if (value.size() < from_.size()) return from_.starts_with(value) ? std::string::npos : 0;
  return value.starts_with(from_) ? at + from_.size() : 0;
}

std::string_view ModelRenamer::Feed(std::string_view chunk) {
  std::string_view text = chunk;
  if (!held_.empty()) {
    input_ = std::move(held_);
    held_.clear();
    input_.append(chunk);
    text = input_;
  }
  output_.clear();
  size_t copied = 0;  // of `text`, in output_ already
  bool changed = false;
  for (size_t at = text.find('"'); at != std::string_view::npos; at = text.find('"', at)) {
    const size_t length = Match(text.substr(at));
    if (length == std::string::npos) {
      if (!join_) break;
      held_.assign(text.substr(at));
      text = text.substr(0, at);
      break;
    }
    if (length == 0) {
      ++at;
      continue;
    }
    // The key and the space stay as they are.
    output_.append(text.substr(copied, at + length - from_.size() - copied));
    output_.append(to_);
    at += length;
    copied = at;
    changed = true;
  }
  if (!changed) return text;
  output_.append(text.substr(copied));
  return output_;
}

std::string_view ModelRenamer::Finish() {
  output_ = std::move(held_);
  held_.clear();
  return output_;
}

}  // namespace fairway::request
