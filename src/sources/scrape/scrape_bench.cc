// What a metrics page costs: reading it (beside the floor, finding its line ends), and the whole of idle
// scraping.
#include <benchmark/benchmark.h>

#include <cstring>
#include <string>

#include "sources/scrape/metrics_page.h"
#include "tests/support/idle_scrape.h"

namespace {

using fairway::sources::scrape::EngineReaders;
using fairway::sources::scrape::EngineSample;

void BM_ReadPage(benchmark::State& state) {
  const std::string page = fairway::test::VllmPage(static_cast<size_t>(state.range(0)));
  const EngineReaders engines;
  const auto* reader = engines.Find("vllm");
  EngineSample sample;
  for (auto _ : state) {
    reader->Read(page, sample);
    benchmark::DoNotOptimize(sample);
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * page.size()));
  if (!sample.queued || !sample.has_lora || sample.missing != 0) state.SkipWithError("the page was not read");
}
BENCHMARK(BM_ReadPage)->Arg(2 << 10)->Arg(40 << 10)->Arg(400 << 10);

// The floor: no reader can do with less than the line ends.
void BM_FindLineEnds(benchmark::State& state) {
  const std::string page = fairway::test::VllmPage(static_cast<size_t>(state.range(0)));
  for (auto _ : state) {
    size_t lines = 0;
    const char* at = page.data();
    const char* const end = at + page.size();
    while (const void* newline = std::memchr(at, '\n', static_cast<size_t>(end - at))) {
      ++lines;
      at = static_cast<const char*>(newline) + 1;
    }
    benchmark::DoNotOptimize(lines);
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * page.size()));
}
BENCHMARK(BM_FindLineEnds)->Arg(2 << 10)->Arg(40 << 10)->Arg(400 << 10);

void Report(benchmark::State& state, const fairway::test::IdleScrapeCost& cost) {
  state.counters["cpu_ms_per_s"] = cost.cpu_ms_per_second;
  state.counters["scrapes_per_s"] = cost.scrapes_per_second;
  state.counters["us_per_scrape"] = cost.cpu_ms_per_second * 1e3 / cost.scrapes_per_second;
  state.counters["wakeups_per_s"] = cost.wakeups_per_second;
}

// CPU of the control loop's thread while it scrapes each endpoint every 50 ms: (endpoints, bytes of a page).
void BM_IdleScrape(benchmark::State& state) {
  for (auto _ : state) {
    Report(state, fairway::test::MeasureIdleScrape(static_cast<int>(state.range(0)),
                                                   50 * fairway::base::kMillisecond,
                                                   static_cast<size_t>(state.range(1)), 3));
  }
}
// The floor: the same exchange from a bare epoll loop.
void BM_IdleScrapeFloor(benchmark::State& state) {
  for (auto _ : state) {
    Report(state,
           fairway::test::MeasureIdleFloor(static_cast<int>(state.range(0)), 50 * fairway::base::kMillisecond,
                                           static_cast<size_t>(state.range(1)), 3));
  }
}
void Sizes(benchmark::internal::Benchmark* bench) {
  bench->Args({8, 2 << 10})->Args({100, 2 << 10})->Args({100, 40 << 10})->Args({1000, 2 << 10});
  bench->Iterations(1)->Unit(benchmark::kMillisecond);
}
BENCHMARK(BM_IdleScrape)->Apply(Sizes);
BENCHMARK(BM_IdleScrapeFloor)->Apply(Sizes);

}  // namespace
