// InferenceObjective and InferenceModelRewrite: fields, defaults and checks of their CRDs
// (docs/manifests.md).
#include <limits>
#include <utility>

#include "api/decode.h"

namespace fairway::api {
namespace {

// The CRD has no limits of its own; an object of the API server's largest size stays below.
constexpr size_t kMaxRules = 10'000;
constexpr size_t kMaxMatches = 10'000;
constexpr size_t kMaxTargets = 1'000;

std::string CheckModelName(std::string_view text) {
  return !text.empty() && text.size() <= 1024 ? "" : "want 1 to 1024 characters";
}

InferenceModelRewrite::Match ReadMatch(const Node& item) {
  ObjectReader match(item);
  ObjectReader model(match.Require("model"));
  ReadChoice(model.Get("type"), {"Exact"});
  const Node value = model.Require("value");
  InferenceModelRewrite::Match read{.model = ReadText(value, CheckModelName), .where = value.where()};
  model.Finish();
  match.Finish();
  return read;
}

std::vector<InferenceModelRewrite::Target> ReadTargets(const Node& node) {
  std::vector<InferenceModelRewrite::Target> targets;
  std::vector<Node> unweighted;
  for (const Node& item : node.Items(1, kMaxTargets)) {
    ObjectReader target(item);
    InferenceModelRewrite::Target read;
    read.model = ReadText(target.Require("modelRewrite"), CheckModelName);
    const Node weight = target.Get("weight");
    if (const auto number = weight.Integer(1, kMaxWeight)) read.weight = static_cast<int32_t>(*number);
    if (!weight.present()) unweighted.push_back(weight);
    target.Mistaken("name", "that is InferenceModel's name for it; here it is modelRewrite");
    target.Finish();
    targets.push_back(std::move(read));
  }
  if (unweighted.size() < targets.size()) {
    for (const Node& weight : unweighted)
      weight.Warn("is not set, but others are: this target gets no requests; set it for all or for none");
  }
  return targets;
}

}  // namespace

InferenceObjective ReadObjective(ObjectReader& root, ObjectMeta meta, std::string_view group) {
  InferenceObjective objective;
  objective.meta = std::move(meta);
  objective.group = group;
  ObjectReader spec(root.Require("spec"));
  const auto priority =
      spec.Get("priority").Integer(std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max());
  objective.priority = static_cast<int32_t>(priority.value_or(0));
  objective.pool = ReadPoolRef(spec, kInferenceGroup, "an objective");
  spec.Mistaken("criticality",
                "that is InferenceModel's; here it is priority, a number: below 0 may be shed");
  spec.Finish();
  return objective;
}

InferenceModelRewrite ReadRewrite(ObjectReader& root, ObjectMeta meta, std::string_view group) {
  InferenceModelRewrite rewrite;
  rewrite.meta = std::move(meta);
  rewrite.group = group;
  ObjectReader spec(root.Require("spec"));
  rewrite.pool = ReadPoolRef(spec, kInferenceGroup, "a rewrite");
  for (const Node& item : spec.Require("rules").Items(0, kMaxRules)) {
    ObjectReader rule(item);
    InferenceModelRewrite::Rule read;
    read.where = item.where();
    for (const Node& match : rule.Get("matches").Items(0, kMaxMatches))
      read.matches.push_back(ReadMatch(match));
    read.targets = ReadTargets(rule.Require("targets"));
    rule.Mistaken("split", "that was its first name; it is targets");
    rule.Mistaken("targetModels", "that is InferenceModel's name for it; here it is targets");
    rule.Finish();
    rewrite.rules.push_back(std::move(read));
  }
  spec.Finish();
  return rewrite;
}

}  // namespace fairway::api
