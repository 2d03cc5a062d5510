#include "sources/kubernetes/client_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace fairway::sources::kubernetes {
namespace {

using ::testing::HasSubstr;

class ClientConfigTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "fairway-kubeconfig-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Put(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ + "/" + name) << text;
    return folder_ + "/" + name;
  }
  // A kubeconfig with this cluster and user.
  std::string Config(const std::string& cluster, const std::string& user) const {
    return Put(
        "config",
        "apiVersion: v1\nkind: Config\ncurrent-context: here\ncontexts:\n- name: other\n  context: {}\n"
        "- name: here\n  context: {cluster: c, user: u, namespace: llm}\nclusters:\n- name: c\n  cluster: " +
            cluster + "\nusers:\n- name: u\n  user: " + user + "\n");
  }
  static std::string Error(const std::string& path) {
    const auto config = ReadKubeConfig(path);
    EXPECT_FALSE(config.has_value());
    return config ? "" : config.error().message;
  }

  std::string folder_;
};

TEST_F(ClientConfigTest, DataAndFilesAndToken) {
  Put("ca.crt", "authority");
  const auto config = ReadKubeConfig(Config(
      "{server: 'https://[fd00::1]:6443/prefix/', certificate-authority: ca.crt, tls-server-name: kube}",
      "{client-certificate-data: Y2VydA==, client-key-data: a2V5, token: t}"));
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->host, "fd00::1");
  EXPECT_EQ(config->port, 6443);
  EXPECT_EQ(config->path_prefix, "/prefix");
  EXPECT_EQ(config->server_name, "kube");
  EXPECT_EQ(config->ca_file, folder_ + "/ca.crt");
  EXPECT_EQ(config->cert_pem, "cert");
  EXPECT_EQ(config->key_pem, "key");
  EXPECT_EQ(config->token, "t");
  EXPECT_EQ(config->namespace_name, "llm");
  EXPECT_TRUE(config->tls);
  EXPECT_FALSE(config->insecure);
}

TEST_F(ClientConfigTest, PortsAndPlainText) {
  auto config =
      ReadKubeConfig(Config("{server: 'https://kube.example', insecure-skip-tls-verify: true}", "{}"));
  ASSERT_TRUE(config);
  EXPECT_EQ(config->port, 443);
  EXPECT_TRUE(config->insecure);
  config = ReadKubeConfig(Config("{server: 'http://127.0.0.1:8001'}", "{}"));
  ASSERT_TRUE(config);
  EXPECT_FALSE(config->tls);
  EXPECT_EQ(config->port, 8001);
}

TEST_F(ClientConfigTest, WhatCannotBeUsedIsSaid) {
  const std::string cluster = "{server: 'https://127.0.0.1:6443'}";
  EXPECT_THAT(Error(Config(cluster, "{exec: {command: aws}}")),
              HasSubstr("exec credential plugins are not run"));
  EXPECT_THAT(Error(Config(cluster, "{auth-provider: {name: gcp}}")), HasSubstr("auth-provider"));
  EXPECT_THAT(Error(Config(cluster, "{tokenFile: gone}")), HasSubstr(folder_ + "/gone: No such file"));
  EXPECT_THAT(Error(Config(cluster, "{client-key-data: '*'}")), HasSubstr("client-key-data is no base64"));
  EXPECT_THAT(Error(Config("{server: 'ftp://x'}", "{}")),
              HasSubstr("want https://HOST:PORT, got \"ftp://x\""));
  EXPECT_THAT(Error(Config("{server: 'https://a:b'}", "{}")), HasSubstr("server: "));
  EXPECT_THAT(Error(Config("{server: 'https://a', proxy-url: 'http://p'}", "{}")), HasSubstr("proxy-url"));
  EXPECT_THAT(Error(Put("empty", "")), HasSubstr("is no kubeconfig"));
  EXPECT_THAT(Error(Put("list", "- a\n")), HasSubstr("is no kubeconfig"));
  EXPECT_THAT(Error(Put("none", "clusters: []\n")), HasSubstr("no current-context"));
  EXPECT_THAT(Error(Put("gone", "current-context: x\n")), HasSubstr("has no context \"x\""));
  EXPECT_THAT(Error(folder_ + "/missing"), HasSubstr("cannot read " + folder_ + "/missing"));
}

// As kubectl: the first file to set a value or a name wins, with the whole entry.
TEST_F(ClientConfigTest, SeveralFilesAreMerged) {
  std::filesystem::create_directory(folder_ + "/sub");
  Put("sub/ca.crt", "authority");
  const std::string first =
      Put("k1", "current-context: c\nclusters:\ncontexts: null\nusers:\n- name: u\n  user: {token: first}\n");
  const std::string second =
      Put("sub/k2",
          "current-context: other\ncontexts:\n- name: c\n  context: {cluster: k, user: u, namespace: llm}\n"
          "- name: other\n  context: {cluster: k}\nclusters:\n- name: k\n  cluster: {server: "
          "'https://one:1', certificate-authority: ca.crt}\nusers:\n- name: u\n  user: {tokenFile: gone}\n");
  const std::string third =
      Put("k3", "clusters:\n- name: k\n  cluster: {server: 'https://two:2', tls-server-name: two}\n");
  const std::string empty = Put("empty", "");
  const auto config = ReadKubeConfigs({folder_ + "/missing", empty, first, second, third});
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->host, "one");
  EXPECT_EQ(config->server_name, "");
  EXPECT_EQ(config->ca_file, folder_ + "/sub/ca.crt");
  EXPECT_EQ(config->token, "first");
  EXPECT_EQ(config->token_file, "");
  EXPECT_EQ(config->namespace_name, "llm");
  EXPECT_EQ(ReadKubeConfigs({third, second})->host, "two");
  EXPECT_EQ(ReadKubeConfigs({third, second}, "c").error().message,
            second + ": user \"u\": cannot read " + folder_ + "/sub/gone: No such file or directory");

  const auto error = [](const std::vector<std::string>& paths) {
    const auto read = ReadKubeConfigs(paths);
    return read ? "" : read.error().message;
  };
  EXPECT_EQ(error({first, third}), first + ":" + third + ": has no context \"c\"");
  EXPECT_EQ(error({empty}), empty + ": has no current-context");
  EXPECT_THAT(error({first, Put("list", "- a\n"), second}), HasSubstr("list: is no kubeconfig"));
  EXPECT_THAT(error({folder_ + "/missing", folder_ + "/gone"}), HasSubstr("there is no such file"));
}

TEST_F(ClientConfigTest, TheEnvironmentNamesSeveralFiles) {
  const std::string first = Put("k1", "current-context: c\nclusters: null\ncontexts: null\nusers: null\n");
  const std::string second =
      Put("k2",
          "contexts:\n- name: c\n  context: {cluster: k}\nclusters:\n- name: k\n  cluster: {server: "
          "'https://one:1'}\n");
  ASSERT_EQ(setenv("KUBECONFIG", (first + "::" + second).c_str(), 1), 0);
  const auto config = FindClientConfig("");
  ASSERT_EQ(setenv("KUBECONFIG", first.c_str(), 1), 0);
  const auto alone = FindClientConfig("");
  unsetenv("KUBECONFIG");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->host, "one");
  ASSERT_FALSE(alone.has_value());
  EXPECT_EQ(alone.error().message, "$KUBECONFIG: " + first + ": has no context \"c\"");
}

TEST_F(ClientConfigTest, InCluster) {
  EXPECT_THAT(InClusterConfig("10.0.0.1", "443", folder_).error().message, HasSubstr("/token: No such file"));
  Put("token", "abc\n");
  Put("ca.crt", "authority");
  Put("namespace", "llm\n");
  const auto config = InClusterConfig("10.0.0.1", "443", folder_);
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->namespace_name, "llm");
  EXPECT_EQ(config->token_file, folder_ + "/token");
  EXPECT_THAT(InClusterConfig("10.0.0.1", "x", folder_).error().message,
              HasSubstr("KUBERNETES_SERVICE_PORT"));
}

}  // namespace
}  // namespace fairway::sources::kubernetes
