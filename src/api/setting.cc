#include "api/setting.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <type_traits>
#include <utility>

#include "api/print.h"
#include "api/scalars.h"
#include "base/strings.h"

namespace fairway::api {
namespace {

template <typename... F>
struct Overloaded : F... {
  using F::operator()...;
};

template <typename T>
constexpr bool kIsWhole =
    std::is_same_v<T, uint16_t> || std::is_same_v<T, uint32_t> || std::is_same_v<T, uint64_t>;
template <typename T>
constexpr bool kIsReal = std::is_same_v<T, float> || std::is_same_v<T, double>;

constexpr std::string_view kDurations = "a duration like 50ms, 2s or 1m30s";

template <typename T>
double MaxOf(const Setting& setting) {
  return std::min(setting.max, static_cast<double>(std::numeric_limits<T>::max()));
}

std::string ExactRange(double min, double max) { return ShowNumber(min) + " to " + ShowNumber(max); }

// A whole number as flags, YAML and Envoy's Struct write it: 3, 3.0, 2e6, and with `bytes` 64Mi.
template <typename T>
std::optional<std::string> TakeWhole(const Setting& setting, std::string_view text, T& out) {
  std::string wanted =
      setting.bytes ? "a size from " + ExactRange(setting.min, MaxOf<T>(setting)) + " bytes, such as 64Mi"
                    : "a number from " + ExactRange(setting.min, MaxOf<T>(setting));
  std::optional<uint64_t> whole = base::ParseInteger<uint64_t>(text);
  if (!whole && setting.bytes) whole = base::ParseQuantity(text);
  if (!whole) {
    const std::optional<double> real = ParseReal(text);
    if (!real || *real < setting.min || *real > MaxOf<T>(setting)) return wanted;
    if (*real != std::floor(*real)) return "a whole number";
    if (*real >= 0x1p64) return wanted;
    whole = static_cast<uint64_t>(*real);
  }
  const auto value = static_cast<double>(*whole);
  if (value < setting.min || value > MaxOf<T>(setting)) return wanted;
  out = static_cast<T>(*whole);
  return std::nullopt;
}

template <typename T>
std::optional<std::string> TakeReal(const Setting& setting, std::string_view text, T& out) {
  const std::optional<double> real = ParseReal(text);
  if (!real || *real < setting.min || *real > setting.max)
    return "a number from " + ExactRange(setting.min, setting.max);
  out = static_cast<T>(*real);
  return std::nullopt;
}

std::optional<std::string> TakeDuration(const Setting& setting, std::string_view text, base::Nanos& out) {
  const auto nanos = base::ParseDuration(text);
  if (!nanos) return std::string(kDurations);
  const auto value = static_cast<double>(*nanos);
  const bool bounded = setting.max < static_cast<double>(std::numeric_limits<int64_t>::max());
  if (value < setting.min || value > setting.max)
    return "a duration from " + ShowDuration(static_cast<int64_t>(setting.min)) +
           (bounded ? " to " + ShowDuration(static_cast<int64_t>(setting.max)) : " on");
  out = *nanos;
  return std::nullopt;
}

std::string ListOfWords(const Setting& setting) {
  const std::vector<std::string> words(setting.words.begin(), setting.words.end());
  if (words.size() < 2) return base::Join(words, "");
  const std::span<const std::string> all(words);
  return base::Join(all.first(all.size() - 1), ", ") + " or " + words.back();
}

// What would be right; nothing when the rule takes the text.
std::optional<std::string> WantedBy(TextRule rule, std::string_view text) {
  if (rule == nullptr || text.empty()) return std::nullopt;
  const std::string wrong = rule(text);
  return wrong.empty() ? std::nullopt : std::optional(wrong.substr(5));  // "want "
}

// What would be right; nothing when the text was taken.
std::optional<std::string> Take(const Setting& setting, std::string_view text) {
  const auto number_of_word = [&]() -> std::optional<size_t> {
    const auto at = std::find(setting.words.begin(), setting.words.end(), text);
    if (at == setting.words.end()) return std::nullopt;
    return static_cast<size_t>(at - setting.words.begin());
  };
  const auto boolean = [&text]() -> std::optional<bool> {
    if (text == "true") return true;
    if (text == "false") return false;
    return std::nullopt;
  };
  return std::visit(Overloaded{[&](bool* out) -> std::optional<std::string> {
                                 const auto value = boolean();
                                 if (!value) return "true or false";
                                 *out = *value;
                                 return std::nullopt;
                               },
                               [&](std::optional<bool>* out) -> std::optional<std::string> {
                                 *out = boolean();
                                 return *out ? std::nullopt : std::optional<std::string>("true or false");
                               },
                               [&](std::string* out) -> std::optional<std::string> {
                                 if (!setting.words.empty() && !number_of_word()) return ListOfWords(setting);
                                 auto wanted = WantedBy(setting.rule, text);
                                 if (!wanted) *out = text;
                                 return wanted;
                               },
                               [&](std::vector<std::string>* out) -> std::optional<std::string> {
                                 auto wanted = WantedBy(setting.rule, text);
                                 if (!wanted) out->emplace_back(text);
                                 return wanted;
                               },
                               [&](base::Nanos* out) { return TakeDuration(setting, text, *out); },
                               [&](std::optional<base::Nanos>* out) -> std::optional<std::string> {
                                 if (text == "auto") {
                                   out->reset();
                                   return std::nullopt;
                                 }
                                 base::Nanos value = 0;
                                 auto wrong = TakeDuration(setting, text, value);
                                 if (!wrong) *out = value;
                                 return wrong;
                               },
                               [&](const Word& word) -> std::optional<std::string> {
                                 const auto number = number_of_word();
                                 if (!number) return ListOfWords(setting);
                                 word.set(*number);
                                 return std::nullopt;
                               },
                               [&]<typename T>(T* out) -> std::optional<std::string> {
                                 if constexpr (kIsWhole<T>) return TakeWhole(setting, text, *out);
                                 if constexpr (kIsReal<T>) return TakeReal(setting, text, *out);
                               }},
                    setting.value);
}

bool IsNumber(const Setting& setting) {
  return std::visit(
      Overloaded{[]<typename T>(T*) { return kIsWhole<T> || kIsReal<T>; }, [](const Word&) { return false; }},
      setting.value);
}

std::string KindOf(const Setting& setting) {
  if (!setting.words.empty()) return "word";
  return std::visit(
      Overloaded{[](bool*) { return "switch"; }, [](std::optional<bool>*) { return "switch"; },
                 [&](std::string*) { return setting.path ? "path" : "text"; },
                 [](std::vector<std::string>*) { return "list"; }, [](base::Nanos*) { return "duration"; },
                 [](std::optional<base::Nanos>*) { return "duration"; }, [](const Word&) { return "word"; },
                 [&]<typename T>(T*) { return setting.bytes ? "size"
                                              : kIsWhole<T> ? "integer"
                                                            : "number"; }},
      setting.value);
}

}  // namespace

bool IsList(const Setting& setting) {
  return std::holds_alternative<std::vector<std::string>*>(setting.value);
}
bool IsSwitch(const Setting& setting) {
  return std::holds_alternative<bool*>(setting.value) ||
         std::holds_alternative<std::optional<bool>*>(setting.value);
}

Parameter Describe(const Setting& setting, std::string_view name) {
  Parameter parameter{.name = std::string(name),
                      .kind = KindOf(setting),
                      .otherwise = setting.otherwise.empty() ? Show(setting) : std::string(setting.otherwise),
                      .help = std::string(setting.help)};
  if (!setting.words.empty()) parameter.range = ListOfWords(setting);
  if (IsNumber(setting)) {
    parameter.range = RangeOf(setting.min, setting.max);
    if (setting.bytes) parameter.range = ShowSize(setting.min) + " to " + ShowSize(setting.max);
    if (parameter.range == "from 0") parameter.range.clear();
  }
  return parameter;
}

std::string Set(const Setting& setting, const std::string& text) {
  const auto wanted = Take(setting, text);
  return wanted ? "want " + *wanted + ", got " + Quote(text) : "";
}

void Read(const Setting& setting, const Node& node) {
  if (!node.present()) return;
  if (IsList(setting)) {
    auto& texts = *std::get<std::vector<std::string>*>(setting.value);
    texts.clear();
    for (const Node& item : node.Items(0, 10'000)) {
      const auto text = item.Text();
      if (!text) continue;
      if (const auto wanted = Take(setting, *text)) item.Error("want " + *wanted + ", got " + Quote(*text));
    }
    return;
  }
  const Value& value = node.value();
  if (setting.map && node.Is(Value::Kind::kMap)) {
    std::string& text = *std::get<std::string*>(setting.value);
    text.clear();
    base::JsonWriter json(text);
    return WriteValue(value, json);
  }
  std::string text = value.text;
  if (IsSwitch(setting)) {
    const auto boolean = ReadBoolean(node);
    if (!boolean) return;
    text = *boolean ? "true" : "false";
  } else if (IsNumber(setting)) {
    if (!node.Is(Value::Kind::kNumber) && !(setting.bytes && node.Is(Value::Kind::kString))) text = "none";
  } else if (setting.map && !node.Is(Value::Kind::kString)) {
    return node.WrongType("a document, as a map or as one text");
  } else if (!node.Text()) {
    return;
  } else if (text.empty()) {
    return node.Error("want a text");
  }
  if (const auto wanted = Take(setting, text)) {
    if (IsNumber(setting) && text == "none") return node.WrongType(*wanted);
    node.Error("want " + *wanted + ", got " + Quote(value.text));
  }
}

std::string Show(const Setting& setting) {
  return std::visit(Overloaded{[](const bool* value) { return std::string(*value ? "true" : "false"); },
                               [](const std::optional<bool>* value) {
                                 return std::string(!*value ? "" : **value ? "true" : "false");
                               },
                               [](const std::string* value) { return *value; },
                               [](const std::vector<std::string>* value) { return base::Join(*value, ","); },
                               [](const base::Nanos* value) { return ShowDuration(*value); },
                               [](const std::optional<base::Nanos>* value) {
                                 return *value ? ShowDuration(**value) : std::string("auto");
                               },
                               [&](const Word& word) {
                                 const auto number = word.get();
                                 return std::string(number ? setting.words.at(*number) : std::string_view());
                               },
                               [&]<typename T>(const T* value) {
                                 if (setting.bytes) return ShowSize(static_cast<double>(*value));
                                 if constexpr (kIsWhole<T>) {
                                   return std::to_string(*value);
                                 } else {
                                   return ShowNumber(*value);
                                 }
                               }},
                    setting.value);
}

void Write(const Setting& setting, base::JsonWriter& json) {
  std::visit(Overloaded{[&](const bool* value) { json.Value(*value); },
                        [&](const std::optional<bool>* value) { json.Value(value->value_or(false)); },
                        [&](const std::vector<std::string>* value) {
                          json.BeginList();
                          for (const std::string& text : *value) json.Value(text);
                          json.EndList();
                        },
                        [&]<typename T>(const T* value) {
                          if constexpr (kIsWhole<T> || kIsReal<T>) {
                            json.Value(*value);
                          } else {
                            json.Value(Show(setting));
                          }
                        },
                        [&](const Word&) { json.Value(Show(setting)); }},
             setting.value);
}

}  // namespace fairway::api
