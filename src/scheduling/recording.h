// What one decision saw and what came of it, kept: the picture, the request's facts, the state of the random
// numbers, the outcome. So it can be decided again, by the same config (then it decides the same: a recorded
// decision is explained when somebody asks for it, and replayed) or by another one (then the difference is
// what the other would do: a shadow).
//
//   Recording recording;                                             // memory is used again
//   scheduler.Pick(pool, request, candidates, now, scratch, random, nullptr, &recording);
//   Outcome again = DecideAgain(recording, *recording.config, {.options = options}, scratch, &explanation);
//
// A config that decides too on live traffic has plugins with a memory of their own (compile it with States of
// its own, or none): they learn by AgainOptions::hears, after they were asked.
//
// What plugins remember between requests is not in it: what they make of it in columns is. A filter or scorer
// that asks its own memory may decide otherwise when it is asked again.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "fleet/snapshot.h"
#include "scheduling/config.h"
#include "scheduling/gather.h"
#include "scheduling/plugin.h"
#include "scheduling/scheduler.h"

namespace fairway::scheduling {

inline constexpr uint32_t kNoPage = UINT32_MAX;  // as an age: there never was one

// Owned by one thread.
struct Recording {
  // Of more than so many candidates no picture is kept: it would cost more than the decision.
  static constexpr size_t kMaxCandidates = 4096;
  static constexpr size_t kMaxText = 512;  // of what clients write

  // Who decided, kept alive. Null where it was read from a file.
  std::shared_ptr<const ConfigSet> configs;
  const Config* config = nullptr;
  bool with_models = false;   // the pool has InferenceModels
  size_t num_candidates = 0;  // also of one that has no picture

  // ---- The picture. Columns by Column::id of `config`, one after the other; by `names` where that is null.
  bool has_picture = false;
  std::vector<uint32_t> endpoint;  // numbers in the pool
  std::vector<uint32_t> own;
  std::vector<uint32_t> fresh;
  std::vector<uint32_t> page_age;  // ms; kNoPage
  // Endpoints of the pool that were no candidates because they refuse connections or answer 503.
  static constexpr size_t kMaxRefusing = 100;
  std::vector<uint32_t> refusing;
  std::vector<uint32_t> refusing_age;  // of their last pages, ms; kNoPage
  std::vector<float> values;           // "prefill" is that of the whole prompt, whatever is cached
  std::vector<std::string> names;
  size_t num_columns = 0;
  bool adapters = false;
  size_t num_fresh = 0;
  base::Nanos silence = 0;
  bool critical_traffic = true;
  bool asks_admitters = true;  // they were asked on this picture, and not on one before it
  base::Nanos now = 0;

  Facts facts;             // texts cut, without tokens; who keeps it for long drops the prompts
  base::Random random{0};  // before the first filter
  Outcome outcome;         // its reservations are none

  size_t size() const { return endpoint.size(); }
  std::string_view ColumnName(size_t id) const {
    return config != nullptr ? std::string_view(config->columns[id].name) : std::string_view(names[id]);
  }
  // Null: it was not recorded.
  const float* FindColumn(std::string_view name) const;
  const float* column(size_t id) const { return values.data() + id * size(); }
  // Until the first token comes from the first choice, as far as its load says: work ahead and own prompt,
  // ms.
  float Wait() const;

  // ---- Called while it is decided, in this order.
  void Begin(const std::shared_ptr<const ConfigSet>& by, const Config& of_pool,
             const fleet::PoolSnapshot& pool, size_t candidates);
  void Keep(const Picture& picture, const Context& context, const fleet::PoolSnapshot& pool, uint32_t reads,
            bool first_round, const Scratch::Impl& s);
  void KeepMade(const Context& context, const Scratch::Impl& s);
};

struct AgainOptions {
  const SchedulerOptions& options;
  // Where snapshot columns come from, and a sign that producers shall run: for a decision of this moment.
  // Null: both kinds of columns are as recorded.
  const fleet::PoolSnapshot* pool = nullptr;
  // Instead of it, for snapshot columns that were not recorded: by candidate. Empty: they are 0.
  std::span<const fleet::Endpoint> endpoints = {};
  // Gets the columns that neither were recorded nor could be made.
  std::vector<std::string>* missing = nullptr;
  // Gets what Recording::Wait says of the first choice, with what is cached by this config's plugins.
  float* wait = nullptr;
  // Once it has decided, the config's plugins hear where the request really went, as RequestHook says: then
  // they know what engines have cached. Only with `pool`.
  bool hears = false;
};

// Decides on what was recorded, takes no place, and tells no plugin of it. kNoCandidates where it has no
// picture.
Outcome DecideAgain(const Recording& recording, const Config& config, const AgainOptions& how,
                    Scratch& scratch, Explanation* explanation = nullptr);

// The choices and further places are the same.
bool SameChoices(const Outcome& a, const Outcome& b);

}  // namespace fairway::scheduling
