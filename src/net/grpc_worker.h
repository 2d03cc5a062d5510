// What one loop does for a gRPC server: its connections, their ticks and the deadlines of their calls.
// Internal to net.
#pragma once

#include <nghttp2/nghttp2.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "net/address.h"
#include "net/grpc_server.h"
#include "net/loop.h"
#include "net/tls.h"

namespace fairway::net {

class GrpcConnection;

// Who has to make room for a new connection.
enum class GrpcRoom { kThereIs, kAnybody, kSameAddress };

// What the workers and connections of a server share. Thread-safe: constant, atomic or under a lock.
struct GrpcShared {
  GrpcShared(GrpcServerOptions o, GrpcFactory f, const base::Log& l);
  ~GrpcShared();
  GrpcShared(const GrpcShared&) = delete;
  GrpcShared& operator=(const GrpcShared&) = delete;

  // A connection of that address more. False: there are too many of it.
  bool CountAddress(const PeerAddress& address);
  void ForgetAddress(const PeerAddress& address);

  TlsContext Tls();
  void SetTls(TlsContext context);

  const GrpcServerOptions options;
  const GrpcFactory factory;
  const base::Log log;
  GrpcServerStats stats;
  base::LogLimit abort_limit{base::kSecond};
  base::LogLimit exception_limit{base::kSecond};
  base::LogLimit accept_limit{base::kSecond};
  base::SystemClock clock;
  nghttp2_session_callbacks* callbacks = nullptr;
  nghttp2_option* session_options = nullptr;

 private:
  std::mutex mutex_;  // of what follows, which is needed once or twice per connection
  TlsContext tls_;
  std::map<PeerAddress, uint32_t> addresses_;  // connections of each
};

// Owned by the server; all but `load` and the constructor belong to the loop's thread.
class GrpcWorker : public std::enable_shared_from_this<GrpcWorker> {
 public:
  GrpcWorker(Loop& loop, size_t number, std::shared_ptr<GrpcShared> shared);
  ~GrpcWorker();
  GrpcWorker(const GrpcWorker&) = delete;
  GrpcWorker& operator=(const GrpcWorker&) = delete;

  void Start();
  // Takes over a connected, non-blocking descriptor, which counts in `load`, stats.connections and its
  // address's already. Without the room that it needs it is closed.
  void Adopt(int descriptor, const PeerAddress& peer, GrpcRoom room);
  // Lets the connections end for up to `grace`, then closes them and calls `done`.
  void Drain(base::Nanos grace, std::function<void()> done);
  // Closes all connections and stops the timers.
  void Close();

  // For connections.
  void Remove(GrpcConnection& connection);
  // Connections without a call, the one that has been so for longest first.
  using IdleList = std::list<GrpcConnection*>;
  IdleList::iterator AddIdle(GrpcConnection& connection) { return idle_.insert(idle_.end(), &connection); }
  void RemoveIdle(IdleList::iterator at) { idle_.erase(at); }
  void AddDeadline(base::Nanos at, GrpcConnection& connection, int32_t stream);
  void RemoveDeadline(base::Nanos at, GrpcConnection& connection, int32_t stream);
  static constexpr size_t kReadBuffer = 256 << 10;
  char* read_buffer() { return read_buffer_.get(); }
  Loop& loop() { return loop_; }
  size_t number() const { return number_; }
  const std::shared_ptr<GrpcShared>& shared() const { return shared_; }
  // A number for each connection, to spread what must not happen to all at once.
  uint64_t NextSerial() { return ++serial_; }
  // Called when the last connection is gone. For tests.
  std::function<void()> on_idle;

  std::atomic<size_t> load{0};  // connections here or on their way here

 private:
  using Deadline = std::tuple<base::Nanos, GrpcConnection*, int32_t>;

  void Tick();
  bool MakeRoom(const PeerAddress* of);
  void Uncount(const PeerAddress& peer);
  void DrainStep();
  void FinishDrain();
  void ArmDeadlines();
  void RunDeadlines();
  std::vector<std::shared_ptr<GrpcConnection>> Connections() const;

  Loop& loop_;
  size_t number_;
  std::shared_ptr<GrpcShared> shared_;
  std::unique_ptr<char[]> read_buffer_;  // one for all: nothing stays in it between events
  std::unordered_map<GrpcConnection*, std::shared_ptr<GrpcConnection>> connections_;
  IdleList idle_;
  std::set<Deadline> deadlines_;
  base::Nanos armed_for_ = 0;  // when deadline_timer_ fires; 0: not set
  std::optional<Timer> tick_timer_;
  std::optional<Timer> deadline_timer_;
  std::optional<Timer> drain_timer_;
  bool draining_ = false;
  bool drained_ = false;
  base::Nanos goaway_at_ = 0;
  base::Nanos drain_until_ = 0;
  std::vector<std::function<void()>> drain_done_;
  uint64_t serial_ = 0;
};

}  // namespace fairway::net
