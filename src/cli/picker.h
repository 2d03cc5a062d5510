// The picker as a process runs it: the picker itself and the ext_proc server on worker loops. `fairway epp`
// is this alone; `fairway up` puts an Envoy in front.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "api/manifests.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "frontends/ext_proc/server.h"
#include "net/loop.h"
#include "picker/picker.h"

namespace fairway::cli {

struct PickerOptions : picker::Options {
  std::function<void(std::string_view)>
      print;                   // gets the problems of the manifests at the start, a line each
  bool serve_ext_proc = true;  // off where another picker decides (`fairway up --picker`)
  ext_proc::ServerOptions ext_proc;
  bool listen_for_pools = false;  // also on the port that each pool's endpointPickerRef names
  size_t workers = 0;             // 0: as many as cores
  uint64_t seed = 0;              // 0: from the system's entropy
};

// Created, used and destroyed on one thread, that is none of its loops.
class Picker {
 public:
  // Loads the manifests, listens and serves. `changed` may be empty.
  static base::Result<std::unique_ptr<Picker>> Start(PickerOptions options, const base::Log& log,
                                                     picker::Picker::ManifestsChanged changed);
  ~Picker();  // at once, without grace: see Drain

  // Looks at the manifests again now, whatever their times say.
  void Reload();

  // Health says NOT_SERVING, streams go on for up to `grace`, then everything is closed. Blocks until done.
  void Drain(base::Nanos grace);

  net::Loop& control_loop();
  uint16_t grpc_port() const;    // 0 without ext_proc
  uint16_t health_port() const;  // 0 without ext_proc
  uint16_t admin_port() const;
  uint16_t peer_port() const;  // 0 without peers

 private:
  struct Impl;
  explicit Picker(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Blocks SIGINT, SIGTERM and SIGHUP in this thread and those it starts; call it before any thread. SIGHUP
// stays ignored where it is (nohup).
void BlockStopSignals();
// Waits for one of them and says which.
int WaitForSignal();
// From now on a further SIGINT or SIGTERM ends the process with exit code 0, whatever it waits for: the user
// has lost patience. Not SIGHUP: a terminal that is closed sends several. `last` (may be empty) runs before.
void ExitOnSecondSignal(std::function<void()> last = {});

// As many descriptors as the system allows: each pool and each model server takes one.
void RaiseDescriptorLimit();

// Prints each problem, a line each. True when none is an error.
bool PrintProblems(const std::vector<api::Problem>& problems,
                   const std::function<void(std::string_view)>& print);

}  // namespace fairway::cli
