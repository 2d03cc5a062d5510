#include "fleet/cell.h"

#include <algorithm>

namespace fairway::fleet {

void EndpointCell::BeginScrape() noexcept {
  uint64_t word = load_->ledger.load(std::memory_order_relaxed);
  uint64_t next = 0;
  do {
    // After kUncoveredMax failed scrapes in a row generations are no longer told apart: reservations just
    // keep counting.
    if (Uncovered(word) == kUncoveredMax) return;
    const uint32_t older =
        static_cast<uint32_t>(std::min<uint64_t>(kCounterMax, Older(word) + Current(word)));
    next = Pack(0, older, Generation(word) + 1, Uncovered(word) + 1);
  } while (!load_->ledger.compare_exchange_weak(word, next, std::memory_order_relaxed));
}

void EndpointCell::ApplyScrape(const Signals& signals, base::Nanos now) noexcept {
  ScrapedLoad scraped = load_->last();  // nobody else writes it
  if (signals.waiting) scraped.waiting = *signals.waiting;
  if (signals.running) scraped.running = *signals.running;
  if (signals.kv_usage) scraped.kv_usage = *signals.kv_usage;
  if (signals.block_size) block_size_.store(*signals.block_size, std::memory_order_relaxed);
  if (signals.num_blocks) num_blocks_.store(*signals.num_blocks, std::memory_order_relaxed);
  if (signals.lora) {
    const Signals::Lora& lora = *signals.lora;
    for (size_t i = 0; i < adapters_.size(); ++i) {
      adapters_[i].running.store(lora.running[i], std::memory_order_relaxed);
      adapters_[i].waiting.store(lora.waiting[i], std::memory_order_relaxed);
    }
    const uint32_t used = lora.resident_count + lora.waiting_count;
    lora_used_.store(used, std::memory_order_relaxed);
    lora_max_.store(lora.max, std::memory_order_relaxed);
    scraped.lora_room = used < lora.max;
  }
  load_->scraped.store(scraped.Pack(), std::memory_order_relaxed);
  scraped_at_.store(now, std::memory_order_relaxed);
  uint64_t word = load_->ledger.load(std::memory_order_relaxed);
  while (!load_->ledger.compare_exchange_weak(word, Pack(Current(word), 0, Generation(word), 0),
                                              std::memory_order_relaxed)) {
  }
}

[[gnu::hot]] std::optional<Reservation> EndpointCell::TryReserve(uint32_t expected,
                                                                 uint32_t tokens) noexcept {
  uint64_t word = load_->ledger.load(std::memory_order_relaxed);
  do {
    if (Current(word) + Older(word) != expected) return std::nullopt;
    if (Current(word) == kCounterMax) break;
  } while (!load_->ledger.compare_exchange_weak(word, word + 1, std::memory_order_relaxed));
  inflight_.fetch_add(1, std::memory_order_relaxed);
  inflight_tokens_.fetch_add(tokens, std::memory_order_relaxed);
  return Reservation{Generation(word), tokens};
}

Reservation EndpointCell::Reserve(uint32_t tokens) noexcept {
  for (;;) {
    if (const auto reserved = TryReserve(pending(), tokens)) return *reserved;
  }
}

[[gnu::hot]] void EndpointCell::Release(Reservation reservation, ReleaseKind kind) noexcept {
  inflight_.fetch_sub(1, std::memory_order_relaxed);
  inflight_tokens_.fetch_sub(reservation.tokens, std::memory_order_relaxed);
  if (kind == ReleaseKind::kDetached) return;
  uint64_t word = load_->ledger.load(std::memory_order_relaxed);
  uint64_t next = 0;
  do {
    const uint32_t age = (Generation(word) - reservation.generation) & kGenerationMask;
    if (age == 0) {
      if (Current(word) == 0) return;
      next = word - 1;
    } else if (age <= Uncovered(word)) {
      if (Older(word) == 0) return;
      next = word - (uint64_t{1} << 16);
    } else {
      return;  // an applied scrape has seen it: its end will be in the next one
    }
  } while (!load_->ledger.compare_exchange_weak(word, next, std::memory_order_relaxed));
}

}  // namespace fairway::fleet
