// The last decisions as JSON, for /debug/decisions: what was asked, who was looked at, why, and the choice.
#pragma once

#include <cstddef>
#include <deque>
#include <mutex>
#include <string>

#include "base/clock.h"
#include "routing/explain.h"

namespace fairway::routing {

// One decision as a JSON object without its braces. Client text and lists are cut, so that it has at most
// some 20 KB.
std::string DecisionJson(const ExplainedRequest& request, const fleet::PoolSnapshot& pool,
                         const scheduling::Outcome& outcome, const scheduling::Explanation& explanation);

// Keeps the last `capacity` decisions, older ones go. Thread-safe: a mutex, held to move one string; only who
// asks for the log pays for it.
class DecisionLog {
 public:
  // REQUIRES: capacity > 0.
  explicit DecisionLog(size_t capacity) : capacity_(capacity) {}
  // `json`: of DecisionJson.
  void Add(base::Nanos now, std::string json);
  // {"decisions":[...]}, the latest first, each with its age.
  std::string Render(base::Nanos now) const;

 private:
  struct Entry {
    base::Nanos at = 0;
    std::string json;
  };
  const size_t capacity_;
  mutable std::mutex mutex_;
  std::deque<Entry> entries_;  // the oldest first
};

}  // namespace fairway::routing
