// What plugins read: columns, one number per candidate, by name. A column lives as long as what it says:
//
//   live      gathered from the cells for each decision: load, cache use, adapters (kLiveColumns below)
//   snapshot  computed once per fleet and config, from what changes with manifests: labels, roles, zones
//   request   made by a producer for each decision: how much of the prompt is cached there
//
// A plugin asks for a column by its name when it is built (build.h) and gets a Column, a number that is good
// for that config; reading costs an index. What no plugin of a profile asks for is not gathered.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace fairway::scheduling {

enum class Lifetime : uint8_t { kLive, kSnapshot, kRequest };

// How an explanation prints a value.
enum class Unit : uint8_t { kCount, kShare, kMilliseconds, kTokens, kAdapter };

struct Column {
  uint16_t id = 0;
  bool operator==(const Column&) const = default;
};

// All that a config may have, live ones included.
inline constexpr size_t kMaxColumns = 96;

// The live ones. Load is the ledger's (fleet/load.h) but where the name says "page".
struct LiveColumn {
  std::string_view name;
  Unit unit;
  bool from_pages;  // read from what pages say: gathered only where somebody asks
};
inline constexpr Column kRequests{0}, kWork{1}, kPrefill{2}, kAdapter{3}, kTokens{4}, kQueue{5}, kRunning{6},
    kPageQueue{7}, kKvUsage{8};
inline constexpr std::array kLiveColumns{
    LiveColumn{"requests", Unit::kCount, false},        // own open requests + others
    LiveColumn{"work", Unit::kMilliseconds, false},     // until what is there already is computed
    LiveColumn{"prefill", Unit::kMilliseconds, false},  // for this request's own uncached prompt tokens
    LiveColumn{"adapter", Unit::kAdapter, false},       // kAdapter* bits, 0..31
    LiveColumn{"tokens", Unit::kTokens, false},         // prompt tokens that are still to be computed
    LiveColumn{"queue", Unit::kCount, true},            // requests - running
    LiveColumn{"running", Unit::kCount, true},          // as on the page, but not more than requests
    LiveColumn{"page-queue", Unit::kCount, true},  // waiting requests as on the page: what limits compare
    LiveColumn{"kv-usage", Unit::kShare, true},    // 0..1
};

inline constexpr uint32_t Bit(Column column) noexcept { return 1u << column.id; }
// Those of the live columns that pages tell.
inline constexpr uint32_t kPageColumns = [] {
  uint32_t bits = 0;
  for (size_t id = 0; id < kLiveColumns.size(); ++id) bits |= kLiveColumns[id].from_pages ? 1u << id : 0;
  return bits;
}();

// Not live, but known to the engine: prompt tokens of this request that are cached there. Where a plugin
// makes it, "prefill" is what is left, and so is what a place is taken for.
inline constexpr std::string_view kCachedTokens = "cached-tokens";
// The same with what others than this picker may have brought there: "prefill" goes by this where it is made.
inline constexpr std::string_view kLikelyCachedTokens = "likely-cached-tokens";

// Bits of the column "adapter", for the adapter that the request asks for.
inline constexpr unsigned kAdapterRunning = 1;  // on the page: resident and in use
inline constexpr unsigned kAdapterWaiting =
    2;                                       // on the page: queued requests wait for it: about to be loaded
inline constexpr unsigned kAdapterRoom = 4;  // no request uses some slot: it can be loaded
inline constexpr unsigned kAdapterResident =
    8;  // believed to be loaded, whether or not a request uses it now
inline constexpr unsigned kAdapterFree =
    16;  // beside kAdapterRoom: a slot is believed to be empty, so that no other adapter is lost for it
inline constexpr unsigned kAdapterHere = kAdapterRunning | kAdapterWaiting | kAdapterResident;  // no loading
inline unsigned AdapterBits(float value) noexcept { return static_cast<unsigned>(value); }

// The columns of one decision. Positions 0 .. size()-1 are the candidates, in the pool's order.
class Columns {
 public:
  Columns() = default;
  Columns(std::span<const uint32_t> endpoint, const float* const* table)
      : endpoint(endpoint), table_(table) {}

  size_t size() const noexcept { return endpoint.size(); }
  // Readable by fours to the end: what is beyond size() means nothing.
  const float* operator[](Column column) const noexcept { return table_[column.id]; }

  std::span<const uint32_t> endpoint;  // number in the pool
  bool adapters = true;                // false: nobody has anything in the column "adapter"

 private:
  const float* const* table_ = nullptr;
};

}  // namespace fairway::scheduling
