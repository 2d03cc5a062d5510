#include "net/http_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <random>

#include "net/http_response.h"
#include "net/http_server.h"
#include "net/tls_client.h"
#include "tests/support/raw_tcp_server.h"
#include "tests/support/tls_page_server.h"

namespace fairway::net {
namespace {

using test::RawConnection;
using test::RawTcpServer;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// ---- The reader.

// Each piece lies in a buffer of its own; `piece` keeps the last one, which body() may point into.
HttpParse FeedInPieces(HttpResponseReader& reader, std::string_view bytes, size_t size, std::string& piece) {
  reader.Reset();
  HttpParse parsed = HttpParse::kMore;
  while (!bytes.empty() && parsed == HttpParse::kMore) {
    std::string(bytes.substr(0, size)).swap(piece);
    bytes.remove_prefix(piece.size());
    parsed = reader.Feed(piece);
  }
  return parsed;
}

TEST(HttpResponseReaderTest, GivesTheSameBodyHoweverTheBytesAreCut) {
  const std::pair<std::string, std::string> answers[] = {
      {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
      {"HTTP/1.1 200\r\ncontent-length:5\r\n\r\nhello", "hello"},
      {"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", "hello"},
      {"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n002;a=b\r\nlo\r\n0\r\n\r\n",
       "hello"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\nA \r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n",
       "0123456789"},
      {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""},
  };
  for (const auto& [bytes, body] : answers) {
    for (size_t piece = 1; piece < bytes.size(); ++piece) {
      HttpResponseReader reader(1000);
      std::string last;
      EXPECT_EQ(FeedInPieces(reader, bytes, piece, last), HttpParse::kDone) << bytes << " by " << piece;
      EXPECT_EQ(reader.body(), body);
      EXPECT_TRUE(reader.keep_alive());
      EXPECT_EQ(reader.status(), 200);
    }
    HttpResponseReader reader(1000);
    EXPECT_EQ(reader.Feed(bytes), HttpParse::kDone);
    EXPECT_EQ(reader.body(), body);
  }
}

TEST(HttpResponseReaderTest, GivesABodyAwayPieceByPiece) {
  for (const std::string head :
       {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n0123456789"}) {
    for (size_t size = 1; size <= head.size(); ++size) {
      std::string taken;
      const HttpResponseReader::Piece take = [&](std::string_view piece) {
        taken += piece;
        return true;
      };
      HttpResponseReader reader(10);
      reader.Reset({}, &take);
      HttpParse parsed = HttpParse::kMore;
      for (size_t at = 0; at < head.size(); at += size)
        parsed = reader.Feed(std::string_view(head).substr(at, size));
      if (parsed == HttpParse::kMore) parsed = reader.FeedEnd();
      EXPECT_EQ(parsed, HttpParse::kDone) << reader.error();
      EXPECT_EQ(taken, "0123456789");
      EXPECT_EQ(reader.body(), "");
      HttpResponseReader small(9);
      taken.clear();
      small.Reset({}, &take);
      EXPECT_EQ(small.Feed(head), HttpParse::kBad);
      EXPECT_TRUE(small.too_large());
      EXPECT_LE(taken.size(), 9u);
    }
    HttpResponseReader reader(1000);
    const HttpResponseReader::Piece refuse = [](std::string_view) { return false; };
    reader.Reset({}, &refuse);
    EXPECT_EQ(reader.Feed(head), HttpParse::kBad);
    EXPECT_FALSE(reader.too_large());
  }
}

TEST(HttpResponseReaderTest, RefusesWhatIsNoAnswer) {
  const std::pair<std::string, std::string> bad[] = {
      {"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP/1.1"},
      {"HTTP/2 200\r\n\r\n", "no HTTP/1.1"},
      {"HTTP/1.1 2x0 OK\r\n\r\n", "status line"},
      {"HTTP/1.1 20\r\n\r\n", "status line"},
      {"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "malformed header"},
      {"HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n", "malformed header"},
      {"HTTP/1.1 200 OK\r\n: x\r\n\r\n", "malformed header"},
      {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "content-length"},
      {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "content-length"},
      {"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "content-length"},
      {"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n", "larger than 100"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "transfer-encoding"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "chunks"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", "chunks"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", "chunks"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", "chunks"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n" + std::string(101, 'x') + "\r\n",
       "larger than 100"},
      {"HTTP/1.1 101 Switching\r\n\r\n", "switches"},
      {"HTTP/1.1 200 OK\r\nX: " + std::string(70000, 'x'), "head is too large"},
      {"HTTP/1.1 200 OK\r\n\r\n" + std::string(101, 'x'), "larger than 100"},
  };
  for (const auto& [bytes, why] : bad) {
    HttpResponseReader reader(100);
    EXPECT_EQ(reader.Feed(bytes), HttpParse::kBad) << bytes.substr(0, 80);
    EXPECT_THAT(reader.error(), HasSubstr(why));
    EXPECT_FALSE(reader.keep_alive());
    std::string last;
    EXPECT_EQ(FeedInPieces(reader, bytes, 1, last), HttpParse::kBad) << bytes.substr(0, 80);
  }
}

TEST(HttpResponseReaderTest, SaysWhenTheConnectionCanNotBeKept) {
  const std::pair<std::string, bool> answers[] = {
      {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx", false},
      {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: foo, Close\r\n\r\nx", false},
      {"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", false},
      {"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\nx", true},
      {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxy", false},  // more than was announced
      {"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", true},
      {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false},
  };
  for (const auto& [bytes, kept] : answers) {
    HttpResponseReader reader(100);
    EXPECT_EQ(reader.Feed(bytes), HttpParse::kDone) << bytes;
    EXPECT_EQ(reader.keep_alive(), kept) << bytes;
  }
  HttpResponseReader reader(100);
  EXPECT_EQ(reader.Feed("HTTP/1.1 200 OK\r\n\r\nall"), HttpParse::kMore);
  EXPECT_EQ(reader.FeedEnd(), HttpParse::kDone);
  EXPECT_EQ(reader.body(), "all");
  EXPECT_FALSE(reader.keep_alive());
}

TEST(HttpResponseReaderTest, AHeadThatDripsIsReadOnce) {
  // Read anew with each byte these would take minutes.
  std::string lines = "HTTP/1.1 200 OK\r\nLocation: /x\r\n";
  while (lines.size() < 60'000) lines += "a:b\r\n";
  for (int round = 0; round < 20; ++round) {
    HttpResponseReader reader(100);
    std::string last;
    EXPECT_EQ(FeedInPieces(reader, lines + "Content-Length: 2\r\n\r\nok", 1, last), HttpParse::kDone);
    EXPECT_EQ(reader.body(), "ok");
    EXPECT_EQ(reader.location(), "/x");
  }
  const std::string line = "HTTP/1.1 200 OK\r\na:" + std::string(70'000, 'b');
  HttpResponseReader reader(100);
  std::string last;
  EXPECT_EQ(FeedInPieces(reader, line, 1, last), HttpParse::kBad);
  EXPECT_THAT(reader.error(), HasSubstr("head is too large"));
}

TEST(HttpResponseReaderTest, AnAnswerThatDoesNotBeginIsGivenUp) {
  HttpResponseReader reader(100);
  reader.Reset();
  HttpParse parsed = HttpParse::kMore;
  size_t bytes = 0;
  const std::string interim = "HTTP/1.1 100 Continue\r\nx-a: 1\r\n\r\n";
  for (; parsed == HttpParse::kMore && bytes < 1 << 20; bytes += interim.size())
    parsed = reader.Feed(interim);
  EXPECT_EQ(parsed, HttpParse::kBad);
  EXPECT_LT(bytes, 70'000);
}

TEST(HttpResponseReaderTest, TakesRandomBytes) {
  std::mt19937 random(1);
  const std::string seed =
      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = seed;
    for (int edits = 0; edits < 4; ++edits) bytes[random() % bytes.size()] = static_cast<char>(random());
    HttpResponseReader whole(50);
    HttpResponseReader cut(50);
    const HttpParse a = whole.Feed(bytes);
    std::string last;
    const HttpParse b = FeedInPieces(cut, bytes, 1 + random() % 9, last);
    EXPECT_EQ(a, b) << bytes;
  }
}

// ---- The fetcher.

struct Got {
  bool ok = false;
  int status = 0;
  std::string body;
  std::string error;
  HttpFailure failure = HttpFailure::kNone;
  std::string location;
  bool refused = false;
};

class HttpFetcherTest : public ::testing::Test {
 protected:
  void TearDown() override {
    thread_.Join();
    fetcher_.reset();
    server_.reset();
  }
  void Make(HttpFetchOptions options) {
    OnLoop([&] { fetcher_ = std::make_unique<HttpFetcher>(thread_.loop(), std::move(options)); });
  }
  void Make(uint16_t port, base::Nanos timeout = 10 * base::kSecond) {
    Make({.host = "127.0.0.1", .port = port, .timeout = timeout});
  }
  Got Fetch() {
    std::promise<Got> promise;
    thread_.loop().Post([&] {
      const auto called = std::make_shared<bool>(false);
      fetcher_->Fetch([&, called](const HttpFetcher::Outcome& outcome) {
        *called = true;
        EXPECT_FALSE(fetcher_->busy());
        promise.set_value({outcome.ok, outcome.status, std::string(outcome.body), std::string(outcome.error),
                           outcome.failure, std::string(outcome.location), outcome.refused});
      });
      EXPECT_FALSE(*called);
      EXPECT_TRUE(fetcher_->busy());
    });
    return promise.get_future().get();
  }
  void OnLoop(const std::function<void()>& task) { RunOn(thread_.loop(), task); }
  void Serve(HttpHandler handler, uint16_t port = 0) {
    OnLoop([&] {
      auto server = HttpServer::Listen({.port = port}, thread_.loop(), std::move(handler), log_);
      ASSERT_TRUE(server) << server.error().message;
      server_ = std::move(*server);
    });
  }

  base::Log log_{base::LogLevel::kOff, base::LogFormat::kText};
  LoopThread thread_{"fetch-test"};
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<HttpFetcher> fetcher_;
};

TEST_F(HttpFetcherTest, FetchesOverOneConnection) {
  RawTcpServer server([](RawConnection& connection) {
    for (int i = 0; connection.ReadRequest(); ++i) {
      EXPECT_THAT(connection.request(), StartsWith("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:"));
      const std::string body = "page " + std::to_string(i);
      connection.Send("HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
                      body);
    }
  });
  Make(server.port());
  for (int i = 0; i < 5; ++i) {
    const Got got = Fetch();
    EXPECT_TRUE(got.ok) << got.error;
    EXPECT_EQ(got.status, 200);
    EXPECT_EQ(got.body, "page " + std::to_string(i));
  }
  EXPECT_EQ(server.connections(), 1);
}

TEST_F(HttpFetcherTest, FetchesFromTheServerOfThisRoom) {
  Serve([](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    EXPECT_EQ(request.target, "/m?x=1");
    responder->Start({});
    for (int i = 0; i < 100; ++i) responder->Write(std::string(1000, 'x'));
    responder->End();
  });
  Make({.host = "localhost", .port = server_->port(), .target = "/m?x=1"});
  for (int i = 0; i < 3; ++i) {
    const Got got = Fetch();
    EXPECT_TRUE(got.ok) << got.error;
    EXPECT_EQ(got.body, std::string(100000, 'x'));
  }
}

TEST_F(HttpFetcherTest, FetchesAgainFromWithinDone) {
  Serve([](HttpRequest, std::shared_ptr<HttpResponder> responder) { responder->Send({.body = "page"}); });
  Make(server_->port());
  std::promise<int> done;
  int left = 10;
  HttpFetcher::Done next = [&](const HttpFetcher::Outcome& outcome) {
    ASSERT_TRUE(outcome.ok);
    if (--left == 0) return done.set_value(left);
    fetcher_->Fetch(next);
    EXPECT_EQ(outcome.body, "page");  // still there after the next one began
  };
  thread_.loop().Post([&] { fetcher_->Fetch(next); });
  EXPECT_EQ(done.get_future().get(), 0);
}

TEST_F(HttpFetcherTest, ReadsPagesInManyPieces) {
  const std::string body(300000, 'p');
  RawTcpServer server([&](RawConnection& connection) {
    while (connection.ReadRequest()) {
      const std::string bytes =
          "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
      for (size_t at = 0; at < bytes.size();) {  // the head byte by byte
        const size_t piece = at < 60 ? 1 : 100000;
        connection.Send(std::string_view(bytes).substr(at, piece));
        if (at < 60) std::this_thread::sleep_for(std::chrono::microseconds(200));
        at += piece;
      }
    }
  });
  Make(server.port());
  for (int i = 0; i < 2; ++i) {
    const Got got = Fetch();
    EXPECT_TRUE(got.ok) << got.error;
    EXPECT_EQ(got.body, body);
  }
  EXPECT_EQ(server.connections(), 1);
}

TEST_F(HttpFetcherTest, ReadsToTheEndOfTheConnection) {
  RawTcpServer server([](RawConnection& connection) {
    connection.ReadRequest();
    connection.Send("HTTP/1.0 200 OK\r\n\r\nall of it");
  });
  Make(server.port());
  for (int i = 0; i < 2; ++i) {
    const Got got = Fetch();
    EXPECT_TRUE(got.ok) << got.error;
    EXPECT_EQ(got.body, "all of it");
  }
  EXPECT_EQ(server.connections(), 2);
}

TEST_F(HttpFetcherTest, TriesOnceMoreWhenAKeptConnectionEndsUnanswered) {
  RawTcpServer server([](RawConnection& connection) {
    connection.ReadRequest();
    connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    connection.ReadRequest();  // and ends without an answer
  });
  Make(server.port());
  for (int i = 0; i < 4; ++i) {
    const Got got = Fetch();
    EXPECT_TRUE(got.ok) << got.error;
  }
  EXPECT_EQ(server.connections(), 4);
}

TEST_F(HttpFetcherTest, TriesOnceMoreOnlyOnce) {
  RawTcpServer server([](RawConnection& connection) {
    connection.ReadRequest();
    if (connection.number() > 0) return;
    connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    connection.ReadRequest();
  });
  Make(server.port());
  EXPECT_TRUE(Fetch().ok);
  const Got got = Fetch();
  EXPECT_FALSE(got.ok);
  EXPECT_EQ(got.error, "connection closed without an answer");
  EXPECT_EQ(server.connections(), 2);
}

TEST_F(HttpFetcherTest, SeesTheEndOfAnIdleConnection) {
  std::promise<void> closed;
  RawTcpServer server([&](RawConnection& connection) {
    connection.ReadRequest();
    connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    if (connection.number() == 0) return closed.set_value();
    connection.WaitForEnd();
  });
  Make(server.port());
  EXPECT_TRUE(Fetch().ok);
  closed.get_future().get();
  EXPECT_TRUE(Fetch().ok);
}

TEST_F(HttpFetcherTest, SurvivesARestartOfTheServer) {
  const HttpHandler handler = [](HttpRequest, std::shared_ptr<HttpResponder> responder) {
    responder->Send({.body = "page"});
  };
  Serve(handler);
  const uint16_t port = server_->port();
  Make(port);
  EXPECT_TRUE(Fetch().ok);
  OnLoop([&] { server_.reset(); });
  const Got down = Fetch();
  EXPECT_FALSE(down.ok);
  EXPECT_EQ(down.error, "connection refused");
  EXPECT_EQ(down.status, 0);
  Serve(handler, port);
  EXPECT_TRUE(Fetch().ok);
}

TEST_F(HttpFetcherTest, SaysWhatIsWrongWithTheAnswer) {
  struct Case {
    std::string bytes;
    std::string error;
    HttpFailure failure;
  };
  const Case answers[] = {
      {"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
       "HTTP 302 redirect to /elsewhere is not followed", HttpFailure::kStatus},
      {"HTTP/1.1 500 Internal\r\nContent-Length: 4\r\n\r\noops", "HTTP 500", HttpFailure::kStatus},
      {"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP 404",
       HttpFailure::kStatus},
      {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", "connection closed in the middle of the answer",
       HttpFailure::kClosed},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
       "connection closed in the middle of the answer", HttpFailure::kClosed},
      {"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nzz",
       "content-encoding gzip was not asked for", HttpFailure::kProtocol},
      {"HTTP/1.1 200 OK\r\nContent-Length: 9000000000\r\n\r\n", "page larger than 1000000 bytes",
       HttpFailure::kTooLarge},
      {"HTTP/1.1 200 OK\r\n\r\n" + std::string(1000001, 'x'), "page larger than 1000000 bytes",
       HttpFailure::kTooLarge},
      {"\x15\x03\x01\x00\x02\x02\x50", "the answer is no HTTP/1.1", HttpFailure::kProtocol},
  };
  RawTcpServer server([&](RawConnection& connection) {
    if (connection.ReadRequest()) connection.Send(answers[connection.number()].bytes);
  });
  for (const auto& [bytes, error, failure] : answers) {
    Make({.host = "127.0.0.1", .port = server.port(), .timeout = 10 * base::kSecond, .max_body = 1000000});
    const Got got = Fetch();
    EXPECT_FALSE(got.ok);
    EXPECT_EQ(got.error, error);
    EXPECT_EQ(got.failure, failure) << error;
  }
}

TEST_F(HttpFetcherTest, ReportsAReset) {
  RawTcpServer server([&](RawConnection& connection) {
    connection.ReadRequest();
    connection.ResetOnClose();
  });
  Make(server.port());
  const Got got = Fetch();
  EXPECT_EQ(got.error, "connection reset by peer");
  EXPECT_TRUE(got.refused);
}

TEST_F(HttpFetcherTest, TellsARefusalFromSlownessAndBadAnswers) {
  const uint16_t nobody = RawTcpServer([](RawConnection&) {}).port();
  Make(nobody);
  EXPECT_TRUE(Fetch().refused);
  EXPECT_TRUE(Fetch().refused) << "each time";
  for (const char* answer : {"", "garbage", "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
                             "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"}) {
    RawTcpServer server([answer](RawConnection& connection) {
      connection.ReadRequest();
      connection.Send(answer);
    });
    Make(server.port());
    const Got got = Fetch();
    EXPECT_FALSE(got.ok || got.refused) << got.error;
  }
  RawTcpServer silent([](RawConnection& connection) { connection.WaitForEnd(); });
  Make(silent.port(), 60 * base::kMillisecond);
  EXPECT_FALSE(Fetch().refused);
}

TEST_F(HttpFetcherTest, AsksForAnotherPathWhenTold) {
  RawTcpServer server([](RawConnection& connection) {
    while (connection.ReadRequest()) {
      const bool first = connection.request().starts_with("GET /metrics ");
      connection.Send(first ? "HTTP/1.1 307 X\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n"
                            : "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx");
    }
  });
  Make(server.port());
  const Got got = Fetch();
  EXPECT_EQ(got.location, "/other");
  EXPECT_EQ(got.failure, HttpFailure::kStatus);
  OnLoop([&] { fetcher_->SetTarget("/other"); });
  EXPECT_EQ(Fetch().body, "x");
  EXPECT_EQ(server.connections(), 1);
  OnLoop([&] { fetcher_->SetTarget("no path"); });
  EXPECT_EQ(Fetch().failure, HttpFailure::kOptions);
}

TEST_F(HttpFetcherTest, WhatIsAnsweredBeforeItIsSentIsNotSentOn) {
  std::atomic<int> whole{0};
  std::promise<void> answered;
  RawTcpServer server([&](RawConnection& c) {
    while (c.ReadRequest()) {
      if (c.request().starts_with("GET /next HTTP/1.1\r\n")) ++whole;
      c.Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
      if (c.number() != 0) continue;
      answered.get_future().wait();
      return c.WaitForEnd();  // reads on, and finds no request
    }
  });
  Make(server.port());
  OnLoop([&] { fetcher_->SetPost("/first", std::string(64 << 20, 'x')); });
  EXPECT_EQ(Fetch().body, "ok");
  answered.set_value();
  OnLoop([&] { fetcher_->SetTarget("/next"); });
  EXPECT_EQ(Fetch().body, "ok");
  EXPECT_EQ(whole, 1);
  EXPECT_EQ(server.connections(), 2);
  OnLoop([&] { fetcher_->SetTarget("/next"); });
  EXPECT_EQ(Fetch().body, "ok");
  EXPECT_EQ(server.connections(), 2) << "what was sent is kept alive";
}

TEST_F(HttpFetcherTest, FetchesOverTls) {
  const test::SelfSigned identity("IP:127.0.0.1,DNS:gpu.example"), other("IP:127.0.0.1");
  std::atomic<int> answered{0};
  const std::string large(300'000, 'x');  // more than one record
  const test::TlsPageServer server(identity, [&](const std::string& request) -> std::string {
    EXPECT_THAT(request, StartsWith("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:"));
    const int number = answered++;
    if (number == 3) return "";  // closed while kept: asked again on a fresh connection
    return "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(large.size()) + "\r\n\r\n" + large;
  });
  const auto make = [&](const TlsClientOptions& trust, const std::string& name = "") {
    auto tls = MakeTlsClient(trust);
    ASSERT_TRUE(tls) << tls.error().message;
    Make({.host = "127.0.0.1",
          .port = server.port(),
          .tls = *tls,
          .server_name = name,
          .timeout = 10 * base::kSecond});
  };
  make({.ca_pem = identity.pem()});
  for (int i = 0; i < 6; ++i) {
    const Got got = Fetch();
    EXPECT_TRUE(got.ok) << got.error;
    EXPECT_EQ(got.body, large);
  }
  make({.ca_pem = identity.pem()}, "gpu.example");
  EXPECT_TRUE(Fetch().ok);
  make({.insecure = true});
  EXPECT_TRUE(Fetch().ok);
  for (const auto& [trust, name] : std::vector<std::pair<TlsClientOptions, std::string>>{
           {{.ca_pem = other.pem()}, ""}, {{.ca_pem = identity.pem()}, "elsewhere.example"}}) {
    make(trust, name);
    const Got got = Fetch();
    EXPECT_EQ(got.failure, HttpFailure::kTls);
    EXPECT_THAT(got.error, HasSubstr("the certificate is not accepted"));
    EXPECT_FALSE(got.refused);
  }
}

TEST_F(HttpFetcherTest, TlsThatNeverComesIsGivenUp) {
  auto tls = MakeTlsClient({.insecure = true});
  ASSERT_TRUE(tls);
  const auto make = [&](uint16_t port, base::Nanos timeout) {
    Make({.host = "127.0.0.1", .port = port, .tls = *tls, .timeout = timeout});
  };
  RawTcpServer silent([](RawConnection& connection) { connection.WaitForEnd(); });
  make(silent.port(), 60 * base::kMillisecond);
  EXPECT_EQ(Fetch().error, "timeout while agreeing on TLS");
  RawTcpServer plain([](RawConnection& connection) {
    char byte = 0;
    if (::recv(connection.fd(), &byte, 1, 0) > 0) connection.Send("HTTP/1.1 400 Bad\r\n\r\n");
  });
  make(plain.port(), 10 * base::kSecond);
  EXPECT_EQ(Fetch().failure, HttpFailure::kTls);
  RawTcpServer closing([](RawConnection&) {});
  make(closing.port(), 10 * base::kSecond);
  EXPECT_EQ(Fetch().failure, HttpFailure::kTls);
}

TEST_F(HttpFetcherTest, EndsWhatTakesTooLong) {
  RawTcpServer silent([](RawConnection& connection) { connection.WaitForEnd(); });
  Make(silent.port(), 60 * base::kMillisecond);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(Fetch().error, "timeout while waiting for the answer");
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(60));

  // Whatever it is that drips: each byte is a sign of life, and none is progress.
  const std::pair<std::string, std::string> drips[] = {
      {"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", "x"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"},
      {"HTTP/1.1 200 OK\r\n\r\n", "x"},
      {"HTTP/1.1 200 OK\r\nx-a: ", "x"},
      {"HTTP/1.1 200 OK\r\n", "x-a: x\r\n"},
      {"", "HTTP/1.1 100 Continue\r\n\r\n"}};
  for (const auto& [first, drop] : drips) {
    RawTcpServer drip([&first = first, &drop = drop](RawConnection& connection) {
      connection.ReadRequest();
      connection.Send(first);
      while (connection.Send(drop)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
    Make(drip.port(), 60 * base::kMillisecond);
    EXPECT_EQ(Fetch().error, "timeout while waiting for the answer") << first << drop;
    EXPECT_EQ(Fetch().error, "timeout while waiting for the answer")
        << first << drop;  // and it is usable again
  }
}

TEST_F(HttpFetcherTest, RefusesBadOptions) {
  Make({.host = "127.0.0.1", .port = 1, .target = "no-slash"});
  EXPECT_THAT(Fetch().error, HasSubstr("bad path"));
  Make({.host = "127.0.0.1", .port = 1, .target = "/a\r\nX: 1"});
  EXPECT_THAT(Fetch().error, HasSubstr("bad path"));
  Make({.host = "", .port = 1});
  EXPECT_THAT(Fetch().error, HasSubstr("bad host"));
  Make({.host = "127.0.0.1"});
  EXPECT_THAT(Fetch().error, HasSubstr("bad port"));
  Make({.host = "no-such-host.invalid", .port = 1});
  EXPECT_THAT(Fetch().error, StartsWith("cannot resolve the name"));
}

TEST_F(HttpFetcherTest, MayBeDestroyedAtAnyTime) {
  RawTcpServer server([](RawConnection& connection) {
    while (connection.ReadRequest()) {
      if (connection.number() % 2 == 0) return connection.WaitForEnd();
      connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
  });
  Make(server.port());
  OnLoop([&] {
    fetcher_->Fetch([](const HttpFetcher::Outcome&) { FAIL() << "called after the end"; });
    fetcher_.reset();  // while connecting
  });
  std::promise<void> in_done;
  thread_.loop().Post([&] {
    fetcher_ = std::make_unique<HttpFetcher>(thread_.loop(),
                                             HttpFetchOptions{.host = "127.0.0.1", .port = server.port()});
    fetcher_->Fetch([&](const HttpFetcher::Outcome& outcome) {
      fetcher_.reset();
      EXPECT_FALSE(outcome.ok && outcome.body != "ok");
      in_done.set_value();
    });
  });
  in_done.get_future().get();
  OnLoop([&] {
    fetcher_ = std::make_unique<HttpFetcher>(thread_.loop(),
                                             HttpFetchOptions{.host = "no-such-host.invalid", .port = 1});
    fetcher_->Fetch([](const HttpFetcher::Outcome&) { FAIL() << "called after the end"; });
    fetcher_.reset();  // while resolving
  });
}

TEST_F(HttpFetcherTest, ManyFetchersShareALoop) {
  Serve([](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
    responder->Send({.body = request.target});
  });
  constexpr int kFetchers = 50;
  constexpr int kRounds = 20;
  std::vector<std::unique_ptr<HttpFetcher>> fetchers;
  std::promise<void> done;
  int left = kFetchers * kRounds;
  std::function<void(int)> next = [&](int i) {
    fetchers[static_cast<size_t>(i)]->Fetch([&, i](const HttpFetcher::Outcome& outcome) {
      EXPECT_EQ(outcome.body, "/" + std::to_string(i));
      if (--left == 0) {
        fetchers.clear();
        done.set_value();
      } else if (left >= kFetchers) {
        next(i);
      }
    });
  };
  OnLoop([&] {
    for (int i = 0; i < kFetchers; ++i) {
      fetchers.push_back(std::make_unique<HttpFetcher>(
          thread_.loop(),
          HttpFetchOptions{.host = "127.0.0.1", .port = server_->port(), .target = "/" + std::to_string(i)}));
      next(i);
    }
  });
  EXPECT_EQ(done.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
}

}  // namespace
}  // namespace fairway::net
