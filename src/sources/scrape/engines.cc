#include <algorithm>
#include <optional>

#include "sources/scrape/metrics_page.h"

namespace fairway::sources::scrape {

// Names: each engine's own documentation; choice of names: the reference's defaults (llm-d router,
// core-metrics-extractor).
std::vector<EngineSpec> BuiltinEngines() {
  std::vector<EngineSpec> engines;
  engines.push_back({
      .name = "vllm",
      .model_label = "model_name",
      .queued = {{"vllm:num_requests_waiting", {}}},
      .running = {{"vllm:num_requests_running", {}}},
      // The second name is of vLLM before 0.9 (V0 engine).
      .kv_usage = {{"vllm:kv_cache_usage_perc", {}}, {"vllm:gpu_cache_usage_perc", {}}},
      .lora = {{"vllm:lora_requests_info", {}}},
      .cache_info = {{"vllm:cache_config_info", {}}},
      .block_size_label = "block_size",
      .num_blocks_label = "num_gpu_blocks",
  });
  engines.push_back({
      .name = "sglang",
      .model_label = "model_name",
      .queued = {{"sglang:num_queue_reqs", {}}},
      .running = {{"sglang:num_running_reqs", {}}},
      .kv_usage = {{"sglang:token_usage", {}}},
      .cache_info = {{"sglang:cache_config_info", {}}},
      .block_size_label = "page_size",
      .num_blocks_label = "num_pages",
      // Its older /get_load adds up whole prompts and what is in the KV cache: no measure of work.
      .waiting_tokens = {.path = "/v1/loads",
                         .list = "loads",
                         .tokens = "num_waiting_uncached_tokens",
                         .capacity = "max_total_num_tokens"},
  });
  engines.push_back({
      .name = "trtllm-serve",
      // What is at /metrics are statistics of iterations, as JSON; reading takes them away from others.
      .page = {.path = "/prometheus/metrics"},
      .model_label = "model_name",
      .queued = {{"trtllm_num_requests_waiting", {}}},
      .running = {{"trtllm_num_requests_running", {}}},
      .kv_usage = {{"trtllm_kv_cache_utilization", {}}},
      .block_size = {{"trtllm_kv_cache_tokens_per_block", {}}},
      .num_blocks = {{"trtllm_kv_cache_max_blocks", {}}},
  });
  engines.push_back({
      .name = "triton-tensorrt-llm",
      .model_label = "model",
      .queued = {{"nv_trt_llm_request_metrics", {{"request_type", "waiting"}}}},
      .running = {{"nv_trt_llm_request_metrics", {{"request_type", "scheduled"}}}},
      .kv_usage = {{"nv_trt_llm_kv_cache_block_metrics", {{"kv_cache_block_type", "fraction"}}}},
      .block_size = {{"nv_trt_llm_kv_cache_block_metrics", {{"kv_cache_block_type", "tokens_per"}}}},
      .num_blocks = {{"nv_trt_llm_kv_cache_block_metrics", {{"kv_cache_block_type", "max"}}}},
  });
  engines.push_back({
      .name = "triton", .model_label = "model", .queued = {{"nv_inference_pending_request_count", {}}},
      // Not nv_inference_exec_count, as the reference has it: that counts executions since the start, so a
      // server would look fuller each second. Nothing on the page says how many run now.
  });
  return engines;
}

std::vector<EngineSpec> WithConfig(std::vector<EngineSpec> known, const api::EnginePages& pages) {
  for (const api::EnginePage& page : pages.engines) {
    auto engine = std::find_if(known.begin(), known.end(),
                               [&](const EngineSpec& spec) { return spec.name == page.name; });
    if (engine == known.end()) {
      engine = known.insert(known.end(), {.name = page.name,
                                          .model_label = "model_name",
                                          .block_size_label = "block_size",
                                          .num_blocks_label = "num_gpu_blocks"});
    }
    const auto take = [](std::vector<MetricSpec>& to, const std::optional<MetricSpec>& said) {
      if (said) to = {*said};
    };
    take(engine->queued, page.queued);
    take(engine->running, page.running);
    take(engine->kv_usage, page.kv_usage);
    take(engine->lora, page.lora);
    take(engine->cache_info, page.cache_info);
    take(engine->block_size, page.block_size);
    take(engine->num_blocks, page.num_blocks);
    if (!page.block_size_label.empty()) engine->block_size_label = page.block_size_label;
    if (!page.num_blocks_label.empty()) engine->num_blocks_label = page.num_blocks_label;
    engine->custom.clear();
    for (const auto& custom : page.custom) engine->custom.push_back({custom.key, {custom.metric}});
  }
  // Of one that nothing is said of no page could be read.
  std::erase_if(known, [](const EngineSpec& spec) {
    return spec.queued.empty() && spec.running.empty() && spec.kv_usage.empty() && spec.lora.empty() &&
           spec.cache_info.empty() && spec.block_size.empty() && spec.num_blocks.empty() &&
           spec.custom.empty();
  });
  return known;
}

}  // namespace fairway::sources::scrape
