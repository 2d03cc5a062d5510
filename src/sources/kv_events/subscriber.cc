#include "sources/kv_events/subscriber.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/strings.h"
#include "net/address.h"
#include "sources/kv_events/big_endian.h"

namespace fairway::sources::kv_events {
namespace {

// Engines take minutes to start, and are looked at from the moment that their Pod is ready.
constexpr base::Nanos kPatience = 10 * base::kSecond;
// After so many requests there should have been an event: each full block of a prompt makes one.
constexpr uint64_t kRequests = 16;
// A message that cannot be read may be chance.
constexpr uint64_t kMessages = 4;
// The capacity is told when it changed by more than a sixteenth.
constexpr uint64_t kWorthTelling = 16;

std::optional<uint64_t> SequenceNumber(std::string_view bytes) {
  if (bytes.size() != 8) return std::nullopt;
  return ReadBigEndian(bytes);
}

// So many numbers in a row that are behind are no copies.
constexpr uint64_t kBehind = 16;
constexpr uint64_t kEndOfReplay = ~uint64_t{0};

}  // namespace

std::string_view NameOf(Standing standing) {
  switch (standing) {
    case Standing::kWaiting:
      return "waiting";
    case Standing::kFollowed:
      return "followed";
    case Standing::kUnreachable:
      return "unreachable";
    case Standing::kSilent:
      return "silent";
    case Standing::kOtherTopic:
      return "other_topic";
    case Standing::kUnreadable:
      return "unreadable";
    case Standing::kUnmatched:
      break;
  }
  return "unmatched";
}

Meters::Meters(base::Registry& registry)
    : Meters(registry,
             registry.AddCounter({.name = "fairway_kv_events_total",
                                  .help = "KV events of engines by what became of them.",
                                  .labels = {"outcome"}}),
             registry.AddCounter({.name = "fairway_kv_events_stream_total",
                                  .help = "What happened to the streams of KV events: messages of other "
                                          "topics and unreadable ones, gaps that stayed, replays that were "
                                          "asked for, engines that started anew; of engines that dial: "
                                          "messages of unknown Pods and of connections that were superseded, "
                                          "and connections that were refused.",
                                  .labels = {"what"}})) {}

Meters::Meters(base::Registry& registry, base::CounterFamily& events, base::CounterFamily& streams)
    : received(registry
                   .AddCounter({.name = "kv_cache_events_messages_received_total",
                                .help = "Messages of KV events that engines sent."})
                   .With({})),
      reconnections(registry
                        .AddCounter({.name = "kv_cache_events_subscriber_reconnections_total",
                                     .help = "Connections for KV events that were made again."})
                        .With({})),
      errors(registry
                 .AddCounter({.name = "kv_cache_events_zmq_errors_total",
                              .help = "Connections for KV events that could not be had, or ended."})
                 .With({})),
      waiting(registry
                  .AddGauge({.name = "kv_cache_events_pool_queue_depth",
                             .help = "Messages of KV events that wait until what was missed is replayed."})
                  .With({})),
      taken(events.With({"taken"})),
      unknown(events.With({"unknown"})),
      malformed(events.With({"malformed"})),
      other_topic(streams.With({"other_topic"})),
      unreadable(streams.With({"unreadable"})),
      gaps(streams.With({"gap"})),
      replays(streams.With({"replay"})),
      restarts(streams.With({"restart"})),
      unknown_pod(streams.With({"unknown_pod"})),
      superseded(streams.With({"superseded"})),
      refused(streams.With({"refused"})) {}

Subscriber::Subscriber(net::Loop& loop, SubscriberOptions options, const base::Clock& clock,
                       const base::Log& log, Meters& meters, Changes changes)
    : loop_(loop),
      options_(std::move(options)),
      clock_(clock),
      log_(log),
      meters_(meters),
      changes_(std::move(changes)),
      retry_(loop),
      replay_idle_(loop),
      replay_total_(loop),
      retry_after_(options_.retry_first),
      since_(clock.Now()) {
  if (options_.dials) Dial();
}

Subscriber::~Subscriber() { meters_.waiting.Add(-static_cast<double>(waiting_.size())); }

// All topics: what the filter leaves out is seen, and can be told of.
void Subscriber::Dial() {
  socket_ = std::make_unique<ZmtpSocket>(
      loop_,
      ZmtpSocketOptions{
          .host = options_.host, .port = options_.port, .type = "SUB", .first = ZmtpSubscribe("")},
      ZmtpSocket::Handlers{
          .opened = [this] { Opened(); },
          .message = [this](const ZmtpMessage& message) { Receive(message); },
          .ended = [this](ZmtpSocket::End end, const std::string& reason) { Ended(end, reason); }});
}

void Subscriber::Opened() {
  retry_after_ = options_.retry_first;
  was_dialled_ = true;
  Connected();
}

void Subscriber::Connected() {
  if (was_connected_) {
    meters_.reconnections.Add();
    ++seen_.reconnections;
  }
  reconnected_ = was_connected_;
  connected_ = was_connected_ = true;
  since_ = clock_.Now();
  requests_then_.reset();
  if (replay_ == nullptr && MayReplay()) Replay();
}

void Subscriber::Ended(ZmtpSocket::End end, const std::string& reason) {
  // That nobody listens where an engine may dial is no error.
  if (connected_ || options_.central_port == 0) meters_.errors.Add();
  if (connected_) since_ = clock_.Now();
  connected_ = false;
  failure_ = reason;
  // Its process is gone, and its cache with it.
  if (end == ZmtpSocket::End::kRefused && accepted_ && was_dialled_) {
    EndReplay(false);
    StartAnew();
  }
  retry_.After(retry_after_, [this] { Dial(); });
  retry_after_ = std::min(retry_after_ * 2, options_.retry_most);
}

void Subscriber::Feed(uint64_t connection, bool own, const ZmtpMessage& message) {
  if (connection != feeding_) {
    const bool older = own == feeds_own_ ? connection < feeding_ : feeds_own_;
    if (feeding_ != 0 && older) {
      meters_.superseded.Add();
      return;
    }
    // Its engine has come: it need not be asked.
    socket_.reset();
    retry_.Cancel();
    feeding_ = connection;
    feeds_own_ = own;
    Connected();
  }
  Receive(message);
}

void Subscriber::FeedEnded(uint64_t connection) {
  if (feeding_ != connection || connection == 0) return;
  meters_.errors.Add();
  feeding_ = 0;
  feeds_own_ = false;
  connected_ = false;
  since_ = clock_.Now();
  failure_ = "it closed the connection that it had dialled";
  retry_after_ = options_.retry_first;
  if (options_.dials) retry_.After(retry_after_, [this] { Dial(); });
}

// topic, number, batch.
void Subscriber::Receive(const ZmtpMessage& message) {
  meters_.received.Add();
  const std::string_view topic = message.parts[0];
  const auto number =
      message.count == 3 ? SequenceNumber(message.parts[1]) : std::optional<uint64_t>(std::nullopt);
  if (!number || *number == kEndOfReplay) {
    meters_.unreadable.Add();
    ++unreadable_;
    ++seen_.unreadable;
    return;
  }
  if (!topic.empty() && !topic.starts_with(options_.topic)) {
    meters_.other_topic.Add();
    ++strange_;
    ++seen_.other_topic;
    strange_topic_ = topic.substr(0, 128);
    return;
  }
  Take(*number, message.parts[2]);
}

void Subscriber::Take(uint64_t number, std::string_view payload) {
  if (replay_ != nullptr) return Wait(number, payload);
  if (number < next_) {
    // It was here; unless they go on from there, as after a number that was garbage.
    behind_ = number == last_behind_ + 1 ? behind_ + 1 : 0;
    last_behind_ = number;
    if (!reconnected_ && behind_ < kBehind) return;
    StartAnew();
  }
  if (number > next_ && MayReplay()) {
    Replay();
    return Wait(number, payload);
  }
  Accept(number, payload);
}

// REQUIRES: number >= next_
void Subscriber::Accept(uint64_t number, std::string_view payload) {
  if (number > next_) {
    if (accepted_) {
      meters_.gaps.Add();
      ++seen_.gaps;
    }
    held_.Lose();
  }
  reconnected_ = false;
  accepted_ = true;
  behind_ = 0;
  next_ = number + 1;
  seen_.number = number;
  seen_.at = clock_.Now();
  const BatchOutcome outcome = ReadBatch(payload, *this);
  meters_.taken.Add(outcome.events);
  meters_.unknown.Add(outcome.unknown);
  meters_.malformed.Add(outcome.malformed);
  seen_.unknown += outcome.unknown;
  seen_.malformed += outcome.malformed;
  if (!outcome.readable) {
    meters_.unreadable.Add();
    ++seen_.unreadable;
  }
  if (outcome.events > 0) {
    ++understood_;
  } else if (!outcome.readable || outcome.unknown + outcome.malformed > 0) {
    ++unreadable_;
  }
  // What it had can no longer be known.
  if (!outcome.readable || outcome.malformed > 0) held_.Lose();
  TellCapacity();
  TellKnown();
}

void Subscriber::On(const KvEvent& event) {
  if (changes_.stopping && changes_.stopping()) return;
  See(event);
  const bool counts = held_.Apply(event);
  if (event.kind == KvEvent::Kind::kCleared) {
    changes_.emptied();
  } else if (counts && changes_.event) {
    changes_.event(event);
  }
}

void Subscriber::See(const KvEvent& event) {
  if (event.kind == KvEvent::Kind::kCleared) {
    ++seen_.cleared;
    seen_.tiers.clear();
    return;
  }
  const bool stored = event.kind == KvEvent::Kind::kStored;
  ++(stored ? seen_.stored : seen_.removed);
  if (stored) seen_.block_size = event.block_size;
  const std::string name = event.medium.empty() ? "gpu" : base::ToLower(event.medium.substr(0, 32));
  auto tier = std::find_if(seen_.tiers.begin(), seen_.tiers.end(),
                           [&name](const auto& known) { return known.name == name; });
  if (tier == seen_.tiers.end()) {
    if (seen_.tiers.size() < Seen::kMostTiers) seen_.tiers.push_back({.name = name});
    tier = seen_.tiers.end() - 1;
  }
  (stored ? tier->stored : tier->removed) += event.blocks;
}

void Subscriber::TellKnown() {
  if (!changes_.knows || told_known_ == held_.known()) return;
  told_known_ = held_.known();
  changes_.knows(held_.known());
}

void Subscriber::TellCapacity() {
  const auto capacity = held_.capacity();
  if (!capacity) return;
  const uint64_t difference =
      *capacity > told_capacity_ ? *capacity - told_capacity_ : told_capacity_ - *capacity;
  if (difference <= told_capacity_ / kWorthTelling) return;
  told_capacity_ = *capacity;
  changes_.capacity(*capacity);
}

void Subscriber::TellAgain() {
  told_capacity_ = 0;
  TellCapacity();
  told_known_.reset();
  if (accepted_) TellKnown();
}

void Subscriber::StartAnew() {
  meters_.restarts.Add();
  ++seen_.restarts;
  seen_.tiers.clear();
  held_ = HeldBlocks();
  next_ = 0;
  accepted_ = false;
  told_capacity_ = 0;
  told_known_.reset();
  changes_.emptied();
}

bool Subscriber::MayReplay() const { return options_.replay_port != 0 && clock_.Now() >= no_replay_before_; }

void Subscriber::Replay() {
  meters_.replays.Add();
  ++seen_.replays;
  replay_ = std::make_unique<ZmtpSocket>(
      loop_,
      ZmtpSocketOptions{.host = options_.host,
                        .port = options_.replay_port,
                        .type = "DEALER",
                        .first = ZmtpFrames({"", ToBigEndian(next_)})},
      ZmtpSocket::Handlers{.opened = [] {},
                           .message = [this](const ZmtpMessage& message) { ReceiveReplayed(message); },
                           .ended =
                               [this](ZmtpSocket::End, const std::string&) {
                                 meters_.errors.Add();
                                 EndReplay(false);
                               }});
  replay_idle_.After(options_.replay_idle, [this] { EndReplay(false); });
  replay_total_.After(options_.replay_total, [this] { EndReplay(false); });
}

// "", number, batch; TensorRT-LLM has the topic before the number.
void Subscriber::ReceiveReplayed(const ZmtpMessage& message) {
  const auto number =
      message.count >= 3 ? SequenceNumber(message.parts[message.count - 2]) : std::optional<uint64_t>();
  if (!number || *number == kEndOfReplay) return EndReplay(number.has_value());
  replay_idle_.After(options_.replay_idle, [this] { EndReplay(false); });
  if (*number >= next_) Accept(*number, message.parts[message.count - 1]);
}

void Subscriber::EndReplay(bool complete) {
  if (replay_ == nullptr) return;
  if (!complete) ++seen_.replays_given_up;
  replay_.reset();
  replay_idle_.Cancel();
  replay_total_.Cancel();
  std::deque<Waiting> waited;
  waited.swap(waiting_);
  waiting_bytes_ = 0;
  meters_.waiting.Add(-static_cast<double>(waited.size()));
  // It did not bring what is missing, and would not if it were asked again at once.
  if (!complete || (!waited.empty() && waited.front().number > next_))
    no_replay_before_ = clock_.Now() + options_.replay_pause;
  for (const Waiting& batch : waited) {
    if (batch.number >= next_ || reconnected_) Take(batch.number, batch.payload);
  }
}

void Subscriber::Wait(uint64_t number, std::string_view payload) {
  if (waiting_.size() < options_.waiting_batches &&
      waiting_bytes_ + payload.size() <= options_.waiting_bytes) {
    waiting_.push_back({number, std::string(payload)});
    waiting_bytes_ += payload.size();
    meters_.waiting.Add(1);
    return;
  }
  EndReplay(false);
  Take(number, payload);
}

void Subscriber::Judge(uint64_t requests) {
  const base::Nanos for_long = clock_.Now() - since_;
  const bool central = options_.central_port != 0;
  if (!connected_ && (!central || !central_failure_.empty())) {
    const std::string& failure = central ? central_failure_ : failure_;
    if (for_long >= kPatience && !failure.empty()) Say(Standing::kUnreachable, failure);
    return;
  }
  // Of who may dial nothing is seen before its first message.
  if (!requests_then_) requests_then_ = requests;
  if (!connected_ && understood_ > 0) {
    if (for_long >= kPatience) Say(Standing::kUnreachable, failure_);
    return;
  }
  if (understood_ > 0) {
    const std::string why = changes_.why_unmatched ? changes_.why_unmatched() : std::string();
    return Say(why.empty() ? Standing::kFollowed : Standing::kUnmatched, why);
  }
  if (strange_ > 0)
    return Say(Standing::kOtherTopic,
               "their topic is " + strange_topic_ + ", and topicFilter is " + options_.topic);
  if (unreadable_ >= kMessages)
    return Say(Standing::kUnreadable, "it publishes something else at this port, or in a newer format");
  if (for_long >= kPatience && requests >= *requests_then_ + kRequests)
    return Say(
        Standing::kSilent,
        (connected_ ? std::string() : DialledNobody()) +
            "it publishes no KV events (vLLM: --kv-events-config with enable_kv_cache_events), has its "
            "prefix cache off, or got only prompts shorter than a block");
  Say(Standing::kWaiting, "");
}

// Before the other reasons.
std::string Subscriber::DialledNobody() const {
  const std::string ours = net::FormatHostPort(options_.central_host, options_.central_port);
  return "no message with its topic (kv@" + net::FormatHostPort(options_.host, options_.endpoint_port) +
         "@MODEL) came to " + ours +
         (options_.dials ? ", and at its port " + std::to_string(options_.port) + ": " + failure_ : "") +
         "; or ";
}

void Subscriber::Say(Standing standing, const std::string& why) {
  reason_ = why;
  if (std::exchange(standing_, standing) == standing) return;
  const std::string place =
      options_.dials ? net::FormatHostPort(options_.host, options_.port)
                     : net::FormatHostPort(options_.host, options_.endpoint_port) + ", which dials";
  if (standing == Standing::kFollowed) {
    log_.Info("KV events are followed", {{"publisher", place}});
  } else if (standing == Standing::kUnreachable) {
    log_.Warn("KV events: no connection; trying on", {{"publisher", place}, {"error", why}});
  } else if (standing == Standing::kSilent) {
    log_.Warn("KV events: requests went there, and no event came", {{"publisher", place}, {"reason", why}});
  } else if (standing != Standing::kWaiting) {
    log_.Warn("KV events arrive, and nothing matches", {{"publisher", place}, {"reason", why}});
  }
}

}  // namespace fairway::sources::kv_events
