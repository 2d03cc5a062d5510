#include "frontends/admin/admin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

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

Content::Pages Pages(std::vector<std::string> pieces) {
  return [pieces = std::move(pieces), next = size_t{0}]() mutable {
    return next < pieces.size() ? pieces[next++] : "";
  };
}

std::string All(const net::HttpResponse& response) {
  std::string all = response.body;
  for (std::string piece = response.next(); !piece.empty(); piece = response.next()) all += piece;
  return all;
}

TEST(Admin, Pages) {
  base::Registry registry;
  registry.AddCounter({.name = "requests_total", .help = "Requests."}).With({}).Add(3);
  bool ready = false;
  const Content content = {.registry = &registry,
                           .ready = [&] { return ready; },
                           .fleet = [] { return Pages({R"({"pools":)", "[]}"}); }};

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
  EXPECT_EQ(All(fleet), R"({"pools":[]})");

  EXPECT_EQ(Get(content, "/debug/decisions").status, 404);
  EXPECT_THAT(Get(content, "/debug/decisions").body, HasSubstr("--debug-decisions"));
  const Content keeping = {.registry = &registry,
                           .decisions = [](const std::string& id, Content::Format format) {
                             if (id == "none") return Content::Pages();
                             const std::string name = format == Content::Format::kJson       ? "json"
                                                      : format == Content::Format::kText     ? "text"
                                                      : format == Content::Format::kPrefixes ? "prefixes"
                                                                                             : "html";
                             return Pages({name + " of " + id});
                           }};
  EXPECT_EQ(Get(keeping, "/debug/decisions").content_type, "application/json");
  EXPECT_EQ(All(Get(keeping, "/debug/decisions")), "json of ");
  EXPECT_EQ(All(Get(keeping, "/debug/decisions?format=text&request-id=a%2Fb+%zz")), "text of a/b %zz");
  EXPECT_EQ(All(Get(keeping, "/debug/prefix?request-id=r")), "prefixes of r");
  EXPECT_EQ(Get(keeping, "/debug/prefix?request-id=none").status, 404);
  EXPECT_EQ(Get(content, "/debug/prefix").status, 404);
  EXPECT_EQ(Get(keeping, "/debug/decisions?format=html").content_type, "text/html; charset=utf-8");
  EXPECT_EQ(Get(keeping, "/debug/decisions?format=pdf").status, 400);
  EXPECT_EQ(Get(keeping, "/debug/decisions?request-id=none").status, 404);
  net::HttpRequest browser{.method = "GET", .target = "/debug/decisions"};
  browser.headers.emplace_back("Accept", "text/html,*/*");
  EXPECT_EQ(All(Answer(browser, keeping)), "html of ");

  const auto pprof = Get(content, "/debug/pprof/heap");
  EXPECT_EQ(pprof.status, 404);
  EXPECT_THAT(pprof.body, HasSubstr("perf record"));

  EXPECT_EQ(Get(content, "/nothing").status, 404);
  EXPECT_THAT(Get(content, "/nothing").body, HasSubstr("/metrics"));
  EXPECT_EQ(Get(content, "/metrics", "POST").status, 405);
}

// Keeps what was sent.
struct Kept final : net::HttpResponder {
  void Send(net::HttpResponse response) override { sent.push_back(std::move(response)); }
  bool Start(net::HttpResponse) override { return false; }
  bool Write(std::string_view) override { return false; }
  void End() override {}
  void OnGone(std::function<void()>) override {}
  std::vector<net::HttpResponse> sent;
};

TEST(Admin, WhoComesFromElsewhereIsAskedForAToken) {
  base::Registry registry;
  std::vector<std::string> asked;
  Content::Allowed later;
  const auto content = std::make_shared<const Content>(
      Content{.registry = &registry,
              .authorize = [&](const std::string& token, const std::string& path, const std::string& from,
                               Content::Allowed done) {
                asked.push_back(token + " " + path + " " + from);
                later = std::move(done);
              }});
  const auto serve = [&](std::string target, std::string address, std::string authorization) {
    net::HttpRequest request{.method = "GET",
                             .target = std::move(target),
                             .local_address = "127.0.0.1:9090",
                             .peer_address = std::move(address)};
    if (!authorization.empty() && authorization.find(": ") != std::string::npos) {
      const size_t colon = authorization.find(": ");
      request.headers.emplace_back(authorization.substr(0, colon), authorization.substr(colon + 2));
    } else if (!authorization.empty())
      request.headers.emplace_back("Authorization", std::move(authorization));
    auto responder = std::make_shared<Kept>();
    Serve(request, responder, content);
    return responder;
  };

  // Without a token: nobody is asked.
  for (const char* no_token : {"", "Bearer", "Bearer ", "Basic dTpw", "Bearerx y"}) {
    const auto refused = serve("/metrics", "10.0.0.1:4000", no_token);
    ASSERT_EQ(refused->sent.size(), 1u) << no_token;
    EXPECT_EQ(refused->sent[0].status, 401);
    EXPECT_EQ(refused->sent[0].headers.at(0).first, "www-authenticate");
  }
  EXPECT_TRUE(asked.empty());

  for (const int status : {200, 401, 403, 503}) {
    const auto waiting = serve("/metrics?x=1", "[fd00::1]:9090", "bearer  t0ken ");
    EXPECT_TRUE(waiting->sent.empty());
    later(status);
    ASSERT_EQ(waiting->sent.size(), 1u);
    EXPECT_EQ(waiting->sent[0].status, status);
  }
  EXPECT_EQ(asked.size(), 4u);
  EXPECT_EQ(asked[0], "t0ken /metrics fd00::1");
  serve("/debug/fleet", "10.0.0.1:4000", "Bearer t");
  EXPECT_EQ(asked.back(), "t /debug/fleet 10.0.0.1");

  // Who is inside already, and health: not asked.
  for (const char* address : {"127.0.0.1:4000", "[::1]:4000", "[::ffff:127.0.0.1]:4000"})
    EXPECT_EQ(serve("/metrics", address, "")->sent.at(0).status, 200) << address;
  // A mesh's sidecar connects from inside for somebody outside.
  EXPECT_EQ(serve("/metrics", "127.0.0.6:4000", "")->sent.at(0).status, 401);
  for (const char* header : {"X-Forwarded-For: 10.0.0.9", "forwarded: for=10.0.0.9", "l5d-client-id: x",
                             "x-envoy-external-address: 10.0.0.9"})
    EXPECT_EQ(serve("/metrics", "127.0.0.1:4000", header)->sent.at(0).status, 401) << header;
  for (const char* path : {"/healthz", "/livez", "/readyz"})
    EXPECT_EQ(serve(path, "10.0.0.1:4000", "")->sent.at(0).status, 200) << path;
  EXPECT_EQ(asked.size(), 5u);
}

// DNS rebinding: a page of evil.example makes its own name lead to us; its script's requests come from this
// machine's browser.
TEST(Admin, WhoNeedsNoTokenMustKnowWhoWeAre) {
  base::Registry registry;
  const auto content = std::make_shared<const Content>(Content{.registry = &registry});
  const auto status = [&](std::string host, std::string target, const std::vector<std::string>& hosts) {
    net::HttpRequest request{.method = "GET", .target = std::move(target), .peer_address = "127.0.0.1:4000"};
    if (!host.empty()) request.headers.emplace_back("Host", std::move(host));
    auto responder = std::make_shared<Kept>();
    Serve(request, responder, content, hosts);
    return responder->sent.at(0).status;
  };
  for (const char* host :
       {"127.0.0.1:9090", "[::1]:9090", "10.1.2.3:9090", "localhost", "LOCALHOST:9090", "a.localhost",
        "picker", "picker.ns.svc:9090", "picker.ns.svc.cluster.local.:9090", ""})
    EXPECT_EQ(status(host, "/metrics", {}), 200) << host;
  for (const char* host : {"evil.example", "evil.example:9090", "127.0.0.1.evil.example", "svc.evil.example",
                           "localhost.evil.example:9090", "evil.localhost.example"}) {
    for (const char* page : {"/metrics", "/debug/fleet", "/"}) EXPECT_EQ(status(host, page, {}), 421) << host;
    EXPECT_EQ(status(host, "/healthz", {}), 200);
  }
  EXPECT_EQ(status("Picker.Example.com:9090", "/metrics", {"picker.example.com"}), 200);
  EXPECT_EQ(status("evil.example", "/metrics", {"picker.example.com"}), 421);
  EXPECT_EQ(status("evil.example", "/metrics", {"*"}), 200);
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
