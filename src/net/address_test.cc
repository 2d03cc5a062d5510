#include "net/address.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace fairway::net {
namespace {

TEST(AddressTest, ReadsAddresses) {
  const auto v4 = ParseHostPort("10.0.0.1:8000");
  ASSERT_TRUE(v4);
  EXPECT_EQ(v4->host, "10.0.0.1");
  EXPECT_EQ(v4->port, 8000);
  const auto v6 = ParseHostPort("[fd00::1]:65535");
  ASSERT_TRUE(v6);
  EXPECT_EQ(v6->host, "fd00::1");
  EXPECT_EQ(v6->port, 65535);
  const auto name = ParseHostPort("vllm-0.pool_a.svc:1");
  ASSERT_TRUE(name);
  EXPECT_EQ(name->host, "vllm-0.pool_a.svc");
  ASSERT_TRUE(ParseHostPort("localhost:0", true));
}

TEST(AddressTest, RefusesEverythingElseAndSaysWhatIsRight) {
  for (const char* bad : {"",
                          ":",
                          "8000",
                          "host",
                          "host:",
                          ":8000",
                          "host:0",
                          "host:65536",
                          "host:-1",
                          "host:80 ",
                          "host:+80",
                          "host:000080",
                          " host:80",
                          "ho st:80",
                          "fd00::1:8000",
                          "[fd00::1]",
                          "[fd00::1]8000",
                          "[fd00::1",
                          "[]:80",
                          "[10.0.0.1]:80",
                          "10.0.0:80",
                          "10.0.0.256:80",
                          "1.2.3.4.5:80",
                          "a:b:80",
                          "http://host:80",
                          "host/x:80"}) {
    const auto got = ParseHostPort(bad);
    ASSERT_FALSE(got) << bad;
    EXPECT_EQ(got.error().code, base::ErrorCode::kInvalidArgument);
    EXPECT_NE(got.error().message.find(bad), std::string::npos) << got.error().message;
  }
  EXPECT_NE(ParseHostPort("fd00::1:8000").error().message.find("[fd00::1]:8000"), std::string::npos);
  EXPECT_FALSE(ParseHostPort(std::string_view("ho\0st:80", 8)));
  EXPECT_FALSE(ParseHostPort(std::string(100'000, 'a') + ":80"));
}

TEST(AddressTest, WritesAddresses) {
  EXPECT_EQ(FormatHostPort("10.0.0.1", 80), "10.0.0.1:80");
  EXPECT_EQ(FormatHostPort("fd00::1", 80), "[fd00::1]:80");
  EXPECT_EQ(FormatHostPort("[fd00::1]", 80), "[fd00::1]:80");
  EXPECT_EQ(FormatHostPort("name", 0), "name:0");
}

TEST(AddressTest, CountsIpv6ByItsNetwork) {
  const std::pair<const char*, const char*> shares[] = {{"10.0.0.1", "10.0.0.1"},
                                                        {"::ffff:10.0.0.1", "10.0.0.1"},
                                                        {"::ffff:a00:2", "10.0.0.2"},
                                                        {"fd00:1:2:3::1", "fd00:1:2:3::/64"},
                                                        {"fd00:1:2:3:ffff:0:10.0.0.1", "fd00:1:2:3::/64"},
                                                        {"fd00:1:2:4::1", "fd00:1:2:4::/64"},
                                                        {"fe80::1%eth0", "fe80::/64"},
                                                        {"::1", "::/64"},
                                                        {"", ""},
                                                        {"name", "name"}};
  for (const auto& [ip, share] : shares) {
    EXPECT_EQ(PeerShareOf(ip), share) << ip;
    sockaddr_storage address{};
    auto& v6 = reinterpret_cast<sockaddr_in6&>(address);
    if (::inet_pton(AF_INET6, ip, &v6.sin6_addr) != 1) continue;
    address.ss_family = AF_INET6;
    PeerAddress whole{};
    std::memcpy(whole.data(), &v6.sin6_addr, 16);
    if (std::string_view(ip).find("ffff:") != 2) std::fill(whole.begin() + 8, whole.end(), 0);
    EXPECT_EQ(PeerAddressOf(address), whole) << ip;
  }
}

TEST(AddressTest, KnowsIpLiterals) {
  EXPECT_TRUE(IsIpLiteral("127.0.0.1"));
  EXPECT_TRUE(IsIpLiteral("::1"));
  EXPECT_FALSE(IsIpLiteral("[::1]"));
  EXPECT_FALSE(IsIpLiteral("localhost"));
  EXPECT_FALSE(IsIpLiteral("10.0.0"));
  EXPECT_FALSE(IsIpLiteral(""));
}

}  // namespace
}  // namespace fairway::net
