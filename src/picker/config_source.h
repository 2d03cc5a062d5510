// Where the scheduler's config comes from: an EndpointPickerConfig in a file, which is watched, or in a text.
// A changed file is read and compiled; when it is good it decides from then on, all at once, and what plugins
// remember (prefix caches, sessions) stays. When it is not, the old one stays, and its problems are told.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

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
  bool allow_experimental = false;         // --allow-experimental-plugins
  std::vector<std::string> feature_gates;  // "name", "name=false"
  bool given() const { return !file.empty() || !text.empty(); }
};

// Reads and compiles once. Null where there was an error; `problems` gets all, warnings, too.
std::shared_ptr<const scheduling::Config> LoadConfig(const ConfigOptions& options,
                                                     std::vector<api::Problem>& problems,
                                                     scheduling::States* states = nullptr,
                                                     uint64_t* fingerprint = nullptr);

// Owned by one thread; Watch and what it calls run on the loop.
class ConfigSource {
 public:
  explicit ConfigSource(ConfigOptions options) : options_(std::move(options)) {}

  std::shared_ptr<const scheduling::Config> Load(std::vector<api::Problem>& problems) {
    return LoadConfig(options_, problems, &states_, &fingerprint_);
  }
  using Changed = std::function<void(std::shared_ptr<const scheduling::Config>)>;
  // Has no effect for a text. `changed` gets good configs only.
  void Watch(net::Loop& loop, const base::Log& log, base::Registry& registry, Changed changed);
  void LookAgain();
  void Stop() { files_.reset(); }  // on the loop

 private:
  void OnChange(const api::LoadResult& loaded);

  const ConfigOptions options_;
  scheduling::States states_;
  uint64_t fingerprint_ = 0;
  base::Log log_;
  Changed changed_;
  base::Counter* applied_ = nullptr;
  base::Counter* refused_ = nullptr;
  std::unique_ptr<sources::FileSource> files_;
};

}  // namespace fairway::picker
