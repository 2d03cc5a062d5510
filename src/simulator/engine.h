// The model of one LLM engine: what vLLM V1 does with requests, without the model, sockets, threads or a
// clock of its own.
//
//   Engine engine(options);                            // Validate(options) first
//   engine.AdvanceTo(now, events);
//   auto accepted = engine.Submit({.prompt = text, .max_tokens = 20}, now);
//   while (engine.NextEventTime() != 0) engine.AdvanceTo(engine.NextEventTime(), events);
//
// Time moves in steps, as the engine core's loop does. A step is planned when it starts:
//   1. running sequences in the order of their arrival, each with what it still has to compute, up to
//      max_num_batched_tokens (a long prompt takes several steps: chunked prefill);
//   2. where no KV block is left, the sequence that came last is preempted: its blocks are freed, it goes
//      back to the head of the queue and will be computed anew;
//   3. if nothing was preempted, waiting requests first come first served while slots (max_num_seqs), tokens
//      and blocks last. One whose adapter would be the (max_loras + 1)st of this step is skipped, not waited
//      for.
// At its end each sequence that is computed up to its last token gets one more. (Source:
// vllm/v1/core/sched/scheduler.py and kv_cache_manager.py, facts only.) Its length is
//   decode_base + decode_per_sequence * decoding sequences + prefilled tokens / prefill_tokens_per_second
//   + lora_load_time * adapters that were not in a slot,
// since decoding is bound by reading the weights once a step and prefill by computing.
//
// The gauges are those of the end of the last step, as vLLM reports them: what arrived since does not show
// yet, and a queue that fits into the next step never shows.
//
// A token stands for 4 bytes of prompt text. Same options and same calls give the same events. Owned by one
// thread.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "base/random.h"
#include "base/result.h"
#include "simulator/block_pool.h"

namespace fairway::simulator {

constexpr uint64_t kBytesPerToken = 4;

struct EngineOptions {
  uint32_t max_num_seqs = 64;              // batch slots
  uint32_t max_num_batched_tokens = 2048;  // tokens computed in one step
  uint32_t max_model_len = 4096;           // prompt + answer
  uint32_t block_size = 16;                // tokens
  uint32_t num_blocks = 2048;              // with the null block
  bool prefix_caching = true;
  uint32_t max_loras = 0;  // adapters in one batch and in device memory; 0: none are served
  uint32_t max_waiting =
      10'000;  // vLLM has no such bound; a simulator that is flooded must not grow for ever

  double prefill_tokens_per_second = 8000;
  base::Nanos decode_base = 12 * base::kMillisecond;
  base::Nanos decode_per_sequence = 100 * base::kMicrosecond;
  base::Nanos lora_load_time = 200 * base::kMillisecond;
  double jitter = 0;  // a step's length varies by this fraction both ways, 0..1
  // Prompts are turned into tokens one after the other before they join the queue, at this rate; 0: in no
  // time. (vLLM's API process does it in one thread.)
  double tokenizer_tokens_per_second = 0;
  // Whether EngineGauges::waiting_tokens is kept, which looks up each waiting prompt at each step's end.
  bool counts_waiting_tokens = false;

  uint32_t answer_tokens = 64;  // where the model ends by itself, on average
  double answer_spread = 0.5;   // uniform in answer_tokens * (1 - spread .. 1 + spread), 0..1
  uint64_t seed = 1;
};

// The error says which option and what would be right.
base::Result<void> Validate(const EngineOptions& options);

// The same engine with all its times multiplied: 0.1 is ten times as fast.
EngineOptions ScaleTime(EngineOptions options, double factor);

// A piece of a prompt that is known by its length and by a number for what it says, instead of as text: what
// replays submit. Two prompts share the blocks of their common first segments.
struct PromptSegment {
  uint64_t content = 0;  // equal numbers after equal segments say the same
  uint32_t tokens = 0;
};

struct EngineRequest {
  std::string_view adapter;           // "": the base model; read during Submit only
  std::string_view prompt;            // text; read during Submit only
  uint64_t prompt_bytes = 0;          // where the prompt is longer than the text at hand; 0: as long as it
  std::optional<int64_t> max_tokens;  // none: what max_model_len leaves
  // Instead of `prompt` and `prompt_bytes`. The answer goes on with the last segment's content: a later
  // prompt whose last segment has the same number and is longer quotes this prompt and its answer. Read
  // during Submit only.
  std::span<const PromptSegment> segments;
  bool ignore_eos = false;      // the answer takes all of max_tokens
  std::string_view cache_salt;  // prompts with other salts share no cached blocks
  uint64_t tag = 0;             // given back with each event
};

enum class FinishReason { kNone, kStop, kLength, kAbort };
constexpr size_t kFinishReasons = 4;
std::string_view ToString(FinishReason reason);

struct EngineEvent {  // one token of one request
  uint64_t id = 0;
  base::Nanos at = 0;
  uint32_t index = 0;                         // of the token in the answer, from 0
  FinishReason finish = FinishReason::kNone;  // this token is the last
  uint32_t cached_tokens = 0;                 // of the prompt, found in the prefix cache
  uint64_t tag = 0;                           // EngineRequest::tag
};

// Counters and histograms since the start, named as vLLM's series without "vllm:".
struct EngineTotals {
  EngineTotals(uint32_t max_model_len);

  uint64_t prefix_cache_queries = 0;  // tokens
  uint64_t prefix_cache_hits = 0;     // tokens
  uint64_t num_preemptions = 0;
  uint64_t prompt_tokens = 0;
  uint64_t generation_tokens = 0;
  uint64_t request_success[kFinishReasons] = {};
  uint64_t lora_loads = 0;  // not a series of vLLM
  uint64_t steps = 0;       // not a series of vLLM

  base::Histogram iteration_tokens;
  base::Histogram request_prompt_tokens;
  base::Histogram request_generation_tokens;
  base::Histogram request_max_num_generation_tokens;
  base::Histogram request_params_max_tokens;
  base::Histogram request_params_n;
  base::Histogram time_to_first_token_seconds;
  base::Histogram inter_token_latency_seconds;
  base::Histogram request_time_per_output_token_seconds;
  base::Histogram e2e_request_latency_seconds;
  base::Histogram request_queue_time_seconds;
  base::Histogram request_inference_time_seconds;
  base::Histogram request_prefill_time_seconds;
  base::Histogram request_decode_time_seconds;
};

// What the metrics page shows of the present.
struct EngineGauges {
  uint32_t running = 0;
  uint32_t waiting = 0;
  double kv_cache_usage = 0;
  // Prompt tokens that no step has computed yet and that are not in the prefix cache: of those that wait and
  // of those whose prompt takes several steps (SGLang: num_waiting_uncached_tokens). 0 unless
  // EngineOptions::counts_waiting_tokens.
  uint64_t waiting_tokens = 0;
};

// One label set of vllm:lora_requests_info. vLLM never takes one off the page; the one with the latest time
// counts.
struct LoraInfo {
  std::vector<std::string> running;  // sorted
  std::vector<std::string> waiting;  // sorted
  base::Nanos at = 0;
};

class Engine {
 public:
  explicit Engine(EngineOptions options);  // REQUIRES: Validate(options)
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  struct Accepted {
    uint64_t id = 0;
    uint32_t prompt_tokens = 0;
  };
  // kInvalidArgument: the prompt and max_tokens exceed max_model_len, or adapters are not served;
  // kResourceExhausted: the queue is full. REQUIRES: AdvanceTo(now) was called, else the request could be
  // served before it came.
  base::Result<Accepted> Submit(const EngineRequest& request, base::Nanos now);

  // Frees all that the request holds; no event for it follows. False when it is not there (any more).
  bool Abort(uint64_t id);
  void AbortAll();

  // When something happens next: the step under way ends, or a first prompt is tokenized; 0 when the engine
  // is idle.
  base::Nanos NextEventTime() const;
  // Ends all steps up to `now` and appends their tokens, in order of time.
  enum class Tell { kEveryToken, kFirstAndLast };
  void AdvanceTo(base::Nanos now, std::vector<EngineEvent>& events, Tell tell = Tell::kEveryToken);

  // From the next step on steps take `factor` times as long: a server that is throttled. REQUIRES: factor >
  // 0.
  void SetSlowdown(double factor) { slowdown_ = factor; }

  // How many tokens of this prompt are in the prefix cache now, as a step that began now would find them.
  uint32_t CachedTokens(const EngineRequest& request) const;
  // When the first token of the last of `requests` would come if they were submitted now and no other came
  // after them: the engine's steps are played ahead. Preemption and jitter are not foreseen, nor when those
  // that wait give each other cached blocks. REQUIRES: AdvanceTo(now); not empty.
  base::Nanos ForecastFirstToken(std::span<const EngineRequest> requests, base::Nanos now) const;

  const EngineOptions& options() const { return options_; }
  const EngineTotals& totals() const { return *totals_; }
  const EngineGauges& gauges() const { return gauges_; }
  const std::vector<LoraInfo>& lora_infos() const { return lora_infos_; }  // oldest first

  // This moment's truth, where the gauges are a step old.
  uint32_t running_now() const { return static_cast<uint32_t>(running_.size()); }
  uint32_t waiting_now() const {
    return static_cast<uint32_t>(waiting_.size() + arrived_.size() + tokenizing_.size());
  }
  // Tokens of prompts that are still to be computed, those that wait included and cached ones not known yet.
  uint64_t uncomputed_tokens() const;
  uint32_t used_blocks() const { return blocks_.used(); }
  // Adapters in device memory, least recently used first.
  std::vector<std::string> resident_adapters() const;
  bool IsResident(std::string_view adapter) const;

 private:
  struct Sequence;
  struct StepPlan;

  void StartStep(base::Nanos now);
  void EndStep(std::vector<EngineEvent>& events);
  void ScheduleRunning(StepPlan& plan);
  void ScheduleWaiting(StepPlan& plan, base::Nanos now);
  bool ScheduleOne(Sequence& sequence, StepPlan& plan, base::Nanos now);
  void ActivateAdapters(StepPlan& plan);
  base::Nanos StepLength(const StepPlan& plan);

  static uint64_t PromptTokens(const EngineRequest& request);
  base::Result<void> Check(const EngineRequest& request, uint64_t prompt) const;
  uint32_t AdapterNumber(std::string_view name);
  void HashPrompt(const EngineRequest& request, uint64_t tokens, std::vector<BlockHash>& content,
                  BlockHash& tail) const;
  size_t FindCached(const Sequence& sequence, std::vector<BlockId>& hits) const;
  bool Grow(Sequence& sequence, uint32_t tokens);
  BlockHash ContentOf(Sequence& sequence, size_t block);
  void MarkFullBlocks(Sequence& sequence, uint32_t tokens);
  void ReleaseBlocks(Sequence& sequence);
  void Preempt(Sequence& sequence);
  void EmitToken(Sequence& sequence, std::vector<EngineEvent>& events);
  void Finish(Sequence& sequence, FinishReason reason);
  void PublishGauges();
  uint64_t CountWaitingTokens() const;
  void PublishLora();
  void CollectArrived(base::Nanos now);
  uint32_t DrawAnswerLength();

  EngineOptions options_;
  base::Random random_;
  BlockPool blocks_;
  std::unique_ptr<EngineTotals> totals_;
  EngineGauges gauges_;
  std::vector<LoraInfo> lora_infos_;

  std::unordered_map<uint64_t, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> running_;  // in the order they were scheduled
  std::deque<Sequence*> waiting_;
  std::deque<Sequence*> tokenizing_;   // in the order they get ready
  std::deque<Sequence*> arrived_;      // since the step began; the engine looks at them when it ends
  std::vector<std::string> adapters_;  // by number; as many as were ever asked for
  std::vector<uint32_t> resident_;     // least recently used first
  std::vector<uint32_t> lora_running_, lora_waiting_;  // adapters of the last LoraInfo
  double slowdown_ = 1;
  Tell tell_ = Tell::kEveryToken;
  base::Nanos tokenizer_free_ = 0;
  base::Nanos step_end_ = 0;
  uint64_t last_id_ = 0;
};

}  // namespace fairway::simulator
