// What a config says of engines' pages, and decisions by numbers of theirs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "scheduling/plugin.h"
#include "tests/support/plugins.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using ::testing::HasSubstr;

const char* const kTwo = R"(
defaultEngine: mine
engineConfigs:
- name: vllm
  customMetrics: [{attributeKey: Heat, metricSpec: "gpu_temperature{gpu=0}"}]
- name: mine
  queuedRequestsSpec: my_queue
  cacheNumBlocksLabelName: blocks
  customMetrics: [{attributeKey: Heat, metricSpec: my_heat}, {attributeKey: queue, metricSpec: my_queue}]
)";

TEST(CoreMetricsExtractor, SaysHowPagesAreRead) {
  const auto config = tests::Compiled({.plugins = {tests::Parsed("core-metrics-extractor", "e", kTwo)}});
  ASSERT_NE(config, nullptr);
  const auto* settings = dynamic_cast<const PageSettings*>(config->plugins.at(0)->plugin.get());
  ASSERT_NE(settings, nullptr);
  const api::EnginePages& pages = *settings->pages();
  EXPECT_EQ(pages.label, "llm-d.ai/engine-type");
  EXPECT_EQ(pages.default_engine, "mine");
  ASSERT_EQ(pages.engines.size(), 2u);
  EXPECT_FALSE(pages.engines[0].queued);
  EXPECT_EQ(pages.engines[0].custom.at(0).metric.labels.at(0).second, "0");
  EXPECT_EQ(pages.engines[1].queued->name, "my_queue");
  EXPECT_EQ(pages.engines[1].num_blocks_label, "blocks");
  EXPECT_TRUE(config->columns.back().name == "queue/e");
}

TEST(CoreMetricsExtractor, SaysWhatIsWrong) {
  const auto problem = [](const std::string& parameters) {
    const auto problems =
        tests::ProblemsOf({.plugins = {tests::Parsed("core-metrics-extractor", "e", parameters)}});
    return problems.empty() ? std::string("none")
                            : problems.front().substr(problems.front().find("parameters"));
  };
  EXPECT_EQ(problem("{defaultEngine: vlm}"),
            "parameters.defaultEngine: there is no engine \"vlm\"; did you mean \"vllm\"?");
  EXPECT_EQ(problem("{engineConfigs: [{name: default}]}"),
            "parameters.engineConfigs[0].name: want the name of an engine, not \"default\"");
  EXPECT_EQ(
      problem("{engineConfigs: [{name: a, queuedRequestsSpec: \"b{c\"}]}"),
      "parameters.engineConfigs[0].queuedRequestsSpec: metric \"b{c\": the closing } is missing; expected "
      "name or name{label=value,...}");
  EXPECT_EQ(problem("{engineConfigs: [{name: a}, {name: a}]}"),
            "parameters.engineConfigs[1].name: \"a\" is there twice");
  EXPECT_EQ(
      problem("{engineConfigs: [{name: a, customMetrics: [{attributeKey: x/y, metricSpec: b}]}]}"),
      "parameters.engineConfigs[0].customMetrics[0].attributeKey: want a name without a \"/\", got \"x/y\"");
  EXPECT_EQ(problem("{engineConfigs: [{name: a, customMetrics: [{attributeKey: x}]}]}"),
            "parameters.engineConfigs[0].customMetrics[0].metricSpec: is required");
  EXPECT_EQ(problem("{engineConfigs: [{name: a, customMetrics: [{attributeKey: x, metricSpec: \"\"}]}]}"),
            "parameters.engineConfigs[0].customMetrics[0].metricSpec: want a metric, as name or "
            "name{label=value,...}");
  EXPECT_EQ(
      problem("{engineConfigs: [{name: vlm}]}"),
      "parameters.engineConfigs[0].name: \"vlm\" is an engine that is not known: of endpoints that carry "
      "this name in label llm-d.ai/engine-type; did you mean \"vllm\"?");
  EXPECT_EQ(problem("{engineConfigs: [{name: vlm}], defaultEngine: vlm}"), "none") << "it is meant";
  EXPECT_EQ(problem("{engineConfigs: [{name: mine, queuedRequestsSpec: \"\"}]}"), "none");
  EXPECT_THAT(problem("{engineConfigs: [{name: a, customMetric: []}]}"),
              HasSubstr("did you mean \"customMetrics\""));
  std::string many;
  for (int i = 0; i < 17; ++i)
    many += "{name: e" + std::to_string(i) + ", customMetrics: [{attributeKey: k" + std::to_string(i) +
            ", metricSpec: m}]},";
  EXPECT_EQ(problem("{engineConfigs: [" + many + "]}"),
            "parameters.engineConfigs: want at most 16 different attributeKeys, got 17");
}

TEST(CoreMetricsExtractor, OneOfThemReadsPages) {
  std::vector<std::string> warnings;
  const auto config = tests::Compiled({.plugins = {tests::Parsed("core-metrics-extractor", "e", kTwo),
                                                   tests::Parsed("core-metrics-extractor", "f", "{}")}},
                                      {}, &warnings);
  EXPECT_EQ(warnings, (std::vector<std::string>{
                          "test.yaml:1: warning: plugin f: has no effect: plugin e says how pages are read "
                          "already; put all engineConfigs into one"}));
  ASSERT_NE(config->page_settings, nullptr);
  EXPECT_EQ(config->page_settings->pages()->default_engine, "mine");
}

// Why the pool's endpoints are chosen among as they are, by an attribute.
Explanation WhyBy(const std::string& attribute, tests::TestPool& pool) {
  const auto config = tests::Compiled(
      tests::OneProfile(
          {tests::Parsed("core-metrics-extractor", "core-metrics-extractor", kTwo),
           tests::Parsed("endpoint-attribute-scorer", "s",
                         "{attributeKey: " + attribute + ", algorithm: {type: linear_higher_is_better}}"),
           tests::Spec("max-score-picker")},
          {{"s"}, {"max-score-picker"}}),
      {.more_types = {}, .states = nullptr, .allow_experimental = true});
  const Scheduler scheduler({}, 0, config);
  Scratch scratch;
  base::Random random(1);
  Explanation why;
  scheduler.Pick(*pool.pool(), {}, std::nullopt, base::kSecond, scratch, random, &why);
  return why;
}

// The endpoints' scores by it.
std::vector<float> ScoresBy(const std::string& attribute, tests::TestPool& pool) {
  std::vector<float> scores;
  const Explanation why = WhyBy(attribute, pool);
  for (const auto& [endpoint, score] : why.steps.at(0).scores) scores.push_back(score);
  return scores;
}

// What an explanation shows of a column.
std::vector<float> Told(const std::string& column, tests::TestPool& pool) {
  const Explanation why = WhyBy("Heat", pool);
  for (const auto& made : why.columns) {
    if (made.name == column) return made.values;
  }
  return {};
}

TEST(CoreMetricsExtractor, ItsNumbersDecide) {
  tests::TestPool pool(
      {{.name = "a", .waiting = 1}, {.name = "b", .waiting = 3}, {.name = "c", .waiting = 2}});
  EXPECT_EQ(ScoresBy("Heat", pool), (std::vector<float>{0, 0, 0})) << "no page has said any";
  const auto snapshot = pool.pool();
  const auto set = [&](size_t i, const char* name, float value) {
    snapshot->endpoints[i].cell->SetAttribute(fleet::PageAttributes::KeyOf(name), value);
  };
  set(0, "Heat", 30);
  set(1, "Heat", 80);
  set(2, "Heat", 40);
  EXPECT_EQ(ScoresBy("Heat", pool), (std::vector<float>{0, 1, 0.2f}));
  EXPECT_EQ(Told("Heat/core-metrics-extractor", pool), (std::vector<float>{30, 80, 40}));
  EXPECT_TRUE(Told("core-metrics-extractor/Heat", pool).empty());
  set(1, "Heat", std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(ScoresBy("Heat", pool), (std::vector<float>{0, 0, 1}));
  // The config's own attribute, not Fairway's of that name.
  set(0, "queue", 9);
  set(1, "queue", 5);
  set(2, "queue", 7);
  EXPECT_EQ(ScoresBy("queue", pool), (std::vector<float>{1, 0, 0.5f}));
  EXPECT_EQ(ScoresBy("page-queue", pool), (std::vector<float>{0, 1, 0.5f}));
  for (const auto& endpoint : snapshot->endpoints) endpoint.cell->ForgetAttributes();
  EXPECT_EQ(ScoresBy("Heat", pool), (std::vector<float>{0, 0, 0}));
}

TEST(PageAttributes, KeepSoManyAndNoMore) {
  fleet::PageAttributes attributes;
  for (size_t i = 0; i <= fleet::PageAttributes::kMost; ++i)
    attributes.Set(fleet::PageAttributes::KeyOf(std::to_string(i)), static_cast<float>(i));
  EXPECT_EQ(attributes.Get(fleet::PageAttributes::KeyOf("15")), 15);
  EXPECT_TRUE(std::isnan(attributes.Get(fleet::PageAttributes::KeyOf("16"))));
}

}  // namespace
}  // namespace fairway::scheduling
