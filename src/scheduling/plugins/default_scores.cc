#include "scheduling/plugins/default_scores.h"

#include <limits>

#include "scheduling/plugins/lanes.h"
#include "scheduling/plugins/lora_scores.h"

namespace fairway::scheduling {
namespace {

// (high - v) / range; 1 for all where all are equal, without a branch: there `least` is 1 and `range`, too.
struct Inverse {
  Inverse(Lanes lows, Lanes highs) noexcept : high(Greatest(highs)), range(high - Least(lows)) {
    if (range > 0) return;
    least = range = 1;
  }
  Lanes operator()(const float* values) const noexcept {
    return Greatest(high - Load(values), Fill(least)) / range;
  }

  float high;
  float range;
  float least = 0;
};

Lanes LoraScoresOf(const uint8_t* lora) noexcept {
  return Lanes{kLoraScores[lora[0] & 7], kLoraScores[lora[1] & 7], kLoraScores[lora[2] & 7],
               kLoraScores[lora[3] & 7]};
}

template <bool kLora>
inline void SumOf(const DefaultScores& weights, const Columns& columns, float* total) noexcept {
  constexpr float kMax = std::numeric_limits<float>::max();
  const size_t n = columns.size();
  const float* queue = columns.queue.data();
  const float* running = columns.running.data();
  const float* used = columns.kv_usage.data();
  Lanes queue_lows = Fill(kMax);
  Lanes queue_highs = Fill(-kMax);
  Lanes running_lows = queue_lows;
  Lanes running_highs = queue_highs;
  for (size_t i = 0; i < n; i += kLanes) {
    queue_lows = Least(queue_lows, Load(queue + i));
    queue_highs = Greatest(queue_highs, Load(queue + i));
    running_lows = Least(running_lows, Load(running + i));
    running_highs = Greatest(running_highs, Load(running + i));
  }
  const Inverse by_queue(queue_lows, queue_highs);
  const Inverse by_running(running_lows, running_highs);
  for (size_t i = 0; i < n; i += kLanes) {
    const Lanes free = Least(Greatest(1.0f - Load(used + i), Fill(0)), Fill(1));
    // In the order of the scorers: of floats another order has other last bits.
    Lanes sum = by_queue(queue + i) * weights.queue_weight + free * weights.kv_weight;
    if constexpr (kLora) sum += LoraScoresOf(columns.lora.data() + i) * weights.lora_weight;
    Store(sum + by_running(running + i) * weights.running_weight, total + i);
  }
}

[[gnu::noinline]] void SumWithLora(const DefaultScores& weights, const Columns& columns,
                                   float* total) noexcept {
  SumOf<true>(weights, columns, total);
}

}  // namespace

[[gnu::hot]] void DefaultScores::Sum(const Columns& columns, float* total) const noexcept {
  if (columns.lora_bits != 0) [[unlikely]]
    return SumWithLora(*this, columns, total);
  SumOf<false>(*this, columns, total);
}

}  // namespace fairway::scheduling
