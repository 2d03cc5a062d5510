// Request bodies that Envoy holds back for us while they come: how long one may be silent, and how much all
// of a worker's may hold together.
//
// A worker has no clock that we could set: a request's scheduler is the only way back to its thread. One
// request at a time lends its own (the keeper), and the picker's control loop uses it when a body may be
// overdue. So what comes in time costs a few stores, and on an idle worker the making of one scheduler.
//
// Owned by one of Envoy's worker threads, but for Ring. REQUIRES: outlives the bodies that it watches.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>

#include "base/clock.h"
#include "frontends/envoy_module/abi.h"

namespace fairway::envoy_module {

// What a scheduled event of a stream is for.
enum Event : uint64_t {
  kEndpointsEvent = 0,  // a pool's endpoints may be there
  kLookEvent = 1,       // a body of this worker may be overdue
  kOverdueEvent = 2,    // this stream's body is
  kTokensEvent = 4,     // its prompt's tokens were asked for, and are there or will not come
  kNoRoomEvent = 3,     // this stream's body holds most, and all together hold too much
};

class BodyWatch;

// One body. Lives where its request's other things are; watched from Add to Remove.
class WatchedBody {
 public:
  WatchedBody() = default;
  WatchedBody(const WatchedBody&) = delete;
  WatchedBody& operator=(const WatchedBody&) = delete;
  bool watched() const { return watch_ != nullptr; }
  uint64_t bytes() const { return bytes_; }

 private:
  friend class BodyWatch;
  BodyWatch* watch_ = nullptr;
  WatchedBody* next_ = nullptr;
  WatchedBody* previous_ = nullptr;
  abi::Stream stream_ = nullptr;
  base::Nanos began_ = 0;
  base::Nanos due_ = 0;
  uint64_t bytes_ = 0;
  uint64_t counted_ = 0;  // of them in the worker's sum
};

class BodyWatch {
 public:
  // From a body's first byte to its last, however it drips. As Envoy's request_timeout in our configurations.
  static constexpr base::Nanos kLongest = 300 * base::kSecond;

  BodyWatch() = default;
  BodyWatch(const BodyWatch&) = delete;
  BodyWatch& operator=(const BodyWatch&) = delete;

  // A request's headers came and its body follows, with no silence longer than `timeout`.
  void Add(WatchedBody& body, abi::Stream stream, base::Nanos now, base::Nanos timeout);
  // `size` bytes more.
  void Take(WatchedBody& body, size_t size) {
    body.bytes_ += size;
    body.counted_ += size;
    bytes_ += size;
  }
  void Renew(WatchedBody& body, base::Nanos now, base::Nanos timeout);
  // All of it is there: it holds memory and waits for nobody.
  void Rest(WatchedBody& body) { body.due_ = kNever; }
  // Of any stream's end, watched or not.
  void Remove(WatchedBody& body);
  void Leave(abi::Stream stream) {
    if (keeper_ == stream) [[unlikely]]
      PassOn();
  }

  // The bytes that all hold, but for those whose end was ordered already.
  uint64_t bytes() const { return bytes_; }
  // Orders the end of the one that holds most. True: that is `own`, and its stream is to answer now.
  bool DropLargest(const WatchedBody& own);
  // Orders the end of those that are overdue.
  void Look(base::Nanos now);
  bool Overdue(const WatchedBody& body, base::Nanos now) const { return body.watched() && now >= body.due_; }

  // Any thread: sends the worker to look when one may be overdue.
  void Ring(base::Nanos now);

 private:
  static constexpr base::Nanos kNever = std::numeric_limits<base::Nanos>::max();

  static void Order(abi::Stream stream, Event event);
  void Lend(abi::Stream stream);
  void PassOn();

  WatchedBody* first_ = nullptr;
  WatchedBody* last_ = nullptr;
  uint64_t bytes_ = 0;
  abi::Stream keeper_ = nullptr;          // whose scheduler it is; may be one whose body is long there
  std::atomic<base::Nanos> due_{kNever};  // nobody is overdue before; written by the worker
  std::mutex mutex_;
  abi::Scheduler scheduler_ = nullptr;  // the keeper's
};

}  // namespace fairway::envoy_module
