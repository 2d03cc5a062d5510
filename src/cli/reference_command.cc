// Everything that can be set, printed from the descriptions that decode it: docs/reference.md, and the flags of
// the manual page. Not in the help: it is for who changes them.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/strings.h"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "frontends/envoy_module/config.h"
#include "scheduling/config.h"
#include "scheduling/plugin.h"

namespace fairway::cli {
namespace {

std::string Replaced(std::string_view text, std::string_view what, std::string_view with) {
  std::string out;
  for (size_t at = 0;;) {
    const size_t next = text.find(what, at);
    out += text.substr(at, next - at);
    if (next == std::string_view::npos) return out;
    out += with;
    at = next + what.size();
  }
}

std::string Code(const std::string& text) { return text.empty() ? "" : "`" + text + "`"; }

std::string Row(const api::Parameter& parameter) {
  const std::string kind = parameter.kind + (parameter.range.empty() ? "" : ", " + parameter.range);
  const std::string row = "| `" + parameter.name + "` | " + kind + " | " + Code(parameter.otherwise) + " | " +
                          Replaced(parameter.help, "|", "\\|") + " |\n";
  return row;
}

constexpr const char* kHead = "| name | kind | default | |\n|---|---|---|---|\n";

// A flag as its declaration says it.
api::Parameter Describe(const CLI::Option& option) {
  std::string kind = option.get_type_name();
  std::string range;
  if (const size_t colon = kind.find_first_of(":,"); colon != std::string::npos) {
    range = std::string(base::Trim(std::string_view(kind).substr(colon + 1)));
    kind.resize(colon);
  }
  const bool words = range.starts_with("{") && range.ends_with("}");
  if (words) range = Replaced(std::string_view(range).substr(1, range.size() - 2), ",", ", ");
  range = Replaced(Replaced(range, "INT in ", ""), " - ", " to ");
  std::erase_if(range, [](char c) { return c == '[' || c == ']'; });
  kind = base::ToLower(kind);
  if (kind == "uint" || kind == "int") kind = "integer";
  if (kind == "float") kind = "number";
  if (words) kind = "word";
  return {.name = option.get_name(false, true),
          .kind = kind.empty() ? "switch" : kind,
          .otherwise = option.get_default_str(),
          .range = range,
          .help = option.get_description()};
}

using Reference = std::vector<api::Parameter>;

Reference FlagsOf(CLI::App& command) {
  Reference flags;
  for (const CLI::Option* option : command.get_options()) {
    const std::string name = option->get_name(false, true);
    if (option->get_group().empty() || name.find("--help") != std::string::npos) continue;
    flags.push_back(Describe(*option));
  }
  return flags;
}

void PrintMarkdown(const std::vector<std::pair<std::string, Reference>>& commands) {
  std::string out =
      "# Everything that can be set\n\n"
      "Printed by `fairway reference > docs/reference.md`, from the descriptions that flags, the module's\n"
      "settings and plugins are read by; a test compares. What there is more to say: [cli.md](cli.md),\n"
      "[envoy-module.md](envoy-module.md), [plugins.md](plugins.md).\n";
  for (const auto& [command, flags] : commands) {
    out += "\n## fairway " + command + "\n\n" + kHead;
    for (const api::Parameter& flag : flags) out += Row(flag);
  }
  out +=
      "\n## The module inside Envoy\n\nBeside these: `manifests`, `objects`, `pools`, `kubernetes`, `peers`, "
      "`admin`.\n\n";
  out += kHead;
  envoy_module::ModuleConfig module;
  for (const api::Setting& setting : envoy_module::SettingsOf(module))
    out += Row(api::Describe(setting, setting.field));
  out += "\n## Plugins of an EndpointPickerConfig\n\nTypes that are not here have no parameters.\n";
  for (const scheduling::PluginType& type : scheduling::BuiltinPlugins()) {
    const auto parameters = scheduling::ParametersOf(type.type);
    if (parameters.empty()) continue;
    out += "\n### " + std::string(type.type) + "\n\n" + kHead;
    for (const scheduling::ParameterInfo& parameter : parameters) out += Row(parameter);
  }
  std::fputs(out.c_str(), stdout);
}

void PrintManual(const std::vector<std::pair<std::string, Reference>>& commands) {
  const auto escaped = [](std::string_view text) {
    return Replaced(Replaced(Replaced(text, "\\", "\\e"), "-", "\\-"), "'", "\\(aq");
  };
  std::string out;
  for (const auto& [command, flags] : commands) {
    if (flags.empty()) continue;
    out += ".SS fairway " + escaped(command) + "\n";
    for (const api::Parameter& flag : flags) {
      out += ".TP\n.BR " + escaped(Replaced(flag.name, ",", ", ")) + "\n";
      // A line must not begin with a dot.
      const std::string help = escaped(flag.help);
      if (help.starts_with(".")) out += "\\&";
      out += help;
      if (!flag.range.empty()) out += "; " + escaped(flag.range);
      if (!flag.otherwise.empty()) out += " [" + escaped(flag.otherwise) + "]";
      out += "\n";
    }
  }
  std::fputs(out.c_str(), stdout);
}

int Print(CLI::App& app, bool manual) {
  std::vector<std::pair<std::string, Reference>> commands;
  for (CLI::App* command : app.get_subcommands({})) {
    if (command->get_group().empty()) continue;
    const auto below = command->get_subcommands({});
    if (below.empty()) commands.emplace_back(command->get_name(), FlagsOf(*command));
    for (CLI::App* part : below)
      commands.emplace_back(command->get_name() + " " + part->get_name(), FlagsOf(*part));
  }
  std::erase_if(commands, [](const auto& command) { return command.second.empty(); });
  manual ? PrintManual(commands) : PrintMarkdown(commands);
  return kExitOk;
}

}  // namespace

void AddReferenceCommand(CLI::App& app, std::function<int()>& run) {
  auto* command = app.add_subcommand("reference", "Print docs/reference.md");
  command->group("");
  auto manual = std::make_shared<bool>(false);
  command->add_flag("--man", *manual, "The flags' part of the manual page instead");
  command->callback([&app, manual, &run] { run = [&app, manual] { return Print(app, *manual); }; });
}

}  // namespace fairway::cli
