#include "scheduling/scheduler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

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

struct Scratch::Impl {
  std::vector<uint32_t> endpoint, pending;
  std::vector<float> queue, scraped_queue, running, kv_usage, total, score;
  std::vector<uint8_t> lora, fresh;
  std::vector<uint32_t> list[2], eligible;

  void Resize(size_t n) {
    if (n <= endpoint.size()) return;
    for (auto* column : {&endpoint, &pending, &list[0], &list[1], &eligible}) column->resize(n);
    for (auto* column : {&queue, &scraped_queue, &running, &kv_usage, &total, &score}) column->resize(n);
    for (auto* column : {&lora, &fresh}) column->resize(n);
  }

  Columns Views(size_t n) const {
    return {{endpoint.data(), n}, {queue.data(), n},    {scraped_queue.data(), n},
            {running.data(), n},  {kv_usage.data(), n}, {lora.data(), n}};
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

  // What the columns say about the signals as a whole.
  struct Gathered {
    size_t fresh = 0;
    base::Nanos newest = 0;
  };

  Gathered Gather(const fleet::PoolSnapshot& pool, const Request& request, size_t n, base::Nanos now,
                  Scratch::Impl& s) const noexcept;
  // Gives stale endpoints the average load of the `fresh` ones.
  static void FillStale(size_t n, size_t fresh, Scratch::Impl& s) noexcept;
  size_t Run(const Program& program, const Context& context, size_t n, Scratch::Impl& s,
             std::span<uint32_t> choices, bool& shed, Explanation* explanation) const;
  void FillFallbacks(const Columns& columns, std::span<const uint32_t> eligible, std::span<uint32_t> choices,
                     size_t& count) const noexcept;
};

// One pass over the cells. A stale endpoint's scrape no longer says how long its queue is: it counts as
// loaded as the average of those that are fresh (so that it neither attracts all requests nor is shut out),
// or by our own requests where nobody is fresh. It never counts as full beyond what our own requests confirm.
Scheduler::Impl::Gathered Scheduler::Impl::Gather(const fleet::PoolSnapshot& pool, const Request& request,
                                                  size_t n, base::Nanos now,
                                                  Scratch::Impl& s) const noexcept {
  constexpr size_t kAhead = 8;
  const bool lora = !pool.adapters.empty();
  const base::Nanos oldest_fresh = now - options.fresh_for;
  const fleet::EndpointCell* const* cells = pool.cells.data();
  // Where the columns begin, so that a store to one does not make the others be looked up again.
  const uint32_t* endpoint = s.endpoint.data();
  uint32_t* pendings = s.pending.data();
  float* queue = s.queue.data();
  float* scraped_queue = s.scraped_queue.data();
  float* running = s.running.data();
  float* kv_usage = s.kv_usage.data();
  uint8_t* loras = s.lora.data();
  uint8_t* freshes = s.fresh.data();
  Gathered result;
  for (size_t i = 0; i < n; ++i) {
    if (i + kAhead < n) __builtin_prefetch(cells[endpoint[i + kAhead]]);
    const fleet::EndpointCell& cell = *cells[endpoint[i]];
    const base::Nanos scraped_at = cell.scraped_at();
    const uint32_t pending = cell.pending();
    pendings[i] = pending;
    const bool fresh = scraped_at != 0 && scraped_at >= oldest_fresh;
    freshes[i] = fresh ? 1 : 0;
    result.newest = std::max(result.newest, scraped_at);
    const auto waiting = static_cast<float>(cell.waiting());
    if (fresh) {
      queue[i] = waiting + static_cast<float>(pending);
      scraped_queue[i] = waiting;
      running[i] = static_cast<float>(cell.running()) + static_cast<float>(pending);
      kv_usage[i] = cell.kv_usage();
      ++result.fresh;
    } else {
      const auto inflight = static_cast<float>(cell.inflight());
      queue[i] = std::max(inflight, static_cast<float>(pending));
      running[i] = queue[i];
      scraped_queue[i] = std::min(waiting, inflight);
      kv_usage[i] = inflight > 0 ? cell.kv_usage() : 0.0f;
    }
    uint8_t bits = 0;
    if (lora) {
      if (cell.adapter_running(request.adapter)) bits |= kLoraRunning;
      if (cell.adapter_waiting(request.adapter)) bits |= kLoraWaiting;
    }
    if (cell.lora_has_room()) bits |= kLoraRoom;
    loras[i] = bits;
  }
  if (result.fresh > 0 && result.fresh < n) FillStale(n, result.fresh, s);
  return result;
}

void Scheduler::Impl::FillStale(size_t n, size_t fresh, Scratch::Impl& s) noexcept {
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

// What the picker left open: the least loaded of `eligible`, by queue, then KV use.
void Scheduler::Impl::FillFallbacks(const Columns& columns, std::span<const uint32_t> eligible,
                                    std::span<uint32_t> choices, size_t& count) const noexcept {
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

// Returns how many positions were chosen; 0 with `shed` set when there is no capacity, 0 without when the
// program gave nothing. Allocates only for an explanation.
size_t Scheduler::Impl::Run(const Program& program, const Context& context, size_t n, Scratch::Impl& s,
                            std::span<uint32_t> choices, bool& shed, Explanation* explanation) const {
  for (size_t i = 0; i < n; ++i) s.list[0][i] = static_cast<uint32_t>(i);
  int side = 0;
  size_t left = n;
  std::span<const uint32_t> eligible;  // empty: all
  // False: the filter kept nobody, and its input stays.
  const auto narrow = [&](const Filter& filter, bool limits_fallbacks) {
    const std::span<const uint32_t> in(s.list[side].data(), left);
    uint32_t* out = s.list[1 - side].data();
    const size_t kept = std::min(filter.Apply(context, in, out), left);
    if (explanation != nullptr) {
      Explanation::Step& told = explanation->steps.emplace_back();
      told.name = filter.type();
      told.in = left;
      told.out = kept;
      told.failed = kept == 0;
      for (const uint32_t position : in) {
        if (std::find(out, out + kept, position) != out + kept) continue;
        told.drops.push_back({s.endpoint[position], filter.Why(context, position)});
      }
    }
    if (kept == 0) return false;
    side = 1 - side;
    left = kept;
    if (limits_fallbacks) {
      std::copy_n(s.list[side].data(), left, s.eligible.data());
      eligible = {s.eligible.data(), left};
    }
    return true;
  };
  if (program.room != nullptr && !context.request.critical && !narrow(*program.room, true)) {
    shed = true;
    return 0;
  }
  int at = program.nodes.empty() ? Program::kPick : 0;
  // A program visits a node at most once; a cycle in a program of somebody's own ends here instead of
  // hanging.
  for (size_t step = 0; at >= 0 && step < program.nodes.size(); ++step) {
    const Program::Node& node = program.nodes[static_cast<size_t>(at)];
    at = narrow(*node.filter, node.limits_fallbacks) ? node.on_success : node.on_failure;
  }
  if (at == Program::kShed) {
    shed = true;
    return 0;
  }
  if (left == 0) return 0;

  const std::span<const uint32_t> in(s.list[side].data(), left);
  float* total = s.total.data();
  const float* score = s.score.data();
  std::fill_n(total, left, 0.0f);
  for (const auto& [scorer, weight] : program.scorers) {
    scorer->Score(context, in, s.score.data());
    for (size_t i = 0; i < left; ++i) total[i] += score[i] * weight;
    if (explanation != nullptr) {
      Explanation::Step& told = explanation->steps.emplace_back();
      told.name = scorer->type();
      told.in = told.out = left;
      told.weight = weight;
      for (size_t i = 0; i < left; ++i) told.scores.emplace_back(s.endpoint[in[i]], s.score[i]);
    }
  }
  if (explanation != nullptr) {
    for (size_t i = 0; i < left; ++i) explanation->candidates[in[i]].score = s.total[i];
  }
  size_t count = std::min(program.picker->Pick(context, in, {s.total.data(), left}, choices), choices.size());
  if (count == 0) return 0;
  if (count < choices.size()) {
    if (eligible.empty()) {
      for (size_t i = 0; i < n; ++i) s.eligible[i] = static_cast<uint32_t>(i);
      eligible = {s.eligible.data(), n};
    }
    FillFallbacks(context.columns, eligible, choices, count);
  }
  return count;
}

Scheduler::Scheduler(const SchedulerOptions& options, base::Nanos started_at)
    : Scheduler(options, started_at, MakeCriticalityTree(options), MakeDefaultProfile(options)) {}

Scheduler::Scheduler(const SchedulerOptions& options, base::Nanos started_at, Program with_models,
                     Program without)
    : impl_(std::make_unique<Impl>(options, started_at, std::move(with_models), std::move(without))) {}

Scheduler::~Scheduler() = default;

Outcome Scheduler::Pick(const fleet::PoolSnapshot& pool, const Request& request,
                        std::optional<std::span<const uint32_t>> candidates, base::Nanos now,
                        Scratch& scratch, base::Random& random, Explanation* explanation) const noexcept {
  const size_t n = candidates ? candidates->size() : pool.endpoints.size();
  Outcome outcome;
  if (n == 0) return outcome;
  Scratch::Impl& s = scratch.impl();
  s.Resize(n);
  for (size_t i = 0; i < n; ++i) s.endpoint[i] = candidates ? (*candidates)[i] : static_cast<uint32_t>(i);
  const Program& program = pool.models.empty() ? impl_->without_models : impl_->with_models;

  // Somebody else may reserve the same endpoint between our reading and our reservation. Then the picture was
  // old: look again. After a few rounds a pick that is one request off beats another round.
  constexpr int kRounds = 8;
  for (int round = 0;; ++round) {
    const Impl::Gathered gathered = impl_->Gather(pool, request, n, now, s);
    const Columns columns = s.Views(n);
    const Context context{columns, request, random};
    if (explanation != nullptr) {
      *explanation = {};
      explanation->profile = program.name;
      for (size_t i = 0; i < n; ++i) {
        const fleet::EndpointCell& cell = *pool.cells[s.endpoint[i]];
        const uint8_t lora = s.lora[i];
        explanation->candidates.push_back({
            .endpoint = s.endpoint[i],
            .queue = s.queue[i],
            .scraped_queue = s.scraped_queue[i],
            .running = s.running[i],
            .kv_usage = s.kv_usage[i],
            .adapter = (lora & kLoraRunning) != 0   ? "resident"
                       : (lora & kLoraWaiting) != 0 ? "waiting"
                       : (lora & kLoraRoom) != 0    ? "room"
                                                    : "none",
            .fresh = s.fresh[i] != 0,
            .age = cell.scraped_at() != 0 ? now - cell.scraped_at() : 0,
            .scraped = cell.scraped_at() != 0,
        });
      }
    }

    std::array<uint32_t, kMaxChoices> positions{};
    const size_t wanted = std::min<size_t>(impl_->options.max_choices, n);
    const std::span<uint32_t> choices(positions.data(), wanted);
    size_t count = 0;
    bool shed = false;
    const base::Nanos last_known = std::max(gathered.newest, impl_->started_at);
    if (gathered.fresh == 0 && now - last_known > impl_->options.ledger_trust) {
      // Nobody has told us anything for long. Our own ledger knows our requests only; following its minimum,
      // every picker of the fleet would herd. Two at random, the less loaded first (Mitzenmacher 2001, "The
      // power of two choices").
      outcome.rung = Rung::kPowerOfTwo;
      while (count < std::min<size_t>(wanted < 2 ? 2 : wanted, n)) {
        const auto position = static_cast<uint32_t>(random.Below(n));
        if (std::find(positions.begin(), positions.begin() + count, position) != positions.begin() + count)
          continue;
        positions[count++] = position;
      }
      if (count > 1 && s.queue[positions[1]] < s.queue[positions[0]]) std::swap(positions[0], positions[1]);
      count = std::min(count, wanted);
    } else {
      count = impl_->Run(program, context, n, s, choices, shed, explanation);
      outcome.rung = Rung::kFresh;
      if (shed) {
        outcome.kind = OutcomeKind::kShed;
        if (gathered.fresh < n) outcome.rung = Rung::kLedger;
        if (explanation != nullptr)
          explanation->verdict = "shed: no endpoint has room for a request that is not critical";
        return outcome;
      }
      if (count == 0) {
        // A program that gives nothing although there are endpoints is a fault of its configuration. It must
        // not be an outage.
        outcome.rung = Rung::kAnyReady;
        positions[0] = static_cast<uint32_t>(random.Below(n));
        count = 1;
      } else if (s.fresh[positions[0]] == 0) {
        outcome.rung = Rung::kLedger;
      }
    }

    const uint32_t first = positions[0];
    fleet::EndpointCell& cell = *pool.endpoints[s.endpoint[first]].cell;
    if (round + 1 < kRounds) {
      const auto reserved = cell.TryReserve(s.pending[first], request.prompt_tokens);
      if (!reserved) continue;
      outcome.reservation = *reserved;
    } else {
      outcome.reservation = cell.Reserve(request.prompt_tokens);
    }
    outcome.kind = OutcomeKind::kPicked;
    outcome.num_choices = static_cast<uint32_t>(count);
    for (size_t i = 0; i < count; ++i) outcome.choices[i] = s.endpoint[positions[i]];
    return outcome;
  }
}

}  // namespace fairway::scheduling
