#include "prefix/block_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

namespace fairway::prefix {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;

// Tokens of every length that CBOR has for numbers.
constexpr std::array<uint32_t, 16> kTokens = {0,      1,          23, 24, 255, 256, 65535, 65536,
                                              128255, 4294967295, 7,  8,  9,   10,  11,    12};

// Root, a block, and one behind it that has the same tokens backwards and two extras.
std::vector<uint64_t> Keys(BlockKeys::Algorithm algorithm, std::string_view seed, std::string_view model) {
  const BlockKeys keys(algorithm, seed, 16);
  std::array<uint32_t, 16> backwards = kTokens;
  std::reverse(backwards.begin(), backwards.end());
  const std::array<std::string_view, 2> extras = {"image-1", "a salt of more than twenty-three bytes"};
  const uint64_t root = keys.Root(model);
  const uint64_t first = keys.Next(root, kTokens, {});
  return {root, first, keys.Next(first, backwards, extras)};
}

// Worked out with Python: cbor2 5 (canonical=True) and FNV-1a, and xxhash 3, by the formulas of block_keys.h.
TEST(BlockKeys, AreTheReferences) {
  using enum BlockKeys::Algorithm;
  constexpr std::string_view kModel = "meta-llama/Llama-3.1-8B";
  EXPECT_THAT(Keys(kCborFnv, "", ""),
              ElementsAre(0x0229c977e2f0d696, 0xadf0da0f86b6a34c, 0x3e4f02244849e993));
  EXPECT_THAT(Keys(kCborFnv, "42", kModel),
              ElementsAre(0xffb49d9d294dc921, 0x5653ad3b406d0062, 0xd18848eb6471ef90));
  EXPECT_THAT(Keys(kXxh64, "", ""), ElementsAre(0x1fe08be0c24637de, 0x0b2ac33c5c72b2b0, 0xb8f24f58b64530d0));
  EXPECT_THAT(Keys(kXxh64, "42", kModel),
              ElementsAre(0xb1eb99c55109863a, 0xe3e1eb955a6309b3, 0x11125f3d407bae98));
}

TEST(BlockKeys, OfWholeBlocksOnly) {
  const BlockKeys keys(BlockKeys::Algorithm::kXxh64, "", 4);
  std::vector<uint64_t> made;
  AppendKeys(keys, 7, std::span(kTokens).first(11), {}, "", made);
  const uint64_t first = keys.Next(7, std::span(kTokens).first(4), {});
  EXPECT_THAT(made, ElementsAre(first, keys.Next(first, std::span(kTokens).subspan(4, 4), {})));
}

TEST(BlockKeys, MediaCountInTheBlocksThatTheyOverlapAndTheSaltInTheFirst) {
  const BlockKeys keys(BlockKeys::Algorithm::kCborFnv, "", 4);
  const std::array media = {MediaTokens{"a", 1, 4}, MediaTokens{"b", 3, 9}};
  const std::array<std::string_view, 3> first = {"a", "b", "salt"};
  const std::array<std::string_view, 1> second = {"b"};
  std::vector<uint64_t> made, expected;
  AppendKeys(keys, 7, kTokens, media, "salt", made);
  expected.push_back(keys.Next(7, std::span(kTokens).subspan(0, 4), first));
  expected.push_back(keys.Next(expected.back(), std::span(kTokens).subspan(4, 4), second));
  expected.push_back(keys.Next(expected.back(), std::span(kTokens).subspan(8, 4), second));
  expected.push_back(keys.Next(expected.back(), std::span(kTokens).subspan(12, 4), {}));
  EXPECT_THAT(made, ElementsAreArray(expected));
}

}  // namespace
}  // namespace fairway::prefix
