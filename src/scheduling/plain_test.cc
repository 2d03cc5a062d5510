// The same decisions, the plain way: what stands here is how the parts would be written if nobody counted
// cache lines. On random fleets (ties, adapters, stale and lost endpoints, open requests, subsets, what may
// be shed) the scheduler has to see and decide as this does, to the last random draw.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "scheduling/config.h"
#include "scheduling/plugin.h"
#include "tests/support/plugins.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using base::kMillisecond;
using base::kSecond;

constexpr base::Nanos kNow = 100 * kSecond;

// ---- Plugins by their definition.

class PlainTime final : public Plugin, public Scorer {
 public:
  explicit PlainTime(Build& build)
      : request_cost_(build.Float("requestCost", 5, 0, 1e9)),
        load_cost_(build.Float("loadCost", 1000, 0, 1e9)),
        free_slot_cost_(build.Float("freeSlotCost", 100, 0, 1e9)) {}
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    const Columns& columns = context.columns;
    float least = 0;
    if (!context.request.shows_end) {
      least = columns[kPrefill][in[0]];
      for (const uint32_t at : in) least = std::min(least, columns[kPrefill][at]);
    }
    for (size_t i = 0; i < in.size(); ++i) {
      const uint32_t at = in[i];
      const float scale = 1.0f / 600'000;
      const float own = columns[kPrefill][at];
      const float held = 0.1f * (own - least);
      const float time = columns[kWork][at] + own + columns[kRequests][at] * (request_cost_ + held);
      out[i] = 1 - time * scale;
      const unsigned adapter = AdapterBits(columns[kAdapter][at]);
      const bool needs_loading = context.request.adapter != fleet::kNoAdapter && columns.adapters &&
                                 (adapter & (kAdapterRunning | kAdapterWaiting | kAdapterResident)) == 0;
      if (needs_loading) {
        out[i] -= scale * ((adapter & kAdapterFree) != 0   ? free_slot_cost_
                           : (adapter & kAdapterRoom) != 0 ? load_cost_
                                                           : 2 * load_cost_);
      }
    }
  }

 private:
  float request_cost_, load_cost_, free_slot_cost_;
};

class PlainMaxScore final : public Plugin, public Picker {
 public:
  explicit PlainMaxScore(Build& build) : tolerance_(build.Float("tolerance", 0, 0, 1)) {}
  size_t Pick(const Context& context, std::span<const uint32_t> in, std::span<const float> scores,
              std::span<uint32_t> out) const noexcept override {
    const float best = *std::max_element(scores.begin(), scores.end());
    std::vector<size_t> ties;
    for (size_t i = 0; i < in.size(); ++i) {
      if (scores[i] >= best - tolerance_) ties.push_back(i);
    }
    const size_t first = ties[ties.size() > 1 ? context.random.Below(ties.size()) : 0];
    std::vector<size_t> order(in.size() - 1);
    for (size_t i = 0; i < order.size(); ++i) order[i] = (first + 1 + i) % in.size();
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    order.insert(order.begin(), first);
    const size_t count = std::min(out.size(), order.size());
    for (size_t i = 0; i < count; ++i) out[i] = in[order[i]];
    return count;
  }

 private:
  float tolerance_;
};

template <typename T>
std::unique_ptr<Plugin> MakePlain(Build& build) {
  return std::make_unique<T>(build);
}

// The built-in one with these in the place of ours.
std::shared_ptr<const Config> PlainConfig(const SchedulerOptions& options) {
  ConfigSpec spec = BuiltinConfig(options);
  spec.plugins.push_back(
      {.type = "plain-time",
       .name = "plain-time",
       .parameters = Numbers({{"requestCost", options.request_cost}, {"loadCost", options.lora_load_cost}})});
  spec.plugins.push_back({.type = "plain-max-score",
                          .name = "plain-max-score",
                          .parameters = Numbers({{"tolerance", options.tolerance / 600'000.0}})});
  spec.profiles[spec.without_models].steps = {{"plain-time"}, {"plain-max-score"}};
  return tests::Compiled(spec, {.more_types = {{"plain-time", MakePlain<PlainTime>},
                                               {"plain-max-score", MakePlain<PlainMaxScore>}}});
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
    const uint64_t learned = random.Below(3) * 50;  // percent
    for (size_t i = 0; i < shape.size; ++i) {
      if (static_cast<int>(random.Below(100)) >= shape.stale_percent) pool.Scrape(i, servers[i], kNow);
      auto& cell = *pool.pool()->endpoints[i].cell;
      if (random.Below(100) < learned) {
        fleet::Reservation request = cell.Reserve(100, kNow - kSecond);
        cell.FirstToken(request,
                        kNow - kSecond + static_cast<base::Nanos>(1 + random.Below(20)) * kMillisecond);
        cell.Release(request, fleet::ReleaseKind::kEnded, 0);
      }
      for (uint64_t k = random.Below(3); k > 0; --k) {
        const auto request = cell.Reserve(static_cast<uint32_t>(random.Below(shape.values) * 50), kNow);
        if (random.Below(3) == 0) cell.Release(request, fleet::ReleaseKind::kDetached, kNow);
      }
    }
    std::iota(all.begin(), all.end(), 0u);
  }

  base::Random random;
  std::vector<tests::ServerState> servers;
  tests::TestPool pool;
  std::vector<uint32_t> all;
};

// What the columns have to be, from the cells.
struct Averages {
  float others = 0, running = 0, kv_usage = 0, ms_per_token = 0, unseen = 0;
  size_t most_slots = 1;
  bool any_room = false;
};

bool Fresh(const fleet::EndpointCell& cell, base::Nanos now) {
  return cell.scraped_at() != 0 && now / kMillisecond - cell.scraped_at() / kMillisecond <= 1000;
}

float Rate(const fleet::EndpointCell& cell, const Averages& averages) {
  return cell.ms_per_token() > 0 ? cell.ms_per_token() : averages.ms_per_token;
}

float PlainUnseen(const fleet::EndpointCell& cell, const Averages& averages, base::Nanos now) {
  const fleet::Unseen unseen = cell.load().unseen_work();
  const int32_t passed = std::max(fleet::MillisSince(unseen.since, fleet::Millis(now)), 0);
  return std::max(0.0f,
                  static_cast<float>(unseen.tokens) * Rate(cell, averages) - static_cast<float>(passed));
}

Averages PlainAverages(const fleet::PoolSnapshot& pool, const std::vector<uint32_t>& candidates,
                       base::Nanos now) {
  Averages averages;
  float fresh = 0, learned = 0;
  for (const uint32_t number : candidates) {
    const fleet::EndpointCell& cell = *pool.cells[number];
    averages.any_room |= cell.lora_has_room();
    averages.most_slots = std::max<size_t>(averages.most_slots, cell.lora_max());
    if (cell.ms_per_token() > 0) {
      ++learned;
      averages.ms_per_token += cell.ms_per_token();
    }
    if (!Fresh(cell, now)) continue;
    ++fresh;
    averages.others += static_cast<float>(cell.others());
    averages.running += static_cast<float>(std::min(cell.running(), cell.own() + cell.others()));
    averages.kv_usage += cell.kv_usage();
  }
  averages.ms_per_token = learned > 0 ? averages.ms_per_token / learned : fleet::kDefaultMsPerToken;
  for (const uint32_t number : candidates) {
    const fleet::EndpointCell& cell = *pool.cells[number];
    if (Fresh(cell, now)) averages.unseen += PlainUnseen(cell, averages, now);
  }
  for (float* value : {&averages.others, &averages.running, &averages.kv_usage, &averages.unseen}) {
    if (fresh > 0) *value /= fresh;
  }
  return averages;
}

// Of an adapter that the endpoint does not have.
const char* PlainSlot(const fleet::PoolSnapshot& pool, const fleet::EndpointCell& cell, uint32_t adapter,
                      const Averages& averages) {
  using Slots = fleet::AdapterSlots;
  const bool known = adapter != fleet::kNoAdapter && !pool.adapters.empty();
  if (!known && !averages.any_room) return "none";
  const Slots slots = cell.adapter_slots();
  const size_t adapters = pool.adapters.size();
  if (slots.state == Slots::kUntold) return adapters <= averages.most_slots ? "free slot" : "room";
  if (!cell.lora_has_room()) return "none";
  return slots.state == Slots::kFree && adapters <= cell.lora_max() ? "free slot" : "room";
}

Explanation::Candidate PlainCandidate(const fleet::PoolSnapshot& pool, uint32_t number, const Facts& request,
                                      const Averages& averages, base::Nanos now) {
  const fleet::EndpointCell& cell = *pool.cells[number];
  Explanation::Candidate candidate{.endpoint = number, .fresh = Fresh(cell, now)};
  candidate.own = static_cast<float>(cell.own());
  candidate.others = candidate.fresh ? static_cast<float>(cell.others()) : averages.others;
  const float requests = candidate.own + candidate.others;
  candidate.running =
      std::min(candidate.fresh ? static_cast<float>(cell.running()) : averages.running, requests);
  candidate.queue = requests - candidate.running;
  candidate.page_queue = candidate.fresh ? static_cast<float>(cell.waiting()) : 0;
  candidate.kv_usage = candidate.fresh ? cell.kv_usage() : averages.kv_usage;
  const float ms_per_token = Rate(cell, averages);
  const float unseen = PlainUnseen(cell, averages, now);
  candidate.work = static_cast<float>(cell.load().own_work().tokens) * ms_per_token +
                   (candidate.fresh ? unseen : std::max(unseen, averages.unseen));
  candidate.prefill = static_cast<float>(request.prompt_tokens) * ms_per_token;
  candidate.adapter = cell.adapter_running(request.adapter)   ? "resident"
                      : cell.adapter_waiting(request.adapter) ? "waiting"
                      : cell.adapter_resident(request.adapter)
                          ? "believed"
                          : PlainSlot(pool, cell, request.adapter, averages);
  return candidate;
}

void ExpectSame(const std::vector<Explanation::Candidate>& got,
                const std::vector<Explanation::Candidate>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t k = 0; k < want.size(); ++k) {
    EXPECT_EQ(got[k].endpoint, want[k].endpoint);
    EXPECT_EQ(got[k].own, want[k].own);
    EXPECT_FLOAT_EQ(got[k].others, want[k].others);
    EXPECT_FLOAT_EQ(got[k].queue + 1, want[k].queue + 1);
    EXPECT_EQ(got[k].page_queue, want[k].page_queue);
    EXPECT_FLOAT_EQ(got[k].running, want[k].running);
    EXPECT_FLOAT_EQ(got[k].kv_usage, want[k].kv_usage);
    EXPECT_FLOAT_EQ(got[k].work, want[k].work);
    EXPECT_FLOAT_EQ(got[k].prefill, want[k].prefill);
    EXPECT_EQ(got[k].adapter, want[k].adapter);
    EXPECT_EQ(got[k].fresh, want[k].fresh);
  }
}

class Plain : public testing::TestWithParam<Shape> {};

TEST_P(Plain, SeesAndDecidesTheSame) {
  Scratch fast_scratch, plain_scratch;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SchedulerOptions options{.sheddable_queue_limit = 3};
    if (seed % 3 == 0) options.tolerance = 0;
    if (seed % 4 == 0) options.sheddable_work_limit = 40;
    const Scheduler fast(options, 0);
    const Scheduler plain(options, 0, PlainConfig(options));
    World a(GetParam(), seed);
    World b(GetParam(), seed);
    base::Random fast_random(seed), plain_random(seed), random(~seed);
    base::Nanos now = kNow;
    for (int i = 0; i < 20; ++i, now += static_cast<base::Nanos>(random.Below(30)) * kMillisecond) {
      SCOPED_TRACE("seed " + std::to_string(seed) + ", pick " + std::to_string(i));
      const auto pool_a = a.pool.pool();
      const auto pool_b = b.pool.pool();
      const std::string model = "lora-" + std::to_string(random.Below(6));
      const Facts request{.target_model = model,
                          .adapter = random.Below(2) == 0 ? pool_a->AdapterId(model) : fleet::kNoAdapter,
                          .critical = random.Below(3) != 0,
                          .prompt_tokens = 10,
                          .shows_first_token = random.Below(2) == 0};
      std::vector<uint32_t> subset = a.all;
      const bool narrowed = random.Below(3) == 0;
      if (narrowed) std::erase_if(subset, [&](uint32_t) { return random.Below(2) == 0; });
      // The plain one is always told whom it may choose, and always explains.
      std::optional<std::span<const uint32_t>> hint;
      if (narrowed) hint = subset;
      Explanation why;
      std::vector<Explanation::Candidate> candidates;
      const Averages averages = PlainAverages(*pool_b, subset, now);
      for (const uint32_t number : subset)
        candidates.push_back(PlainCandidate(*pool_b, number, request, averages, now));
      const Outcome got = fast.Pick(*pool_a, request, hint, now, fast_scratch, fast_random);
      const Outcome want = plain.Pick(*pool_b, request, subset, now, plain_scratch, plain_random, &why);

      ASSERT_EQ(got.kind, want.kind);
      ASSERT_EQ(got.rung, want.rung);
      ASSERT_EQ(got.num_choices, want.num_choices);
      ASSERT_EQ(got.choices, want.choices);
      ASSERT_EQ(got.reservation.ahead, want.reservation.ahead);
      ASSERT_EQ(fast_random.Next(), plain_random.Next()) << "another number of draws";
      if (subset.empty()) continue;
      ExpectSame(why.candidates, candidates);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Fleets, Plain,
                         testing::Values(Shape{1, 4, false, 0}, Shape{2, 2, true, 0}, Shape{3, 2, false, 0},
                                         Shape{5, 1, false, 0}, Shape{8, 2, false, 0}, Shape{8, 50, false, 0},
                                         Shape{8, 50, true, 0}, Shape{9, 3, true, 20}, Shape{8, 4, false, 50},
                                         Shape{13, 50, true, 50}, Shape{8, 4, false, 100},
                                         Shape{8, 4, true, 100, 40 * kSecond}, Shape{100, 3, false, 0},
                                         Shape{101, 50, false, 0}, Shape{102, 50, true, 0},
                                         Shape{103, 50, true, 5}, Shape{300, 50, true, 1}),
                         [](const auto& test) {
                           return std::to_string(test.param.size) + "of" + std::to_string(test.param.values) +
                                  (test.param.adapters ? "WithAdapters" : "") + "Stale" +
                                  std::to_string(test.param.stale_percent);
                         });

// ---- Scores of any kind.

class AnyScores final : public Plugin, public Scorer {
 public:
  static std::vector<float> scores;
  explicit AnyScores(Build&) {}
  void Score(const Context&, std::span<const uint32_t> in, float* out) const noexcept override {
    for (size_t i = 0; i < in.size(); ++i) out[i] = scores[in[i]];
  }
};
std::vector<float> AnyScores::scores;

TEST(Scores, AreWithin0And1AndWhatIsNoNumberIs0) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinite = std::numeric_limits<float>::infinity();
  const std::vector<float> scores{kNan, 0.5f, kNan, 7, -kInfinite, kInfinite, -1, 0.25f};
  const std::vector<float> want{0, 0.5f, 0, 1, 0, 1, 0, 0.25f};
  AnyScores::scores = scores;
  const auto config =
      tests::Compiled(tests::OneProfile({tests::Spec("any-scores"), tests::Spec("max-score-picker")},
                                        {{"any-scores", 2}, {"max-score-picker"}}),
                      {.more_types = {{"any-scores", MakePlain<AnyScores>}}});
  tests::TestPool pool(std::vector<tests::ServerState>(scores.size()));
  const Scheduler scheduler({}, 0, config);
  Scratch scratch;
  base::Random random(1);
  std::set<uint32_t> seen;
  for (int i = 0; i < 100; ++i) {
    Explanation why;
    const Outcome outcome =
        scheduler.Pick(*pool.pool(), {}, std::nullopt, kSecond, scratch, random, i == 0 ? &why : nullptr);
    seen.insert(outcome.choices[0]);
    for (size_t k = 0; i == 0 && k < want.size(); ++k) EXPECT_EQ(why.candidates[k].score, 2 * want[k]) << k;
  }
  EXPECT_EQ(seen, (std::set<uint32_t>{3, 5}));
}

TEST(Pickers, MaxScoreChoosesAsThePlainOneDoes) {
  base::Random values(5);
  for (const float tolerance : {0.0f, 0.25f}) {
    const auto config =
        tests::Compiled({.plugins = {tests::Spec("max-score-picker", {{"tolerance", tolerance}}),
                                     tests::Spec("plain-max-score", {{"tolerance", tolerance}})}},
                        {.more_types = {{"plain-max-score", MakePlain<PlainMaxScore>}}});
    for (size_t n = 1; n <= 40; ++n) {
      std::vector<uint32_t> all(n);
      std::iota(all.begin(), all.end(), 0u);
      const Columns columns(all, nullptr);
      for (uint64_t different = 1; different <= 9; ++different) {
        for (size_t wanted = 1; wanted <= kMaxChoices; ++wanted) {
          SCOPED_TRACE(std::to_string(n) + " of " + std::to_string(different) + ", " +
                       std::to_string(wanted));
          std::vector<float> scores(n);
          for (float& score : scores) score = static_cast<float>(values.Below(different)) / 8;
          base::Random random_a(n), random_b(n);
          const Facts request;
          std::vector<uint32_t> got(wanted), want(wanted);
          const auto pick = [&](size_t plugin, base::Random& random, std::vector<uint32_t>& out) {
            return config->plugins[plugin]->picker->Pick({columns, request, random}, all, scores, out);
          };
          ASSERT_EQ(pick(0, random_a, got), pick(1, random_b, want));
          ASSERT_EQ(got, want);
          ASSERT_EQ(random_a.Next(), random_b.Next());
        }
      }
    }
  }
}

TEST(Pickers, MaxScoreTakesTheMostOfWhatIsANumber) {
  const auto config = tests::Compiled({.plugins = {tests::Spec("max-score-picker")}});
  const Picker* const picker = config->plugins[0]->picker;
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinite = std::numeric_limits<float>::infinity();
  const std::vector<uint32_t> all{0, 1, 2, 3, 4, 5};
  const Columns columns(all, nullptr);
  const Facts request;
  base::Random random(1);
  const std::vector<std::pair<std::vector<float>, std::optional<uint32_t>>> cases{
      {std::vector<float>(6, kNan), std::nullopt},
      {std::vector<float>(6, -kInfinite), std::nullopt},
      {std::vector<float>(6, kInfinite), std::nullopt},
      {{kNan, 1, kNan, -kInfinite, kInfinite, kNan}, 4},
      {{1, 2, 3, kNan, kNan, kNan}, 2},
      {{kNan, kNan, kNan, kNan, 2, 1}, 4},
      {{5, 1, 1, 1, kNan, 1}, 0}};
  for (const auto& [scores, best] : cases) {
    std::vector<uint32_t> out(6);
    const size_t count = picker->Pick({columns, request, random}, all, scores, out);
    ASSERT_GE(count, 1u);
    ASSERT_LE(count, 6u);
    EXPECT_EQ(out[0], best.value_or(out[0]));
    const std::set<uint32_t> distinct(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(count));
    EXPECT_EQ(distinct.size(), count);
    EXPECT_LT(*distinct.rbegin(), 6u);
  }
}

}  // namespace
}  // namespace fairway::scheduling
