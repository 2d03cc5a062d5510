// How many prompt tokens an engine has still to compute, where it tells so beside its metrics page: as JSON, a
// list with an object for each of its data-parallel ranks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fairway::sources::scrape {

struct WaitingTokensSpec {
  std::string path;    // "": this engine does not tell
  std::string list;    // the member that has the ranks
  std::string tokens;  // of a rank: uncached prompt tokens of requests that wait, a whole number
  // Of a rank: how many tokens its cache holds. 0 until it has worked for the first time, and what it says
  // before that is nothing.
  std::string capacity;
};

// Of all ranks together. Nothing where one of them does not say it, where it says what cannot be, or where
// there is no rank at all: a part of it would make a full server look empty. Any bytes give a result.
std::optional<uint64_t> ReadWaitingTokens(std::string_view body, const WaitingTokensSpec& spec);

// What is more than that is not true: of a rank, and ranks.
inline constexpr uint64_t kMaxWaitingTokens = 1'000'000'000;
inline constexpr size_t kMaxRanks = 1024;

}  // namespace fairway::sources::scrape
