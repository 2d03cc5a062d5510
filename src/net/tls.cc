#include "net/tls.h"

#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <sys/stat.h>

#include <algorithm>
#include <string_view>

#include "net/openssl_helpers.h"
#include "net/small_file.h"

namespace fairway::net {
namespace {

using base::ErrorCode;

struct Suite {
  const char* go_name;
  const char* openssl_name;
};

// https://pkg.go.dev/crypto/tls#pkg-constants against openssl-ciphers(1).
constexpr Suite kTls13[] = {
    {"TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"},
    {"TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"},
    {"TLS_CHACHA20_POLY1305_SHA256", "TLS_CHACHA20_POLY1305_SHA256"},
};
constexpr Suite kTls12[] = {
    {"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"},
    {"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"},
    {"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"},
    {"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "ECDHE-RSA-AES256-GCM-SHA384"},
    {"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"},
    {"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305"},
    {"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "ECDHE-ECDSA-CHACHA20-POLY1305"},
    {"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "ECDHE-RSA-CHACHA20-POLY1305"},
};
// What HTTP/2 forbids (RFC 9113, appendix A): no forward secrecy, or no authenticated encryption.
constexpr Suite kNotForHttp2[] = {
    {"TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256", "ECDHE-ECDSA-AES128-SHA256"},
    {"TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256", "ECDHE-RSA-AES128-SHA256"},
    {"TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", "ECDHE-ECDSA-AES128-SHA"},
    {"TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "ECDHE-RSA-AES128-SHA"},
    {"TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", "ECDHE-ECDSA-AES256-SHA"},
    {"TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", "ECDHE-RSA-AES256-SHA"},
    {"TLS_RSA_WITH_AES_128_GCM_SHA256", "AES128-GCM-SHA256"},
    {"TLS_RSA_WITH_AES_256_GCM_SHA384", "AES256-GCM-SHA384"},
};

template <size_t N>
const char* Find(const Suite (&table)[N], const std::string& name) {
  for (const Suite& suite : table) {
    if (name == suite.go_name) return suite.openssl_name;
  }
  return nullptr;
}

void Append(std::string& list, const char* name) {
  if (!list.empty()) list += ':';
  list += name;
}

constexpr const char* kDefaultForHttp2 = "ECDHE+AESGCM:ECDHE+CHACHA20";

// As in Go: TLS 1.2 suites leave TLS 1.3 as it is; a list of TLS 1.3 suites alone leaves nothing for TLS 1.2.
base::Result<void> SetSuites(SSL_CTX* context, const std::vector<std::string>& names, bool http2) {
  if (names.empty()) {
    if (http2 && SSL_CTX_set_cipher_list(context, kDefaultForHttp2) != 1)
      return base::Fail(ErrorCode::kInternal, "no cipher suites for HTTP/2: " + TakeReason());
    return {};
  }
  std::string tls13;
  std::string tls12;
  std::string left_out;
  for (const std::string& name : names) {
    if (const char* suite = Find(kTls13, name)) {
      Append(tls13, suite);
    } else if (const char* older = Find(kTls12, name)) {
      Append(tls12, older);
    } else if (const char* forbidden = Find(kNotForHttp2, name)) {
      Append(http2 ? left_out : tls12, forbidden);
    } else {
      std::string known;
      const auto list = [&known](const Suite& suite) {
        known.append(known.empty() ? "" : ", ").append(suite.go_name);
      };
      for (const Suite& s : kTls13) list(s);
      for (const Suite& s : kTls12) list(s);
      for (const Suite& s : kNotForHttp2) list(s);
      return base::Fail(
          ErrorCode::kInvalidArgument,
          std::string("unknown cipher suite \"").append(name).append("\"; known are ").append(known));
    }
  }
  if (tls13.empty() && tls12.empty()) {
    return base::Fail(ErrorCode::kInvalidArgument, "HTTP/2 forbids all of the cipher suites " + left_out);
  }
  if (!tls13.empty() && SSL_CTX_set_ciphersuites(context, tls13.c_str()) != 1) {
    return base::Fail(ErrorCode::kInvalidArgument, "cipher suites " + tls13 + ": " + TakeReason());
  }
  if (tls12.empty()) {
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
  } else if (SSL_CTX_set_cipher_list(context, tls12.c_str()) != 1) {
    return base::Fail(ErrorCode::kInvalidArgument, "cipher suites " + tls12 + ": " + TakeReason());
  }
  return {};
}

// The protocol list lives as long as its context: connections keep the context after a reload.
void FreeProtocols(void*, void* data, CRYPTO_EX_DATA*, int, long, void*) {
  delete static_cast<std::string*>(data);
}

int ProtocolsIndex() {
  static const int index = SSL_CTX_get_ex_new_index(0, nullptr, nullptr, nullptr, FreeProtocols);
  return index;
}

int SelectProtocol(SSL* ssl, const unsigned char** out, unsigned char* size, const unsigned char* offered,
                   unsigned offered_size, void*) {
  const auto* ours =
      static_cast<const std::string*>(SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), ProtocolsIndex()));
  unsigned char* chosen = nullptr;
  const int result =
      SSL_select_next_proto(&chosen, size, reinterpret_cast<const unsigned char*>(ours->data()),
                            static_cast<unsigned>(ours->size()), offered, offered_size);
  *out = chosen;
  return result == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

base::Result<void> SetAlpn(SSL_CTX* context, const std::vector<std::string>& names) {
  if (names.empty()) return {};
  auto wire = std::make_unique<std::string>();
  for (const std::string& name : names) {
    if (name.empty() || name.size() > 255) {
      return base::Fail(ErrorCode::kInvalidArgument, "bad ALPN protocol name \"" + name + "\"");
    }
    *wire += static_cast<char>(name.size());
    *wire += name;
  }
  SSL_CTX_set_ex_data(context, ProtocolsIndex(), wire.release());
  SSL_CTX_set_alpn_select_cb(context, SelectProtocol, nullptr);
  return {};
}

// Who may connect: those with a certificate that one of the authorities in the file has signed.
base::Result<void> AskClients(SSL_CTX* context, const std::string& path) {
  if (path.empty()) return {};
  auto text = ReadSmallFile(path);
  if (!text) return tl::make_unexpected(text.error());
  const BioPtr bio(BIO_new_mem_buf(text->data(), static_cast<int>(text->size())));
  size_t authorities = 0;
  for (;; ++authorities) {
    const X509Ptr authority(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
    if (authority == nullptr) break;
    // The client list is what a client with several certificates chooses by.
    if (X509_STORE_add_cert(SSL_CTX_get_cert_store(context), authority.get()) != 1 ||
        SSL_CTX_add_client_CA(context, authority.get()) != 1) {
      return base::Fail(ErrorCode::kInvalidArgument, path + ": an authority cannot be used: " + TakeReason());
    }
  }
  const unsigned long last = ERR_peek_last_error();
  const bool damaged = last != 0 && ERR_GET_REASON(last) != PEM_R_NO_START_LINE;
  if (authorities == 0 || damaged) {
    const std::string why = TakeReason();
    return base::Fail(ErrorCode::kInvalidArgument,
                      path + (damaged ? " is damaged: " + why : " holds no PEM certificate of an authority"));
  }
  ERR_clear_error();
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  // Without one a client that resumes a session is refused.
  static constexpr unsigned char kContext[] = "fairway";
  SSL_CTX_set_session_id_context(context, kContext, sizeof kContext - 1);
  return {};
}

base::Result<TlsContext> NewContext(const TlsOptions& options) {
  ERR_clear_error();
  int version = TLS1_2_VERSION;
  if (options.min_version == "VersionTLS13") {
    version = TLS1_3_VERSION;
  } else if (!options.min_version.empty() && options.min_version != "VersionTLS12") {
    return base::Fail(ErrorCode::kInvalidArgument, "unknown TLS version \"" + options.min_version +
                                                       "\"; known are VersionTLS12 and VersionTLS13");
  }
  TlsContext context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (context == nullptr) return base::Fail(ErrorCode::kInternal, "no TLS context: " + TakeReason());
  SSL_CTX_set_min_proto_version(context.get(), version);
  SSL_CTX_set_options(context.get(),
                      SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                      SSL_MODE_RELEASE_BUFFERS);
  // A cache of sessions would only hold memory: clients that resume bring a ticket.
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  const bool http2 = std::find(options.alpn.begin(), options.alpn.end(), "h2") != options.alpn.end();
  if (auto set = SetSuites(context.get(), options.cipher_suites, http2); !set)
    return tl::make_unexpected(set.error());
  if (auto set = SetAlpn(context.get(), options.alpn); !set) return tl::make_unexpected(set.error());
  if (auto set = AskClients(context.get(), options.client_ca_file); !set)
    return tl::make_unexpected(set.error());
  return context;
}

base::Result<void> UseCertificates(SSL_CTX* context, const std::string& path) {
  auto text = ReadSmallFile(path);
  if (!text) return tl::make_unexpected(text.error());
  const BioPtr bio(BIO_new_mem_buf(text->data(), static_cast<int>(text->size())));
  const X509Ptr leaf(PEM_read_bio_X509_AUX(bio.get(), nullptr, nullptr, nullptr));
  if (leaf == nullptr) {
    const bool none = text->find("-----BEGIN") == std::string::npos;
    const std::string why = TakeReason();
    return base::Fail(ErrorCode::kInvalidArgument,
                      path + " holds no PEM certificate" + (none ? "" : ": " + why));
  }
  if (SSL_CTX_use_certificate(context, leaf.get()) != 1) {
    return base::Fail(ErrorCode::kInvalidArgument,
                      path + ": the certificate cannot be used: " + TakeReason());
  }
  for (;;) {
    X509Ptr next(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
    if (next == nullptr) break;
    if (SSL_CTX_add0_chain_cert(context, next.get()) != 1) {
      return base::Fail(ErrorCode::kInvalidArgument, path + ": the chain cannot be used: " + TakeReason());
    }
    X509* const taken = next.release();  // the context has it
    FAIRWAY_CHECK(taken != nullptr);
  }
  const unsigned long last = ERR_peek_last_error();
  if (last != 0 && ERR_GET_REASON(last) != PEM_R_NO_START_LINE) {
    return base::Fail(ErrorCode::kInvalidArgument, path + ": the chain is damaged: " + TakeReason());
  }
  ERR_clear_error();
  return {};
}

// Without this OpenSSL asks for the password on the terminal.
int NoPassword(char*, int, int, void* asked) {
  *static_cast<bool*>(asked) = true;
  return -1;
}

base::Result<void> UseKey(SSL_CTX* context, const std::string& path, const std::string& cert_path) {
  auto text = ReadSmallFile(path);
  if (!text) return tl::make_unexpected(text.error());
  const BioPtr bio(BIO_new_mem_buf(text->data(), static_cast<int>(text->size())));
  bool asked = false;
  const KeyPtr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassword, &asked));
  OPENSSL_cleanse(text->data(), text->size());
  if (key == nullptr) {
    const std::string why = TakeReason();
    return base::Fail(ErrorCode::kInvalidArgument,
                      asked ? path + ": the private key is encrypted; store it without a password"
                            : path + " holds no PEM private key: " + why);
  }
  if (SSL_CTX_use_PrivateKey(context, key.get()) != 1 || SSL_CTX_check_private_key(context) != 1) {
    const std::string why = TakeReason();
    return base::Fail(ErrorCode::kInvalidArgument,
                      "the key in " + path + " does not match the certificate in " + cert_path + ": " + why);
  }
  return {};
}

X509Ptr MakeCertificate(EVP_PKEY* key) {
  X509Ptr certificate(X509_new());
  unsigned char serial[16];
  if (certificate == nullptr || RAND_bytes(serial, sizeof serial) != 1) return nullptr;
  serial[0] &= 0x7f;  // serial numbers are positive
  const std::unique_ptr<BIGNUM, Freer<BN_free>> number(BN_bin2bn(serial, sizeof serial, nullptr));
  constexpr long kTenYears = 3650L * 24 * 3600;
  X509_NAME* name = X509_get_subject_name(certificate.get());
  const auto* organization = reinterpret_cast<const unsigned char*>("Inference Ext");
  const bool made = number != nullptr && X509_set_version(certificate.get(), X509_VERSION_3) == 1 &&
                    BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate.get())) != nullptr &&
                    X509_gmtime_adj(X509_getm_notBefore(certificate.get()), 0) != nullptr &&
                    X509_gmtime_adj(X509_getm_notAfter(certificate.get()), kTenYears) != nullptr &&
                    X509_NAME_add_entry_by_txt(name, "O", MBSTRING_ASC, organization, -1, -1, 0) == 1 &&
                    X509_set_issuer_name(certificate.get(), name) == 1 &&
                    X509_set_pubkey(certificate.get(), key) == 1 &&
                    X509_sign(certificate.get(), key, EVP_sha256()) > 0;
  return made ? std::move(certificate) : nullptr;
}

}  // namespace

base::Result<TlsContext> LoadTlsServer(const std::string& cert_file, const std::string& key_file,
                                       const TlsOptions& options) {
  auto context = NewContext(options);
  if (!context) return context;
  if (auto used = UseCertificates(context->get(), cert_file); !used) return tl::make_unexpected(used.error());
  if (auto used = UseKey(context->get(), key_file, cert_file); !used)
    return tl::make_unexpected(used.error());
  return context;
}

base::Result<TlsContext> SelfSignedTlsServer(const TlsOptions& options) {
  auto context = NewContext(options);
  if (!context) return context;
  const KeyPtr key(EVP_EC_gen("P-256"));
  const X509Ptr certificate = key == nullptr ? nullptr : MakeCertificate(key.get());
  if (certificate == nullptr || SSL_CTX_use_certificate(context->get(), certificate.get()) != 1 ||
      SSL_CTX_use_PrivateKey(context->get(), key.get()) != 1) {
    return base::Fail(ErrorCode::kInternal, "cannot make a certificate: " + TakeReason());
  }
  return context;
}

}  // namespace fairway::net
