// What replays ask of an engine beyond serving text: prompts by length and content, a tokenizer's delay, a
// slow-down, and what would come next.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "simulator/engine.h"

namespace fairway::simulator {
namespace {

using base::kMillisecond;
using base::kSecond;
using base::Nanos;
using Segments = std::vector<PromptSegment>;

// Serves what is submitted until it is idle.
struct Driven {
  explicit Driven(EngineOptions options) : engine(options) {}
  void Submit(const Segments& prompt, int64_t answer, uint64_t tag, std::string_view adapter = "") {
    ASSERT_TRUE(engine.Submit(
        {.adapter = adapter, .max_tokens = answer, .segments = prompt, .ignore_eos = true, .tag = tag}, now));
  }
  void Drain() {
    while (engine.NextEventTime() != 0) Advance(engine.NextEventTime());
  }
  void Advance(Nanos to) {
    now = to;
    std::vector<EngineEvent> events;
    engine.AdvanceTo(now, events, Engine::Tell::kFirstAndLast);
    for (const EngineEvent& event : events) {
      if (event.index == 0) first[event.tag] = event.at;
      cached[event.tag] = event.cached_tokens;
    }
  }
  Engine engine;
  Nanos now = kSecond;
  std::map<uint64_t, Nanos> first;
  std::map<uint64_t, uint32_t> cached;
};

TEST(PromptSegments, ShareTheBlocksOfEqualBeginnings) {
  Driven run({});
  run.Submit({{7, 160}, {1, 100}}, 2, 1);
  run.Drain();
  run.Submit({{7, 160}, {2, 100}}, 2, 2);
  run.Submit({{8, 160}, {1, 100}}, 2, 3);  // after another beginning the same words are another prompt
  run.Submit({{7, 100}, {3, 160}}, 2, 4);  // a part of the beginning: its last block differs
  run.Drain();
  EXPECT_EQ(run.cached[1], 0u);
  EXPECT_EQ(run.cached[2], 160u);
  EXPECT_EQ(run.cached[3], 0u);
  EXPECT_EQ(run.cached[4], 96u);
}

TEST(PromptSegments, TheNextTurnFindsTheAnswerBeforeIt) {
  Driven run({});
  run.Submit({{7, 64}, {1, 100}}, 60, 1);
  run.Drain();
  const Segments next = {{7, 64}, {1, 100 + 60 + 40}};
  // 224 tokens were said, but the last one's keys and values were never computed.
  EXPECT_EQ(run.engine.CachedTokens({.segments = next}), 208u);
  run.Submit(next, 2, 2);
  run.Drain();
  EXPECT_EQ(run.cached[2], 208u);
}

TEST(PromptSegments, AdaptersShareNothing) {
  Driven run({.max_loras = 2});
  run.Submit({{7, 160}}, 2, 1, "a");
  run.Drain();
  EXPECT_EQ(run.engine.CachedTokens({.adapter = "b", .segments = Segments{{7, 160}}}), 0u);
  EXPECT_EQ(run.engine.CachedTokens({.adapter = "a", .segments = Segments{{7, 160}}}), 144u);
  EXPECT_TRUE(run.engine.IsResident("a"));
  EXPECT_FALSE(run.engine.IsResident("b"));
}

TEST(Tokenizer, OnePromptAfterTheOtherGetsIntoTheQueue) {
  Driven run({.tokenizer_tokens_per_second = 10'000});
  run.Submit({{1, 1000}}, 1, 1);
  run.Submit({{2, 10}}, 1, 2);
  EXPECT_EQ(run.engine.waiting_now(), 2u);
  EXPECT_EQ(run.engine.NextEventTime(), kSecond + 100 * kMillisecond);
  run.Drain();
  EXPECT_EQ(run.first[1], kSecond + (100 + 125 + 12) * kMillisecond);
  EXPECT_EQ(run.first[2], run.first[1] + Nanos{12 * kMillisecond + 1'250'000});
  EXPECT_EQ(run.engine.NextEventTime(), 0);
}

TEST(Slowdown, HoldsFromTheNextStepOn) {
  Driven run({});
  run.Submit({{1, 800}}, 3, 1);
  run.engine.SetSlowdown(3);
  EXPECT_EQ(run.engine.NextEventTime(), kSecond + 112 * kMillisecond);
  run.Advance(run.engine.NextEventTime());
  EXPECT_EQ(run.engine.NextEventTime() - run.now, Nanos{3 * 12'100'000});
}

// Where nothing comes after it, a first token comes when it was said to.
TEST(Forecast, IsWhatHappens) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    EngineOptions options;
    options.max_model_len = 4000;
    options.num_blocks = 4000;  // no preemption
    options.max_num_seqs = 1 + static_cast<uint32_t>(random.Below(8));
    options.max_num_batched_tokens = 64 + static_cast<uint32_t>(random.Below(1000));
    options.max_loras = 2;
    if (random.Below(3) == 0) options.tokenizer_tokens_per_second = 1e6;
    Driven run(options);
    constexpr std::string_view kAdapters[] = {"", "a", "b", "c"};
    for (uint64_t i = 0; i < 25; ++i) {
      run.Submit({{i, static_cast<uint32_t>(1 + random.Below(1500))}},
                 static_cast<int64_t>(1 + random.Below(40)), i, kAdapters[random.Below(4)]);
      run.Advance(run.now + static_cast<Nanos>(random.Below(100 * kMillisecond)));
    }
    const Segments prompt = {{99, static_cast<uint32_t>(1 + random.Below(1500))}};
    const std::string_view adapter = kAdapters[random.Below(4)];
    const EngineRequest request{.adapter = adapter, .max_tokens = 5, .segments = prompt, .ignore_eos = true};
    const Nanos said = run.engine.ForecastFirstToken(std::span(&request, 1), run.now);
    run.Submit(prompt, 5, 99, adapter);
    run.Drain();
    EXPECT_EQ(run.first[99], said);
  }
}

TEST(Forecast, CountsThoseThatAreOnTheirWay) {
  const Engine engine({});
  const Segments long_one = {{1, 1600}}, short_one = {{2, 16}};
  const std::vector<EngineRequest> requests = {{.max_tokens = 5, .segments = long_one},
                                               {.max_tokens = 5, .segments = short_one}};
  EXPECT_EQ(engine.ForecastFirstToken(std::span(requests).last(1), kSecond), kSecond + 14 * kMillisecond);
  EXPECT_EQ(engine.ForecastFirstToken(requests, kSecond), kSecond + 214 * kMillisecond);
  const Segments too_long = {{1, 100'000}};
  const EngineRequest never{.max_tokens = 5, .segments = too_long};
  EXPECT_EQ(engine.ForecastFirstToken(std::span(&never, 1), kSecond), INT64_MAX);
}

}  // namespace
}  // namespace fairway::simulator
