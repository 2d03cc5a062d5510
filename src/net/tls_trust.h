// Whom a TLS context trusts, from a PEM bundle. For this room's .cc files and their tests.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

typedef struct ssl_ctx_st SSL_CTX;

namespace fairway::net {

// Each certificate of the bundle is an anchor, as in Go and so in kubectl: a root, an intermediate authority
// whose own issuer is not there, or the other side's certificate itself. Each is tried, also where two have
// one name, as while an authority's key is changed. Names, times and purposes are checked as ever.
//
// Gives what was skipped, each with its place in the bundle and the reason: certificates that cannot be read.
// The error is that no usable one is left. Blocks of other kinds (keys, parameters) are passed over.
base::Result<std::vector<std::string>> TrustBundle(SSL_CTX* context, std::string_view pem);

}  // namespace fairway::net
