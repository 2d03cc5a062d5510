#include "sources/kv_events/zmtp.h"

#include <gtest/gtest.h>

#include <string>

#include "base/random.h"

namespace fairway::sources::kv_events {
namespace {

constexpr size_t kMost = 1 << 20;

// What libzmq 4.3.5's PUB sends first, recorded.
std::string Greeting() {
  std::string greeting("\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL", 16);
  greeting.resize(64, '\0');
  return greeting;
}

TEST(Zmtp, GreetingsAreCheckedAsTheyCome) {
  const std::string greeting = Greeting();
  for (size_t size = 0; size < 64; ++size)
    EXPECT_EQ(CheckZmtpGreeting(greeting.substr(0, size)), ZmtpTaken::kIncomplete) << size;
  EXPECT_EQ(CheckZmtpGreeting(greeting), ZmtpTaken::kMessage);
  EXPECT_EQ(CheckZmtpGreeting("HTTP/1.1 400"), ZmtpTaken::kBroken);
  std::string old = greeting;
  old[10] = 1;
  EXPECT_EQ(CheckZmtpGreeting(old), ZmtpTaken::kBroken);
  std::string curve = greeting;
  curve.replace(12, 5, "CURVE");
  EXPECT_EQ(CheckZmtpGreeting(curve), ZmtpTaken::kBroken);
}

TEST(Zmtp, OurOpeningIsOneThatWeTake) {
  const std::string opening = ZmtpOpening("SUB");
  ASSERT_EQ(CheckZmtpGreeting(opening), ZmtpTaken::kMessage);
  ZmtpMessage message;
  size_t consumed = 0;
  const std::string ready = opening.substr(kZmtpGreetingBytes);
  ASSERT_EQ(TakeZmtp(ready, kMost, message, consumed), ZmtpTaken::kMessage);
  EXPECT_EQ(consumed, ready.size());
  EXPECT_TRUE(message.command);
  EXPECT_TRUE(IsZmtpCommand(message.parts[0], "READY"));
  EXPECT_EQ(message.parts[0], std::string("\5READY\13Socket-Type\0\0\0\3SUB\10Identity\0\0\0\0", 38));
}

TEST(Zmtp, AMessageIsTakenWhenAllOfItIsThere) {
  const std::string long_part(70'000, 'x');
  const std::string bytes = ZmtpFrames({"kv@a@b", "12345678", long_part}) + "\1";
  ZmtpMessage message;
  size_t consumed = 0;
  for (size_t size = 0; size + 1 < bytes.size(); size += size < 40 ? 1 : 997)
    EXPECT_EQ(TakeZmtp(bytes.substr(0, size), kMost, message, consumed), ZmtpTaken::kIncomplete) << size;
  ASSERT_EQ(TakeZmtp(bytes, kMost, message, consumed), ZmtpTaken::kMessage);
  EXPECT_EQ(consumed, bytes.size() - 1);
  ASSERT_EQ(message.count, 3u);
  EXPECT_FALSE(message.command);
  EXPECT_EQ(message.parts[0], "kv@a@b");
  EXPECT_EQ(message.parts[1], "12345678");
  EXPECT_EQ(message.parts[2], long_part);
}

TEST(Zmtp, WhatIsTooLongIsBrokenBeforeItIsThere) {
  ZmtpMessage message;
  size_t consumed = 0;
  EXPECT_EQ(TakeZmtp(std::string("\2\0\0\0\0\0\x20\0\0", 9), kMost, message, consumed), ZmtpTaken::kBroken);
  EXPECT_EQ(TakeZmtp(std::string("\2\xff\xff\xff\xff\xff\xff\xff\xff", 9), kMost, message, consumed),
            ZmtpTaken::kBroken);
  std::string many;
  for (size_t i = 0; i <= ZmtpMessage::kMaxParts; ++i) many += std::string("\1\0", 2);
  EXPECT_EQ(TakeZmtp(many, kMost, message, consumed), ZmtpTaken::kBroken);
  EXPECT_EQ(TakeZmtp(std::string("\x10\0", 2), kMost, message, consumed), ZmtpTaken::kBroken);
  EXPECT_EQ(TakeZmtp(std::string("\5\0", 2), kMost, message, consumed), ZmtpTaken::kBroken)
      << "a command in parts";
}

TEST(Zmtp, APingIsAnswered) {
  EXPECT_EQ(ZmtpPong(std::string("\4PING\0\1abc", 10)), std::string("\4\10\4PONGabc", 10));
  EXPECT_EQ(ZmtpPong(std::string("\4PING\0\1", 7)), std::string("\4\5\4PONG", 7));
  EXPECT_EQ(ZmtpPong("\5READY"), "");
}

TEST(Zmtp, AnyBytesAreTakenOrRefused) {
  base::Random random(3);
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes(random.Below(64), '\0');
    for (char& c : bytes) c = static_cast<char>(random.Below(random.Below(2) == 0 ? 8 : 256));
    ZmtpMessage message;
    size_t consumed = 0;
    if (TakeZmtp(bytes, kMost, message, consumed) != ZmtpTaken::kMessage) continue;
    EXPECT_LE(consumed, bytes.size());
    EXPECT_GE(message.count, 1u);
  }
}

}  // namespace
}  // namespace fairway::sources::kv_events
