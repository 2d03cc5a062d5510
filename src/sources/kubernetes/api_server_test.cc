#include "sources/kubernetes/api_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace fairway::sources::kubernetes {
namespace {

using ::testing::HasSubstr;

// Two authorities; only that they can be read and are not the same counts.
constexpr const char* kFirst =
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBdzCCAR2gAwIBAgIUaN0qdqyklmPzpUTnjkIogYpencYwCgYIKoZIzj0EAwIw\n"
    "EDEOMAwGA1UEAwwFZmlyc3QwIBcNMjYxMTI1MjIxMDI0WhgPMjEyNjExMDEyMjEw\n"
    "MjRaMBAxDjAMBgNVBAMMBWZpcnN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n"
    "ciSDD6IcswcQgHtiuL4EleENLmXJXVjIW1gSE568N54KzBUXfvALk9SXkBr/vflw\n"
    "I7n4sfLyJAv09mWrIpkV1aNTMFEwHQYDVR0OBBYEFHsPsFWCtUkRjN2TwDh9TIQL\n"
    "rRMGMB8GA1UdIwQYMBaAFHsPsFWCtUkRjN2TwDh9TIQLrRMGMA8GA1UdEwEB/wQF\n"
    "MAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgBhHxDisYpZjvrhctDQdcnLft4unu6JNO\n"
    "BkFLoI7SJgUCIQCi5MdvWR2JuiT9dWYmbWrVzYo+VykNlYYaQYKuYhsKzg==\n"
    "-----END CERTIFICATE-----\n";
constexpr const char* kSecond =
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBejCCAR+gAwIBAgIUGDA5Q9OZLZohMug7NUwluKagV98wCgYIKoZIzj0EAwIw\n"
    "ETEPMA0GA1UEAwwGc2Vjb25kMCAXDTI2MTEyNTIyMTAyNFoYDzIxMjYxMTAxMjIx\n"
    "MDI0WjARMQ8wDQYDVQQDDAZzZWNvbmQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC\n"
    "AAQHIr3406hwXLsSjoXZCCK17g9CYZuTZC+dvZXwnxQcA4pjfCL+FbFyWepTBYp1\n"
    "WlwpW5kQCDQTfdHckQv7ZAtzo1MwUTAdBgNVHQ4EFgQUW+cOA+75HYTn0Bt12LXX\n"
    "bkT+F2QwHwYDVR0jBBgwFoAUW+cOA+75HYTn0Bt12LXXbkT+F2QwDwYDVR0TAQH/\n"
    "BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEA9ALRQ5aLnsPuK4iqu4jrGrqNkvEW\n"
    "I8ZDtq5SmzLZ6eECIQCNjSyMqH3BmnwFPcaapGrlr38wX1KnYwAABOKz/J+20g==\n"
    "-----END CERTIFICATE-----\n";

class ApiServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "fairway-api-server-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void Put(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ + "/" + name + ".new") << text;
    std::filesystem::rename(folder_ + "/" + name + ".new", folder_ + "/" + name);
  }
  static std::string Token(ApiServer& server) {
    for (const auto& [name, value] : server.Headers()) {
      if (name == "Authorization") return value;
    }
    return "";
  }

  std::string folder_;
};

TEST_F(ApiServerTest, FollowsATokenAndKeepsTheLastGoodOne) {
  Put("token", "one\n");
  ClientConfig config;
  config.host = "127.0.0.1";
  config.tls = false;
  config.token_file = folder_ + "/token";
  auto server = ApiServer::Create(config);
  ASSERT_TRUE(server) << server.error().message;
  EXPECT_EQ(Token(**server), "Bearer one");
  Put("token", "two");
  EXPECT_EQ(Token(**server), "Bearer two");
  EXPECT_EQ((*server)->problem(), "");
  std::filesystem::remove(folder_ + "/token");
  EXPECT_EQ(Token(**server), "Bearer two");
  EXPECT_THAT((*server)->problem(), HasSubstr("/token: No such file"));
  Put("token", "\n");
  EXPECT_EQ(Token(**server), "Bearer two");
  EXPECT_THAT((*server)->problem(), HasSubstr("is empty"));
}

TEST_F(ApiServerTest, FollowsAuthoritiesAndKeepsTheLastGoodOnes) {
  Put("ca.crt", kFirst);
  ClientConfig config;
  config.host = "127.0.0.1";
  config.ca_file = folder_ + "/ca.crt";
  auto server = ApiServer::Create(config);
  ASSERT_TRUE(server) << server.error().message;
  uint64_t first = 0;
  uint64_t next = 0;
  const auto tls = (*server)->Connection(first).tls;
  EXPECT_EQ((*server)->Connection(next).tls, tls);
  EXPECT_EQ(next, first);

  Put("ca.crt", std::string(kFirst) + kSecond);
  const auto changed = (*server)->Connection(next).tls;
  EXPECT_NE(changed, tls);
  EXPECT_GT(next, first);

  first = next;
  Put("ca.crt", "half of a fi");
  EXPECT_EQ((*server)->Connection(next).tls, changed);
  EXPECT_EQ(next, first);
  EXPECT_THAT((*server)->problem(), HasSubstr("no PEM certificate"));
  Put("ca.crt", kSecond);
  EXPECT_NE((*server)->Connection(next).tls, changed);
  EXPECT_EQ((*server)->problem(), "");
}

TEST_F(ApiServerTest, ACertificateThatCannotBeReadIsNamedOnceForEachState) {
  const std::string broken = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
  Put("ca.crt", broken + kFirst);
  ClientConfig config;
  config.host = "127.0.0.1";
  config.ca_file = folder_ + "/ca.crt";
  std::string lines;
  const base::Log log(base::LogLevel::kInfo, base::LogFormat::kText,
                      [&lines](std::string_view line) { lines += line; });
  auto server = ApiServer::Create(config, &log);
  ASSERT_TRUE(server) << server.error().message;
  EXPECT_THAT(lines, HasSubstr("file=" + config.ca_file));
  EXPECT_THAT(lines, HasSubstr("certificate 1 (line 1) cannot be read: "));
  lines.clear();
  uint64_t generation = 0;
  (*server)->Connection(generation);
  EXPECT_EQ(lines, "");
  EXPECT_EQ((*server)->problem(), "");
  Put("ca.crt", std::string(kFirst) + broken + kSecond);
  (*server)->Connection(generation);
  EXPECT_THAT(lines, HasSubstr("certificate 2 (line 11) cannot be read: "));
}

TEST_F(ApiServerTest, WhatCannotBeUsedAtTheStartIsSaid) {
  ClientConfig config;
  config.host = "127.0.0.1";
  config.source = "the kubeconfig";
  config.ca_pem = "nothing";
  const auto server = ApiServer::Create(config);
  ASSERT_FALSE(server.has_value());
  EXPECT_THAT(server.error().message, HasSubstr("the kubeconfig: the CA data hold no PEM certificate"));
}

}  // namespace
}  // namespace fairway::sources::kubernetes
