// What makes a Config of a ConfigSpec. For the .cc files of this room only.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "scheduling/config.h"

namespace fairway::scheduling {

class Compiler {
 public:
  Compiler(const ConfigSpec& spec, api::ProblemList& problems, const CompileOptions& options);
  // Null where there was an error.
  std::unique_ptr<Config> Run();
  // One plugin alone, instead of Run. Null where there is no such type.
  Config::Instance* Make(const PluginSpec& spec);

  // ---- For Build, about the plugin that is being made. `at`: where to report.
  Column Reads(std::string_view column, const api::Node& at);
  Column ReadsOptional(std::string_view column, bool by_default, float absent, const api::Node& at);
  Column Makes(std::string_view column, Lifetime lifetime, Unit unit, const api::Node& at);
  std::string WantsHeader(std::string_view header, const api::Node& at);
  const Plugin* Refer(std::string_view instance, const api::Node& at);
  std::optional<size_t> ProfileNumber(std::string_view name) const;
  std::vector<std::string> Profiles() const;
  void WantsPrefixes() { config_->wants_prefixes = true; }
  void WantsTokens() {
    config_->wants_tokens = true;
    if (tokens_wanted_by_.empty()) tokens_wanted_by_ = current_->name, tokens_wanted_line_ = current_line_;
  }
  size_t PerWorker(std::shared_ptr<void> (*make)());
  std::shared_ptr<void> Remember(const std::string& key, const std::function<std::shared_ptr<void>()>& make);

 private:
  struct Made {
    Config::Instance* by = nullptr;
    int line = 0;
  };
  struct Read {
    std::string plugin;
    int line = 0;
    bool wanted = false;    // by one that gets a plugin made where nobody makes it
    bool required = false;  // by one that cannot be without
    float absent = 0;       // what the others read then
  };

  void Error(int line, std::string object, std::string field, std::string message);
  const PluginType* FindType(std::string_view type) const;
  void CheckStability(const PluginSpec& spec, const PluginType& type);
  void Construct(const PluginSpec& spec, const PluginType& type, Config::Instance& instance);
  void AddRoles(const PluginSpec& spec, Config::Instance& instance);
  void TakePageSettings(const Config::Instance& instance, const PluginSpec& spec);
  void WarnOfMissingTokens();
  void MakeMissing();
  void NobodyMakes(size_t id);
  void OrderProducers();
  void FillIn(bool no_profile);
  void FillInHandler();
  void FillInPickers();
  Config::Instance* MakeDefault(std::string_view type);
  bool BestScoreIsWanted(const ProfileSpec& spec) const;
  void AddParsers();
  void AddProfile(const ProfileSpec& spec);
  void AddStep(const ProfileSpec& spec, const ProfileSpec::Step& step, Program& program);
  Config::Instance* Find(std::string_view name, int line, const std::string& object);
  Column ColumnOf(std::string_view column, const api::Node& at);

  ConfigSpec spec_;
  api::ProblemList& problems_;
  const CompileOptions& options_;
  std::vector<PluginType> types_;
  std::unique_ptr<Config> config_;
  std::map<std::string, Config::Instance*, std::less<>> instances_;
  std::vector<std::string> being_made_;  // one refers to the next
  Config::Instance* current_ = nullptr;  // whose constructor runs
  int current_line_ = 0;
  std::string tokens_wanted_by_;  // the first that did; "": nobody
  int tokens_wanted_line_ = 0;
  std::string page_settings_by_;
  std::vector<Made> made_;  // by Column::id
  std::vector<Read> read_;  // the same: who read it first
  std::vector<std::unique_ptr<PluginSpec>> default_specs_;
  bool failed_ = false;
};

}  // namespace fairway::scheduling
