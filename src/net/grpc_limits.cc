// What a connection and its calls may hold, how long they may wait, and who goes when that is too much.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "net/grpc_connection.h"

namespace fairway::net {
namespace {

// The shared counter is brought up to date at the end of each event, or when it is off by this much.
constexpr size_t kPublishStep = 64 << 10;
// Whoever was asked to let go memory gets so long until its answer, with what it held, has left.
constexpr base::Nanos kRelief = 2 * base::kSecond;
// While a connection stays above its share its calls are not looked at more often, nor so often that it costs
// much: looking at one takes 50 ns.
constexpr base::Nanos kShedPeriod = 10 * base::kMillisecond;
constexpr base::Nanos kShedPeriodOfCall = 10 * base::kMicrosecond;
// Calls that let go, or end, in one turn; calls that are looked at.
constexpr size_t kLetGoPerTurn = 64;
constexpr size_t kExaminedPerTurn = 2048;
// A connection that holds less is not over its share.
constexpr size_t kSmallShare = 256 << 10;

}  // namespace

// ---- Counting.

bool GrpcConnection::Reserve(State& state, size_t bytes) {
  state.reserved += bytes;
  reserved_ += bytes;
  if (!Exhausted()) return true;
  Release(state, bytes);  // the service does not take them now
  ++shared_->stats.refused_messages;
  End(state, GrpcStatus::kResourceExhausted, "the server is out of buffer memory", NGHTTP2_ENHANCE_YOUR_CALM);
  return false;
}

void GrpcConnection::Release(State& state, size_t bytes) {
  bytes = std::min(bytes, state.reserved);
  state.reserved -= bytes;
  reserved_ -= bytes;
}

void GrpcConnection::DropAnswer(State& state) {
  if (state.promised > 0) return;  // the client would miss bytes of a frame; this goes with the stream
  state.answer.Drop();
  CountAnswer(state);
}

void GrpcConnection::CountAnswer(State& state) {
  unsent_ += state.answer.own() - state.unsent;
  state.unsent = state.answer.own();
}

void GrpcConnection::CountInput(State& state) {
  input_ += state.reader.buffered() - state.input;
  state.input = state.reader.buffered();
}

// ---- Shares.

size_t GrpcConnection::Held() const {
  if (closed_) return calls_.size() * kGrpcCallCost;
  return input_ + unsent_ + reserved_ + account_->shared + out_.copied() + header_input_ +
         unread_.capacity() + request_.capacity() + calls_.size() * kGrpcCallCost +
         nghttp2_session_get_outbound_queue_size(session_) * kGrpcFrameCost +
         (tls_ != nullptr ? kGrpcTlsConnectionCost : kGrpcConnectionCost);
}

void GrpcConnection::PublishHeld() {
  const size_t held = Held();
  if (held == published_) return;
  shared_->stats.buffered_bytes.fetch_add(held - published_, std::memory_order_relaxed);  // wraps when less
  published_ = held;
}

// A third of what is free: k connections that all want more than they can have get 1 / (k + 3) of the budget
// each, and 3 / (k + 3) stay free for those that need little (dynamic thresholds, as switches share their
// buffers: Choudhury and Hahne, 1998). `leaving` of what is held now will be free soon.
size_t GrpcConnection::Allowed(size_t leaving) {
  PublishHeld();
  const size_t budget = shared_->options.max_buffered_bytes;
  const size_t all = shared_->stats.buffered_bytes.load(std::memory_order_relaxed);
  return std::max((budget - std::min(budget, all - std::min(all, leaving))) / 3, SmallShare());
}

size_t GrpcConnection::SmallShare() const {
  return std::min(kSmallShare, shared_->options.max_buffered_bytes / 16);
}

bool GrpcConnection::Exhausted() {
  const size_t held = Held();
  const size_t off = held > published_ ? held - published_ : published_ - held;
  if (off > kPublishStep) PublishHeld();
  const size_t all = shared_->stats.buffered_bytes.load(std::memory_order_relaxed) + held - published_;
  const size_t budget = shared_->options.max_buffered_bytes;
  return all > (held > kSmallShare ? budget : budget + budget / 8);
}

// At the end of an event, when no service is on the stack.
void GrpcConnection::ShedIfOver() {
  const bool again = std::exchange(shedding_, false);
  if (lingering_ || !handshaken_ || Held() <= SmallShare()) return;
  const size_t allowed = Allowed(0);
  if (published_ <= allowed) return;
  const base::Nanos period = kShedPeriod + static_cast<base::Nanos>(calls_.size()) * kShedPeriodOfCall;
  if (!again && now_ - shed_at_ < period && published_ - allowed < allowed / 8) return;
  shed_at_ = now_;
  if (!Shed()) Abort("the client makes us hold too much");
}

// The heaviest calls go first, of equal ones the newest, until the connection is well within its share; some
// in each turn, and until then it is not read. False: that cannot be reached.
bool GrpcConnection::Shed() {
  std::vector<std::pair<size_t, State*>> all;
  all.reserve(calls_.size());
  size_t leaving = 0;  // what goes with calls that are on their way out
  for (State* state = calls_.front(); state != nullptr; state = calls_.Next(state)) {
    if (now_ - state->relieved_at < kRelief) {
      leaving += state->weight() + kGrpcCallCost;
    } else {
      all.emplace_back(state->weight(), state);
    }
  }
  const auto lighter = [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first < b.first : a.second->stream < b.second->stream;
  };
  std::make_heap(all.begin(), all.end(), lighter);
  const auto within = [this, &leaving] {
    const size_t allowed = Allowed(leaving);
    return published_ - std::min(published_, leaving) <= allowed - allowed / 8;
  };
  for (size_t done = 0; !all.empty(); ++done) {
    if (within()) return true;
    if (done == kLetGoPerTurn) {
      shedding_ = true;
      return true;
    }
    std::pop_heap(all.begin(), all.end(), lighter);
    State& heaviest = *all.back().second;
    all.pop_back();
    LetGo(heaviest);
    leaving += heaviest.weight() + kGrpcCallCost;
  }
  return within();
}

// Asks a call to hold less, or ends it.
void GrpcConnection::LetGo(State& state) {
  if (state.call->finished_) return CutOff(state);  // it cannot end while the client gives no window
  bool relieved = false;
  if (state.relieved_at == 0) {
    state.relieved_at = now_;
    if (!Guard(&state, [&] { relieved = state.call->OnMemoryShort(); })) return;
  }
  if (relieved) {
    ++shared_->stats.relieved_calls;
    return;
  }
  ++shared_->stats.shed_calls;
  End(state, GrpcStatus::kResourceExhausted, "the server is out of buffer memory", NGHTTP2_ENHANCE_YOUR_CALM);
  state.reader.Drop();
  CountInput(state);
  Release(state, state.reserved);
}

// ---- Time and rates.

// Looks after calls that wait for the client, some in each turn.
void GrpcConnection::Examine(base::Nanos now) {
  const base::Nanos shortest =
      std::min(shared_->options.stall_timeout, shared_->options.first_message_timeout);
  if (examining_ != nullptr || now - examined_at_ < shortest / 8) return;
  examined_at_ = now;
  examining_ = calls_.front();
  ExamineSome(now);
}

void GrpcConnection::ExamineSome(base::Nanos now) {
  size_t ended = 0;
  for (size_t seen = 0; examining_ != nullptr && seen < kExaminedPerTurn && ended < kLetGoPerTurn; ++seen) {
    State& state = *examining_;
    examining_ = calls_.Next(examining_);
    if (!ExamineOne(state, now)) continue;
    ++ended;
    state.reader.Drop();
    CountInput(state);
  }
  if (examining_ != nullptr) ExamineLater();
}

// True: it was ended.
bool GrpcConnection::ExamineOne(State& state, base::Nanos now) {
  const GrpcServerOptions& options = shared_->options;
  if (state.answer.bytes() > 0 || state.call->finished_) {
    if (now - state.moved_at <= options.stall_timeout) return false;
    ++shared_->stats.stalled_calls;
    CutOff(state);
  } else if (!state.heard) {
    if (now - state.opened_at <= options.first_message_timeout) return false;
    ++shared_->stats.silent_calls;
    End(state, GrpcStatus::kDeadlineExceeded, "no message came in time", NGHTTP2_CANCEL);
  } else if (!state.reader.at_boundary()) {
    if (now - state.heard_at <= options.stall_timeout) return false;
    ++shared_->stats.stalled_calls;
    End(state, GrpcStatus::kDeadlineExceeded, "the rest of a message did not come in time", NGHTTP2_CANCEL);
  } else {
    return false;
  }
  return true;
}

// Nothing of it moved for too long. A status cannot follow what was not taken.
void GrpcConnection::CutOff(State& state) {
  if (!state.call->finished_) {
    state.end_due = true;
    due_.push_back(&state);
  }
  state.call->finished_ = true;
  state.relieved_at = state.moved_at = now_;
  StopWaiting(state);
  DropAnswer(state);
  nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, state.stream, NGHTTP2_CANCEL);
}

// Too many calls wait for an answer: the one that was silent for longest is answered now, or goes.
void GrpcConnection::MakeRoom() {
  State* const oldest = waiting_.front();
  const bool heard = oldest->heard;
  LetGo(*oldest);
  if (oldest->waiting) LetGo(*oldest);
  if (!heard) SpendReset();
}

// A client that has many calls begun and resets them makes us work for nothing (CVE-2023-44487), and so does
// one that makes us reset them (CVE-2025-8671).
void GrpcConnection::SpendReset() {
  if (!resets_.Take(now_)) Calm("too many calls that were reset or refused");
}

// The client does too much of something: it is told, and sent away.
void GrpcConnection::Calm(std::string_view reason) {
  if (std::exchange(calmed_, true)) return;
  noticed_ = gone_away_ = true;
  NoteAbort(reason);
  nghttp2_session_terminate_session(session_, NGHTTP2_ENHANCE_YOUR_CALM);
}

}  // namespace fairway::net
