#include "sources/scrape/metrics_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <random>

namespace fairway::sources::scrape {
namespace {

using api::ParseMetricSpec;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Optional;
using ::testing::UnorderedElementsAre;

class MetricsPageTest : public ::testing::Test {
 protected:
  const EngineSample& Read(std::string_view page, std::string_view engine = "vllm") {
    // The page in a buffer of its own size: a read past its end shows under ASan.
    page_.assign(page.begin(), page.end());
    page_.shrink_to_fit();
    engines_.Find(engine)->Read({page_.data(), page_.size()}, sample_);
    return sample_;
  }
  EngineReaders engines_;
  EngineSample sample_;
  std::vector<char> page_;
};

constexpr std::string_view kVllm =
    R"(# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="llama"} 7.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="llama"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="llama"} 0.25
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="4",running_lora_adapters="a, b",waiting_lora_adapters="c"} 1.7320001e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""} 1.7320000e+09
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",num_gpu_blocks="2048",sliding_window="None"} 1.0
)";

TEST_F(MetricsPageTest, ReadsVllm) {
  const EngineSample& sample = Read(kVllm);
  EXPECT_THAT(sample.queued, Optional(3.0));
  EXPECT_THAT(sample.running, Optional(7.0));
  EXPECT_THAT(sample.kv_usage, Optional(0.25));
  EXPECT_TRUE(sample.has_lora);
  EXPECT_THAT(sample.running_adapters, ElementsAre("a", "b"));
  EXPECT_THAT(sample.waiting_adapters, ElementsAre("c"));
  EXPECT_THAT(sample.max_lora, Optional(4u));
  EXPECT_THAT(sample.block_size, Optional(16u));
  EXPECT_THAT(sample.num_blocks, Optional(2048u));
  EXPECT_EQ(sample.garbage, 0u);
  EXPECT_EQ(sample.malformed, 0u);
  EXPECT_EQ(sample.missing, 0u);
  EXPECT_EQ(sample.families, 6u);
}

TEST_F(MetricsPageTest, ReadsTheOtherEngines) {
  Read(
      "sglang:num_queue_reqs{model_name=\"m\"} 4.0\nsglang:num_running_reqs 5\nsglang:token_usage 0.5\n"
      "sglang:cache_config_info{page_size=\"64\",num_pages=\"100\"} 1\n",
      "sglang");
  EXPECT_THAT(sample_.queued, Optional(4.0));
  EXPECT_THAT(sample_.running, Optional(5.0));
  EXPECT_THAT(sample_.kv_usage, Optional(0.5));
  EXPECT_THAT(sample_.block_size, Optional(64u));
  EXPECT_THAT(sample_.num_blocks, Optional(100u));
  EXPECT_FALSE(sample_.has_lora);

  Read(
      "trtllm_num_requests_waiting 1\ntrtllm_num_requests_running 2\ntrtllm_kv_cache_utilization 0.75\n"
      "trtllm_kv_cache_tokens_per_block 32\ntrtllm_kv_cache_max_blocks 1000\n",
      "trtllm-serve");
  EXPECT_THAT(sample_.queued, Optional(1.0));
  EXPECT_THAT(sample_.running, Optional(2.0));
  EXPECT_THAT(sample_.kv_usage, Optional(0.75));
  EXPECT_THAT(sample_.block_size, Optional(32u));
  EXPECT_THAT(sample_.num_blocks, Optional(1000u));

  Read(
      "nv_trt_llm_request_metrics{model=\"x\",request_type=\"active\",version=\"1\"} 9\n"
      "nv_trt_llm_request_metrics{model=\"x\",request_type=\"scheduled\",version=\"1\"} 6\n"
      "nv_trt_llm_request_metrics{model=\"x\",request_type=\"waiting\",version=\"1\"} 8\n"
      "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\",model=\"x\"} 0.125\n"
      "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"tokens_per\",model=\"x\"} 64\n"
      "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"used\",model=\"x\"} 5\n"
      "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"max\",model=\"x\"} 40\n",
      "triton-tensorrt-llm");
  EXPECT_THAT(sample_.queued, Optional(8.0));
  EXPECT_THAT(sample_.running, Optional(6.0));
  EXPECT_THAT(sample_.kv_usage, Optional(0.125));
  EXPECT_THAT(sample_.block_size, Optional(64u));
  EXPECT_THAT(sample_.num_blocks, Optional(40u));

  Read("nv_inference_pending_request_count{model=\"x\",version=\"1\"} 2\nnv_inference_exec_count 77\n",
       "triton");
  EXPECT_THAT(sample_.queued, Optional(2.0));
  EXPECT_EQ(sample_.running, std::nullopt) << "executions since the start are not what runs now";
  EXPECT_FALSE(sample_.load_unknown);
  EXPECT_EQ(sample_.kv_usage, std::nullopt);
  EXPECT_EQ(sample_.missing, 0u);  // the engine has neither
  EXPECT_EQ(engines_.Find("llama.cpp"), nullptr);
  EXPECT_EQ(engines_.fallback().engine(), "vllm");
}

TEST_F(MetricsPageTest, TakesTheOldKvNameOnlyWithoutTheNewOne) {
  EXPECT_THAT(Read("vllm:gpu_cache_usage_perc 0.5\n").kv_usage, Optional(0.5));
  EXPECT_THAT(Read("vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.25\n").kv_usage,
              Optional(0.25));
  EXPECT_THAT(Read("vllm:kv_cache_usage_perc 0.25\nvllm:gpu_cache_usage_perc 0.5 999999\n").kv_usage,
              Optional(0.25));
  EXPECT_THAT(Read("vllm:kv_cache_usage_perc NaN\nvllm:gpu_cache_usage_perc 0.5\n").kv_usage, Optional(0.5));
}

std::string Waiting(const std::string& labels, const std::string& value) {
  return "vllm:num_requests_waiting" + (labels.empty() ? "" : "{" + labels + "}") + " " + value + "\n";
}
std::string Kv(const std::string& labels, const std::string& value) {
  return "vllm:kv_cache_usage_perc{" + labels + "} " + value + "\n";
}
std::string Blocks(const std::string& labels, const std::string& blocks, const std::string& rest = "1") {
  return "vllm:cache_config_info{" + labels + ",block_size=\"16\",num_gpu_blocks=\"" + blocks + "\"} " +
         rest + "\n";
}

TEST_F(MetricsPageTest, SaysWhichModelsAreServed) {
  EXPECT_THAT(Read(kVllm).models, ElementsAre("llama"));
  EXPECT_THAT(
      Read(Waiting("model_name=\"a\",engine=\"0\"", "1") + Waiting("model_name=\"a\",engine=\"1\"", "1") +
           Waiting("engine=\"2\",model_name=\"b \\\"c\\\\\"", "1"))
          .models,
      ElementsAre("a", "b \"c\\"));
  EXPECT_THAT(Read(Waiting("", "1") + Waiting("model_name=\"\"", "1") + Waiting("model_name=\"x\"", "NaN") +
                   Waiting("model_name=\"" + std::string(513, 'x') + "\"", "1") +
                   Blocks("model_name=\"y\"", "1") + "foreign{model_name=\"z\"} 1\n")
                  .models,
              IsEmpty());
  EXPECT_THAT(Read("sglang:num_queue_reqs{model_name=\"s\"} 4.0\n", "sglang").models, ElementsAre("s"));
  EXPECT_THAT(Read("trtllm_num_requests_running{model_name=\"t\"} 4.0\n", "trtllm-serve").models,
              ElementsAre("t"));
  EXPECT_THAT(Read("nv_trt_llm_request_metrics{model=\"n\",request_type=\"waiting\"} 8\n"
                   "nv_trt_llm_request_metrics{model=\"o\",request_type=\"max\"} 8\n",
                   "triton-tensorrt-llm")
                  .models,
              ElementsAre("n"));
  EXPECT_THAT(Read("nv_inference_pending_request_count{model=\"p\",version=\"1\"} 2\n", "triton").models,
              ElementsAre("p"));
  std::string many;
  for (int i = 0; i < 1000; ++i) many += Waiting("model_name=\"m" + std::to_string(i) + "\"", "1");
  EXPECT_EQ(Read(many).models.size(), kMaxModels);
  EXPECT_THAT(Read("vllm:num_requests_waiting 1\n").models, IsEmpty()) << "those of the page before";
}

TEST_F(MetricsPageTest, OfCopiesOfASeriesTakesTheNewestElseTheFirst) {
  for (const std::string labels : {"", "e=\"0\"", "e=\"0\",m=\"x\""}) {
    const auto line = [&](const char* value) { return Waiting(labels, value); };
    EXPECT_THAT(Read(line("1") + line("2")).queued, Optional(1.0));
    EXPECT_THAT(Read(line("1 100") + line("2 300") + line("3 200")).queued, Optional(2.0));
    EXPECT_THAT(Read(line("1") + line("2 -5")).queued, Optional(2.0));
    EXPECT_THAT(Read(line("1 7") + line("2 7")).queued, Optional(1.0));
    EXPECT_THAT(Read(line("NaN 9") + line("2")).queued, Optional(2.0));
    EXPECT_THAT(Read(line("what") + line("2")).queued, Optional(2.0));
  }
  EXPECT_THAT(Read(Waiting("a=\"1\",b=\"2\"", "1 1") + Waiting("b=\"2\", a=\"1\"", "5 2")).queued,
              Optional(5.0))
      << "labels have no order";
}

TEST_F(MetricsPageTest, AddsUpTheEnginesOfAServer) {
  Read(
      "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 0.0\n"
      "vllm:num_requests_running{engine=\"1\",model_name=\"m\"} 64.0\n" +
      Waiting("engine=\"0\",model_name=\"m\"", "0.0") + Waiting("engine=\"1\",model_name=\"m\"", "40.0") +
      Kv("engine=\"0\",model_name=\"m\"", "0.0") + Kv("engine=\"1\",model_name=\"m\"", "0.97"));
  EXPECT_THAT(sample_.running, Optional(64.0));
  EXPECT_THAT(sample_.queued, Optional(40.0));
  EXPECT_THAT(sample_.kv_usage, Optional(0.97)) << "capacities are not known";
  EXPECT_EQ(sample_.garbage + sample_.missing, 0u);

  Read(
      "sglang:num_queue_reqs{dp_rank=\"2\",model_name=\"m\"} "
      "11\nsglang:num_queue_reqs{dp_rank=\"0\",model_name="
      "\"m\"} 0\nsglang:num_running_reqs{dp_rank=\"1\"} 3\nsglang:num_running_reqs{dp_rank=\"0\"} 4\n",
      "sglang");
  EXPECT_THAT(sample_.queued, Optional(11.0));
  EXPECT_THAT(sample_.running, Optional(7.0));

  EXPECT_THAT(Read(Waiting("model_name=\"a\"", "2") + Waiting("model_name=\"b\"", "3")).queued,
              Optional(5.0));
  EXPECT_THAT(Read(Waiting("", "2") + Waiting("engine=\"1\"", "3")).queued, Optional(5.0));
  EXPECT_THAT(
      Read(Waiting("engine=\"0\"", "2 5") + Waiting("engine=\"1\"", "3 1") + Waiting("engine=\"0\"", "7 4"))
          .queued,
      Optional(5.0))
      << "copies first, then the sum";
  Read(
      "nv_trt_llm_request_metrics{model=\"x\",request_type=\"waiting\"} 8\n"
      "nv_trt_llm_request_metrics{model=\"y\",request_type=\"waiting\"} 5\n"
      "nv_trt_llm_request_metrics{model=\"y\",request_type=\"scheduled\"} 50\n",
      "triton-tensorrt-llm");
  EXPECT_THAT(sample_.queued, Optional(13.0));
}

TEST_F(MetricsPageTest, OneEngineThatIsNotKnownMakesTheSignalUnknown) {
  for (const char* bad : {"NaN", "-1", "+Inf", "1e300", "what", "5 6 7"}) {
    Read(Waiting("e=\"0\"", "0") + Waiting("e=\"1\"", bad) + Kv("e=\"0\"", "0") + Kv("e=\"1\"", bad) +
         "vllm:num_requests_running{e=\"0\"} 3\n");
    EXPECT_EQ(sample_.queued, std::nullopt) << bad;
    EXPECT_EQ(sample_.kv_usage, std::nullopt) << bad;
    EXPECT_THAT(sample_.running, Optional(3.0)) << "of its own account";
    EXPECT_EQ(sample_.missing, 2u);
  }
  EXPECT_EQ(Read(Waiting("e=\"0\"", "0") + "vllm:num_requests_waiting{e=\"1\" 40\n").queued, std::nullopt)
      << "nobody knows of whom this is";
}

TEST_F(MetricsPageTest, WeighsKvUseByCapacity) {
  const std::string kv =
      Kv("engine=\"0\",model_name=\"m\"", "0.1") + Kv("engine=\"1\",model_name=\"m\"", "0.9");
  EXPECT_NEAR(*Read(kv + Blocks("engine=\"1\"", "300") + Blocks("engine=\"0\"", "100")).kv_usage, 0.7, 1e-9);
  EXPECT_THAT(sample_.num_blocks, Optional(400u));
  EXPECT_THAT(sample_.block_size, Optional(16u));
  for (const std::string& unknown :
       {std::string(), Blocks("engine=\"0\"", "100"),
        Blocks("engine=\"0\"", "100") + Blocks("engine=\"1\"", "None"),
        Blocks("engine=\"0\"", "100") + Blocks("engine=\"2\"", "300"),
        Blocks("engine=\"0\"", "0") + Blocks("engine=\"1\"", "0"), Blocks("model_name=\"m\"", "100"),
        Blocks("x=\"y\"", "100"), Blocks("engine=\"0\"", "100") + Blocks("engine=\"1\"", "100", "NaN")}) {
    EXPECT_THAT(Read(kv + unknown).kv_usage, Optional(0.9)) << unknown;
  }
  Read(kv + Blocks("engine=\"0\"", "100") + Blocks("engine=\"1\"", "None"));
  EXPECT_EQ(sample_.num_blocks, std::nullopt);
  // vLLM's info metric has a line from before it knew its blocks and one from after.
  Read(Blocks("engine=\"0\"", "None") + Blocks("engine=\"0\"", "100") + Kv("engine=\"0\"", "0.5"));
  EXPECT_THAT(sample_.num_blocks, Optional(100u));
  EXPECT_THAT(sample_.kv_usage, Optional(0.5));
  // Two models in one engine: whose blocks they are is not known.
  EXPECT_THAT(Read(Kv("engine=\"0\",model_name=\"a\"", "0.1") + Kv("engine=\"0\",model_name=\"b\"", "0.9") +
                   Blocks("engine=\"0\"", "100"))
                  .kv_usage,
              Optional(0.9));
  const auto triton = [](const char* type, const char* model, const char* value) {
    return "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"" + std::string(type) + "\",model=\"" +
           model + "\"} " + value + "\n";
  };
  Read(triton("fraction", "a", "0.2") + triton("fraction", "b", "0.8") + triton("max", "a", "30") +
           triton("max", "b", "10") + triton("tokens_per", "a", "64") + triton("tokens_per", "b", "64"),
       "triton-tensorrt-llm");
  EXPECT_NEAR(*sample_.kv_usage, 0.35, 1e-9);
  EXPECT_THAT(sample_.num_blocks, Optional(40u));
  EXPECT_THAT(sample_.block_size, Optional(64u));
}

TEST_F(MetricsPageTest, GpusOfOneEngineAndPartsOfASumDoNotAddUp) {
  const auto queue = [](const std::string& labels, const std::string& value) {
    return "sglang:num_queue_reqs{" + labels + "} " + value + "\n";
  };
  EXPECT_THAT(
      Read(queue("tp_rank=\"0\",pp_rank=\"0\"", "4") + queue("tp_rank=\"1\",pp_rank=\"0\"", "5"), "sglang")
          .queued,
      Optional(5.0));
  EXPECT_THAT(
      Read(queue("dp_rank=\"0\",tp_rank=\"0\"", "4") + queue("dp_rank=\"1\",tp_rank=\"1\"", "5"), "sglang")
          .queued,
      Optional(9.0));
  EXPECT_THAT(Read(queue("priority=\"1\"", "2") + queue("priority=\"\"", "5") + queue("priority=\"2\"", "3"),
                   "sglang")
                  .queued,
              Optional(5.0));
  EXPECT_THAT(Read(queue("priority=\"1\"", "2") + queue("priority=\"2\"", "3"), "sglang").queued,
              Optional(5.0));
}

TEST_F(MetricsPageTest, AddsUpAdaptersOfEngines) {
  Read(
      "vllm:lora_requests_info{engine=\"0\",max_lora=\"2\",running_lora_adapters=\"a,b\",waiting_lora_"
      "adapters="
      "\"\"} 1\n"
      "vllm:lora_requests_info{engine=\"1\",max_lora=\"2\",running_lora_adapters=\"old\",waiting_lora_"
      "adapters="
      "\"\"} 1\n"
      "vllm:lora_requests_info{engine=\"1\",max_lora=\"2\",running_lora_adapters=\"a\",waiting_lora_adapters="
      "\"c\"} 2\n");
  EXPECT_THAT(sample_.running_adapters, UnorderedElementsAre("a", "b", "a"));
  EXPECT_THAT(sample_.waiting_adapters, ElementsAre("c"));
  EXPECT_THAT(sample_.max_lora, Optional(4u));
  EXPECT_EQ(sample_.lora_engines.size(), 2u);
}

TEST_F(MetricsPageTest, WithMoreSeriesThanAnyServerHasASignalIsUnknown) {
  std::string page;
  const auto series = [&page](size_t n) {
    page.clear();
    for (size_t i = 0; i < n; ++i) page += Waiting("e=\"" + std::to_string(i) + "\"", "1");
    page += "vllm:num_requests_running 5\n";
    return page;
  };
  EXPECT_THAT(Read(series(SeriesLines::kMax)).queued, Optional(static_cast<double>(SeriesLines::kMax)));
  EXPECT_EQ(Read(series(SeriesLines::kMax + 1)).queued, std::nullopt);
  EXPECT_THAT(sample_.running, Optional(5.0));
  EXPECT_EQ(sample_.garbage, 1u);
  EXPECT_EQ(Read(series(200'000)).queued, std::nullopt);
}

TEST_F(MetricsPageTest, IgnoresAndCountsValuesThatCanNotBe) {
  for (const char* value : {"NaN", "nan", "+Inf", "-Inf", "Inf", "-1", "1e300", "1e999", "2000000000"}) {
    const EngineSample& sample =
        Read("vllm:num_requests_waiting " + std::string(value) + "\nvllm:num_requests_running 1\n");
    EXPECT_EQ(sample.queued, std::nullopt) << value;
    EXPECT_THAT(sample.running, Optional(1.0));
    EXPECT_EQ(sample.garbage, 1u) << value;
    EXPECT_EQ(sample.missing, 2u);
  }
  EXPECT_EQ(Read("vllm:kv_cache_usage_perc 85\n").kv_usage, std::nullopt);  // a percentage is no ratio
  EXPECT_EQ(sample_.garbage, 1u);
  EXPECT_THAT(Read("vllm:kv_cache_usage_perc 1.0001\n").kv_usage, Optional(1.0));
  EXPECT_THAT(Read("vllm:num_requests_waiting +1.5e1\n").queued, Optional(15.0));
  EXPECT_THAT(Read("vllm:num_requests_waiting 0\n").queued, Optional(0.0));
}

TEST_F(MetricsPageTest, IgnoresAndCountsLinesThatAreNoSamples) {
  for (const char* line : {
           "vllm:num_requests_waiting{",
           "vllm:num_requests_waiting{a",
           "vllm:num_requests_waiting{a=",
           "vllm:num_requests_waiting{a=\"",
           "vllm:num_requests_waiting{a=\"\\",
           "vllm:num_requests_waiting{a=\"x\\\"} 5",
           "vllm:num_requests_waiting{a=\"x\" 5",
           "vllm:num_requests_waiting{=\"x\"} 5",
           "vllm:num_requests_waiting{a=\"x\"}",
           "vllm:num_requests_waiting ",
           "vllm:num_requests_waiting five",
           "vllm:num_requests_waiting 5x",
           "vllm:num_requests_waiting +-5",
           "vllm:num_requests_waiting 5 then",
           "vllm:num_requests_waiting 5 NaN",
           "vllm:num_requests_waiting 5 6 7",
       }) {
    for (const char* end : {"", "\n", "\r\n", "\nvllm:num_requests_running 1\n"}) {
      const EngineSample& sample = Read(std::string(line) + end);
      EXPECT_EQ(sample.queued, std::nullopt) << line;
      EXPECT_EQ(sample.malformed, 1u) << line;
    }
  }
}

TEST_F(MetricsPageTest, TakesEveryWayALineMayBeWritten) {
  for (const char* line : {
           "vllm:num_requests_waiting 5",
           "vllm:num_requests_waiting\t5\t",
           "  vllm:num_requests_waiting   5  ",
           "vllm:num_requests_waiting{} 5",
           "vllm:num_requests_waiting {a=\"b\"} 5",
           "vllm:num_requests_waiting{a=\"b\",}5",
           "vllm:num_requests_waiting{ a = \"b\" , c = \"d\" } 5.0 1732000000000",
           "vllm:num_requests_waiting{a=\"}\",b=\",\",c=\"\\\"\",d=\"\\\\\"} 5",
           "vllm:num_requests_waiting 5 # {trace=\"x\"} 0.5 1.0",
           "vllm:num_requests_waiting 5 1732.5 # {trace=\"x\"} 0.5",
       }) {
    for (const char* end : {"", "\n", "\r\n", "\n\n\n", "\n# EOF\n"}) {
      EXPECT_THAT(Read(std::string(line) + end).queued, Optional(5.0)) << line;
      EXPECT_EQ(sample_.malformed, 0u) << line;
    }
  }
}

TEST_F(MetricsPageTest, StopsAtTheEndOfAnOpenMetricsPage) {
  EXPECT_EQ(Read("# EOF\nvllm:num_requests_waiting 5\n").queued, std::nullopt);
  EXPECT_EQ(Read("# EOF\r\nvllm:num_requests_waiting 5\n").queued, std::nullopt);
  EXPECT_THAT(Read("# EOFx\nvllm:num_requests_waiting 5\n").queued, Optional(5.0));
  EXPECT_THAT(Read("# EOF\"\ntrtllm_num_requests_waiting 5\n", "trtllm-serve").queued, Optional(5.0));
  EXPECT_EQ(Read("# EOF\ntrtllm_num_requests_waiting 5\n", "trtllm-serve").queued, std::nullopt);
  EXPECT_EQ(Read("# EOF\nnv_inference_pending_request_count 5\n", "triton").queued, std::nullopt);
}

TEST_F(MetricsPageTest, IgnoresCommentsAndNamesThatOnlyBeginAlike) {
  Read(
      "# HELP vllm:num_requests_waiting vllm:num_requests_waiting 5\n#vllm:num_requests_waiting 5\n"
      "vllm:num_requests_waiting_total 5\nvllm:num_requests_waitin 5\nxvllm:num_requests_waiting 5\n"
      "vllm:num_requests_waiting=5\nvllm:num_requests_waiting");
  EXPECT_EQ(sample_.queued, std::nullopt);
  EXPECT_EQ(sample_.malformed, 0u);
  EXPECT_EQ(sample_.families, 0u);
}

TEST_F(MetricsPageTest, ReadsLoraListsWithEscapesAndOddities) {
  Read(
      R"(vllm:lora_requests_info{running_lora_adapters=" a\"x , ,b\\c,",waiting_lora_adapters="",max_lora="8"} 5)");
  EXPECT_THAT(sample_.running_adapters, ElementsAre("a\"x", "b\\c"));
  EXPECT_THAT(sample_.waiting_adapters, IsEmpty());
  EXPECT_THAT(sample_.max_lora, Optional(8u));

  Read(R"(vllm:lora_requests_info{running_lora_adapters="x\ty",max_lora="lots"} 5)");
  EXPECT_THAT(sample_.running_adapters, ElementsAre("x\\ty"));
  EXPECT_EQ(sample_.max_lora, std::nullopt);
  EXPECT_EQ(sample_.garbage, 1u);

  Read("vllm:lora_requests_info{running_lora_adapters=\"a\",max_lora=\"4\"} NaN\n");
  EXPECT_FALSE(sample_.has_lora);
  Read(
      "vllm:lora_requests_info{running_lora_adapters=\"first\"} "
      "5\nvllm:lora_requests_info{running_lora_adapters=\"tie\"} 5\n");
  EXPECT_THAT(sample_.running_adapters, ElementsAre("first"));
}

TEST_F(MetricsPageTest, BoundsWhatALoraListMayHold) {
  std::string list;
  for (int i = 0; i < 10000; ++i) list += "adapter-" + std::to_string(i) + ",";
  Read("vllm:lora_requests_info{running_lora_adapters=\"" + list + std::string(600, 'x') + "\"} 1\n");
  EXPECT_EQ(sample_.running_adapters.size(), kMaxAdaptersPerList);
  Read("vllm:lora_requests_info{running_lora_adapters=\"" + std::string(600, 'x') + ",ok\"} 1\n");
  EXPECT_THAT(sample_.running_adapters, ElementsAre("ok"));
  EXPECT_EQ(sample_.garbage, 1u);
}

TEST_F(MetricsPageTest, CacheInfoMayBeUnknown) {
  Read("vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"None\"} 1\n");
  EXPECT_THAT(sample_.block_size, Optional(16u));
  EXPECT_EQ(sample_.num_blocks, std::nullopt);
  EXPECT_EQ(sample_.garbage, 0u);
  Read("vllm:cache_config_info{block_size=\"-16\",num_gpu_blocks=\"99999999999\"} 1\n");
  EXPECT_EQ(sample_.block_size, std::nullopt);
  EXPECT_EQ(sample_.garbage, 2u);
}

TEST_F(MetricsPageTest, TakesHugeLinesAndBinary) {
  std::string page = "vllm:num_requests_waiting{a=\"" + std::string(10 << 20, 'x') + "\"} 5\n";
  page +=
      std::string(10 << 20, 'y') + "\n" + std::string("\0\xff\xfe\n\0", 5) + "\nvllm:num_requests_running 6";
  EXPECT_THAT(Read(page).queued, Optional(5.0));
  EXPECT_THAT(sample_.running, Optional(6.0));
  EXPECT_EQ(Read("").families, 0u);
  EXPECT_EQ(Read("\n\n\r\n \n#\n").families, 0u);
}

TEST_F(MetricsPageTest, ForgetsTheLastPage) {
  Read(kVllm);
  Read("vllm:num_requests_waiting 1\n");
  EXPECT_THAT(sample_.queued, Optional(1.0));
  EXPECT_EQ(sample_.running, std::nullopt);
  EXPECT_EQ(sample_.kv_usage, std::nullopt);
  EXPECT_FALSE(sample_.has_lora);
  EXPECT_THAT(sample_.running_adapters, IsEmpty());
  EXPECT_EQ(sample_.max_lora, std::nullopt);
  EXPECT_EQ(sample_.block_size, std::nullopt);
  EXPECT_EQ(sample_.missing, 2u);
}

TEST_F(MetricsPageTest, DetectsTheEngineOfAPage) {
  EXPECT_EQ(engines_.Detect(kVllm, sample_)->engine(), "vllm");
  EXPECT_EQ(engines_.Detect("trtllm_num_requests_waiting 1\n", sample_)->engine(), "trtllm-serve");
  EXPECT_EQ(engines_
                .Detect("nv_inference_exec_count 1\nnv_trt_llm_request_metrics{request_type=\"waiting\"} 1\n"
                        "nv_trt_llm_request_metrics{request_type=\"scheduled\"} 1\n"
                        "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\"} 0\n",
                        sample_)
                ->engine(),
            "triton-tensorrt-llm");
  // Before it said how many wait.
  EXPECT_EQ(engines_
                .Detect("nv_inference_pending_request_count{model=\"x\"} 1\n"
                        "nv_trt_llm_request_metrics{request_type=\"scheduled\"} 1\n"
                        "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\"} 0\n",
                        sample_)
                ->engine(),
            "triton-tensorrt-llm");
  EXPECT_EQ(engines_.Detect("nv_inference_pending_request_count{model=\"x\"} 1\n", sample_)->engine(),
            "triton");
  EXPECT_EQ(engines_.Detect("process_cpu_seconds_total 1\n", sample_), nullptr);
}

TEST_F(MetricsPageTest, TakesEnginesOfItsUser) {
  const auto spec = ParseMetricSpec("my_queue{kind=waiting, tier=\"a b\"}");
  ASSERT_TRUE(spec) << spec.error().message;
  const EngineReaders engines({{.name = "mine", .queued = {*spec}}});
  engines.Find("mine")->Read(
      "my_queue{kind=\"other\",tier=\"a b\"} 1\nmy_queue{tier=\"a b\",kind=\"waiting\"} 2\n", sample_);
  EXPECT_THAT(sample_.queued, Optional(2.0));
  EXPECT_EQ(sample_.missing, 0u);
}

TEST_F(MetricsPageTest, TakesWhatAConfigSaysBesideWhatIsKnown) {
  api::EnginePages pages;
  pages.engines = {{.name = "vllm",
                    .queued = ParseMetricSpec("my_queue").value(),
                    .custom = {{"heat", ParseMetricSpec("heat{gpu=1}").value()},
                               {"cold", ParseMetricSpec("cold").value()}}},
                   {.name = "mine", .custom = {{"x", ParseMetricSpec("x").value()}}},
                   {.name = "nothing"}};
  const EngineReaders engines(WithConfig(BuiltinEngines(), pages));
  EXPECT_EQ(engines.Find("nothing"), nullptr);
  const PageReader& vllm = *engines.Find("vllm");
  ASSERT_EQ(vllm.custom_keys(),
            (std::vector{fleet::PageAttributes::KeyOf("heat"), fleet::PageAttributes::KeyOf("cold")}));
  vllm.Read(
      "vllm:num_requests_waiting 1\nvllm:num_requests_running 2\nmy_queue 3\n"
      "heat{gpu=\"0\"} 40\nheat{gpu=\"1\"} -50.5 10\nheat{gpu=\"1\"} -60.5 20\ncold NaN\n",
      sample_);
  EXPECT_THAT(sample_.queued, Optional(3.0));
  EXPECT_THAT(sample_.running, Optional(2.0));
  ASSERT_EQ(sample_.custom.size(), 2u);
  EXPECT_EQ(sample_.custom[0], -60.5f) << "the newest";
  EXPECT_TRUE(std::isnan(sample_.custom[1]));
  // A number of the config's does not make a page vLLM's, unless the engine has nothing else.
  vllm.Read("heat{gpu=\"1\"} 1\n", sample_);
  EXPECT_EQ(sample_.families, 0u);
  engines.Find("mine")->Read("x 1\n", sample_);
  EXPECT_EQ(sample_.families, 1u);
  EXPECT_EQ(sample_.custom.at(0), 1);
}

TEST_F(MetricsPageTest, KnowsTheEnginesThatConfigsMayName) {
  std::vector<std::string> names;
  for (const EngineSpec& engine : BuiltinEngines()) names.push_back(engine.name);
  EXPECT_EQ(names, std::vector<std::string>(api::kKnownEngines.begin(), api::kKnownEngines.end()));
}

TEST(MetricSpecTest, ParsesTheReferencesSyntax) {
  EXPECT_EQ(ParseMetricSpec(" a:b ")->name, "a:b");
  EXPECT_TRUE(ParseMetricSpec("a{}")->labels.empty());
  const auto spec = ParseMetricSpec("m{a=1,b=\"2\"}");
  ASSERT_TRUE(spec);
  EXPECT_THAT(spec->labels, ElementsAre(std::pair<std::string, std::string>("a", "1"),
                                        std::pair<std::string, std::string>("b", "2")));
  for (const char* bad : {"", "{a=b}", "m{a=b", "m{a}", "m{=b}", "m{a=\"b}", "m x", "m}"}) {
    const auto result = ParseMetricSpec(bad);
    ASSERT_FALSE(result) << bad;
    EXPECT_THAT(result.error().message, HasSubstr("expected name"));
  }
}

// The same rules in the plainest words, on pages without labels: lines of "name value [timestamp]".
std::optional<double> Naive(const std::string& page, const std::string& name, double limit) {
  std::optional<double> best;
  double best_time = -INFINITY;
  size_t at = 0;
  while (at < page.size()) {
    const size_t end = std::min(page.find('\n', at), page.size());
    const std::string line = page.substr(at, end - at);
    at = end + 1;
    if (line.compare(0, name.size() + 1, name + " ") != 0) continue;
    char* rest = nullptr;
    const double value = std::strtod(line.c_str() + name.size() + 1, &rest);
    double time = -INFINITY;
    if (*rest == ' ') time = std::strtod(rest + 1, &rest);
    if (!(value >= 0 && value <= limit)) continue;
    if (!best || time > best_time) {
      best = value;
      best_time = time;
    }
  }
  return best;
}

TEST_F(MetricsPageTest, AgreesWithANaiveReaderOnRandomPages) {
  std::mt19937 random(7);
  const char* names[] = {"vllm:num_requests_waiting",  "vllm:num_requests_running",
                         "vllm:num_requests_swapped",  "vllm:kv_cache_usage_perc",
                         "vllm:num_requests_waitin",   "process_start_time_seconds",
                         "# vllm:num_requests_running"};
  const char* values[] = {"0", "1", "0.5", "2.5e1", "NaN", "-3", "+Inf", "1e12"};
  for (int round = 0; round < 3000; ++round) {
    std::string page;
    for (size_t lines = random() % 12; lines > 0; --lines) {
      page += std::string(names[random() % std::size(names)]) + " " + values[random() % std::size(values)];
      if (random() % 2 == 0) page += " " + std::to_string(random() % 4);
      page += '\n';
    }
    if (random() % 2 == 0 && !page.empty()) page.pop_back();
    const EngineSample& sample = Read(page);
    EXPECT_EQ(sample.queued, Naive(page, "vllm:num_requests_waiting", 1e9)) << page;
    EXPECT_EQ(sample.running, Naive(page, "vllm:num_requests_running", 1e9)) << page;
    auto usage = Naive(page, "vllm:kv_cache_usage_perc", 1.5);
    EXPECT_EQ(sample.kv_usage, usage) << page;
  }
}

TEST_F(MetricsPageTest, TakesRandomBytes) {
  std::mt19937 random(3);
  const std::string bits[] = {"vllm:num_requests_waiting",
                              "{",
                              "}",
                              "\"",
                              "\\",
                              "=",
                              ",",
                              " ",
                              "\n",
                              "5",
                              "NaN",
                              "#",
                              "a",
                              "\r",
                              "vllm:lora_requests_info",
                              "max_lora",
                              "running_lora_adapters",
                              std::string("\0", 1)};
  for (int round = 0; round < 20000; ++round) {
    std::string page;
    for (int i = 0; i < 20; ++i) page += bits[random() % std::size(bits)];
    const EngineSample& sample = Read(page);
    EXPECT_TRUE(!sample.queued || *sample.queued == 5 || *sample.queued >= 55) << page;
  }
}

}  // namespace
}  // namespace fairway::sources::scrape
