#include "scheduling/scheduler.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "scheduling/gather.h"
#include "scheduling/lanes.h"
#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"
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

std::string_view ToString(Profile profile) {
  switch (profile) {
    case Profile::kTimeToFirstToken:
      return "time-to-first-token";
    case Profile::kQueueKvLora:
      return "queue-kv-lora";
    case Profile::kActiveRequest:
      return "active-request";
    case Profile::kLmetric:
      return "lmetric";
  }
  return "";
}

base::Result<void> CheckOptions(const SchedulerOptions& o) {
  struct Range {
    std::string_view what;
    double value;
    double max;
  };
  constexpr double kMany = 1e9;
  for (const Range& range :
       {Range{"critical queue limit", o.critical_queue_limit, kMany},
        Range{"sheddable queue limit", o.sheddable_queue_limit, kMany},
        Range{"sheddable KV limit", o.sheddable_kv_limit, 1},
        Range{"sheddable work limit", o.sheddable_work_limit, kMany},
        Range{"LoRA exploration share", o.lora_exploration, 1},
        Range{"cost of loading an adapter", o.lora_load_cost, kMany},
        Range{"cost of an open request", o.request_cost, 1e6}, Range{"tolerance", o.tolerance, 1e5}}) {
    if (range.value >= 0 && range.value <= range.max) continue;
    return base::Fail(
        base::ErrorCode::kInvalidArgument,
        std::string(range.what) + " must be from 0 to " + Short(range.max) + ", not " + Short(range.value));
  }
  if (o.max_choices < 1 || o.max_choices > kMaxChoices) {
    return base::Fail(base::ErrorCode::kInvalidArgument,
                      "number of choices must be from 1 to 8, not " + Short(o.max_choices));
  }
  return {};
}

namespace {

bool ReadsPages(const Program& program) {
  return !program.nodes.empty() || program.picker->reads_pages() ||
         std::any_of(program.scorers.begin(), program.scorers.end(),
                     [](const auto& weighted) { return weighted.scorer->reads_pages(); });
}

}  // namespace

struct Scheduler::Impl {
  Impl(const SchedulerOptions& o, base::Nanos start, Program with, Program without)
      : options(o),
        started_at(start),
        with_models(std::move(with)),
        without_models(std::move(without)),
        with_models_pages(ReadsPages(with_models)),
        without_models_pages(ReadsPages(without_models)) {}

  // One look: the positions chosen, best first, and how good the signals were.
  struct Look {
    std::array<uint32_t, kMaxChoices> positions{};
    size_t count = 0;
    Rung rung = Rung::kFresh;
    bool shed = false;
  };
  Look Decide(const Program& program, const Picture& picture, const Context& context, base::Nanos now,
              Scratch::Impl& s, Explanation* explanation) const;

  SchedulerOptions options;
  base::Nanos started_at;
  Program with_models;
  Program without_models;
  bool with_models_pages;
  bool without_models_pages;
};

namespace {

// So long after a critical request the next one is expected.
constexpr base::Nanos kCriticalTraffic = 10 * base::kSecond;

// ---- What an explanation says. It allocates, and is made only when somebody asks.

[[gnu::noinline, gnu::cold]] void TellFilter(const Filter& filter, const Context& context,
                                             std::span<const uint32_t> in, std::span<const uint32_t> kept,
                                             Explanation& explanation) {
  Explanation::Step& told = explanation.steps.emplace_back();
  told.name = filter.type();
  told.in = in.size();
  told.out = kept.size();
  told.failed = kept.empty();
  // Both lists are in the order of the candidates.
  size_t next = 0;
  for (const uint32_t position : in) {
    if (next < kept.size() && kept[next] == position) {
      ++next;
    } else {
      told.drops.push_back({context.columns.endpoint[position], filter.Why(context, position)});
    }
  }
}

[[gnu::noinline, gnu::cold]] void TellScorer(const Scorer& scorer, float weight, const Columns& columns,
                                             std::span<const uint32_t> in, const float* score,
                                             Explanation& explanation) {
  Explanation::Step& told = explanation.steps.emplace_back();
  told.name = scorer.type();
  told.in = told.out = in.size();
  told.weight = weight;
  for (size_t i = 0; i < in.size(); ++i) told.scores.emplace_back(columns.endpoint[in[i]], score[i]);
}

std::string_view AdapterWord(uint8_t lora) {
  if ((lora & kLoraRunning) != 0) return "resident";
  if ((lora & kLoraWaiting) != 0) return "waiting";
  if ((lora & kLoraResident) != 0) return "believed";
  return (lora & kLoraRoom) != 0 ? "room" : "none";
}

[[gnu::noinline, gnu::cold]] void TellCandidates(const Program& program, const fleet::PoolSnapshot& pool,
                                                 const Columns& columns, const Scratch::Impl& s,
                                                 base::Nanos now, Explanation& explanation) {
  explanation = {};
  explanation.profile = program.name;
  for (size_t i = 0; i < columns.size(); ++i) {
    const base::Nanos scraped_at = pool.cells[columns.endpoint[i]]->scraped_at();
    const auto own = static_cast<float>(s.own[i]);
    explanation.candidates.push_back({
        .endpoint = columns.endpoint[i],
        .own = own,
        .others = columns.requests[i] - own,
        .queue = columns.queue[i],
        .page_queue = columns.page_queue[i],
        .running = columns.running[i],
        .kv_usage = columns.kv_usage[i],
        .work = columns.work[i],
        .prefill = columns.prefill[i],
        .adapter = AdapterWord(columns.lora[i]),
        .fresh = s.fresh[i] != 0,
        .age = scraped_at != 0 ? now - scraped_at : 0,
        .scraped = scraped_at != 0,
    });
  }
}

// ---- Running a program.

// What a program's filters leave: all at first.
struct Left {
  std::span<const uint32_t> in;
  std::span<const uint32_t> eligible;  // as fallbacks
  bool shed = false;
};

[[gnu::noinline]] void Narrow(const Program& program, const Context& context, Scratch::Impl& s, Left& left,
                              Explanation* explanation) {
  int side = 0;
  // False: the filter kept nobody, and its input stays.
  const auto apply = [&](const Filter& filter, bool limits_fallbacks) {
    uint32_t* out = s.list[side];
    const std::span<const uint32_t> kept(out, std::min(filter.Apply(context, left.in, out), left.in.size()));
    if (explanation != nullptr) [[unlikely]]
      TellFilter(filter, context, left.in, kept, *explanation);
    if (kept.empty()) return false;
    left.in = kept;
    side = 1 - side;
    if (limits_fallbacks) {
      std::copy(kept.begin(), kept.end(), s.eligible);
      left.eligible = {s.eligible, kept.size()};
    }
    return true;
  };
  if (program.room != nullptr && !context.request.critical && !apply(*program.room, true)) {
    left.shed = true;
    return;
  }
  int at = program.nodes.empty() ? Program::kPick : 0;
  // A program visits a node at most once; a cycle in a program of somebody's own ends here instead of
  // hanging.
  for (size_t step = 0; at >= 0 && step < program.nodes.size(); ++step) {
    const Program::Node& node = program.nodes[static_cast<size_t>(at)];
    at = apply(*node.filter, node.limits_fallbacks) ? node.on_success : node.on_failure;
  }
  left.shed = at == Program::kShed;
}

// s.total[i] = the weighted scores of in[i]. A score is within [0, 1], and what is no number is 0.
void Score(const Program& program, const Context& context, std::span<const uint32_t> in, Scratch::Impl& s,
           Explanation* explanation) {
  std::fill_n(s.total, in.size(), 0.0f);
  for (const auto& [scorer, weight] : program.scorers) {
    scorer->Score(context, in, s.score);
    for (size_t i = 0; i < in.size(); i += kLanes) {
      const Lanes score = Least(Greatest(Load(s.score + i), Lanes{}), Lanes{} + 1.0f);
      Store(score, s.score + i);
      Store(Load(s.total + i) + score * weight, s.total + i);
    }
    if (explanation != nullptr) [[unlikely]]
      TellScorer(*scorer, weight, context.columns, in, s.score, *explanation);
  }
  if (explanation != nullptr) [[unlikely]] {
    for (size_t i = 0; i < in.size(); ++i) explanation->candidates[in[i]].score = s.total[i];
  }
}

// What the picker left open: the least loaded of `eligible`, by queue, then KV use.
void FillFallbacks(const Columns& columns, std::span<const uint32_t> eligible, std::span<uint32_t> choices,
                   size_t& count) noexcept {
  const size_t first = count;
  const auto better = [&columns](uint32_t a, uint32_t b) {
    if (columns.queue[a] != columns.queue[b]) return columns.queue[a] < columns.queue[b];
    return columns.kv_usage[a] < columns.kv_usage[b];
  };
  for (const uint32_t position : eligible) {
    if (count == choices.size() && (count == first || !better(position, choices[count - 1]))) continue;
    const auto chosen = choices.first(first);
    if (std::find(chosen.begin(), chosen.end(), position) != chosen.end()) continue;
    size_t at = count < choices.size() ? count++ : count - 1;
    for (; at > first && better(position, choices[at - 1]); --at) choices[at] = choices[at - 1];
    choices[at] = position;
  }
}

// Nobody has told us anything for long. Our own ledger knows our requests only; following its minimum, every
// picker of the fleet would herd. Two at random, the less loaded first (Mitzenmacher 2001, "The power of two
// choices"); then others at random.
size_t DrawTwo(const Columns& columns, base::Random& random, std::span<uint32_t> positions) noexcept {
  const size_t n = columns.size();
  const auto less = [&](uint32_t a, uint32_t b) {
    if (columns.requests[a] != columns.requests[b]) return columns.requests[a] < columns.requests[b];
    return columns.work[a] < columns.work[b];
  };
  positions[0] = static_cast<uint32_t>(random.Below(n));
  if (n == 1) return 1;
  const auto second = static_cast<uint32_t>((positions[0] + 1 + random.Below(n - 1)) % n);
  const uint32_t worse = less(second, positions[0]) ? std::exchange(positions[0], second) : second;
  if (positions.size() == 1) return 1;
  positions[1] = worse;
  size_t count = 2;
  while (count < positions.size()) {
    const auto position = static_cast<uint32_t>(random.Below(n));
    const auto drawn = positions.first(count);
    if (std::find(drawn.begin(), drawn.end(), position) == drawn.end()) positions[count++] = position;
  }
  return count;
}

}  // namespace

Scheduler::Impl::Look Scheduler::Impl::Decide(const Program& program, const Picture& picture,
                                              const Context& context, base::Nanos now, Scratch::Impl& s,
                                              Explanation* explanation) const {
  const Columns& columns = picture.columns;
  Look look;
  const std::span<uint32_t> choices(look.positions.data(),
                                    std::min<size_t>(options.max_choices, columns.size()));
  const base::Nanos silence = std::min(picture.youngest_age, now - started_at);
  if (picture.fresh == 0 && silence > options.ledger_trust) [[unlikely]] {
    look.rung = Rung::kPowerOfTwo;
    look.count = DrawTwo(columns, context.random, choices);
    return look;
  }
  const std::span<const uint32_t> all(s.all, columns.size());
  Left left{.in = all, .eligible = all};
  if (!program.nodes.empty() || !context.request.critical) [[unlikely]]
    Narrow(program, context, s, left, explanation);
  if (left.shed) [[unlikely]] {
    look.shed = true;
    look.rung = picture.fresh < columns.size() ? Rung::kLedger : Rung::kFresh;
    return look;
  }
  Score(program, context, left.in, s, explanation);
  look.count =
      std::min(program.picker->Pick(context, left.in, {s.total, left.in.size()}, choices), choices.size());
  if (look.count == 0) [[unlikely]] {
    // A program that gives nothing although there are endpoints is a fault of its configuration. It must not
    // be an outage.
    look.rung = Rung::kAnyReady;
    look.positions[0] = static_cast<uint32_t>(context.random.Below(columns.size()));
    look.count = 1;
    return look;
  }
  if (look.count < choices.size()) FillFallbacks(columns, left.eligible, choices, look.count);
  if (s.fresh[look.positions[0]] == 0) look.rung = Rung::kLedger;
  return look;
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
  Scratch::Impl& s = scratch.impl();
  if (pool.anyone_refuses()) [[unlikely]]
    candidates = LeaveOutRefusing(pool, candidates, s);
  const Candidates among{&pool, candidates};
  Outcome outcome;
  if (among.size() == 0) [[unlikely]]
    return outcome;
  const bool models = !pool.models.empty();
  const Program& program = models ? impl_->with_models : impl_->without_models;
  const bool pages = (models ? impl_->with_models_pages : impl_->without_models_pages) || !request.critical ||
                     explanation != nullptr;

  if (request.critical) s.critical_at = now;
  const bool critical_traffic = now - s.critical_at <= kCriticalTraffic;

  // Somebody else may reserve the same endpoint between our reading and our reservation. Then the picture was
  // old: look again. After a few rounds a pick that is one request off beats another round.
  constexpr int kRounds = 8;
  for (int round = 1;; ++round) {
    const Picture picture = Gather(impl_->options, among, request, now, pages, s);
    const Context context{picture.columns, request, random, critical_traffic};
    if (explanation != nullptr) [[unlikely]]
      TellCandidates(program, pool, picture.columns, s, now, *explanation);
    const Impl::Look look = impl_->Decide(program, picture, context, now, s, explanation);
    outcome.rung = look.rung;
    if (look.shed) [[unlikely]] {
      outcome.kind = OutcomeKind::kShed;
      if (explanation != nullptr)
        explanation->verdict = "shed: no endpoint has room for a request that is not critical";
      return outcome;
    }
    for (size_t i = 0; i < look.count; ++i) outcome.choices[i] = picture.columns.endpoint[look.positions[i]];
    fleet::EndpointCell& cell = *pool.endpoints[outcome.choices[0]].cell;
    const auto place =
        request.shows_first_token ? fleet::Reservation::Place::kCounted : fleet::Reservation::Place::kUnseen;
    auto reserved = cell.TryReserve(s.own[look.positions[0]], request.prompt_tokens, now, place);
    if (!reserved && round < kRounds) [[unlikely]]
      continue;
    outcome.reservation = reserved ? *reserved : cell.Reserve(request.prompt_tokens, now, place);
    if (request.adapter != fleet::kNoAdapter) cell.UseAdapter(request.adapter, now);
    outcome.kind = OutcomeKind::kPicked;
    outcome.num_choices = static_cast<uint32_t>(look.count);
    return outcome;
  }
}

}  // namespace fairway::scheduling
