// A decision in words: candidates, what each filter dropped and why, each score, the choice.
#include <algorithm>
#include <array>
#include <cstdio>

#include "base/strings.h"
#include "routing/decision.h"

namespace fairway::routing {
namespace {

using Explanation = scheduling::Explanation;

// More than this many endpoints in a list say nothing to a reader.
constexpr size_t kShown = 20;

std::string Format(const char* format, double value) {
  std::array<char, 48> out{};
  std::snprintf(out.data(), out.size(), format, value);
  return out.data();
}

void Pad(std::string& out, std::string_view text, size_t width) {
  out += text;
  out.append(width > text.size() ? width - text.size() : 1, ' ');
}

// Client text in a log line.
std::string Printable(std::string_view text) { return base::CleanText(text, 120); }

std::string FirstLine(const Told& told) {
  const Decision& d = told.decision;
  const scheduling::Outcome& outcome = d.seen.outcome;
  const bool critical = d.seen.facts.critical;
  std::string out = d.request_id.empty() ? "a request" : "request " + Printable(d.request_id);
  if (!d.model.empty()) out += " model " + Printable(d.model);
  if (d.target_model != d.model) out += " -> " + Printable(d.target_model);
  if (!d.rewrite.empty()) out += " (rewrite " + d.rewrite + ")";
  if (!d.objective.empty()) {
    out += " (objective " + d.objective + ", priority " + d.priority + ")";
  } else if (d.declared) {
    out += critical ? " (critical)" : " (not critical)";
  }
  out += (d.pool.empty() ? "" : " pool " + d.pool) + ": ";
  if (outcome.kind == scheduling::OutcomeKind::kPicked) {
    out += "picked " + d.NameAndAddress(outcome.choices[0]);
    for (uint32_t i = 1; i < outcome.num_choices; ++i)
      out += (i == 1 ? ", then " : ", ") + d.Name(outcome.choices[i]);
    out += " [" + std::string(scheduling::ToString(outcome.rung)) + " signals, " + told.explanation.profile +
           (d.took == 0 ? "" : ", " + Format("%.1f us", static_cast<double>(d.took) / 1000)) + "]";
  } else if (outcome.kind == scheduling::OutcomeKind::kShed) {
    out += outcome.refusal == scheduling::Refusal::kAdmitter ? "refused by " + std::string(outcome.refused_by)
           : outcome.refusal == scheduling::Refusal::kNotCached
               ? "refused: " + std::string(scheduling::kNothingCached)
               : std::string(scheduling::ShedText(critical));
  } else {
    out += "no endpoint";
  }
  return out + '\n';
}

void AddCandidates(const Told& told, std::string& out) {
  const auto& candidates = told.explanation.candidates;
  if (candidates.empty()) return;
  const std::vector<size_t> shown = Shown(told, kShown);
  size_t width = 10;
  for (const size_t i : shown) width = std::max(width, told.decision.Name(candidates[i].endpoint).size() + 2);
  out += "  ";
  Pad(out, "candidate", width);
  out += "own  others queue   running KV use  work ahead  own prompt  adapter   scraped    score\n";
  for (const size_t i : shown) {
    const Explanation::Candidate& c = candidates[i];
    out += "  ";
    Pad(out, told.decision.Name(c.endpoint), width);
    Pad(out, Format("%.4g", c.own), 5);
    Pad(out, Format("%.4g", c.others), 7);
    Pad(out, Format("%.4g", c.queue), 8);
    Pad(out, Format("%.4g", c.running), 8);
    Pad(out, Format("%.0f %%", c.kv_usage * 100), 8);
    Pad(out, Format("%.0f ms", c.work), 12);
    Pad(out, Format("%.0f ms", c.prefill), 12);
    Pad(out, c.adapter, 10);
    Pad(out,
        c.scraped ? Format("%.0f ms", static_cast<double>(c.age) / 1e6) + (c.fresh ? "" : " (stale)")
                  : "never",
        11);
    out += Format("%.6g", c.score) + "\n";
  }
  if (candidates.size() > shown.size())
    out += "  ... and " + std::to_string(candidates.size() - shown.size()) + " more\n";
  if (const std::string refusing = RefusingOf(told.decision); !refusing.empty())
    out += "  no candidate: " + refusing + "\n";
  for (const Explanation::Made& made : told.explanation.columns) {
    out += "  column " + made.name + ":";
    for (const size_t i : shown)
      out += " " + told.decision.Name(candidates[i].endpoint) + " " + Short(made.values[i]);
    out += candidates.size() > shown.size() ? " ...\n" : "\n";
  }
}

void AddStep(const Told& told, const Explanation::Step& step, std::string_view indent, std::string& out) {
  const auto name = [&told](uint32_t endpoint) { return told.decision.Name(endpoint); };
  out.append(indent).append(step.name).append(": ");
  if (!step.scores.empty()) {
    out += "weight " + Format("%.3g", step.weight) + ":";
    for (size_t i = 0; i < step.scores.size() && i < kShown; ++i)
      out += " " + name(step.scores[i].first) + " " + Format("%.6g", step.scores[i].second);
    if (step.scores.size() > kShown) out += " ...";
  } else if (step.failed) {
    out += "none of " + std::to_string(step.in) + " passes";
  } else {
    out += std::to_string(step.in) + " -> " + std::to_string(step.out);
  }
  for (size_t i = 0; i < step.drops.size() && i < kShown; ++i)
    out += (i == 0 ? ": " : "; ") + name(step.drops[i].endpoint) + ": " + step.drops[i].why;
  if (step.drops.size() > kShown) out += "; ...";
  out += '\n';
}

void AddProfiles(const Told& told, std::string& out) {
  const auto& profiles = told.explanation.profiles;
  for (size_t i = 0; i < profiles.size(); ++i) {
    const bool several = profiles.size() > 1;
    if (several)
      out += "  profile " + profiles[i].profile + (i == told.explanation.primary ? " (answers)\n" : "\n");
    for (const Explanation::Step& step : told.explanation.steps) {
      if (step.profile == i) AddStep(told, step, several ? "    " : "  ", out);
    }
    if (several) out += "    why: " + WhyOf(told, profiles[i]) + '\n';
  }
}

void AddPlaces(const Told& told, std::string& out) {
  const scheduling::Outcome& outcome = told.decision.seen.outcome;
  if (outcome.num_choices > 0) {
    out += "  place at " + told.decision.Name(outcome.choices[0]) + " for " +
           std::to_string(told.decision.held_tokens()) + " prompt tokens";
    out += outcome.cached_tokens > 0 ? ", " + std::to_string(outcome.cached_tokens) + " more are cached\n"
                                     : "\n";
  }
  for (uint32_t i = 0; i < outcome.num_further; ++i) {
    out += "  place at " + told.decision.Name(outcome.further[i].endpoint) + " told in " +
           std::string(outcome.further[i].header) + '\n';
  }
}

}  // namespace

std::string ToText(const Told& told) {
  std::string out = FirstLine(told);
  AddCandidates(told, out);
  AddProfiles(told, out);
  AddPlaces(told, out);
  if (told.decision.seen.outcome.kind != scheduling::OutcomeKind::kNoCandidates)
    out += "  why: " + Why(told) + '\n';
  if (const auto& shadow = told.decision.shadow) {
    out += shadow->agrees() ? "  shadow: the same" : "  shadow: ";
    if (!shadow->agrees())
      out += shadow->outcome.num_choices == 0 ? "shed" : told.decision.Name(shadow->outcome.choices[0]);
    out += Format(", %.0f ms", shadow->wait) + Format(" against %.0f ms\n", shadow->live_wait);
  }
  return out;
}

}  // namespace fairway::routing
