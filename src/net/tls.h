// Server-side TLS: contexts from files, a self-signed one for the default, and reload without dropping
// connections.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

typedef struct ssl_ctx_st SSL_CTX;

namespace fairway::net {

using TlsContext = std::shared_ptr<SSL_CTX>;

struct TlsOptions {
  std::string min_version;                 // "", "VersionTLS12" (default), "VersionTLS13"
  std::vector<std::string> cipher_suites;  // Go's names as the reference's flag takes them; empty: OpenSSL's
                                           // default. With h2 among `alpn` without those that HTTP/2 forbids
  std::vector<std::string> alpn;  // offered in this order, e.g. {"h2"}; a client that offers none of them is
                                  // refused when it sends ALPN at all
  std::string client_ca_file;  // PEM: clients must show a certificate of one of these authorities; "": none
                               // is asked for
};

// PEM files; the certificate file may hold the chain. The error names the file and what is wrong with it
// (missing, not PEM, key does not match).
base::Result<TlsContext> LoadTlsServer(const std::string& cert_file, const std::string& key_file,
                                       const TlsOptions& options);

// A fresh ECDSA P-256 key and a certificate for 10 years, as the reference makes one (RSA-4096 there; P-256
// starts in a millisecond and every gateway takes it). Gateways do not verify it.
base::Result<TlsContext> SelfSignedTlsServer(const TlsOptions& options);

}  // namespace fairway::net
