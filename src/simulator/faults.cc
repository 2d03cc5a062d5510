#include "simulator/faults.h"

#include <array>
#include <charconv>
#include <cmath>
#include <span>

#include "base/strings.h"

namespace fairway::simulator {

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

Result<double> Number(std::string_view field, const Json& json, double most) {
  if (!json.Is(Json::Kind::kNumber) || !(json.number >= 0) || json.number > most) {
    char text[32];
    const auto end = std::to_chars(text, text + sizeof(text), most).ptr;
    return Fail(ErrorCode::kInvalidArgument,
                std::string(field) + " must be a number from 0 to " + std::string(text, end));
  }
  return json.number;
}

Result<std::vector<std::string>> Names(std::string_view field, const Json& json) {
  std::vector<std::string> names;
  bool ok = json.Is(Json::Kind::kArray) && json.items.size() <= kMaxAdapters;
  for (const Json& item : json.items) {
    ok = ok && item.Is(Json::Kind::kString) && !item.string.empty();
    names.push_back(item.string);
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

Result<void> PinField(PinnedMetrics& pin, std::string_view field, const Json& value) {
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

Result<PinnedMetrics> PinFromJson(const Json& json) {
  PinnedMetrics pin;
  if (json.Is(Json::Kind::kNull)) return pin;
  if (!json.Is(Json::Kind::kObject))
    return Fail(ErrorCode::kInvalidArgument, "pin must be an object or null");
  for (const auto& [name, value] : json.members)
    if (auto ok = PinField(pin, name, value); !ok) return tl::make_unexpected(ok.error());
  return pin;
}

struct Setting {
  std::string_view name;
  std::string_view value;
};

// "TARGET:a=1,b=2" -> TARGET, {{a, 1}, {b, 2}}. A target may hold colons itself ("[::1]:8101").
Result<std::string> SplitSettings(std::string_view text, std::vector<Setting>& settings) {
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
Json ValueFromText(const Setting& setting) {
  Json json;
  if (setting.name.ends_with("_lora") && setting.name != "max_lora") {
    json.kind = Json::Kind::kArray;
    if (setting.value.empty()) return json;
    for (std::string_view name : base::Split(setting.value, '|')) {
      json.items.emplace_back().kind = Json::Kind::kString;
      json.items.back().string = std::string(base::Trim(name));
    }
    return json;
  }
  const char* begin = setting.value.data();
  const char* end = begin + setting.value.size();
  const auto [stop, error] = std::from_chars(begin, end, json.number);
  if (error == std::errc() && stop == end) json.kind = Json::Kind::kNumber;
  return json;
}

void AppendNames(std::string& out, const std::vector<std::string>& names) {
  out += '[';
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0) out += ", ";
    base::AppendJsonString(out, names[i]);
  }
  out += ']';
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

Result<TargetedPatch> FaultsFromJson(const Json& json) {
  if (!json.Is(Json::Kind::kObject))
    return Fail(ErrorCode::kInvalidArgument, "the body must be a JSON object");
  TargetedPatch out;
  for (const auto& [name, value] : json.members) {
    Result<void> ok;
    const bool text = value.Is(Json::Kind::kString);
    if (name == "endpoint" && text) {
      out.endpoint = value.string;
    } else if (name == "requests" && text) {
      ok = Store(Named<RequestFault>(name, value.string, kRequestFaults), out.patch.requests);
    } else if (name == "metrics" && text) {
      ok = Store(Named<MetricsFault>(name, value.string, kMetricsFaults), out.patch.metrics);
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
  std::vector<Setting> settings;
  auto target = SplitSettings(text, settings);
  if (!target) return tl::make_unexpected(target.error());
  TargetedPatch out{.endpoint = *target};
  for (const Setting& setting : settings) {
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
  std::vector<Setting> settings;
  auto target = SplitSettings(text, settings);
  if (!target) return tl::make_unexpected(target.error());
  TargetedPatch out{.endpoint = *target};
  out.patch.pin.emplace();
  for (const Setting& setting : settings) {
    if (auto ok = PinField(*out.patch.pin, setting.name, ValueFromText(setting)); !ok)
      return tl::make_unexpected(ok.error());
  }
  return out;
}

std::string ToJson(const Faults& faults) {
  std::string out = "{\"requests\": \"" + std::string(kRequestFaults[static_cast<size_t>(faults.requests)]) +
                    "\", \"metrics\": \"" + std::string(kMetricsFaults[static_cast<size_t>(faults.metrics)]) +
                    "\", \"pin\": ";
  std::string pin;
  auto field = [&](const char* name) { pin += (pin.empty() ? "\"" : ", \"") + std::string(name) + "\": "; };
  auto number = [&](const char* name, const auto& value) {
    if (!value) return;
    field(name);
    char text[32];
    pin.append(text, std::to_chars(text, text + sizeof(text), *value).ptr);
  };
  auto names = [&](const char* name, const auto& value) {
    if (!value) return;
    field(name);
    AppendNames(pin, *value);
  };
  number("waiting", faults.pin.waiting);
  number("running", faults.pin.running);
  number("kv", faults.pin.kv_usage);
  names("running_lora", faults.pin.running_lora);
  names("waiting_lora", faults.pin.waiting_lora);
  number("max_lora", faults.pin.max_lora);
  return out + (pin.empty() ? "null" : "{" + pin + "}") + "}";
}

}  // namespace fairway::simulator
