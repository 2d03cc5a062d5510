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
  uint32_t max_connections = 10'000;
  uint32_t stream_window = 1 << 20;       // bytes
  uint32_t connection_window = 16 << 20;  // bytes
  size_t max_message = 4 << 20;           // larger: RESOURCE_EXHAUSTED at its 5-byte header
  size_t max_header_bytes = 64 << 10;
  size_t max_buffered_bytes = 512u << 20;  // of unfinished messages and unsent answers over all connections;
                                           // beyond it calls end with RESOURCE_EXHAUSTED
  size_t max_connection_output =
      32u << 20;  // unsent answers of one connection (a reader that stopped): then it is closed
  // Resets of calls that were not answered yet, per connection; Envoy ends every ext_proc call with a reset,
  // so answered calls do not count. Beyond the budget: GOAWAY (CVE-2023-44487).
  double reset_burst = 5000;
  double reset_rate = 500;                     // per second
  base::Nanos keepalive = 60 * base::kSecond;  // silence before a PING; twice that: closed
  base::Nanos max_connection_age = 0;          // 0: no limit
  base::Nanos handshake_timeout = 10 * base::kSecond;
};

class GrpcConnection;  // of grpc_server.cc

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

  // The client sent its last message. Default: Finish(kOk).
  virtual void OnHalfClose() { Finish(GrpcStatus::kOk); }
  // The call is gone (reset, connection lost) or the server ended it (deadline, a message too large, out of
  // memory, an exception). `answered`: Finish had been called, or the client reset after our last answer was
  // sent, as Envoy does at the end of each exchange. Never inside Write or Finish, at most once, and the last
  // call on this object.
  virtual void OnCancel(bool answered) { (void)answered; }

 protected:
  GrpcCall() = default;

  // Queues one framed message: `prefix` (with the 5-byte gRPC header, see GrpcFrame) is copied; `body` is
  // sent by reference and must outlive the call. Ignored after Finish.
  void Write(std::string_view prefix, std::string_view body = {});
  // Ends the call; what was written before is still sent. Write and Finish may come later too, from a timer
  // or a task posted to loop(), as long as this object lives; when the client is gone by then they do
  // nothing.
  void Finish(GrpcStatus status, std::string_view message = {});
  bool finished() const { return finished_; }
  // All that was written has left: what was given by reference is not needed any more. False once the client
  // is gone.
  bool sent() const;
  Loop& loop() const;  // not in the constructor: GrpcRequest has it

  // Counts `bytes` that the service keeps for this call (a body taken by OnPart, say) against
  // max_buffered_bytes. False: there is no room, and the call was ended with RESOURCE_EXHAUSTED. The end of
  // the call releases what is left.
  bool Reserve(size_t bytes);
  void Release(size_t bytes);

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
};

}  // namespace fairway::net
