#include "frontends/request/token_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <mutex>
#include <string>
#include <vector>

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

TEST_F(TokenClientTest, BodiesAreBounded) {
  test::RawTcpServer mute([](test::RawConnection& connection) { connection.WaitForEnd(); });
  EXPECT_EQ(Ask(To(mute.port(), std::string(TokenClient::kMaxOpenBytes + 1, 'x'))), nullptr);
  EXPECT_EQ(Counted("full"), "1");
}

}  // namespace
}  // namespace fairway::request
