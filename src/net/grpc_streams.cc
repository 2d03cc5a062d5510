// The HTTP/2 side of a connection: what nghttp2 tells us, and the calls. The socket side: grpc_connection.cc.
#include <algorithm>
#include <array>
#include <exception>
#include <utility>

#include <boost/asio/post.hpp>

#include "net/grpc_connection.h"

namespace fairway::net {
namespace {

constexpr uint32_t kMaxFrame = 16 << 10;    // what clients may send us; the least HTTP/2 allows, and enough
constexpr size_t kMaxFrameOut = 256 << 10;  // whatever larger frames the client would take
constexpr std::string_view kGrpc = "application/grpc";
// Of a call whose answer is longer than this nothing more is taken than its window lets through, until half
// of it has left.
constexpr size_t kMuchUnsent = 256 << 10;
// What a call, and a DATA frame of ours, pays for of frames that carry nothing: the client's WINDOW_UPDATEs
// and its reset of the call.
constexpr double kIdleFramesPaid = 10;
// Calls of a connection that ended that are told so in one turn.
constexpr size_t kCallsPerTurn = 256;
// Work of a turn (kWorkPerTurn), beyond 1 for each frame.
constexpr size_t kWorkOfCall = 3;
constexpr size_t kWorkOfMessage = 2;
constexpr size_t kBytesOfWork = 1024;

nghttp2_nv Pair(std::string_view name, std::string_view value) {
  const auto bytes = [](std::string_view text) {
    return const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(text.data()));
  };
  return {bytes(name), bytes(value), name.size(), value.size(), NGHTTP2_NV_FLAG_NO_COPY_NAME};
}

std::string_view View(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

struct StatusText {
  explicit StatusText(GrpcStatus status) {
    const int code = static_cast<int>(status);
    if (code >= 10) text[size++] = static_cast<char>('0' + code / 10);
    text[size++] = static_cast<char>('0' + code % 10);
  }
  std::string_view view() const { return {text, size}; }
  char text[2];
  size_t size = 0;
};

// RFC 9113, 8.2.2: what HTTP/1.1 said about a connection has no meaning here.
bool IsConnectionHeader(std::string_view name, std::string_view value) {
  return name == "connection" || name == "keep-alive" || name == "proxy-connection" ||
         name == "transfer-encoding" || name == "upgrade" || (name == "te" && value != "trailers");
}

}  // namespace

// nghttp2's C callbacks. Nothing may be thrown through them.
struct GrpcCallbacks {
  static GrpcConnection& Of(void* user) { return *static_cast<GrpcConnection*>(user); }

  static int BeginFrame(nghttp2_session*, const nghttp2_frame_hd* head, void* user) noexcept {
    return Of(user).OnFrameHead(*head);
  }
  static int BeginHeaders(nghttp2_session*, const nghttp2_frame*, void* user) noexcept {
    GrpcConnection& connection = Of(user);
    connection.request_.Clear();
    connection.in_headers_ = true;
    connection.headers_since_ = connection.now_;
    connection.header_input_ = 0;
    return 0;
  }
  static int Header(nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name, size_t name_size,
                    const uint8_t* value, size_t value_size, uint8_t, void* user) noexcept {
    return Of(user).OnHeader(*frame, View(name, name_size), View(value, value_size));
  }
  static int Frame(nghttp2_session*, const nghttp2_frame* frame, void* user) noexcept {
    Of(user).OnFrame(*frame);
    return 0;
  }
  static int Data(nghttp2_session*, uint8_t, int32_t stream, const uint8_t* data, size_t size,
                  void* user) noexcept {
    Of(user).OnData(stream, View(data, size));
    return 0;
  }
  static int Closed(nghttp2_session*, int32_t stream, uint32_t error, void* user) noexcept {
    Of(user).OnStreamClosed(stream, error);
    return 0;
  }
  static int Sent(nghttp2_session*, const nghttp2_frame* frame, void* user) noexcept {
    Of(user).OnSent(*frame);
    return 0;
  }
  static int SendData(nghttp2_session*, nghttp2_frame*, const uint8_t* header, size_t size,
                      nghttp2_data_source* source, void* user) noexcept {
    return Of(user).SendData(*static_cast<GrpcConnection::State*>(source->ptr), View(header, 9), size);
  }
  static ssize_t Read(nghttp2_session*, int32_t, uint8_t*, size_t size, uint32_t* flags,
                      nghttp2_data_source* source, void* user) noexcept {
    return Of(user).ReadAnswer(*static_cast<GrpcConnection::State*>(source->ptr), size, *flags);
  }
  static ssize_t ReadLength(nghttp2_session*, uint8_t, int32_t, int32_t connection_window,
                            int32_t stream_window, uint32_t max_frame, void*) noexcept {
    const ssize_t window = std::min(connection_window, stream_window);
    return std::min<ssize_t>(window, static_cast<ssize_t>(std::min<size_t>(max_frame, kMaxFrameOut)));
  }
};

GrpcShared::GrpcShared(GrpcServerOptions o, GrpcFactory f, const base::Log& l)
    : options(std::move(o)), factory(std::move(f)), log(l), tls_(options.tls) {
  FAIRWAY_CHECK(nghttp2_session_callbacks_new(&callbacks) == 0 && nghttp2_option_new(&session_options) == 0);
  nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, GrpcCallbacks::BeginFrame);
  nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, GrpcCallbacks::BeginHeaders);
  nghttp2_session_callbacks_set_on_header_callback(callbacks, GrpcCallbacks::Header);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, GrpcCallbacks::Frame);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, GrpcCallbacks::Data);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, GrpcCallbacks::Closed);
  nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, GrpcCallbacks::Sent);
  nghttp2_session_callbacks_set_send_data_callback(callbacks, GrpcCallbacks::SendData);
  nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, GrpcCallbacks::ReadLength);
  nghttp2_option_set_no_closed_streams(session_options, 1);
  // A call whose answer is not taken gets no more window: see OnData.
  nghttp2_option_set_no_auto_window_update(session_options, 1);
  // Envoy ends every ext_proc call with RST_STREAM, which nghttp2 would count as abuse; SpendReset counts
  // instead.
  nghttp2_option_set_stream_reset_rate_limit(session_options, uint64_t{1} << 62, uint64_t{1} << 62);
  // nghttp2's own header checks refuse the '|' in ":authority: outbound|9002||epp.svc", which Istio sends.
  // TakeRequestHeader checks instead.
  nghttp2_option_set_no_http_messaging(session_options, 1);
}

GrpcShared::~GrpcShared() {
  nghttp2_session_callbacks_del(callbacks);
  nghttp2_option_del(session_options);
}

void GrpcConnection::OpenSession() {
  const GrpcServerOptions& options = shared_->options;
  FAIRWAY_CHECK(nghttp2_session_server_new2(&session_, shared_->callbacks, this, shared_->session_options) ==
                0);
  const nghttp2_settings_entry settings[] = {
      {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, options.max_streams},
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, options.stream_window},
      {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, kMaxFrame},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, static_cast<uint32_t>(options.max_header_bytes)},
      {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1},
  };
  nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings, std::size(settings));
  nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, 0,
                                        static_cast<int32_t>(options.connection_window));
}

// ---- Requests

void GrpcConnection::Request::Clear() {
  request.path.clear();
  text.clear();
  headers.clear();
  bytes = 0;
  regular = method = scheme = authority = post = false;
}

std::string_view GrpcConnection::Request::Find(std::string_view name) const {
  for (const Header& header : headers) {
    const std::string_view all(text);
    if (all.substr(header.name, header.value - header.name) == name) {
      return all.substr(header.value, header.end - header.value);
    }
  }
  return {};
}

int GrpcConnection::OnHeader(const nghttp2_frame& frame, std::string_view name, std::string_view value) {
  request_.bytes += name.size() + value.size() + 32;  // as RFC 9113, 6.5.2 counts
  const bool request = frame.headers.cat == NGHTTP2_HCAT_REQUEST;
  if (request_.bytes > shared_->options.max_header_bytes) {
    in_headers_ = false;
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  }
  if (request ? TakeRequestHeader(name, value) : !name.starts_with(':')) return 0;
  in_headers_ = false;
  nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_PROTOCOL_ERROR);
  return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

// RFC 9113, 8.2 and 8.3. False: malformed.
bool GrpcConnection::TakeRequestHeader(std::string_view name, std::string_view value) {
  Request& r = request_;
  if (nghttp2_check_header_value(reinterpret_cast<const uint8_t*>(value.data()), value.size()) == 0)
    return false;
  const auto once = [&r](bool& seen) { return !std::exchange(seen, true) && !r.regular; };
  if (name.starts_with(':')) {
    if (name == ":method") {
      r.post = value == "POST";
      return once(r.method);
    }
    if (name == ":path") {
      if (!r.request.path.empty() || value.empty() || r.regular) return false;
      r.request.path = value;
      return true;
    }
    if (name == ":scheme") return once(r.scheme);
    if (name == ":authority") return once(r.authority);
    return false;
  }
  r.regular = true;
  // Refuses upper case as well.
  if (nghttp2_check_header_name(reinterpret_cast<const uint8_t*>(name.data()), name.size()) == 0)
    return false;
  if (IsConnectionHeader(name, value)) return false;
  const size_t at = r.text.size();
  r.text.append(name).append(value);
  r.headers.push_back({at, at + name.size(), r.text.size()});
  return true;
}

// Frames that change nothing, or make us look through all calls, are rationed.
int GrpcConnection::OnFrameHead(const nghttp2_frame_hd& head) {
  ++work_;
  switch (head.type) {
    case NGHTTP2_CONTINUATION:
      return 0;
    case NGHTTP2_DATA:
      if (head.length > 0 || (head.flags & NGHTTP2_FLAG_END_STREAM) != 0) break;
      [[fallthrough]];
    default:
      if (!idle_frames_.Take(now_)) Calm("too many frames that carry nothing");
      break;
    case NGHTTP2_HEADERS:
      break;
    case NGHTTP2_SETTINGS:
      if ((head.flags & NGHTTP2_FLAG_ACK) == 0 && !settings_.Take(now_)) Calm("too many SETTINGS");
      break;
  }
  in_headers_ = false;
  return 0;
}

void GrpcConnection::OnFrame(const nghttp2_frame& frame) {
  const int32_t stream = frame.hd.stream_id;
  const bool end = (frame.hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
  switch (frame.hd.type) {
    case NGHTTP2_SETTINGS:
      ((frame.hd.flags & NGHTTP2_FLAG_ACK) != 0 ? acknowledged_ : greeted_) = true;
      return;
    case NGHTTP2_HEADERS:
      in_headers_ = false;
      if (frame.headers.cat == NGHTTP2_HCAT_REQUEST) return BeginCall(stream, end);
      if (!end) {  // trailers that end nothing
        nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, stream, NGHTTP2_PROTOCOL_ERROR);
        return;
      }
      break;
    case NGHTTP2_DATA:
      break;
    default:
      return;
  }
  if (!end) return;
  if (State* state = Find(stream)) HalfClose(*state);
}

void GrpcConnection::BeginCall(int32_t stream, bool half_closed) {
  work_ += kWorkOfCall;
  idle_frames_.Give(kIdleFramesPaid);
  if (!request_.method || !request_.scheme || request_.request.path.empty()) {
    nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, stream, NGHTTP2_PROTOCOL_ERROR);
    return;
  }
  if (!request_.post) return RefuseHttp(stream, "405");
  if (!IsGrpcContentType(request_.Find("content-type"))) return RefuseHttp(stream, "415");
  const std::string_view encoding = request_.Find("grpc-encoding");
  if (!encoding.empty() && encoding != "identity") {
    return Refuse(stream, GrpcStatus::kUnimplemented, "compressed messages are not supported");
  }
  base::Nanos timeout = 0;
  const std::string_view timeout_text = request_.Find("grpc-timeout");
  if (!timeout_text.empty()) timeout = ParseGrpcTimeout(timeout_text);
  if (timeout < 0) return Refuse(stream, GrpcStatus::kInvalidArgument, "malformed grpc-timeout");
  ++shared_->stats.calls;
  if (Exhausted()) {
    ++shared_->stats.refused_messages;
    return Refuse(stream, GrpcStatus::kResourceExhausted, "the server is out of buffer memory");
  }
  if (waiting_.size() >= shared_->options.max_unanswered) MakeRoom();

  GrpcRequest& request = request_.request;
  request.metadata = [this](std::string_view name) { return request_.Find(name); };
  request.worker = worker_.number();
  request.port = port_;
  request.loop = &worker_.loop();
  std::unique_ptr<GrpcCall> call;
  if (!Guard(nullptr, [&] { call = shared_->factory(request); })) {
    return Refuse(stream, GrpcStatus::kInternal, "internal error");
  }
  if (call == nullptr) {
    return Refuse(stream, GrpcStatus::kUnimplemented, PercentEncode("unknown method " + request.path));
  }
  auto* state = new State(*this, worker_.loop(), stream, shared_->options);
  state->opened_at = state->heard_at = now_;
  state->call = std::move(call);
  state->call->state_ = state;
  Link(state);
  nghttp2_session_set_stream_user_data(session_, stream, state);
  // Answers have turns, too: else the others' wait until the first that has more is through (RFC 9218, 4.2).
  nghttp2_extpri interleaved = {.urgency = NGHTTP2_EXTPRI_DEFAULT_URGENCY, .inc = 1};
  nghttp2_session_change_extpri_stream_priority(session_, stream, &interleaved, 1);
  if (!timeout_text.empty()) {
    state->deadline = shared_->clock.Now() + std::max<base::Nanos>(timeout, 1);
    worker_.AddDeadline(state->deadline, *this, stream);
  }
  if (half_closed) HalfClose(*state);
}

// The connection's window is given back at once, as others need it; the stream's while its answer is taken.
void GrpcConnection::OnData(int32_t stream, std::string_view bytes) {
  nghttp2_session_consume_connection(session_, bytes.size());
  work_ += bytes.size() / kBytesOfWork;
  State* state = Find(stream);
  if (state != nullptr && state->answer.bytes() > kMuchUnsent) {
    state->withheld += bytes.size();
  } else {
    nghttp2_session_consume_stream(session_, stream, bytes.size());
  }
  if (state == nullptr || state->call->finished_) return;
  NoteHeard(*state, bytes.size());
  const size_t before = state->input;
  const size_t messages_before = state->reader.messages();
  auto outcome = GrpcMessageReader::Outcome::kOk;
  const bool whole =
      Guard(state, [&] { outcome = state->reader.Feed(bytes, *state->call, state->call->finished_); });
  work_ += kWorkOfMessage * (state->reader.messages() - messages_before);
  if (!state->heard && (state->reader.at_boundary() || state->reader.splitting())) {
    state->heard = true;
    ++heard_calls_;
    SetIdle(false);
  }
  CountInput(*state);
  if (whole) JudgeInput(*state, outcome, before);
  if (!state->call->finished_) return;
  state->reader.Drop();  // nobody wants the rest
  CountInput(*state);
}

void GrpcConnection::NoteHeard(State& state, size_t bytes) {
  if (state.waiting) {
    waiting_.Remove(&state);
    waiting_.PushBack(&state);
  }
  state.heard_bytes += bytes;
  if (!state.reader.at_boundary() && state.heard_bytes < kGrpcProgress) return;
  state.heard_at = now_;
  state.heard_bytes = 0;
}

void GrpcConnection::JudgeInput(State& state, GrpcMessageReader::Outcome outcome, size_t input_before) {
  switch (outcome) {
    case GrpcMessageReader::Outcome::kOk:
      if (state.input > input_before && Exhausted()) {
        ++shared_->stats.refused_messages;
        End(state, GrpcStatus::kResourceExhausted, "the server is out of buffer memory",
            NGHTTP2_ENHANCE_YOUR_CALM);
      }
      return;
    case GrpcMessageReader::Outcome::kTooLarge:
      ++shared_->stats.refused_messages;
      return End(state, GrpcStatus::kResourceExhausted,
                 "message larger than " + std::to_string(shared_->options.max_message) + " bytes",
                 NGHTTP2_ENHANCE_YOUR_CALM);
    case GrpcMessageReader::Outcome::kCompressed:
      return End(state, GrpcStatus::kUnimplemented, "compressed message without grpc-encoding",
                 NGHTTP2_INTERNAL_ERROR);
    case GrpcMessageReader::Outcome::kBadSplit:
      shared_->log.Error("a service split a message into pieces that do not add up");
      return End(state, GrpcStatus::kInternal, "internal error", NGHTTP2_INTERNAL_ERROR);
  }
}

void GrpcConnection::HalfClose(State& state) {
  if (state.call->finished_) return;
  if (!state.reader.at_boundary()) {
    return End(state, GrpcStatus::kInternal, "the stream ended within a message", NGHTTP2_INTERNAL_ERROR);
  }
  Guard(&state, [&state] { state.call->OnHalfClose(); });
}

void GrpcConnection::OnStreamClosed(int32_t stream, uint32_t error) {
  State* state = Find(stream);
  if (state == nullptr) {
    if (error != NGHTTP2_NO_ERROR) SpendReset();
    return;
  }
  if (!state->answered()) SpendReset();  // with whatever code
  const bool lost = error != NGHTTP2_NO_ERROR || !state->call->finished_ || state->end_due;
  const std::unique_ptr<State> owner(state);
  Unlink(state);
  Detach(*state);
  if (lost) Cancel(*state);
}

// ---- Answers

// A call that did not begin. Who makes us refuse many makes us work for nothing, too.
void GrpcConnection::Refuse(int32_t stream, GrpcStatus status, std::string_view encoded_message) {
  SpendReset();
  TrailersOnly(stream, status, encoded_message);
}

void GrpcConnection::RefuseHttp(int32_t stream, std::string_view status) {
  SpendReset();
  const nghttp2_nv headers[] = {Pair(":status", status)};
  nghttp2_submit_response(session_, stream, headers, std::size(headers), nullptr);
}

void GrpcConnection::TrailersOnly(int32_t stream, GrpcStatus status, std::string_view encoded_message) {
  const StatusText code(status);
  const nghttp2_nv headers[] = {Pair(":status", "200"), Pair("content-type", kGrpc),
                                Pair("grpc-status", code.view()), Pair("grpc-accept-encoding", "identity"),
                                Pair("grpc-message", encoded_message)};
  nghttp2_submit_response(session_, stream, headers, std::size(headers) - (encoded_message.empty() ? 1 : 0),
                          nullptr);
  Touch();
}

// After something was put into the answer.
void GrpcConnection::Write(State& state) {
  if (state.moved_at == 0) state.moved_at = now_;
  CountAnswer(state);
  if (Exhausted()) {
    ++shared_->stats.refused_messages;
    return End(state, GrpcStatus::kResourceExhausted, "the server is out of buffer memory",
               NGHTTP2_ENHANCE_YOUR_CALM);
  }
  StartAnswer(state);
}

void GrpcConnection::Finish(State& state, GrpcStatus status, std::string_view message) {
  state.call->finished_ = true;
  state.relieved_at = now_;
  if (state.moved_at == 0) state.moved_at = now_;
  StopWaiting(state);
  state.status = status;
  if (!message.empty()) state.message = PercentEncode(message);
  if (state.started) {
    StartAnswer(state);
  } else {
    TrailersOnly(state.stream, status, state.message);
  }
}

void GrpcConnection::StartAnswer(State& state) {
  if (!state.started) {
    state.started = true;
    StopWaiting(state);
    nghttp2_data_provider provider{};
    provider.source.ptr = &state;
    provider.read_callback = GrpcCallbacks::Read;
    const nghttp2_nv headers[] = {Pair(":status", "200"), Pair("content-type", kGrpc)};
    nghttp2_submit_response(session_, state.stream, headers, std::size(headers), &provider);
  } else if (state.deferred) {
    state.deferred = false;
    nghttp2_session_resume_data(session_, state.stream);
  }
  Touch();
}

// The server ends a call on its own account; this may be inside the reader's Feed, so its bytes stay until
// that returns. An answer cut in its middle cannot be followed by a status: the stream is reset.
void GrpcConnection::End(State& state, GrpcStatus status, std::string_view message, uint32_t reset_code) {
  if (state.call->finished_) return;
  state.end_due = true;
  state.end_answered = state.answered();
  due_.push_back(&state);
  if (state.started && state.answer.bytes() > 0) {
    DropAnswer(state);
    state.call->finished_ = true;
    state.relieved_at = state.moved_at = now_;
    nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, state.stream, reset_code);
  } else {
    DropAnswer(state);
    Finish(state, status, message);
  }
  Touch();
}

void GrpcConnection::StopWaiting(State& state) {
  if (std::exchange(state.waiting, false)) waiting_.Remove(&state);
}

ssize_t GrpcConnection::ReadAnswer(State& state, size_t limit, uint32_t& flags) {
  const size_t left = state.answer.bytes();
  const size_t size = std::min(left, limit);
  if (size == 0 && !state.call->finished_) {
    state.deferred = true;
    return NGHTTP2_ERR_DEFERRED;
  }
  if (size > 0) flags |= NGHTTP2_DATA_FLAG_NO_COPY;
  if (size == left && state.call->finished_) {
    flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
    const StatusText code(state.status);
    const nghttp2_nv trailers[] = {Pair("grpc-status", code.view()), Pair("grpc-message", state.message)};
    nghttp2_submit_trailer(session_, state.stream, trailers, state.message.empty() ? 1 : 2);
  }
  return static_cast<ssize_t>(size);
}

int GrpcConnection::SendData(State& state, std::string_view header, size_t size) {
  if (out_.full()) {  // nghttp2 comes back with the same frame
    state.promised = size;
    return NGHTTP2_ERR_WOULDBLOCK;
  }
  state.promised = 0;
  out_.Copy(header);
  state.answer.MoveTo(out_, size);
  CountAnswer(state);
  idle_frames_.Give(kIdleFramesPaid);
  state.moved_bytes += size;
  if (state.answer.bytes() == 0) {
    state.moved_at = state.call->finished_ ? now_ : 0;
    state.moved_bytes = 0;
  } else if (state.moved_bytes >= kGrpcProgress) {
    state.moved_at = now_;
    state.moved_bytes = 0;
  }
  if (state.withheld > 0 && state.answer.bytes() < kMuchUnsent / 2) {
    nghttp2_session_consume_stream(session_, state.stream, std::exchange(state.withheld, 0));
  }
  return 0;
}

// An answer before the client's last message: tell it to stop sending.
void GrpcConnection::OnSent(const nghttp2_frame& frame) {
  if (frame.hd.type != NGHTTP2_HEADERS || (frame.hd.flags & NGHTTP2_FLAG_END_STREAM) == 0) return;
  if (nghttp2_session_get_stream_remote_close(session_, frame.hd.stream_id) != 0) return;
  nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_NO_ERROR);
}

// ---- Calls

GrpcConnection::State* GrpcConnection::Find(int32_t stream) const {
  return lingering_ ? nullptr : static_cast<State*>(nghttp2_session_get_stream_user_data(session_, stream));
}

void GrpcConnection::Link(State* state) {
  calls_.PushBack(state);
  state->waiting = true;
  waiting_.PushBack(state);
  ++shared_->stats.streams;
}

void GrpcConnection::Unlink(State* state) {
  if (examining_ == state) examining_ = calls_.Next(state);
  calls_.Remove(state);
  StopWaiting(*state);
  if (state->heard && --heard_calls_ == 0) SetIdle(true);
  --shared_->stats.streams;
}

// From here on the call's Write and Finish do nothing.
void GrpcConnection::Detach(State& state) {
  state.connection = nullptr;
  state.reader.Drop();
  CountInput(state);
  unsent_ -= std::exchange(state.unsent, 0);
  Release(state, state.reserved);
  if (state.deadline != 0) worker_.RemoveDeadline(state.deadline, *this, state.stream);
  state.deadline = 0;
  if (state.end_due) std::erase(due_, &state);
}

void GrpcConnection::Cancel(State& state) {
  if (std::exchange(state.cancelled, true)) return;
  const bool answered = state.end_due ? state.end_answered : state.answered();
  Guard(nullptr, [&] { state.call->OnCancel(answered); });
}

// Tells the services of the calls that the server ended. Not at once, as that may be inside the service's own
// Write.
void GrpcConnection::RunDueEnds() {
  while (!due_.empty()) {
    State* state = due_.back();
    due_.pop_back();
    Cancel(*state);
  }
}

// None of them is heard of any more. Each is told, some now and the others in later turns.
void GrpcConnection::DropCalls() {
  due_.clear();
  examining_ = nullptr;
  for (State* state = calls_.front(); state != nullptr; state = calls_.Next(state)) Detach(*state);
  DropSome(kCallsPerTurn);
}

void GrpcConnection::DropSome(size_t most) {
  for (; most > 0 && calls_.front() != nullptr; --most) {
    const std::unique_ptr<State> state(calls_.front());
    Unlink(state.get());
    Cancel(*state);
  }
  if (calls_.front() != nullptr) {
    if (std::exchange(dropping_, true)) return;
    return boost::asio::post(descriptor_.get_executor(), [self = shared_from_this()] {
      self->dropping_ = false;
      if (self->calls_.front() == nullptr) return;  // CloseNow came first
      self->DropSome(kCallsPerTurn);
    });
  }
  if (!closed_ || session_ != nullptr) return;
  PublishHeld();
  worker_.Remove(*this);
}

void GrpcConnection::OnException(State* state, const char* what) {
  uint64_t held_back = 0;
  if (shared_->exception_limit.Allow(shared_->clock.Now(), &held_back)) {
    shared_->log.Error("a gRPC service threw an exception",
                       {{"error", what}, {"held_back", std::to_string(held_back)}});
  }
  if (state != nullptr) End(*state, GrpcStatus::kInternal, "internal error", NGHTTP2_INTERNAL_ERROR);
}

}  // namespace fairway::net
