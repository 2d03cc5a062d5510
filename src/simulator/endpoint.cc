#include "simulator/endpoint.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/random.h"
#include "base/strings.h"
#include "net/address.h"
#include "payload/request.h"
#include "simulator/metrics_page.h"
#include "simulator/openai.h"

namespace fairway::simulator {

using base::ErrorCode;
using base::Fail;
using base::Nanos;
using net::HttpRequest;
using net::HttpResponse;
using Responder = std::shared_ptr<net::HttpResponder>;

namespace {

constexpr size_t kMaxAdapters = 1000;
constexpr size_t kMaxRequestId = 128;
constexpr int64_t kCompletionsMaxTokens = 16;  // what the OpenAI completions API means by no max_tokens
constexpr Nanos kReplyFirst = 20 * base::kMillisecond;
constexpr Nanos kReopenAgain = 200 * base::kMillisecond;
// What vLLM says with an answer that is not streamed, where it is asked to.
constexpr char kLoadFormat[] = "endpoint-load-metrics-format";
constexpr char kLoad[] = "endpoint-load-metrics";
constexpr size_t kHugePage = 16u << 20;  // beyond what any scraper should take

double UnixNow() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string Hex(uint64_t value) {
  char text[16];
  return {text, std::to_chars(text, text + sizeof(text), value, 16).ptr};
}

// What of a body payload/request.h has no use for.
struct Extras {
  bool include_usage = false;
  bool ignore_eos = false;
};

Extras ReadExtras(std::string_view body) {
  Extras extras;
  const bool has_usage = body.find("stream_options") != std::string_view::npos;
  const bool has_eos = body.find("ignore_eos") != std::string_view::npos;
  if (!has_usage && !has_eos) return extras;
  const api::ParsedText parsed = api::ParseJson(body);
  if (!parsed.problems.empty() || parsed.documents.size() != 1) return extras;
  const api::Value* json = parsed.documents[0].get();
  const auto is_true = [](const api::Value* value) {
    return value != nullptr && value->kind == api::Value::Kind::kBool && value->text == "true";
  };
  extras.ignore_eos = is_true(json->Find("ignore_eos"));
  if (const api::Value* options = json->Find("stream_options"))
    extras.include_usage = is_true(options->Find("include_usage"));
  return extras;
}

std::string PromptText(std::string_view body, const payload::RequestFields& fields) {
  std::string text;
  text.reserve(std::min<uint64_t>(fields.prompt_bytes, body.size()));
  for (const payload::Span& span : fields.prompt) text += body.substr(span.begin, span.end - span.begin);
  return text;
}

std::string LoadText(const EngineGauges& gauges) {
  return "TEXT named_metrics.kv_cache_usage_perc=" + std::to_string(gauges.kv_cache_usage) +
         ",named_metrics.num_requests_waiting=" + std::to_string(gauges.waiting);
}

std::string HugePage() {
  constexpr std::string_view kLine = "vllm:padding_total{engine=\"0\"} 1.0\n";
  std::string page;
  page.reserve(kHugePage + kLine.size());
  while (page.size() < kHugePage) page += kLine;
  return page;
}

constexpr std::string_view kGarbage =
    "<html>\x01\xff{{{ vllm:num_requests_waiting{engine=\"0 NaNaN\nvllm:num_requests_running} = twelve\n"
    "# TYPE\nvllm:kv_cache_usage_perc{a=\"\\} 1e999 12 13\n\n\t\"\"\"";

class EndpointImpl final : public Endpoint {
 public:
  EndpointImpl(EndpointOptions options, net::Loop& loop, const base::Clock& clock, const base::Log& log,
               Delegate delegate)
      : options_(std::move(options)),
        loop_(loop),
        clock_(clock),
        log_(log),
        delegate_(std::move(delegate)),
        adapters_(options_.adapters.begin(), options_.adapters.end()),
        engine_(options_.engine),
        random_(options_.engine.seed ^ 0x5e7),
        unix_start_(UnixNow()),
        faults_(options_.faults),
        step_timer_(loop),
        fault_timer_(loop) {}

  ~EndpointImpl() override {
    alive_.reset();
    DropAll();
  }

  base::Result<void> Open() {
    net::HttpServerOptions server{.host = options_.host, .port = options_.port};
    auto listening = net::HttpServer::Listen(
        server, loop_,
        [this](const HttpRequest& request, Responder responder) { Handle(request, std::move(responder)); },
        log_);
    if (!listening) return tl::make_unexpected(listening.error());
    server_ = std::move(*listening);
    options_.port = server_->port();
    if (options_.name.empty()) options_.name = net::FormatHostPort(options_.host, options_.port);
    return {};
  }
  // Refusing from the start on: the port is known by then.
  void CloseIfRefusing() {
    if (faults_.requests == RequestFault::kRefuse) DropAll();
  }

  uint16_t port() const override { return options_.port; }
  const std::string& name() const override { return options_.name; }
  const Faults& faults() const override { return faults_; }
  const Engine& engine() const override { return engine_; }
  base::Result<Faults> SetFaults(const FaultPatch& patch) override;

 private:
  struct Active {
    Responder responder;
    AnswerHead head;
    bool stream = false;
    bool include_usage = false;
    bool tells_load = false;
    TokenUsage usage;
    uint64_t seed = 0;
    std::string text;  // where it is not streamed
  };

  void Handle(const HttpRequest& request, Responder responder);
  void Complete(const HttpRequest& request, const Responder& responder, bool chat);
  void Tokenize(const HttpRequest& request, net::HttpResponder& responder) const;
  void Metrics(Responder responder);
  MetricsPageInput PageInput() const;
  void FaultsRequest(const HttpRequest& request, Responder responder);
  void DelegateFaults(TargetedPatch patch, Responder responder);
  bool IsMe(std::string_view target) const;

  void Reply(net::HttpResponder& responder, HttpResponse response) const;
  void ReplyJson(net::HttpResponder& responder, int status, std::string body) const {
    Reply(responder, {.status = status, .body = std::move(body)});
  }
  void ReplyError(net::HttpResponder& responder, int status, std::string_view message,
                  std::string_view param = "") const {
    ReplyJson(responder, status, ErrorBody(status, message, param));
  }
  std::vector<std::pair<std::string, std::string>> ServedBy() const {
    return {{"x-served-by", options_.name}};
  }

  void Hang(Responder responder);
  void Pump();
  void Deliver(const EngineEvent& event);
  void Gone(uint64_t id);
  void DropAll();
  base::Result<void> Switch(const Faults& to);
  void Restore();

  EndpointOptions options_;
  net::Loop& loop_;
  const base::Clock& clock_;
  const base::Log& log_;
  Delegate delegate_;
  std::set<std::string, std::less<>> adapters_;
  Engine engine_;
  base::Random random_;
  double unix_start_;
  Faults faults_;
  std::optional<Faults> restore_;  // what a patch with a duration goes back to

  std::unique_ptr<net::HttpServer> server_;  // none while it refuses
  std::unordered_map<uint64_t, std::shared_ptr<Active>> active_;
  // Answers that are owed, by a number of ours; what is not answered is closed when it is destroyed.
  std::unordered_map<uint64_t, Responder> hung_;
  std::unordered_map<uint64_t, Responder> delegated_;
  uint64_t last_number_ = 0;
  std::vector<EngineEvent> events_;
  size_t delivered_ = 0;
  bool delivering_ = false;
  net::Timer step_timer_;
  net::Timer fault_timer_;
  // For what was posted to the loop and can come after this is gone.
  std::shared_ptr<int> alive_ = std::make_shared<int>();
};

void EndpointImpl::Reply(net::HttpResponder& responder, HttpResponse response) const {
  response.headers = ServedBy();
  responder.Send(std::move(response));
}

void EndpointImpl::Handle(const HttpRequest& request, Responder responder) {
  const std::string path(request.path());
  if (path == "/sim/faults") return FaultsRequest(request, std::move(responder));
  const bool metrics = path == "/metrics";
  if (!metrics && faults_.requests == RequestFault::kHang) {
    return Hang(std::move(responder));
  }
  if (!metrics && faults_.requests == RequestFault::kFail)
    return ReplyError(*responder, 500, "The simulated server was told to fail.");

  const bool chat = path == "/v1/chat/completions";
  const bool render = path == "/v1/completions/render" || path == "/v1/chat/completions/render";
  const bool tokenize = render || path == "/tokenize";
  const bool post = chat || tokenize || path == "/v1/completions";
  const bool loads = path == "/v1/loads" && options_.type == EngineType::kSglang;
  const bool get =
      metrics || loads || path == "/v1/models" || path == "/health" || path == "/ping" || path == "/version";
  if (!post && !get) return ReplyJson(*responder, 404, R"({"detail":"Not Found"})");
  const bool right_method =
      post ? request.method == "POST" : request.method == "GET" || request.method == "HEAD";
  if (!right_method) return ReplyJson(*responder, 405, R"({"detail":"Method Not Allowed"})");

  if (tokenize) return Tokenize(request, *responder);
  if (post) return Complete(request, responder, chat);
  if (metrics) return Metrics(std::move(responder));
  if (loads) {
    Pump();
    return ReplyJson(*responder, 200, RenderSglangLoads(PageInput()));
  }
  if (path == "/v1/models") {
    return ReplyJson(*responder, 200,
                     ModelsBody(options_.model, options_.adapters, options_.engine.max_model_len,
                                static_cast<int64_t>(unix_start_)));
  }
  if (path == "/version") return ReplyJson(*responder, 200, R"({"version":"0.11.0+fairway.sim"})");
  ReplyJson(*responder, 200, "");
}

void EndpointImpl::Complete(const HttpRequest& request, const Responder& responder, bool chat) {
  payload::RequestScanner scanner(chat ? payload::Api::kChatCompletions : payload::Api::kCompletions);
  scanner.Feed(request.body);
  scanner.Finish();
  if (!scanner.ok()) return ReplyError(*responder, 400, scanner.error());
  const payload::RequestFields& fields = scanner.fields();
  // No model means the base model, as vLLM has it.
  const std::string model = fields.has_model && !fields.model.empty() ? fields.model : options_.model;
  const bool is_adapter = adapters_.contains(model);
  if (!is_adapter && model != options_.model)
    return ReplyError(*responder, 404, "The model `" + model + "` does not exist.", "model");

  const Extras extras = ReadExtras(request.body);
  const std::string prompt = PromptText(request.body, fields);
  EngineRequest wanted{.adapter = is_adapter ? std::string_view(model) : "",
                       .prompt = prompt,
                       .prompt_bytes = fields.prompt_bytes,
                       .max_tokens = fields.max_tokens,
                       .ignore_eos = extras.ignore_eos,
                       .cache_salt = fields.cache_salt};
  if (!chat && !wanted.max_tokens) wanted.max_tokens = kCompletionsMaxTokens;

  Pump();
  const auto accepted = engine_.Submit(wanted, clock_.Now());
  if (!accepted) {
    const bool full = accepted.error().code == ErrorCode::kResourceExhausted;
    return ReplyError(*responder, full ? 503 : 400, accepted.error().message);
  }
  const uint64_t id = accepted->id;
  auto active = std::make_shared<Active>();
  active->responder = responder;
  active->stream = fields.stream;
  active->include_usage = extras.include_usage;
  active->tells_load = options_.type == EngineType::kVllm && request.header(kLoadFormat) == "TEXT";
  active->usage.prompt = accepted->prompt_tokens;
  active->seed = random_.Next();
  const std::string_view given = request.header("x-request-id");
  active->head = {
      .chat = chat,
      .id = (chat ? "chatcmpl-" : "cmpl-") +
            (given.empty() || given.size() > kMaxRequestId ? Hex(random_.Next()) : std::string(given)),
      .created = static_cast<int64_t>(UnixNow()),
      .model = model};
  active_.emplace(id, active);
  responder->OnGone([this, id, alive = std::weak_ptr<int>(alive_)] {
    if (!alive.expired()) Gone(id);
  });
  if (active->stream &&
      !responder->Start(
          {.status = 200, .content_type = "text/event-stream; charset=utf-8", .headers = ServedBy()})) {
    Gone(id);
  }
  Pump();  // sets the timer
}

// A chat (`messages`) or a text (`prompt`), as vLLM takes them. The engine is not asked; of prompts that are
// token ids nobody asks.
void EndpointImpl::Tokenize(const HttpRequest& request, net::HttpResponder& responder) const {
  const bool chat = request.body.find("\"messages\"") != std::string_view::npos;
  payload::RequestScanner scanner(chat ? payload::Api::kChatCompletions : payload::Api::kCompletions);
  scanner.Feed(request.body);
  scanner.Finish();
  if (!scanner.ok()) return ReplyError(responder, 400, scanner.error());
  const std::string text = PromptText(request.body, scanner.fields());
  ReplyJson(responder, 200,
            request.path() == "/tokenize" ? TokenizeBody(text, options_.engine.max_model_len)
                                          : RenderBody(text, chat));
}

void EndpointImpl::Gone(uint64_t id) {
  engine_.Abort(id);
  active_.erase(id);
}

void EndpointImpl::Hang(Responder responder) {
  const uint64_t number = ++last_number_;
  responder->OnGone([this, number, alive = std::weak_ptr<int>(alive_)] {
    if (!alive.expired()) hung_.erase(number);
  });
  hung_.emplace(number, std::move(responder));
}

void EndpointImpl::Pump() {
  engine_.AdvanceTo(clock_.Now(), events_);
  // An answer may bring the next request of its connection, which calls this again: events stay in their
  // order.
  if (!delivering_) {
    delivering_ = true;
    while (delivered_ < events_.size()) {
      const EngineEvent event = events_[delivered_++];
      Deliver(event);
    }
    events_.clear();
    delivered_ = 0;
    delivering_ = false;
  }
  const Nanos next = engine_.NextEventTime();
  if (next == 0) {
    step_timer_.Cancel();
  } else {
    step_timer_.After(std::max<Nanos>(0, next - clock_.Now()), [this] { Pump(); });
  }
}

void EndpointImpl::Deliver(const EngineEvent& event) {
  const auto found = active_.find(event.id);
  if (found == active_.end()) return;  // its client left
  const std::shared_ptr<Active> active = found->second;
  const bool last = event.finish != FinishReason::kNone;
  active->usage.completion = event.index + 1;
  active->usage.cached = event.cached_tokens;
  const std::string word = TokenText(options_.name, active->seed, event.index);

  if (active->stream) {
    std::string text;
    if (event.index == 0 && active->head.chat) text += RoleEvent(active->head);
    text += TokenEvent(active->head, word, event.finish);
    if (last && active->include_usage) text += UsageEvent(active->head, active->usage);
    if (last) text += kDoneEvent;
    if (!active->responder->Write(text)) return Gone(event.id);
  } else {
    active->text += word;
  }
  if (faults_.requests == RequestFault::kCut) return Gone(event.id);  // unanswered, its connection is closed
  if (!last) return;
  active_.erase(event.id);
  if (active->stream) {
    active->responder->End();
  } else {
    HttpResponse answer{.status = 200,
                        .headers = ServedBy(),
                        .body = AnswerBody(active->head, active->text, event.finish, active->usage)};
    if (active->tells_load) answer.headers.emplace_back(kLoad, LoadText(engine_.gauges()));
    active->responder->Send(std::move(answer));
  }
}

void EndpointImpl::Metrics(Responder responder) {
  HttpResponse page{.content_type = "text/plain; version=0.0.4; charset=utf-8"};
  switch (faults_.metrics) {
    case MetricsFault::kHang:
      return Hang(std::move(responder));
    case MetricsFault::kNotFound:
      return ReplyJson(*responder, 404, R"({"detail":"Not Found"})");
    case MetricsFault::kError:
      page.status = 500;
      page.body = "Internal Server Error";
      break;
    case MetricsFault::kRedirect:
      responder->Send(
          {.status = 307, .headers = {{"location", "/metrics/"}, {"x-served-by", options_.name}}});
      return;
    case MetricsFault::kGarbage:
      page.body = kGarbage;
      break;
    case MetricsFault::kEmpty:
      break;
    case MetricsFault::kHuge:
      page.body = HugePage();
      break;
    case MetricsFault::kNone:
      Pump();
      page.body = options_.type == EngineType::kSglang ? RenderSglangPage(PageInput())
                                                       : RenderMetricsPage(PageInput());
      break;
  }
  Reply(*responder, std::move(page));
}

MetricsPageInput EndpointImpl::PageInput() const {
  return {.engine = engine_,
          .pin = faults_.pin,
          .model = options_.model,
          .legacy_names = options_.legacy_metric_names,
          .now = clock_.Now(),
          .unix_now = UnixNow(),
          .unix_start = unix_start_};
}

bool EndpointImpl::IsMe(std::string_view target) const {
  return target.empty() || target == options_.name || target == std::to_string(options_.port) ||
         target == net::FormatHostPort(options_.host, options_.port);
}

void EndpointImpl::FaultsRequest(const HttpRequest& request, Responder responder) {
  if (request.method == "GET") return ReplyJson(*responder, 200, ToJson(faults_) + "\n");
  if (request.method != "POST") return ReplyJson(*responder, 405, R"({"detail":"Method Not Allowed"})");
  const api::ParsedText parsed = api::ParseJson(request.body);
  if (!parsed.problems.empty()) return ReplyError(*responder, 400, parsed.problems.front().message);
  if (parsed.documents.size() != 1) return ReplyError(*responder, 400, "want one JSON object");
  auto patch = FaultsFromJson(*parsed.documents[0]);
  if (!patch) return ReplyError(*responder, 400, patch.error().message);
  if (!IsMe(patch->endpoint)) return DelegateFaults(std::move(*patch), std::move(responder));
  if (patch->patch.requests == RequestFault::kRefuse) {
    // The answer must leave before its connection is closed.
    ReplyJson(*responder, 200, ToJson(Apply(faults_, patch->patch)) + "\n");
    fault_timer_.After(kReplyFirst, [this, change = patch->patch] { (void)SetFaults(change); });
    return;
  }
  const auto now = SetFaults(patch->patch);
  if (!now) return ReplyError(*responder, 500, now.error().message);
  ReplyJson(*responder, 200, ToJson(*now) + "\n");
}

void EndpointImpl::DelegateFaults(TargetedPatch patch, Responder responder) {
  if (!delegate_) return ReplyError(*responder, 404, "no endpoint \"" + patch.endpoint + "\" here");
  // Only a number travels to the other loop: the responder belongs to this one.
  const uint64_t number = ++last_number_;
  delegated_.emplace(number, std::move(responder));
  delegate_(std::move(patch),
            [this, number, alive = std::weak_ptr<int>(alive_)](base::Result<std::string> body) {
              if (alive.expired()) return;
              const auto waiting = delegated_.extract(number);
              if (waiting.empty()) return;
              if (body) return ReplyJson(*waiting.mapped(), 200, std::move(*body));
              ReplyError(*waiting.mapped(), body.error().code == ErrorCode::kNotFound ? 404 : 500,
                         body.error().message);
            });
}

base::Result<Faults> EndpointImpl::SetFaults(const FaultPatch& patch) {
  fault_timer_.Cancel();
  const Faults before = restore_.value_or(faults_);
  restore_.reset();
  if (auto ok = Switch(Apply(faults_, patch)); !ok) return tl::make_unexpected(ok.error());
  if (patch.duration > 0) {
    restore_ = before;
    fault_timer_.After(patch.duration, [this] { Restore(); });
  }
  return faults_;
}

void EndpointImpl::Restore() {
  if (!restore_) return;
  if (auto ok = Switch(*restore_); !ok) {
    log_.Warn("simulated endpoint cannot listen again yet",
              {{"endpoint", options_.name}, {"error", ok.error().message}});
    fault_timer_.After(kReopenAgain, [this] { Restore(); });
    return;
  }
  restore_.reset();
}

base::Result<void> EndpointImpl::Switch(const Faults& to) {
  if (to.requests == RequestFault::kRefuse) {
    DropAll();
  } else if (!server_) {
    if (auto ok = Open(); !ok) return ok;
  }
  faults_ = to;
  if (to.requests != RequestFault::kHang && to.metrics != MetricsFault::kHang) hung_.clear();
  return {};
}

void EndpointImpl::DropAll() {
  server_.reset();
  engine_.AbortAll();
  active_.clear();
  hung_.clear();
  delegated_.clear();
}

}  // namespace

base::Result<void> Validate(const EndpointOptions& options) {
  auto bad = [](std::string what) { return Fail(ErrorCode::kInvalidArgument, std::move(what)); };
  if (options.model.empty()) return bad("the model's name is empty");
  if (options.adapters.size() > kMaxAdapters)
    return bad("more than " + std::to_string(kMaxAdapters) + " adapters");
  std::set<std::string_view> names = {options.model};
  for (const std::string& adapter : options.adapters) {
    if (adapter.empty()) return bad("an adapter's name is empty");
    if (adapter.find(',') != std::string::npos)
      return bad("adapter \"" + adapter + "\": a name cannot hold a comma");
    if (!names.insert(adapter).second) return bad("\"" + adapter + "\" names two models");
  }
  return Validate(options.engine);
}

base::Result<std::unique_ptr<Endpoint>> Endpoint::Listen(EndpointOptions options, net::Loop& loop,
                                                         const base::Clock& clock, const base::Log& log,
                                                         Delegate delegate) {
  if (auto ok = Validate(options); !ok) return tl::make_unexpected(ok.error());
  if (options.adapters.empty()) {
    options.engine.max_loras = 0;
  } else if (options.engine.max_loras == 0) {
    options.engine.max_loras = static_cast<uint32_t>(std::min<size_t>(4, options.adapters.size()));
  }
  options.engine.counts_waiting_tokens = options.type == EngineType::kSglang;
  auto endpoint = std::make_unique<EndpointImpl>(std::move(options), loop, clock, log, std::move(delegate));
  if (auto ok = endpoint->Open(); !ok) return tl::make_unexpected(ok.error());
  endpoint->CloseIfRefusing();
  return endpoint;
}

}  // namespace fairway::simulator
