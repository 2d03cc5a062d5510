// The ports that engines dial (the reference's `zmqEndpoint`), and which engine a message is of. Its topic says
// so, `kv@ID@MODEL`: ID is the endpoint's address and port, its name, or its address alone where only one
// endpoint is there. A topic without an ID is that of the address that it comes from. What is an address of one is
// nobody else's name. Where several endpoints are meant (Pods of one name in two namespaces, an IPv6 address with a
// port but without brackets), it is of the one at that address. Messages of others are
// counted, and the log names one a minute.
//
// On the metrics page: fairway_kv_events_listening{address}, fairway_kv_events_connections{address}.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "net/loop.h"
#include "sources/kv_events/subscriber.h"
#include "sources/kv_events/zmtp_listener.h"

namespace fairway::sources::kv_events {

// Owned by its loop's thread.
class CentralPorts {
 public:
  struct Engine {
    // Any of which a topic may have for it.
    std::vector<std::string> addresses, names;
    Subscriber* subscriber = nullptr;
  };
  // The families are registered once for a registry.
  struct Gauges {
    explicit Gauges(base::Registry& registry);
    base::GaugeFamily& listening;
    base::GaugeFamily& connections;
  };

  CentralPorts(net::Loop& loop, const base::Clock& clock, const base::Log& log, Meters& meters,
               Gauges& gauges);
  ~CentralPorts();
  CentralPorts(const CentralPorts&) = delete;
  CentralPorts& operator=(const CentralPorts&) = delete;

  // Those whose options have such a port, and no others. They live until the next call.
  void Set(const std::vector<Engine>& engines);
  // Tells engines whether they can dial, and shows it.
  void Judge();

 private:
  struct Port {
    std::unique_ptr<ZmtpListener> listener;
    std::vector<Subscriber*> engines;
    using Index = std::map<std::string, std::vector<Subscriber*>, std::less<>>;
    Index by_address, by_name;
    std::set<std::string, std::less<>> hosts;
  };
  void Receive(Port& port, uint64_t connection, const std::string& from, const ZmtpMessage& message);
  // Good until the next call of either; empty: nobody, or not clear who.
  std::span<Subscriber* const> Find(const Port& port, std::string_view topic, const std::string& from);
  std::span<Subscriber* const> OneOf(const std::vector<Subscriber*>& meant, const std::string& from);
  std::unique_ptr<ZmtpListener> Listen(Port& port, const SubscriberOptions& options);

  net::Loop& loop_;
  const base::Clock& clock_;
  const base::Log& log_;
  Meters& meters_;
  Gauges& gauges_;
  std::vector<Subscriber*> at_sender_;  // of OneOf
  base::LogLimit unknown_{60 * base::kSecond};
  std::map<std::string, std::unique_ptr<Port>> ports_;  // by "ip:port"
};

}  // namespace fairway::sources::kv_events
