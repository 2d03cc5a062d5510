// How much of what an engine reports to hold it really keeps, learned from what its answers say.
//
//   LearnedCapacity capacity(reported_blocks);
//   switch (capacity.Learn({.predicted_blocks = 40, .total_blocks = 50, .cached_tokens = 0, .prompt_tokens =
//   3300},
//                          index.held(slot), now)) {
//     case LearnedCapacity::kShrunk:
//     case LearnedCapacity::kGrown: index.SetCapacity(slot, capacity.blocks()); break;
//     case LearnedCapacity::kGone:  index.Forget(slot); break; ...
//
// A prediction is a share of the prompt (matched blocks of all), and so is what was told (cached tokens of
// all): our blocks are bytes, an engine's are tokens, and shares need no rate between them. After a request
// the engine has all of its prompt, whatever it had before: nothing of that chain is unlearned. What a miss
// says is that the engine keeps less than we believe, so what is oldest there is gone as well: the capacity
// shrinks (by a fifth, of what is held where that is less), once in kPause, as requests under way at the same
// time tell of the same eviction. Predictions that hold while the endpoint is nearly full let it grow again,
// slowly, up to what is reported. Full misses in a row, kGoneAfter of them over kPause or more, are an
// engine that started anew: all others who ask it miss as well. One client may have such misses by itself, as
// often as it likes (what `chat_template_kwargs` make of its messages is not hashed; of requests that engines
// do not look up, `prompt_logprobs` and the like, nothing is predicted), and must not make everybody's
// prefixes forgotten: any prediction that holds meanwhile ends the row.
//
// Owned by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/clock.h"

namespace fairway::prefix {

struct CacheTold {
  size_t predicted_blocks = 0;  // matched at the pick, of
  size_t total_blocks = 0;
  uint64_t cached_tokens = 0;  // told in usage, of
  uint64_t prompt_tokens = 0;
};

class LearnedCapacity {
 public:
  static constexpr size_t kLeastPredicted = 8;  // blocks; below that, templates and rounding say as much
  static constexpr double kHeld = 0.75;         // of what was predicted: the prediction held
  static constexpr int kGoneAfter = 3;
  static constexpr size_t kLeast = 64;  // blocks; so that what an engine does have is found out again
  static constexpr base::Nanos kPause = base::kSecond;

  enum Verdict { kNothing, kHeldTrue, kMissed, kShrunk, kGrown, kGone };

  explicit LearnedCapacity(size_t reported) : reported_(reported), blocks_(reported) {}

  // What another picker learned; nothing where it makes no sense.
  void Adopt(size_t reported, size_t blocks) {
    if (reported == 0 || blocks == 0 || blocks > reported) return;
    reported_ = reported;
    blocks_ = blocks;
  }
  // What the page says now; what was learned stays, as a share of it.
  void SetReported(size_t blocks);
  // `held`: blocks that the index has of the endpoint.
  Verdict Learn(const CacheTold& told, size_t held, base::Nanos now);

  size_t blocks() const { return blocks_; }
  size_t reported() const { return reported_; }

 private:
  size_t reported_;
  size_t blocks_;
  base::Nanos shrunk_at_ = 0;
  int full_misses_ = 0;        // in a row,
  base::Nanos row_began_ = 0;  // of which the first was then
};

}  // namespace fairway::prefix
