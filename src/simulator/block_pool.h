// The KV cache of one simulated engine: blocks of equal size, those that hold known content findable by a
// hash of it.
//
// As vLLM V1's block pool (vllm/v1/core/block_pool.py): a freed block keeps its content until somebody needs
// the space; free blocks are reused least recently freed first; block 0 is the null block and never handed
// out, so that usage counts num_blocks - 1.
//
// Owned by one thread. Memory: 28 bytes a block, whatever they hold. Every operation is O(1).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace fairway::simulator {

using BlockId = uint32_t;
using BlockHash = uint64_t;

class BlockPool {
 public:
  explicit BlockPool(uint32_t num_blocks);  // REQUIRES: num_blocks >= 2

  uint32_t capacity() const { return static_cast<uint32_t>(nodes_.size()) - 1; }
  uint32_t free_count() const { return free_count_; }
  uint32_t used() const { return capacity() - free_count_; }
  double Usage() const { return static_cast<double>(used()) / capacity(); }

  // The block with that content, in use or free; does not take it.
  std::optional<BlockId> Find(BlockHash hash) const;
  // Whether taking this block would use up a free one.
  bool IsFree(BlockId block) const { return nodes_[block].references == 0; }

  // Takes a block found by Find for one more user.
  void Take(BlockId block);
  // An empty block; what a cached one held is forgotten. REQUIRES: free_count() > 0.
  BlockId Allocate();
  // Says what a taken block holds. When another block holds the same, that one stays the one that is found.
  void SetContent(BlockId block, BlockHash hash);
  // One user less; the last one frees it, as the most recently used of the free ones.
  void Release(BlockId block);

 private:
  // The table of contents runs through the nodes: each list of equal low bits of the hash begins in
  // first_with_, and an entry's `after` leads on. No block has a memory allocation of its own.
  static constexpr BlockId kNone = 0;
  struct Node {
    BlockHash content = 0;  // when `known`
    BlockId previous = 0;   // in the list of free blocks; block 0 is its head
    BlockId next = 0;
    BlockId after = kNone;  // with the same low bits of the hash
    uint32_t references : 31 = 0;
    uint32_t known : 1 = 0;  // Find leads to this block
  };

  BlockId& FirstWith(BlockHash hash) { return first_with_[hash & (first_with_.size() - 1)]; }
  void Unlink(BlockId block);
  void LinkLast(BlockId block);
  void Forget(BlockId block);

  std::vector<Node> nodes_;
  std::vector<BlockId> first_with_;  // a power of two
  uint32_t free_count_ = 0;
};

}  // namespace fairway::simulator
