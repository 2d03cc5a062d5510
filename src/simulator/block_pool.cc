#include "simulator/block_pool.h"

#include <bit>

#include "base/result.h"

namespace fairway::simulator {

BlockPool::BlockPool(uint32_t num_blocks)
    : nodes_(num_blocks), first_with_(std::bit_ceil(num_blocks), kNone) {
  FAIRWAY_CHECK(num_blocks >= 2);
  for (BlockId block = 1; block < num_blocks; ++block) LinkLast(block);
}

std::optional<BlockId> BlockPool::Find(BlockHash hash) const {
  BlockId block = first_with_[hash & (first_with_.size() - 1)];
  while (block != kNone && nodes_[block].content != hash) block = nodes_[block].after;
  if (block == kNone) return std::nullopt;
  return block;
}

void BlockPool::Take(BlockId block) {
  if (nodes_[block].references == 0) Unlink(block);
  ++nodes_[block].references;
}

BlockId BlockPool::Allocate() {
  FAIRWAY_CHECK(free_count_ > 0);
  const BlockId block = nodes_[0].next;
  Take(block);
  if (nodes_[block].known) Forget(block);
  return block;
}

void BlockPool::SetContent(BlockId block, BlockHash hash) {
  Node& node = nodes_[block];
  FAIRWAY_CHECK(node.references > 0);
  if (node.known || Find(hash)) return;
  BlockId& first = FirstWith(hash);
  node.content = hash;
  node.known = 1;
  node.after = first;
  first = block;
}

void BlockPool::Forget(BlockId block) {
  BlockId* link = &FirstWith(nodes_[block].content);
  while (*link != block) link = &nodes_[*link].after;
  *link = nodes_[block].after;
  nodes_[block].known = 0;
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
