#include "net/http_server.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <cerrno>
#include <map>
#include <system_error>
#include <utility>

#include "base/strings.h"
#include "net/address.h"
#include "net/http_connection.h"

namespace fairway::net {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

std::string_view HttpRequest::path() const {
  const std::string_view text = target;
  return text.substr(0, text.find('?'));
}

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (base::EqualsIgnoreCase(key, name)) return value;
  }
  return {};
}

namespace {

constexpr base::Nanos kAcceptAgain = 100 * base::kMillisecond;
constexpr int kAcceptsPerTurn = 16;

base::Nanos Now() { return base::SystemClock().Now(); }

class Responder final : public HttpResponder {
 public:
  Responder(std::weak_ptr<HttpConnection> connection, uint64_t number)
      : connection_(std::move(connection)), number_(number) {}
  ~Responder() override {
    if (const auto connection = connection_.lock()) connection->Abandon(number_);
  }
  Responder(const Responder&) = delete;
  Responder& operator=(const Responder&) = delete;

  void Send(HttpResponse response) override {
    if (const auto connection = connection_.lock()) connection->Send(number_, std::move(response));
  }
  bool Start(HttpResponse head) override {
    const auto connection = connection_.lock();
    return connection && connection->StartStream(number_, head);
  }
  bool Write(std::string_view chunk) override {
    const auto connection = connection_.lock();
    return connection && connection->WriteStream(number_, chunk);
  }
  void End() override {
    if (const auto connection = connection_.lock()) connection->EndStream(number_);
  }
  void OnGone(std::function<void()> gone) override {
    if (const auto connection = connection_.lock()) connection->OnGone(number_, std::move(gone));
  }

 private:
  std::weak_ptr<HttpConnection> connection_;
  uint64_t number_;
};

// Of two who could go: who is idle goes before who reads slowly, and that one before who waits for its answer;
// of two alike the one of which nothing was heard for longer.
bool GoesBefore(const HttpConnection& a, const HttpConnection& b) {
  return a.use() != b.use() ? a.use() < b.use() : a.active_at() < b.active_at();
}

// Who goes so that a connection from `peer` has a place; null: the newcomer itself.
HttpConnection* Displaced(const HttpCore& core, const std::string& peer) {
  std::map<std::string_view, size_t> by_address;
  ++by_address[peer];
  size_t most = 1;
  for (const auto& connection : core.connections) most = std::max(most, ++by_address[connection->peer()]);
  HttpConnection* victim = nullptr;
  for (const auto& connection : core.connections) {
    if (by_address[connection->peer()] < most) continue;
    if (victim == nullptr || GoesBefore(*connection, *victim)) victim = connection.get();
  }
  const auto is_busy = [](const HttpConnection& c) { return c.use() == HttpConnection::Use::kBusy; };
  if (victim == nullptr || !is_busy(*victim)) return victim;
  // Before somebody busy goes somebody who is not, of those that have no fewer than the newcomer's address had.
  HttpConnection* idle = nullptr;
  for (const auto& connection : core.connections) {
    if (by_address[connection->peer()] + 1 < by_address[peer] || is_busy(*connection)) continue;
    if (idle == nullptr || GoesBefore(*connection, *idle)) idle = connection.get();
  }
  return idle != nullptr || by_address[peer] == most ? idle : victim;
}

// Who goes where `peer` has its share already. The oldest, where all wait for answers: of a machine that was
// taken from the network that may be what is left.
HttpConnection* DisplacedOfAddress(const HttpCore& core, const std::string& peer) {
  size_t count = 0;
  HttpConnection* victim = nullptr;
  for (const auto& connection : core.connections) {
    if (connection->peer() != peer) continue;
    ++count;
    if (victim == nullptr || GoesBefore(*connection, *victim)) victim = connection.get();
  }
  return count >= core.options.max_of_address ? victim : nullptr;
}

// False: there is no place for it.
bool MakeRoom(HttpCore& core, const std::string& peer) {
  HttpConnection* const victim = Displaced(core, peer);
  if (victim == nullptr) {
    core.stats->refused.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  victim->CloseFor(core.stats->displaced);
  return true;
}

// As many as there shall be and can be.
void KeepSpares(HttpCore& core) {
  while (core.spares.size() < core.options.spare_descriptors) {
    const int spare = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (spare < 0) return;
    core.spares.push_back(spare);
  }
}

void CloseSpares(HttpCore& core) {
  for (const int spare : core.spares) ::close(spare);
  core.spares.clear();
}

void StartTick(const std::shared_ptr<HttpCore>& core) {
  const auto& options = core->options;
  const base::Nanos shortest =
      std::min({options.idle_timeout, options.request_timeout, options.answer_timeout});
  const base::Nanos period = std::clamp<base::Nanos>(shortest / 4, 5 * base::kMillisecond, base::kSecond);
  core->tick.After(period, [weak = std::weak_ptr(core)] {
    const auto core = weak.lock();
    if (!core || core->closed) return;
    const base::Nanos now = Now();
    const std::vector<std::shared_ptr<HttpConnection>> all(core->connections.begin(),
                                                           core->connections.end());
    for (const auto& connection : all) connection->Tick(now);
    KeepSpares(*core);
    if (!core->connections.empty() || core->spares.size() < core->options.spare_descriptors) StartTick(core);
  });
}

// Takes over the descriptor.
void Admit(const std::shared_ptr<HttpCore>& core, int fd) {
  ErrorCode error;
  tcp::socket socket(core->loop.io());
  if (socket.assign(core->acceptor.local_endpoint(error).protocol(), fd, error); error) {
    ::close(fd);
    return;
  }
  const auto remote = socket.remote_endpoint(error);
  if (error) return;  // gone already
  std::string peer = remote.address().to_string();
  if (!core->options.counts_alone || !core->options.counts_alone(peer)) peer = PeerShareOf(peer);
  if (core->options.max_of_address != 0) {
    if (HttpConnection* const victim = DisplacedOfAddress(*core, peer); victim != nullptr)
      victim->CloseFor(core->stats->displaced);
  }
  if (core->connections.size() >= core->options.max_connections && !MakeRoom(*core, peer)) return;
  if (core->connections.empty()) StartTick(core);
  const auto connection = std::make_shared<HttpConnection>(core, std::move(socket), std::move(peer));
  core->connections.insert(connection);
  core->stats->accepted.fetch_add(1, std::memory_order_relaxed);
  core->stats->connections.store(core->connections.size(), std::memory_order_relaxed);
  connection->Start();
}

int AcceptOne(HttpCore& core) {
  return ::accept4(core.acceptor.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
}

// With no descriptor left one of those kept back is given up for the next in line, or else the connection
// that is idle for longest. Another thread may be faster at taking it: then it is -1 again, as in AcceptOne.
int AcceptOnSpare(HttpCore& core) {
  if (!core.spares.empty()) {
    ::close(core.spares.back());
    core.spares.pop_back();
  } else if (core.connections.empty() || !MakeRoom(core, "")) {
    return -1;
  }
  return AcceptOne(core);
}

void Accept(const std::shared_ptr<HttpCore>& core);

void AcceptLater(const std::shared_ptr<HttpCore>& core, int error) {
  core->stats->accept_failed.fetch_add(1, std::memory_order_relaxed);
  if (core->accept_errors.Allow(Now())) {
    core->log.Warn("cannot accept a connection", {{"port", std::to_string(core->options.port)},
                                                  {"error", std::generic_category().message(error)}});
  }
  core->retry.After(kAcceptAgain, [weak = std::weak_ptr(core)] {
    if (const auto again = weak.lock()) Accept(again);
  });
}

// Waits for somebody to be there before it accepts: without descriptors the system says so also where nobody
// is.
void Accept(const std::shared_ptr<HttpCore>& core) {
  if (core->closed) return;
  core->acceptor.async_wait(tcp::acceptor::wait_read, [core](const ErrorCode& error) {
    if (core->closed) return;
    if (error) return AcceptLater(core, error.value());
    for (int turn = 0; turn < kAcceptsPerTurn; ++turn) {
      KeepSpares(*core);
      int fd = AcceptOne(*core);
      if (fd < 0 && (errno == EMFILE || errno == ENFILE)) fd = AcceptOnSpare(*core);
      if (fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
      // One that has gone already is not our failure.
      if (fd < 0 && (errno == ECONNABORTED || errno == EINTR || errno == EPROTO)) continue;
      if (fd < 0) return AcceptLater(core, errno);  // at once would spin
      Admit(core, fd);
    }
    Accept(core);
  });
}

class Server final : public HttpServer {
 public:
  explicit Server(std::shared_ptr<HttpCore> core) : core_(std::move(core)) {}
  ~Server() override { CloseAll(); }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  uint16_t port() const override { return core_->options.port; }
  std::shared_ptr<const HttpServerStats> stats() const override { return core_->stats; }
  void SetTls(TlsContext tls) override { core_->options.tls = std::move(tls); }
  void Close() override { CloseAll(); }

 private:
  void CloseAll() {
    if (core_->closed) return;
    core_->closed = true;
    core_->tick.Cancel();
    core_->retry.Cancel();
    ErrorCode error;
    core_->acceptor.close(error);
    const std::vector<std::shared_ptr<HttpConnection>> all(core_->connections.begin(),
                                                           core_->connections.end());
    for (const auto& connection : all) connection->Close();
    CloseSpares(*core_);
  }

  std::shared_ptr<HttpCore> core_;
};

}  // namespace

std::shared_ptr<HttpResponder> MakeResponder(std::weak_ptr<HttpConnection> connection, uint64_t number) {
  return std::make_shared<Responder>(std::move(connection), number);
}

base::Result<std::unique_ptr<HttpServer>> HttpServer::Listen(HttpServerOptions options, Loop& loop,
                                                             HttpHandler handler, const base::Log& log) {
  const auto fail = [&](const ErrorCode& error) {
    return base::Fail(base::ErrorCode::kIo, "cannot listen on " + FormatHostPort(options.host, options.port) +
                                                ": " + base::ToLower(error.message()));
  };
  ErrorCode error;
  auto address = asio::ip::make_address(options.host, error);
  if (error) {
    // Only at start, so waiting for the resolver is fine.
    tcp::resolver resolver(loop.io());
    ErrorCode unresolved;
    const auto found = resolver.resolve(options.host, "", unresolved);
    if (unresolved || found.empty()) return fail(unresolved ? unresolved : error);
    address = found.begin()->endpoint().address();
  }
  auto core = std::make_shared<HttpCore>(options, loop, std::move(handler), log);
  auto& acceptor = core->acceptor;
  tcp::endpoint endpoint(address, options.port);
  acceptor.open(endpoint.protocol(), error);
  if (error == asio::error::address_family_not_supported && options.host == "::") {
    // A kernel without IPv6: "::" then means all there is.
    endpoint = tcp::endpoint(tcp::v4(), options.port);
    acceptor.open(endpoint.protocol(), error);
  }
  if (error) return fail(error);
  acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (endpoint.address().is_v6()) acceptor.set_option(asio::ip::v6_only(false), error);
  acceptor.bind(endpoint, error);
  if (error) return fail(error);
  acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) return fail(error);
  acceptor.non_blocking(true, error);
  if (error) return fail(error);
  core->options.port = acceptor.local_endpoint(error).port();
  if (error) return fail(error);
  KeepSpares(*core);
  loop.Post([core] { Accept(core); });
  return std::make_unique<Server>(std::move(core));
}

}  // namespace fairway::net
