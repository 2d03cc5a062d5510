#include "cli/flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <string_view>

#include "base/strings.h"

namespace fairway::cli {
namespace {

std::string DurationProblem(const std::string& text) {
  if (base::ParseDuration(text)) return "";
  return "\"" + text + "\" is not a duration; write it like 50ms, 2s or 1m30s";
}

}  // namespace

void AddDuration(CLI::App& app, const std::string& name, std::string& value, const std::string& help) {
  app.add_option(name, value, help)->type_name("DURATION")->capture_default_str()->check(DurationProblem);
}

base::Nanos Duration(const std::string& text) { return base::ParseDuration(text).value_or(0); }

namespace {

// "INTEGER", as help has it behind the name.
std::string KindOf(const api::Parameter& parameter) {
  std::string kind = parameter.kind;
  std::transform(kind.begin(), kind.end(), kind.begin(),
                 [](char c) { return static_cast<char>(std::toupper(c)); });
  return kind;
}

void AddFlag(CLI::App& app, const api::Setting& setting) {
  const std::string flag(setting.flag);
  const api::Parameter parameter = api::Describe(setting, flag);
  std::string help = parameter.help;
  if (!parameter.range.empty()) help += " (" + parameter.range + ")";
  if (api::IsSwitch(setting) && parameter.otherwise != "false")
    help += " (default " + parameter.otherwise + ")";
  const auto set = [setting, flag](const std::string& text) {
    if (std::string wrong = api::Set(setting, text); !wrong.empty())
      throw CLI::ValidationError(flag, std::move(wrong));
  };
  CLI::Option* option = nullptr;
  if (api::IsSwitch(setting)) {
    app.add_flag_function(flag, [set](int64_t count) { set(count > 0 ? "true" : "false"); }, help);
    return;
  }
  if (api::IsList(setting)) {
    option = app.add_option_function<std::vector<std::string>>(
                    flag,
                    [set](const std::vector<std::string>& texts) {
                      for (const std::string& text : texts) set(text);
                    },
                    help)
                 ->delimiter(',');
  } else {
    option = app.add_option_function<std::string>(flag, set, help);
  }
  option->type_name(KindOf(parameter))->default_str(parameter.otherwise);
}

}  // namespace

void AddFlags(CLI::App& app, const std::vector<api::Setting>& settings) {
  for (const api::Setting& setting : settings)
    if (!setting.flag.empty()) AddFlag(app, setting);
}

void AddCommonFlags(CLI::App& app, CommonFlags& f, const std::string& interval_flag) {
  app.add_option("-f,--file", f.files,
                 "Manifest files or folders (YAML or JSON), or - for standard input; watched while running");
  AddFlags(app, api::SettingsOf(f, interval_flag));
  app.add_option("--log-format", f.log_format, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  app.add_option("--log-level", f.log_level, "debug, info, warn, error or off")
      ->check(CLI::IsMember({"debug", "info", "warn", "error", "off"}))
      ->capture_default_str();
  app.add_option("--workers", f.workers, "Worker threads; 0 is one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

base::LogFormat Format(const CommonFlags& flags) {
  return flags.log_format == "json" ? base::LogFormat::kJson : base::LogFormat::kText;
}

base::LogLevel Level(const CommonFlags& flags) {
  if (flags.log_level == "debug") return base::LogLevel::kDebug;
  if (flags.log_level == "warn") return base::LogLevel::kWarn;
  if (flags.log_level == "error") return base::LogLevel::kError;
  if (flags.log_level == "off") return base::LogLevel::kOff;
  return base::LogLevel::kInfo;
}

PickerOptions MakePickerOptions(const CommonFlags& f, Console& console) {
  PickerOptions options;
  picker::Apply(f, options);
  options.files = f.files;
  options.workers = f.workers;
  options.seed = f.seed;
  options.lost_lines = console.lost();
  options.print = [&console](std::string_view text) { console.PrintError(text); };
  // Explanations go to standard output, whole, so that they can be piped while problems stay on standard
  // error.
  if (f.explain) options.router.explain = [&console](std::string_view text) { console.Print(text); };
  return options;
}

}  // namespace fairway::cli
