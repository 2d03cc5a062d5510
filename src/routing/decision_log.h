// The last decisions, for /debug/decisions: what was asked, who was looked at, why, and the choice; as JSON,
// as text, as a page for people.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/clock.h"
#include "routing/decision.h"

namespace fairway::routing {

enum class DecisionFormat { kJson, kText, kHtml, kPrefixes };

// Keeps the last `capacity` decisions and at most `max_bytes` of them, older ones go. Thread-safe: a mutex,
// held to exchange pointers; only who asks for the log pays for it. Reasons are found when somebody reads, on
// the reader's thread.
class DecisionLog {
 public:
  // REQUIRES: capacity > 0.
  explicit DecisionLog(size_t capacity, size_t max_bytes = 64u << 20)
      : capacity_(capacity), max_bytes_(max_bytes) {}
  // Keeps it. Returns the memory of one that went, for the next; null where none did, or somebody reads it.
  // REQUIRES: nobody changes the decision any more.
  std::shared_ptr<Decision> Add(std::shared_ptr<Decision> decision);

  // JSON: {"decisions":[...]}, the latest first, each with its age and its picture. In pieces of some 64 KiB
  // or one decision, "" after the last. It shows what was kept when it began, without what went meanwhile.
  // `request_id` not empty: those of this request only; an empty function where there is none. REQUIRES: the
  // log outlives it.
  std::function<std::string()> Pages(base::Nanos now, const std::string& request_id = "",
                                     DecisionFormat format = DecisionFormat::kJson) const;
  // All of it.
  std::string Render(base::Nanos now, const std::string& request_id = "",
                     DecisionFormat format = DecisionFormat::kJson) const;

 private:
  class Reader;
  struct Entry {
    std::shared_ptr<Decision> decision;
    size_t bytes = 0;
  };
  // The latest older than number `before` that is of the request; its number. Null: none is.
  std::shared_ptr<const Decision> Before(uint64_t& before, const std::string& request_id) const;

  const size_t capacity_;
  const size_t max_bytes_;
  mutable std::mutex mutex_;
  std::deque<Entry> entries_;  // the oldest first
  size_t bytes_ = 0;
  uint64_t added_ = 0;  // the number of the latest; the first is 1
};

}  // namespace fairway::routing
