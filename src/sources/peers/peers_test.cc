#include "sources/peers/peers.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/metrics.h"
#include "net/loop.h"
#include "tests/support/raw_tcp_server.h"

namespace fairway::sources::peers {
namespace {

using test::RawConnection;
using test::RawTcpServer;

bool Soon(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

// One replica with a loop of its own. It tells one number of requests of one endpoint.
class Replica {
 public:
  explicit Replica(uint64_t number, std::vector<std::string> peers, Options options = {}, uint16_t port = 0)
      : thread_("peers") {
    // Nobody is at that port, but may ask from that host.
    options.peers = peers.empty() ? std::vector<std::string>{"127.0.0.1:1"} : std::move(peers);
    options.port = port;
    options.secure = false;
    options.replica = number;
    options.again = 50 * base::kMillisecond;
    options.silence = 300 * base::kMillisecond;
    OnLoop([&] {
      auto started = Peers::Start(options, MakeContent(), thread_.loop(), clock_, log_, registry_);
      ASSERT_TRUE(started) << started.error().message;
      peers_ = std::move(*started);
    });
  }
  ~Replica() { Stop(); }

  void Stop() {
    OnLoop([&] { peers_.reset(); });
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(peers_->port()); }
  // By the number that it tells: what it told last; of several that tell one number, all together.
  std::map<uint64_t, uint32_t> heard() {
    std::lock_guard lock(mutex_);
    std::map<uint64_t, uint32_t> by_number;
    for (const auto& [peer, told] : heard_) by_number[told.first] += told.second;
    return by_number;
  }
  std::vector<std::string> taken() {
    std::lock_guard lock(mutex_);
    return taken_;
  }
  std::string Page() const {
    std::string page, text;
    for (auto pages = registry_.Open(); pages->Next(text);) page += text;
    return page;
  }

  std::atomic<uint32_t> requests{1};
  std::atomic<bool> listened{false};
  std::atomic<bool> wants{false};
  std::atomic<size_t> parts{3};

 private:
  void OnLoop(const std::function<void()>& task) { net::RunOn(thread_.loop(), task); }
  Content MakeContent() {
    return {.changes =
                [this](MessageWriter& to) {
                  if (requests != told_) to.Add("p", "e", fleet::OpenLoad{told_ = requests, 0});
                },
            .all = [this](MessageWriter& to) { to.Add("p", "e", fleet::OpenLoad{told_, 0}); },
            .listened = [this](bool is) { listened = is; },
            .heard =
                [this](uint64_t peer, const Message& message) {
                  std::lock_guard lock(mutex_);
                  for (const EndpointNews& news : message.endpoints)
                    if (news.load) heard_[peer] = {message.replica, news.load->requests};
                },
            .gone =
                [this](uint64_t peer) {
                  std::lock_guard lock(mutex_);
                  heard_.erase(peer);
                },
            .snapshot = [this]() -> std::function<bool(MessageWriter&)> {
              return [left = parts.load()](MessageWriter& to) mutable {
                if (left-- == 0) return false;
                const Learned learned{.ms_per_token = 1};
                to.Add("p", "e" + std::to_string(left), std::nullopt, {}, &learned);
                return true;
              };
            },
            .wants_snapshot = [this] { return wants.load(); },
            .took =
                [this](const Message& message) {
                  std::lock_guard lock(mutex_);
                  for (const EndpointNews& news : message.endpoints) taken_.emplace_back(news.address);
                }};
  }

  base::SystemClock clock_;
  base::Log log_;
  base::Registry registry_;
  std::mutex mutex_;
  std::map<uint64_t, std::pair<uint64_t, uint32_t>> heard_;
  std::vector<std::string> taken_;
  uint32_t told_ = 0;  // of the loop
  net::LoopThread thread_;
  std::unique_ptr<Peers> peers_;
};

using Heard = std::map<uint64_t, uint32_t>;

std::string Head(const char* type = "application/x-fairway-peers") {
  return "HTTP/1.1 200 OK\r\nContent-Type: " + std::string(type) + "\r\nTransfer-Encoding: chunked\r\n\r\n";
}
std::string Chunk(std::string_view bytes) {
  char size[16];
  std::snprintf(size, sizeof size, "%zx\r\n", bytes.size());
  return size + std::string(bytes) + "\r\n";
}

TEST(Peers, TellOneAnotherAndForgetWhoIsGone) {
  Replica first(1, {});
  auto second = std::make_unique<Replica>(2, std::vector<std::string>{first.address()});
  Replica third(3, {first.address(), second->address()});
  EXPECT_TRUE(Soon([&] { return third.heard() == Heard{{1, 1}, {2, 1}}; }));
  EXPECT_TRUE(Soon([&] { return second->heard() == Heard{{1, 1}}; }));
  EXPECT_TRUE(first.listened);
  EXPECT_FALSE(third.listened) << "nobody asked";
  first.requests = 5;
  EXPECT_TRUE(
      Soon([&] { return third.heard() == Heard{{1, 5}, {2, 1}} && second->heard() == Heard{{1, 5}}; }));
  EXPECT_NE(third.Page().find("fairway_peers{state=\"heard\"} 2"), std::string::npos) << third.Page();
  second.reset();
  EXPECT_TRUE(Soon([&] { return third.heard() == Heard{{1, 5}}; }));
  first.requests = 0;
  EXPECT_TRUE(Soon([&] { return third.heard() == Heard{{1, 0}}; }));
}

TEST(Peers, ThatSayNothingNewAreNotSilent) {
  Replica first(1, {});
  Replica second(2, {first.address()});
  ASSERT_TRUE(Soon([&] { return second.heard().size() == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(900));  // three times what counts as silence
  EXPECT_EQ(second.heard(), (Heard{{1, 1}}));
  EXPECT_EQ(second.Page().find("fairway_peer_streams_ended_total{"), std::string::npos) << second.Page();
}

TEST(Peers, NobodyHearsItselfOrOneTwice) {
  Replica first(7, {});
  Replica second(7, {first.address()});  // the same number: as if a name had led to itself
  EXPECT_TRUE(Soon([&] { return second.Page().find("reason=\"itself\"} 1") != std::string::npos; }));
  EXPECT_TRUE(second.heard().empty());
  Replica third(8, {first.address(), "localhost:" + first.address().substr(10)});
  EXPECT_TRUE(Soon([&] { return third.heard() == Heard{{7, 1}}; }));
}

// Whoever has seen another one's number tells it as its own, says that the other's address is its own, too, and
// is the first that is heard.
TEST(Peers, ATakenNumberSilencesNobody) {
  Replica honest(1, {});
  std::atomic<bool> told{false};
  RawTcpServer thief([&](RawConnection& c) {
    MessageWriter writer(1);
    writer.Introduce(std::vector<std::string>{honest.address(), "127.0.0.1:1"});
    writer.Add("p", "e", fleet::OpenLoad{1000, 0});
    c.ReadRequest();
    bool listens = c.Send(Head());
    while (listens) {
      listens = c.Send(Chunk(writer.Take()));
      told = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  });
  const std::string taken = "127.0.0.1:" + std::to_string(thief.port());
  Replica victim(2, {taken});
  ASSERT_TRUE(Soon([&] { return victim.heard() == Heard{{1, 1000}}; }));
  // The same when both are new to it, whoever answers first.
  Replica other(3, {taken, honest.address()});
  honest.requests = 4;
  EXPECT_TRUE(Soon([&] { return other.heard() == Heard{{1, 1004}}; })) << other.heard()[1];
  honest.requests = 7;
  EXPECT_TRUE(Soon([&] { return other.heard() == Heard{{1, 1007}}; })) << other.heard()[1];
  EXPECT_EQ(other.Page().find("reason=\"known-already\""), std::string::npos) << other.Page();
  EXPECT_NE(other.Page().find("fairway_peers{state=\"heard\"} 2"), std::string::npos) << other.Page();
}

TEST(Peers, WhoTellsManySmallMessagesIsLeft) {
  MessageWriter writer(66);
  std::string many;
  for (int i = 0; i < 5000; ++i) many += writer.Take();
  RawTcpServer hostile([&](RawConnection& c) {
    c.ReadRequest();
    c.Send(Head() + Chunk(many));
    c.WaitForEnd();
  });
  Replica victim(2, {"127.0.0.1:" + std::to_string(hostile.port())});
  EXPECT_TRUE(Soon([&] {
    return victim.Page().find("fairway_peer_streams_ended_total{reason=\"too-much\"}") != std::string::npos;
  }));
}

// What an address holds of the port leaves the rest to others.
TEST(Peers, OneAddressHasItsShareOfListeners) {
  Replica first(1, {});
  std::vector<std::unique_ptr<Replica>> many;
  for (uint64_t i = 0; i < kMostOfHost + 4; ++i)
    many.push_back(std::make_unique<Replica>(10 + i, std::vector<std::string>{first.address()}));
  const std::string all = "fairway_peers{state=\"hearing\"} " + std::to_string(kMostOfHost);
  EXPECT_TRUE(Soon([&] { return first.Page().find(all + "\n") != std::string::npos; })) << first.Page();
  for (int i = 0; i < 20; ++i) {
    const std::string page = first.Page();
    const size_t at = page.find("state=\"hearing\"} ");
    EXPECT_LE(std::stoi(page.substr(at + 17)), static_cast<int>(kMostOfHost));
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

TEST(Peers, ANewcomerTakesOneSnapshotOver) {
  Replica first(1, {});
  Replica second(2, {first.address()});
  second.wants = true;
  EXPECT_TRUE(Soon([&] { return second.taken().size() == 3; }));
  EXPECT_EQ(second.taken(), (std::vector<std::string>{"e2", "e1", "e0"}));
  EXPECT_TRUE(Soon([&] {
    return second.Page().find("{direction=\"fetched\",result=\"complete\"} 1") != std::string::npos;
  }));
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  EXPECT_EQ(second.taken().size(), 3u) << "and no other";
}

TEST(Peers, ASnapshotEndsAtItsBytes) {
  Replica first(1, {}, {.snapshot_bytes = 100});
  first.parts = 1'000'000;
  Replica second(2, {first.address()});
  second.wants = true;
  EXPECT_TRUE(Soon([&] { return second.Page().find("result=\"complete\"} 1") != std::string::npos; }));
  EXPECT_LT(second.taken().size(), 10u);
}

// Whoever answers at a peer's address: the others are heard as before, and nothing of him stays.
TEST(Peers, HostileOnesHurtNobody) {
  MessageWriter writer(66);
  writer.Add("p", "e", fleet::OpenLoad{9, 9});
  const std::string good = writer.Take();
  const std::vector<std::pair<const char*, RawTcpServer::Script>> attacks = {
      {"closed", [](RawConnection& c) { c.ReadRequest(); }},
      {"another-version",
       [](RawConnection& c) {
         c.ReadRequest();
         c.Send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
         c.WaitForEnd();
       }},
      {"another-version",
       [](RawConnection& c) {
         c.ReadRequest();
         c.Send(Head("text/html"));
         c.WaitForEnd();
       }},
      {"malformed",
       [&](RawConnection& c) {
         c.ReadRequest();
         c.Send(Head() + Chunk(std::string(100, '\xff')));
         c.WaitForEnd();
       }},
      // Good, then silent; good, then torn; good, then another number.
      {"closed",
       [&](RawConnection& c) {
         c.ReadRequest();
         c.Send(Head() + Chunk(good));
         c.WaitForEnd();
       }},
      {"closed",
       [&](RawConnection& c) {
         c.ReadRequest();
         c.Send(Head() + Chunk(good.substr(0, good.size() - 3)));
       }},
      {"malformed",
       [&](RawConnection& c) {
         c.ReadRequest();
         MessageWriter other(67);
         c.Send(Head() + Chunk(good) + Chunk(other.Take()));
         c.WaitForEnd();
       }},
      // More than anybody needs.
      {"too-much",
       [&](RawConnection& c) {
         c.ReadRequest();
         c.Send(Head());
         MessageWriter much(66);
         for (int i = 0; i < 2000; ++i) much.Add("p", std::to_string(i), fleet::OpenLoad{1, 1});
         const std::string piece = Chunk(much.Take());
         while (c.Send(piece)) {
         }
       }},
      // A message that would be too long.
      {"malformed",
       [&](RawConnection& c) {
         c.ReadRequest();
         c.Send(Head() + Chunk(std::string("\xff\xff\xff\x7f", 4)));
         c.WaitForEnd();
       }},
  };
  for (const auto& [reason, script] : attacks) {
    RawTcpServer hostile(script);
    Replica honest(1, {});
    Replica victim(2, {honest.address(), "127.0.0.1:" + std::to_string(hostile.port())},
                   {.bytes_a_second = 1 << 20});
    EXPECT_TRUE(Soon([&] {
      return victim.Page().find("fairway_peer_streams_ended_total{reason=\"" + std::string(reason) + "\"}") !=
             std::string::npos;
    })) << reason;
    EXPECT_TRUE(Soon([&] { return victim.heard() == Heard{{1, 1}}; })) << reason;
    honest.requests = 4;
    EXPECT_TRUE(Soon([&] { return victim.heard()[1] == 4; })) << reason;
  }
}

TEST(Peers, ATornOrMalformedSnapshotIsTriedElsewhereAndThenLeft) {
  MessageWriter writer(66);
  const std::string hello = writer.Take();
  std::atomic<int> asked{0};
  RawTcpServer hostile([&](RawConnection& c) {
    c.ReadRequest();
    char size[16];
    std::snprintf(size, sizeof size, "%zx\r\n", hello.size());
    const std::string piece = size + hello + "\r\n";
    if (c.request().find("/snapshot") == std::string::npos) {
      bool listens = c.Send(Head() + piece);
      while (listens) {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        listens = c.Send(piece);
      }
      return;
    }
    if (++asked % 2 == 0) return;  // torn
    c.Send(Head() + "4\r\nabcd\r\n");
    c.WaitForEnd();
  });
  Replica victim(2, {"127.0.0.1:" + std::to_string(hostile.port())});
  victim.wants = true;
  EXPECT_TRUE(Soon([&] { return asked == Peers::kSnapshotTries; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  EXPECT_EQ(asked, Peers::kSnapshotTries);
  EXPECT_TRUE(victim.taken().empty());
  EXPECT_NE(victim.Page().find("result=\"torn\"} 1"), std::string::npos) << victim.Page();
}

TEST(Peers, APortThatIsTakenIsHadOnceItIsFree) {
  Replica first(1, {});
  auto taken = std::make_unique<RawTcpServer>([](RawConnection& c) { c.WaitForEnd(); });
  const uint16_t port = taken->port();
  Replica second(2, {first.address()}, {.host = "127.0.0.1", .keeps_trying = true}, port);
  EXPECT_TRUE(Soon([&] { return second.heard() == Heard{{1, 1}}; })) << "it asks all the same";
  taken.reset();
  Replica third(3, {"127.0.0.1:" + std::to_string(port)});
  EXPECT_TRUE(Soon([&] { return third.heard() == Heard{{2, 1}}; }));
}

TEST(Peers, FlagsThatMakeNoSenseAreAnError) {
  base::SystemClock clock;
  net::LoopThread thread("peers");
  const auto error = [&](Options options) {
    std::promise<std::string> said;
    base::Registry registry;
    options.replica = 1;
    if (options.host == "::") options.host = "127.0.0.1";
    options.port = 0;
    thread.loop().Post([&] {
      auto started = Peers::Start(options, {}, thread.loop(), clock, {}, registry);
      said.set_value(started ? "" : started.error().message);
    });
    return said.get_future().get();
  };
  EXPECT_NE(error({.peers = {"host:port"}}).find("host:port"), std::string::npos);
  EXPECT_NE(error({.peers = {"a"}}).find("--peers"), std::string::npos) << "a port of 0";
  EXPECT_NE(error({.peers = {"nosuch:99999"}}).find("--peers: "), std::string::npos);
  EXPECT_EQ(error({.ca_file = "/nowhere/ca.pem"}).find("--peer-ca-file: cannot read /nowhere/ca.pem"), 0u);
  EXPECT_EQ(error({.cert_path = "/nowhere"}).find("--cert-path: cannot read /nowhere/tls.crt"), 0u);
  EXPECT_EQ(error({.cert_path = "/nowhere", .names = {.cert_path = "filter_config:3: peers.certDir"}})
                .find("filter_config:3: peers.certDir: cannot read /nowhere/tls.crt"),
            0u);
  // Nobody can listen there.
  EXPECT_EQ(error({.host = "192.0.2.1"}).find("--peer-port: cannot listen on 192.0.2.1:0"), 0u);
}

}  // namespace
}  // namespace fairway::sources::peers
