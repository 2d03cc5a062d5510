#include "tests/support/grpc_client.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

namespace fairway::testing {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

milliseconds Left(Clock::time_point until) {
  return std::max(milliseconds(0), std::chrono::duration_cast<milliseconds>(until - Clock::now()));
}

nghttp2_nv Pair(const std::string& name, const std::string& value) {
  const auto bytes = [](const std::string& text) {
    return const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(text.data()));
  };
  return {bytes(name), bytes(value), name.size(), value.size(), NGHTTP2_NV_FLAG_NONE};
}

std::string PercentDecode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() + 0 && isxdigit(text[i + 1]) != 0 &&
        isxdigit(text[i + 2]) != 0) {
      out += static_cast<char>(std::stoi(std::string(text.substr(i + 1, 2)), nullptr, 16));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

int ConnectSocket(const std::string& host, uint16_t port, const GrpcClientOptions& options,
                  std::string& error) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int failed = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
      failed != 0) {
    error = gai_strerror(failed);
    return -1;
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    const int descriptor = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0) {
      error = strerror(errno);
      continue;
    }
    if (options.receive_buffer > 0) {
      setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &options.receive_buffer, sizeof options.receive_buffer);
    }
    timeval limit{.tv_sec = options.timeout.count() / 1000, .tv_usec = options.timeout.count() % 1000 * 1000};
    setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(descriptor, at->ai_addr, at->ai_addrlen) == 0) return descriptor;
    error = strerror(errno);
    close(descriptor);
  }
  return -1;
}

}  // namespace

struct GrpcClient::Impl {
  ~Impl() {
    if (ssl != nullptr) SSL_free(ssl);
    if (context != nullptr) SSL_CTX_free(context);
    if (session != nullptr) nghttp2_session_del(session);
    if (descriptor >= 0) close(descriptor);
  }

  int descriptor = -1;
  SSL_CTX* context = nullptr;
  SSL* ssl = nullptr;
  nghttp2_session* session = nullptr;
  std::string out;

  bool Wait(short events, milliseconds timeout) const {
    pollfd p{descriptor, events, 0};
    return poll(&p, 1, static_cast<int>(timeout.count())) > 0;
  }

  bool StartTls(const GrpcClientOptions& options, std::string& error) {
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, nullptr);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (options.max_tls_version != 0) SSL_CTX_set_max_proto_version(context, options.max_tls_version);
    std::string wire;
    for (const auto& name : options.alpn) wire += static_cast<char>(name.size()) + name;
    if (!options.cipher_list.empty()) SSL_CTX_set_cipher_list(context, options.cipher_list.c_str());
    if (!options.certificate_file.empty()) {
      SSL_CTX_use_certificate_file(context, options.certificate_file.c_str(), SSL_FILETYPE_PEM);
      SSL_CTX_use_PrivateKey_file(context, options.key_file.c_str(), SSL_FILETYPE_PEM);
    }
    ssl = SSL_new(context);
    if (!wire.empty()) {
      SSL_set_alpn_protos(ssl, reinterpret_cast<const uint8_t*>(wire.data()),
                          static_cast<unsigned>(wire.size()));
    }
    if (options.sni) SSL_set_tlsext_host_name(ssl, options.authority.c_str());
    SSL_set_fd(ssl, descriptor);
    if (SSL_connect(ssl) == 1) return true;
    const unsigned long code = ERR_get_error();
    const char* reason = code == 0 ? nullptr : ERR_reason_error_string(code);
    error = std::string("TLS: ") + (reason == nullptr ? "handshake failed" : reason);
    ERR_clear_error();
    return false;
  }

  // > 0 bytes, 0 would block, < 0 over.
  ssize_t Read(char* buffer, size_t size) const {
    if (ssl != nullptr) {
      ERR_clear_error();
      const int n = SSL_read(ssl, buffer, static_cast<int>(size));
      if (n > 0) return n;
      const int error = SSL_get_error(ssl, n);
      return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? 0 : -1;
    }
    const ssize_t n = recv(descriptor, buffer, size, MSG_DONTWAIT);
    if (n > 0) return n;
    return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
  }
  ssize_t Write(const char* data, size_t size) const {
    if (ssl != nullptr) {
      ERR_clear_error();
      const int n = SSL_write(ssl, data, static_cast<int>(size));
      if (n > 0) return n;
      const int error = SSL_get_error(ssl, n);
      return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? 0 : -1;
    }
    const ssize_t n = send(descriptor, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) return n;
    return errno == EAGAIN || errno == EINTR ? 0 : -1;
  }
};

struct GrpcClientCallbacks {
  static GrpcClientCall* Find(nghttp2_session* session, int32_t stream) {
    return static_cast<GrpcClientCall*>(nghttp2_session_get_stream_user_data(session, stream));
  }
  static int Header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name,
                    size_t name_size, const uint8_t* value, size_t value_size, uint8_t, void*) {
    GrpcClientCall* call = Find(session, frame->hd.stream_id);
    if (call == nullptr) return 0;
    std::string key(reinterpret_cast<const char*>(name), name_size);
    std::string text(reinterpret_cast<const char*>(value), value_size);
    if (key == ":status") call->end_.http_status = std::stoi(text);
    if (key == "grpc-status") call->end_.status = std::stoi(text);
    if (key == "grpc-message") call->end_.status_message = PercentDecode(text);
    call->headers_.emplace_back(std::move(key), std::move(text));
    return 0;
  }
  static int Data(nghttp2_session* session, uint8_t, int32_t stream, const uint8_t* data, size_t size,
                  void*) {
    if (auto* call = Find(session, stream)) call->Take({reinterpret_cast<const char*>(data), size});
    return 0;
  }
  static int Frame(nghttp2_session*, const nghttp2_frame* frame, void* user) {
    auto& client = *static_cast<GrpcClient*>(user);
    if (frame->hd.type == NGHTTP2_GOAWAY) {
      client.goaway_ = frame->goaway.error_code;
      client.goaway_last_stream_ = frame->goaway.last_stream_id;
    }
    if (frame->hd.type == NGHTTP2_PING && (frame->hd.flags & NGHTTP2_FLAG_ACK) == 0) ++client.pings_;
    return 0;
  }
  static int Closed(nghttp2_session* session, int32_t stream, uint32_t error, void*) {
    GrpcClientCall* call = Find(session, stream);
    if (call == nullptr) return 0;
    if (error != NGHTTP2_NO_ERROR) call->end_.reset = error;
    call->ended_ = true;
    return 0;
  }
  static ssize_t Read(nghttp2_session*, int32_t, uint8_t* buffer, size_t size, uint32_t* flags,
                      nghttp2_data_source* source, void*) {
    auto& call = *static_cast<GrpcClientCall*>(source->ptr);
    if (call.client_.options_.frame_size > 0) size = std::min(size, call.client_.options_.frame_size);
    const size_t n = std::min(size, call.unsent());
    if (n == 0 && !call.half_close_) {
      call.deferred_ = true;
      return NGHTTP2_ERR_DEFERRED;
    }
    memcpy(buffer, call.out_.data() + call.out_at_, n);
    call.out_at_ += n;
    if (call.unsent() == 0) {
      call.out_.clear();
      call.out_at_ = 0;
      if (call.half_close_) *flags |= NGHTTP2_DATA_FLAG_EOF;
    }
    return static_cast<ssize_t>(n);
  }
};

GrpcClient::GrpcClient(GrpcClientOptions options)
    : impl_(std::make_unique<Impl>()), options_(std::move(options)) {}
GrpcClient::~GrpcClient() = default;

std::unique_ptr<GrpcClient> GrpcClient::Connect(const std::string& host, uint16_t port,
                                                GrpcClientOptions options, std::string* error) {
  // OpenSSL writes without MSG_NOSIGNAL; a test that loses its server must get an error, not a signal.
  signal(SIGPIPE, SIG_IGN);
  std::string ignored;
  std::string& why = error != nullptr ? *error : ignored;
  std::unique_ptr<GrpcClient> client(new GrpcClient(std::move(options)));
  Impl& impl = *client->impl_;
  impl.descriptor = ConnectSocket(host, port, client->options_, why);
  if (impl.descriptor < 0) return nullptr;
  if (client->options_.tls && !impl.StartTls(client->options_, why)) return nullptr;
  const int on = 1;
  setsockopt(impl.descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);

  nghttp2_session_callbacks* callbacks = nullptr;
  nghttp2_session_callbacks_new(&callbacks);
  nghttp2_session_callbacks_set_on_header_callback(callbacks, GrpcClientCallbacks::Header);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, GrpcClientCallbacks::Data);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, GrpcClientCallbacks::Frame);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, GrpcClientCallbacks::Closed);
  nghttp2_option* option = nullptr;
  nghttp2_option_new(&option);
  nghttp2_option_set_no_auto_window_update(option, client->options_.grow_windows ? 0 : 1);
  nghttp2_session_client_new2(&impl.session, callbacks, client.get(), option);
  nghttp2_option_del(option);
  nghttp2_session_callbacks_del(callbacks);
  const nghttp2_settings_entry settings[] = {
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, client->options_.stream_window},
      {NGHTTP2_SETTINGS_ENABLE_PUSH, 0}};
  nghttp2_submit_settings(impl.session, NGHTTP2_FLAG_NONE, settings, 2);
  nghttp2_session_set_local_window_size(impl.session, NGHTTP2_FLAG_NONE, 0, 16 << 20);
  if (impl.ssl != nullptr) {  // from here on reads and writes do not wait
    timeval none{};
    setsockopt(impl.descriptor, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none);
    setsockopt(impl.descriptor, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
    SSL_set_mode(impl.ssl, SSL_MODE_AUTO_RETRY);
    BIO_socket_nbio(impl.descriptor, 1);
  }
  client->Flush();
  return client;
}

std::shared_ptr<GrpcClientCall> GrpcClient::Open(const std::string& path, const Metadata& metadata) {
  std::shared_ptr<GrpcClientCall> call(new GrpcClientCall(*this));
  Metadata all = {
      {":method", "POST"}, {":scheme", options_.tls ? "https" : "http"}, {":authority", options_.authority},
      {":path", path},     {"content-type", "application/grpc"},         {"te", "trailers"}};
  for (const auto& [name, value] : metadata) {
    const auto same =
        std::find_if(all.begin(), all.end(), [&n = name](const auto& pair) { return pair.first == n; });
    if (same != all.end()) {
      same->second = value;
    } else {
      all.emplace_back(name, value);
    }
  }
  std::vector<nghttp2_nv> headers;
  headers.reserve(all.size());
  for (const auto& [name, value] : all) headers.push_back(Pair(name, value));
  nghttp2_data_provider provider{};
  provider.source.ptr = call.get();
  provider.read_callback = GrpcClientCallbacks::Read;
  call->stream_ =
      nghttp2_submit_request(impl_->session, nullptr, headers.data(), headers.size(), &provider, call.get());
  if (call->stream_ < 0) call->ended_ = true;
  calls_.push_back(call);
  Flush();
  return call;
}

GrpcReply GrpcClient::Unary(const std::string& path, std::string_view message, GrpcReply* end) {
  auto call = Open(path);
  call->Send(message);
  call->HalfClose();
  GrpcReply reply = call->Recv();
  if (end != nullptr) *end = reply.kind == GrpcReply::Kind::kMessage ? call->RecvEnd() : reply;
  return reply;
}

void GrpcClient::Flush() {
  while (!closed_) {
    if (impl_->out.empty()) {
      const uint8_t* data = nullptr;
      ssize_t n = 0;
      while (impl_->out.size() < 256 << 10 && (n = nghttp2_session_mem_send(impl_->session, &data)) > 0) {
        impl_->out.append(reinterpret_cast<const char*>(data), static_cast<size_t>(n));
      }
      if (n < 0) return Lose();
      if (impl_->out.empty()) return;
    }
    const ssize_t n = impl_->Write(impl_->out.data(), impl_->out.size());
    if (n == 0) return;
    // What the server still had to say comes first: Pump finds the end.
    if (n < 0) return impl_->out.clear();
    impl_->out.erase(0, static_cast<size_t>(n));
  }
}

void GrpcClient::Lose() {
  closed_ = true;
  for (const auto& call : calls_) call->ended_ = true;
}

bool GrpcClient::Pump(milliseconds timeout) {
  if (closed_) return false;
  Flush();
  const bool pending = impl_->ssl != nullptr && SSL_pending(impl_->ssl) > 0;
  if (!pending) {
    const auto until = Clock::now() + timeout;
    do {
      const short events = impl_->out.empty() ? POLLIN : POLLIN | POLLOUT;
      if (!impl_->Wait(events, Left(until))) return true;
      Flush();
    } while (!impl_->Wait(POLLIN, milliseconds(0)) && Clock::now() < until);
  }
  std::vector<char> buffer(64 << 10);
  for (;;) {
    const ssize_t n = impl_->Read(buffer.data(), buffer.size());
    if (n == 0) break;
    if (n < 0 || nghttp2_session_mem_recv(impl_->session, reinterpret_cast<uint8_t*>(buffer.data()),
                                          static_cast<size_t>(n)) < 0) {
      Lose();
      return false;
    }
    Flush();
  }
  return true;
}

bool GrpcClient::PumpUntil(const std::function<bool()>& done, milliseconds timeout) {
  const auto until = Clock::now() + timeout;
  while (!done()) {
    if (Clock::now() >= until) return false;
    // In slices: `done` may look at something that no byte of ours will announce.
    if (!Pump(std::min(Left(until), milliseconds(20)))) return done();
  }
  return true;
}

uint32_t GrpcClient::max_concurrent_streams() const {
  return nghttp2_session_get_remote_settings(impl_->session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
}

std::string GrpcClient::tls_version() const {
  return impl_->ssl == nullptr ? "" : SSL_get_version(impl_->ssl);
}

std::string GrpcClient::tls_certificate() const {
  if (impl_->ssl == nullptr) return "";
  X509* certificate = SSL_get1_peer_certificate(impl_->ssl);
  unsigned char* der = nullptr;
  const int size = i2d_X509(certificate, &der);
  std::string out(reinterpret_cast<char*>(der), size > 0 ? static_cast<size_t>(size) : 0);
  OPENSSL_free(der);
  X509_free(certificate);
  return out;
}

int GrpcClient::descriptor() const { return impl_->descriptor; }

void GrpcClient::WriteRaw(std::string_view bytes) {
  Flush();
  impl_->out.append(bytes);
  Flush();
}

void GrpcClientCall::Send(std::string_view message) {
  const size_t n = message.size();
  const auto byte = [n](int shift) { return static_cast<char>(n >> shift & 0xff); };
  out_.append({0, byte(24), byte(16), byte(8), byte(0)});
  SendRaw(message);
}

void GrpcClientCall::SendRaw(std::string_view bytes) {
  out_.append(bytes);
  if (deferred_ && !ended_) {
    deferred_ = false;
    nghttp2_session_resume_data(client_.impl_->session, stream_);
  }
  client_.Flush();
}

void GrpcClientCall::HalfClose() {
  half_close_ = true;
  SendRaw({});
}

void GrpcClientCall::Reset(uint32_t error_code) {
  if (ended_) return;
  nghttp2_submit_rst_stream(client_.impl_->session, NGHTTP2_FLAG_NONE, stream_, error_code);
  client_.Flush();
}

void GrpcClientCall::Take(std::string_view bytes) {
  in_.append(bytes);
  size_t at = 0;
  while (in_.size() - at >= 5) {
    const auto* h = reinterpret_cast<const unsigned char*>(in_.data() + at);
    const size_t n = size_t{h[1]} << 24 | size_t{h[2]} << 16 | size_t{h[3]} << 8 | size_t{h[4]};
    if (in_.size() - at - 5 < n) break;
    messages_.emplace_back(in_, at + 5, n);
    at += 5 + n;
  }
  in_.erase(0, at);
}

GrpcReply GrpcClientCall::Recv(milliseconds timeout) {
  client_.PumpUntil([this] { return !messages_.empty() || ended_; }, timeout);
  GrpcReply reply;
  if (!messages_.empty()) {
    reply.kind = GrpcReply::Kind::kMessage;
    reply.message = std::move(messages_.front());
    messages_.pop_front();
  } else if (ended_) {
    reply = end_;
    reply.kind = GrpcReply::Kind::kEnd;
  }
  return reply;
}

GrpcReply GrpcClientCall::RecvEnd(milliseconds timeout) {
  const auto until = Clock::now() + timeout;
  for (;;) {
    GrpcReply reply = Recv(Left(until));
    if (reply.kind != GrpcReply::Kind::kMessage) return reply;
  }
}

}  // namespace fairway::testing
