#include "routing/metrics.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "base/result.h"
#include "base/strings.h"
#include "routing/metric_families.h"

namespace fairway::routing {
namespace {

const std::vector<double> kLatency{.005, .025, .05, .1,  .2,  .4,  .6,  .8,   1,    1.25, 1.5, 2,
                                   3,    4,    5,   6,   8,   10,  15,  20,   30,   45,   60,  120,
                                   180,  240,  300, 360, 480, 600, 900, 1200, 1800, 2700, 3600};
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
const LabelPairs kModelAndTarget{{"model_name", "model_name"}, {"target_model_name", "target_model_name"}};

base::MetricOptions Request(const std::string& name, const std::string& help,
                            std::vector<double> buckets = {}, const std::string& twin = "",
                            LabelPairs twin_labels = kModelAndTarget) {
  return Named(name, help, kRequestLabels, std::move(buckets), twin, std::move(twin_labels));
}

constexpr base::Nanos kSweepEvery = 10 * base::kSecond;

void MakeKey(std::string& key, const RequestLabels& labels) {
  key.clear();
  for (const std::string_view text :
       {labels.model, labels.target_model, labels.fairness_id, labels.priority}) {
    key += text;
    key += '\0';  // in no label: LabelText lets no control character pass
  }
}

// Of a key of RequestSeries::stages, as its family has them.
std::array<std::string_view, 4> StagesLabels(std::string_view key, std::string_view model) {
  const auto parts = base::Split(key, '\n');
  return {parts[0], parts[1], model, parts[2]};
}

size_t TextBytes(const RequestLabels& l) {
  return l.model.size() + l.target_model.size() + l.fairness_id.size() + l.priority.size();
}

// Most texts are labels as they are.
std::string_view Label(std::string_view text, std::string& storage) {
  const auto plain = [](char c) { return c >= 0x20 && c < 0x7f; };
  if (text.size() <= 128 && std::all_of(text.begin(), text.end(), plain)) return text;
  storage = base::LabelText(text);
  return storage;
}

}  // namespace

base::MetricOptions Named(const std::string& name, const std::string& help, std::vector<std::string> labels,
                          std::vector<double> buckets, const std::string& twin, LabelPairs twin_labels) {
  base::MetricOptions options;
  options.name = "llm_d_epp_" + name;
  options.help = "[ALPHA] " + help;
  options.labels = std::move(labels);
  options.buckets = std::move(buckets);
  options.max_series = std::numeric_limits<size_t>::max();  // bounded by Admit
  if (!twin.empty()) {
    options.twins.push_back(
        {twin, "[ALPHA] [Deprecated: Use " + options.name + "] " + help, std::move(twin_labels)});
  }
  return options;
}

RouterMetrics::RouterMetrics(base::Registry& registry)
    : registry_(registry),
      requests_(registry.AddCounter(Request(
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
      rewrites_(registry.AddCounter(Named("model_rewrite_decisions_total",
                                          "Requests that an InferenceModelRewrite gave a target model.",
                                          {"model_rewrite_name", "model_name", "target_model"}, {},
                                          "inference_extension_model_rewrite_decisions_total",
                                          {{"model_rewrite_name", "model_rewrite_name"},
                                           {"model_name", "model_name"},
                                           {"target_model", "target_model"}}))),
      stages_(registry.AddCounter(Named("disagg_decision_total",
                                        "Requests by the stages that have an endpoint of their own.",
                                        {"plugin_name", "plugin_type", "model_name", "decision_type"}, {},
                                        "llm_d_inference_scheduler_disagg_decision_total",
                                        {{"model_name", "model_name"}, {"decision_type", "decision_type"}}))),
      refusals_(registry.AddCounter(
          {.name = "fairway_refusals_total",
           .help = "Requests that a decision refused, by what did: filters (the profile left nobody), "
                   "saturation, room (nobody has any for what may be shed), admitter, not-cached.",
           .labels = {"pool", "reason", "plugin"}})),
      scheduler_duration_(
          registry
              .AddHistogram(Named("scheduler_e2e_duration_seconds", "Duration of one scheduling decision.",
                                  {}, kFast, "inference_extension_scheduler_e2e_duration_seconds"))
              .With({})) {
  bounds_ = {.request_size = request_size_.options().buckets,
             .duration = duration_.options().buckets,
             .response_size = response_size_.options().buckets,
             .ttft = ttft_.options().buckets,
             .inter_token = inter_token_.options().buckets,
             .input_tokens = input_tokens_.options().buckets,
             .output_tokens = output_tokens_.options().buckets,
             .cached_tokens = cached_tokens_.options().buckets,
             .per_output_token = per_output_token_.options().buckets,
             .streaming_per_output_token = streaming_per_output_token_.options().buckets};
  const auto add = [this](const base::AnyFamily& family) {
    page_bytes_base_ += family.PageBytes(0);
    page_bytes_per_byte_ += family.PageBytes(1) - family.PageBytes(0);
  };
  add(requests_);
  add(running_);
  add(errors_);
  for (const auto* family :
       {&duration_, &request_size_, &response_size_, &input_tokens_, &output_tokens_, &cached_tokens_,
        &per_output_token_, &streaming_per_output_token_, &inter_token_, &ttft_, &ttft_}) {
    add(*family);
  }
  for (uint32_t number = fleet::PickTally::kNumbers - 1; number > 0; --number)
    free_targets_.push_back(number);
  AddPoolGauges(registry);
  AddEndpointSeries(registry);
  AddTallies(registry);
}

// ---- Which series a request has.

RouterMetrics::Kind RouterMetrics::KindOf(const RequestLabels& labels, bool known) {
  if (labels.fairness_id != kDefaultFlow && labels.fairness_id != kOther) return kFairness;
  return known || (labels.model == kOther && labels.target_model == kOther) ? kKept : kMadeUp;
}

// What is kept has no bound but the page's. Model names that are made up and fairness ids get half each of
// what it leaves of four fifths of the page; the rest is for pools, endpoints and deprecated names.
bool RouterMetrics::HasRoom(Kind kind, size_t page_bytes) const {
  if (kind == kKept) return true;
  const size_t all = registry_.max_page_bytes() / 5 * 4;
  const size_t kept = std::min(all, page_bytes_[kKept].load(std::memory_order_relaxed));
  return page_bytes_[kind].load(std::memory_order_relaxed) + page_bytes <= (all - kept) / 2;
}

RouterMetrics::Found RouterMetrics::Find(View& view, const RequestLabels& asked, bool known,
                                         base::Nanos now) {
  std::array<std::string, 3> storage;
  const RequestLabels own{Label(asked.model, storage[0]), Label(asked.target_model, storage[1]),
                          Label(asked.fairness_id, storage[2]), asked.priority};
  // Who gets no series of its own shares one: with those that differ in the fairness id alone, else with all.
  const std::array<RequestLabels, 3> tries{
      own, {own.model, own.target_model, kOther, own.priority}, {kOther, kOther, kOther, own.priority}};
  for (size_t i = 0; i < tries.size(); ++i) {
    const Kind kind = KindOf(tries[i], known);
    if (i == 1 && KindOf(own, known) != kFairness) continue;
    MakeKey(view.key, tries[i]);
    if (const auto* found = view.table.Get()->Find(view.key); found != nullptr) return {*found, i == 0};
    const size_t page_bytes = page_bytes_base_ + page_bytes_per_byte_ * TextBytes(tries[i]);
    if (!HasRoom(kind, page_bytes)) TrySweep(now);
    if (!HasRoom(kind, page_bytes)) continue;
    if (auto admitted = Admit(view.key, tries[i], kind, now)) return {std::move(admitted), i == 0};
  }
  FAIRWAY_CHECK(false);  // the last one is always admitted
  return {};
}

std::shared_ptr<RequestSeries> RouterMetrics::Admit(std::string_view key, const RequestLabels& labels,
                                                    Kind kind, base::Nanos now) {
  const std::lock_guard lock(mutex_);
  if (const auto found = records_.find(key); found != records_.end()) return found->second.series;
  const size_t page_bytes = page_bytes_base_ + page_bytes_per_byte_ * TextBytes(labels);
  if (!HasRoom(kind, page_bytes)) return nullptr;
  auto series = std::make_shared<RequestSeries>(labels, bounds_, TakeTarget(labels.target_model));
  series->last_used.store(now, std::memory_order_relaxed);
  records_.emplace(key, Record{series, kind, page_bytes});
  page_bytes_[kind].fetch_add(page_bytes, std::memory_order_relaxed);
  PutInTable(key, series);
  return series;
}

void RouterMetrics::PutInTable(std::string_view key, std::shared_ptr<RequestSeries> series) {
  auto next = std::make_shared<SeriesTable>(*table_.Load());
  const size_t hash = base::StringHash()(key);
  auto& slot = next->shards[hash % SeriesTable::kShards];
  auto shard =
      slot != nullptr ? std::make_shared<SeriesTable::Shard>(*slot) : std::make_shared<SeriesTable::Shard>();
  std::erase_if(*shard, [key](const SeriesTable::Entry& entry) { return entry.key == key; });
  if (series != nullptr) shard->push_back({hash, std::string(key), std::move(series)});
  slot = std::move(shard);
  table_.Publish(std::move(next));
}

// ---- What is on the page.

template <typename Visit>
void RouterMetrics::ForEachShown(const std::shared_ptr<RequestSeries>& s, const Visit& visit) {
  // A metric inside the series lives as long as the series does.
  const auto part = [&s](auto& metric) {
    return std::shared_ptr<std::remove_reference_t<decltype(metric)>>(s, &metric);
  };
  const RequestLabels l = s->labels();
  const std::array<std::string_view, 4> labels{l.model, l.target_model, l.fairness_id, l.priority};
  visit(requests_, labels, part(s->requests));
  visit(running_, labels, part(s->running));
  visit(request_size_, labels, part(s->request_size));
  visit(duration_, labels, part(s->duration));
  visit(response_size_, labels, part(s->response_size));
  visit(inter_token_, labels, part(s->inter_token));
  visit(input_tokens_, labels, part(s->input_tokens));
  visit(output_tokens_, labels, part(s->output_tokens));
  visit(cached_tokens_, labels, part(s->cached_tokens));
  visit(per_output_token_, labels, part(s->per_output_token));
  visit(streaming_per_output_token_, labels, part(s->streaming_per_output_token));
  for (size_t i = 0; i < s->ttft.size(); ++i) {
    const std::array<std::string_view, 5> with{l.model, l.target_model, l.fairness_id, l.priority,
                                               i == 0 ? "false" : "true"};
    visit(ttft_, with, part(s->ttft[i]));
  }
}

void RouterMetrics::Show(const std::shared_ptr<RequestSeries>& series) {
  const std::lock_guard lock(mutex_);
  if (series->state.load(std::memory_order_relaxed) != RequestSeries::kNew) return;
  ForEachShown(series, [](auto& family, const auto& labels, auto metric) {
    family.Attach(labels, std::move(metric));
  });
  series->state.store(RequestSeries::kShown, std::memory_order_relaxed);
}

// The one of that name, else of `rest` where there are too many. `share` gives what is on the page for a name.
template <typename Share>
base::Counter& RouterMetrics::FindOrAdd(RequestSeries& series, NamedCounters& counters, std::string_view name,
                                        std::string_view rest, const Share& share) {
  if (base::Counter* found = counters.Find(name)) return *found;
  const std::lock_guard lock(mutex_);
  if (counters.full()) name = rest;
  if (base::Counter* found = counters.Find(name)) return *found;
  const bool gone = series.state.load(std::memory_order_relaxed) == RequestSeries::kGone;
  return counters.Add(name, gone ? std::make_shared<base::Counter>() : share(name, series.labels()));
}

base::Counter& RouterMetrics::Errors(RequestSeries& series, std::string_view code) {
  return FindOrAdd(series, series.errors, code, kOther, [&](std::string_view name, const RequestLabels& l) {
    return errors_.Share({l.model, l.target_model, l.fairness_id, l.priority, name});
  });
}

base::Counter& RouterMetrics::Rewrites(RequestSeries& series, std::string_view rewrite) {
  return FindOrAdd(series, series.rewrites, rewrite, kOther,
                   [&](std::string_view name, const RequestLabels& l) {
                     return rewrites_.Share({name, l.model, l.target_model});
                   });
}

base::Counter& RouterMetrics::Stages(RequestSeries& series, View& view, const StagesChosen& chosen) {
  std::string& key = view.key;
  key.assign(chosen.plugin_name).append(1, '\n').append(chosen.plugin_type);
  key.append(1, '\n').append(chosen.decision);
  return FindOrAdd(series, series.stages, key, "other\nother\nother",
                   [&](std::string_view name, const RequestLabels& l) {
                     return stages_.Share(StagesLabels(name, l.target_model));
                   });
}

// ---- What leaves it.

void RouterMetrics::TrySweep(base::Nanos now) {
  if (now < next_sweep_.load(std::memory_order_relaxed)) return;
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (lock.owns_lock()) Sweep(now);
}

void RouterMetrics::Sweep(base::Nanos now) {
  next_sweep_.store(now + kSweepEvery, std::memory_order_relaxed);
  for (auto it = records_.begin(); it != records_.end();) {
    const Record& record = it->second;
    const RequestSeries& series = *record.series;
    if (record.kind == kKept || series.running.value() != 0 ||
        now - series.last_used.load(std::memory_order_relaxed) < kIdle) {
      ++it;
      continue;
    }
    Retire(record);
    PutInTable(it->first, nullptr);
    it = records_.erase(it);
  }
}

// A request of this very moment may still count in it: it is then on no page.
void RouterMetrics::Retire(const Record& record) {
  RequestSeries& series = *record.series;
  const RequestLabels l = series.labels();
  if (series.state.exchange(RequestSeries::kGone, std::memory_order_relaxed) == RequestSeries::kShown) {
    ForEachShown(record.series,
                 [](auto& family, const auto& labels, const auto& /*metric*/) { family.Remove(labels); });
  }
  series.errors.ForEach([&](std::string_view code) {
    errors_.Remove({l.model, l.target_model, l.fairness_id, l.priority, code});
  });
  // Others that differ in fairness id or priority count in the same one.
  const auto shares = [&](const auto& counts) {
    return std::any_of(records_.begin(), records_.end(), [&](const auto& other) {
      return other.second.series.get() != &series && counts(*other.second.series);
    });
  };
  series.rewrites.ForEach([&](std::string_view rewrite) {
    const bool shared = shares([&](const RequestSeries& o) {
      return o.texts[0] == l.model && o.texts[1] == l.target_model && o.rewrites.Find(rewrite) != nullptr;
    });
    if (!shared) rewrites_.Remove({rewrite, l.model, l.target_model});
  });
  series.stages.ForEach([&](std::string_view key) {
    const bool shared = shares([&](const RequestSeries& o) {
      return o.texts[1] == l.target_model && o.stages.Find(key) != nullptr;
    });
    if (!shared) stages_.Remove(StagesLabels(key, l.target_model));
  });
  if (series.target != 0) ReturnTarget(l.target_model);
  page_bytes_[record.kind].fetch_sub(record.page_bytes, std::memory_order_relaxed);
}

uint32_t RouterMetrics::TakeTarget(std::string_view name) {
  if (name == kOther) return 0;
  auto found = targets_.find(name);
  if (found == targets_.end()) {
    if (free_targets_.empty()) return 0;
    found = targets_.emplace(name, Target{.number = free_targets_.back()}).first;
    free_targets_.pop_back();
  }
  ++found->second.users;
  return found->second.number;
}

void RouterMetrics::ReturnTarget(std::string_view name) {
  const auto found = targets_.find(name);
  FAIRWAY_CHECK(found != targets_.end());
  if (--found->second.users > 0) return;
  returned_targets_.push_back(found->second.number);
  targets_.erase(found);
}

// What was counted by a number goes before another name gets it.
void RouterMetrics::FreeTargets(const fleet::Snapshot& snapshot) {
  for (const uint32_t number : returned_targets_) {
    failures_[number].Clear();
    for (const auto& [key, pool] : snapshot.pools) {
      for (const auto& endpoint : pool->endpoints) endpoint.picks->Clear(number);
    }
    free_targets_.push_back(number);
  }
  returned_targets_.clear();
}

// Manifests and model servers come and go: what they name now is kept, what they named before may idle.
void RouterMetrics::Sort(const fleet::Snapshot& snapshot) {
  std::set<std::string> known{""};
  const auto add = [&known](std::string_view name) { known.insert(base::LabelText(name)); };
  for (const auto& [key, pool] : snapshot.pools) {
    for (const auto& [name, model] : pool->models) {
      add(name);
      for (const auto& target : model.targets) add(target.name);
    }
    for (const auto& [name, id] : pool->adapters) add(name);
    for (const auto& name : *pool->served) add(name);
    if (pool->policies == nullptr) continue;
    for (const auto& [name, number] : pool->policies->by_model) add(name);
    for (const auto& rewrite : pool->policies->rewrites) {
      for (const auto& target : rewrite.targets) add(target.name);
    }
  }
  for (auto& [key, record] : records_) {
    const RequestLabels l = record.series->labels();
    const Kind kind =
        KindOf(l, known.contains(record.series->texts[0]) && known.contains(record.series->texts[1]));
    page_bytes_[record.kind].fetch_sub(record.page_bytes, std::memory_order_relaxed);
    page_bytes_[kind].fetch_add(record.page_bytes, std::memory_order_relaxed);
    record.kind = kind;
  }
}

}  // namespace fairway::routing
