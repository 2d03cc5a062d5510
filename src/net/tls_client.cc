#include "net/tls_client.h"

#include <openssl/pem.h>
#include <openssl/ssl.h>

#include "net/openssl_helpers.h"
#include "net/tls_trust.h"

namespace fairway::net {
namespace {

using base::ErrorCode;

// Without this OpenSSL asks for the password on the terminal.
int NoPassword(char*, int, int, void*) { return -1; }

base::Result<void> UseOwnCertificate(SSL_CTX* context, const TlsClientOptions& options) {
  const BioPtr certificates = Reader(options.cert_pem);
  const X509Ptr leaf(PEM_read_bio_X509_AUX(certificates.get(), nullptr, nullptr, nullptr));
  if (leaf == nullptr || SSL_CTX_use_certificate(context, leaf.get()) != 1) {
    return base::Fail(ErrorCode::kInvalidArgument, "the client certificate cannot be used: " + TakeReason());
  }
  for (;;) {
    X509Ptr next(PEM_read_bio_X509(certificates.get(), nullptr, nullptr, nullptr));
    if (next == nullptr) break;
    if (SSL_CTX_add1_chain_cert(context, next.get()) != 1) {
      return base::Fail(ErrorCode::kInvalidArgument,
                        "the client certificate's chain cannot be used: " + TakeReason());
    }
  }
  ERR_clear_error();
  const BioPtr key_bio = Reader(options.key_pem);
  const KeyPtr key(PEM_read_bio_PrivateKey(key_bio.get(), nullptr, NoPassword, nullptr));
  if (key == nullptr) {
    return base::Fail(
        ErrorCode::kInvalidArgument,
        "the client key cannot be used: it must be PEM without a password (" + TakeReason() + ")");
  }
  if (SSL_CTX_use_PrivateKey(context, key.get()) != 1 || SSL_CTX_check_private_key(context) != 1) {
    return base::Fail(ErrorCode::kInvalidArgument,
                      "the client key does not match the client certificate: " + TakeReason());
  }
  return {};
}

}  // namespace

base::Result<TlsContext> MakeTlsClient(const TlsClientOptions& options, std::vector<std::string>* skipped) {
  ERR_clear_error();
  TlsContext context(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
  if (context == nullptr) return base::Fail(ErrorCode::kInternal, "no TLS context: " + TakeReason());
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                      SSL_MODE_RELEASE_BUFFERS);
  static constexpr unsigned char kHttp11[] = "\x08http/1.1";
  SSL_CTX_set_alpn_protos(context.get(), kHttp11, sizeof kHttp11 - 1);
  SSL_CTX_set_verify(context.get(), options.insecure ? SSL_VERIFY_NONE : SSL_VERIFY_PEER, nullptr);
  if (options.ca_pem.empty()) {
    SSL_CTX_set_default_verify_paths(context.get());
  } else {
    auto trusted = TrustBundle(context.get(), options.ca_pem);
    if (!trusted) return tl::make_unexpected(trusted.error());
    if (skipped != nullptr) *skipped = std::move(*trusted);
  }
  if (options.cert_pem.empty() != options.key_pem.empty()) {
    return base::Fail(ErrorCode::kInvalidArgument, options.cert_pem.empty()
                                                       ? "there is a client key but no client certificate"
                                                       : "there is a client certificate but no client key");
  }
  if (!options.cert_pem.empty()) {
    if (auto used = UseOwnCertificate(context.get(), options); !used)
      return tl::make_unexpected(used.error());
  }
  return context;
}

}  // namespace fairway::net
