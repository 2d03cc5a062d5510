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

size_t Ended(const std::vector<std::shared_ptr<testing::GrpcClientCall>>& calls) {
  return static_cast<size_t>(
      std::count_if(calls.begin(), calls.end(), [](const auto& call) { return call->ended(); }));
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

TEST(GrpcLimitsTest, UnfinishedMessagesStayWithinAShareOfTheBudget) {
  GrpcTestServer server({.max_buffered_bytes = 2 << 20});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  std::vector<std::shared_ptr<testing::GrpcClientCall>> calls;
  for (int i = 0; i < 16; ++i) {
    calls.push_back(client->Open("/t/Echo"));
    calls.back()->SendRaw(GrpcFrame(200'000) + std::string(100'000, 'x'));
  }
  EXPECT_TRUE(client->PumpUntil([&] { return Ended(calls) >= 11; }));
  for (auto& call : calls) {
    if (call->ended()) {
      EXPECT_EQ(call->Recv().status, Code(GrpcStatus::kResourceExhausted));
    }
  }
  EXPECT_LT(Ended(calls), 15u);  // some fit
  EXPECT_TRUE(
      GrpcTestServer::Eventually([&] { return server->stats().buffered_bytes <= (2u << 20) * 3 / 10; }));
  ExpectAlive(server);
  for (auto& call : calls) call->Reset();
  EXPECT_TRUE(server.log.WaitAlive(0));
}

TEST(GrpcLimitsTest, WhatServicesKeepCountsToo) {
  GrpcTestServer server({.max_buffered_bytes = 4 << 20});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  auto first = client->Open("/t/Keep");
  first->Send("900000");
  EXPECT_EQ(first->Recv().message, "kept");
  auto second = client->Open("/t/Keep");
  second->Send("900000");
  const GrpcReply end = second->RecvEnd();
  EXPECT_TRUE(end.status == Code(GrpcStatus::kResourceExhausted) || end.reset == kEnhanceYourCalm);
  EXPECT_TRUE(server.log.WaitCancels(1));
  EXPECT_EQ(server->stats().shed_calls, 1u);
  first->Send("0");
  EXPECT_EQ(first->Recv().message, "kept");
  auto third = client->Open("/t/Keep");
  third->Send("900000");
  EXPECT_EQ(third->Recv().message, "kept");
}

// Whoever holds most loses, and may let go instead of being ended.
TEST(GrpcLimitsTest, TheHeaviestCallIsAskedFirst) {
  GrpcTestServer server({.max_buffered_bytes = 8 << 20});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  auto small = client->Open("/t/Keep");
  small->Send("100000");
  EXPECT_EQ(small->Recv().message, "kept");
  auto heavy = client->Open("/t/Relieve");
  heavy->Send("1500000");
  EXPECT_EQ(heavy->Recv().message, "kept");
  auto last = client->Open("/t/Keep");
  last->Send("900000");
  EXPECT_EQ(last->Recv().message, "kept");
  EXPECT_EQ(heavy->Recv().message, "relieved");
  EXPECT_EQ(server->stats().relieved_calls, 1u);
  EXPECT_EQ(server->stats().shed_calls, 0u);
  EXPECT_FALSE(small->ended());
}

TEST(GrpcLimitsTest, OpenCallsAloneStayWithinAShareOfTheBudget) {
  GrpcTestServer server({.max_buffered_bytes = 2 << 20});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  std::vector<std::shared_ptr<testing::GrpcClientCall>> calls;
  calls.reserve(400);
  for (int i = 0; i < 400; ++i) {
    calls.push_back(client->Open("/t/Hold"));
    calls.back()->Send("x");
  }
  EXPECT_TRUE(client->PumpUntil([&] { return Ended(calls) >= 150; }));
  // The last ones may have come when those before them had made room.
  for (const auto& call : calls) {
    if (call->ended()) {
      EXPECT_EQ(call->RecvEnd().status, Code(GrpcStatus::kResourceExhausted));
    }
  }
  EXPECT_FALSE(calls.front()->ended());
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().streams <= 210; }));
  ExpectAlive(server);
}

// Many clients that take all they can get leave room for one that needs little.
TEST(GrpcLimitsTest, HonestCallsAreServedWhileOthersHoldAllTheyCan) {
  GrpcTestServer server({.max_unanswered = 10'000, .max_buffered_bytes = 16 << 20});
  std::vector<std::unique_ptr<GrpcClient>> greedy;
  std::vector<std::shared_ptr<testing::GrpcClientCall>> calls;
  for (int c = 0; c < 12; ++c) {
    greedy.push_back(GrpcClient::Connect("127.0.0.1", server.port()));
    ASSERT_NE(greedy.back(), nullptr);
    for (int i = 0; i < 8; ++i) {
      calls.push_back(greedy.back()->Open("/t/Echo"));
      calls.back()->SendRaw(GrpcFrame(1'000'000) + std::string(400'000, 'x'));
    }
    for (int i = 0; i < 300; ++i) greedy.back()->Open("/t/Hold");
    greedy.back()->Pump();
    auto honest = GrpcClient::Connect("127.0.0.1", server.port());
    ASSERT_NE(honest, nullptr);
    ASSERT_TRUE(honest->Unary("/t/Echo", std::string(100'000, 'h')).message == std::string(100'000, 'h'))
        << c;
  }
  EXPECT_LE(server->stats().buffered_bytes, 18u << 20);
  // The greedy ones' turns may come after the honest one's.
  EXPECT_TRUE(GrpcTestServer::Eventually([&] {
    for (const auto& client : greedy) client->Pump();
    return server->stats().shed_calls > 50;
  }));
}

TEST(GrpcLimitsTest, CallsThatWaitForAnAnswerAreBounded) {
  GrpcTestServer server({.max_unanswered = 10});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  std::vector<std::shared_ptr<testing::GrpcClientCall>> idle;
  std::vector<std::shared_ptr<testing::GrpcClientCall>> able;
  for (int i = 0; i < 10; ++i) idle.push_back(client->Open(i % 2 == 0 ? "/t/Hold" : "/t/Relieve"));
  client->Pump();
  idle[2]->Send("x");  // its turn comes last now
  client->Pump();
  for (int i = 0; i < 9; ++i) EXPECT_EQ(client->Unary("/t/Echo", "served").message, "served");
  EXPECT_FALSE(idle[2]->ended());
  EXPECT_EQ(idle[0]->RecvEnd().status, Code(GrpcStatus::kResourceExhausted));
  EXPECT_EQ(server->stats().shed_calls, 1u);
  std::vector<std::shared_ptr<testing::GrpcClientCall>> more;
  for (int i = 0; i < 5; ++i) more.push_back(client->Open("/t/Hold"));
  EXPECT_EQ(idle[1]->Recv().message, "relieved");  // answered, so it does not wait any more
  EXPECT_EQ(idle[9]->Recv(std::chrono::milliseconds(20)).kind, Kind::kTimeout);
}

TEST(GrpcLimitsTest, CallsWithoutAMessageEnd) {
  GrpcTestServer server({.first_message_timeout = 100 * base::kMillisecond});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  auto heard = client->Open("/t/Hold");
  heard->Send("x");
  auto silent = client->Open("/t/Hold");
  auto part = client->Open("/t/Hold");
  part->SendRaw(GrpcFrame(100) + "x");
  EXPECT_EQ(silent->RecvEnd().status, Code(GrpcStatus::kDeadlineExceeded));
  EXPECT_EQ(part->RecvEnd().status, Code(GrpcStatus::kDeadlineExceeded));
  EXPECT_EQ(server->stats().silent_calls, 2u);
  EXPECT_EQ(client->Unary("/t/Echo", "next").message, "next");
  EXPECT_FALSE(heard->ended());
}

TEST(GrpcLimitsTest, MessagesThatDoNotEndAreCutOff) {
  GrpcTestServer server({.stall_timeout = 100 * base::kMillisecond});
  auto client = GrpcClient::Connect("127.0.0.1", server.port());
  auto call = client->Open("/t/Echo");
  call->Send("first");
  EXPECT_EQ(call->Recv().message, "first");
  call->SendRaw(GrpcFrame(1000) + "x");
  EXPECT_EQ(call->RecvEnd().status, Code(GrpcStatus::kDeadlineExceeded));
  auto pieces = client->Open("/t/Pieces");
  pieces->SendRaw(GrpcFrame(100'000) + std::string(50'000, 'x'));
  EXPECT_EQ(pieces->RecvEnd().status, Code(GrpcStatus::kDeadlineExceeded));
  EXPECT_EQ(server->stats().stalled_calls, 2u);
}

// No window, no progress: that call ends, its connection and the others on it live.
TEST(GrpcLimitsTest, AnAnswerThatIsNotTakenIsCutOff) {
  GrpcTestServer server({.stall_timeout = 3 * base::kSecond});  // a busy machine sees what is held before
  auto client =
      GrpcClient::Connect("127.0.0.1", server.port(), {.stream_window = 1000, .grow_windows = false});
  auto stuck = client->Open("/t/Big");
  stuck->Send("3000000");
  auto finished = client->Open("/t/Big");  // whose call is over, but for what the client does not take
  finished->Send("3000000");
  finished->HalfClose();
  auto other = client->Open("/t/Answer");
  other->Send("x");
  EXPECT_EQ(other->Recv().message, "ok");
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().buffered_bytes >= 6'000'000; }));
  EXPECT_EQ(stuck->RecvEnd().reset, 8u);
  EXPECT_EQ(finished->RecvEnd().reset, 8u);
  EXPECT_EQ(server->stats().stalled_calls, 2u);
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().buffered_bytes < 1'000'000; }));
  other->Send("y");
  EXPECT_EQ(other->Recv().message, "ok");
  EXPECT_FALSE(client->goaway().has_value());
}

// All of the answer is taken, and then there is no window left for the end of it.
TEST(GrpcLimitsTest, ACallThatCannotEndIsCutOff) {
  GrpcTestServer server({.stall_timeout = 200 * base::kMillisecond});
  auto client =
      GrpcClient::Connect("127.0.0.1", server.port(), {.stream_window = 1005, .grow_windows = false});
  auto call = client->Open("/t/Big");
  call->Send("1000");
  EXPECT_EQ(call->Recv().message.size(), 1000u);
  call->HalfClose();
  EXPECT_TRUE(client->PumpUntil([&] { return call->ended(); }));
  EXPECT_TRUE(server.log.WaitAlive(0));
  EXPECT_FALSE(client->closed());
}

TEST(GrpcLimitsTest, ASocketThatTakesNothingIsClosed) {
  GrpcTestServer server({.stall_timeout = 200 * base::kMillisecond});
  auto client =
      GrpcClient::Connect("127.0.0.1", server.port(), {.stream_window = 64 << 20, .receive_buffer = 4096});
  auto call = client->Open("/t/Big");
  call->Send("60000000");
  EXPECT_TRUE(server.log.WaitMessages(1));
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().connections == 0; }));
  EXPECT_EQ(server->stats().aborted_connections, 1u);
}

// Who does not take the answers of a call may not send more on it; other calls may.
TEST(GrpcLimitsTest, ACallWhoseAnswerWaitsIsNotReadFurther) {
  GrpcTestServer server;
  auto client =
      GrpcClient::Connect("127.0.0.1", server.port(), {.stream_window = 1000, .grow_windows = false});
  auto call = client->Open("/t/Echo");
  for (int i = 0; i < 40; ++i) call->Send(std::string(100'000, 'x'));
  auto other = client->Open("/t/Big");
  for (int i = 0; i < 40; ++i) other->Send(std::string(1, '1') + std::string(99'999, ' '));
  ASSERT_TRUE(client->PumpUntil([&] { return other->unsent() == 0; }));
  EXPECT_TRUE(server.log.WaitMessages(40));
  EXPECT_GT(call->unsent(), 1'500'000u);
  EXPECT_LT(server->stats().buffered_bytes, 3'000'000u);
}

TEST(GrpcLimitsTest, ReaderThatStopsCannotUseUpTheBudget) {
  GrpcTestServer server({.max_buffered_bytes = 16 << 20});
  auto slow = GrpcClient::Connect("127.0.0.1", server.port(), {.stream_window = 100});
  std::vector<std::shared_ptr<testing::GrpcClientCall>> calls;
  for (int i = 0; i < 8; ++i) {
    calls.push_back(slow->Open("/t/Big"));
    calls.back()->Send("1000000");
  }
  // Those over the share end; the others are held.
  EXPECT_TRUE(slow->PumpUntil([&] { return Ended(calls) >= 4; }));
  EXPECT_LT(Ended(calls), 8u);
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().buffered_bytes <= 4u << 20; }));
  ExpectAlive(server);
  slow.reset();
  EXPECT_TRUE(server.log.WaitAlive(0));
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
  for (const char code : {'\x8', '\0', '\x7'}) {  // whatever the client calls it
    GrpcTestServer server({.reset_burst = 100, .reset_rate = 1});
    auto client = RawClient::Connect(server.port());
    std::string attack = Preface();
    for (uint32_t i = 0; i < 1000; ++i) {
      attack += Frame(testing::kHeadersFrame, testing::kEndHeaders, 2 * i + 1, RequestBlock("/t/Hold"));
      attack += Frame(testing::kResetFrame, 0, 2 * i + 1, std::string("\0\0\0", 3) + code);
    }
    client.Send(attack);
    EXPECT_TRUE(client.ReadToEnd());
    EXPECT_EQ(client.GoAwayCode(), kEnhanceYourCalm);
    EXPECT_LE(server->stats().calls, 103u);
    EXPECT_EQ(server->stats().aborted_connections, 1u);
    ExpectAlive(server);
  }
}

// On a gateway's connection, beside everybody else's calls.
TEST(GrpcLimitsTest, TwentyThousandResetsOfAGatewaysClientsAreBorne) {
  GrpcTestServer server;
  auto client = RawClient::Connect(server.port());
  std::string resets = Preface();
  for (uint32_t i = 0; i < 20'000; ++i) {
    resets += Frame(testing::kHeadersFrame, testing::kEndHeaders, 2 * i + 1, RequestBlock("/t/Hold"));
    resets += Frame(testing::kResetFrame, 0, 2 * i + 1, std::string("\0\0\0\x8", 4));
  }
  ASSERT_TRUE(client.Send(resets));
  for (int i = 0; i < 4000 && server->stats().calls < 20'000; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(server->stats().calls, 20'000u);
  EXPECT_EQ(server->stats().aborted_connections, 0u);
}

TEST(GrpcLimitsTest, CallsThatAreRefusedCountToo) {
  GrpcTestServer server({.reset_burst = 50, .reset_rate = 1});
  auto client = RawClient::Connect(server.port());
  std::string attack = Preface();
  for (uint32_t i = 0; i < 1000; ++i) {
    attack += Frame(testing::kHeadersFrame, testing::kEndHeaders, 2 * i + 1, RequestBlock("/t/Unknown"));
    attack += Frame(testing::kResetFrame, 0, 2 * i + 1, std::string(4, '\0'));
  }
  client.Send(attack);
  EXPECT_TRUE(client.ReadToEnd());
  EXPECT_EQ(client.GoAwayCode(), kEnhanceYourCalm);
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
  GrpcTestServer server({.stall_timeout = base::kSecond});
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

// Each of them costs little, but there is no reason to send many.
TEST(GrpcLimitsTest, FramesThatCarryNothingAreRationed) {
  const std::string call =
      Preface() + Frame(testing::kHeadersFrame, testing::kEndHeaders, 1, RequestBlock("/t/Hold"));
  const std::string one("\0\0\0\1", 4);
  for (const std::string& frame :
       {Frame(testing::kDataFrame, 0, 1, ""), Frame(testing::kPriorityFrame, 0, 1, std::string(5, '\1')),
        Frame(testing::kWindowFrame, 0, 0, one), Frame(testing::kResetFrame, 0, 1, std::string(4, '\0')),
        Frame(testing::kSettingsFrame, 0, 0, std::string("\0\4\0\0", 4) + "\1\1")}) {
    GrpcTestServer server;
    auto client = RawClient::Connect(server.port());
    std::string attack = call;
    for (int i = 0; i < 15'000; ++i) attack += frame;
    client.Send(attack);
    EXPECT_TRUE(client.ReadToEnd());
    EXPECT_EQ(client.GoAwayCode(), kEnhanceYourCalm) << static_cast<int>(frame[3]);
    EXPECT_EQ(server->stats().aborted_connections, 1u);
    ExpectAlive(server);
  }
}

// What nobody reads makes us stop reading: it must not pile up here.
TEST(GrpcLimitsTest, AnswersThatAreNotReadStopTheReading) {
  GrpcTestServer server({.max_streams = 10, .stall_timeout = 2 * base::kSecond});
  auto client = RawClient::Connect(server.port(), 4096);
  std::string attack = Preface();
  size_t most = 0;
  uint32_t stream = 1;
  for (int i = 0; i < 400; ++i) {
    for (int j = 0; j < 10'000; ++j, stream += 2) {  // beyond the limit: a reset each
      attack += Frame(testing::kHeadersFrame, testing::kEndHeaders, stream, "\x82");
    }
    if (!client.Send(attack, false)) break;
    most = std::max<size_t>(most, server->stats().buffered_bytes);
    attack.clear();
    ASSERT_LT(i, 399);
  }
  EXPECT_LT(most, 4u << 20);
  EXPECT_EQ(server->stats().aborted_connections, 1u);
  ExpectAlive(server);
}

TEST(GrpcLimitsTest, OurSettingsMustBeAcknowledged) {
  GrpcTestServer server({.handshake_timeout = 200 * base::kMillisecond});
  auto good = GrpcClient::Connect("127.0.0.1", server.port());
  auto call = good->Open("/t/Hold");
  call->Send("x");
  EXPECT_EQ(good->Unary("/t/Echo", "acknowledged by now").message, "acknowledged by now");
  auto client = RawClient::Connect(server.port());
  EXPECT_TRUE(client.Send(Preface()));
  EXPECT_TRUE(client.ReadToEnd());
  EXPECT_EQ(good->Unary("/t/Echo", "still here").message, "still here");
}

TEST(GrpcLimitsTest, HeadersMustEnd) {
  GrpcTestServer server({.handshake_timeout = 200 * base::kMillisecond});
  auto client = RawClient::Connect(server.port());
  const std::string acknowledged = Frame(testing::kSettingsFrame, 1, 0, "");
  EXPECT_TRUE(
      client.Send(Preface() + acknowledged + Frame(testing::kHeadersFrame, 0, 1, RequestBlock("/t/Hold"))));
  EXPECT_TRUE(client.ReadToEnd());
  // A malformed one is over.
  auto malformed = RawClient::Connect(server.port());
  EXPECT_TRUE(malformed.Send(
      Preface() + acknowledged +
      Frame(testing::kHeadersFrame, testing::kEndHeaders, 1, testing::HpackLiteral("X-Upper", "x"))));
  EXPECT_FALSE(malformed.ReadToEnd(700));
  EXPECT_EQ(server->stats().aborted_connections, 1u);
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
  // On a busy machine the client that answers is late itself, by more than 100 ms.
  GrpcTestServer server({.keepalive = 600 * base::kMillisecond});
  auto answering = GrpcClient::Connect("127.0.0.1", server.port());
  auto call = answering->Open("/t/Hold");
  call->Send("x");
  auto dead = RawClient::Connect(server.port());  // reads, but never answers
  EXPECT_TRUE(dead.Send(Preface()));
  EXPECT_TRUE(answering->PumpUntil([&] { return answering->pings() >= 3; }));
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

TEST(GrpcLimitsTest, ConnectionsBeyondTheLimitAreClosedWhenNoneIsIdle) {
  GrpcTestServer server({.max_connections = 2, .max_connections_per_address = 100}, 1);
  auto a = GrpcClient::Connect("127.0.0.1", server.port());
  auto b = GrpcClient::Connect("127.0.0.1", server.port());
  for (auto* client : {a.get(), b.get()}) {
    auto call = client->Open("/t/Answer");
    call->Send("x");
    EXPECT_EQ(call->Recv().message, "ok");  // and goes on
  }
  auto c = RawClient::Connect(server.port());
  EXPECT_TRUE(c.ReadToEnd());
  EXPECT_EQ(server->stats().refused_connections, 1u);
  a.reset();
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().connections < 2; }));
  ExpectAlive(server);
}

// Who opens connections and says nothing on them keeps nobody out, nor does one who keeps calls open that say
// nothing.
TEST(GrpcLimitsTest, IdleConnectionsMakeRoom) {
  GrpcTestServer server({.max_connections = 20, .max_connections_per_address = 100}, 1);
  auto busy = GrpcClient::Connect("127.0.0.1", server.port());
  auto call = busy->Open("/t/Answer");
  call->Send("x");
  EXPECT_EQ(call->Recv().message, "ok");
  std::vector<RawClient> idle;
  std::vector<std::unique_ptr<GrpcClient>> pretending;
  for (int i = 0; i < 40; ++i) {
    idle.push_back(RawClient::Connect(server.port()));
    ASSERT_TRUE(idle.back().Send(Preface(), false));
    pretending.push_back(GrpcClient::Connect("127.0.0.1", server.port()));
    ASSERT_NE(pretending.back(), nullptr);
    pretending.back()->Open("/t/Hold");
    pretending.back()->Pump();
    if (i % 10 == 0) ExpectAlive(server);
  }
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().connections <= 20; }));
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().evicted_connections >= 60; }));
  EXPECT_TRUE(idle.front().ReadToEnd());
  call->Send("y");
  EXPECT_EQ(call->Recv().message, "ok");
  EXPECT_EQ(server->stats().refused_connections, 0u);
}

TEST(GrpcLimitsTest, OneAddressHasItsShareOfConnections) {
  GrpcTestServer server({.host = "::", .max_connections = 12}, 1);
  std::vector<std::shared_ptr<testing::GrpcClientCall>> calls;
  std::vector<std::unique_ptr<GrpcClient>> here;
  for (int i = 0; i < 3; ++i) {
    here.push_back(GrpcClient::Connect("127.0.0.1", server.port()));
    ASSERT_NE(here.back(), nullptr);
    calls.push_back(here.back()->Open("/t/Answer"));
    calls.back()->Send("x");
    ASSERT_EQ(calls.back()->Recv().message, "ok");
  }
  auto fourth = RawClient::Connect(server.port());
  EXPECT_TRUE(fourth.ReadToEnd());
  EXPECT_EQ(server->stats().refused_connections, 1u);
  auto elsewhere = GrpcClient::Connect("::1", server.port());
  ASSERT_NE(elsewhere, nullptr);
  EXPECT_EQ(elsewhere->Unary("/t/Echo", "x").message, "x");
  here.pop_back();
  ASSERT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().connections == 3; }));
  auto again = GrpcClient::Connect("127.0.0.1", server.port());
  ASSERT_NE(again, nullptr);
  EXPECT_EQ(again->Unary("/t/Echo", "x").message, "x");
}

TEST(GrpcLimitsTest, ConnectionsWithoutACallAreSentAway) {
  GrpcTestServer server({.idle_timeout = 100 * base::kMillisecond});
  auto idle = GrpcClient::Connect("127.0.0.1", server.port());
  auto busy = GrpcClient::Connect("127.0.0.1", server.port());
  auto call = busy->Open("/t/Answer");
  call->Send("x");
  EXPECT_EQ(call->Recv().message, "ok");
  EXPECT_EQ(idle->Unary("/t/Echo", "x").message, "x");
  EXPECT_TRUE(idle->PumpUntil([&] { return idle->closed(); }));
  EXPECT_EQ(idle->goaway(), 0u);
  EXPECT_EQ(server->stats().evicted_connections, 1u);
  call->Send("y");
  EXPECT_EQ(call->Recv().message, "ok");
}

// The last descriptors are for others: files, the API server, model servers, the admin port.
TEST(GrpcLimitsTest, TheLastDescriptorsAreLeftToOthers) {
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  const int next = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ::close(next);
  rlimit few = before;
  few.rlim_cur = static_cast<rlim_t>(next) + 120;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  {
    GrpcTestServer server({.spare_descriptors = 64}, 1);
    std::vector<std::unique_ptr<GrpcClient>> clients;  // each with a descriptor of its own here
    std::vector<std::shared_ptr<testing::GrpcClientCall>> calls;
    for (int i = 0; i < 40; ++i) {
      auto client = GrpcClient::Connect("127.0.0.1", server.port());
      if (client == nullptr) break;
      calls.push_back(client->Open("/t/Answer"));
      calls.back()->Send("x");
      if (calls.back()->Recv().message != "ok") break;
      clients.push_back(std::move(client));
    }
    EXPECT_GT(clients.size(), 10u);
    EXPECT_LT(clients.size(), 35u);
    EXPECT_GE(server->stats().refused_connections, 1u);
    const int left = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    EXPECT_GE(left, 0);
    EXPECT_LT(left, next + 120 - 50);
    ::close(left);
  }
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
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
