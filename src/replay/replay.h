// One workload against one fleet under one policy, in virtual time: the same seed gives the same bytes.
//
//   const Replay::Outcome outcome = Replay(workload, fleet, policy, settings, seed).Run(progress);
//
// Everything happens in the order of a heap of next events: a request becomes due, reaches its server, an
// engine's step ends, a token reaches the picker, a page is asked for, is read, arrives. Nothing ticks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "replay/picker.h"
#include "replay/results.h"

namespace fairway::replay {

struct Settings {
  uint32_t pickers = 1;
  base::Nanos scrape_interval = 50 * base::kMillisecond;
  base::Nanos page_delay = 3 * base::kMillisecond;       // from asking for a page to having it; read half way
  base::Nanos network_delay = 250 * base::kMicrosecond;  // one way, picker to server and back
  base::Nanos tell_interval = 0;  // how often pickers tell one another what they have where; 0: never
  base::Nanos tell_delay = 2 * base::kMillisecond;  // until it is heard
  bool unseen_ends = false;                         // the picker sees headers of answers and nothing after
  uint64_t max_requests = 0;                        // conversations; 0: as many as there are
  base::Nanos drain = 600 * base::kSecond;          // after the last arrival; then what is open is unfinished
};
constexpr uint32_t kMaxPickers = 1000;

// What is wrong with them, or "".
std::string CheckSettings(const Settings& settings);

class Replay {
 public:
  // The arguments outlive it.
  Replay(const Workload& workload, const FleetSpec& fleet, const Policy& policy, const Settings& settings,
         uint64_t seed);
  ~Replay();

  struct Outcome {
    std::vector<Record> records;  // each request once, in the order in which they ended
    RunTotals totals;
  };
  // `progress` is called every some thousand events with the virtual time that has passed; false stops.
  using Progress = std::function<bool(base::Nanos now, uint64_t requests)>;
  Outcome Run(const Progress& progress);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fairway::replay
