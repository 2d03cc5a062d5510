// What the picker's part of a request costs where its code and data are cold, beside warm: in front of each
// step some 450 KB of other code and 220 KB of other data run, as a proxy's do between two requests.
//
//   cold_path [endpoints]      default 100
//
// Times are medians of single runs by the processor's time stamp counter (x86-64 only), in nanoseconds. They
// repeat to a few percent on a busy machine, which timings of a whole Envoy do not; but real life is dearer
// still: pages are cold there, too.
#include <x86intrin.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "base/random.h"
#include "frontends/envoy_module/choices.h"
#include "frontends/request/headers.h"
#include "payload/request.h"
#include "routing/router.h"
#include "tests/support/pools.h"

namespace fairway {
namespace {

// ---- Other code: many small functions, each with branches of its own.

std::vector<uint32_t> other_data(56 * 1024, 1);

template <int kNumber>
[[gnu::noinline]] uint64_t Other(uint64_t x) {
  constexpr uint64_t kOwn = kNumber;
  x = (x >> (kOwn % 29) & 1) != 0 ? x * (0x9e3779b97f4a7c15ULL + kOwn) + kOwn : x ^ ((x >> 7) + kOwn * 77);
  uint32_t& at = other_data[(x ^ kOwn * 1237) % other_data.size()];
  if ((at & 1) != 0) {
    at += static_cast<uint32_t>(x) | 2;
    x += at;
  } else {
    at ^= 5;
    x -= kOwn;
  }
  return (x >> 3) % 3 == 0 ? x << 5 | x >> 59 : x;
}

using Function = uint64_t (*)(uint64_t);
template <int... kNumbers>
constexpr auto Table(std::integer_sequence<int, kNumbers...>) {
  return std::array<Function, sizeof...(kNumbers)>{&Other<kNumbers>...};
}
constexpr auto kOthers = Table(std::make_integer_sequence<int, 3500>());

void RunOthers() {
  static uint64_t x = 12345;
  for (const Function other : kOthers) x = other(x);
}

uint64_t Stamp() {
  _mm_lfence();
  const uint64_t now = __rdtsc();
  _mm_lfence();
  return now;
}

// ---- The steps of one request.

class Steps {
 public:
  explicit Steps(bool cold) : cold_(cold) {}
  template <typename Step>
  void Time(size_t number, Step step) {
    if (cold_) RunOthers();
    const uint64_t begin = Stamp();
    step();
    times_[number].push_back(Stamp() - begin);
  }
  double Median(size_t number) {
    auto& times = times_[number];
    const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
    std::nth_element(times.begin(), middle, times.end());
    return static_cast<double>(*middle);
  }

 private:
  const bool cold_;
  std::array<std::vector<uint64_t>, 8> times_;
};

constexpr std::array<const char*, 7> kNames = {
    "nothing",  "scan a body of 2 KB", "read its headers", "decide",
    "its host", "its answer's end",    "forget it"};

tests::TestPool Pool(int endpoints) {
  std::vector<tests::ServerState> servers;
  base::Random random(9);
  for (int i = 0; i < endpoints; ++i) {
    servers.push_back({.name = "s" + std::to_string(i),
                       .waiting = static_cast<uint32_t>(random.Below(6)),
                       .kv_usage = static_cast<float>(random.NextDouble()),
                       .running = static_cast<uint32_t>(random.Below(6))});
  }
  return tests::TestPool(std::move(servers), {});
}

void Run(Steps& steps, int endpoints, int requests) {
  tests::TestPool pool = Pool(endpoints);
  constexpr base::Nanos kStart = base::kSecond + 20 * base::kMillisecond;
  base::ManualClock clock(kStart);
  base::Registry registry;
  const routing::Router router(pool.fleet().published(), clock, registry, {});
  const auto worker = router.NewWorker(1);
  std::string text;
  while (text.size() < 1920) text += "The quick brown fox jumps over the lazy dog. ";
  const std::string body =
      R"({"model": "llama2", "stream": true, "max_tokens": 64, "prompt": ")" + text + "\"}";
  const std::vector<std::pair<std::string, std::string>> headers = {
      {":authority", "llm.example"},
      {":path", "/v1/completions"},
      {":method", "POST"},
      {":scheme", "http"},
      {"user-agent", "client/1.0"},
      {"content-type", "application/json"},
      {"content-length", "2000"},
      {"x-forwarded-proto", "http"},
      {"x-request-id", "3b1c7a54-5a41-4a51-a0a7-5c2e1f0a9d11"}};
  payload::RequestScanner scanner(payload::Api::kCompletions);
  auto& choices = envoy_module::Choices::OfThisThread();
  for (int i = 0; i < requests; ++i) {
    steps.Time(0, [] {});
    steps.Time(1, [&] {
      scanner.Reset(payload::ApiOfPath("/v1/completions"));
      scanner.Feed(body);
      scanner.Finish();
    });
    request::RequestHeaders read;
    steps.Time(2, [&] {
      request::HeaderReader reader;
      for (const auto& [name, value] : headers) reader.Add(name, value);
      read = reader.Finish();
    });
    routing::RequestInput input;
    input.request_id = read.request_id;
    input.body = &scanner;
    input.body_bytes = body.size();
    input.received_at = clock.Now();
    std::variant<routing::Ticket, routing::Rejection> begun = routing::Rejection{};
    steps.Time(3, [&] { begun = router.Begin(*worker, input); });
    if (std::holds_alternative<routing::Rejection>(begun)) {
      std::fputs("a request was refused\n", stderr);
      std::exit(1);
    }
    auto ticket = std::get<routing::Ticket>(std::move(begun));
    envoy_module::Choice choice;
    steps.Time(4, [&] {
      choices.Add(choice, input.request_id, ticket.destinations());
      choices.Find(input.request_id)->Next();
    });
    clock.Advance(base::kMillisecond / 100);
    steps.Time(5, [&] {
      ticket.OnResponseHeaders(200, "", false);
      ticket.OnComplete();
    });
    steps.Time(6, [&] {
      choices.Remove(choice);
      const routing::Ticket ended = std::move(ticket);
    });
    if (i % 50 == 0) clock.Set(kStart);  // no scrape gets old
  }
}

}  // namespace
}  // namespace fairway

int main(int argc, char** argv) {
  using namespace fairway;  // NOLINT(google-build-using-namespace)
  const int endpoints = argc > 1 ? std::atoi(argv[1]) : 100;
  if (endpoints < 1) {
    std::fputs("usage: cold_path [endpoints]\n", stderr);
    return 2;
  }
  const auto start = std::chrono::steady_clock::now();
  const uint64_t first = __rdtsc();
  Steps warm(false), cold(true);
  Run(warm, endpoints, 20'000);
  Run(cold, endpoints, 4'000);
  const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
  const double per_nano = static_cast<double>(__rdtsc() - first) / took.count();
  std::printf("%d endpoints, nanoseconds\n%-22s%8s%8s\n", endpoints, "", "warm", "cold");
  double sums[2] = {0, 0};
  for (size_t i = 1; i < kNames.size(); ++i) {
    const double own[2] = {(warm.Median(i) - warm.Median(0)) / per_nano,
                           (cold.Median(i) - cold.Median(0)) / per_nano};
    for (int k = 0; k < 2; ++k) sums[k] += own[k];
    std::printf("%-22s%8.0f%8.0f\n", kNames[i], own[0], own[1]);
  }
  std::printf("%-22s%8.0f%8.0f\n", "all", sums[0], sums[1]);
  return 0;
}
