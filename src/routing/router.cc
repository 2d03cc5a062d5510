#include "routing/router.h"

#include <algorithm>
#include <array>
#include <span>
#include <string_view>
#include <utility>

#include "routing/decision_log.h"
#include "routing/explain.h"
#include "routing/metrics.h"
#include "routing/worker.h"

namespace fairway::routing {
namespace {

constexpr std::string_view kDefaultFlow = "default-flow";
constexpr size_t kMaxFairnessId = 128;  // longer ones are cut in labels

Rejection BadRequest(std::string message) { return {400, "BadRequest", std::move(message), ""}; }

// Client text in an answer: bounded.
std::string Quoted(std::string_view text) {
  constexpr size_t kMax = 200;
  return "\"" + std::string(text.substr(0, kMax)) + (text.size() > kMax ? "..." : "") + "\"";
}

Rejection UnknownModel(const fleet::PoolSnapshot& pool, std::string_view model) {
  std::vector<std::string> names;
  for (const auto& [name, entry] : pool.models) names.push_back(name);
  std::sort(names.begin(), names.end());
  std::string message = "model " + Quoted(model) + " is not served here";
  if (const auto near = base::Nearest(model, names)) message += "; did you mean " + Quoted(*near) + "?";
  return {404, "NotFound", std::move(message), ""};
}

// REQUIRES: `targets` is not empty.
const std::string& DrawTarget(std::span<const fleet::Target> targets, base::Random& random) {
  if (targets.size() == 1) return targets[0].name;
  const uint64_t drawn = random.Below(targets.back().cumulative_weight);
  const auto found =
      std::upper_bound(targets.begin(), targets.end(), drawn,
                       [](uint64_t d, const auto& target) { return d < target.cumulative_weight; });
  return found->name;
}

// What the pool's InferenceModel, InferenceModelRewrite and InferenceObjective make of a request.
struct Ruling {
  std::string_view target_model;  // of the request or the pool's snapshot
  std::string priority = "0";     // short: not on the heap
  bool unknown_model = false;     // the pool declares its models, and this is none of them
  bool critical = true;           // what nobody declares is not shed
  bool declared = false;          // by an InferenceModel
  std::string_view objective;     // the one that set the priority
  std::string_view rewrite;       // the InferenceModelRewrite that set the target
};

// The target: a rewrite that names the model, else the InferenceModel, else the rewrite of every other model,
// else the header. The priority: the objective, else the InferenceModel. `model_name` is "" when it is not
// known.
Ruling Rule(const fleet::PoolSnapshot& pool, const RequestInput& input, std::string_view model_name,
            base::Random& random) {
  Ruling ruling;
  const fleet::Policies* policies = pool.policies.get();
  const fleet::Model* model = nullptr;
  const fleet::Policies::Rewrite* rewrite = nullptr;
  ruling.target_model = input.model_rewrite.empty() ? model_name : input.model_rewrite;
  if (!model_name.empty()) {
    if (!pool.models.empty()) {
      const auto found = pool.models.find(model_name);
      if (found != pool.models.end()) model = &found->second;
    }
    if (policies != nullptr) rewrite = policies->FindRewrite(model_name);
    if (policies != nullptr && rewrite == nullptr && model == nullptr) rewrite = policies->GenericRewrite();
    ruling.unknown_model = !pool.models.empty() && model == nullptr && rewrite == nullptr;
  }
  if (model != nullptr) {
    ruling.declared = true;
    ruling.critical = model->critical;
    // Below 0 is what may be shed, as with InferenceObjective.
    ruling.priority = model->critical ? "1" : "-1";
  }
  if (rewrite != nullptr) {
    ruling.rewrite = rewrite->name;
    ruling.target_model = DrawTarget(rewrite->targets, random);
  } else if (model != nullptr) {
    ruling.target_model = DrawTarget(model->targets, random);
  }
  const int32_t* priority =
      policies != nullptr && !input.objective.empty() ? policies->FindPriority(input.objective) : nullptr;
  if (priority != nullptr) {
    ruling.objective = input.objective;
    ruling.critical = *priority >= 0;
    ruling.priority = std::to_string(*priority);
  }
  return ruling;
}

// The endpoints that a hint allows, each once, in the pool's order of mention. A port counts when it is
// given.
void SelectSubset(const fleet::PoolSnapshot& pool, const SubsetHint& hint, std::vector<uint32_t>& out) {
  out.clear();
  const auto add = [&out](uint32_t number) { out.push_back(number); };
  for (const std::string& entry : hint) {
    if (const auto exact = pool.by_address.find(entry); exact != pool.by_address.end()) {
      add(exact->second);
      continue;
    }
    std::string_view host = entry;
    if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
    const auto [first, last] = pool.by_host.equal_range(host);
    for (auto it = first; it != last; ++it) add(it->second);
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
}

}  // namespace

std::string RejectionBody(const Rejection& rejection) {
  return "inference error: " + std::string(rejection.code) + " - " + rejection.message;
}

struct Router::Impl {
  Impl(const base::Published<fleet::Snapshot>& f, const base::Clock& c, base::Registry& registry,
       RouterOptions o)
      : fleet(f), clock(c), options(std::move(o)), metrics(registry), scheduler(options.scheduling, c.Now()) {
    registry.AddCollector(
        [this] { metrics.CollectPools(*fleet.Load(), clock.Now(), options.ready_staleness); });
  }

  const base::Published<fleet::Snapshot>& fleet;
  const base::Clock& clock;
  RouterOptions options;
  mutable RouterMetrics metrics;
  scheduling::Scheduler scheduler;
};

Worker::Worker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Worker::~Worker() = default;

Router::Router(const base::Published<fleet::Snapshot>& fleet, const base::Clock& clock,
               base::Registry& registry, RouterOptions options)
    : impl_(std::make_unique<Impl>(fleet, clock, registry, std::move(options))) {}
Router::~Router() = default;

std::unique_ptr<Worker> Router::NewWorker(uint64_t seed) const {
  return std::unique_ptr<Worker>(
      new Worker(std::make_unique<Worker::Impl>(impl_->fleet, impl_->clock, impl_->metrics, seed)));
}

bool Router::ready() const { return !impl_->fleet.Load()->pools.empty(); }

void Router::CountRejection(Worker& worker, const RequestInput& input, const Rejection& rejection) const {
  RequestLabels labels{
      .fairness_id = input.fairness_id.empty() ? kDefaultFlow : input.fairness_id.substr(0, kMaxFairnessId),
      .priority = "0"};
  // An unknown model's name is the client's text: it would be a series each.
  if (input.body != nullptr && input.body->ok() && rejection.status != 404) {
    labels.model = labels.target_model = input.body->fields().model;
  }
  worker.impl_->metrics.Errors(labels, rejection.code).Add();
}

std::variant<Ticket, Rejection> Router::Begin(Worker& worker_handle, const RequestInput& input) const {
  Worker::Impl& worker = *worker_handle.impl_;
  std::optional<RequestLabels> labels;  // once they are known
  const auto reject = [&](Rejection rejection) -> std::variant<Ticket, Rejection> {
    if (labels && rejection.status != 404) {
      worker.metrics.Errors(*labels, rejection.code).Add();
    } else {
      CountRejection(worker_handle, input, rejection);
    }
    return rejection;
  };
  const auto no_endpoint = [] {
    return Rejection{503, "ServiceUnavailable", "failed to find endpoint candidates for serving the request",
                     "rejected-no-endpoints"};
  };

  const payload::RequestScanner* body = input.body;
  if (body != nullptr && !body->ok()) return reject(BadRequest(body->error()));
  const bool known_api = body != nullptr && body->api() != payload::Api::kUnknown;
  const bool has_model = body != nullptr && body->fields().has_model && !body->fields().model.empty();
  if (known_api && !has_model && input.body_complete) {
    return reject(BadRequest("model not found in request body"));
  }

  // One picture of the fleet for the whole decision. The copy keeps it alive across a publish.
  const std::shared_ptr<const fleet::Snapshot> snapshot = worker.reader.Get();
  const fleet::PoolSnapshot* pool = snapshot->FindPool(input.pool_key);
  if (pool == nullptr) return reject(no_endpoint());

  const std::string_view model = has_model ? std::string_view(body->fields().model) : std::string_view();
  const std::string_view fairness_id =
      input.fairness_id.empty() ? kDefaultFlow : input.fairness_id.substr(0, kMaxFairnessId);
  const Ruling ruling = Rule(*pool, input, model, worker.random);
  const std::string_view target_model = ruling.target_model;
  if (ruling.unknown_model && known_api) return reject(UnknownModel(*pool, model));
  if (!ruling.rewrite.empty()) worker.cache.Rewrites(ruling.rewrite, model, target_model).Add();
  labels = RequestLabels{model, target_model, fairness_id, ruling.priority};

  std::optional<std::span<const uint32_t>> candidates;
  if (input.subset != nullptr && impl_->options.use_subset_hint) {
    SelectSubset(*pool, *input.subset, worker.candidates);
    candidates = worker.candidates;
  }

  uint64_t tokens = 0;
  if (body != nullptr) tokens = body->fields().prompt_bytes / 4;  // about 4 bytes a token
  const scheduling::Request request{
      .target_model = target_model,
      .adapter = pool->AdapterId(target_model),
      .critical = ruling.critical,
      .prompt_tokens = static_cast<uint32_t>(std::min<uint64_t>(tokens, UINT32_MAX)),
  };
  const bool explain = static_cast<bool>(impl_->options.explain) || impl_->options.decisions != nullptr;
  const bool record = explain || impl_->options.keep_scores;
  const base::Nanos start = impl_->clock.Now();
  const scheduling::Outcome outcome =
      impl_->scheduler.Pick(*pool, request, candidates, start, worker.scratch, worker.random,
                            record ? &worker.explanation : nullptr);
  const base::Nanos took = impl_->clock.Now() - start;
  impl_->metrics.scheduler_duration().Observe(base::ToSeconds(took));
  if (explain) {
    if (outcome.kind == scheduling::OutcomeKind::kNoCandidates) worker.explanation = {};
    const ExplainedRequest told{.request_id = input.request_id,
                                .model = model,
                                .target_model = target_model,
                                .critical = ruling.critical,
                                .declared = ruling.declared,
                                .rewrite = ruling.rewrite,
                                .objective = ruling.objective,
                                .priority = ruling.priority,
                                .took = took};
    if (impl_->options.explain) impl_->options.explain(Explain(told, *pool, outcome, worker.explanation));
    if (impl_->options.decisions != nullptr)
      impl_->options.decisions->Add(start, DecisionJson(told, *pool, outcome, worker.explanation));
  }
  if (outcome.kind != scheduling::OutcomeKind::kPicked) {
    impl_->metrics.Attempts(target_model, nullptr).Add();
    if (outcome.kind == scheduling::OutcomeKind::kNoCandidates) return reject(no_endpoint());
    return reject(
        {429, "ResourceExhausted", "system saturated, sheddable request dropped", "rejected-saturated"});
  }

  std::array<std::string_view, scheduling::kMaxChoices> addresses;
  for (uint32_t i = 0; i < outcome.num_choices; ++i) {
    addresses[i] = pool->endpoints[outcome.choices[i]].address;
  }
  auto state = std::make_unique<Ticket::State>();
  state->worker = &worker;
  state->Keep({.pool_key = pool->key,
               .model = model,
               .target_model = target_model,
               .fairness_id = fairness_id,
               .priority = ruling.priority},
              std::span(addresses).first(outcome.num_choices));
  state->rewrites = has_model && !target_model.empty() && target_model != model;
  state->streaming = body != nullptr && body->fields().stream;
  state->cell = pool->endpoints[outcome.choices[0]].cell;
  state->reservation = outcome.reservation;
  state->received_at = input.received_at != 0 ? input.received_at : start;
  if (impl_->options.keep_scores) {
    for (const auto& c : worker.explanation.candidates) {
      state->scores.emplace_back(pool->endpoints[c.endpoint].address, c.score);
    }
  }
  worker.cache.Decisions(pool->key, outcome.rung).Add();
  worker.cache.Attempts(snapshot->version, *pool, outcome.choices[0], target_model).Add();
  state->series = worker.cache.Series(state->labels());
  if (!input.provisional) {
    state->series.requests->Add();
    state->series.request_size->Observe(static_cast<double>(input.body_bytes));
  }
  if (!model.empty()) state->series.running->Add(1);
  return Ticket(std::move(state));
}

}  // namespace fairway::routing
