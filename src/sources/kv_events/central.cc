#include "sources/kv_events/central.h"

#include <algorithm>

#include "net/address.h"

namespace fairway::sources::kv_events {
namespace {

// Between the first "@" and the second; a topic without any is one as a whole.
std::string_view IdOf(std::string_view topic) {
  const size_t first = topic.find('@');
  if (first == std::string_view::npos) return topic;
  topic.remove_prefix(first + 1);
  return topic.substr(0, topic.find('@'));
}

std::string PlaceOf(const SubscriberOptions& options) {
  return net::FormatHostPort(options.central_host, options.central_port);
}

}  // namespace

CentralPorts::Gauges::Gauges(base::Registry& registry)
    : listening(registry.AddGauge({.name = "fairway_kv_events_listening",
                                   .help = "1 where engines can dial, 0 while the port cannot be had.",
                                   .labels = {"address"}})),
      connections(registry.AddGauge({.name = "fairway_kv_events_connections",
                                     .help = "Connections that engines dialled, or whoever it was.",
                                     .labels = {"address"}})) {}

CentralPorts::CentralPorts(net::Loop& loop, const base::Clock& clock, const base::Log& log, Meters& meters,
                           Gauges& gauges)
    : loop_(loop), clock_(clock), log_(log), meters_(meters), gauges_(gauges) {}

CentralPorts::~CentralPorts() { Set({}); }

void CentralPorts::Set(const std::vector<Engine>& engines) {
  for (const auto& [place, port] : ports_) {
    port->engines.clear();
    port->by_address.clear();
    port->by_name.clear();
    port->hosts.clear();
  }
  const auto add = [](Port::Index& to, const std::vector<std::string>& texts, Subscriber* engine) {
    for (const std::string& text : texts) {
      auto& of_text = to[text];
      if (of_text.empty() || of_text.back() != engine) of_text.push_back(engine);
    }
  };
  for (const Engine& engine : engines) {
    const SubscriberOptions& options = engine.subscriber->options();
    if (options.central_port == 0) continue;
    auto& port = ports_[PlaceOf(options)];
    if (port == nullptr) port = std::make_unique<Port>();
    port->engines.push_back(engine.subscriber);
    add(port->by_address, engine.addresses, engine.subscriber);
    add(port->by_name, engine.names, engine.subscriber);
    port->hosts.insert(options.host);
  }
  for (auto it = ports_.begin(); it != ports_.end();) {
    Port& port = *it->second;
    if (port.engines.empty()) {
      gauges_.listening.Remove({it->first});
      gauges_.connections.Remove({it->first});
      it = ports_.erase(it);
      continue;
    }
    if (port.listener == nullptr) port.listener = Listen(port, port.engines.front()->options());
    ++it;
  }
  Judge();
}

std::unique_ptr<ZmtpListener> CentralPorts::Listen(Port& port, const SubscriberOptions& options) {
  // Of what descriptors there are, an eighth: the rest is for requests and model servers.
  constexpr size_t kLeast = 16;
  const size_t share = std::max<size_t>(net::DescriptorLimit() / 8, kLeast);
  ZmtpListenerOptions limits{.host = options.central_host, .port = options.central_port};
  limits.most_connections = std::min(limits.most_connections, share);
  limits.most_of_host = std::min(limits.most_of_host, share);
  return std::make_unique<ZmtpListener>(
      loop_, limits, clock_, log_,
      ZmtpListener::Handlers{
          .known = [&port](const std::string& from) { return port.hosts.contains(from); },
          .message = [this, &port](uint64_t connection, const std::string& from,
                                   const ZmtpMessage& message) { Receive(port, connection, from, message); },
          .ended =
              [&port](uint64_t connection) {
                for (Subscriber* engine : port.engines) engine->FeedEnded(connection);
              },
          .refused = [this] { meters_.refused.Add(); }});
}

// One endpoint may be in several pools. Where several are meant, it is the one at the address `from`.
std::span<Subscriber* const> CentralPorts::OneOf(const std::vector<Subscriber*>& meant,
                                                 const std::string& from) {
  const auto are_one = [](std::span<Subscriber* const> engines) {
    return std::all_of(engines.begin(), engines.end(), [&](const Subscriber* engine) {
      return engine->options().host == engines.front()->options().host &&
             engine->options().endpoint_port == engines.front()->options().endpoint_port;
    });
  };
  if (are_one(meant)) return meant;
  at_sender_.clear();
  for (Subscriber* engine : meant)
    if (engine->options().host == from) at_sender_.push_back(engine);
  return are_one(at_sender_) ? std::span<Subscriber* const>(at_sender_) : std::span<Subscriber* const>();
}

std::span<Subscriber* const> CentralPorts::Find(const Port& port, std::string_view topic,
                                                const std::string& from) {
  const std::string_view id = IdOf(topic);
  const auto by_address = port.by_address.find(id.empty() ? std::string_view(from) : id);
  if (by_address != port.by_address.end()) return OneOf(by_address->second, from);
  const auto by_name = port.by_name.find(id);
  return by_name != port.by_name.end() ? OneOf(by_name->second, from) : std::span<Subscriber* const>();
}

void CentralPorts::Receive(Port& port, uint64_t connection, const std::string& from,
                           const ZmtpMessage& message) {
  const std::string_view topic = message.parts[0];
  const auto engines = Find(port, topic, from);
  if (!engines.empty()) {
    for (Subscriber* engine : engines) engine->Feed(connection, engine->options().host == from, message);
    return;
  }
  meters_.received.Add();
  meters_.unknown_pod.Add();
  if (!unknown_.Allow(clock_.Now())) return;
  log_.Warn("KV events of a Pod that is in no pool; its topic must name an endpoint: kv@IP:PORT@MODEL",
            {{"topic", std::string(topic.substr(0, 128))}, {"from", from}});
}

void CentralPorts::Judge() {
  for (const auto& [place, port] : ports_) {
    const ZmtpListener& listener = *port->listener;
    gauges_.listening.With({place}).Set(listener.listening() ? 1 : 0);
    gauges_.connections.With({place}).Set(static_cast<double>(listener.connections()));
    const std::string failure =
        listener.listening() ? std::string() : "cannot listen at " + place + ": " + listener.failure();
    for (Subscriber* engine : port->engines) engine->SetCentralFailure(failure);
  }
}

}  // namespace fairway::sources::kv_events
