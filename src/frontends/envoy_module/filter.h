// What the streams of one filter share: its configuration, the picker behind it, and what each of Envoy's
// worker threads owns.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/random.h"
#include "frontends/envoy_module/abi.h"
#include "frontends/envoy_module/body_watch.h"
#include "frontends/envoy_module/choices.h"
#include "frontends/envoy_module/config.h"
#include "frontends/request/model_name.h"
#include "frontends/request/token_client.h"
#include "payload/prompt_tokens.h"
#include "payload/request.h"
#include "routing/router.h"

namespace fairway::envoy_module {

// Of a request whose tokens are asked for: between its worker and who answers. Thread-safe.
class TokenWait {
 public:
  using Tokens = std::shared_ptr<const payload::PromptTokens>;
  explicit TokenWait(abi::Scheduler scheduler) : scheduler_(scheduler) {}
  // The answer; null: there is none. Any thread.
  void Answer(Tokens tokens);
  // What was answered; the worker hears of it by kTokensEvent.
  Tokens Take();
  // The stream does not wait any more. On its worker, once.
  void End();

 private:
  std::mutex mutex_;
  abi::Scheduler scheduler_;  // null: nobody waits
  Tokens tokens_;
};

// What a stream needs until its request is decided, and not while its answer is open.
struct Pending {
  Pending() = default;
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;
  [[gnu::cold]] ~Pending();

  base::Nanos received_at = 0;
  uint64_t body_bytes = 0;
  abi::Scheduler scheduler = nullptr;     // while waiting for endpoints
  std::shared_ptr<TokenWait> token_wait;  // null: tokens are not asked for
  bool asked_tokens = false;              // now or before
  bool has_body = false;                  // the scanner is in use
  WatchedBody body;                       // while has_body
  payload::RequestScanner scanner{payload::Api::kUnknown};
};

// Owned by one of Envoy's worker threads: scratch memory that requests take turns with, and their randomness.
struct WorkerState {
  WorkerState(std::unique_ptr<routing::Worker> worker, uint64_t seed)
      : router_worker(std::move(worker)), random(seed) {}

  // Of a request without body as yet.
  std::unique_ptr<Pending> TakePending(base::Nanos received_at);
  void GivePending(std::unique_ptr<Pending> pending) noexcept;
  // Of the worker's thread, where it is called.
  Choices& choices() { return choices_ != nullptr ? *choices_ : *(choices_ = &Choices::OfThisThread()); }

  std::unique_ptr<routing::Worker> router_worker;
  base::Random random;  // for request ids
  std::vector<abi::Header> headers;
  std::vector<abi::Buffer> chunks;
  std::string body;  // a body that is being given another model's name
  BodyWatch bodies;  // of requests that are not decided
  request::RenameBuffers renames;

 private:
  [[gnu::cold]] void MakeSpare();

  static constexpr size_t kSpares = 64;
  std::array<std::unique_ptr<Pending>, kSpares> spares_;
  size_t spare_count_ = 0;
  Choices* choices_ = nullptr;
};

// Requests that wait for the first endpoints of a pool, on Envoy's schedulers: no thread waits. Thread-safe:
// a mutex, taken only by requests that wait.
class Waiters {
 public:
  // Takes over `scheduler`; false (and it is not taken) when `max` wait already.
  bool Add(abi::Scheduler scheduler, uint32_t max);
  // The stream is done with it. Deletes it unless Wake has taken it.
  void Remove(abi::Scheduler scheduler);
  // Commits all: something changed, or time passed.
  void Wake();
  size_t size() const { return count_.load(std::memory_order_relaxed); }

 private:
  std::mutex mutex_;
  std::unordered_set<abi::Scheduler> waiting_;
  std::atomic<size_t> count_{0};
};

// The picker behind filters, as they see it. Thread-safe but for worker(). REQUIRES: what it refers to
// outlives it.
class SharedPicker {
 public:
  struct Parts {
    const routing::Router* router = nullptr;
    const base::Clock* clock = nullptr;
    const base::Log* log = nullptr;
    // Has this pool its first endpoints? Asked only until Settle, on workers. Empty: all have.
    std::function<bool(std::string_view pool_key)> settled;
    // Runs a task on a thread that is none of Envoy's workers. Empty: tasks are run where they come up.
    std::function<void(std::function<void()> task)> post;
    // Asks for a prompt's tokens; the answer comes on any thread. Empty: nobody can be asked.
    std::function<void(request::TokenClient::Question, request::TokenClient::Answer)> ask_tokens;
    uint64_t seed = 0;
    uint32_t concurrency = 1;  // Envoy's worker threads
  };
  explicit SharedPicker(Parts parts);

  const routing::Router& router() const { return *parts_.router; }
  const base::Clock& clock() const { return *parts_.clock; }
  const base::Log& log() const { return *parts_.log; }
  const auto& ask_tokens() const { return parts_.ask_tokens; }
  // Not long after the start: requests ask Ready, and wait. One load later on.
  bool starting(base::Nanos now) const { return now < calm_at_.load(std::memory_order_relaxed); }
  // Has this pool its first endpoints, or will it have none?
  bool settled(std::string_view pool_key) const {
    return settled_.load(std::memory_order_acquire) || parts_.settled(pool_key);
  }
  // From now on a pool without endpoints has none. Any thread. For a moment more requests look whether
  // Envoy's cluster has hosts on their worker: workers hear of them one after the other.
  void Settle();
  // A pool is known, now or once. Until then (the API server may be away) a request is let go where its route
  // fails open. Any thread; asked for requests that found no endpoint.
  bool KnewAPool() {
    if (!knew_a_pool_.load(std::memory_order_relaxed) && parts_.router->ready()) knew_a_pool_ = true;
    return knew_a_pool_.load(std::memory_order_relaxed);
  }
  Waiters& waiters() { return waiters_; }
  // Sends workers to look for bodies that are overdue. Any thread; a few times in the shortest wait.
  void RingForBodies(base::Nanos now);
  // Work that a decision left (Router::HasPutOff), on another thread: what the worker still does comes before
  // its answer, and before those of others. Where too much waits there, it is done here.
  [[gnu::cold]] void RunElsewhere(std::function<void()> task);
  // Of the calling worker thread, whose number Envoy knows. Null for numbers that are none.
  WorkerState* worker(uint32_t index);

 private:
  Parts parts_;
  std::atomic<bool> settled_;
  std::atomic<base::Nanos> calm_at_;
  std::atomic<bool> knew_a_pool_{false};
  Waiters waiters_;
  static constexpr size_t kMaxElsewhere = 64;  // 16 to 64 KiB each
  std::shared_ptr<std::atomic<size_t>> elsewhere_ = std::make_shared<std::atomic<size_t>>(0);
  std::vector<std::unique_ptr<WorkerState>> workers_;  // each entry is used by its thread alone
};

// Counters in Envoy's own statistics: events that are rare, so that they cost nothing.
struct EnvoyCounters {
  size_t faults = 0;       // exceptions that a hook caught
  size_t failed_open = 0;  // requests that went on without a decision
  size_t waited = 0;       // requests that waited for a pool's first endpoints
  size_t timeouts = 0;     // requests whose body did not come in time
  size_t no_room = 0;      // requests whose body held most when all held too much
  bool defined = false;
};

struct Filter {
  FilterConfig config;
  std::shared_ptr<SharedPicker> picker;
  EnvoyCounters counters;
  base::LogLimit fault_log{10 * base::kSecond};
  // A request went to a cluster whose policy did not ask for its host (HostSelection::kPolicy): from then on
  // Envoy is told both ways.
  std::atomic<bool> policy_missing{false};
};

}  // namespace fairway::envoy_module
