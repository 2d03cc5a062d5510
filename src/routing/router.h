// The life of one request, once, for every frontend:
//
//   Router router(fleet.published(), clock, registry, options);
//   std::unique_ptr<Worker> worker = router.NewWorker(seed);     // one per worker thread
//   auto begun = router.Begin(*worker, input);
//   if (auto* rejection = std::get_if<Rejection>(&begun)) -> answer its status with RejectionBody(*rejection)
//   Ticket ticket = std::get<Ticket>(std::move(begun));
//   -> destination() into the header, destinations() into the metadata, the body spliced when it rewrites()
//   ticket.OnResponseHeaders(200, "10.0.0.7:8000"); ticket.OnResponseBody(n); ticket.OnUsage(usage);
//   ~Ticket: outcome recorded, reservation given back exactly once.
//
// Nothing here blocks, does I/O or leaves the process.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "base/published.h"
#include "fleet/snapshot.h"
#include "payload/prompt_tokens.h"
#include "payload/request.h"
#include "payload/usage.h"
#include "scheduling/scheduler.h"

namespace fairway::routing {

// Which endpoints the gateway allows (metadata envoy.lb.subset_hint; the extension's endpoint picker
// protocol, proposal 004): "ip:port" or a bare "ip" for all its ports. Present but empty allows none. The
// first 1,000 count.
using SubsetHint = std::vector<std::string>;

using AnswerLoad = fleet::AnswerLoad;

// What a frontend knows of a request when it asks for an endpoint. All views are valid during Begin only.
struct RequestInput {
  std::string_view pool_key;    // "namespace/name"; "" is the only pool there is
  std::string_view request_id;  // for decision records
  // Null: no body was or will be seen (GET, body mode NONE): any model, scheduled by load.
  const payload::RequestScanner* body = nullptr;
  uint64_t body_bytes = 0;
  // Of the prompt, beyond what `body` was fed: a replay knows how long its prompts are and makes no text.
  uint64_t unseen_prompt_bytes = 0;
  const payload::PromptHasher* unseen_prompt = nullptr;  // its blocks, instead of those of `body`
  // The prompts' tokens, as somebody else has made them (Router::AskForTokens). Null: those of the body, if it
  // has any.
  std::shared_ptr<const payload::PromptTokens> tokens;
  bool body_complete = true;  // false: decided before the end of the body (BUFFERED_PARTIAL, STREAMED)
  // The body comes later, and Begin is called again with it: this call counts no request, the second does.
  bool provisional = false;
  // The client wants an answer only if its prompt is cached (prefer: if-available); else 412. Counts where
  // the body was read.
  bool if_available = false;
  bool asks_load = false;        // the client wants the server's load for itself: Ticket::asks_load is false
  std::string_view fairness_id;  // header x-llm-d-inference-fairness-id or its alias; "" is default-flow
  std::string_view model_rewrite;  // header x-llm-d-model-name-rewrite or its alias; "" is none
  std::string_view objective;      // header x-llm-d-inference-objective or its alias; "" is none
  // Those of Router::WantedHeaders that the request has, names in lower case.
  std::span<const std::pair<std::string_view, std::string_view>> headers;
  const SubsetHint* subset = nullptr;  // null: no hint
  // The answer's body passes by piece by piece, so that its beginning will be told (Ticket::OnFirstToken or
  // OnResponseBody).
  bool shows_answer = true;
  base::Nanos received_at = 0;  // when the request's headers came; 0: now
};

// Who makes a request's prompts tokens: a render server of vLLM.
struct TokenQuestion {
  std::string host;
  uint16_t port = 0;
  std::string path;
  std::string model;        // that the body has to name; "": as it is
  base::Nanos timeout = 0;  // what it is worth to wait
  bool media = false;       // the prompt has images or the like
};

// A request that gets no endpoint; codes and texts as the reference's.
struct Rejection {
  int status = 500;       // HTTP
  std::string_view code;  // "BadRequest", "NotFound", "ResourceExhausted", "ServiceUnavailable", "Internal"
  std::string message;
  std::string_view drop_reason;  // for x-llm-d-request-dropped-reason; "" is none
  // For x-fairway-refused-by, of a decision that refused: what, and the plugin; "" is none.
  std::string refused_by = {};
  uint32_t retry_after = 0;  // for retry-after, seconds; 0 is none
};
// "inference error: <code> - <message>"
std::string RejectionBody(const Rejection& rejection);

class DecisionLog;
class DecisionSink;
class Worker;
class Router;

// One request on its way, from the pick to the end of its answer. Movable; owned by one thread at a time,
// that of its worker.
class Ticket {
 public:
  Ticket() = default;  // none, as one that was moved from: nothing but assigning and asking is allowed
  explicit operator bool() const { return state_ != nullptr; }
  Ticket(Ticket&&) noexcept = default;
  Ticket& operator=(Ticket&&) noexcept = default;
  Ticket(const Ticket&) = delete;
  ~Ticket() = default;  // the end: see Abort and Detach for ends that are not natural

  // The first choice, "ip:port".
  std::string_view destination() const;
  // First choice and ordered fallbacks, joined by ",".
  std::string_view destinations() const;
  std::string_view model() const;         // as the client asked; "" when unknown
  std::string_view target_model() const;  // as the model server is to be asked
  bool rewrites() const;                  // the body must name target_model() instead
  // The body names no model and must be given target_model(), by the request's header or a rule. Then model()
  // is that one too, and nothing is to be put back in the answer.
  bool inserts_model() const;
  bool streaming() const;  // the request asked for a stream
  // The server is to be asked how loaded it is, and what its answer says of that is for OnLoad alone.
  bool asks_load() const;
  // "namespace/name" of the pool.
  std::string_view pool_key() const;
  // Headers to set on the request: where its prefill is to be computed, say.
  using Headers = std::vector<std::pair<std::string, std::string>>;
  const Headers& request_headers() const;
  // Headers to set on the answer: a token that brings the client's next request to the same endpoint, say.
  // After OnResponseHeaders, which may have learned that another endpoint answers.
  const Headers& response_headers() const;
  // Per-endpoint totals of the decision as pairs, only with RouterOptions::keep_scores.
  using Scores = std::vector<std::pair<std::string, float>>;
  const Scores& scores() const;

  // The response began. `served`: who really answered ("" when the gateway does not say): the reservation
  // moves there when it is another endpoint of the pool (a retry). `event_stream`: content-type has
  // text/event-stream. `by_gateway`: a 503 with which the gateway keeps its own limits, so that it says
  // nothing of the server; others count (EndpointCell::NoteUnavailable), also the gateway's "cannot connect".
  void OnResponseHeaders(int status, std::string_view served, bool event_stream, bool by_gateway = false);
  // The answer says how loaded its server is. After OnResponseHeaders, which may have learned who that is.
  void OnLoad(const AnswerLoad& load);
  // The answer says, behind its status, that it failed (gRPC's trailers).
  void OnError();
  // The response's body begins; for who does not call OnResponseBody. Again: without effect.
  void OnFirstToken();
  // A piece of the response's body came, of `bytes` bytes.
  void OnResponseBody(uint64_t bytes);
  void OnUsage(const payload::Usage& usage);
  // The response ended as it should.
  void OnComplete();
  // The frontend will hear no more of this request although it may still run (body mode NONE on the
  // response).
  void Detach();
  // The client or the gateway gave up.
  void Abort();

 private:
  friend class Router;
  struct State;
  struct End {
    void operator()(State* state) const noexcept;
  };
  using Pointer = std::unique_ptr<State, End>;
  explicit Ticket(Pointer state) : state_(std::move(state)) {}
  Pointer state_;
};

struct RouterOptions {
  scheduling::SchedulerOptions scheduling;
  // Decides instead of the built-in one, from the first request on. Null: the built-in one.
  std::shared_ptr<const scheduling::Config> config;
  bool keep_scores = false;                         // --emit-endpoint-scores
  bool use_subset_hint = true;                      // off: --disable-endpoint-subset-filter
  bool ask_load = false;                            // Ticket::asks_load, unless the client asks itself
  base::Nanos ready_staleness = 2 * base::kSecond;  // --metrics-staleness-threshold, for the ready_* gauges
  // Called for each decision (also rejections) with its explanation as text, on the worker's thread. Empty:
  // no explanation is made and none costs anything.
  std::function<void(std::string_view)> explain;
  // Both get each decision (also rejections). Null: none is kept and none costs anything. REQUIRES: they
  // outlive the router.
  DecisionLog* decisions = nullptr;
  DecisionSink* record = nullptr;
  // Decides too, on what the real one saw, and takes no place: counted (fairway_shadow_*), and shown in
  // `decisions`. Null: nobody does.
  std::shared_ptr<const scheduling::Config> shadow;
};

// Thread-safe: immutable after construction but for metrics. Worker objects are each owned by one thread.
class Router {
 public:
  // REQUIRES: `fleet` and `clock` outlive it; `registry` outlives it and is not rendered after it is gone.
  Router(const base::Published<fleet::Snapshot>& fleet, const base::Clock& clock, base::Registry& registry,
         RouterOptions options);
  ~Router();

  // One per worker thread. The seed decides every random choice of that worker.
  std::unique_ptr<Worker> NewWorker(uint64_t seed) const;

  std::variant<Ticket, Rejection> Begin(Worker& worker, const RequestInput& input) const;

  // Whom to ask for the prompts' tokens before Begin, which decides better with them. Nothing: nobody, or the
  // body has them. REQUIRES: input.body has seen the body's end.
  std::optional<TokenQuestion> AskForTokens(Worker& worker, const RequestInput& input) const;

  // The last Begin left work that belongs behind its answer: what a long prompt teaches. Who has sent the
  // answer runs it, on any thread; what nobody took the worker's next Begin runs first.
  static bool HasPutOff(Worker& worker) noexcept;
  static std::function<void()> TakePutOff(Worker& worker);  // throws only std::bad_alloc
  static void RunPutOff(Worker& worker) noexcept;

  // A request that was refused before Begin (malformed beyond what the scanner sees, too large, ...): counted
  // in the metrics.
  void CountRejection(Worker& worker, const RequestInput& input, const Rejection& rejection) const;

  // Requests that begin from now on are decided by `configs`. One thread at a time.
  void Swap(std::shared_ptr<const scheduling::ConfigSet> configs);
  std::shared_ptr<const scheduling::ConfigSet> configs() const;
  // Computes what decisions on this snapshot need of it and the config alone, so that none has to: before it
  // is published. As Swap, which does so for the one that is published. Without it workers do it.
  void Prepare(const fleet::Snapshot& snapshot);
  // RouterOptions::shadow from now on; null: none. As Swap.
  void SwapShadow(std::shared_ptr<const scheduling::Config> shadow);
  // Frees what was swapped out and no worker decides by any more, also what its plugins remembered. As Swap.
  void FreeUnused();
  // Names of the headers that frontends hand over (RequestInput::headers), sorted, in lower case. Most
  // configs want none. Good until this worker's next call.
  std::span<const std::string> WantedHeaders(Worker& worker) const;
  // Scanners have to hash prompts (RequestScanner::HashPrompt).
  bool wants_prefixes() const;
  // Who reads the bodies of a pool's requests (payload::ApiOfPath), by the config that decides there.
  payload::Parsers ParsersOf(Worker& worker, std::string_view pool_key) const;
  // The same where all pools agree, which costs one load. Nothing: they do not.
  std::optional<payload::Parsers> parsers() const;
  // They have to keep tokens.
  bool wants_tokens() const;

  // True once a snapshot with a pool was published: the condition of the health service ("pool synced").
  bool ready() const;
  // The same, and it stays true when the pools are gone again.
  bool knew_a_pool() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Opaque to frontends: the snapshot reader, random numbers and scratch memory of one thread.
class Worker {
 public:
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  virtual ~Worker() = default;

 private:
  friend class Router;
  friend class Ticket;
  struct Impl;
  Worker() = default;
};

}  // namespace fairway::routing
