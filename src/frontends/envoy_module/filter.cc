#include "frontends/envoy_module/filter.h"

#include <utility>

namespace fairway::envoy_module {

namespace {
constexpr base::Nanos kStartingAfterSettled = base::kSecond;
}  // namespace

Pending::~Pending() = default;

void WorkerState::MakeSpare() {
  spares_[0] = std::make_unique<Pending>();
  spare_count_ = 1;
}

[[gnu::hot]] std::unique_ptr<Pending> WorkerState::TakePending(base::Nanos received_at) {
  if (spare_count_ == 0) MakeSpare();
  std::unique_ptr<Pending> pending = std::move(spares_[--spare_count_]);
  pending->received_at = received_at;
  pending->body_bytes = 0;
  pending->scheduler = nullptr;
  pending->has_body = false;
  pending->asked_tokens = false;
  return pending;
}

[[gnu::hot]] void WorkerState::GivePending(std::unique_ptr<Pending> pending) noexcept {
  if (spare_count_ < kSpares) spares_[spare_count_++] = std::move(pending);
}

void TokenWait::Answer(Tokens tokens) {
  // Under the lock, so that the stream does not delete its scheduler meanwhile. Commit only posts.
  const std::lock_guard lock(mutex_);
  if (scheduler_ == nullptr) return;
  tokens_ = std::move(tokens);
  FAIRWAY_ENVOY(http_filter_scheduler_commit)(scheduler_, kTokensEvent);
}

TokenWait::Tokens TokenWait::Take() {
  const std::lock_guard lock(mutex_);
  return std::move(tokens_);
}

void TokenWait::End() {
  abi::Scheduler scheduler = nullptr;
  {
    const std::lock_guard lock(mutex_);
    scheduler = std::exchange(scheduler_, nullptr);
    tokens_.reset();
  }
  if (scheduler != nullptr) FAIRWAY_ENVOY(http_filter_scheduler_delete)(scheduler);
}

bool Waiters::Add(abi::Scheduler scheduler, uint32_t max) {
  const std::lock_guard lock(mutex_);
  if (waiting_.size() >= max) return false;
  waiting_.insert(scheduler);
  count_.store(waiting_.size(), std::memory_order_relaxed);
  return true;
}

void Waiters::Remove(abi::Scheduler scheduler) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.erase(scheduler);
    count_.store(waiting_.size(), std::memory_order_relaxed);
  }
  FAIRWAY_ENVOY(http_filter_scheduler_delete)(scheduler);
}

void Waiters::Wake() {
  // Under the lock, so that no stream deletes its scheduler meanwhile. Commit only posts.
  const std::lock_guard lock(mutex_);
  for (abi::Scheduler scheduler : waiting_) {
    FAIRWAY_ENVOY(http_filter_scheduler_commit)(scheduler, kEndpointsEvent);
  }
}

SharedPicker::SharedPicker(Parts parts)
    : parts_(std::move(parts)), settled_(!parts_.settled), calm_at_(parts_.settled ? INT64_MAX : 0) {
  uint64_t seed = parts_.seed;
  for (uint32_t i = 0; i < parts_.concurrency; ++i) {
    const uint64_t own = base::SplitMix64(seed);  // as the ext_proc server seeds its workers
    workers_.push_back(std::make_unique<WorkerState>(parts_.router->NewWorker(own), ~own));
  }
}

void SharedPicker::Settle() {
  if (!settled_.exchange(true, std::memory_order_acq_rel)) {
    calm_at_.store(parts_.clock->Now() + kStartingAfterSettled, std::memory_order_relaxed);
  }
  waiters_.Wake();
}

void SharedPicker::RingForBodies(base::Nanos now) {
  for (const auto& worker : workers_) worker->bodies.Ring(now);
}

void SharedPicker::RunElsewhere(std::function<void()> task) {
  if (!parts_.post || elsewhere_->fetch_add(1, std::memory_order_relaxed) >= kMaxElsewhere) {
    if (parts_.post) elsewhere_->fetch_sub(1, std::memory_order_relaxed);
    return task();
  }
  parts_.post([task = std::move(task), waiting = elsewhere_] {
    task();
    waiting->fetch_sub(1, std::memory_order_relaxed);
  });
}

[[gnu::hot]] WorkerState* SharedPicker::worker(uint32_t index) {
  return index < workers_.size() ? workers_[index].get() : nullptr;
}

}  // namespace fairway::envoy_module
