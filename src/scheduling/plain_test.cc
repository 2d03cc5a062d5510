// The same decisions, the plain way: what stands here is how the parts would be written if nobody counted
// cache lines. On random fleets (ties, adapters, stale and lost endpoints, subsets, what may be shed) the
// scheduler has to decide as this does, to the last bit and the last random draw.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "scheduling/plugin.h"
#include "scheduling/program.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using base::kSecond;

constexpr base::Nanos kNow = 100 * kSecond;

// ---- Plugins that say Score only, by index.

class PlainRange final : public Scorer {
 public:
  explicit PlainRange(bool queue) : queue_(queue) {}
  std::string_view type() const noexcept override { return "plain-range"; }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const std::span<const float> column = queue_ ? context.columns.queue : context.columns.running;
    float low = column[in[0]];
    float high = column[in[0]];
    for (const uint32_t position : in) {
      low = std::min(low, column[position]);
      high = std::max(high, column[position]);
    }
    for (size_t i = 0; i < in.size(); ++i) out[i] = high > low ? (high - column[in[i]]) / (high - low) : 1.0f;
  }

 private:
  bool queue_;
};

class PlainKv final : public Scorer {
 public:
  std::string_view type() const noexcept override { return "plain-kv"; }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    for (size_t i = 0; i < in.size(); ++i)
      out[i] = std::clamp(1.0f - context.columns.kv_usage[in[i]], 0.0f, 1.0f);
  }
};

class PlainLora final : public Scorer {
 public:
  std::string_view type() const noexcept override { return "plain-lora"; }
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    for (size_t i = 0; i < in.size(); ++i) {
      const uint8_t lora = context.columns.lora[in[i]];
      out[i] = (lora & kLoraRunning) != 0   ? 1.0f
               : (lora & kLoraRoom) != 0    ? 0.8f
               : (lora & kLoraWaiting) != 0 ? 0.6f
                                            : 0.0f;
    }
  }
};

class PlainMaxScore final : public Picker {
 public:
  std::string_view type() const noexcept override { return "plain-max-score"; }
  size_t Pick(const Context& context, std::span<const uint32_t> in, std::span<const float> scores,
              std::span<uint32_t> out) const noexcept override {
    const float best = *std::max_element(scores.begin(), scores.end());
    std::vector<size_t> ties;
    for (size_t i = 0; i < in.size(); ++i) {
      if (scores[i] == best) ties.push_back(i);
    }
    const size_t first = ties[ties.size() > 1 ? context.random.Below(ties.size()) : 0];
    std::vector<size_t> order(in.size());
    for (size_t i = 0; i < in.size(); ++i) order[i] = (first + i) % in.size();
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    const size_t count = std::min(out.size(), order.size());
    for (size_t i = 0; i < count; ++i) out[i] = in[order[i]];
    return count;
  }
};

Program PlainProfile(const SchedulerOptions& options) {
  Program program;
  program.name = "plain";
  program.room = MakeFilter("capacity-filter", Parameters({{"queueLimit", options.sheddable_queue_limit},
                                                           {"kvCacheLimit", options.sheddable_kv_limit}}))
                     .value();
  program.scorers.push_back({std::make_unique<PlainRange>(true), options.queue_weight});
  program.scorers.push_back({std::make_unique<PlainKv>(), options.kv_weight});
  program.scorers.push_back({std::make_unique<PlainLora>(), options.lora_weight});
  program.scorers.push_back({std::make_unique<PlainRange>(false), options.running_weight});
  program.picker = std::make_unique<PlainMaxScore>();
  return program;
}

// ---- Fleets.

struct Shape {
  size_t size = 0;
  uint64_t values = 0;  // how many different ones a signal has: few make ties
  bool adapters = false;
  int stale_percent = 0;
  base::Nanos age = 10 * kSecond;  // of the stale ones
};

std::vector<tests::ServerState> Servers(const Shape& shape, base::Random& random) {
  std::vector<tests::ServerState> servers;
  for (size_t i = 0; i < shape.size; ++i) {
    const auto value = [&] { return static_cast<uint32_t>(random.Below(shape.values)); };
    tests::ServerState server{.name = "e" + std::to_string(i),
                              .waiting = value(),
                              .kv_usage = static_cast<float>(value()) / static_cast<float>(shape.values),
                              .running = value()};
    if (shape.adapters) {
      server.adapters = {"lora-" + std::to_string(random.Below(4))};
      server.waiting_adapters = {"lora-" + std::to_string(random.Below(4))};
      server.max_adapters = static_cast<uint32_t>(random.Below(5));
    }
    servers.push_back(server);
  }
  return servers;
}

// The same seed makes the same pool.
struct World {
  World(const Shape& shape, uint64_t seed)
      : random(seed), servers(Servers(shape, random)), pool(servers, {}, kNow - shape.age), all(shape.size) {
    for (size_t i = 0; i < shape.size; ++i) {
      if (static_cast<int>(random.Below(100)) >= shape.stale_percent) pool.Scrape(i, servers[i], kNow);
      for (uint64_t k = random.Below(3); k > 0; --k) pool.pool()->endpoints[i].cell->Reserve(1);
    }
    std::iota(all.begin(), all.end(), 0u);
  }

  base::Random random;
  std::vector<tests::ServerState> servers;
  tests::TestPool pool;
  std::vector<uint32_t> all;
};

// What the columns have to be, from the cells.
Explanation::Candidate PlainCandidate(const fleet::PoolSnapshot& pool, uint32_t number, uint32_t adapter,
                                      const std::vector<uint32_t>& candidates, base::Nanos now = kNow) {
  const auto fresh = [now](const fleet::EndpointCell& cell) { return cell.scraped_at() >= now - kSecond; };
  const auto queue = [](const fleet::EndpointCell& cell) {
    return static_cast<float>(cell.waiting()) + static_cast<float>(cell.pending());
  };
  const auto running = [](const fleet::EndpointCell& cell) {
    return static_cast<float>(cell.running()) + static_cast<float>(cell.pending());
  };
  float queues = 0, runnings = 0, kvs = 0, count = 0;
  for (const uint32_t other : candidates) {
    const fleet::EndpointCell& cell = *pool.cells[other];
    if (!fresh(cell)) continue;
    queues += queue(cell);
    runnings += running(cell);
    kvs += cell.kv_usage();
    ++count;
  }
  const fleet::EndpointCell& cell = *pool.cells[number];
  const auto pending = static_cast<float>(cell.pending());
  const auto inflight = static_cast<float>(cell.inflight());
  Explanation::Candidate candidate{.endpoint = number, .fresh = fresh(cell)};
  if (candidate.fresh) {
    candidate.queue = queue(cell);
    candidate.scraped_queue = static_cast<float>(cell.waiting());
    candidate.running = running(cell);
    candidate.kv_usage = cell.kv_usage();
  } else {
    candidate.scraped_queue = std::min(static_cast<float>(cell.waiting()), inflight);
    candidate.queue = count > 0 ? std::max(queues / count, pending) : std::max(inflight, pending);
    candidate.running = count > 0 ? std::max(runnings / count, pending) : candidate.queue;
    candidate.kv_usage = count > 0 ? kvs / count : inflight > 0 ? cell.kv_usage() : 0.0f;
  }
  candidate.adapter = cell.adapter_running(adapter)   ? "resident"
                      : cell.adapter_waiting(adapter) ? "waiting"
                      : cell.lora_has_room()          ? "room"
                                                      : "none";
  return candidate;
}

void ExpectSame(const std::vector<Explanation::Candidate>& got,
                const std::vector<Explanation::Candidate>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t k = 0; k < want.size(); ++k) {
    EXPECT_EQ(got[k].endpoint, want[k].endpoint);
    EXPECT_EQ(got[k].queue, want[k].queue);
    EXPECT_EQ(got[k].scraped_queue, want[k].scraped_queue);
    EXPECT_EQ(got[k].running, want[k].running);
    EXPECT_EQ(got[k].kv_usage, want[k].kv_usage);
    EXPECT_EQ(got[k].adapter, want[k].adapter);
    EXPECT_EQ(got[k].fresh, want[k].fresh);
  }
}

class Plain : public testing::TestWithParam<Shape> {};

TEST_P(Plain, DecidesTheSame) {
  Scratch fast_scratch, plain_scratch;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SchedulerOptions options{.sheddable_queue_limit = 3};
    if (seed % 3 == 0) {  // weights whose products are rounded
      options.queue_weight = 1.7f;
      options.kv_weight = 0.3f;
      options.lora_weight = 0.9f;
      options.running_weight = -0.1f;
    }
    const Scheduler fast(options, 0);
    const Scheduler plain(options, 0, MakeCriticalityTree(options), PlainProfile(options));
    World a(GetParam(), seed);
    World b(GetParam(), seed);
    base::Random fast_random(seed), plain_random(seed), random(~seed);
    for (int i = 0; i < 20; ++i) {
      SCOPED_TRACE("seed " + std::to_string(seed) + ", pick " + std::to_string(i));
      const auto pool_a = a.pool.pool();
      const auto pool_b = b.pool.pool();
      const std::string model = "lora-" + std::to_string(random.Below(6));
      const Request request{.target_model = model,
                            .adapter = random.Below(2) == 0 ? pool_a->AdapterId(model) : fleet::kNoAdapter,
                            .critical = random.Below(3) != 0,
                            .prompt_tokens = 10};
      std::vector<uint32_t> subset = a.all;
      const bool narrowed = random.Below(3) == 0;
      if (narrowed) std::erase_if(subset, [&](uint32_t) { return random.Below(2) == 0; });
      // The plain one is always told whom it may choose, and always explains.
      std::optional<std::span<const uint32_t>> hint;
      if (narrowed) hint = subset;
      Explanation why;
      std::vector<Explanation::Candidate> candidates;
      for (const uint32_t number : subset)
        candidates.push_back(PlainCandidate(*pool_b, number, request.adapter, subset));
      const Outcome got = fast.Pick(*pool_a, request, hint, kNow, fast_scratch, fast_random);
      const Outcome want = plain.Pick(*pool_b, request, subset, kNow, plain_scratch, plain_random, &why);

      ASSERT_EQ(got.kind, want.kind);
      ASSERT_EQ(got.rung, want.rung);
      ASSERT_EQ(got.num_choices, want.num_choices);
      ASSERT_EQ(got.choices, want.choices);
      ASSERT_EQ(got.reservation.generation, want.reservation.generation);
      ASSERT_EQ(fast_random.Next(), plain_random.Next()) << "another number of draws";
      if (subset.empty()) continue;
      ExpectSame(why.candidates, candidates);
    }
  }
}

// Who is fresh is remembered from one decision to the next: the same on a fleet that is scraped as time
// passes.
TEST(PlainTime, ColumnsSayWhatTheCellsSay) {
  const Scheduler scheduler({}, 0);
  Scratch scratch;
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    World world({1 + seed % 13, 20, seed % 2 == 0, 0}, seed);
    base::Random random(seed);
    base::Nanos now = kNow;
    const uint64_t misses = random.Below(3) * 30;  // percent of scrapes
    for (int i = 0; i < 60; ++i) {
      const auto pool = world.pool.pool();
      std::vector<uint32_t> subset = world.all;
      const bool narrowed = random.Below(4) == 0;
      if (narrowed) std::erase_if(subset, [&](uint32_t) { return random.Below(2) == 0; });
      if (subset.empty()) continue;
      const Request request{.adapter = pool->AdapterId("lora-" + std::to_string(random.Below(6)))};
      std::vector<Explanation::Candidate> candidates;
      for (const uint32_t number : subset)
        candidates.push_back(PlainCandidate(*pool, number, request.adapter, subset, now));
      std::optional<std::span<const uint32_t>> hint;
      if (narrowed) hint = subset;
      Explanation why;
      scheduler.Pick(*pool, request, hint, now, scratch, random, &why);
      ExpectSame(why.candidates, candidates);
      now += static_cast<base::Nanos>(random.Below(kSecond / 4));
      for (size_t k = 0; k < world.servers.size(); ++k) {
        if (random.Below(100) < misses) continue;
        world.servers[k].waiting = static_cast<uint32_t>(random.Below(20));
        world.pool.Scrape(k, world.servers[k], now - static_cast<base::Nanos>(random.Below(1000)));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Fleets, Plain,
                         testing::Values(Shape{1, 4, false, 0}, Shape{2, 2, true, 0}, Shape{3, 2, false, 0},
                                         Shape{5, 1, false, 0}, Shape{8, 2, false, 0}, Shape{8, 50, false, 0},
                                         Shape{8, 50, true, 0}, Shape{9, 3, true, 20}, Shape{8, 4, false, 50},
                                         Shape{13, 50, true, 50}, Shape{8, 4, false, 100},
                                         Shape{100, 3, false, 0}, Shape{101, 50, false, 0},
                                         Shape{102, 50, true, 0}, Shape{103, 50, true, 5},
                                         Shape{300, 50, false, 0}, Shape{300, 50, true, 1}),
                         [](const auto& test) {
                           return std::to_string(test.param.size) + "of" + std::to_string(test.param.values) +
                                  (test.param.adapters ? "WithAdapters" : "") + "Stale" +
                                  std::to_string(test.param.stale_percent);
                         });

// ---- A built-in scorer says its formula as Score and as Add, over all candidates and by index.

TEST(PlainScorers, AddIsWeightTimesScoreHoweverManyThereAre) {
  base::Random random(7);
  for (size_t n = 1; n <= 23; ++n) {
    // One more candidate than is asked for: then no position is where it would be if all were.
    std::vector<uint32_t> endpoint(n + 1), in(n);
    std::iota(in.begin(), in.end(), 1u);
    std::vector<float> queue(n + 1), running(n + 1), kv(n + 1);
    std::vector<uint8_t> lora(n + 1);
    for (size_t i = 0; i <= n; ++i) {
      queue[i] = static_cast<float>(random.Below(9));
      running[i] = static_cast<float>(random.Below(3));
      kv[i] = static_cast<float>(random.NextDouble() * 1.2);
      lora[i] = static_cast<uint8_t>(random.Below(8));
    }
    const Request request;
    const Columns some{endpoint, queue, queue, running, kv, lora};
    const auto rest = [](const auto& column) { return std::span(column).subspan(1); };
    const Columns all{rest(endpoint), rest(queue), rest(queue), rest(running), rest(kv), rest(lora)};
    std::vector<uint32_t> every(n);
    std::iota(every.begin(), every.end(), 0u);
    for (const auto& type : BuiltinScorers()) {
      SCOPED_TRACE(std::string(type.type) + " of " + std::to_string(n));
      const auto scorer = MakeScorer(type.type).value();
      std::vector<float> by_index(n), scores(n), room(n), total(n, 0.25f), total_by_index(n, 0.25f);
      scorer->Score({some, request, random}, in, by_index.data());
      scorer->Score({all, request, random}, every, scores.data());
      EXPECT_EQ(scores, by_index);
      scorer->Add({some, request, random}, in, 3, total_by_index.data(), room.data());
      scorer->Add({all, request, random}, every, 3, total.data(), room.data());
      EXPECT_EQ(total, total_by_index);
      for (size_t i = 0; i < n; ++i) EXPECT_EQ(total[i], 0.25f + scores[i] * 3);
    }
  }
}

// ---- The picker, on any scores.

TEST(PlainPickers, MaxScoreChoosesTheSame) {
  const PlainMaxScore plain;
  const auto picker = MakePicker("max-score-picker").value();
  base::Random values(5);
  for (size_t n = 1; n <= 40; ++n) {
    const std::vector<uint32_t> endpoint(n);
    const Columns columns{
        .endpoint = endpoint, .queue = {}, .scraped_queue = {}, .running = {}, .kv_usage = {}, .lora = {}};
    std::vector<uint32_t> all(n);
    std::iota(all.begin(), all.end(), 0u);
    for (uint64_t different = 1; different <= 9; ++different) {
      for (size_t wanted = 1; wanted <= kMaxChoices; ++wanted) {
        SCOPED_TRACE(std::to_string(n) + " of " + std::to_string(different) + ", " + std::to_string(wanted));
        std::vector<float> scores(n);
        for (float& score : scores) score = static_cast<float>(values.Below(different)) - 3;
        base::Random random_a(n), random_b(n);
        const Request request;
        std::vector<uint32_t> got(wanted), want(wanted);
        const size_t got_count = picker->Pick({columns, request, random_a}, all, scores, got);
        ASSERT_EQ(got_count, plain.Pick({columns, request, random_b}, all, scores, want));
        ASSERT_EQ(got, want);
        ASSERT_EQ(random_a.Next(), random_b.Next());
      }
    }
  }
}

TEST(PlainPickers, MaxScoreEndsOnWhatIsNoNumber) {
  const auto picker = MakePicker("max-score-picker").value();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinite = std::numeric_limits<float>::infinity();
  const std::vector<uint32_t> all{0, 1, 2, 3, 4, 5};
  const Columns columns{
      .endpoint = all, .queue = {}, .scraped_queue = {}, .running = {}, .kv_usage = {}, .lora = {}};
  const Request request;
  base::Random random(1);
  for (const std::vector<float>& scores :
       {std::vector<float>(6, kNan), std::vector<float>(6, -kInfinite), std::vector<float>(6, kInfinite),
        std::vector<float>{kNan, 1, kNan, -kInfinite, kInfinite, kNan},
        std::vector<float>{1, 2, 3, kNan, kNan, kNan}, std::vector<float>{kNan, kNan, kNan, kNan, 2, 1}}) {
    std::vector<uint32_t> out(6);
    const size_t count = picker->Pick({columns, request, random}, all, scores, out);
    ASSERT_GE(count, 1u);
    ASSERT_LE(count, 6u);
    const std::set<uint32_t> distinct(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(count));
    EXPECT_EQ(distinct.size(), count);
    EXPECT_LT(*distinct.rbegin(), 6u);
  }
}

}  // namespace
}  // namespace fairway::scheduling
