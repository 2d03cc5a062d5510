#include "simulator/faults.h"

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "api/scalars.h"
#include "base/json_writer.h"
#include "base/strings.h"

namespace fairway::simulator {

using api::Value;
using base::ErrorCode;
using base::Fail;
using base::Result;

namespace {

// In the order of the enums.
constexpr std::array<std::string_view, 5> kRequestFaults = {"ok", "refuse", "hang", "fail", "cut"};
constexpr std::array<std::string_view, 8> kMetricsFaults = {"ok",  "garbage", "empty",    "404",
                                                            "500", "hang",    "redirect", "huge"};
constexpr double kMaxCount = 1e9;
constexpr size_t kMaxAdapters = 1000;

std::string OneOf(std::span<const std::string_view> names) {
  std::string text;
  for (std::string_view name : names) text += (text.empty() ? "" : ", ") + std::string(name);
  return text;
}

template <typename Enum>
Result<Enum> Named(std::string_view field, std::string_view value, std::span<const std::string_view> names) {
  for (size_t i = 0; i < names.size(); ++i)
    if (names[i] == value) return static_cast<Enum>(i);
  return Fail(ErrorCode::kInvalidArgument,
              std::string(field) + ": unknown value \"" + std::string(value) + "\"; one of " + OneOf(names));
}

Result<double> Number(std::string_view field, const Value& json, double most) {
  const auto number = json.kind == Value::Kind::kNumber ? api::ParseReal(json.text) : std::optional<double>();
  if (!number || !(*number >= 0) || *number > most) {
    return Fail(ErrorCode::kInvalidArgument,
                std::string(field) + " must be a number from 0 to " + api::ShowNumber(most));
  }
  return *number;
}

Result<std::vector<std::string>> Names(std::string_view field, const Value& json) {
  std::vector<std::string> names;
  bool ok = json.kind == Value::Kind::kList && json.items.size() <= kMaxAdapters;
  for (const api::ValuePtr& item : json.items) {
    ok = ok && item->kind == Value::Kind::kString && !item->text.empty();
    names.push_back(item->text);
  }
  if (!ok) return Fail(ErrorCode::kInvalidArgument, std::string(field) + " must be a list of adapter names");
  return names;
}

template <typename T, typename To>
Result<void> Store(Result<T> value, To& to) {
  if (!value) return tl::make_unexpected(value.error());
  to = *value;
  return {};
}

Result<void> PinField(PinnedMetrics& pin, std::string_view field, const Value& value) {
  if (field == "waiting") return Store(Number(field, value, kMaxCount), pin.waiting);
  if (field == "running") return Store(Number(field, value, kMaxCount), pin.running);
  if (field == "kv") return Store(Number(field, value, 1), pin.kv_usage);
  if (field == "running_lora") return Store(Names(field, value), pin.running_lora);
  if (field == "waiting_lora") return Store(Names(field, value), pin.waiting_lora);
  if (field == "max_lora") {
    auto number = Number(field, value, kMaxCount);
    if (!number) return tl::make_unexpected(number.error());
    pin.max_lora = static_cast<uint32_t>(*number);
    return {};
  }
  return Fail(ErrorCode::kInvalidArgument,
              "unknown value to pin \"" + std::string(field) +
                  "\"; one of waiting, running, kv, running_lora, waiting_lora, max_lora");
}

Result<PinnedMetrics> PinFromJson(const Value& json) {
  PinnedMetrics pin;
  if (json.kind == Value::Kind::kNull) return pin;
  if (json.kind != Value::Kind::kMap)
    return Fail(ErrorCode::kInvalidArgument, "pin must be an object or null");
  for (const Value::Entry& entry : json.entries)
    if (auto ok = PinField(pin, entry.key, *entry.value); !ok) return tl::make_unexpected(ok.error());
  return pin;
}

struct FaultSetting {
  std::string_view name;
  std::string_view value;
};

// "TARGET:a=1,b=2" -> TARGET, {{a, 1}, {b, 2}}. A target may hold colons itself ("[::1]:8101").
Result<std::string> SplitSettings(std::string_view text, std::vector<FaultSetting>& settings) {
  const size_t equals = text.find('=');
  const size_t colon = equals == std::string_view::npos ? std::string_view::npos : text.rfind(':', equals);
  std::string target;
  if (colon != std::string_view::npos) {
    target = std::string(base::Trim(text.substr(0, colon)));
    text.remove_prefix(colon + 1);
  }
  for (std::string_view piece : base::Split(text, ',')) {
    const size_t at = piece.find('=');
    if (at == std::string_view::npos) {
      return Fail(ErrorCode::kInvalidArgument, "\"" + std::string(piece) + "\" is not NAME=VALUE");
    }
    settings.push_back({base::Trim(piece.substr(0, at)), base::Trim(piece.substr(at + 1))});
  }
  return target;
}

// Adapter lists are separated by "|", everything else is a number.
Value ValueFromText(const FaultSetting& setting) {
  Value value;
  if (setting.name.ends_with("_lora") && setting.name != "max_lora") {
    value.kind = Value::Kind::kList;
    if (setting.value.empty()) return value;
    for (std::string_view name : base::Split(setting.value, '|')) {
      auto item = std::make_shared<Value>();
      item->kind = Value::Kind::kString;
      item->text = std::string(base::Trim(name));
      value.items.push_back(std::move(item));
    }
    return value;
  }
  value.kind = Value::Kind::kNumber;
  value.text = std::string(setting.value);
  return value;
}

}  // namespace

void PinnedMetrics::Merge(const PinnedMetrics& other) {
  auto take = [](auto& mine, const auto& theirs) {
    if (theirs) mine = theirs;
  };
  take(waiting, other.waiting);
  take(running, other.running);
  take(kv_usage, other.kv_usage);
  take(running_lora, other.running_lora);
  take(waiting_lora, other.waiting_lora);
  take(max_lora, other.max_lora);
}

Faults Apply(Faults faults, const FaultPatch& patch) {
  if (patch.requests) faults.requests = *patch.requests;
  if (patch.metrics) faults.metrics = *patch.metrics;
  if (patch.pin) faults.pin = *patch.pin;
  return faults;
}

Result<TargetedPatch> FaultsFromJson(const Value& json) {
  if (json.kind != Value::Kind::kMap)
    return Fail(ErrorCode::kInvalidArgument, "the body must be a JSON object");
  TargetedPatch out;
  for (const Value::Entry& entry : json.entries) {
    const std::string& name = entry.key;
    const Value& value = *entry.value;
    Result<void> ok;
    const bool text = value.kind == Value::Kind::kString;
    if (name == "endpoint" && text) {
      out.endpoint = value.text;
    } else if (name == "requests" && text) {
      ok = Store(Named<RequestFault>(name, value.text, kRequestFaults), out.patch.requests);
    } else if (name == "metrics" && text) {
      ok = Store(Named<MetricsFault>(name, value.text, kMetricsFaults), out.patch.metrics);
    } else if (name == "pin") {
      ok = Store(PinFromJson(value), out.patch.pin);
    } else if (name == "for_ms") {
      auto ms = Number(name, value, 24 * 3600e3);
      if (!ms) return tl::make_unexpected(ms.error());
      out.patch.duration = static_cast<base::Nanos>(*ms * 1e6);
    } else if (name == "endpoint" || name == "requests" || name == "metrics") {
      ok = Fail(ErrorCode::kInvalidArgument, name + " must be a string");
    } else {
      ok = Fail(ErrorCode::kInvalidArgument,
                "unknown field \"" + name + "\"; one of endpoint, requests, metrics, pin, for_ms");
    }
    if (!ok) return tl::make_unexpected(ok.error());
  }
  return out;
}

Result<TargetedPatch> FaultsFromText(std::string_view text) {
  std::vector<FaultSetting> settings;
  auto target = SplitSettings(text, settings);
  if (!target) return tl::make_unexpected(target.error());
  TargetedPatch out{.endpoint = *target};
  for (const FaultSetting& setting : settings) {
    Result<void> ok;
    if (setting.name == "requests") {
      ok = Store(Named<RequestFault>(setting.name, setting.value, kRequestFaults), out.patch.requests);
    } else if (setting.name == "metrics") {
      ok = Store(Named<MetricsFault>(setting.name, setting.value, kMetricsFaults), out.patch.metrics);
    } else {
      ok = Fail(ErrorCode::kInvalidArgument,
                "unknown fault \"" + std::string(setting.name) + "\"; one of requests, metrics");
    }
    if (!ok) return tl::make_unexpected(ok.error());
  }
  return out;
}

Result<TargetedPatch> PinFromText(std::string_view text) {
  std::vector<FaultSetting> settings;
  auto target = SplitSettings(text, settings);
  if (!target) return tl::make_unexpected(target.error());
  TargetedPatch out{.endpoint = *target};
  out.patch.pin.emplace();
  for (const FaultSetting& setting : settings) {
    if (auto ok = PinField(*out.patch.pin, setting.name, ValueFromText(setting)); !ok)
      return tl::make_unexpected(ok.error());
  }
  return out;
}

std::string ToJson(const Faults& faults) {
  std::string out;
  base::JsonWriter json(out);
  json.BeginObject();
  json.Member("requests", kRequestFaults[static_cast<size_t>(faults.requests)]);
  json.Member("metrics", kMetricsFaults[static_cast<size_t>(faults.metrics)]).Key("pin");
  bool any = false;
  const auto key = [&](const char* name) {
    if (!std::exchange(any, true)) json.BeginObject();
    json.Key(name);
  };
  const auto number = [&](const char* name, const auto& value) {
    if (!value) return;
    key(name);
    json.Value(*value);
  };
  const auto names = [&](const char* name, const auto& value) {
    if (!value) return;
    key(name);
    json.BeginList();
    for (const std::string& adapter : *value) json.Value(adapter);
    json.EndList();
  };
  number("waiting", faults.pin.waiting);
  number("running", faults.pin.running);
  number("kv", faults.pin.kv_usage);
  names("running_lora", faults.pin.running_lora);
  names("waiting_lora", faults.pin.waiting_lora);
  number("max_lora", faults.pin.max_lora);
  any ? json.EndObject() : json.Null();
  json.EndObject();
  return out;
}

}  // namespace fairway::simulator
