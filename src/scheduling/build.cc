#include "scheduling/build.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "base/strings.h"
#include "scheduling/compiler.h"
#include "scheduling/plugins/format.h"

namespace fairway::scheduling {

namespace {

std::optional<double> ToNumber(const api::Node& node) {
  if (!node.Is(api::Value::Kind::kNumber)) return std::nullopt;
  const std::string& text = node.value().text;
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (end != text.c_str() + text.size()) return std::nullopt;
  return value;
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
api::Node Build::Object(std::string_view parameter) {
  api::Node node = Find(parameter);
  Note(parameter, "none", "", node.present() ? "given" : "none");
  return node;
}

void Build::Note(std::string_view parameter, std::string otherwise, std::string range, std::string value) {
  parameters_.push_back({std::string(parameter), std::move(otherwise), std::move(range), std::move(value)});
}

void Build::Error(std::string_view parameter, std::string message) {
  (parameter.empty() ? reader_.node() : reader_.node().Child(parameter)).Error(std::move(message));
}
void Build::Warn(std::string_view parameter, std::string message) {
  (parameter.empty() ? reader_.node() : reader_.node().Child(parameter)).Warn(std::move(message));
}

std::optional<double> ReadNumber(const api::Node& node, double min, double max) {
  if (!node.present()) return std::nullopt;
  const std::string range = Short(min) + " to " + Short(max);
  const auto number = ToNumber(node);
  if (!number) {
    node.WrongType("a number from " + range);
  } else if (!(*number >= min && *number <= max)) {
    node.Error("must be from " + range + ", not " + node.value().text);
  } else {
    return number;
  }
  return std::nullopt;
}

double Build::Number(std::string_view parameter, double otherwise, double min, double max) {
  const double value = ReadNumber(Find(parameter), min, max).value_or(otherwise);
  Note(parameter, Short(otherwise), Short(min) + " to " + Short(max), Short(value));
  return value;
}

int64_t Build::Integer(std::string_view parameter, int64_t otherwise, int64_t min, int64_t max) {
  const int64_t value = Find(parameter).Integer(min, max).value_or(otherwise);
  Note(parameter, std::to_string(otherwise), std::to_string(min) + " to " + std::to_string(max),
       std::to_string(value));
  return value;
}

bool Build::Flag(std::string_view parameter, bool otherwise) {
  const api::Node node = Find(parameter);
  bool value = otherwise;
  if (node.present()) {
    if (node.Is(api::Value::Kind::kBool)) {
      value = node.value().text == "true" || node.value().text == "True" || node.value().text == "TRUE";
    } else {
      node.WrongType("true or false");
    }
  }
  Note(parameter, otherwise ? "true" : "false", "true or false", value ? "true" : "false");
  return value;
}

std::string Build::Text(std::string_view parameter, std::string_view otherwise) {
  std::string value = Find(parameter).Text().value_or(std::string(otherwise));
  Note(parameter, std::string(otherwise), "", value);
  return value;
}

std::vector<std::string> Build::Texts(std::string_view parameter) {
  constexpr size_t kMaxTexts = 1000;
  std::vector<std::string> texts;
  for (const api::Node& item : Find(parameter).Items(0, kMaxTexts)) {
    if (auto text = item.Text()) texts.push_back(std::move(*text));
  }
  Note(parameter, "", "", base::Join(texts, ", "));
  return texts;
}

bool Build::Given(std::string_view parameter) { return Find(parameter).present(); }

void Build::NoEffect(std::initializer_list<std::string_view> parameters, std::string_view why) {
  for (const std::string_view parameter : parameters) {
    const api::Node node = Find(parameter);
    if (node.present()) node.Warn("has no effect here: " + std::string(why));
  }
}

base::Nanos Build::Duration(std::string_view parameter, base::Nanos otherwise, base::Nanos min,
                            base::Nanos max) {
  const auto words = [](base::Nanos nanos) { return Short(base::ToSeconds(nanos)) + "s"; };
  const std::string range = words(min) + " to " + words(max);
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
  Note(parameter, words(otherwise), range, words(value));
  return value;
}

size_t Build::Choice(std::string_view parameter, std::initializer_list<std::string_view> words,
                     size_t otherwise) {
  const size_t value = api::ReadChoice(Find(parameter), words).value_or(otherwise);
  Note(parameter, std::string(words.begin()[otherwise]),
       "one of " + base::Join(std::vector<std::string>(words.begin(), words.end()), ", "),
       std::string(words.begin()[value]));
  return value;
}

Column Build::Reads(std::string_view column) { return compiler_.Reads(column, reader_.node()); }
Column Build::ReadsOptional(std::string_view column, bool by_default, float absent) {
  return compiler_.ReadsOptional(column, by_default, absent, reader_.node());
}
Column Build::Makes(std::string_view column, Lifetime lifetime, Unit unit) {
  return compiler_.Makes(column, lifetime, unit, reader_.node());
}
Header Build::WantsHeader(std::string_view header) { return compiler_.WantsHeader(header, reader_.node()); }

std::optional<size_t> Build::Profile(std::string_view name) const { return compiler_.ProfileNumber(name); }

std::vector<std::string> Build::Profiles() const { return compiler_.Profiles(); }

const Plugin* Build::Find(std::string_view parameter, std::string_view instance) {
  return compiler_.Refer(instance, reader_.node().Child(parameter));
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
  for (const auto& entry : reader_.node().value().entries) {
    const auto asked = [&](const ParameterInfo& parameter) { return parameter.name == entry.key; };
    if (std::any_of(parameters_.begin(), parameters_.end(), asked)) continue;
    reader_.node().Child(entry.key).Warn("unknown field, without effect: this type has no parameters");
    reader_.Ignore({entry.key});
  }
}

std::vector<ParameterInfo> Build::Finish() {
  WarnOfUnread();
  reader_.Finish();
  return std::move(parameters_);
}

}  // namespace fairway::scheduling
