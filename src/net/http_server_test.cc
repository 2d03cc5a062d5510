#include "net/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <future>
#include <stdexcept>
#include <thread>

namespace fairway::net {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// A blocking client that sends and sees bytes as they are.
class RawClient {
 public:
  // `from`: of 127.0.0.0/8, which are all this machine's.
  explicit RawClient(uint16_t port, int receive_buffer = 0, const char* from = "127.0.0.1")
      : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0) ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    ::inet_pton(AF_INET, from, &address.sin_addr);
    ::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address);
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    const timeval limit{10, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }
  ~RawClient() { Close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  void Close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void ShutdownSend() { ::shutdown(fd_, SHUT_WR); }
  void Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
  }
  // As much as goes without waiting; how much that was.
  size_t SendWhatGoes(std::string_view bytes) {
    const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    return n > 0 ? static_cast<size_t>(n) : 0;
  }
  // Takes a little of what is there.
  void Drip() {
    char piece[256];
    (void)::recv(fd_, piece, sizeof piece, MSG_DONTWAIT);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  // Whether the server has closed, without taking what it sent before.
  bool IsClosed() {
    pollfd look{fd_, POLLRDHUP, 0};
    return ::poll(&look, 1, 0) == 1;
  }
  // Reads until what was read ends with `end`, the connection's end or 10 s of silence.
  std::string ReadUntil(std::string_view end) {
    std::string got;
    while (!got.ends_with(end) && Take(got)) {
    }
    return got;
  }
  std::string ReadAll() {
    std::string got;
    while (Take(got)) {
    }
    return got;
  }
  bool Take(std::string& got) {
    char piece[65536];
    const ssize_t n = ::recv(fd_, piece, sizeof piece, 0);
    if (n <= 0) return false;
    got.append(piece, static_cast<size_t>(n));
    return true;
  }

 private:
  int fd_;
  bool connected_ = false;
};

class HttpServerTest : public ::testing::Test {
 protected:
  void Listen(HttpHandler handler, HttpServerOptions options = {}) {
    auto server = HttpServer::Listen(std::move(options), thread_.loop(), std::move(handler), log_);
    ASSERT_TRUE(server) << server.error().message;
    server_ = std::move(*server);
  }
  void ListenEcho(HttpServerOptions options = {}) {
    Listen(
        [](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
          responder->Send({.content_type = "text/plain",
                           .body = request.method + " " + request.target + " " + request.body + "|"});
        },
        std::move(options));
  }
  void TearDown() override {
    thread_.Join();
    server_.reset();
  }
  // Answers /honest alone; the others wait until unanswered_ is cleared.
  void ListenUnanswered(HttpServerOptions options) {
    Listen(
        [this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
          if (request.target == "/honest") return responder->Send({.body = "served"});
          unanswered_.push_back(std::move(responder));
          ++busy_;
        },
        std::move(options));
  }
  void OnLoop(const std::function<void()>& task) { RunOn(thread_.loop(), task); }

  base::Log log_{base::LogLevel::kOff, base::LogFormat::kText};
  std::vector<std::shared_ptr<HttpResponder>> unanswered_;  // of the loop
  std::atomic<size_t> busy_{0};                             // how many there were
  LoopThread thread_{"http-test"};
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersWholeAndKeepsTheConnection) {
  Listen([](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    EXPECT_EQ(request.path(), "/a");
    EXPECT_EQ(request.header("x-thing"), "1");
    EXPECT_EQ(request.header("X-Absent"), "");
    EXPECT_THAT(request.local_address, StartsWith("127.0.0.1:"));
    responder->Send(
        {.status = 200, .headers = {{"x-a", "b"}, {"x-bad", "1\r\ninjected: 2"}}, .body = "hello"});
  });
  RawClient client(server_->port());
  for (int i = 0; i < 3; ++i) {
    client.Send("GET /a?b=c HTTP/1.1\r\nHost: x\r\nX-Thing: 1\r\n\r\n");
    const std::string answer = client.ReadUntil("hello");
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-a: b\r\n"));
    EXPECT_THAT(answer, HasSubstr("x-bad: 1  injected: 2\r\n"));
    EXPECT_THAT(answer, HasSubstr("\r\ncontent-length: 5\r\n"));
  }
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrderAlsoWhenTheFirstIsSlow) {
  std::shared_ptr<HttpResponder> first;
  std::promise<void> came;
  Listen([&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    if (request.target == "/1") {
      first = std::move(responder);
      came.set_value();
      return;
    }
    responder->Send({.body = request.target});
  });
  RawClient client(server_->port());
  client.Send(
      "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\nGET /3 HTTP/1.1\r\nHost: "
      "x\r\n\r\n");
  came.get_future().get();
  OnLoop([&] {
    first->Send({.body = "/1"});
    first.reset();
  });
  const std::string all = client.ReadUntil("/3");
  EXPECT_LT(all.find("\r\n\r\n/1"), all.find("\r\n\r\n/2"));
  EXPECT_LT(all.find("\r\n\r\n/2"), all.find("\r\n\r\n/3"));
}

// What comes while a request read ahead is taken out of the buffer must not be looked for where that one was.
TEST_F(HttpServerTest, ReadsOnAfterARequestThatWasReadAhead) {
  std::shared_ptr<HttpResponder> first;
  std::promise<void> came;
  Listen([&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    if (request.target == "/1") {
      first = std::move(responder);
      came.set_value();
      return;
    }
    responder->Send({.body = request.target});
  });
  RawClient client(server_->port());
  client.Send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\n");
  came.get_future().get();
  client.Send("GET /2 HTTP/1.1\r\nHost: x\r\n\r\n");
  for (int turn = 0; turn < 50; ++turn) OnLoop([] {});  // the loop reads it in one of its turns
  OnLoop([&] {
    first->Send({.body = "/1"});
    first.reset();
  });
  client.ReadUntil("\r\n\r\n/2");
  client.Send("GET /3 HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("\r\n\r\n/3"), EndsWith("\r\n\r\n/3"));
}

TEST_F(HttpServerTest, TakesBodiesWithLengthChunkedAndOneByteAtATime) {
  ListenEcho();
  RawClient client(server_->port());
  client.Send("POST /l HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
  EXPECT_THAT(client.ReadUntil("|"), EndsWith("POST /l abc|"));
  client.Send(
      "POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
      "chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("|"), EndsWith("POST /c abcdefg|"));
  const std::string dripped =
      "POST /d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
  for (char c : dripped) client.Send({&c, 1});
  EXPECT_THAT(client.ReadUntil("|"), EndsWith("POST /d hi|"));
  const std::string large(3 << 20, 'z');
  client.Send("POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(large.size()) + "\r\n\r\n" +
              large);
  EXPECT_THAT(client.ReadUntil("|"), EndsWith("zzz|"));
}

TEST_F(HttpServerTest, StreamsEachChunkWhenWritten) {
  std::shared_ptr<HttpResponder> open;
  std::promise<void> came;
  Listen([&](HttpRequest, std::shared_ptr<HttpResponder> responder) {
    EXPECT_TRUE(responder->Start({.content_type = "text/event-stream", .body = "ignored"}));
    open = std::move(responder);
    came.set_value();
  });
  RawClient client(server_->port());
  client.Send("GET /s HTTP/1.1\r\nHost: x\r\n\r\n");
  came.get_future().get();
  const std::string head = client.ReadUntil("\r\n\r\n");
  EXPECT_THAT(head, HasSubstr("transfer-encoding: chunked\r\n"));
  EXPECT_THAT(head, Not(HasSubstr("content-length")));
  OnLoop([&] { EXPECT_TRUE(open->Write("data: one\n\n")); });
  EXPECT_EQ(client.ReadUntil("one\n\n\r\n"), "b\r\ndata: one\n\n\r\n");  // before anything else is written
  OnLoop([&] {
    EXPECT_TRUE(open->Write(""));
    EXPECT_TRUE(open->Write("x"));
    open->End();
    EXPECT_FALSE(open->Write("after the end"));
  });
  EXPECT_EQ(client.ReadUntil("0\r\n\r\n"), "1\r\nx\r\n0\r\n\r\n");
  client.Send("GET /again HTTP/1.1\r\nHost: x\r\n\r\n");
  OnLoop([&] { open.reset(); });
  EXPECT_THAT(client.ReadUntil("\r\n\r\n"), StartsWith("HTTP/1.1 200"));
  OnLoop([&] { open.reset(); });
}

TEST_F(HttpServerTest, TellsWhenTheClientGoesAwayWithNothingBeingWritten) {
  std::shared_ptr<HttpResponder> open;
  std::promise<void> came;
  std::promise<void> gone;
  Listen([&](HttpRequest, std::shared_ptr<HttpResponder> responder) {
    responder->OnGone([&] { gone.set_value(); });
    responder->Start({});
    open = std::move(responder);
    came.set_value();
  });
  RawClient client(server_->port());
  client.Send("GET /s HTTP/1.1\r\nHost: x\r\n\r\n");
  came.get_future().get();
  client.Close();
  EXPECT_EQ(gone.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  OnLoop([&] {
    EXPECT_FALSE(open->Write("x"));
    open->End();
    bool late = false;
    open->OnGone([&late] { late = true; });
    open.reset();
    EXPECT_FALSE(late);  // not inside the call
  });
  OnLoop([] {});
}

TEST_F(HttpServerTest, GoneIsNotToldAfterTheEnd) {
  bool gone = false;
  Listen([&](HttpRequest, std::shared_ptr<HttpResponder> responder) {
    responder->OnGone([&] { gone = true; });
    responder->Send({.body = "done"});
  });
  {
    RawClient client(server_->port());
    client.Send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    EXPECT_THAT(client.ReadAll(), EndsWith("done"));
  }
  OnLoop([] {});
  OnLoop([&] { EXPECT_FALSE(gone); });
}

TEST_F(HttpServerTest, ClosesAClientThatDoesNotReadItsStream) {
  std::promise<size_t> written;
  std::promise<void> gone;
  Listen(
      [&](HttpRequest, std::shared_ptr<HttpResponder> responder) {
        responder->OnGone([&] { gone.set_value(); });
        responder->Start({});
        const std::string chunk(64 << 10, 'x');
        size_t total = 0;
        while (total < (256u << 20) && responder->Write(chunk)) total += chunk.size();
        written.set_value(total);
      },
      {.max_unsent = 1 << 20});
  RawClient client(server_->port(), 16 << 10);
  client.Send("GET /s HTTP/1.1\r\nHost: x\r\n\r\n");
  const size_t total = written.get_future().get();
  EXPECT_GE(total, 1u << 20);
  EXPECT_LT(total, 64u << 20);  // the bound and what the kernel holds
  EXPECT_EQ(gone.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
}

TEST_F(HttpServerTest, SendsLargeAnswersToSlowReaders) {
  const std::string body(8 << 20, 'y');
  Listen(
      [&](HttpRequest, std::shared_ptr<HttpResponder> responder) { responder->Send({.body = body + "|"}); });
  RawClient client(server_->port(), 16 << 10);
  client.Send("GET /s HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_GT(client.ReadUntil("|").size(), body.size());
}

TEST_F(HttpServerTest, HeadGetsLengthAndNoBody) {
  Listen([](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    if (request.target == "/stream") {
      responder->Start({});
      EXPECT_TRUE(responder->Write("not sent"));
      responder->End();
    } else {
      responder->Send({.body = "12345"});
    }
  });
  RawClient client(server_->port());
  client.Send(
      "HEAD / HTTP/1.1\r\nHost: x\r\n\r\nHEAD /stream HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: "
      "x\r\n\r\n");
  const std::string all = client.ReadUntil("12345");
  EXPECT_EQ(all.find("12345"), all.size() - 5);
  EXPECT_EQ(all.find("not sent"), std::string::npos);
  EXPECT_THAT(all, HasSubstr("content-length: 5\r\n\r\nHTTP/1.1"));
}

TEST_F(HttpServerTest, AsksForTheBodyOnExpectContinue) {
  ListenEcho({.max_body = 100});
  RawClient client(server_->port());
  client.Send("POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("ok");
  EXPECT_THAT(client.ReadUntil("|"), EndsWith("POST /e ok|"));
  client.Send("POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: 200\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_THAT(client.ReadAll(), StartsWith("HTTP/1.1 413 "));
}

TEST_F(HttpServerTest, RefusesWhatIsTooLarge) {
  ListenEcho({.max_body = 1000, .max_header = 2000});
  {
    RawClient client(server_->port());
    client.Send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + std::string(1000000, 'x'));
    const std::string answer = client.ReadAll();
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 413 "));
    EXPECT_THAT(answer, HasSubstr("connection: close"));
    EXPECT_THAT(answer, HasSubstr("larger than 1000 bytes"));
  }
  {
    RawClient client(server_->port());
    client.Send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" +
                std::string(2000, 'x'));
    EXPECT_THAT(client.ReadAll(), StartsWith("HTTP/1.1 413 "));
  }
  {
    RawClient client(server_->port());
    client.Send("GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + std::string(5000, 'x') + "\r\n\r\n");
    EXPECT_THAT(client.ReadAll(), StartsWith("HTTP/1.1 431 "));
  }
  {
    RawClient client(server_->port());  // one that never ends its head
    client.Send("GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + std::string(5000, 'x'));
    EXPECT_THAT(client.ReadAll(), StartsWith("HTTP/1.1 431 "));
  }
}

TEST_F(HttpServerTest, AnswersGarbageWith400) {
  ListenEcho();
  const std::string bad[] = {
      "\r\n\r\n\r\n\r\n nonsense\r\n\r\n",
      std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 15),  // TLS on a plain port
      "GET / HTTP/9.9\r\n\r\n",
      "GET / HTTP/1.1\r\nno colon here\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: minus\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
  };
  for (const std::string& bytes : bad) {
    RawClient client(server_->port());
    client.Send(bytes);
    EXPECT_THAT(client.ReadAll(), StartsWith("HTTP/1.1 400 ")) << bytes;
  }
}

TEST_F(HttpServerTest, ServesHttp10) {
  Listen([](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    if (request.target == "/stream") {
      responder->Start({});
      responder->Write("a");
      responder->Write("b");
      responder->End();
    } else {
      responder->Send({.body = "whole|"});
    }
  });
  RawClient kept(server_->port());
  kept.Send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_THAT(kept.ReadUntil("|"), HasSubstr("connection: keep-alive"));
  kept.Send("GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const std::string streamed = kept.ReadAll();
  EXPECT_THAT(streamed, EndsWith("\r\n\r\nab"));
  EXPECT_THAT(streamed, Not(HasSubstr("chunked")));
  RawClient once(server_->port());
  once.Send("GET / HTTP/1.0\r\n\r\n");
  EXPECT_THAT(once.ReadAll(), EndsWith("whole|"));
}

TEST_F(HttpServerTest, AnswersAClientThatShutItsSendingSide) {
  ListenEcho();
  RawClient client(server_->port());
  client.Send("GET /half HTTP/1.1\r\nHost: x\r\n\r\n");
  client.ShutdownSend();
  EXPECT_THAT(client.ReadAll(), EndsWith("GET /half |"));
}

TEST_F(HttpServerTest, HandlerThatThrowsGets500AndOneThatForgetsIsClosed) {
  std::vector<std::string> lines;
  log_ = base::Log(base::LogLevel::kError, base::LogFormat::kText,
                   [&](std::string_view line) { lines.emplace_back(line); });
  Listen([](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    if (request.target == "/throw") throw std::runtime_error("broken");
    if (request.target == "/throw-late") {
      responder->Start({});
      throw 42;
    }
  });
  RawClient client(server_->port());
  client.Send("GET /throw HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("internal error\n"), StartsWith("HTTP/1.1 500 "));
  client.Send("GET /throw-late HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.ReadAll(), Not(HasSubstr("0\r\n\r\n")));  // an aborted stream does not look complete
  RawClient forgotten(server_->port());
  forgotten.Send("GET /forget HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(forgotten.ReadAll(), "");
  OnLoop([&] {
    ASSERT_EQ(lines.size(), 2u);
    EXPECT_THAT(lines[0], HasSubstr("broken"));
  });
}

TEST_F(HttpServerTest, ClosesSilentConnectionsButWaitsForSlowHandlers) {
  std::shared_ptr<HttpResponder> open;
  std::promise<void> came;
  Listen(
      [&](HttpRequest, std::shared_ptr<HttpResponder> responder) {
        open = std::move(responder);
        came.set_value();
      },
      {.idle_timeout = 50 * base::kMillisecond});
  RawClient thinking(server_->port());
  thinking.Send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  came.get_future().get();
  RawClient silent(server_->port());
  EXPECT_EQ(silent.ReadAll(), "");  // returns because the server closed
  RawClient dripping(server_->port());
  std::atomic<bool> closed{false};
  std::thread drip([&] {
    for (int i = 0; i < 5000 && !closed; ++i) {
      dripping.Send(i == 0 ? "GET / HTTP/1.1\r\nX: " : "x");
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  });
  EXPECT_EQ(dripping.ReadAll(), "");
  closed = true;
  drip.join();
  OnLoop([&] {
    open->Send({.body = "late|"});
    open.reset();
  });
  EXPECT_THAT(thinking.ReadUntil("|"), EndsWith("late|"));
}

// A request that is served at once, whatever others do.
void ExpectServed(uint16_t port, const char* from = "127.0.0.1") {
  RawClient honest(port, 0, from);
  honest.Send("GET /honest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(honest.ReadAll(), HasSubstr("200 OK"));
}

bool Await(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

TEST_F(HttpServerTest, TheIdleMakeRoomTheOldestFirst) {
  ListenEcho({.max_connections = 2});
  RawClient first(server_->port());
  first.Send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(first.ReadUntil("|"), EndsWith("/1 |"));
  RawClient second(server_->port());  // says nothing at all
  ASSERT_TRUE(Await([&] { return server_->stats()->accepted == 2; }));
  first.Send("GET /again HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(first.ReadUntil("|"), EndsWith("/again |"));
  RawClient third(server_->port());
  third.Send("GET /3 HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(third.ReadUntil("|"), EndsWith("/3 |"));
  EXPECT_EQ(second.ReadAll(), "");
  RawClient fourth(server_->port());
  fourth.Send("GET /4 HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(fourth.ReadUntil("|"), EndsWith("/4 |"));
  EXPECT_EQ(first.ReadAll(), "");
  EXPECT_EQ(server_->stats()->displaced, 2u);
}

TEST_F(HttpServerTest, WhoIsBusyStaysUnlessItsAddressHasMost) {
  ListenUnanswered({.max_connections = 3});
  std::vector<std::unique_ptr<RawClient>> flood;
  for (size_t i = 0; i < 3; ++i) {
    flood.push_back(std::make_unique<RawClient>(server_->port()));
    flood.back()->Send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
    ASSERT_TRUE(Await([&] { return busy_ == i + 1; }));
  }
  RawClient more(server_->port());  // of the address that has them all
  EXPECT_EQ(more.ReadAll(), "");
  EXPECT_EQ(server_->stats()->refused, 1u);
  ExpectServed(server_->port(), "127.0.0.2");
  EXPECT_EQ(flood[0]->ReadAll(), "");
  EXPECT_FALSE(flood[1]->IsClosed());
  OnLoop([&] { unanswered_.clear(); });
}

// A peer that is heard asks once more, while strangers with one connection each say nothing.
TEST_F(HttpServerTest, WhoIsBusyMayComeAgainBeforeThoseWhoAreIdle) {
  ListenUnanswered({.max_connections = 3});
  RawClient stream(server_->port(), 0, "127.0.0.2");
  stream.Send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
  ASSERT_TRUE(Await([&] { return busy_ == 1; }));
  const RawClient one(server_->port(), 0, "127.0.0.3"), other(server_->port(), 0, "127.0.0.4");
  ASSERT_TRUE(Await([&] { return server_->stats()->accepted == 3; }));
  ExpectServed(server_->port(), "127.0.0.2");
  EXPECT_FALSE(stream.IsClosed());
  EXPECT_EQ(server_->stats()->displaced, 1u);
  OnLoop([&] { unanswered_.clear(); });
}

// Nobody who is answered makes room for strangers with one connection each, of whom others say nothing.
TEST_F(HttpServerTest, WhoIsBusyStaysWhileOthersAreIdle) {
  ListenUnanswered({.max_connections = 3});
  std::vector<std::unique_ptr<RawClient>> streams;
  for (size_t i = 0; i < 2; ++i) {
    streams.push_back(std::make_unique<RawClient>(server_->port(), 0, "127.0.0.2"));
    streams.back()->Send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
    ASSERT_TRUE(Await([&] { return busy_ == i + 1; }));
  }
  RawClient stranger(server_->port(), 0, "127.0.0.3");
  ASSERT_TRUE(Await([&] { return server_->stats()->accepted == 3; }));
  ExpectServed(server_->port(), "127.0.0.4");
  EXPECT_EQ(stranger.ReadAll(), "");
  for (const auto& stream : streams) EXPECT_FALSE(stream->IsClosed());
  OnLoop([&] { unanswered_.clear(); });
}

// Those of whom it is known may be many in one network.
TEST_F(HttpServerTest, AnAddressThatIsKnownHasAShareOfItsOwn) {
  std::vector<std::string> seen;
  ListenUnanswered(
      {.host = "::", .max_connections = 100, .max_of_address = 2, .counts_alone = [&](const std::string& ip) {
         seen.push_back(ip);
         return seen.size() <= 2;
       }});
  std::vector<std::unique_ptr<RawClient>> clients;
  const auto connect = [&] {
    clients.push_back(std::make_unique<RawClient>(server_->port()));
    clients.back()->Send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
    return Await([&] { return busy_ == clients.size(); });
  };
  for (size_t i = 0; i < 4; ++i) ASSERT_TRUE(connect());
  OnLoop([&] { EXPECT_EQ(seen, std::vector<std::string>(4, "::ffff:127.0.0.1")); });
  EXPECT_EQ(server_->stats()->displaced, 0u) << "two as itself, and two as the network's";
  ASSERT_TRUE(connect());
  EXPECT_TRUE(Await([&] { return server_->stats()->displaced == 1; })) << "a third of the network's";
  OnLoop([&] { unanswered_.clear(); });
}

TEST_F(HttpServerTest, AnAddressHasItsShare) {
  ListenUnanswered({.max_connections = 100, .max_of_address = 2});
  std::vector<std::unique_ptr<RawClient>> flood;
  for (size_t i = 0; i < 4; ++i) {
    flood.push_back(std::make_unique<RawClient>(server_->port()));
    flood.back()->Send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
    ASSERT_TRUE(Await([&] { return busy_ == i + 1; }));
  }
  EXPECT_EQ(flood[0]->ReadAll(), "");
  EXPECT_EQ(flood[1]->ReadAll(), "");
  EXPECT_FALSE(flood[2]->IsClosed());
  EXPECT_EQ(server_->stats()->connections, 2u);
  EXPECT_EQ(server_->stats()->displaced, 2u);
  ExpectServed(server_->port(), "127.0.0.2");
  EXPECT_FALSE(flood[2]->IsClosed());
  OnLoop([&] { unanswered_.clear(); });
}

// The answers to requests that are never read must not gather here.
TEST_F(HttpServerTest, TakesNoRequestWhileAnswersAreUnsent) {
  std::atomic<size_t> answered{0};
  static const std::string body(10 << 10, 'p');  // the server outlives this function
  Listen([&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    if (request.target != "/honest") ++answered;
    responder->Send({.body = body});
  });
  RawClient flood(server_->port(), 16 << 10);
  std::string requests;
  while (requests.size() < 1 << 20) requests += "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
  size_t sent = 0;
  for (int turn = 0; turn < 200; ++turn) {
    // Whole requests only: the rest of one is sent next.
    sent += flood.SendWhatGoes(std::string_view(requests).substr(sent % 30));
    if (turn % 20 == 0) ExpectServed(server_->port());
  }
  // Some 30,000 requests for 300 MB. What the kernel takes of the answers is some MB.
  EXPECT_GT(sent, 100u << 10);
  EXPECT_LT(answered * body.size(), 32u << 20);
  ExpectServed(server_->port());
}

TEST_F(HttpServerTest, ARequestHasItsTimeInAll) {
  std::atomic<bool> closed{false};
  ListenEcho({.request_timeout = 200 * base::kMillisecond});
  // Whole lines and pieces of a body, each well within the time that silence has.
  for (const std::string start :
       {"GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n"}) {
    closed = false;
    RawClient dripping(server_->port());
    std::thread drip([&] {
      dripping.Send(start);
      while (!closed) {
        dripping.Send("x: y\r\n");
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
    });
    EXPECT_EQ(dripping.ReadAll(), "") << start;
    closed = true;
    drip.join();
  }
  EXPECT_EQ(server_->stats()->timed_out, 2u);
  ExpectServed(server_->port());
}

TEST_F(HttpServerTest, AnAnswerHasItsTimeHoweverSlowlyItIsRead) {
  const std::string body(16 << 20, 'y');
  Listen(
      [&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
        responder->Send({.body = request.target == "/honest" ? "" : body});
      },
      {.answer_timeout = 300 * base::kMillisecond});
  RawClient slow(server_->port(), 16 << 10);
  slow.Send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  ASSERT_TRUE(Await([&] {
    slow.Drip();  // so that there is always progress
    return server_->stats()->unread == 1;
  }));
  ExpectServed(server_->port());
}

TEST_F(HttpServerTest, UnsentAnswersTogetherHaveABound) {
  const std::string body(6 << 20, 'y');
  Listen(
      [&](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
        responder->Send({.body = request.target == "/honest" ? "" : body});
      },
      {.max_held = 16 << 20});
  std::vector<std::unique_ptr<RawClient>> readers;
  for (int i = 0; i < 12; ++i) {
    readers.push_back(std::make_unique<RawClient>(server_->port(), 16 << 10));
    readers.back()->Send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    ExpectServed(server_->port());
  }
  // Each holds what the kernel did not take of 6 MB, so that some have gone and some are left.
  ASSERT_TRUE(Await([&] { return server_->stats()->unread > 0; }));
  const auto closed = server_->stats()->unread.load();
  EXPECT_LT(closed, readers.size());
  size_t whole = 0;
  for (auto& reader : readers) whole += reader->ReadAll().size() > body.size() ? 1 : 0;
  EXPECT_GE(whole, 2u);
}

TEST_F(HttpServerTest, OnlyGet) {
  ListenEcho({.max_body = 0, .get_only = true});
  for (const char* request : {"POST / HTTP/1.1\r\nHost: x\r\n\r\n", "DELETE /x HTTP/1.1\r\nHost: x\r\n\r\n",
                              "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
                              "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"}) {
    RawClient client(server_->port());
    client.Send(request);
    const std::string answer = client.ReadAll();
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 405 ")) << request;
    EXPECT_THAT(answer, HasSubstr("allow: GET, HEAD\r\n")) << request;
  }
  RawClient body(server_->port());
  body.Send("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n");
  EXPECT_THAT(body.ReadAll(), StartsWith("HTTP/1.1 413 "));
  RawClient head(server_->port());
  head.Send("HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(head.ReadAll(), StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpServerTest, AnswersThatAreMadePieceByPiece) {
  constexpr size_t kPieces = 400;
  std::atomic<size_t> made{0};
  Listen([&](HttpRequest, std::shared_ptr<HttpResponder> responder) {
    made = 0;
    responder->Send({.content_type = "text/plain", .next = [&made] {
                       return made < kPieces ? std::to_string(made++) + std::string(50'000, '.') + "\n" : "";
                     }});
  });
  RawClient client(server_->port(), 64 << 10);
  client.Send("GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /again HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  // As long as the client reads nothing no more is made than the kernel takes.
  ASSERT_TRUE(Await([&] { return made > 0; }));
  for (int turn = 0; turn < 200; ++turn) OnLoop([] {});
  EXPECT_LT(made, kPieces / 2);
  const std::string both = client.ReadAll();
  EXPECT_THAT(both, HasSubstr("transfer-encoding: chunked\r\n"));
  const size_t last = both.find("399....");
  ASSERT_NE(last, std::string::npos);
  EXPECT_NE(both.find("399....", last + 1), std::string::npos);
  RawClient old(server_->port());
  old.Send("GET / HTTP/1.0\r\n\r\n");
  const std::string whole = old.ReadAll();
  EXPECT_THAT(whole, Not(HasSubstr("chunked")));
  EXPECT_THAT(whole, EndsWith(".\n"));
  RawClient head(server_->port());
  head.Send("HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(head.ReadAll(), EndsWith("\r\n\r\n"));
}

TEST_F(HttpServerTest, AnswersAllThatWasSentBeforeTheClientShutItsSendingSide) {
  ListenEcho();
  RawClient client(server_->port());
  std::string requests;
  for (int i = 0; i < 50; ++i) requests += "GET /" + std::to_string(i) + " HTTP/1.1\r\nHost: x\r\n\r\n";
  client.Send(requests);
  client.ShutdownSend();
  EXPECT_THAT(client.ReadAll(), EndsWith("GET /49 |"));
}

// All descriptors of the process, until it goes out of scope.
class Exhausted {
 public:
  explicit Exhausted(int reserve) {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    rlimit low = before_;
    low.rlim_cur = 1024;
    ::setrlimit(RLIMIT_NOFILE, &low);
    for (int fd = 0; (fd = ::dup(STDERR_FILENO)) >= 0;) taken_.push_back(fd);
    for (int i = 0; i < reserve; ++i) {
      ::close(taken_.back());
      taken_.pop_back();
    }
  }
  ~Exhausted() {
    for (const int fd : taken_) ::close(fd);
    ::setrlimit(RLIMIT_NOFILE, &before_);
  }
  Exhausted(const Exhausted&) = delete;
  Exhausted& operator=(const Exhausted&) = delete;

 private:
  rlimit before_{};
  std::vector<int> taken_;
};

TEST_F(HttpServerTest, ServesWhenTheProcessHasNoDescriptorsLeft) {
  ListenEcho({.spare_descriptors = 2});
  const Exhausted exhausted(1);  // for the client's own end
  // More in a row than there are spare ones: each gives its back.
  for (int i = 0; i < 10; ++i) ExpectServed(server_->port());
}

TEST_F(HttpServerTest, CloseFreesThePortAndTellsOpenAnswers) {
  std::shared_ptr<HttpResponder> open;
  std::promise<void> came;
  std::promise<void> gone;
  Listen([&](HttpRequest, std::shared_ptr<HttpResponder> responder) {
    responder->OnGone([&] { gone.set_value(); });
    open = std::move(responder);
    came.set_value();
  });
  const uint16_t port = server_->port();
  RawClient client(port);
  client.Send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  came.get_future().get();
  OnLoop([&] { server_->Close(); });
  gone.get_future().get();
  EXPECT_EQ(client.ReadAll(), "");
  EXPECT_FALSE(RawClient(port).connected());
  OnLoop([&] { server_.reset(); });
  OnLoop([&] { open->Send({.body = "to nobody"}); });  // outlives its server
  auto again = HttpServer::Listen({.port = port}, thread_.loop(), [](HttpRequest, auto) {}, log_);
  ASSERT_TRUE(again) << again.error().message;
  server_ = std::move(*again);
}

TEST_F(HttpServerTest, SaysWhyItCannotListen) {
  ListenEcho();
  const auto taken =
      HttpServer::Listen({.port = server_->port()}, thread_.loop(), [](HttpRequest, auto) {}, log_);
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().message,
            "cannot listen on 127.0.0.1:" + std::to_string(server_->port()) + ": address already in use");
  const auto bad =
      HttpServer::Listen({.host = "no such host"}, thread_.loop(), [](HttpRequest, auto) {}, log_);
  EXPECT_FALSE(bad);
}

}  // namespace
}  // namespace fairway::net
