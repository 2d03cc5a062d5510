#include "sources/kv_events/held_blocks.h"

#include <algorithm>

namespace fairway::sources::kv_events {
namespace {

// What no cache holds: garbage shall not make sums run over.
constexpr uint64_t kMost = uint64_t{1} << 48;
constexpr uint64_t kWearsOff = 64;

}  // namespace

// Removals name the group alone.
bool HeldBlocks::Skips(const KvEvent& event) {
  if (!event.group || *event.group < 0 || *event.group >= 64) return !event.whole_prefix;
  const uint64_t bit = uint64_t{1} << *event.group;
  if (event.kind == KvEvent::Kind::kStored)
    skipped_groups_ = event.whole_prefix ? skipped_groups_ & ~bit : skipped_groups_ | bit;
  return (skipped_groups_ & bit) != 0;
}

bool HeldBlocks::Apply(const KvEvent& event) {
  if (event.kind == KvEvent::Kind::kCleared) {
    Clear();
    return true;
  }
  if (Skips(event)) return false;
  Count(event);
  return true;
}

void HeldBlocks::Count(const KvEvent& event) {
  Memory& memory = memories_[event.on_device ? 0 : 1];
  if (event.kind == KvEvent::Kind::kStored) {
    block_size_ = event.block_size;
    memory.removing = false;
    memory.tokens = std::min(memory.tokens + std::min(event.blocks * event.block_size, kMost), kMost);
    return;
  }
  const uint64_t removed = event.blocks * block_size_;
  if (removed > memory.tokens) {  // more than was stored
    memory.tokens = 0;
    known_ = false;
    return;
  }
  if (removed == 0) return;
  // A long prompt takes many blocks away before its own are stored: what counts is where that began, and
  // what was seen before wears off.
  if (known_ && !memory.removing)
    memory.when_full = std::max(memory.tokens, memory.when_full - memory.when_full / kWearsOff);
  memory.removing = true;
  memory.tokens -= removed;
}

void HeldBlocks::Clear() {
  for (Memory& memory : memories_) memory.tokens = 0;
  known_ = true;
}

std::optional<uint64_t> HeldBlocks::tokens() const {
  if (!known_) return std::nullopt;
  return std::max(memories_[0].tokens, memories_[1].tokens);
}

std::optional<uint64_t> HeldBlocks::capacity() const {
  if (!known_) return std::nullopt;
  uint64_t most = 0;
  for (const Memory& memory : memories_) {
    if (memory.tokens != 0 && memory.when_full == 0) return std::nullopt;  // it still fills up
    if (memory.when_full != 0) most = std::max({most, memory.when_full, memory.tokens});
  }
  if (most == 0) return std::nullopt;
  return most;
}

}  // namespace fairway::sources::kv_events
