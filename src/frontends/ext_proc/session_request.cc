// The request's half of a session: headers, body, decision.
#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "base/strings.h"
#include "frontends/ext_proc/session.h"
#include "frontends/request/headers.h"

namespace fairway::ext_proc {

namespace {

constexpr uint64_t kMaxBodyReserve = 4u << 20;  // a content-length is only a claim
constexpr size_t kMaxId = 256;                  // bytes kept of each id and name in a header
constexpr size_t kMaxWantedValue = 16 << 10;    // of headers that plugins read; a longer one counts as none
constexpr size_t kMaxHeaders = 10'000;          // Envoy takes 100 of a client, unless it is told to take more
constexpr size_t kKeptForFree = 1024;           // what a call's own cost covers

// At a character: what does not begin one goes with the one it belongs to.
std::string_view Cut(std::string_view text) {
  if (text.size() <= kMaxId) return text;
  size_t end = kMaxId;
  while (end > kMaxId - 4 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end);
}

}  // namespace

// ---- What the gateway says of the request.

void Session::ReadSubsetHint(std::string_view metadata) {
  if (metadata.empty()) return;
  const auto hints = FindMetadata(metadata, request::kHintNamespace);
  if (!hints) return;
  const auto value = FindField(*hints, request::kHintKey);
  if (!value) return;
  if (value->kind == ValueView::Kind::kString) {
    subset_.emplace();
    request::AddHints(value->bytes, *subset_);
  } else if (value->kind == ValueView::Kind::kList) {
    subset_.emplace();
    ForEachValue(value->bytes, [this](const ValueView& entry) {
      if (entry.kind == ValueView::Kind::kString) request::AddHints(entry.bytes, *subset_);
    });
  }
  MeasureTexts();
}

std::optional<routing::Rejection> Session::ChooseParser(std::string_view path) {
  const auto api = payload::ApiOfPath(path, shared_.router.ParsersOf(shared_.worker, pool_key_));
  api_ = api.value_or(payload::Api::kUnknown);
  if (api) return std::nullopt;
  return request::NoParser(path);
}

bool Session::ReadRequestHeaders(std::string_view header_map, std::optional<routing::Rejection>& too_many,
                                 std::optional<routing::Rejection>& no_parser) {
  request::HeaderReader reader(shared_.router.WantedHeaders(shared_.worker));
  size_t count = 0;
  const bool ok = ForEachHeader(header_map, [&](std::string_view name, std::string_view value) {
    if (++count <= kMaxHeaders) reader.Add(name, value);
  });
  if (count > kMaxHeaders) {
    too_many = {431, "RequestTooLarge",
                "the request has more than " + std::to_string(kMaxHeaders) + " headers", ""};
  }
  const request::RequestHeaders headers = reader.Finish();
  no_parser = ChooseParser(headers.path);
  request_id_ = Cut(headers.request_id);
  fairness_id_ = Cut(headers.fairness_id);
  model_rewrite_ = headers.model_rewrite;  // half a name would be another model's
  objective_ = Cut(headers.objective);
  tunnel_ = headers.tunnel;
  unreadable_body_ = headers.unreadable_body;
  has_content_length_ = headers.has_content_length;
  if_available_ = headers.if_available;
  asks_load_ = headers.asks_load;
  grpc_ = headers.grpc;
  content_length_ = headers.content_length;
  remove_headers_.assign(headers.control.begin(), headers.control.end());
  wanted_headers_.clear();
  for (const auto& [name, value] : headers.wanted)
    if (value.size() <= kMaxWantedValue) wanted_headers_.emplace_back(name, value);
  if (request_id_.empty()) {
    request_id_ = request::NewRequestId(shared_.random);
    generated_id_ = true;
  }
  MeasureTexts();
  return ok;
}

// Of headers and hints. Once, and not with each message: there may be a thousand.
void Session::MeasureTexts() {
  texts_ = model_rewrite_.capacity();
  for (const std::string& name : remove_headers_) texts_ += sizeof(std::string) + name.capacity();
  for (const auto& [name, value] : wanted_headers_)
    texts_ += 2 * sizeof(std::string) + name.capacity() + value.capacity();
  if (!subset_) return;
  for (const auto& entry : *subset_) texts_ += sizeof(std::string) + entry.size();
}

// Counts what is kept of headers, hints, the body's reading and the answer's, where that is more than usual.
// False: there is no memory for it.
bool Session::CountKept() {
  size_t kept = texts_ + (scanner_ ? scanner_->memory() : 0) + (renamer_ ? renamer_->memory() : 0);
  if (kept <= kKeptForFree) kept = 0;
  if (kept < kept_) sink_.Release(kept_ - kept);
  if (kept > kept_ && !sink_.Reserve(kept - kept_)) {
    finished_ = true;
    return false;
  }
  kept_ = kept;
  return true;
}

// What was found in the body has had its use.
void Session::EndScan() {
  if (!scanner_) return;
  scanner_.reset();
  CountKept();
}

// ---- Messages.

void Session::OnRequestHeaders(const RequestMessage& message) {
  if (headers_seen_ || request_ != RequestPhase::kStart)
    return Violation("request headers came twice or after the body");
  headers_seen_ = true;
  received_at_ = message_at_;
  std::optional<routing::Rejection> too_many;
  std::optional<routing::Rejection> no_parser;
  if (!ReadRequestHeaders(message.headers, too_many, no_parser)) {
    shared_.metrics.MalformedMessage();
    return Close(net::GrpcStatus::kInvalidArgument, "malformed headers");
  }
  if (too_many) return RefuseUncounted(*too_many);
  if (!CountKept()) return;
  request_ended_ = message.end_of_stream;
  if (message.end_of_stream || tunnel_ || request_mode() == BodyMode::kNone) return DecideByLoad();
  if (no_parser) return RefuseUncounted(*no_parser);

  // STREAMED holds a body back for its model, which a gRPC message has none of.
  const bool reads =
      request_mode() != BodyMode::kStreamed || (api_ != payload::Api::kUnknown && !IsGrpc(api_));
  if (reads) NewScanner();
  switch (request_mode()) {
    case BodyMode::kNone:
      break;
    case BodyMode::kStreamed:
      if (modes_ && modes_->send_body_without_waiting) {
        if (!scanner_) NewScanner();
        request_ = RequestPhase::kCollect;
        return WaitForBody();
      }
      // Envoy sends no body before it has our answer to the headers.
      {
        routing::RequestInput input = Input();
        input.body = nullptr;
        input.body_complete = false;
        input.provisional = scanner_.has_value();
        if (!Decide(input)) return;
        SendDecision(ReplyKind::kRequestHeaders, false, scanner_ ? Length::kRemove : Length::kKeep);
      }
      if (scanner_) {
        request_ = RequestPhase::kPass;
        WaitForBody();
      }
      return;
    case BodyMode::kBuffered:
    case BodyMode::kBufferedPartial:
      // The decision comes with the body, and its header mutations then still count. What the client must not
      // say is taken away now: with trailers and no body there is no second chance.
      {
        std::vector<std::string_view> remove(remove_headers_.begin(), remove_headers_.end());
        remove.push_back(request::kDestination);
        Send({.kind = ReplyKind::kRequestHeaders, .remove_headers = remove});
        headers_answered_ = true;
      }
      request_ = RequestPhase::kCollect;
      return WaitForBody();
    case BodyMode::kFullDuplexStreamed:
      request_ = RequestPhase::kCollect;
      return WaitForBody();
  }
}

bool Session::StartWithoutHeaders() {
  received_at_ = message_at_;
  if (const auto no_parser = ChooseParser(request::HeaderReader().Finish().path)) {
    RefuseUncounted(*no_parser);
    return false;
  }
  NewScanner();
  request_ = RequestPhase::kCollect;
  return true;
}

void Session::WaitForBody() {
  const SessionOptions& options = shared_.options;
  base::Nanos wait = options.body_timeout;
  if (request_ == RequestPhase::kCollect) {
    const BodyMode mode = request_mode();
    if (mode == BodyMode::kBuffered || mode == BodyMode::kBufferedPartial) wait = options.buffered_timeout;
    if (!modes_ && !body_seen_ && body_bytes_ == 0) wait = options.mode_timeout;
  }
  // However it drips: what the longest wait is has an end, too.
  deadline_ = std::min(message_at_ + wait, received_at_ + std::max(wait, options.buffered_timeout));
}

// False: there are too many.
bool Session::CountBody(size_t bytes) {
  if (bytes > shared_.options.max_body - std::min(shared_.options.max_body, body_bytes_)) {
    RefuseUncounted({413, "RequestTooLarge",
                     "request body is larger than " + std::to_string(shared_.options.max_body) + " bytes",
                     ""});
    return false;
  }
  body_bytes_ += bytes;
  return true;
}

bool Session::TakeBody(std::string_view bytes) {
  if (bytes.empty()) return true;
  const bool first = body_bytes_ == 0;
  if (!CountBody(bytes.size())) return false;
  if (dropped_) return true;
  // What the string will take is counted before it takes it.
  size_t room = body_.capacity();
  if (first) room = std::max<size_t>(bytes.size(), std::min(content_length_, kMaxBodyReserve));
  if (body_.size() + bytes.size() > room) room = std::max(body_.size() + bytes.size(), 2 * room);
  if (room > reserved_) {
    if (!sink_.Reserve(room - reserved_)) {
      finished_ = true;
      return false;
    }
    reserved_ = room;
  }
  body_.reserve(room);
  body_.append(bytes);
  if (!scanner_) return true;
  scanner_->Feed(bytes);
  return CountKept();
}

void Session::OnRequestBody(const RequestMessage& message) {
  if (request_ended_) return Violation("request body after the end of the request");
  request_ended_ = message.end_of_stream;
  if (request_ == RequestPhase::kDone) {
    if (request_mode() != BodyMode::kFullDuplexStreamed) return SendPlain(ReplyKind::kRequestBody);
    if (tunnel_ && ticket_) {
      return SendPieces(ReplyKind::kRequestBody, message.body, message.end_of_stream);
    }
    // An answer from elsewhere came first: nobody waits for this body any more.
    if (!ticket_) return;
    return Violation("request body after its answer");
  }
  if (request_ == RequestPhase::kWaiting) return Violation("request body before the answer to the last one");
  if (request_ == RequestPhase::kStart && !StartWithoutHeaders()) return;
  body_seen_ = true;
  if (request_ == RequestPhase::kThrough) {
    if (CountBody(message.body.size())) PassThrough(message.body, message.end_of_stream);
    return;
  }
  if (!TakeBody(message.body)) return;
  ++unanswered_chunks_;
  if (request_ == RequestPhase::kPass) {
    PassChunk(message.end_of_stream);
  } else {
    AfterChunk(message.end_of_stream);
  }
}

void Session::AfterChunk(bool end_of_stream) {
  const End end = end_of_stream ? End::kBody : End::kPartial;
  switch (request_mode()) {
    case BodyMode::kFullDuplexStreamed:
      if (end_of_stream) return FinishRequest(End::kBody);
      return WaitForBody();
    case BodyMode::kBuffered:
      return FinishRequest(End::kBody);  // without end_of_stream when trailers follow
    case BodyMode::kBufferedPartial:
    case BodyMode::kNone:
      return FinishRequest(end);
    case BodyMode::kStreamed:
      if (end_of_stream || scanner_->fields().has_model || !scanner_->ok() ||
          body_bytes_ >= shared_.options.max_streamed_wait) {
        return FinishRequest(end);
      }
      return WaitForBody();
  }
}

// FULL_DUPLEX_STREAMED, decided already: a chunk goes back as it came.
void Session::PassThrough(std::string_view bytes, bool end_of_stream) {
  if (!bytes.empty() || end_of_stream) SendPieces(ReplyKind::kRequestBody, bytes, end_of_stream);
  if (end_of_stream) {
    request_ = RequestPhase::kDone;
    deadline_ = 0;
  } else if (response_ == ResponsePhase::kStart) {
    WaitForBody();
  }
}

void Session::OnRequestTrailers() {
  if (request_ended_) return Violation("request trailers after the end of the request");
  request_ended_ = true;
  switch (request_) {
    case RequestPhase::kCollect:
      return FinishRequest(End::kTrailers);
    case RequestPhase::kPass:
      if (!body_.empty()) {  // what is held back has no message left to go with
        return RefuseUncounted(
            {400, "BadRequest", "the request ended in trailers before its body named a model", ""});
      }
      [[fallthrough]];
    case RequestPhase::kThrough:
      request_ = RequestPhase::kDone;
      deadline_ = 0;
      return SendPlain(ReplyKind::kRequestTrailers);
    case RequestPhase::kWaiting:
      return Violation("request trailers before the answer to the body");
    case RequestPhase::kStart:
    case RequestPhase::kDone:
      return SendPlain(ReplyKind::kRequestTrailers);
  }
}

void Session::OnDeadline() {
  if (finished_ || deadline_ == 0) return;
  message_at_ = shared_.clock.Now();
  decided_ = false;
  deadline_ = 0;
  if (request_ == RequestPhase::kWaiting) return OnTokens(nullptr);
  if (request_ == RequestPhase::kCollect && !modes_ && headers_seen_ && !body_seen_ && body_bytes_ == 0) {
    shared_.metrics.ModeGuessed();
    guessed_ = true;
    EndScan();
    return DecideByLoad();
  }
  shared_.metrics.TimedOut();
  RefuseUncounted({408, "RequestTimeout", "the request's body did not come in time", ""});
}

// ---- The decision.

routing::RequestInput Session::Input() const {
  routing::RequestInput input;
  input.pool_key = pool_key_;
  input.request_id = request_id_;
  // What can be read is, whatever its headers claim: else they would be a way round models and criticality.
  input.body = scanner_ && (!unreadable_body_ || scanner_->ok()) ? &*scanner_ : nullptr;
  input.body_bytes = body_bytes_;
  input.fairness_id = fairness_id_;
  input.model_rewrite = model_rewrite_;
  input.objective = objective_;
  input.if_available = if_available_;
  input.asks_load = asks_load_;
  shared_.wanted_headers.assign(wanted_headers_.begin(), wanted_headers_.end());
  input.headers = shared_.wanted_headers;
  input.subset = subset_ ? &*subset_ : nullptr;
  input.received_at = received_at_;
  const BodyMode answer = response_mode();
  input.shows_answer = answer == BodyMode::kStreamed || answer == BodyMode::kFullDuplexStreamed;
  return input;
}

bool Session::Decide(const routing::RequestInput& input) {
  request_ = RequestPhase::kDone;
  deadline_ = 0;
  auto begun = shared_.router.Begin(shared_.worker, input);
  if (auto* rejection = std::get_if<routing::Rejection>(&begun)) {
    Refuse(*rejection);
    return false;
  }
  ticket_.emplace(std::get<routing::Ticket>(std::move(begun)));
  decided_ = true;
  if (routing::Router::HasPutOff(shared_.worker) && shared_.has_put_off) [[unlikely]]
    shared_.has_put_off();
  if (body_seen_) shared_.metrics.BodyWaited(message_at_ - received_at_);
  return true;
}

void Session::DecideByLoad() {
  routing::RequestInput input = Input();
  input.body = nullptr;
  if (Decide(input)) SendDecision(ReplyKind::kRequestHeaders, false, Length::kKeep);
}

void Session::FinishRequest(End end) {
  const bool complete = end != End::kPartial;
  if (scanner_ && complete) scanner_->Finish();
  if (scanner_ && !complete) scanner_->FinishPartial();
  routing::RequestInput input = Input();
  input.body_complete = complete;
  if (complete && AskTokens(input, end)) return;
  FinishDecided(input, end);
}

// True: the request waits for its tokens, and holds nothing but its own memory.
bool Session::AskTokens(const routing::RequestInput& input, End end) {
  if (!shared_.ask_tokens || dropped_ || body_.empty() || !scanner_) return false;
  auto question = shared_.router.AskForTokens(shared_.worker, input);
  if (!question) return false;
  std::string body = body_;
  if (!question->model.empty() && !payload::PutModel(body, scanner_->fields(), question->model)) return false;
  request_ = RequestPhase::kWaiting;
  waiting_end_ = end;
  waiting_ = std::make_shared<Session*>(this);
  // It is told of the end of its time by the answer; this is for one that never comes.
  deadline_ = message_at_ + question->timeout + base::kSecond;
  shared_.ask_tokens({std::move(question->host), question->port, std::move(question->path), std::move(body),
                      question->timeout, question->media},
                     [waiting = std::weak_ptr<Session*>(waiting_)](
                         const std::shared_ptr<const payload::PromptTokens>& tokens) {
                       const auto session = waiting.lock();
                       if (session == nullptr) return;
                       Session& self = **session;
                       self.sink_.Run([&] { self.OnTokens(tokens); });
                     });
  return true;
}

// Null: it is decided by what else is known.
void Session::OnTokens(const std::shared_ptr<const payload::PromptTokens>& tokens) {
  if (request_ != RequestPhase::kWaiting || finished_) return;
  waiting_.reset();
  message_at_ = shared_.clock.Now();
  decided_ = false;
  routing::RequestInput input = Input();
  input.tokens = tokens;
  FinishDecided(input, waiting_end_);
  if (decided_) shared_.metrics.RequestProcessed(shared_.clock.Now() - message_at_);
}

void Session::FinishDecided(const routing::RequestInput& input, End end) {
  if (!Decide(input)) return;
  const bool rewritten = SpliceModel();
  EndScan();
  switch (request_mode()) {
    case BodyMode::kFullDuplexStreamed:
      SendDecision(ReplyKind::kRequestHeaders, false, Length::kKeep);  // Envoy drops content-length itself
      if (end == End::kBody || !body_.empty()) SendRequestPieces(end == End::kBody);
      break;
    case BodyMode::kStreamed:
      if (headers_seen_) {
        SendDecision(ReplyKind::kRequestHeaders, false, rewritten ? Length::kRemove : Length::kKeep);
      } else if (unanswered_chunks_ == 0) {
        return SendDecision(ReplyKind::kRequestTrailers, false, Length::kKeep);
      }
      for (size_t i = 0; i < unanswered_chunks_; ++i) {
        const bool last = i + 1 == unanswered_chunks_;
        if (!headers_answered_) {
          SendDecision(ReplyKind::kRequestBody, rewritten && last, Length::kKeep);
        } else if (!rewritten) {
          SendPlain(ReplyKind::kRequestBody);
        } else if (last) {
          SendWithBody(
              {.kind = ReplyKind::kRequestBody, .body = Reply::Body::kReplace, .body_size = body_.size()});
        } else {
          Send({.kind = ReplyKind::kRequestBody, .body = Reply::Body::kClear});
        }
      }
      break;
    case BodyMode::kNone:
    case BodyMode::kBuffered:
    case BodyMode::kBufferedPartial: {
      if (end == End::kTrailers) {
        // No body message ever came: only metadata can say where to go.
        SendDecision(ReplyKind::kRequestTrailers, false, Length::kKeep);
        return;
      }
      const bool whole = request_mode() == BodyMode::kBuffered && has_content_length_;
      SendDecision(ReplyKind::kRequestBody, rewritten,
                   !rewritten ? Length::kKeep
                   : whole    ? Length::kSet
                              : Length::kRemove);
      break;
    }
  }
  if (end == End::kTrailers) SendPlain(ReplyKind::kRequestTrailers);
}

// Memory is short: by what is known of the body, which is kept no longer.
void Session::DecideEarly() {
  switch (request_mode()) {
    case BodyMode::kFullDuplexStreamed: {
      if (!modes_ && headers_seen_ && body_bytes_ == 0) return OnDeadline();  // it may not be that mode
      scanner_->FinishPartial();
      routing::RequestInput input = Input();
      input.body_complete = false;
      if (!Decide(input)) return;
      SpliceModel();
      EndScan();
      request_ = RequestPhase::kThrough;
      SendDecision(ReplyKind::kRequestHeaders, false, Length::kKeep);
      if (!body_.empty()) SendRequestPieces(false);
      return WaitForBody();
    }
    case BodyMode::kStreamed:
      return FinishRequest(End::kPartial);
    case BodyMode::kNone:
    case BodyMode::kBuffered:
    case BodyMode::kBufferedPartial:
      // The gateway sends it all at once and keeps it itself.
      dropped_ = true;
      EndScan();
      return FreeBody();
  }
}

// STREAMED: the endpoint is chosen, the body passes by. It is held back until its model is known.
void Session::PassChunk(bool end_of_stream) {
  if (!end_of_stream && !scanner_->fields().has_model && scanner_->ok()) {
    ++cleared_chunks_;
    Send({.kind = ReplyKind::kRequestBody, .body = Reply::Body::kClear});
    return WaitForBody();
  }
  const bool held = cleared_chunks_ > 0;
  if (!SettleModel(end_of_stream)) return;
  const bool changed = SpliceModel() || held;
  EndScan();
  if (changed) {
    SendWithBody({.kind = ReplyKind::kRequestBody, .body = Reply::Body::kReplace, .body_size = body_.size()});
  } else {
    SendPlain(ReplyKind::kRequestBody);
  }
}

bool Session::SettleModel(bool complete) {
  if (complete) {
    scanner_->Finish();
  } else {
    scanner_->FinishPartial();
  }
  // The same endpoint again, now with a name: the gateway has connected to it already.
  const routing::SubsetHint chosen = {std::string(ticket_->destination())};
  ticket_.reset();
  routing::RequestInput input = Input();
  input.body_complete = complete;
  input.subset = &chosen;
  return Decide(input);
}

bool Session::SpliceModel() {
  return (ticket_->rewrites() || ticket_->inserts_model()) && scanner_ &&
         payload::PutModel(body_, scanner_->fields(), ticket_->target_model());
}

// Of Ticket::request_headers.
constexpr size_t kMaxTicketHeaders = 8;

void Session::SendDecision(ReplyKind kind, bool replace_body, Length length) {
  constexpr size_t kMaxOwn = 4;
  std::array<SetHeader, kMaxOwn + kMaxTicketHeaders> set;
  size_t count = 0;
  set[count++] = {request::kDestination, ticket_->destination()};
  for (const auto& [name, value] : ticket_->request_headers()) {
    if (count < kMaxTicketHeaders) set[count++] = {name, value};
  }
  if (ticket_->asks_load()) set[count++] = {request::kLoadFormat, request::kLoadText};
  if (generated_id_) set[count++] = {"x-request-id", request_id_};
  const std::string size = length == Length::kSet ? std::to_string(body_.size()) : std::string();
  if (length == Length::kSet) set[count++] = {"content-length", size};
  std::vector<std::string_view> remove;
  if (!headers_answered_) remove.assign(remove_headers_.begin(), remove_headers_.end());
  // What is set is not removed as well: which of the two counts is the gateway's affair.
  std::erase_if(remove, [&](std::string_view name) {
    return std::any_of(set.begin(), set.begin() + static_cast<std::ptrdiff_t>(count),
                       [&](const SetHeader& header) { return header.name == name; });
  });
  if (length == Length::kRemove && has_content_length_) remove.emplace_back("content-length");
  const LbMetadata metadata = {ticket_->destinations(), ticket_->scores()};
  const Reply reply = {.kind = kind,
                       .set_headers = std::span(set.data(), count),
                       .remove_headers = remove,
                       .clear_route_cache = true,
                       .body = replace_body ? Reply::Body::kReplace : Reply::Body::kUnchanged,
                       .body_size = replace_body ? body_.size() : 0,
                       .metadata = &metadata};
  replace_body ? SendWithBody(reply) : Send(reply);
  headers_answered_ = true;
}

void Session::Refuse(const routing::Rejection& rejection) {
  const request::RefusalHeaders refusal(rejection);
  std::array<SetHeader, request::RefusalHeaders::kMost> headers;
  size_t count = 0;
  for (const auto& [name, value] : refusal.all()) headers[count++] = {name, value};
  const std::string body = routing::RejectionBody(rejection);
  WriteImmediate(shared_.writer, {.status = rejection.status,
                                  .headers = std::span(headers.data(), count),
                                  .body = body,
                                  .details = rejection.code,
                                  .grpc_status = grpc_ ? request::GrpcStatusOf(rejection.status) : 0});
  sink_.Send(shared_.writer.view());
  // A request that was let go to an endpoint before it was refused has not run there.
  ticket_.reset();
  Close(net::GrpcStatus::kOk, {});
}

void Session::NewScanner() {
  scanner_.emplace(api_);
  if (shared_.router.wants_prefixes()) scanner_->HashPrompt(true, shared_.router.wants_tokens());
}

void Session::RefuseUncounted(const routing::Rejection& rejection) {
  routing::RequestInput input = Input();
  shared_.router.CountRejection(shared_.worker, input, rejection);
  Refuse(rejection);
}

}  // namespace fairway::ext_proc
