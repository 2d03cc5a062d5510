#include "routing/decision_html.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "base/strings.h"

namespace fairway::routing {
namespace {

using Explanation = scheduling::Explanation;

constexpr size_t kRows = 200;  // candidates

std::string Escaped(std::string_view text) {
  std::string out;
  for (const char c : base::CleanText(text, 512)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

// For a link's query.
std::string PercentEncoded(std::string_view text) {
  constexpr std::string_view kHex = "0123456789ABCDEF";
  constexpr std::string_view kPlain = "-._~";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       kPlain.find(c) != std::string_view::npos;
    if (plain) {
      out += c;
    } else {
      out.append("%").append(1, kHex[byte >> 4]).append(1, kHex[byte & 15]);
    }
  }
  return out;
}

std::string Format(const char* format, double value) {
  std::array<char, 48> out{};
  std::snprintf(out.data(), out.size(), format, value);
  return out.data();
}

// Tags around escaped text.
void Cell(std::string& out, std::string_view text, std::string_view tag = "td") {
  out.append("<")
      .append(tag)
      .append(">")
      .append(Escaped(text))
      .append("</")
      .append(tag.substr(0, tag.find(' ')))
      .append(">");
}

// A number with a bar as long as its part of the greatest.
void Bar(std::string& out, double value, double greatest, const std::string& text) {
  const double part = greatest > 0 ? std::clamp(value / greatest, 0.0, 1.0) : 0;
  out += "<td class=n><span class=bar style=\"width:" + Format("%.0f", part * 60) + "px\"></span>" +
         Escaped(text) + "</td>";
}

void Row(std::string& out, std::string_view name, std::string_view value) {
  if (value.empty()) return;
  out += "<tr>";
  Cell(out, name, "th");
  Cell(out, value);
  out += "</tr>\n";
}

std::string OutcomeOf(const Decision& d, const scheduling::Outcome& outcome) {
  if (outcome.kind == scheduling::OutcomeKind::kShed) return "shed";
  if (outcome.kind == scheduling::OutcomeKind::kNoCandidates) return "no endpoint";
  std::string out = "picked " + d.Name(outcome.choices[0]);
  for (uint32_t i = 1; i < outcome.num_choices; ++i)
    out += (i == 1 ? ", then " : ", ") + d.Name(outcome.choices[i]);
  return out;
}

void AddFacts(const Told& told, base::Nanos now, std::string& out) {
  const Decision& d = told.decision;
  const auto& facts = d.seen.facts;
  out += "<table class=facts>\n";
  Row(out, "pool", d.pool);
  Row(out, "model", d.model == d.target_model ? d.model : d.model + " -> " + d.target_model);
  Row(out, "rewrite", d.rewrite);
  Row(out, "objective", d.objective.empty() ? "" : d.objective + ", priority " + d.priority);
  Row(out, "may be shed", facts.critical ? "no" : "yes");
  Row(out, "prompt", std::to_string(facts.prompt_tokens) + " tokens, estimated");
  Row(out, "outcome", OutcomeOf(d, d.seen.outcome));
  if (d.seen.outcome.num_choices > 0)
    Row(out, "place held for",
        std::to_string(d.held_tokens()) + " prompt tokens, " + std::to_string(d.seen.outcome.cached_tokens) +
            " more are cached");
  Row(out, "signals", scheduling::ToString(d.seen.outcome.rung));
  Row(out, "no candidate", RefusingOf(d));
  Row(out, "took", Format("%.1f us", static_cast<double>(d.took) / 1e3));
  Row(out, "age", Format("%.1f s", base::ToSeconds(now - d.at)));
  for (uint32_t i = 0; i < d.seen.outcome.num_further; ++i) {
    const auto& further = d.seen.outcome.further[i];
    Row(out, "place for another part", d.Name(further.endpoint) + " (" + std::string(further.header) + ")");
  }
  if (d.shadow) {
    Row(out, "shadow",
        (d.shadow->agrees() ? std::string("the same") : OutcomeOf(d, d.shadow->outcome)) +
            Format(", %.0f ms until the first token", d.shadow->wait) +
            Format(" against %.0f ms", d.shadow->live_wait));
  }
  out += "</table>\n";
}

// What each profile says of an endpoint: chosen, next, dropped and why.
std::string Verdict(const Told& told, size_t profile, uint32_t endpoint) {
  const Explanation::Ran& ran = told.explanation.profiles[profile];
  const auto at = std::find(ran.choices.begin(), ran.choices.end(), endpoint);
  if (at == ran.choices.begin() && at != ran.choices.end()) return "picked";
  std::string out = at == ran.choices.end() ? "" : "choice " + std::to_string(at - ran.choices.begin() + 1);
  for (const Explanation::Step& step : told.explanation.steps) {
    if (step.profile != profile || step.failed) continue;
    for (const Explanation::Drop& drop : step.drops) {
      if (drop.endpoint == endpoint) out += (out.empty() ? "" : "; ") + step.name + ": " + drop.why;
    }
  }
  return out;
}

void AddCandidates(const Told& told, std::string& out) {
  const Explanation& e = told.explanation;
  double work = 0;
  double requests = 0;
  for (const auto& c : e.candidates) {
    work = std::max<double>(work, c.work + c.prefill);
    requests = std::max<double>(requests, c.own + c.others);
  }
  out += "<h3>What was seen</h3>\n<table>\n<tr>";
  for (const char* head : {"endpoint", "address", "own", "others", "open", "queue", "on its page", "running",
                           "KV use", "work ahead + own prompt", "adapter", "scraped"})
    Cell(out, head, "th");
  for (const Explanation::Made& made : e.columns) Cell(out, made.name, "th");
  out += "</tr>\n";
  const std::vector<size_t> shown = Shown(told, kRows);
  const auto& outcome = told.decision.seen.outcome;
  for (const size_t i : shown) {
    const Explanation::Candidate& c = e.candidates[i];
    const bool won = outcome.num_choices > 0 && outcome.choices[0] == c.endpoint;
    out += won ? "<tr class=won>" : "<tr>";
    Cell(out, told.decision.Name(c.endpoint));
    Cell(out, told.decision.Address(c.endpoint));
    for (const float v : {c.own, c.others}) Cell(out, Format("%.4g", v), "td class=n");
    Bar(out, c.own + c.others, requests, Format("%.4g", c.own + c.others));
    for (const float v : {c.queue, c.page_queue, c.running}) Cell(out, Format("%.4g", v), "td class=n");
    Bar(out, c.kv_usage, 1, Format("%.0f %%", c.kv_usage * 100));
    Bar(out, c.work + c.prefill, work, Format("%.0f", c.work) + Format(" + %.0f ms", c.prefill));
    Cell(out, c.adapter);
    Cell(out,
         c.scraped ? Format("%.0f ms", static_cast<double>(c.age) / 1e6) + (c.fresh ? "" : " (stale)")
                   : "never",
         c.fresh ? "td class=n" : "td class=stale");
    for (const Explanation::Made& made : e.columns) Cell(out, Short(made.values[i]), "td class=n");
    out += "</tr>\n";
  }
  out += "</table>\n";
  if (shown.size() < e.candidates.size())
    out += "<p>... and " + std::to_string(e.candidates.size() - shown.size()) + " more</p>\n";
}

void AddFilters(const Told& told, size_t profile, std::string& out) {
  out += "<ol>\n";
  for (const Explanation::Step& step : told.explanation.steps) {
    if (step.profile != profile || !step.scores.empty()) continue;
    out += "<li><b>" + Escaped(step.name) + "</b>: ";
    if (step.failed) {
      out += "kept none of " + std::to_string(step.in);
    } else {
      out += std::to_string(step.in) + " &rarr; " + std::to_string(step.out);
    }
    out += "</li>\n";
  }
  out += "</ol>\n";
}

void AddScores(const Told& told, size_t profile, std::string& out) {
  const Explanation& e = told.explanation;
  const Explanation::Ran& ran = e.profiles[profile];
  std::vector<std::pair<const Explanation::Step*, std::vector<std::optional<float>>>> scorers;
  for (const Explanation::Step& step : e.steps) {
    if (step.profile != profile || step.scores.empty()) continue;
    auto& scores =
        scorers.emplace_back(&step, std::vector<std::optional<float>>(told.decision.names->names.size()))
            .second;
    for (const auto& [endpoint, score] : step.scores) scores[endpoint] = score;
  }
  float greatest = 0;
  for (const auto& total : ran.totals) greatest = std::max(greatest, total.value_or(0));
  out += "<table>\n<tr>";
  Cell(out, "endpoint", "th");
  for (const auto& [step, scores] : scorers)
    Cell(out, step->name + " x " + Format("%.3g", step->weight), "th");
  Cell(out, "total", "th");
  Cell(out, "what became of it", "th");
  out += "</tr>\n";
  for (const size_t i : Shown(told, kRows)) {
    const uint32_t endpoint = e.candidates[i].endpoint;
    const bool won = !ran.choices.empty() && ran.choices[0] == endpoint;
    out += won ? "<tr class=won>" : ran.totals[i] ? "<tr>" : "<tr class=dropped>";
    Cell(out, told.decision.Name(endpoint));
    for (const auto& [step, scores] : scorers) {
      const auto& score = scores[endpoint];
      if (!score) {
        out += "<td></td>";
      } else {
        Bar(out, *score, 1, Format("%.6g", *score) + " = " + Format("%.6g", *score * step->weight));
      }
    }
    ran.totals[i] ? Bar(out, *ran.totals[i], greatest, Format("%.6g", *ran.totals[i]))
                  : void(out += "<td></td>");
    Cell(out, Verdict(told, profile, endpoint));
    out += "</tr>\n";
  }
  out += "</table>\n";
}

}  // namespace

std::string HtmlHead(std::string_view title) {
  return "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8>\n"
         "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
         "'unsafe-inline'\">\n"
         "<meta name=viewport content=\"width=device-width\">\n<title>" +
         Escaped(title) +
         "</title>\n<style>\n"
         "body{font:14px/1.4 sans-serif;margin:1.5em;color:#222;background:#fff}\n"
         "table{border-collapse:collapse;margin:.5em 0}\n"
         "td,th{padding:2px 8px;border-bottom:1px solid "
         "#ddd;text-align:left;vertical-align:top;font-weight:normal}\n"
         "th{color:#666}\n.facts "
         "th{width:10em}\n.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}\n"
         ".bar{display:inline-block;height:.7em;margin-right:6px;background:#7aa6d8}\n"
         ".won{background:#e5f4e3}\n.won "
         ".bar{background:#4f9d4a}\n.dropped{color:#999}\n.stale{color:#b35900}\n"
         ".why{font-size:16px;padding:.6em .8em;background:#f3f3f3;border-left:4px solid #4f9d4a}\n"
         "</style></head><body>\n<h1>" +
         Escaped(title) + "</h1>\n";
}

std::string HtmlTail() { return "</body></html>\n"; }

std::string HtmlListHead() {
  return "<table>\n<tr><th>age</th><th>request</th><th>model</th><th>pool</th><th>outcome</th><th>shadow</"
         "th></tr>\n";
}

std::string HtmlListTail() { return "</table>\n"; }

std::string HtmlRow(const Decision& d, base::Nanos now) {
  std::string out = "<tr>";
  Cell(out, Format("%.1f s", base::ToSeconds(now - d.at)), "td class=n");
  if (d.request_id.empty()) {
    Cell(out, "-");
  } else {
    out += "<td><a href=\"?format=html&amp;request-id=" + PercentEncoded(d.request_id) + "\">" +
           Escaped(d.request_id) + "</a></td>";
  }
  Cell(out, d.model);
  Cell(out, d.pool);
  Cell(out, OutcomeOf(d, d.seen.outcome));
  Cell(out, !d.shadow ? "" : d.shadow->agrees() ? "the same" : OutcomeOf(d, d.shadow->outcome));
  return out + "</tr>\n";
}

std::string ToHtml(const Told& told, base::Nanos now) {
  const Decision& d = told.decision;
  const Explanation& e = told.explanation;
  std::string out = "<h2>request " + Escaped(d.request_id.empty() ? "-" : d.request_id) + "</h2>\n";
  out += "<p class=why>" + Escaped(Why(told)) + ".</p>\n";
  AddFacts(told, now, out);
  if (e.candidates.empty()) return out;
  for (size_t i = 0; i < e.profiles.size(); ++i) {
    out += "<h3>Profile " + Escaped(e.profiles[i].profile) +
           (e.profiles.size() > 1 && i == e.primary ? " (answers)" : "") + "</h3>\n";
    if (e.profiles.size() > 1) out += "<p>" + Escaped(WhyOf(told, e.profiles[i])) + ".</p>\n";
    AddFilters(told, i, out);
    AddScores(told, i, out);
  }
  AddCandidates(told, out);
  return out;
}

}  // namespace fairway::routing
