#include "simulator/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "simulator/engine_state.h"

namespace fairway::simulator {

using base::ErrorCode;
using base::Fail;
using base::Nanos;

namespace {

constexpr size_t kMaxLoraInfos = 256;  // vLLM keeps them all; more than enough to look like it

BlockHash HashText(BlockHash hash, std::string_view text) {
  while (text.size() >= 8) {
    uint64_t word;
    std::memcpy(&word, text.data(), 8);
    hash = Mix(hash, word);
    text.remove_prefix(8);
  }
  uint64_t word = 0;
  if (!text.empty()) std::memcpy(&word, text.data(), text.size());
  return Mix(hash, word ^ (static_cast<uint64_t>(text.size()) << 56));
}

// 1, 2, 5, 10, 20, 50, ... up to `max`: the bounds vLLM gives its histograms of token counts.
std::vector<double> OneTwoFive(double max) {
  std::vector<double> bounds;
  for (double power = 1;; power *= 10) {
    for (double mantissa : {1, 2, 5}) {
      if (mantissa * power > max) return bounds;
      bounds.push_back(mantissa * power);
    }
  }
}

constexpr double kLatencyBounds[] = {0.3,  0.5,  0.8,  1.0,  1.5,   2.0,   2.5,   5.0,   10.0,   15.0,  20.0,
                                     30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0};
constexpr double kFirstTokenBounds[] = {0.001, 0.005, 0.01, 0.02,  0.04,  0.06,  0.08, 0.1,
                                        0.25,  0.5,   0.75, 1.0,   2.5,   5.0,   7.5,  10.0,
                                        20.0,  40.0,  80.0, 160.0, 640.0, 2560.0};
constexpr double kTokenBounds[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,  0.3,  0.4, 0.5,
                                   0.75, 1.0,   2.5,  5.0,   7.5, 10.0, 20.0, 40.0, 80.0};
constexpr double kIterationBounds[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
constexpr double kParamBounds[] = {1, 2, 5, 10, 20};

void InsertSorted(std::vector<uint32_t>& numbers, uint32_t number) {
  auto at = std::lower_bound(numbers.begin(), numbers.end(), number);
  if (at == numbers.end() || *at != number) numbers.insert(at, number);
}

}  // namespace

std::string_view ToString(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
    case FinishReason::kNone:
      break;
  }
  return "";
}

base::Result<void> Validate(const EngineOptions& o) {
  auto need = [](bool ok, std::string what) -> base::Result<void> {
    if (!ok) return Fail(ErrorCode::kInvalidArgument, std::move(what));
    return {};
  };
  constexpr uint32_t kMost = 1u << 24;  // bounds memory: a node and a map entry a block
  auto count = [&](const char* name, uint32_t value) {
    return need(value >= 1 && value <= kMost,
                std::string(name) + " is " + std::to_string(value) + ", must be 1.." + std::to_string(kMost));
  };
  auto fraction = [&](const char* name, double value) {
    return need(value >= 0 && value <= 1, std::string(name) + " must be 0..1");
  };
  auto time = [&](const char* name, Nanos value) {
    return need(value >= 0 && value <= 3600 * base::kSecond, std::string(name) + " must be 0..1 hour");
  };
  for (const base::Result<void>& check :
       {count("max_num_seqs", o.max_num_seqs), count("max_num_batched_tokens", o.max_num_batched_tokens),
        count("max_model_len", o.max_model_len), count("block_size", o.block_size),
        count("num_blocks", o.num_blocks), count("max_waiting", o.max_waiting),
        count("answer_tokens", o.answer_tokens), fraction("jitter", o.jitter),
        fraction("answer_spread", o.answer_spread), time("decode time", o.decode_base),
        time("decode time per sequence", o.decode_per_sequence), time("LoRA load time", o.lora_load_time),
        need(std::isfinite(o.prefill_tokens_per_second) && o.prefill_tokens_per_second >= 1e-3,
             "the prefill rate must be a number of tokens per second above 0"),
        need(o.tokenizer_tokens_per_second == 0 ||
                 (std::isfinite(o.tokenizer_tokens_per_second) && o.tokenizer_tokens_per_second >= 1),
             "the tokenizer's rate must be 0 or at least 1 token per second")}) {
    if (!check) return check;
  }
  // As vLLM refuses to start: one request of full length must fit, else it could wait for ever.
  const uint64_t tokens = static_cast<uint64_t>(o.num_blocks - 1) * o.block_size;
  const uint64_t blocks = (o.max_model_len + o.block_size - 1) / o.block_size + 1;
  return need(o.max_model_len <= tokens, "max_model_len " + std::to_string(o.max_model_len) +
                                             " is more than the KV cache holds (" + std::to_string(tokens) +
                                             " tokens): raise num_blocks to " + std::to_string(blocks) +
                                             " or lower max_model_len to " + std::to_string(tokens));
}

EngineOptions ScaleTime(EngineOptions options, double factor) {
  auto scale = [factor](Nanos& time) {
    time = static_cast<Nanos>(std::llround(static_cast<double>(time) * factor));
  };
  scale(options.decode_base);
  scale(options.decode_per_sequence);
  scale(options.lora_load_time);
  options.prefill_tokens_per_second /= factor;
  options.tokenizer_tokens_per_second /= factor;
  return options;
}

EngineTotals::EngineTotals(uint32_t max_model_len)
    : iteration_tokens(kIterationBounds),
      request_prompt_tokens(OneTwoFive(max_model_len)),
      request_generation_tokens(OneTwoFive(max_model_len)),
      request_max_num_generation_tokens(OneTwoFive(max_model_len)),
      request_params_max_tokens(OneTwoFive(max_model_len)),
      request_params_n(kParamBounds),
      time_to_first_token_seconds(kFirstTokenBounds),
      inter_token_latency_seconds(kTokenBounds),
      request_time_per_output_token_seconds(kTokenBounds),
      e2e_request_latency_seconds(kLatencyBounds),
      request_queue_time_seconds(kLatencyBounds),
      request_inference_time_seconds(kLatencyBounds),
      request_prefill_time_seconds(kLatencyBounds),
      request_decode_time_seconds(kLatencyBounds) {}

Engine::Engine(EngineOptions options)
    : options_(options),
      random_(options.seed),
      blocks_(options.num_blocks),
      totals_(std::make_unique<EngineTotals>(options.max_model_len)) {
  FAIRWAY_CHECK(Validate(options).has_value());
}

Engine::~Engine() = default;

uint32_t Engine::DrawAnswerLength() {
  const double factor = 1 + options_.answer_spread * (2 * random_.NextDouble() - 1);
  return static_cast<uint32_t>(std::max(1.0, std::round(options_.answer_tokens * factor)));
}

uint64_t Engine::PromptTokens(const EngineRequest& request) {
  uint64_t tokens = 0;
  for (const PromptSegment& segment : request.segments) tokens += segment.tokens;
  if (request.segments.empty()) {
    const uint64_t bytes = std::max<uint64_t>(request.prompt_bytes, request.prompt.size());
    tokens = (bytes + kBytesPerToken - 1) / kBytesPerToken;
  }
  return std::max<uint64_t>(1, tokens);
}

base::Result<void> Engine::Check(const EngineRequest& request, uint64_t prompt) const {
  if (!request.adapter.empty() && options_.max_loras == 0)
    return Fail(ErrorCode::kInvalidArgument, "this engine serves no LoRA adapters");
  if (request.max_tokens && *request.max_tokens < 1) {
    return Fail(ErrorCode::kInvalidArgument,
                "max_tokens must be at least 1, got " + std::to_string(*request.max_tokens) + ".");
  }
  const auto too_long = [&](const std::string& what) {
    return Fail(ErrorCode::kInvalidArgument, "This model's maximum context length is " +
                                                 std::to_string(options_.max_model_len) +
                                                 " tokens. However, " + what);
  };
  if (prompt >= options_.max_model_len) {
    return too_long("your request has " + std::to_string(prompt) +
                    " input tokens. Please reduce the length of the input messages.");
  }
  const uint64_t room = options_.max_model_len - prompt;
  if (request.max_tokens && static_cast<uint64_t>(*request.max_tokens) > room) {
    return too_long("you requested " + std::to_string(*request.max_tokens) +
                    " output tokens and your prompt has " + std::to_string(prompt) +
                    " input tokens. Please reduce max_tokens to " + std::to_string(room) +
                    " or the length of the input.");
  }
  if (waiting_now() >= options_.max_waiting)
    return Fail(ErrorCode::kResourceExhausted,
                std::to_string(options_.max_waiting) + " requests are waiting already");
  return {};
}

// Each block's hash covers all before it, the adapter and the salt, as vLLM's hash chain does. A block that
// two segments share belongs to the later one. The hashes of a segment's blocks follow one another, and so do
// their places in the pool's table: that is half of the time of a replay of a thousand engines.
void Engine::HashPrompt(const EngineRequest& request, uint64_t tokens, std::vector<BlockHash>& content,
                        BlockHash& tail) const {
  BlockHash hash = HashText(HashText(0, request.adapter), request.cache_salt);
  const uint64_t block_bytes = options_.block_size * kBytesPerToken;
  for (std::string_view rest = request.prompt; rest.size() >= block_bytes; rest.remove_prefix(block_bytes)) {
    hash = HashText(hash, rest.substr(0, block_bytes));
    content.push_back(hash);
  }
  if (request.segments.empty()) return;
  content.clear();
  content.reserve(tokens / options_.block_size);
  uint64_t end = 0;
  for (const PromptSegment& segment : request.segments) {
    hash = Mix(hash, segment.content);
    end += segment.tokens;
    while ((content.size() + 1) * options_.block_size <= end) content.push_back(hash + content.size());
  }
  tail = hash;
}

base::Result<Engine::Accepted> Engine::Submit(const EngineRequest& request, Nanos now) {
  const uint64_t prompt = PromptTokens(request);
  if (auto ok = Check(request, prompt); !ok) return tl::make_unexpected(ok.error());
  const uint64_t room = options_.max_model_len - prompt;
  auto sequence = std::make_unique<Sequence>();
  sequence->id = ++last_id_;
  sequence->tag = request.tag;
  if (!request.adapter.empty()) sequence->adapter = AdapterNumber(request.adapter);
  sequence->prompt_tokens = static_cast<uint32_t>(prompt);
  sequence->max_tokens = static_cast<uint32_t>(request.max_tokens ? *request.max_tokens : room);
  const uint32_t natural =
      DrawAnswerLength();  // drawn always: one request's switch must not shift the others
  sequence->end =
      !request.ignore_eos && natural < sequence->max_tokens ? FinishReason::kStop : FinishReason::kLength;
  sequence->answer_tokens = sequence->end == FinishReason::kStop ? natural : sequence->max_tokens;
  sequence->arrival = now;
  if (options_.prefix_caching) HashPrompt(request, prompt, sequence->content, sequence->tail);
  const Accepted accepted{sequence->id, sequence->prompt_tokens};
  totals_->request_params_n.Observe(1);
  totals_->request_params_max_tokens.Observe(sequence->max_tokens);
  totals_->request_max_num_generation_tokens.Observe(sequence->max_tokens);
  tokenizer_free_ = std::max(tokenizer_free_, now);
  if (options_.tokenizer_tokens_per_second > 0) {
    tokenizer_free_ +=
        static_cast<Nanos>(static_cast<double>(prompt) / options_.tokenizer_tokens_per_second * 1e9);
  }
  sequence->ready = tokenizer_free_;
  (sequence->ready > now ? tokenizing_ : arrived_).push_back(sequence.get());
  sequences_.emplace(accepted.id, std::move(sequence));
  if (step_end_ == 0 && !arrived_.empty()) StartStep(now);
  return accepted;
}

bool Engine::Abort(uint64_t id) {
  auto found = sequences_.find(id);
  if (found == sequences_.end()) return false;
  Sequence* sequence = found->second.get();
  std::erase(running_, sequence);
  std::erase(waiting_, sequence);
  std::erase(arrived_, sequence);
  std::erase(tokenizing_, sequence);
  Finish(*sequence, FinishReason::kAbort);
  return true;
}

void Engine::AbortAll() {
  running_.clear();
  waiting_.clear();
  arrived_.clear();
  tokenizing_.clear();
  while (!sequences_.empty()) Finish(*sequences_.begin()->second, FinishReason::kAbort);
}

void Engine::AdvanceTo(Nanos now, std::vector<EngineEvent>& events, Tell tell) {
  tell_ = tell;
  for (Nanos next = NextEventTime(); next != 0 && next <= now; next = NextEventTime()) {
    if (step_end_ != 0) {
      EndStep(events);
    } else {
      StartStep(next);
    }
  }
}

Nanos Engine::NextEventTime() const {
  if (step_end_ != 0 || tokenizing_.empty()) return step_end_;
  return tokenizing_.front()->ready;
}

void Engine::CollectArrived(Nanos now) {
  waiting_.insert(waiting_.end(), arrived_.begin(), arrived_.end());
  arrived_.clear();
  while (!tokenizing_.empty() && tokenizing_.front()->ready <= now) {
    waiting_.push_back(tokenizing_.front());
    tokenizing_.pop_front();
  }
}

void Engine::StartStep(Nanos now) {
  CollectArrived(now);
  if (running_.empty() && waiting_.empty()) {
    step_end_ = 0;
    return;
  }
  StepPlan plan{.budget = options_.max_num_batched_tokens};
  ScheduleRunning(plan);
  if (!plan.preempted) ScheduleWaiting(plan, now);
  FAIRWAY_CHECK(plan.budget <
                options_.max_num_batched_tokens);  // a step that computes nothing would repeat for ever
  ActivateAdapters(plan);
  ++totals_->steps;
  totals_->iteration_tokens.Observe(options_.max_num_batched_tokens - plan.budget);
  step_end_ = now + StepLength(plan);
}

void Engine::ScheduleRunning(StepPlan& plan) {
  for (size_t i = 0; i < running_.size() && plan.budget > 0; ++i) {
    Sequence* sequence = running_[i];
    const uint32_t missing = sequence->tokens() - sequence->computed;
    const uint32_t tokens = std::min(missing, plan.budget);
    while (!Grow(*sequence, sequence->computed + tokens)) {
      Sequence* victim = running_.back();
      running_.pop_back();
      Preempt(*victim);
      plan.preempted = true;
      if (victim == sequence) return;
    }
    sequence->scheduled = tokens;
    plan.budget -= tokens;
    if (sequence->computed >= sequence->prompt_tokens && missing == 1) {
      ++plan.decoding;
    } else {
      plan.prefill_tokens += tokens;
    }
    plan.Add(sequence->adapter);
  }
}

void Engine::ScheduleWaiting(StepPlan& plan, Nanos now) {
  std::deque<Sequence*> skipped;
  while (!waiting_.empty() && plan.budget > 0 && running_.size() < options_.max_num_seqs) {
    Sequence* sequence = waiting_.front();
    if (sequence->adapter != kNoAdapter && !plan.Has(sequence->adapter) &&
        plan.adapters.size() >= options_.max_loras) {
      waiting_.pop_front();
      skipped.push_back(sequence);
      continue;
    }
    if (!ScheduleOne(*sequence, plan, now)) break;  // no blocks: nobody overtakes
    waiting_.pop_front();
    running_.push_back(sequence);
  }
  waiting_.insert(waiting_.begin(), skipped.begin(), skipped.end());
}

size_t Engine::FindCached(const Sequence& sequence, std::vector<BlockId>& hits) const {
  if (!options_.prefix_caching) return 0;
  const size_t most =
      std::min<size_t>(sequence.content.size(), (sequence.tokens() - 1) / options_.block_size);
  for (size_t i = 0; i < most; ++i) {
    auto block = blocks_.Find(sequence.content[i]);
    if (!block) break;
    hits.push_back(*block);
  }
  return hits.size();
}

bool Engine::ScheduleOne(Sequence& sequence, StepPlan& plan, Nanos now) {
  // The cached head of the prompt. The last token is always computed: its output is wanted.
  std::vector<BlockId> hits;
  FindCached(sequence, hits);
  const auto cached = static_cast<uint32_t>(hits.size()) * options_.block_size;
  const uint32_t tokens = std::min(sequence.tokens() - cached, plan.budget);
  const uint32_t wanted = (cached + tokens + options_.block_size - 1) / options_.block_size;
  const auto from_free =
      std::count_if(hits.begin(), hits.end(), [&](BlockId b) { return blocks_.IsFree(b); });
  if (wanted - hits.size() + static_cast<size_t>(from_free) > blocks_.free_count()) return false;

  for (BlockId block : hits) blocks_.Take(block);
  sequence.marked = static_cast<uint32_t>(hits.size());
  sequence.blocks = std::move(hits);
  sequence.computed = cached;
  FAIRWAY_CHECK(Grow(sequence, cached + tokens));
  sequence.scheduled = tokens;
  if (sequence.first_scheduled == 0) {
    sequence.first_scheduled = now;
    sequence.cached = cached;
  }
  if (options_.prefix_caching && sequence.preemptions == 0) {
    totals_->prefix_cache_queries += sequence.tokens();
    totals_->prefix_cache_hits += cached;
  }
  plan.budget -= tokens;
  plan.prefill_tokens += tokens;
  plan.Add(sequence.adapter);
  return true;
}

void Engine::ActivateAdapters(StepPlan& plan) {
  for (const uint32_t adapter : plan.adapters) {
    auto at = std::find(resident_.begin(), resident_.end(), adapter);
    if (at != resident_.end()) {
      std::rotate(at, at + 1, resident_.end());
      continue;
    }
    if (resident_.size() >= options_.max_loras) {
      auto victim =
          std::find_if(resident_.begin(), resident_.end(), [&](uint32_t other) { return !plan.Has(other); });
      FAIRWAY_CHECK(victim != resident_.end());
      resident_.erase(victim);
    }
    resident_.push_back(adapter);
    ++plan.loads;
    ++totals_->lora_loads;
  }
}

Nanos Engine::StepLength(const StepPlan& plan) {
  double length = static_cast<double>(options_.decode_base) +
                  static_cast<double>(options_.decode_per_sequence) * plan.decoding +
                  plan.prefill_tokens / options_.prefill_tokens_per_second * 1e9 +
                  static_cast<double>(options_.lora_load_time) * plan.loads;
  length *= slowdown_;
  if (options_.jitter > 0) length *= 1 + options_.jitter * (2 * random_.NextDouble() - 1);
  return std::max(base::kMicrosecond, static_cast<Nanos>(length));
}

bool Engine::Grow(Sequence& sequence, uint32_t tokens) {
  const size_t wanted = (tokens + options_.block_size - 1) / options_.block_size;
  if (wanted > sequence.blocks.size()) {
    if (wanted - sequence.blocks.size() > blocks_.free_count()) return false;
    while (sequence.blocks.size() < wanted) sequence.blocks.push_back(blocks_.Allocate());
  }
  MarkFullBlocks(sequence, tokens);
  return true;
}

BlockHash Engine::ContentOf(Sequence& sequence, size_t block) {
  // What a block of the answer to a text holds is known to nobody else, so that it is found only by the same
  // sequence after a preemption. (A real engine would also find it when the next turn of a chat quotes the
  // answer; prompts in segments do.)
  while (sequence.content.size() <= block) {
    if (sequence.tail != 0) {
      sequence.content.push_back(sequence.tail + sequence.content.size());
      continue;
    }
    const BlockHash before = sequence.content.empty() ? 0 : sequence.content.back();
    sequence.content.push_back(Mix(Mix(before, sequence.id), sequence.content.size()));
  }
  return sequence.content[block];
}

// At planning already, as vLLM does: a request planned later in the same step finds them.
void Engine::MarkFullBlocks(Sequence& sequence, uint32_t tokens) {
  if (!options_.prefix_caching) return;
  for (const uint32_t full = tokens / options_.block_size; sequence.marked < full; ++sequence.marked)
    blocks_.SetContent(sequence.blocks[sequence.marked], ContentOf(sequence, sequence.marked));
}

void Engine::ReleaseBlocks(Sequence& sequence) {
  // The tail first: it is the least likely to be shared, so it shall be reused first.
  for (auto block = sequence.blocks.rbegin(); block != sequence.blocks.rend(); ++block)
    blocks_.Release(*block);
  sequence.blocks.clear();
  sequence.marked = 0;
}

void Engine::Preempt(Sequence& sequence) {
  ReleaseBlocks(sequence);
  sequence.computed = 0;
  sequence.scheduled = 0;
  ++sequence.preemptions;
  ++totals_->num_preemptions;
  waiting_.push_front(&sequence);
}

void Engine::EndStep(std::vector<EngineEvent>& events) {
  size_t left = 0;
  for (Sequence* sequence : running_) {
    const uint32_t scheduled = std::exchange(sequence->scheduled, 0);
    sequence->computed += scheduled;
    if (scheduled > 0 && sequence->computed == sequence->tokens()) EmitToken(*sequence, events);
    if (sequence->generated < sequence->answer_tokens) {
      running_[left++] = sequence;
    } else {
      Finish(*sequence, sequence->end);
    }
  }
  running_.resize(left);
  PublishGauges();
  StartStep(step_end_);
}

void Engine::EmitToken(Sequence& sequence, std::vector<EngineEvent>& events) {
  const Nanos now = step_end_;
  if (sequence.generated == 0) {
    totals_->prompt_tokens += sequence.prompt_tokens;
    totals_->time_to_first_token_seconds.Observe(base::ToSeconds(now - sequence.arrival));
    sequence.first_token = now;
  } else {
    totals_->inter_token_latency_seconds.Observe(base::ToSeconds(now - sequence.last_token));
  }
  sequence.last_token = now;
  ++totals_->generation_tokens;
  const uint32_t index = sequence.generated++;
  const bool last = sequence.generated == sequence.answer_tokens;
  if (tell_ == Tell::kFirstAndLast && index != 0 && !last) return;
  events.push_back(
      {sequence.id, now, index, last ? sequence.end : FinishReason::kNone, sequence.cached, sequence.tag});
}

// REQUIRES: the sequence is in no queue any more.
void Engine::Finish(Sequence& sequence, FinishReason reason) {
  ReleaseBlocks(sequence);
  EngineTotals& totals = *totals_;
  ++totals.request_success[static_cast<size_t>(reason)];
  if (sequence.first_token != 0 && reason != FinishReason::kAbort) {
    const auto seconds = [](Nanos from, Nanos to) { return base::ToSeconds(to - from); };
    const double decode = seconds(sequence.first_token, sequence.last_token);
    totals.e2e_request_latency_seconds.Observe(seconds(sequence.arrival, sequence.last_token));
    totals.request_queue_time_seconds.Observe(seconds(sequence.arrival, sequence.first_scheduled));
    totals.request_inference_time_seconds.Observe(seconds(sequence.first_scheduled, sequence.last_token));
    totals.request_prefill_time_seconds.Observe(seconds(sequence.first_scheduled, sequence.first_token));
    totals.request_decode_time_seconds.Observe(decode);
    if (sequence.generated > 1)
      totals.request_time_per_output_token_seconds.Observe(decode / (sequence.generated - 1));
    totals.request_prompt_tokens.Observe(sequence.prompt_tokens);
    totals.request_generation_tokens.Observe(sequence.generated);
  }
  sequences_.erase(sequence.id);
}

void Engine::PublishGauges() {
  gauges_ = {.running = static_cast<uint32_t>(running_.size()),
             .waiting = static_cast<uint32_t>(waiting_.size()),
             .kv_cache_usage = blocks_.Usage(),
             .waiting_tokens = options_.counts_waiting_tokens ? CountWaitingTokens() : 0};
  if (options_.max_loras > 0) PublishLora();
}

uint64_t Engine::CountWaitingTokens() const {
  uint64_t tokens = 0;
  for (const Sequence* sequence : running_)
    if (sequence->computed < sequence->prompt_tokens) tokens += sequence->tokens() - sequence->computed;
  std::vector<BlockId> hits;
  for (const Sequence* sequence : waiting_) {
    hits.clear();
    tokens += sequence->tokens() - FindCached(*sequence, hits) * options_.block_size;
  }
  return tokens;
}

void Engine::PublishLora() {
  std::vector<uint32_t> running, waiting;
  for (const Sequence* sequence : running_)
    if (sequence->adapter != kNoAdapter) InsertSorted(running, sequence->adapter);
  for (const Sequence* sequence : waiting_)
    if (sequence->adapter != kNoAdapter) InsertSorted(waiting, sequence->adapter);
  if (!lora_infos_.empty() && running == lora_running_ && waiting == lora_waiting_) {
    lora_infos_.back().at = step_end_;
    return;
  }
  const auto names = [this](const std::vector<uint32_t>& numbers) {
    std::vector<std::string> out;
    out.reserve(numbers.size());
    for (const uint32_t number : numbers) out.push_back(adapters_[number]);
    std::sort(out.begin(), out.end());
    return out;
  };
  LoraInfo info{.running = names(running), .waiting = names(waiting), .at = step_end_};
  std::erase_if(lora_infos_, [&](const LoraInfo& old) {
    return old.running == info.running && old.waiting == info.waiting;
  });
  if (lora_infos_.size() >= kMaxLoraInfos) lora_infos_.erase(lora_infos_.begin());
  lora_infos_.push_back(std::move(info));
  lora_running_ = std::move(running);
  lora_waiting_ = std::move(waiting);
}

uint32_t Engine::AdapterNumber(std::string_view name) {
  const auto at = std::find(adapters_.begin(), adapters_.end(), name);
  const auto number = static_cast<uint32_t>(at - adapters_.begin());
  if (at == adapters_.end()) adapters_.emplace_back(name);
  return number;
}

}  // namespace fairway::simulator
