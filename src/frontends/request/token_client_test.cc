#include "frontends/request/token_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <future>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "frontends/request/circuit_breaker.h"
#include "tests/support/raw_tcp_server.h"

namespace fairway::request {
namespace {

using testing::HasSubstr;
using Tokens = std::shared_ptr<const payload::PromptTokens>;

class TokenClientTest : public testing::Test {
 protected:
  TokenClient::Question To(uint16_t port, std::string body, base::Nanos timeout = 5 * base::kSecond) const {
    return {
        .host = "127.0.0.1", .port = port, .path = "/render", .body = std::move(body), .timeout = timeout};
  }
  Tokens Ask(const TokenClient::Question& question) {
    std::promise<Tokens> told;
    client->Ask(question, back.loop(), [&told](Tokens tokens) { told.set_value(std::move(tokens)); });
    return told.get_future().get();
  }
  std::string Counted(const std::string& outcome) {
    const std::string page = registry.Render();
    const std::string series = "fairway_token_questions_total{outcome=\"" + outcome + "\"} ";
    const size_t at = page.find(series);
    return at == std::string::npos
               ? "none"
               : page.substr(at + series.size(), page.find('\n', at) - at - series.size());
  }
  base::Registry registry;
  std::mutex mutex;
  std::vector<std::string> lines;  // guarded by mutex
  base::Log log{base::LogLevel::kInfo, base::LogFormat::kText, [this](std::string_view line) {
                  const std::lock_guard lock(mutex);
                  lines.emplace_back(line);
                }};
  net::LoopThread back{"back"};
  std::unique_ptr<TokenClient> client = std::make_unique<TokenClient>(registry, log);
};

TEST_F(TokenClientTest, AServerThatIsNotThereIsToldOfOnceAndOnceWhenItIsBack) {
  std::atomic<bool> good{false};
  test::RawTcpServer server([&](test::RawConnection& connection) {
    while (connection.ReadRequest()) {
      connection.Send(good ? "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"token_ids\":[1,2]}"
                           : "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n");
    }
  });
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Ask(To(server.port(), "{}")), nullptr);
  good = true;
  for (const char* body : {"{}", "[]"}) EXPECT_NE(Ask(To(server.port(), body)), nullptr);
  const std::lock_guard lock(mutex);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[0], HasSubstr("WARN  no tokens from the render server"));
  EXPECT_THAT(lines[0], HasSubstr("server=127.0.0.1:" + std::to_string(server.port())));
  EXPECT_THAT(lines[1], HasSubstr("INFO  the render server gives tokens again"));
}

TEST_F(TokenClientTest, AsksAndKeepsTheAnswer) {
  std::atomic<int> requests{0};
  std::string request;
  test::RawTcpServer server([&](test::RawConnection& connection) {
    while (connection.ReadRequest()) {
      request = connection.request();
      ++requests;
      connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"token_ids\":[1,2]}");
    }
  });
  const auto first = Ask(To(server.port(), "{}"));
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(*first, (payload::PromptTokens{.tokens = {1, 2}, .ends = {2}}));
  EXPECT_THAT(request, HasSubstr("POST /render HTTP/1.1\r\n"));
  EXPECT_THAT(request, HasSubstr("Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"));
  EXPECT_EQ(Ask(To(server.port(), "{}")), first);
  EXPECT_NE(Ask(To(server.port(), "[]")), nullptr);
  EXPECT_EQ(requests, 2);
  EXPECT_EQ(Counted("answered"), "2");
  EXPECT_EQ(Counted("kept"), "1");
}

TEST_F(TokenClientTest, WhatIsNoAnswerIsNone) {
  test::RawTcpServer server([](test::RawConnection& connection) {
    while (connection.ReadRequest())
      connection.Send(connection.number() == 0 ? "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
                                               : "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
  });
  EXPECT_EQ(Ask(To(server.port(), "{}")), nullptr);
  EXPECT_EQ(Ask(To(server.port(), "[]")), nullptr);
  EXPECT_EQ(Ask(To(1, "{}")), nullptr) << "nobody listens";
  test::RawTcpServer mute([](test::RawConnection& connection) { connection.WaitForEnd(); });
  EXPECT_EQ(Ask(To(mute.port(), "{}", 50 * base::kMillisecond)), nullptr);
  EXPECT_EQ(Counted("failed"), "4");
}

TEST_F(TokenClientTest, WhoComesWhenItIsFullIsToldAtOnce) {
  test::RawTcpServer mute([](test::RawConnection& connection) { connection.WaitForEnd(); });
  std::atomic<int> told{0};
  for (size_t i = 0; i < TokenClient::kMaxOpen; ++i)
    client->Ask(To(mute.port(), "{}", 60 * base::kSecond), back.loop(), [&told](const Tokens&) { ++told; });
  EXPECT_EQ(Ask(To(mute.port(), "{}", 60 * base::kSecond)), nullptr);
  EXPECT_EQ(Counted("full"), "1");
  client.reset();  // ends what is open, and nobody is told of it
  EXPECT_EQ(told, 0);
}

TEST_F(TokenClientTest, AnAnswerIsReadAsItComesAndNoLongerThanItMayBe) {
  const std::string head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
  const auto chunk = [](const std::string& text) {
    char length[16];
    std::snprintf(length, sizeof length, "%zx\r\n", text.size());
    return length + text + "\r\n";
  };
  // The rest does not come: whatever is decided is decided by what did.
  test::RawTcpServer wrong([&](test::RawConnection& connection) {
    if (connection.ReadRequest() && connection.Send(head + chunk(R"({"token_ids":["x",)")))
      connection.WaitForEnd();
  });
  EXPECT_EQ(Ask(To(wrong.port(), "{}", 600 * base::kSecond)), nullptr);
  const std::string blanks(TokenClient::AnswerBytes(2), ' ');
  test::RawTcpServer server([&](test::RawConnection& connection) {
    while (connection.ReadRequest()) {
      const bool good = connection.Send(head + chunk(blanks) + chunk(R"({"token_ids":[1]})"));
      if (!good || (connection.number() == 1 && !connection.Send("0\r\n\r\n"))) return;
    }
  });
  EXPECT_EQ(Ask(To(server.port(), "{}", 600 * base::kSecond)), nullptr)
      << "longer than two bytes of text can be";
  auto with_media = To(server.port(), "{}");
  with_media.media = true;
  EXPECT_NE(Ask(with_media), nullptr);
}

TEST_F(TokenClientTest, WhatIsReadOfAllAnswersIsBounded) {
  std::string tokens = "HTTP/1.1 200 OK\r\nContent-Length: 16000000\r\n\r\n{\"token_ids\":[1";
  while (tokens.size() < (8u << 20)) tokens += ",1";
  test::RawTcpServer server([&](test::RawConnection& connection) {
    if (connection.ReadRequest() && connection.Send(tokens)) connection.WaitForEnd();
  });
  constexpr size_t kAtOnce = TokenClient::kMaxAnswerBytes / (16u << 20);  // that hold so much
  std::atomic<size_t> told{0};
  for (size_t i = 0; i < kAtOnce + 2; ++i) {
    auto question = To(server.port(), "{}", 600 * base::kSecond);
    question.media = true;
    client->Ask(question, back.loop(), [&told](const Tokens&) { ++told; });
  }
  while (told < 2) std::this_thread::yield();
  EXPECT_EQ(Counted("failed"), "2");
  client.reset();
}

TEST_F(TokenClientTest, AServerThatKeepsAllWaitingIsLeftAloneForAWhile) {
  std::atomic<bool> good{false};
  std::atomic<int> requests{0};
  test::RawTcpServer server([&](test::RawConnection& connection) {
    while (connection.ReadRequest()) {
      ++requests;
      if (!good) return connection.WaitForEnd();
      connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"token_ids\":[1,2]}");
    }
  });
  while (registry.Render().find("fairway_token_circuits_open 1\n") == std::string::npos)
    EXPECT_EQ(Ask(To(server.port(), "{}", 50 * base::kMillisecond)), nullptr);
  const int waited = requests;
  EXPECT_GE(waited, CircuitBreaker::kMostInARow);
  auto with_media = To(server.port(), "{}", 50 * base::kMillisecond);
  with_media.media = true;
  EXPECT_EQ(Ask(with_media), nullptr);
  EXPECT_EQ(requests, waited + 1) << "prompts with images have a circuit of their own";
  // As long as the probe waits, others go at once; it is the first question after the pause.
  while (requests == waited + 1)
    client->Ask(To(server.port(), "{}", 2 * base::kSecond), back.loop(), [](const Tokens&) {});
  for (int i = 0; i < 100; ++i) EXPECT_EQ(Ask(To(server.port(), "{}", 600 * base::kSecond)), nullptr);
  EXPECT_EQ(requests, waited + 2);
  EXPECT_NE(Counted("circuit_open"), "0");
  EXPECT_THAT(registry.Render(), HasSubstr("fairway_token_circuits_open 1\n"));
  good = true;
  while (Ask(To(server.port(), "{}", 600 * base::kSecond)) == nullptr) std::this_thread::yield();
  EXPECT_NE(Ask(To(server.port(), "[]")), nullptr);
  EXPECT_THAT(registry.Render(), HasSubstr("fairway_token_circuits_open 0\n"));
  const std::lock_guard lock(mutex);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_THAT(lines[0], HasSubstr("WARN  no tokens from the render server"));
  EXPECT_THAT(lines[1], HasSubstr("WARN  the render server keeps requests waiting and is left alone"));
  EXPECT_THAT(lines[2], HasSubstr("INFO  the render server gives tokens again"));
}

TEST_F(TokenClientTest, AServerThatSaysNoIsAskedAgain) {
  std::atomic<int> requests{0};
  test::RawTcpServer server([&](test::RawConnection& connection) {
    while (connection.ReadRequest()) {
      ++requests;
      connection.Send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    }
  });
  for (int i = 0; i < 10; ++i) EXPECT_EQ(Ask(To(server.port(), "{}")), nullptr);
  EXPECT_EQ(requests, 10);
}

// 16 connections are kept, which the largest bodies may have been sent over one after the other.
TEST_F(TokenClientTest, ConnectionsThatAreKeptHoldNoBodies) {
  constexpr size_t kAtOnce = 8;
  constexpr size_t kBody = 6 << 20;
  std::atomic<size_t> requests{0}, told{0};
  test::RawTcpServer server([&](test::RawConnection& connection) {
    if (!connection.ReadRequest()) return;
    for (size_t left = kBody - (connection.request().size() - connection.request().find("\r\n\r\n") - 4);
         left > 0;) {
      char piece[65536];
      const ssize_t n = ::recv(connection.fd(), piece, std::min(left, sizeof piece), 0);
      if (n <= 0) return;
      left -= static_cast<size_t>(n);
    }
    ++requests;
    while (requests < kAtOnce) std::this_thread::yield();
    connection.Send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    connection.WaitForEnd();
  });
  const auto held = [] {
    const auto info = ::mallinfo2();
    return info.uordblks + info.hblkhd;
  };
  const size_t before = held();
  for (size_t i = 0; i < kAtOnce; ++i)
    client->Ask(To(server.port(), std::string(kBody, 'x'), 600 * base::kSecond), back.loop(),
                [&told](const Tokens&) { ++told; });
  while (told < kAtOnce) std::this_thread::yield();
  // The last one's connection is kept by what is done after it is told.
  for (int i = 0; i < 3000 && held() > before + kBody; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_LE(held(), before + kBody);
  EXPECT_EQ(server.connections(), static_cast<int>(kAtOnce));
  EXPECT_EQ(server.closed(), 0) << "all are kept";
}

TEST_F(TokenClientTest, BodiesAreBounded) {
  test::RawTcpServer mute([](test::RawConnection& connection) { connection.WaitForEnd(); });
  EXPECT_EQ(Ask(To(mute.port(), std::string(TokenClient::kMaxOpenBytes + 1, 'x'))), nullptr);
  EXPECT_EQ(Counted("full"), "1");
}

}  // namespace
}  // namespace fairway::request
