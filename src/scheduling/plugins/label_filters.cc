// Filters by the labels of endpoints. What a filter says of an endpoint changes only with its manifest, so it
// is a column, computed once per fleet. Source: the reference's filters of these names (llm-d router).
//
//   label-selector-filter   a Kubernetes selector: `matchLabels`, `matchExpressions` of `key`, `operator`
//   (In,
//                           NotIn, Exists, DoesNotExist), `values`; an empty one keeps all
//   by-label-selector       its older name
//   by-label                the value of `label` is one of `validValues`; without one: `allowsNoLabel`
//   (false) decode-filter, prefill-filter, encode-filter
//                           by the roles of llm-d.ai/role; decode-filter keeps who has none, the others do
//                           not
#include <algorithm>
#include <set>
#include <vector>

#include "api/decode.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

using Labels = std::map<std::string, std::string>;

struct Requirement {
  std::string key;
  std::vector<std::string> values;  // empty: any
  bool wanted = true;               // false: NotIn, DoesNotExist
  bool or_absent = false;

  bool Matches(const Labels& labels) const {
    const auto found = labels.find(key);
    if (found == labels.end()) return or_absent;
    const bool in = values.empty() || std::find(values.begin(), values.end(), found->second) != values.end();
    return in == wanted;
  }
};

class LabelFilter final : public Plugin, public Filter, public EndpointProducer {
 public:
  LabelFilter(Build& build, std::vector<Requirement> requirements)
      : kept_(build.Makes(build.Own("kept"), Lifetime::kSnapshot, Unit::kCount)),
        requirements_(std::move(requirements)) {}
  float Value(Column, const fleet::Endpoint& endpoint) const override {
    return std::all_of(requirements_.begin(), requirements_.end(),
                       [&](const Requirement& r) { return r.Matches(endpoint.labels); });
  }
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    const float* column = context.columns[kept_];
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      kept += column[position] != 0 ? 1 : 0;
    }
    return kept;
  }
  std::string Why(const Context&, uint32_t) const override {
    std::string keys;
    for (const Requirement& r : requirements_) keys += (keys.empty() ? "" : ", ") + r.key;
    return "its labels do not match: " + keys;
  }

 private:
  Column kept_;
  std::vector<Requirement> requirements_;
};

Requirement ReadExpression(const api::Node& node) {
  api::ObjectReader reader(node);
  Requirement requirement;
  requirement.key = reader.Require("key").Text().value_or("");
  const size_t op =
      api::ReadChoice(reader.Require("operator"), {"In", "NotIn", "Exists", "DoesNotExist"}).value_or(2);
  const api::Node values = reader.Get("values");
  for (const api::Node& value : values.Items(0, 1000)) {
    if (auto text = value.Text()) requirement.values.push_back(std::move(*text));
  }
  reader.Finish();
  const bool lists = op < 2;
  if (lists && requirement.values.empty()) node.Child("values").Error("In and NotIn want at least one value");
  if (!lists && !requirement.values.empty()) values.Error("Exists and DoesNotExist take no values");
  if (!lists) requirement.values.clear();
  requirement.wanted = op == 0 || op == 2;
  requirement.or_absent = !requirement.wanted;
  return requirement;
}

Requirement Roles(std::vector<std::string> roles, bool or_absent) {
  return {.key = "llm-d.ai/role", .values = std::move(roles), .or_absent = or_absent};
}

constexpr size_t kMaxRequirements = 1000;

}  // namespace

std::unique_ptr<Plugin> MakeLabelSelectorFilter(Build& build) {
  std::vector<Requirement> requirements;
  const api::Node labels = build.Object("matchLabels", "Labels that endpoints must have");
  if (labels.present() && !labels.Is(api::Value::Kind::kMap)) labels.WrongType("labels and values");
  for (const auto& [key, node] : labels.Members(kMaxRequirements)) {
    if (auto value = node.Text())
      requirements.push_back({.key = std::string(key), .values = {std::move(*value)}});
  }
  for (const api::Node& item :
       build.Object("matchExpressions", "[{key, operator: In, NotIn, Exists or DoesNotExist, values}]")
           .Items(0, kMaxRequirements))
    requirements.push_back(ReadExpression(item));
  return std::make_unique<LabelFilter>(build, std::move(requirements));
}

std::unique_ptr<Plugin> MakeByLabelFilter(Build& build) {
  Requirement requirement{
      .key = build.Text("label", "", "Label that is looked at, required"),
      .values = build.Texts("validValues", "Values that pass"),
      .or_absent = build.Flag("allowsNoLabel", false, "Endpoints without the label pass")};
  if (requirement.key.empty()) build.Error("label", "must be set");
  if (requirement.values.empty()) {
    if (!requirement.or_absent) build.Error("validValues", "must not be empty without allowsNoLabel");
    requirement.wanted = false;  // any value: none is valid
  }
  return std::make_unique<LabelFilter>(build, std::vector{std::move(requirement)});
}

std::unique_ptr<Plugin> MakeDecodeFilter(Build& build) {
  return std::make_unique<LabelFilter>(
      build, std::vector{Roles({"decode", "prefill-decode", "both", "encode-prefill-decode"}, true)});
}
std::unique_ptr<Plugin> MakePrefillFilter(Build& build) {
  return std::make_unique<LabelFilter>(
      build, std::vector{Roles(
                 {"prefill", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode"}, false)});
}
std::unique_ptr<Plugin> MakeEncodeFilter(Build& build) {
  return std::make_unique<LabelFilter>(
      build, std::vector{Roles({"encode", "encode-prefill", "encode-prefill-decode"}, false)});
}

}  // namespace fairway::scheduling
