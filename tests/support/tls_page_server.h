// A server that speaks TLS with a certificate of its own, for clients under test.
#pragma once

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <csignal>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "tests/support/raw_tcp_server.h"

namespace fairway::test {

// A key, and a certificate that it signed itself, for names such as "IP:127.0.0.1,DNS:gpu.example".
class SelfSigned {
 public:
  explicit SelfSigned(const char* names) {
    X509* x509 = certificate.get();
    X509_set_version(x509, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(x509), 1);
    X509_gmtime_adj(X509_getm_notBefore(x509), -60);
    X509_gmtime_adj(X509_getm_notAfter(x509), 3600);
    X509_set_pubkey(x509, key.get());
    X509_NAME* name = X509_get_subject_name(x509);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>(names), -1,
                               -1, 0);
    X509_set_issuer_name(x509, name);
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, names);
    X509_add_ext(x509, extension, -1);
    X509_EXTENSION_free(extension);
    X509_sign(x509, key.get(), EVP_sha256());
  }
  std::string pem() const {
    BIO* bio = BIO_new(BIO_s_mem());
    PEM_write_bio_X509(bio, certificate.get());
    char* data = nullptr;
    const auto size = static_cast<size_t>(BIO_get_mem_data(bio, &data));
    std::string text(data, size);
    BIO_free(bio);
    return text;
  }

  std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key{EVP_EC_gen("P-256"), EVP_PKEY_free};
  std::unique_ptr<X509, decltype(&X509_free)> certificate{X509_new(), X509_free};
};

// Answers each request of each connection with what `answer` says to its text; an empty answer closes.
class TlsPageServer {
 public:
  using Answer = std::function<std::string(const std::string& request)>;

  TlsPageServer(const SelfSigned& identity, Answer answer)
      : context_(SSL_CTX_new(TLS_server_method()), SSL_CTX_free), answer_(std::move(answer)) {
    std::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes to clients that are gone
    SSL_CTX_use_certificate(context_.get(), identity.certificate.get());
    SSL_CTX_use_PrivateKey(context_.get(), identity.key.get());
    server_ = std::make_unique<RawTcpServer>([this](RawConnection& connection) { Serve(connection); });
  }
  uint16_t port() const { return server_->port(); }

 private:
  void Serve(RawConnection& connection) {
    SSL* ssl = SSL_new(context_.get());
    SSL_set_fd(ssl, connection.fd());
    char buffer[4096];
    bool open = SSL_accept(ssl) == 1;
    while (open) {
      const int n = SSL_read(ssl, buffer, sizeof buffer);
      const std::string answer = n > 0 ? answer_({buffer, static_cast<size_t>(n)}) : "";
      open = !answer.empty() && SSL_write(ssl, answer.data(), static_cast<int>(answer.size())) > 0;
    }
    if (SSL_is_init_finished(ssl) == 1) SSL_shutdown(ssl);
    SSL_free(ssl);
    ERR_clear_error();
  }

  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context_;
  Answer answer_;
  std::unique_ptr<RawTcpServer> server_;
};

}  // namespace fairway::test
