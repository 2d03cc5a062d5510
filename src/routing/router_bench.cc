// What Begin costs, by what clients vary: nothing, fairness ids, model names, refusals. One router for all
// threads, a worker each, as in the server.
#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "base/random.h"
#include "routing/decision_log.h"
#include "routing/router.h"
#include "scheduling/config.h"
#include "tests/support/pools.h"

namespace fairway::routing {
namespace {

constexpr base::Nanos kStart = base::kSecond + 20 * base::kMillisecond;

struct Shared {
  Shared(int endpoints, std::vector<api::InferenceModel> models, RouterOptions options = {})
      : pool(Servers(endpoints), std::move(models)),
        clock(kStart),
        router(pool.fleet().published(), clock, registry, std::move(options)) {}

  static std::vector<tests::ServerState> Servers(int endpoints) {
    std::vector<tests::ServerState> servers;
    base::Random random(9);
    for (int i = 0; i < endpoints; ++i) {
      servers.push_back({.name = "s" + std::to_string(i),
                         .waiting = static_cast<uint32_t>(random.Below(6)),
                         .kv_usage = static_cast<float>(random.NextDouble()),
                         .running = static_cast<uint32_t>(random.Below(6))});
    }
    return servers;
  }

  tests::TestPool pool;
  base::ManualClock clock;
  base::Registry registry;
  Router router;
};

std::unique_ptr<Shared> shared;

std::vector<std::string> Names(std::string_view prefix, int64_t count) {
  std::vector<std::string> names;
  for (int64_t i = 0; i < count; ++i) names.push_back(std::string(prefix) + std::to_string(i));
  return names;
}

payload::RequestScanner Scan(const std::string& model) {
  const std::string body = R"({"model":")" + model + R"(","prompt":"Say hi."})";
  payload::RequestScanner scanner(payload::ApiOfPath("/v1/completions"));
  scanner.Feed(body);
  scanner.Finish();
  return scanner;
}

void Ask(Worker& worker, const RequestInput& input) {
  auto begun = shared->router.Begin(worker, input);
  if (auto* ticket = std::get_if<Ticket>(&begun)) {
    ticket->OnResponseHeaders(200, "", false);
    ticket->OnComplete();
  }
  benchmark::DoNotOptimize(begun);
}

// range(0): different fairness ids, asked for in turn.
void FairnessIds(benchmark::State& state) {
  if (state.thread_index() == 0) shared = std::make_unique<Shared>(8, std::vector<api::InferenceModel>{});
  const std::vector<std::string> ids = Names("tenant-", state.range(0));
  const payload::RequestScanner scanner = Scan("llama2");
  std::unique_ptr<Worker> worker;
  size_t i = 0;
  for (auto _ : state) {
    if (!worker) worker = shared->router.NewWorker(static_cast<uint64_t>(state.thread_index()) + 1);
    RequestInput input;
    input.body = &scanner;
    input.body_bytes = 40;
    input.fairness_id = ids[i];
    if (++i == ids.size()) i = 0;
    Ask(*worker, input);
  }
}
BENCHMARK(FairnessIds)->Arg(1)->Arg(50)->Arg(1000)->Arg(10'000)->UseRealTime();
BENCHMARK(FairnessIds)->Arg(1)->Arg(10'000)->Threads(2)->UseRealTime();

// range(0): different model names, in a pool that declares none.
void ModelNames(benchmark::State& state) {
  if (state.thread_index() == 0) shared = std::make_unique<Shared>(8, std::vector<api::InferenceModel>{});
  std::vector<payload::RequestScanner> scanners;
  for (const std::string& name : Names("model-", state.range(0))) scanners.push_back(Scan(name));
  std::unique_ptr<Worker> worker;
  size_t i = 0;
  for (auto _ : state) {
    if (!worker) worker = shared->router.NewWorker(static_cast<uint64_t>(state.thread_index()) + 1);
    RequestInput input;
    input.body = &scanners[i];
    input.body_bytes = 40;
    if (++i == scanners.size()) i = 0;
    Ask(*worker, input);
  }
}
BENCHMARK(ModelNames)->Arg(1)->Arg(10)->Arg(10'000)->UseRealTime();
BENCHMARK(ModelNames)->Arg(10'000)->Threads(2)->UseRealTime();

// Of a pool of range(0) models with names of range(1) bytes, one that it does not have: 4,096 bytes of text.
void UnknownModels(benchmark::State& state) {
  std::vector<api::InferenceModel> models;
  for (std::string& name : Names("model-", state.range(0))) {
    name.resize(static_cast<size_t>(state.range(1)), 'x');
    models.push_back(tests::Model("m" + std::to_string(models.size()) + name, api::Criticality::kCritical));
  }
  shared = std::make_unique<Shared>(1, std::move(models));
  const payload::RequestScanner scanner = Scan(std::string(4096, 'm'));
  const auto worker = shared->router.NewWorker(1);
  for (auto _ : state) {
    RequestInput input;
    input.body = &scanner;
    Ask(*worker, input);
  }
}
BENCHMARK(UnknownModels)
    ->Args({10, 24})
    ->Args({100, 24})
    ->Args({100, 256})
    ->Args({1000, 24})
    ->Args({1000, 256})
    ->UseRealTime();

// Refused for want of endpoints.
void Refusals(benchmark::State& state) {
  if (state.thread_index() == 0) shared = std::make_unique<Shared>(0, std::vector<api::InferenceModel>{});
  const payload::RequestScanner scanner = Scan("llama2");
  std::unique_ptr<Worker> worker;
  for (auto _ : state) {
    if (!worker) worker = shared->router.NewWorker(static_cast<uint64_t>(state.thread_index()) + 1);
    RequestInput input;
    input.body = &scanner;
    Ask(*worker, input);
  }
}
BENCHMARK(Refusals)->UseRealTime();
BENCHMARK(Refusals)->Threads(2)->UseRealTime();

// What is kept of decisions. range(0): endpoints; range(1): 0 nothing, 1 the last 256, 2 a shadow beside it,
// 3 a shadow alone.
void Kept(benchmark::State& state) {
  DecisionLog log(256);
  RouterOptions options;
  if (state.range(1) == 1 || state.range(1) == 2) options.decisions = &log;
  if (state.range(1) >= 2) options.shadow = scheduling::CompileBuiltin({});
  shared = std::make_unique<Shared>(static_cast<int>(state.range(0)), std::vector<api::InferenceModel>{},
                                    std::move(options));
  const payload::RequestScanner scanner = Scan("llama2");
  const auto worker = shared->router.NewWorker(1);
  RequestInput input;
  input.body = &scanner;
  input.request_id = "0b5e7a2c-6f0c-4f0e-9d1b-2f1f2b7f9a11";
  for (auto _ : state) Ask(*worker, input);
}
BENCHMARK(Kept)->ArgsProduct({{8, 100, 1000}, {0, 1, 2, 3}});

}  // namespace
}  // namespace fairway::routing
