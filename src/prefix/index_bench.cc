// The index at the sizes that it is made for: prompts of 2,000 blocks, fleets of 1,000, 10 million different
// blocks.
#include <benchmark/benchmark.h>

#include <atomic>
#include <memory>
#include <thread>

#include "base/random.h"
#include "prefix/index.h"

namespace fairway::prefix {
namespace {

std::vector<uint64_t> Chain(uint64_t seed, size_t size) {
  base::Random random(seed);
  std::vector<uint64_t> chain(size);
  for (uint64_t& block : chain) block = random.Next();
  return chain;
}

enum Shape { kAllHaveAll, kEachItsOwnLength, kSomeHaveIt, kNobody };

// A fleet that is full: every endpoint has 4,000 blocks of its own beside what is asked for.
struct Fleet {
  Fleet(size_t endpoints, size_t blocks, Shape shape) : index({}), chain(Chain(1, blocks)) {
    for (size_t i = 0; i < endpoints; ++i) {
      slots.push_back(*index.Take());
      for (uint64_t j = 0; j < 4; ++j) index.Insert(slots[i], Chain(1000 + i * 4 + j, 500));
    }
    for (size_t i = 0; i < endpoints; ++i) {
      size_t length = blocks;
      if (shape == kEachItsOwnLength) length = 1 + i * blocks / endpoints;
      if (shape == kSomeHaveIt) length = i % 50 == 0 ? blocks : blocks / 20;
      if (shape != kNobody) index.Insert(slots[i], std::span(chain).first(length));
    }
  }
  Index index;
  std::vector<uint64_t> chain;
  std::vector<EndpointSlot> slots;
};

void Match(benchmark::State& state) {
  static constexpr const char* kNames[] = {"all have all", "each its own length", "1 of 50 has it", "nobody"};
  Fleet fleet(static_cast<size_t>(state.range(0)), static_cast<size_t>(state.range(1)),
              static_cast<Shape>(state.range(2)));
  Index::Scratch scratch;
  std::vector<SlotMatch> matches;
  for (auto _ : state) {
    fleet.index.Match(fleet.chain, scratch, matches);
    benchmark::DoNotOptimize(matches.data());
  }
  state.SetLabel(kNames[state.range(2)]);
}
BENCHMARK(Match)->ArgsProduct({{8, 100, 1000}, {8, 2000}, {0, 1, 2, 3}});

// Its lines were pushed out of the caches, as they are at one request of many.
void MatchCold(benchmark::State& state) {
  Fleet fleet(static_cast<size_t>(state.range(0)), 2000, static_cast<Shape>(state.range(1)));
  std::vector<char> other(size_t{32} << 20, 1);
  Index::Scratch scratch;
  std::vector<SlotMatch> matches;
  for (auto _ : state) {
    state.PauseTiming();
    for (size_t i = 0; i < other.size(); i += 64) other[i] = static_cast<char>(other[i] + 1);
    state.ResumeTiming();
    fleet.index.Match(fleet.chain, scratch, matches);
    benchmark::DoNotOptimize(matches.data());
  }
}
BENCHMARK(MatchCold)->ArgsProduct({{8, 1000}, {0, 1}})->Iterations(50);

void MatchBesideWriters(benchmark::State& state) {
  Fleet fleet(1000, 2000, kSomeHaveIt);
  std::atomic<bool> stop = false;
  std::vector<std::jthread> writers;
  for (int64_t i = 0; i < state.range(0); ++i) {
    writers.emplace_back([&, i] {
      for (uint64_t seed = 1'000'000 * (static_cast<uint64_t>(i) + 1); !stop; ++seed)
        fleet.index.Insert(fleet.slots[seed % 1000], Chain(seed, 500));
    });
  }
  Index::Scratch scratch;
  std::vector<SlotMatch> matches;
  for (auto _ : state) {
    fleet.index.Match(fleet.chain, scratch, matches);
    benchmark::DoNotOptimize(matches.data());
  }
  stop = true;
  state.counters["given_up"] = static_cast<double>(fleet.index.stats().given_up);
  state.counters["written"] = static_cast<double>(fleet.index.stats().inserted);
}
BENCHMARK(MatchBesideWriters)->Arg(0)->Arg(1)->Arg(2);

void InsertNew(benchmark::State& state) {
  Fleet fleet(1000, 100, kNobody);
  std::vector<std::vector<uint64_t>> chains;
  for (uint64_t i = 0; i < 64; ++i) chains.push_back(Chain(7'000'000 + i, 500));
  size_t at = 0;
  for (auto _ : state) {
    state.PauseTiming();
    for (uint64_t& block : chains[at % 64]) block = block * 0x9e3779b97f4a7c15ULL + 1;
    state.ResumeTiming();
    fleet.index.Insert(fleet.slots[at % 1000], chains[at % 64]);
    ++at;
  }
  state.SetItemsProcessed(state.iterations() * 500);
}
BENCHMARK(InsertNew);

void InsertKnown(benchmark::State& state) {
  Fleet fleet(1000, 2000, kAllHaveAll);
  size_t at = 0;
  for (auto _ : state) fleet.index.Insert(fleet.slots[++at % 1000], fleet.chain);
  state.SetItemsProcessed(state.iterations() * 2000);
}
BENCHMARK(InsertKnown);

void TenMillionBlocks(benchmark::State& state) {
  for (auto _ : state) {
    Index index({.default_capacity = 100'000'000});
    std::vector<EndpointSlot> slots;
    for (int i = 0; i < 100; ++i) slots.push_back(*index.Take());
    for (uint64_t i = 0; i < 20'000; ++i) index.Insert(slots[i % 100], Chain(i + 1, 500));
    const IndexStats stats = index.stats();
    state.counters["MB"] = static_cast<double>(stats.bytes) / 1e6;
    state.counters["most_MB"] = static_cast<double>(stats.most_bytes) / 1e6;
    state.counters["blocks"] = static_cast<double>(stats.blocks);
    state.counters["refused"] = static_cast<double>(stats.refused);
    state.counters["bytes_per_block"] = static_cast<double>(stats.bytes) / static_cast<double>(stats.held);
  }
}
BENCHMARK(TenMillionBlocks)->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace fairway::prefix
