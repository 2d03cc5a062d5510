// gRPC's own layer above HTTP/2: message framing and the text of its headers. No I/O.
// https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "net/grpc_server.h"

namespace fairway::net {

// Cuts one call's bytes into messages. Owned by its connection's loop.
class GrpcMessageReader {
 public:
  enum class Outcome {
    kOk,
    kCompressed,  // a compressed message, though no encoding was agreed on
    kTooLarge,    // longer than `max_message`, told by its first five bytes
    kBadSplit,    // the service's OnHead set sizes that do not add up
  };

  // `max_split`: of messages that the call takes in pieces, if that is more.
  explicit GrpcMessageReader(size_t max_message, size_t max_split = 0)
      : max_message_(max_message), max_split_(max_split > max_message ? max_split : max_message) {}

  // Hands what is in `bytes` to the call, until `stopped` becomes true. After any outcome but kOk, Feed must
  // not be called again. Exceptions of the call pass through; the same holds then.
  Outcome Feed(std::string_view bytes, GrpcCall& call, const bool& stopped);

  // Handed to the call so far, whole or to the last piece.
  size_t messages() const { return messages_; }
  // Bytes held back for a message that is not whole yet.
  size_t buffered() const { return pending_.size(); }
  // True when the stream may end here.
  bool at_boundary() const { return pending_.empty() && body_left_ == 0 && tail_left_ == 0; }
  // A message is being taken in pieces.
  bool splitting() const { return body_left_ > 0 || tail_left_ > 0; }
  // Frees what is held.
  void Drop();

 private:
  std::string_view TakeSplit(std::string_view bytes, GrpcCall& call);
  Outcome TakeFirst(std::string_view& bytes, GrpcCall& call);
  Outcome Gather(std::string_view& bytes, GrpcCall& call);
  Outcome Check(std::string_view header) const;
  bool Offer(std::string_view first, size_t length, GrpcCall& call, Outcome& outcome);

  size_t max_message_;
  size_t max_split_;
  size_t messages_ = 0;
  std::string pending_;   // the unfinished message with its 5 bytes, or the tail of a split one
  bool offered_ = false;  // the service did not want the pending message in pieces
  size_t body_left_ = 0;  // of a split message: bytes for OnPart ...
  size_t tail_left_ = 0;  // ... and for OnTail
};

// "1H", "20S", "300m": https://grpc.github.io timeout syntax. Negative when it is none; at most about 100
// days, so that adding it to now cannot overflow.
base::Nanos ParseGrpcTimeout(std::string_view text);

// application/grpc, also with +proto or ;parameters, but not application/grpc-web.
bool IsGrpcContentType(std::string_view value);

// For grpc-message: all but printable ASCII, and '%', as %XX. Cut at 1 KiB.
std::string PercentEncode(std::string_view text);

}  // namespace fairway::net
