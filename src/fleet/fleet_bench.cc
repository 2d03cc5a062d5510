// What changes of a fleet of 8 to 10,000 endpoints cost the control loop, and what they cost a worker that
// asks next. Floor: a look at each endpoint once.
#include <benchmark/benchmark.h>

#include <string>

#include "fleet/fleet.h"

namespace fairway::fleet {
namespace {

api::Manifests Pods(int64_t n) {
  api::Manifests m;
  api::InferencePool pool;
  pool.meta.name = "pool";
  pool.selector = {{"app", "vllm"}};
  pool.target_ports = {8000};
  m.pools.push_back(pool);
  for (int64_t i = 0; i < n; ++i) {
    api::Endpoint endpoint;
    endpoint.name = "vllm-llama3-8b-7c9d5b6f4-" + std::to_string(i) + "-rank-0";
    endpoint.address = "10.1." + std::to_string(i / 250) + "." + std::to_string(i % 250 + 1);
    endpoint.port = 8000;
    endpoint.labels = {{"app", "vllm"}, {"llm-d.ai/role", "decode"}, {"pod-template-hash", "7c9d5b6f4"}};
    endpoint.pool_key = "default/pool";
    endpoint.uid = "3f6c1f0e-0000-4000-8000-" + std::to_string(100'000'000'000 + i);
    m.endpoints.push_back(endpoint);
  }
  return m;
}

void ApplyUnchanged(benchmark::State& state) {
  const api::Manifests m = Pods(state.range(0));
  Fleet fleet;
  fleet.Apply(m);
  for (auto _ : state) fleet.Apply(m);
}
BENCHMARK(ApplyUnchanged)->Arg(8)->Arg(100)->Arg(10'000)->Unit(benchmark::kMicrosecond);

// A Pod comes and goes.
void ApplyOneChanged(benchmark::State& state) {
  api::Manifests m = Pods(state.range(0));
  Fleet fleet;
  fleet.Apply(m);
  const api::Endpoint last = m.endpoints.back();
  for (auto _ : state) {
    m.endpoints.pop_back();
    fleet.Apply(m);
    m.endpoints.push_back(last);
    fleet.Apply(m);
  }
  state.SetItemsProcessed(state.iterations() * 2);
}
BENCHMARK(ApplyOneChanged)->Arg(8)->Arg(100)->Arg(10'000)->Unit(benchmark::kMicrosecond);

void NewAdapter(benchmark::State& state) {
  Fleet fleet;
  fleet.Apply(Pods(state.range(0)));
  int64_t number = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        fleet.InternAdapter("default/pool", "lora-" + std::to_string(number++ % 100'000)));
  }
}
BENCHMARK(NewAdapter)->Arg(8)->Arg(100)->Arg(10'000)->Unit(benchmark::kMicrosecond);

// The first look of a worker at a new snapshot.
void FirstLook(benchmark::State& state) {
  api::Manifests m = Pods(state.range(0));
  Fleet fleet;
  fleet.Apply(m);
  base::Published<Snapshot>::Reader reader(fleet.published());
  for (auto _ : state) {
    state.PauseTiming();
    m.endpoints.front().labels["change"] = std::to_string(fleet.published().version());
    fleet.Apply(m);
    state.ResumeTiming();
    benchmark::DoNotOptimize(reader.Get().get());
  }
}
BENCHMARK(FirstLook)->Arg(8)->Arg(100)->Arg(10'000)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace fairway::fleet
