// The blocks that one endpoint is believed to hold, the one used last first.
//
// A chain is put in front as a whole, its first block foremost. So a block is always newer than those that
// come after it in a prompt; what falls off the end is the end of a prompt, as engines evict, too; and who
// holds a block holds all before it. RemoveWithAllBehind keeps that as well. `Index::Match` relies on it.
//
// Owned by one thread at a time (the index's slot mutex). Memory: 28 bytes a block, in one array that grows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace fairway::prefix {

class SlotBlocks {
 public:
  // For tables by (halves of) names, which others choose: std::hash of a number is that number.
  struct Hash {
    size_t operator()(uint64_t name) const noexcept {
      const uint64_t mixed = (name ^ name >> 32) * kSecret;
      return static_cast<size_t>((mixed ^ mixed >> 29) * 0x9e3779b97f4a7c15ULL >> 16);
    }
  };
  static constexpr uint32_t kFront = ~uint32_t{0};
  static constexpr uint32_t kNone = kFront - 1;
  static constexpr size_t kBytes = 28;

  size_t size() const { return size_; }
  size_t bytes() const { return nodes_.capacity() * sizeof(Node); }

  // Fetches into the cache where Find will look for a block.
  void Prefetch(uint64_t block) const {
    if (size_ != 0) __builtin_prefetch(&nodes_[BucketOf(block)]);
  }
  // The blocks that TakeLast will give, in that order, as many as there are and `last` has room for. Returns
  // how many.
  size_t Last(std::span<uint64_t> last) const;
  // Where a block is, or kNone. Good until the next Add or Remove.
  uint32_t Find(uint64_t block) const;
  // Puts what is there behind `after`, which may be kFront.
  void Move(uint32_t node, uint32_t after);
  // Adds what is not there. `most`: how many there may be in all, so that memory grows to that and no
  // further; `after` stays good. REQUIRES: size() < most
  uint32_t Add(uint64_t block, uint32_t after, size_t most);
  // The same at the end, of a prompt in which it came behind `before`; null: it was the first.
  void AddLast(uint64_t block, const uint64_t* before, size_t most);
  // From the newest to the oldest, at most `most`: each and behind which one it came in its prompt, told by how
  // many before it in this list that one is; 0: it was the first.
  struct Link {
    uint64_t block = 0;
    uint32_t behind = 0;
    bool operator==(const Link&) const = default;
  };
  std::vector<Link> Newest(size_t most) const;
  // The last one, and takes it away. REQUIRES: size() != 0
  uint64_t TakeLast();
  // Takes one away; the node that stood at size() afterwards has its place. Breaks what Index::Match relies on
  // where it is not the last one of its prompt: for others (exact_index.h).
  void Remove(uint32_t node);
  // Takes away `block`, if it is there, and what came behind it in any prompt; they are appended to `gone`.
  // One pass over the blocks that are older.
  void RemoveWithAllBehind(uint64_t block, std::vector<uint64_t>& gone);
  // Gives memory back, too.
  void Clear();
  // Gives back what more than `most` blocks took. REQUIRES: size() <= most
  void Shrink(size_t most);

 private:
  // Nodes are linked by age, and by the chain of their bucket; `first` is of the bucket of that number,
  // whichever node stands here.
  struct Node {
    uint64_t block() const { return static_cast<uint64_t>(high) << 32 | low; }
    uint32_t high, low;
    uint32_t before;  // the low half of the block before it in its prompt
    uint32_t newer, older;
    uint32_t next;
    uint32_t first;
  };
  static_assert(sizeof(Node) == kBytes);

  uint32_t& Bucket(uint64_t block) { return nodes_[BucketOf(block)].first; }
  // Names are made by engines and peers, who must not be able to put all into one bucket: so nobody outside
  // this process knows the factor.
  static const uint64_t kSecret;
  size_t BucketOf(uint64_t block) const {
    __extension__ using Wide = unsigned __int128;
    block = (block ^ block >> 32) * kSecret;
    return static_cast<size_t>(
        static_cast<Wide>((block ^ block >> 32) * 0x9e3779b97f4a7c15ULL) * nodes_.size() >> 64);
  }
  void PutBehind(uint32_t node, uint32_t after);
  void Unlink(uint32_t node);
  void Resize(size_t count);

  std::vector<Node> nodes_;  // those in use come first
  size_t size_ = 0;
  uint32_t newest_ = kNone;
  uint32_t oldest_ = kNone;
};

}  // namespace fairway::prefix
