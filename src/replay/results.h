// What came out of a replay: one row a policy, and for each class of requests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "replay/workload.h"

namespace fairway::replay {

// How a request ended; each does once.
enum class End : uint8_t {
  kAnswered,
  kShed,        // refused, 429
  kFailed,      // nobody had it, or the server died, refused or could not serve it
  kTimedOut,    // the client gave up
  kUnfinished,  // still under way when the replay's time was up
};
constexpr size_t kEnds = 5;

struct Record {
  base::Nanos due = 0;
  float first_token = 0;  // seconds since it was due; when answered
  float per_token = 0;    // seconds between tokens on average; 0: one token alone
  float total = 0;        // seconds
  uint32_t prompt_tokens = 0;
  uint32_t answer_tokens = 0;
  uint16_t traffic = 0;
  End end = End::kUnfinished;
  bool retried = false;
};

// Mean and percentiles (nearest rank) of seconds.
struct Summary {
  double mean = 0, p50 = 0, p90 = 0, p99 = 0;
  static Summary Of(std::vector<float>& values);  // sorts them
  void Add(const Summary& other, double weight);
};

// All numbers are means over the seeds.
struct Row {
  std::string policy;
  std::string traffic;  // "" is all classes
  double requests = 0;  // counted ones: due after the warm-up
  double ends[kEnds] = {};
  double retried = 0;
  Summary first_token, per_token, total;
  // Answers that ended between the warm-up and the last arrival, whenever they were due.
  double requests_per_second = 0;
  double output_tokens_per_second = 0;
  // Of the whole run, in the row of all classes only.
  double spread = 0;    // work of the server that did most over the mean, in tokens computed
  double hit_rate = 0;  // of prompt tokens, found in a prefix cache
  double preemptions = 0;
  double lora_loads = 0;
  double pages_per_second = 0;  // read of each server, by all pickers together
};

// Of one run of one policy with one seed.
struct RunTotals {
  double spread = 0;
  double hit_rate = 0;
  double preemptions = 0;
  double lora_loads = 0;
  double pages_per_second = 0;
  double seconds = 0;  // of virtual time, to the last request's end
  uint64_t decisions = 0;
};

// All classes first, then each where there are several. Adds to `rows` (made when empty) with the weight of
// one seed.
void Summarize(const Workload& workload, const std::string& policy, const std::vector<Record>& records,
               const RunTotals& totals, double weight, std::vector<Row>& rows);

// A table for people: times in milliseconds.
std::string Table(const std::vector<Row>& rows);
// {"workload": ..., "rows": [...]}: every number of every row, times in seconds.
std::string Json(const std::string& workload, const std::string& setting, const std::vector<Row>& rows);

}  // namespace fairway::replay
