#include "frontends/admin/admin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/prometheus_page.h"

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
  EXPECT_THAT(All(metrics), HasSubstr("requests_total 3"));

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
  EXPECT_EQ(asked[0], "t0ken /metrics fd00::/64");
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

// A connection that has asked for a page.
class Reader {
 public:
  explicit Reader(uint16_t port, const std::string& path = "/metrics", int receive_buffer = 0)
      : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0) setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    const std::string request = "GET " + path + " HTTP/1.0\r\nHost: x\r\n\r\n";
    EXPECT_EQ(write(fd_, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  }
  ~Reader() { close(fd_); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  std::string All() {
    std::string answer;
    char buffer[65536];
    for (ssize_t n; (n = read(fd_, buffer, sizeof(buffer))) > 0;)
      answer.append(buffer, static_cast<size_t>(n));
    return answer;
  }
  std::string Body() {
    const std::string answer = All();
    return answer.substr(std::min(answer.find("\r\n\r\n"), answer.size() - 4) + 4);
  }

 private:
  int fd_;
};

// Waits for it; false after a minute.
bool Await(const std::function<bool()>& condition) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > give_up) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

TEST(Admin, ServesOverHttp) {
  base::Registry registry;
  registry.AddGauge({.name = "answer", .help = "."}).With({}).Set(42);
  net::LoopThread thread("admin-test");
  auto server = AdminServer::Listen({.port = 0}, {.registry = &registry}, thread.loop(), base::Log());
  ASSERT_TRUE(server) << server.error().message;
  const std::string answer = Reader((*server)->port()).All();
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(answer, HasSubstr("answer 42"));
  thread.Join();
}

// What anybody may call a model.
const std::vector<std::string>& HostileNames() {
  static const std::vector<std::string> names{
      "a\xff",     "\xe2\x82",      "a\nb 1\n# TYPE t gauge", "a\"} 7",
      "\\",        "\\n",           std::string("a\0b", 3),   "\r\n\r\nHTTP/1.1 200 OK",
      "0\r\n\r\n", "{le=\"+Inf\"}", std::string(5000, 'x'),   ""};
  return names;
}

// A series for each number below `count`, each counted in `made` when a page takes it.
class ManySeries final : public base::SeriesReader {
 public:
  ManySeries(size_t count, std::atomic<size_t>& made) : count_(count), made_(made) {}
  Step Next(base::Series& out) override {
    if (next_ == count_) return Step::kEnd;
    out.labels = {std::to_string(1'000'000 + next_++), HostileNames()[next_ % HostileNames().size()]};
    out.value = static_cast<double>(next_);
    ++made_;
    return Step::kSeries;
  }

 private:
  const size_t count_;
  std::atomic<size_t>& made_;
  size_t next_ = 0;
};

TEST(Admin, AMetricsPageIsMadeAsItIsRead) {
  constexpr size_t kSeries = 100'000;
  constexpr size_t kIdle =
      5;  // each makes as much of its page as the kernel takes, which takes a while with sanitizers
  std::atomic<size_t> made{0};
  base::Registry registry;
  registry.set_max_page_bytes(1'000'000'000);
  registry.AddComputed({.name = "m_total", .help = "h", .labels = {"number", "model"}},
                       base::MetricType::kCounter,
                       [&] { return std::make_unique<ManySeries>(kSeries, made); });
  net::LoopThread thread("admin-test");
  const auto listen = [&](base::Nanos answer_timeout) {
    return AdminServer::Listen({.port = 0, .answer_timeout = answer_timeout}, {.registry = &registry},
                               thread.loop(), base::Log());
  };
  auto server = listen(300 * base::kSecond);
  ASSERT_TRUE(server) << server.error().message;
  const uint16_t port = (*server)->port();

  std::vector<std::unique_ptr<Reader>> idle;
  for (size_t i = 0; i < kIdle; ++i) idle.push_back(std::make_unique<Reader>(port, "/metrics", 4096));
  // Others are answered beside them.
  EXPECT_THAT(Reader(port, "/healthz").All(), HasSubstr("ok"));
  const tests::PrometheusPage page(Reader(port).Body());
  EXPECT_THAT(page.problems(), testing::IsEmpty());
  EXPECT_EQ(page.ValuesOf("m_total", "number").size(), kSeries);
  EXPECT_EQ(page.Sum("m_total"), kSeries / 2.0 * (kSeries + 1));
  // No more than the kernel took from us for each of those that read nothing: less than half of their pages.
  EXPECT_LT(made - kSeries, kIdle * kSeries / 2);

  // They have a time limit, in which they need not be silent.
  auto hasty = listen(base::kSecond);
  ASSERT_TRUE(hasty) << hasty.error().message;
  for (auto& reader : idle) reader = std::make_unique<Reader>((*hasty)->port(), "/metrics", 4096);
  const auto stats = (*hasty)->stats();
  EXPECT_TRUE(Await([&] { return stats->unread == kIdle; })) << stats->unread;
  EXPECT_EQ(stats->connections, 0u);
  thread.Join();
}

TEST(Admin, AMetricsPageOfAnyReaderIsTheRegistrysOwn) {
  base::Registry registry;
  registry.set_max_page_bytes(300'000);
  auto& seconds = registry.AddHistogram(
      {.name = "s", .help = "h", .labels = {"model"}, .buckets = {1, 2, 3}, .max_series = 5000});
  for (int i = 0; i < 2000; ++i) {
    const std::string& name = HostileNames()[static_cast<size_t>(i) % HostileNames().size()];
    seconds.With({std::to_string(i) + name}).Observe(i);
  }
  const Content content = {.registry = &registry};
  const net::HttpResponse answer = Get(content, "/metrics");
  std::string all;
  for (std::string piece = answer.next(); !piece.empty(); piece = answer.next()) {
    EXPECT_LE(piece.size(), 70u << 10);
    all += piece;
  }
  EXPECT_EQ(answer.next(), "") << "it stays complete";
  EXPECT_EQ(all, registry.Render());
  EXPECT_LE(all.size(), 300'000u);
  const tests::PrometheusPage page(all);
  EXPECT_THAT(page.problems(), testing::IsEmpty());
  EXPECT_GT(*page.Value("fairway_metrics_left_out_series"), 0);
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
