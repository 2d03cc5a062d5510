#include "prefix/block_keys.h"

#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace fairway::prefix {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "keys are made of numbers as they lie in memory");

uint64_t Xxh64(std::string_view text) { return XXH64(text.data(), text.size(), 0); }

uint64_t Xxh64Block(uint64_t parent, std::span<const uint32_t> tokens,
                    std::span<const std::string_view> extras) {
  XXH64_state_t state;
  XXH64_reset(&state, 0);
  XXH64_update(&state, &parent, sizeof parent);
  XXH64_update(&state, tokens.data(), tokens.size_bytes());
  for (const std::string_view extra : extras) {
    const uint64_t size = extra.size();
    XXH64_update(&state, &size, sizeof size);
    XXH64_update(&state, extra.data(), extra.size());
  }
  return XXH64_digest(&state);
}

// FNV-1a of what CBOR (RFC 8949, shortest forms) makes of the values, without its bytes lying anywhere.
class FnvCbor {
 public:
  static uint64_t Of(std::string_view bytes) {
    FnvCbor hash;
    hash.Add(bytes);
    return hash.hash_;
  }
  uint64_t hash() const { return hash_; }

  void Number(uint64_t number) { Head(0, number); }
  void Text(std::string_view text) {
    Head(3, text.size());
    Add(text);
  }
  void Array(uint64_t items) { Head(4, items); }
  void Map(uint64_t pairs) { Head(5, pairs); }
  void Null() { Add(0xf6); }

 private:
  void Add(uint8_t byte) { hash_ = (hash_ ^ byte) * 0x100000001b3; }
  void Add(std::string_view bytes) {
    for (const char byte : bytes) Add(static_cast<uint8_t>(byte));
  }
  void Head(uint8_t major, uint64_t number) {
    const auto type = static_cast<uint8_t>(major << 5);
    if (number < 24) return Add(static_cast<uint8_t>(type | number));
    const unsigned power = number < 0x100 ? 0 : number < 0x10000 ? 1 : number < 0x100000000 ? 2 : 3;
    Add(static_cast<uint8_t>(type | (24 + power)));
    for (unsigned shift = 8U << power; shift != 0;) {
      shift -= 8;
      Add(static_cast<uint8_t>(number >> shift));
    }
  }
  uint64_t hash_ = 0xcbf29ce484222325;
};

uint64_t FnvBlock(uint64_t parent, std::span<const uint32_t> tokens,
                  std::span<const std::string_view> extras) {
  FnvCbor hash;
  hash.Array(3);
  hash.Number(parent);
  hash.Array(tokens.size());
  for (const uint32_t token : tokens) hash.Number(token);
  if (extras.empty()) {
    hash.Null();
  } else {
    hash.Array(extras.size());
  }
  for (const std::string_view extra : extras) {
    hash.Map(1);
    hash.Text("Hash");
    hash.Text(extra);
  }
  return hash.hash();
}

}  // namespace

BlockKeys::BlockKeys(Algorithm algorithm, std::string_view seed, uint32_t block_tokens)
    : algorithm_(algorithm),
      block_tokens_(block_tokens),
      seed_(algorithm == Algorithm::kXxh64 ? Xxh64(seed) : FnvCbor::Of(seed)) {}

uint64_t BlockKeys::Root(std::string_view model) const {
  if (algorithm_ == Algorithm::kXxh64) return Xxh64Block(seed_, {}, {&model, 1});
  FnvCbor hash;
  hash.Array(3);
  hash.Number(seed_);
  hash.Null();
  hash.Text(model);
  return hash.hash();
}

uint64_t BlockKeys::Next(uint64_t parent, std::span<const uint32_t> tokens,
                         std::span<const std::string_view> extras) const {
  return algorithm_ == Algorithm::kXxh64 ? Xxh64Block(parent, tokens, extras)
                                         : FnvBlock(parent, tokens, extras);
}

void AppendKeys(const BlockKeys& keys, uint64_t root, std::span<const uint32_t> tokens,
                std::span<const MediaTokens> media, std::string_view salt, std::vector<uint64_t>& to) {
  const size_t block = keys.block_tokens();
  std::vector<std::string_view> extras;
  for (size_t begin = 0; begin + block <= tokens.size(); begin += block) {
    extras.clear();
    while (!media.empty() && media.front().end <= begin) media = media.subspan(1);
    for (const MediaTokens& one : media) {
      if (one.begin >= begin + block) break;
      if (one.end > begin) extras.push_back(one.hash);
    }
    if (begin == 0 && !salt.empty()) extras.push_back(salt);
    root = keys.Next(root, tokens.subspan(begin, block), extras);
    to.push_back(root);
  }
}

}  // namespace fairway::prefix
