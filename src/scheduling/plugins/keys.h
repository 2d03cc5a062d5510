// Texts of endpoints as columns, to be compared with texts of requests: 40 bits of a hash, in two columns,
// since a float holds 24 bits exactly. What has no text has the key 0.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "base/random.h"
#include "scheduling/build.h"

namespace fairway::scheduling {

inline constexpr uint64_t kHalfKey = (uint64_t{1} << 24) - 1;
inline constexpr uint64_t kWholeKey = (uint64_t{1} << 40) - 1;

// Two texts of one key are as likely as 1 to 2^40, so keys stand for the texts.
inline uint64_t KeyOf(std::initializer_list<std::string_view> pieces) noexcept {
  constexpr uint64_t kStart = 0xcbf29ce484222325;  // FNV-1a
  uint64_t state = kStart;
  for (const std::string_view piece : pieces) {
    for (const char c : piece) state = (state ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  }
  if (state == kStart) return 0;
  const uint64_t key = base::SplitMix64(state) & kWholeKey;
  return key != 0 ? key : 1;
}
inline uint64_t KeyOf(std::string_view text) noexcept { return KeyOf({text}); }

// Two columns of one plugin, as its EndpointProducer makes them.
class KeyColumns {
 public:
  KeyColumns() = default;
  KeyColumns(Build& build, std::string_view what)
      : low_(build.Makes(build.Own(std::string(what) + "-key"), Lifetime::kSnapshot, Unit::kCount)),
        high_(build.Makes(build.Own(std::string(what) + "-key-high"), Lifetime::kSnapshot, Unit::kCount)) {}
  // The value of `column` for a text of this key; 0 for a column that is none of the two.
  float Value(Column column, uint64_t key) const noexcept {
    if (column == low_) return static_cast<float>(key & kHalfKey);
    return column == high_ ? static_cast<float>(key >> 24) : 0;
  }
  bool Has(Column column) const noexcept { return column == low_ || column == high_; }

  uint64_t At(const Columns& columns, uint32_t position) const noexcept {
    return static_cast<uint64_t>(columns[low_][position]) | static_cast<uint64_t>(columns[high_][position])
                                                                << 24;
  }

 private:
  Column low_, high_;
};

}  // namespace fairway::scheduling
