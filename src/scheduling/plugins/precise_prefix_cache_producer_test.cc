// Where engines' KV events are read, as configs say it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "scheduling/config.h"
#include "tests/support/plugins.h"

namespace fairway::scheduling {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::string_view kType = "precise-prefix-cache-producer";

ConfigSpec WithPrecise(std::string_view parameters) {
  return tests::OneProfile({tests::Parsed(kType, kType, parameters),
                            tests::Parsed("prefix-cache-scorer", "prefix-cache-scorer",
                                          "{prefixMatchInfoProducerName: precise-prefix-cache-producer}"),
                            tests::Spec("max-score-picker")},
                           {{"prefix-cache-scorer"}, {"max-score-picker"}});
}

const KvEventsReader::Where* WhereOf(const Config& config) {
  for (const auto& instance : config.plugins) {
    if (const auto* reader = dynamic_cast<const KvEventsReader*>(instance->plugin.get()))
      return reader->kv_events();
  }
  return nullptr;
}

TEST(PrecisePrefixCacheProducer, ReadsEventsWhereTheReferenceDoes) {
  std::vector<std::string> warnings;
  const auto config = tests::Compiled(WithPrecise("{}"), {}, &warnings);
  const auto* where = WhereOf(*config);
  ASSERT_NE(where, nullptr);
  EXPECT_EQ(where->port, 5557);
  EXPECT_EQ(where->replay_port, 0);
  EXPECT_EQ(where->topic, "kv@");
  EXPECT_THAT(where->labels, IsEmpty());
  EXPECT_THAT(warnings, IsEmpty());
  EXPECT_TRUE(config->cached) << "there is a belief to correct";
}

TEST(PrecisePrefixCacheProducer, TakesTheParametersOfTheReference) {
  std::vector<std::string> warnings;
  const auto config = tests::Compiled(
      WithPrecise(
          "{kvEventsConfig: {topicFilter: 'x@', concurrency: 8, engineType: sglang, podDiscoveryConfig: "
          "{podLabelSelector: 'a=b, c==d', podNamespace: ns, socketPort: 6000, replaySocketPort: 7000}}}"),
      {}, &warnings);
  const auto* where = WhereOf(*config);
  ASSERT_NE(where, nullptr);
  EXPECT_EQ(where->port, 6000);
  EXPECT_EQ(where->replay_port, 7000);
  EXPECT_EQ(where->topic, "x@");
  EXPECT_EQ(where->namespace_name, "ns");
  EXPECT_THAT(where->labels, ElementsAre(testing::Pair("a", "b"), testing::Pair("c", "d")));
  EXPECT_THAT(warnings, IsEmpty());
}

TEST(PrecisePrefixCacheProducer, SaysWhatItDoesNotDo) {
  std::vector<std::string> warnings;
  const auto config = tests::Compiled(
      WithPrecise("{indexerConfig: {}, kvEventsConfig: {discoverPods: false, zmqEndpoint: 'tcp://*:5557'}}"),
      {}, &warnings);
  EXPECT_EQ(WhereOf(*config), nullptr);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("prompts are matched by their text"),
                                    HasSubstr("each Pod is asked"), HasSubstr("no KV events are read")));
}

TEST(PrecisePrefixCacheProducer, RefusesWhatCannotBe) {
  const auto problem = [](std::string_view parameters) { return tests::ProblemsOf(WithPrecise(parameters)); };
  EXPECT_THAT(problem("{kvEventsConfig: {podDiscoveryConfig: {socketPort: 70000}}}"),
              ElementsAre(HasSubstr("socketPort")));
  EXPECT_THAT(problem("{kvEventsConfig: {podDiscoveryConfig: {podLabelSelector: 'a in (b)'}}}"),
              ElementsAre(HasSubstr("key=value")));
  EXPECT_THAT(problem("{kvEventsConfig: {engineType: tgi}}"), ElementsAre(HasSubstr("vllm or sglang")));
  EXPECT_THAT(problem("{kvEventsConfig: {topicFilters: x}}"), ElementsAre(HasSubstr("topicFilter")));
  EXPECT_THAT(problem("{kvEventsConfig: {discoverPods: 1}}"), ElementsAre(HasSubstr("true or false")));
}

}  // namespace
}  // namespace fairway::scheduling
