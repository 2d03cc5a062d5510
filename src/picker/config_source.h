// Where the scheduler's configs come from: EndpointPickerConfigs in files, which are watched, or in a text.
//
//   --config-file, --config-text   decides for all pools that have none of their own
//   --config-dir                   a file NAMESPACE.POOL.yaml for each pool that has one
//   --shadow-config-file           decides too, without any effect (RouterOptions::shadow)
//
// A changed file is read and compiled; when it is good it decides from then on, all at once, and what plugins
// remember (prefix caches, sessions) stays. When it is not, the old one stays, and its problems are told.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "api/endpoint_picker_config.h"
#include "api/manifests.h"
#include "base/log.h"
#include "base/metrics.h"
#include "net/loop.h"
#include "scheduling/config.h"
#include "sources/files/file_source.h"

namespace fairway::picker {

struct ConfigOptions {
  std::string file;  // one of both; with neither the built-in profiles decide
  std::string text;
  std::string directory;
  std::string shadow_file;
  bool allow_experimental = false;         // --allow-experimental-plugins
  std::vector<std::string> feature_gates;  // "name", "name=false"
  bool given() const { return !file.empty() || !text.empty() || !directory.empty() || !shadow_file.empty(); }
};

// Reads and compiles the file or text once. Null where there was an error; `problems` gets all, warnings,
// too. `document`, where wanted, gets what it was compiled from.
std::shared_ptr<const scheduling::Config> LoadConfig(const ConfigOptions& options,
                                                     std::vector<api::Problem>& problems,
                                                     scheduling::States* states = nullptr,
                                                     uint64_t* fingerprint = nullptr,
                                                     api::EndpointPickerConfig* document = nullptr);

// The files of a folder of configs: "namespace/name" of a pool -> path. What is named otherwise is a problem,
// but for `but`, a path.
std::map<std::string, std::string> PoolConfigFiles(const std::string& directory, const std::string& but,
                                                   std::vector<api::Problem>& problems);

// What is wrong with a file of any kind, an error or a warning each.
void LogProblems(const base::Log& log, const std::vector<api::Problem>& problems);

// Owned by one thread; Watch and what it calls run on the loop.
class ConfigSource {
 public:
  explicit ConfigSource(ConfigOptions options) : options_(std::move(options)) {}

  // Reads all. False where something has an error; `problems` gets all, warnings, too.
  bool Load(std::vector<api::Problem>& problems);

  // Null: the built-in one decides.
  const std::shared_ptr<const scheduling::Config>& common() const { return common_.config; }
  std::map<std::string, std::shared_ptr<const scheduling::Config>, std::less<>> of_pools() const;
  const std::shared_ptr<const scheduling::Config>& shadow() const { return shadow_.config; }

  struct Changed {
    std::function<void()> configs;  // common or of_pools
    std::function<void()> shadow;
    // Now and then, as workers let go of a config with their next request: frees those that were swapped out.
    std::function<void()> tidy;
  };
  // The first two hear of good changes only.
  void Watch(net::Loop& loop, const base::Log& log, base::Registry& registry, Changed changed);
  void LookAgain();
  void Stop();  // on the loop

 private:
  struct Inbox;
  // One config and what its plugins remember.
  struct Entry {
    std::string path;
    std::string label;  // in metrics and logs: "common", "shadow", or the pool's key
    std::unique_ptr<scheduling::States> states = std::make_unique<scheduling::States>();
    uint64_t fingerprint = 0;
    std::shared_ptr<const scheduling::Config> config;
  };

  std::shared_ptr<const scheduling::Config> Read(Entry& entry, std::vector<api::Problem>& problems) const;
  void WatchFile(net::Loop& loop, Entry& entry, const std::function<void()>& taken);
  void WatchFolder(net::Loop& loop);
  // Takes a changed config over. False: it was refused.
  bool Take(Entry& entry, const api::EndpointPickerConfigResult& document);
  void OnFolder(Inbox& inbox);
  void CountTaken(const Entry& entry);
  void CountRefused(const Entry& entry);
  void Tidy();

  const ConfigOptions options_;
  Entry common_{.path = options_.file, .label = "common"};
  Entry shadow_{.path = options_.shadow_file, .label = "shadow"};
  std::map<std::string, Entry> pools_;  // by key
  base::Log log_;
  Changed changed_;
  base::CounterFamily* reloads_ = nullptr;
  base::GaugeFamily* stale_ = nullptr;
  std::vector<std::unique_ptr<sources::FileSource>> sources_;
  std::unique_ptr<net::Timer> tidy_;
};

}  // namespace fairway::picker
