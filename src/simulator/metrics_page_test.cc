#include "simulator/metrics_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/strings.h"

namespace fairway::simulator {
namespace {

using base::kSecond;
using testing::HasSubstr;
using testing::Not;

std::string Page(const Engine& engine, const PinnedMetrics& pin = {}, bool legacy = false,
                 base::Nanos now = 0) {
  return RenderMetricsPage({.engine = engine,
                            .pin = pin,
                            .model = "m\"1",
                            .legacy_names = legacy,
                            .now = now,
                            .unix_now = 1000,
                            .unix_start = 500});
}

TEST(MetricsPage, HasVllmsNamesTypesAndLabels) {
  Engine engine({});
  const std::string page = Page(engine);
  EXPECT_THAT(page, HasSubstr("# TYPE vllm:num_requests_waiting gauge\n"
                              "vllm:num_requests_waiting{engine=\"0\",model_name=\"m\\\"1\"} 0.0\n"));
  EXPECT_THAT(page, HasSubstr("# TYPE vllm:num_requests_running gauge\n"));
  EXPECT_THAT(page, HasSubstr("vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\\\"1\"} 0.0\n"));
  EXPECT_THAT(page, HasSubstr("vllm:cache_config_info{block_size=\"16\","));
  EXPECT_THAT(page, HasSubstr("num_gpu_blocks=\"2048\""));
  EXPECT_THAT(page, HasSubstr("# TYPE vllm:time_to_first_token_seconds histogram\n"));
  EXPECT_THAT(
      page,
      HasSubstr(
          "vllm:request_success_total{engine=\"0\",finished_reason=\"stop\",model_name=\"m\\\"1\"} 0.0"));
  EXPECT_THAT(
      page,
      HasSubstr(
          "vllm:e2e_request_latency_seconds_bucket{engine=\"0\",le=\"+Inf\",model_name=\"m\\\"1\"} 0.0"));
  EXPECT_THAT(page, Not(HasSubstr("gpu_cache_usage_perc")));
  EXPECT_THAT(page, Not(HasSubstr("lora_requests_info")));
  EXPECT_GT(page.size(), 15000u);
  EXPECT_THAT(Page(engine, {}, true), HasSubstr("vllm:gpu_cache_usage_perc{"));
}

TEST(MetricsPage, HasSglangsNames) {
  Engine engine({});
  const std::string page =
      RenderSglangPage({.engine = engine, .pin = {.waiting = 4, .kv_usage = 0.277}, .model = "m"});
  EXPECT_THAT(page,
              HasSubstr("# TYPE sglang:num_queue_reqs gauge\nsglang:num_queue_reqs{engine_type=\"unified\","
                        "model_name=\"m\",pp_rank=\"0\",tp_rank=\"0\"} 4.0\n"));
  EXPECT_THAT(page, HasSubstr("sglang:num_running_reqs{"));
  EXPECT_THAT(page, HasSubstr("tp_rank=\"0\"} 0.28\n")) << "rounded to 1 %";
  EXPECT_THAT(page, HasSubstr("num_pages=\"2048\",page_size=\"16\"} 1.0\n"));
  EXPECT_THAT(page, Not(HasSubstr("vllm:")));
}

TEST(MetricsPage, SglangsLoadsAreNothingBeforeTheFirstStep) {
  Engine engine({.max_num_batched_tokens = 16, .counts_waiting_tokens = true});
  const PinnedMetrics pin;
  const MetricsPageInput input{.engine = engine, .pin = pin, .model = "m"};
  EXPECT_THAT(RenderSglangLoads(input), HasSubstr("\"max_total_num_tokens\":0,"));
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(engine.Submit({.prompt = std::string(400, 'x')}, kSecond));
  std::vector<EngineEvent> events;
  for (int step = 0; step < 2; ++step) engine.AdvanceTo(engine.NextEventTime(), events);
  const std::string loads = RenderSglangLoads(input);
  EXPECT_THAT(loads, HasSubstr("\"max_total_num_tokens\":32768,"));
  EXPECT_THAT(loads, HasSubstr("\"num_waiting_uncached_tokens\":136,"))
      << "68 of a long one, 68 of one that begins as it does";
}

TEST(MetricsPage, EveryLineIsWellFormed) {
  EngineOptions options;
  options.max_loras = 2;
  Engine engine(options);
  ASSERT_TRUE(engine.Submit({.adapter = "a", .prompt = "hello"}, kSecond));
  std::vector<EngineEvent> events;
  engine.AdvanceTo(3 * kSecond, events);
  const std::string page = Page(engine, {}, true, 3 * kSecond);
  ASSERT_TRUE(page.ends_with("\n"));
  for (std::string_view line : base::Split(std::string_view(page).substr(0, page.size() - 1), '\n')) {
    if (line.starts_with("# HELP ") || line.starts_with("# TYPE ")) continue;
    EXPECT_THAT(std::string(line), testing::MatchesRegex("[a-z0-9_:]+(\\{[^{}]*\\})? [0-9.e+-]+")) << line;
  }
}

TEST(MetricsPage, TheLatestLoraSeriesTellsThePresent) {
  EngineOptions options;
  options.max_loras = 2;
  options.lora_load_time = 0;
  Engine engine(options);
  std::vector<EngineEvent> events;
  ASSERT_TRUE(engine.Submit({.adapter = "b", .prompt = "x", .max_tokens = 40, .ignore_eos = true}, kSecond));
  engine.AdvanceTo(kSecond + 100 * base::kMillisecond, events);
  EXPECT_THAT(Page(engine, {}, false, 2 * kSecond),
              testing::ContainsRegex("vllm:lora_requests_info\\{max_lora=\"2\",running_lora_adapters=\"b\","
                                     "waiting_lora_adapters=\"\"\\} 999\\.0"));
  engine.AdvanceTo(10 * kSecond, events);
  const std::string page = Page(engine, {}, false, 10 * kSecond);
  const size_t old = page.find("running_lora_adapters=\"b\"");  // stays on the page
  const size_t latest = page.find("running_lora_adapters=\"\"");
  EXPECT_LT(old, latest);
  EXPECT_NE(latest, std::string::npos);
}

TEST(MetricsPage, PinnedValuesTakeThePlaceOfTheEngines) {
  EngineOptions options;
  options.max_loras = 1;
  Engine engine(options);
  const std::string page = Page(engine, {.waiting = 10, .kv_usage = 0.3, .running_lora = {{"x", "y"}}});
  EXPECT_THAT(page, HasSubstr("vllm:num_requests_waiting{engine=\"0\",model_name=\"m\\\"1\"} 10.0\n"));
  EXPECT_THAT(page, HasSubstr("vllm:num_requests_running{engine=\"0\",model_name=\"m\\\"1\"} 0.0\n"));
  EXPECT_THAT(page, HasSubstr("vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\\\"1\"} 0.3\n"));
  EXPECT_THAT(page, HasSubstr("vllm:lora_requests_info{max_lora=\"1\",running_lora_adapters=\"x,y\","
                              "waiting_lora_adapters=\"\"} 1000.0\n"));
}

}  // namespace
}  // namespace fairway::simulator
