#include "scheduling/config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "scheduling/plugin.h"
#include "scheduling/plugins/format.h"
#include "tests/support/plugins.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {

// CONTRIBUTING.md's example, compiled from there (CMakeLists.txt).
std::unique_ptr<Plugin> MakeKvCacheLimitFilter(Build& build);

namespace {

using tests::OneProfile;
using tests::Parsed;
using tests::ProblemsOf;
using tests::Spec;
using Texts = std::vector<std::string>;

template <typename T>
std::unique_ptr<Plugin> MakeOf(Build& build) {
  return std::make_unique<T>(build);
}

// A column of one's own, and a scorer over it.
class ZoneProducer final : public Plugin, public EndpointProducer {
 public:
  explicit ZoneProducer(Build& build) : zone_(build.Text("zone", "a")) {
    build.Makes("in-zone", Lifetime::kSnapshot, Unit::kCount);
  }
  float Value(Column, const fleet::Endpoint& endpoint) const override { return endpoint.name == zone_; }

 private:
  std::string zone_;
};
class ZoneScorer final : public Plugin, public Scorer {
 public:
  explicit ZoneScorer(Build& build) : zone_(build.Reads("in-zone")) {}
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    for (size_t i = 0; i < in.size(); ++i) out[i] = context.columns[zone_][in[i]];
  }

 private:
  Column zone_;
};
// Its column is twice another one, or 1 without.
class Doubler final : public Plugin, public Producer {
 public:
  explicit Doubler(Build& build) {
    const std::string from = build.Text("from", "");
    if (!from.empty()) from_ = build.Reads(from);
    to_ = build.Makes(build.Text("to", "twice"), Lifetime::kRequest, Unit::kCount);
  }
  void Make(const Context& context, float* const* made) const noexcept override {
    for (size_t i = 0; i < context.columns.size(); ++i)
      made[to_.id][i] = from_ ? 2 * context.columns[*from_][i] : 1;
  }

 private:
  std::optional<Column> from_;
  Column to_;
};
class Ones final : public Plugin, public Producer {
 public:
  explicit Ones(Build& build) : to_(build.Makes("ones", Lifetime::kRequest, Unit::kShare)) {}
  void Make(const Context& context, float* const* made) const noexcept override {
    std::fill_n(made[to_.id], context.columns.size(), 1.0f);
  }

 private:
  Column to_;
};
class ReadsScorer final : public Plugin, public Scorer {
 public:
  explicit ReadsScorer(Build& build) : column_(build.Reads(build.Text("column", "queue"))) {}
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    for (size_t i = 0; i < in.size(); ++i) out[i] = context.columns[column_][in[i]] / 10;
  }

 private:
  Column column_;
};
// As one whose parameters ask for more memory than there is.
class Greedy final : public Plugin, public Scorer {
 public:
  explicit Greedy(Build& build) {
    build.Remember<int>([]() -> std::shared_ptr<int> { throw std::bad_alloc(); });
  }
  void Score(const Context&, std::span<const uint32_t>, float*) const noexcept override {}
};

CompileOptions WithOurs() {
  return {.more_types = {{"kv-cache-limit-filter", MakeKvCacheLimitFilter},
                         {"zone-producer", MakeOf<ZoneProducer>, Stability::kOurs, "in-zone"},
                         {"zone-scorer", MakeOf<ZoneScorer>},
                         {"doubler", MakeOf<Doubler>},
                         {"reads-scorer", MakeOf<ReadsScorer>}}};
}

// The names of the endpoints that 100 decisions chose, with how often.
std::map<std::string, int> Decide(const ConfigSpec& spec, tests::TestPool& pool, Explanation* why = nullptr) {
  const Scheduler scheduler({}, 0, tests::Compiled(spec, WithOurs()));
  Scratch scratch;
  base::Random random(1);
  std::map<std::string, int> chosen;
  const auto snapshot = pool.pool();
  for (int i = 0; i < 100; ++i) {
    const Outcome outcome =
        scheduler.Pick(*snapshot, {}, std::nullopt, base::kSecond, scratch, random, i == 0 ? why : nullptr);
    ++chosen[snapshot->endpoints[outcome.choices[0]].name];
  }
  return chosen;
}

TEST(Config, AFilterOfOnesOwnDecides) {
  tests::TestPool pool(
      {{.name = "a", .kv_usage = 0.95f}, {.name = "b", .kv_usage = 0.94f}, {.name = "c", .kv_usage = 1}});
  Explanation why;
  const ConfigSpec spec = OneProfile({Spec("kv-cache-limit-filter"), Spec("random-picker")},
                                     {{"kv-cache-limit-filter"}, {"random-picker"}});
  EXPECT_EQ(Decide(spec, pool, &why), (std::map<std::string, int>{{"b", 100}}));
  EXPECT_EQ(why.steps.at(0).drops.at(0).why, "KV use 95 % is not below 95 %");
}

TEST(Config, AScorerOverAColumnOfOnesOwnDecides) {
  tests::TestPool pool({{"a"}, {"b"}, {"c"}});
  ConfigSpec spec =
      OneProfile({Parsed("zone-producer", "zones", "zone: b"), Spec("zone-scorer"), Spec("max-score-picker")},
                 {{"zone-scorer"}, {"max-score-picker"}});
  EXPECT_EQ(Decide(spec, pool), (std::map<std::string, int>{{"b", 100}}));
}

// Counts how often it is asked.
class CountingProducer final : public Plugin, public EndpointProducer {
 public:
  static inline int asked = 0;
  explicit CountingProducer(Build& build) { build.Makes("in-zone", Lifetime::kSnapshot, Unit::kCount); }
  float Value(Column, const fleet::Endpoint& endpoint) const override {
    ++asked;
    return endpoint.name == "b";
  }
};

TEST(Config, SnapshotColumnsAreThereBeforeTheFirstDecision) {
  const ConfigSpec spec = OneProfile({Spec("counting"), Spec("zone-scorer"), Spec("max-score-picker")},
                                     {{"zone-scorer"}, {"max-score-picker"}});
  CompileOptions options = WithOurs();
  options.more_types.push_back({"counting", MakeOf<CountingProducer>, Stability::kOurs, "in-zone"});
  tests::TestPool pool({{"a"}, {"b"}, {"c"}});
  Scheduler scheduler({}, 0, tests::Compiled(spec, options));
  base::Random random(1);
  const auto pick = [&](Scratch& scratch) {
    const auto snapshot = pool.pool();
    const Outcome outcome = scheduler.Pick(*snapshot, {}, std::nullopt, base::kSecond, scratch, random);
    return snapshot->endpoints[outcome.choices[0]].name;
  };
  CountingProducer::asked = 0;
  pool.fleet().set_before_publish(
      [&](const fleet::Snapshot& next) { scheduler.Prepare(next, *scheduler.configs()); });
  pool.manifests().endpoints.erase(pool.manifests().endpoints.begin());
  pool.fleet().Apply(pool.manifests());
  EXPECT_EQ(CountingProducer::asked, 2) << "once an endpoint, when it is published";
  Scratch first, second;
  EXPECT_EQ(pick(first), "b");
  EXPECT_EQ(pick(second), "b");
  EXPECT_EQ(CountingProducer::asked, 2) << "and never again";
  // A new config, as the router swaps it.
  const auto next =
      std::make_shared<ConfigSet>(ConfigSet{.common = tests::Compiled(spec, options), .of_pools = {}});
  scheduler.Prepare(*pool.fleet().published().Load(), *next);
  scheduler.Swap(next);
  EXPECT_EQ(CountingProducer::asked, 4);
  EXPECT_EQ(pick(first), "b");
  EXPECT_EQ(CountingProducer::asked, 4);
  // Who is not told computes it when it is needed.
  pool.fleet().set_before_publish(nullptr);
  pool.manifests().endpoints.pop_back();
  pool.fleet().Apply(pool.manifests());
  EXPECT_EQ(pick(first), "b");
  EXPECT_EQ(CountingProducer::asked, 5);
}

TEST(Config, WhatNobodyMakesComesFromTheDefaultProducer) {
  tests::TestPool pool({{"a"}, {"b"}});
  const ConfigSpec spec =
      OneProfile({Spec("zone-scorer"), Spec("max-score-picker")}, {{"zone-scorer"}, {"max-score-picker"}});
  EXPECT_EQ(Decide(spec, pool), (std::map<std::string, int>{{"a", 100}}));
  EXPECT_EQ(tests::Compiled(spec, WithOurs())->plugins.size(), 3u);
}

TEST(Config, ProducersRunInTheOrderInWhichTheyRead) {
  tests::TestPool pool({{"a"}});
  Explanation why;
  const ConfigSpec spec = OneProfile(
      {Parsed("reads-scorer", "last", "column: four"), Parsed("doubler", "second", "{from: twice, to: four}"),
       Parsed("doubler", "first", "{from: one, to: twice}"), Parsed("doubler", "zeroth", "to: one"),
       Spec("max-score-picker")},
      {{"last"}, {"max-score-picker"}});
  Decide(spec, pool, &why);
  EXPECT_FLOAT_EQ(why.candidates.at(0).score, 0.4f);
  ASSERT_EQ(why.columns.size(), 3u);
  EXPECT_EQ(why.columns[0].name, "four");
  EXPECT_EQ(why.columns[0].values, std::vector<float>{4});
}

TEST(Config, ACircleOfProducersIsAnError) {
  EXPECT_EQ(ProblemsOf({.plugins = {Parsed("doubler", "a", "{from: x, to: y}"),
                                    Parsed("doubler", "b", "{from: y, to: x}")}},
                       WithOurs()),
            (Texts{"test.yaml: plugin a: reads what is made from its own column: a circle"}));
}

TEST(Config, AllProblemsAreTold) {
  EXPECT_EQ(
      ProblemsOf({.plugins = {Spec("least-queue-filtr"), Spec("queue-limit-filter", {{"limt", 3}}),
                              Spec("capacity-filter", {{"kvCacheLimit", 80}}),
                              Parsed("reads-scorer", "reads", "column: quue"),
                              Parsed("doubler", "doubler", "to: queue"), Spec("queue-scorer")},
                  .profiles = {{.name = "p",
                                .line = 9,
                                .steps = {{"queue-scorr", 1, 10},
                                          {"queue-scorer", std::numeric_limits<double>::infinity(), 11}}}}},
                 WithOurs()),
      (Texts{
          "test.yaml:1: plugin least-queue-filtr: type: there is no plugin type "
          "\"least-queue-filtr\"; did you mean \"least-queue-filter\"?",
          "test.yaml: plugin queue-limit-filter: parameters.limt: unknown field; did you mean "
          "\"limit\"?",
          "test.yaml: plugin capacity-filter: parameters.kvCacheLimit: want a number from 0 to 1, got \"80\"",
          "test.yaml:1: plugin doubler: parameters: column \"queue\" is made by the engine already",
          "test.yaml:1: plugin reads: reads column \"quue\", which no plugin makes; did you mean "
          "\"queue\"?",
          "test.yaml:10: profile p: plugins: there is no plugin \"queue-scorr\"; did you mean "
          "\"queue-scorer\"?",
          "test.yaml:11: profile p: queue-scorer: the weight must be a number"}));
}

// A file that changes while requests are served must not end the process.
TEST(Config, APluginThatWantsMoreMemoryThanThereIsIsAnError) {
  CompileOptions options;
  options.more_types = {{"greedy", MakeOf<Greedy>}};
  States states;
  options.states = &states;
  EXPECT_EQ(ProblemsOf({.plugins = {Spec("greedy"), Spec("queue-scorer")},
                        .profiles = {{.name = "p", .steps = {{"greedy", 1, 10}, {"queue-scorer", 1, 11}}}}},
                       options),
            (Texts{"test.yaml:1: plugin greedy: parameters: there is not enough memory for it"}));
  states.FreeUnused();
}

TEST(Config, WeightsAreBoundedSoThatTheirSumIsANumber) {
  const auto problems = [](double weight) {
    return ProblemsOf(
        {.plugins = {Spec("queue-scorer"), Spec("max-score-picker")},
         .profiles = {{.name = "p",
                       .steps = {{"queue-scorer", weight, 11}, {"max-score-picker", std::nullopt, 12}}}}},
        WithOurs());
  };
  for (const double weight : {1e308, 3e38, -1e31})
    EXPECT_EQ(problems(weight),
              (Texts{"test.yaml:11: profile p: queue-scorer: the weight must be from -1e30 to 1e30"}))
        << weight;
  EXPECT_EQ(problems(1e30), Texts{});
  EXPECT_EQ(problems(-1e30),
            (Texts{"test.yaml:11: warning: profile p: queue-scorer: has a weight below 0: what "
                   "it scores highest is avoided"}));
}

TEST(Config, EveryBuiltinTypeIsMadeWithItsDefaults) {
  for (const PluginType& type : BuiltinPlugins()) {
    SCOPED_TRACE(type.type);
    // Handlers look for these profiles.
    ConfigSpec spec{.plugins = {Spec(type.type), Parsed("random-picker", "picker", "{}"),
                                Parsed("always-disagg-pd-decider", "prefix-based-pd-decider", "{}")}};
    for (const char* profile : {"decode", "prefill", "encode"})
      spec.profiles.push_back({.name = profile, .steps = {{"picker"}}});
    if (type.type == "prefix-based-pd-decider") spec.plugins.pop_back();
    std::vector<api::Problem> found;
    api::ProblemList problems("test.yaml", found);
    const auto config =
        Compile(spec, problems, {.more_types = {}, .states = nullptr, .allow_experimental = true});
    if (config == nullptr) {  // it wants parameters, and says which
      for (const api::Problem& problem : found) {
        EXPECT_TRUE(problem.severity != api::Severity::kError || problem.field.starts_with("parameters."));
      }
      continue;
    }
    for (const ParameterInfo& parameter : config->plugins.front()->parameters) {
      EXPECT_FALSE(parameter.given);
      if (parameter.value != parameter.otherwise) {
        EXPECT_EQ(parameter.value, base::JsonString(parameter.otherwise)) << parameter.name;
      }
    }
  }
}

TEST(Config, IsSwappedBetweenDecisions) {
  tests::TestPool pool({{"a"}, {"b"}});
  const auto zone = [&](std::string_view name) {
    return tests::Compiled(OneProfile({Parsed("zone-producer", "zones", "zone: " + std::string(name)),
                                       Spec("zone-scorer"), Spec("max-score-picker")},
                                      {{"zone-scorer"}, {"max-score-picker"}}),
                           WithOurs());
  };
  Scheduler scheduler({}, 0, zone("a"));
  Scratch scratch;
  base::Random random(1);
  const auto pick = [&] {
    const Outcome outcome = scheduler.Pick(*pool.pool(), {}, std::nullopt, base::kSecond, scratch, random);
    return pool.pool()->endpoints[outcome.choices[0]].name;
  };
  EXPECT_EQ(pick(), "a");
  std::weak_ptr<const ConfigSet> old = scheduler.configs();
  scheduler.Swap(std::make_shared<ConfigSet>(
      ConfigSet{.common = zone("a"), .of_pools = {{"default/pool", zone("b")}, {"default/x", zone("a")}}}));
  EXPECT_EQ(pick(), "b");
  scheduler.Swap(std::make_shared<ConfigSet>(ConfigSet{.common = zone("a"), .of_pools = {}}));
  EXPECT_EQ(pick(), "a");
  scheduler.FreeUnused();
  EXPECT_TRUE(old.expired());
}

TEST(Config, AlphaTypesNeedAFlag) {
  const ConfigSpec spec{.plugins = {Spec("topology-extractor")}};
  EXPECT_EQ(
      ProblemsOf(spec),
      (Texts{"test.yaml:1: plugin topology-extractor: type: plugin type \"topology-extractor\" is Alpha: "
             "it needs --allow-experimental-plugins"}));
  EXPECT_EQ(ProblemsOf(spec, {.more_types = {}, .states = nullptr, .allow_experimental = true}), Texts{});
}

TEST(Config, WhatIsDeprecatedOrLeftOutIsSaidSo) {
  EXPECT_EQ(
      ProblemsOf(
          {.plugins = {Spec("by-label-selector"), Spec("latency-scorer"), Spec("latency-observation-scorer"),
                       Spec("metrics-data-source", {{"port", 1}}), Spec("fcfs-ordering-policy")}}),
      (Texts{"test.yaml:1: warning: plugin by-label-selector: type: plugin type \"by-label-selector\" is "
             "deprecated; use "
             "\"label-selector-filter\"; llm-d removes it in v0.11.0",
             "test.yaml:1: plugin latency-scorer: type: plugin type \"latency-scorer\" is not offered: "
             "predicted "
             "latency needs a service beside the picker",
             "test.yaml:1: plugin latency-observation-scorer: type: plugin type "
             "\"latency-observation-scorer\" is "
             "not offered: first tokens seen so far are learned as a rate, which time-to-first-token-scorer "
             "goes "
             "by",
             "test.yaml: warning: plugin metrics-data-source: parameters.port: has no effect here: pages are "
             "read as "
             "endpoints and --model-server-metrics-* say",
             "test.yaml:1: warning: plugin fcfs-ordering-policy: parameters: has no effect: requests do not "
             "wait in "
             "queues here"}));
}

class Optional final : public Plugin, public Scorer {
 public:
  explicit Optional(Build& build)
      : ones_(build.ReadsOptional("ones", true)), twos_(build.ReadsOptional("twos", true)) {}
  void Score(const Context& context, std::span<const uint32_t> in, float* out) const noexcept override {
    for (size_t i = 0; i < in.size(); ++i)
      out[i] = context.columns[ones_][in[i]] + context.columns[twos_][in[i]];
  }

 private:
  Column ones_, twos_;
};

TEST(Config, AColumnThatIsOptionalIsMadeWhereATypeMakesIt) {
  CompileOptions options{.more_types = {{"optional", MakeOf<Optional>}}};
  const auto zeros = tests::Compiled({.plugins = {Spec("optional")}}, options);
  EXPECT_EQ(zeros->absent_columns.size(), 2u);
  options.more_types.push_back({"ones", MakeOf<Ones>, Stability::kOurs, "ones"});
  const auto made = tests::Compiled({.plugins = {Spec("optional")}}, options);
  EXPECT_EQ(made->absent_columns.size(), 1u);
  EXPECT_EQ(made->producers.size(), 1u);
}

struct Counter {
  int made = 0;
};
class Remembers final : public Plugin, public Filter {
 public:
  explicit Remembers(Build& build)
      : counter_(build.Remember<Counter>([] { return std::make_shared<Counter>(); })) {
    ++counter_->made;
    last = counter_->made;
  }
  size_t Apply(const Context&, std::span<const uint32_t>, uint32_t*) const noexcept override { return 0; }
  std::string Why(const Context&, uint32_t) const override { return ""; }
  static int last;

 private:
  std::shared_ptr<Counter> counter_;
};
int Remembers::last = 0;

TEST(Config, WhatAPluginRemembersOutlivesTheConfig) {
  States states;
  const CompileOptions options{.more_types = {{"remembers", MakeOf<Remembers>}}, .states = &states};
  auto first = tests::Compiled({.plugins = {Spec("remembers")}}, options);
  EXPECT_EQ(Remembers::last, 1);
  auto second =
      tests::Compiled({.plugins = {Spec("remembers"), Parsed("remembers", "other", "{}")}}, options);
  EXPECT_EQ(Remembers::last, 1) << "of another name";
  first = nullptr;
  states.FreeUnused();
  second = tests::Compiled({.plugins = {Parsed("remembers", "other", "{}")}}, options);
  EXPECT_EQ(Remembers::last, 2);
  states.FreeUnused();
  tests::Compiled({.plugins = {Spec("remembers")}}, options);
  EXPECT_EQ(Remembers::last, 1) << "nobody had it any more";
}

// What a tree's filters did not leave may still be a fallback, the least loaded first: by columns that are
// gathered for that.
TEST(Config, FallbacksOfATreeAreSortedByWhatIsGathered) {
  ConfigSpec spec =
      tests::OneProfile({tests::Parsed("label-selector-filter", "gpus", "matchLabels: {gpu: h100}"),
                         tests::Spec("random-picker")},
                        {{"random-picker"}});
  spec.profiles[0].branches = {{.filter = "gpus", .limits_fallbacks = false}};
  EXPECT_EQ(tests::Compiled(spec)->programs[0].reads, Bit(kQueue) | Bit(kKvUsage));
  spec.profiles[0].branches[0].limits_fallbacks = true;
  EXPECT_EQ(tests::Compiled(spec)->programs[0].reads, 0u);
}

}  // namespace
}  // namespace fairway::scheduling
