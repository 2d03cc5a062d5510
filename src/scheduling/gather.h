// What one decision sees: the columns, read once from the cells. For the .cc files of this room only.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "fleet/snapshot.h"
#include "scheduling/plugin.h"
#include "scheduling/scheduler.h"

namespace fairway::scheduling {

// Where the columns (plugin.h) of a decision lie, and what else is known of each candidate.
struct ScratchArrays {
  float* requests = nullptr;
  float* queue = nullptr;
  float* running = nullptr;
  float* page_queue = nullptr;
  float* kv_usage = nullptr;
  float* work = nullptr;
  float* prefill = nullptr;
  float* unseen = nullptr;    // the part of `work` that is not that of our own watched requests
  uint32_t* own = nullptr;    // our open requests, as the place is reserved with
  uint32_t* fresh = nullptr;  // not 0: its page is not older than fresh_for
};

struct Scratch::Impl : ScratchArrays {
  using Arrays = ScratchArrays;
  // Makes room for `n` candidates, by fours: who goes over a column need not look at its end.
  void Grow(size_t n);
  const Arrays& arrays() const { return *this; }

  // When this worker last decided for a request that may not be shed; long ago: never.
  base::Nanos critical_at = std::numeric_limits<base::Nanos>::min() / 2;

  size_t capacity = 0;
  float* total = nullptr;
  float* score = nullptr;
  uint32_t* all = nullptr;  // 0, 1, 2, ...: never written again
  uint32_t* list[2] = {};   // what filters leave
  uint32_t* eligible = nullptr;
  uint8_t* lora = nullptr;
  uint8_t* no_lora = nullptr;                     // zeros: never written again
  std::vector<const fleet::EndpointLoad*> loads;  // of a subset
  std::vector<const fleet::EndpointCell*> cells;  // the same
  std::vector<uint32_t> answering;                // numbers of endpoints

  // The columns one after the other: those of a small pool are a few cache lines.
  std::vector<float> floats;
  std::vector<uint32_t> numbers;
  std::vector<uint8_t> bytes;
};

// The candidates of one decision.
struct Candidates {
  const fleet::PoolSnapshot* pool = nullptr;
  // Numbers in the pool; nullopt: all of it.
  std::optional<std::span<const uint32_t>> subset;
  size_t size() const { return subset ? subset->size() : pool->endpoints.size(); }
};

struct Picture {
  Columns columns;
  size_t fresh = 0;  // candidates whose page is fresh
  // Of the youngest page, where none is fresh; the most there is when there never was one.
  base::Nanos youngest_age = std::numeric_limits<base::Nanos>::max();
};

// Without those that refuse connections; as they are where nobody else is left. The result lies in `s`.
std::optional<std::span<const uint32_t>> LeaveOutRefusing(const fleet::PoolSnapshot& pool,
                                                          std::optional<std::span<const uint32_t>> candidates,
                                                          Scratch::Impl& s);

// Fills the columns for `request`; those that pages alone tell (plugin.h) only where `pages` asks for them.
Picture Gather(const SchedulerOptions& options, const Candidates& candidates, const Request& request,
               base::Nanos now, bool pages, Scratch::Impl& s) noexcept;

}  // namespace fairway::scheduling
