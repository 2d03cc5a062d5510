// EndpointPickerConfigs as users have them, from text to a config that decides.
#include <gtest/gtest.h>
#include <algorithm>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "api/endpoint_picker_config.h"
#include "api/load.h"
#include "base/random.h"
#include "scheduling/config.h"
#include "scheduling/gather.h"
#include "scheduling/plugin.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using Texts = std::vector<std::string>;

struct Read {
  std::shared_ptr<const Config> config;
  Texts errors;
  Texts warnings;
};

Read Compiled(const api::EndpointPickerConfigResult& document, const std::string& name) {
  Read read;
  std::vector<api::Problem> found = document.problems;
  api::ProblemList problems(name, found);
  if (document.ok())
    read.config = Compile(FromDocument(document.config), problems,
                          {.more_types = {}, .states = nullptr, .allow_experimental = true});
  for (const api::Problem& problem : found)
    (problem.severity == api::Severity::kError ? read.errors : read.warnings)
        .push_back(api::ToString(problem));
  return read;
}

Read FromText(const std::string& text) {
  return Compiled(api::ParseEndpointPickerConfig(
                      "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n" + text, "c.yaml"),
                  "c.yaml");
}

std::vector<std::string> ScorersOf(const Program& program) {
  std::vector<std::string> names;
  for (const auto& scorer : program.scorers) {
    std::string weight = std::to_string(scorer.weight);
    names.push_back(scorer.name + " " + weight.substr(0, weight.find('.') + 2));
  }
  return names;
}

TEST(Documents, TheSamplesOfTheReferenceDecide) {
  size_t files = 0;
  const std::filesystem::path folder = "examples/endpoint-picker-config";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".yaml") continue;
    const std::string name = entry.path().filename();
    SCOPED_TRACE(name);
    ++files;
    const Read read = Compiled(api::LoadEndpointPickerConfig(entry.path()), name);
    // What is left out on purpose says so (docs/plugins.md).
    const bool left_out =
        name.find("burst") != std::string::npos || name.find("precise") != std::string::npos ||
        name.find("kvcache") != std::string::npos || name.find("mm-emb") != std::string::npos;
    if (left_out && read.config == nullptr) {
      for (const std::string& error : read.errors)
        EXPECT_NE(error.find("is not offered"), std::string::npos) << error;
      continue;
    }
    for (const std::string& error : read.errors) ADD_FAILURE() << error;
    if (read.config == nullptr) continue;
    tests::TestPool pool({{"a"}, {"b"}});
    const Scheduler scheduler({}, 0, read.config);
    Scratch scratch;
    base::Random random(1);
    const Outcome outcome =
        scheduler.Pick(*pool.pool(), {.prompt_tokens = 10}, std::nullopt, base::kSecond, scratch, random);
    EXPECT_NE(outcome.kind, OutcomeKind::kNoCandidates);
  }
  EXPECT_EQ(files, 19u);
}

TEST(Documents, WithoutProfilesAllPluginsMakeOne) {
  const Read read = FromText(
      "plugins: [{type: queue-scorer}, {type: kv-cache-utilization-scorer}, "
      "{type: decode-filter}]\n");
  ASSERT_NE(read.config, nullptr);
  ASSERT_EQ(read.config->programs.size(), 1u);
  const Program& program = read.config->programs[0];
  EXPECT_EQ(program.name, "default");
  EXPECT_EQ(ScorersOf(program), (Texts{"queue-scorer 1.0", "kv-cache-utilization-scorer 1.0"}));
  EXPECT_EQ(program.nodes.size(), 1u);
  EXPECT_NE(program.picker, nullptr) << "max-score-picker by itself";
  EXPECT_NE(program.saturation, nullptr) << "utilization-detector by itself";
}

TEST(Documents, AProfileWithoutAPickerGetsTheFirst) {
  const Read read = FromText(R"(
plugins:
- {type: queue-scorer}
- {type: random-picker}
- {type: disagg-profile-handler}
schedulingProfiles:
- name: decode
  plugins: [{pluginRef: queue-scorer, weight: 2.5}]
)");
  ASSERT_NE(read.config, nullptr) << (read.errors.empty() ? "" : read.errors[0]);
  EXPECT_EQ(ScorersOf(read.config->programs[0]), (Texts{"queue-scorer 2.5"}));
  EXPECT_NE(dynamic_cast<const ProfileHandler*>(read.config->handler), nullptr);
}

TEST(Documents, NamesThatTheDefaultsBringNeedNoEntry) {
  const Read read = FromText(R"(
plugins: [{type: queue-scorer}]
schedulingProfiles:
- name: default
  plugins: [{pluginRef: queue-scorer}, {pluginRef: max-score-picker}]
flowControl: {saturationDetector: {pluginRef: utilization-detector}}
)");
  ASSERT_NE(read.config, nullptr) << (read.errors.empty() ? "" : read.errors[0]);
  EXPECT_NE(read.config->programs[0].picker, nullptr);
  EXPECT_NE(read.config->programs[0].saturation, nullptr);
  EXPECT_EQ(read.config->plugins.size(), 3u);
}

TEST(Documents, WhatTheReferenceDoesNotLookAtIsAWarning) {
  for (const char* type : {"queue-scorer", "decode-filter", "single-profile-handler", "openai-parser",
                           "fcfs-ordering-policy", "lora-affinity-scorer"}) {
    const Read read = FromText("plugins: [{type: " + std::string(type) + ", parameters: {threshold: 5}}]\n");
    EXPECT_NE(read.config, nullptr) << type;
    EXPECT_FALSE(read.warnings.empty()) << type;
    EXPECT_TRUE(std::any_of(read.warnings.begin(), read.warnings.end(), [](const std::string& text) {
      return text.find("threshold: unknown field, without effect") != std::string::npos;
    })) << type;
  }
  EXPECT_EQ(FromText("plugins: [{type: load-aware-scorer, parameters: {treshold: 5}}]\n").config, nullptr);
}

TEST(Documents, WhatDrawsAtRandomOrAvoidsTheBestIsAWarning) {
  const auto only = [](const std::string& plugins) {
    const Read read = FromText(plugins);
    return read.warnings.size() == 1 ? read.warnings[0] : std::to_string(read.warnings.size());
  };
  constexpr const char* kRandom =
      "profile default: has neither scorer nor filter: endpoints are drawn at random";
  EXPECT_NE(only("plugins: []\n").find(kRandom), std::string::npos) << only("plugins: []\n");
  EXPECT_NE(only("plugins: [{type: weighted-random-picker}]\n").find(kRandom), std::string::npos);
  EXPECT_EQ(only("plugins: [{type: random-picker}]\n"), "0");
  EXPECT_NE(only(R"(
plugins: [{type: queue-scorer}]
schedulingProfiles: [{name: default, plugins: [{pluginRef: queue-scorer, weight: -3}]}]
)")
                .find("queue-scorer: has a weight below 0"),
            std::string::npos);
}

TEST(Documents, ThePromptsCacheIsKnownWhereTheEstimateOfTheFirstTokenDecides) {
  for (const char* scorer : {"time-to-first-token-scorer", "lmetric-scorer"}) {
    const Read read = FromText("plugins: [{type: " + std::string(scorer) + "}]\n");
    ASSERT_NE(read.config, nullptr) << scorer;
    EXPECT_TRUE(read.config->cached) << scorer;
  }
}

TEST(Documents, NothingIsKnownToBeCachedWhereTheProcessSaysSo) {
  EXPECT_TRUE(CompileBuiltin({})->cached);
  EXPECT_FALSE(CompileBuiltin({.prefix_cache = false})->cached);
}

TEST(Documents, ParsersAreThoseThatAreListed) {
  const auto parsers = [](const std::string& text) {
    const Read read = FromText("plugins: [{type: queue-scorer}]\n" + text);
    for (const std::string& error : read.errors) ADD_FAILURE() << error;
    for (const std::string& warning : read.warnings) ADD_FAILURE() << warning;
    return read.config != nullptr ? ToString(read.config->parsers) : "";
  };
  constexpr const char* kDefault =
      "openai-parser, anthropic-parser, vllmhttp-parser, sglanghttp-parser, passthrough-parser";
  EXPECT_EQ(parsers(""), kDefault);
  EXPECT_EQ(parsers("requestHandler: {parsers: []}\n"), kDefault);
  EXPECT_EQ(
      parsers("requestHandler: {parsers: [{pluginRef: vllmgrpc-parser}, {pluginRef: openai-parser}]}\n"),
      "openai-parser, vllmgrpc-parser");
  EXPECT_EQ(FromText(R"(plugins: [{type: openai-parser, name: mine}]
requestHandler: {parsers: [{pluginRef: mine}]}
)")
                .config->parsers,
            [] {
              payload::Parsers only;
              only.Add(payload::Parser::kOpenai);
              return only;
            }());
  // The old place.
  EXPECT_EQ(ToString(FromText("plugins: [{type: queue-scorer}]\nparser: {pluginRef: passthrough-parser}\n")
                         .config->parsers),
            "passthrough-parser");
}

TEST(Documents, ParsersThatReadNothingAreToldOf) {
  const Read read = FromText(R"(plugins:
- {type: queue-scorer}
- {type: openai-parser}
- {type: openai-parser, name: again}
- {type: vllmgrpc-parser}
requestHandler:
  parsers:
  - pluginRef: openai-parser
  - pluginRef: again
  - pluginRef: passthrough-parser
  - pluginRef: anthropic-parser
)");
  ASSERT_NE(read.config, nullptr);
  EXPECT_EQ(ToString(read.config->parsers), "openai-parser, passthrough-parser");
  EXPECT_EQ(
      read.warnings,
      (Texts{"c.yaml:11: warning: config: requestHandler.parsers[1].pluginRef: again has no effect: "
             "openai-parser is listed already",
             "c.yaml:13: warning: config: requestHandler.parsers[3].pluginRef: anthropic-parser has no "
             "effect: passthrough-parser before it takes every path",
             "c.yaml:7: warning: plugin vllmgrpc-parser: reads nothing: requestHandler.parsers does not "
             "list it",
             "c.yaml:13: warning: plugin anthropic-parser: reads nothing: requestHandler.parsers does not "
             "list it"}));
  EXPECT_EQ(
      FromText(R"(plugins: [{type: queue-scorer}]
requestHandler: {parsers: [{pluginRef: queue-scorer}]}
)")
          .errors,
      (Texts{"c.yaml:4: config: requestHandler.parsers[0].pluginRef: plugin queue-scorer is no parser, but a "
             "queue-scorer"}));
}

TEST(Documents, FileDiscoveryIsTakenAndSaysWhatToDo) {
  const Read read = FromText(R"(
plugins:
- {type: queue-scorer}
- {type: file-discovery, parameters: {path: /etc/endpoints.yaml, watchFile: true}}
dataLayer: {discovery: {endpoints: {pluginRef: file-discovery}}}
)");
  EXPECT_NE(read.config, nullptr) << (read.errors.empty() ? "" : read.errors[0]);
  ASSERT_EQ(read.warnings.size(), 3u);
  EXPECT_NE(read.warnings[0].find("files of -f"), std::string::npos) << read.warnings[0];
}

TEST(Documents, MistakesAreTold) {
  EXPECT_EQ(
      FromText("plugins: [{type: queue-scorr}]\n").errors,
      (Texts{"c.yaml:3: plugin queue-scorr: type: there is no plugin type \"queue-scorr\"; did you mean "
             "\"queue-scorer\"?"}));
  EXPECT_EQ(FromText(R"(plugins: [{type: queue-scorer}]
schedulingProfiles:
- {name: a, plugins: [{pluginRef: queue-scorer}]}
- {name: b, plugins: [{pluginRef: queue-scorer}]}
)")
                .errors,
            (Texts{"c.yaml:6: config: schedulingProfiles: want a profile handler among the plugins, such as "
                   "header-profile-handler or disagg-profile-handler: there are 2 profiles"}));
  EXPECT_EQ(FromText(R"(plugins: [{type: queue-scorer}]
flowControl: {saturationDetector: {pluginRef: queue-scorer}}
)")
                .errors,
            (Texts{"c.yaml:4: config: flowControl.saturationDetector.pluginRef: plugin queue-scorer is no "
                   "saturation detector; utilization-detector is one"}));
  EXPECT_EQ(
      FromText(
          R"(plugins: [{type: queue-scorer}, {type: single-profile-handler}, {type: header-profile-handler, parameters: {defaultProfile: default}}]
)")
          .errors,
      (Texts{"c.yaml: config: plugins: want one profile handler, not single-profile-handler and "
             "header-profile-handler"}));
  EXPECT_EQ(
      FromText("plugins: [{type: utilization-detector, parameters: {queueDepthThreshold: few}}]\n").errors,
      (Texts{"c.yaml:3: plugin utilization-detector: parameters.queueDepthThreshold: want a number from 1 to "
             "2147483647, got the string \"few\""}));
}

// What is decided, by what and how: all that a Config has but for its objects.
std::string ShapeOf(const Config& config) {
  std::string out;
  for (const Program& program : config.programs) {
    out += program.name + " " + std::to_string(program.max_choices) + " " + program.saturation_name + ":";
    for (const auto& node : program.nodes) out += " " + node.name + "/" + std::to_string(node.on_success);
    for (const auto& scorer : program.scorers) out += " " + scorer.name + "*" + std::to_string(scorer.weight);
    for (const auto& plugin : config.plugins) {
      if (plugin->picker != nullptr && plugin->picker == program.picker) out += " " + plugin->name;
    }
    out += "\n";
  }
  for (const auto& plugin : config.plugins) {
    out += plugin->type + " " + plugin->name;
    for (const ParameterInfo& parameter : plugin->parameters) {
      if (parameter.kind != "ignored") out += " " + parameter.name + "=" + parameter.value;
    }
    out += config.handler != nullptr && plugin->handler == config.handler ? " handles\n" : "\n";
  }
  for (const ColumnInfo& column : config.columns) out += column.name + " ";
  return out + std::to_string(config.producers.size()) + " " + std::to_string(config.hooks.size());
}

// Where 200 requests to fleets that are drawn go.
std::vector<uint32_t> ChoicesOf(const std::shared_ptr<const Config>& config) {
  const Scheduler scheduler({}, 0, config);
  std::vector<uint32_t> choices;
  Scratch scratch;
  base::Random random(7);
  for (int fleet = 0; fleet < 10; ++fleet) {
    std::vector<tests::ServerState> servers;
    for (uint64_t i = 0; i < 2 + random.Below(8); ++i)
      servers.push_back({.name = "s" + std::to_string(i),
                         .waiting = static_cast<uint32_t>(random.Below(9)),
                         .kv_usage = static_cast<float>(random.Below(100)) / 100,
                         .running = static_cast<uint32_t>(random.Below(9))});
    const tests::TestPool pool(std::move(servers));
    for (int request = 0; request < 20; ++request) {
      const Outcome outcome = scheduler.Pick(*pool.pool(), {}, std::nullopt, base::kSecond, scratch, random);
      choices.push_back(outcome.num_choices);
      for (uint32_t i = 0; i < outcome.num_choices; ++i) choices.push_back(outcome.choices[i]);
      for (uint32_t i = 0; i < outcome.num_further; ++i) choices.push_back(outcome.further[i].endpoint);
    }
  }
  return choices;
}

std::pair<std::shared_ptr<const Config>, std::string> Printed(const std::string& text, Texts* errors) {
  const auto document = api::ParseEndpointPickerConfig(text, "c.yaml");
  const Read read = Compiled(document, "c.yaml");
  *errors = read.errors;
  return {read.config, read.config == nullptr ? "" : PrintConfig(document.config, *read.config)};
}

TEST(Documents, PrintedSayWhatIsOld) {
  Texts errors;
  const auto [config, printed] = Printed(
      "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins: [{type: prefix-cache-scorer},\n"
      "  {type: by-label, parameters: {label: a, allowsNoLabel: true}}]\n",
      &errors);
  ASSERT_NE(config, nullptr);
  EXPECT_NE(printed.find("- type: by-label  # deprecated, use label-selector-filter\n"), std::string::npos)
      << printed;
  EXPECT_NE(printed.find(", old name of blockSizeTokens\n"), std::string::npos) << printed;
  EXPECT_EQ(printed.find("- type: prefix-cache-scorer  #"), std::string::npos) << printed;
}

TEST(Documents, PrintedWithDefaultsAreReadAgainAndDecideTheSame) {
  std::vector<std::string> texts{
      "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n",
      "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n"
      "plugins: [{type: queue-scorer}, {type: load-aware-scorer, parameters: {threshold: -3}},\n"
      "  {type: max-score-picker, name: 'on', parameters: {maxNumOfEndpoints: 2, tolerance: 1e-5}},\n"
      "  {type: session-id-producer, parameters: {headerName: \"a'b\"}}, {type: by-label,\n"
      "   parameters: {label: app, validValues: [vllm, '7', 'a: b']}}]\n"
      "schedulingProfiles: [{name: p, plugins: [{pluginRef: queue-scorer, weight: 0.1}, {pluginRef: "
      "by-label},\n"
      "  {pluginRef: load-aware-scorer, weight: -2}, {pluginRef: 'on'}]}]\n"};
  for (const auto& entry : std::filesystem::directory_iterator("examples/endpoint-picker-config"))
    texts.push_back(api::ReadFile(entry.path(), {}).value_or(""));
  EXPECT_GE(texts.size(), 21u);
  for (const std::string& text : texts) {
    SCOPED_TRACE(text);
    Texts errors;
    const auto [config, printed] = Printed(text, &errors);
    if (config == nullptr) {  // left out on purpose, see above
      EXPECT_FALSE(errors.empty());
      continue;
    }
    const auto [again, printed_again] = Printed(printed, &errors);
    ASSERT_NE(again, nullptr) << ::testing::PrintToString(errors) << printed;
    EXPECT_EQ(ShapeOf(*again), ShapeOf(*config)) << printed;
    EXPECT_EQ(ChoicesOf(again), ChoicesOf(config));
    EXPECT_EQ(printed.find("1e+09"), std::string::npos);
  }
}

TEST(Documents, ADefaultIsMarkedAndAGivenValueIsNot) {
  Texts errors;
  const auto [config, printed] = Printed(
      "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n"
      "plugins: [{type: utilization-detector, parameters: {queueDepthThreshold: 7}}]\n",
      &errors);
  ASSERT_NE(config, nullptr) << ::testing::PrintToString(errors);
  EXPECT_NE(printed.find("    queueDepthThreshold: 7  # from 1\n"), std::string::npos) << printed;
  EXPECT_NE(printed.find("    kvCacheUtilThreshold: 0.8  # default, 0 to 1\n"), std::string::npos) << printed;
  EXPECT_NE(printed.find("- type: max-score-picker  # filled in\n"), std::string::npos) << printed;
}

TEST(Documents, ADefaultThatFollowsAnotherIsPrintedAsThatOneIs) {
  Texts errors;
  const auto [config, printed] = Printed(
      "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n"
      "plugins: [{type: max-score-picker, parameters: {tolerance: 0.00000833}}, {type: queue-scorer}]\n",
      &errors);
  ASSERT_NE(config, nullptr) << ::testing::PrintToString(errors);
  EXPECT_NE(printed.find("    unseenTolerance: 0.00000833  # default, 0 to 1\n"), std::string::npos)
      << printed;
}

// docs/reference.md is made of them.
TEST(Plugins, DescribeTheirParameters) {
  for (const PluginType& type : BuiltinPlugins()) {
    for (const ParameterInfo& parameter : ParametersOf(type.type)) {
      EXPECT_FALSE(parameter.help.empty())
          << type.type << ": " << parameter.name << ": give a line of help where the parameter is asked for";
    }
  }
}

}  // namespace
}  // namespace fairway::scheduling
