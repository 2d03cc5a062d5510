#include "sources/peers/peers.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <set>
#include <utility>

#include "base/strings.h"
#include "net/address.h"
#include "net/http_server.h"
#include "net/http_stream.h"
#include "net/name_lookup.h"
#include "net/small_file.h"
#include "net/tls_client.h"
#include "net/tls_files.h"

namespace fairway::sources::peers {
namespace {

constexpr char kTold[] = "/fairway.peers.v1/told";
constexpr char kSnapshot[] = "/fairway.peers.v1/snapshot";
constexpr char kContentType[] = "application/x-fairway-peers";
constexpr size_t kMostUnsent = 4 << 20;  // of a peer that does not read: it is cut off
constexpr uint32_t kMostSnapshots = 2;   // served at one time
constexpr base::Nanos kForever = 365 * 86'400 * base::kSecond;

// What pages read on other threads.
struct Counts {
  std::atomic<int64_t> connected{0};
  std::atomic<int64_t> listening{0};
  std::atomic<base::Nanos> heard_at{0};  // the last message of whoever was silent for longest
  std::atomic<uint64_t> received{0};
  std::atomic<uint64_t> sent{0};
};

struct Metrics {
  explicit Metrics(base::Registry& registry, const base::Clock& clock)
      : snapshots(registry.AddCounter({.name = "fairway_peer_snapshots_total",
                                       .help = "Snapshots of what a peer knew, fetched and served.",
                                       .labels = {"direction", "result"}})),
        ended(registry.AddCounter({.name = "fairway_peer_streams_ended_total",
                                   .help = "Ends of what peers told, by reason.",
                                   .labels = {"reason"}})) {
    auto& peers = registry.AddGauge({.name = "fairway_peers",
                                     .help = "Other replicas: heard by this one, and that hear it.",
                                     .labels = {"state"}});
    auto& age = registry.AddGauge(
        {.name = "fairway_peer_message_age_seconds",
         .help = "Since the last message of the connected peer that was silent for longest; 0 without one."});
    auto& bytes = registry.AddCounter(
        {.name = "fairway_peer_bytes_total", .help = "Told by peers, and to them.", .labels = {"direction"}});
    registry.AddCollector([counts = counts, &clock, &heard = peers.With({"heard"}),
                           &hearing = peers.With({"hearing"}), &age = age.With({}),
                           &received = bytes.With({"received"}), &sent = bytes.With({"sent"})] {
      const base::Nanos at = counts->heard_at;
      heard.Set(static_cast<double>(counts->connected));
      hearing.Set(static_cast<double>(counts->listening));
      age.Set(at == 0 ? 0 : base::ToSeconds(std::max<base::Nanos>(clock.Now() - at, 0)));
      received.Add(counts->received - received.value());
      sent.Add(counts->sent - sent.value());
    });
  }
  std::shared_ptr<Counts> counts = std::make_shared<Counts>();
  base::CounterFamily& snapshots;
  base::CounterFamily& ended;
};

// A name or address of Options::peers.
struct Named {
  std::string host;
  uint16_t port = 0;
  std::set<std::string> addresses;  // as of the last answer
  bool failing = false;
  bool asked = false;  // an answer is awaited
};

// One that is asked, by its address.
struct Link {
  std::string address;
  std::string server_name;
  std::string place;             // the address, written as told ones are
  uint64_t replica = 0;          // as it says; 0: it said nothing yet
  uint64_t peer = 0;             // the number that we gave it
  std::vector<std::string> own;  // addresses that lead to it, as it says
  base::Nanos heard_at = 0;
  base::Nanos second = 0;  // when `bytes` and `messages` began to count
  size_t bytes = 0;
  size_t messages = 0;
  bool warned = false;
  MessageCutter cutter;
  std::unique_ptr<net::HttpStream> stream;
  std::unique_ptr<net::Timer> again;
};

// One way of writing it, also of an IPv4 address that a socket of both kinds shows.
std::string HostOf(const net::HostPort& address) {
  std::string host = base::CanonicalAddress(address.host);
  constexpr std::string_view kMapped = "::ffff:";
  if (host.starts_with(kMapped) && host.find('.') != std::string::npos) host.erase(0, kMapped.size());
  return host;
}

// One way of writing what a peer may have written in any. "": it is no address.
std::string Canonical(std::string_view address) {
  const auto parsed = net::ParseHostPort(address);
  return parsed ? net::FormatHostPort(HostOf(*parsed), parsed->port) : std::string();
}

tl::unexpected<base::Error> ErrorOf(const std::string& setting, const base::Error& error) {
  return base::Fail(error.code, setting + ": " + error.message);
}

// Whether both links lead to one replica, by the word of both. Whoever took another's number has that one's word
// against him, which came over a connection to that one's address.
bool AreOne(const Link& a, const Link& b) {
  const auto says = [](const Link& who, const Link& of) {
    return std::find(who.own.begin(), who.own.end(), of.place) != who.own.end();
  };
  return a.replica == b.replica && says(a, b) && says(b, a);
}

// A snapshot on its way there.
struct Serving {
  explicit Serving(uint64_t replica) : writer(replica) {}
  std::shared_ptr<const std::string> place;  // of kMostSnapshots: for whom, one for each address
  std::function<bool(MessageWriter&)> parts;
  MessageWriter writer;
  base::Nanos until = 0;
  size_t left = 0;
  bool done = false;
};

// A snapshot on its way here.
struct Fetching {
  std::string address;
  MessageCutter cutter;
  size_t left = 0;
  bool complete = false;
  const char* wrong = nullptr;
};

}  // namespace

struct Peers::Impl : std::enable_shared_from_this<Impl> {
  Impl(Options o, Content c, net::Loop& l, const base::Clock& k, const base::Log& g, base::Registry& r)
      : options(std::move(o)),
        content(std::move(c)),
        loop(l),
        clock(k),
        log(g),
        metrics(r, k),
        lookup(l),
        look_up(l),
        listen_again(l),
        tick(l),
        second(l),
        writer(options.replica) {}

  base::Result<void> ReadNames() {
    for (const std::string& text : options.peers) {
      auto parsed = ParsePeer(text, options.port);
      if (!parsed) return ErrorOf(options.names.peers, parsed.error());
      Named& named = names.emplace_back();
      named.host = parsed->host;
      named.port = parsed->port;
    }
    return {};
  }

  // Our own certificate is shown by both sides.
  base::Result<void> MakeTls() {
    if (!options.secure) return {};
    const net::TlsOptions tls{.client_ca_file = options.ca_file};
    if (options.cert_path.empty()) {
      auto made = net::SelfSignedTlsServer(tls);
      if (!made) return ErrorOf(options.names.ca_file, made.error());
      server_tls = *made;
    } else {
      const std::string cert = options.cert_path + "/tls.crt", key = options.cert_path + "/tls.key";
      auto loaded = net::TlsFiles::Load(cert, key, tls);
      if (!loaded) {
        // Read together; the error names the file that is wrong.
        const bool is_authority =
            !options.ca_file.empty() && loaded.error().message.find(options.ca_file) != std::string::npos;
        return ErrorOf(is_authority ? options.names.ca_file : options.names.cert_path, loaded.error());
      }
      certificates = std::move(*loaded);
      server_tls = certificates->context();
    }
    if (auto ok = MakeClient(); !ok) return ErrorOf(options.names.cert_path, ok.error());
    return {};
  }
  // As of now: certificates are renewed.
  base::Result<void> MakeClient() {
    net::TlsClientOptions client{.insecure = options.ca_file.empty()};
    const auto read = [](const std::string& path, std::string& to) -> base::Result<void> {
      auto text = net::ReadSmallFile(path);
      if (!text) return tl::make_unexpected(text.error());
      to = *std::move(text);
      return {};
    };
    if (!options.ca_file.empty()) {
      if (auto ok = read(options.ca_file, client.ca_pem); !ok) return ok;
    }
    if (!options.cert_path.empty()) {
      if (auto ok = read(options.cert_path + "/tls.crt", client.cert_pem); !ok) return ok;
      if (auto ok = read(options.cert_path + "/tls.key", client.key_pem); !ok) return ok;
    }
    auto made = net::MakeTlsClient(client);
    if (!made) return tl::make_unexpected(made.error());
    client_tls = *made;
    return {};
  }

  base::Result<void> Start() {
    if (auto ok = ReadNames(); !ok) return ok;
    if (auto ok = MakeTls(); !ok) return ok;
    if (auto ok = Listen(); !ok) {
      if (!options.keeps_trying) return ok;
      log.Warn("peers cannot ask yet, trying again each second", {{"error", ok.error().message}});
      listen_again.Every(options.again, [this] {
        if (Listen()) listen_again.Cancel();
      });
    }
    if (certificates != nullptr) {
      certificates->Follow(loop, log, [this](const net::TlsContext& tls) {
        server_tls = tls;
        if (server != nullptr) server->SetTls(tls);
        if (auto ok = MakeClient(); !ok)
          log.Warn("peers: the new certificate", {{"error", ok.error().message}});
      });
    }
    LookUp();
    look_up.Every(options.look_up, [this] { LookUp(); });
    second.Every(base::kSecond, [this] { FetchSnapshot(); });
    return {};
  }

  base::Result<void> Listen() {
    auto listening = net::HttpServer::Listen(
        {.host = options.host,
         .port = options.port,
         .max_body = 0,
         .max_header = 8 << 10,
         .get_only = true,
         .max_connections = 4 * kMostPeers,
         .max_of_address = kMostOfHost,
         .counts_alone = [this](const std::string& ip) { return hosts.contains(HostOf({ip, 0})); },
         .max_unsent = kMostUnsent,
         .max_held = 16 * kMostUnsent,
         .request_timeout = 5 * base::kSecond,
         .answer_timeout = options.snapshot_time,
         .tls = server_tls},
        loop,
        [this](const net::HttpRequest& request, const std::shared_ptr<net::HttpResponder>& responder) {
          Answer(request, responder);
        },
        log);
    if (!listening) return ErrorOf(options.names.port, listening.error());
    server = std::move(*listening);
    return {};
  }

  // ---- What we tell.

  void Answer(const net::HttpRequest& request, const std::shared_ptr<net::HttpResponder>& responder) {
    if (!MayAsk(request))
      return responder->Send({.status = 403, .content_type = "text/plain", .body = "not one of --peers\n"});
    if (request.path() == kSnapshot) return ServeSnapshot(request, responder);
    if (request.path() != kTold)
      return responder->Send({.status = 404, .content_type = "text/plain", .body = "no such page\n"});
    // Those who listen already are told what is new before the newcomer gets all.
    if (listeners.empty()) content.listened(true);
    Tell(true);
    if (!responder->Start({.content_type = kContentType})) return;
    std::vector<std::string> own = net::OwnAddresses();
    for (std::string& address : own) address = net::FormatHostPort(address, server->port());
    writer.Introduce(own);
    content.all(writer);
    const std::string all = writer.Take();
    metrics.counts->sent += all.size();
    if (!responder->Write(all)) return;
    listeners.push_back(responder);
    if (listeners.size() == 1) tick.Every(options.interval, [this] { Tell(false); });
    metrics.counts->listening = static_cast<int64_t>(listeners.size());
  }

  // Who shows a certificate of our authorities, or comes from where one of our peers is. It may have come since
  // names were looked up: then it is known the next time.
  bool MayAsk(const net::HttpRequest& request) {
    if (!options.ca_file.empty()) return true;
    const auto from = net::ParseHostPort(request.peer_address);
    if (from && hosts.contains(HostOf(*from))) return true;
    if (clock.Now() - looked_up_at >= options.again) LookUp();
    return false;
  }

  // `now`: even where nothing changed.
  void Tell(bool now) {
    content.changes(writer);
    // Silence would count as an end.
    const bool quiet = writer.empty();
    if (quiet && !now && clock.Now() - told_at < options.silence / 4) return;
    const std::string changes = writer.Take();
    told_at = clock.Now();
    std::erase_if(listeners, [&](const auto& listener) { return !listener->Write(changes); });
    metrics.counts->sent += changes.size() * listeners.size();
    metrics.counts->listening = static_cast<int64_t>(listeners.size());
    if (!listeners.empty() || now) return;
    tick.Cancel();
    content.listened(false);
  }

  void ServeSnapshot(const net::HttpRequest& request, const std::shared_ptr<net::HttpResponder>& responder) {
    const auto count = [this](const char* result) { metrics.snapshots.With({"served", result}).Add(); };
    const auto from = net::ParseHostPort(request.peer_address);
    const auto place = std::make_shared<const std::string>(from ? HostOf(*from) : "");
    std::erase_if(serving, [](const auto& other) { return other.expired(); });
    if (serving.size() >= kMostSnapshots ||
        std::any_of(serving.begin(), serving.end(),
                    [&](const auto& other) { return *other.lock() == *place; })) {
      count("busy");
      return responder->Send({.status = 503, .content_type = "text/plain", .body = "busy\n"});
    }
    count("begun");
    // The answer that is under way holds it.
    serving.push_back(place);
    auto state = std::make_shared<Serving>(options.replica);
    state->place = place;
    state->parts = content.snapshot();
    state->until = clock.Now() + options.snapshot_time;
    state->left = options.snapshot_bytes;
    responder->Send({.content_type = kContentType, .next = [this, state]() -> std::string {
                       if (state->done) return "";
                       const bool more = state->parts(state->writer);
                       state->done = !more || clock.Now() > state->until || state->left == 0;
                       std::string part = state->writer.Take(state->done);
                       state->left -= std::min(state->left, part.size());
                       metrics.counts->sent += part.size();
                       if (state->done) metrics.snapshots.With({"served", "sent"}).Add();
                       return part;
                     }});
  }

  // ---- What we are told.

  void LookUp() {
    looked_up_at = clock.Now();
    for (Named& named : names) {
      if (net::IsIpLiteral(named.host)) {
        named.addresses = {net::FormatHostPort(named.host, named.port)};
        continue;
      }
      if (std::exchange(named.asked, true))
        continue;  // a nameserver that is silent is not asked again meanwhile
      lookup.Find(named.host, [weak = weak_from_this(), &named](const net::LookupResult& found) {
        if (const auto self = weak.lock()) self->Resolved(named, found);
      });
    }
    Follow();
  }

  // A name that has no address now keeps those that it had: while a Service has no ready Pod there is none.
  void Resolved(Named& named, const net::LookupResult& found) {
    named.asked = false;
    if (found.addresses.empty()) {
      if (!std::exchange(named.failing, true))
        log.Warn("peers: the name has no address now", {{"name", named.host}, {"error", found.error}});
      return;
    }
    named.failing = false;
    named.addresses.clear();
    for (const std::string& address : found.addresses)
      named.addresses.insert(net::FormatHostPort(address, named.port));
    Follow();
  }

  void Follow() {
    hosts.clear();
    std::map<std::string, std::string> wanted;  // address -> host
    for (const Named& named : names) {
      for (const std::string& address : named.addresses) {
        if (wanted.size() > kMostPeers) break;
        wanted.emplace(address, named.host);
        hosts.insert(HostOf(*net::ParseHostPort(address)));
      }
    }
    for (auto it = links.begin(); it != links.end();) {
      if (wanted.contains(it->first)) {
        ++it;
        continue;
      }
      Lose(*it->second, "left");
      it = links.erase(it);
    }
    for (const auto& [address, host] : wanted) {
      auto& link = links[address];
      if (link != nullptr) continue;
      link = std::make_unique<Link>();
      link->address = address;
      link->server_name = host;
      link->place = Canonical(address);
      link->again = std::make_unique<net::Timer>(loop);
      Ask(*link);
    }
  }

  net::HttpStreamOptions Where(const Link& link) const {
    const auto at = net::ParseHostPort(link.address);
    return {.host = at->host,
            .port = at->port,
            .tls = client_tls,
            .server_name = link.server_name,
            .connect_timeout = 2 * base::kSecond,
            .max_head = 8 << 10};
  }

  void Ask(Link& link) {
    link.cutter = {};
    link.replica = 0;
    link.stream = std::make_unique<net::HttpStream>(loop, Where(link));
    link.stream->Start(
        {.target = kTold,
         .head_timeout = options.silence,
         .idle_timeout = options.silence,
         .total_timeout = kForever},
        {.head =
             [this, &link](const net::HttpStreamHead& head) {
               if (head.status != 200 || head.content_type != kContentType)
                 LoseFor(link, "another-version", 10 * options.again);
             },
         .data =
             [this, &link](std::string_view bytes) {
               metrics.counts->received += bytes.size();
               const char* wrong = "too-much";
               bool good = WithinASecond(link, bytes.size());
               if (good) {
                 wrong = "malformed";
                 good = link.cutter.Feed(
                     bytes, [&](std::string_view message) { return Heard(link, message, wrong); });
               }
               // This replica itself, or one that is heard already: not for long.
               if (!good) LoseFor(link, wrong, 10 * options.again);
             },
         .end = [this, &link](const std::string&) { LoseFor(link, "closed", options.again); }});
  }

  bool WithinASecond(Link& link, size_t bytes) const {
    if (const base::Nanos now = clock.Now(); now - link.second > base::kSecond) {
      link.second = now;
      link.bytes = link.messages = 0;
    }
    return (link.bytes += bytes) <= options.bytes_a_second;
  }

  bool Heard(Link& link, std::string_view bytes, const char*& wrong) {
    if (++link.messages > options.messages_a_second) {
      wrong = "too-much";
      return false;
    }
    const auto message = ReadMessage(bytes);
    if (!message || message->replica == 0 || (link.replica != 0 && link.replica != message->replica))
      return false;
    if (link.replica == 0 && !MayBeHeard(link, *message, wrong)) return false;
    const bool first = std::exchange(link.heard_at, clock.Now()) == 0;
    content.heard(link.peer, *message);
    CountLinks();
    if (first) FetchSnapshot();
    return true;
  }

  // Of a first message. One replica is not heard twice; two that tell one number are, as anybody can tell
  // another's: else who answers first would silence the other one.
  bool MayBeHeard(Link& link, const Message& message, const char*& wrong) {
    if (message.replica == options.replica) {
      wrong = "itself";
      return false;
    }
    link.replica = message.replica;
    link.own.clear();
    for (const std::string_view address : message.addresses) link.own.push_back(Canonical(address));
    for (const auto& [address, other] : links) {
      if (other.get() == &link || other->replica != link.replica) continue;
      if (AreOne(link, *other)) {
        wrong = "known-already";
        link.replica = 0;
        return false;
      }
      if (!std::exchange(link.warned, true))
        log.Warn("two peers tell one number, and not that they are one: each is heard",
                 {{"address", link.address}, {"other", other->address}});
    }
    link.peer = ++peers_heard;
    log.Info("a peer is heard", {{"address", link.address}});
    return true;
  }

  // Its stream may be what calls: it goes, with what it called.
  void LoseFor(Link& link, const char* reason, base::Nanos time) {
    link.again->After(time, [this, &link] { Ask(link); });
    Lose(link, reason);
  }

  void Lose(Link& link, const char* reason) {
    if (link.replica != 0) {
      content.gone(link.peer);
      log.Info("a peer is heard no more", {{"address", link.address}, {"reason", reason}});
    }
    metrics.ended.With({reason}).Add();
    link.replica = 0;
    link.heard_at = 0;
    CountLinks();
    link.stream.reset();
  }

  void CountLinks() {
    int64_t connected = 0;
    base::Nanos oldest = 0;
    for (const auto& [address, link] : links) {
      if (link->replica == 0) continue;
      ++connected;
      oldest = oldest == 0 ? link->heard_at : std::min(oldest, link->heard_at);
    }
    metrics.counts->connected = connected;
    metrics.counts->heard_at = oldest;
  }

  // ---- What a newcomer is told once.

  void FetchSnapshot() {
    if (snapshot != nullptr || snapshot_tries >= kSnapshotTries || !content.wants_snapshot()) return;
    std::vector<Link*> heard;
    for (const auto& [address, link] : links) {
      if (link->replica != 0) heard.push_back(link.get());
    }
    if (heard.empty()) return;
    const Link& from = *heard[static_cast<size_t>(snapshot_tries) % heard.size()];
    ++snapshot_tries;
    auto state = std::make_shared<Fetching>();
    state->address = from.address;
    state->left = options.snapshot_bytes + kMostMessage;
    snapshot = std::make_unique<net::HttpStream>(loop, Where(from));
    snapshot->Start({.target = kSnapshot,
                     .head_timeout = options.silence,
                     .idle_timeout = 2 * options.silence,
                     .total_timeout = options.snapshot_time},
                    {.head =
                         [this, state](const net::HttpStreamHead& head) {
                           if (head.status == 200 && head.content_type == kContentType) return;
                           state->wrong = "refused";
                           EndSnapshot(*state);
                         },
                     .data =
                         [this, state](std::string_view bytes) {
                           metrics.counts->received += bytes.size();
                           const bool fits = bytes.size() <= state->left;
                           state->left -= std::min(state->left, bytes.size());
                           const bool good = fits && state->cutter.Feed(bytes, [&](std::string_view text) {
                             const auto message = ReadMessage(text);
                             if (!message) return false;
                             content.took(*message);
                             state->complete |= message->last;
                             return true;
                           });
                           if (good) return;
                           state->wrong = fits ? "malformed" : "too-large";
                           EndSnapshot(*state);
                         },
                     .end = [this, state](const std::string&) { EndSnapshot(*state); }});
  }

  void EndSnapshot(const Fetching& fetching) {
    const char* result = fetching.wrong != nullptr ? fetching.wrong : fetching.complete ? "complete" : "torn";
    if (fetching.complete) snapshot_tries = kSnapshotTries;
    metrics.snapshots.With({"fetched", result}).Add();
    log.Info("a snapshot of what a peer knows", {{"address", fetching.address}, {"result", result}});
    snapshot.reset();
  }

  const Options options;
  const Content content;
  net::Loop& loop;
  const base::Clock& clock;
  const base::Log log;
  Metrics metrics;
  net::NameLookup lookup;
  net::Timer look_up, listen_again, tick, second;
  MessageWriter writer;
  base::Nanos told_at = 0;
  std::vector<Named> names;  // never changes its size after ReadNames
  base::Nanos looked_up_at = 0;
  std::map<std::string, std::unique_ptr<Link>> links;  // by address
  std::set<std::string> hosts;                         // of them
  uint64_t peers_heard = 0;
  std::vector<std::shared_ptr<net::HttpResponder>> listeners;
  std::vector<std::weak_ptr<const std::string>> serving;  // snapshots, under way to these addresses
  std::unique_ptr<net::HttpStream> snapshot;              // that is being fetched
  int snapshot_tries = 0;
  net::TlsContext client_tls;
  net::TlsContext server_tls;
  std::unique_ptr<net::TlsFiles> certificates;
  std::unique_ptr<net::HttpServer> server;
};

base::Result<net::HostPort> ParsePeer(const std::string& text, uint16_t port) {
  const bool is_url = text.find('/') != std::string::npos;
  if (!is_url && !net::IsIpLiteral(text) && text.find(':') != std::string::npos)
    return net::ParseHostPort(text);
  if (is_url || text.empty() || port == 0)
    return base::Fail(base::ErrorCode::kInvalidArgument,
                      "\"" + text + "\": want HOST or HOST:PORT, without a scheme or a path");
  return net::HostPort{text, port};
}

base::Result<std::unique_ptr<Peers>> Peers::Start(Options options, Content content, net::Loop& loop,
                                                  const base::Clock& clock, const base::Log& log,
                                                  base::Registry& registry) {
  auto impl = std::make_shared<Impl>(std::move(options), std::move(content), loop, clock, log, registry);
  if (auto ok = impl->Start(); !ok) return tl::make_unexpected(ok.error());
  return std::unique_ptr<Peers>(new Peers(std::move(impl)));
}

Peers::~Peers() {
  impl_->listen_again.Cancel();
  impl_->server.reset();
  for (auto& [address, link] : impl_->links) link->stream.reset();
  impl_->snapshot.reset();
  if (!impl_->listeners.empty()) impl_->content.listened(false);
}

uint16_t Peers::port() const { return impl_->server != nullptr ? impl_->server->port() : 0; }

}  // namespace fairway::sources::peers
