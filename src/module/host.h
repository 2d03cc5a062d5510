// The picker behind filters in Envoy: made when the first filter with its configuration comes, shared by all
// that say the same, gone with the last of them.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/result.h"
#include "frontends/envoy_module/balancer.h"
#include "frontends/envoy_module/config.h"
#include "frontends/envoy_module/filter.h"

namespace fairway::module {

// What the process has one of. Never destroyed: Envoy may end with hooks under way.
class Process {
 public:
  // REQUIRES: called on Envoy's main thread.
  Process();

  envoy_module::ClusterDirectory& directory() { return directory_; }

  // The picker for this configuration, a running one when there is one. When it returns requests can be
  // decided. The error is for the user. Main thread.
  base::Result<std::shared_ptr<envoy_module::SharedPicker>> PickerFor(
      const envoy_module::PickerConfig& config);

  // Reads and checks all that PickerFor would, and starts nothing (envoy --mode validate).
  base::Result<void> Check(const envoy_module::PickerConfig& config) const;

 private:
  class Host;
  // Destroys it without making Envoy wait: on a worker thread by a thread of its own, as taking down joins.
  void Retire(Host* host);

  const std::thread::id main_thread_;
  envoy_module::ClusterDirectory directory_;
  std::mutex mutex_;
  std::map<std::string, std::weak_ptr<Host>> hosts_;  // by identity
  uint64_t last_subscription_ = 0;
};

}  // namespace fairway::module
