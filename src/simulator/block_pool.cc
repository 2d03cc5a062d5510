#include "simulator/block_pool.h"

#include "base/result.h"

namespace fairway::simulator {

BlockPool::BlockPool(uint32_t num_blocks) : nodes_(num_blocks) {
  FAIRWAY_CHECK(num_blocks >= 2);
  for (BlockId block = 1; block < num_blocks; ++block) LinkLast(block);
}

std::optional<BlockId> BlockPool::Find(BlockHash hash) const {
  auto found = by_content_.find(hash);
  if (found == by_content_.end()) return std::nullopt;
  return found->second;
}

void BlockPool::Take(BlockId block) {
  if (nodes_[block].references++ == 0) Unlink(block);
}

BlockId BlockPool::Allocate() {
  FAIRWAY_CHECK(free_count_ > 0);
  const BlockId block = nodes_[0].next;
  Take(block);
  if (nodes_[block].content) {
    by_content_.erase(*nodes_[block].content);
    nodes_[block].content.reset();
  }
  return block;
}

void BlockPool::SetContent(BlockId block, BlockHash hash) {
  FAIRWAY_CHECK(nodes_[block].references > 0);
  if (nodes_[block].content) return;
  if (by_content_.try_emplace(hash, block).second) nodes_[block].content = hash;
}

void BlockPool::Release(BlockId block) {
  FAIRWAY_CHECK(nodes_[block].references > 0);
  if (--nodes_[block].references == 0) LinkLast(block);
}

void BlockPool::Unlink(BlockId block) {
  Node& node = nodes_[block];
  nodes_[node.previous].next = node.next;
  nodes_[node.next].previous = node.previous;
  --free_count_;
}

void BlockPool::LinkLast(BlockId block) {
  Node& node = nodes_[block];
  node.previous = nodes_[0].previous;
  node.next = 0;
  nodes_[node.previous].next = block;
  nodes_[0].previous = block;
  ++free_count_;
}

}  // namespace fairway::simulator
