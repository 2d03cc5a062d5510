// Engines that send more than anybody needs, or go on when the process is about to end.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>

#include "base/metrics.h"
#include "net/loop.h"
#include "sources/kv_events/big_endian.h"
#include "sources/kv_events/subscriber.h"
#include "sources/kv_events/zmtp_socket.h"
#include "tests/support/raw_tcp_server.h"

namespace fairway::sources::kv_events {
namespace {

using test::RawConnection;
using test::RawTcpServer;

class Flood : public ::testing::Test {
 protected:
  void OnLoop(const std::function<void()>& task) { net::RunOn(thread_.loop(), task); }
  net::LoopThread thread_{"flood"};
};

TEST_F(Flood, WhoSendsManyCommandsIsLeft) {
  std::string pings;
  for (int i = 0; i < 1000; ++i) pings += std::string("\4\7\4PING\0\1", 9);
  RawTcpServer engine([&](RawConnection& c) {
    c.Send(ZmtpOpening("PUB") + pings);
    c.WaitForEnd();
  });
  std::promise<std::pair<ZmtpSocket::End, std::string>> ended;
  std::unique_ptr<ZmtpSocket> socket;
  OnLoop([&] {
    socket = std::make_unique<ZmtpSocket>(
        thread_.loop(), ZmtpSocketOptions{.host = "127.0.0.1", .port = engine.port()},
        ZmtpSocket::Handlers{
            .opened = [] {},
            .message = [](const ZmtpMessage&) {},
            .ended = [&](ZmtpSocket::End end, const std::string& why) { ended.set_value({end, why}); }});
  });
  auto reason = ended.get_future();
  ASSERT_EQ(reason.wait_for(std::chrono::seconds(60)), std::future_status::ready);
  const auto [end, why] = reason.get();
  EXPECT_EQ(end, ZmtpSocket::End::kProtocol);
  EXPECT_EQ(why, "too many commands");
  OnLoop([&] { socket.reset(); });
}

TEST_F(Flood, MessagesHaveARate) {
  std::string piece;
  for (int i = 0; i < 5000; ++i) piece += ZmtpFrames({"x"});
  RawTcpServer engine([&](RawConnection& c) {
    bool goes = c.Send(ZmtpOpening("PUB"));
    while (goes) goes = c.Send(piece);
  });
  std::atomic<size_t> messages{0};
  std::unique_ptr<ZmtpSocket> socket;
  const auto begun = std::chrono::steady_clock::now();
  OnLoop([&] {
    socket = std::make_unique<ZmtpSocket>(
        thread_.loop(), ZmtpSocketOptions{.host = "127.0.0.1", .port = engine.port()},
        ZmtpSocket::Handlers{.opened = [] {},
                             .message = [&](const ZmtpMessage&) { ++messages; },
                             .ended = [](ZmtpSocket::End, const std::string&) {}});
  });
  while (messages < 50'000 && std::chrono::steady_clock::now() - begun < std::chrono::seconds(60))
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  OnLoop([&] { socket.reset(); });
  const auto seconds =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - begun).count() + 1;
  EXPECT_GE(messages, 50'000u) << "they wait, and are not lost";
  // In each second 20,000, and what was read with the last of them.
  EXPECT_LE(messages, static_cast<size_t>(seconds + 1) * 45'000);
  EXPECT_GE(seconds, 2) << "50,000 are not one second's";
}

// A long message, and the first byte of another one: what the long one needed is counted, or given back.
TEST_F(Flood, WhatALongMessageNeededIsNotKept) {
  constexpr size_t kLong = 8 << 20;
  RawTcpServer engine([&](RawConnection& c) {
    c.Send(ZmtpOpening("PUB") + ZmtpFrames({"kv", std::string(kLong, 'x')}) + "\1");
    c.WaitForEnd();
  });
  std::atomic<size_t> most{0}, last{0};
  std::atomic<bool> came{false};
  std::unique_ptr<ZmtpSocket> socket;
  OnLoop([&] {
    socket = std::make_unique<ZmtpSocket>(
        thread_.loop(), ZmtpSocketOptions{.host = "127.0.0.1", .port = engine.port()},
        ZmtpSocket::Handlers{.opened = [] {},
                             .message = [&](const ZmtpMessage&) { came = true; },
                             .ended = [](ZmtpSocket::End, const std::string&) {},
                             .held =
                                 [&](size_t bytes) {
                                   most = std::max<size_t>(most, bytes);
                                   last = bytes;
                                 }});
  });
  constexpr size_t kLittle = 1 << 20;
  for (int i = 0; i < 6000 && !(came && last < kLittle); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_TRUE(came);
  EXPECT_GE(most, kLong / 2) << "while it came it was counted";
  EXPECT_LT(last, kLittle);
  OnLoop([&] {
    EXPECT_LT(socket->memory(), kLittle) << "and what is counted is what there is";
    socket.reset();
  });
}

// As many events as fit into one message, all read before the thread looks for anything else.
TEST_F(Flood, WhoIsAboutToEndLeavesTheRestOfAMessage) {
  std::string batch("\x92\xcb\0\0\0\0\0\0\0\0\xdc\x03\xe8", 13);
  for (int i = 0; i < 1000; ++i)
    batch +=
        "\x91\xb0"
        "AllBlocksCleared";
  RawTcpServer engine([&](RawConnection& c) {
    c.Send(ZmtpOpening("PUB") + ZmtpFrames({"kv", ToBigEndian(0), batch}));
    c.WaitForEnd();
  });
  base::SystemClock clock;
  const base::Log log(base::LogLevel::kOff, base::LogFormat::kText);
  base::Registry registry;
  Meters meters(registry);
  std::atomic<int> told{0};
  bool stopping = false;  // the loop's
  std::unique_ptr<Subscriber> subscriber;
  Changes changes;
  changes.emptied = [&] {
    ++told;
    stopping = true;
  };
  changes.capacity = [](uint64_t) {};
  changes.stopping = [&] { return stopping; };
  OnLoop([&] {
    subscriber = std::make_unique<Subscriber>(thread_.loop(),
                                              SubscriberOptions{.host = "127.0.0.1", .port = engine.port()},
                                              clock, log, meters, changes);
  });
  while (meters.taken.value() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(told, 1);
  OnLoop([&] { subscriber.reset(); });
}

}  // namespace
}  // namespace fairway::sources::kv_events
