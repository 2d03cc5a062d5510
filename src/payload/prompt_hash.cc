#include "payload/prompt_hash.h"

#include <algorithm>
#include <bit>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fairway::payload {
namespace {

constexpr size_t kBlockBytes = PromptHasher::kBlockBytes;
constexpr size_t kKeptBlocks = 2048;  // 16 KiB stay for the next body

uint64_t Fold(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// A prefix that goes on with a block. A multiplication is all there is to wait for: 1 to 2 ns.
uint64_t Extend(uint64_t prefix, uint64_t block) {
  return Fold(prefix ^ block ^ 0x9e3779b97f4a7c15ULL, 0xd6e8feb86659fd93ULL) + std::rotl(prefix, 23);
}

void HashPortable(const char* blocks, size_t count, uint64_t* out) {
  for (size_t i = 0; i < count; ++i) out[i] = XXH3_64bits(blocks + i * kBlockBytes, kBlockBytes);
}

#if defined(__SSE2__)

// XXH3_64bits for inputs of exactly 256 bytes, which are four stripes and no more, without the library's
// loops: 0.55 of its time. Constants and steps from xxHash 0.8 (XXH3_hashLong_64b); the library is the oracle
// in the test.
constexpr size_t kStripe = 64;
constexpr std::array<size_t, 4> kSecretOf = {0, 8, 16, 121};
constexpr size_t kMergeSecret = 11;
alignas(32) constexpr std::array<uint64_t, 8> kInit = {XXH_PRIME32_3, XXH_PRIME64_1, XXH_PRIME64_2,
                                                       XXH_PRIME64_3, XXH_PRIME64_4, XXH_PRIME32_2,
                                                       XXH_PRIME64_5, XXH_PRIME32_1};

uint64_t Avalanche(uint64_t hash) {
  hash = (hash ^ hash >> 37) * 0x165667919e3779f9ULL;
  return hash ^ hash >> 32;
}

inline uint64_t FoldHalves(__m128i lanes) {
  return Fold(static_cast<uint64_t>(_mm_cvtsi128_si64(lanes)),
              static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_unpackhi_epi64(lanes, lanes))));
}

inline __m128i Load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

void HashSse2(const char* p, size_t count, uint64_t* out) {
  for (size_t i = 0; i < count; ++i, p += kBlockBytes) {
    uint64_t hash = kBlockBytes * XXH_PRIME64_1;
    for (size_t lane = 0; lane < kStripe; lane += 16) {
      __m128i sum = Load128(kInit.data() + lane / 8);
      for (size_t stripe = 0; stripe < 4; ++stripe) {
        const __m128i data = Load128(p + stripe * kStripe + lane);
        const __m128i keyed = _mm_xor_si128(data, Load128(XXH3_kSecret + kSecretOf[stripe] + lane));
        const __m128i product = _mm_mul_epu32(keyed, _mm_srli_epi64(keyed, 32));
        sum = _mm_add_epi64(sum, _mm_add_epi64(product, _mm_shuffle_epi32(data, _MM_SHUFFLE(1, 0, 3, 2))));
      }
      hash += FoldHalves(_mm_xor_si128(sum, Load128(XXH3_kSecret + kMergeSecret + lane)));
    }
    out[i] = Avalanche(hash);
  }
}

#define FAIRWAY_AVX2 __attribute__((target("avx2")))

FAIRWAY_AVX2 inline __m256i Load256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

FAIRWAY_AVX2 void HashAvx2(const char* p, size_t count, uint64_t* out) {
  for (size_t i = 0; i < count; ++i, p += kBlockBytes) {
    __m256i sums[2] = {Load256(kInit.data()), Load256(kInit.data() + 4)};
    for (size_t stripe = 0; stripe < 4; ++stripe) {
      for (size_t half = 0; half < 2; ++half) {
        const __m256i data = Load256(p + stripe * kStripe + half * 32);
        const __m256i keyed = _mm256_xor_si256(data, Load256(XXH3_kSecret + kSecretOf[stripe] + half * 32));
        const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
        const __m256i swapped = _mm256_shuffle_epi32(data, _MM_SHUFFLE(1, 0, 3, 2));
        sums[half] = _mm256_add_epi64(sums[half], _mm256_add_epi64(product, swapped));
      }
    }
    uint64_t hash = kBlockBytes * XXH_PRIME64_1;
    for (size_t half = 0; half < 2; ++half) {
      const __m256i lanes = _mm256_xor_si256(sums[half], Load256(XXH3_kSecret + kMergeSecret + half * 32));
      hash += FoldHalves(_mm256_castsi256_si128(lanes));
      hash += FoldHalves(_mm256_extracti128_si256(lanes, 1));
    }
    out[i] = Avalanche(hash);
  }
}

#undef FAIRWAY_AVX2

#endif

constexpr auto kKernels = std::to_array<BlockKernel>({
    {"portable", HashPortable},
#if defined(__SSE2__)
    {"sse2", HashSse2},
    {"avx2", HashAvx2},
#endif
});

}  // namespace

std::span<const BlockKernel> AllBlockKernels() {
#if defined(__SSE2__)
  return std::span(kKernels).first(__builtin_cpu_supports("avx2") != 0 ? 3 : 2);
#else
  return kKernels;
#endif
}

uint64_t PrefixRoot(std::string_view model, std::string_view salt) {
  return Extend(XXH3_64bits(model.data(), model.size()), XXH3_64bits(salt.data(), salt.size()));
}

PromptHasher::PromptHasher() : kernel_(AllBlockKernels().back().hash) {}

void PromptHasher::Reset() {
  if (hashes_.capacity() > kKeptBlocks) std::vector<uint64_t>().swap(hashes_);
  if (prompts_.capacity() > kKeptBlocks) std::vector<PromptEnd>().swap(prompts_);
  hashes_.clear();
  prompts_.clear();
  parts_ = {};
  KeepTokens(tokens_ != nullptr);
  in_part_ = one_ = spoiled_ = false;
  bytes_ = 0;
  rest_size_ = 0;
}

void PromptHasher::BeginPart(Part part) {
  spoiled_ = spoiled_ || in_part_ || parts_[part].seen;
  part_ = part;
  in_part_ = true;
  const auto begin = static_cast<uint32_t>(hashes_.size());
  parts_[part] = {begin, begin, true, false};
}

void PromptHasher::EndPart() {
  if (!in_part_) return;
  EndOne();
  if (part_ == kMain) {
    EndPrompt();
  } else {
    Close();
  }
  parts_[part_].end = static_cast<uint32_t>(hashes_.size());
  in_part_ = false;
}

void PromptHasher::Finish(bool cut) {
  if (!in_part_) return;
  if (cut) {
    one_ = false;
    rest_size_ = 0;
    parts_[part_].cut = true;
  }
  EndPart();
}

// Many prompts that are shorter than a block are no more than the blocks that they have.
void PromptHasher::EndPrompt() {
  if (tokens_ != nullptr && tokens_->tokens.size() != (tokens_->ends.empty() ? 0 : tokens_->ends.back()))
    tokens_->ends.push_back(static_cast<uint32_t>(tokens_->tokens.size()));
  const bool partial = Close();
  const auto end = static_cast<uint32_t>(hashes_.size());
  const uint32_t begin = prompts_.empty() ? parts_[kMain].begin : prompts_.back().end;
  if (end != begin) prompts_.push_back({end, partial});
}

void PromptHasher::BeginOne() {
  if (one_) return;
  Close();
  one_ = true;
  one_hash_ = 0;
}

void PromptHasher::EndOne() {
  if (!one_) return;
  Close();
  one_ = false;
  Push(one_hash_);
}

// Ends the block that is not full; whether there was one.
bool PromptHasher::Close() {
  if (rest_size_ == 0) return false;
  const uint64_t hash = XXH3_64bits(rest_.data(), rest_size_);
  rest_size_ = 0;
  if (one_) {
    one_hash_ = Extend(one_hash_, hash);
    return false;
  }
  const size_t before = hashes_.size();
  Push(hash);
  return hashes_.size() != before;
}

void PromptHasher::Push(uint64_t hash) {
  if (hashes_.size() < kMaxBlocks) {
    hashes_.push_back(hash);
  } else {
    parts_[part_].cut = true;
  }
}

void PromptHasher::Take(const char* blocks, size_t count) {
  if (one_) {
    for (; count != 0; --count, blocks += kBlockBytes) {
      uint64_t hash = 0;
      kernel_(blocks, 1, &hash);
      one_hash_ = Extend(one_hash_, hash);
    }
    return;
  }
  const size_t before = hashes_.size();
  const size_t taken = std::min(count, kMaxBlocks - before);
  parts_[part_].cut = parts_[part_].cut || taken != count;
  if (taken == 0) return;
  hashes_.resize(before + taken);
  kernel_(blocks, taken, hashes_.data() + before);
}

void PromptHasher::Add(std::string_view text) {
  bytes_ += text.size();
  if (rest_size_ != 0) {
    const size_t size = std::min(text.size(), kBlockBytes - rest_size_);
    std::memcpy(rest_.data() + rest_size_, text.data(), size);
    rest_size_ += size;
    text.remove_prefix(size);
    if (rest_size_ != kBlockBytes) return;
    rest_size_ = 0;
    Take(rest_.data(), 1);
  }
  const size_t whole = text.size() / kBlockBytes;
  if (whole != 0) Take(&text.front(), whole);
  text.remove_prefix(whole * kBlockBytes);
  if (!text.empty()) std::memcpy(rest_.data(), text.data(), text.size());
  rest_size_ = text.size();
}

void PromptHasher::AddToken(uint32_t token) {
  const std::array<char, 4> bytes = {static_cast<char>(token), static_cast<char>(token >> 8),
                                     static_cast<char>(token >> 16), static_cast<char>(token >> 24)};
  Add({bytes.data(), bytes.size()});
  if (tokens_ != nullptr && tokens_->tokens.size() < kMaxBlocks * kBlockBytes / sizeof token)
    tokens_->tokens.push_back(token);
}

std::shared_ptr<const PromptTokens> PromptHasher::tokens() const {
  const bool all = !spoiled_ && !parts_[kMain].cut && tokens_ != nullptr && !tokens_->ends.empty() &&
                   bytes_ == tokens_->tokens.size() * sizeof(uint32_t);
  return all ? tokens_ : nullptr;
}

void PromptHasher::AppendChains(uint64_t root, std::vector<uint64_t>& hashes, std::vector<PromptEnd>& ends,
                                bool partial) const {
  if (spoiled_) return;
  bool cut = false;
  const size_t base = hashes.size();
  for (const Part part : {kTemplate, kTools, kDocuments, kSystem}) {
    const Range& range = parts_[part];
    for (uint32_t i = range.begin; i != range.end && !cut; ++i) {
      root = Extend(root, hashes_[i]);
      hashes.push_back(root);
    }
    cut = cut || range.cut;
  }
  uint32_t begin = parts_[kMain].begin;
  if (cut ||
      prompts_.empty()) {  // tools and system alone, of a body that ended early or whose messages are empty
    if (hashes.size() != base) ends.push_back({static_cast<uint32_t>(hashes.size()), false});
    return;
  }
  for (const PromptEnd& prompt : prompts_) {
    const uint32_t end = prompt.end - (prompt.partial && !partial ? 1 : 0);
    uint64_t prefix = root;
    for (uint32_t i = begin; i < end; ++i) {
      prefix = Extend(prefix, hashes_[i]);
      hashes.push_back(prefix);
    }
    begin = prompt.end;
    const auto total = static_cast<uint32_t>(hashes.size());
    if (total != (ends.empty() ? base : ends.back().end)) ends.push_back({total, prompt.partial && partial});
  }
}

}  // namespace fairway::payload
