#include "replay/traffic.h"

#include <algorithm>
#include <cmath>

namespace fairway::replay {

namespace {

// One number out of several, for seeds and contents that shall not meet by accident.
uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t state = a ^ (b * 0x9e3779b97f4a7c15ULL);
  return base::SplitMix64(state);
}

base::Nanos FromSeconds(double seconds) { return static_cast<base::Nanos>(std::min(seconds * 1e9, 9e18)); }

}  // namespace

Traffic::Traffic(const Workload& workload, uint64_t seed) : workload_(workload), seed_(seed) {
  for (size_t i = 0; i < workload.classes.size(); ++i) {
    sources_.push_back({.random = base::Random(Mix(seed, i + 1))});
    Advance(i);
  }
}

std::optional<base::Nanos> Traffic::NextDue() const {
  std::optional<base::Nanos> next;
  for (const Source& source : sources_)
    if (!source.over && (!next || source.due < *next)) next = source.due;
  return next;
}

// When the next conversation of the class begins.
void Traffic::Advance(size_t number) {
  Source& source = sources_[number];
  const Arrivals& arrivals = workload_.classes[number].arrivals;
  switch (arrivals.process) {
    case Arrivals::Process::kPoisson:
      source.due += FromSeconds(SampleExponential(source.random, 1 / arrivals.rate));
      break;
    case Arrivals::Process::kConstant:
      source.due = FromSeconds(static_cast<double>(source.count) / arrivals.rate);
      break;
    case Arrivals::Process::kBursts: {
      const uint64_t burst = source.count / arrivals.burst_size, within = source.count % arrivals.burst_size;
      source.due = static_cast<base::Nanos>(burst) * arrivals.burst_every +
                   static_cast<base::Nanos>(static_cast<double>(arrivals.burst_over) *
                                            static_cast<double>(within) / arrivals.burst_size);
      break;
    }
    case Arrivals::Process::kRamp: {
      // A Poisson process of the highest rate, thinned out (Lewis and Shedler 1979).
      const double most = std::max(arrivals.rate, arrivals.to);
      double rate = 0;
      do {
        source.due += FromSeconds(SampleExponential(source.random, 1 / most));
        const double part = static_cast<double>(source.due) / static_cast<double>(workload_.duration);
        rate = arrivals.rate + (arrivals.to - arrivals.rate) * part;
      } while (source.due < workload_.duration && source.random.NextDouble() * most >= rate);
      break;
    }
    case Arrivals::Process::kTrace:
      if (!arrivals.trace || source.count >= arrivals.trace->requests.size()) {
        source.over = true;
        return;
      }
      source.due =
          FromSeconds(base::ToSeconds(arrivals.trace->requests[source.count].at) / arrivals.trace_speed);
      break;
  }
  source.over = source.due >= workload_.duration;
}

Request Traffic::Take() {
  size_t first = 0;
  for (size_t i = 1; i < sources_.size(); ++i)
    if (!sources_[i].over && (sources_[first].over || sources_[i].due < sources_[first].due)) first = i;
  Request request = MakeFirst(first);
  ++sources_[first].count;
  Advance(first);
  return request;
}

Request Traffic::MakeFirst(size_t number) {
  const TrafficClass& traffic = workload_.classes[number];
  const Source& source = sources_[number];
  Request request;
  if (traffic.arrivals.trace) request = FromTrace(traffic, source.count);
  request.traffic = static_cast<uint32_t>(number);
  request.due = source.due;
  request.seed = Mix(Mix(seed_, (number + 1) << 48), source.count);
  base::Random random(Mix(request.seed, 1));
  if (traffic.adapters > 0) request.adapter = traffic.adapter_popularity.Draw(random);
  if (traffic.arrivals.trace) {
    if (request.segments.empty()) request.segments = {{request.seed, request.prompt_tokens}};
    return request;
  }
  request.turns_left = traffic.turns.SampleCount(random) - 1;
  if (traffic.systems > 0) {
    const uint32_t system = traffic.system_popularity.Draw(random);
    const uint64_t content = Mix(Mix(seed_, number + 1), uint64_t{system} + 1000);
    base::Random of_system(content);
    request.segments.push_back({content, traffic.system_tokens.SampleCount(of_system)});
  }
  request.segments.push_back({request.seed, 0});
  DrawTurn(request);
  return request;
}

// The conversation goes on: what was said and answered, and a new question.
void Traffic::DrawTurn(Request& request) const {
  const TrafficClass& traffic = workload_.classes[request.traffic];
  base::Random random(Mix(request.seed, uint64_t{request.turn} + 2));
  request.segments.back().tokens += traffic.prompt_tokens.SampleCount(random);
  request.answer_tokens = traffic.answer_tokens.SampleCount(random);
  request.prompt_tokens = 0;
  for (const simulator::PromptSegment& segment : request.segments) request.prompt_tokens += segment.tokens;
}

Request Traffic::FromTrace(const TrafficClass& traffic, uint64_t number) {
  const Trace& trace = *traffic.arrivals.trace;
  const TraceRequest& traced = trace.requests[number];
  Request request{.prompt_tokens = traced.prompt_tokens, .answer_tokens = traced.answer_tokens};
  for (uint32_t i = 0; i < traced.num_blocks; ++i) {
    const uint32_t before = i * trace.block_tokens;
    request.segments.push_back(
        {trace.blocks[traced.first_block + i], std::min(trace.block_tokens, traced.prompt_tokens - before)});
  }
  const uint32_t told = std::min(traced.num_blocks * trace.block_tokens, traced.prompt_tokens);
  if (traced.num_blocks > 0 && told < traced.prompt_tokens)
    request.segments.push_back({Mix(seed_, number), traced.prompt_tokens - told});
  return request;
}

std::optional<Request> Traffic::After(const Request& request, base::Nanos ended) const {
  if (request.turns_left == 0) return std::nullopt;
  Request next = request;
  ++next.turn;
  --next.turns_left;
  next.segments.back().tokens += request.answer_tokens;
  base::Random random(Mix(~request.seed, next.turn));
  next.due = ended + FromSeconds(workload_.classes[request.traffic].think.Sample(random));
  DrawTurn(next);
  return next;
}

}  // namespace fairway::replay
