// One connection of HttpServer and what connections share. Private to http_server.cc and http_connection.cc.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "net/http_server.h"
#include "net/loop.h"
#include "net/socket_stream.h"

namespace fairway::net {

class HttpConnection;

// What the connections of a server share; the loop's.
struct HttpCore {
  HttpCore(HttpServerOptions o, Loop& l, HttpHandler h, const base::Log& lg)
      : options(std::move(o)), loop(l), handler(std::move(h)), log(lg), acceptor(l.io()), tick(l), retry(l) {}

  HttpServerOptions options;
  Loop& loop;
  HttpHandler handler;
  base::Log log;
  base::LogLimit accept_errors{10 * base::kSecond};
  base::LogLimit tls_errors{10 * base::kSecond};
  std::shared_ptr<HttpServerStats> stats = std::make_shared<HttpServerStats>();
  boost::asio::ip::tcp::acceptor acceptor;
  std::unordered_set<std::shared_ptr<HttpConnection>> connections;
  size_t held = 0;          // bytes of answers that wait for their readers
  std::vector<int> spares;  // descriptors kept back
  Timer tick;               // looks for connections that wait too long; runs while there are any
  Timer retry;              // after a failed accept
  bool closed = false;
};

// Owned by the loop's thread.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  // Who goes first when there is no room.
  enum class Use { kIdle, kUnread, kBusy };

  HttpConnection(std::shared_ptr<HttpCore> core, boost::asio::ip::tcp::socket socket, std::string peer);

  void Start();
  void Tick(base::Nanos now);
  void Close();  // tells an open answer that its client is gone
  void CloseFor(std::atomic<uint64_t>& count);

  Use use() const;
  base::Nanos active_at() const { return activity_; }
  base::Nanos unsent_since() const { return unsent_since_; }
  size_t unsent() const { return unsent_; }
  const std::string& peer() const { return peer_; }  // whom it is counted as

  // Of the responder of exchange `number`; false or nothing when that one is over.
  void Send(uint64_t number, HttpResponse response);
  bool StartStream(uint64_t number, const HttpResponse& head);
  bool WriteStream(uint64_t number, std::string_view chunk);
  void EndStream(uint64_t number);
  void OnGone(uint64_t number, std::function<void()> gone);
  void Abandon(uint64_t number);

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;

  bool IsOpen(uint64_t number) const { return !closed_ && answering_ && number == number_; }
  bool MayTake() const;
  void StartRead();
  void OnReadable(const boost::system::error_code& error);
  bool ShakeHands();
  void OnEnd(bool in_order);
  void NextTurn();
  void TakeRequest();
  bool ParseRequest();  // true: a whole request is in parser_
  void RefuseFor(const boost::system::error_code& error);
  void Dispatch();
  void Refuse(int status, std::string_view why);
  void AppendHead(const HttpResponse& head, std::optional<size_t> length);
  void Append(std::string_view text);
  void AppendOwned(std::string text);
  void AppendChunk(std::string chunk);
  void Count(size_t added);
  void Complete();
  void Flush();
  void Fill();
  void Sent(size_t bytes);
  void WaitToWrite();
  void Linger();

  std::shared_ptr<HttpCore> core_;
  boost::asio::ip::tcp::socket socket_;
  SocketStream stream_;
  std::string peer_;
  std::string local_address_;
  std::string peer_address_;
  boost::beast::flat_buffer buffer_;
  std::optional<Parser> parser_;
  std::deque<std::string> out_;  // the first from out_offset_ on; large bodies as they were given
  size_t out_offset_ = 0;
  size_t unsent_ = 0;
  std::function<std::string()> next_;  // of the open answer
  base::Nanos activity_ = 0;
  base::Nanos request_since_ = 0;  // 0: no request has begun
  base::Nanos unsent_since_ = 0;   // 0: all is sent
  uint64_t number_ = 0;            // of the open or last exchange
  std::function<void()> gone_;
  bool answering_ = false;  // a handler has a request and has not completed its answer
  bool streaming_ = false;
  bool chunked_ = false;
  bool head_only_ = false;
  bool http10_ = false;
  bool keep_alive_ = true;
  bool continue_sent_ = false;
  bool handshaking_ = false;
  bool turn_posted_ = false;
  bool reading_ = false;
  bool writing_ = false;
  bool closing_ = false;  // no further request; close when all is sent
  bool ended_ = false;    // the client sends no more; what it sent is still answered
  bool lingering_ = false;
  bool closed_ = false;
};

// Weak: an answer that a handler forgot must not keep a socket beyond its loop.
std::shared_ptr<HttpResponder> MakeResponder(std::weak_ptr<HttpConnection> connection, uint64_t number);

}  // namespace fairway::net
