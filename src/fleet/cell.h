// What is known of one model server right now: its last page, and the work that we gave it (load.h says how
// both make its load).
//
// A cell is a few cache lines of atomics. It outlives snapshots: a page or a pick rebuilds nothing. One
// thread (the control loop) writes pages; any thread reserves, releases and reads. What every decision
// reads lies elsewhere, beside that of the other cells (load.h). Fields are read one by one with relaxed
// loads, so a reader may see adapters of this page beside a queue of the last: each is true, and the
// difference is one scrape interval.
//
// Invariants, at any moment when no call is under way and no counter has saturated:
//   own    = reservations that were not released
//   work   = the tokens of those among them whose place is Place::kCounted, + tokens that peers told
//   others = what the last page showed beyond our own requests and those that peers told, + those detached
//            since, + requests that peers told
// Each is kept by a single compare-and-swap of the word that holds it, which adds or takes exactly what the
// reservation says; a reservation is released once, so nothing is given back twice, and `own` and `work` are
// 0 when all are. A page writes `others` and never `own`. (fleet_test.cc walks at random against a plain
// model.)
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "fleet/load.h"
#include "fleet/page_attributes.h"

namespace fairway::fleet {

// Adapter names are interned per pool (PoolSnapshot::adapters); this many can be told apart at one time.
inline constexpr uint32_t kMaxAdapters = 512;
inline constexpr uint32_t kNoAdapter = UINT32_MAX;

using AdapterSet = std::array<uint64_t, kMaxAdapters / 64>;
inline void AddAdapter(AdapterSet& set, uint32_t id) { set[id / 64] |= uint64_t{1} << (id % 64); }

// Is a slot empty, so that loading another adapter costs none its place? As far as is believed; room on the
// page says that a slot is not in use now.
struct AdapterSlots {
  enum State : uint32_t {
    kUntold,  // no page has said anything of adapters: vLLM's does so from its first request on
    kTried,   // as before, but one was sent there: an engine without LoRA will never tell
    kFull,
    kFree,
  };
  State state = kUntold;
  uint32_t max = 0;  // EndpointCell::lora_max()
};

// One good page's worth of signals. What the page did not have is unknown from now on.
struct Signals {
  std::optional<uint32_t> waiting;  // requests queued in the engine
  std::optional<uint32_t> running;  // requests in the engine's batch
  std::optional<float> kv_usage;    // 0..1
  struct Lora {
    AdapterSet running{};         // adapters resident and in use
    AdapterSet waiting{};         // adapters that queued requests wait for
    uint32_t resident_count = 0;  // |running|, also those beyond kMaxAdapters
    uint32_t waiting_count = 0;
    uint32_t max = 0;        // slots; 0 means no room, as in the reference
    bool restarted = false;  // the engine lost what it had loaded
  };
  std::optional<Lora> lora;
  std::optional<uint32_t> block_size;  // tokens per KV block
  std::optional<uint32_t> num_blocks;
  // The engine has these and this page did not say them, or not of each of a server's engines: what is there
  // is not all. Decisions then take the endpoint as loaded as the others on average, never as empty.
  bool load_unknown = false;  // waiting, running or both
  bool kv_unknown = false;
};

// What an engine says of itself with an answer: the gauges of its page at that moment, and no more than these.
struct AnswerLoad {
  std::optional<uint32_t> waiting;  // requests queued in the engine
  std::optional<float> kv_usage;    // 0..1
};

// Open requests of one replica or several, and their prompt tokens that are still to be computed.
struct OpenLoad {
  uint32_t requests = 0;
  uint32_t tokens = 0;
  bool operator==(const OpenLoad&) const = default;
};

// A place taken on an endpoint by one request of ours. A plain value; given back exactly once with
// EndpointCell::Release.
struct Reservation {
  // Where the request's prompt tokens are kept until its first token.
  enum class Place : uint8_t {
    kNone,     // nowhere (any more)
    kCounted,  // in EndpointLoad::work: FirstToken or Release takes them away
    kUnseen,   // in EndpointLoad::unseen: they wear off
  };
  uint32_t tokens = 0;     // uncached prompt tokens
  uint32_t ahead = 0;      // tokens that had to be computed before this request's first one, its own included
  uint32_t picked_at = 0;  // Millis
  Place place = Place::kNone;
};

enum class ReleaseKind {
  kEnded,     // we saw the request end (or never start): its load is gone
  kDetached,  // we stopped watching while it may still run: pages will tell
};

// How many things happened in the last `kWindow`, each counted `count` times: a sliding window of two
// buckets, good to a tenth or so. Thread-safe.
class RecentCount {
 public:
  static constexpr uint32_t kWindow = 250;              // ms
  static constexpr uint32_t kMost = 0xffff;             // of a bucket
  void Add(uint32_t now, uint32_t count = 1) noexcept;  // now: Millis
  uint32_t Get(uint32_t now) const noexcept;

 private:
  std::atomic<uint64_t> word_{
      0};  // from the low end: this bucket 16, the one before 16, number of this one 32
};

// Thread-safe as said at each function.
class alignas(64) EndpointCell {
 public:
  // Its load lies in `slab`, by those of the cells made just before and after it.
  explicit EndpointCell(std::shared_ptr<LoadSlab> slab) : load_(&slab->Take()), slab_(std::move(slab)) {}
  // Alone, with a slab of its own.
  EndpointCell() : EndpointCell(std::make_shared<LoadSlab>()) {}
  ~EndpointCell();
  EndpointCell(const EndpointCell&) = delete;
  EndpointCell& operator=(const EndpointCell&) = delete;

  // ---- The control loop.
  // Call when the page is asked for: it can show no request that comes later.
  void BeginScrape(base::Nanos now) noexcept;
  // The page came. REQUIRES: `now` never goes back.
  void ApplyScrape(const Signals& signals, base::Nanos now);
  // Whether uncached prompt tokens that wait there are worth asking for: only where others' requests are.
  bool wants_waiting_tokens() const noexcept { return others() != 0; }
  // Call when they are asked for.
  void BeginWaitingTokens() noexcept { tokens_asked_ = load_->own_work().tokens; }
  // They came: of all clients' requests together. For as long as they come, they stand instead of what
  // ApplyScrape supposes of others' prompts. REQUIRES: `now` never goes back.
  void ApplyWaitingTokens(uint64_t tokens, base::Nanos now) noexcept;
  // Whether the server's system refused or reset the last connection: that is kNoConnection.
  void SetRefusing(bool refusing) noexcept { SetRefusing(kNoConnection, refusing); }
  // A good page came from the port that requests go to: its 503 are over, as far as the page can say.
  void PageIsGood() noexcept;

  // ---- Any thread.
  // Takes a place if our own requests are as many as when the decision looked (`own`): so that two workers
  // which picked the same least loaded endpoint at once do not both get it. Nothing when they are not.
  // `place`: kCounted where somebody will call FirstToken, kUnseen where nobody will.
  std::optional<Reservation> TryReserve(uint32_t own, uint32_t tokens, base::Nanos now,
                                        Reservation::Place place = Reservation::Place::kCounted) noexcept;
  Reservation Reserve(uint32_t tokens, base::Nanos now,
                      Reservation::Place place = Reservation::Place::kCounted) noexcept;
  // The first token of a streamed answer came: the prompt is computed, and the engine's rate is learned from
  // how long that took. Without effect for a reservation that is not kCounted.
  void FirstToken(Reservation& reservation, base::Nanos now) noexcept;
  void Release(const Reservation& reservation, ReleaseKind kind, base::Nanos now) noexcept;
  // This server answered 503, or the gateway did in its place as it cannot be had.
  void NoteUnavailable(base::Nanos now) noexcept;
  // It answered something else.
  void NoteAnswered() noexcept {
    if (answers_.load(std::memory_order_relaxed) != 0) [[unlikely]]
      ForgetUnavailable();
  }
  // An answer told it: instead of what the page said. How many run is not told, so it says nothing of how many
  // requests others have here. (Replays: whether what waits beyond all known ones is taken for others' changes
  // nothing with several pickers, and is 4 % worse with one, whose own last ones still show.)
  void ApplyAnswer(const AnswerLoad& told, base::Nanos now) noexcept;
  // A request for this adapter goes here: it will be in device memory.
  void UseAdapter(uint32_t id, base::Nanos now) noexcept;

  // Another replica of this picker says that it has `now` here, in place of the `before` that it said last.
  // It knows sooner than any page.
  void ReplaceTold(const OpenLoad& before, const OpenLoad& now) noexcept;
  // What this one has here, to tell others: without what they told.
  OpenLoad ToTell(base::Nanos now) const noexcept;
  // Another replica learned that a prompt token takes so long: this one's first guess, where it learned
  // nothing yet.
  void AdoptRate(float ms_per_token) noexcept;

  // All our requests on this endpoint that have not ended and are watched.
  uint32_t own() const noexcept { return load_->requests().own; }
  uint32_t others() const noexcept { return load_->requests().others; }
  // What is still to be computed before a new prompt's turn comes, in milliseconds.
  float work_ms(base::Nanos now) const noexcept;
  // Milliseconds for a prompt token as learned here; 0: nothing was learned.
  float ms_per_token() const noexcept { return load_->own_work().ms_per_token; }

  // Such an endpoint is taken only where nothing else is left. Slowness is not that. Two kinds of evidence:
  // its system refuses connections (until one is taken), or its last kUnavailableInARow answers were 503. The
  // latter ends with any other answer, with a good page that was asked for later, or after kUnavailableFor
  // where no page says anything; then one more 503 is enough. So no client can keep a server from others by
  // what it makes the server answer: any answer to others, or the next page, puts it back.
  enum Evidence : uint8_t { kNoConnection = 1, kUnavailable = 2 };
  static constexpr uint32_t kUnavailableInARow = 3;
  static constexpr base::Nanos kUnavailableFor = 10 * base::kSecond;
  bool refusing() const noexcept { return refusing_.load(std::memory_order_relaxed) != 0; }

  // What a decision reads; lives as long as the cell.
  const EndpointLoad& load() const noexcept { return *load_; }

  // The last page's values; 0 before the first. More than ScrapedLoad has room for counts as that.
  uint32_t waiting() const noexcept { return load_->last().waiting; }
  uint32_t running() const noexcept { return load_->last().running; }
  float kv_usage() const noexcept { return std::max(load_->last().kv_usage, 0.0f); }
  uint32_t block_size() const noexcept { return block_size_.load(std::memory_order_relaxed); }
  uint32_t num_blocks() const noexcept { return num_blocks_.load(std::memory_order_relaxed); }
  // When the last good page came; 0: never.
  base::Nanos scraped_at() const noexcept { return scraped_at_.load(std::memory_order_relaxed); }
  // When a page last had each signal; 0: never.
  base::Nanos waiting_at() const noexcept { return waiting_at_.load(std::memory_order_relaxed); }
  base::Nanos running_at() const noexcept { return running_at_.load(std::memory_order_relaxed); }
  base::Nanos kv_usage_at() const noexcept { return kv_usage_at_.load(std::memory_order_relaxed); }

  bool adapter_running(uint32_t id) const noexcept {
    return id < kMaxAdapters && Has(adapters_[id / 64].running, id);
  }
  bool adapter_waiting(uint32_t id) const noexcept {
    return id < kMaxAdapters && Has(adapters_[id / 64].waiting, id);
  }
  // Believed to be in device memory: among the lora_max() that were used last. A page names only adapters
  // whose requests run now.
  bool adapter_resident(uint32_t id) const noexcept {
    return id < kMaxAdapters && Has(adapters_[id / 64].resident, id);
  }
  AdapterSlots adapter_slots() const noexcept { return slots_.load(std::memory_order_relaxed); }
  // What these read of an adapter, for who asks for it ahead. REQUIRES: id < kMaxAdapters.
  const void* adapter_line(uint32_t id) const noexcept { return &adapters_[id / 64]; }
  // Adapters running or waited for, as of the last page.
  uint32_t lora_used() const noexcept { return lora_used_.load(std::memory_order_relaxed); }
  uint32_t lora_max() const noexcept { return lora_max_.load(std::memory_order_relaxed); }
  // What a config has the page asked for; null: nothing was ever said. The control loop's SetAttribute makes it.
  const PageAttributes* attributes() const noexcept { return attributes_.load(std::memory_order_acquire); }
  void SetAttribute(uint64_t key, float value);
  void ForgetAttributes() noexcept;
  // lora_used() < lora_max(), as of the last page.
  bool lora_has_room() const noexcept { return load_->last().lora_room; }

 private:
  struct AdapterWords {
    std::atomic<uint64_t> running{0};
    std::atomic<uint64_t> waiting{0};
    std::atomic<uint64_t> resident{0};
  };
  using UseTimes = std::array<std::atomic<uint32_t>, kMaxAdapters>;  // Millis
  static bool Has(const std::atomic<uint64_t>& word, uint32_t id) noexcept {
    return (word.load(std::memory_order_relaxed) >> (id % 64) & 1) != 0;
  }
  static void Set(std::atomic<base::Nanos>& at, bool known, base::Nanos now) noexcept {
    if (known) at.store(now, std::memory_order_relaxed);
  }

  static constexpr uint32_t kUnseenUnit = 16;  // a million tokens within the window before it saturates
  // Pages after which what was told last no longer counts.
  static constexpr uint32_t kUntoldPages = 3;

  void SupposeWaitingTokens(uint32_t others, uint32_t millis) noexcept;
  void ApplyLora(const Signals::Lora& lora, base::Nanos now);
  void LoadAdapter(uint32_t id, UseTimes& used) noexcept;
  void CountSlots(bool restarted) noexcept;
  void SetSlots(uint32_t loaded) noexcept;
  uint32_t AddWork(uint32_t tokens) noexcept;  // returns what there is now
  void TakeWork(uint32_t tokens) noexcept;
  void AddUnseen(uint32_t tokens, uint32_t now) noexcept;
  void Learn(uint32_t tokens, uint32_t ms) noexcept;
  void SetRate(float ms_per_token) noexcept;
  void SetRefusing(Evidence evidence, bool refusing) noexcept;
  void ForgetUnavailable() noexcept;
  void TryAgain(uint64_t answers) noexcept;

  EndpointLoad* const load_;
  const std::shared_ptr<LoadSlab> slab_;
  // Picks and detached requests that a page need not show yet.
  RecentCount picked_;
  RecentCount detached_;
  RecentCount unseen_;  // the same of prompt tokens whose first token nobody shows us, in kUnseenUnit
  // Learn: prompt tokens and milliseconds of the last first tokens, as two floats; older ones weigh less.
  std::atomic<uint64_t> learned_{0};
  std::atomic<float> mean_prompt_{0};  // tokens, of the last own requests
  std::atomic<base::Nanos> scraped_at_{0};
  std::atomic<base::Nanos> waiting_at_{0};
  std::atomic<base::Nanos> running_at_{0};
  std::atomic<base::Nanos> kv_usage_at_{0};
  std::atomic<uint32_t> lora_used_{0};
  std::atomic<uint32_t> lora_max_{0};
  std::atomic<uint32_t> block_size_{0};
  std::atomic<uint32_t> num_blocks_{0};
  std::atomic<uint8_t> refusing_{0};  // Evidence
  std::atomic<uint64_t> answers_{0};  // from the low end: 503 in a row 32, the last one's Millis 32
  // As of BeginScrape; of the control loop.
  uint32_t own_asked_ = 0;
  uint32_t settled_asked_ = 0;
  uint32_t told_asked_ = 0;
  uint32_t asked_at_ = 0;                 // Millis
  uint32_t tokens_asked_ = 0;             // own work, as of BeginWaitingTokens
  uint32_t pages_untold_ = kUntoldPages;  // since waiting tokens were told
  mutable std::mutex telling_;            // ReplaceTold and pages: both write what others have
  OpenLoad told_;                         // by all peers together
  // Made when a page first names adapters; null for servers without.
  std::atomic<UseTimes*> used_{nullptr};
  std::atomic<PageAttributes*> attributes_{nullptr};
  std::mutex loading_;  // one adapter is loaded at a time, which takes the engine far longer
  // All sets side by side: a decision asks them for the same adapter; beside the first 128 what it asks each time.
  alignas(64) std::atomic<AdapterSlots> slots_{AdapterSlots{}};
  std::array<AdapterWords, kMaxAdapters / 64> adapters_{};
};

}  // namespace fairway::fleet
