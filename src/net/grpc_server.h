// A gRPC server over HTTP/2 on libnghttp2: calls owned by their loop, every bound explicit.
//
// Why not gRPC C++: 4-12x the CPU per exchange at usual sizes (docs/benchmarks.md), and Debian's copy gets no
// security uploads.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "net/loop.h"
#include "net/shared_bytes.h"
#include "net/tls.h"

namespace fairway::net {

// https://grpc.github.io/grpc/core/md_doc_statuscodes.html
enum class GrpcStatus {
  kOk = 0,
  kCancelled = 1,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kResourceExhausted = 8,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
};

struct GrpcServerOptions {
  std::string host = "0.0.0.0";   // "::" listens on IPv4 and IPv6
  uint16_t port = 9002;           // 0: a free one, see GrpcServer::port()
  TlsContext tls;                 // null: plain text
  uint32_t max_streams = 10'000;  // concurrent, per connection
  // Of these, calls that were not answered anything yet: the one that was silent for longest makes room (see
  // OnMemoryShort).
  uint32_t max_unanswered = 1000;
  // When there are as many, or as many as that of one address (PeerAddressOf; 0: a quarter), the one (of that
  // address) that had no call for longest makes room; without one the new connection is closed.
  uint32_t max_connections = 10'000;
  uint32_t max_connections_per_address = 0;
  // Descriptors that are left to others: a connection that would need one of the last ones is treated as one
  // too many.
  uint32_t spare_descriptors = 64;
  // A connection without a call is sent away after that; 0: never.
  base::Nanos idle_timeout = 0;
  uint32_t stream_window = 1 << 20;       // bytes
  uint32_t connection_window = 16 << 20;  // bytes
  size_t max_message = 4 << 20;           // larger: RESOURCE_EXHAUSTED at its 5-byte header
  size_t max_split_message = 0;           // one that the service takes in pieces (OnHead), if that is more
  size_t max_header_bytes = 64 << 10;
  // What all connections and calls may hold together: unfinished messages, unsent answers, what services
  // keep, and what a call and a connection cost. A connection gets a third of what is free at that moment, so
  // one alone never more than a quarter, and the more want much, the less each gets: there is always room for
  // who needs little. Who has more than that lets go the largest of its calls (OnMemoryShort, else
  // RESOURCE_EXHAUSTED).
  size_t max_buffered_bytes = 512u << 20;
  // Resets of calls that were not answered yet, per connection; Envoy ends every ext_proc call with a reset,
  // so answered calls do not count. Beyond the budget: GOAWAY (CVE-2023-44487). A gateway's connection carries
  // everybody's calls, and its clients may leave 25,000 times a second: that costs some 20 ms of CPU here, and
  // GOAWAY would end the calls of all others.
  double reset_burst = 100'000;
  double reset_rate = 30'000;                  // per second
  base::Nanos keepalive = 60 * base::kSecond;  // silence before a PING; twice that: closed
  base::Nanos max_connection_age = 0;          // 0: no limit
  // For TLS, for the client's SETTINGS and its acknowledgement of ours, and for each block of headers.
  base::Nanos handshake_timeout = 10 * base::kSecond;
  base::Nanos first_message_timeout = 10 * base::kSecond;  // of a call; then DEADLINE_EXCEEDED
  // A call of whose waiting answer, or of whose unfinished message, nothing (less than 16 KiB and not the
  // rest) moved for that long is reset; so is a connection whose socket takes nothing.
  base::Nanos stall_timeout = 30 * base::kSecond;
};

class GrpcConnection;

// One call, subclassed by its service. All functions run on the loop of its connection; the server owns it
// and destroys it after the last of OnHalfClose/OnCancel. An exception from it ends the call with INTERNAL.
class GrpcCall {
 public:
  virtual ~GrpcCall() = default;
  GrpcCall(const GrpcCall&) = delete;
  GrpcCall& operator=(const GrpcCall&) = delete;

  // One whole message, without its 5-byte prefix; valid during the call only.
  virtual void OnMessage(std::string_view message) = 0;

  // A long message comes in pieces: given its first piece (`first`, of `length` bytes in all) a service may
  // take over: set `body` to how many of the following bytes go to OnPart as they come and `tail` to how many
  // after them are put together for OnTail, with first.size() + body + tail == length, and return true. Else
  // it is put together for OnMessage.
  virtual bool OnHead(std::string_view first, size_t length, size_t& body, size_t& tail) {
    (void)first, (void)length, (void)body, (void)tail;
    return false;
  }
  virtual void OnPart(std::string_view) {}
  virtual void OnTail(std::string_view) {}  // once, empty when `tail` was 0: the message is complete

  // Memory is short, and this call holds most; or too many calls wait for an answer, and this one was silent
  // for longest. True: the call let go what it held, or decided with what it knows and so will. False: it
  // cannot, and is ended with RESOURCE_EXHAUSTED. Never inside another function of the service.
  virtual bool OnMemoryShort() { return false; }

  // The client sent its last message. Default: Finish(kOk).
  virtual void OnHalfClose() { Finish(GrpcStatus::kOk); }
  // The call is gone (reset, connection lost) or the server ended it (deadline, a message too large, out of
  // memory, an exception). `answered`: Finish had been called, or the client reset after our last answer was
  // sent, as Envoy does at the end of each exchange. Never inside Write or Finish, at most once, and the last
  // call on this object.
  virtual void OnCancel(bool answered) { (void)answered; }

 protected:
  GrpcCall() = default;

  // Queues bytes of framed messages (see GrpcFrame): a copy, or by reference, held until they have left.
  // Ignored after Finish.
  void Write(std::string_view bytes);
  void Write(const SharedBytes& bytes);
  // Ends the call; what was written before is still sent. Write and Finish may come later too, from a timer
  // or a task posted to loop(), as long as this object lives; when the client is gone by then they do
  // nothing.
  void Finish(GrpcStatus status, std::string_view message = {});
  bool finished() const { return finished_; }
  Loop& loop() const;  // not in the constructor: GrpcRequest has it

  // Counts `bytes` that the service keeps for this call (a body taken by OnPart, say) against
  // max_buffered_bytes. Where that is too much, somebody is asked to let go when this event is over. False:
  // there is nothing left at all, and the call was ended with RESOURCE_EXHAUSTED. The end of the call
  // releases what is left.
  bool Reserve(size_t bytes);
  void Release(size_t bytes);
  // Takes over bytes that are to be sent by reference. They count, with their capacity, until nobody holds
  // them any more; what was reserved for them is to be released.
  SharedBytes Share(std::string bytes);

 private:
  friend class GrpcConnection;
  struct State;
  State* state_ = nullptr;  // owned by the connection
  bool finished_ = false;
};

// The 5 bytes before a message of `length` bytes, uncompressed.
std::string GrpcFrame(size_t length);

// What a call starts with.
struct GrpcRequest {
  std::string path;  // "/package.Service/Method"
  // Other headers, lower-case names, first one wins; "" when absent. Valid while the factory runs.
  std::function<std::string_view(std::string_view name)> metadata;
  size_t worker = 0;  // number of the loop, 0 .. loops-1
  uint16_t port = 0;  // that the connection came in on
  Loop* loop = nullptr;
};

// Runs on the connection's loop. null: UNIMPLEMENTED. (What a service shares between calls of one worker it
// indexes by `worker`.)
using GrpcFactory = std::function<std::unique_ptr<GrpcCall>(const GrpcRequest&)>;

struct GrpcServerStats {
  std::atomic<uint64_t> connections{0};          // open now
  std::atomic<uint64_t> streams{0};              // open now
  std::atomic<uint64_t> calls{0};                // ever
  std::atomic<uint64_t> refused_messages{0};     // over max_message or out of max_buffered_bytes
  std::atomic<uint64_t> relieved_calls{0};       // that let go memory, or decided early, when it was short
  std::atomic<uint64_t> shed_calls{0};           // ended because they could not
  std::atomic<uint64_t> stalled_calls{0};        // reset because nothing moved for stall_timeout
  std::atomic<uint64_t> silent_calls{0};         // ended without a first message
  std::atomic<uint64_t> refused_connections{0};  // too many, and none that could make room
  std::atomic<uint64_t> evicted_connections{0};  // that made room for others, or were idle for idle_timeout
  std::atomic<uint64_t> aborted_connections{0};  // closed by us for abuse, slow reading or silence
  std::atomic<uint64_t> buffered_bytes{0};
};

// Thread-safe where said. Listens on loop 0 and hands each connection to the loop with the fewest.
class GrpcServer {
 public:
  // Binds and listens. REQUIRES: the loops outlive the server, and are running or run later. The error names
  // the address and the reason.
  static base::Result<std::unique_ptr<GrpcServer>> Listen(GrpcServerOptions options,
                                                          const std::vector<Loop*>& loops,
                                                          GrpcFactory factory, const base::Log& log);
  virtual ~GrpcServer() = default;  // REQUIRES: the loops are stopped, or Shutdown has completed

  virtual uint16_t port() const = 0;
  // Further ports of the same server, GrpcRequest::port tells them apart. Thread-safe. The error names the
  // address and the reason; a port that is listened on already is none. After RemovePort open connections go
  // on.
  virtual base::Result<void> AddPort(uint16_t port) = 0;
  virtual void RemovePort(uint16_t port) = 0;
  // Thread-safe. New connections get the new certificate; open ones keep theirs.
  virtual void SetTls(TlsContext tls) = 0;
  // Thread-safe. Stops listening, tells clients to go (GOAWAY notice, then GOAWAY), lets calls end for up to
  // `grace`, then closes what is left and calls `done` once on loop 0.
  virtual void Shutdown(base::Nanos grace, std::function<void()> done) = 0;
  virtual const GrpcServerStats& stats() const = 0;
  // The same, for who may outlive the server.
  virtual std::shared_ptr<const GrpcServerStats> shared_stats() const = 0;
};

}  // namespace fairway::net
