// InferencePool and InferenceModel: fields, defaults and checks of their CRDs (docs/manifests.md).
#include <algorithm>

#include "api/decode.h"

namespace fairway::api {
namespace {

constexpr size_t kMaxSelectorLabels = 64;
constexpr size_t kMaxTargetPorts = 8;
constexpr size_t kMaxTargetModels = 10;
constexpr uint16_t kImpliedPickerPort = 9002;

FailureMode ReadFailureMode(const Node& node) {
  return ReadEnum(node, {"FailOpen", "FailClose"}, {FailureMode::kFailOpen, FailureMode::kFailClose},
                  FailureMode::kFailClose);
}

InferencePool::PickerRef ReadPickerRef(ObjectReader& reader) {
  InferencePool::PickerRef picker;
  picker.group = ReadText(reader.Get("group"), CheckGroup);
  picker.kind = ReadTextOr(reader.Get("kind"), CheckKind, "Service");
  picker.name = ReadText(reader.Require("name"), CheckReferentName);
  picker.failure_mode = ReadFailureMode(reader.Get("failureMode"));
  return picker;
}

void CheckSelectorSize(const Node& node, const std::map<std::string, std::string>& selector) {
  if (node.Is(Value::Kind::kMap) && selector.empty() && node.value().entries.empty()) {
    node.Error("want at least 1 label");
  }
}

}  // namespace

PoolRef ReadPoolRef(ObjectReader& spec, std::string_view default_group, std::string_view what) {
  PoolRef pool;
  ObjectReader ref(spec.Require("poolRef"));
  pool.where = ref.node().where();
  pool.group = ReadTextOr(ref.Get("group"), CheckGroup, default_group);
  ReadChoice(ref.Get("kind"), {"InferencePool"});
  const Node name = ref.Require("name");
  pool.name = ReadText(name, CheckReferentName);
  if (name.present()) pool.where = name.where();
  ref.Mistaken("namespace", std::string(what) + " and its pool stand in the same namespace");
  ref.Finish();
  return pool;
}

InferencePool ReadPoolV1(ObjectReader& root, ObjectMeta meta) {
  InferencePool pool;
  pool.meta = std::move(meta);
  pool.group = kInferenceGroup;
  ObjectReader spec(root.Require("spec"));

  ObjectReader selector(spec.Require("selector"));
  if (selector.valid() && !selector.node().value().entries.empty() &&
      selector.node().value().Find("matchLabels") == nullptr) {
    for (const Value::Entry& entry : selector.node().value().entries) {
      selector.Mistaken(entry.key, entry.key == "matchExpressions"
                                       ? "an InferencePool selects by matchLabels only"
                                       : "in v1 the labels stand under selector.matchLabels");
    }
  }
  const Node labels = selector.Require("matchLabels");
  pool.selector = ReadTextMap(labels, CheckLabelKey, CheckLabelValue, kMaxSelectorLabels);
  CheckSelectorSize(labels, pool.selector);
  selector.Mistaken("matchExpressions", "an InferencePool selects by matchLabels only");
  selector.Finish();

  for (const Node& item : spec.Require("targetPorts").Items(1, kMaxTargetPorts)) {
    if (item.Is(Value::Kind::kNumber)) {
      item.Error("want a map, got the number " + Quote(item.value().text) +
                 "; write {number: " + item.value().text + "}");
      continue;
    }
    ObjectReader port(item);
    const Node number = port.Require("number");
    if (const auto value = ReadPort(number)) {
      if (std::find(pool.target_ports.begin(), pool.target_ports.end(), *value) != pool.target_ports.end()) {
        number.Error("port " + std::to_string(*value) + " is here twice; port numbers must be unique");
      } else {
        pool.target_ports.push_back(*value);
      }
    }
    port.Finish();
  }

  pool.app_protocol = ReadEnum(spec.Get("appProtocol"), {"http", "kubernetes.io/h2c"},
                               {AppProtocol::kHttp, AppProtocol::kH2c}, AppProtocol::kHttp);

  ObjectReader ref(spec.Get("endpointPickerRef"));
  if (ref.valid()) {
    InferencePool::PickerRef picker = ReadPickerRef(ref);
    ObjectReader port(ref.Get("port"));
    if (port.valid()) {
      picker.port = ReadPort(port.Require("number"));
      port.Finish();
    } else if (picker.kind == "Service" && !port.node().present()) {
      port.node().Error("is required when kind is Service (the default); write port: {number: 9002}");
    }
    ref.Mistaken("portNumber", "this is v1alpha2's name; in v1 write port: {number: ...}");
    ref.Finish();
    pool.picker = std::move(picker);
  }
  spec.Mistaken("targetPortNumber", "this is v1alpha2's name; in v1 write targetPorts: [{number: ...}]");
  spec.Mistaken("extensionRef", "this is v1alpha2's name; in v1 it is endpointPickerRef");
  spec.Finish();
  return pool;
}

InferencePool ReadPoolV1Alpha2(ObjectReader& root, ObjectMeta meta) {
  InferencePool pool;
  pool.meta = std::move(meta);
  pool.group = kInferenceGroupX;
  ObjectReader spec(root.Require("spec"));

  const Node selector = spec.Require("selector");
  const Node match_labels = selector.Child("matchLabels");
  if (match_labels.Is(Value::Kind::kMap)) {
    match_labels.Error("this is v1's form; in v1alpha2 the labels stand directly under selector");
  } else {
    pool.selector = ReadTextMap(selector, CheckLabelKey, CheckLabelValue, kMaxSelectorLabels);
  }

  if (const auto port = ReadPort(spec.Require("targetPortNumber"))) pool.target_ports.push_back(*port);

  ObjectReader ref(spec.Require("extensionRef"));
  if (ref.valid()) {
    InferencePool::PickerRef picker = ReadPickerRef(ref);
    picker.port = ReadPort(ref.Get("portNumber"));
    if (!picker.port && picker.kind == "Service") picker.port = kImpliedPickerPort;
    ref.Mistaken("port", "this is v1's name; in v1alpha2 it is portNumber: 9002");
    ref.Mistaken("targetPortNumber", "this is v1alpha1's name; in v1alpha2 it is portNumber");
    ref.Finish();
    pool.picker = std::move(picker);
  }
  spec.Mistaken("targetPorts", "this is v1's name; in v1alpha2 it is targetPortNumber");
  spec.Mistaken("endpointPickerRef", "this is v1's name; in v1alpha2 it is extensionRef");
  spec.Mistaken("appProtocol", "only v1 has it (apiVersion inference.networking.k8s.io/v1)");
  spec.Finish();
  return pool;
}

InferenceModel ReadModel(ObjectReader& root, ObjectMeta meta) {
  InferenceModel model;
  model.meta = std::move(meta);
  ObjectReader spec(root.Require("spec"));
  model.model_name = ReadText(spec.Require("modelName"), [](std::string_view text) -> std::string {
    return !text.empty() && text.size() <= 256 ? "" : "want 1 to 256 characters";
  });
  model.criticality = ReadEnum(spec.Get("criticality"), {"Critical", "Standard", "Sheddable"},
                               {Criticality::kCritical, Criticality::kStandard, Criticality::kSheddable},
                               Criticality::kUnset);

  PoolRef pool = ReadPoolRef(spec, kInferenceGroupX, "a model");
  model.pool_group = std::move(pool.group);
  model.pool_name = std::move(pool.name);
  model.pool_where = std::move(pool.where);

  size_t weighted = 0;
  const Node targets = spec.Get("targetModels");
  for (const Node& item : targets.Items(0, kMaxTargetModels)) {
    ObjectReader target(item);
    InferenceModel::Target read;
    read.name = ReadText(target.Require("name"), CheckReferentName);
    const Node weight = target.Get("weight");
    if (weight.present()) ++weighted;
    if (const auto number = weight.Integer(1, kMaxWeight)) read.weight = static_cast<int32_t>(*number);
    target.Finish();
    model.targets.push_back(std::move(read));
  }
  if (weighted != 0 && weighted != model.targets.size()) {
    targets.Error("weights should be set for all models, or for none; set here for " +
                  std::to_string(weighted) + " of " + std::to_string(model.targets.size()));
  }
  spec.Finish();
  return model;
}

}  // namespace fairway::api
