#include "frontends/envoy_module/stream.h"

#include <algorithm>
#include <array>
#include <span>
#include <stdexcept>
#include <utility>

#include "base/strings.h"
#include "frontends/request/headers.h"

namespace fairway::envoy_module {
namespace {

using abi::BodyStatus;
using abi::BodyType;
using abi::Buffer;
using abi::HeadersStatus;
using abi::HeaderType;
using abi::ToBuffer;
using abi::TrailersStatus;

std::string_view GetHeader(abi::Stream stream, HeaderType type, std::string_view name) {
  Buffer value{nullptr, 0};
  if (!FAIRWAY_ENVOY(http_get_header)(stream, type, ToBuffer(name), &value, 0, nullptr)) return {};
  return value.view();
}

void SetHeader(abi::Stream stream, HeaderType type, std::string_view name, std::string_view value) {
  FAIRWAY_ENVOY(http_set_header)(stream, type, ToBuffer(name), ToBuffer(value));
}

void AddHeader(abi::Stream stream, HeaderType type, std::string_view name, std::string_view value) {
  FAIRWAY_ENVOY(http_add_header)(stream, type, ToBuffer(name), ToBuffer(value));
}

void RemoveHeader(abi::Stream stream, HeaderType type, std::string_view name) {
  FAIRWAY_ENVOY(http_set_header)(stream, type, ToBuffer(name), {nullptr, 0});
}

std::string_view GetAttribute(abi::Stream stream, abi::Attribute which) {
  Buffer value{nullptr, 0};
  if (!FAIRWAY_ENVOY(http_filter_get_attribute_string)(stream, which, &value)) return {};
  return value.view();
}

// As an attribute: Envoy looks that up at once, and for a header's name it makes a text first.
[[gnu::hot]] std::string_view Path(abi::Stream stream) {
  const std::string_view path = GetAttribute(stream, abi::Attribute::kRequestPath);
  if (!path.empty()) return path;
  request::HeaderReader reader;
  for (const std::string_view name : {"x-original-path", "x-forwarded-path"}) {
    reader.Add(name, GetHeader(stream, HeaderType::kRequest, name));
  }
  return reader.Finish().path;
}

// The result ends with the next call.
[[gnu::hot]] std::span<Buffer> GetChunks(abi::Stream stream, BodyType type, std::vector<Buffer>& chunks) {
  const size_t count = FAIRWAY_ENVOY(http_get_body_chunks_size)(stream, type);
  if (count > chunks.size()) chunks.resize(count);  // it only grows
  if (count == 0 || !FAIRWAY_ENVOY(http_get_body_chunks)(stream, type, chunks.data())) return {};
  return std::span(chunks).first(count);
}

}  // namespace

[[gnu::hot]] Stream::Stream(Filter& filter, abi::Stream envoy) : filter_(filter), envoy_(envoy) {
  static_assert(sizeof(Stream) <= 80);  // a size class of Envoy's allocator
}

[[gnu::hot]] Stream::~Stream() {
  if (!aside_.empty() || choice_.listed() || worker_ != nullptr) EndEarly();
}

// Without OnComplete.
void Stream::EndEarly() noexcept {
  if (aside_.Get<Pending>() != nullptr) StopWaiting();
  WithdrawChoice();
  if (worker_ != nullptr) worker_->bodies.Leave(envoy_);
}

[[gnu::hot]] const RouteConfig* Stream::route() const {
  return static_cast<const RouteConfig*>(FAIRWAY_ENVOY(get_most_specific_route_config)(envoy_));
}

[[gnu::hot]] std::string_view Stream::pool_key() const {
  const RouteConfig* of_route = route();
  return of_route != nullptr && !of_route->pool_key.empty() ? of_route->pool_key : filter_.config.pool_key;
}

bool Stream::fails_open() const {
  const RouteConfig* of_route = route();
  const auto mode =
      of_route != nullptr && of_route->failure_mode ? of_route->failure_mode : filter_.config.failure_mode;
  return mode.value_or(api::FailureMode::kFailOpen) == api::FailureMode::kFailOpen;
}

void Stream::Count(size_t counter) {
  if (filter_.counters.defined) FAIRWAY_ENVOY(http_filter_increment_counter)(envoy_, counter, nullptr, 0, 1);
}

// ---- The request.

[[gnu::hot]] HeadersStatus Stream::OnRequestHeaders(bool end) {
  worker_ = filter_.picker->worker(FAIRWAY_ENVOY(http_filter_get_worker_index)(envoy_));
  if (worker_ == nullptr) throw std::runtime_error("a request on a thread that is no worker");
  aside_.Set(worker_->TakePending(filter_.picker->clock().Now()));
  std::optional<payload::Api> claimed;
  const routing::Router& router = filter_.picker->router();
  if (!end) {
    const auto of_all = router.parsers();
    claimed = payload::ApiOfPath(Path(envoy_),
                                 of_all ? *of_all : router.ParsersOf(*worker_->router_worker, pool_key()));
    api_ = static_cast<uint8_t>(claimed.value_or(payload::Api::kUnknown));
    tunnel_ = IsTunnel(payload::Api{api_});
  }
  if (end || tunnel_)
    return Decide(BodyPlace::kNone) == Verdict::kGoOn ? HeadersStatus::kContinue : HeadersStatus::kStop;
  Pending& pending = this->pending();
  pending.has_body = true;
  pending.scanner.Reset(payload::Api{api_});
  const bool wants = router.wants_prefixes();
  const payload::PromptHasher* hashes = pending.scanner.prompt_hashes();
  if (wants != (hashes != nullptr) || (wants && hashes->keeps_tokens() != router.wants_tokens()))
    pending.scanner.HashPrompt(wants, router.wants_tokens());
  if (!claimed) [[unlikely]] {
    RefuseBody(request::NoParser(Path(envoy_)));
    return HeadersStatus::kStop;
  }
  worker_->bodies.Add(pending.body, envoy_, pending.received_at, filter_.config.body_timeout);
  // Envoy answers 413 beyond its own limit, 1 MiB as a rule; ours is said with the other refusals.
  if (FAIRWAY_ENVOY(http_get_buffer_limit)(envoy_) < filter_.config.max_body + 1) {
    FAIRWAY_ENVOY(http_set_buffer_limit)(envoy_, filter_.config.max_body + 1);
  }
  phase_ = Phase::kCollect;
  return HeadersStatus::kStop;
}

// Envoy makes an upgrade of HTTP/2's extended CONNECT, and gives a plain CONNECT the path "/".
[[gnu::hot]] bool Stream::IsTunnel(payload::Api api) const {
  if (api == payload::Api::kUnknown && GetHeader(envoy_, HeaderType::kRequest, ":method") == "CONNECT") {
    return true;
  }
  const std::string_view upgrade = GetHeader(envoy_, HeaderType::kRequest, "upgrade");
  if (upgrade.empty()) [[likely]]
    return false;
  request::HeaderReader reader;
  reader.Add("upgrade", upgrade);
  reader.Add("connection", GetHeader(envoy_, HeaderType::kRequest, "connection"));
  return reader.Finish().tunnel;
}

// Reads what came last. False when it was too much and the request was answered.
[[gnu::hot]] bool Stream::TakeBody() {
  Pending& pending = this->pending();
  for (const Buffer& chunk : GetChunks(envoy_, BodyType::kRequestReceived, worker_->chunks)) {
    pending.body_bytes += chunk.size;
    if (pending.body_bytes > filter_.config.max_body) {
      RefuseLongBody();
      return false;
    }
    worker_->bodies.Take(pending.body, chunk.size);
    pending.scanner.Feed(chunk.view());
  }
  if (worker_->bodies.bytes() > filter_.config.max_buffered && worker_->bodies.DropLargest(pending.body))
      [[unlikely]] {
    RefuseForWantOfRoom();
    return false;
  }
  return true;
}

void Stream::RefuseLongBody() {
  RefuseBody({413, "RequestTooLarge",
              "request body is larger than " + std::to_string(filter_.config.max_body) + " bytes", ""});
}

void Stream::RefuseForWantOfRoom() {
  Count(filter_.counters.no_room);
  RefuseBody({503, "ServiceUnavailable",
              "request bodies hold more memory than they may, and this is the longest", ""});
}

void Stream::RefuseBody(const routing::Rejection& rejection) {
  routing::RequestInput input;
  input.pool_key = pool_key();
  input.body = &pending().scanner;
  filter_.picker->router().CountRejection(*worker_->router_worker, input, rejection);
  Refuse(rejection);
}

[[gnu::hot]] BodyStatus Stream::OnRequestBody(bool end) {
  if (phase_ != Phase::kCollect) {
    return phase_ == Phase::kWait ? BodyStatus::kStopAndBuffer : BodyStatus::kContinue;
  }
  const uint64_t before = pending().body_bytes;
  if (!TakeBody()) return BodyStatus::kStopAndBuffer;
  if (!end) {
    if (pending().body_bytes > before) {
      worker_->bodies.Renew(pending().body, filter_.picker->clock().Now(), filter_.config.body_timeout);
    }
    return BodyStatus::kStopAndBuffer;
  }
  const Verdict verdict = Decide(pending().body_bytes > before ? BodyPlace::kReceived : BodyPlace::kBuffered);
  return verdict == Verdict::kGoOn ? BodyStatus::kContinue : BodyStatus::kStopAndBuffer;
}

TrailersStatus Stream::OnRequestTrailers() {
  if (phase_ != Phase::kCollect)
    return phase_ == Phase::kWait ? TrailersStatus::kStop : TrailersStatus::kContinue;
  return Decide(BodyPlace::kBuffered) == Verdict::kGoOn ? TrailersStatus::kContinue : TrailersStatus::kStop;
}

void Stream::OnScheduled(uint64_t event) {
  if (worker_ == nullptr) return;  // it is over
  switch (event) {
    case kLookEvent:
      worker_->bodies.Look(filter_.picker->clock().Now());
      return;
    case kOverdueEvent:
      return OnOverdue();
    case kNoRoomEvent:
      if (phase_ == Phase::kCollect || phase_ == Phase::kWait) RefuseForWantOfRoom();
      return;
    case kTokensEvent:
      return OnTokens();
    default:
      return OnEndpoints();
  }
}

void Stream::OnOverdue() {
  // Something may have come since it was ordered.
  if (phase_ != Phase::kCollect) return;
  if (!worker_->bodies.Overdue(pending().body, filter_.picker->clock().Now())) return;
  Count(filter_.counters.timeouts);
  RefuseBody({408, "RequestTimeout", "the request's body did not come in time", ""});
}

void Stream::OnEndpoints() {
  if (phase_ != Phase::kWait || pending().token_wait != nullptr) return;
  const Verdict verdict = Decide(pending().has_body ? BodyPlace::kBuffered : BodyPlace::kNone);
  if (verdict == Verdict::kGoOn) FAIRWAY_ENVOY(http_filter_continue_decoding)(envoy_);
}

// They are there, or did not come in time: then it is decided by what else is known.
void Stream::OnTokens() {
  if (phase_ != Phase::kWait || pending().token_wait == nullptr) return;
  const auto tokens = pending().token_wait->Take();
  std::exchange(pending().token_wait, nullptr)->End();
  const Verdict verdict = Decide(BodyPlace::kBuffered, tokens);
  if (verdict == Verdict::kGoOn) FAIRWAY_ENVOY(http_filter_continue_decoding)(envoy_);
}

// ---- The decision.

// True: the request waits for its tokens, in Envoy's buffers and without a thread.
bool Stream::AskTokens(const routing::RequestInput& input, BodyPlace last_piece) {
  Pending& pending = this->pending();
  if (!filter_.picker->ask_tokens() || pending.asked_tokens) return false;
  auto question = filter_.picker->router().AskForTokens(*worker_->router_worker, input);
  if (!question) return false;
  pending.asked_tokens = true;
  std::string body;
  CopyBody(last_piece, body, After::kStays);
  if (!question->model.empty() && !payload::PutModel(body, pending.scanner.fields(), question->model))
    return false;
  abi::Scheduler scheduler = FAIRWAY_ENVOY(http_filter_scheduler_new)(envoy_);
  if (scheduler == nullptr) return false;
  pending.token_wait = std::make_shared<TokenWait>(scheduler);
  worker_->bodies.Rest(pending.body);
  phase_ = Phase::kWait;
  filter_.picker->ask_tokens()(
      {std::move(question->host), question->port, std::move(question->path), std::move(body),
       question->timeout, question->media},
      [wait = pending.token_wait](const TokenWait::Tokens& tokens) { wait->Answer(tokens); });
  return true;
}

void Stream::ReadSubsetHint(routing::SubsetHint& hint, bool& present) const {
  const Buffer space = ToBuffer(request::kHintNamespace);
  const Buffer key = ToBuffer(request::kHintKey);
  size_t size = 0;
  Buffer value{nullptr, 0};
  if (FAIRWAY_ENVOY(http_get_metadata_list_size)(envoy_, abi::MetadataSource::kDynamic, space, key, &size)) {
    present = true;
    for (size_t i = 0; i < size; ++i) {
      if (FAIRWAY_ENVOY(http_get_metadata_list_string)(envoy_, abi::MetadataSource::kDynamic, space, key, i,
                                                       &value)) {
        request::AddHints(value.view(), hint);
      }
    }
  } else if (FAIRWAY_ENVOY(http_get_metadata_string)(envoy_, abi::MetadataSource::kDynamic, space, key,
                                                     &value)) {
    present = true;
    request::AddHints(value.view(), hint);
  }
}

[[gnu::hot]] Stream::Verdict Stream::Decide(BodyPlace last_piece, const TokenWait::Tokens& tokens) {
  Pending& pending = this->pending();
  if (pending.has_body && phase_ == Phase::kCollect) pending.scanner.Finish();
  const base::Nanos now = phase_ == Phase::kWait ? filter_.picker->clock().Now() : pending.received_at;
  if (filter_.picker->starting(now) && !(filter_.picker->settled(pool_key()) && ClusterHasHosts()) &&
      Wait()) {
    return Verdict::kWaiting;
  }
  // The headers are read now and not when they came: their bytes are where they were, and nothing is copied.
  size_t header_count = FAIRWAY_ENVOY(http_get_headers_size)(envoy_, HeaderType::kRequest);
  if (header_count > worker_->headers.size()) worker_->headers.resize(header_count);
  if (!FAIRWAY_ENVOY(http_get_headers)(envoy_, HeaderType::kRequest, worker_->headers.data())) {
    header_count = 0;
  }
  request::HeaderReader reader(filter_.picker->router().WantedHeaders(*worker_->router_worker));
  for (const abi::Header& header : std::span(worker_->headers).first(header_count)) {
    reader.Add({header.name, header.name_size}, {header.value, header.value_size});
  }
  const request::RequestHeaders headers = reader.Finish();
  grpc_ = headers.grpc;

  routing::RequestInput input;
  routing::SubsetHint hint;
  bool hinted = false;
  if (filter_.config.use_subset_hint) ReadSubsetHint(hint, hinted);
  const std::string own_id = headers.request_id.empty() ? request::NewRequestId(worker_->random) : "";
  input.pool_key = pool_key();
  input.request_id = own_id.empty() ? headers.request_id : std::string_view(own_id);
  // What can be read is, whatever its headers claim: they are no way round models and criticality.
  const bool reads = pending.has_body && (!headers.unreadable_body || pending.scanner.ok());
  input.body = reads ? &pending.scanner : nullptr;
  input.body_bytes = pending.body_bytes;
  input.fairness_id = headers.fairness_id;
  input.model_rewrite = headers.model_rewrite;
  input.objective = headers.objective;
  input.if_available = headers.if_available;
  input.asks_load = headers.asks_load;
  input.headers = headers.wanted;
  input.subset = hinted ? &hint : nullptr;
  input.received_at = pending.received_at;
  input.tokens = tokens;
  if (input.body != nullptr && filter_.picker->router().wants_tokens()) [[unlikely]] {
    if (AskTokens(input, last_piece)) return Verdict::kWaiting;
  }

  auto begun = filter_.picker->router().Begin(*worker_->router_worker, input);
  if (const auto* rejection = std::get_if<routing::Rejection>(&begun)) {
    return !filter_.picker->KnewAPool() && fails_open() ? LetGo() : Refuse(*rejection);
  }
  phase_ = Phase::kPassed;
  ticket_ = std::get<routing::Ticket>(std::move(begun));
  routing::Worker& router_worker = *worker_->router_worker;
  if (routing::Router::HasPutOff(router_worker)) [[unlikely]]
    filter_.picker->RunElsewhere(routing::Router::TakePutOff(router_worker));
  // Setters end the views into headers: what is needed of them comes first.
  const bool has_content_length = headers.has_content_length;
  const bool has_destination = headers.has_destination;
  if (filter_.config.host_selection == HostSelection::kPolicy) {
    worker_->choices().Add(choice_, input.request_id, ticket_.destinations());
    by_policy_ = !filter_.policy_missing.load(std::memory_order_relaxed);
    if (by_policy_ && filter_.config.last_filter) worker_->choices().ExpectLast();
    if (!by_policy_) choice_.Next();  // the override host; the policy, where it is there, has the others
  }
  if (!headers.control.empty()) RemoveHeaders(headers.control);
  for (const auto& [name, value] : ticket_.request_headers())
    SetHeader(envoy_, HeaderType::kRequest, name, value);
  if (ticket_.asks_load()) AddHeader(envoy_, HeaderType::kRequest, request::kLoadFormat, request::kLoadText);
  if (!own_id.empty()) SetHeader(envoy_, HeaderType::kRequest, "x-request-id", own_id);
  Send(ticket_, has_destination);
  if ((ticket_.rewrites() || ticket_.inserts_model()) && input.body != nullptr) {
    RewriteBody(last_piece, has_content_length);
  }
  EndPending();
  return Verdict::kGoOn;
}

// `names` are views into the headers, which end with the first that goes.
void Stream::RemoveHeaders(const std::vector<std::string_view>& names) {
  const std::vector<std::string> remove(names.begin(), names.end());
  for (const std::string& name : remove) RemoveHeader(envoy_, HeaderType::kRequest, name);
}

[[gnu::hot]] void Stream::Send(const routing::Ticket& ticket, bool has_destination) {
  const std::string_view first = ticket.destination();
  // Requests with one id are told apart by it.
  if (!filter_.config.destination_header && by_policy_ && !choice_.shared()) {
    if (has_destination) RemoveHeader(envoy_, HeaderType::kRequest, request::kDestination);
    return;
  }
  // Envoy looks for a header in a map of all that it then makes: only where the client made it necessary.
  if (has_destination) {
    SetHeader(envoy_, HeaderType::kRequest, request::kDestination, first);
  } else {
    AddHeader(envoy_, HeaderType::kRequest, request::kDestination, first);
  }
  if (by_policy_) return;
  // Not strict: where the cluster does not have it (yet), its own policy chooses.
  FAIRWAY_ENVOY(http_set_upstream_override_host)(envoy_, ToBuffer(first), false);
  // Only for the first try. Retries ask the cluster's policy, and override_host then goes down this list.
  std::string_view rest = ticket.destinations();
  rest.remove_prefix(std::min(rest.size(), first.size() + 1));
  if (!rest.empty()) {
    FAIRWAY_ENVOY(http_set_dynamic_metadata_string)(envoy_, ToBuffer(request::kLbNamespace),
                                                    ToBuffer(request::kDestination), ToBuffer(rest));
  }
}

// The whole body, in place of what `body` had: what Envoy holds, and the piece that came last.
void Stream::CopyBody(BodyPlace last_piece, std::string& body, After after) {
  body.clear();
  body.reserve(pending().body_bytes);
  const auto copy = [&](BodyType type) {
    for (const Buffer& chunk : GetChunks(envoy_, type, worker_->chunks)) body.append(chunk.view());
    if (after == After::kStays) return;
    const size_t size = FAIRWAY_ENVOY(http_get_body_size)(envoy_, type);
    if (size > 0) FAIRWAY_ENVOY(http_drain_body)(envoy_, type, size);
  };
  const bool same =
      last_piece == BodyPlace::kReceived && FAIRWAY_ENVOY(http_received_buffered_request_body)(envoy_);
  if (!same) copy(BodyType::kRequestBuffered);
  if (last_piece == BodyPlace::kReceived) copy(BodyType::kRequestReceived);
}

// Envoy has no way to insert: the body is copied once with the other name, and put in place of the old one.
void Stream::RewriteBody(BodyPlace last_piece, bool has_content_length) {
  std::string& body = worker_->body;
  CopyBody(last_piece, body, After::kGone);
  payload::PutModel(body, pending().scanner.fields(), ticket_.target_model());
  FAIRWAY_ENVOY(http_append_body)(
      envoy_, last_piece == BodyPlace::kReceived ? BodyType::kRequestReceived : BodyType::kRequestBuffered,
      ToBuffer(body));
  if (has_content_length)
    SetHeader(envoy_, HeaderType::kRequest, "content-length", std::to_string(body.size()));
  constexpr size_t kKeepCapacity = 1 << 20;
  if (body.capacity() > kKeepCapacity) std::string().swap(body);
}

Stream::Verdict Stream::Refuse(const routing::Rejection& rejection) {
  phase_ = Phase::kPassed;
  EndPending();
  const std::string body = routing::RejectionBody(rejection);
  const request::RefusalHeaders refusal(rejection);
  std::array<abi::Header, request::RefusalHeaders::kMost + 1> headers;
  size_t count = 0;
  for (const auto& [name, value] : refusal.all())
    headers[count++] = {name.data(), name.size(), value.data(), value.size()};
  std::string grpc_status;
  if (request::IsGrpc(GetHeader(envoy_, HeaderType::kRequest, "content-type"))) {
    grpc_status = std::to_string(request::GrpcStatusOf(rejection.status));
    headers[count++] = {request::kGrpcStatus.data(), request::kGrpcStatus.size(), grpc_status.data(),
                        grpc_status.size()};
  }
  FAIRWAY_ENVOY(http_send_response)(envoy_, static_cast<uint32_t>(rejection.status), headers.data(), count,
                                    ToBuffer(body), ToBuffer(rejection.code));
  return Verdict::kAnswered;
}

// Without a decision, to what the cluster's own policy chooses.
Stream::Verdict Stream::LetGo() {
  phase_ = Phase::kPassed;
  EndPending();
  // What the client sent under this name is not to be taken for our word.
  RemoveHeader(envoy_, HeaderType::kRequest, request::kDestination);
  Count(filter_.counters.failed_open);
  return Verdict::kGoOn;
}

// ---- Waiting for a pool's first endpoints.

bool Stream::ClusterHasHosts() const {
  size_t total = 0;
  size_t healthy = 0;
  size_t degraded = 0;
  // A request that no cluster is for is none of our business.
  return !FAIRWAY_ENVOY(http_get_cluster_host_count)(envoy_, 0, &total, &healthy, &degraded) || total > 0;
}

[[gnu::hot]] void Stream::DropTicket() noexcept {
  WithdrawChoice();  // it views the ticket's texts
  ticket_ = {};
}

bool Stream::Wait() {
  if (phase_ == Phase::kWait) return true;
  abi::Scheduler scheduler = FAIRWAY_ENVOY(http_filter_scheduler_new)(envoy_);
  if (!filter_.picker->waiters().Add(scheduler, filter_.config.max_waiting)) {
    FAIRWAY_ENVOY(http_filter_scheduler_delete)(scheduler);
    return false;
  }
  pending().scheduler = scheduler;
  if (pending().has_body) worker_->bodies.Rest(pending().body);
  phase_ = Phase::kWait;
  Count(filter_.counters.waited);
  return true;
}

void Stream::StopWaiting() {
  if (pending().has_body) worker_->bodies.Remove(pending().body);
  abi::Scheduler scheduler = std::exchange(pending().scheduler, nullptr);
  if (scheduler != nullptr) filter_.picker->waiters().Remove(scheduler);
  if (pending().token_wait != nullptr) std::exchange(pending().token_wait, nullptr)->End();
}

// Its memory is for the worker's next request.
[[gnu::hot]] void Stream::EndPending() {
  Pending& pending = this->pending();
  if (pending.scheduler != nullptr || pending.token_wait != nullptr) StopWaiting();
  if (pending.has_body) worker_->bodies.Remove(pending.body);
  worker_->GivePending(aside_.Take<Pending>());
}

// ---- The response.

[[gnu::hot]] void Stream::OnResponseHeaders(bool end) {
  if (phase_ != Phase::kPassed) {
    // Envoy or another filter answered before the request was complete: nobody waits for it any more.
    phase_ = Phase::kPassed;
    if (!aside_.empty()) EndPending();
  }
  response_ended_ |= end;
  if (!ticket_) return;
  response_ended_ |= tunnel_;
  const bool full = filter_.config.response_mode == ResponseMode::kFull;
  int status = Status();
  if (grpc_ && status == 200) [[unlikely]] {
    // An answer of headers alone.
    const std::string_view grpc_status = GetHeader(envoy_, HeaderType::kResponse, request::kGrpcStatus);
    if (!grpc_status.empty()) status = request::HttpStatusOf(grpc_status);
  }
  bool event_stream = false;
  if (full) {
    const std::string type = base::ToLower(GetHeader(envoy_, HeaderType::kResponse, "content-type"));
    event_stream = type.find("text/event-stream") != std::string::npos;
  }
  ticket_.OnResponseHeaders(status, Served(), event_stream, status == 503 && IsEnvoysOwn());
  if (ticket_.asks_load()) TakeLoad();
  WithdrawChoice();  // from here on nothing is tried again
  for (const auto& [name, value] : ticket_.response_headers())
    SetHeader(envoy_, HeaderType::kResponse, name, value);
  if (full && !end && status < 400) {
    if (!tunnel_ && !request::IsEncoded(GetHeader(envoy_, HeaderType::kResponse, "content-encoding"))) {
      auto reading = std::make_unique<Reading>(payload::UsageScanner(payload::Api{api_}, event_stream));
      if (ticket_.rewrites()) {
        reading->renamer.emplace(ticket_.target_model(), ticket_.model(), event_stream, false,
                                 worker_->renames);
        RemoveHeader(envoy_, HeaderType::kResponse, "content-length");
      }
      aside_.Set(std::move(reading));
    }
  }
  if (end) EndResponse();
}

void Stream::TakeLoad() {
  const std::string_view load = GetHeader(envoy_, HeaderType::kResponse, request::kLoad);
  if (!load.empty()) ticket_.OnLoad(request::ReadLoad(load));
  RemoveHeader(envoy_, HeaderType::kResponse, request::kLoad);
}

// Whether a 503 comes from Envoy, which never tried a server: its limits, no such cluster, another filter's.
bool Stream::IsEnvoysOwn() const {
  return GetAttribute(envoy_, abi::Attribute::kUpstreamAddress).empty() ||
         !GetHeader(envoy_, HeaderType::kResponse, request::kOverloaded).empty();
}

// As an attribute, as the path is. 0: there is none.
[[gnu::hot]] int Stream::Status() const {
  uint64_t status = 0;
  if (FAIRWAY_ENVOY(http_filter_get_attribute_int)(envoy_, abi::Attribute::kResponseCode, &status)) {
    return static_cast<int>(status);
  }
  return base::ParseInteger<int>(GetHeader(envoy_, HeaderType::kResponse, ":status")).value_or(0);
}

// Who answered; "" is the first choice, or nobody.
[[gnu::hot]] std::string_view Stream::Served() {
  const bool known = by_policy_ && !choice_.shared();
  // Our policy was asked once: Envoy went where it was sent to.
  if (known && choice_.asked() == 1) return {};
  const std::string_view served = GetAttribute(envoy_, abi::Attribute::kUpstreamAddress);
  if (known && choice_.asked() == 0 && !served.empty()) ReportMissingPolicy();
  return served;
}

void Stream::ReportMissingPolicy() {
  if (filter_.policy_missing.exchange(true, std::memory_order_relaxed)) return;
  Buffer cluster{nullptr, 0};
  if (!FAIRWAY_ENVOY(http_get_cluster_name)(envoy_, &cluster)) cluster = {nullptr, 0};
  filter_.picker->log().Warn(
      "hostSelection is policy, but a request's cluster has another load-balancing policy than the "
      "module's (or its x-request-id was changed after the picker saw it); requests are sent by override "
      "host from now on. Give the cluster the module's policy (lb_policy_name: fairway), or write "
      "hostSelection: overrideHost",
      {{"cluster", std::string(cluster.view())}});
}

[[gnu::hot]] void Stream::OnResponseBody(bool end) {
  response_ended_ |= end;
  if (!ticket_ || filter_.config.response_mode != ResponseMode::kFull) {
    if (!ticket_) return;
    ticket_.OnFirstToken();
    if (end) EndResponse();
    return;
  }
  const size_t bytes = FAIRWAY_ENVOY(http_get_body_size)(envoy_, BodyType::kResponseReceived);
  ticket_.OnResponseBody(bytes);
  if (Reading* reading = aside_.Get<Reading>(); reading != nullptr && bytes > 0) {
    bool changed = false;
    std::string& body = worker_->body;
    body.clear();
    for (const Buffer& chunk : GetChunks(envoy_, BodyType::kResponseReceived, worker_->chunks)) {
      reading->usage.Feed(chunk.view());
      if (!reading->renamer) continue;
      const std::string_view renamed = reading->renamer->Feed(chunk.view());
      changed |= renamed.data() != chunk.data;
      body.append(renamed);
    }
    if (changed) {
      FAIRWAY_ENVOY(http_drain_body)(envoy_, BodyType::kResponseReceived, bytes);
      FAIRWAY_ENVOY(http_append_body)(envoy_, BodyType::kResponseReceived, ToBuffer(body));
    }
  }
  if (end) EndResponse();
}

void Stream::OnResponseTrailers() {
  response_ended_ = true;
  if (!ticket_) return;
  if (grpc_) {
    const std::string_view status = GetHeader(envoy_, HeaderType::kResponseTrailer, request::kGrpcStatus);
    if (!status.empty() && request::HttpStatusOf(status) >= 400) ticket_.OnError();
  }
  EndResponse();
}

[[gnu::hot]] void Stream::EndResponse() {
  if (!aside_.empty()) EndReading();
  ticket_.OnComplete();
}

void Stream::EndReading() {
  const auto reading = aside_.Take<Reading>();
  if (reading == nullptr) return;
  reading->usage.Finish();
  if (reading->usage.usage().found) ticket_.OnUsage(reading->usage.usage());
}

[[gnu::hot]] void Stream::OnComplete() {
  if (aside_.Get<Pending>() != nullptr) EndPending();
  phase_ = Phase::kPassed;
  // Over before its answer was: the client, the model server or Envoy gave up.
  if (ticket_ && !response_ended_) ticket_.Abort();
  DropTicket();
  if (worker_ != nullptr) worker_->bodies.Leave(envoy_);
  worker_ = nullptr;
}

// ---- Faults.

bool Stream::OnFault(std::string_view what) noexcept {
  Count(filter_.counters.faults);
  try {
    if (filter_.fault_log.Allow(filter_.picker->clock().Now())) {
      filter_.picker->log().Error("a fault in the picker", {{"error", std::string(what)}});
    }
  } catch (const std::exception&) {
    Count(filter_.counters.faults);  // no memory even for the message
  }
  DropTicket();
  if (aside_.Get<Pending>() != nullptr) StopWaiting();
  aside_.Reset();
  if (phase_ == Phase::kPassed) return true;  // it has its answer, or went its way
  phase_ = Phase::kPassed;
  if (fails_open()) {
    // What the client sent under this name is not to be taken for our word.
    RemoveHeader(envoy_, HeaderType::kRequest, request::kDestination);
    Count(filter_.counters.failed_open);
    return true;
  }
  constexpr std::string_view kBody = "inference error: Internal - internal error";
  FAIRWAY_ENVOY(http_send_response)(envoy_, 500, nullptr, 0, ToBuffer(kBody), ToBuffer("Internal"));
  return false;
}

}  // namespace fairway::envoy_module
