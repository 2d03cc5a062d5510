#include "routing/router.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <limits>
#include <span>
#include <string_view>
#include <utility>

#include "routing/decision_log.h"
#include "routing/explain.h"
#include "routing/metrics.h"
#include "routing/worker.h"

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

Rejection Saturated() {
  return {429, "ResourceExhausted", "system saturated, sheddable request dropped", "rejected-saturated"};
}

std::string_view CutFairnessId(const RequestInput& input) {
  return input.fairness_id.substr(0, kMaxFairnessId);
}

std::string_view FlowLabel(std::string_view fairness_id) {
  return fairness_id.empty() ? kDefaultFlow : fairness_id;
}

// A place that was taken and has no ticket yet: given back where memory runs out on the way to one.
class PickedPlace {
 public:
  PickedPlace(const scheduling::Outcome& outcome, const fleet::PoolSnapshot& pool)
      : cell_(outcome.kind == scheduling::OutcomeKind::kPicked ? pool.endpoints[outcome.choices[0]].cell.get()
                                                               : nullptr),
        reservation_(outcome.reservation) {}
  PickedPlace(const PickedPlace&) = delete;
  PickedPlace& operator=(const PickedPlace&) = delete;
  ~PickedPlace() {
    if (cell_ != nullptr) cell_->Release(reservation_, fleet::ReleaseKind::kEnded, 0);
  }
  void Keep() { cell_ = nullptr; }

 private:
  fleet::EndpointCell* cell_;
  fleet::Reservation reservation_;
};

}  // namespace

std::string RejectionBody(const Rejection& rejection) {
  return "inference error: " + std::string(rejection.code) + " - " + rejection.message;
}

struct Router::Impl {
  Impl(const base::Published<fleet::Snapshot>& f, const base::Clock& c, base::Registry& registry,
       RouterOptions o)
      : metrics(registry),
        clock(c),
        scheduler(o.scheduling, c.Now()),
        scheduler_duration(metrics.scheduler_duration()),
        explains(o.explain || o.decisions != nullptr),
        keeps_scores(o.keep_scores),
        uses_subset_hint(o.use_subset_hint),
        fleet(f),
        options(std::move(o)) {
    registry.AddCollector([this] { metrics.Collect(fleet.Load(), clock.Now(), options.ready_staleness); });
  }

  void CountRejection(Worker::Impl& worker, const RequestInput& input, const Rejection& rejection);
  // Before its labels were known.
  Begun Refuse(Worker::Impl& worker, const RequestInput& input, Rejection rejection);
  Begun RefuseUnpicked(scheduling::OutcomeKind kind, RequestSeries& series);
  void Tell(const ExplainedRequest& told, const fleet::PoolSnapshot& pool, const scheduling::Outcome& outcome,
            base::Nanos start, scheduling::Explanation& explanation);

  RouterMetrics metrics;
  // What each request reads, together.
  const base::Clock& clock;
  const scheduling::Scheduler scheduler;
  base::Histogram& scheduler_duration;
  const bool explains;  // to somebody
  const bool keeps_scores;
  const bool uses_subset_hint;
  const base::Published<fleet::Snapshot>& fleet;
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

[[gnu::noinline, gnu::cold]] Begun Router::Impl::RefuseUnpicked(scheduling::OutcomeKind kind,
                                                                RequestSeries& series) {
  metrics.CountFailure(series);
  Rejection rejection = kind == scheduling::OutcomeKind::kNoCandidates ? NoEndpoint() : Saturated();
  metrics.Errors(series, rejection.code).Add();
  return rejection;
}

[[gnu::noinline, gnu::cold]] void Router::Impl::Tell(const ExplainedRequest& told,
                                                     const fleet::PoolSnapshot& pool,
                                                     const scheduling::Outcome& outcome, base::Nanos start,
                                                     scheduling::Explanation& explanation) {
  if (outcome.kind == scheduling::OutcomeKind::kNoCandidates) explanation = {};
  if (options.explain) options.explain(Explain(told, pool, outcome, explanation));
  if (options.decisions != nullptr)
    options.decisions->Add(start, DecisionJson(told, pool, outcome, explanation));
}

[[gnu::noinline]] void Worker::Impl::FindClass(const Route& route, RouteTarget& target,
                                               std::string_view model, std::string_view fairness_id,
                                               base::Nanos now) {
  const fleet::PoolSnapshot& pool = *route.pool;
  const bool by_manifest = route.declared || !route.rewrite.empty();
  const bool known = (model.empty() || pool.Knows(model)) &&
                     (by_manifest || target.name == model || pool.Knows(target.name));
  auto [found, own] =
      metrics.Find(series, {model, target.name, FlowLabel(fairness_id), route.priority}, known, now);
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
  return std::make_unique<Worker::Impl>(impl_->fleet, impl_->clock, impl_->metrics, seed);
}

bool Router::knew_a_pool() const { return impl_->fleet.Load()->knew_a_pool; }
bool Router::ready() const { return !impl_->fleet.Load()->pools.empty(); }

void Router::CountRejection(Worker& worker, const RequestInput& input, const Rejection& rejection) const {
  impl_->CountRejection(static_cast<Worker::Impl&>(worker), input, rejection);
}

[[gnu::hot]] std::variant<Ticket, Rejection> Router::Begin(Worker& worker_handle,
                                                           const RequestInput& input) const {
  Worker::Impl& worker = static_cast<Worker::Impl&>(worker_handle);
  const payload::RequestScanner* body = input.body;
  std::string_view model;  // "": not known
  bool known_api = false;
  bool stream = false;
  bool unnamed = false;  // it asks for a model, and says none
  uint64_t tokens = 0;
  if (body != nullptr) {
    if (!body->ok()) return impl_->Refuse(worker, input, BadRequest(body->error()));
    const payload::RequestFields& fields = body->fields();
    known_api = body->api() != payload::Api::kUnknown;
    if (fields.has_model) model = fields.model;
    unnamed = known_api && model.empty() && input.body_complete;
    stream = fields.stream;
    tokens = (fields.prompt_bytes + input.unseen_prompt_bytes) / 4;  // about 4 bytes a token
  }

  // One picture of the fleet for the whole decision. The reader keeps it alive until it is asked again.
  const fleet::Snapshot& snapshot = *worker.reader.Get();
  Route& route =
      worker.routes.Find(snapshot, {{input.pool_key, model, input.model_rewrite, input.objective}, unnamed});
  if (route.pool == nullptr) return impl_->Refuse(worker, input, NoEndpoint());
  const fleet::PoolSnapshot& pool = *route.pool;
  RouteTarget& target = route.Draw(worker.random);
  if (route.unknown_model && known_api) return impl_->Refuse(worker, input, UnknownModel(pool, model));
  if (unnamed) [[unlikely]] {
    if (target.name.empty())
      return impl_->Refuse(worker, input, BadRequest("model not found in request body"));
    model = target.name;  // what it is counted as
  }
  const base::Nanos start = impl_->clock.Now();
  const RequestClassPointer& request_class =
      worker.ClassOf(route, target, model, CutFairnessId(input), start);
  RequestSeries& series = *request_class->series;
  series.last_used.store(start, std::memory_order_relaxed);
  if (!route.rewrite.empty()) impl_->metrics.Rewrites(series, route.rewrite).Add();

  std::optional<std::span<const uint32_t>> candidates;
  if (input.subset != nullptr && impl_->uses_subset_hint) {
    SelectSubset(pool, *input.subset, worker.candidates);
    candidates = worker.candidates;
  }
  const scheduling::Request request{
      .target_model = target.name,
      .adapter = target.adapter,
      .critical = route.critical,
      .prompt_tokens = static_cast<uint32_t>(std::min<uint64_t>(tokens, UINT32_MAX)),
      .shows_first_token = stream && input.shows_answer,  // others' answers begin when they are complete
  };
  const scheduling::Outcome outcome =
      impl_->scheduler.Pick(pool, request, candidates, start, worker.scratch, worker.random,
                            impl_->explains || impl_->keeps_scores ? &worker.explanation : nullptr);
  PickedPlace place(outcome, pool);
  const base::Nanos took = impl_->clock.Now() - start;
  impl_->scheduler_duration.Observe(base::ToSeconds(took));
  if (impl_->explains) {
    impl_->Tell({.request_id = input.request_id,
                 .model = model,
                 .target_model = target.name,
                 .critical = route.critical,
                 .declared = route.declared,
                 .rewrite = route.rewrite,
                 .objective = route.objective,
                 .priority = route.priority,
                 .took = took},
                pool, outcome, start, worker.explanation);
  }
  if (outcome.kind != scheduling::OutcomeKind::kPicked) {
    return impl_->RefuseUnpicked(outcome.kind, series);
  }

  if (series.state.load(std::memory_order_relaxed) == RequestSeries::kNew) [[unlikely]]
    impl_->metrics.Show(request_class->series);
  const fleet::Endpoint& first = pool.endpoints[outcome.choices[0]];
  std::array<std::string_view, scheduling::kMaxChoices> addresses;
  for (uint32_t i = 0; i < outcome.num_choices; ++i) {
    addresses[i] = pool.endpoints[outcome.choices[i]].address;
  }
  Ticket ticket(Ticket::State::Make(worker, request_class, std::span(addresses).first(outcome.num_choices)));
  Ticket::State& state = *ticket.state_;
  state.streaming = stream;
  state.inserts_model = unnamed;
  state.cell = first.cell;
  state.reservation = outcome.reservation;
  place.Keep();
  state.received_at = input.received_at != 0 ? input.received_at : start;
  if (!input.provisional) {
    series.requests.Add();
    series.request_size.Observe(static_cast<double>(input.body_bytes));
    first.picks->Add(series.target);
    pool.tally->decisions[static_cast<size_t>(outcome.rung)].fetch_add(1, std::memory_order_relaxed);
  }
  if (!model.empty()) series.running.Add(1);
  // Last: it needs memory, and a ticket that ends for want of it takes back all of the above.
  if (impl_->keeps_scores) state.KeepScores(pool, worker.explanation);
  return ticket;
}

}  // namespace fairway::routing
