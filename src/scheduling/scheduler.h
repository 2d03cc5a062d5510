// The decision: which endpoint of a pool, and in which order the others come after it.
//
// A profile narrows the candidates by filters, adds up weighted scores and lets a picker choose; a tree is
// filters that lead to filters, by success or failure. Both run on the same columns, which are gathered once
// per decision from the cells. Nothing on this path allocates (after warm-up), locks, throws or does I/O.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "base/result.h"
#include "fleet/snapshot.h"

namespace fairway::scheduling {

inline constexpr size_t kMaxChoices = 8;

// How good the signals behind a decision were (ARCHITECTURE.md); the name is what metrics and reasons show.
enum class Rung { kFresh, kLedger, kPowerOfTwo, kAnyReady };
inline constexpr size_t kRungs = 4;
std::string_view ToString(Rung rung);  // "fresh", "ledger", "power-of-two", "any-ready"

struct Request {
  std::string_view target_model;
  uint32_t adapter = fleet::kNoAdapter;  // PoolSnapshot::AdapterId(target_model)
  bool critical = true;                  // false: may be shed
  uint32_t prompt_tokens = 0;            // estimate; what the reservation holds
};

enum class OutcomeKind { kPicked, kShed, kNoCandidates };

struct Outcome {
  OutcomeKind kind = OutcomeKind::kNoCandidates;
  Rung rung = Rung::kFresh;
  std::array<uint32_t, kMaxChoices> choices{};  // endpoint numbers, first choice first
  uint32_t num_choices = 0;
  fleet::Reservation reservation;  // on choices[0], when picked
};

// Why: filled only when somebody asks (--explain, tests).
struct Explanation {
  struct Candidate {
    uint32_t endpoint = 0;
    float queue = 0;  // scraped + own reservations since
    float scraped_queue = 0;
    float running = 0;
    float kv_usage = 0;
    std::string_view adapter;  // "resident", "waiting", "room", "none"
    bool fresh = false;
    base::Nanos age = 0;  // of its last scrape; 0 with `scraped` false
    bool scraped = false;
    float score = 0;  // weighted total; 0 in a tree
  };
  struct Drop {
    uint32_t endpoint = 0;
    std::string why;  // "queue 60 >= 50"
  };
  struct Step {
    std::string name;  // filter or scorer type
    size_t in = 0;
    size_t out = 0;
    bool failed = false;  // would have dropped all: its input went on
    std::vector<Drop> drops;
    std::vector<std::pair<uint32_t, float>> scores;  // of a scorer, unweighted
    float weight = 0;
  };
  std::vector<Candidate> candidates;
  std::vector<Step> steps;
  std::string profile;  // "criticality-tree", "default"
  std::string verdict;  // one sentence
};

// The parameters of the two built-in profiles; defaults as ARCHITECTURE.md.
struct SchedulerOptions {
  float critical_queue_limit = 50;  // a Critical request keeps endpoints with queue < this
  float sheddable_queue_limit = 5;  // others, in both profiles: queue < this ...
  float sheddable_kv_limit = 0.8f;  // ... and KV use < this
  double lora_exploration =
      0.001;               // share of picks that load an adapter on a new endpoint although one has it
  float queue_weight = 2;  // the profile of a pool without InferenceModels
  float kv_weight = 2;
  float lora_weight = 1;
  float running_weight = 1;
  uint32_t max_choices = 3;                       // first choice and fallbacks; 1 .. kMaxChoices
  base::Nanos fresh_for = base::kSecond;          // older scrapes are stale: the ledger decides
  base::Nanos ledger_trust = 30 * base::kSecond;  // no scrape of anybody for longer: power of two choices
};

// The first value out of its range, with the range.
base::Result<void> CheckOptions(const SchedulerOptions& options);

struct Program;  // program.h

// Memory of one worker, reused by every decision. Owned by one thread.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// Thread-safe: immutable; all state is in the arguments.
class Scheduler {
 public:
  // REQUIRES: options checked with CheckOptions. `started_at`: until ledger_trust later a fleet without
  // scrapes is young, not lost.
  Scheduler(const SchedulerOptions& options, base::Nanos started_at);
  // The same with programs of the caller's: `with_models` for pools that have InferenceModels, `without` for
  // the others.
  Scheduler(const SchedulerOptions& options, base::Nanos started_at, Program with_models, Program without);
  ~Scheduler();

  // Picks and reserves in one step. `candidates`: numbers of the endpoints that may be chosen (a subset
  // hint); nullopt is all. A pool with InferenceModels goes by the criticality tree, another by the default
  // profile.
  Outcome Pick(const fleet::PoolSnapshot& pool, const Request& request,
               std::optional<std::span<const uint32_t>> candidates, base::Nanos now, Scratch& scratch,
               base::Random& random, Explanation* explanation = nullptr) const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fairway::scheduling
