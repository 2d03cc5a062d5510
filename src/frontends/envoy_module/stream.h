// One HTTP stream in Envoy: hooks in, callbacks out. The request's body is read where Envoy holds it, the
// decision is made when it is complete, the ticket lives until the stream ends.
//
// Owned by Envoy and used on one worker thread. Hooks of a stream are never concurrent.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/either_pointer.h"
#include "frontends/envoy_module/abi.h"
#include "frontends/envoy_module/choices.h"
#include "frontends/envoy_module/filter.h"
#include "frontends/request/model_name.h"
#include "payload/request.h"
#include "payload/usage.h"
#include "routing/router.h"

namespace fairway::envoy_module {

class Stream {
 public:
  Stream(Filter& filter, abi::Stream envoy);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  abi::HeadersStatus OnRequestHeaders(bool end);
  abi::BodyStatus OnRequestBody(bool end);
  abi::TrailersStatus OnRequestTrailers();
  // What was ordered for it, or for its worker.
  void OnScheduled(uint64_t event);

  void OnResponseHeaders(bool end);
  void OnResponseBody(bool end);
  void OnResponseTrailers();
  // The last hook with callbacks, also after a reset.
  void OnComplete();

  // A hook threw. Request side: true when the request may go on without a decision, false when it was
  // answered.
  bool OnFault(std::string_view what) noexcept;

 private:
  enum class Phase : uint8_t {
    kStart,
    kCollect,  // the body comes
    kWait,     // all is there but the pool's first endpoints, or the prompt's tokens
    kPassed,   // decided, answered, or let go
  };
  // What is to be done with the request now.
  enum class Verdict { kGoOn, kAnswered, kWaiting };
  enum class BodyPlace { kNone, kReceived, kBuffered };
  // What becomes of Envoy's bytes that were copied.
  enum class After { kStays, kGone };

  bool IsTunnel(payload::Api api) const;
  bool TakeBody();
  // Rare, and so away from what each request runs through.
  [[gnu::cold]] void RefuseBody(const routing::Rejection& rejection);
  [[gnu::cold]] void RefuseLongBody();
  [[gnu::cold]] void RefuseForWantOfRoom();
  void OnEndpoints();
  [[gnu::cold]] void OnOverdue();
  [[gnu::cold]] void RemoveHeaders(const std::vector<std::string_view>& names);
  [[gnu::cold]] void OnTokens();
  Verdict Decide(BodyPlace last_piece, const TokenWait::Tokens& tokens = nullptr);
  [[gnu::cold]] bool AskTokens(const routing::RequestInput& input, BodyPlace last_piece);
  [[gnu::cold]] Verdict LetGo();
  bool Wait();
  bool ClusterHasHosts() const;
  void Send(const routing::Ticket& ticket, bool has_destination);
  void WithdrawChoice() noexcept {
    if (choice_.listed()) worker_->choices().Remove(choice_);
  }
  [[gnu::cold]] void EndEarly() noexcept;
  void DropTicket() noexcept;
  [[gnu::noinline]] void TakeLoad();
  int Status() const;
  bool IsEnvoysOwn() const;
  std::string_view Served();
  [[gnu::cold]] void ReportMissingPolicy();
  void CopyBody(BodyPlace last_piece, std::string& body, After after);
  [[gnu::noinline]] void RewriteBody(BodyPlace last_piece, bool has_content_length);
  [[gnu::cold]] Verdict Refuse(const routing::Rejection& rejection);
  [[gnu::cold]] void StopWaiting();
  void EndPending();
  [[gnu::noinline]] void ReadSubsetHint(routing::SubsetHint& hint, bool& present) const;
  void Count(size_t counter);
  const RouteConfig* route() const;
  std::string_view pool_key() const;
  bool fails_open() const;
  void EndResponse();
  [[gnu::noinline]] void EndReading();

  // Only where responses are read (ResponseMode::kFull).
  struct Reading {
    payload::UsageScanner usage;
    std::optional<request::ModelRenamer> renamer;
  };
  // REQUIRES: in kCollect or kWait, or deciding.
  Pending& pending() const { return *aside_.As<Pending>(); }

  // A hundred thousand may be open, each for a minute: what only the time until the decision needs lies aside
  // and goes back to the worker, and the rest lies close.
  Filter& filter_;
  const abi::Stream envoy_;
  WorkerState* worker_ = nullptr;
  base::EitherPointer<Pending, Reading> aside_;  // before the decision, and where a response is read
  routing::Ticket ticket_;
  [[no_unique_address]] Choice choice_;  // of the ticket's texts; the fields behind it lie in its padding
  uint8_t api_ = static_cast<uint8_t>(payload::Api::kUnknown);
  Phase phase_ = Phase::kStart;
  bool response_ended_ : 1 = false;
  bool by_policy_ : 1 = false;  // Envoy was not told the host, and asks our policy
  bool grpc_ : 1 = false;       // its client speaks gRPC
  bool tunnel_ : 1 = false;     // an upgrade or CONNECT: it has no end but that somebody hangs up
};

}  // namespace fairway::envoy_module
