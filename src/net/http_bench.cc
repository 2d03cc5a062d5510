// HTTP/1.1: reading an answer (own reader beside Beast's), and the CPU of serving a small request.
#include <arpa/inet.h>
#include <benchmark/benchmark.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <future>
#include <string>
#include <vector>

#include "net/http_response.h"
#include "net/http_server.h"

namespace {

namespace http = boost::beast::http;
using fairway::base::Log;
using fairway::base::LogFormat;
using fairway::base::LogLevel;
using namespace fairway::net;

std::string Answer(size_t size) {
  return "HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 20:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: " +
         std::to_string(size) + "\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n\r\n" +
         std::string(size, 'x');
}

void BM_ReadAnswer(benchmark::State& state) {
  const std::string answer = Answer(static_cast<size_t>(state.range(0)));
  HttpResponseReader reader(8 << 20);
  for (auto _ : state) {
    reader.Reset();
    if (reader.Feed(answer) != HttpParse::kDone) state.SkipWithError("not read");
    benchmark::DoNotOptimize(reader.body());
  }
}
BENCHMARK(BM_ReadAnswer)->Arg(2 << 10)->Arg(40 << 10);

void BM_ReadAnswerWithBeast(benchmark::State& state) {
  const std::string answer = Answer(static_cast<size_t>(state.range(0)));
  std::string storage;
  for (auto _ : state) {
    http::response_parser<http::string_body> parser;
    parser.get().body() = std::move(storage);  // reused
    parser.get().body().clear();
    parser.eager(true);
    boost::system::error_code error;
    parser.put(boost::asio::buffer(answer), error);
    if (!parser.is_done()) state.SkipWithError("not read");
    benchmark::DoNotOptimize(parser.get().body().data());
    storage = std::move(parser.get().body());
  }
}
BENCHMARK(BM_ReadAnswerWithBeast)->Arg(2 << 10)->Arg(40 << 10);

// CPU of the server's loop for each of many small requests over 16 kept-alive connections.
void BM_ServeRequest(benchmark::State& state) {
  LoopThread thread("server");
  auto server = HttpServer::Listen(
      {}, thread.loop(),
      [](HttpRequest, std::shared_ptr<HttpResponder> responder) {
        responder->Send({.body = "{\"ok\":true}"});
      },
      Log(LogLevel::kOff, LogFormat::kText));
  if (!server) return state.SkipWithError("cannot listen");
  std::vector<int> clients;
  for (int i = 0; i < 16; ++i) {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons((*server)->port());
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
      state.SkipWithError("cannot connect");
    clients.push_back(fd);
  }
  const auto usage = [&] {
    std::promise<double> told;
    thread.loop().Post([&] {
      rusage now{};
      ::getrusage(RUSAGE_THREAD, &now);
      told.set_value(static_cast<double>(now.ru_utime.tv_sec + now.ru_stime.tv_sec) * 1e6 +
                     static_cast<double>(now.ru_utime.tv_usec + now.ru_stime.tv_usec));
    });
    return told.get_future().get();
  };
  const std::string request =
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
      "2\r\n\r\n{}";
  char answer[4096];
  const double before = usage();
  double requests = 0;
  for (auto _ : state) {
    for (const int fd : clients) (void)!::send(fd, request.data(), request.size(), MSG_NOSIGNAL);
    for (const int fd : clients) {
      if (::recv(fd, answer, sizeof answer, 0) > 0) ++requests;
    }
  }
  state.counters["server_us_per_request"] = (usage() - before) / requests;
  for (const int fd : clients) ::close(fd);
  thread.Join();
}
BENCHMARK(BM_ServeRequest);

}  // namespace
