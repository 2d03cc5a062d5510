// What the gRPC server does with clients that are slow, silent, greedy or hostile.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <string>
#include <vector>

#include "net/grpc_server.h"
#include "tests/support/grpc_client.h"
#include "tests/support/grpc_test_server.h"
#include "tests/support/raw_http2.h"

namespace fairway::net {
namespace {

using testing::Frame;
using testing::GrpcClient;
using testing::GrpcReply;
using testing::GrpcTestServer;
using testing::Preface;
using testing::RawClient;
using testing::RequestBlock;
using Kind = testing::GrpcReply::Kind;

constexpr uint32_t kEnhanceYourCalm = 11;
int Code(GrpcStatus status) { return static_cast<int>(status); }

// A connection that came through unharmed proves that the server did.
void ExpectAlive(GrpcTestServer& server) {
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  ASSERT_NE(client, nullptr);
  EXPECT_EQ(client->Unary("/t/Echo", "alive").message, "alive");
}

TEST(GrpcLimitsTest, TooLargeMessageIsRefusedAtItsHeader) {
  GrpcTestServer server({.max_message = 1000});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  auto call = client->Open("/t/Echo");
  call->SendRaw(std::string_view("\0\x7f\xff\xff\xff", 5));
  GrpcReply end = call->Recv();
  EXPECT_EQ(end.status, Code(GrpcStatus::kResourceExhausted));
  EXPECT_EQ(end.status_message, "message larger than 1000 bytes");
  EXPECT_TRUE(server.log.WaitCancels(1));
  end = client->Unary("/t/Echo", std::string(1001, 'x'));
  EXPECT_EQ(end.status, Code(GrpcStatus::kResourceExhausted));
  EXPECT_EQ(client->Unary("/t/Echo", std::string(1000, 'x')).message.size(), 1000u);
  EXPECT_EQ(server->stats().refused_messages, 2u);
}

TEST(GrpcLimitsTest, UnfinishedMessagesStayWithinTheBudget) {
  GrpcTestServer server({.max_buffered_bytes = 1 << 20});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  std::vector<std::shared_ptr<testing::GrpcClientCall>> calls;
  for (int i = 0; i < 16; ++i) {
    calls.push_back(client->Open("/t/Echo"));
    calls.back()->SendRaw(GrpcFrame(200'000) + std::string(100'000, 'x'));
  }
  const auto ended = [&] {
    return std::count_if(calls.begin(), calls.end(), [](const auto& call) { return call->ended(); });
  };
  EXPECT_TRUE(client->PumpUntil([&] { return ended() >= 6; }));
  size_t refused = 0;
  for (auto& call : calls) {
    if (!call->ended()) continue;
    EXPECT_EQ(call->Recv().status, Code(GrpcStatus::kResourceExhausted));
    ++refused;
  }
  EXPECT_LT(refused, 10u);  // some fit
  EXPECT_LE(server->stats().buffered_bytes, 1u << 20);
  for (auto& call : calls) call->Reset();
  EXPECT_TRUE(server.log.WaitAlive(0));
  ExpectAlive(server);
}

TEST(GrpcLimitsTest, WhatServicesKeepCountsToo) {
  GrpcTestServer server({.max_buffered_bytes = 1 << 20});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  auto first = client->Open("/t/Keep");
  first->Send("900000");
  EXPECT_EQ(first->Recv().message, "kept");
  auto second = client->Open("/t/Keep");
  second->Send("900000");
  EXPECT_EQ(second->Recv().status, Code(GrpcStatus::kResourceExhausted));
  EXPECT_TRUE(server.log.WaitCancels(1));
  first->Send("0");
  EXPECT_EQ(first->Recv().message, "kept");
  auto third = client->Open("/t/Keep");
  third->Send("900000");
  EXPECT_EQ(third->Recv().message, "kept");
}

TEST(GrpcLimitsTest, OpenCallsAloneStayWithinTheBudget) {
  GrpcTestServer server({.max_buffered_bytes = 100 << 10});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  std::vector<std::shared_ptr<testing::GrpcClientCall>> calls;
  calls.reserve(200);
  for (int i = 0; i < 200; ++i) calls.push_back(client->Open("/t/Hold"));
  EXPECT_EQ(calls.back()->RecvEnd().status, Code(GrpcStatus::kResourceExhausted));
  EXPECT_LE(server->stats().streams, 100u);
}

TEST(GrpcLimitsTest, ReaderThatStopsIsHeldThenClosed) {
  GrpcTestServer server({.max_connection_output = 8 << 20});
  auto client = GrpcClient::Connect("127.0.0.1", server.port(), {.stream_window = 0});
  auto call = client->Open("/t/Big");
  call->Send("3000000");
  EXPECT_TRUE(server.log.WaitMessages(1));
  EXPECT_EQ(call->Recv(std::chrono::milliseconds(20)).kind, Kind::kTimeout);
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().buffered_bytes >= 3'000'000; }));
  ExpectAlive(server);
  std::vector<std::shared_ptr<testing::GrpcClientCall>> more;
  for (int i = 0; i < 3; ++i) {
    more.push_back(client->Open("/t/Big"));
    more.back()->Send("3000000");
  }
  EXPECT_TRUE(client->PumpUntil([&] { return client->closed(); }));
  EXPECT_EQ(server->stats().aborted_connections, 1u);
  EXPECT_TRUE(server.log.WaitAlive(0));
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().buffered_bytes == 0; }));
}

TEST(GrpcLimitsTest, ReaderThatStopsCannotUseUpTheBudget) {
  GrpcTestServer server({.max_buffered_bytes = 4 << 20});
  auto slow = GrpcClient::Connect("127.0.0.1", server.port(), {.stream_window = 100});
  std::vector<std::shared_ptr<testing::GrpcClientCall>> calls;
  for (int i = 0; i < 8; ++i) {
    calls.push_back(slow->Open("/t/Big"));
    calls.back()->Send("1000000");
  }
  // Those over the budget end; the others are held.
  EXPECT_TRUE(slow->PumpUntil([&] {
    return std::count_if(calls.begin(), calls.end(), [](const auto& call) { return call->ended(); }) >= 4;
  }));
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().buffered_bytes <= 4u << 20; }));
  slow.reset();
  EXPECT_TRUE(server.log.WaitAlive(0));
  ExpectAlive(server);
}

TEST(GrpcLimitsTest, SlowSocketGetsEverythingInTheEnd) {
  GrpcTestServer server;
  auto client =
      GrpcClient::Connect("127.0.0.1", server.port(), {.stream_window = 8 << 20, .receive_buffer = 4096});
  std::vector<std::shared_ptr<testing::GrpcClientCall>> calls;
  for (int i = 0; i < 8; ++i) {
    calls.push_back(client->Open("/t/Big"));
    calls.back()->Send("2000000");
    calls.back()->HalfClose();
  }
  EXPECT_TRUE(server.log.WaitMessages(8));  // all answers wait while we do not read
  calls[3]->Reset();                        // one in the middle goes while its bytes are on their way
  for (size_t i = 0; i < calls.size(); ++i) {
    const GrpcReply reply = calls[i]->Recv();
    if (i == 3) continue;
    EXPECT_TRUE(reply.message == std::string(2'000'000, 'b')) << i << " got " << reply.message.size();
    EXPECT_EQ(calls[i]->Recv().status, 0);
  }
}

TEST(GrpcLimitsTest, DeadlineOfACallWhoseAnswerIsStuck) {
  GrpcTestServer server;
  auto client =
      GrpcClient::Connect("127.0.0.1", server.port(), {.stream_window = 1000, .grow_windows = false});
  auto call = client->Open("/t/Big", {{"grpc-timeout", "50m"}});
  call->Send("500000");
  const GrpcReply end = call->RecvEnd();
  EXPECT_EQ(end.reset, 8u);  // CANCEL: the answer was cut, no status can follow
  EXPECT_TRUE(server.log.WaitCancels(1));
  EXPECT_FALSE(server.log.cancels()[0]);
  EXPECT_EQ(client->Unary("/t/Echo", "next").message, "next");
}

TEST(GrpcLimitsTest, RapidResetGetsGoAway) {
  GrpcTestServer server({.reset_burst = 100, .reset_rate = 1});
  auto client = RawClient::Connect(server.port());
  std::string attack = Preface();
  for (uint32_t i = 0; i < 1000; ++i) {
    attack += Frame(testing::kHeadersFrame, testing::kEndHeaders, 2 * i + 1, RequestBlock("/t/Hold"));
    attack += Frame(testing::kResetFrame, 0, 2 * i + 1, std::string("\0\0\0\x8", 4));
  }
  client.Send(attack);
  EXPECT_TRUE(client.ReadToEnd());
  EXPECT_EQ(client.GoAwayCode(), kEnhanceYourCalm);
  EXPECT_LE(server->stats().calls, 103u);
  EXPECT_EQ(server->stats().aborted_connections, 1u);
  ExpectAlive(server);
}

TEST(GrpcLimitsTest, ResetsAfterTheAnswerAreFree) {
  GrpcTestServer server({.reset_burst = 10, .reset_rate = 0});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  for (int i = 0; i < 300; ++i) {
    auto call = client->Open("/t/Answer");
    call->Send("x");
    ASSERT_EQ(call->Recv().message, "ok") << i;
    call->Reset(2);
  }
  EXPECT_FALSE(client->goaway().has_value());
  EXPECT_TRUE(server.log.WaitCancels(300));
  for (const bool answered : server.log.cancels()) EXPECT_TRUE(answered);
}

TEST(GrpcLimitsTest, ResetsThatWeAreMadeToSendCountToo) {
  GrpcTestServer server({.reset_burst = 50, .reset_rate = 1});
  auto client = RawClient::Connect(server.port());
  std::string attack = Preface();
  for (uint32_t i = 0; i < 1000; ++i) {
    attack += Frame(testing::kHeadersFrame, testing::kEndHeaders, 2 * i + 1, RequestBlock("/t/Hold"));
    attack += Frame(testing::kWindowFrame, 0, 2 * i + 1,
                    std::string(4, '\0'));  // an increment of 0: a stream error
  }
  client.Send(attack);
  EXPECT_TRUE(client.ReadToEnd());
  EXPECT_TRUE(client.GoAwayCode().has_value());
  ExpectAlive(server);
}

TEST(GrpcLimitsTest, StreamsBeyondTheLimitAreRefused) {
  GrpcTestServer server({.max_streams = 100});
  auto client = RawClient::Connect(server.port());
  std::string attack = Preface();
  for (uint32_t i = 0; i < 10'000; ++i) {
    attack += Frame(testing::kHeadersFrame, testing::kEndHeaders, 2 * i + 1, RequestBlock("/t/Hold"));
  }
  EXPECT_TRUE(client.Send(attack + Frame(testing::kPingFrame, 0, 0, "12345678")));
  EXPECT_TRUE(server.log.WaitBegun(100));
  for (int i = 0; i < 2000 && client.Count(testing::kResetFrame) < 9900; ++i) client.ReadToEnd(10);
  EXPECT_EQ(client.Count(testing::kResetFrame), 9900u);
  EXPECT_EQ(server->stats().calls, 100u);
  EXPECT_EQ(server->stats().streams, 100u);
}

TEST(GrpcLimitsTest, FloodsCloseTheConnection) {
  GrpcTestServer server;
  std::string continuation = Preface() + Frame(testing::kHeadersFrame, 0, 1, RequestBlock("/t/Hold"));
  for (int i = 0; i < 10'000; ++i)
    continuation += Frame(testing::kContinuationFrame, 0, 1, std::string(4000, '\0'));
  auto client = RawClient::Connect(server.port());
  EXPECT_TRUE(!client.Send(continuation) || client.ReadToEnd());
  // Pings whose answers are not read.
  std::string pings = Preface();
  for (int i = 0; i < 10'000; ++i) pings += Frame(testing::kPingFrame, 0, 0, "12345678");
  auto pinger = RawClient::Connect(server.port(), 4096);
  bool open = true;
  for (int i = 0; i < 1000 && open; ++i)
    open = pinger.Send(i == 0 ? pings : pings.substr(Preface().size()), false);
  EXPECT_FALSE(open);
  EXPECT_EQ(server->stats().aborted_connections, 2u);
  ExpectAlive(server);
}

TEST(GrpcLimitsTest, HeadersBeyondTheLimitResetTheCall) {
  GrpcTestServer server({.max_header_bytes = 8 << 10});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  auto call = client->Open("/t/Echo", {{"x-long", std::string(9000, 'x')}});
  EXPECT_TRUE(call->RecvEnd().reset.has_value());
  EXPECT_EQ(client->Unary("/t/Echo", "next").message, "next");
}

TEST(GrpcLimitsTest, MalformedRequestsAreReset) {
  GrpcTestServer server;
  const std::string good = RequestBlock("/t/Hold");
  const std::string method = testing::HpackLiteral(":method", "POST");
  const std::string path = testing::HpackLiteral(":path", "/t/Hold");
  uint32_t stream = 1;
  auto client = RawClient::Connect(server.port());
  EXPECT_TRUE(client.Send(Preface()));
  for (const std::string& block :
       {good + testing::HpackLiteral("X-Upper", "x"), good + testing::HpackLiteral("", "x"), good + path,
        method + path, good + testing::HpackLiteral("connection", "close"), method + method + path,
        std::string("\x82", 1)}) {
    EXPECT_TRUE(client.Send(Frame(testing::kHeadersFrame, testing::kEndHeaders, stream, block)));
    stream += 2;
  }
  // Trailers that do not end the stream, on a good call.
  EXPECT_TRUE(client.Send(Frame(testing::kHeadersFrame, testing::kEndHeaders, stream, good)));
  EXPECT_TRUE(client.Send(
      Frame(testing::kHeadersFrame, testing::kEndHeaders, stream, testing::HpackLiteral("x", "y"))));
  EXPECT_TRUE(server.log.WaitCancels(1));
  for (int i = 0; i < 2000 && client.Count(testing::kResetFrame) < 8; ++i) client.ReadToEnd(10);
  for (const auto& frame : client.Frames()) {
    if (frame.type == testing::kResetFrame) {
      EXPECT_EQ(frame.payload, std::string("\0\0\0\1", 4)) << frame.stream;
    }
  }
  EXPECT_EQ(client.Count(testing::kResetFrame), 8u);
  EXPECT_EQ(server->stats().calls, 1u);
}

TEST(GrpcLimitsTest, OtherProtocolsAreClosed) {
  GrpcTestServer server;
  for (const std::string& bytes :
       {std::string("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"), std::string(10'000, '\xff'),
        std::string(10'000, '\0'), Preface() + std::string(10'000, '\x7f'),
        Preface() + Frame(0x7f, 0xff, 0x7fffffff, "?") + Frame(0, 0, 0, "x"),
        Preface() + Frame(testing::kHeadersFrame, testing::kEndHeaders, 1, "\xff\xff\xff\xff\xff\xff")}) {
    auto client = RawClient::Connect(server.port());
    client.Send(bytes);
    EXPECT_TRUE(client.ReadToEnd());
  }
  ExpectAlive(server);
}

TEST(GrpcLimitsTest, SilentPeerIsAskedThenClosed) {
  GrpcTestServer server({.keepalive = 100 * base::kMillisecond});
  auto answering = GrpcClient::Connect("127.0.0.1", server.port());
  auto call = answering->Open("/t/Hold");
  call->Send("x");
  auto dead = RawClient::Connect(server.port());  // reads, but never answers
  EXPECT_TRUE(dead.Send(Preface()));
  EXPECT_TRUE(answering->PumpUntil([&] { return answering->pings() >= 4; }));
  EXPECT_FALSE(answering->closed());
  EXPECT_TRUE(dead.ReadToEnd());
  EXPECT_GE(dead.Count(testing::kPingFrame), 1u);
  EXPECT_TRUE(server.log.cancels().empty());
}

TEST(GrpcLimitsTest, OldConnectionsAreSentAway) {
  GrpcTestServer server({.max_connection_age = 100 * base::kMillisecond});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  auto call = client->Open("/t/Echo");
  EXPECT_TRUE(client->PumpUntil([&] { return client->goaway().has_value(); }));
  EXPECT_EQ(*client->goaway(), 0u);
  call->Send("still served");
  EXPECT_EQ(call->Recv().message, "still served");
  call->HalfClose();
  EXPECT_EQ(call->Recv().status, 0);
  EXPECT_TRUE(client->PumpUntil([&] { return client->closed(); }));
  EXPECT_EQ(server->stats().aborted_connections, 0u);
}

TEST(GrpcLimitsTest, ConnectionsBeyondTheLimitAreClosed) {
  GrpcTestServer server({.max_connections = 2});
  auto a = GrpcClient::Connect("127.0.0.1", server.port());
  auto b = GrpcClient::Connect("127.0.0.1", server.port());
  EXPECT_EQ(a->Unary("/t/Echo", "a").message, "a");
  EXPECT_EQ(b->Unary("/t/Echo", "b").message, "b");
  auto c = RawClient::Connect(server.port());
  EXPECT_TRUE(c.ReadToEnd());
  a.reset();
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().connections < 2; }));
  ExpectAlive(server);
}

// Without descriptors the listener waits instead of spinning, and goes on when there are some again.
TEST(GrpcLimitsTest, OutOfDescriptorsIsWaitedOut) {
  GrpcTestServer server;
  ExpectAlive(server);
  ASSERT_TRUE(
      GrpcTestServer::Eventually([&] { return server->stats().connections == 0; }));  // its client's end
  auto client = RawClient::Connect(server.port());  // has its descriptor before there are none
  ASSERT_TRUE(client.connected());
  const int client_socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().connections == 1; }));
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  const int next = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ::close(next);
  rlimit none = before;
  none.rlim_cur = static_cast<rlim_t>(next);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(server.port());
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::connect(client_socket, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  rusage from{};
  rusage to{};
  getrusage(RUSAGE_SELF, &from);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));  // the time in which it could spin
  getrusage(RUSAGE_SELF, &to);
  const auto micros = [](const rusage& u) {
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1'000'000 + u.ru_utime.tv_usec + u.ru_stime.tv_usec;
  };
  EXPECT_LT(micros(to) - micros(from), 250'000);
  EXPECT_EQ(server->stats().connections, 1u);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().connections == 2; }));
  ::close(client_socket);
}

}  // namespace
}  // namespace fairway::net
