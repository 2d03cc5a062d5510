#include "scheduling/gather.h"

#include <algorithm>
#include <numeric>

namespace fairway::scheduling {

using fleet::EndpointLoad;

Scratch::Scratch() : impl_(std::make_unique<Impl>()) {}
Scratch::~Scratch() = default;

void Scratch::Impl::Grow(size_t n) {
  capacity = n;
  const auto place = [n](auto& memory, auto... columns) {
    memory.assign(n * sizeof...(columns), 0);
    auto* next = memory.data();
    for (auto** column : {columns...}) {
      *column = next;
      next += n;
    }
  };
  place(floats, &requests, &queue, &running, &page_queue, &kv_usage, &work, &prefill, &unseen, &total,
        &score);
  place(numbers, &own, &fresh, &all, &list[0], &list[1], &eligible);
  place(bytes, &lora, &no_lora);
  std::iota(all, all + n, 0u);
}

namespace {

// What is taken for each candidate's before it is known to be stale or unlearned.
struct Sums {
  size_t fresh = 0;
  size_t learned = 0;
  float ms_per_token = 0;
  bool lora_room = false;
};

struct Moment {
  uint32_t now = 0;       // fleet::Millis
  int32_t fresh_for = 0;  // ms
  float prompt_tokens = 0;
};

// `others`, `running`: as on its page, or what is put in the place of a stale one.
void SetLoad(size_t i, uint32_t own, float others, float running, Scratch::Impl& s) noexcept {
  const float requests = static_cast<float>(own) + others;
  s.own[i] = own;
  s.requests[i] = requests;
  s.running[i] = std::min(running, requests);
  s.queue[i] = requests - s.running[i];
}

void SetWork(size_t i, const EndpointLoad& load, float ms_per_token, const Moment& moment,
             Scratch::Impl& s) noexcept {
  s.unseen[i] = load.unseen_work().Left(ms_per_token, moment.now);
  s.work[i] = static_cast<float>(load.own_work().tokens) * ms_per_token + s.unseen[i];
  s.prefill[i] = moment.prompt_tokens * ms_per_token;
}

// What SetLoad and SetWork do, for all: this loop is most of a decision. `columns` is a copy, so that the
// compiler knows that no store changes where the columns are.
[[gnu::hot]] Sums GatherAll(std::span<const EndpointLoad* const> loads, const Moment& moment,
                            const Scratch::Impl::Arrays s) noexcept {
  Sums sums;
  uint32_t room = 0;
  for (size_t i = 0; i < loads.size(); ++i) {
    const EndpointLoad& load = *loads[i];
    const fleet::Ledger ledger = load.requests();
    const fleet::ScrapedLoad page = load.last();
    const fleet::Work own = load.own_work();
    const uint32_t fresh =
        ledger.page != 0 && fleet::MillisSince(ledger.page, moment.now) <= moment.fresh_for ? 1 : 0;
    sums.fresh += fresh;
    sums.learned += own.ms_per_token > 0 ? 1 : 0;
    sums.ms_per_token += own.ms_per_token;
    room |= page.lora_room ? 1 : 0;
    const auto requests = static_cast<float>(static_cast<int32_t>(ledger.own + ledger.others));
    const float running = std::min(static_cast<float>(static_cast<int32_t>(page.running)), requests);
    const float unseen = load.unseen_work().Left(own.ms_per_token, moment.now);
    s.fresh[i] = fresh;
    s.own[i] = ledger.own;
    s.requests[i] = requests;
    s.running[i] = running;
    s.queue[i] = requests - running;
    s.page_queue[i] = static_cast<float>(static_cast<int32_t>(page.waiting));
    s.kv_usage[i] = page.kv_usage;
    s.unseen[i] = unseen;
    s.work[i] = static_cast<float>(own.tokens) * own.ms_per_token + unseen;
    s.prefill[i] = moment.prompt_tokens * own.ms_per_token;
  }
  sums.lora_room = room != 0;
  return sums;
}

// As if there were no ledger.
[[gnu::noinline]] void KeepPageOnly(std::span<const EndpointLoad* const> loads, Scratch::Impl& s) noexcept {
  for (size_t i = 0; i < loads.size(); ++i) {
    const fleet::ScrapedLoad page = loads[i]->last();
    const auto shown = static_cast<float>(page.waiting + page.running);
    SetLoad(i, s.own[i], shown - static_cast<float>(s.own[i]), static_cast<float>(page.running), s);
    s.work[i] = s.prefill[i] = s.unseen[i] = 0;
  }
}

// A stale page no longer says how loaded its endpoint is: it counts as the average of those that are fresh,
// so that it neither attracts all requests nor is shut out; and as what we know of it ourselves. It is never
// full.
[[gnu::noinline]] void MendStale(std::span<const EndpointLoad* const> loads, size_t fresh,
                                 Scratch::Impl& s) noexcept {
  float others = 0;
  float running = 0;
  float kv_usage = 0;
  float unseen = 0;
  for (size_t i = 0; i < loads.size(); ++i) {
    if (s.fresh[i] == 0) continue;
    others += s.requests[i] - static_cast<float>(s.own[i]);
    running += s.running[i];
    kv_usage += s.kv_usage[i];
    unseen += s.unseen[i];
  }
  for (float* sum : {&others, &running, &kv_usage, &unseen})
    *sum /= static_cast<float>(std::max<size_t>(fresh, 1));
  for (size_t i = 0; i < loads.size(); ++i) {
    if (s.fresh[i] != 0) continue;
    SetLoad(i, s.own[i], others, running, s);
    s.page_queue[i] = 0;
    s.kv_usage[i] = kv_usage;
    s.work[i] += std::max(unseen - s.unseen[i], 0.0f);
  }
}

// An engine that nothing was learned of yet is taken to be as fast as the others on average.
[[gnu::noinline]] void MendUnlearned(std::span<const EndpointLoad* const> loads, const Sums& sums,
                                     const Moment& moment, Scratch::Impl& s) noexcept {
  const float ms_per_token =
      sums.learned > 0 ? sums.ms_per_token / static_cast<float>(sums.learned) : fleet::kDefaultMsPerToken;
  for (size_t i = 0; i < loads.size(); ++i) {
    if (loads[i]->own_work().ms_per_token == 0) SetWork(i, *loads[i], ms_per_token, moment, s);
  }
}

[[gnu::noinline]] base::Nanos YoungestAge(std::span<const EndpointLoad* const> loads, uint32_t now) noexcept {
  base::Nanos age = std::numeric_limits<base::Nanos>::max();
  for (const EndpointLoad* load : loads) {
    const uint32_t page = load->requests().page;
    if (page != 0) age = std::min(age, base::Nanos{fleet::MillisSince(page, now)} * base::kMillisecond);
  }
  return age;
}

// What is known of the request's adapter (kNoAdapter: of none), and who has room for one. Returns the bits
// that were set.
[[gnu::noinline]] uint8_t GatherLora(const Candidates& candidates, std::span<const EndpointLoad* const> loads,
                                     uint32_t adapter, bool believed, Scratch::Impl& s) noexcept {
  // Cells come from farther away than the next cache, and want to be asked for ahead.
  constexpr size_t kAhead = 8;
  const auto cell = [&](size_t i) -> const fleet::EndpointCell& {
    return *candidates.pool->cells[candidates.subset ? (*candidates.subset)[i] : i];
  };
  const uint8_t counted = kLoraRunning | kLoraWaiting | (believed ? kLoraResident : 0);
  uint8_t* lora = s.lora;
  uint8_t seen = 0;
  for (size_t i = 0; i < loads.size(); ++i) {
    uint8_t bits = loads[i]->last().lora_room ? kLoraRoom : 0;
    if (adapter != fleet::kNoAdapter) {
      if (i + kAhead < loads.size()) __builtin_prefetch(cell(i + kAhead).adapter_line(adapter));
      const fleet::EndpointCell& asked = cell(i);
      bits |= counted & ((asked.adapter_running(adapter) ? kLoraRunning : 0) |
                         (asked.adapter_waiting(adapter) ? kLoraWaiting : 0) |
                         (asked.adapter_resident(adapter) ? kLoraResident : 0));
    }
    lora[i] = bits;
    seen |= bits;
  }
  return seen;
}

}  // namespace

[[gnu::hot]] Picture Gather(const SchedulerOptions& options, const Candidates& candidates,
                            const Request& request, base::Nanos now, Scratch::Impl& s) noexcept {
  const fleet::PoolSnapshot& pool = *candidates.pool;
  const size_t n = candidates.size();
  if (n > s.capacity) [[unlikely]]
    s.Grow(n);
  std::span<const EndpointLoad* const> loads(pool.loads.data(), n);
  std::span<const uint32_t> endpoint(s.all, n);
  if (candidates.subset) [[unlikely]] {
    s.loads.clear();
    for (const uint32_t number : *candidates.subset) s.loads.push_back(pool.loads[number]);
    loads = s.loads;
    endpoint = *candidates.subset;
  }
  const Moment moment{.now = fleet::Millis(now),
                      .fresh_for = static_cast<int32_t>(options.fresh_for / base::kMillisecond),
                      .prompt_tokens = static_cast<float>(request.prompt_tokens)};
  const Sums sums = GatherAll(loads, moment, s.arrays());
  if (options.load_source == LoadSource::kPage) [[unlikely]]
    KeepPageOnly(loads, s);
  if (sums.learned < n && options.load_source == LoadSource::kLedger) [[unlikely]]
    MendUnlearned(loads, sums, moment, s);
  if (sums.fresh < n) [[unlikely]]
    MendStale(loads, sums.fresh, s);
  Picture picture{.fresh = sums.fresh};
  if (sums.fresh == 0) [[unlikely]]
    picture.youngest_age = YoungestAge(loads, moment.now);
  uint8_t lora_bits = 0;
  const bool adapter = request.adapter != fleet::kNoAdapter && !pool.adapters.empty();
  if (sums.lora_room || adapter) [[unlikely]]
    lora_bits = GatherLora(candidates, loads, adapter ? request.adapter : fleet::kNoAdapter,
                           options.load_source == LoadSource::kLedger, s);
  picture.columns = {.endpoint = endpoint,
                     .requests = {s.requests, n},
                     .queue = {s.queue, n},
                     .running = {s.running, n},
                     .page_queue = {s.page_queue, n},
                     .kv_usage = {s.kv_usage, n},
                     .work = {s.work, n},
                     .prefill = {s.prefill, n},
                     .lora = {lora_bits != 0 ? s.lora : s.no_lora, n},
                     .lora_bits = lora_bits};
  return picture;
}

}  // namespace fairway::scheduling
