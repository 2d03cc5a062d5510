#include "routing/router.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <iterator>
#include <limits>
#include <new>
#include <span>
#include <string_view>
#include <utility>

#include "routing/decision.h"
#include "routing/decision_log.h"
#include "routing/metrics.h"
#include "routing/prefix_metrics.h"
#include "routing/worker.h"
#include "scheduling/config.h"

namespace fairway::routing {
namespace {

using Begun = std::variant<Ticket, Rejection>;

constexpr size_t kMaxFairnessId = 128;  // bytes; longer ones are cut before anything is done with them

Rejection BadRequest(std::string message) { return {400, "BadRequest", std::move(message), ""}; }

// Client text in an answer.
std::string Quoted(std::string_view text) {
  constexpr size_t kMax = 200;
  return "\"" + base::CleanText(text, kMax) + (text.size() > kMax ? "..." : "") + "\"";
}

// What the client may have meant, of the declared names that stand next to the wanted one: a mistake is
// seldom in the first letters. A client can ask for this as often as it likes, so it is bounded: 32 names,
// and 64 bytes of each.
std::optional<std::string> NearestModel(const std::vector<std::string>& names, std::string_view wanted) {
  constexpr std::ptrdiff_t kMaxNames = 32;
  constexpr size_t kMaxText = 64;
  if (wanted.size() > kMaxText) return std::nullopt;
  const auto at = std::lower_bound(names.begin(), names.end(), wanted);
  const auto end = at + std::min(names.end() - at, kMaxNames / 2);
  const auto begin = end - std::min(end - names.begin(), kMaxNames);
  std::vector<std::string> near;
  std::copy_if(begin, end, std::back_inserter(near),
               [](const auto& name) { return name.size() <= kMaxText; });
  return base::Nearest(wanted, near);
}

Rejection UnknownModel(const fleet::PoolSnapshot& pool, std::string_view model) {
  std::string message = "model " + Quoted(model) + " is not served here";
  if (const auto near = NearestModel(*pool.model_names, model)) {
    message += "; did you mean " + Quoted(*near) + "?";
  }
  return {404, "NotFound", std::move(message), ""};
}

// The endpoints that a hint allows, each once, in the pool's order. A port counts when it is given. Work is
// bounded by the hints and the endpoints: however often a host is named, its endpoints are added once.
void SelectSubset(const fleet::PoolSnapshot& pool, const SubsetHint& hint, std::vector<uint32_t>& out) {
  constexpr size_t kMaxHints = 1000;
  std::vector<std::string> wanted;
  wanted.reserve(std::min(hint.size(), kMaxHints));
  for (const std::string& entry : std::span(hint).first(std::min(hint.size(), kMaxHints))) {
    std::string address = base::CanonicalAddress(entry);
    if (address.size() > 2 && address.front() == '[' && address.back() == ']') {
      address = address.substr(1, address.size() - 2);
    }
    wanted.push_back(std::move(address));
  }
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  out.clear();
  for (const std::string& address : wanted) {
    if (const auto exact = pool.by_address.find(address); exact != pool.by_address.end()) {
      out.push_back(exact->second);
      continue;
    }
    const auto [first, last] = pool.by_host.equal_range(address);
    for (auto it = first; it != last; ++it) out.push_back(it->second);
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
}

Rejection NoEndpoint() {
  return {503, "ServiceUnavailable", "failed to find endpoint candidates for serving the request",
          "rejected-no-endpoints"};
}

// What the decision refused, in the reference's words where it has any.
Rejection Refused(const scheduling::Outcome& outcome) {
  using scheduling::Refusal;
  Rejection rejection{429, "ResourceExhausted", "", "rejected-saturated"};
  switch (outcome.refusal) {
    case Refusal::kFilters:
      rejection.message = "no endpoints available for the given request";
      break;
    case Refusal::kSaturation:
    case Refusal::kRoom:
      rejection.message = "system saturated, sheddable request dropped";
      break;
    case Refusal::kAdmitter:
      rejection.message = "request cannot be admitted by " + std::string(outcome.refused_by);
      break;
    case Refusal::kNotCached:
      rejection = {412, "PreconditionFailed", "no decode worker has the requested KV cache", ""};
      break;
  }
  rejection.refused_by = ToString(outcome.refusal);
  constexpr size_t kMaxName = 128;
  if (!outcome.refused_by.empty())
    rejection.refused_by += "; plugin=" + base::CleanText(outcome.refused_by, kMaxName);
  rejection.retry_after = outcome.retry_after;
  return rejection;
}

std::string_view CutFairnessId(const RequestInput& input) {
  return input.fairness_id.substr(0, kMaxFairnessId);
}

std::string_view FlowLabel(std::string_view fairness_id) {
  return fairness_id.empty() ? kDefaultFlow : fairness_id;
}

// Places that were taken and have no ticket yet: given back where memory runs out on the way to one.
class PickedPlaces {
 public:
  PickedPlaces(const scheduling::Outcome& outcome, const fleet::PoolSnapshot& pool)
      : outcome_(outcome.kind == scheduling::OutcomeKind::kPicked ? &outcome : nullptr), pool_(pool) {}
  PickedPlaces(const PickedPlaces&) = delete;
  PickedPlaces& operator=(const PickedPlaces&) = delete;
  ~PickedPlaces() {
    if (outcome_ == nullptr) return;
    GiveBack(outcome_->choices[0], outcome_->reservation);
    for (size_t i = 0; i < outcome_->num_further; ++i)
      GiveBack(outcome_->further[i].endpoint, outcome_->further[i].reservation);
  }
  void Keep() { outcome_ = nullptr; }

 private:
  void GiveBack(uint32_t endpoint, const fleet::Reservation& reservation) {
    pool_.endpoints[endpoint].cell->Release(reservation, fleet::ReleaseKind::kEnded, 0);
  }
  const scheduling::Outcome* outcome_;
  const fleet::PoolSnapshot& pool_;
};

// What is known of a request on its way to a ticket, beside the facts of its decision.
struct Asked {
  const RequestInput& input;
  Route* route = nullptr;
  RouteTarget* target = nullptr;
  std::string_view model;  // "": not known
  bool unnamed = false;    // it asks for a model, and says none
  base::Nanos start = 0;
  base::Nanos took = 0;  // by the scheduler
};

// The destinations at the one port that stands for all of a server's.
[[gnu::noinline, gnu::cold]] void MoveToPort(const fleet::PoolSnapshot& pool,
                                             const scheduling::Outcome& outcome, std::span<std::string> texts,
                                             std::span<std::string_view> addresses) {
  for (uint32_t i = 0; i < outcome.num_choices; ++i) {
    const std::string& own = pool.endpoints[outcome.choices[i]].address;
    texts[i] = own.substr(0, own.rfind(':') + 1) + std::to_string(outcome.destination_port);
    addresses[i] = texts[i];
  }
}

std::shared_ptr<const payload::PromptTokens> TokensOf(const payload::RequestScanner& body) {
  return body.prompt_hashes() != nullptr ? body.prompt_hashes()->tokens() : nullptr;
}

}  // namespace

std::string RejectionBody(const Rejection& rejection) {
  return "inference error: " + std::string(rejection.code) + " - " + rejection.message;
}

namespace {

std::vector<std::string> HeadersOf(const scheduling::ConfigSet& configs, const scheduling::Config* shadow) {
  std::vector<std::string> headers = configs.common->headers;
  const auto add = [&headers](const scheduling::Config& config) {
    headers.insert(headers.end(), config.headers.begin(), config.headers.end());
  };
  for (const auto& [pool, config] : configs.of_pools) add(*config);
  if (shadow != nullptr) add(*shadow);
  std::sort(headers.begin(), headers.end());
  headers.erase(std::unique(headers.begin(), headers.end()), headers.end());
  return headers;
}

bool Wants(const scheduling::ConfigSet& configs, const scheduling::Config* shadow,
           bool scheduling::Config::* what) {
  return configs.common.get()->*what || (shadow != nullptr && shadow->*what) ||
         std::any_of(configs.of_pools.begin(), configs.of_pools.end(),
                     [what](const auto& of_pool) { return of_pool.second.get()->*what; });
}

// Above all sets of parsers.
constexpr uint32_t kParsersDiffer = 1U << 16;

uint32_t ParsersOfAll(const scheduling::ConfigSet& configs) {
  const payload::Parsers parsers = configs.common->parsers;
  const bool same = std::all_of(configs.of_pools.begin(), configs.of_pools.end(),
                                [&](const auto& of_pool) { return of_pool.second->parsers == parsers; });
  return same ? parsers.bits() : kParsersDiffer;
}

}  // namespace

struct Router::Impl {
  Impl(const base::Published<fleet::Snapshot>& f, const base::Clock& c, base::Registry& registry,
       RouterOptions o)
      : metrics(registry),
        prefixes(
            registry, [this] { return scheduler.configs(); }, [this] { return fleet.Load(); }),
        clock(c),
        scheduler(o.scheduling, c.Now(),
                  o.config != nullptr ? o.config : scheduling::CompileBuiltin(o.scheduling)),
        headers(std::make_shared<const std::vector<std::string>>(
            HeadersOf(*scheduler.configs(), o.shadow.get()))),
        scheduler_duration(metrics.scheduler_duration()),
        wants_prefixes(Wants(*scheduler.configs(), o.shadow.get(), &scheduling::Config::wants_prefixes)),
        wants_tokens(Wants(*scheduler.configs(), o.shadow.get(), &scheduling::Config::wants_tokens)),
        parsers(ParsersOfAll(*scheduler.configs())),
        keeps(Keeps(o) || o.shadow != nullptr),
        keeps_scores(o.keep_scores),
        explains(o.explain || o.keep_scores),
        uses_subset_hint(o.use_subset_hint),
        fleet(f),
        built_in(o.config == nullptr ? scheduler.configs() : nullptr),
        shadow(o.shadow),
        options(WithoutConfigs(std::move(o))) {
    registry.AddCollector([this] { metrics.Collect(fleet.Load(), clock.Now(), options.ready_staleness); });
  }

  // What its configs want to know of requests.
  void PublishWants() {
    const auto configs = scheduler.configs();
    const auto second = shadow.Load();
    const auto wants = [&](bool scheduling::Config::* what) { return Wants(*configs, second.get(), what); };
    wants_prefixes.store(wants(&scheduling::Config::wants_prefixes), std::memory_order_relaxed);
    wants_tokens.store(wants(&scheduling::Config::wants_tokens), std::memory_order_relaxed);
    parsers.store(ParsersOfAll(*configs), std::memory_order_relaxed);
    auto wanted = HeadersOf(*configs, second.get());
    headers.Publish(std::make_shared<const std::vector<std::string>>(std::move(wanted)));
  }
  void CountRejection(Worker::Impl& worker, const RequestInput& input, const Rejection& rejection);
  // Before its labels were known.
  Begun Refuse(Worker::Impl& worker, const RequestInput& input, Rejection rejection);
  Begun RefuseUnpicked(const scheduling::Outcome& outcome, const fleet::PoolSnapshot& pool,
                       RequestSeries& series, Worker::Impl& worker);
  // Those that decided first are freed like others once they were swapped out.
  static RouterOptions WithoutConfigs(RouterOptions o) {
    o.config = o.shadow = nullptr;
    return o;
  }
  static bool Keeps(const RouterOptions& o) {
    return o.explain || o.decisions != nullptr || o.record != nullptr;
  }
  // Where the next decision is kept.
  static scheduling::Recording& Recording(Worker::Impl& worker);
  // The steps of Begin, in their order. FindRoute gives nothing where `asked` has a route then.
  std::optional<Rejection> FindRoute(Asked& asked, Worker::Impl& worker) const;
  const RequestClassPointer& ClassOf(const Asked& asked, const scheduling::RequestText* flow,
                                     Worker::Impl& worker);
  Ticket Issue(const Asked& asked, const RequestClassPointer& request_class,
               const scheduling::Outcome& outcome, PickedPlaces& places, Worker::Impl& worker);
  // It was decided: who wants to know is told.
  void Tell(const Asked& asked, Worker::Impl& worker);
  void DecideShadow(const fleet::PoolSnapshot& pool, Worker::Impl& worker, Decision& decision) const;

  void CountStages(const scheduling::Config::Instance& handler, const scheduling::Outcome& outcome,
                   RequestSeries& series, Worker::Impl& worker);
  // Of a request whose prompt was looked up.
  void CountPrefixes(const fleet::PoolSnapshot& pool, const scheduling::Outcome& outcome,
                     Worker::Impl& worker);

  RouterMetrics metrics;
  PrefixMetrics prefixes;
  // What each request reads, together.
  const base::Clock& clock;
  scheduling::Scheduler scheduler;
  base::Published<std::vector<std::string>> headers;  // that any of its configs reads, in order
  base::Histogram& scheduler_duration;
  std::atomic<bool> wants_prefixes;  // any of its configs does
  std::atomic<bool> wants_tokens;    // the same
  std::atomic<uint32_t> parsers;     // payload::Parsers of all of them, or kParsersDiffer
  std::atomic<bool> keeps;           // somebody wants to know what was decided
  const bool keeps_scores;
  const bool explains;  // while it decides
  const bool uses_subset_hint;
  const base::Published<fleet::Snapshot>& fleet;
  const std::shared_ptr<const scheduling::ConfigSet> built_in;  // null: it was never in use
  base::Published<scheduling::Config> shadow;
  const RouterOptions options;
};

[[gnu::noinline, gnu::cold]] void Router::Impl::CountRejection(Worker::Impl& worker,
                                                               const RequestInput& input,
                                                               const Rejection& rejection) {
  RequestLabels labels{.fairness_id = FlowLabel(CutFairnessId(input)), .priority = "0"};
  // An unknown model's name is the client's text: it would be a series each.
  if (input.body != nullptr && input.body->ok() && rejection.status != 404) {
    labels.model = labels.target_model = input.body->fields().model;
  }
  const fleet::PoolSnapshot* pool = worker.reader.Get()->FindPool(input.pool_key);
  const bool known = labels.model.empty() || (pool != nullptr && pool->Knows(labels.model));
  const base::Nanos now = clock.Now();
  RequestSeries& series = *metrics.Find(worker.series, labels, known, now).series;
  series.last_used.store(now, std::memory_order_relaxed);
  metrics.Errors(series, rejection.code).Add();
}

[[gnu::noinline, gnu::cold]] Begun Router::Impl::Refuse(Worker::Impl& worker, const RequestInput& input,
                                                        Rejection rejection) {
  CountRejection(worker, input, rejection);
  return rejection;
}

[[gnu::noinline, gnu::cold]] Begun Router::Impl::RefuseUnpicked(const scheduling::Outcome& outcome,
                                                                const fleet::PoolSnapshot& pool,
                                                                RequestSeries& series, Worker::Impl& worker) {
  metrics.CountFailure(series);
  const bool nobody = outcome.kind == scheduling::OutcomeKind::kNoCandidates;
  Rejection rejection = nobody ? NoEndpoint() : Refused(outcome);
  if (!nobody) worker.CountRefusal(pool.key, outcome);
  metrics.Errors(series, rejection.code).Add();
  return rejection;
}

[[gnu::noinline]] void Router::Impl::CountPrefixes(const fleet::PoolSnapshot& pool,
                                                   const scheduling::Outcome& outcome, Worker::Impl& worker) {
  const scheduling::Config& config = scheduler.ConfigOf(pool, worker.scratch);
  const uint32_t prompt = worker.facts.prompt_tokens;
  if (!config.cached || prompt == 0) return;
  if (worker.prefix_generation != config.generation) {
    for (const auto& instance : config.plugins) {
      const auto makes = [&](const scheduling::Column& column) { return column.id == config.cached->id; };
      if (std::any_of(instance->makes.begin(), instance->makes.end(), makes))
        worker.prefix_series = prefixes.Of(instance->name, instance->type);
    }
    worker.prefix_generation = config.generation;
  }
  const uint32_t cached = outcome.cached_tokens;
  const PrefixMetrics::Series& series = worker.prefix_series;
  series.hit_ratio->Observe(static_cast<double>(cached) / prompt);
  series.hit_bytes->Observe(4.0 * cached);
  series.predicted_tokens->Observe(cached);
  series.prompt_tokens->Observe(prompt);
  pool.tally->predicted[0].fetch_add(cached, std::memory_order_relaxed);
  pool.tally->predicted[1].fetch_add(prompt - cached, std::memory_order_relaxed);
}

[[gnu::noinline]] void Router::Impl::CountStages(const scheduling::Config::Instance& handler,
                                                 const scheduling::Outcome& outcome, RequestSeries& series,
                                                 Worker::Impl& worker) {
  size_t stages = 0;
  for (uint32_t i = 0; i < outcome.num_further; ++i) {
    stages |= outcome.further[i].header == scheduling::kPrefillHeader  ? 1
              : outcome.further[i].header == scheduling::kEncodeHeader ? 2
                                                                       : 0;
  }
  constexpr std::array<std::string_view, 4> kDecisions{"decode-only", "prefill-decode", "encode-decode",
                                                       "encode-prefill-decode"};
  metrics.Stages(series, worker.series, {handler.name, handler.type, kDecisions[stages]}).Add();
}

[[gnu::noinline]] scheduling::Recording& Router::Impl::Recording(Worker::Impl& worker) {
  if (worker.decision == nullptr) worker.decision = std::make_shared<Decision>();
  return worker.decision->seen;
}

[[gnu::noinline]] void Router::Impl::Tell(const Asked& asked, Worker::Impl& worker) {
  Decision& d = *worker.decision;
  const Route& route = *asked.route;
  const fleet::PoolSnapshot& pool = *route.pool;
  const auto put = [](std::string& to, std::string_view text) {
    to.assign(text.substr(0, Decision::kMaxText));
  };
  d.at = asked.start;
  d.took = asked.took;
  put(d.request_id, asked.input.request_id);
  put(d.pool, pool.key);
  put(d.model, asked.model);
  put(d.target_model, asked.target->name);
  put(d.rewrite, route.rewrite);
  put(d.objective, route.objective);
  put(d.priority, route.priority_text);
  d.declared = route.declared;
  d.built_in = built_in != nullptr && d.seen.config == built_in->common.get();
  d.options = options.scheduling;
  d.seen.facts.critical = route.critical;
  if (d.names == nullptr || d.names->content != pool.content->number) d.names = worker.NamesOf(pool);
  d.shadow.reset();
  DecideShadow(pool, worker, d);
  d.seen.facts.prompts = {};
  if (options.explain) {
    if (d.seen.outcome.kind == scheduling::OutcomeKind::kNoCandidates) worker.explanation = {};
    options.explain(ToText({d, worker.explanation}));
  }
  if (options.record != nullptr) options.record->Add(worker.decision);
  if (options.decisions != nullptr) {
    worker.decision = options.decisions->Add(std::move(worker.decision));
  } else if (worker.decision.use_count() != 1) {
    worker.decision = nullptr;
  }
}

void Router::Impl::DecideShadow(const fleet::PoolSnapshot& pool, Worker::Impl& worker, Decision& d) const {
  const std::shared_ptr<const scheduling::Config>& second = worker.shadow.Get();
  if (second == nullptr || d.seen.num_candidates == 0) return;
  const auto count = [&pool](ShadowOutcome outcome) {
    pool.tally->shadow[static_cast<size_t>(outcome)].fetch_add(1, std::memory_order_relaxed);
  };
  if (!d.seen.has_picture) return count(ShadowOutcome::kNotCompared);
  if (worker.more_scratch == nullptr) worker.more_scratch = std::make_unique<scheduling::Scratch>();
  ShadowChoice& shadow = d.shadow.emplace();
  shadow.config = second;
  shadow.live = d.seen.outcome;
  shadow.live_wait = d.seen.Wait();
  shadow.outcome = scheduling::DecideAgain(
      d.seen, *second, {.options = options.scheduling, .pool = &pool, .wait = &shadow.wait, .hears = true},
      *worker.more_scratch);
  count(shadow.Compare());
  const auto add = [](std::atomic<uint64_t>& sum, float ms) {
    if (ms > 0 && ms < 1e9f) sum.fetch_add(static_cast<uint64_t>(std::lround(ms)), std::memory_order_relaxed);
  };
  // Of those that both sent somewhere: who sheds saves time that nobody wants saved.
  if (shadow.outcome.num_choices == 0 || shadow.live.num_choices == 0) return;
  add(pool.tally->shadow_wait, shadow.wait);
  add(pool.tally->live_wait, shadow.live_wait);
}

[[gnu::noinline]] std::shared_ptr<const EndpointNames> Worker::Impl::NamesOf(
    const fleet::PoolSnapshot& pool) {
  constexpr size_t kMaxKept = 8;  // pools that are asked for in turn
  const auto found = std::find_if(names.begin(), names.end(),
                                  [&](const auto& kept) { return kept->content == pool.content->number; });
  if (found != names.end()) return *found;
  if (names.size() == kMaxKept) names.erase(names.begin());
  return names.emplace_back(EndpointNames::Of(pool));
}

[[gnu::noinline]] void Worker::Impl::KeepHeaders(const RequestInput& input,
                                                 const std::vector<std::string>& wanted, bool by_shadow) {
  size_t kept = 0;
  const auto keep = [&](const std::vector<std::string>& names) {
    for (const std::string& name : names) {
      const auto named = [&name](const auto& header) { return header.first == name; };
      const auto end = facts.headers.begin() + static_cast<std::ptrdiff_t>(kept);
      if (std::any_of(facts.headers.begin(), end, named)) continue;
      if (kept == facts.headers.size()) facts.headers.emplace_back();
      auto& [to, value] = facts.headers[kept++];
      to = name;
      const auto last = std::find_if(input.headers.rbegin(), input.headers.rend(), named);
      value = last != input.headers.rend() ? last->second : std::string_view();
    }
  };
  keep(wanted);
  if (const auto* second = by_shadow ? shadow.Get().get() : nullptr) keep(second->headers);
  facts.headers.resize(kept);
}

[[gnu::hot]] void Worker::Impl::MakeFacts(const RequestInput& input, const Route& route,
                                          const RouteTarget& target, const std::vector<std::string>& wanted,
                                          bool by_shadow) {
  const payload::RequestScanner* body = input.body;
  const payload::RequestFields& fields = body != nullptr ? body->fields() : no_fields;
  // About 4 bytes a token, and the last one may have fewer.
  uint64_t tokens = body != nullptr ? (fields.prompt_bytes + input.unseen_prompt_bytes + 3) / 4 : 0;
  if (input.tokens != nullptr) [[unlikely]]
    tokens = input.tokens->tokens.size();
  facts.target_model = target.name;
  facts.adapter = target.adapter;
  facts.critical = route.critical;
  facts.prompt_tokens = static_cast<uint32_t>(std::min<uint64_t>(tokens, UINT32_MAX));
  facts.shows_first_token = fields.stream && input.shows_answer;  // others' answers begin when they are whole
  facts.shows_end = input.shows_answer;
  facts.priority = route.priority;
  facts.streaming = fields.stream;
  facts.has_media = fields.has_media;
  facts.only_if_cached = input.if_available && body != nullptr;
  facts.max_tokens = static_cast<uint32_t>(std::clamp<int64_t>(fields.max_tokens.value_or(0), 0, UINT32_MAX));
  facts.prompts.cache_salt = fields.cache_salt;
  facts.prompts.tokens = input.tokens == nullptr && body != nullptr ? TokensOf(*body) : input.tokens;
  FindPrefixes(input);
  if (!wanted.empty() || by_shadow || !facts.headers.empty()) [[unlikely]]
    KeepHeaders(input, wanted, by_shadow);
}

void Worker::Impl::FindPrefixes(const RequestInput& input) {
  auto& [prefixes, ends, tokens, salt] = facts.prompts;
  prefixes.clear();
  ends.clear();
  const payload::PromptHasher* hasher = input.unseen_prompt;
  if (hasher == nullptr && input.body != nullptr) hasher = input.body->prompt_hashes();
  if (hasher == nullptr) return;
  hasher->AppendChains(payload::PrefixRoot(facts.target_model, salt), prefixes, ends, true);
  // A prompt that is shorter than a block is met by the same one alone, and costs less than a place in an
  // index.
  uint32_t begin = 0;
  size_t kept = 0, kept_ends = 0;
  for (const auto [end, partial] : ends) {
    if (!partial || end - begin > 1) {
      for (uint32_t i = begin; i < end; ++i) prefixes[kept++] = prefixes[i];
      ends[kept_ends++] = {static_cast<uint32_t>(kept), partial};
    }
    begin = end;
  }
  prefixes.resize(kept);
  ends.resize(kept_ends);
}

void Worker::Impl::CountRefusal(std::string_view pool, const scheduling::Outcome& outcome) {
  constexpr size_t kMaxKept = 64;
  const auto found = std::find_if(refusals.begin(), refusals.end(), [&](const RefusalCounter& kept) {
    return kept.refusal == outcome.refusal && kept.pool == pool && kept.by == outcome.refused_by;
  });
  if (found != refusals.end()) return found->counter->Add();
  base::Counter& counter = metrics.Refusals(pool, outcome);
  counter.Add();
  if (refusals.size() == kMaxKept) refusals.clear();
  refusals.push_back({outcome.refusal, std::string(pool), std::string(outcome.refused_by), &counter});
}

[[gnu::noinline]] void Worker::Impl::FindClass(const Route& route, RouteTarget& target,
                                               std::string_view model, std::string_view fairness_id,
                                               base::Nanos now) {
  const fleet::PoolSnapshot& pool = *route.pool;
  const bool by_manifest = route.declared || !route.rewrite.empty();
  const bool known = (model.empty() || pool.Knows(model)) &&
                     (by_manifest || target.name == model || pool.Knows(target.name));
  auto [found, own] =
      metrics.Find(series, {model, target.name, FlowLabel(fairness_id), route.priority_text}, known, now);
  target.look_again = own ? std::numeric_limits<base::Nanos>::max() : now + base::kSecond;
  target.fairness_id = fairness_id;
  if (target.request_class.only()) {  // no ticket has it: only the series can be others
    target.request_class->series = std::move(found);
    return;
  }
  target.request_class = RequestClassPointer(
      new RequestClass{.has_model = !model.empty(),
                       .rewrites = !model.empty() && !target.name.empty() && model != target.name,
                       .series = std::move(found),
                       .pool_key = pool.key,
                       .model = std::string(model),
                       .target_model = std::string(target.name)});
}

Router::Router(const base::Published<fleet::Snapshot>& fleet, const base::Clock& clock,
               base::Registry& registry, RouterOptions options)
    : impl_(std::make_unique<Impl>(fleet, clock, registry, std::move(options))) {}
Router::~Router() = default;

std::unique_ptr<Worker> Router::NewWorker(uint64_t seed) const {
  auto worker = std::make_unique<Worker::Impl>(impl_->fleet, impl_->headers, impl_->scheduler, impl_->shadow,
                                               impl_->clock, impl_->metrics, seed);
  worker->scratch.MeasureLookups(impl_->clock, impl_->prefixes.lookup_seconds());
  return worker;
}

void Router::Prepare(const fleet::Snapshot& snapshot) {
  impl_->scheduler.Prepare(snapshot, *impl_->scheduler.configs());
}

void Router::Swap(std::shared_ptr<const scheduling::ConfigSet> configs) {
  impl_->scheduler.Prepare(*impl_->fleet.Load(), *configs);
  impl_->scheduler.Swap(std::move(configs));
  impl_->PublishWants();
}

void Router::SwapShadow(std::shared_ptr<const scheduling::Config> shadow) {
  const bool on = shadow != nullptr;
  impl_->shadow.Publish(std::move(shadow));
  impl_->PublishWants();
  impl_->keeps.store(on || Impl::Keeps(impl_->options), std::memory_order_relaxed);
}
void Router::FreeUnused() {
  impl_->scheduler.FreeUnused();
  impl_->shadow.FreeUnused();
}
std::shared_ptr<const scheduling::ConfigSet> Router::configs() const { return impl_->scheduler.configs(); }

std::span<const std::string> Router::WantedHeaders(Worker& worker) const {
  return *static_cast<Worker::Impl&>(worker).wanted_headers.Get();
}

bool Router::HasPutOff(Worker& worker) noexcept {
  return scheduling::Scheduler::HasPutOff(static_cast<Worker::Impl&>(worker).scratch);
}

[[gnu::noinline, gnu::cold]] std::function<void()> Router::TakePutOff(Worker& worker) {
  auto& impl = static_cast<Worker::Impl&>(worker);
  return scheduling::Scheduler::TakePutOff(impl.scratch, std::move(impl.facts.prompts));
}

void Router::RunPutOff(Worker& worker) noexcept {
  try {
    TakePutOff(worker)();
  } catch (const std::bad_alloc&) {
    return;  // not learned
  }
}

bool Router::wants_prefixes() const { return impl_->wants_prefixes.load(std::memory_order_relaxed); }

std::optional<payload::Parsers> Router::parsers() const {
  const uint32_t bits = impl_->parsers.load(std::memory_order_relaxed);
  if (bits == kParsersDiffer) return std::nullopt;
  return payload::Parsers::FromBits(static_cast<uint8_t>(bits));
}

payload::Parsers Router::ParsersOf(Worker& worker, std::string_view pool_key) const {
  if (const auto of_all = parsers()) return *of_all;
  const fleet::PoolSnapshot* pool = static_cast<Worker::Impl&>(worker).reader.Get()->FindPool(pool_key);
  return impl_->scheduler.configs()->Of(pool != nullptr ? pool->key : pool_key).parsers;
}

bool Router::wants_tokens() const { return impl_->wants_tokens.load(std::memory_order_relaxed); }

std::optional<TokenQuestion> Router::AskForTokens(Worker& worker_handle, const RequestInput& input) const {
  const payload::RequestScanner* body = input.body;
  if (!wants_tokens() || body == nullptr || !body->ok() || !input.body_complete) return std::nullopt;
  const bool chat = body->api() == payload::Api::kChatCompletions;
  if (!chat && body->api() != payload::Api::kCompletions) return std::nullopt;
  if (TokensOf(*body) != nullptr) return std::nullopt;
  // What is cached of it makes no difference.
  if (body->prompt_hashes() != nullptr && body->prompt_hashes()->spoiled()) return std::nullopt;
  Worker::Impl& worker = static_cast<Worker::Impl&>(worker_handle);
  const fleet::PoolSnapshot* pool = worker.reader.Get()->FindPool(input.pool_key);
  if (pool == nullptr || pool->endpoints.empty()) return std::nullopt;
  const scheduling::Config& config = impl_->scheduler.ConfigOf(*pool, worker.scratch);
  if (!config.wants_tokens || config.token_source == nullptr) return std::nullopt;
  const auto& where = *config.token_source->token_source();
  return TokenQuestion{.host = where.host,
                       .port = where.port,
                       .path = where.path + (chat ? "/v1/chat/completions/render" : "/v1/completions/render"),
                       .model = where.model,
                       .timeout = body->fields().has_media ? where.media_timeout : where.timeout,
                       .media = body->fields().has_media};
}

bool Router::knew_a_pool() const { return impl_->fleet.Load()->knew_a_pool; }
bool Router::ready() const { return !impl_->fleet.Load()->pools.empty(); }

void Router::CountRejection(Worker& worker, const RequestInput& input, const Rejection& rejection) const {
  impl_->CountRejection(static_cast<Worker::Impl&>(worker), input, rejection);
}

[[gnu::hot]] std::optional<Rejection> Router::Impl::FindRoute(Asked& asked, Worker::Impl& worker) const {
  const RequestInput& input = asked.input;
  if (input.model_rewrite.size() > payload::RequestScanner::kMaxModelBytes) [[unlikely]]
    return BadRequest("the model name in the rewrite header is longer than " +
                      std::to_string(payload::RequestScanner::kMaxModelBytes) + " bytes");
  bool known_api = false;
  if (const payload::RequestScanner* body = input.body) {
    if (!body->ok()) return BadRequest(body->error());
    known_api = payload::NamesModel(body->api());
    if (body->fields().has_model) asked.model = body->fields().model;
    asked.unnamed = known_api && asked.model.empty() && input.body_complete;
  }
  // One picture of the fleet for the whole decision. The reader keeps it alive until it is asked again.
  Route& route = worker.routes.Find(
      *worker.reader.Get(),
      {{input.pool_key, asked.model, input.model_rewrite, input.objective}, asked.unnamed});
  if (route.pool == nullptr) return NoEndpoint();
  asked.route = &route;
  asked.target = &route.Draw(worker.random);
  if (route.unknown_model && known_api) return UnknownModel(*route.pool, asked.model);
  if (!asked.unnamed) [[likely]]
    return std::nullopt;
  if (asked.target->name.empty()) return BadRequest("model not found in request body");
  asked.model = asked.target->name;  // what it is counted as
  return std::nullopt;
}

// What it is counted as: by the fairness id that it says, else by what a plugin says that names agents.
[[gnu::hot]] const RequestClassPointer& Router::Impl::ClassOf(const Asked& asked,
                                                              const scheduling::RequestText* flow,
                                                              Worker::Impl& worker) {
  std::string_view fairness_id = CutFairnessId(asked.input);
  if (flow != nullptr && fairness_id.empty()) [[unlikely]]
    fairness_id = flow->TextOf(worker.facts).substr(0, kMaxFairnessId);
  const RequestClassPointer& request_class =
      worker.ClassOf(*asked.route, *asked.target, asked.model, fairness_id, asked.start);
  RequestSeries& series = *request_class->series;
  series.last_used.store(asked.start, std::memory_order_relaxed);
  if (!asked.route->rewrite.empty()) metrics.Rewrites(series, asked.route->rewrite).Add();
  return request_class;
}

[[gnu::hot]] Ticket Router::Impl::Issue(const Asked& asked, const RequestClassPointer& request_class,
                                        const scheduling::Outcome& outcome, PickedPlaces& places,
                                        Worker::Impl& worker) {
  const RequestInput& input = asked.input;
  const fleet::PoolSnapshot& pool = *asked.route->pool;
  RequestSeries& series = *request_class->series;
  if (series.state.load(std::memory_order_relaxed) == RequestSeries::kNew) [[unlikely]]
    metrics.Show(request_class->series);
  const fleet::Endpoint& first = pool.endpoints[outcome.choices[0]];
  std::array<std::string_view, scheduling::kMaxChoices> addresses;
  for (uint32_t i = 0; i < outcome.num_choices; ++i) {
    addresses[i] = pool.endpoints[outcome.choices[i]].address;
  }
  std::array<std::string, scheduling::kMaxChoices> moved;
  if (outcome.destination_port != 0) [[unlikely]]
    MoveToPort(pool, outcome, moved, addresses);
  Ticket ticket(Ticket::State::Make(worker, request_class, std::span(addresses).first(outcome.num_choices)));
  Ticket::State& state = *ticket.state_;
  state.streaming = worker.facts.streaming;
  state.inserts_model = asked.unnamed;
  state.cell = first.cell;
  state.asks_load = options.ask_load && !input.asks_load;
  state.reservation = outcome.reservation;
  places.Keep();
  state.received_at = input.received_at != 0 ? input.received_at : asked.start;
  // Before anybody asks for the config, which may be a newer one then: the names of headers are the old one's.
  if (outcome.num_further != 0 || outcome.destination_port != 0) [[unlikely]]
    state.KeepFurther(pool, outcome);
  if (outcome.num_session_headers != 0) [[unlikely]]
    state.KeepSessions(pool, outcome);
  if (!worker.facts.prompts.prefixes.empty()) {
    Ticket::State::Extras& extras = state.NeedExtras();
    extras.believed_tokens = outcome.cached_tokens;
    extras.prompt_estimate = worker.facts.prompt_tokens;
    if (!input.provisional) CountPrefixes(pool, outcome, worker);
  }
  if (!input.provisional) {
    series.requests.Add();
    series.request_size.Observe(static_cast<double>(input.body_bytes));
    first.picks->Add(series.target);
    pool.tally->decisions[static_cast<size_t>(outcome.rung)].fetch_add(1, std::memory_order_relaxed);
  }
  if (!asked.model.empty()) series.running.Add(1);
  const scheduling::Config& config = scheduler.ConfigOf(pool, worker.scratch);
  if (config.tells_served) [[unlikely]]
    state.KeepServed();
  if (config.stages != nullptr && !input.provisional) [[unlikely]]
    CountStages(*config.stages, outcome, series, worker);
  // Last: it needs memory, and a ticket that ends for want of it takes back all of the above.
  if (keeps_scores) state.KeepScores(pool, worker.explanation);
  return ticket;
}

[[gnu::hot]] std::variant<Ticket, Rejection> Router::Begin(Worker& worker_handle,
                                                           const RequestInput& input) const {
  Worker::Impl& worker = static_cast<Worker::Impl&>(worker_handle);
  if (HasPutOff(worker)) [[unlikely]]
    RunPutOff(worker);
  Asked asked{.input = input};
  if (auto refused = impl_->FindRoute(asked, worker)) [[unlikely]]
    return impl_->Refuse(worker, input, *std::move(refused));
  asked.start = impl_->clock.Now();
  const fleet::PoolSnapshot& pool = *asked.route->pool;
  const scheduling::Config& config = impl_->scheduler.ConfigOf(pool, worker.scratch);
  const bool keeps = impl_->keeps.load(std::memory_order_relaxed);
  worker.MakeFacts(input, *asked.route, *asked.target, config.headers, keeps);
  const RequestClassPointer& request_class = impl_->ClassOf(asked, config.flow, worker);
  std::optional<std::span<const uint32_t>> candidates;
  if (input.subset != nullptr && impl_->uses_subset_hint) {
    SelectSubset(pool, *input.subset, worker.candidates);
    candidates = worker.candidates;
  }
  const scheduling::Outcome outcome = impl_->scheduler.Pick(
      pool, worker.facts, candidates, asked.start, worker.scratch, worker.random,
      impl_->explains ? &worker.explanation : nullptr, keeps ? &Impl::Recording(worker) : nullptr);
  PickedPlaces places(outcome, pool);
  asked.took = impl_->clock.Now() - asked.start;
  impl_->scheduler_duration.Observe(base::ToSeconds(asked.took));
  if (keeps) [[unlikely]]
    impl_->Tell(asked, worker);
  worker.facts.prompts.tokens = nullptr;  // they may be many
  if (outcome.kind != scheduling::OutcomeKind::kPicked)
    return impl_->RefuseUnpicked(outcome, pool, *request_class->series, worker);
  return impl_->Issue(asked, request_class, outcome, places, worker);
}

}  // namespace fairway::routing
