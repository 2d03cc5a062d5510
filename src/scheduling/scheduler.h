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
  bool shows_first_token = true;         // somebody will tell the reservation when the answer begins
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
    float own = 0;     // our open requests
    float others = 0;  // of others
    float queue = 0;   // of both, those that are not in the engine's batch
    float page_queue = 0;
    float running = 0;
    float kv_usage = 0;
    float work = 0;            // ms until what is there already is computed
    float prefill = 0;         // ms for this request's own prompt
    std::string_view adapter;  // "resident", "waiting", "believed", "room", "none"
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

// What pools without InferenceModels are decided by. docs/scheduling.md compares them.
enum class Profile {
  kTimeToFirstToken,  // the default: time-to-first-token-scorer
  kQueueKvLora,       // queue 2, KV use 2, LoRA affinity 1, running requests 1
  kActiveRequest,     // least open requests
  kLmetric,           // uncached work * open requests
};
std::string_view ToString(Profile profile);  // "time-to-first-token", "queue-kv-lora", ...
inline constexpr std::array kProfiles = {Profile::kTimeToFirstToken, Profile::kQueueKvLora,
                                         Profile::kActiveRequest, Profile::kLmetric};

// What load decisions see.
enum class LoadSource {
  kLedger,  // the default: own requests and what pages show beyond them (fleet/load.h)
  kPage,    // pages alone, for comparing with pickers that know no more
};

// The parameters of the built-in programs; defaults as docs/scheduling.md.
struct SchedulerOptions {
  Profile profile = Profile::kTimeToFirstToken;  // of pools without InferenceModels
  LoadSource load_source = LoadSource::kLedger;
  float critical_queue_limit = 50;  // a Critical request keeps endpoints whose page says queue < this
  float sheddable_queue_limit = 5;  // others, in both programs: page's queue < this ...
  float sheddable_kv_limit = 0.8f;  // ... and KV use < this ...
  float sheddable_work_limit =
      700;  // ... and not both so long a queue by the ledger and ms of work ahead >= this
  double lora_exploration =
      0.001;                    // share of picks that load an adapter on a new endpoint although one has it
  float lora_load_cost = 1000;  // ms that loading an adapter is taken to cost
  float request_cost = 5;       // ms that an open request is taken to cost the next one
  float tolerance = 20;         // ms: endpoints whose first tokens are this close are drawn among
  uint32_t max_choices = 3;     // first choice and fallbacks; 1 .. kMaxChoices
  base::Nanos fresh_for = base::kSecond;          // older pages are stale: the ledger decides
  base::Nanos ledger_trust = 30 * base::kSecond;  // no page of anybody for longer: power of two choices
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
