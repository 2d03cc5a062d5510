#include "routing/decision.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace fairway::routing {

std::string Short(double value) {
  if (std::isnan(value)) return "unknown";
  std::array<char, 48> out{};
  std::snprintf(out.data(), out.size(), "%.6g", value);
  return out.data();
}

namespace {

using Explanation = scheduling::Explanation;

// What is cached of the prompt saved the winner more than it has to do beforehand, compared with the other.
bool CachedDecided(const scheduling::Recording& seen, size_t winner, size_t other) {
  const float* cached = seen.FindColumn(scheduling::kCachedTokens);
  const float* prefill = seen.FindColumn("prefill");
  const float* work = seen.FindColumn("work");
  if (cached == nullptr || cached[winner] <= cached[other]) return false;
  if (prefill == nullptr || work == nullptr || seen.facts.prompt_tokens == 0) return true;
  const auto saved = [&](size_t i) {  // ms
    return prefill[i] * cached[i] / static_cast<float>(seen.facts.prompt_tokens);
  };
  return saved(winner) - saved(other) > work[other] - work[winner];
}

// "work 80 against 980, prefill 12 against 30": what the deciding plugin reads.
std::string Compared(const Told& told, const std::string& plugin, uint32_t winner, uint32_t other) {
  const scheduling::Recording& seen = told.decision.seen;
  const auto at = [&seen](uint32_t endpoint) {
    return std::find(seen.endpoint.begin(), seen.endpoint.end(), endpoint) - seen.endpoint.begin();
  };
  const auto step = std::find_if(told.explanation.steps.begin(), told.explanation.steps.end(),
                                 [&](const auto& candidate) { return candidate.name == plugin; });
  if (step == told.explanation.steps.end()) return "";
  std::vector<std::string> columns = step->reads;
  if (CachedDecided(seen, static_cast<size_t>(at(winner)), static_cast<size_t>(at(other))))
    std::stable_partition(columns.begin(), columns.end(),
                          [](const std::string& column) { return column == scheduling::kCachedTokens; });
  std::string out;
  for (const std::string& column : columns) {
    const float* values = seen.FindColumn(column);
    if (values == nullptr || values[at(winner)] == values[at(other)]) continue;
    if (std::isnan(values[at(winner)]) && std::isnan(values[at(other)])) continue;
    out += (out.empty() ? "" : ", ") + column + " " + Short(values[at(winner)]) + " against " +
           Short(values[at(other)]);
  }
  return out;
}

std::string Margin(const Told& told, uint32_t winner, const Explanation::RunnerUp& other) {
  const std::string& name = told.decision.Name(other.endpoint);
  if (other.margin == 0) return name + " scored the same: drawn at random among equals";
  if (other.margin < 0)
    return name + " scored " + Short(-other.margin) + " more: the picker draws among those that are so close";
  std::string out =
      name + " was next: its total would have had to be more than " + Short(other.margin) + " higher";
  if (other.decided_by.empty()) return out;
  out += "; " + other.decided_by + " decided";
  if (other.needed)
    out += " (it gave " + Short(other.score.value_or(0)) + ", more than " + Short(*other.needed) +
           " would have done)";
  if (const std::string compared = Compared(told, other.decided_by, winner, other.endpoint);
      !compared.empty())
    out += ": " + compared;
  return out;
}

// The filter that kept nobody last.
std::string ShedBy(const Told& told, size_t profile) {
  for (auto step = told.explanation.steps.rbegin(); step != told.explanation.steps.rend(); ++step) {
    if (step->profile == profile && step->failed)
      return " (" + step->name + " kept none of " + std::to_string(step->in) + ")";
  }
  return "";
}

}  // namespace

std::shared_ptr<const EndpointNames> EndpointNames::Of(const fleet::PoolSnapshot& pool) {
  auto made = std::make_shared<EndpointNames>();
  made->content = pool.content->number;
  made->names.reserve(pool.endpoints.size());
  for (const fleet::Endpoint& endpoint : pool.endpoints) {
    made->names.push_back({endpoint.name, endpoint.address});
    made->bytes += sizeof(Name) + endpoint.name.size() + endpoint.address.size();
  }
  return made;
}

std::string_view ToString(ShadowOutcome outcome) {
  switch (outcome) {
    case ShadowOutcome::kAgreed:
      return "agreed";
    case ShadowOutcome::kOtherEndpoint:
      return "other-endpoint";
    case ShadowOutcome::kOnlyLiveSheds:
      return "only-live-sheds";
    case ShadowOutcome::kOnlyShadowSheds:
      return "only-shadow-sheds";
    case ShadowOutcome::kNotCompared:
      break;
  }
  return "not-compared";
}

ShadowOutcome ShadowChoice::Compare() const {
  if (outcome.num_choices == 0 && live.num_choices == 0) return ShadowOutcome::kAgreed;
  if (live.num_choices == 0) return ShadowOutcome::kOnlyLiveSheds;
  if (outcome.num_choices == 0) return ShadowOutcome::kOnlyShadowSheds;
  return outcome.choices[0] == live.choices[0] ? ShadowOutcome::kAgreed : ShadowOutcome::kOtherEndpoint;
}

size_t Decision::bytes() const {
  size_t sum = sizeof *this;
  for (const std::string* text : {&request_id, &pool, &model, &target_model, &rewrite, &objective, &priority})
    sum += text->capacity();
  for (const auto* numbers :
       {&seen.endpoint, &seen.own, &seen.fresh, &seen.page_age, &seen.refusing, &seen.refusing_age})
    sum += numbers->capacity() * sizeof(uint32_t);
  for (const auto& [name, value] : seen.facts.headers)
    sum += 2 * sizeof(std::string) + name.size() + value.size();
  return sum + seen.values.capacity() * sizeof(float);
}

Told Explain(const Decision& decision, scheduling::Scratch& scratch, scheduling::Explanation& explanation) {
  explanation = {};
  Told told{decision, explanation};
  const scheduling::Recording& seen = decision.seen;
  if (!seen.has_picture || seen.config == nullptr) return told;
  const auto again =
      scheduling::DecideAgain(seen, *seen.config, {.options = decision.options}, scratch, &explanation);
  told.reproduced = scheduling::SameChoices(again, seen.outcome);
  return told;
}

std::string RefusingOf(const Decision& decision) {
  const scheduling::Recording& seen = decision.seen;
  std::string out;
  for (size_t i = 0; i < seen.refusing.size(); ++i) {
    const uint32_t age = seen.refusing_age[i];
    out += (out.empty() ? "" : ", ") + decision.NameAndAddress(seen.refusing[i]) +
           " refuses connections or answers 503 (" +
           (age == scheduling::kNoPage ? "never scraped"
                                       : "last page " + Short((age - age % 100) / 1000.0) + " s ago") +
           ")";
  }
  return out;
}

std::string WhyOf(const Told& told, const Explanation::Ran& ran) {
  const auto number = static_cast<size_t>(&ran - told.explanation.profiles.data());
  if (ran.shed)
    return std::string(scheduling::ShedText(told.decision.seen.facts.critical)) + ShedBy(told, number);
  if (ran.choices.empty()) return "it chose nobody";
  const uint32_t winner = ran.choices[0];
  const std::string& name = told.decision.Name(winner);
  if (ran.rung == scheduling::Rung::kPowerOfTwo) {
    if (ran.choices.size() == 1) return name + " was the only candidate, and nobody was scraped for long";
    return "nobody was scraped for long: two were drawn at random, and " + name + " has less to do than " +
           told.decision.Name(ran.choices[1]);
  }
  if (ran.rung == scheduling::Rung::kAnyReady)
    return "the profile gave nobody: " + name + " was drawn at random";
  if (!ran.runner_up) return name + " was the only candidate";
  const Explanation::RunnerUp& other = *ran.runner_up;
  if (!other.dropped.empty()) {
    return name + " alone was left: " + other.decided_by + " had dropped " +
           told.decision.Name(other.endpoint) + " (" + other.dropped + ")";
  }
  return name + " won; " + Margin(told, winner, other);
}

std::string Why(const Told& told) {
  if (told.decision.seen.outcome.kind == scheduling::OutcomeKind::kNoCandidates) return "no endpoint";
  const Explanation& explanation = told.explanation;
  using scheduling::Refusal;
  const Refusal refusal = told.decision.seen.outcome.refusal;
  if (told.decision.seen.outcome.kind == scheduling::OutcomeKind::kShed && !explanation.verdict.empty() &&
      (refusal == Refusal::kAdmitter || refusal == Refusal::kNotCached))
    return explanation.verdict;
  if (explanation.primary >= explanation.profiles.size())
    return explanation.candidates.empty() ? "not recorded: too many candidates" : "no profile answered";
  if (!told.reproduced) return "asked again it was decided otherwise: a plugin has a memory of its own";
  return WhyOf(told, explanation.profiles[explanation.primary]);
}

std::vector<size_t> Shown(const Told& told, size_t most) {
  const auto& candidates = told.explanation.candidates;
  std::vector<size_t> shown;
  if (candidates.size() <= most) {
    for (size_t i = 0; i < candidates.size(); ++i) shown.push_back(i);
    return shown;
  }
  std::vector<bool> wanted(candidates.size());
  size_t count = 0;
  const auto want = [&](uint32_t endpoint) {
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (candidates[i].endpoint != endpoint || wanted[i]) continue;
      wanted[i] = true;
      ++count;
    }
  };
  for (const Explanation::Ran& ran : told.explanation.profiles) {
    if (count >= most) break;
    for (const uint32_t endpoint : ran.choices) want(endpoint);
    if (ran.runner_up) want(ran.runner_up->endpoint);
  }
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (!wanted[i] && count >= most) continue;
    count += wanted[i] ? 0 : 1;
    shown.push_back(i);
  }
  return shown;
}

}  // namespace fairway::routing
