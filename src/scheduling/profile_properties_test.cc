// What holds for whole profiles, whatever their scorers say. Each failure prints its seed.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "scheduling/config.h"
#include "scheduling/plugin.h"
#include "scheduling/scheduler.h"
#include "tests/support/plugins.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using base::kSecond;

constexpr base::Nanos kProfileNow = kSecond + kSecond / 10;

// Says what nobody may say: another one for each candidate and seed.
class WildScorer final : public Plugin, public Scorer {
 public:
  explicit WildScorer(Build& build) : seed_(static_cast<uint64_t>(build.Integer("seed", 1, 0, 1'000'000))) {}
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    constexpr std::array kWild{std::numeric_limits<float>::quiet_NaN(),
                               std::numeric_limits<float>::infinity(),
                               -std::numeric_limits<float>::infinity(),
                               std::numeric_limits<float>::max(),
                               std::numeric_limits<float>::lowest(),
                               1.0f,
                               0.5f,
                               -0.0f};
    for (size_t i = 0; i < in.size(); ++i) {
      base::Random random(seed_ * 1000 + context.columns.endpoint[in[i]]);
      out[i] = random.Below(2) != 0 ? kWild[random.Below(kWild.size())]
                                    : static_cast<float>(random.NextDouble() * 3 - 1);
    }
  }

 private:
  uint64_t seed_;
};

std::vector<tests::ServerState> EqualServers(size_t n) {
  std::vector<tests::ServerState> servers;
  for (size_t i = 0; i < n; ++i)
    servers.push_back({.name = "s" + std::to_string(i), .waiting = 1, .kv_usage = 0.2f});
  return servers;
}

TEST(ProfileProperties, ScoresAreClampedAndTheMaximumIsPicked) {
  const auto make = [](Build& build) -> std::unique_ptr<Plugin> {
    return std::make_unique<WildScorer>(build);
  };
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    std::vector<PluginSpec> plugins{tests::Spec("max-score-picker")};
    std::vector<ProfileSpec::Step> steps;
    double least = 0;
    double most = 0;
    for (size_t i = 1 + random.Below(4); i > 0; --i) {
      PluginSpec spec = tests::Spec("wild", {{"seed", static_cast<double>(seed * 10 + i)}});
      spec.name += std::to_string(i);
      const double weight = random.NextDouble() * 8 - 2;
      (weight < 0 ? least : most) += weight;
      steps.push_back({spec.name, weight});
      plugins.push_back(std::move(spec));
    }
    steps.push_back({"max-score-picker"});
    std::vector<std::string> warnings;
    const Scheduler scheduler(
        {}, 0,
        tests::Compiled(tests::OneProfile(plugins, steps), {.more_types = {{"wild", make}}}, &warnings));
    tests::TestPool pool(EqualServers(1 + random.Below(20)));
    const auto snapshot = pool.pool();
    Scratch scratch;
    Explanation explanation;
    const Outcome outcome = scheduler.Pick(*snapshot, {.prompt_tokens = 10}, std::nullopt, kProfileNow,
                                           scratch, random, &explanation);
    ASSERT_EQ(outcome.kind, OutcomeKind::kPicked);
    const auto& totals = explanation.profiles.at(0).totals;
    ASSERT_EQ(totals.size(), snapshot->endpoints.size());
    float best = std::numeric_limits<float>::lowest();
    for (const auto& total : totals) {
      ASSERT_TRUE(total);
      EXPECT_GE(*total, least - 1e-4);
      EXPECT_LE(*total, most + 1e-4);
      best = std::max(best, *total);
    }
    EXPECT_EQ(*totals[outcome.choices[0]], best);
    snapshot->endpoints[outcome.choices[0]].cell->Release(outcome.reservation, fleet::ReleaseKind::kEnded,
                                                          kProfileNow);
  }
}

// By its own words it goes by the order of the candidates, and by who was used last.
bool GoesByTurn(std::string_view type) { return type == "no-hit-lru-scorer"; }

const std::map<std::string_view, const char*> kScorerParameters{
    {"endpoint-attribute-scorer", "{attributeKey: queue, algorithm: {type: linear_lower_is_better}}"},
    {"header-label-affinity-scorer", "{headerName: zone, labelKey: zone}"},
};

TEST(ProfileProperties, EqualEndpointsGetEqualSharesByEveryScorer) {
  constexpr uint64_t kSeed = 5;
  constexpr int kEndpoints = 5;
  constexpr int kPicks = 2000;
  for (const PluginType& type : BuiltinPlugins()) {
    if (!type.type.ends_with("-scorer") || GoesByTurn(type.type)) continue;
    SCOPED_TRACE(std::string(type.type) + " seed " + std::to_string(kSeed));
    const auto found = kScorerParameters.find(type.type);
    const PluginSpec spec = found == kScorerParameters.end()
                                ? tests::Spec(type.type)
                                : tests::Parsed(type.type, type.type, found->second);
    std::vector<std::string> warnings;
    const auto config = tests::Compiled(
        tests::OneProfile({spec, tests::Spec("topology-extractor"), tests::Spec("max-score-picker")},
                          {{std::string(type.type)}, {"max-score-picker"}}),
        {.allow_experimental = true}, &warnings);
    ASSERT_NE(config, nullptr);
    const Scheduler scheduler({}, 0, config);
    tests::TestPool pool(EqualServers(kEndpoints));
    const auto snapshot = pool.pool();
    Scratch scratch;
    base::Random random(kSeed);
    std::array<int, kEndpoints> picks{};
    for (int i = 0; i < kPicks; ++i) {
      const Outcome outcome =
          scheduler.Pick(*snapshot, {.prompt_tokens = 10}, std::nullopt, kProfileNow, scratch, random);
      ASSERT_EQ(outcome.kind, OutcomeKind::kPicked);
      ++picks[outcome.choices[0]];
      snapshot->endpoints[outcome.choices[0]].cell->Release(outcome.reservation, fleet::ReleaseKind::kEnded,
                                                            kProfileNow);
    }
    // Four standard deviations of 2,000 draws of one in five.
    for (const int n : picks) EXPECT_NEAR(n, kPicks / kEndpoints, 72);
  }
}

TEST(ProfileProperties, TheOrderOfEndpointsChangesTheirNumbersAlone) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    auto servers = EqualServers(2 + random.Below(10));
    for (auto& server : servers) {
      server.waiting = static_cast<uint32_t>(random.Below(60));
      server.kv_usage = static_cast<float>(random.NextDouble());
    }
    const auto totals = [](const std::vector<tests::ServerState>& of) {
      const Scheduler scheduler({}, 0,
                                tests::Compiled(tests::OneProfile(
                                    {tests::Spec("queue-scorer"), tests::Spec("kv-cache-utilization-scorer"),
                                     tests::Spec("load-aware-scorer"), tests::Spec("lmetric-scorer"),
                                     tests::Spec("max-score-picker")},
                                    {{"queue-scorer", 2},
                                     {"kv-cache-utilization-scorer", 2},
                                     {"load-aware-scorer"},
                                     {"lmetric-scorer", 0.5},
                                     {"max-score-picker"}})));
      tests::TestPool pool(of);
      const auto snapshot = pool.pool();
      Scratch scratch;
      base::Random same(1);
      Explanation explanation;
      const Outcome outcome = scheduler.Pick(*snapshot, {.prompt_tokens = 100}, std::nullopt, kProfileNow,
                                             scratch, same, &explanation);
      snapshot->endpoints[outcome.choices[0]].cell->Release(outcome.reservation, fleet::ReleaseKind::kEnded,
                                                            kProfileNow);
      std::map<std::string, float> by_name;
      for (size_t i = 0; i < of.size(); ++i)
        by_name[snapshot->endpoints[i].name] = explanation.profiles.at(0).totals[i].value_or(-1);
      return by_name;
    };
    const auto one = totals(servers);
    for (size_t i = servers.size(); i > 1; --i) std::swap(servers[i - 1], servers[random.Below(i)]);
    for (const auto& [name, total] : totals(servers)) EXPECT_NEAR(total, one.at(name), 1e-5) << name;
  }
}

}  // namespace
}  // namespace fairway::scheduling
