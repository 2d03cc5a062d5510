#include "sources/peers/messages.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "base/random.h"
#include "peers.pb.h"

namespace fairway::sources::peers {
namespace {

// The whole messages of a stream that is cut after each `step` bytes.
std::vector<std::string> Cut(const std::string& stream, size_t step, bool& good) {
  std::vector<std::string> messages;
  MessageCutter cutter;
  good = true;
  for (size_t at = 0; good && at < stream.size(); at += step) {
    good = cutter.Feed(std::string_view(stream).substr(at, step), [&](std::string_view message) {
      messages.emplace_back(message);
      return true;
    });
  }
  EXPECT_TRUE(!good || cutter.at_boundary());
  return messages;
}

std::string Everything() {
  MessageWriter writer(42);
  writer.Add("default/pool", "10.0.0.1:8000", fleet::OpenLoad{3, 900}, std::vector<uint64_t>{2, 7, 8, 1, 9});
  const Learned learned{.ms_per_token = 0.125,
                        .reported_blocks = 1000,
                        .blocks = 800,
                        .held = {{7, 0}, {8, 1}, {UINT64_MAX, 2}}};
  writer.Add("default/pool", "10.0.0.2:8000", std::nullopt, {}, &learned);
  writer.Add("default/pool", "10.0.0.3:8000", fleet::OpenLoad{});
  return writer.Take(true);
}

TEST(Messages, WhatIsWrittenIsReadHoweverItIsCut) {
  const std::string stream = Everything();
  for (size_t step = 1; step <= stream.size(); ++step) {
    bool good = false;
    const auto messages = Cut(stream, step, good);
    ASSERT_TRUE(good);
    ASSERT_EQ(messages.size(), 1u);
    const auto message = ReadMessage(messages[0]);
    ASSERT_TRUE(message);
    EXPECT_EQ(message->replica, 42u);
    EXPECT_TRUE(message->last);
    // Written from the end to the front.
    ASSERT_EQ(message->endpoints.size(), 3u);
    EXPECT_EQ(message->endpoints[0].address, "10.0.0.3:8000");
    EXPECT_EQ(message->endpoints[0].load, fleet::OpenLoad{});
    const EndpointNews& second = message->endpoints[1];
    ASSERT_TRUE(second.learned);
    EXPECT_EQ(second.learned->ms_per_token, 0.125);
    EXPECT_EQ(second.learned->reported_blocks, 1000u);
    EXPECT_EQ(second.learned->blocks, 800u);
    using Held = std::vector<std::pair<uint64_t, uint32_t>>;
    EXPECT_EQ(second.learned->held, (Held{{7, 0}, {8, 1}, {UINT64_MAX, 2}}));
    const EndpointNews& first = message->endpoints[2];
    EXPECT_EQ(first.pool, "default/pool");
    EXPECT_EQ(first.address, "10.0.0.1:8000");
    EXPECT_EQ(first.load, (fleet::OpenLoad{3, 900}));
    EXPECT_EQ(first.placed, (std::vector<std::vector<uint64_t>>{{9}, {7, 8}}));
  }
}

TEST(Messages, WhoTellsSaysWhereItIs) {
  const std::vector<std::string> own = {"10.0.0.7:9004", "[fd00::7]:9004"};
  MessageWriter writer(42);
  writer.Introduce(own);
  const std::string stream = writer.Take();
  const auto message = ReadMessage(std::string_view(stream).substr(4));
  ASSERT_TRUE(message);
  EXPECT_EQ(message->addresses,
            (std::vector<std::string_view>{own[1], own[0]}));  // from the end to the front
  fairway::peers::v1::Message theirs;
  ASSERT_TRUE(theirs.ParseFromString(stream.substr(4)));
  EXPECT_EQ(theirs.addresses_size(), 2);
  writer.Introduce(std::vector<std::string>(1000, "10.0.0.7:9004"));
  const std::string many = writer.Take();
  EXPECT_EQ(ReadMessage(std::string_view(many).substr(4))->addresses.size(), kMostAddresses);
}

// proto/peers.proto as protobuf itself reads and writes it.
TEST(Messages, AreThoseOfTheProto) {
  fairway::peers::v1::Message theirs;
  ASSERT_TRUE(theirs.ParseFromString(Everything().substr(4)));
  EXPECT_EQ(theirs.replica(), 42u);
  EXPECT_TRUE(theirs.last());
  ASSERT_EQ(theirs.endpoints_size(), 3);
  const auto& first = theirs.endpoints(2);
  EXPECT_EQ(first.pool() + " " + first.address(), "default/pool 10.0.0.1:8000");
  EXPECT_EQ(first.load().requests(), 3u);
  EXPECT_EQ(first.load().tokens(), 900u);
  ASSERT_EQ(first.placed_size(), 2);
  EXPECT_EQ(first.placed(0), std::string("\x9\0\0\0\0\0\0\0", 8));
  const auto& learned = theirs.endpoints(1).learned();
  EXPECT_EQ(learned.ms_per_token(), 0.125);
  EXPECT_EQ(learned.reported_blocks(), 1000u);
  EXPECT_EQ(learned.blocks(), 800u);
  EXPECT_EQ(learned.hashes().size(), 24u);
  EXPECT_EQ(std::vector<uint32_t>(learned.behind().begin(), learned.behind().end()),
            (std::vector<uint32_t>{0, 1, 2}));
  const std::string written = theirs.SerializeAsString();
  const auto back = ReadMessage(written);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->endpoints[2].load, (fleet::OpenLoad{3, 900}));
  EXPECT_EQ(back->endpoints[2].placed.size(), 2u);
  EXPECT_EQ(back->endpoints[1].learned->held.size(), 3u);
}

TEST(Messages, MuchIsSeveralMessagesAndNoneIsTooLarge) {
  MessageWriter writer(1);
  Learned learned;
  for (uint32_t i = 0; i < (64u << 10); ++i) learned.held.emplace_back(i * 0x9e3779b97f4a7c15, i);
  for (int i = 0; i < 5; ++i) {
    for (int k = 0; k < 40; ++k) {
      std::vector<uint64_t> placed(1001, 5);
      placed[0] = 1000;
      writer.Add("p", "small", fleet::OpenLoad{1, 1}, placed);
    }
    writer.Add("p", "large", std::nullopt, {}, &learned);
  }
  bool good = false;
  const auto messages = Cut(writer.Take(), 65536, good);
  EXPECT_TRUE(good);
  size_t endpoints = 0;
  for (const std::string& message : messages) {
    EXPECT_LE(message.size(), kMostMessage);
    endpoints += ReadMessage(message)->endpoints.size();
  }
  EXPECT_EQ(endpoints, 205u);
}

TEST(Messages, NothingIsAMessageToo) {
  MessageWriter writer(9);
  EXPECT_TRUE(writer.empty());
  bool good = false;
  const auto messages = Cut(writer.Take(), 3, good);
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(ReadMessage(messages[0])->replica, 9u);
}

TEST(Messages, WhatIsTooLongEndsTheStreamAtItsLength) {
  MessageCutter cutter;
  const auto never = [](std::string_view) { return true; };
  EXPECT_FALSE(cutter.Feed(std::string_view("\x01\x00\x10\x00", 4), never));
  MessageCutter largest;
  EXPECT_TRUE(largest.Feed(std::string_view("\x00\x00\x10\x00", 4), never));
}

TEST(Messages, MalformedOnesAreRefused) {
  EXPECT_FALSE(ReadMessage("\x12\x05\x0a")) << "cut";
  EXPECT_FALSE(
      ReadMessage(std::string_view("\x12\x05\x22\x03"
                                   "abc",
                                   7)))
      << "a hash that is not whole";
  EXPECT_FALSE(ReadMessage(std::string_view("\x12\x02\x22\x00", 4))) << "a prompt without any";
  EXPECT_FALSE(
      ReadMessage(std::string_view("\x12\x0c\x2a\x0a\x22\x08"
                                   "abcdefgh",
                                   14)))
      << "a hash of which is not said what it stands behind";
  std::string many;
  for (int i = 0; i < 20'001; ++i) many += std::string("\x12\x00", 2);
  EXPECT_FALSE(ReadMessage(many)) << "more endpoints than there may be";
  many.resize(many.size() - 2);
  EXPECT_TRUE(ReadMessage(many));
}

// Any bytes: no more comes out than there is in them.
TEST(Messages, BytesThatChangedOnTheWayHurtNobody) {
  const std::string whole = Everything().substr(4);
  base::Random random(5);
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = whole;
    for (uint64_t i = 0; i <= random.Below(4); ++i)
      bytes[random.Below(bytes.size())] = static_cast<char>(random.Below(256));
    bytes.resize(bytes.size() - random.Below(3));
    const auto message = ReadMessage(bytes);
    if (!message) continue;
    size_t hashes = 0;
    for (const EndpointNews& news : message->endpoints) {
      for (const auto& chain : news.placed) hashes += chain.size();
      if (news.learned) hashes += news.learned->held.size();
    }
    ASSERT_LE(hashes * 8, bytes.size());
  }
}

}  // namespace
}  // namespace fairway::sources::peers
