#include "scheduling/scheduler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"
#include "scheduling/plugins/lanes.h"
#include "scheduling/program.h"

namespace fairway::scheduling {

std::string_view ToString(Rung rung) {
  switch (rung) {
    case Rung::kFresh:
      return "fresh";
    case Rung::kLedger:
      return "ledger";
    case Rung::kPowerOfTwo:
      return "power-of-two";
    case Rung::kAnyReady:
      return "any-ready";
  }
  return "";
}

base::Result<void> CheckOptions(const SchedulerOptions& o) {
  const auto fail = [](std::string_view what, double value, std::string_view range) {
    return base::Fail(base::ErrorCode::kInvalidArgument,
                      std::string(what) + " must be " + std::string(range) + ", not " + Short(value));
  };
  if (!(o.critical_queue_limit >= 0 && o.critical_queue_limit <= 1e9f)) {
    return fail("critical queue limit", o.critical_queue_limit, "from 0 to 1e9");
  }
  if (!(o.sheddable_queue_limit >= 0 && o.sheddable_queue_limit <= 1e9f)) {
    return fail("sheddable queue limit", o.sheddable_queue_limit, "from 0 to 1e9");
  }
  if (!(o.sheddable_kv_limit >= 0 && o.sheddable_kv_limit <= 1)) {
    return fail("sheddable KV limit", o.sheddable_kv_limit, "from 0 to 1");
  }
  if (!(o.lora_exploration >= 0 && o.lora_exploration <= 1)) {
    return fail("LoRA exploration share", o.lora_exploration, "from 0 to 1");
  }
  for (const float weight : {o.queue_weight, o.kv_weight, o.lora_weight, o.running_weight}) {
    if (!std::isfinite(weight)) return fail("scorer weight", weight, "a finite number");
  }
  if (o.max_choices < 1 || o.max_choices > kMaxChoices)
    return fail("number of choices", o.max_choices, "from 1 to 8");
  return {};
}

struct alignas(64) Scratch::Impl {
  // What every decision needs is on one cache line: inside a proxy the last decision's lines are long gone.
  size_t capacity = 0;
  float* queue = nullptr;
  float* running = nullptr;
  float* kv_usage = nullptr;
  float* scraped_queue = nullptr;
  float* total = nullptr;
  uint32_t* all = nullptr;  // 0, 1, 2, ...: never written again

  uint8_t* no_lora = nullptr;  // zeros: never written again
  uint8_t* lora = nullptr;
  uint8_t* fresh = nullptr;     // only where not all are
  uint32_t* pending = nullptr;  // only where not all are fresh
  float* score = nullptr;
  uint32_t* list[2] = {};
  uint32_t* eligible = nullptr;
  std::vector<const fleet::EndpointCell*> cells;  // of a subset
  std::vector<const fleet::EndpointLoad*> loads;  // of a subset, filled up as PoolSnapshot::loads

  // The columns one after the other: those of a small pool are a few cache lines.
  std::vector<uint32_t> numbers;
  std::vector<float> floats;
  std::vector<uint8_t> bytes;

  [[gnu::noinline, gnu::cold]] void Grow(size_t n) {
    capacity = (n + 7) / 8 * 8;
    numbers.assign(5 * capacity, 0);
    floats.assign(6 * capacity, 0);
    bytes.assign(3 * capacity, 0);
    const auto place = [this](auto& memory, auto... columns) {
      auto* next = memory.data();
      for (auto** column : {columns...}) {
        *column = next;
        next += capacity;
      }
    };
    place(numbers, &all, &list[0], &list[1], &eligible, &pending);
    place(floats, &queue, &running, &kv_usage, &scraped_queue, &total, &score);
    place(bytes, &fresh, &lora, &no_lora);
    std::iota(all, all + capacity, 0u);
  }

  Columns Views(std::span<const uint32_t> endpoint, uint8_t lora_bits) const {
    const size_t n = endpoint.size();
    return {.endpoint = endpoint,
            .queue = {queue, n},
            .scraped_queue = {scraped_queue, n},
            .running = {running, n},
            .kv_usage = {kv_usage, n},
            .lora = {lora_bits != 0 ? lora : no_lora, n},
            .lora_bits = lora_bits};
  }

  // Fills cells and loads, for passes that know nothing of subsets.
  [[gnu::noinline]] void FindSubset(const fleet::PoolSnapshot& pool, std::span<const uint32_t> candidates) {
    cells.clear();
    loads.clear();
    for (const uint32_t number : candidates) {
      cells.push_back(pool.cells[number]);
      loads.push_back(pool.loads[number]);
    }
    while (loads.size() % fleet::PoolSnapshot::kLoadsAtOnce != 0) loads.push_back(loads.back());
  }
};

Scratch::Scratch() : impl_(std::make_unique<Impl>()) {}
Scratch::~Scratch() = default;

struct Scheduler::Impl {
  Impl(const SchedulerOptions& o, base::Nanos start, Program with, Program without)
      : options(o), started_at(start), with_models(std::move(with)), without_models(std::move(without)) {}

  SchedulerOptions options;
  base::Nanos started_at;
  Program with_models;
  Program without_models;

  // The candidates of one decision, and what their signals are worth as a whole.
  struct Gathered {
    const fleet::EndpointCell* const* cells;
    const fleet::EndpointLoad* const* loads;
    size_t n;
    size_t fresh = 0;
    base::Nanos newest = 0;  // scrape; known where none is fresh
    uint8_t lora_bits = 0;   // those that are set somewhere
  };

  void Gather(const fleet::PoolSnapshot& pool, const Request& request, base::Nanos now, Scratch::Impl& s,
              Gathered& gathered) const noexcept;
  static bool GatherFresh(Scratch::Impl& s, Gathered& gathered) noexcept;
  static bool GatherAny(const fleet::PoolSnapshot& pool, base::Nanos oldest_fresh, Scratch::Impl& s,
                        Gathered& gathered) noexcept;
  static uint8_t GatherLora(uint32_t adapter, Scratch::Impl& s, const Gathered& gathered) noexcept;
  // Gives stale endpoints the average load of the `fresh` ones.
  static void FillStale(size_t n, size_t fresh, Scratch::Impl& s) noexcept;
  static size_t DrawTwo(size_t n, const Scratch::Impl& s, base::Random& random, std::span<uint32_t> positions,
                        size_t wanted) noexcept;

  // What a program's filters leave.
  struct Left {
    std::span<const uint32_t> in;
    std::span<const uint32_t> eligible;  // as fallbacks
    bool shed = false;
  };
  static Left Narrow(const Program& program, const Context& context, Scratch::Impl& s,
                     Explanation* explanation);
  static void Score(const Program& program, const Context& context, std::span<const uint32_t> in,
                    Scratch::Impl& s, Explanation* explanation);
  static size_t Run(const Program& program, const Context& context, Scratch::Impl& s,
                    std::span<uint32_t> choices, bool& shed, Explanation* explanation);
  static void TellCandidates(const Program& program, const Columns& columns, const Gathered& gathered,
                             base::Nanos now, const Scratch::Impl& s, Explanation& explanation);
  static void FillFallbacks(const Columns& columns, std::span<const uint32_t> eligible,
                            std::span<uint32_t> choices, size_t& count) noexcept;
};

namespace {

// ---- What an explanation says. It allocates, and is made only when somebody asks.

[[gnu::noinline, gnu::cold]] void TellFilter(const Filter& filter, const Context& context,
                                             std::span<const uint32_t> in, std::span<const uint32_t> kept,
                                             Explanation& explanation) {
  Explanation::Step& told = explanation.steps.emplace_back();
  told.name = filter.type();
  told.in = in.size();
  told.out = kept.size();
  told.failed = kept.empty();
  for (const uint32_t position : in) {
    if (std::find(kept.begin(), kept.end(), position) != kept.end()) continue;
    told.drops.push_back({context.columns.endpoint[position], filter.Why(context, position)});
  }
}

// `score`: room for in.size() of them.
[[gnu::noinline, gnu::cold]] void TellScorer(const Scorer& scorer, float weight, const Context& context,
                                             std::span<const uint32_t> in, float* score,
                                             Explanation& explanation) {
  scorer.Score(context, in, score);
  Explanation::Step& told = explanation.steps.emplace_back();
  told.name = scorer.type();
  told.in = told.out = in.size();
  told.weight = weight;
  for (size_t i = 0; i < in.size(); ++i) told.scores.emplace_back(context.columns.endpoint[in[i]], score[i]);
}

}  // namespace

[[gnu::noinline, gnu::cold]] void Scheduler::Impl::TellCandidates(const Program& program,
                                                                  const Columns& columns,
                                                                  const Gathered& gathered, base::Nanos now,
                                                                  const Scratch::Impl& s,
                                                                  Explanation& explanation) {
  explanation = {};
  explanation.profile = program.name;
  for (size_t i = 0; i < gathered.n; ++i) {
    const base::Nanos scraped_at = gathered.cells[i]->scraped_at();
    const uint8_t lora = columns.lora[i];
    explanation.candidates.push_back({
        .endpoint = columns.endpoint[i],
        .queue = columns.queue[i],
        .scraped_queue = columns.scraped_queue[i],
        .running = columns.running[i],
        .kv_usage = columns.kv_usage[i],
        .adapter = (lora & kLoraRunning) != 0   ? "resident"
                   : (lora & kLoraWaiting) != 0 ? "waiting"
                   : (lora & kLoraRoom) != 0    ? "room"
                                                : "none",
        .fresh = gathered.fresh == gathered.n || s.fresh[i] != 0,
        .age = scraped_at != 0 ? now - scraped_at : 0,
        .scraped = scraped_at != 0,
    });
  }
}

// A stale endpoint's scrape no longer says how long its queue is: it counts as loaded as the average of those
// that are fresh (so that it neither attracts all requests nor is shut out), or by our own requests where
// nobody is fresh. It never counts as full beyond what our own requests confirm.
//
// What most decisions need is GatherFresh alone: all of the fleet fresh, which is known from an earlier pass,
// and no adapter in sight. The rest has loops of its own, out of its way.
inline void Scheduler::Impl::Gather(const fleet::PoolSnapshot& pool, const Request& request, base::Nanos now,
                                    Scratch::Impl& s, Gathered& gathered) const noexcept {
  const base::Nanos oldest_fresh = std::max<base::Nanos>(now - options.fresh_for, 1);  // 0 is never
  const bool room = pool.oldest_scrape.at() >= oldest_fresh ? GatherFresh(s, gathered)
                                                            : GatherAny(pool, oldest_fresh, s, gathered);
  const bool adapter = request.adapter != fleet::kNoAdapter && !pool.adapters.empty();
  if (room || adapter) [[unlikely]]
    gathered.lora_bits = GatherLora(adapter ? request.adapter : fleet::kNoAdapter, s, gathered);
}

// Of candidates that are all fresh: reads the 16 bytes of each one's EndpointLoad, and nothing else of it.
// Returns whether there is room for an adapter somewhere.
[[gnu::hot]] inline bool Scheduler::Impl::GatherFresh(Scratch::Impl& s, Gathered& gathered) noexcept {
  static_assert(kLanes == fleet::PoolSnapshot::kLoadsAtOnce);
  const fleet::EndpointLoad* const* loads = gathered.loads;
  const size_t n = gathered.n;
  // Where the columns begin, so that a store to one does not make the others be looked up again.
  float* queue = s.queue;
  float* running = s.running;
  float* kv_usage = s.kv_usage;
  float* scraped_queue = s.scraped_queue;
  LaneCounts seen{};
  for (size_t i = 0; i < n; i += kLanes) {
    const auto ledger = [&](size_t k) { return loads[i + k]->ledger.load(std::memory_order_relaxed); };
    const auto scraped = [&](size_t k) { return loads[i + k]->scraped.load(std::memory_order_relaxed); };
    const LaneWords first{scraped(0), scraped(1)};
    const LaneWords second{scraped(2), scraped(3)};
    const LaneCounts counters = LowHalves(LaneWords{ledger(0), ledger(1)}, LaneWords{ledger(2), ledger(3)});
    const LaneCounts counts = LowHalves(first, second);
    seen |= counts;
    const Lanes own = ToFloats((counters & 0xffff) + (counters >> 16 & 0xffff));
    const Lanes waiting = ToFloats(counts & 0xffff);
    Store(waiting, scraped_queue + i);
    Store(waiting + own, queue + i);
    Store(ToFloats(counts >> 16 & 0x7fff) + own, running + i);
    Store(Lanes(HighHalves(first, second)), kv_usage + i);
  }
  gathered.fresh = n;
  return (seen[0] | seen[1] | seen[2] | seen[3]) < 0;  // ScrapedLoad::lora_room
}

// What is known of the request's adapter (kNoAdapter: of none), and who has room for one. Returns the bits
// that were set.
[[gnu::noinline]] uint8_t Scheduler::Impl::GatherLora(uint32_t adapter, Scratch::Impl& s,
                                                      const Gathered& gathered) noexcept {
  // Cells come from farther away than the next cache, and want to be asked for ahead.
  constexpr size_t kAhead = 8;
  const size_t n = gathered.n;
  uint8_t* lora = s.lora;
  uint8_t seen = 0;
  for (size_t i = 0; i < n; ++i) {
    uint8_t bits = gathered.loads[i]->last().lora_room ? kLoraRoom : 0;
    if (adapter != fleet::kNoAdapter) {
      if (i + kAhead < n) __builtin_prefetch(gathered.cells[i + kAhead]->adapter_line(adapter));
      const fleet::EndpointCell& cell = *gathered.cells[i];
      if (cell.adapter_running(adapter)) bits |= kLoraRunning;
      if (cell.adapter_waiting(adapter)) bits |= kLoraWaiting;
    }
    lora[i] = bits;
    seen |= bits;
  }
  return seen;
}

// The same as GatherFresh for any candidates: asks each one's cell how old its scrape is.
[[gnu::noinline]] bool Scheduler::Impl::GatherAny(const fleet::PoolSnapshot& pool, base::Nanos oldest_fresh,
                                                  Scratch::Impl& s, Gathered& gathered) noexcept {
  constexpr size_t kAhead = 8;  // as in GatherLora
  const size_t n = gathered.n;
  const fleet::EndpointCell* const* cells = gathered.cells;
  uint32_t* pendings = s.pending;
  float* queue = s.queue;
  float* running = s.running;
  float* kv_usage = s.kv_usage;
  float* scraped_queue = s.scraped_queue;
  uint8_t* freshes = s.fresh;
  bool room = false;
  size_t count = 0;
  base::Nanos newest = 0;
  base::Nanos oldest = std::numeric_limits<base::Nanos>::max();
  for (size_t i = 0; i < n; ++i) {
    if (i + kAhead < n) __builtin_prefetch(cells[i + kAhead]);
    const fleet::EndpointCell& cell = *cells[i];
    const base::Nanos scraped_at = cell.scraped_at();
    const fleet::ScrapedLoad scraped = gathered.loads[i]->last();
    const uint32_t pending = gathered.loads[i]->pending();
    pendings[i] = pending;
    const bool fresh = scraped_at >= oldest_fresh;
    freshes[i] = fresh ? 1 : 0;
    newest = std::max(newest, scraped_at);
    oldest = std::min(oldest, scraped_at);
    const auto waiting = static_cast<float>(scraped.waiting);
    if (fresh) {
      queue[i] = waiting + static_cast<float>(pending);
      scraped_queue[i] = waiting;
      running[i] = static_cast<float>(scraped.running) + static_cast<float>(pending);
      kv_usage[i] = scraped.kv_usage;
      ++count;
    } else {
      const auto inflight = static_cast<float>(cell.inflight());
      queue[i] = std::max(inflight, static_cast<float>(pending));
      running[i] = queue[i];
      scraped_queue[i] = std::min(waiting, inflight);
      kv_usage[i] = inflight > 0 ? scraped.kv_usage : 0.0f;
    }
    room |= scraped.lora_room;
  }
  gathered.fresh = count;
  gathered.newest = newest;
  if (count < n) {
    if (count > 0) FillStale(n, count, s);
  } else if (cells == pool.cells.data()) {
    pool.oldest_scrape.Note(oldest);  // the next decisions need not ask
  }
  for (size_t i = n; i % kLanes != 0; ++i) {  // as DefaultScores wants it
    queue[i] = queue[n - 1];
    running[i] = running[n - 1];
    kv_usage[i] = kv_usage[n - 1];
  }
  return room;
}

[[gnu::noinline]] void Scheduler::Impl::FillStale(size_t n, size_t fresh, Scratch::Impl& s) noexcept {
  float queue_sum = 0, kv_sum = 0, running_sum = 0;
  for (size_t i = 0; i < n; ++i) {
    if (s.fresh[i] == 0) continue;
    queue_sum += s.queue[i];
    running_sum += s.running[i];
    kv_sum += s.kv_usage[i];
  }
  const auto count = static_cast<float>(fresh);
  for (size_t i = 0; i < n; ++i) {
    if (s.fresh[i] != 0) continue;
    s.queue[i] = std::max(queue_sum / count, static_cast<float>(s.pending[i]));
    s.running[i] = std::max(running_sum / count, static_cast<float>(s.pending[i]));
    s.kv_usage[i] = kv_sum / count;
  }
}

// Nobody has told us anything for long. Our own ledger knows our requests only; following its minimum, every
// picker of the fleet would herd. Two at random, the less loaded first (Mitzenmacher 2001, "The power of two
// choices").
[[gnu::noinline, gnu::cold]] size_t Scheduler::Impl::DrawTwo(size_t n, const Scratch::Impl& s,
                                                             base::Random& random,
                                                             std::span<uint32_t> positions,
                                                             size_t wanted) noexcept {
  size_t count = 0;
  while (count < std::min<size_t>(wanted < 2 ? 2 : wanted, n)) {
    const auto position = static_cast<uint32_t>(random.Below(n));
    const auto drawn = positions.first(count);
    if (std::find(drawn.begin(), drawn.end(), position) != drawn.end()) continue;
    positions[count++] = position;
  }
  if (count > 1 && s.queue[positions[1]] < s.queue[positions[0]]) std::swap(positions[0], positions[1]);
  if (wanted < count) positions[wanted] = 0;
  return std::min(count, wanted);
}

// What the picker left open: the least loaded of `eligible`, by queue, then KV use.
[[gnu::noinline]] void Scheduler::Impl::FillFallbacks(const Columns& columns,
                                                      std::span<const uint32_t> eligible,
                                                      std::span<uint32_t> choices, size_t& count) noexcept {
  const size_t first = count;
  const auto better = [&columns](uint32_t a, uint32_t b) {
    if (columns.queue[a] != columns.queue[b]) return columns.queue[a] < columns.queue[b];
    return columns.kv_usage[a] < columns.kv_usage[b];
  };
  for (const uint32_t position : eligible) {
    if (count == choices.size() && !better(position, choices[count - 1])) continue;
    bool chosen = false;
    for (size_t i = 0; i < first; ++i) chosen |= choices[i] == position;
    if (chosen) continue;
    size_t at = count < choices.size() ? count++ : count - 1;
    for (; at > first && better(position, choices[at - 1]); --at) choices[at] = choices[at - 1];
    choices[at] = position;
  }
}

[[gnu::noinline]] Scheduler::Impl::Left Scheduler::Impl::Narrow(const Program& program,
                                                                const Context& context, Scratch::Impl& s,
                                                                Explanation* explanation) {
  const uint32_t* in = s.all;
  int side = 0;
  size_t left = context.columns.size();
  const uint32_t* eligible = s.all;
  size_t eligible_left = left;
  // False: the filter kept nobody, and its input stays.
  const auto apply = [&](const Filter& filter, bool limits_fallbacks) {
    uint32_t* out = s.list[side];
    const size_t kept = std::min(filter.Apply(context, {in, left}, out), left);
    if (explanation != nullptr) [[unlikely]]
      TellFilter(filter, context, {in, left}, {out, kept}, *explanation);
    if (kept == 0) return false;
    in = out;
    side = 1 - side;
    left = kept;
    if (limits_fallbacks) {
      std::copy_n(in, left, s.eligible);
      eligible = s.eligible;
      eligible_left = left;
    }
    return true;
  };
  if (program.room != nullptr && !context.request.critical && !apply(*program.room, true))
    return {.shed = true};
  int at = program.nodes.empty() ? Program::kPick : 0;
  // A program visits a node at most once; a cycle in a program of somebody's own ends here instead of
  // hanging.
  for (size_t step = 0; at >= 0 && step < program.nodes.size(); ++step) {
    const Program::Node& node = program.nodes[static_cast<size_t>(at)];
    at = apply(*node.filter, node.limits_fallbacks) ? node.on_success : node.on_failure;
  }
  return {{in, left}, {eligible, eligible_left}, at == Program::kShed};
}

[[gnu::noinline]] void Scheduler::Impl::Score(const Program& program, const Context& context,
                                              std::span<const uint32_t> in, Scratch::Impl& s,
                                              Explanation* explanation) {
  std::fill_n(s.total, in.size(), 0.0f);
  for (const auto& [scorer, weight] : program.scorers) {
    scorer->Add(context, in, weight, s.total, s.score);
    if (explanation != nullptr) [[unlikely]]
      TellScorer(*scorer, weight, context, in, s.score, *explanation);
  }
  if (explanation != nullptr) [[unlikely]] {
    for (size_t i = 0; i < in.size(); ++i) explanation->candidates[in[i]].score = s.total[i];
  }
}

// Returns how many positions were chosen; 0 with `shed` set when there is no capacity, 0 without when the
// program gave nothing. Allocates only for an explanation.
[[gnu::hot]] size_t Scheduler::Impl::Run(const Program& program, const Context& context, Scratch::Impl& s,
                                         std::span<uint32_t> choices, bool& shed, Explanation* explanation) {
  const std::span<const uint32_t> all(s.all, context.columns.size());
  Left left{.in = all, .eligible = all};
  if (!program.nodes.empty() || !context.request.critical) [[unlikely]] {
    left = Narrow(program, context, s, explanation);
    if (left.shed) {
      shed = true;
      return 0;
    }
  }
  // Where everybody is left and nobody asks why, there is a shorter way.
  const Columns& columns = context.columns;
  if (program.scorers_at_once && left.in.size() == columns.size() && explanation == nullptr) [[likely]] {
    program.scorers_at_once->Sum(columns, s.total);
  } else {
    Score(program, context, left.in, s, explanation);
  }
  size_t count =
      std::min(program.picker->Pick(context, left.in, {s.total, left.in.size()}, choices), choices.size());
  if (count != 0 && count < choices.size()) FillFallbacks(columns, left.eligible, choices, count);
  return count;
}

Scheduler::Scheduler(const SchedulerOptions& options, base::Nanos started_at)
    : Scheduler(options, started_at, MakeCriticalityTree(options), MakeDefaultProfile(options)) {}

Scheduler::Scheduler(const SchedulerOptions& options, base::Nanos started_at, Program with_models,
                     Program without)
    : impl_(std::make_unique<Impl>(options, started_at, std::move(with_models), std::move(without))) {}

Scheduler::~Scheduler() = default;

[[gnu::hot]] Outcome Scheduler::Pick(const fleet::PoolSnapshot& pool, const Request& request,
                                     std::optional<std::span<const uint32_t>> candidates, base::Nanos now,
                                     Scratch& scratch, base::Random& random,
                                     Explanation* explanation) const noexcept {
  size_t n = pool.cells.size();
  if (candidates) [[unlikely]]
    n = candidates->size();
  Outcome outcome;
  if (n == 0) [[unlikely]]
    return outcome;
  Scratch::Impl& s = scratch.impl();
  if (n > s.capacity) [[unlikely]]
    s.Grow(n);
  const uint32_t* endpoint = s.all;
  const fleet::EndpointCell* const* cells = pool.cells.data();
  const fleet::EndpointLoad* const* loads = pool.loads.data();
  if (candidates) [[unlikely]] {
    s.FindSubset(pool, *candidates);
    endpoint = candidates->data();
    cells = s.cells.data();
    loads = s.loads.data();
  }
  const Program& program = pool.models.empty() ? impl_->without_models : impl_->with_models;

  // Somebody else may reserve the same endpoint between our reading and our reservation. Then the picture was
  // old: look again. After a few rounds a pick that is one request off beats another round.
  constexpr int kRounds = 8;
  for (int round = 0;; ++round) {
    Impl::Gathered gathered{.cells = cells, .loads = loads, .n = n};
    impl_->Gather(pool, request, now, s, gathered);
    const Columns columns = s.Views({endpoint, n}, gathered.lora_bits);
    const Context context{columns, request, random};
    if (explanation != nullptr) [[unlikely]]
      Impl::TellCandidates(program, columns, gathered, now, s, *explanation);

    std::array<uint32_t, kMaxChoices>& positions = outcome.choices;
    positions = {};
    const size_t wanted = std::min<size_t>(impl_->options.max_choices, n);
    size_t count = 0;
    const auto lost = [&] {
      return now - std::max(gathered.newest, impl_->started_at) > impl_->options.ledger_trust;
    };
    if (gathered.fresh == 0 && lost()) [[unlikely]] {
      outcome.rung = Rung::kPowerOfTwo;
      count = Impl::DrawTwo(n, s, random, positions, wanted);
    } else {
      bool shed = false;
      count = Impl::Run(program, context, s, {positions.data(), wanted}, shed, explanation);
      outcome.rung = Rung::kFresh;
      if (shed) [[unlikely]] {
        outcome.kind = OutcomeKind::kShed;
        if (gathered.fresh < n) outcome.rung = Rung::kLedger;
        if (explanation != nullptr)
          explanation->verdict = "shed: no endpoint has room for a request that is not critical";
        return outcome;
      }
      if (count == 0) [[unlikely]] {
        // A program that gives nothing although there are endpoints is a fault of its configuration. It must
        // not be an outage.
        outcome.rung = Rung::kAnyReady;
        positions[0] = static_cast<uint32_t>(random.Below(n));
        count = 1;
      } else if (gathered.fresh < n && s.fresh[positions[0]] == 0) [[unlikely]] {
        outcome.rung = Rung::kLedger;
      }
    }

    const uint32_t first = positions[0];
    // Only a subset's positions have other numbers: for the rest `endpoint` need not be looked at.
    if (candidates) [[unlikely]] {
      for (size_t i = 0; i < count; ++i) outcome.choices[i] = endpoint[positions[i]];
    }
    fleet::EndpointCell& cell = *pool.endpoints[outcome.choices[0]].cell;
    if (round + 1 < kRounds) [[likely]] {
      // Where all are fresh the columns say it, exactly: a float has room for three 16 bit counters.
      uint32_t pending = 0;
      if (gathered.fresh == n) [[likely]] {
        pending = static_cast<uint32_t>(s.queue[first] - s.scraped_queue[first]);
      } else {
        pending = s.pending[first];
      }
      const auto reserved = cell.TryReserve(pending, request.prompt_tokens);
      if (!reserved) [[unlikely]]
        continue;
      outcome.reservation = *reserved;
    } else {
      outcome.reservation = cell.Reserve(request.prompt_tokens);
    }
    outcome.kind = OutcomeKind::kPicked;
    outcome.num_choices = static_cast<uint32_t>(count);
    return outcome;
  }
}

}  // namespace fairway::scheduling
