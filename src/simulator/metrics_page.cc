#include "simulator/metrics_page.h"

#include <charconv>
#include <cmath>
#include <string_view>

#include "base/json_writer.h"
#include "base/strings.h"

namespace fairway::simulator {

namespace {

// As Python's repr of a float: "0.0", "12.0", "0.3", "1.7e+09".
void AppendFloat(std::string& out, double value) {
  char text[40];
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  const std::string_view written(text, static_cast<size_t>(end - text));
  out += written;
  if (written.find_first_of(".en") == std::string_view::npos) out += ".0";
}

void AppendLabelValue(std::string& out, std::string_view value) {
  for (char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
}

class Page {
 public:
  Page(std::string_view model, double created) : created_(created) {
    model_label_ = "model_name=\"";
    AppendLabelValue(model_label_, model);
    model_label_ += '"';
    labels_ = "engine=\"0\"," + model_label_;
  }
  void LabelAsSglang() {
    labels_ = "engine_type=\"unified\"," + model_label_ + R"(,pp_rank="0",tp_rank="0")";
  }

  void Head(std::string_view name, std::string_view type, std::string_view help) {
    out_.append("# HELP ").append(name).append(" ").append(help).append("\n# TYPE ").append(name).append(" ");
    out_.append(type).append("\n");
  }
  void Line(std::string_view name, std::string_view labels, double value) {
    out_ += name;
    if (!labels.empty()) out_.append("{").append(labels).append("}");
    out_ += ' ';
    AppendFloat(out_, value);
    out_ += '\n';
  }
  void Gauge(std::string_view name, std::string_view help, double value) {
    Head(name, "gauge", help);
    Line(name, labels_, value);
  }
  void Counter(const std::string& name, std::string_view help, double value) {
    Head(name + "_total", "counter", help);
    Line(name + "_total", labels_, value);
    Created(name, help);
  }
  void Histogram(const std::string& name, std::string_view help, const base::Histogram& histogram) {
    Head(name, "histogram", help);
    uint64_t count = 0;
    for (size_t i = 0; i <= histogram.bounds().size(); ++i) {
      count += histogram.bucket(i);
      std::string labels = "engine=\"0\",le=\"";
      if (i < histogram.bounds().size()) {
        AppendFloat(labels, histogram.bounds()[i]);
      } else {
        labels += "+Inf";
      }
      Line(name + "_bucket", labels + "\"," + model_label_, static_cast<double>(count));
    }
    Line(name + "_count", labels_, static_cast<double>(count));
    Line(name + "_sum", labels_, histogram.sum());
    Created(name, help);
  }
  void Created(const std::string& name, std::string_view help) {
    Head(name + "_created", "gauge", help);
    Line(name + "_created", labels_, created_);
  }

  const std::string& labels() const { return labels_; }
  std::string Take() { return std::move(out_); }

 private:
  double created_;
  std::string model_label_;
  std::string labels_;
  std::string out_;
};

// What every Python server shows first.
void Process(Page& page, double unix_start) {
  page.Head("python_gc_objects_collected_total", "counter", "Objects collected during gc");
  for (const char* generation : {"0", "1", "2"}) {
    page.Line("python_gc_objects_collected_total", "generation=\"" + std::string(generation) + "\"", 0);
  }
  page.Head("python_info", "gauge", "Python platform information");
  page.Line("python_info",
            R"(implementation="CPython",major="3",minor="12",patchlevel="11",version="3.12.11")", 1);
  page.Head("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.");
  page.Line("process_start_time_seconds", "", unix_start);
}

void LoraSeries(Page& page, const MetricsPageInput& in) {
  const uint32_t max_lora = in.pin.max_lora.value_or(in.engine.options().max_loras);
  auto line = [&](const std::vector<std::string>& running, const std::vector<std::string>& waiting,
                  double at) {
    std::string labels = "max_lora=\"" + std::to_string(max_lora) + "\",running_lora_adapters=\"";
    AppendLabelValue(labels, base::Join(running, ","));
    labels += "\",waiting_lora_adapters=\"";
    AppendLabelValue(labels, base::Join(waiting, ","));
    page.Line("vllm:lora_requests_info", labels + "\"", at);
  };
  const std::vector<LoraInfo>& infos = in.engine.lora_infos();
  if (!in.pin.pins_lora() && infos.empty()) return;  // before the first step vLLM has no such series
  page.Head("vllm:lora_requests_info", "gauge", "Running stats on lora requests.");
  if (in.pin.pins_lora()) {
    const LoraInfo last = infos.empty() ? LoraInfo{} : infos.back();
    line(in.pin.running_lora.value_or(last.running), in.pin.waiting_lora.value_or(last.waiting), in.unix_now);
    return;
  }
  for (const LoraInfo& info : infos) {
    line(info.running, info.waiting, in.unix_now - base::ToSeconds(in.now - info.at));
  }
}

void CacheConfig(Page& page, const EngineOptions& options) {
  page.Head("vllm:cache_config_info", "gauge", "Information of the LLMEngine CacheConfig");
  page.Line(
      "vllm:cache_config_info",
      "block_size=\"" + std::to_string(options.block_size) +
          R"(",cache_dtype="auto",calculate_kv_scales="False",cpu_offload_gb="0",enable_prefix_caching=")" +
          (options.prefix_caching ? "True" : "False") +
          R"(",engine="0",gpu_memory_utilization="0.9",is_attention_free="False",num_cpu_blocks="None",num_gpu_blocks=")" +
          std::to_string(options.num_blocks) +
          R"(",num_gpu_blocks_override="None",prefix_caching_hash_algo="sha256",sliding_window="None",swap_space="4")",
      1);
}

void Counters(Page& page, const EngineTotals& totals, bool legacy_names) {
  const auto queries = static_cast<double>(totals.prefix_cache_queries);
  const auto hits = static_cast<double>(totals.prefix_cache_hits);
  if (legacy_names) {
    page.Counter("vllm:gpu_prefix_cache_queries",
                 "GPU prefix cache queries, in terms of number of queried tokens.", queries);
    page.Counter("vllm:gpu_prefix_cache_hits", "GPU prefix cache hits, in terms of number of cached tokens.",
                 hits);
  }
  page.Counter("vllm:prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.",
               queries);
  page.Counter("vllm:prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", hits);
  page.Counter("vllm:num_preemptions", "Cumulative number of preemption from the engine.",
               static_cast<double>(totals.num_preemptions));
  page.Counter("vllm:prompt_tokens", "Number of prefill tokens processed.",
               static_cast<double>(totals.prompt_tokens));
  page.Counter("vllm:generation_tokens", "Number of generation tokens processed.",
               static_cast<double>(totals.generation_tokens));
  page.Head("vllm:request_success_total", "counter", "Count of successfully processed requests.");
  for (FinishReason reason : {FinishReason::kStop, FinishReason::kLength, FinishReason::kAbort}) {
    page.Line("vllm:request_success_total",
              "engine=\"0\",finished_reason=\"" + std::string(ToString(reason)) + "\"," +
                  page.labels().substr(page.labels().find(',') + 1),
              static_cast<double>(totals.request_success[static_cast<size_t>(reason)]));
  }
}

void Histograms(Page& page, const EngineTotals& totals) {
  page.Histogram("vllm:request_prompt_tokens", "Number of prefill tokens processed.",
                 totals.request_prompt_tokens);
  page.Histogram("vllm:request_generation_tokens", "Number of generation tokens processed.",
                 totals.request_generation_tokens);
  page.Histogram("vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.",
                 totals.iteration_tokens);
  page.Histogram("vllm:request_max_num_generation_tokens",
                 "Histogram of maximum number of requested generation tokens.",
                 totals.request_max_num_generation_tokens);
  page.Histogram("vllm:request_params_n", "Histogram of the n request parameter.", totals.request_params_n);
  page.Histogram("vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.",
                 totals.request_params_max_tokens);
  page.Histogram("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.",
                 totals.time_to_first_token_seconds);
  page.Histogram("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.",
                 totals.inter_token_latency_seconds);
  page.Histogram("vllm:request_time_per_output_token_seconds",
                 "Histogram of time_per_output_token_seconds per request.",
                 totals.request_time_per_output_token_seconds);
  page.Histogram("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.",
                 totals.e2e_request_latency_seconds);
  page.Histogram("vllm:request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.",
                 totals.request_queue_time_seconds);
  page.Histogram("vllm:request_inference_time_seconds",
                 "Histogram of time spent in RUNNING phase for request.",
                 totals.request_inference_time_seconds);
  page.Histogram("vllm:request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.",
                 totals.request_prefill_time_seconds);
  page.Histogram("vllm:request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.",
                 totals.request_decode_time_seconds);
}

}  // namespace

std::string RenderMetricsPage(const MetricsPageInput& in) {
  const EngineGauges& gauges = in.engine.gauges();
  const double usage = in.pin.kv_usage.value_or(gauges.kv_cache_usage);
  Page page(in.model, in.unix_start);
  Process(page, in.unix_start);
  page.Gauge("vllm:num_requests_running", "Number of requests in model execution batches.",
             in.pin.running.value_or(gauges.running));
  page.Gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.",
             in.pin.waiting.value_or(gauges.waiting));
  if (in.legacy_names) {
    page.Gauge(
        "vllm:gpu_cache_usage_perc",
        "GPU KV-cache usage. 1 means 100 percent usage.DEPRECATED: Use vllm:kv_cache_usage_perc instead.",
        usage);
  }
  page.Gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", usage);
  Counters(page, in.engine.totals(), in.legacy_names);
  Histograms(page, in.engine.totals());
  CacheConfig(page, in.engine.options());
  LoraSeries(page, in);
  return page.Take();
}

std::string RenderSglangPage(const MetricsPageInput& in) {
  const EngineGauges& gauges = in.engine.gauges();
  const EngineOptions& options = in.engine.options();
  Page page(in.model, in.unix_start);
  page.LabelAsSglang();
  page.Gauge("sglang:num_running_reqs", "The number of running requests.",
             in.pin.running.value_or(gauges.running));
  page.Gauge("sglang:token_usage", "The token usage.",
             std::round(in.pin.kv_usage.value_or(gauges.kv_cache_usage) * 100) / 100);
  page.Gauge("sglang:num_queue_reqs", "The number of requests in the waiting queue.",
             in.pin.waiting.value_or(gauges.waiting));
  page.Head("sglang:cache_config_info", "gauge", "Information of the cache configuration.");
  page.Line("sglang:cache_config_info",
            page.labels() + ",num_pages=\"" + std::to_string(options.num_blocks) + "\",page_size=\"" +
                std::to_string(options.block_size) + "\"",
            1);
  return page.Take();
}

std::string RenderSglangLoads(const MetricsPageInput& in) {
  const EngineGauges& gauges = in.engine.gauges();
  const EngineOptions& options = in.engine.options();
  const bool worked = in.engine.totals().steps > 0;
  const uint64_t capacity = worked ? uint64_t{options.num_blocks} * options.block_size : 0;
  const double usage = in.pin.kv_usage.value_or(gauges.kv_cache_usage);
  std::string out;
  base::JsonWriter json(out);
  json.BeginObject().Member("version", "0.5.6+fairway.sim").Key("loads").BeginList().BeginObject();
  json.Member("dp_rank", 0)
      .Member("num_running_reqs", in.pin.running.value_or(gauges.running))
      .Member("num_waiting_reqs", in.pin.waiting.value_or(gauges.waiting))
      .Member("num_waiting_uncached_tokens", gauges.waiting_tokens)
      .Member("num_used_tokens", static_cast<uint64_t>(usage * static_cast<double>(capacity)))
      .Member("max_total_num_tokens", capacity)
      .Member("max_running_requests", worked ? options.max_num_seqs : 0)
      .Member("token_usage", usage);
  json.EndObject().EndList().EndObject();
  return out;
}

}  // namespace fairway::simulator
