#include "simulator/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

namespace fairway::simulator {
namespace {

using base::kMillisecond;
using base::kSecond;
using base::Nanos;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Distinct text of that many tokens, the same for the same seed.
std::string Text(uint64_t seed, size_t tokens) {
  base::Random random(seed);
  std::string text;
  while (text.size() < tokens * kBytesPerToken) text += static_cast<char>('a' + random.Below(26));
  return text;
}

EngineOptions Plain() {
  EngineOptions options;
  options.answer_spread = 0;
  return options;
}

// Drives one engine in virtual time and keeps what it said.
struct Driver {
  explicit Driver(EngineOptions options) : engine(options) {}

  uint64_t Submit(const std::string& prompt, int64_t max_tokens, const std::string& adapter = "") {
    Advance(now);
    auto accepted = engine.Submit(
        {.adapter = adapter, .prompt = prompt, .max_tokens = max_tokens, .ignore_eos = true}, now);
    EXPECT_TRUE(accepted.has_value()) << accepted.error().message;
    arrival[accepted->id] = now;
    return accepted->id;
  }
  void Advance(Nanos to) {
    now = to;
    const size_t from = events.size();
    engine.AdvanceTo(now, events);
    for (size_t i = from; i < events.size(); ++i) {
      const EngineEvent& event = events[i];
      EXPECT_LE(event.at, now);
      if (event.index == 0) first[event.id] = event.at;
      last[event.id] = event.at;
      tokens[event.id] = event.index + 1;
      cached[event.id] = event.cached_tokens;
      if (event.finish != FinishReason::kNone) finish[event.id] = event.finish;
      peak_usage = std::max(peak_usage, engine.gauges().kv_cache_usage);
    }
  }
  void Step() { Advance(engine.NextEventTime()); }
  void Drain() {
    while (engine.NextEventTime() != 0) Step();
  }
  Nanos Ttft(uint64_t id) { return first.at(id) - arrival.at(id); }

  Engine engine;
  Nanos now = kSecond;
  std::vector<EngineEvent> events;
  std::map<uint64_t, Nanos> arrival, first, last;
  std::map<uint64_t, uint32_t> tokens, cached;
  std::map<uint64_t, FinishReason> finish;
  double peak_usage = 0;
};

TEST(EngineOptions, WrongOnesSayWhatWouldBeRight) {
  EngineOptions options;
  EXPECT_TRUE(Validate(options));
  options.num_blocks = 100;
  EXPECT_THAT(Validate(options).error().message, HasSubstr("raise num_blocks to 257"));
  options.num_blocks = 257;
  EXPECT_TRUE(Validate(options));
  options.max_num_seqs = 0;
  EXPECT_THAT(Validate(options).error().message, HasSubstr("max_num_seqs is 0, must be 1.."));
  options = {};
  options.prefill_tokens_per_second = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(Validate(options));
  options = {};
  options.decode_base = -1;
  EXPECT_FALSE(Validate(options));
}

TEST(Engine, OneRequestTakesPrefillThenOneStepPerToken) {
  EngineOptions options = Plain();
  options.prefill_tokens_per_second = 1000;
  options.decode_base = 10 * kMillisecond;
  options.decode_per_sequence = kMillisecond;
  Driver driver(options);
  const uint64_t id = driver.Submit(Text(1, 500), 5);
  driver.Drain();
  EXPECT_EQ(driver.Ttft(id), (10 + 500) * kMillisecond);
  EXPECT_EQ(driver.last[id] - driver.first[id], 4 * (10 + 1) * kMillisecond);
  EXPECT_EQ(driver.tokens[id], 5u);
  EXPECT_EQ(driver.finish[id], FinishReason::kLength);
  EXPECT_EQ(driver.engine.totals().prompt_tokens, 500u);
  EXPECT_EQ(driver.engine.totals().generation_tokens, 5u);
  EXPECT_EQ(driver.engine.totals().request_success[static_cast<size_t>(FinishReason::kLength)], 1u);
  EXPECT_EQ(driver.engine.used_blocks(), 0u);
  EXPECT_EQ(driver.engine.gauges().running, 0u);
}

TEST(Engine, FirstTokenComesLaterForALongerPrompt) {
  Nanos before = 0;
  for (size_t tokens : {100, 1000, 3000}) {  // the last one in two chunks
    Driver driver(Plain());
    const uint64_t id = driver.Submit(Text(1, tokens), 2);
    driver.Drain();
    EXPECT_GT(driver.Ttft(id), before);
    before = driver.Ttft(id);
  }
}

TEST(Engine, DecodingSlowsWithTheBatch) {
  auto pace = [](int requests) {
    Driver driver(Plain());
    uint64_t id = 0;
    for (int i = 0; i < requests; ++i) id = driver.Submit(Text(static_cast<uint64_t>(i) + 1, 16), 50);
    driver.Drain();
    return (driver.last[id] - driver.first[id]) / 49;
  };
  EXPECT_EQ(pace(1), 12 * kMillisecond + 100'000);
  EXPECT_GT(pace(40), 12 * kMillisecond + 39 * 100'000);  // the last steps are shared by fewer
  EXPECT_LE(pace(40), 12 * kMillisecond + 40 * 100'000);
}

TEST(Engine, DecodingGoesOnWhileALongPromptIsPrefilledInChunks) {
  EngineOptions options = Plain();
  options.max_num_batched_tokens = 256;
  Driver driver(options);
  const uint64_t early = driver.Submit(Text(1, 16), 100);
  driver.Step();
  const uint64_t late = driver.Submit(Text(2, 2000), 2);
  while (!driver.first.contains(late)) driver.Step();
  // 2000 tokens at most 255 a step beside the decoding sequence: 8 chunks, each with a token of the early
  // one.
  EXPECT_EQ(driver.tokens[early], 1u + 8 + 1);
}

TEST(Engine, QueueGrowsBeyondTheSlotsAndIsServedInOrder) {
  EngineOptions options = Plain();
  options.max_num_seqs = 4;
  Driver driver(options);
  std::vector<uint64_t> ids;
  for (uint64_t i = 0; i < 10; ++i) ids.push_back(driver.Submit(Text(i + 1, 32), 10));
  EXPECT_EQ(driver.engine.waiting_now() + driver.engine.running_now(), 10u);
  EXPECT_EQ(driver.engine.gauges().waiting, 0u);  // nothing reported before a step ends
  driver.Step();
  driver.Step();
  EXPECT_EQ(driver.engine.gauges().running, 4u);
  EXPECT_EQ(driver.engine.gauges().waiting, 6u);
  driver.Drain();
  for (size_t i = 1; i < ids.size(); ++i) EXPECT_LE(driver.first[ids[i - 1]], driver.first[ids[i]]);
  EXPECT_GT(driver.Ttft(ids[9]), 2 * driver.Ttft(ids[3]));
  EXPECT_EQ(driver.engine.totals().request_queue_time_seconds.count(), 10u);
}

TEST(Engine, WhatFitsTheNextStepNeverShowsAsWaiting) {
  Driver driver(Plain());
  driver.Submit(Text(1, 32), 50);
  for (uint64_t i = 0; i < 5; ++i) driver.Submit(Text(i + 2, 32), 50);
  for (int i = 0; i < 10; ++i) {
    driver.Step();
    EXPECT_EQ(driver.engine.gauges().waiting, 0u);
  }
  EXPECT_EQ(driver.engine.gauges().running, 6u);
}

TEST(Engine, AFullQueueRejects) {
  EngineOptions options = Plain();
  options.max_num_seqs = 1;
  options.max_waiting = 2;
  Driver driver(options);
  for (int i = 0; i < 3; ++i) driver.Submit("hello", 10);
  auto refused = driver.engine.Submit({.prompt = "hello"}, driver.now);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, base::ErrorCode::kResourceExhausted);
}

TEST(Engine, TooLongIsRefusedInWordsLikeTheRealOnes) {
  Driver driver(Plain());
  auto refused = driver.engine.Submit({.prompt = Text(1, 4096)}, driver.now);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, base::ErrorCode::kInvalidArgument);
  EXPECT_THAT(refused.error().message, HasSubstr("maximum context length is 4096 tokens"));
  EXPECT_FALSE(driver.engine.Submit({.prompt = Text(1, 4000), .max_tokens = 97}, driver.now));
  EXPECT_TRUE(driver.engine.Submit({.prompt = Text(1, 4000), .max_tokens = 96}, driver.now));
  EXPECT_FALSE(driver.engine.Submit({.prompt = "x", .max_tokens = 0}, driver.now));
  EXPECT_FALSE(driver.engine.Submit({.prompt = "x", .max_tokens = -5}, driver.now));
  EXPECT_FALSE(driver.engine.Submit({.adapter = "a", .prompt = "x"}, driver.now));  // max_loras is 0
}

TEST(Engine, KvUsageRisesAndTheLatestIsPreemptedAndRecomputed) {
  EngineOptions options = Plain();
  options.max_model_len = 512;
  options.num_blocks = 1 + 40;  // 640 tokens
  Driver driver(options);
  std::vector<uint64_t> ids;
  for (uint64_t i = 0; i < 4; ++i) ids.push_back(driver.Submit(Text(i + 1, 128), 128));
  double before = 0;
  for (int i = 0; i < 5; ++i) {
    driver.Step();
    EXPECT_GE(driver.engine.gauges().kv_cache_usage, before);
    before = driver.engine.gauges().kv_cache_usage;
  }
  EXPECT_GE(before, 32.0 / 40);
  driver.Drain();
  EXPECT_GT(driver.engine.totals().num_preemptions, 0u);
  EXPECT_GT(driver.peak_usage, 0.95);
  for (uint64_t id : ids) {
    EXPECT_EQ(driver.tokens[id], 128u);  // each got all of its tokens, each once
    EXPECT_EQ(driver.finish[id], FinishReason::kLength);
  }
  EXPECT_EQ(driver.events.size(), 4u * 128);
  EXPECT_LT(driver.last[ids[0]], driver.last[ids[3]]);  // the first was never the victim
  EXPECT_EQ(driver.engine.totals().prompt_tokens, 4u * 128);
  EXPECT_EQ(driver.engine.used_blocks(), 0u);
}

TEST(Engine, ACachedPrefixShortensTheWait) {
  Driver driver(Plain());
  const std::string shared = Text(1, 1600);
  const uint64_t cold = driver.Submit(shared + Text(2, 32), 4);
  driver.Drain();
  const uint64_t warm = driver.Submit(shared + Text(3, 32), 4);
  driver.Drain();
  EXPECT_EQ(driver.cached[cold], 0u);
  EXPECT_EQ(driver.cached[warm], 1600u);
  EXPECT_LT(driver.Ttft(warm), driver.Ttft(cold) / 4);
  EXPECT_EQ(driver.engine.totals().prefix_cache_queries, 2u * 1632);
  EXPECT_EQ(driver.engine.totals().prefix_cache_hits, 1600u);
}

TEST(Engine, TheLastTokenOfACachedPromptIsComputedAllTheSame) {
  Driver driver(Plain());
  const std::string prompt = Text(1, 160);
  driver.Submit(prompt, 1);
  driver.Drain();
  const uint64_t again = driver.Submit(prompt, 1);
  driver.Drain();
  EXPECT_EQ(driver.cached[again], 144u);
}

TEST(Engine, AdaptersAndSaltsDoNotShareBlocks) {
  EngineOptions options = Plain();
  options.max_loras = 2;
  Driver driver(options);
  const std::string prompt = Text(1, 320) + "x";
  driver.Submit(prompt, 1);
  driver.Drain();
  const uint64_t other = driver.Submit(prompt, 1, "adapter");
  driver.Drain();
  EXPECT_EQ(driver.cached[other], 0u);
  auto salted = driver.engine.Submit({.prompt = prompt, .max_tokens = 1, .cache_salt = "s"}, driver.now);
  driver.Drain();
  EXPECT_EQ(driver.cached[salted->id], 0u);
  const uint64_t same = driver.Submit(prompt, 1, "adapter");
  driver.Drain();
  EXPECT_EQ(driver.cached[same], 320u);
}

TEST(Engine, RunningRequestsShareThePrefixInUse) {
  Driver driver(Plain());
  const std::string shared = Text(1, 1600);
  driver.Submit(shared, 100);
  driver.Step();
  const uint32_t alone = driver.engine.used_blocks();
  for (int i = 0; i < 9; ++i) driver.Submit(shared + std::to_string(i), 100);
  driver.Step();
  EXPECT_EQ(driver.engine.running_now(), 10u);
  EXPECT_LT(driver.engine.used_blocks(), alone + 9 * 3);
}

TEST(Engine, UnusedPrefixesAreForgottenOldestFirst) {
  EngineOptions options = Plain();
  options.max_model_len = 1024;
  options.num_blocks = 1 + 100;  // 1,600 tokens
  Driver driver(options);
  auto cached = [&](uint64_t seed) {
    const uint64_t id = driver.Submit(Text(seed, 640), 1);
    driver.Drain();
    return driver.cached[id];
  };
  EXPECT_EQ(cached(1), 0u);
  EXPECT_EQ(cached(2), 0u);
  EXPECT_EQ(cached(1), 624u);
  EXPECT_EQ(cached(3), 0u);  // takes the space of 2, which was used before 1
  EXPECT_EQ(cached(1), 624u);
  EXPECT_LT(cached(2), 624u);
}

TEST(Engine, WithoutPrefixCachingNothingIsFound) {
  EngineOptions options = Plain();
  options.prefix_caching = false;
  Driver driver(options);
  for (int i = 0; i < 2; ++i) {
    const uint64_t id = driver.Submit(Text(1, 320), 1);
    driver.Drain();
    EXPECT_EQ(driver.cached[id], 0u);
  }
  EXPECT_EQ(driver.engine.totals().prefix_cache_queries, 0u);
}

TEST(Engine, AnAdapterIsLoadedOnceAndStaysResident) {
  EngineOptions options = Plain();
  options.max_loras = 2;
  options.lora_load_time = 500 * kMillisecond;
  Driver driver(options);
  const uint64_t cold = driver.Submit(Text(1, 16), 1, "a");
  driver.Drain();
  const uint64_t warm = driver.Submit(Text(2, 16), 1, "a");
  driver.Drain();
  EXPECT_EQ(driver.Ttft(cold) - driver.Ttft(warm), 500 * kMillisecond);
  driver.Submit(Text(3, 16), 1, "b");
  driver.Drain();
  EXPECT_THAT(driver.engine.resident_adapters(), ElementsAre("a", "b"));
  driver.Submit(Text(4, 16), 1, "c");  // pushes a out
  driver.Drain();
  EXPECT_THAT(driver.engine.resident_adapters(), ElementsAre("b", "c"));
  EXPECT_EQ(driver.engine.totals().lora_loads, 3u);
}

TEST(Engine, NoMoreAdaptersInABatchThanSlotsAndOthersOvertake) {
  EngineOptions options = Plain();
  options.max_loras = 1;
  Driver driver(options);
  driver.Submit(Text(1, 16), 20, "a");
  const uint64_t blocked = driver.Submit(Text(2, 16), 20, "b");
  const uint64_t overtakes = driver.Submit(Text(3, 16), 5, "a");
  const uint64_t plain = driver.Submit(Text(4, 16), 5);
  driver.Step();
  driver.Step();
  const LoraInfo& info = driver.engine.lora_infos().back();
  EXPECT_THAT(info.running, ElementsAre("a"));
  EXPECT_THAT(info.waiting, ElementsAre("b"));
  EXPECT_EQ(info.at, driver.now);
  EXPECT_EQ(driver.engine.gauges().waiting, 1u);
  driver.Drain();
  EXPECT_LT(driver.first[overtakes], driver.first[blocked]);
  EXPECT_LT(driver.first[plain], driver.first[blocked]);
  EXPECT_THAT(driver.engine.lora_infos().back().running, IsEmpty());
}

TEST(Engine, LoraInfoKeepsOneEntryPerLabelSetAndIsBounded) {
  EngineOptions options = Plain();
  options.max_loras = 1;
  Driver driver(options);
  for (int i = 0; i < 600; ++i) {
    driver.Submit("x", 2, "adapter-" + std::to_string(i));
    driver.Drain();
  }
  EXPECT_LE(driver.engine.lora_infos().size(), 256u);
  EXPECT_THAT(driver.engine.lora_infos().back().running, IsEmpty());
}

TEST(Engine, AbortFreesEverythingAndNothingFollows) {
  EngineOptions options = Plain();
  options.max_num_seqs = 2;
  Driver driver(options);
  std::vector<uint64_t> ids;
  for (uint64_t i = 0; i < 4; ++i) ids.push_back(driver.Submit(Text(i + 1, 320), 50));
  driver.Step();
  driver.Step();
  EXPECT_GE(driver.engine.used_blocks(), 40u);
  EXPECT_TRUE(driver.engine.Abort(ids[0]));   // running
  EXPECT_TRUE(driver.engine.Abort(ids[2]));   // waiting
  EXPECT_FALSE(driver.engine.Abort(ids[2]));  // gone already
  const uint32_t tokens = driver.tokens[ids[0]];
  driver.Drain();
  EXPECT_EQ(driver.tokens[ids[0]], tokens);
  EXPECT_FALSE(driver.first.contains(ids[2]));
  EXPECT_EQ(driver.tokens[ids[1]], 50u);
  EXPECT_EQ(driver.tokens[ids[3]], 50u);
  EXPECT_EQ(driver.engine.totals().request_success[static_cast<size_t>(FinishReason::kAbort)], 2u);

  driver.Submit(Text(1, 320), 50);
  driver.Submit(Text(2, 320), 50);
  driver.engine.AbortAll();
  EXPECT_EQ(driver.engine.used_blocks(), 0u);
  driver.Drain();
  EXPECT_EQ(driver.engine.NextEventTime(), 0);
  EXPECT_EQ(driver.engine.gauges().running, 0u);
}

TEST(Engine, AnswersEndByThemselvesUnlessToldNotTo) {
  EngineOptions options = Plain();
  options.answer_tokens = 10;
  Driver driver(options);
  auto natural = driver.engine.Submit({.prompt = "x"}, driver.now);
  auto cut = driver.engine.Submit({.prompt = "x", .max_tokens = 3}, driver.now);
  auto full = driver.engine.Submit({.prompt = "x", .max_tokens = 30, .ignore_eos = true}, driver.now);
  driver.Drain();
  EXPECT_EQ(driver.tokens[natural->id], 10u);
  EXPECT_EQ(driver.finish[natural->id], FinishReason::kStop);
  EXPECT_EQ(driver.tokens[cut->id], 3u);
  EXPECT_EQ(driver.finish[cut->id], FinishReason::kLength);
  EXPECT_EQ(driver.tokens[full->id], 30u);
}

TEST(Engine, SameSeedSameEventsOtherSeedOthers) {
  auto run = [](uint64_t seed) {
    EngineOptions options;
    options.jitter = 0.2;
    options.seed = seed;
    Driver driver(options);
    for (uint64_t i = 0; i < 20; ++i) {
      EXPECT_TRUE(driver.engine.Submit({.prompt = Text(i + 1, 100)}, driver.now));
    }
    driver.Drain();
    std::vector<Nanos> times;
    for (const EngineEvent& event : driver.events) times.push_back(event.at);
    return times;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

TEST(Engine, ScaledTimeChangesThePaceOnly) {
  auto run = [](double factor) {
    Driver driver(ScaleTime(Plain(), factor));
    const uint64_t id = driver.Submit(Text(1, 800), 10);
    driver.Drain();
    EXPECT_EQ(driver.tokens[id], 10u);
    return driver.last[id] - kSecond;
  };
  EXPECT_NEAR(static_cast<double>(run(0.1)), static_cast<double>(run(1)) / 10, 1000);
}

// Random work on a small engine: everything ends, nothing leaks, nothing is told twice.
TEST(Engine, RandomWorkAlwaysEnds) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    EngineOptions options;
    options.max_model_len = 256;
    options.num_blocks = 1 + 16 + static_cast<uint32_t>(random.Below(30));
    options.max_num_seqs = 1 + static_cast<uint32_t>(random.Below(8));
    options.max_num_batched_tokens = 8 + static_cast<uint32_t>(random.Below(100));
    options.max_loras = 1 + static_cast<uint32_t>(random.Below(3));
    options.prefix_caching = random.Below(4) != 0;
    options.seed = seed;
    Driver driver(options);
    std::vector<uint64_t> ids;
    size_t aborted = 0;
    for (int i = 0; i < 200; ++i) {
      const uint64_t adapter = random.Below(6);
      const auto tokens = static_cast<int64_t>(1 + random.Below(100));
      ids.push_back(driver.Submit(Text(1 + random.Below(3), 1 + random.Below(150)), tokens,
                                  adapter < 3 ? "" : "adapter-" + std::to_string(adapter)));
      if (random.Below(10) == 0 && driver.engine.Abort(ids[random.Below(ids.size())])) ++aborted;
      for (uint64_t steps = random.Below(5); steps > 0 && driver.engine.NextEventTime() != 0; --steps)
        driver.Step();
    }
    driver.Drain();
    EXPECT_EQ(driver.finish.size() + aborted, ids.size());
    EXPECT_EQ(driver.engine.used_blocks(), 0u);
    EXPECT_EQ(driver.engine.running_now() + driver.engine.waiting_now(), 0u);
    std::map<uint64_t, uint32_t> next;
    for (const EngineEvent& event : driver.events) EXPECT_EQ(event.index, next[event.id]++);
  }
}

}  // namespace
}  // namespace fairway::simulator
