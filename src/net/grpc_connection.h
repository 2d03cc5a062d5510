// One HTTP/2 connection of the gRPC server and the worker it belongs to. Internal to net: see grpc_server.h.
//
// Everything here runs on the worker's loop. A connection is kept alive by its worker and by what Asio waits
// for; Close() takes it out of service at once, whatever still refers to it.
#pragma once

#include <nghttp2/nghttp2.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "net/grpc_framing.h"
#include "net/grpc_server.h"
#include "net/grpc_worker.h"
#include "net/output_queue.h"
#include "net/socket_stream.h"

namespace fairway::net {

// A call's part that the service does not see.
struct GrpcCall::State {
  State(GrpcConnection& owner, Loop& its_loop, int32_t id, size_t max_message)
      : connection(&owner), loop(its_loop), stream(id), reader(max_message) {}

  // Was the client told something, and nothing held back?
  bool answered() const { return call->finished_ || (started && answer.bytes() == 0); }

  GrpcConnection* connection;  // null: the stream is closed
  Loop& loop;
  int32_t stream;
  GrpcMessageReader reader;
  AnswerQueue answer;
  bool started = false;       // the response's headers are submitted
  bool deferred = false;      // nghttp2 waits for more of the answer
  bool end_due = false;       // the server ended the call: OnCancel comes at the end of the event ...
  bool end_answered = false;  // ... with this
  bool cancelled = false;     // OnCancel was called
  GrpcStatus status = GrpcStatus::kOk;
  std::string message;  // percent-encoded
  size_t input = 0;     // bytes held by the reader, as the connection counted them
  size_t promised = 0;  // bytes of the answer in a frame whose header nghttp2 has made already
  size_t reserved = 0;
  base::Nanos deadline = 0;
  uint64_t referenced_round = UINT64_MAX;  // of the output queue, in which it got bytes by reference
  State* next = nullptr;                   // the connection's open calls
  State* previous = nullptr;
  std::unique_ptr<GrpcCall> call;  // last: its destructor may still ask for loop()
};

// What an open call costs besides its bytes, about; so that calls without bytes are bounded too.
constexpr size_t kGrpcCallCost = 1024;

class GrpcConnection : public std::enable_shared_from_this<GrpcConnection> {
 public:
  // Takes over the descriptor.
  GrpcConnection(GrpcWorker& worker, int descriptor, const TlsContext& tls);
  ~GrpcConnection();
  GrpcConnection(const GrpcConnection&) = delete;
  GrpcConnection& operator=(const GrpcConnection&) = delete;

  void Start();
  // Once per worker tick: silence, age, handshakes that do not end.
  void Tick(base::Nanos now);
  void OnDeadline(int32_t stream);
  // The first of two steps of a polite end: no new calls, please.
  void SendGoAwayNotice();
  // The second: calls begun until now are still served.
  void SendGoAway();
  // Ends it now: open calls get OnCancel. Idempotent.
  void Close();

 private:
  friend class GrpcCall;
  using State = GrpcCall::State;

  // What the header block being read says; blocks never interleave.
  struct Request {
    GrpcRequest request;
    std::string text;  // names and values, each pair in one run
    struct Header {
      size_t name, value, end;  // offsets in text
    };
    std::vector<Header> headers;
    size_t bytes = 0;
    bool regular = false;  // pseudo-headers must not come any more
    bool method = false, scheme = false, authority = false;
    bool post = false;

    void Clear();
    std::string_view Find(std::string_view name) const;
  };

  // Socket side (grpc_connection.cc).
  template <typename Body>
  void Event(Body body);
  void WaitReadable();
  void WaitWritable();
  void OnReadable();
  bool Handshake();
  void ReadSome();
  void Receive(std::string_view bytes);
  void Pump();
  bool FlushAndFill();
  void RunDueEnds();
  void Linger();
  void Touch();
  void Fail() { failing_ = true; }
  void Abort(std::string_view reason);
  // With `more` bytes added, would all connections together hold too much?
  bool OverBudget(size_t more = 0);
  size_t Held() const;
  void PublishHeld();
  void DropCalls();

  // HTTP/2 side (grpc_streams.cc).
  friend struct GrpcCallbacks;
  void OpenSession();
  int OnHeader(const nghttp2_frame& frame, std::string_view name, std::string_view value);
  bool TakeRequestHeader(std::string_view name, std::string_view value);
  void OnFrame(const nghttp2_frame& frame);
  void OnData(int32_t stream, std::string_view bytes);
  void JudgeInput(State& state, GrpcMessageReader::Outcome outcome, size_t input_before);
  void OnStreamClosed(int32_t stream, uint32_t error);
  void OnSent(const nghttp2_frame& frame);
  int SendData(State& state, std::string_view header, size_t size);
  ssize_t ReadAnswer(State& state, size_t limit, uint32_t& flags);
  void BeginCall(int32_t stream, bool half_closed);
  void HalfClose(State& state);
  void RefuseHttp(int32_t stream, std::string_view status);
  void TrailersOnly(int32_t stream, GrpcStatus status, std::string_view encoded_message);
  void SpendReset();
  State* Find(int32_t stream) const;
  void Link(State* state);
  void Unlink(State* state);
  void Detach(State& state);
  void Cancel(State& state);
  template <typename Body>
  bool Guard(State* state, Body body);

  // For GrpcCall and for ourselves.
  void Write(State& state, std::string_view prefix, std::string_view body);
  void Finish(State& state, GrpcStatus status, std::string_view message);
  void StartAnswer(State& state);
  void End(State& state, GrpcStatus status, std::string_view message, uint32_t reset_code);
  bool Reserve(State& state, size_t bytes);
  void Release(State& state, size_t bytes);
  void DropAnswer(State& state);
  void CountInput(State& state);

  GrpcWorker& worker_;  // not to be used after Close()
  std::shared_ptr<GrpcShared> shared_;
  boost::asio::posix::stream_descriptor descriptor_;
  const uint16_t port_;  // ours, that it came in on
  TlsContext tls_;
  SocketStream stream_;
  OutputQueue out_;
  nghttp2_session* session_ = nullptr;
  Request request_;
  State* calls_ = nullptr;
  std::vector<State*> due_;                     // with end_due
  std::vector<std::unique_ptr<State>> buried_;  // closed calls whose bytes may still be in out_

  bool in_event_ = false;
  bool pump_posted_ = false;
  bool waiting_write_ = false;
  bool read_wants_write_ = false;  // TLS
  bool failing_ = false;
  bool closed_ = false;
  bool handshaken_;
  bool greeted_ = false;  // the client's SETTINGS came
  bool lingering_ = false;
  bool noticed_ = false;
  bool gone_away_ = false;
  bool pinged_ = false;
  base::Nanos opened_;
  base::Nanos max_age_;
  base::Nanos last_read_;
  base::Nanos linger_until_ = 0;

  size_t call_count_ = 0;
  size_t input_ = 0;      // bytes of unfinished messages
  size_t unsent_ = 0;     // bytes in the calls' answer queues
  size_t reserved_ = 0;   // bytes the services keep
  size_t published_ = 0;  // our share of stats.buffered_bytes

  double reset_tokens_;
  base::Nanos reset_at_;
};

}  // namespace fairway::net
