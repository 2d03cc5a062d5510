// The endpoint picker put together, but for who asks it: sources on a control loop, admin pages on a loop of
// theirs, the fleet that they keep, the router that frontends call. `fairway epp` and `fairway up` put an
// ext_proc server before it, the Envoy module puts itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/load.h"
#include "api/manifests.h"
#include "api/picker_settings.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/published.h"
#include "base/result.h"
#include "fleet/snapshot.h"
#include "net/loop.h"
#include "net/tls.h"
#include "picker/config_source.h"
#include "routing/router.h"
#include "sources/files/name_resolver.h"
#include "sources/kubernetes/kubernetes_source.h"
#include "sources/peers/peers.h"
#include "sources/scrape/scraper.h"

namespace fairway::picker {

struct Options {
  // Manifest files and folders, watched while running; "-" is read once. Empty: `manifests` is served and
  // nothing is watched.
  std::vector<std::string> files;
  api::LoadOptions load;  // of the files
  api::Manifests manifests;
  // Instead: pools, models and Pods from the Kubernetes API, as far as they are known and whenever they are.
  struct Kubernetes {
    sources::kubernetes::ClientConfig client;
    sources::kubernetes::KubernetesOptions options;
  };
  std::optional<Kubernetes> kubernetes;
  std::string
      wanted_pool;  // "namespace/name" that must be among the manifests' pools at the start; "" is any

  bool scrape_endpoints = true;  // off: only manifests are watched, for a picker that decides elsewhere
  bool log_problems = true;      // of changed manifests; off where somebody else watches the same files, too

  enum class Admin { kNone, kRequired, kRetried };
  Admin admin = Admin::kRequired;  // kRetried: a port that is taken is tried again each second
  std::string admin_host = "127.0.0.1";
  uint16_t admin_port = 9090;
  // As in admin::Options.
  std::vector<std::string> admin_hosts;
  std::string admin_cert_dir;
  net::TlsOptions admin_tls;
  // With `kubernetes`: who reads from elsewhere than loopback needs a token that the API server knows.
  bool admin_auth = false;
  size_t metrics_max_bytes = base::Registry::kDefaultMaxPageBytes;  // of the metrics page
  // Stream -> how many texts nobody took: for the metrics page. Outlive the picker.
  std::map<std::string, std::function<uint64_t()>> lost_lines;
  size_t debug_decisions = 0;  // how many of the last decisions /debug/decisions shows; 0: none is kept
  std::string record_file;     // each decision is written there (recorder.h); "": none is
  size_t record_max_bytes = 64u << 20;
  sources::scrape::ScraperOptions scrape;
  routing::RouterOptions router;
  std::optional<sources::peers::Options>
      peers;             // other replicas, to tell and to be told; none: this one alone
  ConfigOptions config;  // decides instead of the built-in profiles
};

ConfigOptions ConfigOf(const api::PickerSettings& settings);
// What flags and the module's configuration say alike.
void Apply(const api::PickerSettings& settings, Options& options);

// Created and destroyed on one thread, that is none of its loops.
class Picker {
 public:
  // On the control loop, for the first good state and each one after it.
  using ManifestsChanged =
      std::function<void(const api::Manifests&, const sources::NameResolver::Addresses&)>;
  // Gets the problems of the manifests at the start, errors and warnings. Later ones are logged.
  using Problems = std::function<void(const std::vector<api::Problem>&)>;

  // Loads the manifests, publishes the first fleet and begins to scrape. An error of code kInvalidArgument is
  // the user's: in the manifests (then `problems` had them) or in the options. Both callbacks may be empty.
  static base::Result<std::unique_ptr<Picker>> Start(Options options, const base::Log& log,
                                                     const Problems& problems, ManifestsChanged changed);
  // Waits for the control loop. REQUIRES: no Worker of the router is used any more.
  ~Picker();
  Picker(const Picker&) = delete;
  Picker& operator=(const Picker&) = delete;

  // Endpoints of a pool that come from elsewhere than the manifests and replace those given before for it.
  // Each belongs to that pool whatever its labels. Thread-safe; takes effect soon.
  void SetEndpoints(const std::string& pool_key, std::vector<api::Endpoint> endpoints);

  // Looks at the manifest files again now, whatever their times say. Thread-safe.
  void Reload();

  // With leader election: leads no more, and lets others know. Waits for that, 5 s at most.
  void StepDown();

  const routing::Router& router() const;
  const base::Published<fleet::Snapshot>& fleet() const;
  const base::Clock& clock() const;
  base::Registry& registry();
  net::Loop& control_loop();
  uint16_t admin_port() const;  // 0 without admin pages, and while they wait for their port
  uint16_t peer_port() const;   // 0 without peers

 private:
  struct Impl;
  explicit Picker(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// A seed from the system's entropy, never 0. (std::random_device would make the module need a younger libc.)
uint64_t SystemSeed();

}  // namespace fairway::picker
