#include <algorithm>
#include <utility>

#include "routing/router.h"
#include "routing/worker.h"

namespace fairway::routing {

void Ticket::State::Keep(const Texts& texts, std::span<const std::string_view> list) {
  size_t size = texts.pool_key.size() + texts.model.size() + texts.target_model.size() +
                texts.fairness_id.size() + texts.priority.size() + list.size();
  for (const std::string_view address : list) size += address.size();
  memory = std::make_unique_for_overwrite<char[]>(size);
  char* end = memory.get();
  const auto keep = [&end](std::string_view text) {
    const char* begin = end;
    end = std::copy(text.begin(), text.end(), end);
    return std::string_view(begin, text.size());
  };
  pool_key = keep(texts.pool_key);
  model = keep(texts.model);
  target_model = texts.target_model == texts.model ? model : keep(texts.target_model);
  fairness_id = keep(texts.fairness_id);
  priority = keep(texts.priority);
  const char* begin = end;
  for (const std::string_view address : list) {
    if (end != begin) *end++ = ',';
    keep(address);
  }
  destinations = {begin, static_cast<size_t>(end - begin)};
  first_length = list.empty() ? 0 : static_cast<uint32_t>(list.front().size());
}

void Ticket::State::Release(fleet::ReleaseKind kind) {
  if (cell == nullptr) return;
  cell->Release(reservation, kind);
  cell = nullptr;
  if (!model.empty()) series.running->Add(-1);
}

void Ticket::State::Record() {
  const base::Nanos now = worker->clock.Now();
  const double duration = base::ToSeconds(now - received_at);
  series.duration->Observe(duration);
  if (response_bytes > 0) series.response_size->Observe(static_cast<double>(response_bytes));
  if (!usage.found) return;
  if (usage.input_tokens > 0) series.input_tokens->Observe(static_cast<double>(usage.input_tokens));
  if (usage.cached_tokens > 0) series.cached_tokens->Observe(static_cast<double>(usage.cached_tokens));
  if (usage.output_tokens > 0) {
    const auto tokens = static_cast<double>(usage.output_tokens);
    series.output_tokens->Observe(tokens);
    series.per_output_token->Observe(duration / tokens);
    if (streaming && usage.output_tokens > 1 && first_body_at != 0) {
      series.streaming_per_output_token->Observe(base::ToSeconds(now - first_body_at) / (tokens - 1));
    }
  }
}

Ticket::Ticket(std::unique_ptr<State> state) : state_(std::move(state)) {}
Ticket::Ticket(Ticket&&) noexcept = default;

Ticket& Ticket::operator=(Ticket&& other) noexcept {
  if (this != &other) {
    if (state_ != nullptr) state_->Release(fleet::ReleaseKind::kEnded);
    state_ = std::move(other.state_);
  }
  return *this;
}

Ticket::~Ticket() {
  if (state_ != nullptr) state_->Release(fleet::ReleaseKind::kEnded);
}

std::string_view Ticket::destination() const { return state_->destinations.substr(0, state_->first_length); }
std::string_view Ticket::destinations() const { return state_->destinations; }
std::string_view Ticket::model() const { return state_->model; }
std::string_view Ticket::target_model() const { return state_->target_model; }
bool Ticket::rewrites() const { return state_->rewrites; }
bool Ticket::streaming() const { return state_->streaming; }
std::string_view Ticket::pool_key() const { return state_->pool_key; }
const std::vector<std::pair<std::string, float>>& Ticket::scores() const { return state_->scores; }

void Ticket::OnResponseHeaders(int status, std::string_view served, bool event_stream) {
  State& s = *state_;
  if (event_stream) s.streaming = true;
  if (status >= 400 && !s.error_counted) {
    s.error_counted = true;
    s.worker->metrics.Errors(s.labels(), "ModelServerError").Add();
  }
  if (served.empty() || served == destination() || s.cell == nullptr) return;
  // A retry: the load is where the answer comes from. The pool of now, not of the pick, knows that endpoint's
  // cell.
  const fleet::PoolSnapshot* pool = s.worker->reader.Get()->FindPool(s.pool_key);
  if (pool == nullptr) return;
  const auto found = pool->by_address.find(served);
  if (found == pool->by_address.end()) return;
  s.worker->metrics.ServedElsewhere(s.pool_key).Add();
  auto moved = pool->endpoints[found->second].cell;
  const fleet::Reservation reservation = moved->Reserve(s.reservation.tokens);
  s.cell->Release(s.reservation, fleet::ReleaseKind::kEnded);
  s.cell = std::move(moved);
  s.reservation = reservation;
}

void Ticket::OnResponseBody(uint64_t bytes) {
  State& s = *state_;
  s.response_bytes += bytes;
  if (bytes == 0) return;
  const base::Nanos before = s.last_body_at;
  s.last_body_at = s.worker->clock.Now();
  if (s.first_body_at != 0) {
    if (s.streaming) s.series.inter_token->Observe(base::ToSeconds(s.last_body_at - before));
    return;
  }
  s.first_body_at = s.last_body_at;
  s.series.ttft[s.streaming ? 1 : 0]->Observe(base::ToSeconds(s.first_body_at - s.received_at));
}

void Ticket::OnUsage(const payload::Usage& usage) { state_->usage = usage; }

void Ticket::OnComplete() {
  if (state_->cell == nullptr) return;
  state_->Record();
  state_->Release(fleet::ReleaseKind::kEnded);
}

void Ticket::Detach() { state_->Release(fleet::ReleaseKind::kDetached); }

void Ticket::Abort() {
  if (state_->cell == nullptr) return;
  if (!state_->error_counted) {
    state_->error_counted = true;
    state_->worker->metrics.Errors(state_->labels(), "ClientClosedRequest").Add();
  }
  state_->Release(fleet::ReleaseKind::kEnded);
}

}  // namespace fairway::routing
