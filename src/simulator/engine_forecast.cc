// What an engine would do if nothing more came: for who is to know the best that a picker could do.
#include <algorithm>
#include <deque>
#include <vector>

#include "simulator/engine_state.h"

namespace fairway::simulator {

using base::Nanos;

namespace {

constexpr int kForecastLimit = 100'000;  // steps

// A sequence, as far as its steps depend on it.
struct Ahead {
  uint32_t missing = 0;  // tokens to compute until its next token
  uint32_t answer = 0;   // tokens still to come
  uint32_t blocks = 0;   // that it needs when all is computed
  uint32_t adapter = kNoAdapter;
  bool decoding = false;
  bool asked = false;  // the one that the forecast is for
};

class Play {
 public:
  Play(const EngineOptions& options, double slowdown, int64_t free_blocks, std::vector<uint32_t> resident)
      : options_(options), slowdown_(slowdown), free_blocks_(free_blocks), resident_(std::move(resident)) {}

  std::vector<Ahead> running;
  std::deque<Ahead> waiting;

  Nanos FirstToken(Nanos now) {
    for (int step = 0; step < kForecastLimit; ++step) {
      now += Step();
      if (done_) return now;
    }
    return now;
  }

  // Tokens of one step's end: those whose all is computed get one, and leave with their last.
  void End(Ahead& sequence) {
    if (sequence.missing > 0) return;
    done_ = done_ || sequence.asked;
    sequence.decoding = true;
    sequence.missing = 1;
    if (--sequence.answer == 0) free_blocks_ += sequence.blocks;
  }
  void Leave() {
    std::erase_if(running, [](const Ahead& sequence) { return sequence.answer == 0; });
  }

 private:
  Nanos Step() {
    budget_ = options_.max_num_batched_tokens;
    prefill_ = decoding_ = 0;
    adapters_.clear();
    for (Ahead& sequence : running) Compute(sequence);
    Admit();
    const uint32_t loads = Load();
    for (Ahead& sequence : running) End(sequence);
    Leave();
    const double length = static_cast<double>(options_.decode_base) +
                          static_cast<double>(options_.decode_per_sequence) * decoding_ +
                          prefill_ / options_.prefill_tokens_per_second * 1e9 +
                          static_cast<double>(options_.lora_load_time) * loads;
    return std::max(base::kMicrosecond, static_cast<Nanos>(length * slowdown_));
  }

  void Compute(Ahead& sequence) {
    const uint32_t tokens = std::min(sequence.missing, budget_);
    if (tokens == 0) return;
    sequence.missing -= tokens;
    budget_ -= tokens;
    (sequence.decoding ? decoding_ : prefill_) += tokens;
    if (sequence.adapter != kNoAdapter && !Uses(sequence.adapter)) adapters_.push_back(sequence.adapter);
  }

  bool Uses(uint32_t adapter) const {
    return std::find(adapters_.begin(), adapters_.end(), adapter) != adapters_.end();
  }

  void Admit() {
    for (size_t i = 0; i < waiting.size() && budget_ > 0 && running.size() < options_.max_num_seqs;) {
      const Ahead& next = waiting[i];
      if (next.adapter != kNoAdapter && !Uses(next.adapter) && adapters_.size() >= options_.max_loras) {
        ++i;
        continue;
      }
      if (next.blocks > free_blocks_ && !running.empty()) return;
      free_blocks_ -= next.blocks;
      running.push_back(next);
      waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(i));
      Compute(running.back());
    }
  }

  uint32_t Load() {
    uint32_t loads = 0;
    for (const uint32_t adapter : adapters_) {
      const auto at = std::find(resident_.begin(), resident_.end(), adapter);
      if (at != resident_.end()) {
        std::rotate(at, at + 1, resident_.end());
        continue;
      }
      if (resident_.size() >= options_.max_loras) {
        const auto victim =
            std::find_if(resident_.begin(), resident_.end(), [&](uint32_t other) { return !Uses(other); });
        if (victim != resident_.end()) resident_.erase(victim);
      }
      resident_.push_back(adapter);
      ++loads;
    }
    return loads;
  }

  const EngineOptions& options_;
  const double slowdown_;
  int64_t free_blocks_;
  std::vector<uint32_t> resident_;
  std::vector<uint32_t> adapters_;  // of this step
  uint32_t budget_ = 0, prefill_ = 0, decoding_ = 0;
  bool done_ = false;
};

}  // namespace

uint32_t Engine::CachedTokens(const EngineRequest& request) const {
  if (!options_.prefix_caching) return 0;
  Sequence sequence;
  sequence.prompt_tokens = static_cast<uint32_t>(PromptTokens(request));
  HashPrompt(request, sequence.prompt_tokens, sequence.content, sequence.tail);
  std::vector<BlockId> hits;
  return static_cast<uint32_t>(FindCached(sequence, hits)) * options_.block_size;
}

uint64_t Engine::uncomputed_tokens() const {
  uint64_t tokens = 0;
  for (const Sequence* sequence : running_) {
    const uint32_t missing = sequence->tokens() - sequence->computed - sequence->scheduled;
    if (sequence->computed < sequence->prompt_tokens) tokens += missing;
  }
  for (const auto* queue : {&waiting_, &arrived_, &tokenizing_})
    for (const Sequence* sequence : *queue) tokens += sequence->tokens();
  return tokens;
}

std::vector<std::string> Engine::resident_adapters() const {
  std::vector<std::string> names;
  names.reserve(resident_.size());
  for (const uint32_t number : resident_) names.push_back(adapters_[number]);
  return names;
}

bool Engine::IsResident(std::string_view adapter) const {
  return std::any_of(resident_.begin(), resident_.end(),
                     [&](uint32_t number) { return adapters_[number] == adapter; });
}

Nanos Engine::ForecastFirstToken(std::span<const EngineRequest> requests, Nanos now) const {
  if (PromptTokens(requests.back()) >= options_.max_model_len) return INT64_MAX;
  Play play(options_, slowdown_, blocks_.free_count(), resident_);
  const auto blocks = [this](uint64_t tokens) {
    return static_cast<uint32_t>((tokens + options_.block_size - 1) / options_.block_size);
  };
  for (const Sequence* sequence : running_) {
    Ahead ahead{.missing = sequence->tokens() - sequence->computed - sequence->scheduled,
                .answer = sequence->answer_tokens - sequence->generated,
                .blocks = static_cast<uint32_t>(sequence->blocks.size()),
                .adapter = sequence->adapter,
                .decoding = sequence->generated > 0};
    if (sequence->scheduled > 0) play.End(ahead);  // the step under way
    play.running.push_back(ahead);
  }
  play.Leave();
  std::vector<BlockId> hits;
  for (const auto* queue : {&waiting_, &arrived_, &tokenizing_}) {
    for (const Sequence* sequence : *queue) {
      hits.clear();
      const auto cached = static_cast<uint32_t>(FindCached(*sequence, hits)) * options_.block_size;
      play.waiting.push_back({.missing = sequence->tokens() - cached,
                              .answer = sequence->answer_tokens - sequence->generated,
                              .blocks = blocks(sequence->tokens() - cached),
                              .adapter = sequence->adapter});
    }
  }
  Nanos start = step_end_ != 0 ? step_end_ : now;
  Nanos tokenized = std::max(now, tokenizer_free_);
  for (const EngineRequest& request : requests) {
    const auto prompt = static_cast<uint32_t>(PromptTokens(request));
    const uint32_t uncached = prompt - CachedTokens(request);
    const auto adapter = std::find(adapters_.begin(), adapters_.end(), request.adapter);
    play.waiting.push_back(
        {.missing = uncached,
         .answer = request.max_tokens ? static_cast<uint32_t>(*request.max_tokens) : options_.answer_tokens,
         .blocks = blocks(uncached),
         .adapter = request.adapter.empty() ? kNoAdapter : static_cast<uint32_t>(adapter - adapters_.begin()),
         .asked = &request == &requests.back()});
    if (options_.tokenizer_tokens_per_second > 0)
      tokenized += static_cast<Nanos>(prompt / options_.tokenizer_tokens_per_second * 1e9);
  }
  if (options_.tokenizer_tokens_per_second > 0) start = std::max(start, tokenized);
  return play.FirstToken(start);
}

}  // namespace fairway::simulator
