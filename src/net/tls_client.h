// Client-side TLS: contexts that verify the other side, with a certificate of our own where one is given.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "net/tls.h"

namespace fairway::net {

struct TlsClientOptions {
  std::string
      ca_pem;  // who is trusted, each certificate by itself (tls_trust.h); "": the system's authorities
  std::string cert_pem;  // our own certificate and its chain; with key_pem or not at all
  std::string key_pem;
  bool insecure = false;  // trusts anybody: for tests and where the user insists
};

// TLS 1.2 or newer, ALPN http/1.1. The host name is checked by the connection (socket_stream.h: TlsPeer). The
// error says which of the texts is wrong and why; it never has a key in it. `skipped`, where given, gets a
// line for each certificate of ca_pem that cannot be read and was left out.
base::Result<TlsContext> MakeTlsClient(const TlsClientOptions& options,
                                       std::vector<std::string>* skipped = nullptr);

}  // namespace fairway::net
