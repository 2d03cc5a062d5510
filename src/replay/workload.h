// What clients ask for, and when: examples/workloads/README.md describes the file.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/manifests.h"
#include "base/clock.h"
#include "replay/distribution.h"
#include "replay/fleet_spec.h"

namespace fairway::replay {

// One request of a trace.
struct TraceRequest {
  base::Nanos at = 0;  // since the first
  uint32_t prompt_tokens = 0;
  uint32_t answer_tokens = 0;
  uint32_t first_block = 0;  // of Trace::blocks
  uint32_t num_blocks = 0;   // 0: a prompt like no other
};

struct Trace {
  std::string file;
  std::vector<TraceRequest> requests;  // in order of time
  std::vector<uint64_t> blocks;        // one number for what each `block_tokens` of a prompt say
  uint32_t block_tokens = 512;
};

struct Arrivals {
  enum class Process { kPoisson, kConstant, kBursts, kRamp, kTrace };
  Process process = Process::kPoisson;
  double rate = 1;          // conversations a second; kRamp: at the begin
  double to = 1;            // kRamp: at the end
  uint32_t burst_size = 1;  // kBursts: that many at once ...
  base::Nanos burst_every = base::kSecond;
  base::Nanos burst_over = 0;          // ... or spread evenly over this time
  double trace_speed = 1;              // 2: in half the time
  std::shared_ptr<const Trace> trace;  // kTrace; immutable
};

// Requests of one kind.
struct TrafficClass {
  std::string name;
  Arrivals arrivals;
  std::string model = "model";
  uint32_t adapters = 0;  // LoRA adapters "NAME-1" ..., one per conversation; 0: the base model is asked
  std::string adapter_name = "lora";
  Popularity adapter_popularity;
  api::Criticality criticality =
      api::Criticality::kUnset;     // of the InferenceModel, where the policy has them
  std::optional<int32_t> priority;  // of the InferenceObjective, where the policy has no InferenceModels
  uint32_t systems = 0;             // different system prompts
  Distribution system_tokens;
  Popularity system_popularity;
  Distribution prompt_tokens = Distribution::Fixed(512);  // of each turn, beside what came before
  Distribution answer_tokens = Distribution::Fixed(128);
  Distribution turns = Distribution::Fixed(1);
  Distribution think = Distribution::Fixed(1);  // seconds from an answer's end to the next turn
  double bytes_per_token = 4;                   // of the request's text: pickers see bytes
  uint32_t retries = 0;                         // of a request that was refused or failed
  base::Nanos backoff = base::kSecond;          // before the first retry; doubles each time
  base::Nanos timeout = 0;                      // the client gives up; 0: never

  // What a request of the class names in its body.
  std::string ModelName(uint32_t adapter) const {
    return adapters == 0 ? model : adapter_name + "-" + std::to_string(adapter + 1);
  }
};

struct Workload {
  std::string name;
  base::Nanos duration = 120 * base::kSecond;  // in which conversations begin
  base::Nanos warmup = 0;                      // requests that are due before are not counted
  std::vector<TrafficClass> classes;
  std::optional<FleetSpec> fleet;  // the one that it is made for
};

constexpr uint32_t kMaxPromptTokens = 1 << 24;

// A YAML or JSON file that describes a workload, or a trace (trace.h), told apart by what is in it. Wrong
// ones give problems with errors.
Workload LoadWorkload(const std::string& path, std::vector<api::Problem>& problems);
// What cannot go together: adapters at servers that have none (an error), requests of a trace that are longer
// than every server takes (a warning). `file` is the workload's.
void CheckFit(const Workload& workload, const FleetSpec& fleet, const std::string& file,
              std::vector<api::Problem>& problems);
// The described form; `folder`: where files that it names are looked for.
Workload ParseWorkload(std::string_view text, const std::string& file, const std::string& folder,
                       std::vector<api::Problem>& problems);

}  // namespace fairway::replay
