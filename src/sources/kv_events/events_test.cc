#include "sources/kv_events/events.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/random.h"
#include "sources/kv_events/msgpack.h"

namespace fairway::sources::kv_events {
namespace {

using Kind = MsgpackToken::Kind;

std::string FromHex(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  return bytes;
}

// All made by Python's msgpack 1.2.4: packb of what the comment says; h is bytes(range(32)).
//
// [1732960000.5, [{"type": "BlockStored", "block_hashes": [h, h[::-1]], "parent_block_hash": None,
//   "token_ids": [0..7], "block_size": 4, "lora_id": None, "medium": "GPU", "lora_name": None},
//   {"type": "BlockRemoved", "block_hashes": [h], "medium": "GPU"}, {"type": "AllBlocksCleared"}], 0]
constexpr std::string_view kVllm =
    "93cb41d9d2b7c02000009388a474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657392c42000010203040506"
    "0"
    "708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fc4201f1e1d1c1b1a191817161514131211100f0e0d0c0b0a0908070"
    "6"
    "050403020100b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f696473980001020304050607aa626c6f636b5f73"
    "6"
    "97a6504a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c083a474797065ac426c6f636b52656d6f766"
    "5"
    "64ac626c6f636b5f68617368657391c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fa66d65"
    "6"
    "469756da347505581a474797065b0416c6c426c6f636b73436c656172656400";
// [1732960000.5, [["BlockStored", [-5, 2**63 + 1], None, [1..7, 70000], 4, None], ["BlockRemoved", [-5]],
//   ["AllBlocksCleared"]], 1]
constexpr std::string_view kSglang =
    "93cb41d9d2b7c02000009396ab426c6f636b53746f72656492fbcf8000000000000001c09801020304050607ce0001117004c092"
    "a"
    "c426c6f636b52656d6f76656491fb91b0416c6c426c6f636b73436c656172656401";
// {"ts": 1.0, "events": [{"block_hashes": [7], "token_ids": [], "block_size": 16, "medium": "cpu",
//   "group_idx": 1, "kv_cache_spec_kind": "sliding_window", "type": "BlockStored"}],
//   "data_parallel_rank": None}
constexpr std::string_view kEnvelopeMap =
    "83a27473cb3ff0000000000000a66576656e74739187ac626c6f636b5f6861736865739107a9746f6b656e5f69647390aa626c6f"
    "6"
    "36b5f73697a6510a66d656469756da3637075a967726f75705f69647801b26b765f63616368655f737065635f6b696e64ae736c6"
    "9"
    "64696e675f77696e646f77a474797065ab426c6f636b53746f726564b2646174615f706172616c6c656c5f72616e6bc0";
// [1.0, [["BlockStored", [9], 8, [1] * 16, 16, None, "GPU", "adapter", [["mm", 0]], 2, "mla_attention", None,
//   "local", "owner", "session"], ["BlockRemoved", [9], "GPU", 2, "local", "owner"]]]
constexpr std::string_view kAllFields =
    "92cb3ff0000000000000929fab426c6f636b53746f726564910908dc00100101010101010101010101010101010110c0a3475055"
    "a"
    "7616461707465729192a26d6d0002ad6d6c615f617474656e74696f6ec0a56c6f63616ca56f776e6572a773657373696f6e96ac4"
    "2"
    "6c6f636b52656d6f7665649109a347505502a56c6f63616ca56f776e6572";
// [1.0, [["BlockMoved", [1, 2], {"x": [1]}], {"type": "BlockRemoved", "block_hashes": [1, 2, 3]},
//   {"type": "NewThing", "a": {"b": 1}}]]
constexpr std::string_view kUnknown =
    "92cb3ff00000000000009393aa426c6f636b4d6f76656492010281a178910182a474797065ac426c6f636b52656d6f766564ac62"
    "6"
    "c6f636b5f6861736865739301020382a474797065a84e65775468696e67a16181a16201";
// [1.0, [{"type": "BlockStored", "block_hashes": "x", "block_size": 16},
//   ["BlockStored", [1], None, [1, 2, 3], 16], ["BlockStored", [b""], None, [], 16], [], 5,
//   {"type": "BlockRemoved", "block_hashes": [1]}]]
constexpr std::string_view kWrong =
    "92cb3ff00000000000009683a474797065ab426c6f636b53746f726564ac626c6f636b5f686173686573a178aa626c6f636b5f73"
    "6"
    "97a651095ab426c6f636b53746f7265649101c0930102031095ab426c6f636b53746f72656491c400c09010900582a474797065a"
    "c"
    "426c6f636b52656d6f766564ac626c6f636b5f6861736865739101";
// [None, True, False, 1, 127, 128, 255, 256, 65535, 65536, 2**32, 2**64 - 1, -1, -32, -33, -128, -129,
//   -32769, -2**31 - 1, 1.5, "t", "x" * 40, b"b", ExtType(5, b"abcd"), ExtType(5, b"abc")]
constexpr std::string_view kKinds =
    "dc0019c0c3c2017fcc80ccffcd0100cdffffce00010000cf0000000100000000cfffffffffffffffffffe0d0dfd080d1ff7fd2ff"
    "f"
    "f7fffd3ffffffff7fffffffcb3ff8000000000000a174d9287878787878787878787878787878787878787878787878787878787"
    "8"
    "787878787878787878787878c40162d60561626364c70305616263";

class Sink final : public EventSink {
 public:
  void On(const KvEvent& event) override { events.push_back(event); }
  std::vector<KvEvent> events;
};

TEST(Msgpack, ReadsEachKind) {
  const std::string bytes = FromHex(kKinds);
  MsgpackReader reader(bytes);
  const auto head = reader.Next();
  ASSERT_TRUE(head && head->kind == Kind::kArray);
  EXPECT_EQ(head->number, 25u);
  EXPECT_EQ(reader.Next()->kind, Kind::kNil);
  EXPECT_EQ(reader.Next()->number, 1u);
  EXPECT_EQ(reader.Next()->number, 0u);
  for (const uint64_t number : {uint64_t{1}, uint64_t{127}, uint64_t{128}, uint64_t{255}, uint64_t{256},
                                uint64_t{65535}, uint64_t{65536}, uint64_t{1} << 32, ~uint64_t{0}}) {
    const auto token = reader.Next();
    ASSERT_TRUE(token && token->kind == Kind::kInteger);
    EXPECT_EQ(token->number, number);
  }
  for (const int64_t number : {-1L, -32L, -33L, -128L, -129L, -32769L, -(1L << 31) - 1}) {
    const auto token = reader.Next();
    ASSERT_TRUE(token && token->kind == Kind::kInteger);
    EXPECT_EQ(static_cast<int64_t>(token->number), number);
  }
  EXPECT_EQ(reader.Next()->real, 1.5);
  EXPECT_EQ(reader.Next()->bytes, "t");
  EXPECT_EQ(reader.Next()->bytes, std::string(40, 'x'));
  EXPECT_EQ(reader.Next()->kind, Kind::kBytes);
  EXPECT_EQ(reader.Next()->bytes, "\5abcd");
  EXPECT_EQ(reader.Next()->bytes, "\5abc");
  EXPECT_FALSE(reader.Next());
  EXPECT_FALSE(reader.broken()) << "it was all";
}

TEST(Msgpack, ACountThatTheBytesCannotHoldIsBroken) {
  for (const std::string_view hex :
       {"ddffffffff", "dfffffffff", "c6ffffffff41", "93c0c0", "81c0", "c1", "cb00"}) {
    const std::string bytes = FromHex(hex);
    MsgpackReader reader(bytes);
    EXPECT_FALSE(reader.Skip()) << hex;
    EXPECT_TRUE(reader.broken()) << hex;
  }
}

TEST(Msgpack, SkipGoesAsDeepAsTheBytesDo) {
  const std::string bytes = std::string(1'000'000, '\x91') + '\x01';
  MsgpackReader reader(bytes);
  EXPECT_TRUE(reader.Skip());
  EXPECT_TRUE(reader.rest().empty());
}

// What is in the events of a batch, whose bytes live on.
struct Values {
  std::vector<uint64_t> hashes;
  std::vector<uint32_t> tokens;
  std::vector<std::vector<std::string_view>> extras;
};
Values ValuesOf(const KvEvent& event) {
  Values values;
  const bool read =
      ReadHashes(event.hashes, 100, values.hashes) &&
      (event.tokens.empty() || ReadTokens(event.tokens, 100, values.tokens)) &&
      (event.extra_keys.empty() || ReadExtraKeys(event.extra_keys, event.adapter, 100, values.extras));
  EXPECT_TRUE(read);
  return values;
}

TEST(Events, TheValuesOfBlocks) {
  const std::string vllm = FromHex(kVllm), sglang = FromHex(kSglang), all = FromHex(kAllFields);
  Sink of_vllm, of_sglang, of_all;
  ReadBatch(vllm, of_vllm);
  ReadBatch(sglang, of_sglang);
  ReadBatch(all, of_all);
  ASSERT_EQ(of_vllm.events.size(), 3u);
  const Values stored = ValuesOf(of_vllm.events[0]);
  EXPECT_EQ(stored.hashes, (std::vector<uint64_t>{0x18191a1b1c1d1e1f, 0x0706050403020100}));
  EXPECT_EQ(stored.tokens, (std::vector<uint32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(of_vllm.events[0].parent, std::nullopt);
  EXPECT_EQ(of_vllm.events[0].medium, "GPU");
  EXPECT_EQ(of_vllm.events[0].rank, 0);
  EXPECT_EQ(ValuesOf(of_vllm.events[1]).hashes, (std::vector<uint64_t>{0x18191a1b1c1d1e1f}));
  ASSERT_EQ(of_sglang.events.size(), 3u);
  EXPECT_EQ(ValuesOf(of_sglang.events[0]).hashes,
            (std::vector<uint64_t>{static_cast<uint64_t>(-5), (uint64_t{1} << 63) + 1}));
  EXPECT_EQ(ValuesOf(of_sglang.events[0]).tokens, (std::vector<uint32_t>{1, 2, 3, 4, 5, 6, 7, 70000}));
  EXPECT_EQ(of_sglang.events[0].rank, 1);
  ASSERT_EQ(of_all.events.size(), 2u);
  EXPECT_EQ(of_all.events[0].parent, 8u);
  EXPECT_EQ(of_all.events[0].adapter, "adapter");
  EXPECT_EQ(ValuesOf(of_all.events[0]).extras, (std::vector<std::vector<std::string_view>>{{"mm"}}));
}

TEST(Events, ExtraKeysOfEachBlock) {
  // [["adapter", "image"], nil, [["old", 7], 5, b"\x01"], []]
  const std::string keys = FromHex("9492a761646170746572a5696d616765c09392a36f6c640705c4010190");
  std::vector<std::vector<std::string_view>> extras;
  EXPECT_TRUE(ReadExtraKeys(keys, "adapter", 4, extras));
  EXPECT_EQ(extras, (std::vector<std::vector<std::string_view>>{{"image"}, {}, {"old", "\1"}, {}}));
  EXPECT_FALSE(ReadExtraKeys(keys, "adapter", 3, extras)) << "too many";
  EXPECT_FALSE(ReadExtraKeys(FromHex("9105"), "", 4, extras));
  std::vector<uint32_t> tokens;
  EXPECT_FALSE(ReadTokens(FromHex("91cf0000000100000000"), 4, tokens)) << "2^32 is no token";
  EXPECT_FALSE(ReadTokens(FromHex("91ff"), 4, tokens)) << "-1 neither";
  EXPECT_FALSE(ReadTokens(FromHex("9101"), 0, tokens));
}

TEST(Events, WhatIsLargerThanAnyEngineTellsIsMalformed) {
  // [0, [["BlockStored", [1], nil, [], SIZE, nil, "GPU"]]]
  const std::string before = "92009197ab426c6f636b53746f7265649101c090", after = "c0a3475055";
  for (const auto& [size, malformed] :
       {std::pair{"ce00010000", 0u}, {"ce00010001", 1u}, {"cefffffff0", 1u}}) {
    Sink sink;
    EXPECT_EQ(ReadBatch(FromHex(before + size + after), sink).malformed, malformed) << size;
  }
  // One block with 65,536 keys, and with one more.
  std::vector<std::vector<std::string_view>> extras;
  const auto keys = [](const char* count, size_t n) {
    return FromHex(std::string("91dd") + count) + std::string(n, '\xa0');
  };
  EXPECT_TRUE(ReadExtraKeys(keys("00010000", kMostExtraKeys), "", 4, extras));
  EXPECT_FALSE(ReadExtraKeys(keys("00010001", kMostExtraKeys + 1), "", 4, extras));
}

TEST(Events, MapsOfVllm) {
  Sink sink;
  const BatchOutcome outcome = ReadBatch(FromHex(kVllm), sink);
  EXPECT_TRUE(outcome.readable);
  EXPECT_EQ(outcome.events, 3u);
  EXPECT_EQ(outcome.unknown + outcome.malformed, 0u);
  ASSERT_EQ(sink.events.size(), 3u);
  EXPECT_EQ(sink.events[0].kind, KvEvent::Kind::kStored);
  EXPECT_EQ(sink.events[0].blocks, 2u);
  EXPECT_EQ(sink.events[0].block_size, 4u);
  EXPECT_TRUE(sink.events[0].on_device);
  EXPECT_EQ(sink.events[1].kind, KvEvent::Kind::kRemoved);
  EXPECT_EQ(sink.events[1].blocks, 1u);
  EXPECT_EQ(sink.events[2].kind, KvEvent::Kind::kCleared);
}

TEST(Events, ArraysOfSglangWithHashesThatAreNegative) {
  Sink sink;
  EXPECT_EQ(ReadBatch(FromHex(kSglang), sink).events, 3u);
  ASSERT_EQ(sink.events.size(), 3u);
  EXPECT_EQ(sink.events[0].blocks, 2u);
  EXPECT_EQ(sink.events[0].block_size, 4u);
  EXPECT_TRUE(sink.events[0].on_device) << "nothing is said of the medium";
  EXPECT_EQ(sink.events[1].blocks, 1u);
}

TEST(Events, AnEnvelopeThatIsAMapAndATypeThatComesLast) {
  Sink sink;
  EXPECT_EQ(ReadBatch(FromHex(kEnvelopeMap), sink).events, 1u);
  ASSERT_EQ(sink.events.size(), 1u);
  EXPECT_EQ(sink.events[0].kind, KvEvent::Kind::kStored);
  EXPECT_FALSE(sink.events[0].on_device);
  EXPECT_FALSE(sink.events[0].whole_prefix);
  EXPECT_EQ(sink.events[0].group, 1);
}

TEST(Events, AllPositionalFieldsAndMoreBehindThem) {
  Sink sink;
  EXPECT_EQ(ReadBatch(FromHex(kAllFields), sink).events, 2u);
  ASSERT_EQ(sink.events.size(), 2u);
  EXPECT_EQ(sink.events[0].group, 2);
  EXPECT_TRUE(sink.events[0].whole_prefix);
  EXPECT_EQ(sink.events[1].group, 2);
}

TEST(Events, WhatIsUnknownIsSkippedAndTheBatchStands) {
  Sink sink;
  const BatchOutcome outcome = ReadBatch(FromHex(kUnknown), sink);
  EXPECT_TRUE(outcome.readable);
  EXPECT_EQ(outcome.unknown, 2u);
  EXPECT_EQ(outcome.events, 1u);
  ASSERT_EQ(sink.events.size(), 1u);
  EXPECT_EQ(sink.events[0].blocks, 3u);
}

TEST(Events, WhatIsMalformedIsSkippedAndTheBatchStands) {
  Sink sink;
  const BatchOutcome outcome = ReadBatch(FromHex(kWrong), sink);
  EXPECT_TRUE(outcome.readable);
  EXPECT_EQ(outcome.malformed, 5u) << "text for hashes, 3 tokens for 16, an empty hash, no type, a number";
  EXPECT_EQ(outcome.events, 1u);
}

TEST(Events, CutAnywhereNothingIsMadeUp) {
  for (const std::string_view hex : {kVllm, kSglang, kEnvelopeMap, kAllFields, kUnknown}) {
    const std::string whole = FromHex(hex);
    Sink all;
    ReadBatch(whole, all);
    for (size_t size = 0; size < whole.size(); ++size) {
      Sink sink;
      ReadBatch(std::string(whole, 0, size), sink);
      EXPECT_LE(sink.events.size(), all.events.size());
    }
  }
}

TEST(Events, GarbageIsNoBatch) {
  base::Random random(7);
  Sink sink;
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes(random.Below(64), '\0');
    for (char& c : bytes) c = static_cast<char>(random.Below(256));
    const BatchOutcome outcome = ReadBatch(bytes, sink);
    EXPECT_LE(outcome.events + outcome.unknown + outcome.malformed, bytes.size());
  }
  EXPECT_TRUE(sink.events.empty());
}

}  // namespace
}  // namespace fairway::sources::kv_events
