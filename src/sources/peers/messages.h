// The messages of proto/peers.proto on the wire, and how they lie in a stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fleet/cell.h"
#include "net/wire.h"

namespace fairway::sources::peers {

// Of addresses that lead to one replica.
inline constexpr size_t kMostAddresses = 64;
// A longer one is a fault of who sent it.
inline constexpr size_t kMostMessage = 1 << 20;

struct Learned {
  double ms_per_token = 0;  // 0: not known
  uint64_t reported_blocks = 0;
  uint64_t blocks = 0;
  // (hash, how many before it in this list the block before it stands; 0: it was the first)
  std::vector<std::pair<uint64_t, uint32_t>> held;
};

struct EndpointNews {
  std::string_view pool;
  std::string_view address;
  std::optional<fleet::OpenLoad> load;
  std::vector<std::vector<uint64_t>> placed;
  std::optional<Learned> learned;
};

struct Message {
  uint64_t replica = 0;
  std::vector<EndpointNews> endpoints;  // views into what was read
  bool last = false;
  std::vector<std::string_view> addresses;  // that lead to who tells, as it says
};

// Nothing: malformed. Memory is a few times that of `bytes`, whatever they are.
std::optional<Message> ReadMessage(std::string_view bytes);

// Puts messages together, each not larger than it must be, as a stream of them.
class MessageWriter {
 public:
  explicit MessageWriter(uint64_t replica) : replica_(replica) {}
  // `placed`: chains of hashes, each behind its length.
  void Add(std::string_view pool, std::string_view address, const std::optional<fleet::OpenLoad>& load,
           std::span<const uint64_t> placed = {}, const Learned* learned = nullptr);
  // In the message that comes next.
  void Introduce(std::span<const std::string> addresses);
  // Nothing was added since Take.
  bool empty() const { return writer_.Mark() == 0 && stream_.empty(); }
  // All that was added, with the lengths before the messages; at least one message, if with nothing in it.
  std::string Take(bool last = false);

 private:
  void Close(bool last);

  const uint64_t replica_;
  net::WireWriter writer_;
  std::string stream_;
};

// Cuts a stream into messages.
class MessageCutter {
 public:
  // Hands on what is whole. False: one is too long, or `take` said so.
  bool Feed(std::string_view bytes, const std::function<bool(std::string_view)>& take);
  // The stream may end here.
  bool at_boundary() const { return held_.empty(); }

 private:
  std::string held_;  // less than a message
};

}  // namespace fairway::sources::peers
