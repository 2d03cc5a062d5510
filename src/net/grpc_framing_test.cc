#include "net/grpc_framing.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/random.h"

namespace fairway::net {
namespace {

using Outcome = GrpcMessageReader::Outcome;

class Recorder final : public GrpcCall {
 public:
  void OnMessage(std::string_view message) override { messages.emplace_back(message); }
  bool OnHead(std::string_view first, size_t length, size_t& body, size_t& tail) override {
    if (!split || length < 200) return false;
    text = first;
    tail = std::min(wanted_tail, length - first.size());
    body = length - first.size() - tail;
    return true;
  }
  void OnPart(std::string_view part) override { text += part; }
  void OnTail(std::string_view tail) override {
    messages.push_back(text.append(tail));
    ++split_messages;
  }
  bool split = false;
  size_t wanted_tail = 0;
  int split_messages = 0;
  std::string text;
  std::vector<std::string> messages;
};

TEST(GrpcFramingTest, AnyCutGivesTheSameMessages) {
  std::vector<std::string> expected;
  std::string wire;
  for (const size_t size : {0, 1, 5, 63, 64, 65, 66, 199, 200, 201, 1000, 0, 5000}) {
    std::string message(size, '\0');
    for (size_t i = 0; i < size; ++i) message[i] = static_cast<char>(i * 7 + size);
    wire += GrpcFrame(size) + message;
    expected.push_back(message);
  }
  const bool stopped = false;
  for (const bool split : {false, true}) {
    for (const size_t tail : {0, 1, 100, 1 << 20}) {
      for (size_t step = 1; step < 300; ++step) {
        Recorder call;
        call.split = split;
        call.wanted_tail = tail;
        GrpcMessageReader reader(5000);
        for (size_t at = 0; at < wire.size(); at += step) {
          ASSERT_EQ(reader.Feed(std::string_view(wire).substr(at, step), call, stopped), Outcome::kOk);
        }
        ASSERT_TRUE(reader.at_boundary());
        ASSERT_EQ(reader.buffered(), 0u);
        ASSERT_EQ(call.messages, expected) << "split " << split << " tail " << tail << " step " << step;
        ASSERT_TRUE(!split || step >= 70 || call.split_messages > 0);
      }
    }
  }
}

TEST(GrpcFramingTest, RandomCuts) {
  base::Random random(7);
  const bool stopped = false;
  for (int round = 0; round < 200; ++round) {
    Recorder call;
    call.split = round % 2 == 0;
    call.wanted_tail = random.Next() % 50;
    GrpcMessageReader reader(100'000);
    std::string wire;
    std::vector<std::string> expected;
    for (int i = 0; i < 10; ++i) {
      expected.emplace_back(random.Next() % 3000, static_cast<char>(random.Next()));
      wire += GrpcFrame(expected.back().size()) + expected.back();
    }
    for (size_t at = 0; at < wire.size();) {
      const size_t step = 1 + random.Next() % 700;
      ASSERT_EQ(reader.Feed(std::string_view(wire).substr(at, step), call, stopped), Outcome::kOk);
      at += step;
    }
    ASSERT_EQ(call.messages, expected);
  }
}

TEST(GrpcFramingTest, RefusesAtTheHeader) {
  const bool stopped = false;
  Recorder call;
  EXPECT_EQ(GrpcMessageReader(10).Feed(GrpcFrame(11), call, stopped), Outcome::kTooLarge);
  EXPECT_EQ(GrpcMessageReader(10).Feed(GrpcFrame(10) + "0123456789", call, stopped), Outcome::kOk);
  EXPECT_EQ(GrpcMessageReader(10).Feed(std::string("\1\0\0\0\0", 5), call, stopped), Outcome::kCompressed);
  EXPECT_EQ(GrpcMessageReader(4u << 20).Feed("\xff\xff\xff\xff\xff", call, stopped), Outcome::kCompressed);
  EXPECT_EQ(GrpcMessageReader(4u << 20).Feed(std::string("\0\xff\xff\xff\xff", 5), call, stopped),
            Outcome::kTooLarge);
  GrpcMessageReader bytewise(10);
  EXPECT_EQ(bytewise.Feed(std::string("\0\0\0\0", 4), call, stopped), Outcome::kOk);
  EXPECT_FALSE(bytewise.at_boundary());
  EXPECT_EQ(bytewise.Feed("\x0b", call, stopped), Outcome::kTooLarge);
  EXPECT_EQ(call.messages.size(), 1u);
}

TEST(GrpcFramingTest, StopsWhenToldTo) {
  class Stopping final : public GrpcCall {
   public:
    void OnMessage(std::string_view) override { stopped = ++messages == 2; }
    bool stopped = false;
    int messages = 0;
  } call;
  GrpcMessageReader reader(10);
  EXPECT_EQ(reader.Feed(GrpcFrame(0) + GrpcFrame(0) + GrpcFrame(0), call, call.stopped), Outcome::kOk);
  EXPECT_EQ(call.messages, 2);
}

TEST(GrpcFramingTest, AClaimedLengthAllocatesLittle) {
  const bool stopped = false;
  Recorder call;
  GrpcMessageReader reader(size_t{2} << 30);
  EXPECT_EQ(reader.Feed(GrpcFrame(size_t{2} << 30) + "x", call, stopped), Outcome::kOk);
  EXPECT_EQ(reader.buffered(), 6u);
  reader.Drop();
  EXPECT_EQ(reader.buffered(), 0u);
}

TEST(GrpcFramingTest, Timeouts) {
  EXPECT_EQ(ParseGrpcTimeout("1H"), 3600 * base::kSecond);
  EXPECT_EQ(ParseGrpcTimeout("2M"), 120 * base::kSecond);
  EXPECT_EQ(ParseGrpcTimeout("10S"), 10 * base::kSecond);
  EXPECT_EQ(ParseGrpcTimeout("250m"), 250 * base::kMillisecond);
  EXPECT_EQ(ParseGrpcTimeout("99999999u"), 99'999'999 * base::kMicrosecond);
  EXPECT_EQ(ParseGrpcTimeout("0n"), 0);
  EXPECT_EQ(ParseGrpcTimeout("99999999H"), base::Nanos{100} * 24 * 3600 * base::kSecond);
  for (const char* bad : {"", "S", "1", "1s", "-1S", "1.5S", "123456789S", "1 S", "1SS"}) {
    EXPECT_LT(ParseGrpcTimeout(bad), 0) << bad;
  }
}

TEST(GrpcFramingTest, ContentTypesAndMessages) {
  for (const char* good : {"application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"}) {
    EXPECT_TRUE(IsGrpcContentType(good)) << good;
  }
  for (const char* bad :
       {"", "application/grpc-web", "application/grpcx", "application/json", "Application/grpc"}) {
    EXPECT_FALSE(IsGrpcContentType(bad)) << bad;
  }
  EXPECT_EQ(PercentEncode("plain text"), "plain text");
  EXPECT_EQ(PercentEncode("50%\n\xc3\xb6"), "50%25%0A%C3%B6");
  EXPECT_EQ(PercentEncode(std::string(5000, 'a')).size(), 1024u);
}

}  // namespace
}  // namespace fairway::net
