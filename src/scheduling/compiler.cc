#include "scheduling/compiler.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>

#include "base/strings.h"

namespace fairway::scheduling {

namespace {

// The one whose constructor runs, put back when it is done: a plugin may have another one made first.
template <typename T>
class Saved {
 public:
  Saved(T& place, T value) : place_(place), old_(std::exchange(place, value)) {}
  Saved(const Saved&) = delete;
  Saved& operator=(const Saved&) = delete;
  ~Saved() { place_ = old_; }

 private:
  T& place_;
  T old_;
};

std::vector<std::string> Names(std::span<const PluginType> types) {
  std::vector<std::string> names;
  names.reserve(types.size());
  for (const PluginType& type : types) names.emplace_back(type.type);
  return names;
}

// The live columns that it reads, a bit per Column::id.
uint32_t LiveReads(const Config::Instance& instance) {
  uint32_t bits = 0;
  for (const Column column : instance.reads) bits |= column.id < kLiveColumns.size() ? Bit(column) : 0;
  return bits;
}

}  // namespace

Compiler::Compiler(const ConfigSpec& spec, api::ProblemList& problems, const CompileOptions& options)
    : spec_(spec), problems_(problems), options_(options), config_(std::make_unique<Config>()) {
  const auto builtin = BuiltinPlugins();
  types_.assign(builtin.begin(), builtin.end());
  types_.insert(types_.end(), options.more_types.begin(), options.more_types.end());
  for (const LiveColumn& live : kLiveColumns) {
    config_->columns.push_back({std::string(live.name), Lifetime::kLive, live.unit});
  }
  made_.resize(kLiveColumns.size());
  read_.resize(kLiveColumns.size());
}

void Compiler::Error(int line, std::string object, std::string field, std::string message) {
  failed_ = true;
  problems_.Add(api::Severity::kError, line, std::move(object), std::move(field), std::move(message));
}

std::unique_ptr<Config> Compiler::Run() {
  static std::atomic<uint64_t> generations{0};
  config_->generation = ++generations;
  const bool no_profile = spec_.profiles.empty();
  if (spec_.fills_in && no_profile) spec_.profiles.push_back({.name = "default"});
  for (const PluginSpec& plugin : spec_.plugins) {
    if (!instances_.contains(plugin.name)) Make(plugin);
  }
  if (spec_.fills_in) FillIn(no_profile);
  MakeMissing();
  OrderProducers();
  for (size_t id = kLiveColumns.size(); id < config_->columns.size(); ++id) {
    const Column column{static_cast<uint16_t>(id)};
    if (made_[id].by == nullptr) continue;
    if (config_->columns[id].name == kCachedTokens) config_->cached = column;
    if (config_->columns[id].name == kLikelyCachedTokens) config_->likely_cached = column;
  }
  if (spec_.profiles.size() > Config::kMaxProfiles)
    Error(spec_.profiles.back().line, "config", "schedulingProfiles",
          "want at most " + std::to_string(Config::kMaxProfiles) + " profiles");
  for (const ProfileSpec& profile : spec_.profiles) AddProfile(profile);
  if (!spec_.handler.empty()) {
    const Config::Instance* handler = Find(spec_.handler, 0, "config");
    if (handler != nullptr) config_->handler = handler->handler;
    if (handler != nullptr && handler->handler != nullptr && handler->handler->has_stages())
      config_->stages = handler;
    if (spec_.profiles.empty()) Error(0, "config", "schedulingProfiles", "want at least one profile");
    if (handler != nullptr && handler->handler == nullptr)
      Error(0, "config", "", "plugin " + spec_.handler + " is no profile handler");
  }
  AddParsers();
  WarnOfMissingTokens();
  config_->with_models = spec_.with_models;
  config_->without_models = spec_.without_models;
  config_->profiles = std::move(spec_.profiles);
  return failed_ ? nullptr : std::move(config_);
}

// ---- Plugins.

const PluginType* Compiler::FindType(std::string_view type) const {
  const auto found =
      std::find_if(types_.begin(), types_.end(), [&](const PluginType& t) { return t.type == type; });
  return found == types_.end() ? nullptr : &*found;
}

void Compiler::CheckStability(const PluginSpec& spec, const PluginType& type) {
  const std::string object = "plugin " + spec.name;
  if (type.stability == Stability::kAlpha && !options_.allow_experimental)
    Error(spec.line, object, "type",
          "plugin type " + api::Quote(spec.type) + " is Alpha: it needs --allow-experimental-plugins");
  if (type.stability != Stability::kDeprecated) return;
  std::string message = "plugin type " + api::Quote(spec.type) + " is deprecated";
  if (!type.successor.empty()) message += "; use " + api::Quote(std::string(type.successor));
  if (!type.removal.empty()) message += "; llm-d removes it in " + std::string(type.removal);
  problems_.Add(api::Severity::kWarning, spec.line, object, "type", std::move(message));
}

Config::Instance* Compiler::Make(const PluginSpec& spec) {
  const PluginType* type = FindType(spec.type);
  if (type == nullptr) {
    const std::string_view why = WhyLeftOut(spec.type);
    Error(spec.line, "plugin " + spec.name, "type",
          why.empty()
              ? "there is no plugin type " + api::Quote(spec.type) + api::DidYouMean(spec.type, Names(types_))
              : "plugin type " + api::Quote(spec.type) + " is not offered: " + std::string(why));
    return nullptr;
  }
  CheckStability(spec, *type);
  auto& instance = *config_->plugins.emplace_back(std::make_unique<Config::Instance>());
  instance.type = spec.type;
  instance.name = spec.name;
  instances_[spec.name] = &instance;
  Construct(spec, *type, instance);
  if (instance.plugin == nullptr) {
    instances_.erase(spec.name);
    return nullptr;
  }
  AddRoles(spec, instance);
  return &instance;
}

void Compiler::Construct(const PluginSpec& spec, const PluginType& type, Config::Instance& instance) {
  const Saved<Config::Instance*> current(current_, &instance);
  const Saved<int> line(current_line_, spec.line);
  being_made_.push_back(spec.name);
  std::vector<api::Problem> found;
  api::ProblemList problems(problems_.file(), found);
  Build build(*this, spec, problems);
  try {
    instance.plugin = type.make(build);
    instance.parameters = build.Finish();
  } catch (const std::bad_alloc&) {
    // A changed file may ask for more than there is, which must not end what is serving.
    problems.Add(api::Severity::kError, spec.line, "plugin " + spec.name, "parameters",
                 "there is not enough memory for it");
  }
  being_made_.pop_back();
  for (const api::Problem& problem : found) {
    failed_ |= problem.severity == api::Severity::kError;
    problems_.Add(problem.severity, problem.where.line, problem.object, problem.field, problem.message);
  }
}

// What it is for the profiles that name it, and for all decisions.
void Compiler::AddRoles(const PluginSpec& spec, Config::Instance& instance) {
  const Plugin* plugin = instance.plugin.get();
  instance.filter = dynamic_cast<const Filter*>(plugin);
  instance.scorer = dynamic_cast<const Scorer*>(plugin);
  instance.picker = dynamic_cast<const Picker*>(plugin);
  instance.producer = dynamic_cast<const Producer*>(plugin);
  instance.endpoint_producer = dynamic_cast<const EndpointProducer*>(plugin);
  instance.handler = dynamic_cast<const ProfileHandler*>(plugin);
  instance.saturation = dynamic_cast<const SaturationDetector*>(plugin);
  instance.hook = dynamic_cast<const RequestHook*>(plugin);
  instance.admitter = dynamic_cast<const Admitter*>(plugin);
  instance.parser = dynamic_cast<const BodyParser*>(plugin);
  TakePageSettings(instance, spec);
  const auto* source = dynamic_cast<const TokenSource*>(plugin);
  if (source != nullptr && source->token_source() != nullptr) config_->token_source = source;
  if (instance.hook != nullptr) config_->hooks.push_back(instance.hook);
  if (instance.admitter != nullptr) {
    config_->admitters.push_back({instance.admitter, instance.name});
    config_->admitters_read |= LiveReads(instance);
  }
  const auto* text = dynamic_cast<const RequestText*>(plugin);
  if (text != nullptr && text->names_flow() && config_->flow == nullptr) config_->flow = text;
  config_->tells_served |= dynamic_cast<const ServedTeller*>(plugin) != nullptr;
  if (const auto* of_profiles = dynamic_cast<const ProfileTeller*>(plugin))
    config_->profile_tellers.push_back(of_profiles);
  const auto* teller = dynamic_cast<const SessionTeller*>(plugin);
  if (teller != nullptr && !teller->TokenHeader().empty()) config_->session_tellers.push_back(teller);
}

// The first one's count for all endpoints of the pool: a page has one reader.
void Compiler::TakePageSettings(const Config::Instance& instance, const PluginSpec& spec) {
  const auto* settings = dynamic_cast<const PageSettings*>(instance.plugin.get());
  if (settings == nullptr) return;
  if (config_->page_settings == nullptr) {
    config_->page_settings = settings;
    page_settings_by_ = instance.name;
    return;
  }
  problems_.Add(api::Severity::kWarning, spec.line, "plugin " + instance.name, "",
                "has no effect: plugin " + page_settings_by_ +
                    " says how pages are read already; put all engineConfigs into one");
}

// Without tokens what engines tell says nothing of a prompt that comes as text.
void Compiler::WarnOfMissingTokens() {
  if (failed_ || tokens_wanted_by_.empty() || config_->token_source != nullptr) return;
  problems_.Add(
      api::Severity::kWarning, tokens_wanted_line_, "plugin " + tokens_wanted_by_, "",
      "knows no tokens of prompts that come as text, so these are only compared by their text: add a "
      "token-producer with parameters {modelName: MODEL, vllm: {url: http://HOST:PORT}}, where `vllm launch "
      "render` runs");
}

const Plugin* Compiler::Refer(std::string_view instance, const api::Node& at) {
  if (std::find(being_made_.begin(), being_made_.end(), instance) != being_made_.end()) {
    at.Error("plugins refer to each other in a circle: " + base::Join(being_made_, " -> ") + " -> " +
             std::string(instance));
    return nullptr;
  }
  // Who refers to a plugin makes it read what it reads.
  const auto give = [this](const Config::Instance* found) {
    current_->reads.insert(current_->reads.end(), found->reads.begin(), found->reads.end());
    return found->plugin.get();
  };
  if (const auto found = instances_.find(instance); found != instances_.end()) return give(found->second);
  for (const PluginSpec& plugin : spec_.plugins) {
    if (plugin.name != instance) continue;
    const Config::Instance* made = Make(plugin);
    return made != nullptr ? give(made) : nullptr;
  }
  return nullptr;
}

std::optional<size_t> Compiler::ProfileNumber(std::string_view name) const {
  for (size_t i = 0; i < spec_.profiles.size(); ++i) {
    if (spec_.profiles[i].name == name) return i;
  }
  return std::nullopt;
}

std::vector<std::string> Compiler::Profiles() const {
  std::vector<std::string> names;
  names.reserve(spec_.profiles.size());
  for (const ProfileSpec& profile : spec_.profiles) names.push_back(profile.name);
  return names;
}

size_t Compiler::PerWorker(std::shared_ptr<void> (*make)()) {
  config_->per_worker.push_back(make);
  return config_->per_worker.size() - 1;
}

std::shared_ptr<void> Compiler::Remember(const std::string& key,
                                         const std::function<std::shared_ptr<void>()>& make) {
  return options_.states != nullptr ? options_.states->Get(key, make) : make();
}

std::string Compiler::WantsHeader(std::string_view header, const api::Node& at) {
  constexpr size_t kMaxHeaders = 64;
  std::string name = base::ToLower(header);
  auto& headers = config_->headers;
  if (std::find(headers.begin(), headers.end(), name) != headers.end()) return name;
  if (headers.size() == kMaxHeaders)
    at.Error("a config can read at most " + std::to_string(kMaxHeaders) + " headers");
  else
    headers.push_back(name);
  return name;
}

// ---- Columns.

Column Compiler::ColumnOf(std::string_view column, const api::Node& at) {
  auto& columns = config_->columns;
  const auto found =
      std::find_if(columns.begin(), columns.end(), [&](const ColumnInfo& c) { return c.name == column; });
  const auto id = static_cast<uint16_t>(found - columns.begin());
  if (found != columns.end()) return {id};
  if (columns.size() == kMaxColumns) {
    at.Error("a config can have at most " + std::to_string(kMaxColumns) + " columns");
    return {};
  }
  columns.push_back({std::string(column), Lifetime::kRequest, Unit::kCount});
  made_.emplace_back();
  read_.emplace_back();
  return {id};
}

Column Compiler::Reads(std::string_view column, const api::Node& at) {
  const Column id = ReadsOptional(column, true, 0, at);
  Read& read = read_[id.id];
  if (!read.required) read.plugin = current_->name, read.line = current_line_;
  read.required = true;
  return id;
}

Column Compiler::ReadsOptional(std::string_view column, bool by_default, float absent, const api::Node& at) {
  const Column id = ColumnOf(column, at);
  Read& read = read_[id.id];
  if (read.plugin.empty()) read = {.plugin = current_->name, .line = current_line_, .absent = absent};
  read.wanted |= by_default;
  current_->reads.push_back(id);
  return id;
}

Column Compiler::Makes(std::string_view column, Lifetime lifetime, Unit unit, const api::Node& at) {
  const Column id = ColumnOf(column, at);
  Made& made = made_[id.id];
  if (id.id < kLiveColumns.size() || made.by != nullptr) {
    at.Error("column " + api::Quote(std::string(column)) + " is made by " +
             (made.by != nullptr ? "plugin " + made.by->name : "the engine") + " already");
    return id;
  }
  made = {current_, current_line_};
  config_->columns[id.id].lifetime = lifetime;
  config_->columns[id.id].unit = unit;
  config_->columns[id.id].own = column.starts_with(current_->name + "/");
  current_->makes.push_back(id);
  return id;
}

// Columns that are read and that nobody makes: by the type that makes them by default.
void Compiler::MakeMissing() {
  // A producer that is made here may read what is missing, too; the list grows meanwhile.
  for (size_t i = kLiveColumns.size(); i < config_->columns.size(); ++i) {
    if (made_[i].by != nullptr) continue;
    const std::string column = config_->columns[i].name;
    const auto type = std::find_if(types_.begin(), types_.end(), [&](const PluginType& t) {
      const auto words = base::Split(t.makes, ' ');
      return std::find(words.begin(), words.end(), column) != words.end();
    });
    if (read_[i].wanted && type != types_.end() && !instances_.contains(type->type)) {
      auto spec = std::make_unique<PluginSpec>();
      spec->type = spec->name = std::string(type->type);
      spec->line = read_[i].line;
      Make(*default_specs_.emplace_back(std::move(spec)));
    }
    if (made_[i].by == nullptr) NobodyMakes(i);
  }
}

void Compiler::NobodyMakes(size_t id) {
  const Read& read = read_[id];
  if (!read.required) {
    config_->columns[id].lifetime = Lifetime::kSnapshot;
    config_->absent_columns.push_back({Column{static_cast<uint16_t>(id)}, read.absent});
    if (std::isnan(read.absent))
      problems_.Add(
          api::Severity::kWarning, read.line, "plugin " + read.plugin, "",
          "no plugin makes column " + api::Quote(config_->columns[id].name) + ": no endpoint has a value");
    return;
  }
  const std::string column = config_->columns[id].name;
  std::vector<std::string> names;
  for (size_t k = 0; k < config_->columns.size(); ++k) {
    if (k < kLiveColumns.size() || made_[k].by != nullptr) names.push_back(config_->columns[k].name);
  }
  Error(read.line, "plugin " + read.plugin, "",
        "reads column " + api::Quote(column) + ", which no plugin makes" + api::DidYouMean(column, names));
}

void Compiler::OrderProducers() {
  std::vector<bool> ready(config_->columns.size(), true);
  std::vector<const Config::Instance*> left;
  for (const auto& instance : config_->plugins) {
    for (const Column made : instance->makes) {
      if (config_->columns[made.id].lifetime == Lifetime::kSnapshot) {
        config_->endpoint_columns.push_back({made, instance->endpoint_producer});
      } else {
        ready[made.id] = false;
      }
    }
    config_->reads |= LiveReads(*instance);
    if (instance->producer == nullptr) continue;
    left.push_back(instance.get());
    config_->producers_read |= LiveReads(*instance);
  }
  while (!left.empty()) {
    const auto next = std::find_if(left.begin(), left.end(), [&](const Config::Instance* instance) {
      return std::all_of(instance->reads.begin(), instance->reads.end(),
                         [&](Column column) { return ready[column.id]; });
    });
    if (next == left.end()) {
      Error(0, "plugin " + left.front()->name, "", "reads what is made from its own column: a circle");
      return;
    }
    config_->producers.push_back((*next)->producer);
    for (const Column made : (*next)->makes) ready[made.id] = true;
    left.erase(next);
  }
}

// ---- What a config of the reference may leave out.

Config::Instance* Compiler::MakeDefault(std::string_view type) {
  if (const auto found = instances_.find(type); found != instances_.end()) return found->second;
  auto spec = std::make_unique<PluginSpec>();
  spec->type = spec->name = std::string(type);
  return Make(*default_specs_.emplace_back(std::move(spec)));
}

void Compiler::FillIn(bool no_profile) {
  if (no_profile) {
    for (const PluginSpec& plugin : spec_.plugins) {
      const auto found = instances_.find(plugin.name);
      if (found == instances_.end()) continue;
      const Config::Instance& instance = *found->second;
      if (instance.filter != nullptr || instance.scorer != nullptr || instance.picker != nullptr)
        spec_.profiles.front().steps.push_back({plugin.name, std::nullopt, plugin.line});
    }
  }
  FillInHandler();
  FillInPickers();
  if (spec_.saturation.empty()) {
    const auto* detector = MakeDefault("utilization-detector");
    if (detector != nullptr) spec_.saturation = detector->name;
  }
  const auto given = instances_.find(spec_.saturation);
  if (given != instances_.end() && given->second->saturation == nullptr) {
    return Error(spec_.saturation_line, "config", spec_.saturation_field,
                 "plugin " + spec_.saturation + " is no saturation detector; utilization-detector is one");
  }
  for (ProfileSpec& profile : spec_.profiles) profile.saturation = spec_.saturation;
}

void Compiler::FillInHandler() {
  std::vector<std::string> handlers;
  for (const auto& instance : config_->plugins) {
    if (instance->handler != nullptr) handlers.push_back(instance->name);
  }
  const size_t profiles = spec_.profiles.size();
  if (handlers.size() > 1) {
    Error(0, "config", "plugins", "want one profile handler, not " + base::Join(handlers, " and "));
  } else if (handlers.empty() && profiles > 1) {
    Error(
        spec_.profiles[1].line, "config", "schedulingProfiles",
        "want a profile handler among the plugins, such as header-profile-handler or disagg-profile-handler: "
        "there are " +
            std::to_string(profiles) + " profiles");
  } else if (!handlers.empty()) {
    const std::string& type = instances_.find(handlers.front())->second->type;
    if (type != "single-profile-handler") spec_.handler = handlers.front();
    if (profiles > 1 && (type == "single-profile-handler" || type == "data-parallel-profile-handler"))
      Error(0, "config", "plugins", type + " wants one profile, and there are " + std::to_string(profiles));
  }
}

void Compiler::FillInPickers() {
  const auto picks = [&](const std::string& plugin) {
    const auto found = instances_.find(plugin);
    return found != instances_.end() && found->second->picker != nullptr;
  };
  std::string first;
  for (const auto& instance : config_->plugins) {
    if (first.empty() && instance->picker != nullptr) first = instance->name;
  }
  for (ProfileSpec& profile : spec_.profiles) {
    if (std::any_of(profile.steps.begin(), profile.steps.end(),
                    [&](const ProfileSpec::Step& step) { return picks(step.plugin); }))
      continue;
    if (first.empty()) {
      if (const auto* made = MakeDefault("max-score-picker")) first = made->name;
    }
    profile.steps.push_back({first, std::nullopt, profile.line});
  }
}

// ---- Parsers.

void Compiler::AddParsers() {
  if (!spec_.parsers.empty()) config_->parsers = {};
  bool takes_all = false;  // what comes after passthrough-parser gets nothing any more
  for (size_t i = 0; i < spec_.parsers.size(); ++i) {
    const auto& [plugin, line] = spec_.parsers[i];
    const std::string field = "requestHandler.parsers[" + std::to_string(i) + "].pluginRef";
    const Config::Instance* instance = Find(plugin, line, "config");
    if (instance == nullptr) continue;
    if (instance->parser == nullptr) {
      Error(line, "config", field, "plugin " + plugin + " is no parser, but a " + instance->type);
      continue;
    }
    const payload::Parser parser = instance->parser->parser();
    if (takes_all || config_->parsers.Has(parser)) {
      problems_.Add(api::Severity::kWarning, line, "config", field,
                    takes_all ? plugin + " has no effect: passthrough-parser before it takes every path"
                              : plugin + " has no effect: " + instance->type + " is listed already");
      continue;
    }
    config_->parsers.Add(parser);
    takes_all = parser == payload::Parser::kPassthrough;
  }
  for (const PluginSpec& plugin : spec_.plugins) {
    const auto found = instances_.find(plugin.name);
    if (found == instances_.end() || found->second->parser == nullptr) continue;
    if (!config_->parsers.Has(found->second->parser->parser()))
      problems_.Add(api::Severity::kWarning, plugin.line, "plugin " + plugin.name, "",
                    "reads nothing: requestHandler.parsers does not list it");
  }
}

// ---- Profiles.

Config::Instance* Compiler::Find(std::string_view name, int line, const std::string& object) {
  if (const auto found = instances_.find(name); found != instances_.end()) return found->second;
  const bool listed = std::any_of(spec_.plugins.begin(), spec_.plugins.end(),
                                  [&](const PluginSpec& plugin) { return plugin.name == name; });
  failed_ = true;
  if (listed) return nullptr;  // it could not be made, which was said
  std::vector<std::string> names;
  names.reserve(spec_.plugins.size());
  for (const PluginSpec& plugin : spec_.plugins) names.push_back(plugin.name);
  Error(line, object, "plugins",
        "there is no plugin " + api::Quote(std::string(name)) + api::DidYouMean(name, names));
  return nullptr;
}

void Compiler::AddStep(const ProfileSpec& spec, const ProfileSpec::Step& step, Program& program) {
  const std::string object = "profile " + spec.name;
  const Config::Instance* instance = Find(step.plugin, step.line, object);
  if (instance == nullptr) return;
  program.reads |= LiveReads(*instance);
  if (instance->filter == nullptr && instance->scorer == nullptr && instance->picker == nullptr)
    problems_.Add(api::Severity::kWarning, step.line, object, step.plugin,
                  "is no filter, scorer or picker that acts here, so its place in the profile does nothing");
  constexpr double kMostWeight = 1e30;  // the sum of all that a profile can have stays a float
  const double weight = step.weight.value_or(1);
  if (!std::isfinite(weight)) {
    Error(step.line, object, step.plugin, "the weight must be a number");
    return;
  }
  if (std::abs(weight) > kMostWeight) {
    Error(step.line, object, step.plugin, "the weight must be from -1e30 to 1e30");
    return;
  }
  if (weight < 0)
    problems_.Add(api::Severity::kWarning, step.line, object, step.plugin,
                  "has a weight below 0: what it scores highest is avoided");
  if (instance->filter != nullptr) {
    const auto next = static_cast<int>(program.nodes.size()) + 1;
    // What a filter of a list drops is no fallback either: it may have another role.
    program.nodes.push_back(
        {instance->filter, instance->name, next, Program::kShed, true, LiveReads(*instance) == 0});
  }
  if (instance->scorer != nullptr)
    program.scorers.push_back({instance->scorer, instance->name, static_cast<float>(weight)});
  if (instance->picker == nullptr) return;
  if (program.picker != nullptr) Error(step.line, object, step.plugin, "is a second picker; one is enough");
  program.picker = instance->picker;
  program.max_choices = instance->picker->max_choices();
}

// Whoever wants endpoints drawn at random says so by the picker of that name.
bool Compiler::BestScoreIsWanted(const ProfileSpec& spec) const {
  return std::none_of(spec.steps.begin(), spec.steps.end(), [&](const ProfileSpec::Step& step) {
    const auto found = instances_.find(step.plugin);
    return found != instances_.end() && found->second->type == "random-picker";
  });
}

void Compiler::AddProfile(const ProfileSpec& spec) {
  const std::string object = "profile " + spec.name;
  Program program{.name = spec.name};
  if (!spec.room.empty()) {
    if (const auto* room = Find(spec.room, spec.line, object)) {
      program.room = room->filter;
      program.room_name = room->name;
      // What pages tell is there for all who may be shed.
      program.reads |= LiveReads(*room) & ~kPageColumns;
    }
  }
  if (!spec.saturation.empty()) {
    const auto* detector = Find(spec.saturation, spec.line, object);
    if (detector != nullptr) {
      program.saturation = detector->saturation;
      program.saturation_name = detector->name;
      program.reads |= LiveReads(*detector) & ~kPageColumns;
    }
    if (detector != nullptr && detector->saturation == nullptr)
      Error(spec.line, object, spec.saturation, "is no saturation detector");
  }
  for (const ProfileSpec::Branch& branch : spec.branches) {
    const auto* instance = Find(branch.filter, spec.line, object);
    if (instance == nullptr) continue;
    program.reads |= LiveReads(*instance);
    program.nodes.push_back(
        {instance->filter, instance->name, branch.on_success, branch.on_failure, branch.limits_fallbacks});
    program.nodes.back().of_tree = true;
    // Fallbacks beyond what the filters left are the least loaded ones.
    if (!branch.limits_fallbacks) program.reads |= Bit(kQueue) | Bit(kKvUsage);
  }
  for (const ProfileSpec::Step& step : spec.steps) AddStep(spec, step, program);
  if (!failed_ && program.picker != nullptr && program.scorers.empty() && program.nodes.empty() &&
      BestScoreIsWanted(spec))
    problems_.Add(api::Severity::kWarning, spec.line, object, "",
                  "has neither scorer nor filter: endpoints are drawn at random");
  // The last filter of a list leads to the scorers.
  if (spec.branches.empty() && !program.nodes.empty()) program.nodes.back().on_success = Program::kPick;
  for (const Program::Node& node : program.nodes) {
    if (node.filter == nullptr) Error(spec.line, object, node.name, "is no filter");
  }
  if (program.picker == nullptr && !failed_) Error(spec.line, object, "", "has no picker");
  config_->programs.push_back(std::move(program));
}

// ---- The rest of config.h.

std::shared_ptr<void> States::Get(const std::string& key,
                                  const std::function<std::shared_ptr<void>()>& make) {
  const std::lock_guard lock(mutex_);
  auto& state = states_[key];
  if (state == nullptr) state = make();
  return state;
}

void States::FreeUnused() {
  const std::lock_guard lock(mutex_);
  std::erase_if(states_, [](const auto& entry) { return entry.second.use_count() <= 1; });
}

std::vector<ParameterInfo> ParametersOf(std::string_view type) {
  std::vector<api::Problem> found;  // what it cannot be without
  api::ProblemList problems("", found);
  const PluginSpec plugin{.type = std::string(type), .name = std::string(type)};
  CompileOptions options;
  options.allow_experimental = true;
  Compiler compiler({}, problems, options);
  const Config::Instance* made = compiler.Make(plugin);
  return made == nullptr ? std::vector<ParameterInfo>{} : made->parameters;
}

std::shared_ptr<const Config> Compile(const ConfigSpec& spec, api::ProblemList& problems,
                                      const CompileOptions& options) {
  return Compiler(spec, problems, options).Run();
}

}  // namespace fairway::scheduling
