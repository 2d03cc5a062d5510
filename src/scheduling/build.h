// What a plugin's constructor is handed: its parameters, and where its data come from. A plugin declares by
// asking. What nobody asks for is not gathered; a column that nobody makes, a parameter out of its range and
// one that nobody asked for are errors with file, line and field, all of them at once.
//
// A Build lives while its plugin is made. Single-threaded.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <typeindex>
#include <utility>
#include <vector>

#include "api/decode.h"
#include "api/setting.h"
#include "base/clock.h"
#include "scheduling/column.h"
#include "scheduling/scheduler.h"

namespace fairway::scheduling {

struct PluginSpec;
class Compiler;
class Plugin;

// A parameter as its plugin asked for it: what docs and `fairway config print` show.
struct ParameterInfo : api::Parameter {
  std::string value;   // as it is in this config: JSON, "" where there is none
  bool given = false;  // the config says it
};

class Build {
 public:
  Build(Compiler& compiler, const PluginSpec& spec, api::ProblemList& problems);
  Build(const Build&) = delete;
  Build& operator=(const Build&) = delete;

  const std::string& name() const;  // of the instance
  const std::string& type() const;

  // ---- Parameters. Each returns the default where the config says nothing, or what cannot be. `help` is a
  // line for docs/reference.md, in words of the user's.
  double Number(std::string_view parameter, double otherwise, double min, double max,
                std::string_view help = "");
  float Float(std::string_view parameter, double otherwise, double min, double max,
              std::string_view help = "") {
    return static_cast<float>(Number(parameter, otherwise, min, max, help));
  }
  // A default that is a float already would be printed with all the digits of its double.
  template <std::same_as<float> T>
  float Float(std::string_view parameter, T otherwise, double min, double max,
              std::string_view help = "") = delete;
  int64_t Integer(std::string_view parameter, int64_t otherwise, int64_t min, int64_t max,
                  std::string_view help = "");
  bool Flag(std::string_view parameter, bool otherwise, std::string_view help = "");
  std::string Text(std::string_view parameter, std::string_view otherwise, std::string_view help = "");
  // As Go writes it: "250ms", "1m30s".
  base::Nanos Duration(std::string_view parameter, base::Nanos otherwise, base::Nanos min, base::Nanos max,
                       std::string_view help = "");
  // Which of the words.
  size_t Choice(std::string_view parameter, std::initializer_list<std::string_view> words, size_t otherwise,
                std::string_view help = "");
  // A list of texts.
  std::vector<std::string> Texts(std::string_view parameter, std::string_view help = "");
  // For what is a list or an object. Absent: not present(). The caller reads and reports on its own.
  api::Node Object(std::string_view parameter, std::string_view help = "");
  // For a parameter whose absence means something else than any value.
  bool Given(std::string_view parameter);
  // Parameters of the reference that change nothing here: a warning where one is given.
  void NoEffect(std::initializer_list<std::string_view> parameters, std::string_view why);

  // "": of the plugin as a whole.
  void Error(std::string_view parameter, std::string message);
  void Warn(std::string_view parameter, std::string message);

  // The number of a profile of this name; nothing where there is none, which is no error.
  std::optional<size_t> Profile(std::string_view name) const;

  std::vector<std::string> Profiles() const;  // names, by number

  // ---- Data.
  // A column by its name, whoever makes it.
  Column Reads(std::string_view column);
  // The same; `absent` for all where nobody makes it. `by_default`: a type that is there to make it is used.
  Column ReadsOptional(std::string_view column, bool by_default, float absent = 0);
  // A column that this plugin makes: as a Producer (kRequest) or as an EndpointProducer (kSnapshot).
  Column Makes(std::string_view column, Lifetime lifetime, Unit unit);
  // A name for a column of this instance alone.
  std::string Own(std::string_view column) const { return name() + "/" + std::string(column); }
  // The header's name for Facts::header, which has it from now on.
  std::string WantsHeader(std::string_view header);
  // The instance of that name in its role; it is made first. Null, and an error of `parameter`, where there
  // is none, or none of that role. It lives as long as this plugin.
  template <typename Role>
  const Role* Refers(std::string_view parameter, std::string_view instance, std::string_view role) {
    const auto* found = dynamic_cast<const Role*>(Find(parameter, instance));
    if (found == nullptr) NoSuch(parameter, instance, role);
    return found;
  }

  // Prompts::prefixes are wanted.
  void WantsPrefixes();
  // Prompts::tokens are wanted.
  void WantsTokens();
  // Memory that each worker has of its own, made when it first decides: Get(context.worker).
  template <typename T>
  struct Worker {
    size_t number = 0;
    T& Get(std::span<const std::shared_ptr<void>> worker) const {
      return *static_cast<T*>(worker[number].get());
    }
  };
  template <typename T>
  Worker<T> PerWorker() {
    return {PerWorker(+[]() -> std::shared_ptr<void> { return std::make_shared<T>(); })};
  }
  // The same, but null where there is none: not an error.
  template <typename Role>
  const Role* RefersOptional(std::string_view parameter, std::string_view instance) {
    return dynamic_cast<const Role*>(Find(parameter, instance));
  }

  // What this instance remembers, kept when a config is swapped for one that has an instance of this type and
  // name. Thread-safe or atomic inside; shared by all threads.
  template <typename State>
  std::shared_ptr<State> Remember(const std::function<std::shared_ptr<State>()>& make) {
    return std::static_pointer_cast<State>(
        Remember(std::type_index(typeid(State)), [&] { return std::shared_ptr<void>(make()); }));
  }

  // The compiler's, once the constructor returned: what nobody asked for is reported.
  std::vector<ParameterInfo> Finish();

 private:
  size_t PerWorker(std::shared_ptr<void> (*make)());
  std::shared_ptr<void> Remember(std::type_index type, const std::function<std::shared_ptr<void>()>& make);
  const Plugin* Find(std::string_view parameter, std::string_view instance);
  void NoSuch(std::string_view parameter, std::string_view instance, std::string_view role);
  api::Node Find(std::string_view parameter);
  void WarnOfUnread();
  void Note(api::Parameter parameter, const api::Node& node, std::string value);

  Compiler& compiler_;
  const PluginSpec& spec_;
  api::ObjectContext context_;
  api::ObjectReader reader_;
  std::vector<ParameterInfo> parameters_;
};

}  // namespace fairway::scheduling
