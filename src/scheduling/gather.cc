#include "scheduling/gather.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "scheduling/lanes.h"

namespace fairway::scheduling {

using fleet::EndpointLoad;

Scratch::Scratch() : impl_(std::make_unique<Impl>()) {}
Scratch::~Scratch() = default;

void Scratch::MeasureLookups(const base::Clock& clock, base::Histogram& seconds) {
  impl_->lookup_times = {&clock, &seconds};
}

void Scratch::Impl::Grow(size_t n, size_t more) {
  n = std::max((n + kLanes - 1) / kLanes * kLanes, capacity);
  more = std::max(more, more_columns);
  capacity = n;
  more_columns = more;
  const auto place = [n](auto& memory, auto... columns) {
    memory.assign(n * sizeof...(columns), 0);
    auto* next = memory.data();
    for (auto** column : {columns...}) {
      *column = next;
      next += n;
    }
  };
  place(floats, &requests, &queue, &running, &page_queue, &kv_usage, &work, &prefill, &tokens, &unseen,
        &adapter, &no_adapter, &total, &score);
  place(numbers, &own, &fresh, &all, &list[0], &list[1], &eligible);
  std::iota(all, all + n, 0u);
  more_floats.assign(n * more, 0);
  const auto show = [this](Column column, float* at) { table[column.id] = made[column.id] = at; };
  show(kRequests, requests);
  show(kWork, work);
  show(kPrefill, prefill);
  show(kAdapter, adapter);
  show(kTokens, tokens);
  show(kQueue, queue);
  show(kRunning, running);
  show(kPageQueue, page_queue);
  show(kKvUsage, kv_usage);
  for (size_t i = 0; i < more; ++i)
    show({static_cast<uint16_t>(kLiveColumns.size() + i)}, more_floats.data() + i * n);
}

std::span<const std::shared_ptr<void>> Scratch::Impl::MemoryOf(const Config& config) {
  if (config.per_worker.empty()) return {};
  constexpr size_t kMaxKept = 16;
  auto& kept = plugin_memory;
  const auto found = std::find_if(kept.begin(), kept.end(), [&](const PluginMemory& memory) {
    return memory.generation == config.generation;
  });
  if (found != kept.end()) {
    if (found != kept.begin()) std::iter_swap(found, kept.begin());
    return kept.front().made;
  }
  if (kept.size() == kMaxKept) kept.pop_back();
  auto& memory = *kept.insert(kept.begin(), {config.generation, {}});
  for (const auto make : config.per_worker) memory.made.push_back(make());
  return memory.made;
}

namespace {

// What is known of all candidates together.
struct Together {
  bool fresh = false;    // all of them
  bool learned = false;  // the rates of all
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

// As fleet::MillisSince.
LaneCounts Since(LaneCounts then, LaneCounts now) noexcept {
  using Unsigned = uint32_t __attribute__((vector_size(16)));
  return LaneCounts(Unsigned(now) - Unsigned(then));
}

// The loads by fours: at the end the last one fills up.
class Fours {
 public:
  explicit Fours(std::span<const EndpointLoad* const> loads) : loads_(loads) {
    for (size_t k = 0; k < kLanes; ++k)
      last_[k] = loads[std::min(loads.size() / kLanes * kLanes + k, loads.size() - 1)];
  }
  size_t size() const { return loads_.size(); }
  struct Halves {
    LaneCounts low, high;
  };
  // The words of the four from `at` on.
  [[gnu::always_inline]] Halves Read(size_t at, std::atomic<uint64_t> EndpointLoad::* word) const noexcept {
    const EndpointLoad* const* four = at + kLanes <= loads_.size() ? &loads_[at] : last_.data();
    const auto get = [&](size_t k) { return (four[k]->*word).load(std::memory_order_relaxed); };
    const LaneWords first{get(0), get(1)};
    const LaneWords second{get(2), get(3)};
    return {LowHalves(first, second), HighHalves(first, second)};
  }

 private:
  std::span<const EndpointLoad* const> loads_;
  std::array<const EndpointLoad*, kLanes> last_;
};

// What SetWork does, and the ledger's own part, for all: this loop is most of a decision. load.h says what
// is where in a word. `s` is a copy, so that the compiler knows that no store changes where the columns are.
[[gnu::hot]] Together GatherAll(const Fours& fours, const Moment& moment,
                                const Scratch::Impl::Arrays s) noexcept {
  LaneCounts all_fresh = LaneCounts{} - 1;
  LaneCounts all_learned = all_fresh;
  LaneCounts any_room{};
  const LaneCounts now = LaneCounts{} + static_cast<int32_t>(moment.now);
  for (size_t i = 0; i < fours.size(); i += kLanes) {
    const auto [counts, page] = fours.Read(i, &EndpointLoad::ledger);
    const auto [tokens, rates] = fours.Read(i, &EndpointLoad::work);
    const auto [unseen_tokens, since] = fours.Read(i, &EndpointLoad::unseen);
    any_room |= fours.Read(i, &EndpointLoad::scraped).low;
    const LaneCounts own = counts & 0xffff;
    const LaneCounts fresh = (page != 0) & (Since(page, now) <= moment.fresh_for);
    const auto ms_per_token = Lanes(rates);
    const Lanes passed = Greatest(ToFloats(Since(since, now)), Lanes{});
    const Lanes unseen = Greatest(ToFloatsUnsigned(unseen_tokens) * ms_per_token - passed, Lanes{});
    all_fresh &= fresh;
    all_learned &= ms_per_token > 0;
    Store(fresh, s.fresh + i);
    Store(own, s.own + i);
    Store(ToFloats(own + (counts >> 16 & 0xffff)), s.requests + i);
    Store(unseen, s.unseen + i);
    Store(ToFloatsUnsigned(tokens) * ms_per_token + unseen, s.work + i);
    Store(ms_per_token * moment.prompt_tokens, s.prefill + i);
  }
  return {.fresh = All(all_fresh), .learned = All(all_learned), .lora_room = Sum(any_room >> 31) != 0};
}

// What SetLoad does with what pages say, for all. True: one does not say its KV use (ScrapedLoad::kUnknown).
bool GatherPages(const Fours& fours, const Scratch::Impl::Arrays s) noexcept {
  LaneCounts any_kv{};
  for (size_t i = 0; i < fours.size(); i += kLanes) {
    const auto [counts, kv_usage] = fours.Read(i, &EndpointLoad::scraped);
    const Lanes requests = Load(s.requests + i);
    const Lanes running = Least(ToFloats(counts >> 16 & 0x7fff), requests);
    Store(running, s.running + i);
    Store(requests - running, s.queue + i);
    Store(ToFloats(counts & 0xffff), s.page_queue + i);
    Store(kv_usage, s.kv_usage + i);
    any_kv |= kv_usage;
  }
  return Sum(any_kv >> 31) != 0;  // signs
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
// full. Returns how many are fresh.
[[gnu::noinline]] size_t MendStale(size_t n, Scratch::Impl& s) noexcept {
  size_t fresh = 0;
  float others = 0;
  float running = 0;
  float kv_usage = 0;
  float unseen = 0;
  for (size_t i = 0; i < n; ++i) {
    if (s.fresh[i] == 0) continue;
    ++fresh;
    others += s.requests[i] - static_cast<float>(s.own[i]);
    running += s.running[i];
    kv_usage += s.kv_usage[i];
    unseen += s.unseen[i];
  }
  for (float* sum : {&others, &running, &kv_usage, &unseen})
    *sum /= static_cast<float>(std::max<size_t>(fresh, 1));
  for (size_t i = 0; i < n; ++i) {
    if (s.fresh[i] != 0) continue;
    SetLoad(i, s.own[i], others, running, s);
    s.page_queue[i] = 0;
    s.kv_usage[i] = kv_usage;
    s.work[i] += std::max(unseen - s.unseen[i], 0.0f);
  }
  return fresh;
}

// A KV use that a good page did not say counts as the average of those that are known and fresh.
[[gnu::noinline]] void MendKvUsage(size_t n, Scratch::Impl& s) noexcept {
  float sum = 0;
  float known = 0;
  for (size_t i = 0; i < n; ++i) {
    if (s.fresh[i] == 0 || s.kv_usage[i] < 0) continue;
    sum += s.kv_usage[i];
    ++known;
  }
  for (size_t i = 0; i < n; ++i) {
    if (s.kv_usage[i] < 0) s.kv_usage[i] = known > 0 ? sum / known : 0;
  }
}

// An engine that nothing was learned of yet is taken to be as fast as the others on average.
[[gnu::noinline]] void MendUnlearned(std::span<const EndpointLoad* const> loads, const Moment& moment,
                                     Scratch::Impl& s) noexcept {
  float learned = 0;
  float sum = 0;
  for (const EndpointLoad* load : loads) {
    const float ms_per_token = load->own_work().ms_per_token;
    learned += ms_per_token > 0 ? 1 : 0;
    sum += ms_per_token;
  }
  const float ms_per_token = learned > 0 ? sum / learned : fleet::kDefaultMsPerToken;
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

// What is known of the request's adapter (kNoAdapter: of none), and who has room for one. A slot counts as
// empty (kAdapterFree) only where all adapters of the pool would fit: else another one will want it soon.
// False: nothing of anybody.
[[gnu::noinline]] bool GatherAdapters(std::span<const EndpointLoad* const> loads,
                                      const fleet::EndpointCell* const* cells, uint32_t adapter,
                                      size_t adapters, bool believed, float* out) noexcept {
  using Slots = fleet::AdapterSlots;
  // Cells come from farther away than the next cache, and want to be asked for ahead.
  constexpr size_t kAhead = 32;
  const size_t n = loads.size();
  const unsigned counted = kAdapterRunning | kAdapterWaiting | (believed ? kAdapterResident : 0u);
  unsigned seen = 0;
  bool untold = false;
  size_t most = 1;  // slots of one engine
  for (size_t i = 0; i < n; ++i) {
    unsigned bits = loads[i]->last().lora_room ? kAdapterRoom : 0;
    if (adapter != fleet::kNoAdapter) {
      if (i + kAhead < n) __builtin_prefetch(cells[i + kAhead]->adapter_line(adapter));
      const fleet::EndpointCell& cell = *cells[i];
      bits |= counted & (cell.adapter_running(adapter) * kAdapterRunning |
                         cell.adapter_waiting(adapter) * kAdapterWaiting |
                         cell.adapter_resident(adapter) * kAdapterResident);
    }
    if (believed) {
      const Slots slots = cells[i]->adapter_slots();
      untold |= slots.state == Slots::kUntold;
      most = std::max<size_t>(most, slots.max);
      if (slots.state == Slots::kFree && adapters <= slots.max && (bits & kAdapterRoom) != 0)
        bits |= kAdapterFree;
    }
    out[i] = static_cast<float>(bits);
    seen |= bits;
  }
  if (!untold) [[likely]]
    return seen != 0;
  // An engine whose page says nothing of adapters yet has all slots empty, as many as others have: else it
  // would never get its first.
  const unsigned bits = kAdapterRoom | (adapters <= most ? kAdapterFree : 0u);
  for (size_t i = 0; i < n; ++i) {
    if (cells[i]->adapter_slots().state == Slots::kUntold) out[i] = static_cast<float>(bits);
  }
  return true;
}

// Prompt tokens that are to be computed: those of our own that are watched, and what is left of others.
[[gnu::noinline]] void GatherTokens(std::span<const EndpointLoad* const> loads, Scratch::Impl& s) noexcept {
  for (size_t i = 0; i < loads.size(); ++i) {
    const fleet::Work work = loads[i]->own_work();
    const float rate = work.ms_per_token > 0 ? work.ms_per_token : fleet::kDefaultMsPerToken;
    s.tokens[i] = static_cast<float>(work.tokens) + s.unseen[i] / rate;
  }
}

// The snapshot columns of this pool and config, looked for when either is new to this worker.
const std::vector<std::vector<float>>& EndpointColumnsOf(const Config& config,
                                                         const fleet::PoolSnapshot& pool, Scratch::Impl& s) {
  constexpr size_t kMaxKept = 16;  // pools and configs that are in use at one time
  const auto wanted = [&](const auto& columns) { return columns->AreOf(config, pool); };
  auto& kept = s.endpoint_columns;
  const auto found = std::find_if(kept.begin(), kept.end(), wanted);
  if (found != kept.end()) {
    if (found != kept.begin()) std::iter_swap(found, kept.begin());
    return kept.front()->values;
  }
  std::shared_ptr<const EndpointColumns> columns;
  if (s.prepared) {
    const PreparedColumns& prepared = *s.prepared->Get();
    const auto there = std::find_if(prepared.begin(), prepared.end(), wanted);
    if (there != prepared.end()) columns = *there;
  }
  if (columns == nullptr) columns = ComputeEndpointColumns(config, pool);
  if (kept.size() == kMaxKept) kept.pop_back();
  return (*kept.insert(kept.begin(), std::move(columns)))->values;
}

}  // namespace

std::shared_ptr<const EndpointColumns> ComputeEndpointColumns(const Config& config,
                                                              const fleet::PoolSnapshot& pool) {
  auto made = std::make_shared<EndpointColumns>();
  made->content = pool.content->number;
  made->generation = config.generation;
  for (const Config::AbsentColumn& column : config.absent_columns)
    made->values.emplace_back(pool.endpoints.size() + kLanes, column.value);
  for (const Config::EndpointColumn& column : config.endpoint_columns) {
    auto& values = made->values.emplace_back();
    values.reserve(pool.endpoints.size() + kLanes);
    for (const fleet::Endpoint& endpoint : pool.endpoints)
      values.push_back(column.producer->Value(column.column, endpoint));
    values.resize(values.size() + kLanes);  // who reads by fours may read on
  }
  return made;
}

[[gnu::noinline]] void GatherEndpointColumns(const Config& config, const Candidates& candidates,
                                             Scratch::Impl& s) {
  const auto& values = EndpointColumnsOf(config, *candidates.pool, s);
  const size_t absent = config.absent_columns.size();
  for (size_t k = 0; k < values.size(); ++k) {
    const uint16_t id =
        k < absent ? config.absent_columns[k].column.id : config.endpoint_columns[k - absent].column.id;
    if (!candidates.subset) {
      s.table[id] = values[k].data();
      continue;
    }
    s.table[id] = s.made[id];
    for (size_t i = 0; i < candidates.size(); ++i) s.made[id][i] = values[k][(*candidates.subset)[i]];
  }
}

[[gnu::noinline]] std::optional<std::span<const uint32_t>> LeaveOutRefusing(
    const fleet::PoolSnapshot& pool, std::optional<std::span<const uint32_t>> candidates, Scratch::Impl& s) {
  s.answering.clear();
  const size_t n = candidates ? candidates->size() : pool.cells.size();
  for (size_t i = 0; i < n; ++i) {
    const uint32_t number = candidates ? (*candidates)[i] : static_cast<uint32_t>(i);
    if (!pool.cells[number]->refusing()) s.answering.push_back(number);
  }
  if (s.answering.empty() || s.answering.size() == n) return candidates;
  return s.answering;
}

[[gnu::hot]] Picture Gather(const SchedulerOptions& options, const Config& config,
                            const Candidates& candidates, const Facts& request, base::Nanos now,
                            uint32_t reads, Scratch::Impl& s) noexcept {
  const fleet::PoolSnapshot& pool = *candidates.pool;
  const size_t n = candidates.size();
  const size_t more = config.columns.size() - kLiveColumns.size();
  if (n > s.capacity || more > s.more_columns) [[unlikely]]
    s.Grow(n, more);
  std::span<const EndpointLoad* const> loads(pool.loads.data(), n);
  const fleet::EndpointCell* const* cells = pool.cells.data();
  std::span<const uint32_t> endpoint(s.all, n);
  if (candidates.subset) [[unlikely]] {
    s.loads.clear();
    s.cells.clear();
    for (const uint32_t number : *candidates.subset) {
      s.loads.push_back(pool.loads[number]);
      s.cells.push_back(pool.cells[number]);
    }
    loads = s.loads;
    cells = s.cells.data();
    endpoint = *candidates.subset;
  }
  const Moment moment{.now = fleet::Millis(now),
                      .fresh_for = static_cast<int32_t>(options.fresh_for / base::kMillisecond),
                      .prompt_tokens = static_cast<float>(request.prompt_tokens)};
  const Fours fours(loads);
  const Together together = GatherAll(fours, moment, s.arrays());
  const bool ledger = options.load_source == LoadSource::kLedger;
  const bool pages = (reads & kPageColumns) != 0 || !together.fresh || !ledger;
  const bool kv_unknown = pages && GatherPages(fours, s.arrays());
  if (!ledger) [[unlikely]]
    KeepPageOnly(loads, s);
  if (!together.learned && ledger) [[unlikely]]
    MendUnlearned(loads, moment, s);
  Picture picture{.fresh = n};
  if (kv_unknown) [[unlikely]]
    MendKvUsage(n, s);
  if (!together.fresh) [[unlikely]]
    picture.fresh = MendStale(n, s);
  if (picture.fresh == 0) [[unlikely]]
    picture.youngest_age = YoungestAge(loads, moment.now);
  if ((reads & Bit(kTokens)) != 0) [[unlikely]]
    GatherTokens(loads, s);
  bool adapters = false;
  const bool adapter = request.adapter != fleet::kNoAdapter && !pool.adapters.empty();
  // A base model needs no slot; the reference asks for room for it, too.
  const auto is_base = [&] { return ledger && pool.served->contains(request.target_model); };
  if (adapter || (together.lora_room && !is_base())) [[unlikely]]
    adapters = GatherAdapters(loads, cells, adapter ? request.adapter : fleet::kNoAdapter,
                              pool.adapters.size(), ledger, s.adapter);
  s.table[kAdapter.id] = adapters ? s.adapter : s.no_adapter;
  if (!config.endpoint_columns.empty() || !config.absent_columns.empty()) [[unlikely]]
    GatherEndpointColumns(config, candidates, s);
  picture.columns = Columns(endpoint, s.table.data());
  picture.columns.adapters = adapters;
  return picture;
}

void Produce(const Config& config, const Context& context, Scratch::Impl& s) noexcept {
  RunProducers(config, context, s);
  SubtractCached(config, context, s);
}

void RunProducers(const Config& config, const Context& context, Scratch::Impl& s) noexcept {
  const size_t n = context.columns.size();
  for (size_t id = kLiveColumns.size(); id < config.columns.size(); ++id) {
    if (config.columns[id].lifetime != Lifetime::kRequest) continue;
    s.table[id] = s.made[id];
    std::fill_n(s.made[id], n, 0.0f);
  }
  for (const Producer* producer : config.producers) producer->Make(context, s.made.data());
}

void SubtractCached(const Config& config, const Context& context, Scratch::Impl& s) noexcept {
  const size_t n = context.columns.size();
  if (!config.cached || context.request.prompt_tokens == 0) return;
  const float* cached = s.table[config.likely_cached.value_or(*config.cached).id];
  const auto prompt = static_cast<float>(context.request.prompt_tokens);
  for (size_t i = 0; i < n; ++i) s.prefill[i] *= std::max(prompt - cached[i], 0.0f) / prompt;
}

}  // namespace fairway::scheduling
