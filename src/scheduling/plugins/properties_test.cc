// What holds for every plugin of the list, on random columns. Each failure prints its seed.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "scheduling/plugin.h"
#include "tests/support/plugins.h"

namespace fairway::scheduling {
namespace {

using Fixture = tests::Candidates;
using List = std::vector<uint32_t>;

// Parameters of types that cannot be without.
const std::map<std::string_view, const char*> kParameters{
    {"by-label", "{label: role, validValues: [decode]}"},
    {"endpoint-attribute-filter",
     "{attribute: queue, algorithm: {type: threshold, threshold: {operator: LessThan, value: 5}}}"},
    {"endpoint-attribute-scorer", "{attributeKey: queue, algorithm: {type: linear_lower_is_better}}"},
    {"header-label-affinity-scorer", "{headerName: zone, labelKey: zone}"},
    {"label-selector-filter", "matchLabels: {role: decode}"},
    {"lora-affinity-filter", "exploration: 0"},
    {"max-saturation-detector", "detectors: [concurrency-detector]"},
    {"session-id-producer", "headerName: id"},
    {"utilization-filter", "conditions: [{metric: waiting-queue, maxValue: 5}]"},
};

PluginSpec SpecOf(std::string_view type) {
  const auto found = kParameters.find(type);
  return found == kParameters.end() ? tests::Spec(type) : tests::Parsed(type, type, found->second);
}

// All but profile handlers, which want profiles.
std::vector<PluginType> Types() {
  std::vector<PluginType> types;
  for (const PluginType& type : BuiltinPlugins()) {
    if (!type.type.ends_with("handler")) types.push_back(type);
  }
  return types;
}

// Candidates of which `value` tells the columns, with labels, a session and a peer.
template <typename Value>
void Fill(Fixture& f, base::Random& random, Value value) {
  std::vector<std::map<std::string, std::string>> labels(f.all.size());
  for (auto& of : labels) {
    if (random.Below(4) != 0) of["llm-d.ai/role"] = of["role"] = random.Below(2) != 0 ? "decode" : "prefill";
    if (random.Below(4) != 0) of["zone"] = "z" + std::to_string(random.Below(3));
    if (random.Below(4) != 0) of["kubernetes.io/hostname"] = "h" + std::to_string(random.Below(3));
    if (random.Below(4) != 0) of["llm-d.ai/context-length-range"] = "0-" + std::to_string(random.Below(2000));
  }
  f.Label(labels);
  f.peer = static_cast<uint32_t>(random.Below(f.all.size()));
  f.headers = {{"zone", "z1"}, {"x-session-token", "ZGVmYXVsdC9wb2QtMQ=="}};
  f.others = {tests::Spec("topology-extractor"), tests::Spec("concurrency-detector")};
  f.request.prompt_tokens = static_cast<uint32_t>(random.Below(2000));
  f.request.adapter = 1;
  for (const LiveColumn& column : kLiveColumns) {
    for (float& v : f[std::string(column.name)])
      v = column.name == "adapter" ? static_cast<float>(random.Below(16)) : value();
  }
  for (const char* column : {"prefix-match", "cached-tokens"}) {
    for (float& v : f[column]) v = value();
  }
}

float AnyFloat(base::Random& random) {
  constexpr std::array kOdd{std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::max(),
                            std::numeric_limits<float>::lowest(),
                            std::numeric_limits<float>::denorm_min(),
                            -0.0f,
                            0.0f,
                            1.0f,
                            -1.0f};
  return random.Below(2) != 0 ? kOdd[random.Below(kOdd.size())]
                              : static_cast<float>(random.NextDouble() * 100 - 20);
}

void ExpectSubset(const List& kept, const List& in) {
  EXPECT_LE(kept.size(), in.size());
  EXPECT_TRUE(std::is_sorted(kept.begin(), kept.end()));
  EXPECT_EQ(std::adjacent_find(kept.begin(), kept.end()), kept.end());
  EXPECT_TRUE(std::includes(in.begin(), in.end(), kept.begin(), kept.end()));
}

// As the engine counts them.
float Counted(float score) { return score > 0 ? std::min(score, 1.0f) : 0; }

TEST(Properties, AnyFloatsAreServed) {
  for (const PluginType& type : Types()) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE(std::string(type.type) + " seed " + std::to_string(seed));
      base::Random random(seed);
      Fixture f(1 + random.Below(20));
      Fill(f, random, [&] { return AnyFloat(random); });
      f.With(SpecOf(type.type), [&](const auto& context, const auto& plugin) {
        const size_t n = f.all.size();
        if (plugin.filter != nullptr) {
          List kept(n);
          kept.resize(plugin.filter->Apply(context, f.all, kept.data()));
          ExpectSubset(kept, f.all);
          for (const uint32_t position : f.all) plugin.filter->Why(context, position);
        }
        std::vector<float> scores(n);
        if (plugin.scorer != nullptr) plugin.scorer->Score(context, f.all, scores.data());
        if (plugin.saturation != nullptr) plugin.saturation->Saturation(context);
        if (plugin.admitter != nullptr) plugin.admitter->Admit(context), plugin.admitter->Why(context);
        return 0;
      });
    }
  }
}

TEST(Properties, AMaximumIsPickedWhateverScorersSay) {
  for (const PluginType& type : Types()) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE(std::string(type.type) + " seed " + std::to_string(seed));
      base::Random random(seed);
      Fixture f(1 + random.Below(20));
      Fill(f, random, [&] { return AnyFloat(random); });
      std::vector<float> scores;
      const bool scorer = f.With(SpecOf(type.type), [&](const auto& context, const auto& plugin) {
        scores.resize(f.all.size());
        if (plugin.scorer != nullptr) plugin.scorer->Score(context, f.all, scores.data());
        return plugin.scorer != nullptr;
      });
      if (!scorer) break;
      std::transform(scores.begin(), scores.end(), scores.begin(), Counted);
      f.With("max-score-picker", {}, [&](const auto& context, const auto& plugin) {
        std::array<uint32_t, 3> out{};
        EXPECT_EQ(plugin.picker->Pick(context, f.all, scores, out), std::min<size_t>(3, f.all.size()));
        EXPECT_EQ(scores[out[0]], *std::max_element(scores.begin(), scores.end()));
        return 0;
      });
    }
  }
}

TEST(Properties, PickersChooseDistinctOnesOfAnyScores) {
  for (const char* type : {"max-score-picker", "random-picker", "weighted-random-picker"}) {
    for (uint64_t seed = 1; seed <= 200; ++seed) {
      SCOPED_TRACE(std::string(type) + " seed " + std::to_string(seed));
      base::Random random(seed);
      Fixture f(1 + random.Below(20));
      std::vector<float> scores(f.all.size());
      for (float& score : scores) score = AnyFloat(random);
      List out(1 + random.Below(8));
      f.With(type, {}, [&](const auto& context, const auto& plugin) {
        out.resize(plugin.picker->Pick(context, f.all, scores, out));
        return 0;
      });
      EXPECT_GE(out.size(), 1u);
      std::sort(out.begin(), out.end());
      ExpectSubset(out, f.all);
    }
  }
}

TEST(Properties, EqualsGetEqualShares) {
  for (const char* type : {"max-score-picker", "random-picker", "weighted-random-picker"}) {
    for (const float score : {0.0f, 0.3f, -2.0f}) {
      Fixture f(5);
      const std::vector<float> scores(5, score);
      std::array<int, 5> first{};
      f.With(type, {}, [&](const auto& context, const auto& plugin) {
        for (int i = 0; i < 10'000; ++i) {
          std::array<uint32_t, 2> out{};
          plugin.picker->Pick(context, f.all, scores, out);
          ++first[out[0]];
        }
        return 0;
      });
      for (const int n : first) EXPECT_NEAR(n, 2000, 4 * 40) << type << " of score " << score;
    }
  }
}

// By its own words it goes by the order of the candidates.
bool GoesByOrder(std::string_view type) { return type == "no-hit-lru-scorer"; }

// Where in `order` each is.
List Inverse(const List& order) {
  List places(order.size());
  for (uint32_t i = 0; i < order.size(); ++i) places[order[i]] = i;
  return places;
}

// The same candidates in another order.
Fixture& Permute(const Fixture& from, const List& order, Fixture& to) {
  to.request = from.request;
  to.headers = from.headers;
  to.others = from.others;
  to.peer = Inverse(order)[*from.peer];
  for (const uint32_t at : order) to.endpoints.push_back(from.endpoints[at]);
  for (const auto& [name, values] : from.columns()) {
    auto& permuted = to[name];
    for (size_t i = 0; i < order.size(); ++i) permuted[i] = values[order[i]];
  }
  return to;
}

TEST(Properties, TheOrderOfEndpointsChangesNothing) {
  for (const PluginType& type : Types()) {
    if (GoesByOrder(type.type)) continue;
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE(std::string(type.type) + " seed " + std::to_string(seed));
      base::Random random(seed);
      Fixture f(2 + random.Below(20));
      Fill(f, random, [&] { return static_cast<float>(random.Below(1000)) / 100; });
      List order = f.all;
      for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.Below(i)]);
      Fixture g(f.all.size());
      Permute(f, order, g);
      struct Said {
        std::vector<float> scores;
        List kept;
        float saturation = 0;
      };
      const auto ask = [&](Fixture& of) {
        return of.With(SpecOf(type.type), [&](const auto& context, const auto& plugin) {
          Said said{std::vector<float>(of.all.size()), List(of.all.size()), 0};
          if (plugin.scorer != nullptr) plugin.scorer->Score(context, of.all, said.scores.data());
          const size_t kept =
              plugin.filter != nullptr ? plugin.filter->Apply(context, of.all, said.kept.data()) : 0;
          said.kept.resize(kept);
          if (plugin.saturation != nullptr) said.saturation = plugin.saturation->Saturation(context);
          return said;
        });
      };
      const Said one = ask(f);
      Said other = ask(g);
      for (size_t i = 0; i < order.size(); ++i)
        EXPECT_NEAR(other.scores[i], one.scores[order[i]], 1e-5 * std::max(1.0f, std::abs(other.scores[i])));
      for (uint32_t& position : other.kept) position = order[position];
      std::sort(other.kept.begin(), other.kept.end());
      EXPECT_EQ(other.kept, one.kept);
      EXPECT_NEAR(other.saturation, one.saturation, 1e-5 * std::max(1.0f, one.saturation));
    }
  }
}

}  // namespace
}  // namespace fairway::scheduling
