#include "api/decode.h"

#include <algorithm>
#include <limits>

#include "base/strings.h"

namespace fairway::api {
namespace {

// "the string \"x\"", for messages about types.
std::string Describe(const Value& value) {
  switch (value.kind) {
    case Value::Kind::kNull:
      return "nothing";
    case Value::Kind::kBool:
      return "the boolean " + value.text;
    case Value::Kind::kNumber:
      return "the number " + Quote(value.text);
    case Value::Kind::kString:
      return "the string " + Quote(value.text);
    case Value::Kind::kList:
      return "a list";
    case Value::Kind::kMap:
      return "a map";
  }
  return "";
}

// YAML's integers: decimal, 0x and 0o. A leading zero is octal in YAML 1.1 and decimal in 1.2, so it is not
// taken.
std::optional<int64_t> ToInteger(std::string_view text) {
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0o")) {
    base = text[1] == 'x' ? 16 : 8;
    text.remove_prefix(2);
  } else if (text.size() > 1 && text[0] == '0') {
    return std::nullopt;
  }
  if (text.empty() || text[0] == '-') return std::nullopt;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error == std::errc::result_out_of_range) value = std::numeric_limits<int64_t>::max();
  if (error == std::errc::invalid_argument || end != text.data() + text.size()) return std::nullopt;
  return negative ? -value : value;
}

std::string JoinPath(const std::string& path, std::string_view key) {
  const bool plain = !key.empty() && std::all_of(key.begin(), key.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
  if (!plain) return path + "[" + Quote(key) + "]";
  return path.empty() ? std::string(key) : path + "." + std::string(key);
}

}  // namespace

void ProblemList::Add(Severity severity, int line, std::string object, std::string field,
                      std::string message) {
  if (problems_.size() > limit_) return;
  if (problems_.size() == limit_) {
    problems_.push_back({Severity::kError, At(line), "", "", "more problems follow; repair these first"});
    return;
  }
  problems_.push_back({severity, At(line), std::move(object), std::move(field), std::move(message)});
}

void Node::Report(Severity severity, std::string message) const {
  context_->problems->Add(severity, line_, context_->name, path_, std::move(message));
}

void Node::WrongType(std::string_view wanted) const {
  Error("want " + std::string(wanted) + ", got " + Describe(*value_));
}

std::optional<std::string> Node::Text() const {
  if (!present()) return std::nullopt;
  switch (value_->kind) {
    case Value::Kind::kString:
      return value_->text;
    case Value::Kind::kBool:
    case Value::Kind::kNumber:
      Error("want a string, got " + Describe(*value_) + "; put it in quotes");
      return std::nullopt;
    default:
      WrongType("a string");
      return std::nullopt;
  }
}

std::optional<int64_t> Node::Integer(int64_t min, int64_t max) const {
  if (!present()) return std::nullopt;
  // Ends that only a kind of number has say nothing to a reader.
  const bool any = min <= INT32_MIN && max >= INT32_MAX;
  const std::string range = any ? "" : " from " + std::to_string(min) + " to " + std::to_string(max);
  if (value_->kind != Value::Kind::kNumber) {
    const bool quoted = value_->kind == Value::Kind::kString && ToInteger(value_->text).has_value();
    Error("want " + std::string(any ? "a whole number" : "a number") + range + ", got " + Describe(*value_) +
          (quoted ? "; take the quotes off" : ""));
    return std::nullopt;
  }
  const auto number = ToInteger(value_->text);
  if (!number || *number < min || *number > max) {
    Error("want a whole number" +
          (any ? " from " + std::to_string(min) + " to " + std::to_string(max) : range) + ", got " +
          Quote(value_->text));
    return std::nullopt;
  }
  return number;
}

std::vector<Node> Node::Items(size_t min, size_t max) const {
  std::vector<Node> nodes;
  if (!present()) return nodes;
  if (value_->kind != Value::Kind::kList) {
    WrongType("a list");
    return nodes;
  }
  const size_t count = value_->items.size();
  if (count < min) Error("want at least " + std::to_string(min) + (min == 1 ? " item" : " items"));
  if (count > max) {
    Error("want at most " + std::to_string(max) + (max == 1 ? " item" : " items") + ", got " +
          std::to_string(count));
  }
  for (size_t i = 0; i < std::min(count, max); ++i) {
    const Value* item = value_->items[i].get();
    Node node(context_, item, path_ + "[" + std::to_string(i) + "]", item->line);
    if (node.present()) {
      nodes.push_back(std::move(node));
    } else {
      node.Error("is empty; fill it or take it out");
    }
  }
  return nodes;
}

Node Node::Child(std::string_view key) const {
  std::string path = JoinPath(path_, key);
  if (Is(Value::Kind::kMap)) {
    for (const Value::Entry& entry : value_->entries) {
      if (entry.key == key) return {context_, entry.value.get(), std::move(path), entry.line};
    }
  }
  return {context_, nullptr, std::move(path), line_};
}

std::vector<std::pair<std::string_view, Node>> Node::Members(size_t max) const {
  std::vector<std::pair<std::string_view, Node>> members;
  if (!Is(Value::Kind::kMap)) return members;
  const size_t count = value_->entries.size();
  if (count > max) Error("at most " + std::to_string(max) + " entries, not " + std::to_string(count));
  for (size_t i = 0; i < std::min(count, max); ++i) {
    const Value::Entry& entry = value_->entries[i];
    members.emplace_back(entry.key,
                         Node(context_, entry.value.get(), JoinPath(path_, entry.key), entry.line));
  }
  return members;
}

ObjectReader::ObjectReader(Node node) : node_(std::move(node)) {
  valid_ = node_.Is(Value::Kind::kMap);
  if (node_.present() && !valid_) node_.WrongType("a map");
}

Node ObjectReader::Get(std::string_view field) {
  known_.emplace_back(field);
  return node_.Child(field);
}

Node ObjectReader::Require(std::string_view field) {
  Node child = Get(field);
  if (valid_ && !child.present()) child.Error("is required");
  return child;
}

void ObjectReader::Ignore(std::initializer_list<std::string_view> fields) {
  known_.insert(known_.end(), fields.begin(), fields.end());
}

void ObjectReader::NotServed(std::initializer_list<std::string_view> fields) {
  for (const std::string_view field : fields) {
    const Node child = Get(field);
    if (child.present()) child.Warn("is not served locally and has no effect here");
  }
}

void ObjectReader::Mistaken(std::string_view field, std::string advice) {
  mistaken_.emplace_back(field, std::move(advice));
}

bool ObjectReader::Known(const std::string& field) const {
  return std::find(known_.begin(), known_.end(), field) != known_.end();
}

void ObjectReader::Finish() {
  if (!valid_ || node_.context().allow_unknown) return;
  for (const Value::Entry& entry : node_.value().entries) {
    if (Known(entry.key)) continue;
    const Node child(&node_.context(), entry.value.get(), JoinPath(node_.path(), entry.key), entry.line);
    const auto advice =
        std::find_if(mistaken_.begin(), mistaken_.end(), [&](const auto& m) { return m.first == entry.key; });
    child.Error("unknown field" +
                (advice != mistaken_.end() ? "; " + advice->second : DidYouMean(entry.key, known_)));
  }
}

std::string ReadText(const Node& node, TextRule rule) { return ReadTextOr(node, rule, ""); }

std::string ReadTextOr(const Node& node, TextRule rule, std::string_view otherwise) {
  if (!node.present()) return std::string(otherwise);
  auto text = node.Text();
  if (!text) return "";
  if (const std::string wanted = rule(*text); !wanted.empty()) {
    node.Error(wanted + ", got " + Quote(*text));
    return "";
  }
  return std::move(*text);
}

std::optional<uint16_t> ReadPort(const Node& node) {
  const auto number = node.Integer(1, 65535);
  if (!number) return std::nullopt;
  return static_cast<uint16_t>(*number);
}

std::map<std::string, std::string> ReadTextMap(const Node& node, TextRule key_rule, TextRule value_rule,
                                               size_t max) {
  std::map<std::string, std::string> out;
  if (!node.present()) return out;
  if (!node.Is(Value::Kind::kMap)) {
    node.WrongType("a map");
    return out;
  }
  if (node.value().entries.size() > max) {
    node.Error("want at most " + std::to_string(max) + " entries, got " +
               std::to_string(node.value().entries.size()));
    return out;
  }
  for (const Value::Entry& entry : node.value().entries) {
    const Node child(&node.context(), entry.value.get(), JoinPath(node.path(), entry.key), entry.line);
    if (const std::string wanted = key_rule(entry.key); !wanted.empty())
      child.Error(wanted + ", got " + Quote(entry.key));
    // A null value is the empty text, as for Kubernetes.
    if (!child.present()) {
      out.emplace(entry.key, "");
      continue;
    }
    auto text = child.Text();
    if (!text) continue;
    if (const std::string wanted = value_rule(*text); !wanted.empty()) {
      child.Error(wanted + ", got " + Quote(*text));
      continue;
    }
    out.emplace(entry.key, std::move(*text));
  }
  return out;
}

std::optional<size_t> ReadChoice(const Node& node, std::initializer_list<std::string_view> choices) {
  const auto text = node.Text();
  if (!text) return std::nullopt;
  const auto* found = std::find(choices.begin(), choices.end(), *text);
  if (found != choices.end()) return static_cast<size_t>(found - choices.begin());
  std::vector<std::string> names(choices.begin(), choices.end());
  std::erase(names, "");  // as good as not given, and nothing to ask for
  node.Error((names.size() == 1 ? "want " : "want one of ") + base::Join(names, ", ") + ", got " +
             Quote(*text) + DidYouMean(*text, names));
  return std::nullopt;
}

bool Older(const ObjectMeta& a, const ObjectMeta& b) {
  if (a.creation_timestamp.empty() || b.creation_timestamp.empty()) return false;
  return a.creation_timestamp < b.creation_timestamp;
}

ObjectMeta ReadMeta(const Node& metadata, int object_line) {
  ObjectMeta meta;
  meta.where = metadata.context().problems->At(object_line);
  // Other metadata (uid, managedFields, ...) is for the API server: no strictness here.
  ObjectReader reader(metadata);
  meta.name = ReadText(reader.Require("name"), CheckDnsSubdomain);
  meta.namespace_name = ReadTextOr(reader.Get("namespace"), CheckDnsLabel, "default");
  const TextRule anything = [](std::string_view) { return std::string(); };
  meta.labels = ReadTextMap(reader.Get("labels"), CheckLabelKey, CheckLabelValue, 10'000);
  meta.annotations = ReadTextMap(reader.Get("annotations"), CheckLabelKey, anything, 10'000);
  const Node created = reader.Get("creationTimestamp");
  if (const auto text = created.Text()) {
    if (auto time = NormalizeTime(*text)) {
      meta.creation_timestamp = std::move(*time);
    } else {
      created.Error("want a time as RFC 3339 has it, such as \"2025-04-02T10:00:00Z\", got " + Quote(*text));
    }
  }
  return meta;
}

}  // namespace fairway::api
