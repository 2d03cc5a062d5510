// What one decision sees: the columns, read once from the cells. For the .cc files of this room only.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/published.h"
#include "fleet/snapshot.h"
#include "scheduling/config.h"
#include "scheduling/plugin.h"
#include "scheduling/scheduler.h"

namespace fairway::scheduling {

// Where the live columns (column.h) of a decision lie, and what else is known of each candidate.
struct ScratchArrays {
  float* requests = nullptr;
  float* queue = nullptr;
  float* running = nullptr;
  float* page_queue = nullptr;
  float* kv_usage = nullptr;
  float* work = nullptr;
  float* prefill = nullptr;
  float* tokens = nullptr;
  float* adapter = nullptr;
  float* unseen = nullptr;    // the part of `work` that is not that of our own watched requests
  uint32_t* own = nullptr;    // our open requests, as the place is reserved with
  uint32_t* fresh = nullptr;  // not 0: its page is not older than fresh_for
};

// The snapshot columns of a pool by a config.
struct EndpointColumns {
  uint64_t content = 0;                    // PoolContent::number
  uint64_t generation = 0;                 // Config::generation
  std::vector<std::vector<float>> values;  // of absent columns, then of endpoint columns

  bool AreOf(const Config& config, const fleet::PoolSnapshot& pool) const noexcept {
    return content == pool.content->number && generation == config.generation;
  }
};
using PreparedColumns = std::vector<std::shared_ptr<const EndpointColumns>>;

std::shared_ptr<const EndpointColumns> ComputeEndpointColumns(const Config& config,
                                                              const fleet::PoolSnapshot& pool);

struct Scratch::Impl : ScratchArrays {
  using Arrays = ScratchArrays;
  // Makes room for `n` candidates, by fours: who goes over a column need not look at its end; and for `more`
  // columns beside the live ones.
  void Grow(size_t n, size_t more);
  const Arrays& arrays() const { return *this; }

  // When this worker last decided for a request that may not be shed; long ago: never.
  base::Nanos critical_at = std::numeric_limits<base::Nanos>::min() / 2;
  LookupTimes lookup_times;
  // Of the scheduler that this worker decides for.
  const base::Published<ConfigSet>* published = nullptr;
  std::optional<base::Published<ConfigSet>::Reader> configs;
  std::shared_ptr<const ConfigSet> current;  // that the last decision was made by

  // What plugins have for this worker, of the last configs it decided by; the one in use first.
  struct PluginMemory {
    uint64_t generation = 0;  // Config::generation
    std::vector<std::shared_ptr<void>> made;
  };
  std::vector<PluginMemory> plugin_memory;
  std::span<const std::shared_ptr<void>> MemoryOf(const Config& config);

  size_t capacity = 0;
  size_t more_columns = 0;
  float* total = nullptr;
  float* score = nullptr;
  uint32_t* all = nullptr;  // 0, 1, 2, ...: never written again
  uint32_t* list[2] = {};   // what filters leave
  uint32_t* eligible = nullptr;
  float* no_adapter = nullptr;                    // zeros: never written again
  std::vector<const fleet::EndpointLoad*> loads;  // of a subset
  std::vector<const fleet::EndpointCell*> cells;  // the same
  std::vector<uint32_t> answering;                // numbers of endpoints

  // By Column::id: where it may be written, and where it is read. The latter differ for the column "adapter"
  // where nobody has one, and for snapshot columns of a whole fleet, which are read where they are kept.
  std::array<float*, kMaxColumns> made{};
  std::array<const float*, kMaxColumns> table{};
  // Snapshot columns of the pools that this worker decided for, newest first.
  std::vector<std::shared_ptr<const EndpointColumns>> endpoint_columns;
  // What was computed before it was asked for; of that scheduler, too.
  std::optional<base::Published<PreparedColumns>::Reader> prepared;

  // What the profiles chose that do not answer the request, and the one that does.
  struct Beside {
    const Program* program = nullptr;
    uint32_t endpoint = 0;  // number in the pool
    uint32_t position = 0;  // among the candidates
  };
  std::array<Beside, Config::kMaxProfiles> beside;
  size_t num_beside = 0;
  const Program* answering_program = nullptr;

  // Who put work off at the last decision, and with which memory.
  std::array<const RequestHook*, 4> put_off{};  // more lose theirs
  size_t num_put_off = 0;
  std::shared_ptr<const ConfigSet> put_off_configs;  // keeps them
  std::span<const std::shared_ptr<void>> put_off_memory;

  // The columns one after the other: those of a small pool are a few cache lines.
  std::vector<float> floats;
  std::vector<float> more_floats;
  std::vector<uint32_t> numbers;
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
  base::Nanos silence = 0;  // the same, but not longer than this process is there
};

// Without those that refuse connections; as they are where nobody else is left. The result lies in `s`.
std::optional<std::span<const uint32_t>> LeaveOutRefusing(const fleet::PoolSnapshot& pool,
                                                          std::optional<std::span<const uint32_t>> candidates,
                                                          Scratch::Impl& s);

// Fills the live columns for `request`, and the snapshot columns of `config`. `reads`: live columns that
// somebody will read, a bit per Column::id.
Picture Gather(const SchedulerOptions& options, const Config& config, const Candidates& candidates,
               const Facts& request, base::Nanos now, uint32_t reads, Scratch::Impl& s) noexcept;

// Fills the snapshot columns of `config`.
void GatherEndpointColumns(const Config& config, const Candidates& candidates, Scratch::Impl& s);
// Runs the config's producers on the picture.
void Produce(const Config& config, const Context& context, Scratch::Impl& s) noexcept;
// The two parts of it. What is cached need not be computed.
void RunProducers(const Config& config, const Context& context, Scratch::Impl& s) noexcept;
void SubtractCached(const Config& config, const Context& context, Scratch::Impl& s) noexcept;

}  // namespace fairway::scheduling
