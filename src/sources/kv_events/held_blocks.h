// How many tokens an engine's prefix cache holds, counted from its events, and how many it can hold: as many
// as it held when it last had to take a block away.
//
// A block in several memories counts in each; a cache holds what its largest memory does. Of the caches of a
// hybrid model only those count that keep whole prefixes. A count that did not begin at an empty cache, or
// that missed a batch, is not known until the cache is empty again.
//
// Owned by one thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "sources/kv_events/events.h"

namespace fairway::sources::kv_events {

class HeldBlocks {
 public:
  // False: it is of a cache that does not count.
  bool Apply(const KvEvent& event);
  // The cache is empty, and is known to be.
  void Clear();
  // Something was missed.
  void Lose() { known_ = false; }

  // All that the cache holds was told.
  bool known() const { return known_; }
  // Nothing: it is not known.
  std::optional<uint64_t> tokens() const;
  // Nothing: it is not known, or it never took a block away.
  std::optional<uint64_t> capacity() const;

 private:
  struct Memory {
    uint64_t tokens = 0;
    uint64_t when_full = 0;  // tokens when it last began to take blocks away; 0: it never did
    bool removing = false;   // since the last block that was stored
  };
  bool Skips(const KvEvent& event);
  void Count(const KvEvent& event);

  std::array<Memory, 2> memories_;  // the device's, and all others
  uint64_t block_size_ = 0;         // removals do not say it
  uint64_t skipped_groups_ = 0;     // a bit for each of the first 64
  bool known_ = true;
};

}  // namespace fairway::sources::kv_events
