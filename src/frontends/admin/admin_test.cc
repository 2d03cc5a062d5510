#include "frontends/admin/admin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <utility>

namespace fairway::admin {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

net::HttpResponse Get(const Content& content, std::string target, std::string method = "GET") {
  net::HttpRequest request;
  request.method = std::move(method);
  request.target = std::move(target);
  return Answer(request, content);
}

TEST(Admin, Pages) {
  base::Registry registry;
  registry.AddCounter({.name = "requests_total", .help = "Requests."}).With({}).Add(3);
  bool ready = false;
  const Content content = {
      .registry = &registry, .ready = [&] { return ready; }, .fleet = [] { return R"({"pools":[]})"; }};

  const auto metrics = Get(content, "/metrics?x=1");
  EXPECT_EQ(metrics.status, 200);
  EXPECT_THAT(metrics.content_type, StartsWith("text/plain; version=0.0.4"));
  EXPECT_THAT(metrics.body, HasSubstr("requests_total 3"));

  EXPECT_EQ(Get(content, "/healthz").status, 200);
  EXPECT_EQ(Get(content, "/readyz").status, 503);
  ready = true;
  EXPECT_EQ(Get(content, "/readyz").status, 200);

  const auto fleet = Get(content, "/debug/fleet");
  EXPECT_EQ(fleet.content_type, "application/json");
  EXPECT_EQ(fleet.body, R"({"pools":[]})");

  EXPECT_EQ(Get(content, "/debug/decisions").status, 404);
  EXPECT_THAT(Get(content, "/debug/decisions").body, HasSubstr("--debug-decisions"));
  const Content keeping = {.registry = &registry, .decisions = [] { return R"({"decisions":[]})"; }};
  EXPECT_EQ(Get(keeping, "/debug/decisions").content_type, "application/json");
  EXPECT_EQ(Get(keeping, "/debug/decisions").body, R"({"decisions":[]})");

  const auto pprof = Get(content, "/debug/pprof/heap");
  EXPECT_EQ(pprof.status, 404);
  EXPECT_THAT(pprof.body, HasSubstr("perf record"));

  EXPECT_EQ(Get(content, "/nothing").status, 404);
  EXPECT_THAT(Get(content, "/nothing").body, HasSubstr("/metrics"));
  EXPECT_EQ(Get(content, "/metrics", "POST").status, 405);
}

TEST(Admin, WithoutCallbacks) {
  base::Registry registry;
  const Content content = {.registry = &registry};
  EXPECT_EQ(Get(content, "/readyz").status, 200);
  EXPECT_EQ(Get(content, "/debug/fleet").status, 404);
}

TEST(Admin, ServesOverHttp) {
  base::Registry registry;
  registry.AddGauge({.name = "answer", .help = "."}).With({}).Set(42);
  net::LoopThread thread("admin-test");
  auto server = AdminServer::Listen({.port = 0}, {.registry = &registry}, thread.loop(), base::Log());
  ASSERT_TRUE(server) << server.error().message;

  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons((*server)->port());
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const std::string request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
  ASSERT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, static_cast<size_t>(n));
  close(fd);
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(answer, HasSubstr("answer 42"));
  thread.Join();
}

TEST(Admin, APortInUseIsAnError) {
  base::Registry registry;
  net::LoopThread thread("admin-test");
  auto first = AdminServer::Listen({.port = 0}, {.registry = &registry}, thread.loop(), base::Log());
  ASSERT_TRUE(first);
  auto second =
      AdminServer::Listen({.port = (*first)->port()}, {.registry = &registry}, thread.loop(), base::Log());
  ASSERT_FALSE(second);
  EXPECT_THAT(second.error().message, HasSubstr(std::to_string((*first)->port())));
  thread.Join();
}

}  // namespace
}  // namespace fairway::admin
