#include "frontends/local/envoy_admin.h"

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/write.hpp>
#include <optional>
#include <utility>

#include "net/address.h"
#include "net/http_response.h"

namespace fairway::local {

namespace asio = boost::asio;
using asio::generic::stream_protocol;
using ErrorCode = boost::system::error_code;

namespace {

constexpr size_t kMaxBody = 1u << 20;

std::optional<stream_protocol::endpoint> EndpointOf(const std::string& address) {
  if (address.starts_with('/')) {
    if (address.size() >= sizeof(sockaddr_un{}.sun_path)) return std::nullopt;
    return stream_protocol::endpoint(asio::local::stream_protocol::endpoint(address));
  }
  const auto parsed = net::ParseHostPort(address);
  if (!parsed) return std::nullopt;
  ErrorCode error;
  const auto ip = asio::ip::make_address(parsed->host, error);
  if (error) return std::nullopt;
  return stream_protocol::endpoint(asio::ip::tcp::endpoint(ip, parsed->port));
}

}  // namespace

struct EnvoyAdmin::Exchange : std::enable_shared_from_this<Exchange> {
  Exchange(net::Loop& loop, std::string r, Answered a)
      : request(std::move(r)), answered(std::move(a)), socket(loop.io()), limit(loop) {}

  void Start(const stream_protocol::endpoint& endpoint) {
    limit.After(base::kSecond, [this] { End(); });
    socket.async_connect(endpoint, [self = shared_from_this()](const ErrorCode& error) {
      if (error || !self->answered) return self->End();
      asio::async_write(self->socket, asio::buffer(self->request), [self](const ErrorCode& failed, size_t) {
        if (failed) return self->End();
        self->Read();
      });
    });
  }

  void Read() {
    socket.async_read_some(
        asio::buffer(chunk), [self = shared_from_this()](const ErrorCode& error, size_t n) {
          if (!self->answered) return;
          const net::HttpParse parsed =
              error ? self->reader.FeedEnd() : self->reader.Feed(std::string_view(self->chunk.data(), n));
          if (parsed == net::HttpParse::kMore && !error) return self->Read();
          const Answered call = std::move(self->answered);
          self->End();
          if (parsed == net::HttpParse::kDone && self->reader.status() == 200) call(self->reader.body());
        });
  }

  void End() {
    answered = nullptr;
    limit.Cancel();
    ErrorCode ignored;
    socket.close(ignored);
  }

  const std::string request;
  Answered answered;  // null: over
  stream_protocol::socket socket;
  net::Timer limit;
  net::HttpResponseReader reader{kMaxBody};
  std::array<char, 8192> chunk;
};

EnvoyAdmin::EnvoyAdmin(net::Loop& loop, std::string address) : loop_(loop), address_(std::move(address)) {}

EnvoyAdmin::~EnvoyAdmin() {
  if (exchange_ != nullptr) exchange_->End();
}

bool EnvoyAdmin::busy() const { return exchange_ != nullptr && exchange_->answered; }

void EnvoyAdmin::Get(std::string_view target, Answered answered) {
  const auto endpoint = EndpointOf(address_);
  if (!endpoint) return;
  exchange_ = std::make_shared<Exchange>(
      loop_, "GET " + std::string(target) + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
      std::move(answered));
  exchange_->reader.Reset();
  exchange_->Start(*endpoint);
}

}  // namespace fairway::local
