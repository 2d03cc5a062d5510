#include "net/socket_stream.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <system_error>

#include "base/result.h"

namespace fairway::net {
namespace {

bool Again(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

int DescriptorOf(BIO* bio) { return *static_cast<const int*>(BIO_get_data(bio)); }

// OpenSSL's own socket BIO uses write(), which raises SIGPIPE when the peer is gone.
int BioWrite(BIO* bio, const char* data, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t n = ::send(DescriptorOf(bio), data, static_cast<size_t>(size), MSG_NOSIGNAL);
  if (n < 0 && Again(errno)) BIO_set_retry_write(bio);
  return static_cast<int>(n);
}

int BioRead(BIO* bio, char* data, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t n = ::recv(DescriptorOf(bio), data, static_cast<size_t>(size), 0);
  if (n < 0 && Again(errno)) BIO_set_retry_read(bio);
  if (n == 0) BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
  return static_cast<int>(n);
}

long BioControl(BIO* bio, int command, long, void*) {
  if (command == BIO_CTRL_FLUSH) return 1;
  if (command == BIO_CTRL_EOF) return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0 ? 1 : 0;
  return 0;
}

const BIO_METHOD* SocketMethod() {
  // A constant table of functions; made once, as OpenSSL wants it.
  static const BIO_METHOD* const method = [] {
    BIO_METHOD* m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "fairway socket");
    FAIRWAY_CHECK(m != nullptr);
    BIO_meth_set_write(m, BioWrite);
    BIO_meth_set_read(m, BioRead);
    BIO_meth_set_ctrl(m, BioControl);
    return m;
  }();
  return method;
}

std::string TakeTlsError() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  if (code == 0) return "connection lost";
  const char* reason = ERR_reason_error_string(code);
  return reason != nullptr ? reason : "TLS error " + std::to_string(code);
}

}  // namespace

SocketStream::SocketStream(int descriptor, const TlsContext& tls) : descriptor_(descriptor) {
  if (tls == nullptr) return;
  MakeSsl(tls);
  SSL_set_accept_state(ssl_);
}

SocketStream::SocketStream(int descriptor, const TlsContext& tls, const TlsPeer& peer)
    : descriptor_(descriptor) {
  if (tls == nullptr) return;
  MakeSsl(tls);
  SSL_set_connect_state(ssl_);
  // An address is looked for among the certificate's addresses and never sent as a name (RFC 6066).
  if (X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl_), peer.name.c_str()) != 1) {
    ERR_clear_error();
    SSL_set_hostflags(ssl_, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    FAIRWAY_CHECK(SSL_set1_host(ssl_, peer.name.c_str()) == 1);
    SSL_set_tlsext_host_name(ssl_, peer.name.c_str());
  }
}

void SocketStream::MakeSsl(const TlsContext& tls) {
  ssl_ = SSL_new(tls.get());
  FAIRWAY_CHECK(ssl_ != nullptr);
  BIO* bio = BIO_new(SocketMethod());
  FAIRWAY_CHECK(bio != nullptr);
  BIO_set_data(bio, &descriptor_);
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl_, bio, bio);
}

SocketStream::~SocketStream() {
  if (ssl_ != nullptr) SSL_free(ssl_);
}

SocketStream::Status SocketStream::Handshake() {
  if (ssl_ == nullptr) return Status::kOk;
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_);
  return result == 1 ? Status::kOk : TlsStatus(result);
}

std::string_view SocketStream::Protocol() const {
  if (ssl_ == nullptr) return {};
  const unsigned char* name = nullptr;
  unsigned size = 0;
  SSL_get0_alpn_selected(ssl_, &name, &size);
  return {reinterpret_cast<const char*>(name), size};
}

bool SocketStream::HasPending() const { return ssl_ != nullptr && SSL_pending(ssl_) > 0; }

SocketStream::Status SocketStream::Read(char* buffer, size_t size, size_t& got) {
  got = 0;
  if (ssl_ != nullptr) {
    ERR_clear_error();
    const int result = SSL_read(ssl_, buffer, static_cast<int>(std::min<size_t>(size, INT_MAX)));
    if (result <= 0) return TlsStatus(result);
    got = static_cast<size_t>(result);
    return Status::kOk;
  }
  const ssize_t n = ::recv(descriptor_, buffer, size, 0);
  if (n < 0) return Again(errno) ? Status::kWantRead : SystemStatus();
  if (n == 0) return Status::kClosed;
  got = static_cast<size_t>(n);
  return Status::kOk;
}

SocketStream::Status SocketStream::Write(const iovec* pieces, size_t count, size_t& written) {
  written = 0;
  if (ssl_ != nullptr) {
    ERR_clear_error();
    const int size = static_cast<int>(std::min<size_t>(pieces[0].iov_len, INT_MAX));
    const int result = SSL_write(ssl_, pieces[0].iov_base, size);
    if (result <= 0) return TlsStatus(result);
    written = static_cast<size_t>(result);
    return Status::kOk;
  }
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(pieces);
  message.msg_iovlen = count;
  const ssize_t n = ::sendmsg(descriptor_, &message, MSG_NOSIGNAL);
  if (n < 0) return Again(errno) ? Status::kWantWrite : SystemStatus();
  written = static_cast<size_t>(n);
  return Status::kOk;
}

void SocketStream::CloseWrite() {
  if (ssl_ != nullptr && SSL_is_init_finished(ssl_) == 1) {
    ERR_clear_error();
    SSL_shutdown(ssl_);
    ERR_clear_error();
  }
  ::shutdown(descriptor_, SHUT_WR);
}

SocketStream::Status SocketStream::TlsStatus(int result) {
  switch (SSL_get_error(ssl_, result)) {
    case SSL_ERROR_WANT_READ:
      return Status::kWantRead;
    case SSL_ERROR_WANT_WRITE:
      return Status::kWantWrite;
    case SSL_ERROR_ZERO_RETURN:
      return Status::kClosed;
    default:
      error_ = TakeTlsError();
      // "certificate verify failed" alone does not say what to do about it.
      if (const long verified = SSL_get_verify_result(ssl_); verified != X509_V_OK) {
        error_ = std::string("the certificate is not accepted: ") + X509_verify_cert_error_string(verified);
      }
      return Status::kFailed;
  }
}

SocketStream::Status SocketStream::SystemStatus() {
  error_ = std::generic_category().message(errno);
  return Status::kFailed;
}

}  // namespace fairway::net
