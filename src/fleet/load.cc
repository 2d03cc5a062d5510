#include "fleet/load.h"

#include <functional>

namespace fairway::fleet {

EndpointLoad& LoadSlab::Take() {
  const std::lock_guard lock(mutex_);
  while (first_free_ < chunks_.size() && chunks_[first_free_]->free == 0) ++first_free_;
  if (first_free_ == chunks_.size()) chunks_.push_back(std::make_unique<Chunk>());
  Chunk& chunk = *chunks_[first_free_];
  EndpointLoad& load = chunk.loads[static_cast<size_t>(std::countr_zero(chunk.free))];
  chunk.free &= chunk.free - 1;
  for (std::atomic<uint64_t>* word : {&load.ledger, &load.scraped, &load.work, &load.unseen}) {
    word->store(0, std::memory_order_relaxed);
  }
  return load;
}

void LoadSlab::Return(const EndpointLoad& load) noexcept {
  const std::lock_guard lock(mutex_);
  constexpr std::less<const EndpointLoad*> before;
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const EndpointLoad* first = chunks_[i]->loads.data();
    if (before(&load, first) || !before(&load, first + kPerChunk)) continue;
    chunks_[i]->free |= uint64_t{1} << (&load - first);
    first_free_ = std::min(first_free_, i);
    return;
  }
}

size_t LoadSlab::capacity() const {
  const std::lock_guard lock(mutex_);
  return chunks_.size() * kPerChunk;
}

}  // namespace fairway::fleet
