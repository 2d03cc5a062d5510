#include "prefix/learned_capacity.h"

#include <algorithm>

namespace fairway::prefix {

void LearnedCapacity::SetReported(size_t blocks) {
  if (blocks == reported_) return;
  const double share = reported_ != 0 ? static_cast<double>(blocks_) / static_cast<double>(reported_) : 1;
  reported_ = blocks;
  const auto learned = static_cast<size_t>(share * static_cast<double>(blocks));
  blocks_ = std::min(std::max(learned, kLeast), blocks);
}

LearnedCapacity::Verdict LearnedCapacity::Learn(const CacheTold& told, size_t held, base::Nanos now) {
  if (told.predicted_blocks < kLeastPredicted || told.total_blocks == 0 || told.prompt_tokens == 0)
    return kNothing;
  const double predicted =
      static_cast<double>(told.predicted_blocks) / static_cast<double>(told.total_blocks);
  const double cached = static_cast<double>(told.cached_tokens) / static_cast<double>(told.prompt_tokens);
  if (cached >= kHeld * predicted) {
    full_misses_ = 0;
    const bool nearly_full = held >= blocks_ - blocks_ / 10;
    if (blocks_ >= reported_ || !nearly_full) return kHeldTrue;
    blocks_ = std::min(blocks_ + blocks_ / 64 + 1, reported_);
    return kGrown;
  }
  full_misses_ = told.cached_tokens == 0 ? full_misses_ + 1 : 0;
  if (full_misses_ == 1) row_began_ = now;
  if (full_misses_ >= kGoneAfter && now - row_began_ >= kPause) {
    full_misses_ = 0;
    return kGone;
  }
  if (shrunk_at_ != 0 && now - shrunk_at_ < kPause) return kMissed;
  const size_t was = std::min(blocks_, held);
  const size_t less = std::min(std::max(was - was / 5, kLeast), blocks_);
  if (less == blocks_) return kMissed;
  blocks_ = less;
  shrunk_at_ = std::max<base::Nanos>(now, 1);
  return kShrunk;
}

}  // namespace fairway::prefix
