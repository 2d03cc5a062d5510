// Recorded decisions (`--record`) made again: which of them other options, another config or another version
// of Fairway would make otherwise.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "api/load.h"
#include "scheduling/config.h"
#include "scheduling/scheduler.h"

namespace fairway::replay {

struct DecisionReplay {
  uint64_t same = 0;
  uint64_t differing = 0;
  uint64_t left_out = 0;  // nothing was to be decided, or there were too many candidates to record
  uint64_t broken = 0;    // lines that cannot be read
};

struct DecisionReplayOptions {
  // Changes the options that the record names. Empty: they are as they were.
  std::function<void(scheduling::SchedulerOptions& options)> change;
  // Decides instead of the built-in profiles. Null: they do; then what a config of its own decided is left
  // out, and a problem.
  std::shared_ptr<const scheduling::Config> config;
  // Gets a line for each decision that differs.
  std::function<void(std::string_view line)> tell;
};

// All lines of the file. What is wrong with it goes to `problems`.
DecisionReplay ReplayDecisions(const std::string& path, const DecisionReplayOptions& how,
                               std::vector<api::Problem>& problems);

}  // namespace fairway::replay
