// One exchange of the external processing protocol, without its transport: messages in, replies out.
//
//   Session session(shared, sink, "default/llama-pool");
//   session.OnMessage(bytes); ...            // each message of the gateway, in order
//   if (session.deadline() != 0 && now >= session.deadline()) session.OnDeadline();
//   session.OnHalfClose() or session.OnGone();
//
// Which replies answer which messages depends on the body mode that the gateway announces in its first
// message (docs/compatibility.md). Any order of any messages has a defined result: a reply,
// nothing, or the end of the call.
//
// Owned by one thread, that of its call.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "frontends/ext_proc/metrics.h"
#include "frontends/ext_proc/wire.h"
#include "frontends/request/model_name.h"
#include "frontends/request/token_client.h"
#include "net/grpc_server.h"
#include "payload/request.h"
#include "payload/usage.h"
#include "routing/router.h"

namespace fairway::ext_proc {

// Envoy takes messages of up to 64 KiB; the reference sends pieces of this size.
inline constexpr size_t kMaxBodyPiece = 62'000;

struct SessionOptions {
  // No byte of a request's body for that long, where we see it come: 408.
  base::Nanos body_timeout = 30 * base::kSecond;
  // From the headers to the body where the gateway collects it first (BUFFERED, BUFFERED_PARTIAL), and to its
  // last byte in the other modes, or `body_timeout` where that is longer: 408.
  base::Nanos buffered_timeout = 300 * base::kSecond;
  // From a first message that says nothing to one that does.
  base::Nanos start_timeout = 10 * base::kSecond;
  // A gateway that does not announce its modes is taken for FULL_DUPLEX_STREAMED; one that sends no body for
  // that long waits for our answer to the headers, as in the other modes: it gets one, decided by load.
  base::Nanos mode_timeout = 5 * base::kSecond;
  uint64_t max_body = 64u << 20;  // bytes of one request's body; more: 413
  // STREAMED with send_body_without_waiting: decided at the latest after so many bytes, because Envoy stops
  // reading at its own buffer limit.
  uint64_t max_streamed_wait = 256u << 10;
};

// Where the replies go: the gRPC call.
class Sink {
 public:
  virtual ~Sink() = default;
  // Bytes of framed messages: a copy, or by reference.
  virtual void Send(std::string_view bytes) = 0;
  virtual void Send(const net::SharedBytes& bytes) = 0;
  // Takes over bytes to send by reference; they count until they have left.
  virtual net::SharedBytes Share(std::string bytes) = 0;
  virtual void Finish(net::GrpcStatus status, std::string_view message) = 0;
  // Runs what comes from elsewhere than a message of the call: a fault in it ends the call.
  virtual void Run(const std::function<void()>& body) { body(); }
  // Counts memory that the session keeps. False: there is none left, and the call was ended.
  virtual bool Reserve(size_t bytes) = 0;
  virtual void Release(size_t bytes) = 0;
};

// What the sessions of one worker share. REQUIRES: outlives them; used on the worker's thread only.
struct SessionShared {
  const routing::Router& router;
  routing::Worker& worker;
  const base::Clock& clock;
  const SessionOptions& options;
  Metrics& metrics;
  base::Random random;  // for request ids
  WireWriter writer{};
  std::vector<std::pair<std::string_view, std::string_view>> wanted_headers{};  // of the decision under way
  // The decision left work (Router::HasPutOff), to be done when what was sent has left. Empty: the worker's
  // next decision does it.
  std::function<void()> has_put_off{};
  request::RenameBuffers renames{};
  // Asks for the tokens of a request; the answer comes later, on this thread. Empty: nobody can be asked.
  std::function<void(request::TokenClient::Question, request::TokenClient::Answer)> ask_tokens{};
};

class Session {
 public:
  // `pool_key`: "namespace/name", "" is the only pool.
  Session(SessionShared& shared, Sink& sink, std::string pool_key);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // A ProcessingRequest. The bytes need not outlive the call.
  void OnMessage(std::string_view bytes);

  // A long body message that comes in pieces: when TakesBodyPieces(), its body's bytes may be given as they
  // come, and what came after them at the end.
  bool TakesBodyPieces() const;
  void OnBodyPiece(std::string_view bytes);
  void OnBodyTail(std::string_view tail, size_t inner_tail);

  // The gateway sends no more.
  void OnHalfClose();
  // The call is gone.
  void OnGone();

  // When OnDeadline is to be called, at most a little later; 0: never. Moves with each message.
  base::Nanos deadline() const { return finished_ ? 0 : deadline_; }
  void OnDeadline();

  bool finished() const { return finished_; }

  // Memory is short, and this exchange holds most of it: decides by what is known of the request, and from
  // then on passes its body on without keeping it. False: there is nothing to let go.
  bool LetGo();

 private:
  enum class RequestPhase {
    kStart,    // nothing of the request yet
    kCollect,  // the body comes, no decision yet
    kPass,     // decided at the headers, the body is watched for its model (STREAMED)
    kThrough,  // decided before the body was complete, which passes as it comes (FULL_DUPLEX_STREAMED)
    kWaiting,  // all of it is there, and its tokens are asked for
    kDone,     // decided
  };
  enum class ResponsePhase { kStart, kOpen, kEnded };

  void Handle(const RequestMessage& message);
  BodyMode request_mode() const;
  BodyMode response_mode() const;

  // Requests (session_request.cc).
  void OnRequestHeaders(const RequestMessage& message);
  bool ReadRequestHeaders(std::string_view header_map, std::optional<routing::Rejection>& too_many,
                          std::optional<routing::Rejection>& no_parser);
  std::optional<routing::Rejection> ChooseParser(std::string_view path);
  void ReadSubsetHint(std::string_view metadata);
  void OnRequestBody(const RequestMessage& message);
  void OnRequestTrailers();
  bool StartWithoutHeaders();
  bool TakeBody(std::string_view bytes);
  bool CountBody(size_t bytes);
  void PassThrough(std::string_view bytes, bool end_of_stream);
  void DecideEarly();
  void MeasureTexts();
  bool CountKept();
  void EndScan();
  void AfterChunk(bool end_of_stream);
  void WaitForBody();

  // The body is as complete as it will be: decide and answer all that waits.
  enum class End { kBody, kTrailers, kPartial };
  void FinishRequest(End end);
  bool AskTokens(const routing::RequestInput& input, End end);
  void OnTokens(const std::shared_ptr<const payload::PromptTokens>& tokens);
  void FinishDecided(const routing::RequestInput& input, End end);
  void PassChunk(bool end_of_stream);
  bool SettleModel(bool complete);
  bool Decide(const routing::RequestInput& input);
  void DecideByLoad();
  routing::RequestInput Input() const;
  void NewScanner();
  bool SpliceModel();
  void Refuse(const routing::Rejection& rejection);
  void RefuseUncounted(const routing::Rejection& rejection);

  // Responses (session_response.cc).
  void OnResponseHeaders(const RequestMessage& message);
  void OnResponseBody(const RequestMessage& message);
  void OnResponseTrailers(const RequestMessage& message);
  void ReplyToResponseBody(std::string_view body, bool end_of_stream);
  void EndResponse();

  // Replies.
  enum class Length { kKeep, kSet, kRemove };  // what becomes of content-length
  void SendDecision(ReplyKind kind, bool replace_body, Length length);
  void SendPlain(ReplyKind kind);
  void SendPieces(ReplyKind kind, std::string_view body, bool end_of_stream);
  void SendRequestPieces(bool end_of_stream);
  void Send(const Reply& reply, std::string_view body = {});
  void SendWithBody(const Reply& reply);
  void FreeBody();
  net::SharedBytes ShareBody();

  void Violation(std::string_view what);
  void Close(net::GrpcStatus status, std::string_view message);
  void EndTicket();
  bool ShowsResponse() const;

  SessionShared& shared_;
  Sink& sink_;
  const std::string pool_key_;

  std::optional<ProtocolConfig> modes_;  // nothing: the gateway did not say
  bool first_message_ = true;
  bool guessed_ = false;   // mode_timeout passed: taken for STREAMED
  bool finished_ = false;  // nothing more is answered
  bool half_closed_ = false;
  bool observing_ = false;  // observability mode: nothing is answered
  RequestPhase request_ = RequestPhase::kStart;
  ResponsePhase response_ = ResponsePhase::kStart;
  bool headers_seen_ = false;
  bool headers_answered_ = false;
  bool body_seen_ = false;      // a body message came, be it empty
  bool request_ended_ = false;  // its last message came
  bool decided_ = false;        // by the message at hand
  bool generated_id_ = false;
  bool tunnel_ = false;           // an upgrade or CONNECT: decided at its headers, what follows passes by
  bool unreadable_body_ = false;  // says that it is compressed: where it is, decided by load
  bool has_content_length_ = false;
  bool if_available_ = false;
  bool asks_load_ = false;
  bool grpc_ = false;

  base::Nanos deadline_ = 0;
  base::Nanos received_at_ = 0;
  base::Nanos message_at_ = 0;     // when the message at hand came
  base::Nanos response_time_ = 0;  // spent on the response's messages

  payload::Api api_ = payload::Api::kUnknown;
  std::string request_id_;
  std::string fairness_id_;
  std::string model_rewrite_;
  std::string objective_;
  std::vector<std::pair<std::string, std::string>> wanted_headers_;  // that plugins read
  std::vector<std::string> remove_headers_;                          // control headers that the client sent
  std::optional<routing::SubsetHint> subset_;
  uint64_t content_length_ = 0;

  std::optional<payload::RequestScanner> scanner_;
  std::string body_;
  uint64_t body_bytes_ = 0;
  size_t reserved_ = 0;           // of its memory counted with the sink
  bool dropped_ = false;          // memory was short: its bytes are not kept
  size_t texts_ = 0;              // bytes of headers and hints
  size_t kept_ = 0;               // of headers, hints and what else is kept, counted with the sink
  size_t unanswered_chunks_ = 0;  // body messages without their reply, where each needs one
  size_t cleared_chunks_ = 0;     // answered by taking them away: they are in body_

  // Of kWaiting: how the request ended, and whom the answer finds. It is gone when nobody waits any more.
  End waiting_end_ = End::kBody;
  std::shared_ptr<Session*> waiting_;

  std::optional<routing::Ticket> ticket_;

  std::string served_;
  std::optional<payload::UsageScanner> usage_;
  std::optional<request::ModelRenamer> renamer_;
  bool response_has_length_ = false;
  bool response_body_seen_ = false;
};

}  // namespace fairway::ext_proc
