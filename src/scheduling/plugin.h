// What plugins are. A plugin is one file in plugins/: its parameters with defaults and checks, its formula
// with the source it comes from, and one line in plugin_list.h; its test beside it. It has one role or
// several.
//
//   class ZoneScorer final : public Plugin, public Scorer {
//    public:
//     explicit ZoneScorer(Build& build) : zone_(build.Reads("zone")), near_(build.Number("near", 1, 0, 1)) {}
//     void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override;
//   };
//   std::unique_ptr<Plugin> MakeZoneScorer(Build& build) { return std::make_unique<ZoneScorer>(build); }
//
// Plugins work on positions 0 .. size-1 in columns (column.h). They are immutable, run on many threads at
// once, and neither allocate, lock, throw nor do I/O while a request is decided (Why is the exception: it
// runs only for an explanation). What they remember between requests is a state of build.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "api/engine_pages.h"
#include "base/clock.h"
#include "base/histogram.h"
#include "base/random.h"
#include "fleet/snapshot.h"
#include "payload/parsers.h"
#include "prefix/exact_index.h"
#include "prefix/slot_blocks.h"
#include "scheduling/build.h"
#include "scheduling/column.h"
#include "scheduling/scheduler.h"

namespace fairway::scheduling {

// What a profile gave.
struct ProfileResult {
  bool ran = false;
  bool shed = false;                    // nobody passed its filters
  std::span<const uint32_t> positions;  // chosen, best first
};

// Where an index says how long a look-up took.
struct LookupTimes {
  const base::Clock* clock = nullptr;
  base::Histogram* seconds = nullptr;
};

struct Context {
  const Columns& columns;
  const Facts& request;
  base::Random& random;
  // Requests that may not be shed came lately: there is somebody to protect from those that may.
  bool critical_traffic = true;
  // This picker's open requests, by position; the rest of the column "requests" is others'.
  std::span<const uint32_t> own;
  // Memory of this worker for plugins: Build::PerWorker.
  std::span<const std::shared_ptr<void>> worker;
  // Of the profiles that ran before this one, by number; empty in a config of one profile.
  std::span<const ProfileResult> earlier;
  base::Nanos now = 0;
  std::string_view profile;  // that runs; for hooks the one that answers
  // What the profile that ran first chose first: a position.
  std::optional<uint32_t> peer = std::nullopt;
  // Pages alone tell the load (LoadSource::kPage): `own` is what the reference's plugins take for requests under
  // way, where the column "requests" is what the page shows.
  bool pages_alone = false;
  // Null: nobody wants to know.
  const LookupTimes* lookup_times = nullptr;
  // Whose endpoints Columns::endpoint numbers; null: a decision of another moment is looked at again.
  const fleet::PoolSnapshot* pool = nullptr;

  // Requests under way at a position, for plugins that the reference has.
  float UnderWay(const float* requests, uint32_t position) const noexcept {
    return pages_alone ? static_cast<float>(own[position]) : requests[position];
  }
};

class Plugin {
 public:
  virtual ~Plugin() = default;
};

// ---- Roles.

class Filter {
 public:
  virtual ~Filter() = default;
  // Writes the positions of `in` that stay to `out` (room for in.size(); no overlap) in their order, and
  // returns how many. 0 means that the filter fails: what happens then is its profile's affair.
  virtual size_t Apply(const Context& context, std::span<const uint32_t> in,
                       uint32_t* out) const noexcept = 0;
  // Why `position` was dropped, for people: "queue 60 >= 50".
  virtual std::string Why(const Context& context, uint32_t position) const = 0;
};

class Scorer {
 public:
  virtual ~Scorer() = default;
  // out[i] is the score of position in[i]. What is beyond [0, 1] counts as 0 or 1, what is no number as 0.
  virtual void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept = 0;
};

class Picker {
 public:
  virtual ~Picker() = default;
  // Chooses up to out.size() distinct positions of `in`, best first; scores[i] is the weighted total of
  // in[i]. Returns how many. REQUIRES: in is not empty.
  virtual size_t Pick(const Context& context, std::span<const uint32_t> in, std::span<const float> scores,
                      std::span<uint32_t> out) const noexcept = 0;
  // How many choices a request gets, fallbacks included; 0: as many as SchedulerOptions say.
  virtual uint32_t max_choices() const noexcept { return 0; }
};

// Refuses requests before any profile looks at them. All that a config has are asked.
class Admitter {
 public:
  virtual ~Admitter() = default;
  // False: the request is answered with 429.
  virtual bool Admit(const Context& context) const noexcept = 0;
  // Why it would be refused, for people: "saturation 0.9".
  virtual std::string Why(const Context& context) const = 0;
};

// Makes columns that last for one decision (Build::Makes with Lifetime::kRequest). Runs for each decision,
// before filters, in an order where who reads comes after who makes. The columns are all zero before.
class Producer {
 public:
  virtual ~Producer() = default;
  // `made[column.id]` may be written from 0 to columns.size() - 1.
  virtual void Make(const Context& context, float* const* made) const noexcept = 0;
};

// Makes columns that last as long as the fleet stays (Build::Makes with Lifetime::kSnapshot).
class EndpointProducer {
 public:
  virtual ~EndpointProducer() = default;
  // May allocate: it runs once per endpoint and change of the fleet.
  virtual float Value(Column column, const fleet::Endpoint& endpoint) const = 0;
};

// The header that tells what a profile chose; "": nothing is told, and no place is taken.
struct ToldIn {
  std::string_view header;
  bool all = false;  // all that it chose, separated by commas, instead of the first alone
};

// Which profiles decide a request, and what becomes of their choices. A config of several profiles has one.
class ProfileHandler {
 public:
  virtual ~ProfileHandler() = default;
  // The number of the profile that runs next; nothing: no more does. `results`: by number. Called at most
  // once for each profile, and once more.
  virtual std::optional<size_t> Next(const Context& context,
                                     std::span<const ProfileResult> results) const noexcept = 0;
  // The profile whose choices answer the request. One that gave nothing sheds the request.
  virtual size_t Primary(std::span<const ProfileResult> results) const noexcept = 0;
  // Of another profile than the one that answers.
  virtual ToldIn TellOf(size_t profile) const noexcept {
    static_cast<void>(profile);
    return {};
  }
  // Its further places are stages of a request, told in kPrefillHeader and kEncodeHeader: metrics count which
  // were chosen.
  virtual bool has_stages() const noexcept { return false; }
  // Not 0: destinations have this port instead of their own, and `header` tells the first choice's own
  // address.
  struct Port {
    uint16_t port = 0;
    std::string_view header;
  };
  virtual Port PortOfAll() const noexcept { return {}; }
};

// Tells of profiles that the profile handler tells nothing of.
class ProfileTeller {
 public:
  virtual ~ProfileTeller() = default;
  virtual ToldIn TellOf(size_t profile) const noexcept = 0;
};

// Whether a further profile is worth running, given the one that answers.
class Decider {
 public:
  virtual ~Decider() = default;
  virtual bool Wants(const Context& context, uint32_t position) const noexcept = 0;
};

// How full the pool is: from 1 on, requests that may be shed are.
class SaturationDetector {
 public:
  virtual ~SaturationDetector() = default;
  virtual float Saturation(const Context& context) const noexcept = 0;
};

// What a server's answer told of its prefix cache, beside what was believed.
struct CacheTold {
  uint64_t believed_tokens = 0;  // of prompt_estimate
  uint64_t prompt_estimate = 0;
  uint64_t cached_tokens = 0;  // of prompt_tokens
  uint64_t prompt_tokens = 0;
};

// Hears what becomes of requests, on the worker's thread.
class RequestHook {
 public:
  virtual ~RequestHook() = default;
  // It goes to the endpoint at `position`.
  virtual void Picked(const Context&, uint32_t /*position*/, const fleet::Endpoint&) const noexcept {}
  // Before that, for each further profile that chose: what it chose first.
  virtual void PickedBeside(const Context&, std::string_view /*profile*/, uint32_t /*position*/,
                            const fleet::Endpoint&) const noexcept {}
  // Whether Picked left work that belongs behind the answer.
  virtual bool HasPutOff(std::span<const std::shared_ptr<void>> /*worker*/) const noexcept { return false; }
  // That work. It runs once, on any thread, and keeps alive itself what it needs. What it throws for want of
  // memory ends it.
  virtual std::function<void()> TakePutOff(std::span<const std::shared_ptr<void>> /*worker*/,
                                           const std::shared_ptr<const Prompts>& /*of_request*/) const {
    return {};
  }
  // The answer is complete, and says what was cached. The config may be another one than at the pick.
  virtual void Told(const fleet::EndpointCell&, const CacheTold&, base::Nanos /*now*/) const noexcept {}
};

// What a plugin believes of engines' prefix caches, for pages and metrics. Any thread.
class PrefixBelief {
 public:
  struct Size {
    uint64_t tokens = 0;    // believed to be cached
    uint64_t capacity = 0;  // at most
  };
  struct Totals {
    uint64_t entries = 0;  // blocks at endpoints
    uint64_t blocks = 0;   // different ones
    uint64_t bytes = 0;
    uint64_t most_bytes = 0;
    uint64_t inserted = 0;  // since the start, as the rest
    uint64_t evicted = 0;
    uint64_t refused = 0;   // found no room
    uint64_t given_up = 0;  // reads that met a writer too often
  };
  virtual ~PrefixBelief() = default;
  // Nothing: it is not known.
  virtual std::optional<Size> SizeOf(const fleet::EndpointCell& cell) const = 0;
  virtual Totals totals() const = 0;
};

struct EngineView {
  std::string_view known;     // "all", "some" or "nothing" of what it holds
  uint64_t blocks = 0;        // in the index, of all its engines; pages that are smaller count each
  uint64_t block_tokens = 0;  // of ours
  uint64_t engines = 0;       // data-parallel ones
  uint64_t asked = 0;         // prompts since what it told last matched,
  uint64_t told = 0;          // and beginnings of prompts that it told since
  std::string why_unmatched;  // "": it matches, or it is too early to say
};

// Hears what engines themselves say of their caches. Any thread.
class CacheHook {
 public:
  virtual ~CacheHook() = default;
  // It holds nothing.
  virtual void Emptied(const fleet::EndpointCell&) const noexcept {}
  // So many prompt tokens and no more: found out, whatever its page says.
  virtual void Keeps(const fleet::EndpointCell&, uint64_t /*tokens*/) const noexcept {}
  // Blocks that it has stored or removed. `rank`: of the engine, where a server is several.
  virtual void Stored(const fleet::EndpointCell&, int64_t /*rank*/,
                      const prefix::StoredBlocks&) const noexcept {}
  virtual void Removed(const fleet::EndpointCell&, int64_t /*rank*/, std::span<const uint64_t> /*blocks*/,
                       std::string_view /*tier*/) const noexcept {}
  // Whether all that it holds was told.
  virtual void Knows(const fleet::EndpointCell&, bool /*all*/) const noexcept {}
  // What it tells does not match what it is asked: why, for people. "": it does, or it is too early to say.
  virtual std::string WhyUnmatched(const fleet::EndpointCell&) const { return {}; }
  // What is known of its cache by what it told, for pages. Nothing: this is not about what engines tell.
  virtual std::optional<EngineView> View(const fleet::EndpointCell&) const { return std::nullopt; }
  // From time to time.
  virtual void Tick(base::Nanos /*now*/) const noexcept {}
};

// Keeps what was placed where, which other replicas of this picker want to know. Thread-safe.
class Placements {
 public:
  static constexpr size_t kMostHeld = 64 << 10;  // blocks
  // What an endpoint is believed to hold: for a replica that knows nothing yet.
  struct Held {
    uint64_t reported = 0;                         // blocks that it says it can hold, and
    uint64_t capacity = 0;                         // can as answers have it; 0: not known
    std::vector<prefix::SlotBlocks::Link> blocks;  // newest first, at most kMostHeld
  };
  virtual ~Placements() = default;
  virtual Held Export(const fleet::EndpointCell& cell) const = 0;
  virtual void Import(const fleet::EndpointCell& cell, const Held& held) const = 0;
  // Whether anybody wants to know.
  virtual void SetTelling(bool telling) const noexcept = 0;
  // Something was placed since the last call, anywhere.
  virtual bool HasUntold() const noexcept = 0;
  // What was placed there since the last call: chains of hashes, each behind its length.
  virtual void TakeUntold(const fleet::EndpointCell& cell, std::vector<uint64_t>& out) const = 0;
  // Another replica placed this there.
  virtual void PlacedByPeer(const fleet::EndpointCell& cell,
                            std::span<const uint64_t> chain) const noexcept = 0;
};

// Wants the KV events of the endpoints that it is there for: where they are published.
class KvEventsReader {
 public:
  struct Where {
    bool dials = true;           // Pods are asked; else they only come by themselves
    std::string central_host;    // where Pods may dial: an IP literal,
    uint16_t central_port = 0;   // and a port of ours; 0: nowhere
    uint16_t port = 0;           // of a Pod's first endpoint, the next one's is one higher, and so on
    uint16_t replay_port = 0;    // the same; 0: what was missed is not asked for
    std::string topic;           // begins with it
    std::string namespace_name;  // "": any
    std::map<std::string, std::string> labels;  // that an endpoint must have
    uint64_t reader = 0;  // another one hears nothing of what was told before it: it is told from the start
  };
  virtual ~KvEventsReader() = default;
  // Null: it wants none.
  virtual const Where* kv_events() const noexcept = 0;
};

// Says how engines' metrics pages are read.
class PageSettings {
 public:
  virtual ~PageSettings() = default;
  virtual const std::shared_ptr<const api::EnginePages>& pages() const noexcept = 0;  // never null
  // Some engine's page has an attribute of this name: the column "NAME/INSTANCE" is made of it.
  virtual bool HasAttribute(std::string_view name) const noexcept = 0;
};

// An index by the tokens of prompts, for metrics. Any thread.
class ExactBelief {
 public:
  struct Totals {
    uint64_t admissions = 0;  // blocks that engines told of, since the start, as the rest
    uint64_t evictions = 0;
    uint64_t lookups = 0;
    uint64_t hits = 0;    // blocks, of each lookup where most were found
    uint64_t blocks = 0;  // now: different ones,
    uint64_t held = 0;    // and at all engines together
    uint64_t bytes = 0;
    uint64_t most_bytes = 0;
    uint64_t refused = 0;  // found no room, since the start
  };
  virtual ~ExactBelief() = default;
  virtual Totals totals() const = 0;
};

// Where requests' prompts are made tokens: a render server of vLLM.
class TokenSource {
 public:
  struct Where {
    std::string host;
    uint16_t port = 80;
    std::string path;   // before /v1/...
    std::string model;  // that it is asked for; "": the request's
    base::Nanos timeout = 5 * base::kSecond;
    base::Nanos media_timeout = 30 * base::kSecond;  // of prompts with images and the like
    bool operator==(const Where&) const = default;
  };
  virtual ~TokenSource() = default;
  // Null: nobody is asked.
  virtual const Where* token_source() const noexcept = 0;
};

// Names a header of the answer that tells the client which endpoint it had (session_token.h).
class SessionTeller {
 public:
  virtual ~SessionTeller() = default;
  virtual std::string_view TokenHeader() const noexcept = 0;  // "": none
  // Whose choice is told; "": that of the profile that answers. One that chose nothing: nothing is told.
  virtual std::string_view TokenProfile() const noexcept = 0;
};

// Wants answers to name the endpoint that gave them, in kServedHeader.
class ServedTeller {
 public:
  virtual ~ServedTeller() = default;
};
inline constexpr std::string_view kServedHeader = "x-conformance-test-served-endpoint";

// Reads bodies, where the config lists it.
class BodyParser {
 public:
  virtual ~BodyParser() = default;
  virtual payload::Parser parser() const noexcept = 0;
};

// A text that it finds in requests, for other plugins: a session's id.
class RequestText {
 public:
  virtual ~RequestText() = default;
  virtual std::string_view TextOf(const Facts& request) const noexcept = 0;  // "": it has none
  // It is the fairness id of requests that have none.
  virtual bool names_flow() const noexcept { return false; }
};

// ---- The list of all types (builtin_plugins.cc).

enum class Stability : uint8_t { kOurs, kBeta, kAlpha, kDeprecated };

struct PluginType {
  std::string_view type;
  std::unique_ptr<Plugin> (*make)(Build&) = nullptr;
  Stability stability = Stability::kOurs;  // as the reference marks it; kOurs: the reference has no such type
  // Columns, with spaces between them: who reads one and has nobody that makes it gets a plugin of this type.
  std::string_view makes = {};
  // Of one that the reference deprecates: what to use instead, and the release of the reference that drops
  // it.
  std::string_view successor = {};
  std::string_view removal = {};
};

// A type of the reference that is left out here on purpose: why. "": it is none.
std::string_view WhyLeftOut(std::string_view type);

// A type of the reference that never looks at its parameters: what it does not know is a warning.
bool LeavesParametersUnread(std::string_view type);

std::span<const PluginType> BuiltinPlugins();

}  // namespace fairway::scheduling
