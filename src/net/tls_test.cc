#include "net/tls.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/support/grpc_client.h"
#include "tests/support/grpc_test_server.h"
#include "tests/support/raw_http2.h"

namespace fairway::net {
namespace {

using testing::GrpcClient;
using testing::GrpcTestServer;

// A certificate and its key on disk.
class TlsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "fairway-tls-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    Make("a");
    Make("b");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  void Put(const std::string& name, const std::string& text) const { std::ofstream(Path(name)) << text; }
  std::string Get(const std::string& name) const {
    std::ifstream in(Path(name));
    return {std::istreambuf_iterator<char>(in), {}};
  }

  void Make(const std::string& name) const {
    EVP_PKEY* key = EVP_EC_gen("P-256");
    X509* certificate = X509_new();
    X509_set_version(certificate, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_set_pubkey(certificate, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
    X509_sign(certificate, key, EVP_sha256());
    FILE* file = fopen(Path(name + ".crt").c_str(), "w");
    PEM_write_X509(file, certificate);
    fclose(file);
    file = fopen(Path(name + ".key").c_str(), "w");
    PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr);
    fclose(file);
    file = fopen(Path(name + ".locked").c_str(), "w");
    std::string password = "secret";
    PEM_write_PrivateKey(file, key, EVP_aes_128_cbc(), reinterpret_cast<unsigned char*>(password.data()),
                         static_cast<int>(password.size()), nullptr, nullptr);
    fclose(file);
    X509_free(certificate);
    EVP_PKEY_free(key);
  }

  TlsContext Load(const std::string& name, const TlsOptions& options = {.alpn = {"h2"}}) const {
    auto context = LoadTlsServer(Path(name + ".crt"), Path(name + ".key"), options);
    EXPECT_TRUE(context) << context.error().message;
    return context ? *context : nullptr;
  }
  std::string Error(const std::string& cert, const std::string& key, const TlsOptions& options = {}) const {
    auto context = LoadTlsServer(Path(cert), Path(key), options);
    EXPECT_FALSE(context.has_value());
    return context ? "" : context.error().message;
  }

  std::string folder_;
};

TEST_F(TlsTest, BadFilesGetClearErrors) {
  Put("empty", "");
  Put("text", "hello");
  Put("cut", Get("a.crt").substr(0, 100) + "\n-----END CERTIFICATE-----\n");
  Put("chain", Get("a.crt") + Get("cut"));
  EXPECT_EQ(Error("none", "a.key"), "cannot read " + Path("none") + ": No such file or directory");
  EXPECT_EQ(Error("a.crt", "none"), "cannot read " + Path("none") + ": No such file or directory");
  EXPECT_EQ(Error("", "a.key"), "cannot read " + Path("") + ": Is a directory");
  EXPECT_EQ(Error("empty", "a.key"), Path("empty") + " holds no PEM certificate");
  EXPECT_EQ(Error("text", "a.key"), Path("text") + " holds no PEM certificate");
  EXPECT_NE(Error("cut", "a.key").find("holds no PEM certificate: "), std::string::npos);
  EXPECT_NE(Error("chain", "a.key").find("the chain is damaged"), std::string::npos);
  EXPECT_NE(Error("a.crt", "text").find("text holds no PEM private key"), std::string::npos);
  EXPECT_NE(Error("a.crt", "a.crt").find("a.crt holds no PEM private key"), std::string::npos);
  EXPECT_NE(Error("a.crt", "b.key").find("b.key does not match the certificate in " + Path("a.crt")),
            std::string::npos);
  EXPECT_EQ(Error("a.crt", "a.locked"),
            Path("a.locked") + ": the private key is encrypted; store it without a password");
}

TEST_F(TlsTest, BadOptionsGetClearErrors) {
  EXPECT_EQ(Error("a.crt", "a.key", {.min_version = "TLS1.3"}),
            "unknown TLS version \"TLS1.3\"; known are VersionTLS12 and VersionTLS13");
  const std::string suites = Error("a.crt", "a.key", {.cipher_suites = {"TLS_AES_128_GCM_SHA256", "RC4"}});
  EXPECT_NE(suites.find("unknown cipher suite \"RC4\"; known are TLS_AES_128_GCM_SHA256, "),
            std::string::npos)
      << suites;
  EXPECT_NE(Error("a.crt", "a.key", {.alpn = {""}}).find("ALPN"), std::string::npos);
}

TEST_F(TlsTest, ServesTls12And13WithAndWithoutSniAndAlpn) {
  GrpcTestServer server({.tls = Load("a")});
  struct Case {
    int version;
    bool sni;
    std::vector<std::string> alpn;
    const char* expected;
  };
  for (const Case& c :
       {Case{0, true, {"h2"}, "TLSv1.3"}, Case{TLS1_2_VERSION, false, {"h2"}, "TLSv1.2"},
        Case{TLS1_2_VERSION, true, {}, "TLSv1.2"}, Case{0, false, {"http/1.1", "h2"}, "TLSv1.3"}}) {
    std::string error;
    auto client = GrpcClient::Connect(
        "127.0.0.1", server.port(), {.tls = true, .alpn = c.alpn, .max_tls_version = c.version, .sni = c.sni},
        &error);
    ASSERT_NE(client, nullptr) << error;
    EXPECT_EQ(client->tls_version(), c.expected);
    for (const size_t size : {0, 100, 20'000, 3'000'000}) {
      const std::string message(size, 'm');
      EXPECT_TRUE(client->Unary("/t/Echo", message).message == message) << size;
    }
  }
}

TEST_F(TlsTest, RefusesOtherProtocolsAndOldVersions) {
  GrpcTestServer server({.tls = Load("a", {.min_version = "VersionTLS13", .alpn = {"h2"}})});
  std::string error;
  EXPECT_EQ(GrpcClient::Connect("127.0.0.1", server.port(), {.tls = true, .alpn = {"http/1.1"}}, &error),
            nullptr);
  EXPECT_NE(error.find("no application protocol"), std::string::npos) << error;
  EXPECT_EQ(GrpcClient::Connect("127.0.0.1", server.port(), {.tls = true, .max_tls_version = TLS1_2_VERSION},
                                &error),
            nullptr);
  EXPECT_NE(error.find("protocol version"), std::string::npos) << error;
  auto plain = GrpcClient::Connect("127.0.0.1", server.port());
  ASSERT_NE(plain, nullptr);
  EXPECT_TRUE(plain->PumpUntil([&] { return plain->closed(); }));
}

TEST_F(TlsTest, TakesGoNamesOfCipherSuites) {
  GrpcTestServer server(
      {.tls = Load("a", {.cipher_suites = {"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"}, .alpn = {"h2"}})});
  auto client =
      GrpcClient::Connect("127.0.0.1", server.port(), {.tls = true, .max_tls_version = TLS1_2_VERSION});
  ASSERT_NE(client, nullptr);
  EXPECT_EQ(client->Unary("/t/Echo", "x").message, "x");
  // TLS 1.3 suites alone leave nothing for TLS 1.2, as in Go.
  GrpcTestServer modern({.tls = Load("a", {.cipher_suites = {"TLS_AES_256_GCM_SHA384"}, .alpn = {"h2"}})});
  EXPECT_EQ(GrpcClient::Connect("127.0.0.1", modern.port(), {.tls = true, .max_tls_version = TLS1_2_VERSION}),
            nullptr);
  client = GrpcClient::Connect("127.0.0.1", modern.port(), {.tls = true});
  ASSERT_NE(client, nullptr);
  EXPECT_EQ(client->Unary("/t/Echo", "x").message, "x");
}

TEST_F(TlsTest, Http2HasNoCbcSuites) {
  const std::vector<std::string> named = {"TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
                                          "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"};
  for (const TlsOptions& options :
       {TlsOptions{.alpn = {"h2"}}, TlsOptions{.cipher_suites = named, .alpn = {"h2"}}}) {
    GrpcTestServer server({.tls = Load("a", options)});
    const auto with = [&](const char* suites) {
      return GrpcClient::Connect("127.0.0.1", server.port(),
                                 {.tls = true, .max_tls_version = TLS1_2_VERSION, .cipher_list = suites});
    };
    EXPECT_EQ(with("ECDHE-ECDSA-AES256-SHA:ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA384"), nullptr);
    EXPECT_NE(with("ECDHE-ECDSA-AES256-GCM-SHA384"), nullptr);
  }
  EXPECT_NE(Error("a.crt", "a.key", {.cipher_suites = {named[0]}, .alpn = {"h2"}}).find("HTTP/2 forbids all"),
            std::string::npos);
  // Other protocols have them where they are named.
  EXPECT_TRUE(Load("a", {.cipher_suites = {named[0]}}) != nullptr);
}

TEST_F(TlsTest, NewConnectionsGetTheNewCertificate) {
  GrpcTestServer server({.tls = Load("a")});
  auto before = GrpcClient::Connect("127.0.0.1", server.port(), {.tls = true});
  ASSERT_NE(before, nullptr);
  server->SetTls(Load("b"));
  auto after = GrpcClient::Connect("127.0.0.1", server.port(), {.tls = true});
  ASSERT_NE(after, nullptr);
  EXPECT_NE(before->tls_certificate(), after->tls_certificate());
  EXPECT_EQ(before->Unary("/t/Echo", "old").message, "old");
  EXPECT_EQ(after->Unary("/t/Echo", "new").message, "new");
}

TEST_F(TlsTest, SelfSignedIsFreshEachTime) {
  auto one = SelfSignedTlsServer({.alpn = {"h2"}});
  auto two = SelfSignedTlsServer({.alpn = {"h2"}});
  ASSERT_TRUE(one && two);
  GrpcTestServer a({.tls = *one});
  GrpcTestServer b({.tls = *two});
  auto client_a = GrpcClient::Connect("127.0.0.1", a.port(), {.tls = true});
  auto client_b = GrpcClient::Connect("127.0.0.1", b.port(), {.tls = true});
  ASSERT_TRUE(client_a != nullptr && client_b != nullptr);
  EXPECT_NE(client_a->tls_certificate(), client_b->tls_certificate());
  EXPECT_EQ(client_a->Unary("/t/Echo", "x").message, "x");
  const std::string der = client_a->tls_certificate();
  const auto* at = reinterpret_cast<const unsigned char*>(der.data());
  X509* certificate = d2i_X509(nullptr, &at, static_cast<long>(der.size()));
  ASSERT_NE(certificate, nullptr);
  time_t in_nine_years = time(nullptr) + 9L * 365 * 24 * 3600;
  EXPECT_EQ(X509_cmp_time(X509_get0_notAfter(certificate), &in_nine_years), 1);
  X509_free(certificate);
}

TEST_F(TlsTest, HandshakeThatDoesNotEndIsCut) {
  GrpcTestServer server({.tls = Load("a"), .handshake_timeout = 50 * base::kMillisecond});
  GrpcTestServer plain({.handshake_timeout = 50 * base::kMillisecond});
  for (auto* which : {&server, &plain}) {
    auto socket = testing::RawClient::Connect(which->port());
    socket.Send("\x16\x03\x01");  // the beginning of a ClientHello; nonsense to HTTP/2
    EXPECT_TRUE(socket.ReadToEnd());
    auto silent = testing::RawClient::Connect(which->port());
    EXPECT_TRUE(silent.ReadToEnd());
    EXPECT_TRUE(GrpcTestServer::Eventually([&] { return (*which)->stats().aborted_connections >= 1; }));
  }
}

}  // namespace
}  // namespace fairway::net
