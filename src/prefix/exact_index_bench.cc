// Keys and the exact index at the sizes that they are made for: prompts of 2,000 blocks, 1,000 engines, 10
// million different blocks.
#include <benchmark/benchmark.h>

#include <numeric>
#include <vector>

#include "prefix/exact_index.h"

namespace fairway::prefix {
namespace {

constexpr uint32_t kBlockTokens = 16;
constexpr size_t kPromptBlocks = 2000;

std::vector<uint32_t> PromptOf(uint32_t first, size_t blocks) {
  std::vector<uint32_t> tokens(blocks * kBlockTokens);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

ExactOptions OptionsOf(int64_t algorithm) {
  return {.keys = BlockKeys(algorithm == 0 ? BlockKeys::Algorithm::kXxh64 : BlockKeys::Algorithm::kCborFnv,
                            "", kBlockTokens)};
}

void MakeKeys(benchmark::State& state) {
  const BlockKeys keys = OptionsOf(state.range(0)).keys;
  const auto tokens = PromptOf(1000, kPromptBlocks);
  std::vector<uint64_t> chain;
  for (auto _ : state) {
    chain.clear();
    AppendKeys(keys, keys.Root(""), tokens, {}, "", chain);
    benchmark::DoNotOptimize(chain.data());
  }
  state.SetLabel(state.range(0) == 0 ? "xxh64" : "cbor-fnv");
}
BENCHMARK(MakeKeys)->Arg(0)->Arg(1);

enum Holding { kAllHoldAll, kEachItsOwn, kOneOf50, kNoneHolds };

struct Engines {
  Engines(size_t engines, Holding holding) : index(OptionsOf(0)) {
    const auto tokens = PromptOf(1, kPromptBlocks);
    AppendKeys(index.keys(), index.keys().Root(""), tokens, {}, "", chain);
    std::vector<uint64_t> names(kPromptBlocks);
    std::iota(names.begin(), names.end(), 1);
    for (size_t i = 0; i < engines; ++i) {
      const EndpointSlot source = *index.Take();
      size_t blocks = kPromptBlocks;
      if (holding == kEachItsOwn) blocks = 1 + i * kPromptBlocks / engines;
      if (holding == kOneOf50) blocks = i % 50 == 0 ? kPromptBlocks : kPromptBlocks / 20;
      if (holding == kNoneHolds) continue;
      index.Store(source, {.blocks = std::span(names).first(blocks),
                           .parent = std::nullopt,
                           .tokens = std::span(tokens).first(blocks * kBlockTokens),
                           .block_tokens = kBlockTokens,
                           .tier = "",
                           .adapter = "",
                           .extras = {}});
    }
  }
  ExactIndex index;
  std::vector<uint64_t> chain;
};

void ExactMatchAll(benchmark::State& state) {
  static constexpr const char* kNames[] = {"all have all", "each its own length", "1 of 50 has it", "nobody"};
  Engines engines(static_cast<size_t>(state.range(0)), static_cast<Holding>(state.range(1)));
  ExactIndex::Scratch scratch;
  std::vector<ExactMatch> matches;
  for (auto _ : state) {
    engines.index.Match(engines.chain, scratch, matches);
    benchmark::DoNotOptimize(matches.data());
  }
  state.SetLabel(kNames[state.range(1)]);
  state.counters["found"] = static_cast<double>(matches.size());
}
BENCHMARK(ExactMatchAll)->ArgsProduct({{8, 100, 1000}, {0, 1, 2, 3}})->Unit(benchmark::kMicrosecond);

// 20,000 prompts of 500 blocks, each at one of 100 engines. `page`: tokens of an engine's block.
void TenMillionExactBlocks(benchmark::State& state) {
  const auto page = static_cast<uint32_t>(state.range(0));
  for (auto _ : state) {
    ExactIndex index(OptionsOf(0));
    std::vector<EndpointSlot> sources;
    for (int i = 0; i < 100; ++i) sources.push_back(*index.Take());
    const size_t pages = 500 * kBlockTokens / page;
    std::vector<uint64_t> names(pages);
    for (uint32_t i = 0; i < 20'000; ++i) {
      std::iota(names.begin(), names.end(), 1 + i * pages);
      const auto tokens = PromptOf(i * 500 * kBlockTokens, 500);
      index.Store(sources[i % 100], {.blocks = names,
                                     .parent = std::nullopt,
                                     .tokens = tokens,
                                     .block_tokens = page,
                                     .tier = "",
                                     .adapter = "",
                                     .extras = {}});
    }
    const ExactStats stats = index.stats();
    state.counters["MB"] = static_cast<double>(stats.bytes) / 1e6;
    state.counters["most_MB"] = static_cast<double>(stats.most_bytes) / 1e6;
    state.counters["blocks"] = static_cast<double>(stats.blocks);
    state.counters["held"] = static_cast<double>(stats.held);
    state.counters["refused"] = static_cast<double>(stats.refused);
    state.counters["bytes_per_held"] = static_cast<double>(stats.bytes) / static_cast<double>(stats.held);
  }
  state.SetItemsProcessed(state.iterations() * 10'000'000);
}
BENCHMARK(TenMillionExactBlocks)->Arg(16)->Arg(1)->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace fairway::prefix
