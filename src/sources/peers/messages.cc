#include "sources/peers/messages.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace fairway::sources::peers {
namespace {

using net::WireReader;
using net::WireWriter;

constexpr size_t kLength = 4;              // bytes before each message
constexpr size_t kMostEndpoints = 20'000;  // of a message
constexpr size_t kEnough = 256 << 10;      // of a message, before another is begun

uint32_t Bounded(uint64_t number) { return static_cast<uint32_t>(std::min<uint64_t>(number, UINT32_MAX)); }

// False: not whole numbers.
bool ReadHashes(std::string_view bytes, std::vector<uint64_t>& hashes) {
  if (bytes.size() % sizeof(uint64_t) != 0) return false;
  hashes.resize(bytes.size() / sizeof(uint64_t));
  if (!bytes.empty()) std::memcpy(hashes.data(), bytes.data(), bytes.size());
  return true;
}

std::string_view BytesOf(std::span<const uint64_t> hashes) {
  return {reinterpret_cast<const char*>(hashes.data()), hashes.size_bytes()};
}

std::optional<fleet::OpenLoad> ReadLoad(std::string_view bytes) {
  fleet::OpenLoad load;
  WireReader r(bytes);
  while (r.Next()) {
    if (r.field() == 1 && r.is_varint()) load.requests = Bounded(r.number());
    if (r.field() == 2 && r.is_varint()) load.tokens = Bounded(r.number());
  }
  if (!r.ok()) return std::nullopt;
  return load;
}

std::optional<Learned> ReadLearned(std::string_view bytes) {
  Learned learned;
  std::vector<uint64_t> hashes;
  std::string_view behind;
  WireReader r(bytes);
  while (r.Next()) {
    if (r.field() == 1 && r.is_fixed64()) learned.ms_per_token = std::bit_cast<double>(r.number());
    if (r.field() == 2 && r.is_varint()) learned.reported_blocks = r.number();
    if (r.field() == 3 && r.is_varint()) learned.blocks = r.number();
    if (r.field() == 4 && r.is_bytes() && !ReadHashes(r.bytes(), hashes)) return std::nullopt;
    if (r.field() == 5 && r.is_bytes()) behind = r.bytes();
  }
  if (!r.ok()) return std::nullopt;
  learned.held.reserve(hashes.size());
  for (const uint64_t hash : hashes) {
    uint64_t before = 0;
    if (!WireReader::Varint(behind, before)) return std::nullopt;
    learned.held.emplace_back(hash, Bounded(before));
  }
  if (!behind.empty()) return std::nullopt;
  return learned;
}

std::optional<EndpointNews> ReadEndpoint(std::string_view bytes) {
  EndpointNews news;
  WireReader r(bytes);
  while (r.Next()) {
    if (!r.is_bytes()) continue;
    if (r.field() == 1) news.pool = r.bytes();
    if (r.field() == 2) news.address = r.bytes();
    if (r.field() == 3) news.load = ReadLoad(r.bytes());
    if (r.field() == 3 && !news.load) return std::nullopt;
    if (r.field() == 4 && (r.bytes().empty() || !ReadHashes(r.bytes(), news.placed.emplace_back())))
      return std::nullopt;
    if (r.field() == 5) news.learned = ReadLearned(r.bytes());
    if (r.field() == 5 && !news.learned) return std::nullopt;
  }
  if (!r.ok()) return std::nullopt;
  return news;
}

void WriteLearned(WireWriter& w, const Learned& learned) {
  const size_t mark = w.Mark();
  if (!learned.held.empty()) {
    const size_t behind = w.Mark();
    for (size_t i = learned.held.size(); i-- > 0;) w.Varint(learned.held[i].second);
    w.EndMessage(5, behind);
    const size_t hashes = w.Mark();
    for (size_t i = learned.held.size(); i-- > 0;) w.Raw(BytesOf({&learned.held[i].first, 1}));
    w.EndMessage(4, hashes);
  }
  if (learned.blocks != 0) w.Number(3, learned.blocks);
  if (learned.reported_blocks != 0) w.Number(2, learned.reported_blocks);
  if (learned.ms_per_token != 0) w.Double(1, learned.ms_per_token);
  w.EndMessage(5, mark);
}

}  // namespace

std::optional<Message> ReadMessage(std::string_view bytes) {
  Message message;
  WireReader r(bytes);
  while (r.Next()) {
    if (r.field() == 1 && r.is_fixed64()) message.replica = r.number();
    if (r.field() == 3 && r.is_varint()) message.last = r.number() != 0;
    if (r.field() == 4 && r.is_bytes() && message.addresses.size() < kMostAddresses)
      message.addresses.push_back(r.bytes());
    if (r.field() != 2 || !r.is_bytes()) continue;
    auto news = ReadEndpoint(r.bytes());
    if (!news || message.endpoints.size() == kMostEndpoints) return std::nullopt;
    message.endpoints.push_back(*std::move(news));
  }
  if (!r.ok()) return std::nullopt;
  return message;
}

void MessageWriter::Introduce(std::span<const std::string> addresses) {
  for (const std::string& address : addresses) writer_.Bytes(4, address);
}

void MessageWriter::Add(std::string_view pool, std::string_view address,
                        const std::optional<fleet::OpenLoad>& load, std::span<const uint64_t> placed,
                        const Learned* learned) {
  if (writer_.Mark() > kEnough) Close(false);
  const size_t mark = writer_.Mark();
  if (learned != nullptr) WriteLearned(writer_, *learned);
  while (!placed.empty()) {
    const auto length = static_cast<size_t>(placed[0]);
    writer_.Bytes(4, BytesOf(placed.subspan(1, length)));
    placed = placed.subspan(1 + length);
  }
  if (load) {
    const size_t of_load = writer_.Mark();
    if (load->tokens != 0) writer_.Number(2, load->tokens);
    if (load->requests != 0) writer_.Number(1, load->requests);
    writer_.EndMessage(3, of_load);
  }
  writer_.Bytes(2, address);
  writer_.Bytes(1, pool);
  writer_.EndMessage(2, mark);
}

void MessageWriter::Close(bool last) {
  if (last) writer_.Number(3, 1);
  writer_.Fixed64(1, replica_);
  const auto length = static_cast<uint32_t>(writer_.Mark());
  stream_.append(reinterpret_cast<const char*>(&length), kLength);  // little endian, as all we build for
  stream_ += writer_.view();
  writer_.Clear();
}

std::string MessageWriter::Take(bool last) {
  Close(last);
  return std::exchange(stream_, {});
}

bool MessageCutter::Feed(std::string_view bytes, const std::function<bool(std::string_view)>& take) {
  while (!bytes.empty()) {
    // What is held ends where its length or the message does.
    const bool knows = held_.size() >= kLength;
    uint32_t length = 0;
    if (knows) std::memcpy(&length, held_.data(), kLength);
    const size_t wanted = knows ? kLength + length : kLength;
    const size_t more = std::min(bytes.size(), wanted - held_.size());
    held_.append(bytes.substr(0, more));
    bytes.remove_prefix(more);
    if (held_.size() < kLength) return true;
    std::memcpy(&length, held_.data(), kLength);
    if (length > kMostMessage) return false;
    if (held_.size() < kLength + length) continue;
    const bool goes_on = take(std::string_view(held_).substr(kLength));
    held_.clear();
    if (!goes_on) return false;
  }
  return true;
}

}  // namespace fairway::sources::peers
