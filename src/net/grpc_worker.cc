#include "net/grpc_worker.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "net/grpc_connection.h"

namespace fairway::net {
namespace {

constexpr base::Nanos kDrainStep = 20 * base::kMillisecond;
// Between the two GOAWAYs: calls sent before the client read the first one must get here.
constexpr base::Nanos kNoticeTime = 100 * base::kMillisecond;
// Of thousands of calls that are due at one time the others wait for the next turn.
constexpr size_t kDeadlinesPerTurn = 64;

base::Nanos TickPeriod(const GrpcServerOptions& options) {
  base::Nanos period = base::kSecond;
  for (const base::Nanos span :
       {options.keepalive, options.max_connection_age, options.handshake_timeout,
        options.first_message_timeout, options.stall_timeout, options.idle_timeout}) {
    if (span > 0) period = std::min(period, span / 4);
  }
  return std::max(period, 5 * base::kMillisecond);
}

}  // namespace

bool GrpcShared::CountAddress(const PeerAddress& address) {
  const uint32_t most = options.max_connections_per_address != 0 ? options.max_connections_per_address
                                                                 : std::max(1u, options.max_connections / 4);
  const std::lock_guard lock(mutex_);
  return ++addresses_[address] <= most;
}

void GrpcShared::ForgetAddress(const PeerAddress& address) {
  const std::lock_guard lock(mutex_);
  const auto found = addresses_.find(address);
  if (found != addresses_.end() && --found->second == 0) addresses_.erase(found);
}

TlsContext GrpcShared::Tls() {
  const std::lock_guard lock(mutex_);
  return tls_;
}

void GrpcShared::SetTls(TlsContext context) {
  const std::lock_guard lock(mutex_);
  tls_.swap(context);
}

GrpcWorker::GrpcWorker(Loop& loop, size_t number, std::shared_ptr<GrpcShared> shared)
    : loop_(loop), number_(number), shared_(std::move(shared)), read_buffer_(new char[kReadBuffer]) {}

GrpcWorker::~GrpcWorker() { Close(); }

void GrpcWorker::Start() {
  if (drained_) return;
  tick_timer_.emplace(loop_);
  deadline_timer_.emplace(loop_);
  drain_timer_.emplace(loop_);
  tick_timer_->Every(TickPeriod(shared_->options), [this] { Tick(); });
}

void GrpcWorker::Adopt(int descriptor, const PeerAddress& peer, GrpcRoom room) {
  const bool refused =
      room != GrpcRoom::kThereIs && !MakeRoom(room == GrpcRoom::kSameAddress ? &peer : nullptr);
  if (refused) {
    ++shared_->stats.refused_connections;
    uint64_t held_back = 0;
    if (shared_->accept_limit.Allow(shared_->clock.Now(), &held_back)) {
      shared_->log.Warn("too many gRPC connections",
                        {{"limit", std::to_string(shared_->options.max_connections)},
                         {"of_one_address", room == GrpcRoom::kSameAddress ? "true" : "false"},
                         {"held_back", std::to_string(held_back)}});
    }
  }
  if (refused || draining_ || drained_) {
    ::close(descriptor);
    return Uncount(peer);
  }
  auto connection = std::make_shared<GrpcConnection>(*this, descriptor, peer, shared_->Tls());
  connections_.emplace(connection.get(), connection);
  connection->Start();
}

void GrpcWorker::Remove(GrpcConnection& connection) {
  if (connections_.erase(&connection) == 0) return;
  Uncount(connection.peer());
  if (connections_.empty() && on_idle) on_idle();
}

void GrpcWorker::Uncount(const PeerAddress& peer) {
  --load;
  --shared_->stats.connections;
  shared_->ForgetAddress(peer);
}

// Ends the connection (of that address) that had no call for longest. False: all have calls.
bool GrpcWorker::MakeRoom(const PeerAddress* of) {
  for (GrpcConnection* connection : idle_) {
    if (of != nullptr && connection->peer() != *of) continue;
    ++shared_->stats.evicted_connections;
    const auto keep = connection->shared_from_this();
    keep->SendAway();
    keep->Close();
    return true;
  }
  return false;
}

// A copy: what is done to a connection may close it.
std::vector<std::shared_ptr<GrpcConnection>> GrpcWorker::Connections() const {
  std::vector<std::shared_ptr<GrpcConnection>> all;
  all.reserve(connections_.size());
  for (const auto& [key, connection] : connections_) all.push_back(connection);
  return all;
}

void GrpcWorker::Tick() {
  const base::Nanos now = shared_->clock.Now();
  for (const auto& connection : Connections()) connection->Tick(now);
  const base::Nanos idle_timeout = shared_->options.idle_timeout;
  while (idle_timeout > 0 && !idle_.empty() && now - idle_.front()->idle_since() > idle_timeout) {
    const auto connection = idle_.front()->shared_from_this();
    ++shared_->stats.evicted_connections;
    connection->SendAway();
  }
}

void GrpcWorker::Drain(base::Nanos grace, std::function<void()> done) {
  drain_done_.push_back(std::move(done));
  if (drained_) return FinishDrain();
  const base::Nanos now = shared_->clock.Now();
  const base::Nanos until = now + std::max<base::Nanos>(grace, 0);
  if (draining_) {
    drain_until_ = std::min(drain_until_, until);
    return;
  }
  draining_ = true;
  drain_until_ = until;
  goaway_at_ = now + std::min(kNoticeTime, grace / 4);
  for (const auto& connection : Connections()) connection->SendGoAwayNotice();
  if (!drain_timer_.has_value()) drain_timer_.emplace(loop_);
  drain_timer_->Every(std::max<base::Nanos>(std::min(kDrainStep, grace / 4), base::kMillisecond),
                      [this] { DrainStep(); });
  if (grace <= 0 || connections_.empty()) DrainStep();
}

void GrpcWorker::DrainStep() {
  const base::Nanos now = shared_->clock.Now();
  if (now >= drain_until_) {
    for (const auto& connection : Connections()) connection->Close();
  } else if (now >= goaway_at_) {
    for (const auto& connection : Connections()) connection->SendGoAway();
  }
  if (connections_.empty()) FinishDrain();
}

void GrpcWorker::FinishDrain() {
  Close();
  std::vector<std::function<void()>> done;
  done.swap(drain_done_);
  for (auto& call : done) call();
}

void GrpcWorker::Close() {
  drained_ = true;
  for (const auto& connection : Connections()) connection->CloseNow();
  deadlines_.clear();
  tick_timer_.reset();
  deadline_timer_.reset();
  drain_timer_.reset();
}

void GrpcWorker::AddDeadline(base::Nanos at, GrpcConnection& connection, int32_t stream) {
  deadlines_.emplace(at, &connection, stream);
  ArmDeadlines();
}

void GrpcWorker::RemoveDeadline(base::Nanos at, GrpcConnection& connection, int32_t stream) {
  deadlines_.erase({at, &connection, stream});
}

// The timer is set anew only for an earlier deadline; when it fires for a call that has ended, it is set for
// the next one.
void GrpcWorker::ArmDeadlines() {
  if (deadlines_.empty() || !deadline_timer_.has_value()) return;
  const base::Nanos first = std::get<0>(*deadlines_.begin());
  if (armed_for_ != 0 && armed_for_ <= first) return;
  armed_for_ = first;
  deadline_timer_->After(first - shared_->clock.Now(), [this] { RunDeadlines(); });
}

void GrpcWorker::RunDeadlines() {
  armed_for_ = 0;
  const base::Nanos now = shared_->clock.Now();
  for (size_t n = 0; n < kDeadlinesPerTurn && !deadlines_.empty(); ++n) {
    if (std::get<0>(*deadlines_.begin()) > now) break;
    const auto [at, connection, stream] = *deadlines_.begin();
    deadlines_.erase(deadlines_.begin());
    connection->shared_from_this()->OnDeadline(stream);
  }
  ArmDeadlines();
}

}  // namespace fairway::net
