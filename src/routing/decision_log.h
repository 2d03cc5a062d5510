// The last decisions as JSON, for /debug/decisions: what was asked, who was looked at, why, and the choice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>

#include "base/clock.h"
#include "routing/explain.h"

namespace fairway::routing {

// One decision as a JSON object without its braces. Client text and lists are cut, so that it has at most
// some 20 KB.
std::string DecisionJson(const ExplainedRequest& request, const fleet::PoolSnapshot& pool,
                         const scheduling::Outcome& outcome, const scheduling::Explanation& explanation);

// Keeps the last `capacity` decisions and at most `max_bytes` of them, older ones go. Thread-safe: a mutex,
// held to move one string; only who asks for the log pays for it.
class DecisionLog {
 public:
  // REQUIRES: capacity > 0.
  explicit DecisionLog(size_t capacity, size_t max_bytes = 64u << 20)
      : capacity_(capacity), max_bytes_(max_bytes) {}
  // `json`: of DecisionJson.
  void Add(base::Nanos now, std::string json);
  // {"decisions":[...]}, the latest first, each with its age: in pieces of some 64 KiB, "" after the last. It
  // shows what was kept when it began, without what went meanwhile. REQUIRES: the log outlives it.
  std::function<std::string()> Pages(base::Nanos now) const;
  // All of it.
  std::string Render(base::Nanos now) const;

 private:
  struct Entry {
    base::Nanos at = 0;
    std::string json;
  };
  // Appends those older than number `before`, from the latest, until `out` is full. Returns the number of the
  // last that it took, 0 when none is left.
  uint64_t AppendBefore(uint64_t before, base::Nanos now, std::string& out) const;

  const size_t capacity_;
  const size_t max_bytes_;
  mutable std::mutex mutex_;
  std::deque<Entry> entries_;  // the oldest first
  size_t bytes_ = 0;
  uint64_t added_ = 0;  // the number of the latest; the first is 1
};

}  // namespace fairway::routing
