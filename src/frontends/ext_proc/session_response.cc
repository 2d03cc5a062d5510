// The response's half of a session: who served, how it ended, what it used; bodies pass as they are.
#include <array>
#include <optional>

#include "base/strings.h"
#include "frontends/ext_proc/session.h"
#include "frontends/request/headers.h"

namespace fairway::ext_proc {

namespace {

constexpr std::string_view kServed = "x-gateway-destination-endpoint-served";

// What an answer's headers say. Views into the message.
struct ResponseHead {
  int status = 0;
  bool event_stream = false;
  bool encoded = false;
  bool by_gateway = false;
  bool has_length = false;
  std::optional<std::string_view> load;  // of several the first that says something
};

// False: they are malformed. `grpc`: an answer of headers alone may say that it failed.
bool ReadHead(std::string_view header_map, bool grpc, ResponseHead& head) {
  std::string_view grpc_status;
  const bool ok = ForEachHeader(header_map, [&](std::string_view name, std::string_view value) {
    if (name == ":status") {
      head.status = base::ParseInteger<int>(value).value_or(0);
    } else if (name == "content-type") {
      head.event_stream = base::ToLower(value).find("text/event-stream") != std::string::npos;
    } else if (name == "content-encoding") {
      head.encoded |= request::IsEncoded(value);
    } else if (name == "content-length") {
      head.has_length = true;
    } else if (name == request::kLoad) {
      if (head.load.value_or("").empty()) head.load = value;
    } else if (name == request::kOverloaded) {
      head.by_gateway = true;
    } else if (name == request::kGrpcStatus && grpc) {
      grpc_status = value;
    }
  });
  if (!grpc_status.empty() && head.status == 200) head.status = request::HttpStatusOf(grpc_status);
  return ok;
}

}  // namespace

void Session::OnResponseHeaders(const RequestMessage& message) {
  if (response_ != ResponsePhase::kStart) return Violation("response headers came twice or after the body");
  response_ = ResponsePhase::kOpen;
  if (request_ == RequestPhase::kCollect || request_ == RequestPhase::kPass ||
      request_ == RequestPhase::kWaiting) {
    // Somebody answered before the request was complete: the wait for its body is over.
    request_ = RequestPhase::kDone;
    deadline_ = 0;
    EndScan();
    FreeBody();
  } else if (request_ == RequestPhase::kThrough) {
    deadline_ = 0;
  }
  ResponseHead head;
  if (!ReadHead(message.headers, grpc_, head)) {
    shared_.metrics.MalformedMessage();
    return Close(net::GrpcStatus::kInvalidArgument, "malformed headers");
  }
  response_has_length_ |= head.has_length;
  std::string_view served;
  if (const auto lb = FindMetadata(message.metadata, request::kLbNamespace)) {
    const auto value = FindField(*lb, kServed);
    if (value && value->kind == ValueView::Kind::kString) served = value->bytes;
  }
  const BodyMode mode = response_mode();
  if (ticket_) {
    ticket_->OnResponseHeaders(head.status, served, head.event_stream, head.by_gateway);
    if (!ticket_->asks_load()) head.load.reset();  // it is for the client
    if (head.load) ticket_->OnLoad(request::ReadLoad(*head.load));
    const bool body_follows = !message.end_of_stream && mode != BodyMode::kNone;
    if (body_follows && !head.encoded && head.status < 400) {
      usage_.emplace(api_, head.event_stream);
      if (ticket_->rewrites() && mode != BodyMode::kBufferedPartial) {
        renamer_.emplace(ticket_->target_model(), ticket_->model(), head.event_stream,
                         mode == BodyMode::kFullDuplexStreamed, shared_.renames);
        if (!CountKept()) return;
      }
    }
  }
  std::array<SetHeader, 2 + scheduling::kMaxSessionHeaders> set = {
      SetHeader{"x-went-into-resp-headers", "true"}};
  size_t sets = 1;
  if (ticket_) {
    for (const auto& [name, value] : ticket_->response_headers()) set[sets++] = {name, value};
  }
  std::array<std::string_view, 2> remove;
  size_t removes = 0;
  if (renamer_ && response_has_length_ && mode != BodyMode::kBuffered) remove[removes++] = "content-length";
  if (ticket_ && head.load) remove[removes++] = request::kLoad;
  Send({.kind = ReplyKind::kResponseHeaders,
        .set_headers = std::span(set.data(), sets),
        .remove_headers = std::span(remove.data(), removes)});
  response_time_ += shared_.clock.Now() - message_at_;
  if (message.end_of_stream) EndResponse();
}

void Session::OnResponseBody(const RequestMessage& message) {
  if (response_ == ResponsePhase::kEnded) return Violation("response body after the end of the response");
  response_ = ResponsePhase::kOpen;
  response_body_seen_ = true;
  if (ticket_) {
    ticket_->OnResponseBody(message.body.size());
    if (usage_) usage_->Feed(message.body);
  }
  ReplyToResponseBody(message.body, message.end_of_stream);
  response_time_ += shared_.clock.Now() - message_at_;
  if (message.end_of_stream) EndResponse();
}

void Session::ReplyToResponseBody(std::string_view body, bool end_of_stream) {
  if (response_mode() == BodyMode::kFullDuplexStreamed) {
    if (!renamer_) return SendPieces(ReplyKind::kResponseBody, body, end_of_stream);
    const std::string_view renamed = renamer_->Feed(body);
    if (!end_of_stream) {
      // All of it may be held back.
      if (!renamed.empty() || body.empty()) SendPieces(ReplyKind::kResponseBody, renamed, false);
      return;
    }
    std::string last(renamed);  // the view ends with the next call
    last += renamer_->Finish();
    return SendPieces(ReplyKind::kResponseBody, last, true);
  }
  if (!renamer_) return SendPlain(ReplyKind::kResponseBody);
  const std::string_view renamed = renamer_->Feed(body);
  if (renamed.data() == body.data()) return SendPlain(ReplyKind::kResponseBody);
  Reply reply = {
      .kind = ReplyKind::kResponseBody, .body = Reply::Body::kReplace, .body_size = renamed.size()};
  const std::string size = std::to_string(renamed.size());
  const std::array<SetHeader, 1> length = {SetHeader{"content-length", size}};
  // Envoy refuses a buffered body that is not as long as its header says.
  if (response_mode() == BodyMode::kBuffered && response_has_length_) reply.set_headers = length;
  Send(reply, renamed);
}

void Session::OnResponseTrailers(const RequestMessage& message) {
  if (response_ == ResponsePhase::kEnded) return Violation("response trailers after the end of the response");
  if (grpc_ && ticket_) {
    ForEachHeader(message.headers, [this](std::string_view name, std::string_view value) {
      if (name == request::kGrpcStatus && request::HttpStatusOf(value) >= 400) ticket_->OnError();
    });
  }
  if (renamer_ && response_mode() == BodyMode::kFullDuplexStreamed) {
    const std::string held(renamer_->Finish());
    if (!held.empty()) SendPieces(ReplyKind::kResponseBody, held, false);
  }
  SendPlain(ReplyKind::kResponseTrailers);
  response_time_ += shared_.clock.Now() - message_at_;
  EndResponse();
}

void Session::EndResponse() {
  response_ = ResponsePhase::kEnded;
  shared_.metrics.ResponseProcessed(response_time_);
  if (!ticket_) return;
  if (usage_) {
    usage_->Finish();
    if (usage_->usage().found) ticket_->OnUsage(usage_->usage());
  }
  ticket_->OnComplete();
}

}  // namespace fairway::ext_proc
