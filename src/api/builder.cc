#include "api/builder.h"

#include <utility>

#include "api/text_rules.h"

namespace fairway::api {

void ValueBuilder::StartDocument() {
  frames_.clear();
  root_.reset();
  aliased_ = 0;
}

void ValueBuilder::Report(int line, std::string message) {
  if (out_.problems.size() >= kMaxSyntaxProblems)
    throw Stop{line, "too many problems; the rest of the file was not read", true};
  out_.problems.push_back({line, std::move(message)});
}

void ValueBuilder::Count(int line, size_t values) {
  values_ += values;
  if (values_ > kMaxValues)
    throw Stop{line, "more than 1000000 values in one file; split it into files of one folder", true};
}

std::shared_ptr<Value> ValueBuilder::Open(Value::Kind kind, int line) {
  if (frames_.size() >= static_cast<size_t>(kMaxDepth)) throw Stop{line, "nested deeper than 100 levels"};
  Count(line, 1);
  auto value = std::make_shared<Value>();
  value->kind = kind;
  value->line = line;
  Frame frame;
  frame.value = value;
  frame.wants_key = kind == Value::Kind::kMap;
  frames_.push_back(std::move(frame));
  return value;
}

void ValueBuilder::Close() {
  Frame frame = std::move(frames_.back());
  frames_.pop_back();
  ApplyMerges(frame);
  const int line = frame.value->line;
  Add(std::move(frame.value), line);
}

std::shared_ptr<Value> ValueBuilder::Scalar(Value::Kind kind, int line, std::string text) {
  Count(line, 1);
  auto value = std::make_shared<Value>();
  value->kind = kind;
  value->line = line;
  value->text = std::move(text);
  Add(value, line);
  return value;
}

void ValueBuilder::Alias(const ValuePtr& target, int line) {
  // Sharing costs no memory, but whoever walks the document walks every repetition.
  aliased_ += target->size;
  if (aliased_ > kMaxAliasedValues)
    throw Stop{line, "aliases repeat more than 100000 values; write the values out"};
  Add(target, line);
}

void ValueBuilder::Key(std::string key, int line, bool merge) {
  Frame& frame = frames_.back();
  frame.wants_key = false;
  frame.merge = merge;
  frame.drop = false;
  if (!merge) {
    const auto [seen, is_new] = frame.seen.emplace(key, line);
    if (!is_new) {
      frame.drop = true;
      Report(line, "the key " + Quote(key) + " is here twice; it was first set on line " +
                       std::to_string(seen->second));
    }
  }
  frame.key = std::move(key);
  frame.key_line = line;
}

void ValueBuilder::Add(ValuePtr value, int line) {
  if (frames_.empty()) {
    root_ = std::move(value);
    return;
  }
  Frame& frame = frames_.back();
  Value& parent = *frame.value;
  if (parent.kind == Value::Kind::kList) {
    parent.size += value->size;
    parent.items.push_back(std::move(value));
    return;
  }
  frame.wants_key = true;
  if (frame.merge) {
    frame.merge = false;
    const bool is_map = value->kind == Value::Kind::kMap;
    if (!is_map && value->kind != Value::Kind::kList) {
      Report(line, "the merge key << wants a map or a list of maps");
      return;
    }
    if (is_map) {
      frame.merged.push_back(std::move(value));
    } else {
      frame.merged.insert(frame.merged.end(), value->items.begin(), value->items.end());
    }
    return;
  }
  if (frame.drop) return;
  parent.size += value->size;
  parent.entries.push_back({std::move(frame.key), frame.key_line, std::move(value)});
}

// A merged map gives only keys that the map does not set itself; of several merged maps the first wins.
void ValueBuilder::ApplyMerges(Frame& frame) {
  for (const ValuePtr& merged : frame.merged) {
    for (const Value::Entry& entry : merged->entries) {
      if (!frame.seen.emplace(entry.key, entry.line).second) continue;
      aliased_ += entry.value->size;
      if (aliased_ > kMaxAliasedValues) {
        throw Stop{frame.value->line, "aliases repeat more than 100000 values; write the values out"};
      }
      frame.value->size += entry.value->size;
      frame.value->entries.push_back(entry);
    }
  }
}

}  // namespace fairway::api
