#include "net/grpc_server.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <system_error>
#include <utility>

#include "net/address.h"
#include "net/grpc_worker.h"

namespace fairway::net {
namespace {

using boost::asio::posix::stream_descriptor;

constexpr int kBacklog = 4096;
constexpr int kAcceptAtOnce = 64;
// After running out of descriptors or memory. A waiting client stays in the backlog; asking at once again
// would only burn CPU.
constexpr base::Nanos kAcceptPause = 100 * base::kMillisecond;

std::string ErrorText(int error) { return std::generic_category().message(error); }

// Closed on every path on which no connection took it over: a task may be dropped with its loop.
class Descriptor {
 public:
  explicit Descriptor(int value = -1) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(Descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  int get() const { return value_; }
  int release() { return std::exchange(value_, -1); }

 private:
  int value_;
};

struct Listening {
  Descriptor descriptor;
  uint16_t port = 0;
};

// 0 or errno. No SO_REUSEPORT: it would hide a second server on the port.
int TryListen(const addrinfo& address, bool both_families, Descriptor& out) {
  Descriptor made(::socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (made.get() < 0) return errno;
  const int one = 1;
  ::setsockopt(made.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (address.ai_family == AF_INET6) {
    const int only = both_families ? 0 : 1;
    ::setsockopt(made.get(), IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only);
  }
  if (::bind(made.get(), address.ai_addr, address.ai_addrlen) != 0 || ::listen(made.get(), kBacklog) != 0)
    return errno;
  out = std::move(made);
  return 0;
}

base::Result<Listening> ListenOn(const std::string& host, uint16_t port, const base::Log& log) {
  const bool any = host.empty() || host == "::";
  const std::string where = FormatHostPort(host.empty() ? "::" : host, port);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  Listening out;
  int error = EADDRNOTAVAIL;
  for (const char* name : {any ? "::" : host.c_str(), "0.0.0.0"}) {
    addrinfo* found = nullptr;
    const int failed = ::getaddrinfo(name, std::to_string(port).c_str(), &hints, &found);
    if (failed != 0) {
      const bool system = failed == EAI_SYSTEM;
      return base::Fail(
          base::ErrorCode::kInvalidArgument,
          "cannot listen on " + where + ": " + (system ? ErrorText(errno) : gai_strerror(failed)));
    }
    const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, ::freeaddrinfo);
    for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
      error = TryListen(*at, any, out.descriptor);
      if (error == 0) {
        out.port = LocalPort(out.descriptor.get());
        return out;
      }
    }
    // A kernel without IPv6: "::" then means all there is.
    if (!any || (error != EAFNOSUPPORT && error != EADDRNOTAVAIL)) break;
    log.Warn("no IPv6 here, listening on IPv4 only", {{"address", where}});
  }
  return base::Fail(base::ErrorCode::kIo, "cannot listen on " + where + ": " + ErrorText(error));
}

// Accepts on loop 0. Belongs to that loop's thread.
class Listener : public std::enable_shared_from_this<Listener> {
 public:
  Listener(Loop& loop, Descriptor descriptor, const std::vector<std::shared_ptr<GrpcWorker>>& workers,
           std::shared_ptr<GrpcShared> shared)
      : loop_(loop), listening_(std::move(descriptor)), descriptor_(loop.io()), shared_(std::move(shared)) {
    // The workers of other loops may be gone before a task of this loop is.
    for (const auto& worker : workers) workers_.emplace_back(worker, &worker->loop());
  }

  void Start() {
    if (listening_.get() < 0) return;
    boost::system::error_code error;
    descriptor_.assign(listening_.get(), error);
    if (error) {
      shared_->log.Error("cannot watch the listening socket", {{"error", error.message()}});
      return Close();
    }
    (void)listening_.release();
    pause_.emplace(loop_);
    Wait();
  }

  void Close() {
    boost::system::error_code ignored;
    descriptor_.close(ignored);
    listening_ = Descriptor();
    pause_.reset();
  }

 private:
  void Wait() {
    descriptor_.async_wait(stream_descriptor::wait_read,
                           [self = shared_from_this()](const boost::system::error_code& error) {
                             if (!error && self->descriptor_.is_open()) self->Accept();
                           });
  }

  void Accept() {
    for (int i = 0; i < kAcceptAtOnce; ++i) {
      sockaddr_storage peer{};
      socklen_t size = sizeof peer;
      Descriptor taken(::accept4(descriptor_.native_handle(), reinterpret_cast<sockaddr*>(&peer), &size,
                                 SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (taken.get() >= 0) {
        HandOver(std::move(taken), PeerAddressOf(peer));
        continue;
      }
      const int error = errno;
      if (error == EAGAIN || error == EWOULDBLOCK) break;
      if (error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM) {
        Complain("cannot accept a gRPC connection", ErrorText(error));
        pause_->After(kAcceptPause, [this] { Wait(); });
        return;
      }
      // The rest is the client's: it left while it waited.
    }
    Wait();
  }

  // To the loop with the fewest.
  void HandOver(Descriptor taken, const PeerAddress& peer) {
    std::shared_ptr<GrpcWorker> least;
    Loop* loop = nullptr;
    for (const auto& [weak, its_loop] : workers_) {
      auto worker = weak.lock();
      if (worker != nullptr && (least == nullptr || worker->load < least->load)) {
        least = std::move(worker);
        loop = its_loop;
      }
    }
    if (least == nullptr) return;
    // The lowest free number is taken, so a high one says that few are left.
    const bool last = static_cast<size_t>(taken.get()) + shared_->options.spare_descriptors >= descriptors_;
    ++least->load;
    const bool crowded = shared_->stats.connections++ >= shared_->options.max_connections;
    const bool of_one = !shared_->CountAddress(peer);
    const GrpcRoom room = of_one            ? GrpcRoom::kSameAddress
                          : crowded || last ? GrpcRoom::kAnybody
                                            : GrpcRoom::kThereIs;
    if (loop == &loop_) return least->Adopt(taken.release(), peer, room);
    auto held = std::make_shared<Descriptor>(std::move(taken));
    loop->Post([held, peer, room, weak = std::weak_ptr(least)] {
      if (auto worker = weak.lock()) worker->Adopt(held->release(), peer, room);
    });
  }

  void Complain(const char* what, const std::string& error) {
    uint64_t held_back = 0;
    if (!shared_->accept_limit.Allow(shared_->clock.Now(), &held_back)) return;
    shared_->log.Warn(what, {{"error", error}, {"held_back", std::to_string(held_back)}});
  }

  Loop& loop_;
  Descriptor listening_;  // until Start, when Asio takes it over
  stream_descriptor descriptor_;
  std::vector<std::pair<std::weak_ptr<GrpcWorker>, Loop*>> workers_;
  std::shared_ptr<GrpcShared> shared_;
  const size_t descriptors_ = DescriptorLimit();
  std::optional<Timer> pause_;
};

class Server final : public GrpcServer {
 public:
  Server(GrpcServerOptions options, const std::vector<Loop*>& loops, GrpcFactory factory,
         const base::Log& log, Listening listening)
      : shared_(std::make_shared<GrpcShared>(std::move(options), std::move(factory), log)),
        port_(listening.port),
        first_(loops[0]) {
    for (size_t i = 0; i < loops.size(); ++i) {
      workers_.push_back(std::make_shared<GrpcWorker>(*loops[i], i, shared_));
      loops[i]->Post([weak = std::weak_ptr(workers_.back())] {
        if (auto worker = weak.lock()) worker->Start();
      });
    }
    Begin(std::move(listening));
  }

  ~Server() override {
    for (const auto& [port, listener] : listeners_) listener->Close();
    for (const auto& worker : workers_) worker->Close();
  }

  uint16_t port() const override { return port_; }

  base::Result<void> AddPort(uint16_t port) override {
    const std::lock_guard lock(mutex_);
    if (shut_down_ || listeners_.contains(port)) return {};
    auto listening = ListenOn(shared_->options.host, port, shared_->log);
    if (!listening) return tl::make_unexpected(listening.error());
    Begin(std::move(*listening));
    return {};
  }

  void RemovePort(uint16_t port) override {
    const std::lock_guard lock(mutex_);
    const auto found = listeners_.find(port);
    if (found == listeners_.end() || port == port_) return;
    first_->Post([listener = found->second] { listener->Close(); });
    listeners_.erase(found);
  }

  void SetTls(TlsContext tls) override { shared_->SetTls(std::move(tls)); }
  const GrpcServerStats& stats() const override { return shared_->stats; }
  std::shared_ptr<const GrpcServerStats> shared_stats() const override { return {shared_, &shared_->stats}; }

  void Shutdown(base::Nanos grace, std::function<void()> done) override {
    struct Left {
      size_t workers;  // of loop 0
      std::function<void()> done;
    };
    auto left = std::make_shared<Left>(Left{workers_.size(), std::move(done)});
    std::vector<std::pair<std::weak_ptr<GrpcWorker>, Loop*>> workers;
    workers.reserve(workers_.size());
    for (const auto& worker : workers_) workers.emplace_back(worker, &worker->loop());
    Loop* const first = workers.front().second;
    std::vector<std::weak_ptr<Listener>> listeners;
    {
      const std::lock_guard lock(mutex_);
      shut_down_ = true;
      for (const auto& [port, listener] : listeners_) listeners.emplace_back(listener);
    }
    first->Post([left, workers = std::move(workers), listeners = std::move(listeners), first, grace] {
      for (const auto& listener : listeners) {
        if (auto open = listener.lock()) open->Close();
      }
      const auto report = [left, first] {
        first->Post([left] {
          if (--left->workers == 0 && left->done) left->done();
        });
      };
      for (const auto& [weak, loop] : workers) {
        loop->Post([weak = weak, grace, report] {
          if (auto worker = weak.lock()) worker->Drain(grace, report);
        });
      }
    });
  }

 private:
  void Begin(Listening listening) {
    auto& listener = listeners_[listening.port];
    listener = std::make_shared<Listener>(*first_, std::move(listening.descriptor), workers_, shared_);
    first_->Post([weak = std::weak_ptr(listener)] {
      if (auto open = weak.lock()) open->Start();
    });
  }

  std::shared_ptr<GrpcShared> shared_;
  uint16_t port_;
  Loop* const first_;
  std::vector<std::shared_ptr<GrpcWorker>> workers_;
  std::mutex mutex_;
  std::map<uint16_t, std::shared_ptr<Listener>> listeners_;  // by port
  bool shut_down_ = false;
};

}  // namespace

base::Result<std::unique_ptr<GrpcServer>> GrpcServer::Listen(GrpcServerOptions options,
                                                             const std::vector<Loop*>& loops,
                                                             GrpcFactory factory, const base::Log& log) {
  if (loops.empty()) return base::Fail(base::ErrorCode::kInvalidArgument, "a gRPC server needs a loop");
  auto listening = ListenOn(options.host, options.port, log);
  if (!listening) return tl::make_unexpected(listening.error());
  return std::make_unique<Server>(std::move(options), loops, std::move(factory), log, std::move(*listening));
}

}  // namespace fairway::net
