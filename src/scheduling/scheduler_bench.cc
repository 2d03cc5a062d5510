// The decision alone: gather, filters, scores, pick, reserve and release, at 8 to 10,000 endpoints.
// Floor: reading the four signals of each endpoint's cell once.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "scheduling/recording.h"
#include "scheduling/scheduler.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

tests::TestPool MakePool(int64_t n, bool with_models) {
  std::vector<tests::ServerState> servers;
  base::Random random(9);
  for (int64_t i = 0; i < n; ++i) {
    servers.push_back({.name = "e" + std::to_string(i),
                       .waiting = static_cast<uint32_t>(random.Below(60)),
                       .kv_usage = static_cast<float>(random.NextDouble()),
                       .adapters = {"lora-" + std::to_string(random.Below(10))},
                       .max_adapters = 4,
                       .running = static_cast<uint32_t>(random.Below(64))});
  }
  std::vector<api::InferenceModel> models;
  if (with_models) models.push_back(tests::Model("chat", api::Criticality::kCritical));
  return tests::TestPool(std::move(servers), std::move(models));
}

void Decide(benchmark::State& state, bool with_models, bool critical, std::string_view model = "lora-3",
            bool records = false) {
  tests::TestPool pool = MakePool(state.range(0), with_models);
  const auto snapshot = pool.pool();
  base::Random learned(3);
  for (const auto& endpoint : snapshot->endpoints) {  // as engines at work are: their rates are known
    fleet::Reservation request = endpoint.cell->Reserve(1000, base::kMillisecond);
    endpoint.cell->FirstToken(request,
                              static_cast<base::Nanos>(100 + learned.Below(100)) * base::kMillisecond);
    endpoint.cell->Release(request, fleet::ReleaseKind::kEnded, 0);
  }
  const Scheduler scheduler({}, 0);
  Scratch scratch;
  base::Random random(1);
  const Facts request{
      .target_model = std::string(model), .adapter = snapshot->AdapterId(model), .critical = critical};
  Recording recording;
  for (auto _ : state) {
    const Outcome outcome = scheduler.Pick(*snapshot, request, std::nullopt, base::kSecond, scratch, random,
                                           nullptr, records ? &recording : nullptr);
    benchmark::DoNotOptimize(outcome);
    if (outcome.kind == OutcomeKind::kPicked) {
      snapshot->endpoints[outcome.choices[0]].cell->Release(outcome.reservation, fleet::ReleaseKind::kEnded,
                                                            base::kSecond);
    }
  }
}

void BM_DefaultProfile(benchmark::State& state) { Decide(state, false, true); }
void BM_NoAdapter(benchmark::State& state) { Decide(state, false, true, ""); }
void BM_DefaultProfileRecorded(benchmark::State& state) { Decide(state, false, true, "lora-3", true); }
void BM_TreeCritical(benchmark::State& state) { Decide(state, true, true); }
void BM_TreeSheddable(benchmark::State& state) { Decide(state, true, false); }

// A prompt of 2,000 blocks that nobody has, to 8 endpoints whose index is full: the decision, and what it
// leaves to be learned behind the answer.
void LongPrompt(benchmark::State& state, bool behind) {
  tests::TestPool pool = MakePool(8, false);
  const auto snapshot = pool.pool();
  const Scheduler scheduler({}, 0);
  Scratch scratch;
  base::Random random(1);
  Facts request{.target_model = "m",
                .prompt_tokens = 128'000,
                .prompts = {.prefixes = std::vector<uint64_t>(2000), .ends = {{2000, false}}}};
  const auto decide = [&] {
    for (uint64_t& block : request.prompts.prefixes) block = random.Next();
    if (!behind) state.ResumeTiming();
    const Outcome outcome = scheduler.Pick(*snapshot, request, std::nullopt, base::kSecond, scratch, random);
    if (!behind) state.PauseTiming();
    snapshot->endpoints[outcome.choices[0]].cell->Release(outcome.reservation, fleet::ReleaseKind::kEnded,
                                                          base::kSecond);
    const auto learn = Scheduler::TakePutOff(scratch, request.prompts);
    if (behind) state.ResumeTiming();
    learn();
    if (behind) state.PauseTiming();
  };
  for (auto _ : state) {
    state.PauseTiming();
    decide();
    state.ResumeTiming();
  }
}
void BM_LongPrompt(benchmark::State& state) { LongPrompt(state, false); }
void BM_LongPromptLearned(benchmark::State& state) { LongPrompt(state, true); }

void BM_FloorReadCells(benchmark::State& state) {
  tests::TestPool pool = MakePool(state.range(0), false);
  const auto snapshot = pool.pool();
  for (auto _ : state) {
    float sum = 0;
    for (size_t i = 0; i < snapshot->cells.size(); ++i) {
      const fleet::EndpointLoad& load = *snapshot->loads[i];
      const fleet::ScrapedLoad last = load.last();
      sum += static_cast<float>(last.waiting + last.running + load.requests().own) + last.kv_usage +
             static_cast<float>(load.own_work().tokens + load.unseen_work().tokens);
    }
    benchmark::DoNotOptimize(sum);
  }
}

BENCHMARK(BM_FloorReadCells)->Arg(8)->Arg(100)->Arg(1000)->Arg(10000);
BENCHMARK(BM_DefaultProfile)->Arg(8)->Arg(100)->Arg(1000)->Arg(10000);
BENCHMARK(BM_NoAdapter)->Arg(8)->Arg(100)->Arg(1000)->Arg(10000);
BENCHMARK(BM_DefaultProfileRecorded)->Arg(8)->Arg(100)->Arg(1000);
BENCHMARK(BM_LongPrompt);
BENCHMARK(BM_LongPromptLearned);
BENCHMARK(BM_TreeCritical)->Arg(8)->Arg(100)->Arg(1000)->Arg(10000);
BENCHMARK(BM_TreeSheddable)->Arg(8)->Arg(100)->Arg(1000)->Arg(10000);

}  // namespace
}  // namespace fairway::scheduling
