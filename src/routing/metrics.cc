#include "routing/metrics.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <utility>

namespace fairway::routing {
namespace {

const std::vector<double> kLatency{.005, .025, .05, .1,  .2,  .4,  .6,  .8,   1,    1.25, 1.5, 2,
                                   3,    4,    5,   6,   8,   10,  15,  20,   30,   45,   60,  120,
                                   180,  240,  300, 360, 480, 600, 900, 1200, 1800, 2700, 3600};
const std::vector<double> kInputTokens{
    1,    8,    16,    32,    64,    128,    256,    512,    1024,   2048,
    4096, 8192, 16384, 32778, 65536, 131072, 262144, 524288, 1048576};  // 32778 as the reference has it:
                                                                        // dashboards name it
const std::vector<double> kOutputTokens{1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};
const std::vector<double> kResponseBytes{1,    8,    16,   32,   64,    128,   256,  512,
                                         1024, 2048, 4096, 8192, 16384, 32778, 65536};
const std::vector<double> kPerToken{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10};
const std::vector<double> kStreamingPerToken{.0005, .00205, .005, .01, .02, .04, .06, .08, .1, .125,
                                             .15,   .2,     .3,   .4,  .5,  .6,  .8,  1,   2};
const std::vector<double> kInterToken{.001, .005, .01, .02, .04, .06, .08, .1, .15, .2, .3, .5, .75, 1, 2};
const std::vector<double> kFast{.0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1};

std::vector<double> PowersOfTwo(double from, double to) {
  std::vector<double> out;
  for (double v = from; v <= to; v *= 2) out.push_back(v);
  return out;
}

std::vector<double> Until(const std::vector<double>& bounds, double last) {
  return {bounds.begin(), std::upper_bound(bounds.begin(), bounds.end(), last)};
}

const std::vector<std::string> kRequestLabels{"model_name", "target_model_name", "fairness_id", "priority"};
using Pairs = std::vector<std::pair<std::string, std::string>>;
const Pairs kModelAndTarget{{"model_name", "model_name"}, {"target_model_name", "target_model_name"}};

// A family of the reference: `llm_d_epp_<name>` with its deprecated twin, if it has one.
base::MetricOptions Named(const std::string& name, const std::string& help, std::vector<std::string> labels,
                          std::vector<double> buckets = {}, const std::string& twin = "",
                          Pairs twin_labels = {}) {
  base::MetricOptions options;
  options.name = "llm_d_epp_" + name;
  options.help = "[ALPHA] " + help;
  options.labels = std::move(labels);
  options.buckets = std::move(buckets);
  options.max_series = 4000;
  if (!twin.empty()) {
    options.twins.push_back(
        {twin, "[ALPHA] [Deprecated: Use " + options.name + "] " + help, std::move(twin_labels)});
  }
  return options;
}

base::MetricOptions Request(const std::string& name, const std::string& help,
                            std::vector<double> buckets = {}, const std::string& twin = "",
                            Pairs twin_labels = kModelAndTarget) {
  return Named(name, help, kRequestLabels, std::move(buckets), twin, std::move(twin_labels));
}

double Round2(double v) { return std::round(v * 100) / 100; }

}  // namespace

RouterMetrics::RouterMetrics(base::Registry& registry)
    : requests_(registry.AddCounter(Request(
          "request_total", "Counter of inference requests broken out for each model and target model.", {},
          "inference_objective_request_total",
          {{"model_name", "model_name"},
           {"target_model_name", "target_model_name"},
           {"priority", "priority"}}))),
      errors_(registry.AddCounter(
          Named("request_error_total", "Counter of inference requests that failed, by error code.",
                {"model_name", "target_model_name", "fairness_id", "priority", "error_code"}, {},
                "inference_objective_request_error_total",
                {{"model_name", "model_name"},
                 {"target_model_name", "target_model_name"},
                 {"error_code", "error_code"}}))),
      duration_(registry.AddHistogram(Request("request_duration_seconds",
                                              "Time from the request's headers to the end of its response.",
                                              kLatency, "inference_objective_request_duration_seconds"))),
      request_size_(
          registry.AddHistogram(Request("request_size_bytes", "Size of request bodies.",
                                        PowersOfTwo(64, 1073741824), "inference_objective_request_sizes"))),
      response_size_(registry.AddHistogram(Request("response_size_bytes", "Size of response bodies.",
                                                   kResponseBytes, "inference_objective_response_sizes"))),
      input_tokens_(registry.AddHistogram(Request("request_input_tokens",
                                                  "Prompt tokens as the model server counted them.",
                                                  kInputTokens, "inference_objective_input_tokens"))),
      output_tokens_(registry.AddHistogram(Request("request_output_tokens",
                                                   "Generated tokens as the model server counted them.",
                                                   kOutputTokens, "inference_objective_output_tokens"))),
      cached_tokens_(registry.AddHistogram(
          Request("request_cached_tokens", "Prompt tokens that the model server had cached.", kInputTokens,
                  "inference_objective_prompt_cached_tokens"))),
      per_output_token_(registry.AddHistogram(
          Request("request_ntpot_seconds", "Request duration divided by generated tokens.", kPerToken,
                  "inference_objective_normalized_time_per_output_token_seconds"))),
      streaming_per_output_token_(registry.AddHistogram(
          Request("request_streaming_tpot_seconds",
                  "Time per output token after the first, streamed responses.", kStreamingPerToken))),
      inter_token_(registry.AddHistogram(Request("request_streaming_itl_seconds",
                                                 "Time between two pieces of a streamed response's body.",
                                                 kInterToken))),
      ttft_(registry.AddHistogram(
          Named("request_ttft_seconds", "Time to the first piece of the response body.",
                {"model_name", "target_model_name", "fairness_id", "priority", "streaming"},
                Until(kLatency, 120)))),
      running_(
          registry.AddGauge(Request("request_running", "Requests on their way.", {},
                                    "inference_objective_running_requests", {{"model_name", "model_name"}}))),
      attempts_(registry.AddCounter(
          Named("scheduler_attempts_total", "Scheduling attempts by outcome and endpoint.",
                {"status", "target_model_name", "endpoint_name", "namespace", "port"}, {},
                "inference_extension_scheduler_attempts_total",
                {{"status", "status"},
                 {"target_model_name", "target_model_name"},
                 {"endpoint_name", "pod_name"},
                 {"namespace", "namespace"},
                 {"port", "port"}}))),
      decisions_(
          registry.AddCounter({.name = "fairway_decisions_total",
                               .help = "Picks by the rung of the degradation ladder that they were made on.",
                               .labels = {"pool", "rung"}})),
      rewrites_(registry.AddCounter(Named("model_rewrite_decisions_total",
                                          "Requests that an InferenceModelRewrite gave a target model.",
                                          {"model_rewrite_name", "model_name", "target_model"}, {},
                                          "inference_extension_model_rewrite_decisions_total",
                                          {{"model_rewrite_name", "model_rewrite_name"},
                                           {"model_name", "model_name"},
                                           {"target_model", "target_model"}}))),
      served_elsewhere_(
          registry.AddCounter({.name = "fairway_served_elsewhere_total",
                               .help = "Requests that another endpoint answered than the one picked first.",
                               .labels = {"pool"}})),
      scheduler_duration_(
          &registry
               .AddHistogram(Named("scheduler_e2e_duration_seconds", "Duration of one scheduling decision.",
                                   {}, kFast, "inference_extension_scheduler_e2e_duration_seconds"))
               .With({})),
      ready_(registry.AddGauge(Named("ready_endpoints", "Endpoints of the pool with fresh metrics.", {"name"},
                                     {}, "inference_pool_ready_pods", {{"name", "name"}}))),
      endpoint_queue_(registry.AddGauge([] {
        auto options = Named("per_endpoint_queue_size", "Requests waiting in one model server.",
                             {"name", "model_server_endpoint"}, {}, "inference_pool_per_pod_queue_size",
                             {{"name", "name"}, {"model_server_endpoint", "model_server_pod"}});
        options.max_series = 20'000;
        return options;
      }())) {
  struct Signal {
    const char* name;
    const char* help;
  };
  constexpr std::array<Signal, 3> kSignals{{{"kv_cache_utilization", "KV cache use"},
                                            {"queue_size", "waiting requests"},
                                            {"running_requests", "running requests"}}};
  for (size_t i = 0; i < kSignals.size(); ++i) {
    const std::string name = kSignals[i].name;
    const std::string help = kSignals[i].help;
    average_[i] = &registry.AddGauge(
        Named("average_" + name, "Average of " + help + " over the pool's ready endpoints.", {"name"}, {},
              "inference_pool_average_" + name, {{"name", "name"}}));
    deviation_[i] = &registry.AddGauge(Named(
        "std_dev_" + name, "Standard deviation of " + help + " over the pool's ready endpoints.", {"name"}));
  }
}

std::string_view LabelValues::Bound(std::string_view value) {
  std::lock_guard lock(mutex_);
  if (known_.contains(value)) return value;
  if (known_.size() >= max_) return "other";
  known_.emplace(value);
  return value;
}

RequestLabels RouterMetrics::Bound(const RequestLabels& l) {
  return {.model = models_.Bound(l.model),
          .target_model = models_.Bound(l.target_model),
          .fairness_id = fairness_ids_.Bound(l.fairness_id),
          .priority = l.priority};
}

RequestSeries RouterMetrics::Series(RequestLabels l) {
  l = Bound(l);
  const std::initializer_list<std::string_view> labels{l.model, l.target_model, l.fairness_id, l.priority};
  return {
      .requests = &requests_.With(labels),
      .running = &running_.With(labels),
      .request_size = &request_size_.With(labels),
      .duration = &duration_.With(labels),
      .response_size = &response_size_.With(labels),
      .ttft = {&ttft_.With({l.model, l.target_model, l.fairness_id, l.priority, "false"}),
               &ttft_.With({l.model, l.target_model, l.fairness_id, l.priority, "true"})},
      .inter_token = &inter_token_.With(labels),
      .input_tokens = &input_tokens_.With(labels),
      .output_tokens = &output_tokens_.With(labels),
      .cached_tokens = &cached_tokens_.With(labels),
      .per_output_token = &per_output_token_.With(labels),
      .streaming_per_output_token = &streaming_per_output_token_.With(labels),
  };
}

base::Counter& RouterMetrics::Errors(RequestLabels l, std::string_view code) {
  l = Bound(l);
  return errors_.With({l.model, l.target_model, l.fairness_id, l.priority, code});
}

base::Counter& RouterMetrics::Attempts(std::string_view target_model, const fleet::Endpoint* endpoint) {
  target_model = models_.Bound(target_model);
  if (endpoint == nullptr) return attempts_.With({"failure", target_model, "", "", ""});
  return attempts_.With(
      {"success", target_model, endpoint->name, endpoint->namespace_name, std::to_string(endpoint->port)});
}

base::Counter& RouterMetrics::Decisions(std::string_view pool, scheduling::Rung rung) {
  return decisions_.With({pool, scheduling::ToString(rung)});
}

base::Counter& RouterMetrics::Rewrites(std::string_view rewrite, std::string_view model,
                                       std::string_view target_model) {
  return rewrites_.With({rewrite, models_.Bound(model), models_.Bound(target_model)});
}

void RouterMetrics::CollectPools(const fleet::Snapshot& snapshot, base::Nanos now, base::Nanos staleness) {
  std::lock_guard lock(collect_mutex_);
  std::map<std::string, std::set<std::string>> shown;
  for (const auto& [key, pool] : snapshot.pools) {
    auto& endpoints = shown[pool->name];
    std::array<double, 3> sum{}, squares{};
    uint32_t ready = 0;
    for (const auto& endpoint : pool->endpoints) {
      const fleet::EndpointCell& cell = *endpoint.cell;
      endpoint_queue_.With({pool->name, endpoint.name}).Set(cell.waiting());
      endpoints.insert(endpoint.name);
      if (cell.scraped_at() == 0 || now - cell.scraped_at() > staleness) continue;
      ++ready;
      const std::array<double, 3> values{cell.kv_usage(), static_cast<double>(cell.waiting()),
                                         static_cast<double>(cell.running())};
      for (size_t i = 0; i < values.size(); ++i) {
        sum[i] += values[i];
        squares[i] += values[i] * values[i];
      }
    }
    ready_.With({pool->name}).Set(ready);
    for (size_t i = 0; i < sum.size(); ++i) {
      const double mean = ready > 0 ? sum[i] / ready : 0;
      // Of a sample (n - 1), as the reference has it.
      const double variance = ready > 1 ? std::max(0.0, (squares[i] - mean * sum[i]) / (ready - 1)) : 0;
      average_[i]->With({pool->name}).Set(Round2(mean));
      deviation_[i]->With({pool->name}).Set(Round2(std::sqrt(variance)));
    }
  }
  for (const auto& [pool, endpoints] : shown_) {
    const auto now_shown = shown.find(pool);
    for (const auto& endpoint : endpoints) {
      if (now_shown == shown.end() || !now_shown->second.contains(endpoint))
        endpoint_queue_.Remove({pool, endpoint});
    }
    if (now_shown != shown.end()) continue;
    ready_.Remove({pool});
    for (size_t i = 0; i < average_.size(); ++i) {
      average_[i]->Remove({pool});
      deviation_[i]->Remove({pool});
    }
  }
  shown_ = std::move(shown);
}

}  // namespace fairway::routing
