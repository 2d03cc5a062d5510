#include "net/http_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "net/tls_client.h"
#include "tests/support/raw_tcp_server.h"

namespace fairway::net {
namespace {

using test::RawConnection;
using test::RawTcpServer;
using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Outcome {
  HttpStreamHead head;
  std::string body;
  std::string error;
  int pieces = 0;
};

// A stream on a loop of its own.
class Client {
 public:
  explicit Client(const HttpStreamOptions& options) : thread_("stream") {
    thread_.loop().Post([this, options] { stream_ = std::make_unique<HttpStream>(thread_.loop(), options); });
  }
  ~Client() {
    thread_.loop().Post([this] {
      stream_.reset();
      std::lock_guard lock(mutex_);
      gone_ = true;
      changed_.notify_all();
    });
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return gone_; });
  }

  Outcome Get(HttpStreamRequest request = {.target = "/x"}) {
    auto outcome = std::make_shared<Outcome>();
    bool done = false;
    thread_.loop().Post([&, outcome] {
      stream_->Start(request, {.head = [outcome](const HttpStreamHead& head) { outcome->head = head; },
                               .data =
                                   [outcome](std::string_view bytes) {
                                     outcome->body += bytes;
                                     ++outcome->pieces;
                                   },
                               .end =
                                   [&, outcome](const std::string& error) {
                                     outcome->error = error;
                                     std::lock_guard lock(mutex_);
                                     done = true;
                                     changed_.notify_all();
                                   }});
    });
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(20), [&] { return done; }));
    return *outcome;
  }
  Loop& loop() { return thread_.loop(); }
  std::unique_ptr<HttpStream>& stream() { return stream_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool gone_ = false;
  LoopThread thread_;
  std::unique_ptr<HttpStream> stream_;
};

HttpStreamOptions At(uint16_t port) { return {.host = "127.0.0.1", .port = port}; }

Outcome Ask(RawTcpServer::Script script, HttpStreamRequest request = {.target = "/x"}) {
  RawTcpServer server(std::move(script));
  return Client(At(server.port())).Get(std::move(request));
}

RawTcpServer::Script Answer(const std::string& text) {
  return [text](RawConnection& connection) {
    if (connection.ReadRequest()) connection.Send(text);
  };
}

TEST(HttpStream, AnswersOfEveryLength) {
  EXPECT_EQ(Ask(Answer("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")).body, "hello");
  EXPECT_EQ(
      Ask(Answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"))
          .body,
      "hello");
  EXPECT_EQ(Ask(Answer("HTTP/1.0 200 OK\r\n\r\nhello")).body, "hello");
  const Outcome empty = Ask(Answer("HTTP/1.1 204 No Content\r\n\r\n"));
  EXPECT_EQ(empty.head.status, 204);
  EXPECT_EQ(empty.error, "");
  const Outcome refused = Ask(Answer(
      "HTTP/1.1 429 Busy\r\nRetry-After: 3\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\n."));
  EXPECT_EQ(refused.head.status, 429);
  EXPECT_EQ(refused.head.retry_after, 3);
  EXPECT_EQ(refused.head.content_type, "text/plain");
}

TEST(HttpStream, PiecesAreGivenAsTheyComeAndHoweverTheyAreCut) {
  const std::string text =
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n{\"a\":1\r\n1\r\n}\r\n0\r\n\r\n";
  const Outcome outcome = Ask([&](RawConnection& connection) {
    if (!connection.ReadRequest()) return;
    for (const char c : text) connection.Send(std::string_view(&c, 1));
  });
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.body, "{\"a\":1}");
}

TEST(HttpStream, ALargeAnswer) {
  const std::string body(20 << 20, 'x');
  const Outcome outcome =
      Ask(Answer("HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body));
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.body.size(), body.size());
  EXPECT_GT(outcome.pieces, 100);
}

TEST(HttpStream, WhatGoesWrongIsSaid) {
  EXPECT_THAT(Ask(Answer("SSH-2.0\r\n\r\n")).error, StartsWith("the answer is no HTTP/1.1"));
  EXPECT_EQ(Ask(Answer("")).error, "connection closed without an answer");
  EXPECT_EQ(Ask(Answer("HTTP/1.1 200 OK\r\nContent-Le")).error,
            "connection closed in the middle of the answer");
  EXPECT_EQ(Ask(Answer("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")).error,
            "connection closed in the middle of the answer");
  EXPECT_EQ(Ask(Answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")).error,
            "connection closed in the middle of the answer");
  EXPECT_THAT(Ask(Answer("HTTP/1.1 200 OK\r\nA: " + std::string(100'000, 'x') + "\r\n\r\n")).error,
              HasSubstr("head"));
  uint16_t free_port = 0;
  {
    free_port = RawTcpServer([](RawConnection&) {}).port();
  }
  EXPECT_EQ(Client(At(free_port)).Get().error, "connection refused");
}

TEST(HttpStream, AResetIsToldWhereverItComes) {
  for (const std::string text :
       {"", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"}) {
    const Outcome outcome = Ask([&](RawConnection& connection) {
      if (!connection.ReadRequest()) return;
      connection.Send(text);
      connection.ResetOnClose();
    });
    // What was sent before it may be lost.
    EXPECT_THAT(outcome.error, HasSubstr("reset by peer")) << text;
  }
}

TEST(HttpStream, NothingIsWaitedForWithoutAnEnd) {
  const auto silent = [](RawConnection& connection) { connection.WaitForEnd(); };
  EXPECT_EQ(Ask(silent, {.target = "/", .head_timeout = 100 * base::kMillisecond}).error,
            "no answer within 0.1 s");
  const auto stalls = [](RawConnection& connection) {
    if (connection.ReadRequest()) connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel");
    connection.WaitForEnd();
  };
  EXPECT_EQ(Ask(stalls, {.target = "/", .idle_timeout = 100 * base::kMillisecond}).error,
            "silence within 0.1 s");
  EXPECT_EQ(Ask(stalls, {.target = "/", .total_timeout = 200 * base::kMillisecond}).error,
            "not complete within 0.2 s");
  // TLS that never answers.
  RawTcpServer server(silent);
  HttpStreamOptions options = At(server.port());
  options.tls = *MakeTlsClient({.insecure = true});
  options.connect_timeout = 100 * base::kMillisecond;
  EXPECT_EQ(Client(options).Get().error, "not connected within 0.1 s");
}

TEST(HttpStream, AConnectionIsKeptAndOneThatWasClosedIsOpenedAnew) {
  std::atomic<int> connections{0};
  RawTcpServer server([&](RawConnection& connection) {
    ++connections;
    for (int i = 0; i < 2 && connection.ReadRequest(); ++i) {
      connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + std::to_string(connection.number()));
    }
  });
  Client client(At(server.port()));
  std::string served;
  for (int i = 0; i < 4; ++i) {
    const Outcome outcome = client.Get();
    EXPECT_EQ(outcome.error, "") << i;
    served += outcome.body;
  }
  EXPECT_EQ(served, "0011");
  EXPECT_EQ(connections, 2);
}

// The loop learns of both in one turn, and hears of the end first.
TEST(HttpStream, TheEndOfAnIdleConnectionDoesNotEndTheNextExchange) {
  std::promise<void> close;
  RawTcpServer server([&](RawConnection& connection) {
    if (!connection.ReadRequest()) return;
    connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + std::to_string(connection.number()));
    if (connection.number() == 0) close.get_future().wait();
  });
  Client client(At(server.port()));
  EXPECT_EQ(client.Get().body, "0");
  std::string body;
  std::promise<std::string> end;
  client.loop().Post([&] {
    close.set_value();
    while (server.closed() == 0) std::this_thread::yield();
    client.loop().Post([&] {
      client.stream()->Start({.target = "/x"},
                             {.data = [&](std::string_view bytes) { body += bytes; },
                              .end = [&](const std::string& error) { end.set_value(error); }});
    });
  });
  EXPECT_EQ(end.get_future().get(), "");
  EXPECT_EQ(body, "1");
}

TEST(HttpStream, MayBeDestroyedInEachOfItsCalls) {
  RawTcpServer server(Answer("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"));
  for (int where = 0; where < 3; ++where) {
    Client client(At(server.port()));
    std::atomic<bool> called{false};
    const auto end = [&](int here) {
      if (here != where) return;
      client.stream().reset();
      called = true;
    };
    client.loop().Post([&] {
      client.stream()->Start({.target = "/"}, {.head = [end](const HttpStreamHead&) { end(0); },
                                               .data = [end](std::string_view) { end(1); },
                                               .end = [end](const std::string&) { end(2); }});
    });
    while (!called) std::this_thread::yield();
  }
}

// ---- TLS.

using KeyPtr = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using X509Ptr = std::unique_ptr<X509, decltype(&X509_free)>;

std::string Pem(X509* certificate, EVP_PKEY* key) {
  BIO* bio = BIO_new(BIO_s_mem());
  if (certificate != nullptr) PEM_write_bio_X509(bio, certificate);
  if (key != nullptr) PEM_write_bio_PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr);
  char* data = nullptr;
  const auto size = static_cast<size_t>(BIO_get_mem_data(bio, &data));
  std::string text(data, size);
  BIO_free(bio);
  return text;
}

// A certificate for these names ("IP:127.0.0.1,DNS:kube"), signed by `issuer` or by itself; one that signs
// others is an authority.
struct Identity {
  explicit Identity(const char* names, const Identity* issuer = nullptr, bool authority = false) {
    X509_set_version(certificate.get(), X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -60);
    X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
    X509_set_pubkey(certificate.get(), key.get());
    X509_NAME* name = X509_get_subject_name(certificate.get());
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>(names), -1,
                               -1, 0);
    X509_set_issuer_name(certificate.get(),
                         issuer == nullptr ? name : X509_get_subject_name(issuer->certificate.get()));
    Add(NID_subject_alt_name, names);
    if (authority) Add(NID_basic_constraints, "critical,CA:TRUE");
    X509_sign(certificate.get(), issuer == nullptr ? key.get() : issuer->key.get(), EVP_sha256());
  }
  void Add(int nid, const char* value) const {
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value);
    X509_add_ext(certificate.get(), extension, -1);
    X509_EXTENSION_free(extension);
  }
  std::string cert_pem() const { return Pem(certificate.get(), nullptr); }
  std::string key_pem() const { return Pem(nullptr, key.get()); }

  KeyPtr key{EVP_EC_gen("P-256"), EVP_PKEY_free};
  X509Ptr certificate{X509_new(), X509_free};
};

// Answers each connection with "hello", and the name in the client's certificate.
class TlsServer {
 public:
  explicit TlsServer(const Identity& identity, const Identity* clients = nullptr,
                     const std::vector<const Identity*>& chain = {})
      : context_(SSL_CTX_new(TLS_server_method()), SSL_CTX_free),
        server_([this](RawConnection& connection) { Serve(connection); }) {
    SSL_CTX_use_certificate(context_.get(), identity.certificate.get());
    SSL_CTX_use_PrivateKey(context_.get(), identity.key.get());
    for (const Identity* next : chain) SSL_CTX_add1_chain_cert(context_.get(), next->certificate.get());
    if (clients != nullptr) {
      X509_STORE_add_cert(SSL_CTX_get_cert_store(context_.get()), clients->certificate.get());
      SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    }
  }
  uint16_t port() const { return server_.port(); }

 private:
  void Serve(RawConnection& connection) {
    SSL* ssl = SSL_new(context_.get());
    SSL_set_fd(ssl, connection.fd());
    char buffer[4096];
    if (SSL_accept(ssl) == 1 && SSL_read(ssl, buffer, sizeof buffer) > 0) {
      const std::string answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
      SSL_write(ssl, answer.data(), static_cast<int>(answer.size()));
      SSL_shutdown(ssl);
    }
    SSL_free(ssl);
    ERR_clear_error();
  }

  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context_;
  RawTcpServer server_;
};

Outcome AskTls(uint16_t port, const TlsClientOptions& trust, const std::string& server_name = "") {
  HttpStreamOptions options = At(port);
  auto tls = MakeTlsClient(trust);
  EXPECT_TRUE(tls) << tls.error().message;
  options.tls = *tls;
  options.server_name = server_name;
  return Client(options).Get();
}

TEST(HttpStreamTls, TheCertificateMustBeTrustedAndForTheName) {
  const Identity server("IP:127.0.0.1,DNS:kube.example");
  const Identity other("IP:127.0.0.2");
  const TlsServer running(server);
  EXPECT_EQ(AskTls(running.port(), {.ca_pem = server.cert_pem()}).body, "hello");
  EXPECT_EQ(AskTls(running.port(), {.ca_pem = server.cert_pem()}, "kube.example").body, "hello");
  EXPECT_THAT(AskTls(running.port(), {.ca_pem = server.cert_pem()}, "elsewhere.example").error,
              HasSubstr("hostname mismatch"));
  EXPECT_THAT(AskTls(running.port(), {.ca_pem = server.cert_pem()}, "127.0.0.9").error,
              HasSubstr("IP address mismatch"));
  EXPECT_THAT(AskTls(running.port(), {.ca_pem = other.cert_pem()}).error,
              HasSubstr("the certificate is not accepted: "));
  EXPECT_THAT(AskTls(running.port(), {}).error,
              HasSubstr("the certificate is not accepted: "));  // the system's authorities
  EXPECT_EQ(AskTls(running.port(), {.ca_pem = other.cert_pem(), .insecure = true}).body, "hello");
  // Several authorities, as while one is rotated.
  EXPECT_EQ(AskTls(running.port(), {.ca_pem = other.cert_pem() + server.cert_pem()}).body, "hello");
}

// As in Go, and so in kubectl: clusters under a company's root hand out their intermediate authority alone.
TEST(HttpStreamTls, WhateverIsInTheBundleIsAnAnchor) {
  const Identity root("DNS:root", nullptr, true);
  const Identity intermediate("DNS:intermediate", &root, true);
  const Identity server("IP:127.0.0.1,DNS:kube.example", &intermediate);
  const Identity stranger("DNS:intermediate", nullptr, true);  // of the same name, with another key
  const Identity sibling("IP:127.0.0.1", &intermediate);
  const TlsServer alone(server);
  const TlsServer chained(server, nullptr, {&intermediate});
  const TlsServer whole(server, nullptr, {&intermediate, &root});
  for (const TlsServer* running : {&alone, &chained, &whole}) {
    for (const std::string& bundle :
         {intermediate.cert_pem(), server.cert_pem(), stranger.cert_pem() + intermediate.cert_pem(),
          intermediate.cert_pem() + root.cert_pem()}) {
      EXPECT_EQ(AskTls(running->port(), {.ca_pem = bundle}).body, "hello");
      EXPECT_THAT(AskTls(running->port(), {.ca_pem = bundle}, "elsewhere.example").error,
                  HasSubstr("hostname mismatch"));
    }
    // Nothing of these has signed the server's certificate; a sibling of it is no authority.
    for (const std::string& bundle : {stranger.cert_pem(), sibling.cert_pem()}) {
      EXPECT_THAT(AskTls(running->port(), {.ca_pem = bundle}).error,
                  HasSubstr("the certificate is not accepted: "));
    }
  }
  // The root needs the chain in between.
  EXPECT_EQ(AskTls(chained.port(), {.ca_pem = root.cert_pem()}).body, "hello");
  EXPECT_THAT(AskTls(alone.port(), {.ca_pem = root.cert_pem()}).error,
              HasSubstr("the certificate is not accepted: "));
}

// An end certificate that is trusted as it is vouches for nobody else.
TEST(HttpStreamTls, AnAnchorThatIsNoAuthorityHasSignedNothing) {
  const Identity self("IP:127.0.0.2");
  const Identity server("IP:127.0.0.1", &self);
  const TlsServer running(server, nullptr, {&self});
  Identity leaf("IP:127.0.0.2");
  leaf.Add(NID_basic_constraints, "critical,CA:FALSE");
  X509_sign(leaf.certificate.get(), leaf.key.get(), EVP_sha256());
  const Identity signed_by_leaf("IP:127.0.0.1", &leaf);
  const TlsServer forged(signed_by_leaf, nullptr, {&leaf});
  EXPECT_THAT(AskTls(forged.port(), {.ca_pem = leaf.cert_pem()}).error,
              HasSubstr("the certificate is not accepted: "));
}

TEST(HttpStreamTls, ACertificateOfABundleThatCannotBeReadIsNamedAndSkipped) {
  const Identity server("IP:127.0.0.1");
  const Identity other("IP:127.0.0.2");
  const TlsServer running(server);
  const std::string good = server.cert_pem();
  const std::string broken =
      "-----BEGIN CERTIFICATE-----\n" + good.substr(120, 64) + "\n-----END CERTIFICATE-----\n";
  const std::string no_base64 = "-----BEGIN CERTIFICATE-----\n*!*\n-----END CERTIFICATE-----\n";
  const std::string cut = good.substr(0, good.size() / 2) + "\n";
  for (const std::string& bad : {broken, no_base64, cut}) {
    for (const std::string& bundle : {bad + good, good + bad, other.cert_pem() + bad + good}) {
      std::vector<std::string> skipped;
      const auto tls = MakeTlsClient({.ca_pem = bundle}, &skipped);
      ASSERT_TRUE(tls) << tls.error().message;
      ASSERT_EQ(skipped.size(), 1u) << bundle;
      EXPECT_THAT(skipped[0], HasSubstr("cannot be read: "));
      HttpStreamOptions options = At(running.port());
      options.tls = *tls;
      EXPECT_EQ(Client(options).Get().body, "hello") << bundle;
    }
  }
  std::vector<std::string> skipped;
  ASSERT_TRUE(MakeTlsClient({.ca_pem = "a text before\n" + other.cert_pem() + broken + good}, &skipped));
  const auto lines = std::count(good.begin(), good.end(), '\n');
  EXPECT_THAT(skipped[0], HasSubstr("certificate 2 (line " + std::to_string(2 + lines) + ")"));
  // A key in it is none of the authorities, and many broken ones are not as many lines.
  std::string many = server.key_pem() + good;
  for (int i = 0; i < 100; ++i) many += broken;
  ASSERT_TRUE(MakeTlsClient({.ca_pem = many}, &skipped));
  EXPECT_EQ(skipped.size(), 9u);
  EXPECT_EQ(skipped.back(), "92 more");
}

TEST(HttpStreamTls, AClientCertificateIsShown) {
  const Identity server("IP:127.0.0.1");
  const Identity client("DNS:client");
  const TlsServer running(server, &client);
  EXPECT_EQ(AskTls(running.port(),
                   {.ca_pem = server.cert_pem(), .cert_pem = client.cert_pem(), .key_pem = client.key_pem()})
                .body,
            "hello");
  EXPECT_NE(AskTls(running.port(), {.ca_pem = server.cert_pem()}).error, "");
}

TEST(HttpStreamTls, WhatCannotBeUsedIsSaid) {
  const Identity one("IP:127.0.0.1");
  const Identity two("IP:127.0.0.1");
  const auto error = [](const TlsClientOptions& options) {
    const auto made = MakeTlsClient(options);
    return made ? "" : made.error().message;
  };
  EXPECT_THAT(error({.ca_pem = "nothing"}), HasSubstr("no PEM certificate"));
  EXPECT_THAT(error({.ca_pem = one.cert_pem().substr(0, 100)}), HasSubstr("damaged"));
  EXPECT_THAT(error({.cert_pem = one.cert_pem()}), HasSubstr("no client key"));
  EXPECT_THAT(error({.key_pem = one.key_pem()}), HasSubstr("no client certificate"));
  EXPECT_THAT(error({.cert_pem = one.cert_pem(), .key_pem = two.key_pem()}), HasSubstr("does not match"));
  EXPECT_THAT(error({.cert_pem = one.cert_pem(), .key_pem = "x"}), HasSubstr("client key cannot be used"));
}

}  // namespace
}  // namespace fairway::net
