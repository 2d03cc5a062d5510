#include "routing/explain.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "base/strings.h"

namespace fairway::routing {
namespace {

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

}  // namespace

std::string Explain(const ExplainedRequest& request, const fleet::PoolSnapshot& pool,
                    const scheduling::Outcome& outcome, const scheduling::Explanation& explanation) {
  const auto name = [&pool](uint32_t number) -> const std::string& { return pool.endpoints[number].name; };
  std::string out;
  out += "request " + (request.request_id.empty() ? "-" : Printable(request.request_id));
  if (!request.model.empty()) out += " model " + Printable(request.model);
  if (request.target_model != request.model) out += " -> " + Printable(request.target_model);
  if (!request.rewrite.empty()) out += " (rewrite " + std::string(request.rewrite) + ")";
  if (!request.objective.empty()) {
    out +=
        " (objective " + std::string(request.objective) + ", priority " + std::string(request.priority) + ")";
  } else if (request.declared) {
    out += request.critical ? " (critical)" : " (not critical)";
  }
  out += " pool " + pool.key + ": ";
  if (outcome.kind == scheduling::OutcomeKind::kPicked) {
    const auto& first = pool.endpoints[outcome.choices[0]];
    out += "picked " + first.name + " " + first.address;
    for (uint32_t i = 1; i < outcome.num_choices; ++i)
      out += (i == 1 ? ", then " : ", ") + name(outcome.choices[i]);
    out += " [" + std::string(scheduling::ToString(outcome.rung)) + " signals, " + explanation.profile +
           ", " + Format("%.1f us", static_cast<double>(request.took) / 1000) + "]";
  } else if (outcome.kind == scheduling::OutcomeKind::kShed) {
    out += explanation.verdict;
  } else {
    out += "no endpoint";
  }
  out += '\n';

  size_t width = 10;
  for (const auto& c : explanation.candidates) width = std::max(width, name(c.endpoint).size() + 2);
  if (!explanation.candidates.empty()) {
    out += "  ";
    Pad(out, "candidate", width);
    out += "own  others queue   running KV use  work ahead  own prompt  adapter   scraped    score\n";
  }
  for (size_t i = 0; i < explanation.candidates.size() && i < kShown; ++i) {
    const auto& c = explanation.candidates[i];
    out += "  ";
    Pad(out, name(c.endpoint), width);
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
  if (explanation.candidates.size() > kShown) {
    out += "  ... and " + std::to_string(explanation.candidates.size() - kShown) + " more\n";
  }
  for (const auto& step : explanation.steps) {
    out += "  " + step.name + ": ";
    if (!step.scores.empty()) {
      out += "weight " + Format("%.3g", step.weight) + ":";
      for (size_t i = 0; i < step.scores.size() && i < kShown; ++i) {
        out += " " + name(step.scores[i].first) + " " + Format("%.6g", step.scores[i].second);
      }
      if (step.scores.size() > kShown) out += " ...";
    } else if (step.failed) {
      out += "none of " + std::to_string(step.in) + " passes";
    } else {
      out += std::to_string(step.in) + " -> " + std::to_string(step.out);
    }
    for (size_t i = 0; i < step.drops.size() && i < kShown; ++i) {
      out += (i == 0 ? ": " : "; ") + name(step.drops[i].endpoint) + ": " + step.drops[i].why;
    }
    if (step.drops.size() > kShown) out += "; ...";
    out += '\n';
  }
  return out;
}

}  // namespace fairway::routing
