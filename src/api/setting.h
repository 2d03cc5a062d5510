// One description of each setting: its names as a flag and as a field, its default, its range, what it is
// for. Flags, fields of configurations and the tables of docs/reference.md are made from it.
//
//   struct Options { double share = 0.5; };
//   std::vector<Setting> SettingsOf(Options& o) {
//     return {{.flag = "--share", .field = "share", .value = &o.share, .max = 1, .help = "Share of picks"}};
//   }
//   Options options;
//   for (const Setting& setting : SettingsOf(options)) Read(setting, reader.Get(setting.field));
//
// A Setting points into the struct it was made for, which outlives it. What stands there before is the
// default.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "api/decode.h"
#include "base/clock.h"
#include "base/json_writer.h"

namespace fairway::api {

// As help and docs show it, whoever declared it.
struct Parameter {
  std::string name;
  std::string kind;       // "number", "duration", "text", ...
  std::string otherwise;  // the default; "" is none
  std::string range;      // "0 to 1", "a or b"; "" is any
  std::string help;
};

// Which of the setting's words, for an enumeration whose values are their numbers.
struct Word {
  template <typename Enum>
  explicit Word(Enum& value)
      : get([&value] { return std::optional<size_t>(static_cast<size_t>(value)); }),
        set([&value](size_t number) { value = static_cast<Enum>(number); }) {}
  template <typename Enum>
  explicit Word(std::optional<Enum>& value)
      : get([&value] { return value ? std::optional<size_t>(static_cast<size_t>(*value)) : std::nullopt; }),
        set([&value](size_t number) { value = static_cast<Enum>(number); }) {}
  std::function<std::optional<size_t>()> get;
  std::function<void(size_t)> set;
};

struct Setting {
  // base::Nanos is a duration; a std::optional of it is "auto" where there is none.
  using Value =
      std::variant<bool*, std::optional<bool>*, std::string*, std::vector<std::string>*, uint16_t*, uint32_t*,
                   uint64_t*, float*, double*, base::Nanos*, std::optional<base::Nanos>*, Word>;
  std::string_view flag = {};   // "--max-endpoints"; "" is none
  std::string_view field = {};  // "maxEndpoints"; "" is none
  Value value;
  double min = 0;  // of numbers; of durations in nanoseconds
  double max = std::numeric_limits<double>::max();
  bool bytes = false;  // a whole number that may be written as 64Mi
  bool path = false;   // a text that names a file or folder
  bool map = false;    // a text for which a field may also have the document itself
  std::vector<std::string_view> words = {};
  TextRule rule = nullptr;          // of a text that is not empty, and of each of a list
  std::string_view otherwise = {};  // the default in words, where the value does not say it
  std::string_view help = {};
};

Parameter Describe(const Setting& setting, std::string_view name);

// Of a flag's text. "" when it was taken, else what would be right.
std::string Set(const Setting& setting, const std::string& text);
// Of flags that may be given several times or with several values.
bool IsList(const Setting& setting);
bool IsSwitch(const Setting& setting);

// Of a field. Keeps what stands there when it is absent or wrong; the latter is reported.
void Read(const Setting& setting, const Node& node);

// The value as a flag has it, and as a field's.
std::string Show(const Setting& setting);
void Write(const Setting& setting, base::JsonWriter& json);

}  // namespace fairway::api
