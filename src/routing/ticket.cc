#include <algorithm>
#include <limits>
#include <new>
#include <utility>

#include "base/result.h"
#include "base/strings.h"
#include "routing/router.h"
#include "routing/worker.h"
#include "scheduling/config.h"
#include "scheduling/plugin.h"
#include "scheduling/session_token.h"

namespace fairway::routing {

[[gnu::noinline, gnu::cold]] void* SpareBlocks::Allocate(size_t size) {
  const size_t of = ListFor(size);
  return ::operator new(of == kSizes.size() ? size : kSizes[of]);
}

[[gnu::noinline, gnu::cold]] void SpareBlocks::Free(void* block) noexcept { ::operator delete(block); }

SpareBlocks::~SpareBlocks() {
  for (List& list : lists_) {
    while (list.first != nullptr) Free(std::exchange(list.first, list.first->next));
  }
}

[[gnu::hot]] void Ticket::End::operator()(State* state) const noexcept {
  state->Release(fleet::ReleaseKind::kEnded);
  SpareBlocks& spares = state->worker->spares;
  const size_t size = sizeof(State) + state->destinations_size;
  state->~State();
  spares.Give(state, size);
}

[[gnu::hot]] Ticket::Pointer Ticket::State::Make(Worker::Impl& worker,
                                                 const RequestClassPointer& request_class,
                                                 std::span<const std::string_view> addresses) {
  static_assert(sizeof(State) <= 72 && sizeof(Extras) <= 64);  // SpareBlocks::kSizes
  size_t size = addresses.size() - 1;
  for (const std::string_view address : addresses) size += address.size();
  FAIRWAY_CHECK(size <= std::numeric_limits<uint16_t>::max());
  Ticket::Pointer made(new (worker.spares.Take(sizeof(State) + size)) State(worker, request_class));
  State& state = *made;
  state.first_size = static_cast<uint16_t>(addresses.front().size());
  state.destinations_size = static_cast<uint16_t>(size);
  char* end = state.text();
  for (const std::string_view address : addresses) {
    if (end != state.text()) *end++ = ',';
    end = std::copy(address.begin(), address.end(), end);
  }
  return made;
}

[[gnu::hot]] void Ticket::State::Release(fleet::ReleaseKind kind) {
  if (cell == nullptr) return;
  if (extras != nullptr && extras->rare != nullptr) [[unlikely]]
    ReleaseFurther(kind);
  cell->Release(reservation, kind, kind == fleet::ReleaseKind::kDetached ? worker->clock.Now() : 0);
  cell = nullptr;
  if (request_class->has_model) request_class->series->running.Add(-1);
}

[[gnu::hot]] void Ticket::State::Record() {
  RequestSeries& series = *request_class->series;
  const base::Nanos now = worker->clock.Now();
  series.duration.Observe(base::ToSeconds(now - received_at));
  if (extras != nullptr) RecordExtras(series, now);
}

[[gnu::noinline]] void Ticket::State::RecordExtras(RequestSeries& series, base::Nanos now) {
  if (extras->response_bytes > 0) {
    series.response_size.Observe(static_cast<double>(extras->response_bytes));
  }
  if (!extras->has_usage) return;
  const Tokens& tokens = extras->tokens;
  if (extras->prompt_estimate > 0 && extras->tells_cached && tokens.input > 0) TellCache(now);
  if (tokens.input > 0) series.input_tokens.Observe(static_cast<double>(tokens.input));
  if (tokens.cached > 0) series.cached_tokens.Observe(static_cast<double>(tokens.cached));
  if (tokens.output > 0) {
    const auto output = static_cast<double>(tokens.output);
    series.output_tokens.Observe(output);
    series.per_output_token.Observe(base::ToSeconds(now - received_at) / output);
    const base::Nanos first_body_at = extras->first_body_at;
    if (streaming && tokens.output > 1 && first_body_at != 0) {
      series.streaming_per_output_token.Observe(base::ToSeconds(now - first_body_at) / (output - 1));
    }
  }
}

[[gnu::noinline]] void Ticket::State::TellCache(base::Nanos now) {
  const scheduling::CacheTold told{.believed_tokens = extras->believed_tokens,
                                   .prompt_estimate = extras->prompt_estimate,
                                   .cached_tokens = extras->tokens.cached,
                                   .prompt_tokens = extras->tokens.input};
  const auto configs = worker->scheduler.configs();
  if (const fleet::PoolSnapshot* pool = worker->reader.Get()->FindPool(request_class->pool_key)) {
    const auto count = [&](size_t i, uint64_t tokens) {
      pool->tally->told[i].fetch_add(tokens, std::memory_order_relaxed);
    };
    count(0, told.believed_tokens);
    count(1, told.prompt_estimate - std::min(told.believed_tokens, told.prompt_estimate));
    count(2, told.cached_tokens);
    count(3, told.prompt_tokens - std::min(told.cached_tokens, told.prompt_tokens));
  }
  for (const scheduling::RequestHook* hook : configs->Of(request_class->pool_key).hooks)
    hook->Told(*cell, told, now);
  const auto& shadow = worker->shadow.Get();
  if (shadow == nullptr) return;
  for (const scheduling::RequestHook* hook : shadow->hooks) hook->Told(*cell, told, now);
}

[[gnu::noinline]] Ticket::State::Extras& Ticket::State::MakeExtras() {
  extras = new (worker->spares.Take(sizeof(Extras))) Extras();
  return *extras;
}

[[gnu::noinline]] void Ticket::State::EndExtras() noexcept {
  extras->~Extras();
  worker->spares.Give(std::exchange(extras, nullptr), sizeof(Extras));
}

[[gnu::noinline, gnu::cold]] void Ticket::State::CountError(std::string_view code) {
  if (error_counted) return;
  error_counted = true;
  worker->metrics.Errors(*request_class->series, code).Add();
}

// A retry: the load is where the answer comes from. The pool of now, not of the pick, knows that endpoint's
// cell.
[[gnu::noinline, gnu::cold]] bool Ticket::State::MoveTo(std::string_view served) {
  const std::string_view pool_key = request_class->pool_key;
  const fleet::PoolSnapshot* pool = worker->reader.Get()->FindPool(pool_key);
  if (pool == nullptr) return false;
  const auto found = pool->by_address.find(base::CanonicalAddress(served));
  if (found == pool->by_address.end()) return false;
  pool->tally->served_elsewhere.fetch_add(1, std::memory_order_relaxed);
  auto moved = pool->endpoints[found->second].cell;
  // When it began there is not known, so nothing is to be learned from its first token.
  const fleet::Reservation there =
      moved->Reserve(reservation.tokens, worker->clock.Now(), fleet::Reservation::Place::kUnseen);
  cell->Release(reservation, fleet::ReleaseKind::kEnded, 0);
  cell = std::move(moved);
  reservation = there;
  if (extras == nullptr || extras->rare == nullptr) return true;
  Headers& told = extras->rare->response_headers;
  for (size_t i = 0; i < told.size(); ++i) {
    if ((extras->rare->name_server >> i & 1) != 0)
      told[i].second = scheduling::SessionToken(*pool, found->second);
  }
  return true;
}

[[gnu::noinline, gnu::cold]] void Ticket::State::KeepScores(const fleet::PoolSnapshot& pool,
                                                            const scheduling::Explanation& explanation) {
  Scores& scores = NeedRare().scores;
  if (explanation.primary >= explanation.profiles.size()) return;
  // As the reference: who was dropped by a filter has none, which is not 0.
  const auto& totals = explanation.profiles[explanation.primary].totals;
  for (size_t i = 0; i < totals.size() && i < explanation.candidates.size(); ++i) {
    const auto& address = pool.endpoints[explanation.candidates[i].endpoint].address;
    if (totals[i]) scores.emplace_back(address, *totals[i]);
  }
}

[[gnu::noinline, gnu::cold]] Ticket::State::Rare& Ticket::State::NeedRare() {
  Extras& all = NeedExtras();
  if (all.rare == nullptr) all.rare = std::make_unique<Rare>();
  return *all.rare;
}

[[gnu::noinline, gnu::cold]] void Ticket::State::KeepFurther(const fleet::PoolSnapshot& pool,
                                                             const scheduling::Outcome& outcome) {
  Rare& rare = NeedRare();
  if (!outcome.address_header.empty())
    rare.headers.emplace_back(outcome.address_header, pool.endpoints[outcome.choices[0]].address);
  for (const scheduling::Further& further : std::span(outcome.further).first(outcome.num_further)) {
    const fleet::Endpoint& endpoint = pool.endpoints[further.endpoint];
    if (!rare.headers.empty() && rare.headers.back().first == further.header) {
      rare.headers.back().second += "," + endpoint.address;
    } else {
      rare.headers.emplace_back(further.header, endpoint.address);
    }
    rare.places.push_back({endpoint.cell, further.reservation});
  }
}

[[gnu::noinline, gnu::cold]] void Ticket::State::KeepSessions(const fleet::PoolSnapshot& pool,
                                                              const scheduling::Outcome& outcome) {
  Rare& rare = NeedRare();
  for (const auto& [name, endpoint] : std::span(outcome.session_headers).first(outcome.num_session_headers)) {
    if (endpoint == outcome.choices[0]) rare.name_server |= 1u << rare.response_headers.size();
    rare.response_headers.emplace_back(name, scheduling::SessionToken(pool, endpoint));
  }
}

[[gnu::noinline, gnu::cold]] void Ticket::State::KeepServed() {
  Rare& rare = NeedRare();
  rare.tells_served = true;
  rare.response_headers.emplace_back(scheduling::kServedHeader,
                                     "fail: missing destination endpoint served metadata");
}

[[gnu::noinline, gnu::cold]] void Ticket::State::TellServed(std::string_view served) {
  Rare& rare = *extras->rare;
  if (rare.tells_served && !served.empty()) rare.response_headers.back().second = served;
}

// A prefill's place is given back with the first token, all others at the end.
[[gnu::noinline, gnu::cold]] void Ticket::State::ReleaseFurther(fleet::ReleaseKind kind) noexcept {
  const base::Nanos now = kind == fleet::ReleaseKind::kDetached ? worker->clock.Now() : 0;
  for (Rare::Place& place : extras->rare->places) place.cell->Release(place.reservation, kind, now);
  extras->rare->places.clear();
}

[[gnu::hot]] std::string_view Ticket::destination() const { return {state_->text(), state_->first_size}; }
[[gnu::hot]] std::string_view Ticket::destinations() const { return state_->destinations(); }
std::string_view Ticket::model() const { return state_->request_class->model; }
std::string_view Ticket::target_model() const { return state_->request_class->target_model; }
[[gnu::hot]] bool Ticket::rewrites() const { return state_->request_class->rewrites; }
[[gnu::hot]] bool Ticket::inserts_model() const { return state_->inserts_model; }
bool Ticket::streaming() const { return state_->streaming; }
[[gnu::hot]] bool Ticket::asks_load() const { return state_->asks_load; }
std::string_view Ticket::pool_key() const { return state_->request_class->pool_key; }
const Ticket::Scores& Ticket::scores() const {
  const State::Extras* extras = state_->extras;
  return extras != nullptr && extras->rare != nullptr ? extras->rare->scores : state_->worker->no_scores;
}

const Ticket::Headers& Ticket::request_headers() const {
  const State::Extras* extras = state_->extras;
  return extras != nullptr && extras->rare != nullptr ? extras->rare->headers : state_->worker->no_headers;
}
const Ticket::Headers& Ticket::response_headers() const {
  const State::Extras* extras = state_->extras;
  return extras != nullptr && extras->rare != nullptr ? extras->rare->response_headers
                                                      : state_->worker->no_headers;
}

[[gnu::hot]] void Ticket::OnResponseHeaders(int status, std::string_view served, bool event_stream,
                                            bool by_gateway) {
  State& s = *state_;
  if (event_stream) s.streaming = true;
  if (status >= 400) s.CountError("ModelServerError");
  if (s.extras != nullptr && s.extras->rare != nullptr) [[unlikely]]
    s.TellServed(served);
  if (s.cell == nullptr) return;
  if (!served.empty() && served != destination() && !s.MoveTo(served)) return;
  if (status > 0 && status < 500) {
    s.cell->NoteAnswered();
  } else if (status == 503 && !by_gateway) {
    s.cell->NoteUnavailable(s.worker->clock.Now());
  }
}

void Ticket::OnLoad(const AnswerLoad& load) {
  State& s = *state_;
  if (s.cell != nullptr) s.cell->ApplyAnswer(load, s.worker->clock.Now());
}

void Ticket::OnError() { state_->CountError("ModelServerError"); }

[[gnu::hot]] void Ticket::OnFirstToken() {
  State& s = *state_;
  if (s.cell == nullptr || s.reservation.place != fleet::Reservation::Place::kCounted) return;
  if (s.extras != nullptr && s.extras->rare != nullptr) [[unlikely]]
    s.ReleaseFurther(fleet::ReleaseKind::kEnded);
  s.cell->FirstToken(s.reservation, s.worker->clock.Now());
}

void Ticket::OnResponseBody(uint64_t bytes) {
  if (bytes == 0) return;
  State& s = *state_;
  State::Extras& extras = s.NeedExtras();
  extras.response_bytes += bytes;
  RequestSeries& series = *s.request_class->series;
  const base::Nanos before = extras.last_body_at;
  extras.last_body_at = s.worker->clock.Now();
  if (extras.first_body_at != 0) {
    if (s.streaming) series.inter_token.Observe(base::ToSeconds(extras.last_body_at - before));
    return;
  }
  extras.first_body_at = extras.last_body_at;
  if (extras.rare != nullptr) [[unlikely]]
    s.ReleaseFurther(fleet::ReleaseKind::kEnded);
  if (s.cell != nullptr) s.cell->FirstToken(s.reservation, extras.first_body_at);
  series.ttft[s.streaming ? 1 : 0].Observe(base::ToSeconds(extras.first_body_at - s.received_at));
}

void Ticket::OnUsage(const payload::Usage& usage) {
  State::Extras& extras = state_->NeedExtras();
  extras.has_usage = usage.found;
  extras.tells_cached = usage.tells_cached;
  const auto count = [](int64_t tokens) {
    return static_cast<uint32_t>(std::clamp<int64_t>(tokens, 0, UINT32_MAX));
  };
  extras.tokens = {count(usage.input_tokens), count(usage.output_tokens), count(usage.cached_tokens)};
}

[[gnu::hot]] void Ticket::OnComplete() {
  if (state_->cell == nullptr) return;
  state_->Record();
  state_->Release(fleet::ReleaseKind::kEnded);
}

void Ticket::Detach() { state_->Release(fleet::ReleaseKind::kDetached); }

void Ticket::Abort() {
  if (state_->cell == nullptr) return;
  state_->CountError("ClientClosedRequest");
  state_->Release(fleet::ReleaseKind::kEnded);
}

}  // namespace fairway::routing
