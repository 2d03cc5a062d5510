#include "net/grpc_server.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/grpc_client.h"
#include "tests/support/grpc_test_server.h"

namespace fairway::net {
namespace {

using testing::GrpcClient;
using testing::GrpcClientOptions;
using testing::GrpcReply;
using testing::GrpcTestServer;
using Kind = testing::GrpcReply::Kind;

std::string Pattern(size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>((i * 31 + i / 251) & 0xff);
  return text;
}

std::unique_ptr<GrpcClient> Connect(const GrpcTestServer& server, GrpcClientOptions options = {}) {
  std::string error;
  auto client = GrpcClient::Connect("127.0.0.1", server.port(), std::move(options), &error);
  EXPECT_NE(client, nullptr) << error;
  return client;
}

int Code(GrpcStatus status) { return static_cast<int>(status); }

TEST(GrpcServerTest, EchoesMessagesOfAllSizesInOddFrames) {
  GrpcTestServer server;
  for (const size_t frame : {size_t{0}, size_t{1000}, size_t{7}, size_t{16384}}) {
    auto client = Connect(server, {.frame_size = frame});
    auto call = client->Open("/t/Echo");
    for (const size_t size :
         {0, 1, 4, 5, 6, 63, 64, 65, 1000, 4095, 4097, 16379, 16384, 65536, 300'000, 3'000'000}) {
      if (frame == 7 && size > 70'000) continue;
      const std::string message = Pattern(size);
      call->Send(message);
      const GrpcReply reply = call->Recv();
      ASSERT_EQ(reply.kind, Kind::kMessage) << size << " in frames of " << frame;
      ASSERT_TRUE(reply.message == message) << size << " in frames of " << frame;
    }
    call->HalfClose();
    const GrpcReply end = call->Recv();
    EXPECT_EQ(end.kind, Kind::kEnd);
    EXPECT_EQ(end.status, 0);
    EXPECT_EQ(end.http_status, 200);
    EXPECT_FALSE(end.reset.has_value());
  }
  EXPECT_TRUE(server.log.cancels().empty());
}

TEST(GrpcServerTest, ManyMessagesInOneFrameAndAtOnce) {
  GrpcTestServer server;
  auto client = Connect(server);
  auto call = client->Open("/t/Echo");
  std::string raw;
  for (int i = 0; i < 3000; ++i) raw += GrpcFrame(3) + "abc";
  call->SendRaw(raw);
  call->HalfClose();
  for (int i = 0; i < 3000; ++i) ASSERT_EQ(call->Recv().message, "abc") << i;
  EXPECT_EQ(call->Recv().status, 0);
}

TEST(GrpcServerTest, LongMessagesComeInPieces) {
  GrpcTestServer server;
  for (const size_t frame : {size_t{0}, size_t{1000}, size_t{3}, size_t{69}, size_t{70}}) {
    auto client = Connect(server, {.frame_size = frame});
    auto call = client->Open("/t/Pieces");
    for (const size_t size : {10, 99, 100, 139, 1000, 40'000, 440'000}) {
      if (frame < 10 && frame > 0 && size > 40'000) continue;
      const std::string message = Pattern(size);
      call->Send(message);
      const GrpcReply reply = call->Recv();
      ASSERT_EQ(reply.kind, Kind::kMessage) << size << " in frames of " << frame;
      const std::string expected = reply.message.starts_with("M:") ? "M:" + message : message;
      ASSERT_TRUE(reply.message.ends_with(expected)) << size << " in frames of " << frame;
      if (size >= 40'000 && frame != 0) {
        EXPECT_TRUE(reply.message.starts_with("P:")) << size << " in frames of " << frame;
      } else if (size < 100) {
        EXPECT_TRUE(reply.message.starts_with("M:"));
      }
    }
  }
}

TEST(GrpcServerTest, PiecesThatDoNotAddUpEndTheCall) {
  GrpcTestServer server;
  auto client = Connect(server);
  auto call = client->Open("/t/BadSplit");
  call->Send(Pattern(100'000));
  EXPECT_EQ(call->RecvEnd().status, Code(GrpcStatus::kInternal));
  EXPECT_TRUE(server.log.WaitCancels(1));
}

TEST(GrpcServerTest, ServesManyCallsOnManyConnections) {
  GrpcTestServer server;
  std::vector<std::unique_ptr<GrpcClient>> clients;
  std::vector<std::shared_ptr<testing::GrpcClientCall>> calls;
  for (int c = 0; c < 8; ++c) {
    clients.push_back(Connect(server));
    for (int i = 0; i < 64; ++i) calls.push_back(clients.back()->Open("/t/Echo"));
  }
  for (size_t i = 0; i < calls.size(); ++i) calls[i]->Send("message " + std::to_string(i));
  for (size_t i = 0; i < calls.size(); ++i)
    EXPECT_EQ(calls[i]->Recv().message, "message " + std::to_string(i));
  EXPECT_EQ(server->stats().streams, calls.size());
  EXPECT_EQ(server->stats().connections, 8u);
  for (auto& call : calls) call->HalfClose();
  for (auto& call : calls) EXPECT_EQ(call->Recv().status, 0);
  EXPECT_TRUE(server.log.WaitAlive(0));
  EXPECT_EQ(server->stats().streams, 0u);
  EXPECT_EQ(server->stats().calls, calls.size());
  clients.clear();
  EXPECT_TRUE(GrpcTestServer::Eventually([&] { return server->stats().connections == 0; }));
  EXPECT_EQ(server->stats().buffered_bytes, 0u);
}

TEST(GrpcServerTest, SpreadsConnectionsOverLoops) {
  GrpcTestServer server;
  auto a = Connect(server);
  auto b = Connect(server);
  EXPECT_NE(a->Unary("/t/Worker", "").message, b->Unary("/t/Worker", "").message);
}

TEST(GrpcServerTest, ListensOnFurtherPortsAndTellsThemApart) {
  GrpcTestServer server;
  uint16_t port = 0;
  {
    const GrpcTestServer other;  // a port that is free once this one is gone
    port = other.port();
    EXPECT_FALSE(server->AddPort(port).has_value());
  }
  ASSERT_TRUE(server->AddPort(port).has_value());
  EXPECT_TRUE(server->AddPort(port).has_value());
  std::string error;
  auto there = GrpcClient::Connect("127.0.0.1", port, {}, &error);
  ASSERT_NE(there, nullptr) << error;
  EXPECT_EQ(there->Unary("/t/Port", "").message, std::to_string(port));
  EXPECT_EQ(Connect(server)->Unary("/t/Port", "").message, std::to_string(server.port()));

  server->RemovePort(port);
  EXPECT_TRUE(GrpcTestServer::Eventually(
      [&] { return GrpcClient::Connect("127.0.0.1", port, {}, &error) == nullptr; }));
  EXPECT_EQ(there->Unary("/t/Port", "").message, std::to_string(port));  // what is open goes on
  ASSERT_TRUE(server->AddPort(port).has_value());
  there.reset();
  server.Shutdown(0).wait();
  EXPECT_EQ(GrpcClient::Connect("127.0.0.1", port, {}, &error), nullptr);
}

TEST(GrpcServerTest, GivesMetadataAndTakesIstiosAuthority) {
  GrpcTestServer server;
  auto client = Connect(server, {.authority = "outbound|9002||epp.default.svc.cluster.local"});
  auto call = client->Open(
      "/t/Metadata", {{"x-key", "first"}, {"x-other", "x"}, {"content-type", "application/grpc+proto"}});
  call->HalfClose();
  EXPECT_EQ(call->Recv().message, "first|");
  EXPECT_EQ(call->Recv().status, 0);
}

TEST(GrpcServerTest, StatusWithTextInTrailersOnlyAndAfterAnAnswer) {
  GrpcTestServer server;
  auto client = Connect(server);
  GrpcReply reply = client->Unary("/t/Finish", "x");
  EXPECT_EQ(reply.kind, Kind::kEnd);
  EXPECT_EQ(reply.status, Code(GrpcStatus::kNotFound));
  EXPECT_EQ(reply.status_message, "n\xc3\xb6 such % thing\n");
  GrpcReply end;
  reply = client->Unary("/t/Finish", "with answer", &end);
  EXPECT_EQ(reply.message, "first");
  EXPECT_EQ(end.status, Code(GrpcStatus::kNotFound));
  EXPECT_EQ(end.status_message, "n\xc3\xb6 such % thing\n");
}

TEST(GrpcServerTest, AnswerBeforeHalfCloseTellsTheClientToStop) {
  GrpcTestServer server;
  auto client = Connect(server);
  auto call = client->Open("/t/Finish");
  call->Send("with answer");
  EXPECT_EQ(call->Recv().message, "first");
  const GrpcReply end =
      call->Recv();  // the stream is closed although we did not half-close: RST_STREAM(NO_ERROR)
  EXPECT_EQ(end.kind, Kind::kEnd);
  EXPECT_EQ(end.status, Code(GrpcStatus::kNotFound));
  EXPECT_FALSE(end.reset.has_value());
  EXPECT_TRUE(server.log.WaitAlive(0));
  EXPECT_TRUE(server.log.cancels().empty());
}

TEST(GrpcServerTest, AnswersLaterFromTimersAndThreads) {
  GrpcTestServer server;
  auto client = Connect(server);
  EXPECT_EQ(client->Unary("/t/Timer", "by timer").message, "by timer");
  EXPECT_EQ(client->Unary("/t/Thread", "by thread").message, "by thread");
  for (int i = 0; i < 50; ++i) {  // the client leaves before the answer
    for (const char* path : {"/t/Timer", "/t/Thread"}) {
      auto call = client->Open(path);
      call->Send("x");
      if (i % 2 == 0) server.log.WaitMessages(3 + i);
      call->Reset();
    }
  }
  EXPECT_TRUE(client->PumpUntil([&] { return server.log.alive() == 0; }));
}

TEST(GrpcServerTest, ExceptionsEndTheCallWithInternal) {
  GrpcTestServer server;
  auto client = Connect(server);
  GrpcReply end = client->Unary("/t/Throw", "x");
  EXPECT_EQ(end.status, Code(GrpcStatus::kInternal));
  EXPECT_EQ(end.status_message, "internal error");  // not what was thrown: that is for the log
  EXPECT_TRUE(server.log.WaitCancels(1));
  auto call = client->Open("/t/Throw");
  call->Send("after answer");
  const GrpcReply last = call->RecvEnd();
  EXPECT_TRUE(last.status == Code(GrpcStatus::kInternal) || last.reset == 2u) << last.status;
  end = client->Unary("/t/ThrowFactory", "x");
  EXPECT_EQ(end.status, Code(GrpcStatus::kInternal));
  EXPECT_EQ(client->Unary("/t/Echo", "still here").message, "still here");
}

TEST(GrpcServerTest, RefusesWhatIsNoCallOfOurs) {
  GrpcTestServer server;
  auto client = Connect(server);
  const auto end = [&](const std::string& path, const testing::Metadata& metadata) {
    auto call = client->Open(path, metadata);
    call->Send("x");
    return call->RecvEnd();
  };
  GrpcReply reply = end("/t/Nothing", {});
  EXPECT_EQ(reply.status, Code(GrpcStatus::kUnimplemented));
  EXPECT_EQ(reply.status_message, "unknown method /t/Nothing");
  EXPECT_EQ(end("/t/Echo", {{"grpc-encoding", "gzip"}}).status, Code(GrpcStatus::kUnimplemented));
  EXPECT_EQ(end("/t/Echo", {{"grpc-timeout", "soon"}}).status, Code(GrpcStatus::kInvalidArgument));
  for (const char* type : {"text/html", "application/grpc-web", "application/grpcx", ""}) {
    reply = end("/t/Echo", {{"content-type", type}});
    EXPECT_EQ(reply.http_status, 415) << type;
    EXPECT_EQ(reply.status, -1);
  }
  EXPECT_EQ(end("/t/Echo", {{":method", "GET"}}).http_status, 405);
  // Malformed requests are reset with PROTOCOL_ERROR (RFC 9113, 8.1.1).
  for (const auto& [name, value] : std::vector<std::pair<std::string, std::string>>{
           {"transfer-encoding", "chunked"}, {"te", "gzip"}, {":protocol", "x"}, {"x-newline", "a\nb"}}) {
    reply = end("/t/Echo", {{name, value}});
    EXPECT_EQ(reply.reset, 1u) << name;
  }
  EXPECT_EQ(client->Unary("/t/Echo", "still here").message, "still here");
  EXPECT_TRUE(server.log.WaitAlive(0));
}

TEST(GrpcServerTest, CompressedFlagAndCutMessagesEndTheCall) {
  GrpcTestServer server;
  auto client = Connect(server);
  auto call = client->Open("/t/Echo");
  call->SendRaw(std::string_view("\1\0\0\0\1x", 6));
  EXPECT_EQ(call->RecvEnd().status, Code(GrpcStatus::kUnimplemented));
  for (const std::string_view cut : {std::string_view("\0\0", 2), std::string_view("\0\0\0\0\5abc", 8)}) {
    call = client->Open("/t/Echo");
    call->SendRaw(cut);
    call->HalfClose();
    EXPECT_EQ(call->RecvEnd().status, Code(GrpcStatus::kInternal));
  }
  EXPECT_TRUE(server.log.WaitCancels(3));
  EXPECT_EQ(server.log.cancels(), std::vector<bool>({false, false, false}));
}

TEST(GrpcServerTest, CancelSaysWhetherTheCallWasAnswered) {
  GrpcTestServer server;
  auto client = Connect(server);
  auto call = client->Open("/t/Hold");
  call->Send("x");
  EXPECT_TRUE(server.log.WaitMessages(1));
  call->Reset();
  EXPECT_TRUE(server.log.WaitCancels(1));
  call = client->Open("/t/Answer");
  call->Send("x");
  EXPECT_EQ(call->Recv().message, "ok");
  call->Reset(2);  // as Envoy ends each exchange
  EXPECT_TRUE(server.log.WaitCancels(2));
  EXPECT_EQ(server.log.cancels(), std::vector<bool>({false, true}));
  call = client->Open("/t/Hold");
  call->Send("x");
  EXPECT_TRUE(server.log.WaitMessages(3));
  client.reset();  // the connection goes
  EXPECT_TRUE(server.log.WaitCancels(3));
  EXPECT_TRUE(server.log.WaitAlive(0));
  EXPECT_FALSE(server.log.cancels()[2]);
}

TEST(GrpcServerTest, DeadlineEndsTheCall) {
  GrpcTestServer server;
  auto client = Connect(server);
  auto hold = client->Open("/t/Hold", {{"grpc-timeout", "50m"}});
  hold->Send("x");
  auto longer = client->Open("/t/Echo", {{"grpc-timeout", "1H"}});
  const GrpcReply end = hold->RecvEnd();
  EXPECT_EQ(end.status, Code(GrpcStatus::kDeadlineExceeded));
  EXPECT_TRUE(server.log.WaitCancels(1));
  EXPECT_FALSE(server.log.cancels()[0]);
  longer->Send("in time");
  EXPECT_EQ(longer->Recv().message, "in time");
  longer->HalfClose();
  EXPECT_EQ(longer->Recv().status, 0);
  auto answered = client->Open("/t/Answer", {{"grpc-timeout", "100m"}});
  answered->Send("x");
  EXPECT_EQ(answered->Recv().message, "ok");
  EXPECT_EQ(answered->Recv().status, Code(GrpcStatus::kDeadlineExceeded));
  EXPECT_TRUE(server.log.WaitCancels(2));
  EXPECT_TRUE(server.log.cancels()[1]);
}

TEST(GrpcServerTest, DestroyedWithOpenCallsCancelsEachOnce) {
  testing::CallLog* log = nullptr;
  auto server = std::make_unique<GrpcTestServer>();
  log = &server->log;
  auto client = Connect(*server);
  for (int i = 0; i < 20; ++i) client->Open(i % 2 == 0 ? "/t/Hold" : "/t/Answer")->Send("x");
  EXPECT_TRUE(log->WaitMessages(20));
  server->StopLoops();
  server->Destroy();
  EXPECT_EQ(log->cancels().size(), 20u);
  EXPECT_EQ(log->alive(), 0);
}

TEST(GrpcServerTest, DestroyedWithoutItsLoopsEverRunning) {
  Loop loop;
  auto server = GrpcServer::Listen({.host = "127.0.0.1", .port = 0}, {&loop}, nullptr, base::Log());
  ASSERT_TRUE(server);
  auto client = GrpcClient::Connect("127.0.0.1", (*server)->port());  // in the backlog
  server->reset();
}

TEST(GrpcServerTest, ShutdownLetsCallsEnd) {
  GrpcTestServer server;
  auto client = Connect(server);
  auto idle = Connect(server);
  auto call = client->Open("/t/Echo");
  call->Send("before");
  EXPECT_EQ(call->Recv().message, "before");
  auto done = server.Shutdown(20 * base::kSecond);
  EXPECT_TRUE(client->PumpUntil([&] { return client->goaway().has_value(); }));
  EXPECT_EQ(*client->goaway(), 0u);
  EXPECT_TRUE(idle->PumpUntil([&] { return idle->closed(); }));
  call->Send("during");
  EXPECT_EQ(call->Recv().message, "during");
  EXPECT_EQ(done.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
  call->HalfClose();
  EXPECT_EQ(call->Recv().status, 0);
  EXPECT_TRUE(client->PumpUntil([&] { return client->closed(); }));
  client.reset();
  idle.reset();
  EXPECT_EQ(done.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_TRUE(server.log.cancels().empty());
  std::string error;
  EXPECT_EQ(GrpcClient::Connect("127.0.0.1", server.port(), {}, &error), nullptr);
  server.Destroy();  // its loops still run
}

TEST(GrpcServerTest, ShutdownCutsCallsThatDoNotEnd) {
  GrpcTestServer server;
  auto client = Connect(server);
  auto call = client->Open("/t/Hold");
  call->Send("x");
  EXPECT_TRUE(server.log.WaitMessages(1));
  auto done = server.Shutdown(200 * base::kMillisecond);
  auto again = server.Shutdown(200 * base::kMillisecond);
  EXPECT_EQ(done.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_EQ(again.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_EQ(server.log.cancels().size(), 1u);
  EXPECT_EQ(server.Shutdown(0).wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_EQ(server->stats().connections, 0u);
}

TEST(GrpcServerTest, CallsBegunBetweenTheTwoGoAwaysAreServed) {
  GrpcTestServer server;
  auto client = Connect(server);
  auto hold = client->Open("/t/Hold");
  hold->Send("x");
  EXPECT_TRUE(server.log.WaitMessages(1));
  auto raced = client->Open("/t/Echo");  // on its way when the notice comes
  auto done = server.Shutdown(20 * base::kSecond);
  raced->Send("raced");
  raced->HalfClose();
  EXPECT_EQ(raced->Recv().message, "raced");
  EXPECT_EQ(raced->Recv().status, 0);
  hold->Reset();
  EXPECT_TRUE(client->PumpUntil([&] { return client->closed(); }));
  client.reset();
  EXPECT_EQ(done.wait_for(std::chrono::seconds(20)), std::future_status::ready);
}

TEST(GrpcServerTest, ListensOnIpv6AndOnBothFamilies) {
  auto six = GrpcTestServer({.host = "::1"});
  std::string error;
  auto client = GrpcClient::Connect("::1", six.port(), {}, &error);
  ASSERT_NE(client, nullptr) << error;
  EXPECT_EQ(client->Unary("/t/Echo", "six").message, "six");
  // Somebody else may have that port of the other family: only that it is not this server counts.
  const auto other = GrpcClient::Connect("127.0.0.1", six.port());
  EXPECT_EQ(six->stats().connections, 1u);

  auto both = GrpcTestServer({.host = "::"});
  for (const char* host : {"::1", "127.0.0.1"}) {
    client = GrpcClient::Connect(host, both.port(), {}, &error);
    ASSERT_NE(client, nullptr) << host << ": " << error;
    EXPECT_EQ(client->Unary("/t/Echo", "both").message, "both");
  }
}

TEST(GrpcServerTest, ListenSaysWhatIsWrong) {
  Loop loop;
  GrpcTestServer server;
  const base::Log log;
  auto taken = GrpcServer::Listen({.host = "127.0.0.1", .port = server.port()}, {&loop}, nullptr, log);
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().message,
            "cannot listen on 127.0.0.1:" + std::to_string(server.port()) + ": Address already in use");
  auto foreign = GrpcServer::Listen({.host = "203.0.113.1", .port = 0}, {&loop}, nullptr, log);
  ASSERT_FALSE(foreign);
  EXPECT_NE(foreign.error().message.find("203.0.113.1:0: Cannot assign"), std::string::npos)
      << foreign.error().message;
  EXPECT_FALSE(GrpcServer::Listen({.host = "no such host"}, {&loop}, nullptr, log));
  EXPECT_FALSE(GrpcServer::Listen({.host = "127.0.0.1", .port = 0}, {}, nullptr, log));
}

}  // namespace
}  // namespace fairway::net
