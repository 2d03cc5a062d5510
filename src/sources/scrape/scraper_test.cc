#include "sources/scrape/scraper.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <future>
#include <mutex>
#include <set>
#include <thread>

#include "net/http_server.h"
#include "net/loop.h"
#include "tests/support/raw_tcp_server.h"
#include "tests/support/tls_page_server.h"

namespace fairway::sources::scrape {
namespace {

using test::RawConnection;
using test::RawTcpServer;
using ::testing::HasSubstr;
using ::testing::Not;

std::string Page(int waiting, int running = 0, double kv = 0, const std::string& rest = "") {
  return "vllm:num_requests_waiting{engine=\"0\"} " + std::to_string(waiting) +
         "\nvllm:num_requests_running{engine=\"0\"} " + std::to_string(running) +
         "\nvllm:kv_cache_usage_perc{engine=\"0\"} " + std::to_string(kv) + "\n" + rest;
}

std::string Lora(const std::string& running, const std::string& waiting = "", int max = 4, int at = 1) {
  return "vllm:lora_requests_info{max_lora=\"" + std::to_string(max) + "\",running_lora_adapters=\"" +
         running + "\",waiting_lora_adapters=\"" + waiting + "\"} " + std::to_string(at) + "\n";
}

std::string Answer(const std::string& body) {
  return "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

// Answers by path; counts what was asked for. Paths that are not there are 404.
class PagesByPath {
 public:
  explicit PagesByPath(std::map<std::string, std::string> answers)
      : answers_(std::move(answers)), server_([this](RawConnection& connection) {
          while (connection.ReadRequest()) {
            if (!connection.Send(AnswerTo(connection.request()))) return;
          }
        }) {}
  std::string AnswerTo(const std::string& request) {
    const size_t begin = request.find(' ') + 1;
    const std::string path = request.substr(begin, request.find(' ', begin) - begin);
    std::lock_guard lock(mutex_);
    ++asked_[path];
    const auto found = answers_.find(path);
    return found == answers_.end() ? "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n" : found->second;
  }
  void Set(const std::string& path, const std::string& answer) {
    std::lock_guard lock(mutex_);
    answers_[path] = answer;
  }
  int asked(const std::string& path) {
    std::lock_guard lock(mutex_);
    return asked_[path];
  }
  uint16_t port() const { return server_.port(); }

 private:
  std::mutex mutex_;
  std::map<std::string, std::string> answers_;
  std::map<std::string, int> asked_;
  RawTcpServer server_;
};

// A control loop with a fleet of one pool "default/pool", and a page server on another loop.
class ScraperTest : public ::testing::Test {
 protected:
  ScraperTest() {
    api::InferencePool pool;
    pool.meta.name = "pool";
    pool.selector = {{"app", "vllm"}};
    manifests_.pools.push_back(pool);
  }
  void TearDown() override {
    control_.Join();
    scraper_.reset();
    server_loop_.Join();
    server_.reset();
  }

  void OnControl(const std::function<void()>& task) { RunOn(control_.loop(), task); }
  static void RunOn(net::Loop& loop, const std::function<void()>& task) {
    std::promise<void> done;
    loop.Post([&] {
      task();
      done.set_value();
    });
    done.get_future().get();
  }
  // Asks on the control loop until it is so, at most 20 s.
  bool Await(const std::function<bool()>& condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < end) {
      bool so = false;
      OnControl([&] { so = condition(); });
      if (so) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }

  // Serves page_ on every loopback address; as an SGLang that has no /v1/loads yet.
  void Serve(uint16_t port = 0) {
    RunOn(server_loop_.loop(), [&] {
      auto server = net::HttpServer::Listen(
          {.host = "0.0.0.0", .port = port}, server_loop_.loop(),
          [this](net::HttpRequest request, std::shared_ptr<net::HttpResponder> responder) {
            if (request.target == "/v1/loads") return responder->Send({.status = 404});
            EXPECT_EQ(request.target, "/metrics");
            ++requests_;
            std::lock_guard lock(mutex_);
            clients_.insert(request.local_address);
            responder->Send({.content_type = "text/plain", .body = page_});
          },
          quiet_);
      ASSERT_TRUE(server) << server.error().message;
      server_ = std::move(*server);
    });
  }
  void SetPage(std::string page) {
    std::lock_guard lock(mutex_);
    page_ = std::move(page);
  }

  void AddEndpoint(uint16_t port, std::map<std::string, std::string> labels = {},
                   const std::string& address = "127.0.0.1", uint16_t metrics_port = 0) {
    api::Endpoint endpoint;
    endpoint.name = "e" + std::to_string(manifests_.endpoints.size());
    endpoint.address = address;
    endpoint.port = port;
    endpoint.metrics_port = metrics_port;
    endpoint.labels = std::move(labels);
    endpoint.labels["app"] = "vllm";
    manifests_.endpoints.push_back(endpoint);
  }
  void Apply() {
    OnControl([&] { fleet_.Apply(manifests_, {}); });
  }
  void Start(ScraperOptions options = {.interval = 2 * base::kMillisecond}) {
    OnControl([&] {
      fleet_.Apply(manifests_, {});
      auto scraper = Scraper::Create(std::move(options), control_.loop(), fleet_, clock_, log_, registry_);
      ASSERT_TRUE(scraper) << scraper.error().message;
      scraper_ = std::move(*scraper);
    });
  }
  std::shared_ptr<fleet::EndpointCell> Cell(size_t i = 0) {
    return fleet_.published().Load()->pools.at("default/pool")->endpoints[i].cell;
  }
  uint32_t Adapter(const std::string& name) {
    return fleet_.published().Load()->pools.at("default/pool")->AdapterId(name);
  }
  bool HasMetric(const std::string& line) { return registry_.Render().find(line) != std::string::npos; }
  std::vector<std::string> Lines() {
    std::lock_guard lock(mutex_);
    return lines_;
  }
  size_t CountLines(const std::string& part) {
    size_t n = 0;
    for (const std::string& line : Lines()) n += line.find(part) != std::string::npos ? 1 : 0;
    return n;
  }

  std::mutex mutex_;
  std::string page_;                // guarded by mutex_
  std::set<std::string> clients_;   // guarded by mutex_
  std::vector<std::string> lines_;  // guarded by mutex_
  std::atomic<int> requests_{0};
  base::Log quiet_{base::LogLevel::kOff, base::LogFormat::kText};
  base::Log log_{base::LogLevel::kInfo, base::LogFormat::kText, [this](std::string_view line) {
                   std::lock_guard lock(mutex_);
                   lines_.emplace_back(line);
                 }};
  base::Registry registry_;
  base::SystemClock clock_;
  api::Manifests manifests_;
  fleet::Fleet fleet_;
  net::LoopThread server_loop_{"pages"};
  std::unique_ptr<net::HttpServer> server_;
  net::LoopThread control_{"control"};
  std::unique_ptr<Scraper> scraper_;
};

TEST_F(ScraperTest, KeepsTheCellsUpToDate) {
  SetPage(Page(3, 7, 0.5, "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"100\"} 1\n"));
  Serve();
  AddEndpoint(server_->port());
  Start();
  ASSERT_TRUE(Await([&] { return Cell()->scraped_at() != 0; }));
  EXPECT_EQ(Cell()->waiting(), 3u);
  EXPECT_EQ(Cell()->running(), 7u);
  EXPECT_FLOAT_EQ(Cell()->kv_usage(), 0.5f);
  EXPECT_EQ(Cell()->block_size(), 16u);
  EXPECT_EQ(Cell()->num_blocks(), 100u);
  SetPage(Page(4));
  ASSERT_TRUE(Await([&] { return Cell()->waiting() == 4; }));
  EXPECT_EQ(Cell()->running(), 0u);
  EXPECT_EQ(Cell()->block_size(), 16u);  // not on the page: kept
  EXPECT_TRUE(HasMetric("fairway_scrape_failing_endpoints{pool=\"default/pool\"} 0\n"));
  EXPECT_TRUE(HasMetric("fairway_unscraped_endpoints{pool=\"default/pool\"} 0\n"));
  EXPECT_FALSE(HasMetric("fairway_scrapes_total{pool=\"default/pool\"} 0\n"));
  EXPECT_EQ(Lines().size(), 0u);
}

TEST_F(ScraperTest, ReadsOthersBesideOurOwnRequests) {
  SetPage(Page(5));
  Serve();
  AddEndpoint(server_->port());
  Start();
  ASSERT_TRUE(Await([&] { return Cell()->scraped_at() != 0; }));
  EXPECT_EQ(Cell()->others(), 5u);
  Cell()->Reserve(100, 1);  // long ago, so all that they can be on the page
  Cell()->Reserve(100, 1);
  EXPECT_TRUE(Await([&] { return Cell()->others() == 3; }));
  EXPECT_EQ(Cell()->own(), 2u);
}

TEST_F(ScraperTest, KeepsReservationsWhilePagesFail) {
  RawTcpServer server([](RawConnection& connection) {
    while (connection.ReadRequest()) {
      if (!connection.Send("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")) return;
    }
  });
  AddEndpoint(server.port());
  Start();
  Cell()->Reserve(100, 1);
  ASSERT_TRUE(Await([&] {
    return HasMetric("kind=\"status\",pool=\"default/pool\"} 1") ||
           HasMetric("fairway_scrape_errors_total{pool=\"default/pool\",kind=\"status\"} 1");
  }));
  EXPECT_EQ(Cell()->own(), 1u);
  EXPECT_EQ(Cell()->scraped_at(), 0);
}

TEST_F(ScraperTest, FollowsLoraResidency) {
  SetPage(Page(0, 0, 0, Lora("a,b", "c", 4)));
  Serve();
  AddEndpoint(server_->port());
  Start();
  ASSERT_TRUE(Await([&] { return Cell()->scraped_at() != 0; }));
  EXPECT_TRUE(Cell()->adapter_running(Adapter("a")));
  EXPECT_TRUE(Cell()->adapter_running(Adapter("b")));
  EXPECT_FALSE(Cell()->adapter_running(Adapter("c")));
  EXPECT_TRUE(Cell()->adapter_waiting(Adapter("c")));
  EXPECT_EQ(Cell()->lora_used(), 3u);
  EXPECT_EQ(Cell()->lora_max(), 4u);
  EXPECT_TRUE(Cell()->lora_has_room());

  SetPage(Page(1, 0, 0, Lora("old", "", 4, 1) + Lora("b,c,d,e,e", "", 4, 2)));
  ASSERT_TRUE(Await([&] { return Cell()->waiting() == 1 && Cell()->adapter_running(Adapter("e")); }));
  EXPECT_FALSE(Cell()->adapter_running(Adapter("a")));
  EXPECT_EQ(Cell()->lora_used(), 4u);
  EXPECT_FALSE(Cell()->lora_has_room());

  SetPage(Page(2));  // restarted, nothing loaded yet
  ASSERT_TRUE(Await([&] { return Cell()->waiting() == 2; }));
  EXPECT_FALSE(Cell()->adapter_running(Adapter("e")));
  EXPECT_EQ(Cell()->lora_used(), 0u);
  EXPECT_EQ(Cell()->lora_max(), 4u);
}

// Until a name is known, the adapter's requests go where it is not.
TEST_F(ScraperTest, NamesOfAllFirstPagesAreKnownBeforeTheNextOnes) {
  std::vector<std::unique_ptr<PagesByPath>> servers;
  for (const char* adapter : {"a", "b", "c"}) {
    servers.push_back(std::make_unique<PagesByPath>(
        std::map<std::string, std::string>{{"/metrics", Answer(Page(0, 0, 0, Lora(adapter)))}}));
    AddEndpoint(servers.back()->port());
  }
  Start({.interval = 3600 * base::kSecond});
  EXPECT_TRUE(Await([&] {
    return Cell(0)->adapter_running(Adapter("a")) && Cell(1)->adapter_running(Adapter("b")) &&
           Cell(2)->adapter_running(Adapter("c"));
  }));
}

TEST_F(ScraperTest, BoundsTheAdaptersThatPagesCanInvent) {
  std::string names;
  for (int i = 0; i < 3000; ++i) names += "adapter-" + std::to_string(i) + ",";
  SetPage(Page(1, 0, 0, Lora(names, "", 9)));
  Serve();
  AddEndpoint(server_->port());
  Start();
  ASSERT_TRUE(Await([&] { return fleet_.adapter_overflow() > 0; }));
  EXPECT_EQ(Cell()->lora_used(), 3000u);
  EXPECT_FALSE(Cell()->lora_has_room());
  const int before = requests_;
  uint64_t overflow = 0;
  OnControl([&] { overflow = fleet_.adapter_overflow(); });
  ASSERT_TRUE(Await([&] { return requests_ > before + 20; }));
  OnControl([&] { EXPECT_LE(fleet_.adapter_overflow(), overflow + 1); });  // asks again after a pause only
}

TEST_F(ScraperTest, StaysUsableAndSaysSoOnceWhenAPageFailsAndOnceWhenItIsBack) {
  SetPage(Page(5, 0, 0.25));
  Serve();
  const uint16_t port = server_->port();
  AddEndpoint(port);
  Start();
  ASSERT_TRUE(Await([&] { return Cell()->waiting() == 5; }));
  RunOn(server_loop_.loop(), [&] { server_.reset(); });
  ASSERT_TRUE(
      Await([&] { return HasMetric("fairway_scrape_failing_endpoints{pool=\"default/pool\"} 1\n"); }));
  const base::Nanos last = Cell()->scraped_at();
  ASSERT_TRUE(Await([&] { return clock_.Now() > last + 100 * base::kMillisecond; }));
  EXPECT_EQ(Cell()->waiting(), 5u);
  EXPECT_FLOAT_EQ(Cell()->kv_usage(), 0.25f);
  EXPECT_EQ(fleet_.published().Load()->pools.at("default/pool")->endpoints.size(), 1u);
  const std::string page = registry_.Render();
  const size_t at = page.find("fairway_scrape_age_seconds{pool=\"default/pool\"} ");
  ASSERT_NE(at, std::string::npos);
  EXPECT_GE(std::stod(page.substr(page.find(' ', at))), 0.1);
  EXPECT_EQ(CountLines("metrics page failed"), 1u);
  EXPECT_EQ(CountLines("http://127.0.0.1:" + std::to_string(port) + "/metrics"), 1u);
  SetPage(Page(6));
  Serve(port);
  ASSERT_TRUE(Await([&] { return Cell()->waiting() == 6; }));
  EXPECT_EQ(CountLines("metrics page is back"), 1u);
  EXPECT_EQ(Lines().size(), 2u);
  EXPECT_TRUE(HasMetric("fairway_scrape_failing_endpoints{pool=\"default/pool\"} 0\n"));
}

TEST_F(ScraperTest, ARefusedConnectionIsKnownUntilTheNextAnswer) {
  auto up = std::make_unique<PagesByPath>(std::map<std::string, std::string>{{"/metrics", Answer(Page(1))}});
  const uint16_t port = up->port();
  const uint16_t nobody = RawTcpServer([](RawConnection&) {}).port();
  RawTcpServer slow([](RawConnection& connection) { connection.WaitForEnd(); });
  RawTcpServer closing([](RawConnection&) {});
  AddEndpoint(port);
  AddEndpoint(port, {}, "127.0.0.2", nobody);  // requests go elsewhere than pages, and may well be taken
  manifests_.endpoints.back().address = "127.0.0.1";
  manifests_.endpoints.back().port = 1;
  AddEndpoint(slow.port());
  AddEndpoint(closing.port());
  Start({.interval = 2 * base::kMillisecond, .timeout = 60 * base::kMillisecond});
  ASSERT_TRUE(Await([&] {
    return Cell(0)->waiting() == 1 && CountLines("kind=connect") >= 1 && CountLines("kind=timeout") >= 1;
  }));
  for (size_t i = 0; i < 3; ++i) EXPECT_FALSE(Cell(i)->refusing()) << i;
  up.reset();
  ASSERT_TRUE(Await([&] { return Cell(0)->refusing(); }));
  EXPECT_TRUE(HasMetric("fairway_refusing_endpoints{pool=\"default/pool\"} "));
  {
    RawTcpServer hung([](RawConnection& connection) { connection.WaitForEnd(); }, port);
    ASSERT_TRUE(Await([&] { return hung.connections() > 2; }));
    EXPECT_TRUE(Cell(0)->refusing()) << "silence is no success";
  }
  RawTcpServer back(
      [](RawConnection& connection) {
        while (connection.ReadRequest()) connection.Send("HTTP/1.1 503 Loading\r\nContent-Length: 0\r\n\r\n");
      },
      port);
  EXPECT_TRUE(Await([&] { return !Cell(0)->refusing(); })) << "it answers";
}

TEST_F(ScraperTest, AGoodPageOfTheSamePortEndsWhatAnswersSaid) {
  SetPage(Page(1));
  Serve();
  RawTcpServer silent([](RawConnection& connection) { connection.WaitForEnd(); });
  AddEndpoint(server_->port());
  AddEndpoint(1, {}, "127.0.0.1", server_->port());  // another port: of that the page says nothing
  AddEndpoint(silent.port());
  Start();
  const auto refuse = [&] {
    for (size_t i = 0; i < 3; ++i) {
      for (int n = 0; n < 3; ++n) Cell(i)->NoteUnavailable(clock_.Now());
    }
  };
  OnControl(refuse);
  ASSERT_TRUE(Await([&] { return !Cell(0)->refusing(); }));
  const int pages = requests_;
  ASSERT_TRUE(Await([&] { return requests_ > pages + 4; }));
  EXPECT_TRUE(Cell(1)->refusing());
  EXPECT_TRUE(Cell(2)->refusing());
}

TEST_F(ScraperTest, ModelsThatPagesNameAreKnown) {
  const auto page = [](const std::string& model) {
    return "vllm:num_requests_waiting{engine=\"0\",model_name=\"" + model + "\"} 1\n";
  };
  const auto knows = [this](const std::string& model) {
    return fleet_.published().Load()->pools.at("default/pool")->Knows(model);
  };
  SetPage(page("org/llama"));
  Serve();
  AddEndpoint(server_->port());
  Start();
  ASSERT_TRUE(Await([&] { return knows("org/llama"); }));
  const uint64_t version = fleet_.published().version();
  const int pages = requests_;
  ASSERT_TRUE(Await([&] { return requests_ > pages + 4; }));
  EXPECT_EQ(fleet_.published().version(), version) << "nothing new";
  SetPage(page("org/other"));
  ASSERT_TRUE(Await([&] { return knows("org/other"); }));
  EXPECT_FALSE(knows("org/llama"));
  // A page that fails says nothing; a server that is gone serves nothing.
  SetPage("nothing");
  ASSERT_TRUE(Await([&] { return CountLines("metrics page failed") > 0; }));
  EXPECT_TRUE(knows("org/other"));
  manifests_.endpoints.clear();
  AddEndpoint(1);
  Apply();
  EXPECT_TRUE(Await([&] { return !knows("org/other"); }));
}

TEST_F(ScraperTest, WhatAGoodPageDoesNotSayIsUnknownAndNotZero) {
  SetPage(Page(40, 64, 0.97));
  Serve();
  AddEndpoint(server_->port());
  Start();
  ASSERT_TRUE(Await([&] { return Cell()->waiting() == 40; }));
  EXPECT_NE(Cell()->load().requests().page, 0u);
  EXPECT_FLOAT_EQ(Cell()->load().last().kv_usage, 0.97f);
  SetPage("vllm:num_requests_waiting NaN\nvllm:num_requests_running 5\n");
  ASSERT_TRUE(Await([&] { return Cell()->running() == 5; }));
  EXPECT_EQ(Cell()->load().requests().page, 0u) << "as loaded as the others";
  EXPECT_LT(Cell()->load().last().kv_usage, 0) << "as full as the others";
  EXPECT_EQ(Cell()->kv_usage(), 0.0f);
  SetPage(Page(3, 2, 0.5));
  ASSERT_TRUE(Await([&] { return Cell()->waiting() == 3; }));
  EXPECT_NE(Cell()->load().requests().page, 0u);
  EXPECT_FLOAT_EQ(Cell()->kv_usage(), 0.5f);
}

TEST_F(ScraperTest, CountsEachKindOfFailure) {
  struct Case {
    std::string kind;
    std::string error;
    RawTcpServer::Script script;
  };
  const auto answer = [](const std::string& bytes) {
    return [bytes](RawConnection& connection) {
      if (connection.ReadRequest()) connection.Send(bytes);
    };
  };
  const Case cases[] = {
      {"timeout", "timeout while waiting", [](RawConnection& connection) { connection.WaitForEnd(); }},
      {"timeout", "timeout while waiting",
       [](RawConnection& connection) {
         connection.ReadRequest();
         connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n");
         while (connection.Send("v")) std::this_thread::sleep_for(std::chrono::milliseconds(1));
       }},
      {"protocol", "no HTTP/1.1", answer("garbage garbage garbage")},
      {"status", "HTTP 302 redirect to /x is not followed",
       answer("HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n")},
      {"status", "HTTP 500", answer("HTTP/1.1 500 Internal\r\nContent-Length: 0\r\n\r\n")},
      {"too_large", "page larger than 20000 bytes", answer(Answer(std::string(30000, 'x')))},
      {"closed", "in the middle of the answer", answer(Answer(Page(1)).substr(0, 60))},
      {"content", "no metrics of engine vllm", answer(Answer("process_cpu_seconds_total 5\n"))},
      {"content", "no metrics of engine vllm", answer(Answer(std::string("\0\xff\x80\n\n\r", 6)))},
  };
  std::map<std::string, int> expected;
  std::vector<std::unique_ptr<RawTcpServer>> servers;
  for (const Case& c : cases) {
    servers.push_back(std::make_unique<RawTcpServer>(c.script));
    AddEndpoint(servers.back()->port());
    ++expected[c.kind];
  }
  // A port where nobody listens.
  uint16_t nobody = 0;
  nobody = RawTcpServer([](RawConnection&) {}).port();
  AddEndpoint(nobody);
  ++expected["connect"];
  Start({.interval = 5 * base::kMillisecond, .timeout = 100 * base::kMillisecond, .max_page = 20000});
  const std::string all = "fairway_scrape_failing_endpoints{pool=\"default/pool\"} " +
                          std::to_string(std::size(cases) + 1) + "\n";
  ASSERT_TRUE(Await([&] { return HasMetric(all); })) << registry_.Render();
  for (const auto& [kind, count] : expected) {
    EXPECT_TRUE(HasMetric("fairway_scrape_errors_total{pool=\"default/pool\",kind=\"" + kind + "\"} "))
        << kind;
    EXPECT_EQ(CountLines("kind=" + kind), static_cast<size_t>(count)) << kind;
  }
  for (const Case& c : cases) EXPECT_GE(CountLines(c.error), 1u) << c.error;
  EXPECT_EQ(CountLines("connection refused"), 1u);
  EXPECT_TRUE(HasMetric("llm_d_epp_datalayer_poll_errors_total{source_type=\"metrics-data-source\"} "));
  EXPECT_TRUE(HasMetric(
      "llm_d_inference_scheduler_datalayer_poll_errors_total{source_type=\"metrics-data-source\"} "));
  EXPECT_TRUE(HasMetric("fairway_unscraped_endpoints{pool=\"default/pool\"} 10\n"));
}

TEST_F(ScraperTest, TakesChunkedPagesAndOnesThatEndWithTheConnection) {
  RawTcpServer chunked([](RawConnection& connection) {
    while (connection.ReadRequest()) {
      const std::string page = Page(11);
      std::string bytes = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
      for (char c : page) bytes += std::string("1\r\n") + c + "\r\n";
      if (!connection.Send(bytes + "0\r\n\r\n")) return;
    }
  });
  RawTcpServer to_end([](RawConnection& connection) {
    if (connection.ReadRequest()) connection.Send("HTTP/1.0 200 OK\r\n\r\n" + Page(12));
  });
  AddEndpoint(chunked.port());
  AddEndpoint(to_end.port());
  Start();
  EXPECT_TRUE(Await([&] { return Cell(0)->waiting() == 11 && Cell(1)->waiting() == 12; }));
  EXPECT_EQ(Lines().size(), 0u);
}

TEST_F(ScraperTest, TakesWhatAPageHasAndCountsWhatIsMissing) {
  SetPage("vllm:num_requests_waiting NaN\nvllm:num_requests_running 5\n");
  Serve();
  AddEndpoint(server_->port());
  Start();
  ASSERT_TRUE(Await([&] { return Cell()->running() == 5; }));
  EXPECT_EQ(Cell()->waiting(), 0u);
  EXPECT_FALSE(
      HasMetric("llm_d_epp_datalayer_extract_errors_total{source_type=\"metrics-data-source\",extractor_type="
                "\"core-metrics-extractor\"} 0\n"));
  EXPECT_TRUE(
      HasMetric("llm_d_epp_datalayer_extract_errors_total{source_type=\"metrics-data-source\",extractor_type="
                "\"core-metrics-extractor\"} "));
}

TEST_F(ScraperTest, ReadsEnginesByLabelAndDetectsThemWithout) {
  SetPage("sglang:num_queue_reqs 3\nsglang:num_running_reqs 4\nsglang:token_usage 0.5\n");
  Serve();
  AddEndpoint(server_->port(), {{"llm-d.ai/engine-type", "sglang"}});
  AddEndpoint(server_->port(), {{"inference.networking.k8s.io/engine-type", "sglang"}}, "127.0.0.2");
  AddEndpoint(server_->port(), {}, "127.0.0.3");                                     // no label
  AddEndpoint(server_->port(), {{"llm-d.ai/engine-type", "new-one"}}, "127.0.0.4");  // not known
  AddEndpoint(server_->port(), {{"llm-d.ai/engine-type", "vllm"}},
              "127.0.0.5");  // wrong: a label is believed
  Start();
  ASSERT_TRUE(Await([&] { return HasMetric("kind=\"content\""); }));
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(Await([&] { return Cell(i)->waiting() == 3; })) << i;
  }
  EXPECT_EQ(Cell(4)->scraped_at(), 0);
  EXPECT_EQ(CountLines("engine type taken from the metrics page"), 1u);
  EXPECT_EQ(CountLines("unknown engine type"), 1u);
  EXPECT_EQ(CountLines("no metrics of engine vllm"), 1u);
}

constexpr char kSglangPage[] = "sglang:num_queue_reqs 3\nsglang:num_running_reqs 4\nsglang:token_usage 0.5\n";
std::string Loads(uint64_t tokens) {
  return R"({"loads":[{"num_waiting_uncached_tokens":)" + std::to_string(tokens) +
         R"(,"max_total_num_tokens":400000}]})";
}

TEST_F(ScraperTest, PagesAreReadAsThePoolsConfigSays) {
  SetPage(Page(3) + "my_queue 8\nheat 71.5\n");
  Serve();
  AddEndpoint(server_->port());
  AddEndpoint(server_->port(), {{"kind", "mine"}}, "127.0.0.2");
  std::shared_ptr<const api::EnginePages> said;
  Start({.interval = 2 * base::kMillisecond, .pages = [&](const std::string& pool) {
           EXPECT_EQ(pool, "default/pool");
           return said;
         }});
  const uint64_t heat = fleet::PageAttributes::KeyOf("heat");
  ASSERT_TRUE(Await([&] { return Cell(0)->waiting() == 3 && Cell(1)->waiting() == 3; }));
  EXPECT_EQ(Cell(1)->attributes(), nullptr);
  const auto say = [&](const std::string& key, const std::string& label) {
    api::EnginePages pages{.label = label, .default_engine = "vllm"};
    pages.engines.push_back({.name = "mine",
                             .queued = api::MetricSpec{.name = "my_queue"},
                             .running = api::MetricSpec{.name = "my_queue"},
                             .custom = {{key, api::MetricSpec{.name = "heat"}}}});
    said = std::make_shared<const api::EnginePages>(pages);
    scraper_->PagesChanged();
  };
  OnControl([&] { say("heat", "kind"); });
  ASSERT_TRUE(Await([&] {
    const auto* attributes = Cell(1)->attributes();
    return Cell(1)->waiting() == 8 && attributes != nullptr && attributes->Get(heat) == 71.5f;
  }));
  EXPECT_EQ(Cell(0)->waiting(), 3u);
  EXPECT_EQ(Cell(0)->attributes(), nullptr);
  // What the page says no longer is not known, and what the config asks for no longer is gone.
  SetPage(Page(3) + "my_queue 8\n");
  ASSERT_TRUE(Await([&] { return std::isnan(Cell(1)->attributes()->Get(heat)); }));
  SetPage(Page(3) + "my_queue 8\nheat 71.5\n");
  ASSERT_TRUE(Await([&] { return Cell(1)->attributes()->Get(heat) == 71.5f; }));
  OnControl([&] { say("other", "kind"); });
  ASSERT_TRUE(
      Await([&] { return Cell(1)->attributes()->Get(fleet::PageAttributes::KeyOf("other")) == 71.5f; }));
  EXPECT_TRUE(std::isnan(Cell(1)->attributes()->Get(heat)));
  OnControl([&] {
    said = nullptr;
    scraper_->PagesChanged();
  });
  ASSERT_TRUE(Await([&] { return Cell(1)->waiting() == 3; }));
}

TEST_F(ScraperTest, AnAttributeThatNoPageSaysIsToldOnce) {
  SetPage(Page(3) + "heat 71.5\n");
  Serve();
  AddEndpoint(server_->port());
  AddEndpoint(server_->port(), {}, "127.0.0.2");
  auto said = std::make_shared<api::EnginePages>(
      api::EnginePages{.label = "llm-d.ai/engine-type", .default_engine = "vllm"});
  said->engines.push_back({.name = "vllm",
                           .custom = {{"warm", api::MetricSpec{.name = "heat"}},
                                      {"cold", api::MetricSpec{.name = "frost", .labels = {{"gpu", "0"}}}}}});
  Start({.interval = 2 * base::kMillisecond, .pages = [&](const std::string&) { return said; }});
  ASSERT_TRUE(Await([&] { return CountLines("attribute=") > 0; }));
  const int asked = requests_;
  ASSERT_TRUE(Await([&] { return requests_ > asked + 50; }));
  EXPECT_EQ(CountLines("attribute="), 1u);
  EXPECT_EQ(
      CountLines("WARN  no page has the metric of an attribute of the config's: no endpoint has a value "
                 "pool=default/pool attribute=cold metric=\"frost{gpu=0} (vllm)\""),
      1u);
}

TEST_F(ScraperTest, AnAttributeThatOneEndpointSaysIsNotMissing) {
  SetPage(Page(3));
  Serve();
  PagesByPath other({{"/metrics", Answer(Page(1) + "heat 2\n")}});
  AddEndpoint(server_->port());
  AddEndpoint(other.port());
  auto said = std::make_shared<api::EnginePages>(
      api::EnginePages{.label = "llm-d.ai/engine-type", .default_engine = "vllm"});
  said->engines.push_back({.name = "vllm", .custom = {{"warm", api::MetricSpec{.name = "heat"}}}});
  Start({.interval = 2 * base::kMillisecond, .pages = [&](const std::string&) { return said; }});
  ASSERT_TRUE(Await([&] { return other.asked("/metrics") > 50 && requests_ > 50; }));
  EXPECT_EQ(CountLines("attribute="), 0u);
}

TEST_F(ScraperTest, WaitingTokensAreAskedForWhereOthersAre) {
  PagesByPath server({{"/metrics", Answer("sglang:num_queue_reqs 0\nsglang:num_running_reqs 0\n")},
                      {"/v1/loads", Answer(Loads(50'000))}});
  AddEndpoint(server.port());  // the engine is seen from its page
  Start();
  ASSERT_TRUE(Await([&] { return server.asked("/metrics") > 20; }));
  EXPECT_EQ(server.asked("/v1/loads"), 0) << "nobody is there";
  server.Set("/metrics", Answer(kSglangPage));
  ASSERT_TRUE(Await([&] { return Cell()->work_ms(clock_.Now()) > 9'000; }));
  server.Set("/v1/loads", Answer(Loads(100)));
  ASSERT_TRUE(Await([&] { return Cell()->work_ms(clock_.Now()) < 100; }));
  EXPECT_GT(server.asked("/metrics"), server.asked("/v1/loads"));
  EXPECT_TRUE(HasMetric("fairway_scrape_failing_endpoints{pool=\"default/pool\"} 0\n"));
}

TEST_F(ScraperTest, AVersionThatTellsNoWaitingTokensIsNotAskedEachTime) {
  PagesByPath old({{"/metrics", Answer(kSglangPage)}});
  PagesByPath broken({{"/metrics", Answer(kSglangPage)}, {"/v1/loads", Answer("{\"loads\":[]}")}});
  AddEndpoint(old.port());
  AddEndpoint(broken.port());
  Start();
  ASSERT_TRUE(Await([&] { return old.asked("/metrics") > 50 && broken.asked("/metrics") > 50; }));
  EXPECT_EQ(old.asked("/v1/loads"), 1);
  EXPECT_GE(broken.asked("/v1/loads"), 1);
  EXPECT_LE(broken.asked("/v1/loads"), 5) << "each five seconds, on a machine that is very busy";
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(Cell(i)->waiting(), 3u);
    EXPECT_GT(Cell(i)->work_ms(clock_.Now()), 0) << "supposed, as of other engines";
  }
  EXPECT_TRUE(HasMetric("fairway_scrape_failing_endpoints{pool=\"default/pool\"} 0\n"));
}

TEST_F(ScraperTest, UsesTheMetricsPort) {
  SetPage(Page(9));
  Serve();
  AddEndpoint(1, {}, "127.0.0.1", server_->port());
  Start();
  EXPECT_TRUE(Await([&] { return Cell()->waiting() == 9; }));
}

std::string TrtPage(int waiting) {
  return "trtllm_num_requests_waiting " + std::to_string(waiting) +
         "\ntrtllm_num_requests_running 1\ntrtllm_kv_cache_utilization 0.5\n";
}

std::string RedirectTo(const std::string& location) {
  return "HTTP/1.1 307 Temporary Redirect\r\nLocation: " + location + "\r\nContent-Length: 0\r\n\r\n";
}

TEST_F(ScraperTest, AnEnginesPageIsWhereItsDescriptionSays) {
  PagesByPath labelled({{"/metrics", Answer("[]")}, {"/prometheus/metrics", Answer(TrtPage(4))}});
  PagesByPath plain({{"/metrics", Answer("[]")}, {"/prometheus/metrics", Answer(TrtPage(5))}});
  AddEndpoint(labelled.port(), {{"llm-d.ai/engine-type", "trtllm-serve"}});
  AddEndpoint(plain.port());
  Start();
  ASSERT_TRUE(Await([&] { return Cell(0)->waiting() == 4 && Cell(1)->waiting() == 5; }));
  EXPECT_EQ(labelled.asked("/metrics"), 0) << "reading it takes statistics away from others";
  EXPECT_EQ(plain.asked("/metrics"), 1) << "nothing says what it is";
  EXPECT_FLOAT_EQ(Cell(0)->kv_usage(), 0.5f);
}

TEST_F(ScraperTest, AnArrayThatIsNobodysPageIsLookedBehindOnce) {
  PagesByPath server({{"/metrics", Answer("[]")}});
  AddEndpoint(server.port());
  Start();
  ASSERT_TRUE(Await([&] { return server.asked("/metrics") > 20; }));
  EXPECT_EQ(server.asked("/prometheus/metrics"), 1);
  server.Set("/metrics", Answer(Page(3)));
  EXPECT_TRUE(Await([&] { return Cell()->waiting() == 3; }));
}

TEST_F(ScraperTest, EndpointsAndOptionsSayWhereAPageIs) {
  const std::map<std::string, std::string> pages{{"/all", Answer(Page(1))},
                                                 {"/own?engine=1", Answer(Page(2))}};
  PagesByPath a(pages), b(pages), c(pages);
  AddEndpoint(a.port());
  AddEndpoint(b.port(), {{"llm-d.ai/engine-type", "trtllm-serve"}});
  manifests_.endpoints.back().metrics_path = "/own?engine=1";
  AddEndpoint(c.port());
  manifests_.endpoints.back().metrics_path = "no path";
  manifests_.endpoints.back().metrics_scheme = "gopher";
  Start({.interval = 2 * base::kMillisecond, .page = {.path = "/all"}});
  EXPECT_TRUE(Await(
      [&] { return Cell(0)->waiting() == 1 && b.asked("/own?engine=1") > 0 && Cell(2)->waiting() == 1; }));
  EXPECT_EQ(a.asked("/metrics") + b.asked("/all") + b.asked("/prometheus/metrics") + c.asked("/metrics"), 0);
  EXPECT_EQ(CountLines("place of its metrics page cannot be"), 1u);
  manifests_.endpoints[0].metrics_path = "/own?engine=1";  // changed while running: asked there
  Apply();
  EXPECT_TRUE(Await([&] { return Cell(0)->waiting() == 2; }));
}

TEST_F(ScraperTest, APortOfAllPages) {
  PagesByPath server({{"/metrics", Answer(Page(3))}}), own({{"/metrics", Answer(Page(4))}});
  AddEndpoint(1);
  AddEndpoint(2, {}, "127.0.0.1", own.port());
  Start({.interval = 2 * base::kMillisecond, .page = {.port = server.port()}});
  EXPECT_TRUE(Await([&] { return Cell(0)->waiting() == 3 && Cell(1)->waiting() == 4; }));
}

TEST_F(ScraperTest, OneRedirectOnTheSameServerIsFollowedAndRemembered) {
  PagesByPath server({{"/metrics", RedirectTo("/metrics/")}, {"/metrics/", Answer(Page(7))}});
  AddEndpoint(server.port());
  Start();
  ASSERT_TRUE(Await([&] { return server.asked("/metrics/") > 20; }));
  EXPECT_EQ(Cell()->waiting(), 7u);
  EXPECT_EQ(server.asked("/metrics"), 1);
  EXPECT_EQ(Lines().size(), 0u);
  // What it led to is gone: asked as in the beginning.
  server.Set("/metrics", Answer(Page(8)));
  server.Set("/metrics/", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
  EXPECT_TRUE(Await([&] { return Cell()->waiting() == 8; }));
}

TEST_F(ScraperTest, RedirectsElsewhereAndInCirclesAreNotFollowed) {
  PagesByPath victim({{"/metrics", Answer(Page(9))}, {"/x", Answer(Page(9))}});
  const std::string there = "http://127.0.0.1:" + std::to_string(victim.port()) + "/x";
  PagesByPath away({{"/metrics", RedirectTo(there)}});
  PagesByPath circle(
      {{"/metrics", RedirectTo("/a")}, {"/a", RedirectTo("/b")}, {"/b", RedirectTo("/metrics")}});
  AddEndpoint(away.port());
  AddEndpoint(circle.port());
  Start();
  ASSERT_TRUE(Await([&] { return away.asked("/metrics") > 10 && circle.asked("/a") > 10; }));
  EXPECT_EQ(victim.asked("/x") + victim.asked("/metrics"), 0);
  EXPECT_EQ(circle.asked("/b"), 0);
  EXPECT_EQ(CountLines("is not followed"), 2u);
  EXPECT_EQ(Cell(0)->scraped_at() + Cell(1)->scraped_at(), 0);
}

TEST_F(ScraperTest, ReadsPagesOverTls) {
  const auto serve = [](int waiting) {
    return [waiting](const std::string&) { return Answer(Page(waiting)); };
  };
  const test::SelfSigned by_address("IP:127.0.0.1"), by_name("DNS:gpu.example"), unknown("IP:127.0.0.1");
  const test::TlsPageServer a(by_address, serve(6)), b(by_name, serve(7)), c(unknown, serve(8));
  for (const uint16_t port : {a.port(), b.port(), c.port()}) {
    AddEndpoint(port);
    manifests_.endpoints.back().metrics_scheme = "https";
  }
  const auto waiting = [&](size_t i) { return Cell(i)->waiting(); };
  Start();
  EXPECT_TRUE(Await([&] { return waiting(0) == 6 && waiting(1) == 7 && waiting(2) == 8; }))
      << "whoever it is, by default";

  // With a CA file only who is signed by it, and for the address or the name that is given.
  const std::string ca = ::testing::TempDir() + "fairway-scraper-ca-" + std::to_string(getpid()) + ".crt";
  std::ofstream(ca) << by_address.pem() << by_name.pem();
  const auto restart = [&](const std::string& name) {
    OnControl([&] { scraper_.reset(); });
    OnControl([&] { fleet_.Apply({}, {}); });
    {
      std::lock_guard lock(mutex_);
      lines_.clear();
    }
    for (auto& endpoint : manifests_.endpoints) endpoint.metrics_scheme.clear();
    Start({.interval = 2 * base::kMillisecond,
           .page = {.scheme = "https"},
           .ca_file = ca,
           .server_name = name});
  };
  restart("");
  EXPECT_TRUE(Await([&] { return waiting(0) == 6 && CountLines("kind=tls") == 2; }));
  EXPECT_EQ(CountLines("url=https://127.0.0.1:" + std::to_string(c.port())), 1u);
  EXPECT_EQ(Cell(1)->scraped_at() + Cell(2)->scraped_at(), 0);
  restart("gpu.example");
  EXPECT_TRUE(Await([&] { return waiting(1) == 7 && CountLines("kind=tls") == 2; }));
  EXPECT_EQ(Cell(0)->scraped_at() + Cell(2)->scraped_at(), 0);
  std::remove(ca.c_str());
}

TEST_F(ScraperTest, FollowsTheFleet) {
  std::atomic<int> open{0};
  RawTcpServer silent([&](RawConnection& connection) {
    connection.ReadRequest();
    ++open;
    connection.WaitForEnd();  // until the scraper drops it
    --open;
  });
  SetPage(Page(1));
  Serve();
  AddEndpoint(silent.port());
  Start({.interval = 2 * base::kMillisecond, .timeout = 60 * base::kSecond});
  ASSERT_TRUE(Await([&] { return open == 1; }));
  const auto gone = Cell();
  manifests_.endpoints.clear();
  AddEndpoint(server_->port());
  AddEndpoint(server_->port(), {}, "127.0.0.1", 1);  // the same server again: one candidate
  Apply();
  EXPECT_TRUE(
      Await([&] { return open == 0 && Cell()->waiting() == 1; }));  // removed while its fetch was open
  OnControl([&] { EXPECT_EQ(scraper_->endpoints(), 1u); });
  EXPECT_EQ(gone->scraped_at(), 0);
  const base::Nanos last = Cell()->scraped_at();
  const auto cell = Cell();
  manifests_.pools.clear();
  Apply();
  ASSERT_TRUE(Await([&] { return scraper_->endpoints() == 0; }));
  EXPECT_FALSE(HasMetric("fairway_scrape_age_seconds{"));
  EXPECT_GE(cell->scraped_at(), last);
}

TEST_F(ScraperTest, ScrapesManyEndpointsEachOverItsOwnConnection) {
  SetPage(Page(2));
  Serve();
  for (int i = 0; i < 200; ++i) AddEndpoint(server_->port(), {}, "127.0.1." + std::to_string(i + 1));
  Start({.interval = 20 * base::kMillisecond});
  EXPECT_TRUE(Await([&] {
    for (size_t i = 0; i < 200; ++i) {
      if (Cell(i)->waiting() != 2) return false;
    }
    return true;
  }));
  std::lock_guard lock(mutex_);
  EXPECT_EQ(clients_.size(), 200u);
}

TEST_F(ScraperTest, AnIdleEndpointIsReadAThirdAsOften) {
  std::atomic<int> idle = 0;
  std::atomic<int> busy = 0;
  const auto serve = [](std::atomic<int>& count, int waiting) {
    return [&count, answer = Answer(Page(waiting))](RawConnection& connection) {
      while (connection.ReadRequest() && connection.Send(answer)) ++count;
    };
  };
  RawTcpServer idle_server(serve(idle, 0));
  RawTcpServer busy_server(serve(busy, 3));
  AddEndpoint(idle_server.port());
  AddEndpoint(busy_server.port());
  Start({.interval = 5 * base::kMillisecond, .idle_turns = 2});
  ASSERT_TRUE(Await([&] { return Cell(0)->scraped_at() != 0 && Cell(1)->others() == 3; }));
  const int idle_before = idle;
  const int busy_before = busy;
  ASSERT_TRUE(Await([&] { return busy - busy_before >= 60; }));
  EXPECT_LE(idle - idle_before, 30) << "20, and what a busy machine makes of it";
  EXPECT_GE(idle - idle_before, 2) << "and not forgotten";
}

TEST_F(ScraperTest, MetricsMayBeReadAfterItsEnd) {
  AddEndpoint(1);
  Start();
  OnControl([&] { scraper_.reset(); });
  EXPECT_TRUE(HasMetric("fairway_scrape_failing_endpoints{pool=\"default/pool\"}"));
}

TEST_F(ScraperTest, RefusesOptionsThatCanNotBe) {
  const std::pair<ScraperOptions, std::string> bad[] = {
      {{.interval = 1000}, "at least 1ms"},
      {{.timeout = 0}, "at least 1ms"},
      {{.page = {.path = "metrics"}}, "must begin with"},
      {{.page = {.path = "/a b"}}, "want a path such as /metrics"},
      {{.page = {.scheme = "ftp"}}, "want http or https, not \"ftp\""},
      {{.ca_file = "/nowhere/ca.crt"}, "/nowhere/ca.crt"},
      {{.ca_file = "/nowhere/ca.crt", .verification = Verification::kOff}, "give one of them"},
      {{.ca_file = "/dev/null"}, "/dev/null, is empty"},
      {{.ca_file = "/proc/self/status"}, "no PEM certificate"},
      {{.default_engine = "vlm"}, "no engine is named \"vlm\"; known are vllm, sglang"},
  };
  for (const auto& [options, why] : bad) {
    OnControl([&] {
      const auto scraper = Scraper::Create(options, control_.loop(), fleet_, clock_, log_, registry_);
      ASSERT_FALSE(scraper);
      EXPECT_THAT(scraper.error().message, HasSubstr(why));
    });
  }
}

}  // namespace
}  // namespace fairway::sources::scrape
