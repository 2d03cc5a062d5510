// What scraping costs while nothing else happens: the control loop's CPU time, with the metrics pages served
// by another process.
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <future>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "fleet/fleet.h"
#include "net/http_server.h"
#include "net/loop.h"
#include "sources/scrape/scraper.h"

namespace fairway::test {

// A page as vLLM 0.10 writes it: the signals among histograms, to the wanted size. About 2 KB is the least.
inline std::string VllmPage(size_t bytes) {
  const std::string model = "{engine=\"0\",model_name=\"meta-llama/Llama-3.1-8B-Instruct\"";
  const auto family = [&](const std::string& name, const std::string& value) {
    return "# HELP vllm:" + name + " What the engine counts under this name.\n# TYPE vllm:" + name +
           " gauge\nvllm:" + name + model + "} " + value + "\n";
  };
  std::string page =
      "# HELP process_resident_memory_bytes Resident memory size in bytes.\n# TYPE "
      "process_resident_memory_bytes gauge\n"
      "process_resident_memory_bytes 5.263634432e+09\n" +
      family("num_requests_running", "17.0") + family("num_requests_waiting", "4.0") +
      family("kv_cache_usage_perc", "0.4375") + family("num_preemptions_total", "0.0") +
      "# TYPE vllm:lora_requests_info "
      "gauge\nvllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"sql,chat\","
      "waiting_lora_adapters=\"\"} 1.73218e+09\n"
      "vllm:cache_config_info{block_size=\"16\",cache_dtype=\"auto\",calculate_kv_scales=\"False\",engine="
      "\"0\","
      "gpu_memory_utilization=\"0.9\",num_gpu_blocks=\"27000\",prefix_caching_hash_algo=\"builtin\"} 1.0\n";
  const char* histograms[] = {"time_to_first_token_seconds", "inter_token_latency_seconds",
                              "e2e_request_latency_seconds", "request_queue_time_seconds",
                              "request_prompt_tokens",       "iteration_tokens_total"};
  for (size_t n = 0; page.size() < bytes; ++n) {
    const std::string name =
        std::string(histograms[n % std::size(histograms)]) + (n < 6 ? "" : "_" + std::to_string(n));
    page += "# HELP vllm:" + name + " Histogram.\n# TYPE vllm:" + name + " histogram\n";
    for (int bucket = 0; bucket < 20 && page.size() < bytes; ++bucket) {
      page += "vllm:" + name + "_bucket" + model + ",le=\"" + std::to_string(0.001 * (1 << bucket)) + "\"} " +
              std::to_string(1000 + bucket * 37) + ".0\n";
    }
  }
  return page;
}

struct IdleScrapeCost {
  double cpu_ms_per_second = 0;  // of the control loop's thread, user and system
  double scrapes_per_second = 0;
  double wakeups_per_second = 0;  // voluntary context switches of that thread
};

namespace internal {

// Serves `page` on every loopback address until killed. Returns the child and its port.
inline std::pair<pid_t, uint16_t> ForkPageServer(const std::string& page) {
  int pipe_ends[2];
  if (::pipe(pipe_ends) != 0) return {-1, 0};
  const pid_t child = ::fork();
  if (child == 0) {
    net::Loop loop;
    auto server = net::HttpServer::Listen(
        {.host = "0.0.0.0"}, loop,
        [&](net::HttpRequest, std::shared_ptr<net::HttpResponder> responder) {
          responder->Send({.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = page});
        },
        base::Log(base::LogLevel::kOff, base::LogFormat::kText));
    const uint16_t port = server ? (*server)->port() : 0;
    if (::write(pipe_ends[1], &port, sizeof port) == sizeof port && port != 0) loop.Run();
    ::_exit(1);
  }
  uint16_t port = 0;
  if (child < 0 || ::read(pipe_ends[0], &port, sizeof port) != sizeof port) port = 0;
  ::close(pipe_ends[0]);
  ::close(pipe_ends[1]);
  return {child, port};
}

inline double Milliseconds(const timeval& t) {
  return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_usec) * 1e-3;
}

inline IdleScrapeCost CostOf(const rusage& before, const rusage& after, double elapsed) {
  const double user = Milliseconds(after.ru_utime) - Milliseconds(before.ru_utime);
  const double system = Milliseconds(after.ru_stime) - Milliseconds(before.ru_stime);
  return {.cpu_ms_per_second = (user + system) / elapsed,
          .wakeups_per_second = static_cast<double>(after.ru_nvcsw - before.ru_nvcsw) / elapsed};
}

inline void End(pid_t child) {
  if (child <= 0) return;
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

// Some 150 bytes, as long as a fetch's.
inline constexpr std::string_view kRequest =
    "GET /metrics HTTP/1.1\r\nHost: 127.0.100.100:65000\r\nUser-Agent: fairway/0.1.0\r\nAccept: "
    "text/plain;version=0.0.4\r\n"
    "Accept-Encoding: identity\r\n\r\n";

}  // namespace internal

// REQUIRES: called before the program starts threads (it forks the page server). All zero when that failed.
inline IdleScrapeCost MeasureIdleScrape(int endpoints, base::Nanos interval, size_t page_bytes,
                                        double seconds) {
  const auto [child, port] = internal::ForkPageServer(VllmPage(page_bytes));
  IdleScrapeCost cost;
  if (port != 0) {
    api::Manifests manifests;
    api::InferencePool pool;
    pool.meta.name = "pool";
    pool.selector = {{"app", "vllm"}};
    manifests.pools.push_back(pool);
    for (int i = 0; i < endpoints; ++i) {
      api::Endpoint endpoint;
      endpoint.name = "e" + std::to_string(i);
      endpoint.address = "127.0." + std::to_string(1 + i / 250) + "." + std::to_string(1 + i % 250);
      endpoint.port = port;
      endpoint.labels = pool.selector;
      manifests.endpoints.push_back(endpoint);
    }
    base::SystemClock clock;
    base::Registry registry;
    const base::Log log(base::LogLevel::kWarn, base::LogFormat::kText);
    fleet::Fleet fleet;
    fleet.Apply(manifests, {});
    net::LoopThread control("control");
    std::unique_ptr<sources::scrape::Scraper> scraper;
    const auto on_control = [&](const std::function<void()>& task) {
      std::promise<void> done;
      control.loop().Post([&] {
        task();
        done.set_value();
      });
      done.get_future().get();
    };
    const auto scrapes = [&] {
      const std::string page = registry.Render();
      const size_t at = page.find("\nfairway_scrapes_total{");
      return at == std::string::npos ? 0.0 : std::stod(page.substr(page.find("} ", at) + 2));
    };
    rusage before{};
    rusage after{};
    on_control([&] {
      auto made = sources::scrape::Scraper::Create({.interval = interval}, control.loop(), fleet, clock, log,
                                                   registry);
      if (made) scraper = std::move(*made);
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(500));  // connecting is not idling
    const base::Nanos begin = clock.Now();
    const double scrapes_before = scrapes();
    on_control([&] { ::getrusage(RUSAGE_THREAD, &before); });
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    on_control([&] { ::getrusage(RUSAGE_THREAD, &after); });
    const double elapsed = base::ToSeconds(clock.Now() - begin);
    cost = internal::CostOf(before, after, elapsed);
    cost.scrapes_per_second = (scrapes() - scrapes_before) / elapsed;
    control.Join();
    scraper.reset();
  }
  internal::End(child);
  return cost;
}

// The floor: the same requests from a bare epoll loop that reads nothing of the answers. What remains is the
// kernel's own cost of sending and receiving, and on loopback that includes most of the server's side of TCP.
inline IdleScrapeCost MeasureIdleFloor(int endpoints, base::Nanos interval, size_t page_bytes,
                                       double seconds) {
  const auto [child, port] = internal::ForkPageServer(VllmPage(page_bytes));
  IdleScrapeCost cost;
  if (port != 0) {
    const int epoll = ::epoll_create1(0);
    std::vector<int> sockets;
    for (int i = 0; i < endpoints; ++i) {
      const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_port = htons(port);
      address.sin_addr.s_addr = htonl((127u << 24) + (static_cast<uint32_t>(1 + i / 250) << 8) +
                                      static_cast<uint32_t>(1 + i % 250));
      if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) continue;
      const int on = 1;
      ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.fd = fd}};
      ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
      sockets.push_back(fd);
    }
    std::vector<char> buffer(256 << 10);
    const size_t turns = std::max<size_t>(1, sockets.size() / 25);
    const base::SystemClock clock;
    const base::Nanos begin = clock.Now();
    const base::Nanos end = begin + static_cast<base::Nanos>(seconds * 1e9);
    base::Nanos next = begin;
    size_t turn = 0;
    double answers = 0;
    rusage before{};
    rusage after{};
    ::getrusage(RUSAGE_THREAD, &before);
    for (base::Nanos now = begin; now < end; now = clock.Now()) {
      if (now >= next) {
        for (size_t i = turn; i < sockets.size(); i += turns) {
          (void)!::send(sockets[i], internal::kRequest.data(), internal::kRequest.size(),
                        MSG_NOSIGNAL | MSG_DONTWAIT);
        }
        turn = (turn + 1) % turns;
        next += interval / static_cast<base::Nanos>(turns);
      }
      epoll_event events[128];
      const int wait_ms =
          static_cast<int>(std::max<base::Nanos>(0, next - clock.Now()) / base::kMillisecond) + 1;
      const int ready = ::epoll_wait(epoll, events, 128, wait_ms);
      for (int i = 0; i < ready; ++i) {
        if (::recv(events[i].data.fd, buffer.data(), buffer.size(), MSG_DONTWAIT) > 0) ++answers;
      }
    }
    ::getrusage(RUSAGE_THREAD, &after);
    const double elapsed = base::ToSeconds(clock.Now() - begin);
    cost = internal::CostOf(before, after, elapsed);
    cost.scrapes_per_second = answers / elapsed;
    for (const int fd : sockets) ::close(fd);
    ::close(epoll);
  }
  internal::End(child);
  return cost;
}

}  // namespace fairway::test
