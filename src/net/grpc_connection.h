// One HTTP/2 connection of the gRPC server and the worker it belongs to. Internal to net: see grpc_server.h.
//
// Everything here runs on the worker's loop. A connection is kept alive by its worker and by what Asio waits
// for; Close() takes it out of service at once, whatever still refers to it.
#pragma once

#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "net/frame_cutter.h"
#include "net/grpc_framing.h"
#include "net/grpc_server.h"
#include "net/grpc_worker.h"
#include "net/output_queue.h"
#include "net/socket_stream.h"

namespace fairway::net {

// What a connection holds that may outlive the call it was made for. Of its loop's thread.
struct GrpcAccount {
  size_t shared = 0;  // bytes given to GrpcCall::Share that somebody still holds
};

// A list through members of what is in it.
template <typename T>
struct GrpcLinks {
  T* next = nullptr;
  T* previous = nullptr;
};
template <typename T, GrpcLinks<T> T::* kLinks>
class GrpcList {
 public:
  T* front() const { return front_; }
  size_t size() const { return size_; }
  static T* Next(T* item) { return (item->*kLinks).next; }
  void PushBack(T* item) {
    (item->*kLinks) = {nullptr, back_};
    (back_ != nullptr ? (back_->*kLinks).next : front_) = item;
    back_ = item;
    ++size_;
  }
  void Remove(T* item) {
    const GrpcLinks<T> links = item->*kLinks;
    (links.previous != nullptr ? (links.previous->*kLinks).next : front_) = links.next;
    (links.next != nullptr ? (links.next->*kLinks).previous : back_) = links.previous;
    --size_;
  }

 private:
  T* front_ = nullptr;
  T* back_ = nullptr;
  size_t size_ = 0;
};

// A call's part that the service does not see.
struct GrpcCall::State {
  State(GrpcConnection& owner, Loop& its_loop, int32_t id, const GrpcServerOptions& options)
      : connection(&owner),
        loop(its_loop),
        stream(id),
        reader(options.max_message, options.max_split_message) {}

  // Was the client told something, and nothing held back?
  bool answered() const { return call->finished_ || (started && answer.bytes() == 0); }
  // Memory that goes when the call ends.
  size_t weight() const { return input + reserved + answer.own() + answer.pinned(); }

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
  size_t unsent = 0;    // the answer's own memory, as the connection counted it
  size_t withheld = 0;  // bytes that the client may send again when more of the answer has left
  size_t promised = 0;  // bytes of the answer in a frame whose header nghttp2 has made already
  size_t reserved = 0;
  base::Nanos deadline = 0;
  bool heard = false;         // a first message came: the connection is not idle
  bool waiting = false;       // among the connection's unanswered calls
  base::Nanos opened_at = 0;  // or last asked to let go
  base::Nanos heard_at = 0;   // when bytes came, 16 KiB at least or the rest of a message
  size_t heard_bytes = 0;     // since
  base::Nanos moved_at = 0;   // when the answer moved, as above
  size_t moved_bytes = 0;
  base::Nanos relieved_at = 0;  // when it let go memory, or ended: the client may need a moment to take that
  GrpcLinks<State> open_links;
  GrpcLinks<State> waiting_links;
  std::unique_ptr<GrpcCall> call;  // last: its destructor may still ask for loop()
};

// What an open call costs besides its bytes: 200,000 idle ext_proc streams took 514 MB.
constexpr size_t kGrpcCallCost = 2560;
// What an open connection costs, in plain text and under TLS: 2,000 took 17 and 38 KB each.
constexpr size_t kGrpcConnectionCost = 17 << 10;
constexpr size_t kGrpcTlsConnectionCost = 38 << 10;
// What a control frame costs in nghttp2's queue: 120 MB of streams that it refused took 2.1 GB, at 10 bytes
// each.
constexpr size_t kGrpcFrameCost = 200;

// Less than this in `stall_timeout` is no progress.
constexpr size_t kGrpcProgress = 16 << 10;

// A budget that refills with time.
class GrpcBudget {
 public:
  GrpcBudget(double burst, double rate, base::Nanos now)
      : burst_(burst), rate_(rate), left_(burst), at_(now) {}
  void Give(double n) { left_ = std::min(burst_, left_ + n); }
  // False: used up.
  bool Take(base::Nanos now) {
    left_ = std::min(burst_, left_ + rate_ * base::ToSeconds(now - at_)) - 1;
    at_ = now;
    return left_ >= 0;
  }

 private:
  double burst_;
  double rate_;
  double left_;
  base::Nanos at_;
};

class GrpcConnection : public std::enable_shared_from_this<GrpcConnection> {
 public:
  // Takes over the descriptor.
  GrpcConnection(GrpcWorker& worker, int descriptor, const PeerAddress& peer, const TlsContext& tls);
  ~GrpcConnection();
  GrpcConnection(const GrpcConnection&) = delete;
  GrpcConnection& operator=(const GrpcConnection&) = delete;

  void Start();
  // Once per worker tick: silence, age, handshakes that do not end, calls that wait for too long.
  void Tick(base::Nanos now);
  void OnDeadline(int32_t stream);
  // The first of two steps of a polite end: no new calls, please.
  void SendGoAwayNotice();
  // The second: calls begun until now are still served.
  void SendGoAway();
  // Ends it as soon as the client was told. For connections without calls.
  void SendAway();
  const PeerAddress& peer() const { return peer_; }
  // Since when it had no call that anything was heard of. REQUIRES: it is among its worker's idle ones.
  base::Nanos idle_since() const { return idle_since_; }
  // Ends it: open calls get OnCancel, some of many in each turn; then it leaves its worker. Idempotent.
  void Close();
  // The same with all of them at once, as its worker goes.
  void CloseNow();

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
    size_t capacity() const { return text.capacity() + headers.capacity() * sizeof(Header); }
  };

  // Socket side (grpc_connection.cc).
  template <typename Body>
  void Event(Body body);
  void WaitReadable();
  void WaitWritable();
  void OnReadable();
  bool Handshake();
  void NoteFailedHandshake(std::string_view error);
  void ReadSome();
  bool ReadFurther();
  bool TakeUnread();
  size_t TakeRead(std::string_view bytes);
  void Receive(std::string_view bytes);
  bool Choked() const;
  bool TurnIsOver() const;
  void ReadOn();
  void Pump();
  bool FlushAndFill();
  void RunDueEnds();
  void Linger();
  void Touch();
  void Fail() { failing_ = true; }
  void Abort(std::string_view reason);
  void NoteAbort(std::string_view reason);
  size_t Held() const;
  void PublishHeld();
  // What this connection may hold at this moment, and what it always may.
  size_t Allowed(size_t leaving);
  size_t SmallShare() const;
  // Is there nothing left, even for one that holds little?
  bool Exhausted();
  void ShedIfOver();
  bool Shed();
  void LetGo(State& state);
  void Examine(base::Nanos now);
  void ExamineSome(base::Nanos now);
  void ExamineLater();
  bool ExamineOne(State& state, base::Nanos now);
  void CutOff(State& state);
  bool TickConnection(base::Nanos now);
  void DropCalls();
  void DropSome(size_t most);

  // HTTP/2 side (grpc_streams.cc).
  friend struct GrpcCallbacks;
  void OpenSession();
  int OnHeader(const nghttp2_frame& frame, std::string_view name, std::string_view value);
  bool TakeRequestHeader(std::string_view name, std::string_view value);
  int OnFrameHead(const nghttp2_frame_hd& head);
  void OnFrame(const nghttp2_frame& frame);
  void OnData(int32_t stream, std::string_view bytes);
  void JudgeInput(State& state, GrpcMessageReader::Outcome outcome, size_t input_before);
  void OnStreamClosed(int32_t stream, uint32_t error);
  void OnSent(const nghttp2_frame& frame);
  int SendData(State& state, std::string_view header, size_t size);
  ssize_t ReadAnswer(State& state, size_t limit, uint32_t& flags);
  void BeginCall(int32_t stream, bool half_closed);
  void HalfClose(State& state);
  void MakeRoom();
  void NoteHeard(State& state, size_t bytes);
  void SetIdle(bool idle);
  void Refuse(int32_t stream, GrpcStatus status, std::string_view encoded_message);
  void RefuseHttp(int32_t stream, std::string_view status);
  void TrailersOnly(int32_t stream, GrpcStatus status, std::string_view encoded_message);
  void SpendReset();
  void Calm(std::string_view reason);
  State* Find(int32_t stream) const;
  void Link(State* state);
  void Unlink(State* state);
  void Detach(State& state);
  void Cancel(State& state);
  template <typename Body>
  bool Guard(State* state, Body body);
  void OnException(State* state, const char* what);

  // For GrpcCall and for ourselves.
  void Write(State& state);
  void StopWaiting(State& state);
  void Finish(State& state, GrpcStatus status, std::string_view message);
  void StartAnswer(State& state);
  void End(State& state, GrpcStatus status, std::string_view message, uint32_t reset_code);
  bool Reserve(State& state, size_t bytes);
  void Release(State& state, size_t bytes);
  void DropAnswer(State& state);
  void CountAnswer(State& state);
  void CountInput(State& state);

  GrpcWorker& worker_;  // not to be used after Close()
  std::shared_ptr<GrpcShared> shared_;
  boost::asio::posix::stream_descriptor descriptor_;
  const PeerAddress peer_;
  const uint16_t port_;  // ours, that it came in on
  TlsContext tls_;
  SocketStream stream_;
  OutputQueue out_;
  nghttp2_session* session_ = nullptr;
  Request request_;
  GrpcList<State, &State::open_links> calls_;
  GrpcList<State, &State::waiting_links> waiting_;  // unanswered, the one that was silent for longest first
  std::vector<State*> due_;                         // with end_due
  const std::shared_ptr<GrpcAccount> account_ = std::make_shared<GrpcAccount>();

  // The turn at hand (see kWorkPerTurn). What was read and not taken in it waits here.
  size_t work_ = 0;
  uint64_t turn_written_ = 0;  // out_.written() when it began
  std::string unread_;
  size_t unread_at_ = 0;
  size_t read_size_;  // at a time; small for who makes us work much for little
  FrameCutter cutter_;
  bool shedding_ = false;       // more is to be let go than fits into a turn
  bool dropping_ = false;       // more calls are to be told that they are gone
  State* examining_ = nullptr;  // the next call to be looked after

  bool in_event_ = false;
  bool pump_posted_ = false;
  bool waiting_write_ = false;
  bool read_wants_write_ = false;  // TLS
  bool blocked_on_read_ = false;
  bool reading_ = false;  // an event will come
  bool failing_ = false;
  bool closed_ = false;
  bool handshaken_;
  bool greeted_ = false;       // the client's SETTINGS came
  bool acknowledged_ = false;  // ours were
  bool in_headers_ = false;    // a block of headers began and did not end
  bool lingering_ = false;
  bool calmed_ = false;  // the client did too much: it is told, and nothing more is heard from it
  bool noticed_ = false;
  bool gone_away_ = false;
  bool pinged_ = false;
  base::Nanos opened_;
  base::Nanos max_age_;
  base::Nanos now_;  // when the event at hand began
  base::Nanos last_read_;
  base::Nanos idle_since_ = 0;
  std::optional<GrpcWorker::IdleList::iterator> idle_at_;
  size_t heard_calls_ = 0;  // open calls of which something was heard
  base::Nanos headers_since_ = 0;
  base::Nanos written_at_ = 0;   // when the socket took bytes, 16 KiB at least or all there were
  uint64_t written_then_ = 0;    // out_.written() then
  base::Nanos examined_at_ = 0;  // when all calls were looked at
  base::Nanos shed_at_ = 0;
  base::Nanos linger_until_ = 0;
  size_t lingered_ = 0;  // bytes read meanwhile

  size_t header_input_ = 0;  // bytes of the block of headers at hand
  size_t input_ = 0;         // bytes of unfinished messages
  size_t unsent_ = 0;        // bytes in the calls' answer queues that were copied
  size_t reserved_ = 0;      // bytes the services keep
  size_t published_ = 0;     // our share of stats.buffered_bytes

  GrpcBudget resets_;
  GrpcBudget settings_;
  GrpcBudget idle_frames_;
};

// Runs code of the service. An exception ends the call, if there is one.
template <typename Body>
bool GrpcConnection::Guard(State* state, Body body) {
  try {
    body();
    return true;
  } catch (const std::exception& e) {
    OnException(state, e.what());
  } catch (...) {
    OnException(state, "unknown exception");
  }
  return false;
}

}  // namespace fairway::net
