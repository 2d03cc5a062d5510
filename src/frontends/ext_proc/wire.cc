#include "frontends/ext_proc/wire.h"

#include <algorithm>
#include <bit>

namespace fairway::ext_proc {

namespace {

constexpr uint32_t kOverwriteIfExistsOrAdd = 2;
constexpr std::string_view kLbNamespace = "envoy.lb";
constexpr std::string_view kDestination = "x-gateway-destination-endpoint";
constexpr std::string_view kScores = "x-gateway-destination-endpoint-scores";

bool ParseHeaders(std::string_view bytes, uint32_t end_field, RequestMessage& message) {
  WireReader r(bytes);
  while (r.Next()) {
    if (r.field() == 1 && r.is_bytes()) message.headers = r.bytes();
    if (r.field() == end_field && r.is_varint()) message.end_of_stream = r.number() != 0;
  }
  return r.ok();
}

bool ParseBody(std::string_view bytes, RequestMessage& message) {
  WireReader r(bytes);
  while (r.Next()) {
    if (r.field() == 1 && r.is_bytes()) message.body = r.bytes();
    if (r.field() == 2 && r.is_varint()) message.end_of_stream = r.number() != 0;
  }
  return r.ok();
}

// An unknown mode (one that came after this was written) is as if nothing had been said of it.
bool ParseProtocolConfig(std::string_view bytes, std::optional<ProtocolConfig>& config) {
  ProtocolConfig parsed;
  bool known = true;
  const auto mode = [&known](uint64_t number) {
    if (number <= 4) return static_cast<BodyMode>(number);
    known = false;
    return BodyMode::kNone;
  };
  WireReader r(bytes);
  while (r.Next()) {
    if (!r.is_varint()) continue;
    if (r.field() == 1) parsed.request_body = mode(r.number());
    if (r.field() == 2) parsed.response_body = mode(r.number());
    if (r.field() == 3) parsed.send_body_without_waiting = r.number() != 0;
  }
  if (known) config = parsed;
  return r.ok();
}

// The value of a map entry {key = 1, value = 2} when its key is `name`. False: malformed.
bool ReadEntry(std::string_view entry, std::string_view name, std::optional<std::string_view>& value) {
  WireReader r(entry);
  std::string_view key;
  std::string_view content;
  while (r.Next()) {
    if (r.field() == 1 && r.is_bytes()) key = r.bytes();
    if (r.field() == 2 && r.is_bytes()) content = r.bytes();
  }
  if (r.ok() && key == name) value = content;
  return r.ok();
}

// In a map<string, Message> at field 1; the last entry of a key counts.
std::optional<std::string_view> FindInMap(std::string_view message, std::string_view name) {
  std::optional<std::string_view> value;
  WireReader r(message);
  while (r.Next()) {
    if (r.field() == 1 && r.is_bytes() && !ReadEntry(r.bytes(), name, value)) return std::nullopt;
  }
  if (!r.ok()) return std::nullopt;
  return value;
}

void WriteSetHeaders(WireWriter& w, std::span<const SetHeader> headers) {
  for (size_t i = headers.size(); i-- > 0;) {
    const size_t option = w.Mark();
    w.Number(3, kOverwriteIfExistsOrAdd);
    const size_t header = w.Mark();
    w.Bytes(3, headers[i].value);
    w.Bytes(1, headers[i].name);
    w.EndMessage(1, header);
    w.EndMessage(1, option);
  }
}

void WriteMetadata(WireWriter& w, const LbMetadata& metadata) {
  const size_t dynamic_metadata = w.Mark();
  const size_t entry = w.Mark();
  const size_t value = w.Mark();
  const size_t fields = w.Mark();
  if (!metadata.scores.empty()) {
    const size_t scores_entry = w.Mark();
    const size_t scores_value = w.Mark();
    const size_t scores = w.Mark();
    for (size_t i = metadata.scores.size(); i-- > 0;) {
      const size_t score_entry = w.Mark();
      w.Double(2, metadata.scores[i].second);
      w.EndMessage(2, score_entry);
      w.Bytes(1, metadata.scores[i].first);
      w.EndMessage(1, score_entry);
    }
    w.EndMessage(5, scores);  // Value.struct_value
    w.EndMessage(2, scores_value);
    w.Bytes(1, kScores);
    w.EndMessage(1, scores_entry);
  }
  const size_t destination = w.Mark();
  w.Bytes(3, metadata.destinations);  // Value.string_value
  w.EndMessage(2, destination);
  w.Bytes(1, kDestination);
  w.EndMessage(1, destination);
  w.EndMessage(5, fields);  // Value.struct_value
  w.EndMessage(2, value);
  w.Bytes(1, kLbNamespace);
  w.EndMessage(1, entry);
  w.EndMessage(8, dynamic_metadata);
}

}  // namespace

bool ParseRequest(std::string_view bytes, RequestMessage& message) {
  message = RequestMessage();
  WireReader r(bytes);
  while (r.Next()) {
    if (r.field() == 10 && r.is_varint()) message.observability_mode = r.number() != 0;
    if (!r.is_bytes()) continue;
    const uint32_t field = r.field();
    if (field >= 2 && field <= 7) {
      message.kind = static_cast<MessageKind>(field);
      message.headers = {};
      message.body = {};
      message.end_of_stream = false;
    }
    bool ok = true;
    switch (field) {
      case 2:
      case 3:
        ok = ParseHeaders(r.bytes(), 3, message);
        break;
      case 4:
      case 5:
        ok = ParseBody(r.bytes(), message);
        break;
      case 6:
      case 7:
        ok = ParseHeaders(r.bytes(), 0, message);
        break;
      case 8:
        message.metadata = r.bytes();
        break;
      case 11:
        ok = ParseProtocolConfig(r.bytes(), message.protocol_config);
        break;
      default:
        break;
    }
    if (!ok) return false;
  }
  return r.ok();
}

std::optional<BodyMessageHead> ParseBodyHead(std::string_view first, size_t length) {
  std::string_view rest = first;
  uint64_t outer;
  uint64_t inner;
  if (!rest.starts_with('\x22')) return std::nullopt;  // ProcessingRequest.request_body
  rest.remove_prefix(1);
  if (!WireReader::Varint(rest, outer)) return std::nullopt;
  const size_t outer_at = first.size() - rest.size();
  if (outer > length - std::min(length, outer_at)) return std::nullopt;
  if (!rest.starts_with('\x0a')) return std::nullopt;  // HttpBody.body
  rest.remove_prefix(1);
  if (!WireReader::Varint(rest, inner)) return std::nullopt;
  const size_t body_at = first.size() - rest.size();
  const size_t inner_header = body_at - outer_at;
  if (inner_header > outer || inner > outer - inner_header) return std::nullopt;
  if (inner <= rest.size()) return std::nullopt;  // all of the body is here: nothing is gained
  BodyMessageHead head;
  head.body = rest;
  head.body_left = static_cast<size_t>(inner) - rest.size();
  head.inner_tail = static_cast<size_t>(outer - inner_header - inner);
  head.tail = length - body_at - static_cast<size_t>(inner);
  return head;
}

bool ParseBodyTail(std::string_view tail, size_t inner_tail, RequestMessage& message) {
  if (inner_tail > tail.size()) return false;
  // The fields after the body first: they may not change which message of the oneof it is.
  if (!ParseRequest(tail.substr(inner_tail), message) || message.kind != MessageKind::kNone) return false;
  message.kind = MessageKind::kRequestBody;
  if (!ParseBody(tail.substr(0, inner_tail), message)) return false;
  const bool one_body = message.body.empty();
  message.body = {};
  return one_body;
}

bool ParseValue(std::string_view value, ValueView& out) {
  out = ValueView();
  WireReader r(value);
  while (r.Next()) {
    switch (r.field()) {
      case 1:
        if (r.is_varint()) out.kind = ValueView::Kind::kNull;
        break;
      case 2:
        if (!r.is_fixed64()) break;
        out.kind = ValueView::Kind::kNumber;
        out.number = std::bit_cast<double>(r.number());
        break;
      case 4:
        if (!r.is_varint()) break;
        out.kind = ValueView::Kind::kBool;
        out.boolean = r.number() != 0;
        break;
      case 3:
      case 5:
      case 6:
        if (!r.is_bytes()) break;
        out.kind = r.field() == 3   ? ValueView::Kind::kString
                   : r.field() == 5 ? ValueView::Kind::kStruct
                                    : ValueView::Kind::kList;
        out.bytes = r.bytes();
        break;
      default:
        break;
    }
  }
  return r.ok();
}

std::optional<std::string_view> FindMetadata(std::string_view metadata, std::string_view name) {
  return FindInMap(metadata, name);
}

std::optional<ValueView> FindField(std::string_view fields, std::string_view name) {
  const std::optional<std::string_view> bytes = FindInMap(fields, name);
  ValueView value;
  if (!bytes || !ParseValue(*bytes, value)) return std::nullopt;
  return value;
}

void WriteReply(WireWriter& w, const Reply& reply) {
  w.Clear();
  const auto kind = static_cast<uint32_t>(reply.kind);
  size_t extra = 0;
  if (reply.kind == ReplyKind::kRequestTrailers || reply.kind == ReplyKind::kResponseTrailers) {
    w.EndMessage(kind, w.Mark());
  } else {
    const size_t common = w.Mark();
    switch (reply.body) {
      case Reply::Body::kUnchanged:
        break;
      case Reply::Body::kReplace: {
        extra = reply.body_size;
        const size_t mutation = w.Mark();
        w.EndMessage(1, mutation, extra);
        w.EndMessage(3, mutation, extra);
        break;
      }
      case Reply::Body::kClear: {
        const size_t mutation = w.Mark();
        w.Number(2, 1);
        w.EndMessage(3, mutation);
        break;
      }
      case Reply::Body::kStreamed: {
        extra = reply.body_size;
        const size_t streamed = w.Mark();
        w.EndMessage(1, streamed, extra);
        if (reply.end_of_stream) w.Number(2, 1);
        w.EndMessage(3, streamed, extra);
        w.EndMessage(3, streamed, extra);
        break;
      }
    }
    if (!reply.set_headers.empty() || !reply.remove_headers.empty()) {
      const size_t mutation = w.Mark();
      for (size_t i = reply.remove_headers.size(); i-- > 0;) w.Bytes(2, reply.remove_headers[i]);
      WriteSetHeaders(w, reply.set_headers);
      w.EndMessage(2, mutation);
    }
    if (reply.clear_route_cache) w.Number(5, 1);
    w.EndMessage(1, common, extra);
    w.EndMessage(kind, common, extra);
  }
  if (reply.metadata != nullptr) WriteMetadata(w, *reply.metadata);
  w.GrpcHeader(extra);
}

void WriteImmediate(WireWriter& w, const ImmediateReply& reply) {
  w.Clear();
  const size_t immediate = w.Mark();
  if (!reply.details.empty()) w.Bytes(5, reply.details);
  if (reply.grpc_status != 0) {
    const size_t grpc = w.Mark();
    w.Number(1, static_cast<uint64_t>(reply.grpc_status));
    w.EndMessage(4, grpc);
  }
  if (!reply.body.empty()) w.Bytes(3, reply.body);
  if (!reply.headers.empty()) {
    const size_t mutation = w.Mark();
    WriteSetHeaders(w, reply.headers);
    w.EndMessage(2, mutation);
  }
  const size_t status = w.Mark();
  w.Number(1, static_cast<uint64_t>(reply.status));
  w.EndMessage(1, status);
  w.EndMessage(7, immediate);
  w.GrpcHeader();
}

}  // namespace fairway::ext_proc
