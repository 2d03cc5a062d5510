// no-hit-lru-scorer: spreads requests whose prefix nobody has. Some candidate has a part of it: 0.5 for all.
// Else, of n candidates, those that no such request was sent to get 1 - i / (n - 1) in their order, i from 0
// on; those that had one follow with their place among all that ever had one, oldest first, and 0 is the
// least. One candidate: 1. `lruSize`: 1024 (at most 4096), how many endpoints are remembered. A prefill
// endpoint of the profile "prefill" counts, too. A request is remembered where no candidate at
// all has a part, filtered out or not. Source: the reference's scorer of this name (llm-d router).
#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "scheduling/plugin.h"
#include "scheduling/plugins/keys.h"
#include "scheduling/plugins/prefix.h"

namespace fairway::scheduling {
namespace {

constexpr size_t kMostEndpoints = 4096;

// When each endpoint was last sent a request that nobody had a prefix of. Shared without locks: entries are
// found by going on from a key's place, never freed, and one that is the oldest gives way.
class LastUse {
 public:
  explicit LastUse(size_t size) : entries_(size) {}

  // Writes the times of all to `times` in rising order and returns how many.
  size_t Times(std::span<uint64_t> times) const noexcept {
    size_t n = 0;
    for (const Entry& entry : entries_) {
      const uint64_t time = entry.time.load(std::memory_order_relaxed);
      if (time != 0 && n < times.size()) times[n++] = time;
    }
    std::sort(times.begin(), times.begin() + static_cast<ptrdiff_t>(n));
    return n;
  }
  bool any() const noexcept { return clock_.load(std::memory_order_relaxed) != 0; }
  // 0: never.
  uint64_t Of(uint64_t key) const noexcept {
    for (size_t k = 0; k < kTries; ++k) {
      const Entry& entry = At(key, k);
      if (entry.key.load(std::memory_order_acquire) == key) return entry.time.load(std::memory_order_relaxed);
    }
    return 0;
  }
  void Touch(uint64_t key) noexcept {
    const uint64_t now = clock_.fetch_add(1, std::memory_order_relaxed) + 1;
    Entry* oldest = &At(key, 0);
    for (size_t k = 0; k < kTries; ++k) {
      Entry& entry = At(key, k);
      uint64_t there = 0;
      if (entry.key.compare_exchange_strong(there, key, std::memory_order_acq_rel) || there == key) {
        entry.time.store(now, std::memory_order_relaxed);
        return;
      }
      if (entry.time.load(std::memory_order_relaxed) < oldest->time.load(std::memory_order_relaxed))
        oldest = &entry;
    }
    oldest->key.store(key, std::memory_order_release);
    oldest->time.store(now, std::memory_order_relaxed);
  }

 private:
  static constexpr size_t kTries = 16;
  struct Entry {
    std::atomic<uint64_t> key{0};
    std::atomic<uint64_t> time{0};
  };
  Entry& At(uint64_t key, size_t k) noexcept { return entries_[(key + k) % entries_.size()]; }
  const Entry& At(uint64_t key, size_t k) const noexcept { return entries_[(key + k) % entries_.size()]; }

  std::atomic<uint64_t> clock_{0};
  std::vector<Entry> entries_;
};

uint64_t KeyOfEndpoint(const fleet::Endpoint& endpoint) noexcept { return KeyOf(endpoint.id); }

class NoHitLruScorer final : public Plugin, public Scorer, public EndpointProducer, public RequestHook {
 public:
  explicit NoHitLruScorer(Build& build)
      : match_(PrefixColumns(build).Read(build, kPrefixMatch)), key_(build, "endpoint") {
    int64_t size = build.Integer("lruSize", 1024, INT32_MIN, INT32_MAX,
                                 "Endpoints whose last use is known; below 1 counts as 1024");
    if (size <= 0 || size > static_cast<int64_t>(kMostEndpoints)) {
      size = size <= 0 ? 1024 : static_cast<int64_t>(kMostEndpoints);
      build.Warn("lruSize", "counts as " + std::to_string(size));
    }
    build.NoEffect({"prefixPluginType", "prefixPluginName"}, "use prefixMatchInfoProducerName");
    last_use_ = build.Remember<LastUse>([&] { return std::make_shared<LastUse>(static_cast<size_t>(size)); });
  }
  float Value(Column column, const fleet::Endpoint& endpoint) const override {
    return key_.Value(column, KeyOfEndpoint(endpoint));
  }

  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    if (!IsCold(context.columns, in)) {
      std::fill_n(out, in.size(), 0.5f);
      return;
    }
    if (in.size() == 1) {
      out[0] = 1;
      return;
    }
    std::array<uint64_t, kMostEndpoints> times;
    const size_t used = last_use_->any() ? last_use_->Times(times) : 0;
    const auto last = static_cast<float>(in.size() - 1);
    const auto time_of = [&](uint32_t position) {
      return used == 0 ? 0 : last_use_->Of(key_.At(context.columns, position));
    };
    size_t never = 0;
    for (const uint32_t position : in) never += time_of(position) == 0 ? 1 : 0;
    size_t next = 0;
    for (size_t i = 0; i < in.size(); ++i) {
      const uint64_t time = time_of(in[i]);
      const uint64_t* first = times.data();
      const size_t rank =
          time == 0 ? next++
                    : never + static_cast<size_t>(std::lower_bound(first, first + used, time) - first);
      out[i] = std::max(0.0f, 1 - static_cast<float>(rank) / last);
    }
  }

  void Picked(const Context& context, uint32_t, const fleet::Endpoint& endpoint) const noexcept override {
    Touch(context, endpoint);
  }
  void PickedBeside(const Context& context, std::string_view profile, uint32_t,
                    const fleet::Endpoint& endpoint) const noexcept override {
    if (profile == "prefill") Touch(context, endpoint);
  }

 private:
  bool IsCold(const Columns& columns, std::span<const uint32_t> in) const noexcept {
    const float* match = columns[match_];
    return std::none_of(in.begin(), in.end(), [match](uint32_t position) { return match[position] > 0; });
  }
  void Touch(const Context& context, const fleet::Endpoint& endpoint) const noexcept {
    const float* match = context.columns[match_];
    if (std::none_of(match, match + context.columns.size(), [](float share) { return share > 0; }))
      last_use_->Touch(KeyOfEndpoint(endpoint));
  }

  Column match_;
  KeyColumns key_;
  std::shared_ptr<LastUse> last_use_;
};

}  // namespace

std::unique_ptr<Plugin> MakeNoHitLruScorer(Build& build) { return std::make_unique<NoHitLruScorer>(build); }

}  // namespace fairway::scheduling
