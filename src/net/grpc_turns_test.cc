// Who comes with little waits for one turn of each who comes with much. Nothing here looks at a clock: what
// happened before an honest call is counted, with all of the others' bytes there before.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "net/frame_cutter.h"
#include "net/grpc_server.h"
#include "net/loop.h"
#include "tests/support/raw_http2.h"

namespace fairway::net {
namespace {

using testing::Frame;
using testing::HpackLiteral;
using testing::Preface;
using testing::RawClient;
using testing::RequestBlock;

// What a turn is: 64 calls, and what was begun of 32 frames; the honest call may come after one turn of a
// connection or, as the sockets are looked at in any order, after two.
constexpr size_t kTwoTurns = 400;
constexpr uint32_t kMany = 9000;

// Of many calls to one path: 15 bytes each, by the table of the first.
std::string Calls(std::string_view path, uint32_t count, const std::string& message = "",
                  const std::string& more = "") {
  std::string block = "\x83\x86\x44";  // POST, http, :path
  block += static_cast<char>(path.size());
  block += path;
  block +=
      "\x41\x01x\x5f\x10"
      "application/grpc";
  std::string all;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t stream = 2 * i + 1;
    all += Frame(testing::kHeadersFrame, testing::kEndHeaders, stream,
                 (i == 0 ? block : "\x83\x86\xc0\xbf\xbe") + more);
    if (!message.empty()) all += Frame(testing::kDataFrame, 0, stream, message);
  }
  return all;
}

class GrpcTurnsTest : public ::testing::Test {
 protected:
  class Call final : public GrpcCall {
   public:
    Call(GrpcTurnsTest& test, bool honest) : test_(test), honest_(honest) {
      honest_ ? test_.Reached() : void(++test_.begun_);
    }
    ~Call() override { ++test_.gone_; }
    // A number: an answer of so many bytes.
    void OnMessage(std::string_view message) override {
      ++test_.messages_;
      const size_t size = std::strtoul(std::string(message).c_str(), nullptr, 10);
      if (size == 0) return;
      Write(GrpcFrame(size));
      Write(Share(std::string(size, 'a')));
    }
    void OnHalfClose() override {}
    void OnCancel(bool) override { ++test_.cancelled_; }
    bool OnMemoryShort() override { return false; }

   private:
    GrpcTurnsTest& test_;
    const bool honest_;
  };

  ~GrpcTurnsTest() override {
    thread_.Join();
    server_.reset();
  }

  void Listen(GrpcServerOptions options) {
    options.host = "127.0.0.1";
    options.port = 0;
    auto made = GrpcServer::Listen(
        std::move(options), {&thread_.loop()},
        [this](const GrpcRequest& r) { return std::make_unique<Call>(*this, r.path == "/t/Honest"); },
        base::Log(base::LogLevel::kOff, base::LogFormat::kText));
    ASSERT_TRUE(made.has_value());
    server_ = std::move(*made);
  }
  // A connection that the server knows.
  RawClient Known() {
    auto client = RawClient::Connect(server_->port());
    EXPECT_TRUE(client.Send(Preface() + Frame(testing::kSettingsFrame, 1, 0, "") +
                            Frame(testing::kPingFrame, 0, 0, "12345678")));
    for (int i = 0; i < 2000 && client.Count(testing::kPingFrame) == 0; ++i) client.ReadToEnd(5);
    EXPECT_EQ(client.Count(testing::kPingFrame), 1u);
    return client;
  }
  // What `act` does the loop finds all at once, and with it a call of `honest`. Returns when that has begun.
  template <typename Act>
  void AtOnce(RawClient& honest, Act act, base::Nanos later = 0) {
    std::promise<void> held;
    std::promise<void> go;
    thread_.loop().Post([&held, wait = go.get_future().share()] {
      held.set_value();
      wait.wait();
    });
    held.get_future().wait();
    act();
    std::this_thread::sleep_for(std::chrono::nanoseconds(later));
    ASSERT_TRUE(
        honest.Send(Frame(testing::kHeadersFrame, testing::kEndHeaders, 1, RequestBlock("/t/Honest"))));
    cancelled_before_ = cancelled_;
    go.set_value();
    reached_.get_future().wait();
  }
  void Reached() {
    begun_then_ = begun_;
    messages_then_ = messages_;
    cancelled_then_ = cancelled_ - cancelled_before_;
    reached_.set_value();
  }
  template <typename Condition>
  static void Await(Condition condition) {
    while (!condition()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  std::promise<void> reached_;
  std::atomic<size_t> begun_{0}, messages_{0}, cancelled_{0}, gone_{0};
  size_t begun_then_ = 0, messages_then_ = 0, cancelled_before_ = 0, cancelled_then_ = 0;
  LoopThread thread_{"turns"};
  std::unique_ptr<GrpcServer> server_;
};

TEST_F(GrpcTurnsTest, CallsThatAreBegun) {
  Listen({.max_unanswered = 10'000});
  auto many = Known();
  auto honest = Known();
  AtOnce(honest, [&] { ASSERT_TRUE(many.Send(Calls("/t/Many", kMany))); });
  EXPECT_LT(begun_then_, kTwoTurns);
  Await([&] { return begun_ == kMany; });
}

TEST_F(GrpcTurnsTest, ManyConnectionsHaveATurnEach) {
  Listen({.max_unanswered = 10'000});
  constexpr size_t kConnections = 12;
  std::vector<RawClient> many;
  many.reserve(kConnections);
  for (size_t i = 0; i < kConnections; ++i) many.push_back(Known());
  auto honest = Known();
  const std::string calls = Calls("/t/Many", 4000);
  AtOnce(honest, [&] {
    for (RawClient& one : many) ASSERT_TRUE(one.Send(calls));
  });
  EXPECT_LT(begun_then_, kConnections * kTwoTurns);
  Await([&] { return begun_ == kConnections * 4000; });
}

TEST_F(GrpcTurnsTest, Messages) {
  Listen({.max_unanswered = 10'000});
  auto many = Known();
  auto honest = Known();
  std::string messages;
  for (int i = 0; i < 2000; ++i) messages.append("\0\0\0\0\1x", 6);
  AtOnce(honest, [&] { ASSERT_TRUE(many.Send(Calls("/t/Many", 10, messages))); });
  // Frames of DATA are taken whole, 32 at a time.
  EXPECT_LT(messages_then_, 10 * 2000u);
  Await([&] { return messages_ == 10 * 2000u; });
}

TEST_F(GrpcTurnsTest, CallsOfAConnectionThatEnds) {
  Listen({.max_unanswered = 10'000});
  auto honest = Known();
  {
    auto many = Known();
    ASSERT_TRUE(many.Send(Calls("/t/Many", kMany)));
    Await([&] { return begun_ == kMany; });
    AtOnce(honest, [&] { RawClient(std::move(many)); });
  }
  EXPECT_LT(cancelled_then_, 2 * kTwoTurns);
  Await([&] { return cancelled_ == kMany && gone_ == kMany; });
  EXPECT_EQ(server_->stats().streams, 1u);
}

TEST_F(GrpcTurnsTest, CallsThatAreSilentForTooLong) {
  Listen({.max_unanswered = 10'000, .first_message_timeout = 200 * base::kMillisecond});
  auto many = Known();
  auto honest = Known();
  ASSERT_TRUE(many.Send(Calls("/t/Many", kMany)));
  Await([&] { return begun_ == kMany; });
  AtOnce(honest, [] {}, 500 * base::kMillisecond);
  EXPECT_LT(cancelled_then_, 2 * kTwoTurns);
}

TEST_F(GrpcTurnsTest, CallsWhoseDeadlinesPass) {
  Listen({.max_unanswered = 10'000});
  auto many = Known();
  auto honest = Known();
  ASSERT_TRUE(many.Send(Calls("/t/Many", kMany, "", HpackLiteral("grpc-timeout", "300m"))));
  Await([&] { return begun_ == kMany; });
  AtOnce(honest, [] {}, 500 * base::kMillisecond);
  EXPECT_LT(cancelled_then_, 2 * kTwoTurns);
  Await([&] { return cancelled_ == kMany; });
}

// All of a share is held by small calls: they go, some in each turn, and others' calls come in between.
TEST_F(GrpcTurnsTest, CallsThatHoldTooMuch) {
  Listen({.max_unanswered = 20'000, .max_buffered_bytes = 32 << 20});
  auto many = Known();
  auto honest = Known();
  const std::string part("\0\0\1\0\0xxxxxxxxxx", 15);
  AtOnce(honest, [&] { ASSERT_TRUE(many.Send(Calls("/t/Many", kMany, part))); });
  EXPECT_LT(begun_then_, kTwoTurns);
  Await([&] { return begun_ == kMany; });
  EXPECT_GT(server_->stats().shed_calls, 1000u);
  Await([&] { return server_->stats().buffered_bytes < 9u << 20; });
}

// A long answer that its client takes leaves room for others' on the way.
TEST_F(GrpcTurnsTest, Answers) {
  Listen({});
  auto client = Known();
  const auto ask = [](uint32_t stream, std::string_view size) {
    return Frame(testing::kHeadersFrame, testing::kEndHeaders, stream, RequestBlock("/t/Many")) +
           Frame(testing::kDataFrame, 0, stream, GrpcFrame(size.size()) + std::string(size));
  };
  constexpr size_t kLong = 24'000'000;
  const std::string wide("\x7f\0\0\0", 4);
  ASSERT_TRUE(client.Send(Frame(testing::kSettingsFrame, 0, 0, std::string("\0\4", 2) + wide) +
                              Frame(testing::kWindowFrame, 0, 0, wide) + ask(1, std::to_string(kLong)) +
                              ask(3, "1000"),
                          false));
  const auto taken = [&client](uint32_t stream) {
    size_t bytes = 0;
    for (const auto& frame : client.Frames()) {
      if (frame.type == testing::kDataFrame && frame.stream == stream) bytes += frame.payload.size();
    }
    return bytes;
  };
  while (taken(3) < 1005) ASSERT_FALSE(client.ReadToEnd(20));
  size_t before = 0;
  for (const auto& frame : client.Frames()) {
    if (frame.stream == 3 && frame.type == testing::kDataFrame) break;
    if (frame.stream == 1 && frame.type == testing::kDataFrame) before += frame.payload.size();
  }
  EXPECT_LT(before, kLong / 2);
}

TEST(FrameCutterTest, CutsWhereFramesBegin) {
  const std::string frames = Frame(1, 4, 1, "abc") + Frame(0, 0, 1, "") +
                             Frame(0, 1, 1, std::string(70'000, 'x')) + Frame(6, 0, 0, "12345678");
  const std::string all = Preface() + frames;
  const size_t preface = Preface().size();
  FrameCutter cutter;
  EXPECT_EQ(cutter.Take(all, 1), preface);  // with the SETTINGS behind it
  EXPECT_EQ(cutter.Take(std::string_view(all).substr(preface), 2), 9 + 3 + 9u);
  EXPECT_EQ(cutter.Take(std::string_view(all).substr(preface + 21), 100), all.size() - preface - 21);
  // However the bytes come.
  for (size_t piece = 1; piece < 40; ++piece) {
    FrameCutter other;
    size_t taken = 0;
    size_t cuts = 0;
    while (taken < all.size()) {
      const std::string_view next = std::string_view(all).substr(taken, piece);
      const size_t n = other.Take(next, 1);
      ASSERT_GT(n, 0u);
      cuts += n < next.size() ? 1 : 0;
      taken += n;
    }
    EXPECT_LE(cuts, 4u);
  }
}

}  // namespace
}  // namespace fairway::net
