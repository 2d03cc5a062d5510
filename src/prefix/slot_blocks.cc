#include "prefix/slot_blocks.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "base/strings.h"

namespace fairway::prefix {

// Odd: no two names become one.
const uint64_t SlotBlocks::kSecret = base::StringHash()("buckets of names") | 1;

uint32_t SlotBlocks::Find(uint64_t block) const {
  if (size_ == 0) return kNone;
  uint32_t node = nodes_[BucketOf(block)].first;
  while (node != kNone && nodes_[node].block() != block) node = nodes_[node].next;
  return node;
}

void SlotBlocks::PutBehind(uint32_t node, uint32_t after) {
  Node& n = nodes_[node];
  n.newer = after == kFront ? kNone : after;
  n.older = after == kFront ? newest_ : nodes_[after].older;
  (n.newer == kNone ? newest_ : nodes_[n.newer].older) = node;
  (n.older == kNone ? oldest_ : nodes_[n.older].newer) = node;
}

void SlotBlocks::Unlink(uint32_t node) {
  const Node& n = nodes_[node];
  (n.newer == kNone ? newest_ : nodes_[n.newer].older) = n.older;
  (n.older == kNone ? oldest_ : nodes_[n.older].newer) = n.newer;
}

void SlotBlocks::Move(uint32_t node, uint32_t after) {
  // A chain with the same block twice is no prompt's, but may be told.
  if (node == after || nodes_[node].newer == after || (after == kFront && newest_ == node)) return;
  Unlink(node);
  PutBehind(node, after);
}

uint32_t SlotBlocks::Add(uint64_t block, uint32_t after, size_t most) {
  if (size_ == nodes_.size()) Resize(std::min(most, std::max<size_t>(2 * size_, 64)));
  const auto node = static_cast<uint32_t>(size_++);
  uint32_t& first = Bucket(block);
  nodes_[node].high = static_cast<uint32_t>(block >> 32);
  nodes_[node].low = static_cast<uint32_t>(block);
  nodes_[node].before = after == kFront ? 0 : nodes_[after].low;
  nodes_[node].next = first;
  first = node;
  PutBehind(node, after);
  return node;
}

void SlotBlocks::AddLast(uint64_t block, const uint64_t* before, size_t most) {
  const uint32_t node = Add(block, size_ == 0 ? kFront : oldest_, most);
  nodes_[node].before = before == nullptr ? 0 : static_cast<uint32_t>(*before);
}

// By halves of hashes, as RemoveWithAllBehind. Where two have the same half, the later one counts.
std::vector<SlotBlocks::Link> SlotBlocks::Newest(size_t most) const {
  std::vector<Link> list;
  list.reserve(std::min(most, size_));
  std::unordered_map<uint32_t, uint32_t, Hash> places;
  for (uint32_t node = newest_; node != kNone && list.size() < most; node = nodes_[node].older) {
    const auto place = static_cast<uint32_t>(list.size());
    const auto found = places.find(nodes_[node].before);
    const bool first = nodes_[node].before == 0 || found == places.end();
    list.push_back({.block = nodes_[node].block(), .behind = first ? 0 : place - found->second});
    places[nodes_[node].low] = place;
  }
  return list;
}

// Its place in the array is taken by the node that stood last there.
void SlotBlocks::Remove(uint32_t node) {
  const auto link_to = [this](uint32_t which) -> uint32_t& {
    uint32_t* link = &Bucket(nodes_[which].block());
    while (*link != which) link = &nodes_[*link].next;
    return *link;
  };
  link_to(node) = nodes_[node].next;
  Unlink(node);
  const auto last = static_cast<uint32_t>(--size_);
  if (node == last) return;
  link_to(last) = node;
  Node& n = nodes_[node];
  const uint32_t first = n.first;
  n = nodes_[last];
  n.first = first;
  (n.newer == kNone ? newest_ : nodes_[n.newer].older) = node;
  (n.older == kNone ? oldest_ : nodes_[n.older].newer) = node;
}

size_t SlotBlocks::Last(std::span<uint64_t> last) const {
  size_t count = 0;
  for (uint32_t node = oldest_; node != kNone && count < last.size(); node = nodes_[node].newer)
    last[count++] = nodes_[node].block();
  return count;
}

uint64_t SlotBlocks::TakeLast() {
  const uint64_t block = nodes_[oldest_].block();
  Remove(oldest_);
  return block;
}

// By halves of hashes: who is taken for one behind it wrongly (1 in 2^32) goes with all that is behind him.
void SlotBlocks::RemoveWithAllBehind(uint64_t block, std::vector<uint64_t>& gone) {
  const uint32_t begin = Find(block);
  if (begin == kNone) return;
  const size_t kept = gone.size();
  std::unordered_set<uint32_t, Hash> lows = {nodes_[begin].low};
  gone.push_back(block);
  for (uint32_t node = nodes_[begin].older; node != kNone; node = nodes_[node].older) {
    if (!lows.contains(nodes_[node].before)) continue;
    lows.insert(nodes_[node].low);
    gone.push_back(nodes_[node].block());
  }
  for (size_t i = kept; i < gone.size(); ++i) Remove(Find(gone[i]));
}

void SlotBlocks::Clear() {
  std::vector<Node>().swap(nodes_);
  size_ = 0;
  newest_ = oldest_ = kNone;
}

void SlotBlocks::Shrink(size_t most) {
  if (nodes_.size() > most) Resize(std::max(most, size_));
}

void SlotBlocks::Resize(size_t count) {
  std::vector<Node> nodes;
  nodes.reserve(count);
  nodes.assign(nodes_.begin(), nodes_.begin() + static_cast<std::ptrdiff_t>(size_));
  nodes.resize(count);
  nodes_.swap(nodes);
  for (Node& node : nodes_) node.first = kNone;
  for (uint32_t i = 0; i < size_; ++i) {
    uint32_t& first = Bucket(nodes_[i].block());
    nodes_[i].next = first;
    first = i;
  }
}

}  // namespace fairway::prefix
