// A connected, non-blocking socket as a byte stream, in plain text or under TLS. Waiting is the caller's.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "net/tls.h"

typedef struct ssl_st SSL;

namespace fairway::net {

// Whom a client talks to.
struct TlsPeer {
  std::string name;  // host name or IP address that the certificate must be for, whatever was connected to
};

// Used from one thread. Does not own the descriptor.
class SocketStream {
 public:
  enum class Status {
    kOk,
    kWantRead,   // again when readable
    kWantWrite,  // again when writable
    kClosed,     // the peer closed
    kFailed,     // see error()
  };

  // The accepting side. `tls` null: plain text.
  SocketStream(int descriptor, const TlsContext& tls);
  // The connecting side, with a context of tls_client.h or null. A certificate that is not for `peer` fails
  // the handshake, unless the context trusts anybody.
  SocketStream(int descriptor, const TlsContext& tls, const TlsPeer& peer);
  ~SocketStream();
  SocketStream(const SocketStream&) = delete;
  SocketStream& operator=(const SocketStream&) = delete;

  bool tls() const { return ssl_ != nullptr; }
  // Until kOk nothing else may be called. kOk at once in plain text.
  Status Handshake();
  // What ALPN chose; empty without.
  std::string_view Protocol() const;

  // True when TLS has bytes in hand that the socket does not show any more.
  bool HasPending() const;
  Status Read(char* buffer, size_t size, size_t& got);
  // Never raises SIGPIPE. Under TLS it writes (some of) the first piece only.
  Status Write(const iovec* pieces, size_t count, size_t& written);
  // No more writing: TLS close_notify and TCP FIN, as far as that works without waiting.
  void CloseWrite();

  const std::string& error() const { return error_; }

 private:
  void MakeSsl(const TlsContext& tls);
  Status TlsStatus(int result);
  Status SystemStatus();

  int descriptor_;
  SSL* ssl_ = nullptr;
  std::string error_;
};

}  // namespace fairway::net
