#include "routing/decision_json.h"

#include <algorithm>
#include <cmath>
#include <string_view>

namespace fairway::routing {
namespace {

using base::JsonWriter;
using Explanation = scheduling::Explanation;

constexpr size_t kMaxText = Decision::kMaxText;

std::string_view Name(scheduling::OutcomeKind kind) {
  switch (kind) {
    case scheduling::OutcomeKind::kPicked:
      return "picked";
    case scheduling::OutcomeKind::kShed:
      return "shed";
    case scheduling::OutcomeKind::kNoCandidates:
      break;
  }
  return "no endpoint";
}

void WriteChoices(const Decision& d, const scheduling::Outcome& outcome, std::string_view key,
                  JsonWriter& json) {
  json.Key(key).BeginList();
  for (uint32_t i = 0; i < outcome.num_choices; ++i) json.Value(d.Address(outcome.choices[i]));
  json.EndList();
}

// What was asked and what came of it.
void WriteFacts(const Decision& d, JsonWriter& json) {
  json.TextMember("requestId", d.request_id, kMaxText).Member("pool", d.pool);
  json.TextMember("model", d.model, kMaxText).TextMember("targetModel", d.target_model, kMaxText);
  json.TextMember("rewrite", d.rewrite, kMaxText).TextMember("objective", d.objective, kMaxText);
  json.Key("priority").Raw(d.priority.empty() ? "0" : d.priority);
  json.Member("mayBeShed", !d.seen.facts.critical).Member("outcome", Name(d.seen.outcome.kind));
  WriteChoices(d, d.seen.outcome, "endpoints", json);
  json.Member("signals", scheduling::ToString(d.seen.outcome.rung));
  if (d.declared) json.Member("declared", true);
  if (!d.built_in) json.Member("config", "its own");
  const scheduling::Outcome& outcome = d.seen.outcome;
  if (outcome.kind == scheduling::OutcomeKind::kShed) {
    json.Member("refusal", scheduling::ToString(outcome.refusal));
    if (!outcome.refused_by.empty()) json.Member("refusedBy", outcome.refused_by);
  }
  if (outcome.num_choices > 0)
    json.Member("heldTokens", d.held_tokens()).Member("cachedTokens", outcome.cached_tokens);
  if (outcome.num_further == 0) return;
  json.Key("further").BeginList();
  for (uint32_t i = 0; i < outcome.num_further; ++i) {
    json.BeginObject().Member("header", outcome.further[i].header);
    json.Member("endpoint", d.Address(outcome.further[i].endpoint)).EndObject();
  }
  json.EndList();
}

void WriteCandidate(const Told& told, size_t i, JsonWriter& json) {
  const Explanation::Candidate& c = told.explanation.candidates[i];
  json.BeginObject();
  json.Member("name", told.decision.Name(c.endpoint)).Member("address", told.decision.Address(c.endpoint));
  json.Member("own", c.own).Member("others", c.others).Member("queue", c.queue);
  json.Member("pageQueue", c.page_queue).Member("running", c.running).Member("kvUsage", c.kv_usage);
  json.Member("workMs", c.work).Member("prefillMs", c.prefill).Member("adapter", c.adapter);
  if (!told.explanation.columns.empty()) {
    json.Key("columns").BeginObject();
    for (const Explanation::Made& made : told.explanation.columns) json.Member(made.name, made.values[i]);
    json.EndObject();
  }
  json.Member("fresh", c.fresh).Key("scrapeAgeMs");
  c.scraped ? json.Value(static_cast<double>(c.age) / base::kMillisecond) : json.Null();
  json.Member("score", c.score).EndObject();
}

void WriteStep(const Told& told, const Explanation::Step& step, const std::vector<bool>& shown,
               JsonWriter& json) {
  json.BeginObject();
  json.Member("name", step.name).Member("profile", told.explanation.profiles[step.profile].profile);
  json.Member("in", step.in);
  if (!step.scores.empty()) {
    // By address: names of different namespaces may be the same.
    json.Member("weight", step.weight).Key("scores").BeginObject();
    for (const auto& [endpoint, score] : step.scores) {
      if (shown[endpoint]) json.Member(told.decision.Address(endpoint), score);
    }
    json.EndObject().Key("weighted").BeginObject();
    for (const auto& [endpoint, score] : step.scores) {
      if (shown[endpoint]) json.Member(told.decision.Address(endpoint), score * step.weight);
    }
    json.EndObject().EndObject();
    return;
  }
  json.Member("out", step.out);
  if (step.failed) json.Member("failed", true);
  json.Key("dropped").BeginList();
  for (size_t i = 0; i < std::min(step.drops.size(), kMaxListed); ++i) {
    json.BeginObject().Member("address", told.decision.Address(step.drops[i].endpoint));
    json.Member("why", step.drops[i].why).EndObject();
  }
  json.EndList().EndObject();
}

void WriteProfile(const Told& told, const Explanation::Ran& ran, JsonWriter& json) {
  const Decision& d = told.decision;
  json.BeginObject();
  json.Member("name", ran.profile).Member("picker", ran.picker).Member("shed", ran.shed);
  json.Key("endpoints").BeginList();
  for (const uint32_t endpoint : ran.choices) json.Value(d.Address(endpoint));
  json.EndList().Member("why", WhyOf(told, ran));
  if (ran.runner_up) {
    const Explanation::RunnerUp& other = *ran.runner_up;
    json.Key("runnerUp").BeginObject();
    json.Member("address", d.Address(other.endpoint)).Member("decidedBy", other.decided_by);
    if (!other.dropped.empty()) json.Member("dropped", other.dropped);
    if (other.dropped.empty()) json.Member("margin", other.margin);
    if (other.score) json.Member("score", *other.score);
    if (other.needed) json.Member("needed", *other.needed);
    json.EndObject();
  }
  json.EndObject();
}

void WriteShadow(const Decision& d, JsonWriter& json) {
  const ShadowChoice& shadow = *d.shadow;
  json.Key("shadow").BeginObject().Member("agrees", shadow.agrees());
  json.Member("outcome", Name(shadow.outcome.kind));
  WriteChoices(d, shadow.outcome, "endpoints", json);
  json.Member("waitMs", shadow.wait).Member("liveWaitMs", shadow.live_wait).EndObject();
}

}  // namespace

void WriteReasons(const Told& told, JsonWriter& json) {
  const Decision& d = told.decision;
  const Explanation& e = told.explanation;
  WriteFacts(d, json);
  json.Member("profile", e.profile).Member("why", Why(told));
  if (!told.reproduced) json.Member("reproduced", false);
  json.Member("tookUs", static_cast<double>(d.took) / base::kMicrosecond);
  if (d.shadow) WriteShadow(d, json);
  json.Member("numCandidates", d.seen.num_candidates);
  const std::vector<size_t> list = Shown(told, kMaxListed);
  std::vector<bool> shown(d.names->names.size());  // by endpoint
  for (const size_t i : list) shown[e.candidates[i].endpoint] = true;
  json.Key("candidates").BeginList();
  for (const size_t i : list) WriteCandidate(told, i, json);
  json.EndList().Key("profiles").BeginList();
  for (const Explanation::Ran& ran : e.profiles) WriteProfile(told, ran, json);
  json.EndList().Key("steps").BeginList();
  for (const Explanation::Step& step : e.steps) WriteStep(told, step, shown, json);
  json.EndList();
}

void WritePrefixes(const Told& told, JsonWriter& json) {
  const Decision& d = told.decision;
  const auto column = [&](std::string_view name) -> const std::vector<float>* {
    for (const Explanation::Made& made : told.explanation.columns) {
      if (made.name == name) return &made.values;
    }
    return nullptr;
  };
  const auto* cached = column(scheduling::kCachedTokens);
  const auto* likely = column(scheduling::kLikelyCachedTokens);
  const uint32_t prompt = d.seen.facts.prompt_tokens;
  constexpr double kBlockTokens = payload::PromptHasher::kBlockBytes / 4.0;
  json.TextMember("requestId", d.request_id, kMaxText).Member("pool", d.pool);
  json.TextMember("targetModel", d.target_model, kMaxText).Member("promptTokens", prompt);
  WriteChoices(d, d.seen.outcome, "chosen", json);
  json.Key("endpoints").BeginList();
  for (const size_t i : Shown(told, kMaxListed)) {
    const Explanation::Candidate& c = told.explanation.candidates[i];
    const double tokens = cached != nullptr ? (*cached)[i] : 0;
    json.BeginObject().Member("name", d.Name(c.endpoint)).Member("address", d.Address(c.endpoint));
    json.Member("blocks", std::ceil(tokens / kBlockTokens)).Member("cachedTokens", tokens);
    json.Member("uncachedTokens", prompt - tokens);
    // What other pickers are guessed to have sent there counts, too.
    if (likely != nullptr) json.Member("likelyCachedTokens", (*likely)[i]);
    json.Member("workMs", c.work).Member("promptMs", c.prefill).EndObject();
  }
  json.EndList();
}

namespace {

void WriteRequest(const Decision& d, JsonWriter& json) {
  const scheduling::Facts& facts = d.seen.facts;
  json.Key("request").BeginObject();
  json.TextMember("targetModel", facts.target_model, scheduling::Recording::kMaxText);
  json.Key("adapter");
  facts.adapter == fleet::kNoAdapter ? json.Null() : json.Value(facts.adapter);
  json.Member("critical", facts.critical).Member("promptTokens", facts.prompt_tokens);
  json.Member("showsFirstToken", facts.shows_first_token).Member("showsEnd", facts.shows_end);
  json.Member("priority", facts.priority);
  json.Member("streaming", facts.streaming).Member("hasMedia", facts.has_media);
  if (facts.only_if_cached) json.Member("onlyIfCached", true);
  json.Member("maxTokens", facts.max_tokens);
  json.Key("headers").BeginObject();
  for (const auto& [name, value] : facts.headers) {
    if (!value.empty()) json.TextMember(name, value, scheduling::Recording::kMaxText);
  }
  json.EndObject().EndObject();
}

template <typename Values>
void WriteList(std::string_view key, const Values& values, JsonWriter& json) {
  json.Key(key).BeginList();
  for (const auto value : values) json.Value(value);
  json.EndList();
}

}  // namespace

void WriteOptions(const scheduling::SchedulerOptions& options, JsonWriter& json) {
  json.BeginObject().Member("profile", scheduling::ToString(options.profile));
  EachNumber(options, [&json](std::string_view name, auto value) { json.Member(name, value); });
  json.EndObject();
}

void WritePicture(const Decision& d, JsonWriter& json, bool with_options) {
  const scheduling::Recording& seen = d.seen;
  if (!seen.has_picture) return;
  json.Key("picture").BeginObject();
  WriteRequest(d, json);
  json.Key("generator").BeginList();
  for (const uint64_t word : seen.random.state())
    json.Value(std::to_string(word));  // more than a double holds
  json.EndList();
  json.Member("criticalTraffic", seen.critical_traffic).Member("withModels", seen.with_models);
  json.Member("adapters", seen.adapters).Member("numFresh", seen.num_fresh);
  json.Member("silenceNs", std::to_string(seen.silence)).Member("nowNs", std::to_string(seen.now));
  if (!seen.asks_admitters) json.Member("asksAdmitters", false);
  if (with_options) {
    json.Key("options");
    WriteOptions(d.options, json);
  }
  json.Key("endpoints").BeginList();
  for (const uint32_t endpoint : seen.endpoint) {
    json.BeginObject().Member("name", d.Name(endpoint)).Member("address", d.Address(endpoint)).EndObject();
  }
  json.EndList();
  WriteList("own", seen.own, json);
  json.Key("fresh").BeginList();
  for (const uint32_t fresh : seen.fresh) json.Value(fresh != 0);
  json.EndList().Key("pageAgeMs").BeginList();
  for (const uint32_t age : seen.page_age) age == scheduling::kNoPage ? json.Null() : json.Value(age);
  json.EndList();
  if (!seen.refusing.empty()) {
    json.Key("refusing").BeginList();
    for (size_t i = 0; i < seen.refusing.size(); ++i) {
      const uint32_t age = seen.refusing_age[i];
      json.BeginObject()
          .Member("name", d.Name(seen.refusing[i]))
          .Member("address", d.Address(seen.refusing[i]));
      json.Key("pageAgeMs");
      age == scheduling::kNoPage ? json.Null() : json.Value(age);
      json.EndObject();
    }
    json.EndList();
  }
  json.Key("columns").BeginObject();
  for (size_t id = 0; id < seen.num_columns; ++id)
    WriteList(seen.ColumnName(id), std::span(seen.column(id), seen.size()), json);
  json.EndObject().EndObject();
}

std::string RecordLine(const Decision& d) {
  std::string line;
  JsonWriter json(line);
  json.BeginObject();
  WriteFacts(d, json);
  WritePicture(d, json, false);
  json.EndObject();
  return line + "\n";
}

std::string RecordHeader(const scheduling::SchedulerOptions& options) {
  std::string line;
  JsonWriter json(line);
  json.BeginObject().Member("fairway", "decisions").Member("version", FAIRWAY_VERSION);
  json.Key("options");
  WriteOptions(options, json);
  json.EndObject();
  return line + "\n";
}

}  // namespace fairway::routing
