#include "frontends/ext_proc/session.h"

#include <algorithm>
#include <utility>

namespace fairway::ext_proc {

namespace {

constexpr size_t kCopiedBody = 4096;  // sharing one costs more than copying this much

}  // namespace

Session::Session(SessionShared& shared, Sink& sink, std::string pool_key)
    : shared_(shared), sink_(sink), pool_key_(std::move(pool_key)) {}

Session::~Session() = default;

BodyMode Session::request_mode() const {
  if (modes_) return modes_->request_body;
  return guessed_ ? BodyMode::kStreamed : BodyMode::kFullDuplexStreamed;
}

BodyMode Session::response_mode() const {
  if (modes_) return modes_->response_body;
  return guessed_ ? BodyMode::kStreamed : BodyMode::kFullDuplexStreamed;
}

void Session::OnMessage(std::string_view bytes) {
  if (finished_) return;
  RequestMessage message;
  if (!ParseRequest(bytes, message)) {
    shared_.metrics.MalformedMessage();
    Close(net::GrpcStatus::kInvalidArgument, "malformed ProcessingRequest");
    return;
  }
  Handle(message);
}

bool Session::TakesBodyPieces() const {
  return !finished_ && !observing_ && !request_ended_ && request_ != RequestPhase::kWaiting &&
         request_ != RequestPhase::kDone;
}

void Session::OnBodyPiece(std::string_view bytes) {
  if (!TakesBodyPieces()) return;
  message_at_ = shared_.clock.Now();
  if (request_ == RequestPhase::kStart) StartWithoutHeaders();
  if (request_ == RequestPhase::kThrough) {
    if (CountBody(bytes.size())) PassThrough(bytes, false);
    return;
  }
  if (TakeBody(bytes)) WaitForBody();
}

void Session::OnBodyTail(std::string_view tail, size_t inner_tail) {
  if (finished_) return;
  RequestMessage message;
  if (!ParseBodyTail(tail, inner_tail, message)) {
    shared_.metrics.MalformedMessage();
    Close(net::GrpcStatus::kInvalidArgument, "malformed ProcessingRequest");
    return;
  }
  Handle(message);
}

void Session::Handle(const RequestMessage& message) {
  message_at_ = shared_.clock.Now();
  if (first_message_) {
    first_message_ = false;
    modes_ = message.protocol_config;
    observing_ = message.observability_mode;
    if (observing_) {
      deadline_ = 0;
      FreeBody();
    }
  } else if (message.observability_mode && !observing_) {
    return Violation("observability mode can only begin with the first message");
  }
  // The gateway throws away what it is answered; there is nobody to pick for.
  if (observing_) return;
  decided_ = false;
  switch (message.kind) {
    case MessageKind::kNone:
      if (request_ == RequestPhase::kStart && response_ == ResponsePhase::kStart && deadline_ == 0) {
        deadline_ = message_at_ + shared_.options.start_timeout;
      }
      break;
    case MessageKind::kRequestHeaders:
      ReadSubsetHint(message.metadata);
      OnRequestHeaders(message);
      break;
    case MessageKind::kRequestBody:
      ReadSubsetHint(message.metadata);
      if (CountKept()) OnRequestBody(message);
      break;
    case MessageKind::kRequestTrailers:
      ReadSubsetHint(message.metadata);
      if (CountKept()) OnRequestTrailers();
      break;
    case MessageKind::kResponseHeaders:
      OnResponseHeaders(message);
      break;
    case MessageKind::kResponseBody:
      OnResponseBody(message);
      break;
    case MessageKind::kResponseTrailers:
      OnResponseTrailers(message);
      break;
  }
  if (decided_) shared_.metrics.RequestProcessed(shared_.clock.Now() - message_at_);
}

void Session::OnHalfClose() {
  half_closed_ = true;
  if (finished_) return;
  Close(net::GrpcStatus::kOk, {});
}

void Session::OnGone() {
  finished_ = true;
  EndTicket();
}

// The exchange is over, by the gateway's word. What was seen of the answer decides: to the end (then
// OnComplete came before, and this does nothing), its beginning, or nothing.
void Session::EndTicket() {
  if (!ticket_) return;
  if (response_ == ResponsePhase::kStart) {
    // A gateway that does not send us responses half-closes in its own time; one that resets gave up.
    half_closed_ ? ticket_->Detach() : ticket_->Abort();
  } else if (!ShowsResponse()) {
    ticket_->Detach();  // the rest was not for us
  } else if (tunnel_) {
    ticket_->OnComplete();  // whoever hangs up: it has no other end
  } else {
    ticket_->Abort();  // in the middle of an answer that we were being shown
  }
  ticket_.reset();
}

// Whether the gateway shows us the answer to its end. One that does not say so has when it showed a piece.
bool Session::ShowsResponse() const {
  return modes_ ? modes_->response_body != BodyMode::kNone : response_body_seen_;
}

bool Session::LetGo() {
  if (finished_ || observing_) return false;
  message_at_ = shared_.clock.Now();
  decided_ = false;
  if (request_ != RequestPhase::kCollect || request_ended_) return false;
  shared_.metrics.DecidedEarly();
  DecideEarly();
  if (decided_) shared_.metrics.RequestProcessed(shared_.clock.Now() - message_at_);
  return true;
}

void Session::FreeBody() {
  std::string().swap(body_);
  sink_.Release(std::exchange(reserved_, 0));
}

net::SharedBytes Session::ShareBody() {
  net::SharedBytes shared = sink_.Share(std::move(body_));
  FreeBody();
  return shared;
}

void Session::Violation(std::string_view what) {
  shared_.metrics.ProtocolViolation();
  Close(net::GrpcStatus::kInvalidArgument, what);
}

void Session::Close(net::GrpcStatus status, std::string_view message) {
  finished_ = true;
  deadline_ = 0;
  scanner_.reset();
  // We end it, and the gateway may let the answer go on without us.
  if (ticket_ && status != net::GrpcStatus::kOk && response_ != ResponsePhase::kStart) ticket_->Detach();
  EndTicket();
  sink_.Finish(status, message);
}

// ---- Replies.

void Session::Send(const Reply& reply, std::string_view body) {
  WriteReply(shared_.writer, reply);
  sink_.Send(shared_.writer.view());
  if (!body.empty()) sink_.Send(body);
}

// A reply that ends with the request's whole body, which is not needed here any more.
void Session::SendWithBody(const Reply& reply) {
  if (body_.size() <= kCopiedBody) {
    Send(reply, body_);
    return FreeBody();
  }
  Send(reply);
  sink_.Send(ShareBody());
}

void Session::SendPlain(ReplyKind kind) { Send({.kind = kind}); }

void Session::SendPieces(ReplyKind kind, std::string_view body, bool end_of_stream) {
  do {
    const std::string_view piece = body.substr(0, kMaxBodyPiece);
    body.remove_prefix(piece.size());
    Send({.kind = kind,
          .body = Reply::Body::kStreamed,
          .body_size = piece.size(),
          .end_of_stream = end_of_stream && body.empty()},
         piece);
  } while (!body.empty());
}

// The request's body as it is here, which is not needed any more.
void Session::SendRequestPieces(bool end_of_stream) {
  if (body_.size() <= kCopiedBody) {
    SendPieces(ReplyKind::kRequestBody, body_, end_of_stream);
    return FreeBody();
  }
  const net::SharedBytes body = ShareBody();
  for (size_t at = 0; at < body.size(); at += kMaxBodyPiece) {
    const net::SharedBytes piece = body.Slice(at, kMaxBodyPiece);
    Send({.kind = ReplyKind::kRequestBody,
          .body = Reply::Body::kStreamed,
          .body_size = piece.size(),
          .end_of_stream = end_of_stream && at + piece.size() == body.size()});
    sink_.Send(piece);
  }
}

}  // namespace fairway::ext_proc
