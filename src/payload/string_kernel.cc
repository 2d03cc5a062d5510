#include "payload/string_kernel.h"

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fairway::payload {
namespace {

bool IsSpecial(unsigned char c) { return c < 0x20 || c == '"' || c == '\\'; }

// Length of the sequence of two to four bytes at `p`, 0 when it is invalid or runs past `end`.
size_t SequenceLength(const char* p, const char* end) {
  Utf8Tail tail;
  if (!tail.Begin(static_cast<unsigned char>(*p))) return 0;
  const size_t length = tail.remaining + 1U;
  if (static_cast<size_t>(end - p) < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if (!tail.Next(static_cast<unsigned char>(p[i]))) return 0;
  }
  return length;
}

enum EscapeKind : uint8_t { kNoEscape, kShortEscape, kHexEscape };

constexpr std::array<EscapeKind, 256> kEscapes = [] {
  std::array<EscapeKind, 256> kinds{};
  for (const char c : {'"', '\\', '/', 'b', 'f', 'n', 'r', 't'})
    kinds[static_cast<unsigned char>(c)] = kShortEscape;
  kinds['u'] = kHexEscape;
  return kinds;
}();

constexpr std::array<bool, 256> kHexDigits = [] {
  std::array<bool, 256> digits{};
  for (const char c : std::string_view("0123456789abcdefABCDEF"))
    digits[static_cast<unsigned char>(c)] = true;
  return digits;
}();

// Length of the escape whose '\' is at `p`, 0 when it is invalid or runs past `end`.
inline unsigned EscapeLength(const char* p, const char* end) {
  const auto byte = [p](int i) { return static_cast<unsigned char>(p[i]); };
  if (end - p < 2) return 0;
  const EscapeKind kind = kEscapes[byte(1)];
  if (kind == kShortEscape) return 2;
  if (kind == kNoEscape || end - p < 6) return 0;
  return kHexDigits[byte(2)] && kHexDigits[byte(3)] && kHexDigits[byte(4)] && kHexDigits[byte(5)] ? 6 : 0;
}

constexpr uint64_t kOnes = 0x0101010101010101;
constexpr uint64_t kHighs = 0x8080808080808080;

// Whether one of eight bytes is special or not ASCII. May say yes for nothing (a borrow), never no.
bool AnyNotPlain(uint64_t word) {
  const auto zero = [](uint64_t x) { return (x - kOnes) & ~x; };
  const uint64_t control = (word - kOnes * 0x20) & ~word;
  return ((word | control | zero(word ^ (kOnes * '"')) | zero(word ^ (kOnes * '\\'))) & kHighs) != 0;
}

}  // namespace

bool Utf8Tail::Begin(unsigned char byte) {
  low = 0x80;
  high = 0xbf;
  if (byte < 0xc2 || byte > 0xf4) return false;
  remaining = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
  if (byte == 0xe0) low = 0xa0;   // shorter forms exist below
  if (byte == 0xed) high = 0x9f;  // surrogates
  if (byte == 0xf0) low = 0x90;   // shorter forms exist below
  if (byte == 0xf4) high = 0x8f;  // beyond U+10FFFF
  return true;
}

bool Utf8Tail::Next(unsigned char byte) {
  if (byte < low || byte > high) return false;
  low = 0x80;
  high = 0xbf;
  --remaining;
  return true;
}

namespace {

// skip_text made of a skip_plain.
template <SkipFunction skip_plain>
const char* SkipText(const char* p, const char* end) {
  for (;;) {
    p = skip_plain(p, end);
    if (p == end || *p != '\\') return p;
    const unsigned length = EscapeLength(p, end);
    if (length == 0) return p;
    p += length;
  }
}

// For any CPU: eight bytes at a time while they are ASCII.
const char* SkipPlainPortable(const char* p, const char* end) {
  while (p != end) {
    while (end - p >= 8) {
      uint64_t word;
      std::memcpy(&word, p, sizeof word);
      if (AnyNotPlain(word)) break;
      p += 8;
    }
    // At least one byte by hand, so that a false alarm of AnyNotPlain makes progress.
    for (int i = 0; i < 8 && p != end; ++i) {
      const auto c = static_cast<unsigned char>(*p);
      if (c < 0x80) {
        if (IsSpecial(c)) return p;
        ++p;
      } else {
        const size_t length = SequenceLength(p, end);
        if (length == 0) return p;
        p += length;
      }
    }
  }
  return p;
}

#if defined(__SSE2__)

const char* SkipPlainSse2(const char* p, const char* end) {
  const __m128i quote = _mm_set1_epi8('"');
  const __m128i backslash = _mm_set1_epi8('\\');
  const __m128i last_control = _mm_set1_epi8(0x1f);
  while (end - p >= 16) {
    const __m128i block = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(block, last_control), block);
    const __m128i special =
        _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(block, quote), _mm_cmpeq_epi8(block, backslash)), control);
    const auto stop = static_cast<unsigned>(_mm_movemask_epi8(_mm_or_si128(special, block)));
    if (stop == 0) {
      p += 16;
      continue;
    }
    p += std::countr_zero(stop);
    if (static_cast<unsigned char>(*p) < 0x80) return p;
    do {  // text in one script comes in runs
      const size_t length = SequenceLength(p, end);
      if (length == 0) return p;
      p += length;
    } while (p != end && static_cast<unsigned char>(*p) >= 0x80);
  }
  return SkipPlainPortable(p, end);
}

// UTF-8 validation, 32 bytes at a time, as in J. Keiser, D. Lemire, "Validating UTF-8 in less than one
// instruction per byte" (2020): each way in which two neighbouring bytes can be wrong is one bit, and depends
// only on the high and low half of the first and the high half of the second. A table per half gives the bits
// it allows; what is left after AND is wrong. Bit 7, two continuations in a row, is wrong only where no
// longer sequence asks for them.
struct Wrong {
  unsigned first_high;  // sets of half bytes, one bit each
  unsigned first_low;
  unsigned second_high;
};

constexpr unsigned kAny = 0xffff;
constexpr unsigned kAscii = 0x00ff;
constexpr unsigned kContinuation = 0x0f00;
constexpr unsigned kLead = 0xf000;

constexpr std::array<Wrong, 8> kWrong = {{
    {kLead, kAny, kAscii | kLead},               // a lead without its continuation
    {kAscii, kAny, kContinuation},               // a continuation without a lead
    {1U << 0xe, 1U << 0x0, 0x0300},              // E0 80..9F: too long for its character
    {1U << 0xf, 0xfff0, 0x0e00},                 // F4.. 90..BF: beyond U+10FFFF
    {1U << 0xe, 1U << 0xd, 0x0c00},              // ED A0..BF: surrogate
    {1U << 0xc, 0x0003, kContinuation},          // C0, C1: too long for its character
    {1U << 0xf, 0xffe0 | 1U << 0x0, 1U << 0x8},  // F0 80..8F too long, F5.. 80..8F beyond U+10FFFF
    {kContinuation, kAny, kContinuation},        // see above
}};

constexpr std::array<uint8_t, 32> Table(unsigned Wrong::* half) {
  std::array<uint8_t, 32> table{};
  for (size_t value = 0; value < 16; ++value) {
    uint8_t bits = 0;
    for (size_t i = 0; i < kWrong.size(); ++i) {
      if ((kWrong[i].*half >> value & 1U) != 0) bits = static_cast<uint8_t>(bits | 1U << i);
    }
    table[value] = table[value + 16] = bits;  // shuffles work per 16 bytes
  }
  return table;
}

alignas(32) constexpr std::array<uint8_t, 32> kFirstHigh = Table(&Wrong::first_high);
alignas(32) constexpr std::array<uint8_t, 32> kFirstLow = Table(&Wrong::first_low);
alignas(32) constexpr std::array<uint8_t, 32> kSecondHigh = Table(&Wrong::second_high);

// Loaded at 32 - n: n bytes of ones, then zeros.
constexpr std::array<uint8_t, 64> kKeep = [] {
  std::array<uint8_t, 64> keep{};
  for (size_t i = 0; i < 32; ++i) keep[i] = 0xff;
  return keep;
}();

// The last character boundary at or before `p`, where all of [begin, p) is valid but may end inside a
// sequence.
const char* Boundary(const char* begin, const char* p) {
  for (int back = 1; back <= 3 && p - begin >= back; ++back) {
    const auto c = static_cast<unsigned char>(*(p - back));
    if (c < 0x80) return p;
    if (c < 0xc0) continue;
    const int length = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    return length > back ? p - back : p;
  }
  return p;
}

#define FAIRWAY_AVX2 __attribute__((target("avx2,bmi")))

FAIRWAY_AVX2 inline __m256i Load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

FAIRWAY_AVX2 inline __m256i HighHalf(__m256i bytes) {
  return _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(0x0f));
}

// Not zero where the sequences of `block`, which follows `previous`, are wrong.
FAIRWAY_AVX2 inline __m256i Utf8Errors(__m256i previous, __m256i block) {
  const __m256i middle = _mm256_permute2x128_si256(previous, block, 0x21);
  const __m256i before1 = _mm256_alignr_epi8(block, middle, 15);
  const __m256i before2 = _mm256_alignr_epi8(block, middle, 14);
  const __m256i before3 = _mm256_alignr_epi8(block, middle, 13);
  const __m256i low_half = _mm256_and_si256(before1, _mm256_set1_epi8(0x0f));
  const __m256i pairs =
      _mm256_and_si256(_mm256_and_si256(_mm256_shuffle_epi8(Load(kFirstHigh.data()), HighHalf(before1)),
                                        _mm256_shuffle_epi8(Load(kFirstLow.data()), low_half)),
                       _mm256_shuffle_epi8(Load(kSecondHigh.data()), HighHalf(block)));
  // Bit 7 where a sequence of three or four asks for a second or third continuation.
  const __m256i third = _mm256_subs_epu8(before2, _mm256_set1_epi8(0xe0 - 0x80));
  const __m256i fourth = _mm256_subs_epu8(before3, _mm256_set1_epi8(0xf0 - 0x80));
  const __m256i asked =
      _mm256_and_si256(_mm256_or_si256(third, fourth), _mm256_set1_epi8(static_cast<char>(0x80)));
  return _mm256_xor_si256(asked, pairs);
}

FAIRWAY_AVX2 inline __m256i Special(__m256i block) {
  const __m256i control = _mm256_cmpeq_epi8(_mm256_min_epu8(block, _mm256_set1_epi8(0x1f)), block);
  return _mm256_or_si256(_mm256_or_si256(_mm256_cmpeq_epi8(block, _mm256_set1_epi8('"')),
                                         _mm256_cmpeq_epi8(block, _mm256_set1_epi8('\\'))),
                         control);
}

// Ones where a byte is ASCII and not special. As signed numbers what is not ASCII is below the blank, too.
FAIRWAY_AVX2 inline __m256i Plain(__m256i block) {
  const __m256i quotes = _mm256_or_si256(_mm256_cmpeq_epi8(block, _mm256_set1_epi8('"')),
                                         _mm256_cmpeq_epi8(block, _mm256_set1_epi8('\\')));
  return _mm256_andnot_si256(quotes, _mm256_cmpgt_epi8(block, _mm256_set1_epi8(0x1f)));
}

FAIRWAY_AVX2 inline bool AllPlain128(const char* p) {
  const __m256i all = _mm256_and_si256(_mm256_and_si256(Plain(Load(p)), Plain(Load(p + 32))),
                                       _mm256_and_si256(Plain(Load(p + 64)), Plain(Load(p + 96))));
  return _mm256_movemask_epi8(all) == -1;
}

// Skips the valid escapes of a block: those of `specials`' bits that stay are places to stop at. `length`: of
// the block, more where its last escape runs on behind it.
FAIRWAY_AVX2 inline uint32_t SkipEscapes(const char* p, const char* end, uint32_t specials,
                                         unsigned& length) {
  while (specials != 0) {
    const auto at = static_cast<unsigned>(std::countr_zero(specials));
    if (p[at] != '\\') return specials;
    const unsigned escape = EscapeLength(p + at, end);
    if (escape == 0) return specials;
    if (at + escape >= 32) {
      length = at + escape;
      return 0;
    }
    specials &= ~0U << (at + escape);
  }
  return 0;
}

template <bool kEscapesToo>
[[gnu::hot]] FAIRWAY_AVX2 const char* SkipAvx2(const char* begin, const char* end) {
  constexpr SkipFunction kPortable = kEscapesToo ? SkipText<SkipPlainPortable> : SkipPlainPortable;
  const char* p = begin;
  __m256i previous = _mm256_setzero_si256();
  bool open = false;  // whether `previous` may end inside a sequence
  unsigned vain = 0;  // plain blocks to take singly
  while (end - p >= 32) {
    const __m256i block = Load(p);
    const __m256i special = Special(block);
    const auto stop = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_or_si256(special, block)));
    if (stop == 0 && !open) [[likely]] {
      p += 32;
      // Long prompts: a jump that is foreseen, so that no block waits for the one before it. Where a try was
      // in vain the text is mixed, and the next ones would be, too.
      if (vain > 0) {
        --vain;
        continue;
      }
      vain = 8;
      for (; end - p >= 128 && AllPlain128(p); p += 128) vain = 0;
      continue;
    }
    if (!open && p[std::countr_zero(stop)] == '"') return p + std::countr_zero(stop);
    auto specials = static_cast<uint32_t>(_mm256_movemask_epi8(special));
    const auto not_ascii = static_cast<uint32_t>(_mm256_movemask_epi8(block));
    unsigned length = 32;
    if (kEscapesToo) specials = SkipEscapes(p, end, specials, length);
    const unsigned text = specials == 0 ? 32 : static_cast<unsigned>(std::countr_zero(specials));
    const uint32_t wanted = text == 32 ? ~0U : (1U << text) - 1;
    if (open || (not_ascii & wanted) != 0) {
      // What follows the text's end is not ours: zeros in its place end any sequence.
      const __m256i kept = _mm256_and_si256(block, Load(kKeep.data() + 32 - text));
      const __m256i errors = Utf8Errors(previous, kept);
      if (!_mm256_testz_si256(errors, errors)) [[unlikely]] {
        return kPortable(Boundary(begin, p), end);
      }
    }
    if (text != 32) return p + text;
    open = not_ascii != 0 && length == 32;  // what runs on behind the block is ASCII, and ends any sequence
    previous = open ? block : _mm256_setzero_si256();
    p += length;
  }
  // The last bytes once more with those before them, which were plain: the end of a prompt is near the end of
  // its body, and the portable way is all other code.
  if (end - begin >= 32 && !open) {
    const auto rest = static_cast<unsigned>(end - p);
    const __m256i block = Load(end - 32);
    const auto stop = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_or_si256(Special(block), block)));
    const uint32_t ours = stop & static_cast<uint32_t>(~uint64_t{0} << (32 - rest));
    if (ours == 0) return end;
    const char* at = end - 32 + std::countr_zero(ours);
    if (*at == '"') return at;
  }
  return kPortable(open ? Boundary(begin, p) : p, end);
}

#undef FAIRWAY_AVX2

#endif

constexpr auto kKernels = std::to_array<StringKernel>({
    {"portable", SkipPlainPortable, SkipText<SkipPlainPortable>},
#if defined(__SSE2__)
    {"sse2", SkipPlainSse2, SkipText<SkipPlainSse2>},
    {"avx2", SkipAvx2<false>, SkipAvx2<true>},
#endif
});

}  // namespace

std::span<const StringKernel> AllStringKernels() {
#if defined(__SSE2__)
  const bool avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("bmi") != 0;
  return std::span(kKernels).first(avx2 ? 3 : 2);
#else
  return kKernels;
#endif
}

const StringKernel& BestStringKernel() { return AllStringKernels().back(); }

}  // namespace fairway::payload
