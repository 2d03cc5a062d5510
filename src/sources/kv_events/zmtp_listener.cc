#include "sources/kv_events/zmtp_listener.h"

#include <sys/socket.h>

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
#include "sources/kv_events/zmtp_socket.h"

namespace fairway::sources::kv_events {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using Error = boost::system::error_code;

namespace {

constexpr base::Nanos kListenAgain = base::kSecond;
constexpr base::Nanos kAcceptAgain = base::kSecond / 10;
constexpr int kAcceptsPerTurn = 16;

// As endpoints have theirs: IPv4 that came by a socket of IPv6 is IPv4.
std::string AddressOf(const tcp::endpoint& peer) {
  const asio::ip::address address = peer.address();
  if (address.is_v6() && address.to_v6().is_v4_mapped())
    return asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6()).to_string();
  return address.to_string();
}

}  // namespace

// Kept alive by its handlers until they have run.
struct ZmtpListener::Impl final : std::enable_shared_from_this<ZmtpListener::Impl> {
  struct Connection {
    std::string from;
    std::string share;  // of whose share it is
    std::unique_ptr<ZmtpSocket> socket;
    base::Nanos active = 0;  // when it last brought a message, or began
    size_t held = 0;
    bool opened = false;
  };
  using Connections = std::map<uint64_t, Connection>;

  Impl(net::Loop& l, ZmtpListenerOptions o, const base::Clock& c, const base::Log& lo, Handlers h)
      : loop(l),
        options(std::move(o)),
        clock(c),
        log(lo),
        handlers(std::move(h)),
        acceptor(l.io()),
        again(l) {}

  // ---- The port.
  void Listen() {
    const Error error = TryListen();
    const std::string place = net::FormatHostPort(options.host, options.port);
    if (!error) {
      if (!failure.empty()) log.Info("KV events: engines can dial now", {{"address", place}});
      failure.clear();
      return Accept();
    }
    const std::string reason = base::ToLower(error.message());
    if (reason != failure) {
      log.Warn(
          error == asio::error::address_in_use
              ? "KV events: the port of zmqEndpoint is taken, as by another picker of this machine or by "
                "the Envoy that this one replaces; engines that dial are not heard until it is free; "
                "trying again each second"
              : "KV events: cannot listen at zmqEndpoint; engines that dial are not heard; trying again "
                "each second",
          {{"address", place}, {"error", reason}});
    }
    failure = reason;
    Error ignored;
    acceptor.close(ignored);
    again.After(kListenAgain, [this] { Listen(); });
  }

  Error TryListen() {
    Error error;
    const auto address = asio::ip::make_address(options.host, error);
    if (error) return error;
    tcp::endpoint endpoint(address, options.port);
    acceptor.open(endpoint.protocol(), error);
    if (error == asio::error::address_family_not_supported && options.host == "::") {
      endpoint = tcp::endpoint(tcp::v4(), options.port);
      acceptor.open(endpoint.protocol(), error);
    }
    if (error) return error;
    acceptor.set_option(asio::socket_base::reuse_address(true), error);
    if (endpoint.address().is_v6())
      acceptor.set_option(asio::ip::v6_only(!endpoint.address().is_unspecified()), error);
    acceptor.bind(endpoint, error);
    if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (!error) acceptor.non_blocking(true, error);
    return error;
  }

  // Waits for somebody to be there before it accepts: without descriptors the system says so also where
  // nobody is.
  void Accept() {
    acceptor.async_wait(tcp::acceptor::wait_read, [self = shared_from_this()](const Error& error) {
      if (self->done) return;
      if (error) return self->AcceptLater();
      for (int turn = 0; turn < kAcceptsPerTurn; ++turn) {
        const int descriptor =
            ::accept4(self->acceptor.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (descriptor >= 0) {
          self->Admit(descriptor);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
          break;
        } else if (errno != ECONNABORTED && errno != EINTR && errno != EPROTO) {
          return self->AcceptLater();  // at once would spin
        }
      }
      self->Accept();
    });
  }
  void AcceptLater() {
    handlers.refused();
    again.After(kAcceptAgain, [this] { Accept(); });
  }

  // ---- Connections.
  void Admit(int descriptor) {
    sockaddr_storage name{};
    socklen_t size = sizeof name;
    const bool there = ::getpeername(descriptor, reinterpret_cast<sockaddr*>(&name), &size) == 0;
    tcp::endpoint peer;
    if (there && size <= peer.capacity()) {
      std::copy_n(reinterpret_cast<const char*>(&name), size, reinterpret_cast<char*>(peer.data()));
      peer.resize(size);
    }
    std::string from = AddressOf(peer);
    std::string share = handlers.known(from) ? from : net::PeerShareOf(from);
    MakeRoom(share);
    const uint64_t number = ++last_number;
    Connection& connection = connections[number];
    connection.from = std::move(from);
    connection.share = std::move(share);
    connection.active = clock.Now();
    ++of_host[connection.share];
    connection.socket = std::make_unique<ZmtpSocket>(
        loop, descriptor, peer.protocol() == tcp::v6(),
        ZmtpSocketOptions{.type = "SUB",
                          .first = ZmtpSubscribe(""),
                          .open_timeout = options.open_timeout,
                          .max_message = options.max_message},
        ZmtpSocket::Handlers{
            .opened = [this, number] { connections.at(number).opened = true; },
            .message = [this, number](const ZmtpMessage& message) { Receive(number, message); },
            .ended =
                [this, number](ZmtpSocket::End end, const std::string&) {
                  if (end == ZmtpSocket::End::kProtocol) handlers.refused();
                  Close(number);
                },
            .held = [this, number](size_t bytes) { Hold(number, bytes); }});
  }

  // So that one of that share has a place.
  void MakeRoom(const std::string& share) {
    const auto same = of_host.find(share);
    const bool host_full = same != of_host.end() && same->second >= options.most_of_host;
    if (!host_full && connections.size() < options.most_connections) return;
    size_t most = 0;
    for (const auto& [host, count] : of_host) most = std::max(most, count);
    // Of hosts that have equally many none is meant; who never shook hands goes first.
    auto victim = connections.end();
    const auto before = [](const Connection& a, const Connection& b) {
      return a.opened != b.opened ? b.opened : a.active < b.active;
    };
    for (auto it = connections.begin(); it != connections.end(); ++it) {
      const std::string& host = it->second.share;
      if (host_full ? host != share : of_host.at(host) != most) continue;
      if (victim == connections.end() || before(it->second, victim->second)) victim = it;
    }
    if (victim == connections.end()) return;
    handlers.refused();
    Close(victim->first);
  }

  void Receive(uint64_t number, const ZmtpMessage& message) {
    Connection& connection = connections.at(number);
    connection.active = clock.Now();
    handlers.message(number, connection.from, message);
  }

  void Hold(uint64_t number, size_t bytes) {
    Connection& connection = connections.at(number);
    held += bytes - connection.held;
    connection.held = bytes;
    while (held > options.most_held) {
      const auto most =
          std::max_element(connections.begin(), connections.end(),
                           [](const auto& a, const auto& b) { return a.second.held < b.second.held; });
      handlers.refused();
      Close(most->first);
    }
  }

  void Close(uint64_t number) {
    const auto found = connections.find(number);
    if (found == connections.end()) return;
    const Connection gone = std::move(found->second);
    connections.erase(found);
    held -= gone.held;
    if (const auto of = of_host.find(gone.share); --of->second == 0) of_host.erase(of);
    handlers.ended(number);
  }

  net::Loop& loop;
  const ZmtpListenerOptions options;
  const base::Clock& clock;
  const base::Log& log;
  const Handlers handlers;
  tcp::acceptor acceptor;
  net::Timer again;
  std::string failure;
  Connections connections;
  std::map<std::string, size_t> of_host;
  uint64_t last_number = 0;
  size_t held = 0;  // of all connections
  bool done = false;
};

ZmtpListener::ZmtpListener(net::Loop& loop, ZmtpListenerOptions options, const base::Clock& clock,
                           const base::Log& log, Handlers handlers)
    : impl_(std::make_shared<Impl>(loop, std::move(options), clock, log, std::move(handlers))) {
  impl_->Listen();
}

ZmtpListener::~ZmtpListener() {
  impl_->done = true;
  impl_->again.Cancel();
  impl_->connections.clear();
  Error ignored;
  impl_->acceptor.close(ignored);
}

bool ZmtpListener::listening() const { return impl_->failure.empty(); }
const std::string& ZmtpListener::failure() const { return impl_->failure; }
size_t ZmtpListener::connections() const { return impl_->connections.size(); }

}  // namespace fairway::sources::kv_events
