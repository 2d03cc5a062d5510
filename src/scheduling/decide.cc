#include "scheduling/decide.h"

#include <algorithm>
#include <span>
#include <utility>

#include "scheduling/lanes.h"
#include "scheduling/plugin.h"
#include "scheduling/tell.h"

namespace fairway::scheduling {

namespace {

// What a program's filters leave: all at first.
struct Left {
  std::span<const uint32_t> in;
  std::span<const uint32_t> eligible;  // as fallbacks
  bool shed = false;
  Refused refused;  // where it is
  void Shed(Refused by) { shed = true, refused = by; }
};

[[gnu::noinline]] void Narrow(const Program& program, const Context& context, Scratch::Impl& s, Left& left,
                              Explanation* explanation) {
  int side = 0;
  // False: the filter kept nobody, and its input stays.
  const auto apply = [&](const Filter& filter, const std::string& name, bool limits_fallbacks) {
    uint32_t* out = s.list[side];
    const std::span<const uint32_t> kept(out, std::min(filter.Apply(context, left.in, out), left.in.size()));
    if (explanation != nullptr) [[unlikely]]
      TellFilter(name, filter, context, left.in, kept, *explanation);
    if (kept.empty()) return false;
    left.in = kept;
    side = 1 - side;
    if (limits_fallbacks) {
      std::copy(kept.begin(), kept.end(), s.eligible);
      left.eligible = {s.eligible, kept.size()};
    }
    return true;
  };
  if (program.saturation != nullptr && !context.request.critical &&
      program.saturation->Saturation(context) >= 1) {
    return left.Shed({Refusal::kSaturation, program.saturation_name, true});
  }
  if (program.room != nullptr && !context.request.critical &&
      !apply(*program.room, program.room_name, true)) {
    return left.Shed({Refusal::kRoom, program.room_name, true});
  }
  int at = program.nodes.empty() ? Program::kPick : 0;
  // A program visits a node at most once; a cycle in a program of somebody's own ends here instead of
  // hanging.
  for (size_t step = 0; at >= 0 && step < program.nodes.size(); ++step) {
    const Program::Node& node = program.nodes[static_cast<size_t>(at)];
    at = apply(*node.filter, node.name, node.limits_fallbacks) ? node.on_success : node.on_failure;
    if (at == Program::kShed)
      left.Shed({node.of_tree ? Refusal::kRoom : Refusal::kFilters, node.name, !node.steady});
  }
}

// s.total[i] = the weighted scores of in[i]. A score is within [0, 1], and what is no number is 0.
void Score(const Program& program, const Context& context, std::span<const uint32_t> in, Scratch::Impl& s,
           Explanation* explanation) {
  std::fill_n(s.total, in.size(), 0.0f);
  for (const auto& [scorer, name, weight] : program.scorers) {
    scorer->Score(context, in, s.score);
    for (size_t i = 0; i < in.size(); i += kLanes) {
      const Lanes score = Least(Greatest(Load(s.score + i), Lanes{}), Lanes{} + 1.0f);
      Store(score, s.score + i);
      Store(Load(s.total + i) + score * weight, s.total + i);
    }
    if (explanation != nullptr) [[unlikely]]
      TellScorer(name, weight, context.columns, in, s.score, *explanation);
  }
  if (explanation != nullptr) [[unlikely]] {
    TellTotals(in, s.total, *explanation);
  }
}

// What the picker left open: the least loaded of `eligible`, by queue, then KV use.
void FillFallbacks(const Columns& columns, std::span<const uint32_t> eligible, std::span<uint32_t> choices,
                   size_t& count) noexcept {
  const size_t first = count;
  const float* queue = columns[kQueue];
  const float* kv_usage = columns[kKvUsage];
  const auto better = [queue, kv_usage](uint32_t a, uint32_t b) {
    return queue[a] != queue[b] ? queue[a] < queue[b] : kv_usage[a] < kv_usage[b];
  };
  for (const uint32_t position : eligible) {
    if (count == choices.size() && (count == first || !better(position, choices[count - 1]))) continue;
    const auto chosen = choices.first(first);
    if (std::find(chosen.begin(), chosen.end(), position) != chosen.end()) continue;
    size_t at = count < choices.size() ? count++ : count - 1;
    for (; at > first && better(position, choices[at - 1]); --at) choices[at] = choices[at - 1];
    choices[at] = position;
  }
}

// Nobody has told us anything for long. Our own ledger knows our requests only; following its minimum, every
// picker of the fleet would herd. Two at random, the less loaded first (Mitzenmacher 2001, "The power of two
// choices"); then others at random. All of `in`; no more positions than that.
size_t DrawTwo(const Columns& columns, std::span<const uint32_t> in, base::Random& random,
               std::span<uint32_t> positions) noexcept {
  const size_t n = in.size();
  const auto less = [&](uint32_t a, uint32_t b) {
    const float* requests = columns[kRequests];
    const float* work = columns[kWork];
    return requests[a] != requests[b] ? requests[a] < requests[b] : work[a] < work[b];
  };
  const size_t first = random.Below(n);
  positions[0] = in[first];
  if (n == 1) return 1;
  const uint32_t second = in[(first + 1 + random.Below(n - 1)) % n];
  const uint32_t worse = less(second, positions[0]) ? std::exchange(positions[0], second) : second;
  if (positions.size() == 1) return 1;
  positions[1] = worse;
  size_t count = 2;
  while (count < positions.size()) {
    const uint32_t position = in[random.Below(n)];
    const auto drawn = positions.first(count);
    if (std::find(drawn.begin(), drawn.end(), position) == drawn.end()) positions[count++] = position;
  }
  return count;
}

// What the program's filters that know no load leave.
std::span<const uint32_t> KeepSteady(const Program& program, const Context& context,
                                     std::span<const uint32_t> in, Scratch::Impl& s, Refused& refused,
                                     Explanation* explanation) {
  int side = 0;
  for (const Program::Node& node : program.nodes) {
    if (!node.steady) continue;
    uint32_t* out = s.list[side];
    const std::span<const uint32_t> kept(out, std::min(node.filter->Apply(context, in, out), in.size()));
    if (explanation != nullptr) TellFilter(node.name, *node.filter, context, in, kept, *explanation);
    in = kept;
    if (in.empty()) {
      refused = {Refusal::kFilters, node.name, false};
      break;
    }
    side = 1 - side;
  }
  return in;
}

[[gnu::noinline]] Choice DecideUntold(const Program& program, const Context& context,
                                      std::span<const uint32_t> all, uint32_t max_choices, Scratch::Impl& s,
                                      Explanation* explanation) {
  Choice choice;
  choice.rung = Rung::kPowerOfTwo;
  const auto in = KeepSteady(program, context, all, s, choice.refused, explanation);
  choice.shed = in.empty();
  if (!in.empty())
    choice.count = DrawTwo(context.columns, in, context.random,
                           std::span(choice.positions).first(std::min<size_t>(max_choices, in.size())));
  return choice;
}

[[gnu::always_inline]] inline Choice Run(const Program& program, const SchedulerOptions& options,
                                         const Picture& picture, const Context& context, Scratch::Impl& s,
                                         Explanation* explanation) noexcept {
  const Columns& columns = picture.columns;
  Choice choice;
  const uint32_t max_choices = program.max_choices != 0 ? program.max_choices : options.max_choices;
  const std::span<uint32_t> choices(choice.positions.data(), std::min<size_t>(max_choices, columns.size()));
  const std::span<const uint32_t> all(s.all, columns.size());
  if (picture.fresh == 0 && picture.silence > options.ledger_trust) [[unlikely]]
    return DecideUntold(program, context, all, max_choices, s, explanation);
  Left left{.in = all, .eligible = all};
  if (!program.nodes.empty() || !context.request.critical) [[unlikely]]
    Narrow(program, context, s, left, explanation);
  if (left.shed) [[unlikely]] {
    choice.shed = true;
    choice.refused = left.refused;
    choice.rung = picture.fresh < columns.size() ? Rung::kLedger : Rung::kFresh;
    return choice;
  }
  Score(program, context, left.in, s, explanation);
  choice.count =
      std::min(program.picker->Pick(context, left.in, {s.total, left.in.size()}, choices), choices.size());
  if (choice.count == 0) [[unlikely]] {
    // A program that gives nothing although there are endpoints is a fault of its configuration. It must not
    // be an outage.
    choice.rung = Rung::kAnyReady;
    choice.positions[0] = static_cast<uint32_t>(context.random.Below(columns.size()));
    choice.count = 1;
    return choice;
  }
  if (choice.count < choices.size()) FillFallbacks(columns, left.eligible, choices, choice.count);
  if (s.fresh[choice.positions[0]] == 0) choice.rung = Rung::kLedger;
  return choice;
}

}  // namespace

Choice Decide(const Program& program, const SchedulerOptions& options, const Picture& picture,
              const Context& context, Scratch::Impl& s, Explanation* explanation) noexcept {
  if (explanation != nullptr) [[unlikely]]
    TellProfile(program, picture.columns, *explanation);
  const Choice choice = Run(program, options, picture, context, s, explanation);
  if (explanation != nullptr) [[unlikely]]
    TellChoice(picture.columns, choice, *explanation);
  return choice;
}

}  // namespace fairway::scheduling
