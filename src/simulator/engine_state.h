// What an Engine keeps of a request and of a step. For engine*.cc only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "simulator/engine.h"

namespace fairway::simulator {

constexpr uint32_t kNoAdapter = UINT32_MAX;

inline BlockHash Mix(BlockHash hash, uint64_t word) {
  uint64_t state = hash ^ word;
  return base::SplitMix64(state);
}

struct Engine::Sequence {
  uint64_t id = 0;
  uint64_t tag = 0;
  uint32_t adapter = kNoAdapter;
  uint32_t prompt_tokens = 0;
  uint32_t max_tokens = 0;
  uint32_t answer_tokens = 0;  // where it ends
  FinishReason end = FinishReason::kStop;

  uint32_t generated = 0;
  uint32_t computed = 0;   // tokens whose keys and values are in the blocks
  uint32_t scheduled = 0;  // tokens computed by the step under way
  uint32_t cached = 0;
  uint32_t preemptions = 0;

  std::vector<BlockHash> content;  // of each full block of the prompt, then of the answer as it grows
  BlockHash tail = 0;              // what the answer goes on with; 0: with what nobody else knows
  std::vector<BlockId> blocks;
  uint32_t marked = 0;  // blocks whose content was told to the pool

  base::Nanos arrival = 0;
  base::Nanos ready = 0;  // its prompt is tokenized
  base::Nanos first_scheduled = 0;
  base::Nanos first_token = 0;
  base::Nanos last_token = 0;

  uint32_t tokens() const { return prompt_tokens + generated; }
};

struct Engine::StepPlan {
  uint32_t budget = 0;
  uint32_t prefill_tokens = 0;
  uint32_t decoding = 0;
  uint32_t loads = 0;
  bool preempted = false;
  std::vector<uint32_t> adapters;  // each once

  bool Has(uint32_t adapter) const {
    return std::find(adapters.begin(), adapters.end(), adapter) != adapters.end();
  }
  void Add(uint32_t adapter) {
    if (adapter != kNoAdapter && !Has(adapter)) adapters.push_back(adapter);
  }
};

}  // namespace fairway::simulator
