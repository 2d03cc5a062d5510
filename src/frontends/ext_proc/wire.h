// Envoy's external processing messages, read and written on the wire without generated classes.
//
// Field numbers: proto/ext_proc.proto. Reading makes views into the message; writing goes from the end to the
// front, so that each length is known when its turn comes, and a body can follow by reference instead of
// being copied in. (Why by hand: docs/benchmarks.md; protobuf is the oracle in wire_test.cc.)
//
// Differences from protobuf's parser, on bytes that no serialiser writes: a message field that occurs twice
// is replaced, not merged; strings are not checked for UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "net/wire.h"

namespace fairway::ext_proc {

using net::WireReader;
using net::WireWriter;

// ---- What Envoy sends.

enum class BodyMode {
  kNone = 0,
  kStreamed = 1,
  kBuffered = 2,
  kBufferedPartial = 3,
  kFullDuplexStreamed = 4
};

struct ProtocolConfig {
  BodyMode request_body = BodyMode::kNone;
  BodyMode response_body = BodyMode::kNone;
  bool send_body_without_waiting = false;
};

enum class MessageKind {
  kNone = 0,  // no field of the oneof, or one we do not know
  kRequestHeaders = 2,
  kResponseHeaders = 3,
  kRequestBody = 4,
  kResponseBody = 5,
  kRequestTrailers = 6,
  kResponseTrailers = 7,
};

// A ProcessingRequest. Views into the message.
struct RequestMessage {
  MessageKind kind = MessageKind::kNone;
  std::string_view headers;  // a HeaderMap, for headers and trailers: see ForEachHeader
  std::string_view body;
  bool end_of_stream = false;
  std::string_view metadata;  // a Metadata: see FindMetadata
  bool observability_mode = false;
  std::optional<ProtocolConfig> protocol_config;
};

// False: malformed.
bool ParseRequest(std::string_view bytes, RequestMessage& message);

// The start of a long message that is nothing but a request body as Envoy writes it (field 4 first, in it
// field 1 first): how its bytes divide. `first` is what came of the message, `length` its whole length.
struct BodyMessageHead {
  std::string_view body;  // the bytes of the body that are in `first`, its last ones
  size_t body_left = 0;   // bytes of the body still to come
  size_t tail = 0;        // bytes after the body
  size_t inner_tail =
      0;  // of these, the ones that belong to the HttpBody (the rest are fields of the ProcessingRequest)
};
std::optional<BodyMessageHead> ParseBodyHead(std::string_view first, size_t length);
// The bytes after the body of such a message. `message.body` is left empty. False: malformed.
bool ParseBodyTail(std::string_view tail, size_t inner_tail, RequestMessage& message);

// Calls visit(name, value) for each header: `raw_value` when it is not empty, else `value`. False: malformed.
template <typename Visit>
bool ForEachHeader(std::string_view header_map, Visit&& visit) {
  WireReader map(header_map);
  while (map.Next()) {
    if (map.field() != 1 || !map.is_bytes()) continue;
    WireReader header(map.bytes());
    std::string_view name;
    std::string_view value;
    std::string_view raw;
    while (header.Next()) {
      if (!header.is_bytes()) continue;
      if (header.field() == 1) name = header.bytes();
      if (header.field() == 2) value = header.bytes();
      if (header.field() == 3) raw = header.bytes();
    }
    if (!header.ok()) return false;
    visit(name, raw.empty() ? value : raw);
  }
  return map.ok();
}

// A google.protobuf.Value.
struct ValueView {
  enum class Kind { kNull, kNumber, kString, kBool, kStruct, kList };
  Kind kind = Kind::kNull;
  double number = 0;
  bool boolean = false;
  std::string_view bytes;  // the string, or the Struct or ListValue as a message
};
bool ParseValue(std::string_view value, ValueView& out);

// metadata.filter_metadata[name] as the bytes of a Struct. Nothing: absent or malformed.
std::optional<std::string_view> FindMetadata(std::string_view metadata, std::string_view name);
// Field `name` of a Struct.
std::optional<ValueView> FindField(std::string_view fields, std::string_view name);

// Calls visit(ValueView) for each value of a ListValue. False: malformed.
template <typename Visit>
bool ForEachValue(std::string_view list, Visit&& visit) {
  WireReader values(list);
  while (values.Next()) {
    if (values.field() != 1 || !values.is_bytes()) continue;
    ValueView value;
    if (!ParseValue(values.bytes(), value)) return false;
    visit(value);
  }
  return values.ok();
}

// ---- What we answer. Each function leaves one whole message with its gRPC header in `writer`.

struct SetHeader {
  std::string_view name;
  std::string_view value;  // sent as raw_value, overwriting
};

// dynamic_metadata {"envoy.lb": {"x-gateway-destination-endpoint": destinations, "...-scores": {address:
// score}}}
struct LbMetadata {
  std::string_view destinations;
  std::span<const std::pair<std::string, float>> scores;  // empty: not sent
};

enum class ReplyKind {
  kRequestHeaders = 1,
  kResponseHeaders = 2,
  kRequestBody = 3,
  kResponseBody = 4,
  kRequestTrailers = 5,
  kResponseTrailers = 6,
};

struct Reply {
  enum class Body { kUnchanged, kReplace, kClear, kStreamed };
  ReplyKind kind = ReplyKind::kRequestHeaders;
  std::span<const SetHeader> set_headers;
  std::span<const std::string_view> remove_headers;
  bool clear_route_cache = false;
  Body body = Body::kUnchanged;
  size_t body_size = 0;        // kReplace, kStreamed: that many bytes must follow what is written
  bool end_of_stream = false;  // kStreamed
  const LbMetadata* metadata = nullptr;
};
void WriteReply(WireWriter& writer, const Reply& reply);

// An answer to the client instead of a model server's.
struct ImmediateReply {
  int status = 500;
  std::span<const SetHeader> headers;
  std::string_view body;
  std::string_view details;  // shown as Envoy's response code details; no spaces
  int grpc_status = 0;       // for a gRPC client, which Envoy then answers as one; 0: none
};
void WriteImmediate(WireWriter& writer, const ImmediateReply& reply);

}  // namespace fairway::ext_proc
