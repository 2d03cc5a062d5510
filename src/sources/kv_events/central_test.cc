// Who is meant by what an engine that dials calls itself, where several could be.
#include "sources/kv_events/central.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "net/address.h"
#include "sources/kv_events/big_endian.h"
#include "sources/kv_events/kv_events.h"
#include "sources/kv_events/zmtp.h"

namespace fairway::sources::kv_events {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// A socket at that address of this machine.
int SocketAt(const char* ip, sockaddr_in& address) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  address = {};
  address.sin_family = AF_INET;
  ::inet_pton(AF_INET, ip, &address.sin_addr);
  EXPECT_EQ(::bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  return socket;
}

uint16_t FreePort() {
  sockaddr_in address{};
  const int socket = SocketAt("127.0.0.1", address);
  const uint16_t port = net::LocalPort(socket);
  ::close(socket);
  return port;
}

class Central : public testing::Test {
 protected:
  // In the pool `name_space`.
  void Add(const std::string& name_space, const std::string& name, const std::string& host, uint16_t port) {
    publishers_.push_back({.pool = name_space + "/pool",
                           .endpoint = name_space + "/" + name,
                           .name = name,
                           .address = net::FormatHostPort(host, port),
                           .cell = std::make_shared<fleet::EndpointCell>(),
                           .picks = std::make_shared<fleet::PickTally>(),
                           .options = {.host = host,
                                       .endpoint_port = port,
                                       .dials = false,
                                       .central_host = "127.0.0.1",
                                       .central_port = FreePort()}});
  }

  // The pools and endpoints that hear of a message with that topic, from that address.
  std::vector<std::string> WhoHears(const std::string& topic, const char* from) {
    const base::SystemClock clock;
    const base::Log log(base::LogLevel::kOff, base::LogFormat::kText);
    base::Registry registry;
    std::mutex mutex;
    std::vector<std::string> heard;
    Learned learned{.emptied =
                        [&](const Publisher& publisher) {
                          const std::lock_guard lock(mutex);
                          heard.push_back(publisher.pool + " " + publisher.endpoint);
                        },
                    .capacity = [](const Publisher&, uint64_t) {}};
    KvEvents events(clock, log, registry, std::move(learned));
    for (Publisher& publisher : publishers_)
      publisher.options.central_port = publishers_.front().options.central_port;
    events.Follow(publishers_);
    const int engine = Dial(from, publishers_.front().options.central_port);
    const std::string batch(
        "\x92\xcb\0\0\0\0\0\0\0\0\x91\x91\xb0"
        "AllBlocksCleared",
        29);
    const std::string bytes = ZmtpOpening("PUB") + ZmtpFrames({topic, ToBigEndian(0), batch});
    EXPECT_EQ(::send(engine, bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
    while (registry.Render().find("messages_received_total 0\n") != std::string::npos)
      std::this_thread::yield();
    size_t left_out = 0;
    while (!events.Look(1, left_out)) std::this_thread::yield();  // the message's turn is over
    ::close(engine);
    const std::lock_guard lock(mutex);
    std::sort(heard.begin(), heard.end());
    return heard;
  }

 private:
  // `from` is not where the port listens: a socket that dials its own address and was given that port by the kernel
  // connects to itself, as long as nobody listens there.
  static int Dial(const char* from, uint16_t port) {
    EXPECT_STRNE(from, "127.0.0.1");
    for (;;) {
      sockaddr_in address{};
      const int socket = SocketAt(from, address);
      address.sin_port = htons(port);
      ::inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
      if (::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return socket;
      ::close(socket);  // it does not listen yet
    }
  }

  std::vector<Publisher> publishers_;
};

TEST_F(Central, OfPodsOfOneNameTheOneAtTheSendersAddress) {
  Add("a", "engine-0", "127.0.0.2", 8000);
  Add("b", "engine-0", "127.0.0.3", 8000);
  EXPECT_THAT(WhoHears("kv@engine-0@m", "127.0.0.2"), ElementsAre("a/pool a/engine-0"));
  EXPECT_THAT(WhoHears("kv@engine-0@m", "127.0.0.3"), ElementsAre("b/pool b/engine-0"));
  EXPECT_THAT(WhoHears("kv@engine-0@m", "127.0.0.4"), IsEmpty());
  EXPECT_THAT(WhoHears("kv@b/engine-0@m", "127.0.0.2"), ElementsAre("b/pool b/engine-0"));
  EXPECT_THAT(WhoHears("kv@@m", "127.0.0.2"), ElementsAre("a/pool a/engine-0"));
  EXPECT_THAT(WhoHears("", "127.0.0.4"), IsEmpty());
}

// On one node's network, say.
TEST_F(Central, OfPodsOfOneNameAndHostNobody) {
  Add("a", "engine-0", "127.0.0.2", 8000);
  Add("b", "engine-0", "127.0.0.2", 9000);
  EXPECT_THAT(WhoHears("kv@engine-0@m", "127.0.0.2"), IsEmpty());
  EXPECT_THAT(WhoHears("kv@127.0.0.2:9000@m", "127.0.0.2"), ElementsAre("b/pool b/engine-0"));
}

TEST_F(Central, OfAPodsRanksTheOneOfThatPort) {
  Add("a", "engine-0-rank-0", "127.0.0.2", 8000);
  Add("a", "engine-0-rank-1", "127.0.0.2", 8001);
  EXPECT_THAT(WhoHears("kv@127.0.0.2:8001@m", "127.0.0.4"), ElementsAre("a/pool a/engine-0-rank-1"));
  EXPECT_THAT(WhoHears("kv@127.0.0.2@m", "127.0.0.2"), IsEmpty());
  EXPECT_THAT(WhoHears("kv@@m", "127.0.0.2"), IsEmpty());
}

TEST_F(Central, OneEndpointOfSeveralPoolsHearsInEach) {
  Add("a", "engine-0", "127.0.0.2", 8000);
  Add("b", "engine-0", "127.0.0.2", 8000);
  for (const char* topic : {"kv@engine-0@m", "kv@127.0.0.2@m", "kv@127.0.0.2:8000@m"})
    EXPECT_THAT(WhoHears(topic, "127.0.0.4"), ElementsAre("a/pool a/engine-0", "b/pool b/engine-0")) << topic;
}

// Whoever names a Pod may not take another one's events away.
TEST_F(Central, AnAddressIsOneAlsoWhereAPodHasItForItsName) {
  Add("a", "engine-0", "127.0.0.2", 8000);
  Add("b", "127.0.0.2", "127.0.0.3", 8000);
  Add("b", "127.0.0.2:8000", "127.0.0.3", 8001);
  for (const char* from : {"127.0.0.2", "127.0.0.3", "127.0.0.4"}) {
    EXPECT_THAT(WhoHears("kv@127.0.0.2@m", from), ElementsAre("a/pool a/engine-0")) << from;
    EXPECT_THAT(WhoHears("kv@127.0.0.2:8000@m", from), ElementsAre("a/pool a/engine-0")) << from;
  }
}

// `$(POD_IP):8000` of one is the other's address.
TEST_F(Central, AnIpv6AddressWithItsPortMayBeAnAddress) {
  Add("a", "engine-0", "fd00::1", 8000);
  Add("b", "engine-1", "fd00::1:8000", 8000);
  EXPECT_THAT(WhoHears("kv@fd00::1:8000@m", "127.0.0.4"), IsEmpty());
  EXPECT_THAT(WhoHears("kv@[fd00::1]:8000@m", "127.0.0.4"), ElementsAre("a/pool a/engine-0"));
  EXPECT_THAT(WhoHears("kv@[fd00::1:8000]:8000@m", "127.0.0.4"), ElementsAre("b/pool b/engine-1"));
  EXPECT_THAT(WhoHears("kv@fd00::1@m", "127.0.0.4"), ElementsAre("a/pool a/engine-0"));
}

}  // namespace
}  // namespace fairway::sources::kv_events
