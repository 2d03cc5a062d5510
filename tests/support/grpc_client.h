// A small gRPC client for tests, on plain sockets, nghttp2 and OpenSSL: clean under every sanitizer, and able
// to misbehave.
//
//   auto client = GrpcClient::Connect("127.0.0.1", port);
//   auto call = client->Open("/pkg.Service/Method", {{"x-key", "value"}});
//   call->Send(message);
//   GrpcReply reply = call->Recv();          // kMessage, kEnd (status, text) or kTimeout
//   call->HalfClose();
//
// Blocking, one thread at a time: all I/O happens inside the functions of the client and its calls, so a
// client that is not called does not read. Several calls may be open at once. The client must outlive its
// calls' use.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fairway::testing {

using Metadata = std::vector<std::pair<std::string, std::string>>;
constexpr std::chrono::milliseconds kPatience{10'000};  // generous: a test fails by it, it never waits for it

struct GrpcReply {
  enum class Kind { kMessage, kEnd, kTimeout };
  Kind kind = Kind::kTimeout;
  std::string message;
  // With kEnd. status is -1 when the server sent none: see http_status, reset and the client's closed().
  int status = -1;
  std::string status_message;     // percent-decoded
  int http_status = 0;            // 0: no response headers came
  std::optional<uint32_t> reset;  // error code of the server's RST_STREAM
};

struct GrpcClientOptions {
  bool tls = false;
  std::vector<std::string> alpn = {"h2"};  // empty: none is sent
  int max_tls_version = 0;                 // TLS1_2_VERSION, say; 0: any
  bool sni = false;
  std::string cipher_list;       // OpenSSL's names, of TLS 1.2; empty: its default
  std::string certificate_file;  // PEM, of the client's own; empty: none
  std::string key_file;
  std::string authority = "localhost";
  uint32_t stream_window = 1 << 20;  // what the server may send per call before we read; 0 stalls it
  bool grow_windows = true;          // as we read
  size_t frame_size = 0;             // DATA frames are cut to this; 0: as large as allowed
  int receive_buffer = 0;            // SO_RCVBUF; 0: the system's
  std::chrono::milliseconds timeout = kPatience;
};

class GrpcClient;

class GrpcClientCall {
 public:
  // Frames and sends a message, as far as the windows allow now; the rest leaves during later calls.
  void Send(std::string_view message);
  // Sends bytes as they are.
  void SendRaw(std::string_view bytes);
  void HalfClose();
  void Reset(uint32_t error_code = 8);  // CANCEL
  // The next message, or the end, again and again once it came.
  GrpcReply Recv(std::chrono::milliseconds timeout = kPatience);
  // Reads on until the end and returns it, dropping messages.
  GrpcReply RecvEnd(std::chrono::milliseconds timeout = kPatience);
  // Response headers and trailers.
  const Metadata& headers() const { return headers_; }
  bool ended() const { return ended_; }
  size_t unsent() const { return out_.size() - out_at_; }
  int32_t stream() const { return stream_; }

 private:
  friend class GrpcClient;
  friend struct GrpcClientCallbacks;
  explicit GrpcClientCall(GrpcClient& client) : client_(client) {}
  void Take(std::string_view bytes);

  GrpcClient& client_;
  int32_t stream_ = -1;
  std::string out_;
  size_t out_at_ = 0;
  bool half_close_ = false;
  bool deferred_ = false;
  std::string in_;
  std::deque<std::string> messages_;
  bool ended_ = false;
  GrpcReply end_;
  Metadata headers_;
};

class GrpcClient {
 public:
  // null: no connection, see `error`.
  static std::unique_ptr<GrpcClient> Connect(const std::string& host, uint16_t port,
                                             GrpcClientOptions options = {}, std::string* error = nullptr);
  ~GrpcClient();
  GrpcClient(const GrpcClient&) = delete;
  GrpcClient& operator=(const GrpcClient&) = delete;

  // Begins a call. `metadata` may replace ":method" and "content-type".
  std::shared_ptr<GrpcClientCall> Open(const std::string& path, const Metadata& metadata = {});
  // Open, Send, HalfClose, and the first reply; `end` gets the call's end.
  GrpcReply Unary(const std::string& path, std::string_view message, GrpcReply* end = nullptr);

  // Sends and reads what can be without waiting longer than `timeout` for the first byte. False: the
  // connection is over.
  bool Pump(std::chrono::milliseconds timeout = std::chrono::milliseconds(0));
  // Until `done` or the time is over; false then.
  bool PumpUntil(const std::function<bool()>& done, std::chrono::milliseconds timeout = kPatience);

  bool closed() const { return closed_; }
  // The last GOAWAY's error code.
  std::optional<uint32_t> goaway() const { return goaway_; }
  int32_t goaway_last_stream() const { return goaway_last_stream_; }
  uint32_t max_concurrent_streams() const;  // as the server's SETTINGS say
  size_t pings() const { return pings_; }
  std::string tls_version() const;
  std::string tls_certificate() const;  // DER of the server's certificate
  int descriptor() const;
  // Bytes past HTTP/2: whatever should break it.
  void WriteRaw(std::string_view bytes);

 private:
  friend class GrpcClientCall;
  friend struct GrpcClientCallbacks;
  struct Impl;
  explicit GrpcClient(GrpcClientOptions options);
  void Flush();
  void Lose();

  std::unique_ptr<Impl> impl_;
  GrpcClientOptions options_;
  std::vector<std::shared_ptr<GrpcClientCall>> calls_;
  bool closed_ = false;
  std::optional<uint32_t> goaway_;
  int32_t goaway_last_stream_ = 0;
  size_t pings_ = 0;
};

}  // namespace fairway::testing
