#include "picker/config_source.h"

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <utility>

#include "api/endpoint_picker_config.h"
#include "api/load.h"
#include "api/text_rules.h"
#include "base/strings.h"

namespace fairway::picker {

namespace {

namespace fs = std::filesystem;
using api::Severity;

constexpr std::string_view kTextName = "--config-text";
constexpr base::Nanos kTidyEvery = 5 * base::kSecond;

void Unsuggest(const std::string& name, std::vector<api::Problem>& problems) {
  const std::string hint = "; did you mean " + api::Quote(name) + "?";
  for (api::Problem& problem : problems) {
    if (!problem.message.ends_with(hint)) continue;
    problem.message.resize(problem.message.size() - hint.size());
    problem.message += "; there is " + api::Quote(name) + ", whose type is wrong";
  }
}

// What is wrong with the plugins of a document that has errors elsewhere, so that all is told at once. What
// refers to them is left to the document's own check.
void CheckPlugins(const api::EndpointPickerConfig& document, const std::string& name, bool allow_experimental,
                  std::vector<api::Problem>& problems) {
  scheduling::ConfigSpec spec = scheduling::FromDocument(document);
  std::erase_if(spec.plugins, [](const auto& plugin) { return plugin.type.empty() || plugin.name.empty(); });
  std::vector<api::Problem> found;
  api::ProblemList list(name, found);
  scheduling::Compile(spec, list,
                      {.more_types = {}, .states = nullptr, .allow_experimental = allow_experimental});
  for (api::Problem& problem : found) {
    if (problem.severity != Severity::kError || !problem.object.starts_with("plugin ")) continue;
    // A name that is a mistyped type is no good advice for who refers to the right one.
    if (problem.field == "type") Unsuggest(problem.object.substr(problem.object.find(' ') + 1), problems);
    problems.push_back(std::move(problem));
  }
  std::stable_sort(problems.begin(), problems.end(), [](const api::Problem& a, const api::Problem& b) {
    return a.where.file == b.where.file && a.where.line < b.where.line;
  });
}

std::shared_ptr<const scheduling::Config> Compile(const api::EndpointPickerConfigResult& document,
                                                  const std::string& name, const ConfigOptions& options,
                                                  std::vector<api::Problem>& problems,
                                                  scheduling::States* states, uint64_t* fingerprint) {
  if (fingerprint != nullptr) *fingerprint = document.fingerprint;
  problems.insert(problems.end(), document.problems.begin(), document.problems.end());
  if (!document.ok()) {
    CheckPlugins(document.config, name, options.allow_experimental, problems);
    return nullptr;
  }
  api::ProblemList list(name, problems);
  return scheduling::Compile(
      scheduling::FromDocument(document.config), list,
      {.more_types = {}, .states = states, .allow_experimental = options.allow_experimental});
}

// "chat.llama.yaml" -> "chat/llama": a namespace has no dot, a pool may have some. "": it is another file.
std::string PoolOfFile(const fs::path& path) {
  const std::string stem = path.stem().string();
  const size_t dot = stem.find('.');
  if (dot == std::string::npos || dot == 0 || dot + 1 == stem.size()) return "";
  return stem.substr(0, dot) + "/" + stem.substr(dot + 1);
}

}  // namespace

std::shared_ptr<const scheduling::Config> LoadConfig(const ConfigOptions& options,
                                                     std::vector<api::Problem>& problems,
                                                     scheduling::States* states, uint64_t* fingerprint,
                                                     api::EndpointPickerConfig* document) {
  const api::EndpointPickerConfigOptions reading{.feature_gates = options.feature_gates};
  if (!options.file.empty() && !options.text.empty()) {
    problems.push_back(
        {Severity::kError, {options.file, 0}, "", "", "give --config-file or --config-text, not both"});
    return nullptr;
  }
  const bool is_file = !options.file.empty();
  const auto read = is_file ? api::LoadEndpointPickerConfig(options.file, reading)
                            : api::ParseEndpointPickerConfig(options.text, kTextName, reading);
  if (document != nullptr) *document = read.config;
  return Compile(read, is_file ? options.file : std::string(kTextName), options, problems, states,
                 fingerprint);
}

void LogProblems(const base::Log& log, const std::vector<api::Problem>& problems) {
  for (const api::Problem& problem : problems) {
    if (problem.severity == Severity::kError) {
      log.Error(api::ToString(problem));
    } else {
      log.Warn(api::ToString(problem));
    }
  }
}

std::map<std::string, std::string> PoolConfigFiles(const std::string& directory, const std::string& but,
                                                   std::vector<api::Problem>& problems) {
  const auto tell = [&problems](Severity severity, const std::string& file, std::string message) {
    problems.push_back({severity, {file, 0}, "", "", std::move(message)});
  };
  std::map<std::string, std::string> files;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const fs::path& path = it->path();
    const std::string name = path.filename().string();
    std::error_code ignored;
    if (!api::IsManifestName(name) || (!but.empty() && fs::equivalent(path, but, ignored))) continue;
    const std::string pool = PoolOfFile(path);
    if (pool.empty()) {
      tell(Severity::kWarning, path.string(),
           "decides for nobody: the config of a pool is called NAMESPACE.POOL.yaml");
    } else if (const auto [at, is_new] = files.emplace(pool, path.string()); !is_new) {
      tell(Severity::kError, path.string(), "pool " + pool + " has a config in " + at->second + " already");
    }
  }
  if (error) tell(Severity::kError, directory, "cannot be read: " + error.message());
  return files;
}

std::shared_ptr<const scheduling::Config> ConfigSource::Read(Entry& entry,
                                                             std::vector<api::Problem>& problems) const {
  ConfigOptions options = options_;
  options.file = entry.path;
  if (&entry != &common_) options.text.clear();
  return LoadConfig(options, problems, entry.states.get(), &entry.fingerprint);
}

std::map<std::string, std::shared_ptr<const scheduling::Config>, std::less<>> ConfigSource::of_pools() const {
  std::map<std::string, std::shared_ptr<const scheduling::Config>, std::less<>> configs;
  for (const auto& [pool, entry] : pools_) configs.emplace(pool, entry.config);
  return configs;
}

bool ConfigSource::Load(std::vector<api::Problem>& problems) {
  if (!options_.file.empty() || !options_.text.empty()) common_.config = Read(common_, problems);
  if (!options_.shadow_file.empty()) shadow_.config = Read(shadow_, problems);
  if (!options_.directory.empty()) {
    for (auto& [pool, path] : PoolConfigFiles(options_.directory, options_.file, problems)) {
      Entry& entry = pools_[pool];
      entry.path = path;
      entry.label = pool;
      entry.config = Read(entry, problems);
    }
  }
  return !api::HasErrors(problems);
}

// ---- Files that change.

void ConfigSource::Watch(net::Loop& loop, const base::Log& log, base::Registry& registry, Changed changed) {
  log_ = log;
  changed_ = std::move(changed);
  reloads_ = &registry.AddCounter({.name = "fairway_scheduler_config_reloads_total",
                                   .help = "Changes of EndpointPickerConfigs in files, by outcome: applied, "
                                           "or refused and the one before decides on.",
                                   .labels = {"config", "outcome"}});
  stale_ = &registry.AddGauge({.name = "fairway_scheduler_config_stale",
                               .help = "1 while what stands in the file was refused and the config before "
                                       "it decides.",
                               .labels = {"config"}});
  for (Entry* entry : {&common_, &shadow_}) {
    if (entry->path.empty()) continue;
    reloads_->With({entry->label, "applied"});
    reloads_->With({entry->label, "refused"});
    stale_->With({entry->label}).Set(0);
    WatchFile(loop, *entry, entry == &common_ ? changed_.configs : changed_.shadow);
  }
  if (!options_.directory.empty()) WatchFolder(loop);
  tidy_ = std::make_unique<net::Timer>(loop);
  tidy_->Every(kTidyEvery, [this] { Tidy(); });
}

void ConfigSource::Stop() {
  tidy_.reset();
  sources_.clear();
}

// A config's plugins hold what they remember: an index of 256 MB, say.
void ConfigSource::Tidy() {
  changed_.tidy();
  for (const Entry* entry : {&common_, &shadow_}) entry->states->FreeUnused();
  for (const auto& [pool, entry] : pools_) entry.states->FreeUnused();
}

// What the source's own thread read, until the loop takes it. The loop itself reads no file: a file system
// may be slow, and what was a file a moment ago may be a pipe that somebody drips into.
struct ConfigSource::Inbox {
  std::mutex mutex;
  std::map<std::string, std::string> files;                          // of a folder: pool -> path
  std::vector<api::Problem> problems;                                // of the folder itself
  std::map<std::string, api::EndpointPickerConfigResult> documents;  // by path; those that changed

  std::map<std::string, uint64_t> known;  // the thread's own: fingerprints by path
};

void ConfigSource::WatchFile(net::Loop& loop, Entry& entry, const std::function<void()>& taken) {
  const auto inbox = std::make_shared<Inbox>();
  auto loader = [inbox, path = entry.path, gates = options_.feature_gates](const std::vector<std::string>&,
                                                                           const api::LoadOptions&) {
    auto document = api::LoadEndpointPickerConfig(path, {.only_files = true, .feature_gates = gates});
    api::LoadResult result;
    result.fingerprint = document.fingerprint;
    const std::lock_guard lock(inbox->mutex);
    inbox->documents.insert_or_assign(path, std::move(document));
    return result;
  };
  auto heard = [this, inbox, &entry, &taken](const api::LoadResult&) {
    std::map<std::string, api::EndpointPickerConfigResult> documents;
    {
      const std::lock_guard lock(inbox->mutex);
      documents.swap(inbox->documents);
    }
    if (documents.empty() || !Take(entry, documents.begin()->second)) return;
    taken();
  };
  sources_.push_back(std::make_unique<sources::FileSource>(
      loop, std::vector<std::string>{entry.path}, std::move(heard), 50 * base::kMillisecond,
      entry.fingerprint, api::LoadOptions{}, std::move(loader)));
}

void ConfigSource::WatchFolder(net::Loop& loop) {
  const auto inbox = std::make_shared<Inbox>();
  uint64_t known = 0;
  for (const auto& [pool, entry] : pools_) {
    known = base::StringHash()(pool) ^ (known * 31 + entry.fingerprint);
    inbox->known[entry.path] = entry.fingerprint;
  }
  auto loader = [inbox, folder = options_.directory, but = options_.file, gates = options_.feature_gates](
                    const std::vector<std::string>&, const api::LoadOptions&) {
    api::LoadResult result;
    std::vector<api::Problem> problems;
    auto files = PoolConfigFiles(folder, but, problems);
    std::map<std::string, uint64_t> now;
    for (const auto& [pool, path] : files) {
      auto document = api::LoadEndpointPickerConfig(path, {.only_files = true, .feature_gates = gates});
      result.fingerprint = base::StringHash()(pool) ^ (result.fingerprint * 31 + document.fingerprint);
      now[path] = document.fingerprint;
      const auto before = inbox->known.find(path);
      if (before != inbox->known.end() && before->second == document.fingerprint) continue;
      const std::lock_guard lock(inbox->mutex);
      inbox->documents.insert_or_assign(path, std::move(document));
    }
    inbox->known = std::move(now);
    const std::lock_guard lock(inbox->mutex);
    inbox->files = std::move(files);
    inbox->problems = std::move(problems);
    for (const api::Problem& problem : inbox->problems) {
      if (problem.severity == Severity::kError)
        result.fingerprint = base::StringHash()(problem.message) ^ (result.fingerprint * 31);
    }
    return result;
  };
  sources_.push_back(std::make_unique<sources::FileSource>(
      loop, std::vector<std::string>{options_.directory},
      [this, inbox](const api::LoadResult&) { OnFolder(*inbox); }, 50 * base::kMillisecond, known,
      api::LoadOptions{}, std::move(loader)));
}

bool ConfigSource::Take(Entry& entry, const api::EndpointPickerConfigResult& document) {
  std::vector<api::Problem> problems;
  auto config = Compile(document, entry.path, options_, problems, entry.states.get(), &entry.fingerprint);
  LogProblems(log_, problems);
  if (config == nullptr) {
    CountRefused(entry);
    return false;
  }
  entry.config = std::move(config);
  CountTaken(entry);
  return true;
}

// Each file by itself: who breaks one pool's config keeps nobody else's from being changed.
void ConfigSource::OnFolder(Inbox& inbox) {
  std::map<std::string, std::string> files;
  std::vector<api::Problem> problems;
  std::map<std::string, api::EndpointPickerConfigResult> documents;
  {
    const std::lock_guard lock(inbox.mutex);
    files = inbox.files;
    problems = inbox.problems;
    if (!api::HasErrors(problems)) documents.swap(inbox.documents);
  }
  LogProblems(log_, problems);
  if (api::HasErrors(problems)) return CountRefused({.path = options_.directory, .label = "folder"});
  stale_->With({"folder"}).Set(0);
  bool changed = false;
  for (const auto& [pool, path] : files) {
    const auto document = documents.find(path);
    if (document == documents.end()) continue;
    const auto known = pools_.find(pool);
    Entry made;
    Entry& entry = known != pools_.end() ? known->second : made;
    entry.path = path;
    entry.label = pool;
    if (!Take(entry, document->second)) continue;
    if (known == pools_.end()) pools_.emplace(pool, std::move(made));
    changed = true;
  }
  for (auto it = pools_.begin(); it != pools_.end();) {
    if (files.contains(it->first)) {
      ++it;
      continue;
    }
    log_.Info("the pool's config is gone: the common one decides", {{"pool", it->first}});
    stale_->Remove({it->first});
    it = pools_.erase(it);
    changed = true;
  }
  if (!changed) return;
  changed_.configs();
}

void ConfigSource::CountTaken(const Entry& entry) {
  reloads_->With({entry.label, "applied"}).Add();
  stale_->With({entry.label}).Set(0);
  log_.Info("scheduler config changed", {{"config", entry.label},
                                         {"profiles", std::to_string(entry.config->programs.size())},
                                         {"plugins", std::to_string(entry.config->plugins.size())}});
}

void ConfigSource::CountRefused(const Entry& entry) {
  reloads_->With({entry.label, "refused"}).Add();
  stale_->With({entry.label}).Set(1);
  log_.Error("the changed scheduler config has errors: the one before decides on",
             {{"config", entry.label}, {"file", entry.path}});
}

void ConfigSource::LookAgain() {
  for (const auto& source : sources_) source->LookAgain();
}

}  // namespace fairway::picker
