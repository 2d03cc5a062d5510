#include "frontends/envoy_module/body_watch.h"

#include <algorithm>
#include <utility>

namespace fairway::envoy_module {

[[gnu::hot]] void BodyWatch::Add(WatchedBody& body, abi::Stream stream, base::Nanos now,
                                 base::Nanos timeout) {
  body.watch_ = this;
  body.stream_ = stream;
  body.began_ = now;
  body.due_ = now + std::min(timeout, kLongest);
  body.bytes_ = body.counted_ = 0;
  body.next_ = nullptr;
  body.previous_ = last_;
  (last_ != nullptr ? last_->next_ : first_) = &body;
  last_ = &body;
  if (body.due_ < due_.load(std::memory_order_relaxed)) due_.store(body.due_, std::memory_order_relaxed);
  if (keeper_ == nullptr) Lend(stream);
}

void BodyWatch::Renew(WatchedBody& body, base::Nanos now, base::Nanos timeout) {
  body.due_ = std::min(now + timeout, body.began_ + kLongest);
}

[[gnu::hot]] void BodyWatch::Remove(WatchedBody& body) {
  if (body.watch_ == nullptr) return;
  (body.previous_ != nullptr ? body.previous_->next_ : first_) = body.next_;
  (body.next_ != nullptr ? body.next_->previous_ : last_) = body.previous_;
  bytes_ -= body.counted_;
  body.watch_ = nullptr;
}

void BodyWatch::Order(abi::Stream stream, Event event) {
  abi::Scheduler scheduler = FAIRWAY_ENVOY(http_filter_scheduler_new)(stream);
  FAIRWAY_ENVOY(http_filter_scheduler_commit)(scheduler, event);
  FAIRWAY_ENVOY(http_filter_scheduler_delete)(scheduler);
}

[[gnu::cold]] bool BodyWatch::DropLargest(const WatchedBody& own) {
  WatchedBody* largest = nullptr;
  for (WatchedBody* body = first_; body != nullptr; body = body->next_) {
    if (largest == nullptr || body->counted_ > largest->counted_) largest = body;
  }
  if (largest == nullptr || largest == &own) return largest != nullptr;
  bytes_ -= std::exchange(largest->counted_, 0);
  Order(largest->stream_, kNoRoomEvent);
  return false;
}

[[gnu::cold]] void BodyWatch::Look(base::Nanos now) {
  base::Nanos next = kNever;
  for (WatchedBody* body = first_; body != nullptr; body = body->next_) {
    if (now >= body->due_) {
      Order(body->stream_, kOverdueEvent);
    } else {
      next = std::min(next, body->due_);
    }
  }
  due_.store(next, std::memory_order_relaxed);
}

[[gnu::noinline]] void BodyWatch::Lend(abi::Stream stream) {
  keeper_ = stream;
  abi::Scheduler scheduler = FAIRWAY_ENVOY(http_filter_scheduler_new)(stream);
  const std::lock_guard lock(mutex_);
  scheduler_ = scheduler;
}

// The keeper goes: another one's is lent, if there is one to be watched.
[[gnu::noinline]] void BodyWatch::PassOn() {
  keeper_ = nullptr;
  abi::Scheduler scheduler = nullptr;
  {
    const std::lock_guard lock(mutex_);
    scheduler = std::exchange(scheduler_, nullptr);
  }
  FAIRWAY_ENVOY(http_filter_scheduler_delete)(scheduler);
  if (first_ != nullptr) Lend(first_->stream_);
}

void BodyWatch::Ring(base::Nanos now) {
  if (now < due_.load(std::memory_order_relaxed)) return;
  // Under the lock, so that the worker does not delete it meanwhile. Commit only posts.
  const std::lock_guard lock(mutex_);
  if (scheduler_ != nullptr) FAIRWAY_ENVOY(http_filter_scheduler_commit)(scheduler_, kLookEvent);
}

}  // namespace fairway::envoy_module
