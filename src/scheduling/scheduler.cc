#include "scheduling/scheduler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <new>
#include <string>
#include <utility>

#include "scheduling/config.h"
#include "scheduling/decide.h"
#include "scheduling/gather.h"
#include "scheduling/plugins/format.h"
#include "scheduling/recording.h"
#include "scheduling/tell.h"

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

std::string_view ToString(Refusal refusal) {
  switch (refusal) {
    case Refusal::kFilters:
      return "filters";
    case Refusal::kSaturation:
      return "saturation";
    case Refusal::kRoom:
      return "room";
    case Refusal::kAdmitter:
      return "admitter";
    case Refusal::kNotCached:
      return "not-cached";
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
        Range{"cost of an open request", o.request_cost, 1e6}, Range{"tolerance", o.tolerance, 1e5},
        Range{"tolerance of unseen answers", o.unseen_tolerance, 1e5},
        Range{"trust in others", o.trust_in_others, 4}}) {
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

// So long after a critical request the next one is expected.
constexpr base::Nanos kCriticalTraffic = 10 * base::kSecond;

}  // namespace

namespace {

std::shared_ptr<const ConfigSet> Common(std::shared_ptr<const Config> config) {
  return std::make_shared<const ConfigSet>(ConfigSet{.common = std::move(config), .of_pools = {}});
}

}  // namespace

struct Scheduler::Impl {
  Impl(const SchedulerOptions& o, base::Nanos start, std::shared_ptr<const Config> first)
      : options(o), started_at(start), configs(Common(std::move(first))) {}
  const Config& ConfigOf(const fleet::PoolSnapshot& pool, Scratch::Impl& s) const {
    if (s.published != &configs) [[unlikely]] {
      s.configs.emplace(configs);
      s.prepared.emplace(prepared);
      s.published = &configs;
    }
    // What is decided by stays until the next decision, whatever is published meanwhile.
    if (const auto& newest = s.configs->Get(); newest != s.current) [[unlikely]]
      s.current = newest;
    return s.current->Of(pool.key);
  }

  SchedulerOptions options;
  base::Nanos started_at;
  base::Published<ConfigSet> configs;
  base::Published<PreparedColumns> prepared{std::make_shared<const PreparedColumns>()};
};

namespace {

using Place = fleet::Reservation::Place;

// Uncached prompt tokens of the request at a position.
uint32_t TokensAt(const Config& config, const Picture& picture, const Facts& request, uint32_t position) {
  if (!config.cached) [[likely]]
    return request.prompt_tokens;
  const auto cached = static_cast<uint32_t>(picture.columns[*config.cached][position]);
  return request.prompt_tokens - std::min(cached, request.prompt_tokens);
}

// Takes the places of an outcome whose choices stand. False: somebody else took one on the first choice since
// we looked, and `insist` is false.
bool Commit(const Config& config, const fleet::PoolSnapshot& pool, const Facts& request,
            const Picture& picture, const Choice& choice, base::Nanos now, bool insist, Scratch::Impl& s,
            Outcome& outcome) {
  fleet::EndpointCell& cell = *pool.endpoints[outcome.choices[0]].cell;
  const Place place = request.shows_first_token ? Place::kCounted : Place::kUnseen;
  const uint32_t first = choice.positions[0];
  // Where another one computes the prompt, nothing is left to be computed here.
  const uint32_t uncached = TokensAt(config, picture, request, first);
  const uint32_t tokens = outcome.num_further == 0 ? uncached : 0;
  if (const auto reserved = cell.TryReserve(s.own[first], tokens, now, place)) {
    outcome.reservation = *reserved;
  } else if (insist) {
    outcome.reservation = cell.Reserve(tokens, now, place);
  } else {
    return false;
  }
  if (request.adapter != fleet::kNoAdapter) cell.UseAdapter(request.adapter, now);
  for (Further& further : std::span(outcome.further).first(outcome.num_further))
    further.reservation = pool.endpoints[further.endpoint].cell->Reserve(
        TokensAt(config, picture, request, further.position), now, place);
  outcome.cached_tokens = request.prompt_tokens - uncached;
  return true;
}

// What the profiles chose that do not answer, for Announce.
void KeepBeside(const Config& config, const Picture& picture, std::span<const ProfileResult> all,
                size_t primary, Scratch::Impl& s) {
  s.num_beside = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    if (i != primary && !all[i].positions.empty())
      s.beside[s.num_beside++] = {&config.programs[i], picture.columns.endpoint[all[i].positions.front()],
                                  all[i].positions.front()};
  }
  s.answering_program = &config.programs[primary];
}

// Several profiles, as the config's handler says. The choice is that of the profile that answers; what the
// others chose stands in `outcome`.
Choice DecideSeveral(const Config& config, const SchedulerOptions& options, const Picture& picture,
                     Context context, Scratch::Impl& s, Outcome& outcome, Explanation* explanation) {
  std::array<Choice, Config::kMaxProfiles> choices;
  std::array<ProfileResult, Config::kMaxProfiles> results;
  const std::span all(results.data(), config.programs.size());
  for (size_t i = 0; i < all.size(); ++i) {
    const auto next = config.handler->Next(context, all);
    if (!next || *next >= all.size() || all[*next].ran) break;
    context.profile = config.programs[*next].name;
    context.earlier = all;
    Choice& choice = choices[*next] =
        Decide(config.programs[*next], options, picture, context, s, explanation);
    all[*next] = {true, choice.shed, std::span(choice.positions).first(choice.count)};
    if (choice.count > 0 && !context.peer) context.peer = choice.positions[0];
  }
  const size_t primary = config.handler->Primary(all);
  outcome.num_further = 0;
  Choice none;
  none.shed = true;
  if (primary >= all.size() || !all[primary].ran) return none;
  KeepBeside(config, picture, all, primary, s);
  if (explanation != nullptr) TellEnd(config, config.programs[primary], *explanation);
  for (size_t i = 0; i < all.size(); ++i) {
    if (i == primary || all[i].positions.empty()) continue;
    const auto [header, told_all] = TellOf(config, i);
    if (header.empty()) continue;
    for (const uint32_t position : all[i].positions.first(told_all ? all[i].positions.size() : 1)) {
      if (outcome.num_further == kMaxFurther) break;
      outcome.further[outcome.num_further++] = {header, picture.columns.endpoint[position], position, {}};
    }
  }
  const auto [port, header] = config.handler->PortOfAll();
  outcome.destination_port = port;
  outcome.address_header = header;
  return choices[primary];
}

// Tells those who want to know what became of the request, and the headers that tell the client.
[[gnu::noinline]] void Announce(const Config& config, const fleet::PoolSnapshot& pool, Context context,
                                uint32_t position, Scratch::Impl& s, Outcome& outcome) noexcept {
  context.profile = s.answering_program->name;
  s.num_put_off = 0;
  s.put_off_memory = context.worker;
  const std::span beside(s.beside.data(), s.num_beside);
  for (const RequestHook* hook : config.hooks) {
    for (const auto& [program, endpoint, at] : beside)
      hook->PickedBeside(context, program->name, at, pool.endpoints[endpoint]);
    hook->Picked(context, position, pool.endpoints[outcome.choices[0]]);
    if (hook->HasPutOff(context.worker) && s.num_put_off < s.put_off.size()) [[unlikely]]
      s.put_off[s.num_put_off++] = hook;
  }
  if (s.num_put_off != 0) s.put_off_configs = s.current;
  for (const SessionTeller* teller : config.session_tellers) {
    const std::string_view profile = teller->TokenProfile();
    std::optional<uint32_t> told;
    if (profile.empty() || profile == s.answering_program->name) told = outcome.choices[0];
    for (const auto& [program, endpoint, at] : beside) {
      if (program->name == profile) told = endpoint;
    }
    if (told && outcome.num_session_headers < kMaxSessionHeaders)
      outcome.session_headers[outcome.num_session_headers++] = {teller->TokenHeader(), *told};
  }
}

// Seconds until the first candidate will have computed what it has.
uint32_t RetryAfter(const Columns& columns) {
  const float* work = columns[kWork];
  const float least = *std::min_element(work, work + columns.size());
  return static_cast<uint32_t>(std::clamp(std::ceil(least / 1000), 1.0f, 30.0f));
}

[[gnu::cold]] void Refuse(const Refused& refused, const Columns& columns, Outcome& outcome) {
  outcome.kind = OutcomeKind::kShed;
  outcome.refusal = refused.refusal;
  outcome.refused_by = refused.by;
  outcome.retry_after = refused.by_load ? RetryAfter(columns) : 0;
}

// True: an admitter refuses it, and the outcome says which.
[[gnu::noinline]] bool NotAdmitted(const Config& config, const Context& context, Outcome& outcome,
                                   Explanation* explanation) {
  for (const auto& [admitter, name] : config.admitters) {
    if (admitter->Admit(context)) continue;
    Refuse({Refusal::kAdmitter, name, true}, context.columns, outcome);
    if (explanation != nullptr) explanation->verdict = "refused by " + name + ": " + admitter->Why(context);
    return true;
  }
  return false;
}

bool IsCached(const Config& config, const Context& context, const Choice& choice) {
  return config.cached && context.columns[*config.cached][choice.positions[0]] > 0;
}

}  // namespace

ToldIn TellOf(const Config& config, size_t profile) noexcept {
  ToldIn told = config.handler->TellOf(profile);
  for (const ProfileTeller* teller : config.profile_tellers) {
    if (told.header.empty()) told = teller->TellOf(profile);
  }
  return told;
}

Choice DecideAll(const Config& config, const Program& program, const SchedulerOptions& options,
                 const Picture& picture, const Context& context, bool asks_admitters, Scratch::Impl& s,
                 Outcome& outcome, Explanation* explanation) noexcept {
  Choice choice;
  if (!config.admitters.empty() && asks_admitters && NotAdmitted(config, context, outcome, explanation))
      [[unlikely]] {
    choice.shed = true;
    return choice;
  }
  if (config.handler == nullptr) [[likely]] {
    choice = Decide(program, options, picture, context, s, explanation);
    if (explanation != nullptr) [[unlikely]]
      TellEnd(config, program, *explanation);
  } else {
    choice = DecideSeveral(config, options, picture, context, s, outcome, explanation);
  }
  outcome.rung = choice.rung;
  if (choice.shed) [[unlikely]] {
    Refuse(choice.refused, context.columns, outcome);
    if (explanation != nullptr) explanation->verdict = ShedText(context.request.critical);
    return choice;
  }
  if (context.request.only_if_cached && !IsCached(config, context, choice)) [[unlikely]] {
    choice.shed = true;
    choice.refused = {Refusal::kNotCached, {}, false};
    Refuse(choice.refused, context.columns, outcome);
    outcome.num_further = 0;
    if (explanation != nullptr) explanation->verdict = "refused: " + std::string(kNothingCached);
    return choice;
  }
  outcome.kind = OutcomeKind::kPicked;
  outcome.num_choices = static_cast<uint32_t>(choice.count);
  for (size_t i = 0; i < choice.count; ++i)
    outcome.choices[i] = picture.columns.endpoint[choice.positions[i]];
  return choice;
}

Scheduler::Scheduler(const SchedulerOptions& options, base::Nanos started_at)
    : Scheduler(options, started_at, CompileBuiltin(options)) {}

Scheduler::Scheduler(const SchedulerOptions& options, base::Nanos started_at,
                     std::shared_ptr<const Config> config)
    : impl_(std::make_unique<Impl>(options, started_at, std::move(config))) {}

Scheduler::~Scheduler() = default;

void Scheduler::Swap(std::shared_ptr<const ConfigSet> configs) { impl_->configs.Publish(std::move(configs)); }
void Scheduler::FreeUnused() {
  impl_->configs.FreeUnused();
  impl_->prepared.FreeUnused();
}

void Scheduler::Prepare(const fleet::Snapshot& snapshot, const ConfigSet& configs) {
  const std::shared_ptr<const PreparedColumns> before = impl_->prepared.Load();
  PreparedColumns next;
  bool changed = false;
  for (const auto& [key, pool] : snapshot.pools) {
    const Config& config = configs.Of(key);
    if (config.endpoint_columns.empty()) continue;
    const auto found = std::find_if(before->begin(), before->end(),
                                    [&](const auto& columns) { return columns->AreOf(config, *pool); });
    changed = changed || found == before->end();
    next.push_back(found != before->end() ? *found : ComputeEndpointColumns(config, *pool));
  }
  if (changed || next.size() != before->size())
    impl_->prepared.Publish(std::make_shared<const PreparedColumns>(std::move(next)));
}
std::shared_ptr<const ConfigSet> Scheduler::configs() const { return impl_->configs.Load(); }
const Config& Scheduler::ConfigOf(const fleet::PoolSnapshot& pool, Scratch& scratch) const {
  return impl_->ConfigOf(pool, scratch.impl());
}

bool Scheduler::HasPutOff(Scratch& scratch) noexcept { return scratch.impl().num_put_off != 0; }

std::function<void()> Scheduler::TakePutOff(Scratch& scratch, Prompts prompts) {
  Scratch::Impl& s = scratch.impl();
  const std::span put_off(s.put_off.data(), std::exchange(s.num_put_off, 0));
  const auto configs = std::exchange(s.put_off_configs, nullptr);
  const auto kept = std::make_shared<const Prompts>(std::move(prompts));
  std::vector<std::function<void()>> tasks;
  for (const RequestHook* hook : put_off) tasks.push_back(hook->TakePutOff(s.put_off_memory, kept));
  return [all = std::move(tasks)] {
    try {
      for (const auto& task : all) task();
    } catch (const std::bad_alloc&) {
      return;  // not learned
    }
  };
}

[[gnu::hot]] Outcome Scheduler::Pick(const fleet::PoolSnapshot& pool, const Facts& request,
                                     std::optional<std::span<const uint32_t>> candidates, base::Nanos now,
                                     Scratch& scratch, base::Random& random, Explanation* explanation,
                                     Recording* recording) const noexcept {
  Scratch::Impl& s = scratch.impl();
  const SchedulerOptions& options = impl_->options;
  const Config& config = impl_->ConfigOf(pool, s);
  if (pool.anyone_refuses()) [[unlikely]]
    candidates = LeaveOutRefusing(pool, candidates, s);
  const Candidates among{&pool, candidates};
  Outcome outcome;
  if (recording != nullptr) [[unlikely]]
    recording->Begin(s.current, config, pool, among.size());
  if (among.size() == 0) [[unlikely]]
    return outcome;
  const Program& program = config.ProgramOf(pool);
  uint32_t reads = (config.handler == nullptr ? program.reads : config.reads) | config.producers_read |
                   config.admitters_read;
  if (!request.critical || explanation != nullptr || recording != nullptr) [[unlikely]]
    reads |= kPageColumns;

  if (request.critical) s.critical_at = now;
  const bool critical_traffic = now - s.critical_at <= kCriticalTraffic;

  const auto memory = s.MemoryOf(config);
  // Somebody else may reserve the same endpoint between our reading and our reservation. Then the picture was
  // old: look again. After a few rounds a pick that is one request off beats another round.
  constexpr int kRounds = 8;
  for (int round = 1;; ++round) {
    Picture picture = Gather(options, config, among, request, now, reads, s);
    picture.silence = std::min(picture.youngest_age, now - impl_->started_at);
    const std::span<const uint32_t> own(s.own, picture.columns.size());
    const Context context{.columns = picture.columns,
                          .request = request,
                          .random = random,
                          .critical_traffic = critical_traffic,
                          .own = own,
                          .worker = memory,
                          .now = now,
                          .profile = program.name,
                          .pages_alone = options.load_source == LoadSource::kPage,
                          .lookup_times = s.lookup_times.clock != nullptr ? &s.lookup_times : nullptr,
                          .pool = &pool};
    if (recording != nullptr) [[unlikely]]
      recording->Keep(picture, context, pool, reads, round == 1, s);
    if (!config.producers.empty()) Produce(config, context, s);
    if (recording != nullptr) [[unlikely]]
      recording->KeepMade(context, s);
    if (explanation != nullptr) [[unlikely]]
      TellLive(config, program, pool, picture.columns, s, now, *explanation);
    const Choice choice =
        DecideAll(config, program, options, picture, context, round == 1, s, outcome, explanation);
    const bool stands =
        choice.shed || Commit(config, pool, request, picture, choice, now, round == kRounds, s, outcome);
    if (!stands) [[unlikely]]
      continue;
    if (recording != nullptr) [[unlikely]]
      recording->outcome = outcome;
    if (choice.shed) [[unlikely]]
      return outcome;
    if (!config.hooks.empty() || !config.session_tellers.empty()) [[unlikely]] {
      if (config.handler == nullptr) s.num_beside = 0, s.answering_program = &program;
      Announce(config, pool, context, choice.positions[0], s, outcome);
    }
    return outcome;
  }
}

}  // namespace fairway::scheduling
