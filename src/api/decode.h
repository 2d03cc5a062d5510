// Typed, position-aware reading of one object: every getter reports what it does not like and goes on, so
// that all problems of an object are found in one pass.
//
//   ObjectReader spec(root.Get("spec"));
//   model.name = ReadText(spec.Require("modelName"), CheckReferentName);
//   spec.Finish();  // whatever was not asked for is an unknown field
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/load.h"
#include "api/manifests.h"
#include "api/text_rules.h"
#include "api/value.h"

namespace fairway::api {

// The problems of one file, at most kMaxProblems: beyond that a last one says that there are more.
class ProblemList {
 public:
  static constexpr size_t kMaxProblems = 1000;
  ProblemList(std::string file, std::vector<Problem>& problems)
      : file_(std::move(file)), problems_(problems), limit_(problems.size() + kMaxProblems) {}

  void Add(Severity severity, int line, std::string object, std::string field, std::string message);
  Position At(int line) const { return {file_, line}; }
  const std::string& file() const { return file_; }

 private:
  std::string file_;
  std::vector<Problem>& problems_;
  size_t limit_;
};

// The object being read, as messages name it. Lives as long as its nodes.
struct ObjectContext {
  ProblemList* problems = nullptr;
  std::string name;                             // "HTTPRoute default/llm-route"
  bool allow_unknown = false;                   // fields that nobody asked for are none of our business
  const CheckPattern* check_pattern = nullptr;  // null: regular expressions are not looked at
};

// A value that may be absent, with its path from the object's root. Cheap to copy but for the path.
class Node {
 public:
  Node(const ObjectContext* context, const Value* value, std::string path, int line)
      : context_(context), value_(value), path_(std::move(path)), line_(line) {}

  // Null counts as absent, as it does for Kubernetes.
  bool present() const { return value_ != nullptr && value_->kind != Value::Kind::kNull; }
  bool Is(Value::Kind kind) const { return value_ != nullptr && value_->kind == kind; }
  // REQUIRES: present().
  const Value& value() const { return *value_; }
  int line() const { return line_; }
  Position where() const { return context_->problems->At(line_); }
  const std::string& path() const { return path_; }
  const ObjectContext& context() const { return *context_; }

  void Error(std::string message) const { Report(Severity::kError, std::move(message)); }
  void Warn(std::string message) const { Report(Severity::kWarning, std::move(message)); }
  // "want a list, got the string \"x\""
  void WrongType(std::string_view wanted) const;

  // Nothing when absent or of another type, which is reported.
  std::optional<std::string> Text() const;
  std::optional<int64_t> Integer(int64_t min, int64_t max) const;
  // Empty when absent. Reported: another type, fewer than `min` (when present), more than `max`; then at most
  // `max` are given.
  std::vector<Node> Items(size_t min, size_t max) const;
  Node Child(std::string_view key) const;
  // The entries of a map by their keys, in their order: Child for each would search for each. Empty when it is
  // no map. Reported: more than `max`; then that many are given.
  std::vector<std::pair<std::string_view, Node>> Members(size_t max) const;

 private:
  void Report(Severity severity, std::string message) const;

  const ObjectContext* context_;
  const Value* value_;
  std::string path_;
  int line_;
};

// A map whose fields are known. Finish() reports those that were never asked for.
class ObjectReader {
 public:
  explicit ObjectReader(Node node);

  // There and a map: only then do Require and Finish report anything.
  bool valid() const { return valid_; }
  const Node& node() const { return node_; }

  Node Get(std::string_view field);
  Node Require(std::string_view field);
  void Ignore(std::initializer_list<std::string_view> fields);
  // Fields of the API that local mode does not serve: a warning where they are set.
  void NotServed(std::initializer_list<std::string_view> fields);
  // A field of a sibling version: said instead of a nearest name.
  void Mistaken(std::string_view field, std::string advice);
  void Finish();

 private:
  bool Known(const std::string& field) const;

  Node node_;
  bool valid_ = false;
  std::vector<std::string> known_;
  std::vector<std::pair<std::string, std::string>> mistaken_;
};

// A text that keeps `rule`; "" when absent or wrong.
std::string ReadText(const Node& node, TextRule rule);
std::string ReadTextOr(const Node& node, TextRule rule, std::string_view otherwise);
std::optional<uint16_t> ReadPort(const Node& node);

// Keys and values of a map of texts. Wrong ones are left out.
std::map<std::string, std::string> ReadTextMap(const Node& node, TextRule key_rule, TextRule value_rule,
                                               size_t max);

// One of the texts, reported with the nearest when it is none of them.
std::optional<size_t> ReadChoice(const Node& node, std::initializer_list<std::string_view> choices);
template <typename Enum>
Enum ReadEnum(const Node& node, std::initializer_list<std::string_view> choices,
              std::initializer_list<Enum> values, Enum otherwise) {
  const auto index = ReadChoice(node, choices);
  return index ? values.begin()[*index] : otherwise;
}

// True when both have a creation time and `a` was created first.
bool Older(const ObjectMeta& a, const ObjectMeta& b);

// --- The kinds. Each takes the object's root and its metadata and reports through the context. ---
struct KindNames {
  std::string group;
  std::string version;
  std::string kind;
};

constexpr std::string_view kInferenceGroup = "inference.networking.k8s.io";
constexpr std::string_view kInferenceGroupX = "inference.networking.x-k8s.io";
constexpr std::string_view kGatewayGroup = "gateway.networking.k8s.io";
constexpr std::string_view kLlmdGroup = "llm-d.ai";

constexpr int64_t kMaxWeight = 1'000'000;

ObjectMeta ReadMeta(const Node& metadata, int object_line);
// `spec`.poolRef; `what` is the object in words: "a model".
PoolRef ReadPoolRef(ObjectReader& spec, std::string_view default_group, std::string_view what);
InferencePool ReadPoolV1(ObjectReader& root, ObjectMeta meta);
InferencePool ReadPoolV1Alpha2(ObjectReader& root, ObjectMeta meta);
InferenceModel ReadModel(ObjectReader& root, ObjectMeta meta);
InferenceObjective ReadObjective(ObjectReader& root, ObjectMeta meta, std::string_view group);
InferenceModelRewrite ReadRewrite(ObjectReader& root, ObjectMeta meta, std::string_view group);
Gateway ReadGateway(ObjectReader& root, ObjectMeta meta);
HttpRoute ReadRoute(ObjectReader& root, ObjectMeta meta);
std::vector<Endpoint> ReadEndpoints(ObjectReader& root);

}  // namespace fairway::api
