// What decisions go by: plugins, and the profiles that use them. A ConfigSpec says it in names; Compile makes
// the objects, checks that all fits, and gives an immutable Config that many threads decide with.
//
//   std::vector<api::Problem> found;
//   api::ProblemList problems("epp.yaml", found);
//   auto config = Compile(spec, problems);          // null where `found` has errors
//   scheduler.Swap(std::move(config));
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/decode.h"
#include "api/endpoint_picker_config.h"
#include "base/clock.h"
#include "scheduling/build.h"
#include "scheduling/column.h"
#include "scheduling/plugin.h"
#include "scheduling/program.h"
#include "scheduling/scheduler.h"

namespace fairway::scheduling {

// ---- In names.

struct PluginSpec {
  std::string type;
  std::string name;          // of the instance: what profiles and other plugins refer to
  api::ValuePtr parameters;  // a map; null: none
  int line = 0;
};

// The value of `parameters` for plugins that no file names.
api::ValuePtr Numbers(std::initializer_list<std::pair<std::string_view, double>> values);

struct ProfileSpec {
  struct Step {
    std::string plugin;            // a filter, scorer or picker, or several at once
    std::optional<double> weight;  // of a scorer; 1 where it is not said
    int line = 0;
  };
  // Where a filter stands in a tree: filters that lead to filters.
  struct Branch {
    std::string filter;
    int on_success = Program::kPick;
    int on_failure = Program::kPick;
    bool limits_fallbacks = false;
  };
  std::string name;
  int line = 0;
  std::vector<Step> steps;
  std::vector<Branch> branches;  // before the steps
  // A filter: who has room for a request that may be shed. "": nobody is asked.
  std::string room;
  // A saturation detector: such a request is shed from 1 on. "": nobody is asked.
  std::string saturation;
};

struct ConfigSpec {
  std::vector<PluginSpec> plugins;
  std::vector<ProfileSpec> profiles;
  // Which profile decides for pools with InferenceModels, and for others: numbers in `profiles`.
  size_t with_models = 0;
  size_t without_models = 0;
  // A profile handler: it chooses among all profiles, for all pools. "": the two above decide alone.
  std::string handler;
  // As the reference's configs are: what is left out is filled in. No profile: one of every filter, scorer
  // and picker. No picker: max-score-picker. The handler is the one that is among the plugins. `saturation`
  // counts for all profiles; "": utilization-detector.
  bool fills_in = false;
  std::string saturation;
  std::string saturation_field;  // where it stands
  int saturation_line = 0;
  // Who reads bodies, in this order; none: payload::Parsers::Default().
  struct Parser {
    std::string plugin;
    int line = 0;
  };
  std::vector<Parser> parsers;
};

// What an EndpointPickerConfig says. REQUIRES: it was read without errors.
ConfigSpec FromDocument(const api::EndpointPickerConfig& document);

// The built-in one: the criticality tree (ARCHITECTURE.md) for pools with InferenceModels, and
// SchedulerOptions::profile for others.
ConfigSpec BuiltinConfig(const SchedulerOptions& options);

// ---- Compiled.

struct ColumnInfo {
  std::string name;
  Lifetime lifetime = Lifetime::kLive;
  Unit unit = Unit::kCount;
  bool own = false;  // of the plugin that makes it, for itself (Build::Own): it says nothing to people
};

struct Config {
  struct Instance {
    std::string type;
    std::string name;
    std::vector<ParameterInfo> parameters;
    std::vector<Column> reads;
    std::vector<Column> makes;
    std::unique_ptr<Plugin> plugin;
    // Its roles; null where it has none of that kind.
    const Filter* filter = nullptr;
    const Scorer* scorer = nullptr;
    const Picker* picker = nullptr;
    const Producer* producer = nullptr;
    const EndpointProducer* endpoint_producer = nullptr;
    const ProfileHandler* handler = nullptr;
    const SaturationDetector* saturation = nullptr;
    const RequestHook* hook = nullptr;
    const Admitter* admitter = nullptr;
    const BodyParser* parser = nullptr;
  };
  struct EndpointColumn {
    Column column;
    const EndpointProducer* producer = nullptr;
  };
  struct NamedAdmitter {
    const Admitter* admitter = nullptr;
    std::string name;
  };
  // A column that nobody makes: the same for all.
  struct AbsentColumn {
    Column column;
    float value = 0;
  };

  static constexpr size_t kMaxProfiles = 16;

  uint64_t generation = 0;  // another one for each that is compiled, in the whole process
  std::vector<std::unique_ptr<Instance>> plugins;
  std::vector<ProfileSpec> profiles;  // as compiled, with what was filled in
  std::vector<Program> programs;
  size_t with_models = 0;
  size_t without_models = 0;
  std::vector<ColumnInfo> columns;               // by Column::id
  std::vector<EndpointColumn> endpoint_columns;  // Lifetime::kSnapshot
  std::vector<AbsentColumn> absent_columns;
  std::vector<const Producer*> producers;  // in the order in which they run
  uint32_t producers_read = 0;             // live columns, a bit per Column::id
  uint32_t reads = 0;                      // the same, by any plugin
  std::vector<const RequestHook*> hooks;
  std::vector<NamedAdmitter> admitters;
  uint32_t admitters_read = 0;  // live columns, a bit per Column::id
  std::vector<const SessionTeller*> session_tellers;
  std::vector<const ProfileTeller*> profile_tellers;
  const RequestText* flow = nullptr;        // RequestText::names_flow; null: none does
  const ProfileHandler* handler = nullptr;  // null: ProgramOf the pool decides alone
  const Instance* stages = nullptr;         // the handler, if it has_stages
  payload::Parsers parsers = payload::Parsers::Default();
  std::vector<std::string> headers;             // in lower case
  bool wants_prefixes = false;                  // Prompts::prefixes
  bool wants_tokens = false;                    // Prompts::tokens
  bool tells_served = false;                    // a plugin is a ServedTeller
  const TokenSource* token_source = nullptr;    // where they are got, of bodies without them; null: nowhere
  const PageSettings* page_settings = nullptr;  // how engines' pages are read; null: as they are known
  std::vector<std::shared_ptr<void> (*)()> per_worker;
  std::optional<Column> likely_cached;  // "likely-cached-tokens", the same
  std::optional<Column> cached;         // "cached-tokens", where a plugin makes it

  const Program& ProgramOf(const fleet::PoolSnapshot& pool) const {
    return programs[pool.models.empty() ? without_models : with_models];
  }
};

// Which config decides for which pool. Immutable.
struct ConfigSet {
  std::shared_ptr<const Config> common;                                        // never null
  std::map<std::string, std::shared_ptr<const Config>, std::less<>> of_pools;  // by "namespace/name"
  const Config& Of(std::string_view pool_key) const {
    if (of_pools.empty()) [[likely]]
      return *common;
    const auto found = of_pools.find(pool_key);
    return found == of_pools.end() ? *common : *found->second;
  }
};

// What plugins remember, by type and name, over any number of configs. Thread-safe.
class States {
 public:
  std::shared_ptr<void> Get(const std::string& key, const std::function<std::shared_ptr<void>()>& make);
  // Forgets what only this object holds: what a config that is gone remembered.
  void FreeUnused();

 private:
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<void>> states_;
};

struct CompileOptions {
  std::vector<PluginType> more_types;  // beside the built-in ones
  States* states = nullptr;            // null: nothing is kept for the next config
  bool allow_experimental = false;     // Stability::kAlpha
};

// Null where there was an error. All problems are reported, not only the first.
std::shared_ptr<const Config> Compile(const ConfigSpec& spec, api::ProblemList& problems,
                                      const CompileOptions& options = {});
// The config as YAML, with all defaults and all that was filled in: read again it decides the same.
// `document`: what it was compiled from.
std::string PrintConfig(const api::EndpointPickerConfig& document, const Config& config);
// What the type's parameters are, for docs; none where it is not known.
std::vector<ParameterInfo> ParametersOf(std::string_view type);
// REQUIRES: it has no error.
std::shared_ptr<const Config> CompileBuiltin(const SchedulerOptions& options);

}  // namespace fairway::scheduling
