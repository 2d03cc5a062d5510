#include "fleet/cell.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace fairway::fleet {

namespace {

// Applies `change` to the word as often as it takes.
template <typename Change>
uint64_t Update(std::atomic<uint64_t>& word, Change change) noexcept {
  uint64_t was = word.load(std::memory_order_relaxed);
  uint64_t next = change(was);
  while (!word.compare_exchange_weak(was, next, std::memory_order_relaxed)) next = change(was);
  return next;
}

// Rates, in ms a token.
constexpr float kFastest = 1e-4f;  // 10 million tokens a second
constexpr float kSlowest = 100;    // 10

uint32_t Saturated(uint64_t value) noexcept {
  return static_cast<uint32_t>(std::min<uint64_t>(value, UINT32_MAX));
}

// Two floats in a word: the sums that a rate is learned from.
struct Sums {
  float tokens = 0;
  float ms = 0;
  uint64_t Pack() const noexcept {
    return std::bit_cast<uint32_t>(tokens) | uint64_t{std::bit_cast<uint32_t>(ms)} << 32;
  }
  static Sums Of(uint64_t word) noexcept {
    return {std::bit_cast<float>(static_cast<uint32_t>(word)),
            std::bit_cast<float>(static_cast<uint32_t>(word >> 32))};
  }
};

}  // namespace

void RecentCount::Add(uint32_t now, uint32_t count) noexcept {
  Update(word_, [number = now / kWindow, count = std::min(count, kMost)](uint64_t word) {
    const auto bucket = static_cast<uint32_t>(word >> 32);
    if (bucket == number) return word + std::min<uint64_t>(count, kMost - (word & kMost));
    const uint64_t before = number - bucket == 1 ? word & kMost : 0;
    return count | before << 16 | uint64_t{number} << 32;
  });
}

uint32_t RecentCount::Get(uint32_t now) const noexcept {
  const uint64_t word = word_.load(std::memory_order_relaxed);
  const uint32_t ago = now / kWindow - static_cast<uint32_t>(word >> 32);
  const auto current = static_cast<uint32_t>(word & 0xffff);
  const auto before = static_cast<uint32_t>(word >> 16 & 0xffff);
  // The part of the bucket before that is still within the window.
  const uint32_t left = kWindow - now % kWindow;
  if (ago == 0) return current + before * left / kWindow;
  return ago == 1 ? current * left / kWindow : 0;
}

EndpointCell::~EndpointCell() {
  SetRefusing(kNoConnection, false);
  SetRefusing(kUnavailable, false);
  delete used_.load(std::memory_order_relaxed);
  delete attributes_.load(std::memory_order_relaxed);
  slab_->Return(*load_);
}

void EndpointCell::SetRefusing(Evidence evidence, bool refusing) noexcept {
  const auto bit = static_cast<uint8_t>(evidence);
  const uint8_t was = refusing ? refusing_.fetch_or(bit) : refusing_.fetch_and(static_cast<uint8_t>(~bit));
  const bool is = refusing || (was & ~bit) != 0;
  if ((was != 0) != is) slab_->CountRefusing(is ? 1 : -1);
}

void EndpointCell::SetAttribute(uint64_t key, float value) {
  PageAttributes* attributes = attributes_.load(std::memory_order_relaxed);
  if (attributes == nullptr) attributes_.store(attributes = new PageAttributes, std::memory_order_release);
  attributes->Set(key, value);
}

void EndpointCell::ForgetAttributes() noexcept {
  if (auto* attributes = attributes_.load(std::memory_order_relaxed)) attributes->Clear();
}

namespace {

// EndpointCell::answers_.
struct Answers {
  uint32_t unavailable = 0;  // in a row
  uint32_t last = 0;         // Millis
  uint64_t Pack() const noexcept { return unavailable | uint64_t{last} << 32; }
  static Answers Of(uint64_t word) noexcept {
    return {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32)};
  }
};

}  // namespace

[[gnu::noinline, gnu::cold]] void EndpointCell::ForgetUnavailable() noexcept {
  answers_.store(0);
  SetRefusing(kUnavailable, false);
}

[[gnu::noinline, gnu::cold]] void EndpointCell::NoteUnavailable(base::Nanos now) noexcept {
  const Answers answers = Answers::Of(Update(answers_, [now](uint64_t word) {
    const uint32_t in_a_row = std::min(Answers::Of(word).unavailable + 1, kUnavailableInARow);
    return Answers{.unavailable = in_a_row, .last = Millis(now)}.Pack();
  }));
  if (answers.unavailable < kUnavailableInARow) return;
  SetRefusing(kUnavailable, true);
  // Another thread's answer came in between: what it took back before this was set, it takes back now.
  if (Answers::Of(answers_.load()).unavailable < kUnavailableInARow) SetRefusing(kUnavailable, false);
}

void EndpointCell::TryAgain(uint64_t answers) noexcept {
  Answers left = Answers::Of(answers);
  left.unavailable = kUnavailableInARow - 1;
  // An answer of this moment says more.
  if (answers_.compare_exchange_strong(answers, left.Pack())) SetRefusing(kUnavailable, false);
}

void EndpointCell::PageIsGood() noexcept {
  const uint64_t word = answers_.load(std::memory_order_relaxed);
  const Answers answers = Answers::Of(word);
  if (answers.unavailable >= kUnavailableInARow && MillisSince(answers.last, asked_at_) > 0) TryAgain(word);
}

void EndpointCell::BeginScrape(base::Nanos now) noexcept {
  own_asked_ = own();
  settled_asked_ = own_asked_ - std::min(own_asked_, picked_.Get(Millis(now)));
  {
    const std::lock_guard lock(telling_);
    told_asked_ = told_.requests;
  }
  asked_at_ = Millis(now);
  const uint64_t word = answers_.load(std::memory_order_relaxed);
  const Answers answers = Answers::Of(word);
  if (answers.unavailable >= kUnavailableInARow &&
      MillisSince(answers.last, asked_at_) * base::kMillisecond > kUnavailableFor)
    TryAgain(word);
}

// What a page shows beyond our own requests are others'. As long as our own explain all of it, there are no
// others. Once they do not, the page is taken to show only those of ours that are older than
// RecentCount::kWindow, since it is late by a step of the engine: a picker among several that trusts a page
// to show all of its own requests sees too little of the others', and herds with them.
void EndpointCell::ApplyScrape(const Signals& signals, base::Nanos now) {
  const uint32_t millis = Millis(now);
  ScrapedLoad page{.waiting = signals.waiting.value_or(0),
                   .running = signals.running.value_or(0),
                   .lora_room = false,
                   .kv_usage = signals.kv_usage.value_or(signals.kv_unknown ? ScrapedLoad::kUnknown : 0)};
  if (signals.lora || used_.load(std::memory_order_relaxed) != nullptr) {
    ApplyLora(signals.lora.value_or(Signals::Lora{.max = lora_max()}), now);
    page.lora_room = signals.lora && lora_used() < lora_max();
  }
  load_->scraped.store(page.Pack(), std::memory_order_relaxed);
  if (signals.block_size) block_size_.store(*signals.block_size, std::memory_order_relaxed);
  if (signals.num_blocks) num_blocks_.store(*signals.num_blocks, std::memory_order_relaxed);
  scraped_at_.store(now, std::memory_order_relaxed);
  Set(waiting_at_, signals.waiting.has_value(), now);
  Set(running_at_, signals.running.has_value(), now);
  Set(kv_usage_at_, signals.kv_usage.has_value(), now);

  const uint32_t shown =
      static_cast<uint32_t>(std::min<uint64_t>(uint64_t{page.waiting} + page.running, Ledger::kMost));
  const uint32_t others =
      (shown > own_asked_ + told_asked_ ? shown - settled_asked_ - told_asked_ : 0) + detached_.Get(millis);
  // A page without any load, or with a part of it, says nothing about it, and is as good as none.
  const uint32_t page_at = (signals.waiting || signals.running) && !signals.load_unknown ? millis : 0;
  {
    const std::lock_guard lock(telling_);
    Update(load_->ledger, [&](uint64_t word) {
      return Ledger{.own = Ledger::Of(word).own, .others = others + told_.requests, .page = page_at}.Pack();
    });
  }
  SupposeWaitingTokens(std::min(others, page.waiting), millis);
}

void EndpointCell::ApplyAnswer(const AnswerLoad& told, base::Nanos now) noexcept {
  Update(load_->scraped, [&](uint64_t word) {
    ScrapedLoad page = ScrapedLoad::Of(word);
    if (told.waiting) page.waiting = *told.waiting;
    if (told.kv_usage) page.kv_usage = *told.kv_usage;
    return page.Pack();
  });
  Set(waiting_at_, told.waiting.has_value(), now);
  Set(kv_usage_at_, told.kv_usage.has_value(), now);
}

void EndpointCell::ReplaceTold(const OpenLoad& before, const OpenLoad& now) noexcept {
  const std::lock_guard lock(telling_);
  told_.requests = told_.requests - std::min(told_.requests, before.requests) + now.requests;
  told_.tokens = Saturated(uint64_t{told_.tokens} - std::min(told_.tokens, before.tokens) + now.tokens);
  Update(load_->ledger, [&](uint64_t word) {
    Ledger ledger = Ledger::Of(word);
    ledger.others = ledger.others - std::min(ledger.others, before.requests) + now.requests;
    return ledger.Pack();
  });
  Update(load_->work, [&](uint64_t word) {
    Work work = Work::Of(word);
    work.tokens = Saturated(uint64_t{work.tokens} - std::min(work.tokens, before.tokens) + now.tokens);
    return work.Pack();
  });
}

OpenLoad EndpointCell::ToTell(base::Nanos now) const noexcept {
  const std::lock_guard lock(telling_);
  const uint32_t millis = Millis(now);
  const Work work = load_->own_work();
  const float rate = work.ms_per_token > 0 ? work.ms_per_token : kDefaultMsPerToken;
  auto unseen = static_cast<uint64_t>(load_->unseen_work().Left(rate, millis) / rate);
  // Where there are others, a part of it is only supposed of them, as our peers do themselves.
  if (others() > told_.requests)
    unseen = std::min<uint64_t>(unseen, uint64_t{unseen_.Get(millis)} * kUnseenUnit);
  return {.requests = own() + detached_.Get(millis),
          .tokens = Saturated(work.tokens - std::min(work.tokens, told_.tokens) + unseen)};
}

// Others' queued prompts are taken to be as long as ours, unless the engine tells.
void EndpointCell::SupposeWaitingTokens(uint32_t others, uint32_t millis) noexcept {
  if (pages_untold_ < kUntoldPages) {
    ++pages_untold_;
    return;
  }
  const float mean = mean_prompt_.load(std::memory_order_relaxed);
  const float queued = static_cast<float>(others) * (mean > 0 ? mean : kDefaultPrompt);
  Update(load_->unseen, [&](uint64_t word) {
    const float rate = ms_per_token() > 0 ? ms_per_token() : kDefaultMsPerToken;
    const float left = Unseen::Of(word).Left(rate, millis) / rate;
    return Unseen{.tokens = static_cast<uint32_t>(std::min(std::max(left, queued), 4e9f)), .since = millis}
        .Pack();
  });
}

// The engine's own figure, less what we have there ourselves, is others' work. It is late by a step, as a page
// is: what was given there within RecentCount::kWindow without anybody to show us its first token is added.
// (Replays with 16 pickers, unseen ends: without it, or with a mean instead of each prompt's length, a picker
// sends to the engine it has just sent to.)
void EndpointCell::ApplyWaitingTokens(uint64_t tokens, base::Nanos now) noexcept {
  pages_untold_ = 0;
  const uint32_t millis = Millis(now);
  const uint64_t told = Saturated(tokens);
  const uint64_t others = told - std::min<uint64_t>(told, tokens_asked_);
  // The window is looked at anew where a pick came in between: it is in there before it is in the word.
  Update(load_->unseen, [&](uint64_t) {
    const uint64_t recent = uint64_t{unseen_.Get(millis)} * kUnseenUnit;
    return Unseen{.tokens = Saturated(others + std::min<uint64_t>(recent, UINT32_MAX)), .since = millis}
        .Pack();
  });
}

void EndpointCell::ApplyLora(const Signals::Lora& lora, base::Nanos now) {
  if (used_.load(std::memory_order_relaxed) == nullptr)
    used_.store(new UseTimes{}, std::memory_order_release);
  lora_used_.store(lora.resident_count + lora.waiting_count, std::memory_order_relaxed);
  lora_max_.store(lora.max, std::memory_order_relaxed);
  for (uint32_t i = 0; i < adapters_.size(); ++i) {
    adapters_[i].running.store(lora.running[i], std::memory_order_relaxed);
    adapters_[i].waiting.store(lora.waiting[i], std::memory_order_relaxed);
    for (uint64_t left = lora.running[i]; left != 0; left &= left - 1) {
      UseAdapter(i * 64 + static_cast<uint32_t>(std::countr_zero(left)), now);
    }
  }
  CountSlots(lora.restarted);
}

void EndpointCell::CountSlots(bool restarted) noexcept {
  const std::lock_guard lock(loading_);
  uint32_t loaded = 0;
  for (AdapterWords& words : adapters_) {
    if (restarted) words.resident.store(0, std::memory_order_relaxed);
    loaded += static_cast<uint32_t>(std::popcount(words.resident.load(std::memory_order_relaxed)));
  }
  SetSlots(loaded);
}

void EndpointCell::SetSlots(uint32_t loaded) noexcept {
  slots_.store({loaded < lora_max() ? AdapterSlots::kFree : AdapterSlots::kFull, lora_max()},
               std::memory_order_relaxed);
}

void EndpointCell::UseAdapter(uint32_t id, base::Nanos now) noexcept {
  UseTimes* used = used_.load(std::memory_order_acquire);
  if (used == nullptr) {
    AdapterSlots untold;
    slots_.compare_exchange_strong(untold, {.state = AdapterSlots::kTried}, std::memory_order_relaxed);
  }
  if (used == nullptr || id >= kMaxAdapters) return;
  (*used)[id].store(Millis(now), std::memory_order_relaxed);
  if (!adapter_resident(id)) LoadAdapter(id, *used);
}

// As an engine does: the adapter that was not used for longest makes room.
void EndpointCell::LoadAdapter(uint32_t id, UseTimes& used) noexcept {
  const std::lock_guard lock(loading_);
  adapters_[id / 64].resident.fetch_or(uint64_t{1} << (id % 64), std::memory_order_relaxed);
  const uint32_t now = used[id].load(std::memory_order_relaxed);
  for (;;) {
    uint32_t count = 0;
    uint32_t oldest = id;
    uint32_t age = 0;
    for (uint32_t i = 0; i < adapters_.size(); ++i) {
      for (uint64_t left = adapters_[i].resident.load(std::memory_order_relaxed); left != 0;
           left &= left - 1) {
        const uint32_t other = i * 64 + static_cast<uint32_t>(std::countr_zero(left));
        const uint32_t unused = now - used[other].load(std::memory_order_relaxed);
        ++count;
        // Used by another thread in this moment: not older than now.
        if (other == id || static_cast<int32_t>(unused) < 0 || unused < age) continue;
        age = unused;
        oldest = other;
      }
    }
    if (count <= std::max(lora_max(), 1u) || oldest == id) return SetSlots(count);
    adapters_[oldest / 64].resident.fetch_and(~(uint64_t{1} << (oldest % 64)), std::memory_order_relaxed);
  }
}

uint32_t EndpointCell::AddWork(uint32_t tokens) noexcept {
  return Work::Of(Update(load_->work,
                         [tokens](uint64_t word) {
                           Work work = Work::Of(word);
                           work.tokens = Saturated(uint64_t{work.tokens} + tokens);
                           return work.Pack();
                         }))
      .tokens;
}

void EndpointCell::TakeWork(uint32_t tokens) noexcept {
  Update(load_->work, [tokens](uint64_t word) {
    Work work = Work::Of(word);
    work.tokens -= std::min(work.tokens, tokens);
    return work.Pack();
  });
}

void EndpointCell::AddUnseen(uint32_t tokens, uint32_t now) noexcept {
  unseen_.Add(now, tokens / kUnseenUnit + (tokens % kUnseenUnit != 0 ? 1 : 0));
  const float rate = ms_per_token() > 0 ? ms_per_token() : kDefaultMsPerToken;
  Update(load_->unseen, [=](uint64_t word) {
    const float left = Unseen::Of(word).Left(rate, now) / rate;
    return Unseen{.tokens = static_cast<uint32_t>(std::min(left + static_cast<float>(tokens), 4e9f)),
                  .since = now}
        .Pack();
  });
}

float EndpointCell::work_ms(base::Nanos now) const noexcept {
  const Work work = load_->own_work();
  const float rate = work.ms_per_token > 0 ? work.ms_per_token : kDefaultMsPerToken;
  return static_cast<float>(work.tokens) * rate + load_->unseen_work().Left(rate, Millis(now));
}

[[gnu::hot]] std::optional<Reservation> EndpointCell::TryReserve(uint32_t own, uint32_t tokens,
                                                                 base::Nanos now,
                                                                 Reservation::Place place) noexcept {
  uint64_t word = load_->ledger.load(std::memory_order_relaxed);
  do {
    if (Ledger::Of(word).own != own) return std::nullopt;
    if (own == Ledger::kMost) break;
  } while (!load_->ledger.compare_exchange_weak(word, word + 1, std::memory_order_relaxed));
  const uint32_t millis = Millis(now);
  picked_.Add(millis);
  const float mean = mean_prompt_.load(std::memory_order_relaxed);
  const auto prompt = static_cast<float>(tokens);
  // Not ever less, down to floats that take a processor 100 times as long.
  mean_prompt_.store(mean == 0 ? prompt : std::max(mean + (prompt - mean) * (1.0f / 32), 1e-3f),
                     std::memory_order_relaxed);
  Reservation made{.tokens = tokens, .picked_at = millis, .place = place};
  if (place == Reservation::Place::kCounted) {
    const uint32_t counted = AddWork(tokens);
    const float rate = ms_per_token() > 0 ? ms_per_token() : kDefaultMsPerToken;
    made.ahead = Saturated(counted + static_cast<uint64_t>(load_->unseen_work().Left(rate, millis) / rate));
  } else if (place == Reservation::Place::kUnseen) {
    AddUnseen(tokens, millis);
  }
  return made;
}

Reservation EndpointCell::Reserve(uint32_t tokens, base::Nanos now, Reservation::Place place) noexcept {
  for (;;) {
    if (const auto reserved = TryReserve(own(), tokens, now, place)) return *reserved;
  }
}

void EndpointCell::FirstToken(Reservation& reservation, base::Nanos now) noexcept {
  if (reservation.place != Reservation::Place::kCounted) return;
  reservation.place = Reservation::Place::kNone;
  TakeWork(reservation.tokens);
  Learn(reservation.ahead,
        static_cast<uint32_t>(std::max(MillisSince(reservation.picked_at, Millis(now)), 0)));
}

// An engine computes prompts first come first served, so what was ahead of a request's first token, divided
// by the time it took, is the engine's rate; also what others cost us is in it. The rate is the sum of the
// one over the sum of the other: long waits, which tell most, weigh most. One sample moves it little: it
// weighs 1/64, and what differs from the present rate by more than a factor of 8 counts as that.
void EndpointCell::Learn(uint32_t tokens, uint32_t ms) noexcept {
  constexpr float kKept = 1 - 1.0f / 64;
  constexpr float kMost = 8;
  if (tokens == 0) return;
  const auto count = static_cast<float>(tokens);
  const Sums sums = Sums::Of(Update(learned_, [=](uint64_t word) {
    Sums learned = Sums::Of(word);
    float sample = std::clamp(static_cast<float>(ms) / count, kFastest, kSlowest);
    if (learned.tokens > 0) {
      const float rate = learned.ms / learned.tokens;
      sample = std::clamp(sample, rate / kMost, rate * kMost);
    }
    return Sums{learned.tokens * kKept + count, learned.ms * kKept + sample * count}.Pack();
  }));
  SetRate(std::clamp(sums.ms / sums.tokens, kFastest, kSlowest));
}

void EndpointCell::SetRate(float ms_per_token) noexcept {
  Update(load_->work, [ms_per_token](uint64_t word) {
    Work work = Work::Of(word);
    work.ms_per_token = ms_per_token;
    return work.Pack();
  });
}

void EndpointCell::AdoptRate(float ms_per_token) noexcept {
  if (!(ms_per_token >= kFastest && ms_per_token <= kSlowest)) return;
  uint64_t nothing = 0;
  // As one prompt of usual length: own first tokens soon weigh more.
  const Sums sums{.tokens = kDefaultPrompt, .ms = kDefaultPrompt * ms_per_token};
  if (learned_.compare_exchange_strong(nothing, sums.Pack(), std::memory_order_relaxed))
    SetRate(ms_per_token);
}

[[gnu::hot]] void EndpointCell::Release(const Reservation& reservation, ReleaseKind kind,
                                        base::Nanos now) noexcept {
  if (reservation.place == Reservation::Place::kCounted) TakeWork(reservation.tokens);
  Update(load_->ledger, [kind](uint64_t word) {
    Ledger ledger = Ledger::Of(word);
    if (ledger.own == 0) return word;  // it had saturated
    --ledger.own;
    if (kind == ReleaseKind::kDetached) ++ledger.others;
    return ledger.Pack();
  });
  if (kind == ReleaseKind::kEnded) return;
  const uint32_t millis = Millis(now);
  detached_.Add(millis);
  if (reservation.place == Reservation::Place::kCounted) AddUnseen(reservation.tokens, millis);
}

}  // namespace fairway::fleet
