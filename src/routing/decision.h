// One decision, kept: what was asked, what was seen (scheduling::Recording), what came of it. It is explained
// when somebody asks, by deciding it again: keeping one costs a copy of a few KB.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "fleet/snapshot.h"
#include "scheduling/recording.h"
#include "scheduling/scheduler.h"

namespace fairway::routing {

// What a pool's endpoints are called, for as long as a decision about them is remembered: a snapshot would
// keep a fleet of 10,000 alive that is long gone.
struct EndpointNames {
  struct Name {
    std::string name;
    std::string address;
  };
  uint64_t content = 0;     // fleet::PoolContent::number; 0: of no fleet
  std::vector<Name> names;  // by number in the pool
  size_t bytes = 0;

  static std::shared_ptr<const EndpointNames> Of(const fleet::PoolSnapshot& pool);
};

// What came of asking a second config (RouterOptions::shadow). kNotCompared: too many candidates to keep a
// picture of.
enum class ShadowOutcome { kAgreed, kOtherEndpoint, kOnlyLiveSheds, kOnlyShadowSheds, kNotCompared };
inline constexpr size_t kShadowOutcomes = 5;
std::string_view ToString(ShadowOutcome outcome);

// What it would have done.
struct ShadowChoice {
  std::shared_ptr<const scheduling::Config> config;
  scheduling::Outcome outcome;
  float wait = 0;       // ms until the first token at its first choice, as far as the load says
  float live_wait = 0;  // the same of what was done
  ShadowOutcome Compare() const;
  bool agrees() const { return Compare() == ShadowOutcome::kAgreed; }
  scheduling::Outcome live;  // what was done, to compare
};

// Owned by one thread at a time. Its memory is used again.
struct Decision {
  static constexpr size_t kMaxText = 200;  // bytes of what clients and manifests write

  base::Nanos at = 0;  // monotonic
  base::Nanos took = 0;
  std::string request_id;
  std::string pool;   // "namespace/name"
  std::string model;  // "" when unknown
  std::string target_model;
  std::string rewrite;    // the InferenceModelRewrite that set the target, "" is none
  std::string objective;  // the InferenceObjective that set the priority, "" is none
  std::string priority;   // "" is 0
  bool declared = false;  // by an InferenceModel
  bool built_in = true;   // the config is
  scheduling::SchedulerOptions options;
  std::shared_ptr<const EndpointNames> names;  // never null once it is filled
  scheduling::Recording seen;
  std::optional<ShadowChoice> shadow;

  // Prompt tokens that the place on the first choice is held for: those that are not believed to be cached;
  // none where another one computes the prompt.
  uint32_t held_tokens() const {
    const scheduling::Outcome& outcome = seen.outcome;
    return outcome.num_further > 0
               ? 0
               : seen.facts.prompt_tokens - std::min(outcome.cached_tokens, seen.facts.prompt_tokens);
  }
  size_t bytes() const;  // about what it keeps, names not counted
  const std::string& Name(uint32_t endpoint) const { return names->names[endpoint].name; }
  const std::string& Address(uint32_t endpoint) const { return names->names[endpoint].address; }
  // "a 10.0.0.1:8000", or the address alone where that is its name.
  std::string NameAndAddress(uint32_t endpoint) const {
    return Name(endpoint) == Address(endpoint) ? Address(endpoint) : Name(endpoint) + " " + Address(endpoint);
  }
};

// Gets decisions. Thread-safe; Add must not wait. Nobody changes the decision as long as it is held.
class DecisionSink {
 public:
  virtual ~DecisionSink() = default;
  virtual void Add(const std::shared_ptr<const Decision>& decision) = 0;
};

// A decision with its reasons, as printers want it.
struct Told {
  const Decision& decision;
  const scheduling::Explanation& explanation;  // empty where nothing was seen
  // False: asked again it was decided otherwise, by a plugin with a memory of its own.
  bool reproduced = true;
};

// Decides it again to learn why. Good while both live.
Told Explain(const Decision& decision, scheduling::Scratch& scratch, scheduling::Explanation& explanation);

// ---- Printers.

// "a 10.0.0.1:8000 refuses connections or answers 503 (last page 3.2 s ago)", of each that was no candidate
// therefore; "" where there is none.
std::string RefusingOf(const Decision& decision);

// One sentence, without a full stop: who won over whom, by what, and what would have had to differ.
std::string Why(const Told& told);
// Why a profile of several chose as it did; the same for one of one.
std::string WhyOf(const Told& told, const scheduling::Explanation::Ran& ran);

// Several lines, the first of them complete in itself, each ended by a newline.
std::string ToText(const Told& told);

// Which candidates a list shows, by position: all, or of too many those that were chosen and the first ones.
std::vector<size_t> Shown(const Told& told, size_t most);

// A number for people, of six digits; "unknown" where it is none.
std::string Short(double value);

}  // namespace fairway::routing
