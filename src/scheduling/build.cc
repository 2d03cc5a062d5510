#include "scheduling/build.h"

#include <algorithm>

#include "api/endpoint_picker_config.h"
#include "api/print.h"
#include "api/scalars.h"
#include "base/json_writer.h"
#include "base/strings.h"
#include "scheduling/compiler.h"

namespace fairway::scheduling {

namespace {

// What a path leads to: "deciders.prefill".
api::Node At(api::Node node, std::string_view path) {
  for (const std::string_view key : base::Split(path, '.')) node = node.Child(key);
  return node;
}

}  // namespace

Build::Build(Compiler& compiler, const PluginSpec& spec, api::ProblemList& problems)
    : compiler_(compiler),
      spec_(spec),
      context_{.problems = &problems,
               .name = "plugin " + spec.name + (spec.name == spec.type ? "" : " (" + spec.type + ")")},
      reader_(api::Node(
          &context_, spec.parameters.get(), "parameters",
          spec.parameters != nullptr && spec.parameters->line > 0 ? spec.parameters->line : spec.line)) {}

const std::string& Build::name() const { return spec_.name; }
const std::string& Build::type() const { return spec_.type; }

api::Node Build::Find(std::string_view parameter) { return reader_.Get(parameter); }
api::Node Build::Object(std::string_view parameter, std::string_view help) {
  api::Node node = Find(parameter);
  std::string value;
  if (node.present()) {
    base::JsonWriter json(value);
    api::WriteValue(node.value(), json);
  }
  Note({.name = std::string(parameter), .kind = "object", .help = std::string(help)}, node, std::move(value));
  return node;
}

void Build::Note(api::Parameter parameter, const api::Node& node, std::string value) {
  parameters_.push_back({std::move(parameter), std::move(value), node.present()});
}

void Build::Error(std::string_view parameter, std::string message) {
  (parameter.empty() ? reader_.node() : At(reader_.node(), parameter)).Error(std::move(message));
}
void Build::Warn(std::string_view parameter, std::string message) {
  (parameter.empty() ? reader_.node() : At(reader_.node(), parameter)).Warn(std::move(message));
}

double Build::Number(std::string_view parameter, double otherwise, double min, double max,
                     std::string_view help) {
  const api::Node node = Find(parameter);
  const double value = api::ReadNumber(node, min, max).value_or(otherwise);
  Note({.name = std::string(parameter),
        .kind = "number",
        .otherwise = api::ShowNumber(otherwise),
        .range = api::RangeOf(min, max),
        .help = std::string(help)},
       node, api::ShowNumber(value));
  return value;
}

int64_t Build::Integer(std::string_view parameter, int64_t otherwise, int64_t min, int64_t max,
                       std::string_view help) {
  const api::Node node = Find(parameter);
  const int64_t value = node.Integer(min, max).value_or(otherwise);
  Note({.name = std::string(parameter),
        .kind = "integer",
        .otherwise = std::to_string(otherwise),
        .range = api::RangeOf(static_cast<double>(min), static_cast<double>(max)),
        .help = std::string(help)},
       node, std::to_string(value));
  return value;
}

bool Build::Flag(std::string_view parameter, bool otherwise, std::string_view help) {
  const api::Node node = Find(parameter);
  const bool value = api::ReadBoolean(node).value_or(otherwise);
  Note({.name = std::string(parameter),
        .kind = "switch",
        .otherwise = otherwise ? "true" : "false",
        .help = std::string(help)},
       node, value ? "true" : "false");
  return value;
}

std::string Build::Text(std::string_view parameter, std::string_view otherwise, std::string_view help) {
  const api::Node node = Find(parameter);
  std::string value = node.Text().value_or(std::string(otherwise));
  Note({.name = std::string(parameter),
        .kind = "text",
        .otherwise = std::string(otherwise),
        .help = std::string(help)},
       node, value.empty() && !node.present() ? "" : base::JsonString(value));
  return value;
}

std::vector<std::string> Build::Texts(std::string_view parameter, std::string_view help) {
  constexpr size_t kMaxTexts = 1000;
  std::vector<std::string> texts;
  const api::Node node = Find(parameter);
  for (const api::Node& item : node.Items(0, kMaxTexts)) {
    if (auto text = item.Text()) texts.push_back(std::move(*text));
  }
  std::string value;
  if (!texts.empty()) {
    base::JsonWriter json(value);
    json.BeginList();
    for (const std::string& text : texts) json.Value(text);
    json.EndList();
  }
  Note({.name = std::string(parameter), .kind = "list", .help = std::string(help)}, node, std::move(value));
  return texts;
}

bool Build::Given(std::string_view parameter) {
  const bool given = Find(parameter).present();
  for (ParameterInfo& info : parameters_) {
    if (info.name != parameter) continue;
    info.otherwise.clear();
    if (!given) info.value.clear();
  }
  return given;
}

void Build::NoEffect(std::initializer_list<std::string_view> parameters, std::string_view why) {
  for (const std::string_view parameter : parameters) {
    const api::Node node = Find(parameter);
    if (node.present()) node.Warn("has no effect here: " + std::string(why));
    Note({.name = std::string(parameter), .kind = "ignored", .help = "No effect: " + std::string(why)}, node,
         "");
  }
}

base::Nanos Build::Duration(std::string_view parameter, base::Nanos otherwise, base::Nanos min,
                            base::Nanos max, std::string_view help) {
  const std::string range = api::ShowDuration(min) + " to " + api::ShowDuration(max);
  const api::Node node = Find(parameter);
  base::Nanos value = otherwise;
  if (const auto text = node.Text()) {
    const auto duration = base::ParseDuration(*text);
    if (!duration || *duration < min || *duration > max) {
      node.Error("want a duration from " + range + " such as \"250ms\", got " + api::Quote(*text));
    } else {
      value = *duration;
    }
  }
  Note({.name = std::string(parameter),
        .kind = "duration",
        .otherwise = api::ShowDuration(otherwise),
        .range = range,
        .help = std::string(help)},
       node, base::JsonString(api::ShowDuration(value)));
  return value;
}

size_t Build::Choice(std::string_view parameter, std::initializer_list<std::string_view> words,
                     size_t otherwise, std::string_view help) {
  const api::Node node = Find(parameter);
  const size_t value = api::ReadChoice(node, words).value_or(otherwise);
  Note({.name = std::string(parameter),
        .kind = "word",
        .otherwise = std::string(words.begin()[otherwise]),
        .range = base::Join(std::vector<std::string>(words.begin(), words.end()), ", "),
        .help = std::string(help)},
       node, base::JsonString(words.begin()[value]));
  return value;
}

Column Build::Reads(std::string_view column) { return compiler_.Reads(column, reader_.node()); }
Column Build::ReadsOptional(std::string_view column, bool by_default, float absent) {
  return compiler_.ReadsOptional(column, by_default, absent, reader_.node());
}
Column Build::Makes(std::string_view column, Lifetime lifetime, Unit unit) {
  return compiler_.Makes(column, lifetime, unit, reader_.node());
}
std::string Build::WantsHeader(std::string_view header) {
  return compiler_.WantsHeader(header, reader_.node());
}

std::optional<size_t> Build::Profile(std::string_view name) const { return compiler_.ProfileNumber(name); }

std::vector<std::string> Build::Profiles() const { return compiler_.Profiles(); }

const Plugin* Build::Find(std::string_view parameter, std::string_view instance) {
  return compiler_.Refer(instance, At(reader_.node(), parameter));
}
void Build::NoSuch(std::string_view parameter, std::string_view instance, std::string_view role) {
  Error(parameter, "no plugin " + api::Quote(std::string(instance)) + " that is a " + std::string(role));
}

void Build::WantsPrefixes() { compiler_.WantsPrefixes(); }
void Build::WantsTokens() { compiler_.WantsTokens(); }
size_t Build::PerWorker(std::shared_ptr<void> (*make)()) { return compiler_.PerWorker(make); }

std::shared_ptr<void> Build::Remember(std::type_index type,
                                      const std::function<std::shared_ptr<void>()>& make) {
  return compiler_.Remember(spec_.type + "\n" + spec_.name + "\n" + type.name(), make);
}

// What the reference does not look at either is no mistake that would keep it from running.
void Build::WarnOfUnread() {
  if (!LeavesParametersUnread(spec_.type) || !reader_.valid()) return;
  for (const auto& [key, node] : reader_.node().Members(api::kMaxParameters)) {
    const auto asked = [&key = key](const ParameterInfo& parameter) { return parameter.name == key; };
    if (std::any_of(parameters_.begin(), parameters_.end(), asked)) continue;
    node.Warn("unknown field, without effect: this type has no parameters");
    reader_.Ignore({key});
  }
}

std::vector<ParameterInfo> Build::Finish() {
  WarnOfUnread();
  reader_.Finish();
  return std::move(parameters_);
}

}  // namespace fairway::scheduling
