#include "scheduling/tell.h"

#include <algorithm>
#include <string_view>

#include "scheduling/recording.h"

namespace fairway::scheduling {

void TellProfile(const Program& program, const Columns& columns, Explanation& explanation) {
  Explanation::Ran& ran = explanation.profiles.emplace_back();
  ran.profile = program.name;
  ran.totals.resize(columns.size());
}

void TellFilter(const std::string& name, const Filter& filter, const Context& context,
                std::span<const uint32_t> in, std::span<const uint32_t> kept, Explanation& explanation) {
  Explanation::Step& told = explanation.steps.emplace_back();
  told.name = name;
  told.profile = explanation.profiles.size() - 1;
  told.in = in.size();
  told.out = kept.size();
  told.failed = kept.empty();
  // Both lists are in the order of the candidates.
  size_t next = 0;
  for (const uint32_t position : in) {
    if (next < kept.size() && kept[next] == position) {
      ++next;
    } else {
      told.drops.push_back({context.columns.endpoint[position], filter.Why(context, position)});
    }
  }
}

void TellScorer(const std::string& name, float weight, const Columns& columns, std::span<const uint32_t> in,
                const float* score, Explanation& explanation) {
  Explanation::Step& told = explanation.steps.emplace_back();
  told.name = name;
  told.profile = explanation.profiles.size() - 1;
  told.in = told.out = in.size();
  told.weight = weight;
  for (size_t i = 0; i < in.size(); ++i) told.scores.emplace_back(columns.endpoint[in[i]], score[i]);
}

void TellTotals(std::span<const uint32_t> in, const float* total, Explanation& explanation) {
  for (size_t i = 0; i < in.size(); ++i) explanation.profiles.back().totals[in[i]] = total[i];
}

namespace {

std::string_view AdapterWord(unsigned bits) {
  if ((bits & kAdapterRunning) != 0) return "resident";
  if ((bits & kAdapterWaiting) != 0) return "waiting";
  if ((bits & kAdapterResident) != 0) return "believed";
  if ((bits & kAdapterFree) != 0) return "free slot";
  return (bits & kAdapterRoom) != 0 ? "room" : "none";
}

// The columns that its plugins made.
void TellMade(const Config& config, const Columns& columns, Explanation& explanation) {
  for (size_t id = kLiveColumns.size(); id < config.columns.size(); ++id) {
    if (config.columns[id].own) continue;
    const float* values = columns[{static_cast<uint16_t>(id)}];
    explanation.columns.push_back(
        {config.columns[id].name, config.columns[id].unit, {values, values + columns.size()}});
  }
}

std::optional<float> ScoreOf(const Explanation::Step& step, uint32_t endpoint) {
  for (const auto& [scored, score] : step.scores) {
    if (scored == endpoint) return score;
  }
  return std::nullopt;
}

// The best of those that were scored beside the winner. Nothing: it alone was.
std::optional<uint32_t> BestOther(const Explanation::Ran& ran, uint32_t winner) {
  std::optional<uint32_t> best;
  for (uint32_t i = 0; i < ran.totals.size(); ++i) {
    if (i == winner || !ran.totals[i]) continue;
    if (!best || *ran.totals[i] > *ran.totals[*best]) best = i;
  }
  return best;
}

// Which scorer made most of the difference, and what it would have had to give.
void TellDecidingScorer(const Explanation& explanation, uint32_t winner, Explanation::RunnerUp& runner_up) {
  const Explanation::Step* deciding = nullptr;
  float most = 0;
  for (const Explanation::Step& step : explanation.steps) {
    if (step.profile != explanation.profiles.size() - 1 || step.scores.empty()) continue;
    const float difference =
        (ScoreOf(step, winner).value_or(0) - ScoreOf(step, runner_up.endpoint).value_or(0)) * step.weight;
    if (difference <= most) continue;
    most = difference;
    deciding = &step;
  }
  if (deciding == nullptr) return;
  runner_up.decided_by = deciding->name;
  runner_up.score = ScoreOf(*deciding, runner_up.endpoint);
  const float needed = *runner_up.score + runner_up.margin / deciding->weight;
  if (runner_up.margin > 0 && needed >= 0 && needed <= 1) runner_up.needed = needed;
}

// The one that was dropped last, of several the first fallback.
std::optional<Explanation::RunnerUp> LastDropped(const Explanation& explanation) {
  const Explanation::Ran& ran = explanation.profiles.back();
  for (auto step = explanation.steps.rbegin(); step != explanation.steps.rend(); ++step) {
    if (step->profile != explanation.profiles.size() - 1 || step->failed || step->drops.empty()) continue;
    const auto fallback = std::find_if(step->drops.begin(), step->drops.end(), [&](const auto& drop) {
      return ran.choices.size() > 1 && drop.endpoint == ran.choices[1];
    });
    const Explanation::Drop& drop = fallback != step->drops.end() ? *fallback : step->drops.front();
    return Explanation::RunnerUp{.endpoint = drop.endpoint, .decided_by = step->name, .dropped = drop.why};
  }
  return std::nullopt;
}

}  // namespace

void TellChoice(const Columns& columns, const Choice& choice, Explanation& explanation) {
  Explanation::Ran& ran = explanation.profiles.back();
  ran.shed = choice.shed;
  ran.rung = choice.rung;
  for (size_t i = 0; i < choice.count; ++i) ran.choices.push_back(columns.endpoint[choice.positions[i]]);
  if (ran.choices.empty()) return;
  const uint32_t winner = choice.positions[0];
  if (choice.rung == Rung::kPowerOfTwo || choice.rung == Rung::kAnyReady || !ran.totals[winner]) {
    if (ran.choices.size() > 1) {
      ran.runner_up = Explanation::RunnerUp{};
      ran.runner_up->endpoint = ran.choices[1];
    }
    return;
  }
  const auto other = BestOther(ran, winner);
  if (!other) {
    ran.runner_up = LastDropped(explanation);
    return;
  }
  ran.runner_up = Explanation::RunnerUp{};
  Explanation::RunnerUp& runner_up = *ran.runner_up;
  runner_up.endpoint = columns.endpoint[*other];
  runner_up.margin = *ran.totals[winner] - *ran.totals[*other];
  TellDecidingScorer(explanation, ran.choices[0], runner_up);
}

void TellEnd(const Config& config, const Program& primary, Explanation& explanation) {
  for (size_t i = 0; i < explanation.profiles.size(); ++i) {
    Explanation::Ran& ran = explanation.profiles[i];
    if (ran.profile == primary.name) explanation.primary = i;
    for (const Program& program : config.programs) {
      if (program.name != ran.profile) continue;
      for (const auto& instance : config.plugins) {
        if (instance->picker != nullptr && instance->picker == program.picker) ran.picker = instance->name;
      }
    }
  }
  for (Explanation::Step& step : explanation.steps) {
    const auto instance = std::find_if(config.plugins.begin(), config.plugins.end(),
                                       [&](const auto& plugin) { return plugin->name == step.name; });
    if (instance == config.plugins.end()) continue;
    for (const Column column : (*instance)->reads) step.reads.push_back(config.columns[column.id].name);
  }
  if (explanation.primary >= explanation.profiles.size()) return;
  explanation.profile = explanation.profiles[explanation.primary].profile;
  const auto& totals = explanation.profiles[explanation.primary].totals;
  for (size_t i = 0; i < totals.size(); ++i) explanation.candidates[i].score = totals[i].value_or(0);
}

void PageAges(const fleet::PoolSnapshot& pool, const Columns& columns, base::Nanos now, uint32_t* out) {
  const uint32_t moment = fleet::Millis(now);
  for (size_t i = 0; i < columns.size(); ++i) {
    const uint32_t page = pool.loads[columns.endpoint[i]]->requests().page;
    out[i] = page == 0 ? kNoPage : static_cast<uint32_t>(std::max(fleet::MillisSince(page, moment), 0));
  }
}

void TellCandidates(const Config& config, const Program& program, const Columns& columns,
                    const Scratch::Impl& s, std::span<const uint32_t> page_ages, Explanation& explanation) {
  explanation = {};
  explanation.profile = program.name;
  for (size_t i = 0; i < columns.size(); ++i) {
    const bool scraped = page_ages[i] != kNoPage;
    const auto own = static_cast<float>(s.own[i]);
    explanation.candidates.push_back({
        .endpoint = columns.endpoint[i],
        .own = own,
        .others = columns[kRequests][i] - own,
        .queue = columns[kQueue][i],
        .page_queue = columns[kPageQueue][i],
        .running = columns[kRunning][i],
        .kv_usage = columns[kKvUsage][i],
        .work = columns[kWork][i],
        .prefill = columns[kPrefill][i],
        .adapter = AdapterWord(AdapterBits(columns[kAdapter][i])),
        .fresh = s.fresh[i] != 0,
        .age = scraped ? page_ages[i] * base::kMillisecond : 0,
        .scraped = scraped,
    });
  }
  TellMade(config, columns, explanation);
}

void TellLive(const Config& config, const Program& program, const fleet::PoolSnapshot& pool,
              const Columns& columns, const Scratch::Impl& s, base::Nanos now, Explanation& explanation) {
  std::vector<uint32_t> ages(columns.size());
  PageAges(pool, columns, now, ages.data());
  TellCandidates(config, program, columns, s, ages, explanation);
}

}  // namespace fairway::scheduling
