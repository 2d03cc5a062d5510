// The decision: which endpoint of a pool, and in which order the others come after it.
//
// A profile narrows the candidates by filters, adds up weighted scores and lets a picker choose; a tree is
// filters that lead to filters, by success or failure. Both run on the same columns, which are gathered once
// per decision from the cells. Nothing on this path allocates (after warm-up), locks, throws or does I/O.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/histogram.h"
#include "base/random.h"
#include "base/result.h"
#include "fleet/snapshot.h"
#include "payload/prompt_hash.h"
#include "payload/prompt_tokens.h"
#include "scheduling/column.h"

namespace fairway::scheduling {

inline constexpr size_t kMaxChoices = 8;

// How good the signals behind a decision were (ARCHITECTURE.md); the name is what metrics and reasons show.
enum class Rung { kFresh, kLedger, kPowerOfTwo, kAnyReady };
inline constexpr size_t kRungs = 4;
std::string_view ToString(Rung rung);  // "fresh", "ledger", "power-of-two", "any-ready"

// The prompts of a request, as far as plugins want them and they are known.
struct Prompts {
  // Prefixes in blocks (payload/prompt_hash.h), one prompt after the other.
  std::vector<uint64_t> prefixes;
  std::vector<payload::PromptEnd> ends;
  std::shared_ptr<const payload::PromptTokens> tokens;  // null: they are not known
  std::string cache_salt;
};

// What a decision needs to know of a request. It owns its bytes, so that it may wait and be kept; who decides
// often uses its memory again.
struct Facts {
  std::string target_model;
  uint32_t adapter = fleet::kNoAdapter;  // PoolSnapshot::AdapterId(target_model)
  bool critical = true;                  // false: may be shed
  uint32_t prompt_tokens = 0;            // estimate; what the reservation holds
  bool shows_first_token = true;         // somebody will tell the reservation when the answer begins
  bool shows_end = true;                 // and when it ends
  int32_t priority = 0;                  // below 0: may be shed
  bool streaming = false;
  bool has_media = false;       // images, sound or video beside text
  bool only_if_cached = false;  // refused where the first choice has nothing of the prompt cached
  uint32_t max_tokens = 0;      // of the answer, as the request limits it; 0: it does not
  // What plugins asked for (Build::WantsHeader): name and value; "" where the request does not have it.
  std::vector<std::pair<std::string, std::string>> headers;
  Prompts prompts;

  std::string_view header(std::string_view name) const {
    for (const auto& [known, value] : headers) {
      if (known == name) return value;
    }
    return {};
  }
};

enum class OutcomeKind { kPicked, kShed, kNoCandidates };

// What refused a request (kShed).
enum class Refusal : uint8_t {
  kFilters,     // the profile that answers left nobody, or no profile ran
  kSaturation,  // the pool is full for what may be shed
  kRoom,        // nobody has room for what may be shed
  kAdmitter,
  kNotCached,  // Facts::only_if_cached
};
inline constexpr size_t kRefusals = 5;
std::string_view ToString(Refusal refusal);  // "filters", "saturation", "room", "admitter", "not-cached"
inline constexpr std::string_view kNothingCached = "the first choice has nothing of the prompt cached";
// Why nobody was left, for people. A critical request is refused by filters of a config's own alone.
inline constexpr std::string_view ShedText(bool critical) {
  return critical ? "shed: the filters left no endpoint"
                  : "shed: no endpoint has room for a request that is not critical";
}

// A place for a part of the request's work beside its answer: prefill, encode.
struct Further {
  // Tells the first choice where it is, "ip:port"; those of one header are joined by commas. It lives until
  // the next decision with this scratch.
  std::string_view header;
  uint32_t endpoint = 0;  // number in the pool
  uint32_t position = 0;  // among the candidates
  fleet::Reservation reservation;
};
inline constexpr size_t kMaxFurther = 9;
inline constexpr std::string_view kPrefillHeader = "x-prefiller-host-port";
inline constexpr std::string_view kEncodeHeader = "x-encoder-hosts-ports";

// A header of the answer that tells the client which endpoint served it, so that it can ask for the same one
// again: `name` with SessionToken(endpoint), session_token.h.
struct SessionHeader {
  std::string_view name;  // lives as long as the config
  uint32_t endpoint = 0;  // number in the pool
};
inline constexpr size_t kMaxSessionHeaders = 4;

struct Outcome {
  OutcomeKind kind = OutcomeKind::kNoCandidates;
  Rung rung = Rung::kFresh;
  std::array<uint32_t, kMaxChoices> choices{};  // endpoint numbers, first choice first
  uint32_t num_choices = 0;
  fleet::Reservation reservation;  // on choices[0], when picked
  std::array<Further, kMaxFurther> further;
  uint32_t num_further = 0;
  // Not 0: destinations have this port instead of their own, and the header tells the first one's own
  // address.
  uint16_t destination_port = 0;
  // Prompt tokens that are believed to be cached at the first choice.
  uint32_t cached_tokens = 0;
  std::string_view address_header;
  std::array<SessionHeader, kMaxSessionHeaders> session_headers{};
  uint32_t num_session_headers = 0;
  // Of kShed: the plugin that refused, as long as the config; "": none of its own.
  Refusal refusal = Refusal::kFilters;
  std::string_view refused_by;
  // Seconds after which asking again may be worth it: until some endpoint has computed what it has, 1 to 30.
  // 0: what refused does not change by waiting.
  uint32_t retry_after = 0;
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
    float score = 0;  // weighted total of the profile that answers; 0 where it was not scored
  };
  struct Drop {
    uint32_t endpoint = 0;
    std::string why;  // "queue 60 >= 50"
  };
  struct Step {
    std::string name;                // of the filter or scorer
    size_t profile = 0;              // number in `profiles`
    std::vector<std::string> reads;  // columns
    size_t in = 0;
    size_t out = 0;
    bool failed = false;  // would have dropped all: its input went on
    std::vector<Drop> drops;
    std::vector<std::pair<uint32_t, float>> scores;  // of a scorer, unweighted
    float weight = 0;
  };
  // Who would have been next, and what made the difference.
  struct RunnerUp {
    uint32_t endpoint = 0;
    std::string decided_by;  // the scorer that made most of it, or the filter that dropped it; "": nobody
    std::string dropped;     // why the filter did; "": it was scored
    // The winner's total beyond its own: by so much its total would have had to rise. 0 and less: the picker
    // drew among those that are equal or close.
    float margin = 0;
    // What decided_by would have had to give it for that; nothing where no score would have been enough.
    std::optional<float> score, needed;
  };
  struct Ran {
    std::string profile;
    std::string picker;
    Rung rung = Rung::kFresh;
    bool shed = false;
    std::vector<uint32_t> choices;             // endpoints, best first
    std::vector<std::optional<float>> totals;  // weighted, by candidate; nothing: dropped before
    std::optional<RunnerUp> runner_up;
  };
  // A column that a plugin made (column.h), by candidate.
  struct Made {
    std::string name;
    Unit unit = Unit::kCount;
    std::vector<float> values;
  };
  std::vector<Candidate> candidates;
  std::vector<Made> columns;
  std::vector<Step> steps;
  std::vector<Ran> profiles;  // in the order in which they ran
  size_t primary = 0;         // of them, the one that answers
  std::string profile;        // its name: "criticality-tree", "default"
  std::string verdict;        // one sentence
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
  float tolerance = 5;          // ms: endpoints whose first tokens are this close are drawn among ...
  float unseen_tolerance = 20;  // ... where the answer will not be shown, so that loads are known less well
  float trust_in_others = 2;
  bool prefix_cache = true;  // what engines are believed to have cached counts (approx-prefix-cache-producer)
  uint32_t max_choices = 3;  // first choice and fallbacks; 1 .. kMaxChoices
  base::Nanos fresh_for = base::kSecond;          // older pages are stale: the ledger decides
  base::Nanos ledger_trust = 30 * base::kSecond;  // no page of anybody for longer: power of two choices
};

// The first value out of its range, with the range.
base::Result<void> CheckOptions(const SchedulerOptions& options);

struct Config;     // config.h
struct ConfigSet;  // config.h
struct Recording;  // recording.h

// Memory of one worker, reused by every decision. Owned by one thread.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  struct Impl;
  Impl& impl() { return *impl_; }
  // How long indexes look is told there from now on; both outlive it.
  void MeasureLookups(const base::Clock& clock, base::Histogram& seconds);

 private:
  std::unique_ptr<Impl> impl_;
};

// Thread-safe. What it decides by may be swapped while it decides.
class Scheduler {
 public:
  // By the built-in config. REQUIRES: options checked with CheckOptions. `started_at`: until ledger_trust
  // later a fleet without scrapes is young, not lost.
  Scheduler(const SchedulerOptions& options, base::Nanos started_at);
  // By a config of the caller's. Of the options count those that say what is seen and how many are chosen.
  Scheduler(const SchedulerOptions& options, base::Nanos started_at, std::shared_ptr<const Config> config);
  ~Scheduler();

  // Decisions that begin from now on go by `configs`. One thread at a time; the old ones are freed once no
  // worker uses them, by a later Swap or FreeUnused.
  void Swap(std::shared_ptr<const ConfigSet> configs);
  void FreeUnused();
  std::shared_ptr<const ConfigSet> configs() const;
  // Computes the snapshot columns (column.h) that decisions on these pools by these configs read, before they
  // are published; without it the first decision of each worker does. As Swap.
  void Prepare(const fleet::Snapshot& snapshot, const ConfigSet& configs);
  // What decides for this pool now. The config is good until the next call with this scratch.
  const Config& ConfigOf(const fleet::PoolSnapshot& pool, Scratch& scratch) const;

  // Picks and reserves in one step. `candidates`: numbers of the endpoints that may be chosen (a subset
  // hint); nullopt is all. REQUIRES: this scheduler outlives `scratch`, or the scratch is not used again.
  // What is null is not made, and costs nothing.
  Outcome Pick(const fleet::PoolSnapshot& pool, const Facts& request,
               std::optional<std::span<const uint32_t>> candidates, base::Nanos now, Scratch& scratch,
               base::Random& random, Explanation* explanation = nullptr,
               Recording* recording = nullptr) const noexcept;

  // What plugins learn from the last decision with this scratch, as far as the pick had no time for it. It is
  // taken before the next one, or lost; runs on any thread; may outlive the scheduler. `prompts`: those of
  // that request.
  static bool HasPutOff(Scratch& scratch) noexcept;
  static std::function<void()> TakePutOff(Scratch& scratch, Prompts prompts);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fairway::scheduling
