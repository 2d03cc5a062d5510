// The requests of a workload, one after the other as they become due. What a request is like depends on the
// seed alone, never on what a picker did with those before: all policies get the same.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "replay/workload.h"
#include "simulator/engine.h"

namespace fairway::replay {

struct Request {
  uint32_t traffic = 0;  // number of its class
  uint32_t turn = 0;     // from 0
  uint32_t turns_left = 0;
  uint32_t adapter = 0;
  uint64_t seed = 0;           // of its conversation, and a number of its own in the run
  base::Nanos due = 0;         // since the replay's begin
  uint32_t prompt_tokens = 0;  // system prompt and earlier turns included
  uint32_t answer_tokens = 0;
  std::vector<simulator::PromptSegment> segments;
};

// Owned by one thread; the workload outlives it.
class Traffic {
 public:
  Traffic(const Workload& workload, uint64_t seed);

  // When the next conversation begins; nothing after the last.
  std::optional<base::Nanos> NextDue() const;
  // Its first request. REQUIRES: NextDue() has a value.
  Request Take();
  // The next turn of a conversation whose answer ended then, if there is one.
  std::optional<Request> After(const Request& request, base::Nanos ended) const;

 private:
  struct Source {
    base::Random random;
    base::Nanos due = 0;
    uint64_t count = 0;  // taken
    bool over = false;
  };
  void Advance(size_t number);
  Request MakeFirst(size_t number);
  Request FromTrace(const TrafficClass& traffic, uint64_t number);
  void DrawTurn(Request& request) const;

  const Workload& workload_;
  const uint64_t seed_;
  std::vector<Source> sources_;
};

}  // namespace fairway::replay
