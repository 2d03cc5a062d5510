// An Envoy as our child: started, watched, started again when it dies, stopped with us.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/log.h"
#include "net/loop.h"

namespace fairway::local {

struct EnvoyProcessOptions {
  std::string binary;
  std::string directory;     // with bootstrap.json; Envoy's admin address is noted there, too
  size_t listeners = 1;      // how many must be open before it counts as ready
  unsigned concurrency = 0;  // worker threads; 0: as many as cores, at most 4
  base::Nanos ready_timeout = 60 * base::kSecond;      // not ready by then: said once, and waited on
  base::Nanos first_pause = 100 * base::kMillisecond;  // before a restart; doubles up to `longest_pause`
  base::Nanos longest_pause = 5 * base::kSecond;
  base::Nanos calm = 30 * base::kSecond;       // so long up: the pause starts over
  base::Nanos stop_grace = 5 * base::kSecond;  // from SIGTERM to SIGKILL
};

struct EnvoyProcessEvents {
  // Each time it serves: the first and after each restart.
  std::function<void()> on_ready;
  // A line of a decision's explanation, as the module in it printed it, without its mark. Empty: dropped.
  std::function<void(std::string_view line)> on_explanation;
  // It died before it ever served: it will not be tried again. With the last that it said.
  std::function<void(std::string reason)> on_failed;
};

// Owned by its loop's thread; all functions and callbacks run there. Its log lines come into ours, warnings
// and errors only, and of one kind at most one in 5 s.
class EnvoyProcess {
 public:
  EnvoyProcess(net::Loop& loop, EnvoyProcessOptions options, EnvoyProcessEvents events, const base::Log& log);
  ~EnvoyProcess();  // kills it if it runs
  EnvoyProcess(const EnvoyProcess&) = delete;
  EnvoyProcess& operator=(const EnvoyProcess&) = delete;

  void Start();
  // SIGTERM, after the grace SIGKILL; `done` once it is gone. No events after that.
  void Stop(std::function<void()> done);
  // For the listeners that a new configuration has.
  void ExpectListeners(size_t count);

  pid_t pid() const;  // -1 when it does not run
  uint64_t restarts() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace fairway::local
