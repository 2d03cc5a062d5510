// Which profiles decide, and what their choices become.
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "scheduling/config.h"
#include "tests/support/plugins.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using Texts = std::vector<std::string>;
using tests::Parsed;

// Only what has its queue.
class QueueIs final : public Plugin, public Filter {
 public:
  explicit QueueIs(Build& build) : queue_(build.Reads("page-queue")), is_(build.Float("is", 0, 0, 100)) {}
  size_t Apply(const Context& context, std::span<const uint32_t> in, uint32_t* out) const noexcept override {
    size_t kept = 0;
    for (const uint32_t position : in) {
      out[kept] = position;
      kept += context.columns[queue_][position] == is_ ? 1 : 0;
    }
    return kept;
  }
  std::string Why(const Context&, uint32_t) const override { return "another queue"; }

 private:
  Column queue_;
  float is_;
};

// Runs all profiles, the first answers, and tells of none: as an old handler of the reference.
class RunsAll final : public Plugin, public ProfileHandler {
 public:
  std::optional<size_t> Next(const Context&, std::span<const ProfileResult> results) const noexcept override {
    for (size_t i = 0; i < results.size(); ++i) {
      if (!results[i].ran) return i;
    }
    return std::nullopt;
  }
  size_t Primary(std::span<const ProfileResult>) const noexcept override { return 0; }
};

// Profiles decode, prefill and encode that take only endpoints whose queue is 1, 2 and 3.
ConfigSpec ThreeStages(std::string_view handler, std::string_view parameters) {
  ConfigSpec spec;
  spec.plugins = {Parsed("queue-is", "one", "is: 1"),
                  Parsed("queue-is", "two", "is: 2"),
                  Parsed("queue-is", "three", "is: 3"),
                  Parsed("random-picker", "picker", "{}"),
                  Parsed("always-disagg-pd-decider", "always", "{}"),
                  Parsed("always-disagg-multimodal-decider", "media", "{}"),
                  Parsed(handler, "handler", parameters)};
  spec.profiles = {{.name = "decode", .steps = {{"one"}, {"picker"}}},
                   {.name = "prefill", .steps = {{"two"}, {"picker"}}},
                   {.name = "encode", .steps = {{"three"}, {"picker"}}}};
  spec.handler = "handler";
  return spec;
}

CompileOptions WithQueueIs() {
  return {.more_types = {{"queue-is",
                          [](Build& build) -> std::unique_ptr<Plugin> {
                            return std::make_unique<QueueIs>(build);
                          }},
                         {"runs-all",
                          [](Build&) -> std::unique_ptr<Plugin> { return std::make_unique<RunsAll>(); }}},
          .states = nullptr,
          .allow_experimental = true};
}

struct Decided {
  OutcomeKind kind;
  std::string first;
  Texts further;  // "header endpoint"
  Outcome outcome;
};

class Handlers : public testing::Test {
 protected:
  Decided Decide(const ConfigSpec& spec, const Facts& request = {.prompt_tokens = 100}) {
    Texts deprecated;
    const Scheduler scheduler({}, 0, tests::Compiled(spec, WithQueueIs(), &deprecated));
    Scratch scratch;
    base::Random random(1);
    const auto snapshot = pool->pool();
    const Outcome outcome = scheduler.Pick(*snapshot, request, std::nullopt, base::kSecond, scratch, random);
    Decided decided{.kind = outcome.kind, .outcome = outcome};
    if (outcome.kind != OutcomeKind::kPicked) return decided;
    decided.first = snapshot->endpoints[outcome.choices[0]].name;
    for (size_t i = 0; i < outcome.num_further; ++i) {
      decided.further.push_back(std::string(outcome.further[i].header) + " " +
                                snapshot->endpoints[outcome.further[i].endpoint].name);
    }
    return decided;
  }
  uint32_t Own(size_t i) { return pool->pool()->endpoints[i].cell->own(); }
  uint32_t Tokens(size_t i) { return pool->pool()->endpoints[i].cell->load().own_work().tokens; }

  std::optional<tests::TestPool> pool{
      std::in_place, std::vector<tests::ServerState>{{"D", 1}, {"P", 2}, {"E", 3}, {"F", 3}}};
};

TEST_F(Handlers, DisaggRunsWhatItsDecidersWant) {
  const Decided both =
      Decide(ThreeStages("disagg-profile-handler", "deciders: {prefill: always, encode: media}"));
  EXPECT_EQ(both.first, "D");
  EXPECT_EQ(both.further, (Texts{"x-prefiller-host-port P"}));
  const Decided media =
      Decide(ThreeStages("disagg-profile-handler", "deciders: {prefill: always, encode: media}"),
             {.prompt_tokens = 100, .has_media = true});
  EXPECT_EQ(media.further.size(), 3u) << "one prefiller, both encoders";
  EXPECT_TRUE(Decide(ThreeStages("disagg-profile-handler", "{}")).further.empty());
}

TEST_F(Handlers, ThePromptIsWorkWhereItIsComputed) {
  Decide(ThreeStages("disagg-profile-handler", "deciders: {prefill: always}"));
  EXPECT_EQ(Own(0), 1u);
  EXPECT_EQ(Tokens(0), 0u);
  EXPECT_EQ(Own(1), 1u);
  EXPECT_EQ(Tokens(1), 100u);
}

TEST_F(Handlers, AStageWithoutAServerIsLeftOut) {
  pool.emplace(std::vector<tests::ServerState>{{"D", 1}});
  const Decided decided = Decide(ThreeStages("disagg-profile-handler", "deciders: {prefill: always}"));
  EXPECT_EQ(decided.first, "D");
  EXPECT_TRUE(decided.further.empty());
  EXPECT_EQ(Tokens(0), 100u);
  pool.emplace(std::vector<tests::ServerState>{{"P", 2}});
  EXPECT_EQ(Decide(ThreeStages("disagg-profile-handler", "{}")).kind, OutcomeKind::kShed);
}

TEST_F(Handlers, PrefillFirstRunsItAlways) {
  const Decided decided = Decide(ThreeStages("disagg-profile-handler", "stageOrder: Prefill_First"));
  EXPECT_EQ(decided.first, "D");
  EXPECT_EQ(decided.further, (Texts{"x-prefiller-host-port P"}));
}

TEST_F(Handlers, OldNamesOfDisaggAreTaken) {
  EXPECT_EQ(Decide(ThreeStages("disagg-profile-handler", "prefillDeciderPluginName: always")).further.size(),
            1u);
  EXPECT_EQ(Decide(ThreeStages("pd-profile-handler", "deciderPluginName: always")).further.size(), 1u);
}

TEST_F(Handlers, OldPluginsTellWhatTheirHandlerDoesNot) {
  ConfigSpec spec = ThreeStages("runs-all", "{}");
  EXPECT_TRUE(Decide(spec).further.empty());
  for (const char* type : {"disagg-headers-handler", "prefill-header-handler"}) {
    spec.plugins.push_back(Parsed(type, type, "{}"));
    const Decided decided = Decide(spec);
    EXPECT_EQ(decided.first, "D");
    EXPECT_EQ(decided.further.size(), 3u) << type;
    EXPECT_EQ(decided.further.at(0), "x-prefiller-host-port P");
    EXPECT_EQ(decided.further.at(1).substr(0, 22), "x-encoder-hosts-ports ");
    EXPECT_EQ(Own(1), 1u) << "a place is taken where the prompt is computed";
    pool->pool()->endpoints[1].cell->Release(decided.outcome.further[0].reservation,
                                             fleet::ReleaseKind::kEnded, 0);
    spec.plugins.back() = Parsed(type, type, "{prefillProfile: encode, encodeProfile: none}");
    EXPECT_EQ(Decide(spec).further.at(0).substr(0, 22), "x-prefiller-host-port ");
    spec.plugins.pop_back();
  }
  // Beside a handler that tells, nothing is told twice.
  spec = ThreeStages("disagg-profile-handler", "deciders: {prefill: always}");
  spec.plugins.push_back(Parsed("disagg-headers-handler", "old", "{}"));
  EXPECT_EQ(Decide(spec).further, (Texts{"x-prefiller-host-port P"}));
}

TEST_F(Handlers, MistakesOfDisaggAreTold) {
  const auto problems = [](std::string_view parameters) {
    return tests::ProblemsOf(ThreeStages("disagg-profile-handler", parameters), WithQueueIs());
  };
  EXPECT_EQ(
      problems("deciders: {prefill: sometimes}"),
      (Texts{"test.yaml:1: plugin handler (disagg-profile-handler): parameters.deciders.prefill: no plugin "
             "\"sometimes\" that is a decider"}));
  EXPECT_EQ(problems("{stageOrder: prefill-first, deciders: {prefill: always}}"),
            (Texts{"test.yaml:1: plugin handler (disagg-profile-handler): parameters.deciders.prefill: a "
                   "prefill decider "
                   "looks at the decode server, which prefill-first has not chosen yet"}));
  EXPECT_EQ(
      problems("profiles: {decode: decod}"),
      (Texts{"test.yaml:1: plugin handler (disagg-profile-handler): parameters.profiles.decode: there is no "
             "profile \"decod\", which decode needs"}));
}

TEST_F(Handlers, TheDeprecatedOneNamesItsOwnFields) {
  const Texts problems = tests::ProblemsOf(
      ThreeStages("pd-profile-handler", "{deciderPluginName: sometimes, decodeProfile: decod}"),
      WithQueueIs());
  const auto told = [&](std::string_view what) {
    return std::any_of(problems.begin(), problems.end(),
                       [&](const std::string& problem) { return problem.find(what) != std::string::npos; });
  };
  EXPECT_TRUE(told("parameters.deciderPluginName: no plugin \"sometimes\""))
      << ::testing::PrintToString(problems);
  EXPECT_TRUE(told("parameters.decodeProfile: there is no profile \"decod\""))
      << ::testing::PrintToString(problems);
}

TEST_F(Handlers, AHeaderNamesTheProfile) {
  const ConfigSpec spec = ThreeStages("header-profile-handler", "{}");
  EXPECT_EQ(Decide(spec).first, "D");
  EXPECT_EQ(Decide(spec, {.headers = {{"epp-profile", "prefill"}}}).first, "P");
  EXPECT_EQ(Decide(spec, {.headers = {{"epp-profile", "nothing"}}}).kind, OutcomeKind::kShed);
}

TEST_F(Handlers, RanksAreReachedByTheFirstPort) {
  ConfigSpec spec = ThreeStages("data-parallel-profile-handler", "primaryPort: 8100");
  spec.profiles.resize(1);
  const Decided decided = Decide(spec);
  EXPECT_EQ(decided.first, "D");
  EXPECT_EQ(decided.outcome.destination_port, 8100);
  EXPECT_EQ(decided.outcome.address_header, "x-data-parallel-host-port");
}

}  // namespace
}  // namespace fairway::scheduling
