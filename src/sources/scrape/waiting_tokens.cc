#include "sources/scrape/waiting_tokens.h"

#include "base/strings.h"
#include "sources/json/json_view.h"

namespace fairway::sources::scrape {
namespace {

std::optional<uint64_t> WholeNumber(std::string_view json, uint64_t most) {
  const auto value = base::ParseInteger<uint64_t>(json);
  return value.value_or(0) <= most ? value : std::nullopt;
}

std::optional<uint64_t> ReadRank(std::string_view rank, const WaitingTokensSpec& spec) {
  std::optional<uint64_t> tokens;
  std::optional<uint64_t> capacity;
  for (JsonMembers members(rank); members.Next();) {
    if (members.key() == spec.tokens) tokens = WholeNumber(members.value(), kMaxWaitingTokens);
    if (members.key() == spec.capacity) capacity = WholeNumber(members.value(), UINT64_MAX);
  }
  return capacity.value_or(0) > 0 ? tokens : std::nullopt;
}

std::optional<uint64_t> ReadRanks(std::string_view list, const WaitingTokensSpec& spec) {
  uint64_t sum = 0;
  size_t ranks = 0;
  for (JsonItems items(list); items.Next();) {
    const auto tokens = ReadRank(items.value(), spec);
    if (!tokens || ++ranks > kMaxRanks) return std::nullopt;
    sum += *tokens;
  }
  return ranks > 0 ? std::optional(sum) : std::nullopt;
}

}  // namespace

std::optional<uint64_t> ReadWaitingTokens(std::string_view body, const WaitingTokensSpec& spec) {
  for (JsonMembers members(body); members.Next();)
    if (members.key() == spec.list) return ReadRanks(members.value(), spec);
  return std::nullopt;
}

}  // namespace fairway::sources::scrape
